-- Makes what all scripts of this directory use: the extension, companies,
-- roles, and the helpers of schema "test".  Runs first.
SET client_min_messages = warning;
\pset format unaligned
\pset tuples_only on

-- Fewer tries and short pauses, so that what gives up gives up soon.
ALTER SYSTEM SET leasehold.acquire_attempts = 3;
ALTER SYSTEM SET leasehold.cleanup_attempts = 3;
SELECT pg_reload_conf();

-- The roles are the cluster's: an earlier run may have left them.
DO $$
DECLARE
    r name;
BEGIN
    FOR r IN SELECT rolname FROM pg_roles WHERE rolname LIKE 'regress\_%' LOOP
        EXECUTE format('DROP ROLE %I', r);
    END LOOP;
END
$$;

CREATE EXTENSION leasehold;

-- Roles: what each may do is said in role_matrix.sql.
CREATE ROLE regress_admin LOGIN IN ROLE leasehold_admin;
CREATE ROLE regress_manager LOGIN IN ROLE leasehold_app;
CREATE ROLE regress_user LOGIN IN ROLE leasehold_app;
CREATE ROLE regress_viewer LOGIN IN ROLE leasehold_app;
CREATE ROLE regress_auditor LOGIN IN ROLE leasehold_auditor;
CREATE ROLE regress_resolver LOGIN IN ROLE leasehold_resolver;
CREATE ROLE regress_beta LOGIN IN ROLE leasehold_app;
CREATE ROLE regress_both LOGIN IN ROLE leasehold_app;
CREATE ROLE regress_nobody LOGIN IN ROLE leasehold_app;
CREATE ROLE regress_ungrouped LOGIN;
CREATE ROLE regress_stranger LOGIN;

-- Helpers.  Each returns one line: "ok", or what is wrong.
CREATE SCHEMA test;
GRANT USAGE ON SCHEMA test TO PUBLIC;

-- The id that belongs to a name, so that no id is ever in an output.
CREATE FUNCTION test.id(key text) RETURNS uuid LANGUAGE sql IMMUTABLE
    RETURN md5('leasehold test ' || key)::uuid;

CREATE FUNCTION test.is(label text, got anycompatible, want anycompatible) RETURNS text
    LANGUAGE sql AS $$
    SELECT CASE WHEN got IS NOT DISTINCT FROM want THEN 'ok - ' || label
        ELSE format('NOT OK - %s: got %s, wanted %s', label, COALESCE(got::text, 'null'), COALESCE(want::text, 'null')) END
$$;

-- Every error that the documentation promises, with its SQLSTATE.
CREATE TABLE test.error_codes (code text PRIMARY KEY, sqlstate text NOT NULL);
INSERT INTO test.error_codes VALUES
    ('company_not_found', 'PT404'), ('member_not_found', 'PT404'), ('role_not_found', 'PT404'),
    ('agent_not_found', 'PT404'), ('project_not_found', 'PT404'), ('issue_not_found', 'PT404'),
    ('execution_workspace_not_found', 'PT404'), ('run_not_found', 'PT404'), ('routine_not_found', 'PT404'),
    ('environment_not_found', 'PT404'), ('plugin_not_found', 'PT404'), ('provider_not_found', 'PT404'),
    ('lease_not_found', 'PT404'), ('call_not_found', 'PT404'), ('command_not_found', 'PT404'),
    ('argument_required', '22023'), ('argument_invalid', '22023'), ('argument_too_large', '22023'),
    ('key_invalid', '22023'), ('config_invalid', '22023'), ('manifest_invalid', '22023'),
    ('transport_invalid', '22023'), ('company_ambiguous', '22023'),
    ('forbidden', '42501'), ('restricted_operation', '42501'), ('actor_forbidden', '42501'),
    ('append_only', '42501'),
    ('already_exists', '23505'),
    ('wrong_state', 'PT409'), ('illegal_transition', 'PT409'), ('stale_version', 'PT409'),
    ('idempotency_conflict', 'PT409'), ('still_in_use', 'PT409'), ('drop_guarded', 'PT409'),
    ('environment_inactive', 'PT422'), ('company_inactive', 'PT422'), ('provider_unusable', 'PT422'),
    ('provider_forbidden', 'PT422'), ('role_unsuitable', 'PT422'), ('import_refused', 'PT422'), ('command_failed', 'PT422'),
    ('quota_exceeded', 'PT429'),
    ('worker_unavailable', 'PT503'), ('installation_held', 'PT503'), ('lease_acquire_failed', 'PT503'),
    ('read_only', '25006'), ('own_transaction', '25001'), ('transaction_block', '25001'), ('not_preloaded', '55000');
GRANT SELECT ON test.error_codes TO PUBLIC;

-- What a statement raises: its SQLSTATE, and the machine code if it is one of ours.
CREATE FUNCTION test.error(statement text, OUT state text, OUT code text, OUT message text, OUT detail text, OUT hint text)
    LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE statement;
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL,
                            hint = PG_EXCEPTION_HINT;
    -- qualified, since attacks.sql calls this with hostile names around
    IF pg_catalog.starts_with(detail, '{"code": ') THEN
        code := detail::pg_catalog.jsonb OPERATOR(pg_catalog.->>) 'code'::pg_catalog.text;
    END IF;
END
$$;

-- Refused with one of our errors, which has the SQLSTATE that belongs to it.
CREATE FUNCTION test.refused(label text, statement text, code text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    e record;
BEGIN
    SELECT * INTO e FROM test.error(statement);
    RETURN CASE
        WHEN e.state IS NULL THEN format('NOT OK - %s: went through', label)
        WHEN e.code IS DISTINCT FROM refused.code
             OR e.state IS DISTINCT FROM (SELECT c.sqlstate FROM test.error_codes AS c WHERE c.code = refused.code)
            THEN format('NOT OK - %s: %s %s: %s', label, e.state, e.code, e.message)
        ELSE format('ok - %s: %s', label, code) END;
END
$$;

-- Refused with an error of the server's own.
CREATE FUNCTION test.fails(label text, statement text, want text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    e record;
BEGIN
    SELECT * INTO e FROM test.error(statement);
    RETURN CASE WHEN e.state IS NULL THEN format('NOT OK - %s: went through', label)
        WHEN e.state <> want THEN format('NOT OK - %s: %s: %s', label, e.state, e.message)
        ELSE format('ok - %s: %s', label, want) END;
END
$$;

-- A statement that goes through; its first column is the line's end.
CREATE FUNCTION test.works(label text, statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    e record;
BEGIN
    SELECT * INTO e FROM test.error(statement);
    RETURN CASE WHEN e.state IS NULL THEN 'ok - ' || label
        ELSE format('NOT OK - %s: %s %s: %s', label, e.state, e.code, e.message) END;
END
$$;

-- Asks until the answer is the wanted one, for a time that only a fault takes.
CREATE FUNCTION test.eventually(label text, query text, want text, patience interval DEFAULT '30 seconds')
    RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    give_up timestamptz := clock_timestamp() + patience;
    got     text;
BEGIN
    LOOP
        EXECUTE query INTO got;
        IF got IS NOT DISTINCT FROM want THEN
            RETURN 'ok - ' || label;
        ELSIF clock_timestamp() > give_up THEN
            RETURN format('NOT OK - %s: got %s for too long, wanted %s', label, COALESCE(got, 'null'), COALESCE(want, 'null'));
        END IF;
        PERFORM pg_sleep(0.01);
    END LOOP;
END
$$;

-- Runs a statement as somebody else; an error ends that, too.
CREATE FUNCTION test.as_role(role_name name, statement text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('SET LOCAL ROLE %I', role_name);
    EXECUTE statement;
    RESET ROLE;
END
$$;

-- A lease's status; and, in the order of time, what its events tell.
CREATE FUNCTION test.lease(key text) RETURNS text LANGUAGE sql
    BEGIN ATOMIC SELECT l.status::text FROM leasehold.leases AS l WHERE l.id = test.id(key); END;
CREATE FUNCTION test.events(key text) RETURNS text LANGUAGE sql
    BEGIN ATOMIC SELECT string_agg(replace(e.action, 'environment.lease_', ''), ' ' ORDER BY e.occurred_at, e.id)
          FROM leasehold.audit_events AS e
           WHERE e.entity_type = 'environment_lease' AND e.entity_id = test.id(key)::text; END;

-- Waits until no worker has anything to do, so that none writes.
CREATE FUNCTION test.quiet() RETURNS text LANGUAGE sql AS $$
    SELECT test.eventually('nothing is under way', 'SELECT count(*)::text FROM leasehold_internal.calls AS c
        WHERE c.state = ''started'' OR c.state = ''queued'' AND c.due_at < clock_timestamp() + interval ''5 seconds''', '0') $$;

-- Everything that is stored, as one number: whether something was written.
CREATE FUNCTION test.fingerprint() RETURNS text LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    t     regclass;
    part  text;
    whole text := '';
BEGIN
    FOR t IN SELECT c.oid::regclass FROM pg_class AS c
              WHERE c.relnamespace IN ('leasehold'::regnamespace, 'leasehold_internal'::regnamespace)
                AND c.relkind = 'r' ORDER BY c.oid::regclass::text LOOP
        EXECUTE format('SELECT count(*) || '' '' || COALESCE(sum(hashtextextended(t::text, 0)), 0) FROM %s AS t', t) INTO part;
        whole := whole || t::text || ' ' || part || E'\n';
    END LOOP;
    RETURN md5(whole);
END
$$;

-- Companies and their members.
SELECT leasehold.create_company('acme', 'Acme', test.id('acme')) = test.id('acme') AS acme,
       leasehold.create_company('beta', 'Beta', test.id('beta')) = test.id('beta') AS beta;
SELECT leasehold.grant_company('acme', 'regress_manager', 'manager', asserts_actor => true);
SELECT leasehold.grant_company('acme', 'regress_user', 'user');
SELECT leasehold.grant_company('acme', 'regress_viewer', 'viewer');
SELECT leasehold.grant_company('acme', 'regress_auditor', 'viewer');
SELECT leasehold.grant_company('acme', 'regress_resolver', 'user');
SELECT leasehold.grant_company('acme', 'regress_ungrouped', 'manager');
SELECT leasehold.grant_company('acme', 'regress_both', 'user');
SELECT leasehold.grant_company('beta', 'regress_both', 'user');
SELECT leasehold.grant_company('beta', 'regress_beta', 'manager');

SET ROLE regress_manager;
SELECT leasehold.create_environment('plain', 'fake', environment_id => test.id('acme plain')) = test.id('acme plain') AS made;
SET ROLE regress_beta;
SELECT leasehold.create_environment('plain', 'fake', environment_id => test.id('beta plain')) = test.id('beta plain') AS made;
RESET ROLE;

SELECT test.eventually('a worker serves the database',
    $$SELECT state FROM leasehold.status() WHERE area = 'worker'$$, 'running');
