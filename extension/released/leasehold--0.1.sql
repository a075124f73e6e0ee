\echo Use "CREATE EXTENSION leasehold" to load this file. \quit

-- 00_guard.sql: what must hold before anything is created.

DO $$
BEGIN
    IF pg_catalog.current_setting('server_encoding') OPERATOR(pg_catalog.<>) 'UTF8' THEN
        RAISE EXCEPTION 'leasehold needs a database with the encoding UTF8'
            USING ERRCODE = 'feature_not_supported',
                  HINT = 'Create the database with ENCODING ''UTF8''.';
    END IF;
END
$$;
-- 01_roles.sql: the roles, which are made if missing and outlive the extension.
--
-- leasehold_owner   owns every object; public functions run as it
-- leasehold_worker  what the background worker's SQL runs as
-- leasehold_admin   the installation: plugins, limits, operations of all companies
-- leasehold_app     an application or an operator of some companies
-- leasehold_auditor metadata and the audit trail
-- leasehold_resolver may receive the plaintext of secrets
--
-- A role that is there already may have been put there by somebody who wants
-- to be let in, so it is taken only if it has no power of its own and nobody
-- but a superuser gave it members.

DO $$
DECLARE
    wanted record;
    present record;
BEGIN
    FOR wanted IN
        SELECT * FROM (VALUES
            ('leasehold_owner', false, false),
            ('leasehold_worker', true, false),
            ('leasehold_admin', false, true),
            ('leasehold_app', false, true),
            ('leasehold_auditor', false, true),
            ('leasehold_resolver', false, true)) AS r (role_name, bypass, may_have_members)
    LOOP
        SELECT a.* INTO present FROM pg_catalog.pg_authid AS a
         WHERE a.rolname OPERATOR(pg_catalog.=) wanted.role_name::pg_catalog.name;
        IF NOT FOUND THEN
            EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION INHERIT %s',
                wanted.role_name, CASE WHEN wanted.bypass THEN 'BYPASSRLS' ELSE 'NOBYPASSRLS' END);
            CONTINUE;
        END IF;

        IF present.rolcanlogin OR present.rolsuper OR present.rolcreaterole OR present.rolcreatedb
           OR present.rolreplication OR present.rolbypassrls OPERATOR(pg_catalog.<>) wanted.bypass THEN
            RAISE EXCEPTION 'role "%" exists and is not as leasehold needs it', wanted.role_name
                USING ERRCODE = 'PT422', DETAIL = '{"code": "role_unsuitable"}',
                      HINT = 'It must have NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION, and BYPASSRLS only if it is leasehold_worker. Change or drop it.';
        END IF;
        IF EXISTS (SELECT FROM pg_catalog.pg_auth_members AS m
                   LEFT JOIN pg_catalog.pg_authid AS g ON g.oid OPERATOR(pg_catalog.=) m.grantor
                   WHERE m.roleid OPERATOR(pg_catalog.=) present.oid
                     AND NOT (wanted.may_have_members AND COALESCE(g.rolsuper, false))) THEN
            RAISE EXCEPTION 'role "%" exists and has members that leasehold cannot trust', wanted.role_name
                USING ERRCODE = 'PT422', DETAIL = '{"code": "role_unsuitable"}',
                      HINT = 'Revoke the role from members that no superuser granted it to; leasehold_owner and leasehold_worker must have none.';
        END IF;
        IF EXISTS (SELECT FROM pg_catalog.pg_auth_members AS m
                   WHERE m.member OPERATOR(pg_catalog.=) present.oid) THEN
            RAISE EXCEPTION 'role "%" exists and is a member of another role', wanted.role_name
                USING ERRCODE = 'PT422', DETAIL = '{"code": "role_unsuitable"}',
                      HINT = 'Revoke the other role from it.';
        END IF;
    END LOOP;
END
$$;

CREATE SCHEMA leasehold;
COMMENT ON SCHEMA leasehold IS 'Leased places for agents to run: what users read and call';
CREATE SCHEMA leasehold_internal;
COMMENT ON SCHEMA leasehold_internal IS 'What only the owner and the worker of leasehold use';
-- 02_domains.sql: every closed set of values.

CREATE DOMAIN leasehold.object_key AS text COLLATE "C"
    CHECK (VALUE OPERATOR(pg_catalog.~) '^[a-z0-9][a-z0-9._-]{0,62}$');
COMMENT ON DOMAIN leasehold.object_key IS
    'Name of a company, environment, plugin or provider: lower-case letters, digits, dot, underscore and hyphen, at most 63';

CREATE DOMAIN leasehold.member_level AS text COLLATE "C"
    CHECK (VALUE IN ('viewer', 'user', 'manager'));
COMMENT ON DOMAIN leasehold.member_level IS
    'viewer sees what there is, without configurations; user works with leases and runs; manager also changes environments and members';

CREATE DOMAIN leasehold.object_status AS text COLLATE "C"
    CHECK (VALUE IN ('active', 'archived'));
COMMENT ON DOMAIN leasehold.object_status IS 'Whether a company, agent, environment and so on is in use';

CREATE DOMAIN leasehold.plugin_status AS text COLLATE "C"
    CHECK (VALUE IN ('installed', 'ready', 'disabled', 'error'));
COMMENT ON DOMAIN leasehold.plugin_status IS
    'installed: not yet spoken to; ready: has answered initialize; disabled: by an administrator; error: see last_error';

CREATE DOMAIN leasehold.driver_kind AS text COLLATE "C"
    CHECK (VALUE IN ('sandbox_provider', 'environment_driver'));
COMMENT ON DOMAIN leasehold.driver_kind IS 'The two kinds of driver that a manifest can declare';

CREATE DOMAIN leasehold.run_status AS text COLLATE "C"
    CHECK (VALUE IN ('queued', 'running', 'succeeded', 'failed', 'cancelled', 'timed_out', 'interrupted'));
COMMENT ON DOMAIN leasehold.run_status IS 'State of a run; all but queued and running are final';

CREATE DOMAIN leasehold.lease_status AS text COLLATE "C"
    CHECK (VALUE IN ('acquiring', 'active', 'releasing', 'released', 'retained', 'resuming', 'expired',
                     'failed', 'pending_cleanup', 'irrevocable', 'written_off', 'forgotten'));
COMMENT ON DOMAIN leasehold.lease_status IS 'State of a lease; see leasehold.lease_transitions()';

CREATE DOMAIN leasehold.lease_end AS text COLLATE "C"
    CHECK (VALUE IN ('released', 'expired', 'failed', 'retained'));
COMMENT ON DOMAIN leasehold.lease_end IS 'What a lease becomes when its release has been carried out';

CREATE DOMAIN leasehold.lease_policy AS text COLLATE "C"
    CHECK (VALUE IN ('ephemeral', 'reuse_by_environment', 'retain_on_failure'));
COMMENT ON DOMAIN leasehold.lease_policy IS
    'ephemeral: gone at the end; reuse_by_environment: parked for the next lease of the same agent and workspace; retain_on_failure: parked if it ends as failed';

CREATE DOMAIN leasehold.disposition AS text COLLATE "C"
    CHECK (VALUE IN ('keep', 'stop', 'delete'));
COMMENT ON DOMAIN leasehold.disposition IS
    'What the provider is to do with the resource of a released lease: keep it running, stop it, or delete it';

CREATE DOMAIN leasehold.cleanup_status AS text COLLATE "C"
    CHECK (VALUE IN ('pending', 'success', 'failed'));
COMMENT ON DOMAIN leasehold.cleanup_status IS 'Whether the resource of an ended lease is known to be gone or parked';

CREATE DOMAIN leasehold.limit_name AS text COLLATE "C"
    CHECK (VALUE IN ('active_leases', 'concurrent_calls', 'concurrent_commands', 'lease_ttl_max',
                     'lease_starts_per_minute', 'output_bytes', 'resolves_per_minute'));
COMMENT ON DOMAIN leasehold.limit_name IS 'What can be limited; see leasehold.set_limit()';

CREATE DOMAIN leasehold_internal.call_operation AS text COLLATE "C"
    CHECK (VALUE IN ('acquire', 'resume', 'release', 'destroy', 'destroy_stray', 'initialize', 'reconcile',
                     'lease_deadline', 'run_deadline', 'places'));
COMMENT ON DOMAIN leasehold_internal.call_operation IS
    'What a row of the dispatch table asks for: a provider call, the check of a deadline, or to see who waits for a place';

CREATE DOMAIN leasehold_internal.call_slot AS text COLLATE "C"
    CHECK (VALUE IN ('op', 'sweep', 'timer', 'run_timer'));
COMMENT ON DOMAIN leasehold_internal.call_slot IS 'What a call is to its subject: an operation, or a deadline';

CREATE DOMAIN leasehold_internal.call_state AS text COLLATE "C"
    CHECK (VALUE IN ('queued', 'started', 'waiting', 'quarantined'));
COMMENT ON DOMAIN leasehold_internal.call_state IS
    'queued until due_at; started: a worker has it, its outcome is unknown if the worker dies; waiting for a limit; quarantined after crashes';
-- 03_foundation.sql: what every other file uses: ids, errors, the caller, checks
-- of arguments, and the making of public functions.

CREATE FUNCTION leasehold.new_id() RETURNS uuid
    LANGUAGE c VOLATILE PARALLEL SAFE AS 'MODULE_PATHNAME', 'leasehold_new_id';
COMMENT ON FUNCTION leasehold.new_id() IS 'instant: a new time-ordered id (UUID version 7)';

CREATE FUNCTION leasehold.acting_role() RETURNS name
    LANGUAGE c STABLE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'leasehold_acting_role';
COMMENT ON FUNCTION leasehold.acting_role() IS
    'instant: the role for which the current call is made: the one that was current when the public function was called';

CREATE FUNCTION leasehold.visible_companies(level text DEFAULT 'viewer') RETURNS uuid[]
    LANGUAGE c STABLE STRICT PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'leasehold_visible_companies';
COMMENT ON FUNCTION leasehold.visible_companies(text) IS
    'instant: the companies whose rows the acting role sees at a membership level; row security uses it';

CREATE FUNCTION leasehold.error_codes(OUT code text, OUT sqlstate text) RETURNS SETOF record
    LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'leasehold_error_codes';
COMMENT ON FUNCTION leasehold.error_codes() IS
    'instant: the machine codes that errors carry in DETAIL, and their SQLSTATEs';

CREATE FUNCTION leasehold_internal.refuse(code text, message text, hint text DEFAULT NULL, detail jsonb DEFAULT NULL)
    RETURNS void LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_refuse';
COMMENT ON FUNCTION leasehold_internal.refuse(text, text, text, jsonb) IS 'Raises one of the documented errors';

CREATE FUNCTION leasehold_internal.enter_company(company text, level text, admin_may boolean DEFAULT false)
    RETURNS uuid LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_enter_company';
COMMENT ON FUNCTION leasehold_internal.enter_company(text, text, boolean) IS
    'The company a public function is about, after the check of the caller''s level in it';

CREATE FUNCTION leasehold_internal.enter_own_membership(company text) RETURNS uuid
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_enter_own_membership';
COMMENT ON FUNCTION leasehold_internal.enter_own_membership(text) IS
    'The company, if the caller itself has a membership there, even a pending one; else NULL';

CREATE FUNCTION leasehold_internal.enter_admin() RETURNS void
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_enter_admin';
COMMENT ON FUNCTION leasehold_internal.enter_admin() IS 'Lets only leasehold_admin go on';

CREATE FUNCTION leasehold_internal.is_admin() RETURNS boolean
    LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'leasehold_is_admin';
COMMENT ON FUNCTION leasehold_internal.is_admin() IS 'Whether the caller has the privileges of leasehold_admin';

CREATE FUNCTION leasehold_internal.choose_company(company text, actor text) RETURNS uuid
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_choose_company';
COMMENT ON FUNCTION leasehold_internal.choose_company(text, text) IS 'Behind leasehold.use_company()';

CREATE FUNCTION leasehold_internal.asserted_actor() RETURNS text
    LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'leasehold_asserted_actor';
COMMENT ON FUNCTION leasehold_internal.asserted_actor() IS 'Whom the application says it acts for in this transaction';

-- Statement trigger on every table of which some process keeps a copy.
CREATE FUNCTION leasehold_internal.relation_changed() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'leasehold_relation_changed';
COMMENT ON FUNCTION leasehold_internal.relation_changed() IS
    'Has workers and sessions read again what they keep of the table, workers at once';

-- The id that stands for "the whole installation" where a company's would.
CREATE FUNCTION leasehold_internal.no_company() RETURNS uuid
    LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN '00000000-0000-0000-0000-000000000000'::uuid;
COMMENT ON FUNCTION leasehold_internal.no_company() IS 'Stands for the installation where a company''s id would';

-- Checks of arguments.  Each raises, or returns the value to use.

CREATE FUNCTION leasehold_internal.check_key(argument text, value text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF value OPERATOR(pg_catalog.!~) '^[a-z0-9][a-z0-9._-]{0,62}$' THEN
        PERFORM leasehold_internal.refuse('key_invalid',
            pg_catalog.format('argument "%s" is not a valid key', argument),
            'A key starts with a lower-case letter or digit and goes on with those, ".", "_" or "-", 63 characters at most.');
    END IF;
    RETURN value;
END
$$;
COMMENT ON FUNCTION leasehold_internal.check_key(text, text) IS 'Refuses what is not a key';

CREATE FUNCTION leasehold_internal.check_text(argument text, value text, longest integer DEFAULT 200) RETURNS text
    LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF pg_catalog.length(value) OPERATOR(pg_catalog.>) longest THEN
        PERFORM leasehold_internal.refuse('argument_too_large',
            pg_catalog.format('argument "%s" is too long', argument),
            pg_catalog.format('The limit is %s characters.', longest));
    END IF;
    IF value OPERATOR(pg_catalog.~) '[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]' THEN
        PERFORM leasehold_internal.refuse('argument_invalid',
            pg_catalog.format('argument "%s" contains control characters', argument));
    END IF;
    RETURN value;
END
$$;
COMMENT ON FUNCTION leasehold_internal.check_text(text, text, integer) IS 'Refuses overlong text and control characters';

CREATE FUNCTION leasehold_internal.check_choice(argument text, value text, VARIADIC allowed text[]) RETURNS text
    LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF value IS NULL OR NOT value OPERATOR(pg_catalog.=) ANY (allowed) THEN
        PERFORM leasehold_internal.refuse('argument_invalid',
            pg_catalog.format('argument "%s" has a value that is not allowed', argument),
            pg_catalog.format('Allowed: %s.', pg_catalog.array_to_string(allowed, ', ')));
    END IF;
    RETURN value;
END
$$;
COMMENT ON FUNCTION leasehold_internal.check_choice(text, text, text[]) IS 'Refuses a value outside a closed set';

CREATE FUNCTION leasehold_internal.check_object(argument text, value jsonb, largest integer DEFAULT 65536) RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF value IS NOT NULL AND pg_catalog.jsonb_typeof(value) OPERATOR(pg_catalog.<>) 'object' THEN
        PERFORM leasehold_internal.refuse('argument_invalid',
            pg_catalog.format('argument "%s" must be a JSON object', argument));
    END IF;
    IF pg_catalog.octet_length(value::text) OPERATOR(pg_catalog.>) largest THEN
        PERFORM leasehold_internal.refuse('argument_too_large',
            pg_catalog.format('argument "%s" is too large', argument),
            pg_catalog.format('The limit is %s bytes.', largest));
    END IF;
    RETURN value;
END
$$;
COMMENT ON FUNCTION leasehold_internal.check_object(text, jsonb, integer) IS 'Refuses what is not a JSON object of bounded size';

CREATE FUNCTION leasehold_internal.check_env(argument text, value jsonb) RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    bad text;
BEGIN
    PERFORM leasehold_internal.check_object(argument, value);
    SELECT e.key INTO bad
      FROM pg_catalog.jsonb_each(value) AS e
     WHERE e.key OPERATOR(pg_catalog.!~) '^[A-Za-z_][A-Za-z0-9_]{0,254}$'
        OR NOT CASE pg_catalog.jsonb_typeof(e.value)
               WHEN 'string' THEN true
               -- {"$secret": "<key>"} or {"$secret": {"id": ..., "version": ...}}
               WHEN 'object' THEN e.value OPERATOR(pg_catalog.-) '$secret' OPERATOR(pg_catalog.=) '{}'
                                  AND pg_catalog.jsonb_typeof(e.value OPERATOR(pg_catalog.->) '$secret') IN ('string', 'object')
               ELSE false END
     LIMIT 1;
    IF FOUND THEN
        PERFORM leasehold_internal.refuse('argument_invalid',
            pg_catalog.format('argument "%s" is not a set of environment variables', argument),
            'Names are letters, digits and underscores and do not start with a digit; values are strings or references {"$secret": ...}.',
            pg_catalog.jsonb_build_object('variable', pg_catalog.left(bad, 100)));
    END IF;
    RETURN value;
END
$$;
COMMENT ON FUNCTION leasehold_internal.check_env(text, jsonb) IS 'Refuses what is not a map of environment variables';

CREATE FUNCTION leasehold_internal.check_interval(argument text, value interval, lowest interval, highest interval)
    RETURNS interval LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF value OPERATOR(pg_catalog.<) lowest OR value OPERATOR(pg_catalog.>) highest THEN
        PERFORM leasehold_internal.refuse('argument_invalid',
            pg_catalog.format('argument "%s" is out of range', argument),
            pg_catalog.format('It must be between %s and %s.', lowest, highest));
    END IF;
    RETURN value;
END
$$;
COMMENT ON FUNCTION leasehold_internal.check_interval(text, interval, interval, interval) IS
    'Refuses a duration outside its range';

-- revoke_all() takes from everybody what the installing role's default
-- privileges gave him.

CREATE FUNCTION leasehold_internal.revoke_all(object_type text, object text, acl aclitem[]) RETURNS void
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    grantee oid;
BEGIN
    EXECUTE format('REVOKE ALL ON %s %s FROM PUBLIC CASCADE', object_type, object);
    FOR grantee IN SELECT DISTINCT a.grantee FROM aclexplode(acl) AS a WHERE a.grantee NOT IN (0, a.grantor) LOOP
        EXECUTE format('REVOKE ALL ON %s %s FROM %s CASCADE', object_type, object, grantee::regrole);
    END LOOP;
END
$$;
COMMENT ON FUNCTION leasehold_internal.revoke_all(text, text, aclitem[]) IS
    'Takes all privileges on an object from everybody but its owner, for the install and upgrade scripts';

-- publish() makes the public function of an implementation: same name,
-- arguments, defaults and result, and the entry gate as its body.

CREATE FUNCTION leasehold_internal.publish(implementation regproc, kind text, description text, VARIADIC to_roles text[])
    RETURNS void LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    proc   pg_proc;
    target text;
    grantee text;
BEGIN
    SELECT p.* INTO STRICT proc FROM pg_proc AS p WHERE p.oid = implementation;
    IF kind NOT IN ('instant', 'waits') THEN
        RAISE EXCEPTION 'unknown kind of function: %', kind;
    END IF;
    target := format('leasehold.%I(%s)', proc.proname, pg_get_function_identity_arguments(proc.oid));
    EXECUTE format('CREATE FUNCTION leasehold.%I(%s) RETURNS %s LANGUAGE c %s AS %L, %L',
        proc.proname, pg_get_function_arguments(proc.oid), pg_get_function_result(proc.oid),
        CASE proc.provolatile WHEN 'v' THEN 'VOLATILE' WHEN 's' THEN 'STABLE' ELSE 'IMMUTABLE' END,
        '$libdir/leasehold', 'leasehold_gate');
    PERFORM leasehold_internal.revoke_all('FUNCTION', target,
        (SELECT p.proacl FROM pg_proc AS p WHERE p.pronamespace = 'leasehold'::regnamespace
            AND p.proname = proc.proname AND p.proargtypes = proc.proargtypes));
    FOREACH grantee IN ARRAY to_roles LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', target, grantee);
    END LOOP;
    EXECUTE format('COMMENT ON FUNCTION %s IS %L', target, kind || ': ' || description);
    EXECUTE format('COMMENT ON FUNCTION leasehold_internal.%I(%s) IS %L', proc.proname,
        pg_get_function_identity_arguments(proc.oid), 'Implementation of leasehold.' || proc.proname);
END
$$;
COMMENT ON FUNCTION leasehold_internal.publish(regproc, text, text, text[]) IS
    'Makes the public function of an implementation, for the install and upgrade scripts';

-- protect() gives a table its row security: rows of companies that the acting
-- role sees at the level, and the owner, too, is bound by it.  Only the owner has
-- a policy for writing, so a privilege that was given by mistake changes nothing.

CREATE FUNCTION leasehold_internal.protect(target regclass, level text, company_column text DEFAULT 'company_id')
    RETURNS void LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    rows_seen text := format('USING (%I = ANY ((SELECT leasehold.visible_companies(%L))::uuid[]))', company_column, level);
BEGIN
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', target);
    EXECUTE format('CREATE POLICY companies ON %s TO leasehold_owner %s', target, rows_seen);
    EXECUTE format('COMMENT ON POLICY companies ON %s IS %L', target,
        'Rows of the companies in which the acting role has at least the level ' || level);
    IF (SELECT c.relnamespace FROM pg_class AS c WHERE c.oid = target) = 'leasehold'::regnamespace THEN
        EXECUTE format('CREATE POLICY readers ON %s FOR SELECT TO leasehold_admin, leasehold_app, leasehold_auditor %s',
            target, rows_seen);
        EXECUTE format('COMMENT ON POLICY readers ON %s IS %L', target, 'The same rows, to read');
    END IF;
END
$$;
COMMENT ON FUNCTION leasehold_internal.protect(regclass, text, text) IS
    'Gives a table its row security, for the install and upgrade scripts';
-- 10_installation.sql: who we are, so that a copy of this database knows that it
-- is one.
--
-- The stamp is written when the first company or plugin is made, not at CREATE
-- EXTENSION: a restore creates the extension and then brings its own stamp,
-- whose facts do not fit the place it was restored to, and holds the worker.

CREATE TABLE leasehold_internal.installation (
    id                uuid PRIMARY KEY,
    epoch             bigint NOT NULL DEFAULT 1,
    database_oid      oid NOT NULL,
    system_identifier text NOT NULL,
    host              text NOT NULL,
    data_directory    text NOT NULL,
    directory_inode   bigint NOT NULL,
    timeline          integer NOT NULL,
    paused            boolean NOT NULL DEFAULT false,
    paused_reason     text,
    draining          boolean NOT NULL DEFAULT false,
    sweep_dry         boolean NOT NULL DEFAULT false,
    created_at        timestamptz NOT NULL DEFAULT pg_catalog.now(),
    CHECK (epoch > 0)
);
COMMENT ON TABLE leasehold_internal.installation IS
    'The installation''s identity and where it may run: one row once anything exists';

CREATE TABLE leasehold_internal.allowed_hosts (
    host           text NOT NULL,
    data_directory text NOT NULL,
    added_at       timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (host, data_directory)
);
COMMENT ON TABLE leasehold_internal.allowed_hosts IS
    'Where the installation goes on by itself after a failover: see leasehold.allow_host()';

-- Counts the workers that ever served this database; what they write is fenced by it.
CREATE SEQUENCE leasehold_internal.worker_epoch;
COMMENT ON SEQUENCE leasehold_internal.worker_epoch IS 'Each worker process takes the next number as its epoch';

CREATE FUNCTION leasehold_internal.here(
        OUT database_oid oid, OUT system_identifier text, OUT host text, OUT data_directory text,
        OUT directory_inode bigint, OUT timeline integer)
    RETURNS record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_here';
COMMENT ON FUNCTION leasehold_internal.here() IS 'The facts of this server that the stamp is compared with';

CREATE FUNCTION leasehold_internal.current_epoch() RETURNS bigint
    LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'leasehold_current_epoch';
COMMENT ON FUNCTION leasehold_internal.current_epoch() IS 'The installation''s epoch, 0 before the stamp';

CREATE FUNCTION leasehold_internal.is_draining() RETURNS boolean
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_is_draining';
COMMENT ON FUNCTION leasehold_internal.is_draining() IS 'Whether drain_installation() was called';

CREATE TRIGGER installation_changed AFTER INSERT OR UPDATE OR DELETE ON leasehold_internal.installation
    FOR EACH STATEMENT EXECUTE FUNCTION leasehold_internal.relation_changed();
CREATE TRIGGER installation_changed AFTER INSERT OR UPDATE OR DELETE ON leasehold_internal.allowed_hosts
    FOR EACH STATEMENT EXECUTE FUNCTION leasehold_internal.relation_changed();
-- in a restore that switches triggers off, too
ALTER TABLE leasehold_internal.installation ENABLE ALWAYS TRIGGER installation_changed;
ALTER TABLE leasehold_internal.allowed_hosts ENABLE ALWAYS TRIGGER installation_changed;

-- Writes the stamp if there is none; with it the audit trail begins, whose first
-- partitions must be there before its first rows.
CREATE FUNCTION leasehold_internal.ensure_installation() RETURNS uuid
    LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_id uuid;
BEGIN
    SELECT i.id INTO v_id FROM leasehold_internal.installation AS i LIMIT 1;
    IF NOT FOUND THEN
        LOCK TABLE leasehold_internal.installation IN SHARE ROW EXCLUSIVE MODE;
        INSERT INTO leasehold_internal.installation AS i
               (id, database_oid, system_identifier, host, data_directory, directory_inode, timeline)
        SELECT leasehold.new_id(), h.database_oid, h.system_identifier, h.host, h.data_directory,
               h.directory_inode, h.timeline
          FROM leasehold_internal.here() AS h
         WHERE NOT EXISTS (SELECT FROM leasehold_internal.installation)
        RETURNING i.id INTO v_id;
        IF v_id IS NULL THEN
            SELECT i.id INTO v_id FROM leasehold_internal.installation AS i LIMIT 1;
        ELSE
            PERFORM leasehold_internal.make_audit_partitions();
        END IF;
    END IF;
    RETURN v_id;
END
$$;
COMMENT ON FUNCTION leasehold_internal.ensure_installation() IS 'The installation''s id; makes the stamp first if need be';

-- Why the worker may not act here, or NULL.
CREATE FUNCTION leasehold_internal.hold_reason() RETURNS text
    LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN (SELECT pg_catalog.count(*) FROM leasehold_internal.installation) > 1
            THEN 'several stamps: data of more than one installation was restored into this database'
        WHEN i.database_oid <> h.database_oid OR i.system_identifier <> h.system_identifier
            THEN 'this database is a copy or was restored from a dump'
        WHEN i.host = h.host AND i.data_directory = h.data_directory
             AND i.directory_inode = h.directory_inode AND i.timeline = h.timeline
            THEN NULL
        WHEN EXISTS (SELECT FROM leasehold_internal.allowed_hosts AS a
                     WHERE a.host = h.host AND a.data_directory = h.data_directory)
            THEN NULL
        WHEN i.host <> h.host OR i.data_directory <> h.data_directory
            THEN pg_catalog.format('this server is not where the installation was made (%s, %s), but at %s, %s',
                                   i.host, i.data_directory, h.host, h.data_directory)
        WHEN i.timeline <> h.timeline
            THEN 'this server was recovered to a point in time or promoted'
        ELSE 'the data directory was copied'
        END
    FROM leasehold_internal.installation AS i, leasehold_internal.here() AS h
    LIMIT 1
$$;
COMMENT ON FUNCTION leasehold_internal.hold_reason() IS
    'Why this is not the place where the installation runs, or NULL if it is';
-- 11_audit.sql: the audit trail.
--
-- The parent has no key and no index, and the only partition that the install
-- script makes is the DEFAULT one: a partition that were a member of the
-- extension would be left out of dumps.  The worker makes the others ahead of
-- time; each has its own key.  Rows in the DEFAULT partition are an alarm.

CREATE TABLE leasehold.audit_events (
    company_id      uuid NOT NULL,
    occurred_at     timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    id              uuid NOT NULL DEFAULT leasehold.new_id(),
    action          text NOT NULL,
    entity_type     text NOT NULL,
    entity_id       text NOT NULL,
    agent_id        uuid,
    issue_id        uuid,
    run_id          uuid,
    session_role    name NOT NULL DEFAULT SESSION_USER,
    acting_role     name NOT NULL DEFAULT leasehold.acting_role(),
    asserted_actor  text DEFAULT leasehold_internal.asserted_actor(),
    details         jsonb NOT NULL DEFAULT '{}',
    epoch           bigint NOT NULL DEFAULT leasehold_internal.current_epoch(),
    transaction_id  xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id()
) PARTITION BY RANGE (occurred_at);
COMMENT ON TABLE leasehold.audit_events IS 'Everything that was changed, by whom and for whom; rows are never changed';
COMMENT ON COLUMN leasehold.audit_events.company_id IS 'The company, or the nil id for events of the installation';
COMMENT ON COLUMN leasehold.audit_events.session_role IS 'The role that logged in, or the worker''s';
COMMENT ON COLUMN leasehold.audit_events.acting_role IS 'The role for which the call was made';
COMMENT ON COLUMN leasehold.audit_events.asserted_actor IS 'Whom the application said it acted for';
COMMENT ON COLUMN leasehold.audit_events.details IS 'What else is known, without secrets or configuration values';
COMMENT ON COLUMN leasehold.audit_events.epoch IS 'The installation''s epoch: transaction ids are comparable within one';

CREATE TABLE leasehold.audit_events_default PARTITION OF leasehold.audit_events DEFAULT;
COMMENT ON TABLE leasehold.audit_events_default IS 'Catches events for which no partition was made in time';
ALTER TABLE leasehold.audit_events_default ADD PRIMARY KEY (company_id, occurred_at, id);

SELECT leasehold_internal.protect('leasehold.audit_events', 'viewer');
ALTER TABLE leasehold.audit_events_default ENABLE ROW LEVEL SECURITY;

CREATE FUNCTION leasehold_internal.refuse_rewrite() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM leasehold_internal.refuse('append_only',
        format('rows of %I.%I cannot be changed or removed', TG_TABLE_SCHEMA, TG_TABLE_NAME),
        'Retention drops whole partitions.');
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION leasehold_internal.refuse_rewrite() IS 'Makes a table append-only, for its owner and superusers too';

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON leasehold.audit_events
    FOR EACH ROW EXECUTE FUNCTION leasehold_internal.refuse_rewrite();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON leasehold.audit_events
    FOR EACH STATEMENT EXECUTE FUNCTION leasehold_internal.refuse_rewrite();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON leasehold.audit_events_default
    FOR EACH STATEMENT EXECUTE FUNCTION leasehold_internal.refuse_rewrite();

CREATE FUNCTION leasehold_internal.record(
        company_id uuid, action text, entity_type text, entity_id text,
        details jsonb DEFAULT '{}', agent_id uuid DEFAULT NULL, issue_id uuid DEFAULT NULL, run_id uuid DEFAULT NULL)
    RETURNS void LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_record';
COMMENT ON FUNCTION leasehold_internal.record(uuid, text, text, text, jsonb, uuid, uuid, uuid) IS
    'Writes one audit event, for changes that are not made by one statement with their events';

-- Makes the partitions that will be needed: one a week, the current one and as
-- many ahead as asked for.  A week that already has rows in the DEFAULT
-- partition stays there.  What it needs a lock for is rare: once a week.
CREATE FUNCTION leasehold_internal.wants_audit_partition(name text, from_time timestamptz, to_time timestamptz)
    RETURNS boolean LANGUAGE sql VOLATILE AS $$
    SELECT pg_catalog.to_regclass('leasehold.' || name) IS NULL
       AND NOT EXISTS (SELECT FROM leasehold.audit_events_default AS d
                        WHERE d.occurred_at >= from_time AND d.occurred_at < to_time)
$$;
COMMENT ON FUNCTION leasehold_internal.wants_audit_partition(text, timestamptz, timestamptz) IS
    'Whether a partition of the audit trail can be made: it is not there, nor are rows of its time';

CREATE FUNCTION leasehold_internal.make_audit_partitions(weeks_ahead integer DEFAULT 4) RETURNS integer
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET default_tablespace = ''
    -- the bounds go through text: whoever is first must not have a say in how that is read
    SET timezone = 'UTC' SET datestyle = 'ISO, MDY' AS $$
DECLARE
    v_from timestamptz;
    v_to   timestamptz;
    v_name text;
    v_made integer := 0;
BEGIN
    FOR i IN 0 .. weeks_ahead LOOP
        v_from := date_trunc('week', now(), 'UTC') + make_interval(weeks => i);
        v_to := v_from + interval '7 days';
        v_name := 'audit_events_' || to_char(v_from AT TIME ZONE 'UTC', 'YYYYMMDD');
        CONTINUE WHEN NOT leasehold_internal.wants_audit_partition(v_name, v_from, v_to);
        -- nobody may make it, or add rows of its week, between the question and the deed
        LOCK TABLE leasehold.audit_events IN ACCESS EXCLUSIVE MODE;
        CONTINUE WHEN NOT leasehold_internal.wants_audit_partition(v_name, v_from, v_to);
        EXECUTE format('CREATE TABLE leasehold.%I PARTITION OF leasehold.audit_events
                        (PRIMARY KEY (company_id, occurred_at, id)) FOR VALUES FROM (%L) TO (%L)',
                       v_name, v_from, v_to);
        EXECUTE format('ALTER TABLE leasehold.%I ENABLE ROW LEVEL SECURITY', v_name);
        EXECUTE format('CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON leasehold.%I
                        FOR EACH STATEMENT EXECUTE FUNCTION leasehold_internal.refuse_rewrite()', v_name);
        EXECUTE format('COMMENT ON TABLE leasehold.%I IS %L', v_name, 'Audit events of one week');
        v_made := v_made + 1;
    END LOOP;
    RETURN v_made;
END
$$;
COMMENT ON FUNCTION leasehold_internal.make_audit_partitions(integer) IS
    'Makes the partitions of the audit trail ahead of time';

-- Drops partitions that ended before the retention time.
CREATE FUNCTION leasehold_internal.drop_audit_partitions(keep interval) RETURNS integer
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_partition record;
    v_dropped   integer := 0;
BEGIN
    FOR v_partition IN
        SELECT c.oid::regclass AS name
          FROM pg_inherits AS h
          JOIN pg_class AS c ON c.oid = h.inhrelid
         WHERE h.inhparent = 'leasehold.audit_events'::regclass
           AND c.relname ~ '^audit_events_[0-9]{8}$'
           AND to_date(right(c.relname, 8), 'YYYYMMDD')::timestamp AT TIME ZONE 'UTC'
               < now() - keep - interval '7 days'
    LOOP
        EXECUTE format('DROP TABLE %s', v_partition.name);
        v_dropped := v_dropped + 1;
    END LOOP;
    RETURN v_dropped;
END
$$;
COMMENT ON FUNCTION leasehold_internal.drop_audit_partitions(interval) IS
    'Drops the partitions of the audit trail whose events are all older than this';
-- 12_companies.sql: companies, their members, and the choice of one.

CREATE TABLE leasehold.companies (
    id          uuid PRIMARY KEY DEFAULT leasehold.new_id(),
    key         leasehold.object_key NOT NULL,
    name        text NOT NULL,
    status      leasehold.object_status NOT NULL DEFAULT 'active',
    created_at  timestamptz NOT NULL DEFAULT pg_catalog.now(),
    updated_at  timestamptz NOT NULL DEFAULT pg_catalog.now(),
    CONSTRAINT companies_key_key UNIQUE (key)
);
COMMENT ON TABLE leasehold.companies IS 'The tenants: everything else belongs to one of them';

CREATE TABLE leasehold.company_members (
    company_id        uuid NOT NULL REFERENCES leasehold.companies,
    role_name         name NOT NULL,
    role_oid          oid NOT NULL,
    level             leasehold.member_level NOT NULL,
    asserts_actor     boolean NOT NULL DEFAULT false,
    pending           boolean NOT NULL DEFAULT false,
    system_identifier text NOT NULL,
    granted_by        name NOT NULL DEFAULT leasehold.acting_role(),
    granted_at        timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (company_id, role_name)
);
COMMENT ON TABLE leasehold.company_members IS 'Which roles work for which company, and at which level';
COMMENT ON COLUMN leasehold.company_members.asserts_actor IS 'The role may name in use_company() whom it acts for';
COMMENT ON COLUMN leasehold.company_members.pending IS
    'A manager granted it and the role has not accepted it: it gives nothing yet';
COMMENT ON COLUMN leasehold.company_members.role_oid IS
    'With the name and the cluster''s system identifier: the role this was granted to, and no other of its name';

SELECT leasehold_internal.protect('leasehold.companies', 'viewer', 'id');
CREATE POLICY new_company ON leasehold.companies FOR INSERT TO leasehold_owner WITH CHECK (true);
COMMENT ON POLICY new_company ON leasehold.companies IS
    'A company that is being made cannot be visible before; only create_company() has the privilege to insert';
SELECT leasehold_internal.protect('leasehold.company_members', 'viewer');

CREATE TRIGGER members_changed AFTER INSERT OR UPDATE OR DELETE ON leasehold.company_members
    FOR EACH STATEMENT EXECUTE FUNCTION leasehold_internal.relation_changed();
CREATE TRIGGER members_truncated AFTER TRUNCATE ON leasehold.company_members
    FOR EACH STATEMENT EXECUTE FUNCTION leasehold_internal.relation_changed();

-- Refuses unless the company is in use.
CREATE FUNCTION leasehold_internal.require_active_company(company_id uuid) RETURNS void
    LANGUAGE plpgsql STABLE AS $$
BEGIN
    PERFORM FROM leasehold.companies AS c
      WHERE c.id = require_active_company.company_id AND c.status = 'active';
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('company_inactive', 'the company is archived');
    END IF;
END
$$;
COMMENT ON FUNCTION leasehold_internal.require_active_company(uuid) IS 'Refuses unless the company is in use';

CREATE FUNCTION leasehold_internal.create_company(company text, name text DEFAULT NULL, company_id uuid DEFAULT NULL)
    RETURNS uuid LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_id uuid := COALESCE(create_company.company_id, leasehold.new_id());
BEGIN
    PERFORM leasehold_internal.enter_admin();
    PERFORM leasehold_internal.check_key('company', company);
    PERFORM leasehold_internal.check_text('name', create_company.name);
    IF v_id = leasehold_internal.no_company() THEN
        PERFORM leasehold_internal.refuse('argument_invalid', 'argument "company_id" must not be the nil id');
    END IF;
    PERFORM leasehold_internal.ensure_installation();

    BEGIN
        INSERT INTO leasehold.companies (id, key, name)
        VALUES (v_id, company, COALESCE(create_company.name, company));
    EXCEPTION WHEN unique_violation THEN
        PERFORM leasehold_internal.refuse('already_exists', pg_catalog.format('company "%s" already exists', company),
            'Take another key; use_company() or grant_company() work with the one there is.');
    END;
    PERFORM leasehold_internal.record(v_id, 'company.created', 'company', v_id::text,
        pg_catalog.jsonb_build_object('key', company));
    RETURN v_id;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.create_company', 'instant',
    'makes a company; its key is for good', 'leasehold_admin');

-- Another company can be a burden (which one is meant is ambiguous then) or a
-- trap (what is meant for none, or for another, lands there).  So a manager only
-- invites; the role itself has to accept.  A role with members is not asked: each
-- of them could answer for all.

CREATE FUNCTION leasehold_internal.has_members(role name) RETURNS boolean
    LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM pg_catalog.pg_auth_members AS m
                     JOIN pg_catalog.pg_roles AS r ON r.oid = m.roleid WHERE r.rolname = has_members.role)
$$;
COMMENT ON FUNCTION leasehold_internal.has_members(name) IS 'Whether others can act as the role';

CREATE FUNCTION leasehold_internal.grant_company(
        company text, to_role text, level text DEFAULT 'user', asserts_actor boolean DEFAULT false)
    RETURNS void LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid;
    v_role    record;
    v_pending boolean;
BEGIN
    v_company := leasehold_internal.enter_company(company, 'manager', true);
    PERFORM leasehold_internal.check_choice('level', grant_company.level, 'viewer', 'user', 'manager');
    SELECT a.oid, a.rolname INTO v_role FROM pg_catalog.pg_roles AS a WHERE a.rolname = to_role::name;
    IF NOT FOUND OR v_role.rolname::text <> to_role THEN
        PERFORM leasehold_internal.refuse('role_not_found',
            pg_catalog.format('role "%s" does not exist', pg_catalog.left(to_role, 63)),
            'Make it first: CREATE ROLE ... LOGIN IN ROLE leasehold_app.');
    END IF;
    IF v_role.rolname::text LIKE 'leasehold\_%' THEN
        PERFORM leasehold_internal.refuse('role_unsuitable',
            pg_catalog.format('role "%s" is one of leasehold''s own', to_role),
            'Grant the company to a role of a person or an application.');
    END IF;

    INSERT INTO leasehold.company_members AS m
           (company_id, role_name, role_oid, level, asserts_actor, pending, system_identifier)
    SELECT v_company, v_role.rolname, v_role.oid, grant_company.level,
           COALESCE(grant_company.asserts_actor, false), NOT leasehold_internal.is_admin(), h.system_identifier
      FROM leasehold_internal.here() AS h
    ON CONFLICT (company_id, role_name) DO UPDATE
       SET role_oid = excluded.role_oid, level = excluded.level, asserts_actor = excluded.asserts_actor,
           system_identifier = excluded.system_identifier, granted_by = excluded.granted_by,
           granted_at = excluded.granted_at,
           -- who has accepted need not do so again, if it is the same role
           pending = excluded.pending AND (m.pending OR m.role_oid <> excluded.role_oid
                                           OR m.system_identifier <> excluded.system_identifier)
    RETURNING m.pending INTO v_pending;
    PERFORM leasehold_internal.record(v_company, 'company.member_granted', 'company_member', to_role,
        pg_catalog.jsonb_build_object('level', grant_company.level, 'assertsActor', COALESCE(grant_company.asserts_actor, false),
                                      'pending', v_pending));
    IF NOT pg_catalog.pg_has_role(v_role.oid, 'leasehold_app', 'USAGE')
       AND NOT pg_catalog.pg_has_role(v_role.oid, 'leasehold_auditor', 'USAGE')
       AND NOT pg_catalog.pg_has_role(v_role.oid, 'leasehold_admin', 'USAGE') THEN
        RAISE NOTICE 'role "%" may not call any of Leasehold''s functions yet', v_role.rolname
              USING HINT = pg_catalog.format('GRANT leasehold_app TO %I.', v_role.rolname);
    END IF;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.grant_company', 'instant',
    'lets a role work for a company at a level, or changes the level; what a manager grants, the role has to accept',
    'leasehold_admin', 'leasehold_app');

-- Its owner is the worker's role: the companies are not among those that the caller sees.
CREATE FUNCTION leasehold_internal.invitations_of(
        role name, OUT company text, OUT level text, OUT asserts_actor boolean, OUT granted_by name,
        OUT granted_at timestamptz)
    RETURNS SETOF record LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT c.key, m.level, m.asserts_actor, m.granted_by, m.granted_at
      FROM leasehold.company_members AS m
      JOIN leasehold.companies AS c ON c.id = m.company_id
      JOIN pg_roles AS r ON r.oid = m.role_oid AND r.rolname = m.role_name
     CROSS JOIN leasehold_internal.here() AS h
     WHERE m.pending AND m.role_name = invitations_of.role AND m.system_identifier = h.system_identifier
$$;
COMMENT ON FUNCTION leasehold_internal.invitations_of(name) IS 'The pending memberships of a role';

CREATE FUNCTION leasehold_internal.invitations(
        OUT company text, OUT level text, OUT asserts_actor boolean, OUT granted_by name, OUT granted_at timestamptz)
    RETURNS SETOF record LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN QUERY SELECT i.* FROM leasehold_internal.invitations_of(leasehold.acting_role()) AS i;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.invitations', 'instant',
    'the memberships that managers granted to the role and that it has not accepted',
    'leasehold_admin', 'leasehold_app', 'leasehold_auditor', 'leasehold_resolver');

CREATE FUNCTION leasehold_internal.accept_company(company text) RETURNS uuid
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_role    name := leasehold.acting_role();
    v_company uuid := COALESCE(leasehold_internal.enter_own_membership(company),
                               leasehold_internal.enter_company(company, 'viewer'));
    v_level   text;
    v_pending boolean;
BEGIN
    SELECT m.level, m.pending INTO v_level, v_pending FROM leasehold.company_members AS m
     WHERE m.company_id = v_company AND m.role_name = v_role FOR UPDATE;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('member_not_found',
            pg_catalog.format('role "%s" has no membership of its own in the company', v_role));
    END IF;
    IF v_pending THEN
        IF leasehold_internal.has_members(v_role) THEN
            PERFORM leasehold_internal.refuse('forbidden',
                pg_catalog.format('role "%s" cannot accept for all its members', v_role),
                'Have a leasehold_admin call grant_company().');
        END IF;
        UPDATE leasehold.company_members AS m SET pending = false WHERE m.company_id = v_company AND m.role_name = v_role;
        PERFORM leasehold_internal.record(v_company, 'company.member_accepted', 'company_member', v_role::text,
            pg_catalog.jsonb_build_object('level', v_level));
    END IF;
    RETURN v_company;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.accept_company', 'instant',
    'accepts a membership that a manager granted to the role, and returns the company''s id',
    'leasehold_admin', 'leasehold_app', 'leasehold_auditor', 'leasehold_resolver');

CREATE FUNCTION leasehold_internal.revoke_company(company text, from_role text) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid;
BEGIN
    IF from_role = leasehold.acting_role()::text AND NOT leasehold_internal.has_members(from_role::name) THEN
        v_company := leasehold_internal.enter_own_membership(company);
    END IF;
    IF v_company IS NULL THEN
        v_company := leasehold_internal.enter_company(company, 'manager', true);
    END IF;
    PERFORM FROM leasehold.company_members AS m
      WHERE m.company_id = v_company AND m.role_name = from_role::name AND m.role_name::text = from_role FOR UPDATE;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('member_not_found',
            pg_catalog.format('role "%s" is not a member of the company', pg_catalog.left(from_role, 63)));
    END IF;
    -- first the event: afterwards the actor whom the role asserts is not its to assert
    PERFORM leasehold_internal.record(v_company, 'company.member_revoked', 'company_member', from_role);
    DELETE FROM leasehold.company_members AS m WHERE m.company_id = v_company AND m.role_name = from_role::name;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.revoke_company', 'instant',
    'ends a role''s membership in a company, or the caller''s own, also a pending one',
    'leasehold_admin', 'leasehold_app', 'leasehold_auditor', 'leasehold_resolver');

CREATE FUNCTION leasehold_internal.repair_members(company text DEFAULT NULL)
    RETURNS integer LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company  uuid;
    v_repaired record;
    v_count    integer := 0;
BEGIN
    PERFORM leasehold_internal.enter_admin();
    IF company IS NOT NULL THEN
        v_company := leasehold_internal.enter_company(company, 'manager', true);
    END IF;
    FOR v_repaired IN
        UPDATE leasehold.company_members AS m
           SET role_oid = a.oid, system_identifier = h.system_identifier,
               granted_by = leasehold.acting_role(), granted_at = pg_catalog.now()
          FROM pg_catalog.pg_roles AS a, leasehold_internal.here() AS h
         WHERE a.rolname = m.role_name
           AND (m.company_id = v_company OR v_company IS NULL)
           AND (m.role_oid <> a.oid OR m.system_identifier <> h.system_identifier)
        RETURNING m.company_id, m.role_name, m.level
    LOOP
        v_count := v_count + 1;
        PERFORM leasehold_internal.record(v_repaired.company_id, 'company.member_repaired', 'company_member',
            v_repaired.role_name::text, pg_catalog.jsonb_build_object('level', v_repaired.level));
    END LOOP;
    RETURN v_count;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.repair_members', 'instant',
    'makes memberships valid again whose roles were recreated or which were restored from elsewhere, and returns how many',
    'leasehold_admin');

CREATE FUNCTION leasehold_internal.use_company(company text, actor text DEFAULT NULL) RETURNS uuid
    LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM leasehold_internal.check_text('actor', actor);
    RETURN leasehold_internal.choose_company(company, actor);
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.use_company', 'instant',
    'chooses the company, and whom the caller acts for, until the transaction ends',
    'leasehold_admin', 'leasehold_app', 'leasehold_auditor', 'leasehold_resolver');

-- For PostgREST's db-pre-request: the claims "company" and "actor" of the
-- request's token.  They only choose among what the role may do anyway; an
-- actor without a company means the role's only one.
CREATE FUNCTION leasehold_internal.pre_request() RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_claims jsonb := NULLIF(pg_catalog.current_setting('request.jwt.claims', true), '')::jsonb;
BEGIN
    PERFORM leasehold_internal.check_text('actor', v_claims ->> 'actor');
    IF v_claims ->> 'company' IS NOT NULL OR v_claims ->> 'actor' IS NOT NULL THEN
        PERFORM leasehold_internal.choose_company(v_claims ->> 'company', v_claims ->> 'actor');
    END IF;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.pre_request', 'instant',
    'use_company() with the claims "company" and "actor" of PostgREST''s request',
    'leasehold_admin', 'leasehold_app', 'leasehold_auditor', 'leasehold_resolver');
-- 13_context.sql: small mirrors of the application's own objects.  They give a
-- lease its agent, issue and workspace, and carry environment variables.
--
-- The tables are internal; what users read are views that show env and
-- metadata only to members of level user.

CREATE TABLE leasehold_internal.agents (
    company_id   uuid NOT NULL REFERENCES leasehold.companies,
    id           uuid NOT NULL,
    name         text NOT NULL,
    adapter_type text,
    status       leasehold.object_status NOT NULL DEFAULT 'active',
    env          jsonb NOT NULL DEFAULT '{}',
    metadata     jsonb NOT NULL DEFAULT '{}',
    created_at   timestamptz NOT NULL DEFAULT pg_catalog.now(),
    updated_at   timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (company_id, id)
);
COMMENT ON TABLE leasehold_internal.agents IS 'Agents: see the view leasehold.agents';

CREATE TABLE leasehold_internal.projects (
    company_id   uuid NOT NULL REFERENCES leasehold.companies,
    id           uuid NOT NULL,
    name         text NOT NULL,
    status       leasehold.object_status NOT NULL DEFAULT 'active',
    env          jsonb NOT NULL DEFAULT '{}',
    metadata     jsonb NOT NULL DEFAULT '{}',
    created_at   timestamptz NOT NULL DEFAULT pg_catalog.now(),
    updated_at   timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (company_id, id)
);
COMMENT ON TABLE leasehold_internal.projects IS 'Projects: see the view leasehold.projects';

CREATE TABLE leasehold_internal.routines (
    company_id   uuid NOT NULL REFERENCES leasehold.companies,
    id           uuid NOT NULL,
    name         text NOT NULL,
    status       leasehold.object_status NOT NULL DEFAULT 'active',
    env          jsonb NOT NULL DEFAULT '{}',
    metadata     jsonb NOT NULL DEFAULT '{}',
    created_at   timestamptz NOT NULL DEFAULT pg_catalog.now(),
    updated_at   timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (company_id, id)
);
COMMENT ON TABLE leasehold_internal.routines IS 'Routines: see the view leasehold.routines';

CREATE TABLE leasehold_internal.execution_workspaces (
    company_id   uuid NOT NULL REFERENCES leasehold.companies,
    id           uuid NOT NULL,
    project_id   uuid,
    name         text NOT NULL,
    mode         text,
    status       leasehold.object_status NOT NULL DEFAULT 'active',
    env          jsonb NOT NULL DEFAULT '{}',
    metadata     jsonb NOT NULL DEFAULT '{}',
    created_at   timestamptz NOT NULL DEFAULT pg_catalog.now(),
    updated_at   timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (company_id, id),
    FOREIGN KEY (company_id, project_id) REFERENCES leasehold_internal.projects
);
COMMENT ON TABLE leasehold_internal.execution_workspaces IS
    'Execution workspaces: see the view leasehold.execution_workspaces';

CREATE TABLE leasehold_internal.issues (
    company_id             uuid NOT NULL REFERENCES leasehold.companies,
    id                     uuid NOT NULL,
    project_id             uuid,
    execution_workspace_id uuid,
    title                  text NOT NULL,
    status                 text NOT NULL DEFAULT 'open',
    closed                 boolean NOT NULL DEFAULT false,
    env                    jsonb NOT NULL DEFAULT '{}',
    metadata               jsonb NOT NULL DEFAULT '{}',
    created_at             timestamptz NOT NULL DEFAULT pg_catalog.now(),
    updated_at             timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (company_id, id),
    FOREIGN KEY (company_id, project_id) REFERENCES leasehold_internal.projects,
    FOREIGN KEY (company_id, execution_workspace_id) REFERENCES leasehold_internal.execution_workspaces
);
COMMENT ON TABLE leasehold_internal.issues IS 'Issues: see the view leasehold.issues';

SELECT leasehold_internal.protect(t, 'viewer')
  FROM pg_catalog.unnest(ARRAY['leasehold_internal.agents', 'leasehold_internal.projects',
           'leasehold_internal.routines', 'leasehold_internal.execution_workspaces',
           'leasehold_internal.issues']::regclass[]) AS t;

CREATE VIEW leasehold.agents WITH (security_barrier) AS
    SELECT a.company_id, a.id, a.name, a.adapter_type, a.status,
           CASE WHEN a.company_id = ANY ((SELECT leasehold.visible_companies('user'))::uuid[]) THEN a.env END AS env,
           CASE WHEN a.company_id = ANY ((SELECT leasehold.visible_companies('user'))::uuid[]) THEN a.metadata END AS metadata,
           a.created_at, a.updated_at
      FROM leasehold_internal.agents AS a;
COMMENT ON VIEW leasehold.agents IS 'Agents of the application; env and metadata are shown from level user on';

CREATE VIEW leasehold.projects WITH (security_barrier) AS
    SELECT p.company_id, p.id, p.name, p.status,
           CASE WHEN p.company_id = ANY ((SELECT leasehold.visible_companies('user'))::uuid[]) THEN p.env END AS env,
           CASE WHEN p.company_id = ANY ((SELECT leasehold.visible_companies('user'))::uuid[]) THEN p.metadata END AS metadata,
           p.created_at, p.updated_at
      FROM leasehold_internal.projects AS p;
COMMENT ON VIEW leasehold.projects IS 'Projects of the application; env and metadata are shown from level user on';

CREATE VIEW leasehold.routines WITH (security_barrier) AS
    SELECT r.company_id, r.id, r.name, r.status,
           CASE WHEN r.company_id = ANY ((SELECT leasehold.visible_companies('user'))::uuid[]) THEN r.env END AS env,
           CASE WHEN r.company_id = ANY ((SELECT leasehold.visible_companies('user'))::uuid[]) THEN r.metadata END AS metadata,
           r.created_at, r.updated_at
      FROM leasehold_internal.routines AS r;
COMMENT ON VIEW leasehold.routines IS 'Routines of the application; env and metadata are shown from level user on';

CREATE VIEW leasehold.execution_workspaces WITH (security_barrier) AS
    SELECT w.company_id, w.id, w.project_id, w.name, w.mode, w.status,
           CASE WHEN w.company_id = ANY ((SELECT leasehold.visible_companies('user'))::uuid[]) THEN w.env END AS env,
           CASE WHEN w.company_id = ANY ((SELECT leasehold.visible_companies('user'))::uuid[]) THEN w.metadata END AS metadata,
           w.created_at, w.updated_at
      FROM leasehold_internal.execution_workspaces AS w;
COMMENT ON VIEW leasehold.execution_workspaces IS
    'Execution workspaces of the application; env and metadata are shown from level user on';

CREATE VIEW leasehold.issues WITH (security_barrier) AS
    SELECT i.company_id, i.id, i.project_id, i.execution_workspace_id, i.title, i.status, i.closed,
           CASE WHEN i.company_id = ANY ((SELECT leasehold.visible_companies('user'))::uuid[]) THEN i.env END AS env,
           CASE WHEN i.company_id = ANY ((SELECT leasehold.visible_companies('user'))::uuid[]) THEN i.metadata END AS metadata,
           i.created_at, i.updated_at
      FROM leasehold_internal.issues AS i;
COMMENT ON VIEW leasehold.issues IS 'Issues of the application; env and metadata are shown from level user on';

-- Looking up what an argument names; each refuses what is not the company's.

CREATE FUNCTION leasehold_internal.require_agent(company_id uuid, agent_id uuid) RETURNS void
    LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF agent_id IS NULL THEN RETURN; END IF;
    PERFORM FROM leasehold_internal.agents AS a
      WHERE a.company_id = require_agent.company_id AND a.id = require_agent.agent_id AND a.status = 'active';
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('agent_not_found',
            pg_catalog.format('agent %s does not exist or is archived', agent_id),
            'Make it known with upsert_agent().');
    END IF;
END
$$;
COMMENT ON FUNCTION leasehold_internal.require_agent(uuid, uuid) IS 'Refuses unless the agent is the company''s and in use';

CREATE FUNCTION leasehold_internal.require_project(company_id uuid, project_id uuid) RETURNS void
    LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF project_id IS NULL THEN RETURN; END IF;
    PERFORM FROM leasehold_internal.projects AS p
      WHERE p.company_id = require_project.company_id AND p.id = require_project.project_id;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('project_not_found',
            pg_catalog.format('project %s does not exist', project_id), 'Make it known with upsert_project().');
    END IF;
END
$$;
COMMENT ON FUNCTION leasehold_internal.require_project(uuid, uuid) IS 'Refuses unless the project is the company''s';

CREATE FUNCTION leasehold_internal.require_issue(company_id uuid, issue_id uuid) RETURNS void
    LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF issue_id IS NULL THEN RETURN; END IF;
    PERFORM FROM leasehold_internal.issues AS i
      WHERE i.company_id = require_issue.company_id AND i.id = require_issue.issue_id;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('issue_not_found',
            pg_catalog.format('issue %s does not exist', issue_id), 'Make it known with upsert_issue().');
    END IF;
END
$$;
COMMENT ON FUNCTION leasehold_internal.require_issue(uuid, uuid) IS 'Refuses unless the issue is the company''s';

CREATE FUNCTION leasehold_internal.require_workspace(company_id uuid, execution_workspace_id uuid) RETURNS void
    LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF execution_workspace_id IS NULL THEN RETURN; END IF;
    PERFORM FROM leasehold_internal.execution_workspaces AS w
      WHERE w.company_id = require_workspace.company_id AND w.id = require_workspace.execution_workspace_id
        AND w.status = 'active';
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('execution_workspace_not_found',
            pg_catalog.format('execution workspace %s does not exist or is archived', execution_workspace_id),
            'Make it known with upsert_execution_workspace().');
    END IF;
END
$$;
COMMENT ON FUNCTION leasehold_internal.require_workspace(uuid, uuid) IS
    'Refuses unless the execution workspace is the company''s and in use';

-- Upserts.  NULL keeps what is there, or means the default in a new row.

CREATE FUNCTION leasehold_internal.upsert_agent(
        agent_id uuid, name text DEFAULT NULL, adapter_type text DEFAULT NULL,
        env jsonb DEFAULT NULL, metadata jsonb DEFAULT NULL, company text DEFAULT NULL)
    RETURNS uuid LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(upsert_agent.company, 'user');
    v_created boolean;
BEGIN
    PERFORM leasehold_internal.check_text('name', upsert_agent.name);
    PERFORM leasehold_internal.check_text('adapter_type', upsert_agent.adapter_type);
    PERFORM leasehold_internal.check_env('env', upsert_agent.env);
    PERFORM leasehold_internal.check_object('metadata', upsert_agent.metadata);
    INSERT INTO leasehold_internal.agents AS a (company_id, id, name, adapter_type, env, metadata)
    VALUES (v_company, upsert_agent.agent_id, COALESCE(upsert_agent.name, upsert_agent.agent_id::text),
            upsert_agent.adapter_type, COALESCE(upsert_agent.env, '{}'), COALESCE(upsert_agent.metadata, '{}'))
    ON CONFLICT (company_id, id) DO UPDATE
       SET name = COALESCE(upsert_agent.name, a.name),
           adapter_type = COALESCE(upsert_agent.adapter_type, a.adapter_type),
           env = COALESCE(upsert_agent.env, a.env),
           metadata = COALESCE(upsert_agent.metadata, a.metadata),
           status = 'active', updated_at = pg_catalog.now()
    RETURNING xmax = 0 INTO v_created;
    PERFORM leasehold_internal.record(v_company, CASE WHEN v_created THEN 'agent.created' ELSE 'agent.updated' END,
        'agent', upsert_agent.agent_id::text, agent_id => upsert_agent.agent_id);
    RETURN upsert_agent.agent_id;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.upsert_agent', 'instant',
    'makes an agent known or changes it; an archived one is in use again', 'leasehold_app');

CREATE FUNCTION leasehold_internal.archive_agent(agent_id uuid, company text DEFAULT NULL) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(archive_agent.company, 'user');
BEGIN
    UPDATE leasehold_internal.agents AS a SET status = 'archived', updated_at = pg_catalog.now()
     WHERE a.company_id = v_company AND a.id = archive_agent.agent_id;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('agent_not_found',
            pg_catalog.format('agent %s does not exist', archive_agent.agent_id));
    END IF;
    PERFORM leasehold_internal.record(v_company, 'agent.archived', 'agent', archive_agent.agent_id::text,
        agent_id => archive_agent.agent_id);
    -- nobody could take its parked resources into use again
    PERFORM leasehold_internal.retire_leases(v_company,
        ARRAY(SELECT l.id FROM leasehold.leases AS l
               WHERE l.company_id = v_company AND l.agent_id = archive_agent.agent_id
                 AND leasehold_internal.may_have_resource(l.status)),
        'agent_archived', unused_too => false, not_to_be_parked => '{reuse_by_environment}');
    PERFORM leasehold_internal.warn_if_unserved();
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.archive_agent', 'instant',
    'stops new leases and runs of an agent and removes its parked resources; upsert_agent() undoes it', 'leasehold_app');

CREATE FUNCTION leasehold_internal.upsert_project(
        project_id uuid, name text DEFAULT NULL, env jsonb DEFAULT NULL, metadata jsonb DEFAULT NULL,
        company text DEFAULT NULL)
    RETURNS uuid LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(upsert_project.company, 'user');
    v_created boolean;
BEGIN
    PERFORM leasehold_internal.check_text('name', upsert_project.name);
    PERFORM leasehold_internal.check_env('env', upsert_project.env);
    PERFORM leasehold_internal.check_object('metadata', upsert_project.metadata);
    INSERT INTO leasehold_internal.projects AS p (company_id, id, name, env, metadata)
    VALUES (v_company, upsert_project.project_id, COALESCE(upsert_project.name, upsert_project.project_id::text),
            COALESCE(upsert_project.env, '{}'), COALESCE(upsert_project.metadata, '{}'))
    ON CONFLICT (company_id, id) DO UPDATE
       SET name = COALESCE(upsert_project.name, p.name),
           env = COALESCE(upsert_project.env, p.env),
           metadata = COALESCE(upsert_project.metadata, p.metadata),
           updated_at = pg_catalog.now()
    RETURNING xmax = 0 INTO v_created;
    PERFORM leasehold_internal.record(v_company, CASE WHEN v_created THEN 'project.created' ELSE 'project.updated' END,
        'project', upsert_project.project_id::text);
    RETURN upsert_project.project_id;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.upsert_project', 'instant',
    'makes a project known or changes it', 'leasehold_app');

CREATE FUNCTION leasehold_internal.upsert_routine(
        routine_id uuid, name text DEFAULT NULL, env jsonb DEFAULT NULL, metadata jsonb DEFAULT NULL,
        company text DEFAULT NULL)
    RETURNS uuid LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(upsert_routine.company, 'user');
    v_created boolean;
BEGIN
    PERFORM leasehold_internal.check_text('name', upsert_routine.name);
    PERFORM leasehold_internal.check_env('env', upsert_routine.env);
    PERFORM leasehold_internal.check_object('metadata', upsert_routine.metadata);
    INSERT INTO leasehold_internal.routines AS r (company_id, id, name, env, metadata)
    VALUES (v_company, upsert_routine.routine_id, COALESCE(upsert_routine.name, upsert_routine.routine_id::text),
            COALESCE(upsert_routine.env, '{}'), COALESCE(upsert_routine.metadata, '{}'))
    ON CONFLICT (company_id, id) DO UPDATE
       SET name = COALESCE(upsert_routine.name, r.name),
           env = COALESCE(upsert_routine.env, r.env),
           metadata = COALESCE(upsert_routine.metadata, r.metadata),
           updated_at = pg_catalog.now()
    RETURNING xmax = 0 INTO v_created;
    PERFORM leasehold_internal.record(v_company, CASE WHEN v_created THEN 'routine.created' ELSE 'routine.updated' END,
        'routine', upsert_routine.routine_id::text);
    RETURN upsert_routine.routine_id;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.upsert_routine', 'instant',
    'makes a routine known or changes it', 'leasehold_app');

CREATE FUNCTION leasehold_internal.upsert_execution_workspace(
        execution_workspace_id uuid, name text DEFAULT NULL, project_id uuid DEFAULT NULL, mode text DEFAULT NULL,
        status text DEFAULT NULL, env jsonb DEFAULT NULL, metadata jsonb DEFAULT NULL, company text DEFAULT NULL)
    RETURNS uuid LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(upsert_execution_workspace.company, 'user');
    v_id      uuid := upsert_execution_workspace.execution_workspace_id;
    v_created boolean;
    v_status  text;
BEGIN
    PERFORM leasehold_internal.check_text('name', upsert_execution_workspace.name);
    PERFORM leasehold_internal.check_text('mode', upsert_execution_workspace.mode);
    PERFORM leasehold_internal.check_env('env', upsert_execution_workspace.env);
    PERFORM leasehold_internal.check_object('metadata', upsert_execution_workspace.metadata);
    IF upsert_execution_workspace.status IS NOT NULL THEN
        PERFORM leasehold_internal.check_choice('status', upsert_execution_workspace.status, 'active', 'archived');
    END IF;
    PERFORM leasehold_internal.require_project(v_company, upsert_execution_workspace.project_id);
    INSERT INTO leasehold_internal.execution_workspaces AS w
           (company_id, id, project_id, name, mode, status, env, metadata)
    VALUES (v_company, v_id, upsert_execution_workspace.project_id,
            COALESCE(upsert_execution_workspace.name, v_id::text), upsert_execution_workspace.mode,
            COALESCE(upsert_execution_workspace.status, 'active'),
            COALESCE(upsert_execution_workspace.env, '{}'), COALESCE(upsert_execution_workspace.metadata, '{}'))
    ON CONFLICT (company_id, id) DO UPDATE
       SET name = COALESCE(upsert_execution_workspace.name, w.name),
           project_id = COALESCE(upsert_execution_workspace.project_id, w.project_id),
           mode = COALESCE(upsert_execution_workspace.mode, w.mode),
           status = COALESCE(upsert_execution_workspace.status, w.status),
           env = COALESCE(upsert_execution_workspace.env, w.env),
           metadata = COALESCE(upsert_execution_workspace.metadata, w.metadata),
           updated_at = pg_catalog.now()
    RETURNING xmax = 0, w.status INTO v_created, v_status;
    PERFORM leasehold_internal.record(v_company,
        CASE WHEN v_created THEN 'execution_workspace.created' ELSE 'execution_workspace.updated' END,
        'execution_workspace', v_id::text, pg_catalog.jsonb_build_object('status', v_status));
    IF v_status = 'archived' THEN
        PERFORM leasehold_internal.end_company_leases(v_company,
            ARRAY(SELECT l.id FROM leasehold.leases AS l
                   WHERE l.company_id = v_company AND l.execution_workspace_id = v_id
                     AND leasehold_internal.may_have_resource(l.status)),
            'expired', 'delete', 'execution_workspace_closed');
    END IF;
    RETURN v_id;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.upsert_execution_workspace', 'instant',
    'makes an execution workspace known or changes it; archiving it ends its leases', 'leasehold_app');

CREATE FUNCTION leasehold_internal.upsert_issue(
        issue_id uuid, title text DEFAULT NULL, status text DEFAULT NULL, closed boolean DEFAULT NULL,
        project_id uuid DEFAULT NULL, execution_workspace_id uuid DEFAULT NULL,
        env jsonb DEFAULT NULL, metadata jsonb DEFAULT NULL, company text DEFAULT NULL)
    RETURNS uuid LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(upsert_issue.company, 'user');
    v_created boolean;
    v_issue   leasehold_internal.issues;
BEGIN
    PERFORM leasehold_internal.check_text('title', upsert_issue.title, 1000);
    PERFORM leasehold_internal.check_text('status', upsert_issue.status);
    PERFORM leasehold_internal.check_env('env', upsert_issue.env);
    PERFORM leasehold_internal.check_object('metadata', upsert_issue.metadata);
    PERFORM leasehold_internal.require_project(v_company, upsert_issue.project_id);
    PERFORM leasehold_internal.require_workspace(v_company, upsert_issue.execution_workspace_id);
    INSERT INTO leasehold_internal.issues AS i
           (company_id, id, project_id, execution_workspace_id, title, status, closed, env, metadata)
    VALUES (v_company, upsert_issue.issue_id, upsert_issue.project_id, upsert_issue.execution_workspace_id,
            COALESCE(upsert_issue.title, upsert_issue.issue_id::text), COALESCE(upsert_issue.status, 'open'),
            COALESCE(upsert_issue.closed, false), COALESCE(upsert_issue.env, '{}'),
            COALESCE(upsert_issue.metadata, '{}'))
    ON CONFLICT (company_id, id) DO UPDATE
       SET title = COALESCE(upsert_issue.title, i.title),
           status = COALESCE(upsert_issue.status, i.status),
           closed = COALESCE(upsert_issue.closed, i.closed),
           project_id = COALESCE(upsert_issue.project_id, i.project_id),
           execution_workspace_id = COALESCE(upsert_issue.execution_workspace_id, i.execution_workspace_id),
           env = COALESCE(upsert_issue.env, i.env),
           metadata = COALESCE(upsert_issue.metadata, i.metadata),
           updated_at = pg_catalog.now()
    RETURNING xmax = 0 INTO v_created;
    SELECT i.* INTO v_issue FROM leasehold_internal.issues AS i
     WHERE i.company_id = v_company AND i.id = upsert_issue.issue_id;
    PERFORM leasehold_internal.record(v_company, CASE WHEN v_created THEN 'issue.created' ELSE 'issue.updated' END,
        'issue', v_issue.id::text,
        pg_catalog.jsonb_build_object('status', v_issue.status, 'closed', v_issue.closed), issue_id => v_issue.id);
    IF v_issue.closed THEN
        -- a lease that a run holds ends with its run
        PERFORM leasehold_internal.retire_leases(v_company,
            ARRAY(SELECT l.id FROM leasehold.leases AS l
                   WHERE l.company_id = v_company AND l.issue_id = v_issue.id
                     AND leasehold_internal.may_have_resource(l.status)),
            'issue_terminal_' || v_issue.status, unused_too => true,
            not_to_be_parked => '{reuse_by_environment,retain_on_failure}');
    END IF;
    RETURN v_issue.id;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.upsert_issue', 'instant',
    'makes an issue known or changes it; closing it ends its leases, those of running runs with their run', 'leasehold_app');
-- 20_plugins.sql: plugins, the providers that they offer, and which companies
-- may use which provider.
--
-- Plugins belong to the installation.  Registration writes the row and asks the
-- worker to speak to the plugin; it is ready once it has answered initialize.

CREATE TABLE leasehold.plugins (
    key               leasehold.object_key PRIMARY KEY,
    display_name      text NOT NULL,
    version           text NOT NULL,
    manifest          jsonb NOT NULL,
    transport         jsonb NOT NULL,
    allow_addresses   cidr[] NOT NULL DEFAULT '{}',
    status            leasehold.plugin_status NOT NULL DEFAULT 'installed',
    last_error        text,
    supported_methods text[] NOT NULL DEFAULT '{}',
    registered_at     timestamptz NOT NULL DEFAULT pg_catalog.now(),
    updated_at        timestamptz NOT NULL DEFAULT pg_catalog.now(),
    ready_at          timestamptz
);
COMMENT ON TABLE leasehold.plugins IS 'Programs of third parties that offer providers';
COMMENT ON COLUMN leasehold.plugins.transport IS 'How the worker reaches it: {"type": "http", "url": ..., "token_file": ...}';
COMMENT ON COLUMN leasehold.plugins.allow_addresses IS 'Networks that are refused otherwise (private, loopback) but allowed for this plugin';

CREATE TABLE leasehold.providers (
    key                      leasehold.object_key PRIMARY KEY,
    plugin_key               leasehold.object_key REFERENCES leasehold.plugins ON DELETE CASCADE,
    kind                     leasehold.driver_kind NOT NULL,
    display_name             text NOT NULL,
    description              text,
    config_schema            jsonb NOT NULL DEFAULT '{}',
    supports_reusable_leases boolean NOT NULL DEFAULT false
);
COMMENT ON TABLE leasehold.providers IS 'What environments can be made of: built in, or offered by a plugin';
COMMENT ON COLUMN leasehold.providers.plugin_key IS 'NULL for a provider that is built in';

INSERT INTO leasehold.providers (key, kind, display_name, description, supports_reusable_leases)
VALUES ('fake', 'sandbox_provider', 'Fake',
        'Built in, deterministic, does nothing: for tests; needs leasehold.allow_fake_provider', true);

CREATE TABLE leasehold.provider_access (
    company_id uuid NOT NULL REFERENCES leasehold.companies,
    provider   leasehold.object_key NOT NULL,
    allowed    boolean NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (company_id, provider)
);
COMMENT ON TABLE leasehold.provider_access IS
    'Exceptions to who may use a provider; without one, plugins'' providers may be used by every company';
SELECT leasehold_internal.protect('leasehold.provider_access', 'viewer');

-- Plugins and providers tell workers when they change.
CREATE TRIGGER plugins_changed AFTER INSERT OR UPDATE OR DELETE ON leasehold.plugins
    FOR EACH STATEMENT EXECUTE FUNCTION leasehold_internal.relation_changed();
CREATE TRIGGER plugins_changed AFTER INSERT OR UPDATE OR DELETE ON leasehold.providers
    FOR EACH STATEMENT EXECUTE FUNCTION leasehold_internal.relation_changed();

-- Returns the manifest, or refuses it.
CREATE FUNCTION leasehold_internal.check_manifest(manifest jsonb) RETURNS jsonb
    LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_problem text;
    v_drivers jsonb := manifest -> 'environmentDrivers';
BEGIN
    PERFORM leasehold_internal.check_object('manifest', manifest, 262144);
    v_problem := CASE
        WHEN pg_catalog.jsonb_typeof(manifest -> 'id') IS DISTINCT FROM 'string'
             OR manifest ->> 'id' !~ '^[a-z0-9][a-z0-9._-]{0,62}$'
            THEN 'id must be a key: lower-case letters, digits, ".", "_", "-", at most 63'
        WHEN pg_catalog.jsonb_typeof(manifest -> 'apiVersion') IS DISTINCT FROM 'number'
             OR manifest -> 'apiVersion' <> '1'
            THEN 'apiVersion must be 1'
        WHEN pg_catalog.jsonb_typeof(manifest -> 'version') IS DISTINCT FROM 'string'
             OR pg_catalog.length(manifest ->> 'version') NOT BETWEEN 1 AND 100
            THEN 'version must be a text of 1 to 100 characters'
        WHEN pg_catalog.jsonb_typeof(manifest -> 'displayName') IS DISTINCT FROM 'string'
             OR pg_catalog.length(manifest ->> 'displayName') NOT BETWEEN 1 AND 100
            THEN 'displayName must be a text of 1 to 100 characters'
        WHEN pg_catalog.jsonb_typeof(v_drivers) IS DISTINCT FROM 'array'
             OR pg_catalog.jsonb_array_length(v_drivers) NOT BETWEEN 1 AND 100
            THEN 'environmentDrivers must be a list of 1 to 100 drivers'
        WHEN pg_catalog.jsonb_typeof(manifest -> 'capabilities') IS DISTINCT FROM 'array'
             OR NOT manifest -> 'capabilities' ? 'environment.drivers.register'
            THEN 'capabilities must contain "environment.drivers.register"'
        END;
    IF v_problem IS NULL THEN
        SELECT CASE
            WHEN pg_catalog.jsonb_typeof(d.driver) <> 'object'
                THEN 'a driver must be an object'
            WHEN pg_catalog.jsonb_typeof(d.driver -> 'driverKey') IS DISTINCT FROM 'string'
                 OR d.driver ->> 'driverKey' !~ '^[a-z0-9][a-z0-9._-]{0,62}$'
                THEN 'driverKey must be a key: lower-case letters, digits, ".", "_", "-", at most 63'
            WHEN d.driver -> 'kind' NOT IN ('"environment_driver"', '"sandbox_provider"')
                THEN 'kind must be "environment_driver" or "sandbox_provider"'
            WHEN pg_catalog.jsonb_typeof(d.driver -> 'displayName') IS DISTINCT FROM 'string'
                 OR pg_catalog.length(d.driver ->> 'displayName') NOT BETWEEN 1 AND 100
                THEN 'displayName of a driver must be a text of 1 to 100 characters'
            WHEN pg_catalog.jsonb_typeof(d.driver -> 'description') <> 'string'
                 OR pg_catalog.length(d.driver ->> 'description') > 500
                THEN 'description of a driver must be a text of at most 500 characters'
            WHEN pg_catalog.jsonb_typeof(d.driver -> 'configSchema') IS DISTINCT FROM 'object'
                THEN 'configSchema of a driver must be a JSON Schema object'
            WHEN COALESCE(pg_catalog.jsonb_typeof(d.driver -> 'supportsReusableLeases'), 'boolean') <> 'boolean'
                THEN 'supportsReusableLeases must be true or false'
            END INTO v_problem
          FROM pg_catalog.jsonb_array_elements(v_drivers) WITH ORDINALITY AS d (driver, nr)
         ORDER BY 1 NULLS LAST LIMIT 1;
    END IF;
    IF v_problem IS NULL AND
       (SELECT pg_catalog.count(*) <> pg_catalog.count(DISTINCT d ->> 'driverKey')
          FROM pg_catalog.jsonb_array_elements(v_drivers) AS d) THEN
        v_problem := 'Duplicate environment driver keys';
    END IF;
    IF v_problem IS NOT NULL THEN
        PERFORM leasehold_internal.refuse('manifest_invalid', 'the manifest is not valid: ' || v_problem);
    END IF;
    RETURN manifest;
END
$$;
COMMENT ON FUNCTION leasehold_internal.check_manifest(jsonb) IS 'Refuses a manifest that the plugin contract does not allow';

-- Returns the transport, or refuses it.
CREATE FUNCTION leasehold_internal.check_transport(transport jsonb) RETURNS jsonb
    LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_unknown text;
    v_problem text;
BEGIN
    PERFORM leasehold_internal.check_object('transport', transport, 8192);
    SELECT k INTO v_unknown FROM pg_catalog.jsonb_object_keys(transport) AS k
     WHERE k NOT IN ('type', 'url', 'token_file') LIMIT 1;
    v_problem := CASE
        WHEN v_unknown IS NOT NULL
            THEN pg_catalog.format('unknown member "%s"', pg_catalog.left(v_unknown, 60))
        WHEN transport ->> 'type' IS DISTINCT FROM 'http'
            THEN 'type must be "http"'
        WHEN pg_catalog.jsonb_typeof(transport -> 'url') IS DISTINCT FROM 'string'
            THEN 'url must be a text'
        WHEN pg_catalog.jsonb_typeof(transport -> 'token_file') NOT IN ('string', 'null')
             OR transport ->> 'token_file' !~ '^[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}$'
            THEN 'token_file must be the name of a file in leasehold.token_directory, without a directory'
        ELSE leasehold_internal.url_problem(transport ->> 'url')
        END;
    IF v_problem IS NOT NULL THEN
        PERFORM leasehold_internal.refuse('transport_invalid', 'the transport is not valid: ' || v_problem);
    END IF;
    RETURN transport;
END
$$;
COMMENT ON FUNCTION leasehold_internal.check_transport(jsonb) IS 'Refuses a transport that is not understood';

CREATE FUNCTION leasehold_internal.url_problem(url text) RETURNS text
    LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'leasehold_url_problem';
COMMENT ON FUNCTION leasehold_internal.url_problem(text) IS 'Why a plugin cannot have this address, or NULL';

CREATE FUNCTION leasehold_internal.check_addresses(allow_addresses text[]) RETURNS cidr[]
    LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_result cidr[];
BEGIN
    IF pg_catalog.cardinality(allow_addresses) > 100 THEN
        PERFORM leasehold_internal.refuse('argument_too_large', 'argument "allow_addresses" has more than 100 networks');
    ELSIF EXISTS (SELECT FROM pg_catalog.unnest(allow_addresses) AS a WHERE a IS NULL) THEN
        PERFORM leasehold_internal.refuse('argument_invalid', 'argument "allow_addresses" must not contain null');
    END IF;
    BEGIN
        SELECT COALESCE(pg_catalog.array_agg(a::cidr), '{}') INTO v_result
          FROM pg_catalog.unnest(allow_addresses) AS a;
    EXCEPTION WHEN invalid_text_representation THEN
        PERFORM leasehold_internal.refuse('argument_invalid', 'argument "allow_addresses" is not a list of networks',
            'Write networks as in 10.1.0.0/16, 127.0.0.0/8 or fd00::/8.');
    END;
    RETURN v_result;
END
$$;
COMMENT ON FUNCTION leasehold_internal.check_addresses(text[]) IS 'Turns texts into networks, or refuses';

-- Makes the plugin's providers those of its manifest.
CREATE FUNCTION leasehold_internal.store_providers(plugin text, manifest jsonb) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_taken text;
BEGIN
    SELECT p.key INTO v_taken
      FROM pg_catalog.jsonb_array_elements(store_providers.manifest -> 'environmentDrivers') AS d
      JOIN leasehold.providers AS p ON p.key = d ->> 'driverKey'
     WHERE p.plugin_key IS DISTINCT FROM plugin LIMIT 1;
    IF FOUND THEN
        PERFORM leasehold_internal.refuse('already_exists',
            pg_catalog.format('provider "%s" is offered by another plugin already', v_taken),
            'Each provider key can be offered once; unregister the other plugin first.');
    END IF;
    SELECT p.key INTO v_taken
      FROM leasehold.providers AS p
     WHERE p.plugin_key = plugin
       AND (EXISTS (SELECT FROM leasehold_internal.environments AS e WHERE e.provider = p.key AND e.status = 'active')
            OR EXISTS (SELECT FROM leasehold.leases AS l
                        WHERE l.provider = p.key AND leasehold_internal.may_have_resource(l.status))
            OR EXISTS (SELECT FROM leasehold_internal.provider_resources AS r
                        WHERE r.provider = p.key AND r.stray_id IS NOT NULL))
       AND NOT EXISTS (SELECT FROM pg_catalog.jsonb_array_elements(store_providers.manifest -> 'environmentDrivers') AS d
                        WHERE d ->> 'driverKey' = p.key)
     LIMIT 1;
    IF FOUND THEN
        PERFORM leasehold_internal.refuse('still_in_use',
            pg_catalog.format('provider "%s" is missing in the manifest, but in use', v_taken),
            'Archive its environments and end their leases first.');
    END IF;

    DELETE FROM leasehold.providers AS p
     WHERE p.plugin_key = plugin
       AND NOT EXISTS (SELECT FROM pg_catalog.jsonb_array_elements(store_providers.manifest -> 'environmentDrivers') AS d
                        WHERE d ->> 'driverKey' = p.key);
    INSERT INTO leasehold.providers
           (key, plugin_key, kind, display_name, description, config_schema, supports_reusable_leases)
    SELECT d ->> 'driverKey', plugin, COALESCE(d ->> 'kind', 'environment_driver'), d ->> 'displayName',
           d ->> 'description', d -> 'configSchema', COALESCE((d ->> 'supportsReusableLeases')::boolean, false)
      FROM pg_catalog.jsonb_array_elements(store_providers.manifest -> 'environmentDrivers') AS d
    ON CONFLICT (key) DO UPDATE
       SET kind = excluded.kind, display_name = excluded.display_name, description = excluded.description,
           config_schema = excluded.config_schema,
           supports_reusable_leases = excluded.supports_reusable_leases;
END
$$;
COMMENT ON FUNCTION leasehold_internal.store_providers(text, jsonb) IS
    'Makes a plugin''s providers those of its manifest; refuses to take one that is in use';

-- Asks the worker to speak to the plugin.
CREATE FUNCTION leasehold_internal.queue_initialize(plugin text) RETURNS void
    LANGUAGE sql VOLATILE AS $$
    INSERT INTO leasehold_internal.calls AS c
           (company_id, subject_id, slot, operation, provider, payload, shard, due_at)
    VALUES (leasehold_internal.no_company(), leasehold_internal.plugin_subject(plugin), 'op', 'initialize',
            'plugin:' || plugin, pg_catalog.jsonb_build_object('plugin', plugin), 0, pg_catalog.clock_timestamp())
    ON CONFLICT (company_id, subject_id, slot) DO UPDATE
       SET state = 'queued', due_at = excluded.due_at, attempts = 0, crashes = 0, last_error = NULL,
           generation = c.generation + 1
$$;
COMMENT ON FUNCTION leasehold_internal.queue_initialize(text) IS 'Asks the worker to speak to the plugin';

-- The same after somebody has seen to it: what failed before does not hold it back.
CREATE FUNCTION leasehold_internal.speak_anew(plugin text) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
    PERFORM leasehold_internal.request_breaker_reset('plugin:' || plugin);
    PERFORM leasehold_internal.request_breaker_reset(p.key) FROM leasehold.providers AS p
      WHERE p.plugin_key = speak_anew.plugin;
    PERFORM leasehold_internal.queue_initialize(plugin);
END
$$;
COMMENT ON FUNCTION leasehold_internal.speak_anew(text) IS
    'Asks the worker to speak to the plugin at once, whatever failed before';

-- A plugin's id in the dispatch table, made of its key.
CREATE FUNCTION leasehold_internal.plugin_subject(plugin text) RETURNS uuid
    LANGUAGE sql IMMUTABLE STRICT AS $$ SELECT pg_catalog.md5('plugin ' || plugin)::uuid $$;
COMMENT ON FUNCTION leasehold_internal.plugin_subject(text) IS 'A plugin''s id in the dispatch table';

CREATE FUNCTION leasehold_internal.register_plugin(manifest jsonb, transport jsonb, allow_addresses text[] DEFAULT '{}')
    RETURNS text LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_key text;
BEGIN
    PERFORM leasehold_internal.enter_admin();
    PERFORM leasehold_internal.check_manifest(register_plugin.manifest);
    PERFORM leasehold_internal.check_transport(register_plugin.transport);
    PERFORM leasehold_internal.ensure_installation();
    v_key := register_plugin.manifest ->> 'id';

    INSERT INTO leasehold.plugins (key, display_name, version, manifest, transport, allow_addresses)
    VALUES (v_key, register_plugin.manifest ->> 'displayName', register_plugin.manifest ->> 'version',
            register_plugin.manifest, register_plugin.transport,
            leasehold_internal.check_addresses(register_plugin.allow_addresses))
    ON CONFLICT (key) DO NOTHING;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('already_exists', pg_catalog.format('plugin "%s" is registered already', v_key),
            'Use update_plugin() to change it.');
    END IF;
    PERFORM leasehold_internal.store_providers(v_key, register_plugin.manifest);
    PERFORM leasehold_internal.queue_initialize(v_key);
    PERFORM leasehold_internal.record(leasehold_internal.no_company(), 'plugin.registered', 'plugin', v_key,
        pg_catalog.jsonb_build_object('version', register_plugin.manifest ->> 'version'));
    PERFORM leasehold_internal.warn_if_unserved();
    RETURN v_key;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.register_plugin', 'instant',
    'adds a plugin and its providers, and has the worker speak to it', 'leasehold_admin');

CREATE FUNCTION leasehold_internal.update_plugin(
        plugin text, manifest jsonb DEFAULT NULL, transport jsonb DEFAULT NULL, allow_addresses text[] DEFAULT NULL)
    RETURNS void LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
    PERFORM leasehold_internal.enter_admin();
    IF update_plugin.manifest IS NOT NULL THEN
        PERFORM leasehold_internal.check_manifest(update_plugin.manifest);
        IF update_plugin.manifest ->> 'id' <> plugin THEN
            PERFORM leasehold_internal.refuse('manifest_invalid', 'the manifest is another plugin''s: its id differs');
        END IF;
    END IF;
    IF update_plugin.transport IS NOT NULL THEN
        PERFORM leasehold_internal.check_transport(update_plugin.transport);
    END IF;
    UPDATE leasehold.plugins AS p
       SET manifest = COALESCE(update_plugin.manifest, p.manifest),
           display_name = COALESCE(update_plugin.manifest ->> 'displayName', p.display_name),
           version = COALESCE(update_plugin.manifest ->> 'version', p.version),
           transport = COALESCE(update_plugin.transport, p.transport),
           allow_addresses = CASE WHEN update_plugin.allow_addresses IS NULL THEN p.allow_addresses
                                  ELSE leasehold_internal.check_addresses(update_plugin.allow_addresses) END,
           status = CASE WHEN p.status = 'disabled' THEN 'disabled' ELSE 'installed' END,
           updated_at = pg_catalog.now()
     WHERE p.key = plugin;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('plugin_not_found', pg_catalog.format('plugin "%s" does not exist', pg_catalog.left(plugin, 63)));
    END IF;
    IF update_plugin.manifest IS NOT NULL THEN
        PERFORM leasehold_internal.store_providers(plugin, update_plugin.manifest);
    END IF;
    PERFORM leasehold_internal.speak_anew(p.key) FROM leasehold.plugins AS p
      WHERE p.key = plugin AND p.status <> 'disabled';
    PERFORM leasehold_internal.record(leasehold_internal.no_company(), 'plugin.updated', 'plugin', plugin,
        pg_catalog.jsonb_build_object('manifest', update_plugin.manifest IS NOT NULL,
            'transport', update_plugin.transport IS NOT NULL,
            'allowAddresses', update_plugin.allow_addresses IS NOT NULL));
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.update_plugin', 'instant',
    'changes what is given and has the worker speak to the plugin again', 'leasehold_admin');

CREATE FUNCTION leasehold_internal.set_plugin_status(plugin text, status text, action text) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
    PERFORM leasehold_internal.enter_admin();
    UPDATE leasehold.plugins AS p
       SET status = set_plugin_status.status, last_error = NULL, updated_at = pg_catalog.now()
     WHERE p.key = plugin;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('plugin_not_found', pg_catalog.format('plugin "%s" does not exist', pg_catalog.left(plugin, 63)));
    END IF;
    PERFORM leasehold_internal.record(leasehold_internal.no_company(), action, 'plugin', plugin);
END
$$;
COMMENT ON FUNCTION leasehold_internal.set_plugin_status(text, text, text) IS 'Changes a plugin''s status, with its event';

CREATE FUNCTION leasehold_internal.enable_plugin(plugin text) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM leasehold_internal.set_plugin_status(plugin, 'installed', 'plugin.enabled');
    PERFORM leasehold_internal.speak_anew(plugin);
    PERFORM leasehold_internal.warn_if_unserved();
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.enable_plugin', 'instant',
    'takes a disabled plugin into use again', 'leasehold_admin');

CREATE FUNCTION leasehold_internal.disable_plugin(plugin text) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM leasehold_internal.set_plugin_status(plugin, 'disabled', 'plugin.disabled');
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.disable_plugin', 'instant',
    'stops new leases of a plugin''s providers; what exists is still released through it', 'leasehold_admin');

CREATE FUNCTION leasehold_internal.restart_plugin(plugin text) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
    PERFORM leasehold_internal.enter_admin();
    PERFORM FROM leasehold.plugins AS p
      WHERE p.key = restart_plugin.plugin AND p.status = 'disabled' FOR NO KEY UPDATE;
    IF FOUND THEN
        PERFORM leasehold_internal.refuse('wrong_state',
            pg_catalog.format('plugin "%s" is disabled', plugin), 'enable_plugin() takes it into use again.');
    END IF;
    PERFORM leasehold_internal.set_plugin_status(plugin, 'installed', 'plugin.restarted');
    PERFORM leasehold_internal.speak_anew(plugin);
    PERFORM leasehold_internal.warn_if_unserved();
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.restart_plugin', 'instant',
    'has the worker speak to the plugin anew', 'leasehold_admin');

CREATE FUNCTION leasehold_internal.unregister_plugin(plugin text) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_environments bigint;
    v_leases       bigint;
    v_strays       bigint;
BEGIN
    PERFORM leasehold_internal.enter_admin();
    PERFORM FROM leasehold.plugins AS p WHERE p.key = plugin FOR UPDATE;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('plugin_not_found', pg_catalog.format('plugin "%s" does not exist', pg_catalog.left(plugin, 63)));
    END IF;
    SELECT pg_catalog.count(*) INTO v_environments
      FROM leasehold_internal.environments AS e JOIN leasehold.providers AS p ON p.key = e.provider
     WHERE p.plugin_key = plugin AND e.status = 'active';
    SELECT pg_catalog.count(*) INTO v_leases
      FROM leasehold.leases AS l JOIN leasehold.providers AS p ON p.key = l.provider
     WHERE p.plugin_key = plugin AND leasehold_internal.may_have_resource(l.status);
    SELECT pg_catalog.count(*) INTO v_strays
      FROM leasehold_internal.provider_resources AS r JOIN leasehold.providers AS p ON p.key = r.provider
     WHERE p.plugin_key = plugin AND r.stray_id IS NOT NULL;
    IF v_environments > 0 OR v_leases > 0 OR v_strays > 0 THEN
        PERFORM leasehold_internal.refuse('still_in_use',
            pg_catalog.format('plugin "%s" is still in use', plugin),
            'Archive its environments, end their leases and have strays removed first; disable_plugin() stops new leases.',
            pg_catalog.jsonb_build_object('environments', v_environments, 'leases', v_leases, 'strays', v_strays));
    END IF;
    DELETE FROM leasehold_internal.calls AS c
     WHERE c.company_id = leasehold_internal.no_company()
       AND c.subject_id = leasehold_internal.plugin_subject(plugin);
    DELETE FROM leasehold.plugins AS p WHERE p.key = plugin;
    PERFORM leasehold_internal.record(leasehold_internal.no_company(), 'plugin.unregistered', 'plugin', plugin);
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.unregister_plugin', 'instant',
    'removes a plugin that nothing uses any more', 'leasehold_admin');

CREATE FUNCTION leasehold_internal.set_provider_access(company text, provider text, allowed boolean) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid;
BEGIN
    PERFORM leasehold_internal.enter_admin();
    v_company := leasehold_internal.enter_company(company, 'manager', true);
    PERFORM leasehold_internal.require_provider(set_provider_access.provider);
    INSERT INTO leasehold.provider_access (company_id, provider, allowed)
    VALUES (v_company, set_provider_access.provider, set_provider_access.allowed)
    ON CONFLICT (company_id, provider) DO UPDATE
       SET allowed = excluded.allowed, updated_at = pg_catalog.now();
    PERFORM leasehold_internal.record(v_company,
        CASE WHEN set_provider_access.allowed THEN 'provider.allowed' ELSE 'provider.disallowed' END,
        'provider', set_provider_access.provider);
END
$$;
COMMENT ON FUNCTION leasehold_internal.set_provider_access(text, text, boolean) IS
    'Lets a company use a provider, or not, with its event';

CREATE FUNCTION leasehold_internal.allow_provider(company text, provider text) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM leasehold_internal.set_provider_access(company, provider, true);
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.allow_provider', 'instant',
    'lets a company use a provider', 'leasehold_admin');

CREATE FUNCTION leasehold_internal.disallow_provider(company text, provider text) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM leasehold_internal.set_provider_access(company, provider, false);
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.disallow_provider', 'instant',
    'stops a company from getting new leases of a provider', 'leasehold_admin');

CREATE FUNCTION leasehold_internal.require_provider(provider text) RETURNS void
    LANGUAGE plpgsql STABLE AS $$
BEGIN
    PERFORM FROM leasehold.providers AS p WHERE p.key = provider;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('provider_not_found',
            pg_catalog.format('provider "%s" does not exist', pg_catalog.left(provider, 63)),
            'See the table leasehold.providers; plugins offer more after register_plugin().');
    END IF;
END
$$;
COMMENT ON FUNCTION leasehold_internal.require_provider(text) IS 'Refuses unless there is such a provider';

-- Refuses unless the company may make or use environments of the provider.
CREATE FUNCTION leasehold_internal.require_usable_provider(company_id uuid, provider text) RETURNS void
    LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_plugin leasehold.plugins;
BEGIN
    PERFORM leasehold_internal.require_provider(provider);
    IF EXISTS (SELECT FROM leasehold.provider_access AS a
                WHERE a.company_id = require_usable_provider.company_id
                  AND a.provider = require_usable_provider.provider AND NOT a.allowed) THEN
        PERFORM leasehold_internal.refuse('provider_forbidden',
            pg_catalog.format('the company may not use provider "%s"', provider),
            'An administrator can change this with allow_provider().');
    END IF;
    IF provider = 'fake' THEN
        IF NOT pg_catalog.current_setting('leasehold.allow_fake_provider')::boolean THEN
            PERFORM leasehold_internal.refuse('provider_forbidden', 'provider "fake" is for tests only',
                'Turn on leasehold.allow_fake_provider on a server that is for tests.');
        END IF;
        RETURN;
    END IF;
    SELECT g.* INTO v_plugin FROM leasehold.plugins AS g
      JOIN leasehold.providers AS p ON p.plugin_key = g.key WHERE p.key = provider;
    IF v_plugin.status = 'disabled' THEN
        PERFORM leasehold_internal.refuse('provider_unusable',
            pg_catalog.format('provider "%s" cannot be used: its plugin is disabled', provider),
            'An administrator can change this with enable_plugin().',
            pg_catalog.jsonb_build_object('pluginStatus', v_plugin.status));
    END IF;
END
$$;
COMMENT ON FUNCTION leasehold_internal.require_usable_provider(uuid, text) IS
    'Refuses unless the company may use the provider and its plugin is not disabled';
-- 21_environments.sql: environments, of one provider each.
--
-- A change of configuration makes a new version; each lease keeps the version
-- it was acquired with, so that it can be released the same way however the
-- environment was changed meanwhile.

CREATE TABLE leasehold_internal.environments (
    company_id     uuid NOT NULL REFERENCES leasehold.companies,
    id             uuid NOT NULL DEFAULT leasehold.new_id(),
    key            leasehold.object_key NOT NULL,
    name           text NOT NULL,
    description    text,
    provider       leasehold.object_key NOT NULL,
    status         leasehold.object_status NOT NULL DEFAULT 'active',
    config_version integer NOT NULL DEFAULT 1,
    created_at     timestamptz NOT NULL DEFAULT pg_catalog.now(),
    updated_at     timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (company_id, id),
    CONSTRAINT environments_key_key UNIQUE (company_id, key)
);
COMMENT ON TABLE leasehold_internal.environments IS 'Environments: see the view leasehold.environments';

CREATE TABLE leasehold_internal.environment_configs (
    company_id     uuid NOT NULL,
    environment_id uuid NOT NULL,
    version        integer NOT NULL,
    provider       leasehold.object_key NOT NULL,
    config         jsonb NOT NULL,
    env_vars       jsonb NOT NULL DEFAULT '{}',
    metadata       jsonb NOT NULL DEFAULT '{}',
    created_at     timestamptz NOT NULL DEFAULT pg_catalog.now(),
    created_by     name NOT NULL DEFAULT leasehold.acting_role(),
    PRIMARY KEY (company_id, environment_id, version),
    FOREIGN KEY (company_id, environment_id) REFERENCES leasehold_internal.environments ON DELETE CASCADE
);
COMMENT ON TABLE leasehold_internal.environment_configs IS 'Every version of each environment''s configuration';

SELECT leasehold_internal.protect('leasehold_internal.environments', 'viewer');
SELECT leasehold_internal.protect('leasehold_internal.environment_configs', 'user');

CREATE VIEW leasehold.environments WITH (security_barrier) AS
    SELECT e.company_id, e.id, e.key, e.name, e.description, e.provider, e.status, e.config_version,
           c.config, c.env_vars, c.metadata, e.created_at, e.updated_at
      FROM leasehold_internal.environments AS e
      LEFT JOIN leasehold_internal.environment_configs AS c
        ON c.company_id = e.company_id AND c.environment_id = e.id AND c.version = e.config_version;
COMMENT ON VIEW leasehold.environments IS
    'Environments; config, env_vars and metadata are shown from level user on';

CREATE FUNCTION leasehold_internal.refuse_unknown_environment(environment text) RETURNS void
    LANGUAGE plpgsql STABLE AS $$
BEGIN
    PERFORM leasehold_internal.refuse('environment_not_found',
        pg_catalog.format('environment "%s" does not exist', pg_catalog.left(environment, 63)),
        'See the view leasehold.environments; create_environment() makes one.');
END
$$;
COMMENT ON FUNCTION leasehold_internal.refuse_unknown_environment(text) IS 'The error for an environment that is not there';

CREATE FUNCTION leasehold_internal.find_environment(company_id uuid, environment text)
    RETURNS leasehold_internal.environments LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_environment leasehold_internal.environments;
BEGIN
    SELECT e.* INTO v_environment FROM leasehold_internal.environments AS e
     WHERE e.company_id = find_environment.company_id AND e.key = environment;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse_unknown_environment(environment);
    END IF;
    RETURN v_environment;
END
$$;
COMMENT ON FUNCTION leasehold_internal.find_environment(uuid, text) IS 'The environment of this key, or the error that there is none';

-- Refuses a configuration that its provider cannot have.  What a plugin says of
-- its own configuration comes with its schema.
CREATE FUNCTION leasehold_internal.check_config(provider text, config jsonb) RETURNS jsonb
    LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_problem text;
    -- what we tell a provider beside its configuration, and read back
    v_ours    text := (SELECT pg_catalog.min(k) FROM pg_catalog.unnest(ARRAY['driver', 'executionWorkspaceMode', 'pluginId',
                           'pluginKey', 'provider', 'providerMetadata', 'sandboxProviderPlugin', 'shellCommand']) AS k
                        WHERE config ? k);
BEGIN
    PERFORM leasehold_internal.check_object('config', config, 262144);
    v_problem := CASE
        WHEN v_ours = 'provider' THEN 'it must not contain "provider": the environment has its own'
        WHEN v_ours IS NOT NULL THEN pg_catalog.format('it must not contain "%s", which is not the provider''s', v_ours)
        WHEN config ? 'timeoutMs' AND (pg_catalog.jsonb_typeof(config -> 'timeoutMs') <> 'number'
              OR (config ->> 'timeoutMs')::numeric NOT BETWEEN 1 AND 86400000
              OR (config ->> 'timeoutMs')::numeric % 1 <> 0)
            THEN 'timeoutMs must be a whole number from 1 to 86400000'
        WHEN config ? 'reuseLease' AND pg_catalog.jsonb_typeof(config -> 'reuseLease') <> 'boolean'
            THEN 'reuseLease must be true or false'
        WHEN provider = 'fake' THEN leasehold_internal.fake_config_problem(config)
        END;
    IF v_problem IS NOT NULL THEN
        PERFORM leasehold_internal.refuse('config_invalid', 'the configuration is not valid: ' || v_problem);
    END IF;
    RETURN config;
END
$$;
COMMENT ON FUNCTION leasehold_internal.check_config(text, jsonb) IS 'Refuses a configuration that its provider cannot have';

-- The fake provider's knobs; see docs/providers.md.
CREATE FUNCTION leasehold_internal.fake_config_problem(config jsonb) RETURNS text
    LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN k.key NOT IN ('image', 'reuseLease', 'timeoutMs', 'delayMs', 'failTimes', 'failPermanently',
                           'rateLimitTimes', 'retryAfterMs', 'loseAnswerTimes', 'malformedTimes',
                           'goneOnResume', 'releaseFailTimes', 'lookup')
            THEN pg_catalog.format('unknown key "%s"', pg_catalog.left(k.key, 60))
        WHEN k.key = 'image' AND (pg_catalog.jsonb_typeof(k.value) <> 'string' OR pg_catalog.length(k.value #>> '{}') = 0)
            THEN 'image must be a text'
        WHEN k.key IN ('failPermanently', 'goneOnResume', 'lookup') AND pg_catalog.jsonb_typeof(k.value) <> 'boolean'
            THEN pg_catalog.format('%s must be true or false', k.key)
        WHEN k.key IN ('delayMs', 'failTimes', 'rateLimitTimes', 'retryAfterMs', 'loseAnswerTimes', 'malformedTimes',
                       'releaseFailTimes')
             AND (pg_catalog.jsonb_typeof(k.value) <> 'number'
                  OR (k.value #>> '{}')::numeric NOT BETWEEN 0 AND 86400000 OR (k.value #>> '{}')::numeric % 1 <> 0)
            THEN pg_catalog.format('%s must be a whole number from 0 to 86400000', k.key)
        END AS problem
    FROM pg_catalog.jsonb_each(config) AS k
    ORDER BY 1 NULLS LAST LIMIT 1
$$;
COMMENT ON FUNCTION leasehold_internal.fake_config_problem(jsonb) IS 'What is wrong with a fake environment''s configuration, or NULL';

CREATE FUNCTION leasehold_internal.create_environment(
        environment text, provider text, config jsonb DEFAULT '{}', name text DEFAULT NULL,
        description text DEFAULT NULL, env_vars jsonb DEFAULT '{}', metadata jsonb DEFAULT '{}',
        environment_id uuid DEFAULT NULL, company text DEFAULT NULL)
    RETURNS uuid LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(create_environment.company, 'manager');
    v_id      uuid := COALESCE(create_environment.environment_id, leasehold.new_id());
BEGIN
    PERFORM leasehold_internal.check_key('environment', environment);
    PERFORM leasehold_internal.check_text('name', create_environment.name);
    PERFORM leasehold_internal.check_text('description', create_environment.description, 2000);
    PERFORM leasehold_internal.check_env('env_vars', create_environment.env_vars);
    PERFORM leasehold_internal.check_object('metadata', create_environment.metadata);
    PERFORM leasehold_internal.require_active_company(v_company);
    PERFORM leasehold_internal.require_usable_provider(v_company, create_environment.provider);
    PERFORM leasehold_internal.check_config(create_environment.provider, COALESCE(create_environment.config, '{}'));

    INSERT INTO leasehold_internal.environments (company_id, id, key, name, description, provider)
    VALUES (v_company, v_id, environment, COALESCE(create_environment.name, environment),
            create_environment.description, create_environment.provider)
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('already_exists', pg_catalog.format('environment "%s" already exists', environment),
            'Use update_environment() to change it.');
    END IF;
    INSERT INTO leasehold_internal.environment_configs
           (company_id, environment_id, version, provider, config, env_vars, metadata)
    VALUES (v_company, v_id, 1, create_environment.provider, COALESCE(create_environment.config, '{}'),
            COALESCE(create_environment.env_vars, '{}'), COALESCE(create_environment.metadata, '{}'));
    PERFORM leasehold_internal.record(v_company, 'environment.created', 'environment', v_id::text,
        pg_catalog.jsonb_build_object('key', environment, 'provider', create_environment.provider, 'status', 'active'));
    RETURN v_id;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.create_environment', 'instant',
    'makes an environment of a provider; its key is for good', 'leasehold_app');

CREATE FUNCTION leasehold_internal.update_environment(
        environment text, config jsonb DEFAULT NULL, name text DEFAULT NULL, description text DEFAULT NULL,
        env_vars jsonb DEFAULT NULL, metadata jsonb DEFAULT NULL, provider text DEFAULT NULL,
        status text DEFAULT NULL, expected_version integer DEFAULT NULL, company text DEFAULT NULL)
    RETURNS integer LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company  uuid := leasehold_internal.enter_company(update_environment.company, 'manager');
    v_old      leasehold_internal.environments;
    v_current  leasehold_internal.environment_configs;
    v_provider text;
    v_config   jsonb;
    v_changed  text[];
    v_version  integer;
BEGIN
    PERFORM leasehold_internal.check_text('name', update_environment.name);
    PERFORM leasehold_internal.check_text('description', update_environment.description, 2000);
    PERFORM leasehold_internal.check_env('env_vars', update_environment.env_vars);
    PERFORM leasehold_internal.check_object('metadata', update_environment.metadata);
    IF update_environment.status IS NOT NULL THEN
        PERFORM leasehold_internal.check_choice('status', update_environment.status, 'active', 'archived');
    END IF;
    v_old := leasehold_internal.find_environment(v_company, environment);
    SELECT e.* INTO v_old FROM leasehold_internal.environments AS e
     WHERE e.company_id = v_company AND e.id = v_old.id FOR NO KEY UPDATE;
    IF expected_version IS NOT NULL AND v_old.config_version <> expected_version THEN
        PERFORM leasehold_internal.refuse('stale_version',
            pg_catalog.format('environment "%s" was changed meanwhile', environment),
            'Read it again and repeat the change.',
            pg_catalog.jsonb_build_object('version', v_old.config_version));
    END IF;
    SELECT c.* INTO STRICT v_current FROM leasehold_internal.environment_configs AS c
     WHERE c.company_id = v_company AND c.environment_id = v_old.id AND c.version = v_old.config_version;

    -- another provider starts with an empty configuration: the old one's must not leak into it
    v_provider := COALESCE(update_environment.provider, v_old.provider);
    v_config := CASE WHEN v_provider = v_old.provider THEN v_current.config ELSE '{}'::jsonb END
                || COALESCE(leasehold_internal.check_object('config', update_environment.config, 262144), '{}');
    -- a null takes a member out
    v_config := v_config - ARRAY(SELECT c.key FROM pg_catalog.jsonb_each(update_environment.config) AS c
                                  WHERE c.value = 'null');
    IF v_provider <> v_old.provider OR update_environment.config IS NOT NULL THEN
        PERFORM leasehold_internal.require_usable_provider(v_company, v_provider);
        PERFORM leasehold_internal.check_config(v_provider, v_config);
    END IF;

    v_changed := pg_catalog.array_remove(ARRAY[
        CASE WHEN v_config <> v_current.config THEN 'config' END,
        CASE WHEN update_environment.description <> COALESCE(v_old.description, '') THEN 'description' END,
        CASE WHEN update_environment.env_vars <> v_current.env_vars THEN 'env_vars' END,
        CASE WHEN update_environment.metadata <> v_current.metadata THEN 'metadata' END,
        CASE WHEN update_environment.name <> v_old.name THEN 'name' END,
        CASE WHEN v_provider <> v_old.provider THEN 'provider' END,
        CASE WHEN update_environment.status <> v_old.status THEN 'status' END], NULL);
    v_version := v_old.config_version
                 + CASE WHEN v_changed && ARRAY['config', 'env_vars', 'metadata', 'provider'] THEN 1 ELSE 0 END;
    IF v_version > v_old.config_version THEN
        INSERT INTO leasehold_internal.environment_configs
               (company_id, environment_id, version, provider, config, env_vars, metadata)
        VALUES (v_company, v_old.id, v_version, v_provider, v_config,
                COALESCE(update_environment.env_vars, v_current.env_vars),
                COALESCE(update_environment.metadata, v_current.metadata));
    END IF;
    UPDATE leasehold_internal.environments AS e
       SET name = COALESCE(update_environment.name, e.name),
           description = COALESCE(update_environment.description, e.description),
           provider = v_provider, status = COALESCE(update_environment.status, e.status),
           config_version = v_version, updated_at = pg_catalog.now()
     WHERE e.company_id = v_company AND e.id = v_old.id;
    PERFORM leasehold_internal.record(v_company, 'environment.updated', 'environment', v_old.id::text,
        pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
            'changedFields', pg_catalog.to_jsonb(v_changed),
            'name', CASE WHEN 'name' = ANY (v_changed) THEN update_environment.name END,
            'provider', CASE WHEN 'provider' = ANY (v_changed) THEN v_provider END,
            'status', CASE WHEN 'status' = ANY (v_changed) THEN update_environment.status END,
            'configTopLevelKeyCount', CASE WHEN 'config' = ANY (v_changed)
                THEN (SELECT pg_catalog.count(*) FROM pg_catalog.jsonb_object_keys(v_config)) END,
            'metadataTopLevelKeyCount', CASE WHEN 'metadata' = ANY (v_changed)
                THEN (SELECT pg_catalog.count(*) FROM pg_catalog.jsonb_object_keys(update_environment.metadata)) END)));
    RETURN v_version;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.update_environment', 'instant',
    'changes what is given, merging config into the present one, from which a null takes a member out, and returns the version of the configuration',
    'leasehold_app');

CREATE FUNCTION leasehold_internal.archive_environment(environment text, company text DEFAULT NULL) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM leasehold_internal.update_environment(environment, status => 'archived', company => company);
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.archive_environment', 'instant',
    'stops new leases of an environment; update_environment(..., status => ''active'') undoes it', 'leasehold_app');

CREATE FUNCTION leasehold_internal.environment_impact(environment text, company text DEFAULT NULL,
        OUT environment_id uuid, OUT can_delete boolean, OUT live_leases bigint, OUT ended_leases bigint,
        OUT strays bigint)
    RETURNS record LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(environment_impact.company, 'viewer', true);
BEGIN
    environment_id := (leasehold_internal.find_environment(v_company, environment)).id;
    SELECT pg_catalog.count(*) FILTER (WHERE leasehold_internal.may_have_resource(l.status)),
           pg_catalog.count(*) FILTER (WHERE NOT leasehold_internal.may_have_resource(l.status))
      INTO live_leases, ended_leases
      FROM leasehold.leases AS l
     WHERE l.company_id = v_company AND l.environment_id = environment_impact.environment_id;
    SELECT pg_catalog.count(*) INTO strays FROM leasehold_internal.provider_resources AS r
     WHERE r.company_id = v_company AND r.stray_id IS NOT NULL AND r.environment_id = environment_impact.environment_id;
    can_delete := live_leases = 0 AND strays = 0;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.environment_impact', 'instant',
    'says what depends on an environment', 'leasehold_app', 'leasehold_admin', 'leasehold_auditor');

CREATE FUNCTION leasehold_internal.delete_environment(environment text, company text DEFAULT NULL) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(delete_environment.company, 'manager');
    v_old     leasehold_internal.environments;
BEGIN
    v_old := leasehold_internal.find_environment(v_company, environment);
    -- the lock keeps request_lease() out until this has been decided, and without its call no sweep finds strays
    PERFORM FROM leasehold_internal.environments AS e WHERE e.company_id = v_company AND e.id = v_old.id FOR UPDATE;
    DELETE FROM leasehold_internal.calls AS c
     WHERE c.company_id = v_company AND c.subject_id = v_old.id AND c.slot = 'sweep';
    IF EXISTS (SELECT FROM leasehold.leases AS l
                WHERE l.company_id = v_company AND l.environment_id = v_old.id
                  AND leasehold_internal.may_have_resource(l.status)) THEN
        PERFORM leasehold_internal.refuse('still_in_use',
            pg_catalog.format('environment "%s" has leases that may have a resource', environment),
            'Archive it, end its leases, and delete it then; see environment_impact().');
    END IF;
    IF EXISTS (SELECT FROM leasehold_internal.provider_resources AS r
                WHERE r.company_id = v_company AND r.stray_id IS NOT NULL AND r.environment_id = v_old.id) THEN
        PERFORM leasehold_internal.refuse('still_in_use',
            pg_catalog.format('environment "%s" has resources of no lease that are still to be removed', environment),
            'The worker removes them; doctor() tells what it cannot remove, which import_lease() puts under a lease.');
    END IF;
    -- ended leases stay as history, without their environment
    UPDATE leasehold.leases AS l SET environment_id = NULL
     WHERE l.company_id = v_company AND l.environment_id = v_old.id;
    DELETE FROM leasehold_internal.environments AS e WHERE e.company_id = v_company AND e.id = v_old.id;
    PERFORM leasehold_internal.record(v_company, 'environment.deleted', 'environment', v_old.id::text,
        pg_catalog.jsonb_build_object('key', v_old.key, 'provider', v_old.provider, 'status', v_old.status));
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.delete_environment', 'instant',
    'removes an environment without live leases or strays', 'leasehold_app');
-- 22_limits.sql: limits, for the installation, a company, one of its
-- environments, or a provider; of several that fit, each must hold.

CREATE TABLE leasehold.limits (
    company_id     uuid NOT NULL,
    name           leasehold.limit_name NOT NULL,
    environment_id uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    provider       text COLLATE "C" NOT NULL DEFAULT '',
    value          bigint NOT NULL CHECK (value >= 0),
    updated_at     timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (company_id, name, environment_id, provider)
);
COMMENT ON TABLE leasehold.limits IS 'Limits; the nil id stands for every company or environment, an empty provider for all';
COMMENT ON COLUMN leasehold.limits.value IS 'A number; seconds for lease_ttl_max';
SELECT leasehold_internal.protect('leasehold.limits', 'viewer');
-- no function here: readers may not call those of leasehold_internal
CREATE POLICY installation ON leasehold.limits FOR SELECT USING (company_id = '00000000-0000-0000-0000-000000000000');
COMMENT ON POLICY installation ON leasehold.limits IS 'The installation''s own limits hold for everybody and hide nothing';
CREATE TRIGGER limits_changed AFTER INSERT OR UPDATE OR DELETE ON leasehold.limits
    FOR EACH STATEMENT EXECUTE FUNCTION leasehold_internal.relation_changed();

-- workers have to know how many there are: a company's part of a provider depends on it
CREATE TRIGGER companies_changed AFTER INSERT OR UPDATE OR DELETE ON leasehold.companies
    FOR EACH STATEMENT EXECUTE FUNCTION leasehold_internal.relation_changed();

-- Starts of the last minute, kept only where a limit of starts applies.
CREATE TABLE leasehold_internal.lease_starts (
    company_id     uuid NOT NULL,
    started_at     timestamptz NOT NULL,
    lease_id       uuid NOT NULL,
    environment_id uuid NOT NULL,
    provider       text COLLATE "C" NOT NULL,
    PRIMARY KEY (company_id, started_at, lease_id)
);
COMMENT ON TABLE leasehold_internal.lease_starts IS 'Starts of the last minute, where lease_starts_per_minute applies';
SELECT leasehold_internal.protect('leasehold_internal.lease_starts', 'viewer');

CREATE FUNCTION leasehold_internal.set_limit(
        name text, value bigint DEFAULT NULL, company text DEFAULT NULL, environment text DEFAULT NULL, provider text DEFAULT NULL)
    RETURNS void LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company     uuid := leasehold_internal.no_company();
    v_environment uuid := leasehold_internal.no_company();
BEGIN
    -- the other names of the domain are kept for what this version does not do: setting one would limit nothing
    PERFORM leasehold_internal.check_choice('name', set_limit.name, 'active_leases', 'concurrent_calls',
        'lease_ttl_max', 'lease_starts_per_minute');
    IF set_limit.value < 0 THEN
        PERFORM leasehold_internal.refuse('argument_invalid', 'argument "value" must not be negative', 'NULL removes the limit.');
    END IF;
    PERFORM leasehold_internal.enter_admin();
    IF set_limit.company IS NOT NULL THEN
        v_company := leasehold_internal.enter_company(set_limit.company, 'manager', true);
    END IF;
    IF set_limit.environment IS NOT NULL THEN
        IF set_limit.company IS NULL THEN
            PERFORM leasehold_internal.refuse('argument_invalid', 'argument "environment" needs argument "company"');
        END IF;
        IF set_limit.name = 'concurrent_calls' AND set_limit.value IS NOT NULL THEN
            PERFORM leasehold_internal.refuse('argument_invalid', 'limit "concurrent_calls" cannot be set for an environment',
                'Set it for the company, with or without a provider; active_leases can be set for an environment.');
        END IF;
        v_environment := (leasehold_internal.find_environment(v_company, set_limit.environment)).id;
    END IF;
    IF set_limit.provider IS NOT NULL THEN
        PERFORM leasehold_internal.require_provider(set_limit.provider);
    END IF;

    IF set_limit.value IS NULL THEN
        DELETE FROM leasehold.limits AS l
         WHERE l.company_id = v_company AND l.name = set_limit.name AND l.environment_id = v_environment
           AND l.provider = COALESCE(set_limit.provider, '');
    ELSE
        INSERT INTO leasehold.limits (company_id, name, environment_id, provider, value)
        VALUES (v_company, set_limit.name, v_environment, COALESCE(set_limit.provider, ''), set_limit.value)
        ON CONFLICT (company_id, name, environment_id, provider) DO UPDATE
           SET value = excluded.value, updated_at = pg_catalog.now();
    END IF;
    -- leases that wait may go on, or find out that they must wait
    PERFORM leasehold_internal.announce_places(v_company);
    PERFORM leasehold_internal.record(v_company, 'limit.changed', 'limit', set_limit.name,
        pg_catalog.jsonb_build_object('value', set_limit.value, 'environment', set_limit.environment,
                                      'provider', set_limit.provider));
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.set_limit', 'instant',
    'sets a limit, or removes it with NULL', 'leasehold_admin');

-- For which leases a limit holds; short, so that the planner sees through it.
CREATE FUNCTION leasehold_internal.limit_holds(a_limit leasehold.limits, company_id uuid, environment_id uuid, provider text)
    RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (a_limit).company_id = ANY (ARRAY[company_id, leasehold_internal.no_company()])
       AND (a_limit).environment_id = ANY (ARRAY[environment_id, leasehold_internal.no_company()])
       AND (a_limit).provider = ANY (ARRAY[provider, '']);
COMMENT ON FUNCTION leasehold_internal.limit_holds(leasehold.limits, uuid, uuid, text) IS
    'Whether a limit holds for the leases of a company''s environment';

-- The longest time to live that a lease of this environment may get.
CREATE FUNCTION leasehold_internal.ttl_ceiling(company_id uuid, environment_id uuid, provider text) RETURNS interval
    LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (SELECT pg_catalog.make_interval(secs => COALESCE(pg_catalog.min(l.value), 86400))
              FROM leasehold.limits AS l
             WHERE l.name = 'lease_ttl_max'
               AND leasehold_internal.limit_holds(l, ttl_ceiling.company_id, ttl_ceiling.environment_id, ttl_ceiling.provider));
END
$$;
COMMENT ON FUNCTION leasehold_internal.ttl_ceiling(uuid, uuid, text) IS
    'The longest time to live that a lease may get: the lowest limit lease_ttl_max that fits, else 24 hours';
-- 30_leases.sql: leases, their life cycle, and the dispatch table.
--
-- A lease is one row per provider resource.  Columns that renewals change are
-- in no index and no index predicate, so renewals stay on the page (HOT).

CREATE TABLE leasehold.leases (
    company_id             uuid NOT NULL,
    id                     uuid NOT NULL,
    environment_id         uuid,
    config_version         integer NOT NULL,
    provider               leasehold.object_key NOT NULL,
    provider_version       text NOT NULL DEFAULT '',
    adapter_type           text,
    status                 leasehold.lease_status NOT NULL DEFAULT 'acquiring',
    generation             integer NOT NULL DEFAULT 1,
    policy                 leasehold.lease_policy NOT NULL DEFAULT 'ephemeral',
    agent_id               uuid,
    issue_id               uuid,
    run_id                 uuid,
    execution_workspace_id uuid,
    provider_lease_id      text COLLATE "C",
    ttl                    interval NOT NULL,
    idle_timeout           interval,
    acquire_by             timestamptz,
    requested_at           timestamptz NOT NULL DEFAULT pg_catalog.now(),
    acquired_at            timestamptz,
    last_used_at           timestamptz,
    expires_at             timestamptz,
    provider_expires_at    timestamptz,
    ended_at               timestamptz,
    end_status             leasehold.lease_end,
    disposition            leasehold.disposition,
    waiting_for            text,
    fail_on_limit          boolean NOT NULL DEFAULT false,
    attempts               integer NOT NULL DEFAULT 0,
    failure_code           text,
    failure_reason         text,
    cleanup_status         leasehold.cleanup_status,
    requested_by           name NOT NULL DEFAULT leasehold.acting_role(),
    PRIMARY KEY (company_id, id),
    CONSTRAINT leases_environment FOREIGN KEY (company_id, environment_id) REFERENCES leasehold_internal.environments,
    FOREIGN KEY (company_id, agent_id) REFERENCES leasehold_internal.agents,
    FOREIGN KEY (company_id, issue_id) REFERENCES leasehold_internal.issues,
    FOREIGN KEY (company_id, execution_workspace_id) REFERENCES leasehold_internal.execution_workspaces,
    CHECK (generation > 0),
    CHECK (status NOT IN ('releasing', 'pending_cleanup', 'irrevocable') OR end_status IS NOT NULL AND disposition IS NOT NULL)
) WITH (fillfactor = 80);
COMMENT ON TABLE leasehold.leases IS 'One row per resource that a provider gave, or is asked for';
COMMENT ON COLUMN leasehold.leases.adapter_type IS 'The agent''s, or what the provider says it made the resource for; a plugin''s resource without one is not reused';
COMMENT ON COLUMN leasehold.leases.config_version IS 'The version of the environment''s configuration that the resource was made with';
COMMENT ON COLUMN leasehold.leases.provider_version IS 'The plugin''s version when the resource was made; a parked one of another version is not reused';
COMMENT ON COLUMN leasehold.leases.provider_expires_at IS 'When the provider ends the resource by itself; no renewal goes beyond';
COMMENT ON COLUMN leasehold.leases.generation IS 'Counts the times the resource was taken into use; answers to an older one are ignored';
COMMENT ON COLUMN leasehold.leases.ttl IS 'Time to live, counted from the acquisition or the last renewal';
COMMENT ON COLUMN leasehold.leases.acquire_by IS 'When the request fails if there is still no resource';
COMMENT ON COLUMN leasehold.leases.end_status IS 'What the lease becomes when its release has been carried out';
COMMENT ON COLUMN leasehold.leases.waiting_for IS 'The limit that the request waits for, or what else keeps it from going on';
COMMENT ON COLUMN leasehold.leases.attempts IS 'Calls made for the present step';
COMMENT ON COLUMN leasehold.leases.cleanup_status IS 'Whether the resource of an ended lease is known to be gone or parked';

-- States in which a provider may hold, and bill, something for the lease.
CREATE FUNCTION leasehold_internal.may_have_resource(status leasehold.lease_status) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN status IN ('acquiring', 'active', 'releasing', 'retained', 'resuming', 'pending_cleanup', 'irrevocable');
COMMENT ON FUNCTION leasehold_internal.may_have_resource(leasehold.lease_status) IS
    'Whether a provider may hold something for a lease of this status';

CREATE INDEX leases_live_by_environment ON leasehold.leases (company_id, environment_id)
    WHERE status IN ('acquiring', 'active', 'releasing', 'retained', 'resuming', 'pending_cleanup', 'irrevocable');
CREATE INDEX leases_live_by_run ON leasehold.leases (company_id, run_id)
    WHERE run_id IS NOT NULL AND status IN ('acquiring', 'active', 'resuming');
CREATE INDEX leases_live_by_workspace ON leasehold.leases (company_id, execution_workspace_id)
    WHERE execution_workspace_id IS NOT NULL AND status IN ('acquiring', 'active', 'releasing', 'retained', 'resuming', 'pending_cleanup', 'irrevocable');
CREATE INDEX leases_live_by_issue ON leasehold.leases (company_id, issue_id)
    WHERE issue_id IS NOT NULL AND status IN ('acquiring', 'active', 'releasing', 'retained', 'resuming', 'pending_cleanup', 'irrevocable');
CREATE INDEX leases_by_end ON leasehold.leases (ended_at)
    WHERE status IN ('released', 'expired', 'failed', 'forgotten', 'written_off');
-- for sweeps after a fork
CREATE INDEX leases_forgotten ON leasehold.leases (company_id, provider_lease_id) WHERE status = 'forgotten';
ALTER TABLE leasehold.leases SET (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.02);

CREATE TABLE leasehold.lease_metadata (
    company_id uuid NOT NULL,
    lease_id   uuid NOT NULL,
    metadata   jsonb NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (company_id, lease_id),
    FOREIGN KEY (company_id, lease_id) REFERENCES leasehold.leases ON DELETE CASCADE
);
COMMENT ON TABLE leasehold.lease_metadata IS 'What a provider said of a lease''s resource; from level user on';

-- Node-local: no two leases, of whatever companies, hold one resource.  One that
-- none holds and that is to be removed is a stray; its row stays until it is gone,
-- so that no lease comes to hold it, and that its removal is not forgotten.  The
-- environment of a stray is not a foreign key, which every acquire would pay for:
-- delete_environment() looks.
CREATE TABLE leasehold_internal.provider_resources (
    provider          text COLLATE "C" NOT NULL,
    provider_lease_id text COLLATE "C" NOT NULL,
    company_id        uuid NOT NULL,
    lease_id          uuid,
    stray_id          uuid,
    environment_id    uuid,
    config_version    integer,
    made_for          text,
    generation        integer,
    reason            text,
    PRIMARY KEY (provider, provider_lease_id),
    CHECK (pg_catalog.num_nonnulls(lease_id, stray_id) = 1),
    CHECK (pg_catalog.num_nonnulls(stray_id, environment_id, config_version, generation, reason) IN (0, 5))
);
COMMENT ON TABLE leasehold_internal.provider_resources IS
    'Which lease holds a provider''s resource, unique over all companies; and resources of no lease that are to be removed';
COMMENT ON COLUMN leasehold_internal.provider_resources.stray_id IS
    'Set if no lease holds the resource: the subject of the call that removes it; the columns after it are for that call';
COMMENT ON COLUMN leasehold_internal.provider_resources.config_version IS
    'The version of the environment''s configuration that the removal is to be made with';
COMMENT ON COLUMN leasehold_internal.provider_resources.made_for IS 'The lease that the stray''s label names, if it has one';
COMMENT ON COLUMN leasehold_internal.provider_resources.generation IS 'The generation that the stray''s label names';
COMMENT ON COLUMN leasehold_internal.provider_resources.reason IS
    'no_lease: a sweep found it; resume_failed: it was parked and could not be resumed; resumed_instead: a resume was answered with it';
CREATE INDEX provider_resources_by_lease ON leasehold_internal.provider_resources (company_id, lease_id);
CREATE UNIQUE INDEX provider_resources_strays ON leasehold_internal.provider_resources (company_id, stray_id)
    WHERE stray_id IS NOT NULL;

SELECT leasehold_internal.protect('leasehold.leases', 'viewer');
SELECT leasehold_internal.protect('leasehold.lease_metadata', 'user');
CREATE POLICY imported ON leasehold.lease_metadata FOR INSERT TO leasehold_owner
    WITH CHECK (company_id = ANY ((SELECT leasehold.visible_companies('viewer'))::uuid[]));
COMMENT ON POLICY imported ON leasehold.lease_metadata IS
    'An administrator imports what it may not read afterwards; only import_lease() inserts';
SELECT leasehold_internal.protect('leasehold_internal.provider_resources', 'viewer');

-- What events tell of a stray.
CREATE FUNCTION leasehold_internal.stray_details(stray leasehold_internal.provider_resources) RETURNS jsonb
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN pg_catalog.jsonb_build_object('provider', (stray).provider, 'leaseId', (stray).made_for,
               'generation', (stray).generation, 'environmentId', (stray).environment_id, 'reason', (stray).reason);
COMMENT ON FUNCTION leasehold_internal.stray_details(leasehold_internal.provider_resources) IS
    'What events tell of a stray';

-- When an active or parked lease ends by itself.
CREATE FUNCTION leasehold_internal.lease_deadline(
        status leasehold.lease_status, expires_at timestamptz, last_used_at timestamptz, idle_timeout interval)
    RETURNS timestamptz LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE WHEN status = 'active' THEN LEAST(expires_at, last_used_at + idle_timeout)
                WHEN status = 'retained' THEN expires_at END;
COMMENT ON FUNCTION leasehold_internal.lease_deadline(leasehold.lease_status, timestamptz, timestamptz, interval) IS
    'When an active or parked lease ends by itself';

-- The life cycle.

CREATE FUNCTION leasehold.lease_transitions(OUT from_status text, OUT to_status text, OUT reason text)
    RETURNS SETOF record LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'leasehold_lease_transitions';
COMMENT ON FUNCTION leasehold.lease_transitions() IS 'instant: the changes of a lease''s status that the database allows';

CREATE FUNCTION leasehold_internal.check_lease_change() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'leasehold_check_lease_change';
COMMENT ON FUNCTION leasehold_internal.check_lease_change() IS
    'Refuses changes of status that leasehold.lease_transitions() does not list, and of what identifies a lease';
CREATE TRIGGER check_change BEFORE UPDATE OF company_id, id, status, generation ON leasehold.leases
    FOR EACH ROW EXECUTE FUNCTION leasehold_internal.check_lease_change();

-- The dispatch table: unfinished work, and deadlines.  It is derived, so it is
-- not dumped; the worker makes it again from the states of what it is about.
-- At most one operation and one deadline per subject.  Leases, runs and
-- environments may have the same id, so each kind has slots of its own: who has
-- locked the one must not have the other's work under its lock.

CREATE TABLE leasehold_internal.calls (
    company_id   uuid NOT NULL,
    subject_id   uuid NOT NULL,
    slot         leasehold_internal.call_slot NOT NULL,
    operation    leasehold_internal.call_operation NOT NULL,
    provider     text COLLATE "C" NOT NULL DEFAULT '',
    shard        smallint NOT NULL,
    state        leasehold_internal.call_state NOT NULL DEFAULT 'queued',
    due_at       timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    generation   integer NOT NULL DEFAULT 1,
    attempts     integer NOT NULL DEFAULT 0,
    throttled    integer NOT NULL DEFAULT 0,
    crashes      integer NOT NULL DEFAULT 0,
    granted      boolean NOT NULL DEFAULT false,
    held_by      text COLLATE "C",
    look_up      boolean NOT NULL DEFAULT false,
    worker_epoch bigint,
    started_at   timestamptz,
    queued_at    timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    last_error   text,
    payload      jsonb,
    PRIMARY KEY (company_id, subject_id, slot)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 20000);
COMMENT ON TABLE leasehold_internal.calls IS 'Unfinished work for the workers, and deadlines';
COMMENT ON COLUMN leasehold_internal.calls.slot IS
    'op: a call about a lease, a stray or a plugin; sweep: of an environment; timer, run_timer: the deadline of a lease or run';
COMMENT ON COLUMN leasehold_internal.calls.shard IS 'Which of several workers it belongs to: hash of the company, 0 to 63';
COMMENT ON COLUMN leasehold_internal.calls.throttled IS
    'How many of the attempts the provider told to come again: they make pauses longer, but are not failed tries';
COMMENT ON COLUMN leasehold_internal.calls.granted IS 'The limits let the operation start; it counts against them';
COMMENT ON COLUMN leasehold_internal.calls.held_by IS 'The limit that had no place for the request: see limit_key()';
COMMENT ON COLUMN leasehold_internal.calls.look_up IS 'An earlier try has an unknown outcome: look for its result first';
-- by time alone: one worker has all shards, and several pass over each other's rows
CREATE INDEX calls_due ON leasehold_internal.calls (due_at) WHERE state = 'queued';
CREATE INDEX calls_not_due ON leasehold_internal.calls (state, held_by, queued_at) WHERE state <> 'queued';
SELECT leasehold_internal.protect('leasehold_internal.calls', 'viewer');

CREATE FUNCTION leasehold_internal.wake() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'leasehold_wake_trigger';
COMMENT ON FUNCTION leasehold_internal.wake() IS 'Wakes the workers when the transaction commits';
CREATE TRIGGER wake AFTER INSERT OR UPDATE ON leasehold_internal.calls
    FOR EACH STATEMENT EXECUTE FUNCTION leasehold_internal.wake();

CREATE FUNCTION leasehold_internal.shard_of(company_id uuid) RETURNS smallint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (pg_catalog.uuid_hash(company_id) & 63)::smallint;
COMMENT ON FUNCTION leasehold_internal.shard_of(uuid) IS 'A company''s share of the dispatch table';

-- Requests that may be repeated.

CREATE TABLE leasehold_internal.idempotency_keys (
    company_id    uuid NOT NULL,
    function_name text NOT NULL,
    key           text NOT NULL,
    arguments     bytea NOT NULL,
    result        uuid NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (company_id, function_name, key)
);
COMMENT ON TABLE leasehold_internal.idempotency_keys IS 'Results of requests, kept for 24 hours for those who repeat them';
CREATE INDEX idempotency_keys_age ON leasehold_internal.idempotency_keys USING brin (created_at);
SELECT leasehold_internal.protect('leasehold_internal.idempotency_keys', 'user');

-- Returns the result of the same request made before, or NULL after noting
-- this one.  A concurrent twin waits for the first to end.
CREATE FUNCTION leasehold_internal.claim_idempotency_key(
        company_id uuid, function_name text, key text, arguments jsonb, result uuid)
    RETURNS uuid LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_hash  bytea := pg_catalog.sha256(pg_catalog.convert_to(claim_idempotency_key.arguments::text, 'UTF8'));
    v_found leasehold_internal.idempotency_keys;
BEGIN
    PERFORM leasehold_internal.check_text('idempotency_key', claim_idempotency_key.key);
    IF claim_idempotency_key.key = '' THEN
        PERFORM leasehold_internal.refuse('argument_invalid', 'argument "idempotency_key" must not be empty');
    END IF;
    INSERT INTO leasehold_internal.idempotency_keys AS k (company_id, function_name, key, arguments, result)
    VALUES (claim_idempotency_key.company_id, claim_idempotency_key.function_name, claim_idempotency_key.key,
            v_hash, claim_idempotency_key.result)
    ON CONFLICT (company_id, function_name, key) DO UPDATE
       SET arguments = excluded.arguments, result = excluded.result, created_at = excluded.created_at
     WHERE k.created_at < pg_catalog.now() - interval '24 hours'
    RETURNING k.* INTO v_found;
    IF FOUND THEN
        RETURN NULL;
    END IF;
    SELECT k.* INTO v_found FROM leasehold_internal.idempotency_keys AS k
     WHERE k.company_id = claim_idempotency_key.company_id
       AND k.function_name = claim_idempotency_key.function_name AND k.key = claim_idempotency_key.key;
    IF v_found.arguments <> v_hash THEN
        PERFORM leasehold_internal.refuse('idempotency_conflict',
            'the idempotency key was used for a request with other arguments',
            'Use a new key for a new request.',
            pg_catalog.jsonb_build_object('result', v_found.result));
    END IF;
    RETURN v_found.result;
END
$$;
COMMENT ON FUNCTION leasehold_internal.claim_idempotency_key(uuid, text, text, jsonb, uuid) IS
    'The result of the same request made before, or NULL after noting this one';
-- 31_lease_api.sql: what users do with leases.
--
-- Lock order: run, leases by id, calls, audit.

CREATE FUNCTION leasehold_internal.warn_if_unserved() RETURNS void
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_warn_if_unserved';
COMMENT ON FUNCTION leasehold_internal.warn_if_unserved() IS
    'Warns the caller when no worker will carry out what was asked for';

-- Refuses unless such a lease is the company's.
CREATE FUNCTION leasehold_internal.refuse_unknown_lease(lease_id uuid) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM leasehold_internal.refuse('lease_not_found', pg_catalog.format('lease %s does not exist', lease_id),
        'It may be another company''s, its request may have been rolled back, or it ended long ago and was removed.');
END
$$;
COMMENT ON FUNCTION leasehold_internal.refuse_unknown_lease(uuid) IS 'The error for a lease that is not there';

-- What a request must know of its environment.
CREATE VIEW leasehold_internal.environment_facts AS
    SELECT e.company_id, e.key, e.id, e.provider, e.status, e.config_version,
           COALESCE(g.version, '') AS provider_version, g.status AS plugin_status, c.status AS company_status,
           p.supports_reusable_leases AS reusable,
           EXISTS (SELECT FROM leasehold.provider_access AS x
                    WHERE x.company_id = e.company_id AND x.provider = e.provider AND NOT x.allowed) AS forbidden,
           COALESCE((k.config ->> 'reuseLease')::boolean, false) AS wants_reuse
      FROM leasehold_internal.environments AS e
      JOIN leasehold.companies AS c ON c.id = e.company_id
      JOIN leasehold_internal.environment_configs AS k
        ON k.company_id = e.company_id AND k.environment_id = e.id AND k.version = e.config_version
      LEFT JOIN leasehold.providers AS p ON p.key = e.provider
      LEFT JOIN leasehold.plugins AS g ON g.key = p.plugin_key;
COMMENT ON VIEW leasehold_internal.environment_facts IS 'What a request for a lease must know of its environment';

CREATE FUNCTION leasehold_internal.environment_facts(company_id uuid, environment text)
    RETURNS leasehold_internal.environment_facts
    LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'leasehold_environment_facts';
COMMENT ON FUNCTION leasehold_internal.environment_facts(uuid, text) IS
    'The row of the view of this name, kept in the session until something that it tells has changed';

-- each of these tables says something that the sessions keep
CREATE TRIGGER facts_changed AFTER INSERT OR UPDATE OR DELETE ON leasehold_internal.environments
    FOR EACH STATEMENT EXECUTE FUNCTION leasehold_internal.relation_changed();
CREATE TRIGGER facts_changed AFTER INSERT OR UPDATE OR DELETE ON leasehold_internal.environment_configs
    FOR EACH STATEMENT EXECUTE FUNCTION leasehold_internal.relation_changed();
CREATE TRIGGER facts_changed AFTER INSERT OR UPDATE OR DELETE ON leasehold.provider_access
    FOR EACH STATEMENT EXECUTE FUNCTION leasehold_internal.relation_changed();

CREATE FUNCTION leasehold_internal.write_lease_request(
        company_id uuid, id uuid, environment_id uuid, config_version integer, provider text, provider_version text,
        adapter_type text, policy text, agent_id uuid, issue_id uuid, run_id uuid, execution_workspace_id uuid,
        ttl interval, idle_timeout interval, fail_on_limit boolean, acquire_by timestamptz, details jsonb)
    RETURNS uuid LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_write_lease_request';
COMMENT ON FUNCTION leasehold_internal.write_lease_request(uuid, uuid, uuid, integer, text, text, text, text, uuid, uuid,
                                                           uuid, uuid, interval, interval, boolean, timestamptz, jsonb) IS
    'Writes a lease, its call and its event, and returns its id; warns the caller when no worker will carry it out';

CREATE FUNCTION leasehold_internal.refuse_while_draining() RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM leasehold_internal.refuse('worker_unavailable', 'the installation is being drained',
        'An administrator can end this with resume_worker().');
END
$$;
COMMENT ON FUNCTION leasehold_internal.refuse_while_draining() IS 'The error for new leases of an installation that is being drained';

CREATE FUNCTION leasehold_internal.request_lease(
        environment text, agent_id uuid DEFAULT NULL, issue_id uuid DEFAULT NULL, run_id uuid DEFAULT NULL,
        execution_workspace_id uuid DEFAULT NULL, ttl interval DEFAULT '1 hour', idle_timeout interval DEFAULT NULL,
        policy text DEFAULT NULL, on_limit text DEFAULT 'wait', acquire_timeout interval DEFAULT '5 minutes',
        lease_id uuid DEFAULT NULL, idempotency_key text DEFAULT NULL, company text DEFAULT NULL)
    RETURNS uuid LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company     uuid := leasehold_internal.enter_company(request_lease.company, 'user');
    v_id          uuid := COALESCE(request_lease.lease_id, leasehold.new_id());
    v_ttl         interval := COALESCE(request_lease.ttl, '1 hour');
    v_acquire     interval := COALESCE(request_lease.acquire_timeout, '5 minutes');
    v_on_limit    text := COALESCE(request_lease.on_limit, 'wait');
    v_environment leasehold_internal.environment_facts;
    v_run         record;
    v_agent       uuid := request_lease.agent_id;
    v_issue       uuid := request_lease.issue_id;
    v_workspace   uuid := request_lease.execution_workspace_id;
    v_adapter     text;
    v_policy      text;
    v_earlier     uuid;
BEGIN
    -- this function is called often: what is usually right is not asked in a query
    IF v_ttl NOT BETWEEN '1 second' AND '365 days' OR request_lease.idle_timeout IS NOT NULL
       OR v_acquire NOT BETWEEN '1 second' AND '1 day' THEN
        PERFORM leasehold_internal.check_interval('ttl', v_ttl, '1 second', '365 days');
        PERFORM leasehold_internal.check_interval('idle_timeout', request_lease.idle_timeout, '1 second', '365 days');
        PERFORM leasehold_internal.check_interval('acquire_timeout', v_acquire, '1 second', '1 day');
    END IF;
    IF v_on_limit NOT IN ('wait', 'fail') OR request_lease.policy IS NOT NULL THEN
        PERFORM leasehold_internal.check_choice('on_limit', v_on_limit, 'wait', 'fail');
        PERFORM leasehold_internal.check_choice('policy', request_lease.policy,
            'ephemeral', 'reuse_by_environment', 'retain_on_failure') WHERE request_lease.policy IS NOT NULL;
    END IF;

    IF leasehold_internal.is_draining() THEN
        PERFORM leasehold_internal.refuse_while_draining();
    END IF;

    IF idempotency_key IS NOT NULL THEN
        v_earlier := leasehold_internal.claim_idempotency_key(v_company, 'request_lease', idempotency_key,
            pg_catalog.jsonb_build_array(environment, request_lease.agent_id, request_lease.issue_id,
                request_lease.run_id, request_lease.execution_workspace_id,
                pg_catalog.date_part('epoch', v_ttl), pg_catalog.date_part('epoch', request_lease.idle_timeout),
                request_lease.policy, v_on_limit, pg_catalog.date_part('epoch', v_acquire),
                request_lease.lease_id), v_id);
        IF v_earlier IS NOT NULL THEN
            RETURN v_earlier;
        END IF;
    END IF;

    -- a run lends its agent, issue and workspace; its row is locked against its end
    IF request_lease.run_id IS NOT NULL THEN
        SELECT r.agent_id, r.issue_id, r.execution_workspace_id, r.status INTO v_run
          FROM leasehold_internal.runs AS r
         WHERE r.company_id = v_company AND r.id = request_lease.run_id FOR SHARE;
        IF NOT FOUND THEN
            PERFORM leasehold_internal.refuse('run_not_found',
                pg_catalog.format('run %s does not exist', request_lease.run_id), 'Begin it with start_run().');
        ELSIF v_run.status <> 'running' THEN
            PERFORM leasehold_internal.refuse('wrong_state',
                pg_catalog.format('run %s is not running', request_lease.run_id), NULL,
                pg_catalog.jsonb_build_object('status', v_run.status));
        END IF;
        v_agent := COALESCE(v_agent, v_run.agent_id);
        v_issue := COALESCE(v_issue, v_run.issue_id);
        v_workspace := COALESCE(v_workspace, v_run.execution_workspace_id);
    END IF;

    -- its row is locked by the foreign key: a deletion meanwhile makes that fail
    v_environment := leasehold_internal.environment_facts(v_company, request_lease.environment);
    IF v_environment.id IS NULL THEN
        PERFORM leasehold_internal.refuse_unknown_environment(request_lease.environment);
    ELSIF v_environment.status <> 'active' THEN
        PERFORM leasehold_internal.refuse('environment_inactive',
            pg_catalog.format('environment "%s" is archived', environment));
    ELSIF v_environment.company_status <> 'active' THEN
        PERFORM leasehold_internal.require_active_company(v_company);
    ELSIF v_environment.forbidden OR v_environment.plugin_status = 'disabled' OR v_environment.provider = 'fake'
          OR v_environment.reusable IS NULL THEN
        PERFORM leasehold_internal.require_usable_provider(v_company, v_environment.provider);
    END IF;

    IF v_agent IS NOT NULL THEN
        SELECT a.adapter_type INTO v_adapter FROM leasehold_internal.agents AS a
         WHERE a.company_id = v_company AND a.id = v_agent AND a.status = 'active';
        IF NOT FOUND THEN
            PERFORM leasehold_internal.require_agent(v_company, v_agent);
        END IF;
    END IF;
    IF v_issue IS NOT NULL OR v_workspace IS NOT NULL THEN
        PERFORM leasehold_internal.require_issue(v_company, v_issue);
        PERFORM leasehold_internal.require_workspace(v_company, v_workspace);
    END IF;

    v_policy := COALESCE(request_lease.policy,
        CASE WHEN v_environment.wants_reuse AND v_environment.reusable AND v_agent IS NOT NULL
                  AND v_workspace IS NOT NULL AND request_lease.run_id IS NOT NULL
             THEN 'reuse_by_environment' ELSE 'ephemeral' END);
    IF v_policy <> 'ephemeral' AND NOT v_environment.reusable THEN
        PERFORM leasehold_internal.refuse('provider_unusable',
            pg_catalog.format('provider "%s" cannot park resources', v_environment.provider),
            'Use policy => ''ephemeral''.');
    END IF;
    IF v_on_limit = 'fail' THEN
        PERFORM leasehold_internal.require_free_slot(v_company, v_environment.id, v_environment.provider);
    END IF;
    IF v_policy = 'reuse_by_environment' THEN
        IF v_agent IS NULL OR v_workspace IS NULL OR request_lease.run_id IS NULL THEN
            PERFORM leasehold_internal.refuse('argument_invalid',
                'a lease can be reused only with a run, an agent and an execution workspace');
        END IF;
        v_earlier := leasehold_internal.resume_parked_lease(v_company, v_environment.id,
            v_environment.config_version, v_environment.provider_version, v_agent, v_adapter, v_workspace,
            v_issue, request_lease.run_id, v_ttl, request_lease.idle_timeout, v_on_limit = 'fail', v_acquire);
        IF v_earlier IS NOT NULL THEN
            UPDATE leasehold_internal.idempotency_keys AS k SET result = v_earlier
             WHERE k.company_id = v_company AND k.function_name = 'request_lease'
               AND k.key = request_lease.idempotency_key;
            PERFORM leasehold_internal.warn_if_unserved();
            RETURN v_earlier;
        END IF;
    END IF;

    IF request_lease.lease_id IS NOT NULL THEN
        PERFORM leasehold_internal.refuse('already_exists', pg_catalog.format('lease %s already exists', v_id))
           FROM leasehold.leases AS l WHERE l.company_id = v_company AND l.id = v_id;
    END IF;
    -- as an expression: a statement of its own would cost as much as the rows
    RETURN leasehold_internal.write_lease_request(v_company, v_id, v_environment.id, v_environment.config_version,
        v_environment.provider, v_environment.provider_version, v_adapter, v_policy, v_agent, v_issue,
        request_lease.run_id, v_workspace, v_ttl, request_lease.idle_timeout, v_on_limit = 'fail',
        pg_catalog.now() + v_acquire,
        pg_catalog.jsonb_build_object('environmentId', v_environment.id, 'provider', v_environment.provider,
                                      'leasePolicy', v_policy));
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.request_lease', 'instant',
    'asks for a lease in an environment and returns its id; the worker gets it from the provider', 'leasehold_app');

-- Takes a parked resource into use again: one UPDATE claims it, so two runs
-- cannot get the same.  Those that no longer fit are removed on the way.
CREATE FUNCTION leasehold_internal.resume_parked_lease(
        company_id uuid, environment_id uuid, config_version integer, provider_version text, agent_id uuid,
        adapter_type text, execution_workspace_id uuid, issue_id uuid, run_id uuid, ttl interval,
        idle_timeout interval, fail_on_limit boolean, acquire_timeout interval)
    RETURNS uuid LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_id uuid;
BEGIN
    PERFORM leasehold_internal.end_company_leases(resume_parked_lease.company_id, ARRAY(
        SELECT l.id FROM leasehold.leases AS l
         WHERE l.company_id = resume_parked_lease.company_id
           AND l.environment_id = resume_parked_lease.environment_id
           AND l.execution_workspace_id = resume_parked_lease.execution_workspace_id
           AND l.agent_id = resume_parked_lease.agent_id
           AND l.status = 'retained' AND l.policy = 'reuse_by_environment'
           AND (l.config_version, l.provider_version) IS DISTINCT FROM
               (resume_parked_lease.config_version, resume_parked_lease.provider_version)),
        'expired', 'delete', 'lease_fingerprint_mismatch');

    WITH chosen AS (
        SELECT l.id FROM leasehold.leases AS l
         WHERE l.company_id = resume_parked_lease.company_id
           AND l.environment_id = resume_parked_lease.environment_id
           AND l.execution_workspace_id = resume_parked_lease.execution_workspace_id
           AND l.agent_id = resume_parked_lease.agent_id
           -- what a plugin made for an unknown adapter fits none, not even another unknown one
           AND (l.adapter_type = resume_parked_lease.adapter_type
                OR l.adapter_type IS NULL AND resume_parked_lease.adapter_type IS NULL
                   AND NOT EXISTS (SELECT FROM leasehold.providers AS p
                                    WHERE p.key = l.provider AND p.plugin_key IS NOT NULL))
           AND l.config_version = resume_parked_lease.config_version
           AND l.provider_version = resume_parked_lease.provider_version
           AND l.status = 'retained' AND l.policy = 'reuse_by_environment' AND l.provider_lease_id IS NOT NULL
         ORDER BY l.last_used_at DESC
         LIMIT 1 FOR UPDATE SKIP LOCKED
    ), lease AS (
        UPDATE leasehold.leases AS l
           SET status = 'resuming', generation = l.generation + 1, run_id = resume_parked_lease.run_id,
               issue_id = resume_parked_lease.issue_id, ttl = resume_parked_lease.ttl,
               idle_timeout = resume_parked_lease.idle_timeout, requested_at = pg_catalog.now(),
               acquire_by = pg_catalog.now() + resume_parked_lease.acquire_timeout,
               end_status = NULL, disposition = NULL, ended_at = NULL, failure_code = NULL, failure_reason = NULL,
               fail_on_limit = resume_parked_lease.fail_on_limit, cleanup_status = NULL, attempts = 0, requested_by = leasehold.acting_role()
          FROM chosen
         WHERE l.company_id = resume_parked_lease.company_id AND l.id = chosen.id
        RETURNING l.*
    ), call AS (
        INSERT INTO leasehold_internal.calls AS c (company_id, subject_id, slot, operation, provider, shard, generation)
        SELECT l.company_id, l.id, 'op', 'resume', l.provider, leasehold_internal.shard_of(l.company_id), l.generation
          FROM lease AS l
        ON CONFLICT (company_id, subject_id, slot) DO UPDATE
           SET operation = excluded.operation, state = 'queued', due_at = excluded.due_at, attempts = 0, throttled = 0,
               look_up = false, granted = false, held_by = NULL, payload = NULL, crashes = 0,
               queued_at = excluded.queued_at, generation = excluded.generation
    ), event AS (
        INSERT INTO leasehold.audit_events
               (company_id, action, entity_type, entity_id, agent_id, issue_id, run_id, details)
        SELECT l.company_id, 'environment.lease_resume_requested', 'environment_lease', l.id::text, l.agent_id,
               l.issue_id, l.run_id,
               pg_catalog.jsonb_build_object('environmentId', l.environment_id, 'provider', l.provider,
                                             'generation', l.generation)
          FROM lease AS l
    )
    SELECT l.id INTO v_id FROM lease AS l;
    RETURN v_id;
END
$$;
COMMENT ON FUNCTION leasehold_internal.resume_parked_lease(uuid, uuid, integer, text, uuid, text, uuid, uuid, uuid,
                                                           interval, interval, boolean, interval) IS
    'Takes a parked lease that fits into use again, or returns NULL';

-- Ends leases: the one way from "in use" to "over", for one lease or thousands.
--
-- A request whose call was never sent, or is known to have got nothing, is over
-- at once.  The others become releasing; the call that is out, or the one queued
-- here, carries it on.  Leases that are over or ending are left alone, so
-- ending twice is ending once; only what is being parked can still be deleted.
-- A NULL disposition means what the policy says.
CREATE FUNCTION leasehold_internal.end_leases(
        company_ids uuid[], lease_ids uuid[], end_status text, disposition text, reason text DEFAULT NULL,
        code text DEFAULT NULL)
    RETURNS integer LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_count  integer;
    v_places uuid[];
BEGIN
    IF pg_catalog.cardinality(lease_ids) = 0 THEN
        RETURN 0;
    END IF;
    WITH target AS (
        SELECT l.*,
               CASE WHEN end_leases.disposition IS NOT NULL THEN end_leases.disposition
                    WHEN l.policy = 'reuse_by_environment' AND end_leases.end_status = 'released' THEN 'stop'
                    WHEN l.policy = 'retain_on_failure' AND end_leases.end_status = 'failed' THEN 'stop'
                    ELSE 'delete' END AS new_disposition,
               COALESCE(end_leases.reason,
                   CASE WHEN end_leases.end_status = 'failed' THEN 'adapter_or_run_failure'
                        WHEN end_leases.end_status = 'expired' AND l.policy = 'reuse_by_environment'
                             THEN 'lease_expired' END) AS new_reason
          FROM (SELECT * FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(lease_ids)) AS k (company_id, id)
                 ORDER BY 1, 2) AS w
         CROSS JOIN LATERAL (SELECT * FROM leasehold.leases AS x
                              WHERE x.company_id = w.company_id AND x.id = w.id FOR NO KEY UPDATE) AS l
         WHERE l.status IN ('acquiring', 'active', 'resuming', 'retained')
            OR l.status IN ('releasing', 'pending_cleanup') AND l.disposition <> 'delete'
               AND end_leases.disposition = 'delete'
    ), never_sent AS (
        DELETE FROM leasehold_internal.calls AS c
         USING target AS t
         WHERE c.company_id = t.company_id AND c.subject_id = t.id AND c.slot = 'op'
           AND c.operation = 'acquire' AND NOT c.look_up AND c.state IN ('queued', 'waiting')
        RETURNING c.company_id, c.subject_id, c.granted
    ), lease AS (
        UPDATE leasehold.leases AS l
           SET status = CASE WHEN n.subject_id IS NOT NULL THEN end_leases.end_status
                             WHEN t.status = 'pending_cleanup' THEN t.status ELSE 'releasing' END,
               end_status = CASE WHEN t.new_disposition = 'delete' THEN end_leases.end_status ELSE 'retained' END,
               disposition = t.new_disposition,
               ended_at = CASE WHEN n.subject_id IS NOT NULL THEN pg_catalog.now() END,
               cleanup_status = CASE WHEN t.status = 'pending_cleanup' THEN l.cleanup_status
                                     WHEN n.subject_id IS NULL THEN 'pending' END,
               failure_code = COALESCE(end_leases.code, l.failure_code),
               failure_reason = COALESCE(t.new_reason, l.failure_reason),
               waiting_for = NULL, attempts = 0
          FROM target AS t
          LEFT JOIN never_sent AS n ON n.company_id = t.company_id AND n.subject_id = t.id
         WHERE l.company_id = t.company_id AND l.id = t.id
        RETURNING l.*, t.status AS old_status, t.new_reason
    ), call AS (
        INSERT INTO leasehold_internal.calls AS c
               (company_id, subject_id, slot, operation, provider, shard, generation)
        SELECT l.company_id, l.id, 'op',
               CASE WHEN l.disposition = 'delete'
                         AND (l.policy <> 'ephemeral' OR l.old_status IN ('retained', 'releasing', 'pending_cleanup'))
                    THEN 'destroy' ELSE 'release' END,
               l.provider, leasehold_internal.shard_of(l.company_id), l.generation
          FROM lease AS l
         WHERE l.status IN ('releasing', 'pending_cleanup')
        ON CONFLICT (company_id, subject_id, slot) DO UPDATE
               -- a call that is out, or whose outcome is to be looked up, goes on; its answer finds the lease releasing
           SET operation = CASE WHEN c.operation IN ('resume', 'release') AND c.state <> 'started'
                                THEN excluded.operation ELSE c.operation END,
               -- one that is just parking the resource is followed by another
               payload = CASE WHEN c.operation = 'release' AND c.state = 'started'
                              THEN '{"destroy": true}' ELSE c.payload END,
               state = CASE WHEN c.state = 'waiting' THEN 'queued' ELSE c.state END,
               due_at = CASE WHEN c.state = 'started' THEN c.due_at ELSE excluded.due_at END
    ), event AS (
        INSERT INTO leasehold.audit_events
               (company_id, action, entity_type, entity_id, agent_id, issue_id, run_id, details)
        SELECT l.company_id,
               CASE WHEN l.status IN ('releasing', 'pending_cleanup') THEN 'environment.lease_release_requested'
                    ELSE 'environment.lease_released' END,
               'environment_lease', l.id::text, l.agent_id, l.issue_id, l.run_id,
               pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
                   'environmentId', l.environment_id, 'provider', l.provider, 'from', l.old_status,
                   'status', l.end_status, 'disposition', l.disposition, 'failureReason', l.new_reason))
          FROM lease AS l
    )
    SELECT pg_catalog.count(*),
           (SELECT pg_catalog.array_agg(DISTINCT n.company_id) FROM never_sent AS n WHERE n.granted)
      INTO v_count, v_places FROM lease AS l;
    -- those that were granted a place had it without using it
    IF v_places IS NOT NULL THEN
        PERFORM leasehold_internal.announce_places(p) FROM pg_catalog.unnest(v_places) AS p
          WHERE EXISTS (SELECT FROM leasehold.limits AS m WHERE m.name = 'active_leases');
    END IF;
    RETURN v_count;
END
$$;
COMMENT ON FUNCTION leasehold_internal.end_leases(uuid[], uuid[], text, text, text, text) IS
    'Moves leases from use towards their end, with the work and the events that belong to it';

CREATE FUNCTION leasehold_internal.end_company_leases(
        company_id uuid, lease_ids uuid[], end_status text, disposition text, reason text DEFAULT NULL)
    RETURNS integer LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN leasehold_internal.end_leases(
        pg_catalog.array_fill(company_id, ARRAY[pg_catalog.cardinality(lease_ids)]), lease_ids, end_status,
        disposition, reason);
END
$$;
COMMENT ON FUNCTION leasehold_internal.end_company_leases(uuid, uuid[], text, text, text) IS
    'end_leases() for leases of one company';

-- For leases whose purpose is over: what is parked or on its way there goes, and
-- what is in use goes on, of the policies given not to be parked when it ends.
CREATE FUNCTION leasehold_internal.retire_leases(
        company_id uuid, lease_ids uuid[], reason text, unused_too boolean, not_to_be_parked text[])
    RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    -- all of them first, by id: what ends and what goes on is told apart once
    PERFORM FROM leasehold.leases AS l
      WHERE l.company_id = retire_leases.company_id AND l.id = ANY (lease_ids)
        AND leasehold_internal.may_have_resource(l.status)
      ORDER BY l.id FOR NO KEY UPDATE;
    PERFORM leasehold_internal.end_company_leases(retire_leases.company_id,
        ARRAY(SELECT l.id FROM leasehold.leases AS l
               WHERE l.company_id = retire_leases.company_id AND l.id = ANY (lease_ids)
                 AND (l.status IN ('retained', 'releasing', 'pending_cleanup')
                      OR unused_too AND l.run_id IS NULL AND leasehold_internal.may_have_resource(l.status))),
        'expired', 'delete', retire_leases.reason);
    UPDATE leasehold.leases AS l SET policy = 'ephemeral'
     WHERE l.company_id = retire_leases.company_id AND l.id = ANY (lease_ids)
       AND l.policy = ANY (not_to_be_parked) AND l.status IN ('acquiring', 'active', 'resuming');
END
$$;
COMMENT ON FUNCTION leasehold_internal.retire_leases(uuid, uuid[], text, boolean, text[]) IS
    'Ends what is parked of leases whose purpose is over, and what no run holds if asked; the others end with their use';

-- Those among these leases whose cleanup waits for its next try have it now; who
-- asks gives a new reason.
CREATE FUNCTION leasehold_internal.hurry_cleanup(company_id uuid, lease_ids uuid[], reason text) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_locked uuid[];
BEGIN
    WITH lease AS (
        UPDATE leasehold.leases AS l SET failure_reason = COALESCE(hurry_cleanup.reason, l.failure_reason)
          FROM (SELECT x.id FROM leasehold.leases AS x
                 WHERE x.company_id = hurry_cleanup.company_id AND x.id = ANY (lease_ids) AND x.status = 'pending_cleanup'
                 ORDER BY x.id FOR NO KEY UPDATE) AS t
         WHERE l.company_id = hurry_cleanup.company_id AND l.id = t.id
        RETURNING l.id
    )
    SELECT pg_catalog.array_agg(l.id) INTO v_locked FROM lease AS l;
    -- of these alone: nobody holds a call without its lease
    UPDATE leasehold_internal.calls AS c SET due_at = pg_catalog.clock_timestamp()
     WHERE c.company_id = hurry_cleanup.company_id AND c.subject_id = ANY (v_locked)
       AND c.slot = 'op' AND c.state = 'queued';
END
$$;
COMMENT ON FUNCTION leasehold_internal.hurry_cleanup(uuid, uuid[], text) IS
    'Has the cleanup of leases that waits for its next try tried now';

CREATE FUNCTION leasehold_internal.check_generation(lease leasehold.leases, generation integer) RETURNS void
    LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF check_generation.generation IS NOT NULL AND (lease).generation <> check_generation.generation THEN
        PERFORM leasehold_internal.refuse('stale_version',
            pg_catalog.format('lease %s is in use by somebody else now', (lease).id),
            'The generation given is not the present one.',
            pg_catalog.jsonb_build_object('generation', (lease).generation));
    END IF;
END
$$;
COMMENT ON FUNCTION leasehold_internal.check_generation(leasehold.leases, integer) IS
    'Refuses a holder whose generation of the lease is over';

CREATE FUNCTION leasehold_internal.lock_lease(company_id uuid, lease_id uuid, generation integer DEFAULT NULL)
    RETURNS leasehold.leases LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_lease leasehold.leases;
BEGIN
    SELECT l.* INTO v_lease FROM leasehold.leases AS l
     WHERE l.company_id = lock_lease.company_id AND l.id = lock_lease.lease_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse_unknown_lease(lock_lease.lease_id);
    END IF;
    IF lock_lease.generation IS NOT NULL THEN
        PERFORM leasehold_internal.check_generation(v_lease, lock_lease.generation);
    END IF;
    RETURN v_lease;
END
$$;
COMMENT ON FUNCTION leasehold_internal.lock_lease(uuid, uuid, integer) IS
    'The lease, locked, or the error that there is none or that it has another holder';

CREATE FUNCTION leasehold_internal.release_lease(
        lease_id uuid, disposition text DEFAULT NULL, generation integer DEFAULT NULL, company text DEFAULT NULL)
    RETURNS text LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(release_lease.company, 'user');
    v_lease   leasehold.leases;
    v_ended   integer;
BEGIN
    IF release_lease.disposition IS NOT NULL THEN
        PERFORM leasehold_internal.check_choice('disposition', release_lease.disposition, 'keep', 'stop', 'delete');
    END IF;
    v_lease := leasehold_internal.lock_lease(v_company, release_lease.lease_id, release_lease.generation);
    IF release_lease.disposition IN ('keep', 'stop') THEN
        PERFORM FROM leasehold.providers AS p WHERE p.key = v_lease.provider AND p.supports_reusable_leases;
        IF NOT FOUND THEN
            PERFORM leasehold_internal.refuse('provider_unusable',
                pg_catalog.format('provider "%s" cannot park resources', v_lease.provider),
                'Use disposition => ''delete''.');
        END IF;
    END IF;
    IF v_lease.status NOT IN ('acquiring', 'active', 'resuming') THEN
        RETURN v_lease.status;
    END IF;
    v_ended := leasehold_internal.end_company_leases(v_company, ARRAY[v_lease.id], 'released', release_lease.disposition);
    PERFORM leasehold_internal.warn_if_unserved();
    RETURN (SELECT l.status FROM leasehold.leases AS l WHERE l.company_id = v_company AND l.id = v_lease.id);
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.release_lease', 'instant',
    'gives a lease back and returns its status; releasing again changes nothing', 'leasehold_app');

CREATE FUNCTION leasehold_internal.destroy_lease(lease_id uuid, reason text DEFAULT NULL, company text DEFAULT NULL)
    RETURNS text LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(destroy_lease.company, 'user', true);
    v_lease   leasehold.leases;
    v_ended   integer;
BEGIN
    PERFORM leasehold_internal.check_text('reason', destroy_lease.reason, 1000);
    v_lease := leasehold_internal.lock_lease(v_company, destroy_lease.lease_id);
    v_ended := leasehold_internal.end_company_leases(v_company, ARRAY[v_lease.id], 'expired', 'delete',
        COALESCE(destroy_lease.reason, 'lease_destroyed'));
    IF v_ended > 0 THEN
        UPDATE leasehold_internal.calls AS c SET operation = 'destroy'
         WHERE c.company_id = v_company AND c.subject_id = v_lease.id AND c.slot = 'op' AND c.operation = 'release'
           AND c.state <> 'started';
    ELSIF v_lease.status = 'pending_cleanup' THEN
        PERFORM leasehold_internal.hurry_cleanup(v_company, ARRAY[v_lease.id], destroy_lease.reason);
    END IF;
    PERFORM leasehold_internal.warn_if_unserved();
    RETURN (SELECT l.status FROM leasehold.leases AS l WHERE l.company_id = v_company AND l.id = v_lease.id);
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.destroy_lease', 'instant',
    'ends a lease, parked ones included, and has its resource deleted; returns its status',
    'leasehold_app', 'leasehold_admin');

CREATE FUNCTION leasehold_internal.renew_lease(
        lease_id uuid, ttl interval DEFAULT NULL, generation integer DEFAULT NULL, company text DEFAULT NULL)
    RETURNS timestamptz LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(renew_lease.company, 'user');
    v_lease   leasehold.leases;
    v_expires timestamptz;
BEGIN
    IF renew_lease.ttl IS NOT NULL THEN
        PERFORM leasehold_internal.check_interval('ttl', renew_lease.ttl, '1 second', '365 days');
    END IF;
    v_lease := leasehold_internal.lock_lease(v_company, renew_lease.lease_id, renew_lease.generation);
    IF v_lease.status <> 'active' THEN
        PERFORM leasehold_internal.refuse('wrong_state',
            pg_catalog.format('lease %s is not active', v_lease.id),
            CASE WHEN v_lease.status = 'acquiring' THEN 'Wait for it with wait_for_lease().' ELSE 'Request a new one.' END,
            pg_catalog.jsonb_build_object('status', v_lease.status));
    END IF;
    v_expires := LEAST(pg_catalog.clock_timestamp() + LEAST(COALESCE(renew_lease.ttl, v_lease.ttl),
                           leasehold_internal.ttl_ceiling(v_company, v_lease.environment_id, v_lease.provider)),
                       v_lease.provider_expires_at);
    UPDATE leasehold.leases AS l
       SET expires_at = v_expires, last_used_at = pg_catalog.clock_timestamp()
     WHERE l.company_id = v_company AND l.id = v_lease.id;
    -- the deadline's row is moved only if it would come too late
    IF v_expires < v_lease.expires_at THEN
        UPDATE leasehold_internal.calls AS c SET due_at = v_expires
         WHERE c.company_id = v_company AND c.subject_id = v_lease.id AND c.slot = 'timer' AND c.due_at > v_expires;
    END IF;
    RETURN v_expires;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.renew_lease', 'instant',
    'extends an active lease, counted from now, and returns the time that was granted', 'leasehold_app');

CREATE FUNCTION leasehold_internal.release_run_leases(run_id uuid, status text DEFAULT 'released', company text DEFAULT NULL)
    RETURNS integer LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(release_run_leases.company, 'user');
BEGIN
    PERFORM leasehold_internal.check_choice('status', release_run_leases.status, 'released', 'expired', 'failed');
    PERFORM FROM leasehold_internal.runs AS r
      WHERE r.company_id = v_company AND r.id = release_run_leases.run_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('run_not_found',
            pg_catalog.format('run %s does not exist', release_run_leases.run_id), 'Begin it with start_run().');
    END IF;
    PERFORM leasehold_internal.warn_if_unserved();
    RETURN leasehold_internal.end_company_leases(v_company, ARRAY(
        SELECT l.id FROM leasehold.leases AS l
         WHERE l.company_id = v_company AND l.run_id = release_run_leases.run_id
           AND l.status IN ('acquiring', 'active', 'resuming')), release_run_leases.status, NULL);
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.release_run_leases', 'instant',
    'gives back the leases of a run and returns how many there were; a second call returns 0', 'leasehold_app');

CREATE FUNCTION leasehold_internal.destroy_reusable_leases(
        issue_id uuid DEFAULT NULL, execution_workspace_id uuid DEFAULT NULL,
        reason text DEFAULT 'reusable_lease_destroyed', company text DEFAULT NULL)
    RETURNS integer LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(destroy_reusable_leases.company, 'user');
    v_ids     uuid[];
BEGIN
    PERFORM leasehold_internal.check_text('reason', destroy_reusable_leases.reason, 1000);
    IF destroy_reusable_leases.issue_id IS NULL AND destroy_reusable_leases.execution_workspace_id IS NULL THEN
        RETURN 0;
    END IF;
    v_ids := ARRAY(SELECT l.id FROM leasehold.leases AS l
                    WHERE l.company_id = v_company AND l.policy = 'reuse_by_environment'
                      AND leasehold_internal.may_have_resource(l.status)
                      AND (destroy_reusable_leases.issue_id IS NULL OR l.issue_id = destroy_reusable_leases.issue_id)
                      AND (destroy_reusable_leases.execution_workspace_id IS NULL
                           OR l.execution_workspace_id = destroy_reusable_leases.execution_workspace_id));
    PERFORM leasehold_internal.hurry_cleanup(v_company, v_ids, destroy_reusable_leases.reason);
    PERFORM leasehold_internal.warn_if_unserved();
    RETURN leasehold_internal.end_company_leases(v_company, v_ids, 'expired', 'delete',
        COALESCE(destroy_reusable_leases.reason, 'reusable_lease_destroyed'));
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.destroy_reusable_leases', 'instant',
    'removes the reusable leases of an issue, a workspace, or of both together; returns how many', 'leasehold_app');

-- Gives up the removal of a stray, whose resource a lease is to hold; false if it
-- is under way.  The call is locked first, as by workers.
CREATE FUNCTION leasehold_internal.spare_stray(company_id uuid, provider text, provider_lease_id text) RETURNS boolean
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_stray uuid;
    v_state text;
BEGIN
    SELECT r.stray_id INTO v_stray FROM leasehold_internal.provider_resources AS r
     WHERE r.provider = spare_stray.provider AND r.provider_lease_id = spare_stray.provider_lease_id
       AND r.company_id = spare_stray.company_id;
    IF v_stray IS NOT NULL THEN
        SELECT c.state INTO v_state FROM leasehold_internal.calls AS c
         WHERE c.company_id = spare_stray.company_id AND c.subject_id = v_stray AND c.slot = 'op' FOR UPDATE;
        IF v_state = 'started' THEN
            RETURN false;
        END IF;
        DELETE FROM leasehold_internal.calls AS c
         WHERE c.company_id = spare_stray.company_id AND c.subject_id = v_stray AND c.slot = 'op';
        DELETE FROM leasehold_internal.provider_resources AS r
         WHERE r.company_id = spare_stray.company_id AND r.stray_id = v_stray;
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION leasehold_internal.spare_stray(uuid, text, text) IS
    'Gives up the removal of a stray, or returns false if it is under way';

CREATE FUNCTION leasehold_internal.import_lease(
        environment text, provider_lease_id text, agent_id uuid DEFAULT NULL, issue_id uuid DEFAULT NULL,
        run_id uuid DEFAULT NULL, execution_workspace_id uuid DEFAULT NULL, ttl interval DEFAULT '1 hour',
        idle_timeout interval DEFAULT NULL, metadata jsonb DEFAULT NULL, lease_id uuid DEFAULT NULL,
        company text DEFAULT NULL)
    RETURNS uuid LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company     uuid;
    v_id          uuid := COALESCE(import_lease.lease_id, leasehold.new_id());
    v_environment leasehold_internal.environments;
    v_ttl         interval;
BEGIN
    -- whose resource it is, only the installation can tell
    PERFORM leasehold_internal.enter_admin();
    v_company := leasehold_internal.enter_company(import_lease.company, 'manager', true);
    PERFORM leasehold_internal.check_text('provider_lease_id', import_lease.provider_lease_id, 1000);
    IF import_lease.provider_lease_id = '' THEN
        PERFORM leasehold_internal.refuse('argument_invalid', 'argument "provider_lease_id" must not be empty');
    END IF;
    PERFORM leasehold_internal.check_interval('ttl', import_lease.ttl, '1 second', '365 days');
    PERFORM leasehold_internal.check_interval('idle_timeout', import_lease.idle_timeout, '1 second', '365 days');
    PERFORM leasehold_internal.check_object('metadata', import_lease.metadata);
    IF leasehold_internal.is_draining() THEN
        PERFORM leasehold_internal.refuse_while_draining();
    END IF;
    -- locked as the foreign key would, but before, so that a deletion meanwhile is seen
    SELECT e.* INTO v_environment FROM leasehold_internal.environments AS e
     WHERE e.company_id = v_company AND e.key = environment FOR KEY SHARE;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.find_environment(v_company, environment);
    END IF;
    IF v_environment.status <> 'active' THEN
        PERFORM leasehold_internal.refuse('environment_inactive', pg_catalog.format('environment "%s" is archived', environment));
    END IF;
    PERFORM leasehold_internal.require_usable_provider(v_company, v_environment.provider);
    PERFORM leasehold_internal.require_agent(v_company, import_lease.agent_id);
    PERFORM leasehold_internal.require_issue(v_company, import_lease.issue_id);
    PERFORM leasehold_internal.require_workspace(v_company, import_lease.execution_workspace_id);
    PERFORM leasehold_internal.require_running_run(v_company, import_lease.run_id);

    IF NOT leasehold_internal.spare_stray(v_company, v_environment.provider, import_lease.provider_lease_id) THEN
        PERFORM leasehold_internal.refuse('import_refused', 'the resource is just being removed',
            'It is to be removed since no lease claimed it. Try again when that call has ended, if the resource is still there.');
    END IF;
    INSERT INTO leasehold_internal.provider_resources (provider, provider_lease_id, company_id, lease_id)
    VALUES (v_environment.provider, import_lease.provider_lease_id, v_company, v_id)
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('import_refused', 'the resource is held already',
            'A lease has it, or it is to be removed for another company.');
    END IF;
    v_ttl := LEAST(COALESCE(import_lease.ttl, '1 hour'),
                   leasehold_internal.ttl_ceiling(v_company, v_environment.id, v_environment.provider));
    INSERT INTO leasehold.leases AS l
           (company_id, id, environment_id, config_version, provider, provider_version, status, agent_id, issue_id,
            run_id, execution_workspace_id, provider_lease_id, ttl, idle_timeout, acquired_at, last_used_at, expires_at)
    SELECT v_company, v_id, v_environment.id, v_environment.config_version, v_environment.provider,
           COALESCE(g.version, ''), 'active', import_lease.agent_id, import_lease.issue_id, import_lease.run_id,
           import_lease.execution_workspace_id, import_lease.provider_lease_id, v_ttl, import_lease.idle_timeout,
           pg_catalog.now(), pg_catalog.now(), pg_catalog.now() + v_ttl
      FROM leasehold.providers AS p LEFT JOIN leasehold.plugins AS g ON g.key = p.plugin_key
     WHERE p.key = v_environment.provider
    ON CONFLICT (company_id, id) DO NOTHING;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('already_exists', pg_catalog.format('lease %s already exists', v_id));
    END IF;
    INSERT INTO leasehold.lease_metadata (company_id, lease_id, metadata)
    SELECT v_company, v_id, import_lease.metadata WHERE import_lease.metadata IS NOT NULL;
    INSERT INTO leasehold_internal.calls (company_id, subject_id, slot, operation, shard, due_at)
    SELECT l.company_id, l.id, 'timer', 'lease_deadline', leasehold_internal.shard_of(l.company_id),
           leasehold_internal.lease_deadline(l.status, l.expires_at, l.last_used_at, l.idle_timeout)
      FROM leasehold.leases AS l WHERE l.company_id = v_company AND l.id = v_id;
    PERFORM leasehold_internal.record(v_company, 'environment.lease_imported', 'environment_lease', v_id::text,
        pg_catalog.jsonb_build_object('environmentId', v_environment.id, 'provider', v_environment.provider,
            'providerLeaseId', import_lease.provider_lease_id),
        import_lease.agent_id, import_lease.issue_id, import_lease.run_id);
    RETURN v_id;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.import_lease', 'instant',
    'puts a resource that exists at the provider already under a lease', 'leasehold_admin');

CREATE FUNCTION leasehold_internal.retry_lease(lease_id uuid, company text DEFAULT NULL) RETURNS text
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(retry_lease.company, 'user', true);
    v_lease   leasehold.leases;
BEGIN
    v_lease := leasehold_internal.lock_lease(v_company, retry_lease.lease_id);
    IF v_lease.status = 'irrevocable' AND (v_lease.provider_lease_id IS NOT NULL
           OR leasehold_internal.provider_looks_up(v_lease.provider)) THEN
        UPDATE leasehold.leases AS l
           SET status = 'pending_cleanup', attempts = 0, cleanup_status = 'pending', disposition = 'delete',
               -- what could not be parked is removed
               end_status = CASE WHEN l.end_status = 'retained' THEN 'released' ELSE l.end_status END
         WHERE l.company_id = v_company AND l.id = v_lease.id;
        INSERT INTO leasehold_internal.calls AS c
               (company_id, subject_id, slot, operation, provider, shard, generation, look_up)
        VALUES (v_company, v_lease.id, 'op',
                CASE WHEN v_lease.provider_lease_id IS NULL THEN 'acquire' ELSE 'destroy' END,
                v_lease.provider, leasehold_internal.shard_of(v_company), v_lease.generation,
                v_lease.provider_lease_id IS NULL)
        ON CONFLICT (company_id, subject_id, slot) DO UPDATE
           SET state = 'queued', due_at = excluded.due_at, attempts = 0, throttled = 0, crashes = 0, operation = excluded.operation,
               look_up = excluded.look_up;
    ELSIF v_lease.status = 'irrevocable' THEN
        PERFORM leasehold_internal.refuse('wrong_state',
            pg_catalog.format('what became of lease %s cannot be looked up at its provider', v_lease.id),
            'Check at the provider. If the resource exists, have a leasehold_admin import it first with import_lease(); then write_off_lease().');
    ELSE
        UPDATE leasehold_internal.calls AS c
           SET state = 'queued', due_at = pg_catalog.clock_timestamp()
         WHERE c.company_id = v_company AND c.subject_id = v_lease.id AND c.slot = 'op'
           AND c.state IN ('queued', 'waiting');
        IF NOT FOUND THEN
            IF EXISTS (SELECT FROM leasehold_internal.calls AS c
                        WHERE c.company_id = v_company AND c.subject_id = v_lease.id AND c.slot = 'op'
                          AND c.state = 'quarantined') THEN
                PERFORM leasehold_internal.refuse('wrong_state',
                    pg_catalog.format('lease %s is in quarantine', v_lease.id),
                    'A manager can let it out with release_quarantine(), which may end the worker again.',
                    pg_catalog.jsonb_build_object('status', v_lease.status));
            END IF;
            PERFORM leasehold_internal.refuse('wrong_state',
                pg_catalog.format('lease %s has nothing to retry', v_lease.id), NULL,
                pg_catalog.jsonb_build_object('status', v_lease.status));
        END IF;
    END IF;
    PERFORM leasehold_internal.record(v_company, 'environment.lease_retried', 'environment_lease', v_lease.id::text,
        pg_catalog.jsonb_build_object('from', v_lease.status), v_lease.agent_id, v_lease.issue_id, v_lease.run_id);
    PERFORM leasehold_internal.warn_if_unserved();
    RETURN (SELECT l.status FROM leasehold.leases AS l WHERE l.company_id = v_company AND l.id = v_lease.id);
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.retry_lease', 'instant',
    'has what a lease waits for, or failed at, tried again now; returns its status', 'leasehold_app', 'leasehold_admin');

CREATE FUNCTION leasehold_internal.write_off_lease(lease_id uuid, reason text, company text DEFAULT NULL) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(write_off_lease.company, 'manager', true);
    v_lease   leasehold.leases;
BEGIN
    PERFORM leasehold_internal.check_text('reason', write_off_lease.reason, 1000);
    IF pg_catalog.btrim(write_off_lease.reason) = '' THEN
        PERFORM leasehold_internal.refuse('argument_invalid', 'argument "reason" must not be empty');
    END IF;
    v_lease := leasehold_internal.lock_lease(v_company, write_off_lease.lease_id);
    IF v_lease.status <> 'irrevocable' THEN
        PERFORM leasehold_internal.refuse('wrong_state',
            pg_catalog.format('lease %s is not irrevocable', v_lease.id),
            'Only what could not be removed is written off.', pg_catalog.jsonb_build_object('status', v_lease.status));
    END IF;
    UPDATE leasehold.leases AS l
       SET status = 'written_off', ended_at = pg_catalog.now(), failure_reason = write_off_lease.reason
     WHERE l.company_id = v_company AND l.id = v_lease.id;
    DELETE FROM leasehold_internal.calls AS c WHERE c.company_id = v_company AND c.subject_id = v_lease.id;
    DELETE FROM leasehold_internal.provider_resources AS r WHERE r.company_id = v_company AND r.lease_id = v_lease.id;
    PERFORM leasehold_internal.announce_places(v_company);
    PERFORM leasehold_internal.record(v_company, 'environment.lease_written_off', 'environment_lease', v_lease.id::text,
        pg_catalog.jsonb_build_object('reason', write_off_lease.reason, 'providerLeaseId', v_lease.provider_lease_id),
        v_lease.agent_id, v_lease.issue_id, v_lease.run_id);
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.write_off_lease', 'instant',
    'gives an irrevocable lease up, with the reason', 'leasehold_app', 'leasehold_admin');

CREATE FUNCTION leasehold_internal.release_quarantine(lease_id uuid, company text DEFAULT NULL) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(release_quarantine.company, 'manager', true);
    v_lease   leasehold.leases;
BEGIN
    v_lease := leasehold_internal.lock_lease(v_company, release_quarantine.lease_id);
    UPDATE leasehold_internal.calls AS c
       SET state = 'queued', crashes = 0, due_at = pg_catalog.clock_timestamp()
     WHERE c.company_id = v_company AND c.subject_id = v_lease.id AND c.slot = 'op' AND c.state = 'quarantined';
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('call_not_found',
            pg_catalog.format('lease %s has no call in quarantine', v_lease.id));
    END IF;
    UPDATE leasehold.leases AS l SET waiting_for = NULL WHERE l.company_id = v_company AND l.id = v_lease.id;
    PERFORM leasehold_internal.record(v_company, 'environment.lease_unquarantined', 'environment_lease',
        v_lease.id::text, '{}', v_lease.agent_id, v_lease.issue_id, v_lease.run_id);
    PERFORM leasehold_internal.warn_if_unserved();
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.release_quarantine', 'instant',
    'has a call tried again that was set aside because the worker died with it', 'leasehold_app', 'leasehold_admin');

-- Waiting is written in C: it must see what commits meanwhile, whatever the
-- caller's snapshot.
CREATE FUNCTION leasehold_internal.wait_for_lease(
        lease_id uuid, timeout interval DEFAULT '5 seconds', company text DEFAULT NULL,
        OUT status text, OUT done boolean, OUT generation integer, OUT provider_lease_id text,
        OUT expires_at timestamptz, OUT waiting_for text, OUT failure_code text, OUT failure_reason text)
    RETURNS record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_wait_for_lease';
SELECT leasehold_internal.publish('leasehold_internal.wait_for_lease', 'waits',
    'returns a lease''s state once nothing is under way for it, or at the timeout with done = false', 'leasehold_app');

CREATE FUNCTION leasehold_internal.lease_state(
        lease_id uuid, company text,
        OUT company_id uuid, OUT status text, OUT done boolean, OUT generation integer, OUT provider_lease_id text,
        OUT expires_at timestamptz, OUT waiting_for text, OUT failure_code text, OUT failure_reason text,
        OUT written_by xid)
    RETURNS record LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
BEGIN
    company_id := leasehold_internal.enter_company(lease_state.company, 'viewer');
    SELECT l.status, l.status NOT IN ('acquiring', 'resuming', 'releasing', 'pending_cleanup'), l.generation,
           l.provider_lease_id, l.expires_at, l.waiting_for, l.failure_code, l.failure_reason,
           l.xmin
      INTO status, done, generation, provider_lease_id, expires_at, waiting_for, failure_code, failure_reason,
           written_by
      FROM leasehold.leases AS l
     WHERE l.company_id = lease_state.company_id AND l.id = lease_state.lease_id;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse_unknown_lease(lease_state.lease_id);
    END IF;
END
$$;
COMMENT ON FUNCTION leasehold_internal.lease_state(uuid, text) IS 'What wait_for_lease() reads';
-- 32_runs.sql: heartbeat runs.  A run's end and the release of its leases are
-- one transaction; a run whose heartbeats stop is lost, and its leases with it.

CREATE TABLE leasehold_internal.runs (
    company_id             uuid NOT NULL REFERENCES leasehold.companies,
    id                     uuid NOT NULL,
    agent_id               uuid,
    issue_id               uuid,
    project_id             uuid,
    routine_id             uuid,
    execution_workspace_id uuid,
    status                 leasehold.run_status NOT NULL DEFAULT 'queued',
    heartbeat_timeout      interval NOT NULL,
    heartbeat_at           timestamptz,
    started_at             timestamptz,
    finished_at            timestamptz,
    error                  text,
    error_code             text,
    retry_of_run_id        uuid,
    retry_on_loss          boolean NOT NULL DEFAULT false,
    env                    jsonb NOT NULL DEFAULT '{}',
    metadata               jsonb NOT NULL DEFAULT '{}',
    created_at             timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (company_id, id),
    -- a lost run is retried at most once (no key to the table itself: pg_dump would warn of a circle)
    CONSTRAINT runs_one_retry UNIQUE (company_id, retry_of_run_id),
    FOREIGN KEY (company_id, agent_id) REFERENCES leasehold_internal.agents,
    FOREIGN KEY (company_id, issue_id) REFERENCES leasehold_internal.issues,
    FOREIGN KEY (company_id, project_id) REFERENCES leasehold_internal.projects,
    FOREIGN KEY (company_id, routine_id) REFERENCES leasehold_internal.routines,
    FOREIGN KEY (company_id, execution_workspace_id) REFERENCES leasehold_internal.execution_workspaces
) WITH (fillfactor = 80);
COMMENT ON TABLE leasehold_internal.runs IS 'Runs: see the view leasehold.runs';
SELECT leasehold_internal.protect('leasehold_internal.runs', 'viewer');

ALTER TABLE leasehold.leases ADD FOREIGN KEY (company_id, run_id) REFERENCES leasehold_internal.runs;

CREATE TABLE leasehold_internal.run_tokens (
    company_id uuid NOT NULL,
    run_id     uuid NOT NULL,
    token_hash bytea NOT NULL,
    PRIMARY KEY (company_id, run_id),
    FOREIGN KEY (company_id, run_id) REFERENCES leasehold_internal.runs ON DELETE CASCADE
);
COMMENT ON TABLE leasehold_internal.run_tokens IS 'Hashes of the tokens of running runs';
SELECT leasehold_internal.protect('leasehold_internal.run_tokens', 'user');

CREATE VIEW leasehold.runs WITH (security_barrier) AS
    SELECT r.company_id, r.id, r.agent_id, r.issue_id, r.project_id, r.routine_id, r.execution_workspace_id,
           r.status, r.heartbeat_timeout, r.heartbeat_at, r.started_at, r.finished_at, r.error, r.error_code,
           r.retry_of_run_id, r.retry_on_loss,
           CASE WHEN r.company_id = ANY ((SELECT leasehold.visible_companies('user'))::uuid[]) THEN r.env END AS env,
           CASE WHEN r.company_id = ANY ((SELECT leasehold.visible_companies('user'))::uuid[]) THEN r.metadata END AS metadata,
           r.created_at
      FROM leasehold_internal.runs AS r;
COMMENT ON VIEW leasehold.runs IS 'Runs of agents; env and metadata are shown from level user on';

CREATE FUNCTION leasehold_internal.require_running_run(company_id uuid, run_id uuid) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_status text;
BEGIN
    IF run_id IS NULL THEN RETURN; END IF;
    SELECT r.status INTO v_status FROM leasehold_internal.runs AS r
     WHERE r.company_id = require_running_run.company_id AND r.id = require_running_run.run_id FOR SHARE;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('run_not_found', pg_catalog.format('run %s does not exist', run_id),
            'Begin it with start_run().');
    ELSIF v_status <> 'running' THEN
        PERFORM leasehold_internal.refuse('wrong_state', pg_catalog.format('run %s is not running', run_id), NULL,
            pg_catalog.jsonb_build_object('status', v_status));
    END IF;
END
$$;
COMMENT ON FUNCTION leasehold_internal.require_running_run(uuid, uuid) IS
    'Refuses unless the run is the company''s and running; its row is locked against its end';

CREATE FUNCTION leasehold_internal.start_run(
        agent_id uuid DEFAULT NULL, issue_id uuid DEFAULT NULL, project_id uuid DEFAULT NULL,
        routine_id uuid DEFAULT NULL, execution_workspace_id uuid DEFAULT NULL,
        heartbeat_timeout interval DEFAULT '5 minutes', retry_on_loss boolean DEFAULT false, env jsonb DEFAULT NULL,
        metadata jsonb DEFAULT NULL, run_id uuid DEFAULT NULL, idempotency_key text DEFAULT NULL,
        company text DEFAULT NULL, OUT started_run_id uuid, OUT token text)
    RETURNS record LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(start_run.company, 'user');
    v_id      uuid := COALESCE(start_run.run_id, leasehold.new_id());
    v_timeout interval := COALESCE(start_run.heartbeat_timeout, '5 minutes');
    v_earlier uuid;
    v_run     leasehold_internal.runs;
BEGIN
    PERFORM leasehold_internal.check_interval('heartbeat_timeout', v_timeout, '1 second', '30 days');
    PERFORM leasehold_internal.check_env('env', start_run.env);
    PERFORM leasehold_internal.check_object('metadata', start_run.metadata);
    PERFORM leasehold_internal.require_active_company(v_company);
    PERFORM leasehold_internal.require_agent(v_company, start_run.agent_id);
    PERFORM leasehold_internal.require_issue(v_company, start_run.issue_id);
    PERFORM leasehold_internal.require_project(v_company, start_run.project_id);
    PERFORM leasehold_internal.require_workspace(v_company, start_run.execution_workspace_id);
    IF start_run.routine_id IS NOT NULL AND NOT EXISTS (
           SELECT FROM leasehold_internal.routines AS r WHERE r.company_id = v_company AND r.id = start_run.routine_id) THEN
        PERFORM leasehold_internal.refuse('routine_not_found',
            pg_catalog.format('routine %s does not exist', start_run.routine_id), 'Make it known with upsert_routine().');
    END IF;

    token := pg_catalog.encode(leasehold_internal.random_bytes(32), 'hex');
    IF idempotency_key IS NOT NULL THEN
        v_earlier := leasehold_internal.claim_idempotency_key(v_company, 'start_run', idempotency_key,
            pg_catalog.jsonb_build_array(start_run.agent_id, start_run.issue_id, start_run.project_id,
                start_run.routine_id, start_run.execution_workspace_id, pg_catalog.date_part('epoch', v_timeout),
                COALESCE(start_run.retry_on_loss, false), start_run.env, start_run.metadata, start_run.run_id), v_id);
        IF v_earlier IS NOT NULL THEN
            -- the token cannot be read again, so the repeater gets a new one; the
            -- run is locked first, as by those who end it and its token
            started_run_id := v_earlier;
            PERFORM FROM leasehold_internal.runs AS r
              WHERE r.company_id = v_company AND r.id = v_earlier FOR NO KEY UPDATE;
            UPDATE leasehold_internal.run_tokens AS t
               SET token_hash = pg_catalog.sha256(pg_catalog.convert_to(token, 'UTF8'))
             WHERE t.company_id = v_company AND t.run_id = v_earlier;
            IF NOT FOUND THEN
                token := NULL;
            END IF;
            RETURN;
        END IF;
    END IF;

    -- a new run, or the queued retry of a lost one
    INSERT INTO leasehold_internal.runs AS r
           (company_id, id, agent_id, issue_id, project_id, routine_id, execution_workspace_id, status,
            heartbeat_timeout, heartbeat_at, started_at, retry_on_loss, env, metadata)
    VALUES (v_company, v_id, start_run.agent_id, start_run.issue_id, start_run.project_id, start_run.routine_id,
            start_run.execution_workspace_id, 'running', v_timeout, pg_catalog.clock_timestamp(), pg_catalog.now(),
            COALESCE(start_run.retry_on_loss, false), COALESCE(start_run.env, '{}'), COALESCE(start_run.metadata, '{}'))
    ON CONFLICT (company_id, id) DO UPDATE
       SET status = 'running', heartbeat_at = excluded.heartbeat_at, started_at = excluded.started_at,
           agent_id = COALESCE(excluded.agent_id, r.agent_id), issue_id = COALESCE(excluded.issue_id, r.issue_id),
           env = COALESCE(start_run.env, r.env), metadata = COALESCE(start_run.metadata, r.metadata)
     WHERE r.status = 'queued'
    RETURNING r.* INTO v_run;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('already_exists', pg_catalog.format('run %s already exists', v_id));
    END IF;
    INSERT INTO leasehold_internal.run_tokens (company_id, run_id, token_hash)
    VALUES (v_company, v_id, pg_catalog.sha256(pg_catalog.convert_to(token, 'UTF8')));
    INSERT INTO leasehold_internal.calls AS c (company_id, subject_id, slot, operation, shard, due_at)
    VALUES (v_company, v_id, 'run_timer', 'run_deadline', leasehold_internal.shard_of(v_company),
            v_run.heartbeat_at + v_run.heartbeat_timeout)
    ON CONFLICT (company_id, subject_id, slot) DO UPDATE SET due_at = excluded.due_at, state = 'queued';
    PERFORM leasehold_internal.record(v_company, 'run.started', 'run', v_id::text, '{}', v_run.agent_id,
        v_run.issue_id, v_id);
    PERFORM leasehold_internal.warn_if_unserved();
    started_run_id := v_id;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.start_run', 'instant',
    'begins a run, or the queued retry of a lost one, and returns the token that proves it', 'leasehold_app');

CREATE FUNCTION leasehold_internal.heartbeat(run_id uuid, company text DEFAULT NULL) RETURNS timestamptz
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company  uuid := leasehold_internal.enter_company(heartbeat.company, 'user');
    v_deadline timestamptz;
    v_status   text;
BEGIN
    UPDATE leasehold_internal.runs AS r SET heartbeat_at = pg_catalog.clock_timestamp()
     WHERE r.company_id = v_company AND r.id = heartbeat.run_id AND r.status = 'running'
    RETURNING r.heartbeat_at + r.heartbeat_timeout INTO v_deadline;
    IF NOT FOUND THEN
        SELECT r.status INTO v_status FROM leasehold_internal.runs AS r
         WHERE r.company_id = v_company AND r.id = heartbeat.run_id;
        IF NOT FOUND THEN
            PERFORM leasehold_internal.refuse('run_not_found', pg_catalog.format('run %s does not exist', heartbeat.run_id),
                'Begin it with start_run().');
        END IF;
        PERFORM leasehold_internal.refuse('wrong_state', pg_catalog.format('run %s is not running', heartbeat.run_id),
            'It has ended, perhaps because its heartbeats stopped; its leases are gone.',
            pg_catalog.jsonb_build_object('status', v_status));
    END IF;
    RETURN v_deadline;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.heartbeat', 'instant',
    'says that a run is alive and returns when the next heartbeat is due', 'leasehold_app');

-- What a run's end means for its leases.
CREATE FUNCTION leasehold_internal.lease_end_of_run(status text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE WHEN status IN ('failed', 'timed_out') THEN 'failed'
                WHEN status = 'cancelled' THEN 'expired' ELSE 'released' END;
COMMENT ON FUNCTION leasehold_internal.lease_end_of_run(text) IS 'What a run''s end means for its leases';

CREATE FUNCTION leasehold_internal.finish_run(
        run_id uuid, status text DEFAULT 'succeeded', error text DEFAULT NULL, error_code text DEFAULT NULL,
        company text DEFAULT NULL)
    RETURNS text LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(finish_run.company, 'user');
    v_run     leasehold_internal.runs;
BEGIN
    PERFORM leasehold_internal.check_choice('status', finish_run.status,
        'succeeded', 'failed', 'cancelled', 'timed_out', 'interrupted');
    PERFORM leasehold_internal.check_text('error', finish_run.error, 4000);
    PERFORM leasehold_internal.check_text('error_code', finish_run.error_code, 100);
    SELECT r.* INTO v_run FROM leasehold_internal.runs AS r
     WHERE r.company_id = v_company AND r.id = finish_run.run_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('run_not_found', pg_catalog.format('run %s does not exist', finish_run.run_id),
            'Begin it with start_run().');
    END IF;
    -- a late end does not change what was decided before
    IF v_run.status NOT IN ('queued', 'running') THEN
        RETURN v_run.status;
    END IF;
    PERFORM leasehold_internal.end_runs(ARRAY[v_company], ARRAY[v_run.id], finish_run.status, finish_run.error,
        finish_run.error_code);
    PERFORM leasehold_internal.warn_if_unserved();
    RETURN finish_run.status;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.finish_run', 'instant',
    'ends a run and gives back its leases in the same transaction; returns the status the run has', 'leasehold_app');

-- Ends runs that the caller has locked, with their leases.
CREATE FUNCTION leasehold_internal.end_runs(
        company_ids uuid[], run_ids uuid[], status text, error text, error_code text)
    RETURNS integer LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_count     integer;
    v_companies uuid[];
    v_leases    uuid[];
BEGIN
    WITH run AS (
        UPDATE leasehold_internal.runs AS r
           SET status = end_runs.status, finished_at = pg_catalog.now(), error = end_runs.error,
               error_code = end_runs.error_code
          FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(run_ids)) AS w (company_id, id)
         WHERE r.company_id = w.company_id AND r.id = w.id AND r.status IN ('queued', 'running')
        RETURNING r.*
    ), token AS (
        DELETE FROM leasehold_internal.run_tokens AS t USING run AS r
         WHERE t.company_id = r.company_id AND t.run_id = r.id
    ), timer AS (
        DELETE FROM leasehold_internal.calls AS c USING run AS r
         WHERE c.company_id = r.company_id AND c.subject_id = r.id AND c.slot = 'run_timer'
    ), event AS (
        INSERT INTO leasehold.audit_events
               (company_id, action, entity_type, entity_id, agent_id, issue_id, run_id, details)
        SELECT r.company_id, 'run.finished', 'run', r.id::text, r.agent_id, r.issue_id, r.id,
               pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
                   'status', r.status, 'errorCode', r.error_code))
          FROM run AS r
    )
    SELECT pg_catalog.count(*) INTO v_count FROM run AS r;

    SELECT pg_catalog.array_agg(l.company_id), pg_catalog.array_agg(l.id) INTO v_companies, v_leases
      FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(run_ids)) AS w (company_id, id)
     CROSS JOIN LATERAL (SELECT x.company_id, x.id FROM leasehold.leases AS x
                          WHERE x.company_id = w.company_id AND x.run_id = w.id
                            AND x.status IN ('acquiring', 'active', 'resuming') OFFSET 0) AS l;
    IF FOUND AND v_leases IS NOT NULL THEN
        PERFORM leasehold_internal.end_leases(v_companies, v_leases,
            leasehold_internal.lease_end_of_run(end_runs.status), NULL, end_runs.error, end_runs.error_code);
    END IF;
    RETURN v_count;
END
$$;
COMMENT ON FUNCTION leasehold_internal.end_runs(uuid[], uuid[], text, text, text) IS 'Ends runs, and their leases with them';

-- Ends the runs among these whose heartbeats stopped, and queues their retries.
CREATE FUNCTION leasehold_internal.lose_runs(company_ids uuid[], run_ids uuid[]) RETURNS integer
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_companies uuid[];
    v_runs      uuid[];
BEGIN
    -- whoever holds a run's row is about to say that it is alive, or has ended
    SELECT pg_catalog.array_agg(s.company_id), pg_catalog.array_agg(s.id) INTO v_companies, v_runs
      FROM (SELECT r.*
              FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(run_ids)) AS w (company_id, id)
             CROSS JOIN LATERAL (SELECT * FROM leasehold_internal.runs AS x
                                  WHERE x.company_id = w.company_id AND x.id = w.id
                                    FOR NO KEY UPDATE SKIP LOCKED) AS r) AS s
     WHERE s.status = 'running' AND COALESCE(s.heartbeat_at + s.heartbeat_timeout <= pg_catalog.clock_timestamp(), true);
    -- their leases end with them, so those whose leases somebody has locked come again
    SELECT pg_catalog.array_agg(w.company_id), pg_catalog.array_agg(w.id) INTO v_companies, v_runs
      FROM ROWS FROM (pg_catalog.unnest(v_companies), pg_catalog.unnest(v_runs)) AS w (company_id, id)
     CROSS JOIN LATERAL (
           SELECT pg_catalog.count(*) AS leases, pg_catalog.count(k.id) AS locked
             FROM leasehold.leases AS l
             LEFT JOIN LATERAL (SELECT x.id FROM leasehold.leases AS x
                                 WHERE x.company_id = l.company_id AND x.id = l.id
                                   FOR NO KEY UPDATE SKIP LOCKED) AS k ON true
            WHERE l.company_id = w.company_id AND l.run_id = w.id
              AND l.status IN ('acquiring', 'active', 'resuming')) AS n
     WHERE n.leases = n.locked;
    IF v_runs IS NULL THEN
        RETURN 0;
    END IF;
    PERFORM leasehold_internal.end_runs(v_companies, v_runs, 'failed', 'the run''s heartbeats stopped', 'process_lost');

    WITH retry AS (
        INSERT INTO leasehold_internal.runs
               (company_id, id, agent_id, issue_id, project_id, routine_id, execution_workspace_id,
                heartbeat_timeout, retry_of_run_id, env, metadata)
        SELECT r.company_id, leasehold.new_id(), r.agent_id, r.issue_id, r.project_id, r.routine_id,
               r.execution_workspace_id, r.heartbeat_timeout, r.id, r.env, r.metadata
          FROM leasehold_internal.runs AS r
          JOIN ROWS FROM (pg_catalog.unnest(v_companies), pg_catalog.unnest(v_runs)) AS w (company_id, id)
            ON r.company_id = w.company_id AND r.id = w.id
         WHERE r.retry_on_loss AND r.retry_of_run_id IS NULL
        ON CONFLICT (company_id, retry_of_run_id) DO NOTHING
        RETURNING *
    )
    INSERT INTO leasehold.audit_events
           (company_id, action, entity_type, entity_id, agent_id, issue_id, run_id, details)
    SELECT r.company_id, 'run.retry_queued', 'run', r.id::text, r.agent_id, r.issue_id, r.id,
           pg_catalog.jsonb_build_object('retryOfRunId', r.retry_of_run_id)
      FROM retry AS r;
    RETURN pg_catalog.cardinality(v_runs);
END
$$;
COMMENT ON FUNCTION leasehold_internal.lose_runs(uuid[], uuid[]) IS
    'Ends those of these runs whose heartbeats stopped, and queues at most one retry of each';

CREATE FUNCTION leasehold_internal.random_bytes(count integer) RETURNS bytea
    LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'leasehold_random_bytes';
COMMENT ON FUNCTION leasehold_internal.random_bytes(integer) IS 'Random bytes fit for keys and tokens';
-- 40_dispatch.sql: the protocol between the dispatch table and whoever makes
-- the calls: due, claim, complete, fire, recover.
--
-- A worker claims a call and commits before it speaks to the provider, so every
-- remote effect has a row first.  What comes back is applied only while the
-- call is still claimed by the same worker (worker_epoch) for the same
-- generation of the lease; an answer that comes too late changes nothing.
--
-- A worker must not wait for users: rows that somebody has locked are skipped
-- and tried again.

-- Calls that are due by now for one of several workers, oldest first.  since
-- bounds the look back, so that rows that are gone but not yet vacuumed are not
-- read again and again.
CREATE FUNCTION leasehold_internal.due_calls(
        part integer, parts integer, since timestamptz, until timestamptz, count integer)
    RETURNS TABLE (company_id uuid, subject_id uuid, slot text, provider text, due_at timestamptz)
    LANGUAGE plpgsql VOLATILE ROWS 500 AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT c.company_id, c.subject_id, c.slot::text, c.provider, c.due_at
      FROM leasehold_internal.calls AS c
     WHERE c.shard % parts = part AND c.state = 'queued' AND c.due_at > since AND c.due_at <= until
     ORDER BY c.due_at
     LIMIT count;
END
$$;
COMMENT ON FUNCTION leasehold_internal.due_calls(integer, integer, timestamptz, timestamptz, integer) IS
    'Calls that are due for one of several workers, oldest first';

-- When the next call is due, for a worker that has nothing to do.
CREATE FUNCTION leasehold_internal.next_due(part integer, parts integer, since timestamptz) RETURNS timestamptz
    LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN (SELECT c.due_at FROM leasehold_internal.calls AS c
             WHERE c.shard % parts = part AND c.state = 'queued' AND c.due_at > since
             ORDER BY c.due_at LIMIT 1);
END
$$;
COMMENT ON FUNCTION leasehold_internal.next_due(integer, integer, timestamptz) IS 'When the next call is due';

-- Whether a provider can tell what became of an acquire.
CREATE FUNCTION leasehold_internal.provider_looks_up(provider text) RETURNS boolean
    LANGUAGE sql STABLE AS $$
    SELECT COALESCE((SELECT p.plugin_key IS NULL OR 'environmentFindLease' = ANY (g.supported_methods)
                       FROM leasehold.providers AS p LEFT JOIN leasehold.plugins AS g ON g.key = p.plugin_key
                      WHERE p.key = provider), false)
$$;
COMMENT ON FUNCTION leasehold_internal.provider_looks_up(text) IS
    'Whether a provider can tell what became of an acquire whose outcome is unknown';

-- The time that a provider gets for its work and the time we wait for its
-- answer, in milliseconds: work_ms + 30 s <= rpc_ms, so that its side ends first.
CREATE FUNCTION leasehold_internal.call_timeouts(kind text, config jsonb, default_ms integer)
    RETURNS TABLE (work_ms bigint, rpc_ms bigint) LANGUAGE sql IMMUTABLE ROWS 1 AS $$
    SELECT w.ms, COALESCE(w.ms + 30000, CASE WHEN kind = 'initialize' THEN LEAST(default_ms, 15000) ELSE default_ms END)
      FROM (SELECT CASE WHEN kind = 'sandbox_provider' THEN GREATEST(
                       CASE WHEN pg_catalog.jsonb_typeof(config -> 'timeoutMs') = 'number'
                             AND (config ->> 'timeoutMs')::numeric > 0
                            THEN pg_catalog.trunc(LEAST((config ->> 'timeoutMs')::numeric, 86400000))::bigint END,
                       CASE WHEN pg_catalog.jsonb_typeof(config -> 'bridgeRequestTimeoutMs') = 'number'
                             AND (config ->> 'bridgeRequestTimeoutMs')::numeric > 0
                            THEN pg_catalog.trunc(LEAST((config ->> 'bridgeRequestTimeoutMs')::numeric, 86400000))::bigint END)
                   END) AS w (ms)
$$;
COMMENT ON FUNCTION leasehold_internal.call_timeouts(text, jsonb, integer) IS
    'How long a provider may work on a lease call, and how long its answer is waited for';

-- The document a provider is given back about its own resource.
CREATE FUNCTION leasehold_internal.lease_document(
        kind text, plugin_key text, provider text, agent_id uuid, workspace_mode text, config jsonb, metadata jsonb)
    RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN agent_id IS NULL THEN '{}'::jsonb ELSE pg_catalog.jsonb_build_object('agentId', agent_id) END
        || CASE WHEN kind = 'environment_driver'
           THEN pg_catalog.jsonb_build_object('providerMetadata', COALESCE(metadata, '{}'), 'driver', 'plugin',
                    'executionWorkspaceMode', workspace_mode, 'pluginKey', plugin_key, 'driverKey', provider)
           ELSE pg_catalog.jsonb_build_object('driver', 'sandbox', 'executionWorkspaceMode', workspace_mode,
                    'pluginKey', plugin_key, 'sandboxProviderPlugin', true, 'provider', provider)
                || config || COALESCE(metadata, '{}')
           END
$$;
COMMENT ON FUNCTION leasehold_internal.lease_document(text, text, text, uuid, text, jsonb, jsonb) IS
    'The leaseMetadata of a provider call';

-- The params of initialize.  Volatile: the call may be of a change of the
-- plugin that was committed after claim_calls() began, so it is read anew.
CREATE FUNCTION leasehold_internal.initialize_params(plugin text, installation_id uuid) RETURNS jsonb
    LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN (SELECT pg_catalog.jsonb_build_object('manifest', g.manifest, 'config', '{}'::jsonb, 'apiVersion', 1,
                       'instanceInfo', pg_catalog.jsonb_build_object('instanceId', installation_id, 'hostVersion', '0.1.0'))
              FROM leasehold.plugins AS g WHERE g.key = plugin);
END
$$;
COMMENT ON FUNCTION leasehold_internal.initialize_params(text, uuid) IS 'The params of a plugin''s initialize';

-- Claims calls and returns what is to be done: a method with its params, or a
-- verdict that is reached without a call ("failed" or "unknown", with code and
-- message), which the worker hands to complete_calls() like an answer.
CREATE FUNCTION leasehold_internal.claim_calls(
        epoch bigint, company_ids uuid[], subject_ids uuid[], slots text[], default_timeout_ms integer)
    RETURNS TABLE (company_id uuid, subject_id uuid, generation integer, operation text, verdict text, code text,
                   message text, plugin text, provider text, method text, attempt integer, timeout_ms bigint,
                   idempotency_key text, params text, plugin_row xid)
    LANGUAGE plpgsql VOLATILE ROWS 100 AS $$
#variable_conflict use_column
DECLARE
    v_limited boolean := EXISTS (SELECT FROM leasehold.limits AS l
                                  WHERE l.name IN ('active_leases', 'lease_starts_per_minute'));
BEGIN
    IF v_limited THEN
        PERFORM leasehold_internal.grant_starts(company_ids, subject_ids);
    END IF;
    IF EXISTS (SELECT FROM leasehold.plugins AS g WHERE g.status IN ('installed', 'error')) THEN
        PERFORM leasehold_internal.hold_unready(company_ids, subject_ids);
    END IF;

    RETURN QUERY
    WITH claimed AS (
        UPDATE leasehold_internal.calls AS c
           SET state = 'started', worker_epoch = epoch, started_at = pg_catalog.clock_timestamp(),
               attempts = c.attempts + 1, granted = true
          FROM (SELECT q.company_id, q.subject_id, q.slot, q.state, q.due_at, q.granted, q.payload, q.look_up, q.operation
                  FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(subject_ids), pg_catalog.unnest(slots))
                       AS w (company_id, subject_id, slot)
                 CROSS JOIN LATERAL (SELECT * FROM leasehold_internal.calls AS x
                                      WHERE x.company_id = w.company_id AND x.subject_id = w.subject_id AND x.slot = w.slot
                                        FOR UPDATE SKIP LOCKED) AS q) AS p
         WHERE c.company_id = p.company_id AND c.subject_id = p.subject_id AND c.slot = p.slot
           AND p.state = 'queued' AND p.due_at <= pg_catalog.clock_timestamp()
           -- one that a user had locked a moment ago was not decided on
           AND (NOT v_limited OR p.granted OR p.payload ? 'limit' OR p.look_up OR p.operation NOT IN ('acquire', 'resume'))
        RETURNING c.*
    )
    SELECT c.company_id, c.subject_id, c.generation, c.operation::text,
           v.verdict, v.code,
           CASE v.code WHEN 'environment_inactive' THEN 'the environment was archived meanwhile'
                       WHEN 'provider_unusable' THEN 'the provider''s plugin is disabled or gone'
                       WHEN 'acquire_timeout' THEN 'no resource was got in time'
                            || CASE WHEN g.status IN ('installed', 'error')
                                    THEN pg_catalog.format(': plugin "%s" is not ready', g.key)
                                    ELSE COALESCE(': ' || c.last_error, '') END
                       WHEN 'quota_exceeded' THEN pg_catalog.format('the limit %s is reached', c.payload ->> 'limit')
                       WHEN 'acquire_outcome_unknown' THEN 'the provider cannot tell what became of the request'
                       WHEN 'resource_taken' THEN 'a lease holds the resource'
                       WHEN 'subject_gone' THEN 'what the call is about is gone'
           END,
           COALESCE(p.plugin_key, c.payload ->> 'plugin')::text, c.provider, m.method, c.attempts,
           t.rpc_ms, m.idempotency_key,
           CASE WHEN v.verdict IS NULL THEN (CASE c.operation
           WHEN 'initialize' THEN
               leasehold_internal.initialize_params(c.payload ->> 'plugin', i.id)
           ELSE
               pg_catalog.jsonb_build_object(
                   'driverKey', c.provider, 'companyId', c.company_id,
                   'environmentId', COALESCE(l.environment_id, st.environment_id, (c.payload ->> 'environmentId')::uuid),
                   'issueId', l.issue_id, 'config', COALESCE(k.config, '{}'))
               || CASE WHEN m.method = 'environmentListLeases' THEN
                      pg_catalog.jsonb_build_object('cursor', c.payload -> 'cursor',
                          'leasehold', pg_catalog.jsonb_build_object('installationId', i.id))
                  ELSE pg_catalog.jsonb_build_object('leasehold',
                          pg_catalog.jsonb_build_object('installationId', i.id,
                              'leaseId', COALESCE(l.id::text, st.made_for), 'generation', c.generation,
                              'idempotencyKey', m.idempotency_key)
                          || CASE WHEN m.method IN ('environmentReleaseLease', 'environmentDestroyLease')
                             THEN pg_catalog.jsonb_build_object('disposition', COALESCE(l.disposition, 'delete'))
                             ELSE '{}' END)
                  END
               || CASE WHEN m.method IN ('environmentAcquireLease')
                  THEN pg_catalog.jsonb_build_object('runId', COALESCE(l.run_id, l.id))
                       || CASE WHEN l.agent_id IS NULL THEN '{}' ELSE pg_catalog.jsonb_build_object('agentId', l.agent_id) END
                       || CASE WHEN ws.mode IS NULL THEN '{}' ELSE pg_catalog.jsonb_build_object('workspaceMode', ws.mode) END
                       || CASE WHEN l.execution_workspace_id IS NULL THEN '{}'
                               ELSE pg_catalog.jsonb_build_object('executionWorkspaceId', l.execution_workspace_id) END
                       || CASE WHEN l.adapter_type IS NULL THEN '{}'
                               ELSE pg_catalog.jsonb_build_object('adapterType', l.adapter_type) END
                  WHEN m.method IN ('environmentResumeLease', 'environmentReleaseLease', 'environmentDestroyLease')
                  THEN pg_catalog.jsonb_build_object(
                           'providerLeaseId', COALESCE(l.provider_lease_id, st.provider_lease_id),
                           'leaseMetadata', leasehold_internal.lease_document(p.kind, p.plugin_key, c.provider,
                               l.agent_id, ws.mode, COALESCE(k.config, '{}'), md.metadata))
                       || CASE WHEN m.method = 'environmentResumeLease' AND l.agent_id IS NOT NULL
                          THEN pg_catalog.jsonb_build_object('agentId', l.agent_id) ELSE '{}' END
                  ELSE '{}' END
           END)::text END,
           -- which version of its plugin the call is for: the worker keeps a copy
           COALESCE(g.xmin, (SELECT g3.xmin FROM leasehold.plugins AS g3 WHERE g3.key = c.payload ->> 'plugin'))
      FROM claimed AS c
     CROSS JOIN (SELECT s.id FROM leasehold_internal.installation AS s LIMIT 1) AS i
      LEFT JOIN leasehold.leases AS l ON c.slot = 'op' AND l.company_id = c.company_id AND l.id = c.subject_id
      LEFT JOIN leasehold_internal.provider_resources AS st
        ON c.operation = 'destroy_stray' AND st.company_id = c.company_id AND st.stray_id = c.subject_id
      LEFT JOIN leasehold_internal.environments AS e ON e.company_id = l.company_id AND e.id = l.environment_id
      LEFT JOIN leasehold_internal.environment_configs AS k
        ON k.company_id = c.company_id
       AND k.environment_id = COALESCE(l.environment_id, st.environment_id, (c.payload ->> 'environmentId')::uuid)
       AND k.version = COALESCE(l.config_version, st.config_version, (c.payload ->> 'configVersion')::integer)
      LEFT JOIN leasehold_internal.execution_workspaces AS ws
        ON ws.company_id = l.company_id AND ws.id = l.execution_workspace_id
      LEFT JOIN leasehold.lease_metadata AS md ON md.company_id = l.company_id AND md.lease_id = l.id
      LEFT JOIN leasehold.providers AS p ON p.key = c.provider
      LEFT JOIN leasehold.plugins AS g ON g.key = p.plugin_key
     CROSS JOIN LATERAL (
        SELECT CASE
            WHEN c.operation = 'initialize' THEN 'initialize'
            WHEN c.operation = 'reconcile' THEN 'environmentListLeases'
            WHEN c.look_up THEN 'environmentFindLease'
            WHEN c.operation = 'acquire' THEN 'environmentAcquireLease'
            WHEN c.operation = 'resume' THEN 'environmentResumeLease'
            WHEN c.operation IN ('destroy', 'destroy_stray') THEN 'environmentDestroyLease'
            -- a plugin that reads reuseLease in its configuration would park what is to be deleted
            WHEN l.disposition = 'delete' AND k.config ->> 'reuseLease' = 'true' THEN 'environmentDestroyLease'
            ELSE 'environmentReleaseLease' END,
            CASE WHEN c.operation NOT IN ('initialize', 'reconcile')
                 -- with the company: callers may bring ids of their own
                 THEN c.company_id || ':' || c.subject_id || ':' || c.generation || ':' || c.operation END) AS m (method, idempotency_key)
     CROSS JOIN LATERAL (
        SELECT CASE WHEN x.code = 'acquire_outcome_unknown' THEN 'unknown' WHEN x.code IS NOT NULL THEN 'failed' END, x.code
          FROM (SELECT CASE
            WHEN c.operation IN ('initialize', 'reconcile') THEN NULL
            WHEN c.operation = 'destroy_stray' THEN CASE
                 WHEN st.stray_id IS NULL THEN 'subject_gone'
                 -- by whatever provider: several drivers may be of the same account
                 WHEN EXISTS (SELECT FROM leasehold.providers AS o
                                JOIN leasehold_internal.provider_resources AS r ON r.provider = o.key
                               WHERE r.provider_lease_id = st.provider_lease_id AND r.lease_id IS NOT NULL)
                 THEN 'resource_taken' END
            WHEN p.key IS NULL THEN 'provider_unusable'
            WHEN c.operation IN ('acquire', 'resume') AND c.payload ? 'limit' THEN 'quota_exceeded'
            WHEN c.operation = 'acquire' AND c.look_up AND NOT (p.plugin_key IS NULL
                 OR 'environmentFindLease' = ANY (g.supported_methods)) THEN 'acquire_outcome_unknown'
            WHEN c.operation = 'acquire' AND NOT c.look_up AND l.acquire_by < pg_catalog.clock_timestamp() THEN 'acquire_timeout'
            WHEN c.operation = 'acquire' AND NOT c.look_up AND e.status <> 'active' THEN 'environment_inactive'
            WHEN c.operation IN ('acquire', 'resume') AND NOT c.look_up AND g.status = 'disabled' THEN 'provider_unusable'
            END) AS x (code)) AS v (verdict, code)
     CROSS JOIN LATERAL leasehold_internal.call_timeouts(
                    CASE WHEN c.operation = 'initialize' THEN 'initialize' ELSE p.kind END, k.config,
                    default_timeout_ms) AS t;
END
$$;
COMMENT ON FUNCTION leasehold_internal.claim_calls(bigint, uuid[], uuid[], text[], integer) IS
    'Claims calls for a worker and returns what is to be sent';

-- Requests whose plugin has not answered initialize yet wait for it, as long as
-- they have time; complete_initialize() lets them go on.
CREATE FUNCTION leasehold_internal.hold_unready(company_ids uuid[], subject_ids uuid[]) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
    WITH held AS (
        UPDATE leasehold_internal.calls AS c
           SET due_at = pg_catalog.clock_timestamp() + interval '1 second', last_error = 'the plugin is not ready'
          FROM (SELECT q.company_id, q.subject_id
                  FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(subject_ids)) AS w (company_id, subject_id)
                 CROSS JOIN LATERAL (SELECT * FROM leasehold_internal.calls AS x
                                      WHERE x.company_id = w.company_id AND x.subject_id = w.subject_id AND x.slot = 'op'
                                        FOR UPDATE SKIP LOCKED) AS q
                  JOIN leasehold.leases AS l ON l.company_id = q.company_id AND l.id = q.subject_id
                  JOIN leasehold.providers AS p ON p.key = q.provider
                  JOIN leasehold.plugins AS g ON g.key = p.plugin_key
                 WHERE q.state = 'queued' AND q.operation IN ('acquire', 'resume') AND NOT q.look_up
                   AND g.status IN ('installed', 'error') AND l.acquire_by > pg_catalog.clock_timestamp()) AS n
         WHERE c.company_id = n.company_id AND c.subject_id = n.subject_id AND c.slot = 'op'
        RETURNING c.company_id, c.subject_id
    )
    UPDATE leasehold.leases AS l SET waiting_for = 'plugin'
      FROM (SELECT t.company_id, t.id FROM leasehold.leases AS t
              JOIN held AS h ON h.company_id = t.company_id AND h.subject_id = t.id
             WHERE t.waiting_for IS DISTINCT FROM 'plugin'
               FOR NO KEY UPDATE OF t SKIP LOCKED) AS n
     WHERE l.company_id = n.company_id AND l.id = n.id;
END
$$;
COMMENT ON FUNCTION leasehold_internal.hold_unready(uuid[], uuid[]) IS
    'Has requests wait whose plugin is not ready';

-- One row, locked by who grants places.  Not an advisory lock: those anybody can take.
CREATE TABLE leasehold_internal.grant_lock (
    only_one boolean PRIMARY KEY CHECK (only_one)
);
COMMENT ON TABLE leasehold_internal.grant_lock IS 'One row, locked by the worker that grants places under limits';
INSERT INTO leasehold_internal.grant_lock VALUES (true);

-- A limit's name in calls.held_by.
CREATE FUNCTION leasehold_internal.limit_key(a_limit leasehold.limits) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (a_limit).company_id::text || '/' || (a_limit).name || '/' || (a_limit).environment_id::text || '/' || (a_limit).provider;
COMMENT ON FUNCTION leasehold_internal.limit_key(leasehold.limits) IS 'Names a limit for those who wait for it';

-- How many more starts a limit allows.
CREATE FUNCTION leasehold_internal.room_of_limit(a_limit leasehold.limits) RETURNS bigint
    LANGUAGE sql VOLATILE AS $$
    SELECT (a_limit).value - CASE (a_limit).name
        WHEN 'active_leases' THEN
            leasehold_internal.occupied_slots((a_limit).company_id, (a_limit).environment_id, (a_limit).provider)
        ELSE (SELECT pg_catalog.count(*) FROM leasehold_internal.lease_starts AS s
               WHERE (a_limit).company_id IN (s.company_id, leasehold_internal.no_company())
                 AND (a_limit).environment_id IN (s.environment_id, leasehold_internal.no_company())
                 AND (a_limit).provider IN (s.provider, '')) END
$$;
COMMENT ON FUNCTION leasehold_internal.room_of_limit(leasehold.limits) IS 'How many more starts a limit allows; below zero after it was lowered';

-- Goes through requests, oldest first, and gives each a place in every limit
-- that holds for it, or in none: who must wait for one limit takes no place that
-- another needs.  held_by is the limit that has no place for it, NULL if all have;
-- the one that it waits for already, if that is still full.  A look-up asks for
-- nothing: its lease counts already.
CREATE FUNCTION leasehold_internal.fit_limits(company_ids uuid[], subject_ids uuid[])
    RETURNS TABLE (company_id uuid, subject_id uuid, environment_id uuid, provider text, acquire_by timestamptz,
                   fails boolean, name text, held_by text)
    LANGUAGE plpgsql VOLATILE ROWS 100 AS $$
#variable_conflict use_column
DECLARE
    v_keys    text[];
    v_names   text[];
    v_room    bigint[];
    v_request record;
    v_full    integer;
BEGIN
    SELECT pg_catalog.array_agg(leasehold_internal.limit_key(n.m)), pg_catalog.array_agg((n.m).name::text),
           pg_catalog.array_agg(leasehold_internal.room_of_limit(n.m))
      INTO v_keys, v_names, v_room
      FROM (SELECT DISTINCT ON (m.company_id, m.name, m.environment_id, m.provider) m
              FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(subject_ids)) AS w (company_id, subject_id)
              JOIN leasehold.leases AS l ON l.company_id = w.company_id AND l.id = w.subject_id
              JOIN leasehold.limits AS m ON leasehold_internal.limit_holds(m, l.company_id, l.environment_id, l.provider)
             WHERE m.name IN ('active_leases', 'lease_starts_per_minute')) AS n;

    FOR v_request IN
        SELECT c.company_id, c.subject_id, l.environment_id, c.provider::text AS provider, l.acquire_by,
               -- a parked resource that waits too long is parked again
               l.fail_on_limit OR c.operation = 'resume' AND l.acquire_by <= pg_catalog.clock_timestamp() AS fails,
               ARRAY(SELECT pg_catalog.array_position(v_keys, leasehold_internal.limit_key(m))
                       FROM leasehold.limits AS m
                      WHERE m.name IN ('active_leases', 'lease_starts_per_minute')
                        AND leasehold_internal.limit_holds(m, l.company_id, l.environment_id, l.provider)
                      ORDER BY leasehold_internal.limit_key(m) IS DISTINCT FROM c.held_by) AS limits
          FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(subject_ids)) AS w (company_id, subject_id)
         CROSS JOIN LATERAL (SELECT * FROM leasehold_internal.calls AS x
                              WHERE x.company_id = w.company_id AND x.subject_id = w.subject_id AND x.slot = 'op'
                                FOR UPDATE SKIP LOCKED) AS c
          JOIN leasehold.leases AS l ON l.company_id = c.company_id AND l.id = c.subject_id
         WHERE c.operation IN ('acquire', 'resume') AND NOT c.granted AND NOT c.look_up
           AND (c.state = 'waiting' OR c.state = 'queued' AND c.due_at <= pg_catalog.clock_timestamp())
         ORDER BY c.queued_at, c.subject_id
    LOOP
        v_full := NULL;
        FOR i IN 1 .. pg_catalog.cardinality(v_request.limits) LOOP
            IF v_room[v_request.limits[i]] <= 0 THEN
                v_full := v_request.limits[i];
                EXIT;
            END IF;
        END LOOP;
        IF v_full IS NULL THEN
            FOR i IN 1 .. pg_catalog.cardinality(v_request.limits) LOOP
                v_room[v_request.limits[i]] := v_room[v_request.limits[i]] - 1;
            END LOOP;
        END IF;
        company_id := v_request.company_id;
        subject_id := v_request.subject_id;
        environment_id := v_request.environment_id;
        provider := v_request.provider;
        acquire_by := v_request.acquire_by;
        fails := v_request.fails;
        name := v_names[v_full];
        held_by := v_keys[v_full];
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION leasehold_internal.fit_limits(uuid[], uuid[]) IS
    'Says for each of these requests whether the limits have a place for it, oldest first';

-- Lets those of these requests start for which the limits have a place, and has
-- the others wait; returns for how many that is news.  Whoever starts something
-- where a limit holds takes one lock, so that two cannot take the last place;
-- where there are no limits this is never called.
CREATE FUNCTION leasehold_internal.grant_starts(company_ids uuid[], subject_ids uuid[]) RETURNS integer
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_count integer;
BEGIN
    PERFORM FROM leasehold_internal.grant_lock FOR UPDATE;
    DELETE FROM leasehold_internal.lease_starts AS s
     WHERE s.started_at < pg_catalog.clock_timestamp() - interval '1 minute'
        -- before the clock was set back
        OR s.started_at > pg_catalog.clock_timestamp() + interval '1 second';

    WITH fitted AS MATERIALIZED (
        SELECT * FROM leasehold_internal.fit_limits(company_ids, subject_ids)
    ), waiting AS (
        -- a limit of starts makes room by itself; the others when a lease ends
        UPDATE leasehold_internal.calls AS c
           SET state = CASE WHEN b.fails OR b.name = 'lease_starts_per_minute' THEN 'queued' ELSE 'waiting' END,
               due_at = CASE WHEN b.fails THEN c.due_at ELSE pg_catalog.clock_timestamp() + interval '1 second' END,
               payload = CASE WHEN b.fails THEN pg_catalog.jsonb_build_object('limit', b.name) END,
               held_by = b.held_by
          FROM fitted AS b
         WHERE b.held_by IS NOT NULL AND c.company_id = b.company_id AND c.subject_id = b.subject_id AND c.slot = 'op'
           AND NOT (c.state = 'waiting' AND c.held_by = b.held_by)
        RETURNING 1
    ), deadline AS (
        INSERT INTO leasehold_internal.calls AS c (company_id, subject_id, slot, operation, shard, due_at)
        SELECT b.company_id, b.subject_id, 'timer', 'lease_deadline', leasehold_internal.shard_of(b.company_id), b.acquire_by
          FROM fitted AS b WHERE b.held_by IS NOT NULL
        -- a parked lease has one for its retention
        ON CONFLICT (company_id, subject_id, slot) DO UPDATE SET due_at = LEAST(c.due_at, excluded.due_at)
    ), granted AS (
        UPDATE leasehold_internal.calls AS c
           SET granted = true, held_by = NULL, payload = NULL, state = 'queued',
               due_at = CASE c.state WHEN 'waiting' THEN pg_catalog.clock_timestamp() ELSE c.due_at END
          FROM fitted AS k
         WHERE k.held_by IS NULL AND c.company_id = k.company_id AND c.subject_id = k.subject_id AND c.slot = 'op'
        RETURNING c.company_id, c.subject_id, k.environment_id, c.provider
    ), start AS (
        INSERT INTO leasehold_internal.lease_starts (company_id, started_at, lease_id, environment_id, provider)
        SELECT g.company_id, pg_catalog.clock_timestamp(), g.subject_id, g.environment_id, g.provider
          FROM granted AS g
         WHERE EXISTS (SELECT FROM leasehold.limits AS m WHERE m.name = 'lease_starts_per_minute')
    ), lease AS (
        UPDATE leasehold.leases AS l SET waiting_for = n.name
          FROM (SELECT t.company_id, t.id, f.name
                  FROM leasehold.leases AS t
                  JOIN fitted AS f ON t.company_id = f.company_id AND t.id = f.subject_id
                 WHERE t.waiting_for IS DISTINCT FROM f.name
                   FOR NO KEY UPDATE OF t SKIP LOCKED) AS n
         WHERE l.company_id = n.company_id AND l.id = n.id
    )
    SELECT (SELECT pg_catalog.count(*) FROM waiting) + (SELECT pg_catalog.count(*) FROM granted) INTO v_count;
    RETURN v_count;
END
$$;
COMMENT ON FUNCTION leasehold_internal.grant_starts(uuid[], uuid[]) IS
    'Decides which requests may start under the limits; returns how many were let go or have another limit to wait for';

-- Leases that count against the limit active_leases: those for which something
-- is, or may be, held at a provider.  Parked ones do not count.  It counts for
-- every company, whatever the caller sees (its owner is the worker's role): a
-- limit of the installation is about all of them, and tells nobody whose.
CREATE FUNCTION leasehold_internal.occupied_slots(company_id uuid, environment_id uuid, provider text) RETURNS bigint
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT (SELECT pg_catalog.count(*) FROM leasehold.leases AS l
             WHERE l.status IN ('active', 'releasing', 'pending_cleanup', 'irrevocable')
               AND (occupied_slots.company_id = leasehold_internal.no_company() OR l.company_id = occupied_slots.company_id)
               AND (occupied_slots.environment_id = leasehold_internal.no_company() OR l.environment_id = occupied_slots.environment_id)
               AND (occupied_slots.provider = '' OR l.provider = occupied_slots.provider))
         + (SELECT pg_catalog.count(*) FROM leasehold_internal.calls AS c
              JOIN leasehold.leases AS l ON l.company_id = c.company_id AND l.id = c.subject_id
             WHERE c.slot = 'op' AND c.operation IN ('acquire', 'resume') AND c.granted
               AND l.status IN ('acquiring', 'resuming')
               AND (occupied_slots.company_id = leasehold_internal.no_company() OR c.company_id = occupied_slots.company_id)
               AND (occupied_slots.environment_id = leasehold_internal.no_company() OR l.environment_id = occupied_slots.environment_id)
               AND (occupied_slots.provider = '' OR c.provider = occupied_slots.provider))
$$;
COMMENT ON FUNCTION leasehold_internal.occupied_slots(uuid, uuid, text) IS 'Leases that count against the limit active_leases';

-- For a request that would rather fail than wait: refuses at once when it is
-- plain that there is no place.  Two that see the same last place both pass;
-- grant_starts() then gives it to one and fails the other.
CREATE FUNCTION leasehold_internal.require_free_slot(company_id uuid, environment_id uuid, provider text) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM FROM leasehold.limits AS m
      WHERE m.name = 'active_leases'
        AND leasehold_internal.limit_holds(m, require_free_slot.company_id, require_free_slot.environment_id,
                                           require_free_slot.provider)
        AND leasehold_internal.room_of_limit(m) <= 0;
    IF FOUND THEN
        PERFORM leasehold_internal.refuse('quota_exceeded', 'the limit active_leases is reached',
            'Release a lease, ask for a higher limit, or use on_limit => ''wait''.',
            '{"limit": "active_leases"}');
    END IF;
END
$$;
COMMENT ON FUNCTION leasehold_internal.require_free_slot(uuid, uuid, text) IS
    'Refuses a request if the limit active_leases plainly leaves no place for it';

-- Gives places that have become free to those who wait for them, each limit's
-- oldest first.  One who finds that another limit is full goes over to that one's,
-- and the next is asked.  A limit that is gone holds nobody: with limits_changed
-- that is looked for, too.  For workers only: the lock makes sure that a request
-- which another worker finds no place for at this moment is either seen here, or
-- sees the place.
CREATE FUNCTION leasehold_internal.give_places(limits_changed boolean) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_companies uuid[];
    v_subjects  uuid[];
BEGIN
    PERFORM FROM leasehold_internal.grant_lock FOR UPDATE;
    LOOP
        SELECT pg_catalog.array_agg(w.company_id), pg_catalog.array_agg(w.subject_id) INTO v_companies, v_subjects
          FROM (SELECT leasehold_internal.limit_key(m) AS key, leasehold_internal.room_of_limit(m) AS room
                  FROM leasehold.limits AS m
                 WHERE m.name = 'active_leases'
                   AND EXISTS (SELECT FROM leasehold_internal.calls AS x
                                WHERE x.state = 'waiting' AND x.held_by = leasehold_internal.limit_key(m))
                OFFSET 0) AS r
         CROSS JOIN LATERAL (SELECT x.company_id, x.subject_id FROM leasehold_internal.calls AS x
                              WHERE x.state = 'waiting' AND x.held_by = r.key
                              ORDER BY x.queued_at LIMIT CASE WHEN r.room > 0 THEN 500 ELSE 0 END
                                FOR UPDATE SKIP LOCKED) AS w;
        EXIT WHEN v_companies IS NULL OR leasehold_internal.grant_starts(v_companies, v_subjects) = 0;
    END LOOP;
    WHILE limits_changed LOOP
        SELECT pg_catalog.array_agg(w.company_id), pg_catalog.array_agg(w.subject_id) INTO v_companies, v_subjects
          FROM (SELECT x.company_id, x.subject_id FROM leasehold_internal.calls AS x
                 WHERE x.state = 'waiting'
                   AND NOT EXISTS (SELECT FROM leasehold.limits AS m WHERE leasehold_internal.limit_key(m) = x.held_by)
                 ORDER BY x.queued_at LIMIT 500
                   FOR UPDATE SKIP LOCKED) AS w;
        EXIT WHEN v_companies IS NULL OR leasehold_internal.grant_starts(v_companies, v_subjects) = 0;
    END LOOP;
END
$$;
COMMENT ON FUNCTION leasehold_internal.give_places(boolean) IS 'Gives places that have become free to those who wait for them';

-- Has a worker do that once the transaction has committed.  Users do not do it
-- themselves: a worker that is just finding no place for a request would not be
-- seen, and the request would wait for a place that is free.
CREATE FUNCTION leasehold_internal.announce_places(company_id uuid) RETURNS void
    LANGUAGE sql VOLATILE AS $$
    INSERT INTO leasehold_internal.calls (company_id, subject_id, slot, operation, shard)
    VALUES (announce_places.company_id, leasehold.new_id(), 'timer', 'places',
            leasehold_internal.shard_of(announce_places.company_id))
$$;
COMMENT ON FUNCTION leasehold_internal.announce_places(uuid) IS
    'Says that there may be places for requests that wait';
-- 41_completion.sql: what an answer, or its absence, does to a lease.
--
-- Outcomes, as the worker classifies them:
--   ok         the provider did it
--   gone       there is no such resource (any more)
--   retry      known not to have been done; may work later
--   throttled  the same, and the provider says so itself (429, 503): not a failed
--              try, though the pauses grow
--   failed     known not to have been done, and will not be
--   unknown    it may have been done: cut, timed out, garbage, a crash

CREATE FUNCTION leasehold_internal.backoff(attempts integer, base_ms integer, most_ms integer) RETURNS interval
    LANGUAGE sql VOLATILE AS $$
    SELECT pg_catalog.make_interval(secs =>
        LEAST(base_ms * pg_catalog.power(2, LEAST(GREATEST(attempts, 1) - 1, 30)), most_ms) / 1000.0
        * (0.5 + pg_catalog.random()))
$$;
COMMENT ON FUNCTION leasehold_internal.backoff(integer, integer, integer) IS
    'The pause before a retry: doubled each time up to a limit, give or take half';

-- Longer if the provider asks for it, but no longer than a day.
CREATE FUNCTION leasehold_internal.retry_pause(attempts integer, base_ms integer, most_ms integer, retry_after_ms bigint)
    RETURNS interval LANGUAGE sql VOLATILE AS $$
    SELECT GREATEST(leasehold_internal.backoff(attempts, base_ms, most_ms),
                    pg_catalog.make_interval(secs => LEAST(retry_after_ms, 86400000) / 1000.0))
$$;
COMMENT ON FUNCTION leasehold_internal.retry_pause(integer, integer, integer, bigint) IS
    'The pause before a retry that the provider may have asked to come later';

-- The one place where an outcome becomes a decision.
--   activate   the lease has its resource
--   dispose    it has one, but is to end: release it
--   reacquire  the parked resource is of no use: get a new one
--   look_up    find out what became of the request
--   again      the request is known to have had no effect: send it again
--   later      try the same again after a pause
--   cleanup    could not be removed yet: try again after a pause
--   fail       the request has failed
--   end        over, with nothing left at the provider but what was parked
--   park       the limits leave no place to take the parked resource into use
--   irrevocable
CREATE FUNCTION leasehold_internal.decide(
        operation text, look_up boolean, outcome text, status text, attempts integer, in_time boolean,
        looks_up boolean, acquire_attempts integer, cleanup_attempts integer)
    RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE operation
    WHEN 'acquire' THEN CASE
        WHEN outcome = 'ok' THEN CASE WHEN status = 'acquiring' THEN 'activate' ELSE 'dispose' END
        WHEN look_up THEN CASE
            WHEN outcome = 'gone' THEN CASE WHEN status <> 'acquiring' THEN 'end' WHEN in_time THEN 'again' ELSE 'fail' END
            WHEN outcome = 'throttled' OR attempts < cleanup_attempts THEN 'later'
            ELSE 'irrevocable' END
        WHEN outcome = 'unknown' THEN CASE WHEN looks_up THEN 'look_up' ELSE 'irrevocable' END
        WHEN status <> 'acquiring' THEN 'end'
        WHEN outcome = 'failed' OR outcome = 'gone' OR NOT in_time THEN 'fail'
        WHEN outcome = 'throttled' OR attempts < acquire_attempts THEN 'later'
        ELSE 'fail' END
    WHEN 'resume' THEN CASE
        WHEN status <> 'resuming' THEN CASE WHEN outcome = 'gone' THEN 'end' ELSE 'dispose' END
        WHEN outcome = 'ok' THEN 'activate'
        WHEN outcome = 'throttled' AND in_time THEN 'later'
        WHEN outcome IN ('retry', 'unknown') AND in_time AND attempts < acquire_attempts THEN 'later'
        ELSE 'reacquire' END
    ELSE CASE
        WHEN outcome IN ('ok', 'gone') THEN 'end'
        WHEN outcome = 'failed' THEN 'irrevocable'
        WHEN outcome = 'throttled' OR attempts < cleanup_attempts THEN 'cleanup'
        ELSE 'irrevocable' END
    END
$$;
COMMENT ON FUNCTION leasehold_internal.decide(text, boolean, text, text, integer, boolean, boolean, integer, integer) IS
    'What an outcome means for a lease';

-- Notes which leases hold these resources.  One that another lease holds, or that
-- is to be removed, is not this lease's.  Who holds one without having committed
-- decides for that resource alone: returns the places in the arrays of those that
-- it has to be waited for.
CREATE FUNCTION leasehold_internal.claim_resources(
        providers text[], provider_lease_ids text[], company_ids uuid[], lease_ids uuid[])
    RETURNS integer[] LANGUAGE plpgsql VOLATILE
    SET lock_timeout = '2ms' AS $$
#variable_conflict use_column
DECLARE
    v_busy integer[] := '{}';
BEGIN
    BEGIN
        INSERT INTO leasehold_internal.provider_resources (provider, provider_lease_id, company_id, lease_id)
        SELECT * FROM ROWS FROM (pg_catalog.unnest(providers), pg_catalog.unnest(provider_lease_ids),
                                 pg_catalog.unnest(company_ids), pg_catalog.unnest(lease_ids))
        ON CONFLICT DO NOTHING;
        RETURN v_busy;
    EXCEPTION WHEN lock_not_available THEN
        NULL;  -- then one by one
    END;
    FOR i IN 1 .. pg_catalog.cardinality(lease_ids) LOOP
        BEGIN
            INSERT INTO leasehold_internal.provider_resources (provider, provider_lease_id, company_id, lease_id)
            VALUES (providers[i], provider_lease_ids[i], company_ids[i], lease_ids[i])
            ON CONFLICT DO NOTHING;
        EXCEPTION WHEN lock_not_available THEN
            v_busy := v_busy || i;
        END;
    END LOOP;
    RETURN v_busy;
END
$$;
COMMENT ON FUNCTION leasehold_internal.claim_resources(text[], text[], uuid[], uuid[]) IS
    'Notes which leases hold these resources; returns the places of those that cannot be decided yet';

-- Applies answers.  Returns for each what became of it: applied; locked (by a
-- user: hand it in again a little later); or stale (it is of an older
-- generation or epoch, and was ignored).  ended says that a place became free.
CREATE FUNCTION leasehold_internal.complete_calls(
        epoch bigint, company_ids uuid[], subject_ids uuid[], generations integer[], outcomes text[],
        provider_lease_ids text[], metadatas text[], expirations timestamptz[], codes text[], messages text[],
        retry_after_ms bigint[], base_ms integer, most_ms integer, acquire_attempts integer, cleanup_attempts integer)
    RETURNS TABLE (company_id uuid, subject_id uuid, applied text, ended boolean)
    LANGUAGE plpgsql VOLATILE ROWS 100 AS $$
#variable_conflict use_column
DECLARE
    v_locked   smallint[];
    v_got      record;
    v_busy     integer;
    v_ceilings boolean := EXISTS (SELECT FROM leasehold.limits AS m WHERE m.name = 'lease_ttl_max');
BEGIN
    -- first the locks, then, in a later snapshot, the rows
    -- (1: locked; 0: somebody else has it locked; NULL: there is no such lease)
    SELECT pg_catalog.array_agg(CASE WHEN l.id IS NOT NULL THEN 1 WHEN e.id IS NOT NULL THEN 0 END ORDER BY w.nr)
      INTO v_locked
      FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(subject_ids)) WITH ORDINALITY AS w (company_id, id, nr)
      LEFT JOIN LATERAL (SELECT x.id FROM leasehold.leases AS x
                          WHERE x.company_id = w.company_id AND x.id = w.id
                            FOR NO KEY UPDATE SKIP LOCKED) AS l ON true
      LEFT JOIN LATERAL (SELECT x.id FROM leasehold.leases AS x
                          WHERE l.id IS NULL AND x.company_id = w.company_id AND x.id = w.id OFFSET 0) AS e ON true;

    SELECT pg_catalog.array_agg(a.nr::integer) AS places, pg_catalog.array_agg(l.provider::text) AS providers,
           pg_catalog.array_agg(a.provider_lease_id) AS resources,
           pg_catalog.array_agg(l.company_id) AS companies, pg_catalog.array_agg(l.id) AS ids
      INTO v_got
      FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(subject_ids), pg_catalog.unnest(generations),
                      pg_catalog.unnest(outcomes), pg_catalog.unnest(provider_lease_ids), pg_catalog.unnest(v_locked))
           WITH ORDINALITY AS a (company_id, id, generation, outcome, provider_lease_id, locked, nr)
     CROSS JOIN LATERAL (SELECT * FROM leasehold.leases AS x
                          WHERE x.company_id = a.company_id AND x.id = a.id OFFSET 0) AS l
     CROSS JOIN LATERAL (SELECT * FROM leasehold_internal.calls AS x
                          WHERE x.company_id = a.company_id AND x.subject_id = a.id AND x.slot = 'op' OFFSET 0) AS c
     WHERE a.locked = 1 AND a.outcome = 'ok' AND a.provider_lease_id IS NOT NULL AND l.generation = a.generation
       AND (c.operation = 'acquire' OR c.operation = 'resume' AND a.provider_lease_id <> l.provider_lease_id)
       AND c.state = 'started' AND c.worker_epoch = epoch;
    IF v_got.places IS NOT NULL THEN
        FOREACH v_busy IN ARRAY leasehold_internal.claim_resources(v_got.providers, v_got.resources, v_got.companies,
                                                                   v_got.ids) LOOP
            v_locked[v_got.places[v_busy]] := 0;
        END LOOP;
    END IF;

    RETURN QUERY
    WITH found AS MATERIALIZED (
        SELECT a.company_id, a.id, a.generation, a.provider_lease_id, a.metadata, a.expires_at, a.retry_after_ms,
               CASE WHEN o.other THEN 'failed' ELSE a.outcome END AS outcome,
               CASE WHEN o.other THEN 'another_resource' ELSE a.code END AS code,
               CASE WHEN o.other THEN pg_catalog.format('the provider answered with another resource, "%s"', a.provider_lease_id)
                    ELSE a.message END AS message,
               l.status AS old_status, l.provider, l.provider_lease_id AS old_resource,
               c.operation, c.look_up, c.attempts, c.attempts - c.throttled AS tries, c.last_error,
               CASE WHEN c.operation = 'acquire' AND a.outcome = 'ok' AND l.policy = 'reuse_by_environment'
                         AND l.adapter_type IS NULL
                    THEN COALESCE(pg_catalog.left(a.metadata::jsonb ->> 'adapterType', 200), '') END AS new_adapter,
               COALESCE(c.payload ? 'destroy', false) AS then_destroy, COALESCE(c.payload ? 'limit', false) AS no_place,
               -- what was destroyed is not parked, even if it should have been
               c.operation = 'release' AND a.outcome = 'ok' AND l.end_status = 'retained' AS parked,
               -- during a look-up the lease remembers how often it was asked for
               (l.acquire_by IS NULL OR l.acquire_by > pg_catalog.clock_timestamp())
               AND (NOT c.look_up OR l.attempts < acquire_attempts) AS in_time,
               CASE WHEN a.outcome = 'unknown' THEN leasehold_internal.provider_looks_up(l.provider) END AS looks_up,
               CASE WHEN a.outcome = 'ok' AND c.operation = 'acquire' AND a.provider_lease_id IS NOT NULL THEN
                    NOT EXISTS (SELECT FROM leasehold_internal.provider_resources AS r
                                 WHERE r.provider = l.provider AND r.provider_lease_id = a.provider_lease_id
                                   AND r.company_id = l.company_id AND r.lease_id = l.id) END AS taken
          FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(subject_ids), pg_catalog.unnest(generations),
                          pg_catalog.unnest(outcomes), pg_catalog.unnest(provider_lease_ids), pg_catalog.unnest(metadatas),
                          pg_catalog.unnest(expirations), pg_catalog.unnest(codes), pg_catalog.unnest(messages),
                          pg_catalog.unnest(retry_after_ms), pg_catalog.unnest(v_locked))
               AS a (company_id, id, generation, outcome, provider_lease_id, metadata, expires_at, code, message,
                     retry_after_ms, locked)
         CROSS JOIN LATERAL (SELECT * FROM leasehold.leases AS x
                              WHERE x.company_id = a.company_id AND x.id = a.id OFFSET 0) AS l
         CROSS JOIN LATERAL (SELECT * FROM leasehold_internal.calls AS x
                              WHERE x.company_id = a.company_id AND x.subject_id = a.id AND x.slot = 'op' OFFSET 0) AS c
         -- a resumed resource is the one that was parked, not some other, which may be somebody else's
         CROSS JOIN LATERAL (SELECT c.operation = 'resume' AND a.outcome = 'ok'
                                    AND a.provider_lease_id IS DISTINCT FROM l.provider_lease_id AS other) AS o
         WHERE a.locked = 1 AND l.generation = a.generation AND c.state = 'started' AND c.worker_epoch = epoch
    ), answer AS (
        SELECT f.*, leasehold_internal.decide(f.operation, f.look_up, f.outcome, f.old_status, f.tries, f.in_time,
                   f.looks_up, acquire_attempts, cleanup_attempts) AS decision
          FROM found AS f
    ), step AS MATERIALIZED (
        -- a taken resource is somebody else's: the request failed, and it must not be removed
        SELECT a.*, CASE WHEN a.taken AND a.operation = 'acquire' AND a.outcome = 'ok'
                         THEN CASE WHEN a.old_status = 'acquiring' THEN 'fail' ELSE 'end' END
                         -- it was parked, but is to be deleted meanwhile
                         WHEN a.then_destroy AND a.decision = 'end' AND a.outcome = 'ok' THEN 'dispose'
                         -- it could be resumed, if only there were a place for it
                         WHEN a.no_place AND a.decision = 'reacquire' THEN 'park'
                         ELSE a.decision END AS step,
               pg_catalog.clock_timestamp()
               + leasehold_internal.retry_pause(a.attempts, base_ms, most_ms, a.retry_after_ms) AS later
          FROM answer AS a
    ), lease AS (
        UPDATE leasehold.leases AS l
           SET status = CASE s.step
                   WHEN 'activate' THEN 'active'
                   WHEN 'dispose' THEN CASE WHEN l.status = 'pending_cleanup' THEN 'pending_cleanup' ELSE 'releasing' END
                   WHEN 'reacquire' THEN 'acquiring'
                   WHEN 'cleanup' THEN 'pending_cleanup'
                   WHEN 'fail' THEN 'failed'
                   WHEN 'irrevocable' THEN 'irrevocable'
                   WHEN 'park' THEN 'retained'
                   WHEN 'end' THEN CASE WHEN l.end_status = 'retained' AND NOT s.parked THEN 'released'
                                        ELSE COALESCE(l.end_status, 'released') END
                   ELSE l.status END,
               generation = l.generation + CASE WHEN s.step = 'reacquire' THEN 1 ELSE 0 END,
               -- what nobody could take into use again is not parked
               adapter_type = COALESCE(NULLIF(s.new_adapter, ''), l.adapter_type),
               policy = CASE WHEN l.policy = 'reuse_by_environment' AND s.operation = 'acquire' AND s.outcome = 'ok'
                                  AND s.provider_lease_id IS NULL THEN 'ephemeral'
                             WHEN s.new_adapter = '' AND EXISTS (
                                   SELECT FROM leasehold.providers AS p
                                    WHERE p.key = l.provider AND p.plugin_key IS NOT NULL)
                             THEN 'ephemeral' ELSE l.policy END,
               provider_lease_id = CASE WHEN s.taken THEN NULL
                   WHEN s.outcome = 'ok' AND s.operation = 'acquire' THEN s.provider_lease_id
                   WHEN s.outcome = 'ok' AND s.step = 'activate' THEN COALESCE(s.provider_lease_id, l.provider_lease_id)
                   WHEN s.step = 'reacquire' THEN NULL ELSE l.provider_lease_id END,
               acquired_at = CASE s.step WHEN 'activate' THEN pg_catalog.clock_timestamp()
                                         WHEN 'reacquire' THEN NULL ELSE l.acquired_at END,
               last_used_at = CASE WHEN s.step = 'activate' THEN pg_catalog.clock_timestamp() ELSE l.last_used_at END,
               provider_expires_at = CASE WHEN s.outcome = 'ok' AND s.step IN ('activate', 'dispose') THEN s.expires_at
                                          ELSE l.provider_expires_at END,
               -- a parked resource waits for its next use as long as a lease may live
               expires_at = CASE WHEN s.step = 'end' AND s.parked THEN
                   pg_catalog.clock_timestamp()
                   + CASE WHEN v_ceilings THEN leasehold_internal.ttl_ceiling(l.company_id, l.environment_id, l.provider)
                          ELSE interval '24 hours' END
                   WHEN s.step = 'activate' THEN
                   LEAST(pg_catalog.clock_timestamp()
                         + LEAST(l.ttl, CASE WHEN v_ceilings THEN leasehold_internal.ttl_ceiling(l.company_id, l.environment_id, l.provider)
                                         ELSE interval '24 hours' END),
                         s.expires_at)
                   ELSE l.expires_at END,
               end_status = CASE WHEN s.step = 'park' THEN 'retained'
                                 WHEN s.step IN ('fail', 'irrevocable') THEN COALESCE(l.end_status, 'failed') ELSE l.end_status END,
               -- what is found after all was asked for by somebody who has given up
               disposition = CASE WHEN s.step = 'park' THEN 'stop'
                                  WHEN s.step = 'irrevocable' THEN COALESCE(l.disposition, 'delete') ELSE l.disposition END,
               ended_at = CASE WHEN s.step IN ('fail', 'end', 'park') THEN pg_catalog.clock_timestamp() ELSE l.ended_at END,
               cleanup_status = CASE WHEN s.step IN ('end', 'park') THEN 'success'
                                     WHEN s.step IN ('cleanup', 'irrevocable') THEN 'failed' ELSE l.cleanup_status END,
               failure_code = CASE WHEN s.taken THEN 'resource_taken'
                                   WHEN s.step = 'fail' AND s.look_up THEN 'lease_acquire_failed'
                                   WHEN s.step IN ('fail', 'cleanup', 'irrevocable', 'reacquire', 'park')
                                        THEN COALESCE(CASE WHEN s.step = 'irrevocable' AND s.operation = 'acquire'
                                                           THEN 'acquire_outcome_unknown' END, s.code, l.failure_code)
                                   WHEN s.step = 'activate' THEN NULL ELSE l.failure_code END,
               failure_reason = CASE WHEN s.taken THEN 'the provider answered with a resource that another lease holds or that is to be removed'
                                     WHEN s.step = 'fail' AND s.look_up THEN COALESCE(s.last_error, s.message)
                                     WHEN s.step IN ('fail', 'cleanup', 'irrevocable', 'park') AND l.failure_reason IS NULL
                                          THEN s.message
                                     WHEN s.step = 'activate' THEN NULL ELSE l.failure_reason END,
               attempts = CASE WHEN s.step IN ('again', 'later') AND s.look_up THEN l.attempts
                               WHEN s.step = 'look_up' THEN s.tries
                               WHEN s.step IN ('later', 'cleanup') THEN s.attempts ELSE 0 END,
               waiting_for = CASE WHEN s.step IN ('later', 'look_up', 'cleanup')
                                  THEN pg_catalog.concat_ws(': ', 'retry', s.code) END
          FROM step AS s
         WHERE l.company_id = s.company_id AND l.id = s.id
        RETURNING l.*, s.step, s.outcome, s.operation, s.code, s.message, s.metadata, s.old_status, s.old_resource, s.later,
                  s.attempts AS attempt, s.generation AS old_generation
    ), done AS (
        DELETE FROM leasehold_internal.calls AS c
         USING lease AS l
         WHERE c.company_id = l.company_id AND c.subject_id = l.id
           AND (c.slot = 'op' AND l.step IN ('activate', 'fail', 'end', 'irrevocable', 'park')
                OR c.slot = 'timer' AND l.step IN ('fail', 'end', 'irrevocable', 'dispose') AND l.status <> 'retained')
    ), next AS (
        UPDATE leasehold_internal.calls AS c
           SET state = 'queued', worker_epoch = NULL, generation = l.generation,
               operation = CASE WHEN c.payload ? 'destroy' THEN 'destroy' ELSE CASE l.step
                   WHEN 'dispose' THEN CASE WHEN l.disposition = 'delete' AND l.policy <> 'ephemeral' THEN 'destroy' ELSE 'release' END
                   WHEN 'reacquire' THEN 'acquire' ELSE c.operation END END,
               payload = CASE WHEN c.payload ? 'destroy' THEN NULL ELSE c.payload END,
               look_up = CASE l.step WHEN 'look_up' THEN true WHEN 'later' THEN c.look_up ELSE false END,
               attempts = CASE WHEN l.step IN ('dispose', 'reacquire', 'look_up') THEN 0
                               WHEN l.step = 'again' THEN l.attempts ELSE c.attempts END,
               throttled = CASE WHEN l.step IN ('dispose', 'reacquire', 'look_up', 'again') THEN 0
                                WHEN l.outcome = 'throttled' THEN c.throttled + 1 ELSE c.throttled END,
               -- a look that went well says nothing about the request that it is for
               crashes = CASE WHEN l.step IN ('dispose', 'reacquire') THEN 0 ELSE c.crashes END,
               last_error = CASE WHEN l.step = 'again' THEN c.last_error ELSE pg_catalog.left(l.message, 500) END,
               -- a request does not wait longer than it may live
               due_at = CASE WHEN l.step = 'later' AND l.operation IN ('acquire', 'resume') AND NOT c.look_up
                             THEN LEAST(l.later, GREATEST(l.acquire_by, pg_catalog.clock_timestamp()))
                             WHEN l.step IN ('later', 'look_up', 'cleanup') THEN l.later
                             ELSE pg_catalog.clock_timestamp() END
          FROM lease AS l
         WHERE c.company_id = l.company_id AND c.subject_id = l.id AND c.slot = 'op'
           AND l.step IN ('dispose', 'reacquire', 'look_up', 'again', 'later', 'cleanup')
    ), timer AS (
        INSERT INTO leasehold_internal.calls AS c (company_id, subject_id, slot, operation, shard, due_at, generation)
        SELECT l.company_id, l.id, 'timer', 'lease_deadline', leasehold_internal.shard_of(l.company_id),
               leasehold_internal.lease_deadline(l.status, l.expires_at, l.last_used_at, l.idle_timeout), l.generation
          FROM lease AS l WHERE l.step = 'activate' OR l.status = 'retained'
        ON CONFLICT (company_id, subject_id, slot) DO UPDATE SET due_at = excluded.due_at, state = 'queued'
    ), stray AS (
        -- a parked resource that could not be resumed, and one that came in its stead, are removed on their own
        UPDATE leasehold_internal.provider_resources AS r
           SET lease_id = NULL, stray_id = leasehold.new_id(), environment_id = l.environment_id,
               config_version = l.config_version, made_for = l.id::text, generation = l.old_generation,
               reason = CASE WHEN r.provider_lease_id = l.old_resource THEN 'resume_failed' ELSE 'resumed_instead' END
          FROM lease AS l
         WHERE l.operation = 'resume' AND r.company_id = l.company_id AND r.lease_id = l.id
           AND (l.step = 'reacquire' AND l.outcome <> 'gone' OR r.provider_lease_id <> l.old_resource)
        RETURNING r.*
    ), removal AS (
        INSERT INTO leasehold_internal.calls (company_id, subject_id, slot, operation, provider, shard, generation)
        SELECT r.company_id, r.stray_id, 'op', 'destroy_stray', r.provider, leasehold_internal.shard_of(r.company_id),
               r.generation
          FROM stray AS r
    ), stray_event AS (
        INSERT INTO leasehold.audit_events (company_id, action, entity_type, entity_id, details)
        SELECT r.company_id, 'environment.stray_found', 'provider_resource', r.provider_lease_id,
               leasehold_internal.stray_details(r)
          FROM stray AS r
    ), freed AS (
        DELETE FROM leasehold_internal.provider_resources AS r
         USING lease AS l
         WHERE r.company_id = l.company_id AND r.lease_id = l.id
           AND (l.step = 'end' AND l.status <> 'retained' OR l.step = 'reacquire' AND l.outcome = 'gone')
    ), metadata AS (
        INSERT INTO leasehold.lease_metadata AS m (company_id, lease_id, metadata)
        SELECT l.company_id, l.id, l.metadata::jsonb
          FROM lease AS l
         WHERE l.metadata IS NOT NULL AND l.outcome = 'ok' AND l.step IN ('activate', 'dispose')
        ON CONFLICT (company_id, lease_id) DO UPDATE SET metadata = excluded.metadata, updated_at = pg_catalog.now()
    ), event AS (
        INSERT INTO leasehold.audit_events
               (company_id, action, entity_type, entity_id, agent_id, issue_id, run_id, details)
        SELECT l.company_id,
               CASE l.step WHEN 'activate' THEN CASE WHEN l.operation = 'resume' THEN 'environment.lease_resumed'
                                                     ELSE 'environment.lease_acquired' END
                           WHEN 'end' THEN 'environment.lease_released'
                           WHEN 'fail' THEN 'environment.lease_failed'
                           WHEN 'irrevocable' THEN 'environment.lease_irrevocable'
                           WHEN 'cleanup' THEN 'environment.lease_cleanup_failed'
                           WHEN 'look_up' THEN 'environment.lease_outcome_unknown'
                           WHEN 'reacquire' THEN 'environment.lease_resume_failed'
                           WHEN 'park' THEN 'environment.lease_resume_failed'
                           ELSE 'environment.lease_call_failed' END,
               'environment_lease', l.id::text, l.agent_id, l.issue_id, l.run_id,
               CASE WHEN l.step = 'activate'
               THEN pg_catalog.jsonb_build_object('environmentId', l.environment_id, 'provider', l.provider,
                        'leasePolicy', l.policy, 'executionWorkspaceId', l.execution_workspace_id,
                        'issueId', l.issue_id, 'generation', l.generation, 'providerLeaseId', l.provider_lease_id)
               ELSE pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object('environmentId', l.environment_id,
                        'provider', l.provider, 'leasePolicy', l.policy,
                        'executionWorkspaceId', l.execution_workspace_id, 'issueId', l.issue_id,
                        'generation', l.generation, 'status', l.status, 'cleanupStatus', l.cleanup_status,
                        'failureCode', CASE WHEN l.step = 'end' THEN l.failure_code ELSE COALESCE(l.failure_code, l.code) END,
                        'failureReason', CASE WHEN l.step = 'end' THEN l.failure_reason ELSE COALESCE(l.message, l.failure_reason) END))
               END
          FROM lease AS l
         -- of a series of failing tries the first is told
         WHERE l.step IN ('activate', 'end', 'fail', 'irrevocable', 'look_up', 'reacquire', 'park')
            OR l.attempt = 1 AND l.step IN ('later', 'cleanup')
    )
    SELECT a.company_id, a.id,
           CASE WHEN l.id IS NOT NULL THEN 'applied'
                WHEN a.locked = 0 THEN 'locked'
                ELSE 'stale' END,
           COALESCE(l.step IN ('end', 'fail', 'park'), false)
      FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(subject_ids), pg_catalog.unnest(v_locked))
           AS a (company_id, id, locked)
      LEFT JOIN lease AS l ON l.company_id = a.company_id AND l.id = a.id;
END
$$;
COMMENT ON FUNCTION leasehold_internal.complete_calls(bigint, uuid[], uuid[], integer[], text[], text[], text[],
        timestamptz[], text[], text[], bigint[], integer, integer, integer, integer) IS
    'Applies answers to leases, with their next calls, deadlines and events, in one statement';

-- Answers about resources that no lease claims.  There is no lease that could
-- be irrevocable, so the removal is tried on at long intervals; doctor() tells.
CREATE FUNCTION leasehold_internal.complete_strays(
        epoch bigint, company_ids uuid[], subject_ids uuid[], outcomes text[], messages text[],
        retry_after_ms bigint[], base_ms integer, most_ms integer, cleanup_attempts integer)
    RETURNS void LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
    WITH answer AS (
        SELECT c.company_id, c.subject_id, c.attempts, c.provider, r.provider_lease_id, a.message, a.retry_after_ms,
               leasehold_internal.stray_details(r) AS details,
               -- without its row there is nothing to remove
               a.outcome IN ('ok', 'gone') OR r.stray_id IS NULL AS over
          FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(subject_ids), pg_catalog.unnest(outcomes),
                          pg_catalog.unnest(messages), pg_catalog.unnest(retry_after_ms))
               AS a (company_id, id, outcome, message, retry_after_ms)
         CROSS JOIN LATERAL (SELECT * FROM leasehold_internal.calls AS x
                              WHERE x.company_id = a.company_id AND x.subject_id = a.id AND x.slot = 'op' OFFSET 0) AS c
          LEFT JOIN leasehold_internal.provider_resources AS r ON r.company_id = c.company_id AND r.stray_id = c.subject_id
         WHERE c.operation = 'destroy_stray' AND c.state = 'started' AND c.worker_epoch = epoch
    ), done AS (
        DELETE FROM leasehold_internal.calls AS c USING answer AS a
         WHERE a.over AND c.company_id = a.company_id AND c.subject_id = a.subject_id AND c.slot = 'op'
    ), gone AS (
        DELETE FROM leasehold_internal.provider_resources AS r USING answer AS a
         WHERE a.over AND r.company_id = a.company_id AND r.stray_id = a.subject_id
        RETURNING a.company_id, a.provider_lease_id, a.details
    ), later AS (
        UPDATE leasehold_internal.calls AS c
           SET state = 'queued', worker_epoch = NULL, crashes = 0,
               due_at = pg_catalog.clock_timestamp()
                        + leasehold_internal.retry_pause(a.attempts, base_ms, most_ms, a.retry_after_ms),
               last_error = pg_catalog.left(a.message, 500)
          FROM answer AS a
         WHERE NOT a.over AND c.company_id = a.company_id AND c.subject_id = a.subject_id AND c.slot = 'op'
    )
    INSERT INTO leasehold.audit_events (company_id, action, entity_type, entity_id, details)
    SELECT g.company_id, 'environment.stray_removed', 'provider_resource', g.provider_lease_id, g.details
      FROM gone AS g
    UNION ALL
    SELECT a.company_id, 'environment.stray_not_removed', 'provider_resource', a.provider_lease_id,
           a.details || pg_catalog.jsonb_build_object('failureReason', a.message)
      FROM answer AS a WHERE NOT a.over AND a.attempts = cleanup_attempts;
END
$$;
COMMENT ON FUNCTION leasehold_internal.complete_strays(bigint, uuid[], uuid[], text[], text[], bigint[], integer, integer,
                                                      integer) IS
    'Applies answers about resources that no lease claims';

-- A plugin's answer to initialize.  Returns what became of it, as
-- complete_calls() does.  The plugin is locked before the call, as by those who
-- change it.
CREATE FUNCTION leasehold_internal.complete_initialize(
        epoch bigint, subject_id uuid, generation integer, outcome text, supported_methods text[], message text,
        retry_after_ms bigint, base_ms integer, most_ms integer)
    RETURNS text LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_call   leasehold_internal.calls;
    v_key    text;
    v_status text;
BEGIN
    SELECT c.payload ->> 'plugin' INTO v_key FROM leasehold_internal.calls AS c
     WHERE c.company_id = leasehold_internal.no_company() AND c.subject_id = complete_initialize.subject_id
       AND c.slot = 'op';
    SELECT p.status INTO v_status FROM leasehold.plugins AS p WHERE p.key = v_key FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND AND EXISTS (SELECT FROM leasehold.plugins AS p WHERE p.key = v_key) THEN
        RETURN 'locked';
    END IF;
    SELECT c.* INTO v_call FROM leasehold_internal.calls AS c
     WHERE c.company_id = leasehold_internal.no_company() AND c.subject_id = complete_initialize.subject_id
       AND c.slot = 'op' AND c.state = 'started' AND c.worker_epoch = epoch
       AND c.generation = complete_initialize.generation FOR UPDATE;
    IF NOT FOUND THEN
        RETURN 'stale';
    END IF;
    IF outcome = 'ok' OR v_status = 'disabled' THEN
        UPDATE leasehold.plugins AS p
           SET status = 'ready', last_error = NULL, ready_at = pg_catalog.now(),
               supported_methods = complete_initialize.supported_methods
         WHERE p.key = v_key AND outcome = 'ok' AND p.status <> 'disabled';
        DELETE FROM leasehold_internal.calls AS c
         WHERE c.company_id = v_call.company_id AND c.subject_id = v_call.subject_id AND c.slot = 'op';
    END IF;
    IF outcome = 'ok' AND v_status <> 'disabled' THEN
        -- requests that waited for this
        UPDATE leasehold_internal.calls AS c SET due_at = pg_catalog.clock_timestamp()
          FROM (SELECT q.company_id, q.subject_id
                  FROM leasehold_internal.calls AS q JOIN leasehold.providers AS p ON p.key = q.provider
                 WHERE p.plugin_key = v_key AND q.slot = 'op' AND q.state = 'queued' AND q.attempts = 0
                   AND q.operation IN ('acquire', 'resume')
                   FOR UPDATE OF q SKIP LOCKED) AS w
         WHERE c.company_id = w.company_id AND c.subject_id = w.subject_id AND c.slot = 'op';
        PERFORM leasehold_internal.record(leasehold_internal.no_company(), 'plugin.ready', 'plugin', v_key,
            pg_catalog.jsonb_build_object('supportedMethods', complete_initialize.supported_methods));
    ELSIF outcome <> 'ok' AND v_status <> 'disabled' THEN
        UPDATE leasehold.plugins AS p
           SET status = 'error', last_error = pg_catalog.left(complete_initialize.message, 500)
         WHERE p.key = v_key;
        UPDATE leasehold_internal.calls AS c
           SET state = 'queued', crashes = 0, last_error = pg_catalog.left(complete_initialize.message, 500),
               due_at = pg_catalog.clock_timestamp()
                        + leasehold_internal.retry_pause(v_call.attempts, base_ms, most_ms, retry_after_ms)
         WHERE c.company_id = v_call.company_id AND c.subject_id = v_call.subject_id AND c.slot = 'op';
        IF v_call.attempts = 1 THEN
            PERFORM leasehold_internal.record(leasehold_internal.no_company(), 'plugin.error', 'plugin', v_key,
                pg_catalog.jsonb_build_object('error', complete_initialize.message));
        END IF;
    END IF;
    RETURN 'applied';
END
$$;
COMMENT ON FUNCTION leasehold_internal.complete_initialize(bigint, uuid, integer, text, text[], text, bigint, integer,
                                                          integer) IS
    'Applies a plugin''s answer to initialize';
-- 42_deadlines.sql: deadlines that come by themselves.
--
-- Deadlines are lazy: a renewal or heartbeat changes only its own row.  When
-- the deadline's row is due, the lease or run is read; if it has more time, the
-- row is moved to the new deadline.

CREATE FUNCTION leasehold_internal.fire_deadlines(company_ids uuid[], subject_ids uuid[])
    RETURNS TABLE (company_id uuid, subject_id uuid) LANGUAGE plpgsql VOLATILE ROWS 100 AS $$
#variable_conflict use_column
DECLARE
    v_company uuid[];
    v_subject uuid[];
    v_over    record;
    v_places  boolean;
BEGIN
    -- a parked resource that has waited too long for a place asks once more, and is parked again
    UPDATE leasehold_internal.calls AS c SET state = 'queued', due_at = pg_catalog.clock_timestamp()
      FROM (SELECT l.company_id, l.id
              FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(subject_ids)) AS w (company_id, id)
             CROSS JOIN LATERAL (SELECT * FROM leasehold.leases AS x
                                  WHERE x.company_id = w.company_id AND x.id = w.id
                                    FOR NO KEY UPDATE SKIP LOCKED) AS l
             WHERE l.status = 'resuming' AND l.acquire_by <= pg_catalog.clock_timestamp()) AS o
     WHERE c.company_id = o.company_id AND c.subject_id = o.id AND c.slot = 'op' AND c.state = 'waiting';

    -- leases whose time is over, by reason; those that a user has locked come again
    FOR v_over IN
        SELECT s.reason, s.code, s.end_status, pg_catalog.array_agg(s.company_id) AS companies,
               pg_catalog.array_agg(s.id) AS ids
          FROM (SELECT l.company_id, l.id,
                       CASE WHEN l.status IN ('acquiring', 'resuming') THEN 'failed' ELSE 'expired' END AS end_status,
                       CASE WHEN l.status IN ('acquiring', 'resuming')
                                 AND l.waiting_for IN ('active_leases', 'lease_starts_per_minute', 'plugin')
                            THEN 'waited too long for ' || l.waiting_for
                            WHEN l.status IN ('acquiring', 'resuming') THEN 'no resource was got in time'
                                 || COALESCE((SELECT ': ' || c.last_error FROM leasehold_internal.calls AS c
                                               WHERE c.company_id = l.company_id AND c.subject_id = l.id AND c.slot = 'op'), '')
                            WHEN l.status = 'retained' THEN 'retention_over'
                            WHEN l.expires_at <= pg_catalog.clock_timestamp() OR l.last_used_at + l.idle_timeout IS NULL
                            THEN 'lease_expired'
                            ELSE 'idle_timeout' END AS reason,
                       CASE WHEN l.status IN ('acquiring', 'resuming')
                            THEN CASE WHEN l.waiting_for IN ('active_leases', 'lease_starts_per_minute')
                                      THEN 'quota_exceeded' ELSE 'acquire_timeout' END END AS code
                  FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(subject_ids)) AS w (company_id, id)
                 CROSS JOIN LATERAL (SELECT * FROM leasehold.leases AS x
                                      WHERE x.company_id = w.company_id AND x.id = w.id
                                        FOR NO KEY UPDATE SKIP LOCKED) AS l
                 -- everything ends: what has no deadline, which takes somebody's hand, is over
                 WHERE COALESCE(leasehold_internal.lease_deadline(l.status, l.expires_at, l.last_used_at, l.idle_timeout)
                                <= pg_catalog.clock_timestamp(), l.status IN ('active', 'retained'))
                    OR l.status IN ('acquiring', 'resuming') AND l.acquire_by <= pg_catalog.clock_timestamp()
                       AND NOT (l.status = 'resuming' AND l.waiting_for IN ('active_leases', 'lease_starts_per_minute'))
                       AND EXISTS (SELECT FROM leasehold_internal.calls AS c
                                    WHERE c.company_id = l.company_id AND c.subject_id = l.id AND c.slot = 'op'
                                      AND c.state IN ('waiting', 'queued') AND NOT c.look_up)) AS s
         GROUP BY 1, 2, 3
    LOOP
        PERFORM leasehold_internal.end_leases(v_over.companies, v_over.ids, v_over.end_status, 'delete',
            v_over.reason, v_over.code);
        v_company := v_company || v_over.companies;
        v_subject := v_subject || v_over.ids;
    END LOOP;

    PERFORM leasehold_internal.lose_runs(company_ids, subject_ids);

    -- what is left is moved to its deadline, or is about something that is over
    WITH due AS (
        SELECT c.company_id, c.subject_id, c.slot, c.operation,
               CASE c.operation WHEN 'lease_deadline' THEN
                    (SELECT CASE WHEN l.status IN ('active', 'retained')
                                 THEN leasehold_internal.lease_deadline(l.status, l.expires_at, l.last_used_at, l.idle_timeout)
                                 WHEN l.status IN ('acquiring', 'resuming') THEN GREATEST(l.acquire_by, pg_catalog.clock_timestamp() + interval '1 second') END
                       FROM leasehold.leases AS l WHERE l.company_id = c.company_id AND l.id = c.subject_id)
               WHEN 'run_deadline' THEN
                    (SELECT r.heartbeat_at + r.heartbeat_timeout FROM leasehold_internal.runs AS r
                      WHERE r.company_id = c.company_id AND r.id = c.subject_id AND r.status = 'running')
               END AS deadline
          FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(subject_ids)) AS w (company_id, subject_id)
         CROSS JOIN LATERAL (SELECT * FROM leasehold_internal.calls AS x
                              WHERE x.company_id = w.company_id AND x.subject_id = w.subject_id
                                AND x.slot IN ('timer', 'run_timer')
                                FOR UPDATE SKIP LOCKED) AS c
    ), moved AS (
        UPDATE leasehold_internal.calls AS c
           SET due_at = GREATEST(d.deadline, pg_catalog.clock_timestamp() + interval '100 milliseconds')
          FROM due AS d
         WHERE c.company_id = d.company_id AND c.subject_id = d.subject_id AND c.slot = d.slot
           AND d.deadline IS NOT NULL
    ), gone AS (
        DELETE FROM leasehold_internal.calls AS c
         USING due AS d
         WHERE c.company_id = d.company_id AND c.subject_id = d.subject_id AND c.slot = d.slot AND d.deadline IS NULL
        RETURNING c.operation
    )
    SELECT pg_catalog.bool_or(g.operation = 'places') INTO v_places FROM gone AS g;
    IF v_places THEN
        PERFORM leasehold_internal.give_places(limits_changed => true);
    END IF;

    RETURN QUERY SELECT * FROM ROWS FROM (pg_catalog.unnest(v_company), pg_catalog.unnest(v_subject));
END
$$;
COMMENT ON FUNCTION leasehold_internal.fire_deadlines(uuid[], uuid[]) IS
    'Ends the leases and runs among these whose time is over, and moves the other deadlines';

-- Requests whose time is over but which nobody even claims, since the circuit
-- breaker of their provider is open or all its places are taken: for
-- fire_deadlines().
CREATE FUNCTION leasehold_internal.overdue_requests(part integer, parts integer, count integer)
    RETURNS TABLE (company_id uuid, subject_id uuid) LANGUAGE sql VOLATILE ROWS 100 AS $$
    SELECT c.company_id, c.subject_id
      FROM leasehold_internal.calls AS c
     CROSS JOIN LATERAL (SELECT x.acquire_by FROM leasehold.leases AS x
                          WHERE x.company_id = c.company_id AND x.id = c.subject_id OFFSET 0) AS l
     WHERE c.state = 'queued' AND c.due_at <= pg_catalog.clock_timestamp() - interval '1 second'
       AND c.shard % parts = part AND c.operation IN ('acquire', 'resume') AND NOT c.look_up
       AND l.acquire_by <= pg_catalog.clock_timestamp()
     LIMIT count
$$;
COMMENT ON FUNCTION leasehold_internal.overdue_requests(integer, integer, integer) IS
    'Requests whose time is over but which nobody claims';
-- 43_recovery.sql: what a worker does before it serves: find out what its
-- predecessor left, and what the dispatch table lacks.

-- Calls that were started and never ended: their outcome is unknown.  One that
-- was in flight in several crashes is set aside.  What a user has locked at this
-- moment must not keep the worker from serving the others: housekeeping takes
-- it over later.
CREATE FUNCTION leasehold_internal.recover_calls(epoch bigint, shards smallint[], crash_limit integer, crashed boolean)
    RETURNS integer LANGUAGE sql VOLATILE AS $$
    SELECT leasehold_internal.take_over_calls(ARRAY[epoch], shards, crash_limit, crashed, pg_catalog.clock_timestamp())
$$;
COMMENT ON FUNCTION leasehold_internal.recover_calls(bigint, smallint[], integer, boolean) IS
    'Takes over calls that an earlier worker left without an answer';

CREATE FUNCTION leasehold_internal.take_over_calls(
        live_epochs bigint[], shards smallint[], crash_limit integer, crashed boolean, started_before timestamptz)
    RETURNS integer LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_count integer;
BEGIN
    WITH lost AS (
        UPDATE leasehold_internal.calls AS c
           SET state = CASE WHEN crashed AND c.crashes + 1 >= crash_limit THEN 'quarantined' ELSE 'queued' END,
               crashes = c.crashes + CASE WHEN crashed THEN 1 ELSE 0 END,
               look_up = c.look_up OR c.operation = 'acquire', worker_epoch = NULL,
               due_at = pg_catalog.clock_timestamp(), last_error = 'the worker ended before the answer came'
          FROM (SELECT x.company_id, x.subject_id, x.slot FROM leasehold_internal.calls AS x
                 WHERE x.state = 'started' AND x.shard = ANY (shards)
                   AND (x.started_at <= started_before OR x.started_at IS NULL)
                   AND NOT COALESCE(x.worker_epoch = ANY (live_epochs), false)
                   FOR UPDATE SKIP LOCKED) AS p
         WHERE c.company_id = p.company_id AND c.subject_id = p.subject_id AND c.slot = p.slot
        RETURNING c.*
    ), lease AS (
        UPDATE leasehold.leases AS l SET waiting_for = 'quarantine'
          FROM (SELECT x.company_id, x.id FROM leasehold.leases AS x
                  JOIN lost AS c ON x.company_id = c.company_id AND x.id = c.subject_id
                 WHERE c.slot = 'op' AND c.state = 'quarantined' FOR NO KEY UPDATE OF x SKIP LOCKED) AS p
         WHERE l.company_id = p.company_id AND l.id = p.id
    ), event AS (
        INSERT INTO leasehold.audit_events (company_id, action, entity_type, entity_id, details)
        SELECT c.company_id,
               CASE c.operation WHEN 'initialize' THEN 'plugin.quarantined'
                                WHEN 'reconcile' THEN 'environment.sweep_quarantined'
                                WHEN 'destroy_stray' THEN 'environment.stray_quarantined'
                                ELSE 'environment.lease_quarantined' END,
               CASE c.operation WHEN 'initialize' THEN 'plugin' WHEN 'reconcile' THEN 'environment'
                                WHEN 'destroy_stray' THEN 'provider_resource' ELSE 'environment_lease' END,
               CASE c.operation WHEN 'initialize' THEN c.payload ->> 'plugin'
                                WHEN 'destroy_stray' THEN COALESCE(r.provider_lease_id, c.subject_id::text)
                                ELSE c.subject_id::text END,
               pg_catalog.jsonb_build_object('operation', c.operation, 'crashes', c.crashes)
          FROM lost AS c
          LEFT JOIN leasehold_internal.provider_resources AS r
            ON c.operation = 'destroy_stray' AND r.company_id = c.company_id AND r.stray_id = c.subject_id
         WHERE c.state = 'quarantined'
    )
    SELECT pg_catalog.count(*) INTO v_count FROM lost;
    RETURN v_count;
END
$$;
COMMENT ON FUNCTION leasehold_internal.take_over_calls(bigint[], smallint[], integer, boolean, timestamptz) IS
    'Takes over calls that no live worker has; but none that a user has locked';

-- Sweeps, and the removal of what they found, are tried once more after a day:
-- nobody else lets them out.  They keep their count of crashes, so that one more
-- sets them aside again; an answer forgives them.
CREATE FUNCTION leasehold_internal.revive_quarantined(shards smallint[]) RETURNS void
    LANGUAGE sql VOLATILE AS $$
    UPDATE leasehold_internal.calls AS c SET state = 'queued', due_at = pg_catalog.clock_timestamp()
      FROM (SELECT x.company_id, x.subject_id, x.slot FROM leasehold_internal.calls AS x
             WHERE x.state = 'quarantined' AND x.operation IN ('reconcile', 'destroy_stray')
               AND x.shard = ANY (shards) AND x.due_at < pg_catalog.clock_timestamp() - interval '1 day'
               FOR UPDATE SKIP LOCKED) AS p
     WHERE c.company_id = p.company_id AND c.subject_id = p.subject_id AND c.slot = p.slot
$$;
COMMENT ON FUNCTION leasehold_internal.revive_quarantined(smallint[]) IS
    'Has sweeps and removals of strays tried again that were set aside a day ago';

-- Queues what the states of leases and runs, and strays, ask for and the dispatch
-- table does not have: after a restore, or when a state was changed by hand.
CREATE FUNCTION leasehold_internal.rebuild_calls(shards smallint[]) RETURNS integer
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_count integer;
BEGIN
    WITH wanted AS (
        SELECT l.company_id, l.id, 'op'::text AS slot, l.provider, l.generation,
               CASE WHEN l.status = 'acquiring' OR l.provider_lease_id IS NULL AND l.acquired_at IS NULL THEN 'acquire'
                    WHEN l.status = 'resuming' THEN 'resume'
                    WHEN l.disposition = 'delete' AND l.policy <> 'ephemeral' THEN 'destroy'
                    ELSE 'release' END AS operation,
               -- whether the request was ever sent is not known
               l.status = 'acquiring' OR l.provider_lease_id IS NULL AND l.acquired_at IS NULL AS look_up,
               pg_catalog.clock_timestamp() AS due_at
          FROM leasehold.leases AS l
         WHERE l.status IN ('acquiring', 'resuming', 'releasing', 'pending_cleanup')
        UNION ALL
        SELECT l.company_id, l.id, 'timer', '', l.generation, 'lease_deadline', false,
               leasehold_internal.lease_deadline(l.status, l.expires_at, l.last_used_at, l.idle_timeout)
          FROM leasehold.leases AS l WHERE l.status IN ('active', 'retained')
        UNION ALL
        SELECT r.company_id, r.id, 'run_timer', '', 1, 'run_deadline', false, r.heartbeat_at + r.heartbeat_timeout
          FROM leasehold_internal.runs AS r WHERE r.status = 'running'
        UNION ALL
        SELECT r.company_id, r.stray_id, 'op', r.provider, r.generation, 'destroy_stray', false,
               pg_catalog.clock_timestamp()
          FROM leasehold_internal.provider_resources AS r
         WHERE r.stray_id IS NOT NULL
           -- after a takeover somebody may use it since: not before approve_sweep()
           AND NOT EXISTS (SELECT FROM leasehold_internal.installation AS i WHERE i.sweep_dry)
    ), missing AS MATERIALIZED (
        SELECT w.*
          FROM wanted AS w
         WHERE leasehold_internal.shard_of(w.company_id) = ANY (shards)
           AND NOT EXISTS (SELECT FROM leasehold_internal.calls AS c
                            WHERE c.company_id = w.company_id AND c.subject_id = w.id AND c.slot = w.slot)
    ), made AS (
        INSERT INTO leasehold_internal.calls
               (company_id, subject_id, slot, operation, provider, shard, generation, look_up, due_at)
        SELECT m.company_id, m.id, m.slot, m.operation, m.provider, leasehold_internal.shard_of(m.company_id),
               m.generation, m.look_up, COALESCE(m.due_at, pg_catalog.clock_timestamp())
          FROM missing AS m
          -- somebody who has the subject locked may be about to write its calls
          LEFT JOIN LATERAL (SELECT x.id FROM leasehold.leases AS x
                              WHERE m.slot <> 'run_timer' AND x.company_id = m.company_id AND x.id = m.id
                                FOR NO KEY UPDATE SKIP LOCKED) AS l ON true
          LEFT JOIN LATERAL (SELECT x.id FROM leasehold_internal.runs AS x
                              WHERE m.slot = 'run_timer' AND x.company_id = m.company_id AND x.id = m.id
                                FOR NO KEY UPDATE SKIP LOCKED) AS r ON true
          LEFT JOIN LATERAL (SELECT x.stray_id AS id FROM leasehold_internal.provider_resources AS x
                              WHERE m.operation = 'destroy_stray' AND x.company_id = m.company_id AND x.stray_id = m.id
                                FOR NO KEY UPDATE SKIP LOCKED) AS s ON true
         WHERE l.id IS NOT NULL OR r.id IS NOT NULL OR s.id IS NOT NULL
        ON CONFLICT DO NOTHING
        RETURNING 1
    )
    SELECT pg_catalog.count(*) INTO v_count FROM made;

    PERFORM leasehold_internal.queue_initialize(p.key) FROM leasehold.plugins AS p
      WHERE 0 = ANY (shards) AND p.status IN ('installed', 'error')
        AND NOT EXISTS (SELECT FROM leasehold_internal.calls AS c
                         WHERE c.company_id = leasehold_internal.no_company()
                           AND c.subject_id = leasehold_internal.plugin_subject(p.key));
    RETURN v_count;
END
$$;
COMMENT ON FUNCTION leasehold_internal.rebuild_calls(smallint[]) IS
    'Queues what states ask for and the dispatch table lacks';

-- An answer that could not be stored counts as unknown; a call that this
-- happens to again and again is set aside.
CREATE FUNCTION leasehold_internal.set_answer_aside(
        epoch bigint, company_id uuid, subject_id uuid, slot text, crash_limit integer, base_ms integer)
    RETURNS void LANGUAGE sql VOLATILE AS $$
    UPDATE leasehold_internal.calls AS c
       SET state = CASE WHEN c.crashes + 1 >= crash_limit THEN 'quarantined' ELSE 'queued' END,
           crashes = c.crashes + 1, look_up = c.look_up OR c.operation = 'acquire', worker_epoch = NULL,
           due_at = pg_catalog.clock_timestamp() + leasehold_internal.backoff(c.crashes + 1, base_ms, 60000),
           last_error = 'the answer could not be stored; see the server log'
     WHERE c.company_id = set_answer_aside.company_id AND c.subject_id = set_answer_aside.subject_id
       AND c.slot = set_answer_aside.slot AND c.state = 'started' AND c.worker_epoch = epoch
$$;
COMMENT ON FUNCTION leasehold_internal.set_answer_aside(bigint, uuid, uuid, text, integer, integer) IS
    'Puts a call aside whose answer could not be stored';

-- A call that could not be worked on comes again after a pause, or, without a
-- slot, the deadlines of its subject; not what somebody has locked, who may
-- change it.
CREATE FUNCTION leasehold_internal.postpone_call(company_id uuid, subject_id uuid, slot text, pause interval)
    RETURNS void LANGUAGE sql VOLATILE AS $$
    UPDATE leasehold_internal.calls AS c
       SET due_at = pg_catalog.clock_timestamp() + pause,
           last_error = 'could not be worked on; see the server log'
      FROM (SELECT x.company_id, x.subject_id, x.slot FROM leasehold_internal.calls AS x
             WHERE x.company_id = postpone_call.company_id AND x.subject_id = postpone_call.subject_id
               AND (x.slot = postpone_call.slot OR postpone_call.slot IS NULL AND x.slot IN ('timer', 'run_timer'))
               AND x.state = 'queued'
               FOR UPDATE SKIP LOCKED) AS p
     WHERE c.company_id = p.company_id AND c.subject_id = p.subject_id AND c.slot = p.slot
$$;
COMMENT ON FUNCTION leasehold_internal.postpone_call(uuid, uuid, text, interval) IS
    'Has a call or deadline come again after a pause';
-- 44_reconcile.sql: the sweep that compares what a provider holds under our
-- label with the leases, and removes what no lease claims.
--
-- One row of the dispatch table per environment whose provider can list.  After
-- a takeover the first sweep is dry: it only reports, until approve_sweep().

-- Environments that are to be swept, and how.
CREATE FUNCTION leasehold_internal.swept_environments(shards smallint[])
    RETURNS TABLE (company_id uuid, environment_id uuid, provider text, payload jsonb)
    LANGUAGE sql STABLE ROWS 100 AS $$
    SELECT e.company_id, e.id, e.provider,
           pg_catalog.jsonb_build_object('environmentId', e.id, 'configVersion', e.config_version)
      FROM leasehold_internal.environments AS e
      JOIN leasehold.providers AS p ON p.key = e.provider
      JOIN leasehold.plugins AS g ON g.key = p.plugin_key
     WHERE 'environmentListLeases' = ANY (g.supported_methods) AND g.status <> 'disabled'
       AND leasehold_internal.shard_of(e.company_id) = ANY (shards)
$$;
COMMENT ON FUNCTION leasehold_internal.swept_environments(smallint[]) IS
    'Environments whose provider can list, with what their sweep is to ask';

CREATE FUNCTION leasehold_internal.ensure_reconciles(shards smallint[], pause interval) RETURNS integer
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_count integer;
BEGIN
    WITH swept AS MATERIALIZED (
        SELECT * FROM leasehold_internal.swept_environments(shards)
    ), moved AS (
        -- unless somebody has it locked
        UPDATE leasehold_internal.calls AS c
           SET payload = w.payload, provider = w.provider,
               due_at = CASE WHEN c.throttled > 0 THEN c.due_at
                             ELSE LEAST(c.due_at, pg_catalog.clock_timestamp() + pause * pg_catalog.random()) END
          FROM (SELECT x.company_id, x.subject_id, s.provider, s.payload
                  FROM leasehold_internal.calls AS x
                  JOIN swept AS s ON s.company_id = x.company_id AND s.environment_id = x.subject_id
                 WHERE x.slot = 'sweep' AND x.state = 'queued'
                   AND (NOT x.payload @> s.payload
                        -- not when the provider asked for it
                        OR x.throttled = 0 AND x.due_at > pg_catalog.clock_timestamp() + pause)
                   FOR UPDATE OF x SKIP LOCKED) AS w
         WHERE c.company_id = w.company_id AND c.subject_id = w.subject_id AND c.slot = 'sweep'
        RETURNING 1
    ), made AS (
        INSERT INTO leasehold_internal.calls
               (company_id, subject_id, slot, operation, provider, shard, payload, due_at)
        SELECT s.company_id, s.environment_id, 'sweep', 'reconcile', s.provider,
               leasehold_internal.shard_of(s.company_id), s.payload,
               pg_catalog.clock_timestamp() + pause * pg_catalog.random()
          FROM swept AS s
         WHERE EXISTS (SELECT FROM leasehold.leases AS l
                        WHERE l.company_id = s.company_id AND l.environment_id = s.environment_id)
           AND NOT EXISTS (SELECT FROM leasehold_internal.calls AS c
                            WHERE c.company_id = s.company_id AND c.subject_id = s.environment_id AND c.slot = 'sweep')
        ON CONFLICT DO NOTHING
        RETURNING 1
    )
    SELECT (SELECT pg_catalog.count(*) FROM moved) + (SELECT pg_catalog.count(*) FROM made) INTO v_count;
    RETURN v_count;
END
$$;
COMMENT ON FUNCTION leasehold_internal.ensure_reconciles(smallint[], interval) IS
    'Sees to it that every environment whose provider can list is swept';

-- What the call for the next page is to say; NULL if there is none, or why not.
-- Cursors that lead round in a circle are found by comparing each with an earlier
-- one, which is replaced at the pages 1, 2, 4, 8 and so on, so that it comes to
-- be one of the circle.
CREATE FUNCTION leasehold_internal.turn_page(
        payload jsonb, next_cursor text, OUT next_payload jsonb, OUT problem text)
    LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    v_page integer := COALESCE((payload ->> 'page')::integer, 0) + 1;
BEGIN
    IF next_cursor IN (payload ->> 'cursor', payload ->> 'mark') THEN
        problem := 'the provider''s list leads round in a circle';
    ELSIF v_page >= 10000 THEN
        problem := 'the provider''s list has more than 10000 pages';
    ELSIF next_cursor <> '' THEN
        next_payload := payload || pg_catalog.jsonb_build_object('cursor', next_cursor, 'page', v_page,
            'mark', CASE WHEN v_page & (v_page - 1) = 0 THEN next_cursor ELSE payload ->> 'mark' END);
    END IF;
END
$$;
COMMENT ON FUNCTION leasehold_internal.turn_page(jsonb, text) IS
    'What a sweep''s call for the next page is to say, or why there is no next page';

-- What of a provider's list no lease claims, and no request that is under way may
-- be the answer to.
CREATE FUNCTION leasehold_internal.unclaimed_resources(company_id uuid, listed jsonb)
    RETURNS TABLE (provider_lease_id text, made_for text, generation integer)
    LANGUAGE plpgsql STABLE ROWS 100 AS $$
#variable_conflict use_column
DECLARE
    v_installation text := (SELECT i.id FROM leasehold_internal.installation AS i LIMIT 1);
BEGIN
    RETURN QUERY
    WITH held AS (
        SELECT h ->> 'providerLeaseId' AS provider_lease_id, h ->> 'leaseId' AS made_for,
               COALESCE((h ->> 'generation')::integer, 0) AS generation
          FROM pg_catalog.jsonb_array_elements(listed) AS h
         WHERE COALESCE(h ->> 'installationId', v_installation) = v_installation
           -- a list may show other companies': those are for their own sweeps
           AND COALESCE(h ->> 'companyId', unclaimed_resources.company_id::text) = unclaimed_resources.company_id::text
           AND (h ->> 'companyId' IS NOT NULL OR NOT EXISTS (
                SELECT FROM leasehold.leases AS l
                 WHERE l.id::text = h ->> 'leaseId' AND l.company_id <> unclaimed_resources.company_id))
    )
    SELECT h.provider_lease_id, h.made_for, h.generation
      FROM held AS h
     -- by whatever provider: a list may show what other drivers of the same account made
     WHERE NOT EXISTS (SELECT FROM leasehold.providers AS p
                         JOIN leasehold_internal.provider_resources AS r ON r.provider = p.key
                        WHERE r.provider_lease_id = h.provider_lease_id)
       AND NOT EXISTS (SELECT FROM leasehold.leases AS l
                        WHERE l.company_id = unclaimed_resources.company_id AND l.id::text = h.made_for
                          AND (l.provider_lease_id IS NULL OR l.provider_lease_id = h.provider_lease_id)
                          AND leasehold_internal.may_have_resource(l.status))
       -- after a fork: those are the original's
       AND NOT EXISTS (SELECT FROM leasehold.leases AS l
                        WHERE l.company_id = unclaimed_resources.company_id AND l.status = 'forgotten'
                          AND l.id::text = h.made_for)
       AND NOT EXISTS (SELECT FROM leasehold.leases AS l
                        WHERE l.company_id = unclaimed_resources.company_id AND l.status = 'forgotten'
                          AND l.provider_lease_id = h.provider_lease_id);
END
$$;
COMMENT ON FUNCTION leasehold_internal.unclaimed_resources(uuid, jsonb) IS
    'What of a provider''s list no lease claims';

-- Makes strays of resources that a sweep has found, with the calls that remove
-- them and the events.  Returns how many, or NULL if somebody may come to hold one
-- and has not committed yet: then it is to be tried again.
CREATE FUNCTION leasehold_internal.make_strays(
        sweep leasehold_internal.calls, provider_lease_ids text[], made_for text[], generations integer[])
    RETURNS integer LANGUAGE plpgsql VOLATILE
    SET lock_timeout = '2ms' AS $$
#variable_conflict use_column
DECLARE
    v_count integer;
BEGIN
    WITH stray AS (
        INSERT INTO leasehold_internal.provider_resources
               (provider, provider_lease_id, company_id, stray_id, environment_id, config_version, made_for, generation, reason)
        SELECT (sweep).provider, f.provider_lease_id, (sweep).company_id, leasehold.new_id(), (sweep).subject_id,
               ((sweep).payload ->> 'configVersion')::integer, f.made_for, GREATEST(f.generation, 1), 'no_lease'
          FROM ROWS FROM (pg_catalog.unnest(provider_lease_ids), pg_catalog.unnest(make_strays.made_for),
                          pg_catalog.unnest(generations)) AS f (provider_lease_id, made_for, generation)
        ON CONFLICT DO NOTHING
        RETURNING *
    ), call AS (
        INSERT INTO leasehold_internal.calls (company_id, subject_id, slot, operation, provider, shard, generation)
        SELECT s.company_id, s.stray_id, 'op', 'destroy_stray', s.provider, (sweep).shard, s.generation FROM stray AS s
    ), event AS (
        INSERT INTO leasehold.audit_events (company_id, action, entity_type, entity_id, details)
        SELECT s.company_id, 'environment.stray_found', 'provider_resource', s.provider_lease_id,
               leasehold_internal.stray_details(s)
          FROM stray AS s
    )
    SELECT pg_catalog.count(*) INTO v_count FROM stray;
    RETURN v_count;
EXCEPTION WHEN lock_not_available THEN
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION leasehold_internal.make_strays(leasehold_internal.calls, text[], text[], integer[]) IS
    'Makes strays of resources that a sweep has found and queues their removal; NULL if that has to wait';

-- Applies one page of a provider's list.  NULL if somebody has the sweep, or a
-- resource of the list, locked: hand it in again a little later.
CREATE FUNCTION leasehold_internal.complete_reconcile(
        epoch bigint, company_id uuid, subject_id uuid, outcome text, listed text, next_cursor text, message text,
        retry_after_ms bigint, pause interval)
    RETURNS integer LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_call   leasehold_internal.calls;
    v_found  record;
    v_strays integer := 0;
    v_next   record;
BEGIN
    SELECT c.* INTO v_call FROM leasehold_internal.calls AS c
     WHERE c.company_id = complete_reconcile.company_id AND c.subject_id = complete_reconcile.subject_id
       AND c.slot = 'sweep' AND c.state = 'started' AND c.worker_epoch = epoch
       FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        PERFORM FROM leasehold_internal.calls AS c
          WHERE c.company_id = complete_reconcile.company_id AND c.subject_id = complete_reconcile.subject_id
            AND c.slot = 'sweep' AND c.state = 'started' AND c.worker_epoch = epoch;
        RETURN CASE WHEN FOUND THEN NULL ELSE 0 END;
    END IF;
    -- its configuration is needed to remove what is found: whoever deletes it goes first
    PERFORM FROM leasehold_internal.environments AS e
      WHERE e.company_id = v_call.company_id AND e.id = v_call.subject_id FOR KEY SHARE SKIP LOCKED;
    IF NOT FOUND THEN
        PERFORM FROM leasehold_internal.environments AS e
          WHERE e.company_id = v_call.company_id AND e.id = v_call.subject_id;
        IF FOUND THEN
            RETURN NULL;
        END IF;
        DELETE FROM leasehold_internal.calls AS c
         WHERE c.company_id = v_call.company_id AND c.subject_id = v_call.subject_id AND c.slot = 'sweep';
        RETURN 0;
    END IF;

    IF outcome = 'ok' THEN
        SELECT pg_catalog.array_agg(u.provider_lease_id) AS resources, pg_catalog.array_agg(u.made_for) AS made_for,
               pg_catalog.array_agg(u.generation) AS generations
          INTO v_found
          FROM leasehold_internal.unclaimed_resources(v_call.company_id, listed::jsonb) AS u;
        IF (SELECT i.sweep_dry FROM leasehold_internal.installation AS i LIMIT 1) THEN
            INSERT INTO leasehold.audit_events (company_id, action, entity_type, entity_id, details)
            SELECT v_call.company_id, 'environment.stray_reported', 'provider_resource', u.provider_lease_id,
                   pg_catalog.jsonb_build_object('provider', v_call.provider, 'leaseId', u.made_for,
                       'environmentId', v_call.subject_id)
              FROM ROWS FROM (pg_catalog.unnest(v_found.resources), pg_catalog.unnest(v_found.made_for))
                   AS u (provider_lease_id, made_for);
            GET DIAGNOSTICS v_strays = ROW_COUNT;
        ELSIF v_found.resources IS NOT NULL THEN
            v_strays := leasehold_internal.make_strays(v_call, v_found.resources, v_found.made_for, v_found.generations);
            IF v_strays IS NULL THEN
                RETURN NULL;
            END IF;
        END IF;
    END IF;

    SELECT * INTO v_next
      FROM leasehold_internal.turn_page(v_call.payload, CASE WHEN outcome = 'ok' THEN next_cursor END);
    IF pause <= interval '0' AND v_next.next_payload IS NULL THEN
        DELETE FROM leasehold_internal.calls AS c
         WHERE c.company_id = v_call.company_id AND c.subject_id = v_call.subject_id AND c.slot = 'sweep';
        RETURN v_strays;
    END IF;
    UPDATE leasehold_internal.calls AS c
       SET state = 'queued', worker_epoch = NULL, attempts = 0, crashes = 0,
           throttled = CASE WHEN outcome = 'throttled' THEN 1 ELSE 0 END,
           -- the error stays until a sweep has come to its end
           last_error = CASE WHEN outcome <> 'ok' THEN pg_catalog.left(message, 500)
                             WHEN v_next.next_payload IS NOT NULL THEN c.last_error
                             ELSE v_next.problem END,
           payload = COALESCE(v_next.next_payload, c.payload - ARRAY['cursor', 'page', 'mark']),
           due_at = CASE WHEN v_next.next_payload IS NOT NULL THEN pg_catalog.clock_timestamp()
                         ELSE pg_catalog.clock_timestamp() + GREATEST(pause,
                              pg_catalog.make_interval(secs => LEAST(retry_after_ms, 86400000) / 1000.0)) END
     WHERE c.company_id = v_call.company_id AND c.subject_id = v_call.subject_id AND c.slot = 'sweep';
    RETURN v_strays;
END
$$;
COMMENT ON FUNCTION leasehold_internal.complete_reconcile(bigint, uuid, uuid, text, text, text, text, bigint, interval) IS
    'Applies one page of a provider''s list: queues the removal of what no lease claims; without a pause the last page ends it';

CREATE FUNCTION leasehold_internal.approve_sweep() RETURNS void LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
    PERFORM leasehold_internal.enter_admin();
    UPDATE leasehold_internal.installation AS i SET sweep_dry = false WHERE i.sweep_dry;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('wrong_state', 'no dry sweep waits for approval');
    END IF;
    UPDATE leasehold_internal.calls AS c SET due_at = pg_catalog.clock_timestamp()
     WHERE c.operation = 'reconcile' AND c.state = 'queued';
    -- strays that the takeover left alone
    PERFORM leasehold_internal.rebuild_calls(ARRAY(SELECT s::smallint FROM pg_catalog.generate_series(0, 63) AS s));
    PERFORM leasehold_internal.record(leasehold_internal.no_company(), 'installation.sweep_approved', 'installation',
        (SELECT i.id::text FROM leasehold_internal.installation AS i LIMIT 1));
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.approve_sweep', 'instant',
    'lets sweeps remove what no lease claims, after the dry one that follows a takeover', 'leasehold_admin');
-- 50_operations.sql: running the installation, and seeing what it does.

CREATE FUNCTION leasehold_internal.worker_states(
        OUT part integer, OUT pid integer, OUT state text, OUT reason text, OUT started_at timestamptz,
        OUT last_round_at timestamptz, OUT epoch bigint, OUT in_flight integer, OUT queued integer,
        OUT capacity integer, OUT rounds bigint, OUT started_calls bigint, OUT applied_calls bigint,
        OUT stale_answers bigint, OUT failed_batches bigint)
    RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_worker_states';
COMMENT ON FUNCTION leasehold_internal.worker_states() IS 'What the workers of this database say of themselves';

CREATE FUNCTION leasehold_internal.provider_states(
        OUT part integer, OUT provider text, OUT in_flight integer, OUT queued integer, OUT breaker text,
        OUT failures integer, OUT retry_at timestamptz, OUT succeeded bigint, OUT failed bigint,
        OUT held_back integer)
    RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_provider_states';
COMMENT ON FUNCTION leasehold_internal.provider_states() IS 'What the workers say of the providers they call';

CREATE FUNCTION leasehold_internal.request_breaker_reset(provider text) RETURNS boolean
    LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'leasehold_request_breaker_reset';
COMMENT ON FUNCTION leasehold_internal.request_breaker_reset(text) IS 'Has the workers close a circuit breaker';

CREATE FUNCTION leasehold_internal.reset_breaker(provider text) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM leasehold_internal.enter_admin();
    -- plugins themselves are spoken to under a name of their own, as status() shows it
    PERFORM FROM leasehold.plugins AS g WHERE provider = 'plugin:' || g.key;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.require_provider(provider);
    END IF;
    PERFORM leasehold_internal.record(leasehold_internal.no_company(), 'provider.breaker_reset', 'provider', provider);
    RETURN leasehold_internal.request_breaker_reset(provider);
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.reset_breaker', 'instant',
    'closes the circuit breaker of a provider, or of a plugin as "plugin:KEY"; false if none was open', 'leasehold_admin');

CREATE FUNCTION leasehold_internal.pause_worker(reason text DEFAULT NULL) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
    PERFORM leasehold_internal.enter_admin();
    PERFORM leasehold_internal.check_text('reason', reason, 200);
    PERFORM leasehold_internal.ensure_installation();
    UPDATE leasehold_internal.installation AS i SET paused = true, paused_reason = reason;
    PERFORM leasehold_internal.record(leasehold_internal.no_company(), 'installation.paused', 'installation',
        (SELECT i.id::text FROM leasehold_internal.installation AS i LIMIT 1),
        pg_catalog.jsonb_build_object('reason', reason));
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.pause_worker', 'instant',
    'stops new calls to providers; those that are out are finished', 'leasehold_admin');

CREATE FUNCTION leasehold_internal.resume_worker() RETURNS void LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
    PERFORM leasehold_internal.enter_admin();
    UPDATE leasehold_internal.installation AS i SET paused = false, paused_reason = NULL, draining = false
     WHERE i.paused OR i.draining;
    IF FOUND THEN
        PERFORM leasehold_internal.record(leasehold_internal.no_company(), 'installation.resumed', 'installation',
            (SELECT i.id::text FROM leasehold_internal.installation AS i LIMIT 1));
    END IF;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.resume_worker', 'instant',
    'undoes pause_worker() and drain_installation()', 'leasehold_admin');

-- What providers hold, or may hold, for this database; asked for by the worker, too,
-- before the database is dropped.
CREATE FUNCTION leasehold_internal.resources_left() RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT (SELECT pg_catalog.count(*) FROM leasehold.leases AS l WHERE leasehold_internal.may_have_resource(l.status))
           + (SELECT pg_catalog.count(*) FROM leasehold_internal.provider_resources AS r WHERE r.stray_id IS NOT NULL)
$$;
COMMENT ON FUNCTION leasehold_internal.resources_left() IS 'How many leases, and strays, have or may have a resource';

CREATE FUNCTION leasehold_internal.drain_installation() RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_companies uuid[];
    v_leases    uuid[];
BEGIN
    PERFORM leasehold_internal.enter_admin();
    UPDATE leasehold_internal.installation AS i SET draining = true;
    SELECT pg_catalog.array_agg(l.company_id), pg_catalog.array_agg(l.id) INTO v_companies, v_leases
      FROM leasehold.leases AS l
     WHERE l.status IN ('acquiring', 'active', 'resuming', 'retained')
        OR l.status IN ('releasing', 'pending_cleanup') AND l.disposition <> 'delete';
    IF v_leases IS NOT NULL THEN
        PERFORM leasehold_internal.end_leases(v_companies, v_leases, 'released', 'delete', 'installation_drained');
    END IF;
    PERFORM leasehold_internal.record(leasehold_internal.no_company(), 'installation.draining', 'installation',
        COALESCE((SELECT i.id::text FROM leasehold_internal.installation AS i LIMIT 1), ''),
        pg_catalog.jsonb_build_object('leases', COALESCE(pg_catalog.cardinality(v_leases), 0)));
    RETURN leasehold_internal.resources_left();
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.drain_installation', 'instant',
    'ends all leases, refuses new ones until resume_worker(), and returns how many, and how many strays, are still there',
    'leasehold_admin');

CREATE FUNCTION leasehold_internal.allow_host(host text, data_directory text DEFAULT NULL) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
    PERFORM leasehold_internal.enter_admin();
    PERFORM leasehold_internal.check_text('host', allow_host.host);
    PERFORM leasehold_internal.check_text('data_directory', allow_host.data_directory, 1000);
    IF allow_host.host = '' THEN
        PERFORM leasehold_internal.refuse('argument_invalid', 'argument "host" must not be empty');
    END IF;
    INSERT INTO leasehold_internal.allowed_hosts (host, data_directory)
    SELECT allow_host.host, COALESCE(allow_host.data_directory, h.data_directory) FROM leasehold_internal.here() AS h
    ON CONFLICT DO NOTHING;
    PERFORM leasehold_internal.record(leasehold_internal.no_company(), 'installation.host_allowed', 'host', allow_host.host,
        pg_catalog.jsonb_build_object('dataDirectory', allow_host.data_directory));
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.allow_host', 'instant',
    'names a host (leasehold.host_identity or the host name) where the installation may go on after a failover',
    'leasehold_admin');

CREATE FUNCTION leasehold_internal.takeover_installation() RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_epoch bigint;
    v_why   text := leasehold_internal.hold_reason();
BEGIN
    PERFORM leasehold_internal.enter_admin();
    IF v_why IS NULL THEN
        PERFORM leasehold_internal.refuse('wrong_state', 'the installation is not held');
    END IF;
    -- restored next to a stamp of its own: the restored one is the original
    DELETE FROM leasehold_internal.installation AS i
     WHERE i.id <> (SELECT j.id FROM leasehold_internal.installation AS j ORDER BY j.created_at LIMIT 1);
    UPDATE leasehold_internal.installation AS i
       SET epoch = i.epoch + 1, database_oid = h.database_oid, system_identifier = h.system_identifier, host = h.host,
           data_directory = h.data_directory, directory_inode = h.directory_inode, timeline = h.timeline,
           sweep_dry = true
      FROM leasehold_internal.here() AS h
    RETURNING i.epoch INTO v_epoch;
    DELETE FROM leasehold_internal.calls;
    PERFORM leasehold_internal.rebuild_calls(ARRAY(SELECT s::smallint FROM pg_catalog.generate_series(0, 63) AS s));
    PERFORM leasehold_internal.record(leasehold_internal.no_company(), 'installation.taken_over', 'installation',
        (SELECT i.id::text FROM leasehold_internal.installation AS i LIMIT 1),
        pg_catalog.jsonb_build_object('epoch', v_epoch, 'was', v_why));
    RETURN v_epoch;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.takeover_installation', 'instant',
    'says that this copy replaces the original, which must not run any more: its leases go on here', 'leasehold_admin');

CREATE FUNCTION leasehold_internal.fork_installation() RETURNS uuid LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_why    text := leasehold_internal.hold_reason();
    v_id     uuid := leasehold.new_id();
    v_leases bigint;
    v_runs   bigint;
BEGIN
    PERFORM leasehold_internal.enter_admin();
    IF v_why IS NULL THEN
        PERFORM leasehold_internal.refuse('wrong_state', 'the installation is not held');
    END IF;
    DELETE FROM leasehold_internal.installation;
    INSERT INTO leasehold_internal.installation
           (id, database_oid, system_identifier, host, data_directory, directory_inode, timeline)
    SELECT v_id, h.database_oid, h.system_identifier, h.host, h.data_directory, h.directory_inode, h.timeline
      FROM leasehold_internal.here() AS h;
    -- the resources are the original's: nothing of them is ours
    DELETE FROM leasehold_internal.calls;
    DELETE FROM leasehold_internal.provider_resources;
    WITH lease AS (
        UPDATE leasehold.leases AS l SET status = 'forgotten', ended_at = pg_catalog.now(), waiting_for = NULL
         WHERE leasehold_internal.may_have_resource(l.status)
        RETURNING l.*
    ), event AS (
        INSERT INTO leasehold.audit_events (company_id, action, entity_type, entity_id, agent_id, issue_id, run_id, details)
        SELECT l.company_id, 'environment.lease_forgotten', 'environment_lease', l.id::text, l.agent_id, l.issue_id,
               l.run_id, '{}' FROM lease AS l
    )
    SELECT pg_catalog.count(*) INTO v_leases FROM lease;
    UPDATE leasehold_internal.runs AS r
       SET status = 'interrupted', finished_at = pg_catalog.now(), error_code = 'installation_forked'
     WHERE r.status = 'running';
    GET DIAGNOSTICS v_runs = ROW_COUNT;
    DELETE FROM leasehold_internal.run_tokens;
    PERFORM leasehold_internal.rebuild_calls(ARRAY(SELECT s::smallint FROM pg_catalog.generate_series(0, 63) AS s));
    PERFORM leasehold_internal.record(leasehold_internal.no_company(), 'installation.forked', 'installation', v_id::text,
        pg_catalog.jsonb_build_object('was', v_why, 'leases', v_leases, 'runs', v_runs));
    RETURN v_id;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.fork_installation', 'instant',
    'says that this is a copy of its own: the original''s leases are forgotten here and nothing remote is touched',
    'leasehold_admin');

-- Views.

CREATE VIEW leasehold.active_leases WITH (security_barrier) AS
    SELECT l.company_id, l.id AS lease_id, l.status, l.provider, l.environment_id, l.agent_id, l.issue_id, l.run_id,
           l.execution_workspace_id, l.generation, l.provider_lease_id, l.requested_at, l.acquired_at, l.expires_at,
           COALESCE(l.waiting_for,
                    CASE WHEN c.state = 'quarantined' THEN 'quarantine'
                         WHEN l.status IN ('acquiring', 'resuming', 'releasing', 'pending_cleanup') THEN
                              CASE WHEN c.state = 'started' THEN 'provider'
                                   WHEN c.subject_id IS NULL THEN 'rebuild'
                                   ELSE 'worker' END
                         WHEN l.status = 'irrevocable' THEN 'decision' END) AS waiting_for,
           c.operation::text AS next_operation, c.due_at AS next_try_at, c.attempts, c.last_error,
           l.failure_code, l.failure_reason
      FROM leasehold.leases AS l
      LEFT JOIN leasehold_internal.calls AS c
        ON c.company_id = l.company_id AND c.subject_id = l.id AND c.slot = 'op'
     WHERE l.status IN ('acquiring', 'active', 'releasing', 'retained', 'resuming', 'pending_cleanup', 'irrevocable');
COMMENT ON VIEW leasehold.active_leases IS 'Leases that have, or may have, a resource, and what each waits for';

CREATE VIEW leasehold.lease_timeline WITH (security_barrier) AS
    SELECT a.company_id, a.entity_id::uuid AS lease_id, a.occurred_at, a.action, a.acting_role, a.asserted_actor,
           a.agent_id, a.issue_id, a.run_id, a.details
      FROM leasehold.audit_events AS a
     WHERE a.entity_type = 'environment_lease';
COMMENT ON VIEW leasehold.lease_timeline IS 'What happened to each lease; order by occurred_at';

CREATE VIEW leasehold.cleanup_backlog WITH (security_barrier) AS
    SELECT l.company_id, l.id AS lease_id, l.status, l.provider, l.provider_lease_id, l.failure_code, l.failure_reason,
           c.attempts, c.due_at AS next_try_at, c.last_error
      FROM leasehold.leases AS l
      LEFT JOIN leasehold_internal.calls AS c
        ON c.company_id = l.company_id AND c.subject_id = l.id AND c.slot = 'op'
     WHERE l.status IN ('pending_cleanup', 'irrevocable');
COMMENT ON VIEW leasehold.cleanup_backlog IS 'Resources that could not be removed yet, or at all';

CREATE FUNCTION leasehold_internal.status(
        OUT area text, OUT subject text, OUT state text, OUT detail jsonb)
    RETURNS SETOF record LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
DECLARE
    v_admin boolean := leasehold_internal.is_admin();
BEGIN
    RETURN QUERY
    SELECT 'worker'::text, w.part::text, w.state,
           CASE WHEN v_admin THEN pg_catalog.to_jsonb(w) - 'part' - 'state'
                ELSE pg_catalog.jsonb_build_object('reason', w.reason) END
      FROM leasehold_internal.worker_states() AS w;
    RETURN QUERY
    SELECT 'provider'::text, p.provider,
           CASE WHEN pg_catalog.bool_or(p.breaker = 'open') THEN 'breaker_open'
                WHEN pg_catalog.bool_or(p.breaker = 'half_open') THEN 'breaker_half_open' ELSE 'ok' END,
           CASE WHEN v_admin THEN pg_catalog.jsonb_build_object(
                    'inFlight', pg_catalog.sum(p.in_flight), 'queued', pg_catalog.sum(p.queued),
                    'failures', pg_catalog.max(p.failures), 'retryAt', pg_catalog.max(p.retry_at),
                    'heldBack', pg_catalog.sum(p.held_back),
                    'succeeded', pg_catalog.sum(p.succeeded), 'failed', pg_catalog.sum(p.failed))
                ELSE pg_catalog.jsonb_build_object('retryAt', pg_catalog.max(p.retry_at)) END
      FROM leasehold_internal.provider_states() AS p
     WHERE v_admin OR EXISTS (SELECT FROM leasehold_internal.environments AS e WHERE e.provider = p.provider)
     GROUP BY p.provider;
    RETURN QUERY
    SELECT 'leases'::text, c.key::text, l.status::text,
           pg_catalog.jsonb_build_object('count', pg_catalog.count(*), 'oldest', pg_catalog.min(l.requested_at))
      FROM leasehold.leases AS l JOIN leasehold.companies AS c ON c.id = l.company_id
     WHERE l.status IN ('acquiring', 'active', 'releasing', 'retained', 'resuming', 'pending_cleanup', 'irrevocable')
     GROUP BY c.key, l.status;
    RETURN QUERY
    SELECT 'plugin'::text, g.key::text, g.status::text,
           CASE WHEN v_admin THEN pg_catalog.jsonb_build_object('version', g.version, 'lastError', g.last_error)
                ELSE pg_catalog.jsonb_build_object('version', g.version) END
      FROM leasehold.plugins AS g
     WHERE v_admin OR EXISTS (SELECT FROM leasehold_internal.environments AS e
                                JOIN leasehold.providers AS p ON p.key = e.provider WHERE p.plugin_key = g.key);
    IF v_admin THEN
        RETURN QUERY
        SELECT 'installation'::text, i.id::text,
               CASE WHEN pg_catalog.pg_is_in_recovery() THEN 'standby'
                    WHEN leasehold_internal.hold_reason() IS NOT NULL THEN 'held'
                    WHEN i.paused THEN 'paused' WHEN i.draining THEN 'draining' ELSE 'in use' END,
               pg_catalog.jsonb_build_object('epoch', i.epoch, 'holdReason', leasehold_internal.hold_reason(),
                   'pausedReason', i.paused_reason, 'sweepDry', i.sweep_dry)
          FROM leasehold_internal.installation AS i;
    END IF;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.status', 'instant',
    'what the workers, providers, plugins and leases are doing; of leases only those the caller may see',
    'leasehold_admin', 'leasehold_app', 'leasehold_auditor');

CREATE FUNCTION leasehold_internal.doctor(OUT severity text, OUT code text, OUT finding text, OUT what_to_do text)
    RETURNS SETOF record LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
DECLARE
    v_hold    text := leasehold_internal.hold_reason();
    v_standby boolean := pg_catalog.pg_is_in_recovery();
BEGIN
    PERFORM leasehold_internal.enter_admin();
    RETURN QUERY
    SELECT 'notice'::text, 'standby'::text,
           'this server is a standby: nothing can be changed here, and no worker runs'::text,
           'Nothing; a promotion starts the worker.'::text
     WHERE v_standby;
    RETURN QUERY
    SELECT 'warning'::text, 'standby_not_allowed'::text, 'a promotion would be held: ' || v_hold,
           pg_catalog.format('If it is to go on by itself, call allow_host(%L, %L) on the primary.', h.host, h.data_directory)
      FROM leasehold_internal.here() AS h WHERE v_standby AND v_hold IS NOT NULL;
    RETURN QUERY
    SELECT 'error'::text, 'installation_held'::text, v_hold,
           'If it replaces the original, which must be stopped: takeover_installation(). If it is a copy: fork_installation().'::text
     WHERE v_hold IS NOT NULL AND NOT v_standby;
    RETURN QUERY
    SELECT 'error'::text, 'worker_' || w.state, COALESCE(w.reason, 'no worker serves this database'),
           CASE WHEN w.state = 'held' THEN 'See installation_held.'
                WHEN w.state = 'unsupported' THEN 'Run ALTER EXTENSION leasehold UPDATE.'
                WHEN w.reason LIKE '%shared_preload_libraries%'
                THEN 'Add leasehold to shared_preload_libraries and restart the server.'
                WHEN w.reason LIKE '%leasehold.max_databases%'
                THEN 'Raise leasehold.max_databases and restart the server.'
                ELSE 'Look for "leasehold" and "too many background workers" in the server log; raise max_worker_processes if slots are missing.' END
      FROM leasehold_internal.worker_states() AS w WHERE w.state NOT IN ('running', 'paused') AND NOT v_standby;
    -- not what the worker says: it may not have heard yet
    RETURN QUERY
    SELECT 'error'::text, 'worker_paused'::text, COALESCE('paused: ' || i.paused_reason, 'paused by an administrator'),
           'Call resume_worker() when the reason is gone.'::text
      FROM leasehold_internal.installation AS i WHERE i.paused AND v_hold IS NULL AND NOT v_standby;
    RETURN QUERY
    SELECT 'notice'::text, 'installation_draining'::text,
           pg_catalog.format('new leases are refused since drain_installation(); resources left: %s',
                             leasehold_internal.resources_left()),
           'Call resume_worker() to take new leases again.'::text
      FROM leasehold_internal.installation AS i WHERE i.draining AND v_hold IS NULL AND NOT v_standby;
    RETURN QUERY
    SELECT 'warning'::text, 'member_dangling'::text,
           pg_catalog.format('the membership of role "%s" in company "%s" is not valid here', m.role_name, c.key),
           'If it is the same role, call repair_members(); else revoke_company().'::text
      FROM leasehold.company_members AS m JOIN leasehold.companies AS c ON c.id = m.company_id
      LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = m.role_oid AND r.rolname = m.role_name
     CROSS JOIN leasehold_internal.here() AS h
     WHERE r.oid IS NULL OR m.system_identifier <> h.system_identifier;
    RETURN QUERY
    SELECT 'warning'::text, 'role_has_members'::text,
           pg_catalog.format('role "%s" is a member of "%s", and so is kept out of no company', u.rolname, g.rolname),
           pg_catalog.format('REVOKE %I FROM %I; grant leasehold_admin to who runs the installation.', g.rolname, u.rolname)
      FROM pg_catalog.pg_auth_members AS m
      JOIN pg_catalog.pg_roles AS g ON g.oid = m.roleid AND g.rolname IN ('leasehold_owner', 'leasehold_worker')
      JOIN pg_catalog.pg_roles AS u ON u.oid = m.member;
    RETURN QUERY
    SELECT 'warning'::text, 'audit_default_partition'::text,
           'events went to the DEFAULT partition of the audit trail'::text,
           'See that the worker runs; it makes partitions ahead of time.'::text
     WHERE EXISTS (SELECT FROM leasehold.audit_events_default AS a WHERE a.occurred_at > pg_catalog.now() - interval '1 day')
       AND EXISTS (SELECT FROM leasehold.audit_events_default AS a WHERE a.occurred_at < pg_catalog.now() - interval '1 hour');
    RETURN QUERY
    SELECT 'warning'::text, 'lease_irrevocable'::text,
           pg_catalog.format(CASE pg_catalog.count(*) WHEN 1 THEN '%s lease is irrevocable' ELSE '%s leases are irrevocable' END,
                             pg_catalog.count(*))
           || CASE WHEN l.provider_lease_id IS NULL THEN ', and not known to have a resource' ELSE '' END,
           CASE WHEN l.provider_lease_id IS NULL
                THEN 'See cleanup_backlog; retry_lease() each, or check at the provider: if the resource exists, import_lease() first; then write_off_lease().'
                ELSE 'See cleanup_backlog; retry_lease() or write_off_lease() each.' END
      FROM leasehold.leases AS l WHERE l.status = 'irrevocable'
     GROUP BY l.provider_lease_id IS NULL ORDER BY l.provider_lease_id IS NULL;
    RETURN QUERY
    SELECT 'warning'::text, 'stray_not_removed'::text,
           pg_catalog.format(CASE pg_catalog.count(*)
                                 WHEN 1 THEN '%s resource that no lease claims cannot be removed, of provider "%s": %s'
                                 ELSE '%s resources that no lease claims cannot be removed, of provider "%s": %s' END,
                             pg_catalog.count(*), c.provider, pg_catalog.max(c.last_error)),
           'Remove it at the provider, or put it under a lease with import_lease(); the removal is tried on.'::text
      FROM leasehold_internal.calls AS c
     WHERE c.operation = 'destroy_stray' AND c.state <> 'quarantined'
       AND c.attempts >= pg_catalog.current_setting('leasehold.cleanup_attempts')::integer
     GROUP BY c.provider;
    RETURN QUERY
    SELECT 'warning'::text, 'sweep_failed'::text,
           pg_catalog.format(CASE pg_catalog.count(*) WHEN 1 THEN 'the sweep of %s environment of provider "%s" fails: %s'
                                                      ELSE 'the sweeps of %s environments of provider "%s" fail: %s' END,
                             pg_catalog.count(*), c.provider, pg_catalog.max(c.last_error)),
           'What no lease claims may not be found there until the provider lists it.'::text
      FROM leasehold_internal.calls AS c
     WHERE c.slot = 'sweep' AND c.last_error IS NOT NULL
     GROUP BY c.provider;
    RETURN QUERY
    SELECT 'warning'::text, 'call_quarantined'::text,
           pg_catalog.format(CASE pg_catalog.count(*) WHEN 1 THEN '%s call "%s" of "%s" is set aside: the worker ended with it again and again'
                             ELSE '%s calls "%s" of "%s" are set aside: the worker ended with them again and again' END,
                             pg_catalog.count(*), c.operation, c.provider),
           CASE WHEN c.operation = 'initialize' THEN 'See the server log; then restart_plugin().'
                WHEN c.operation IN ('reconcile', 'destroy_stray') THEN 'See the server log; it is tried once more after a day.'
                ELSE 'See the server log, and active_leases whose waiting_for is "quarantine"; release_quarantine() each.' END
      FROM leasehold_internal.calls AS c WHERE c.state = 'quarantined'
     GROUP BY c.operation, c.provider;
    RETURN QUERY
    SELECT 'warning'::text, 'plugin_error'::text, pg_catalog.format('plugin "%s": %s', g.key, g.last_error),
           'Check its address, its token, and leasehold.token_directory; then restart_plugin().'::text
      FROM leasehold.plugins AS g WHERE g.status = 'error';
    RETURN QUERY
    SELECT 'warning'::text, 'breaker_open'::text,
           pg_catalog.format(CASE WHEN p.retry_at > pg_catalog.clock_timestamp()
                                  THEN 'provider "%s" fails, its circuit breaker is open until %s'
                                  ELSE 'provider "%s" fails, its circuit breaker was open until %s and the next call will tell' END,
                             p.provider, p.retry_at) || COALESCE(': ' || c.last_error, ''),
           'Check the provider; reset_breaker() tries again at once.'::text
      FROM leasehold_internal.provider_states() AS p
      LEFT JOIN LATERAL (SELECT x.last_error FROM leasehold_internal.calls AS x
                          WHERE x.provider = p.provider AND x.last_error IS NOT NULL
                          ORDER BY x.started_at DESC NULLS LAST LIMIT 1) AS c ON true
     WHERE p.breaker = 'open';
    RETURN QUERY
    SELECT 'warning'::text, 'company_held_back'::text,
           pg_catalog.format(CASE p.held_back WHEN 1 THEN 'provider "%s" fails for %s company, whose calls to it are held back'
                                              ELSE 'provider "%s" fails for %s companies, whose calls to it are held back' END,
                             p.provider, p.held_back),
           'Look for "held back" in the server log, and at the environments of that company.'::text
      FROM leasehold_internal.provider_states() AS p WHERE p.breaker = 'closed' AND p.held_back > 0;
    RETURN QUERY
    SELECT 'warning'::text, 'no_free_slots'::text,
           pg_catalog.format('all %s places for calls are taken, most by provider "%s": %s', w.capacity, m.provider, m.in_flight),
           'Look at that provider; lower its limit concurrent_calls, or raise leasehold.max_concurrent_calls.'::text
      FROM leasehold_internal.worker_states() AS w
     CROSS JOIN LATERAL (SELECT p.provider, p.in_flight FROM leasehold_internal.provider_states() AS p
                          WHERE p.part = w.part ORDER BY p.in_flight DESC, p.provider LIMIT 1) AS m
     WHERE w.state <> 'absent' AND w.capacity > 0 AND w.in_flight >= w.capacity;
    RETURN QUERY
    SELECT 'notice'::text, 'sweep_dry'::text, 'sweeps only report strays since the takeover'::text,
           'Look at the events environment.stray_reported, then approve_sweep().'::text
      FROM leasehold_internal.installation AS i WHERE i.sweep_dry;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.doctor', 'instant',
    'what is wrong with the installation, and what to do about it', 'leasehold_admin');

-- Leases of all companies by status; for those who watch the installation.  Its
-- owner is the worker's role, which sees all rows; it tells nobody whose they are.
CREATE FUNCTION leasehold_internal.all_live_leases(OUT status text, OUT count bigint) RETURNS SETOF record
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT l.status::text, count(*) FROM leasehold.leases AS l
     WHERE l.status IN ('acquiring', 'active', 'releasing', 'retained', 'resuming', 'pending_cleanup', 'irrevocable')
     GROUP BY 1
$$;
COMMENT ON FUNCTION leasehold_internal.all_live_leases() IS 'Leases of all companies by status';

CREATE FUNCTION leasehold_internal.metrics(
        OUT name text, OUT type text, OUT labels jsonb, OUT value double precision)
    RETURNS SETOF record LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
DECLARE
    v_watcher boolean := leasehold_internal.is_admin()
                         OR pg_catalog.pg_has_role(leasehold.acting_role(), 'pg_monitor', 'USAGE');
BEGIN
    RETURN QUERY
    SELECT 'leasehold_leases'::text, 'gauge'::text, pg_catalog.jsonb_build_object('status', s.status),
           COALESCE(a.count, 0)::double precision
      FROM pg_catalog.unnest(ARRAY['acquiring', 'active', 'releasing', 'retained', 'resuming', 'pending_cleanup',
                                   'irrevocable']) AS s (status)
      LEFT JOIN leasehold_internal.all_live_leases() AS a ON a.status = s.status
     WHERE v_watcher
    UNION ALL
    SELECT 'leasehold_leases'::text, 'gauge'::text, pg_catalog.jsonb_build_object('status', s.status),
           pg_catalog.count(l.id)::double precision
      FROM pg_catalog.unnest(ARRAY['acquiring', 'active', 'releasing', 'retained', 'resuming', 'pending_cleanup',
                                   'irrevocable']) AS s (status)
      LEFT JOIN leasehold.leases AS l ON l.status = s.status
       AND l.status IN ('acquiring', 'active', 'releasing', 'retained', 'resuming', 'pending_cleanup', 'irrevocable')
     WHERE NOT v_watcher
     GROUP BY s.status;
    IF v_watcher THEN
        RETURN QUERY
        SELECT m.name, m.type, pg_catalog.jsonb_build_object('part', w.part), m.value
          FROM leasehold_internal.worker_states() AS w,
               LATERAL (VALUES ('leasehold_worker_up', 'gauge', CASE w.state WHEN 'running' THEN 1 ELSE 0 END::double precision),
                               ('leasehold_calls_in_flight', 'gauge', w.in_flight::double precision),
                               ('leasehold_calls_queued', 'gauge', w.queued::double precision),
                               ('leasehold_calls_started_total', 'counter', w.started_calls::double precision),
                               ('leasehold_calls_applied_total', 'counter', w.applied_calls::double precision),
                               ('leasehold_stale_answers_total', 'counter', w.stale_answers::double precision),
                               ('leasehold_failed_batches_total', 'counter', w.failed_batches::double precision))
                    AS m (name, type, value);
        RETURN QUERY
        SELECT m.name, m.type, pg_catalog.jsonb_build_object('part', p.part, 'provider', p.provider), m.value
          FROM leasehold_internal.provider_states() AS p,
               LATERAL (VALUES ('leasehold_provider_breaker_open', 'gauge', CASE p.breaker WHEN 'closed' THEN 0 ELSE 1 END::double precision),
                               ('leasehold_provider_calls_succeeded_total', 'counter', p.succeeded::double precision),
                               ('leasehold_provider_calls_failed_total', 'counter', p.failed::double precision))
                    AS m (name, type, value);
    END IF;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.metrics', 'instant',
    'figures for Prometheus, about the companies that the caller may see; for leasehold_admin and pg_monitor about all, and the workers',
    'leasehold_admin', 'leasehold_app', 'leasehold_auditor', 'pg_monitor');

-- Housekeeping: plain functions whose clock the worker is.

-- The worker does each duty in a transaction of its own, so that one that cannot be
-- done does not keep the others from being done.
CREATE FUNCTION leasehold_internal.housekeep(
        duty text, shards smallint[], lease_days integer, audit_days integer, reconcile_seconds integer)
    RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_count integer;
BEGIN
    CASE duty
    WHEN 'partitions' THEN
        IF 0 = ANY (shards) THEN
            BEGIN
                PERFORM leasehold_internal.make_audit_partitions();
                PERFORM leasehold_internal.drop_audit_partitions(pg_catalog.make_interval(days => audit_days));
            EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
                RAISE LOG 'leasehold: partitions of the audit trail have to wait, as somebody uses it: %', SQLERRM;
            END;
        END IF;
    -- in batches, and what a user has locked another time
    WHEN 'idempotency_keys' THEN
        IF 0 = ANY (shards) THEN
            DELETE FROM leasehold_internal.idempotency_keys AS k
             USING (SELECT x.company_id, x.function_name, x.key FROM leasehold_internal.idempotency_keys AS x
                     WHERE x.created_at < pg_catalog.now() - interval '24 hours'
                     LIMIT 10000 FOR UPDATE SKIP LOCKED) AS o
             WHERE k.company_id = o.company_id AND k.function_name = o.function_name AND k.key = o.key;
            GET DIAGNOSTICS v_count = ROW_COUNT;
            RETURN v_count = 10000;
        END IF;
    WHEN 'leases' THEN
        WITH old AS (
            SELECT l.company_id, l.id FROM leasehold.leases AS l
             WHERE l.ended_at < pg_catalog.now() - pg_catalog.make_interval(days => lease_days)
               AND l.status IN ('released', 'expired', 'failed', 'forgotten', 'written_off')
               AND leasehold_internal.shard_of(l.company_id) = ANY (shards)
             LIMIT 1000 FOR UPDATE SKIP LOCKED
        )
        DELETE FROM leasehold.leases AS l USING old AS o WHERE l.company_id = o.company_id AND l.id = o.id;
        GET DIAGNOSTICS v_count = ROW_COUNT;
        RETURN v_count = 1000;
    WHEN 'places' THEN
        PERFORM leasehold_internal.give_places(limits_changed => true);
    WHEN 'takeover' THEN
        -- what recover_calls() had to leave, as somebody had it locked
        PERFORM leasehold_internal.take_over_calls(
            ARRAY(SELECT w.epoch FROM leasehold_internal.worker_states() AS w WHERE w.pid IS NOT NULL), shards,
            pg_catalog.current_setting('leasehold.crash_limit')::integer, true, pg_catalog.now() - interval '1 minute');
    WHEN 'rebuild' THEN
        PERFORM leasehold_internal.rebuild_calls(shards);
    WHEN 'reconcile' THEN
        PERFORM leasehold_internal.revive_quarantined(shards);
        IF reconcile_seconds > 0 THEN
            PERFORM leasehold_internal.ensure_reconciles(shards, pg_catalog.make_interval(secs => reconcile_seconds));
        ELSE
            DELETE FROM leasehold_internal.calls AS c
             USING (SELECT x.company_id, x.subject_id, x.slot FROM leasehold_internal.calls AS x
                     WHERE x.operation = 'reconcile' AND x.state = 'queued' AND x.shard = ANY (shards)
                       FOR UPDATE SKIP LOCKED) AS o
             WHERE c.company_id = o.company_id AND c.subject_id = o.subject_id AND c.slot = o.slot;
        END IF;
    END CASE;
    RETURN false;
END
$$;
COMMENT ON FUNCTION leasehold_internal.housekeep(text, smallint[], integer, integer, integer) IS
    'Does one duty of housekeeping; returns whether more of it is likely to be left';
-- 99_finish.sql: owners, grants, what is dumped, and the announcement.

-- Everything belongs to leasehold_owner; nothing runs with a superuser's rights.
DO $$
DECLARE
    v_object record;
BEGIN
    FOR v_object IN
        SELECT CASE i.type WHEN 'type' THEN 'domain' ELSE i.type END AS type, i.identity
          FROM pg_catalog.pg_depend AS d
          JOIN pg_catalog.pg_extension AS e ON e.oid = d.refobjid AND e.extname = 'leasehold'
         CROSS JOIN LATERAL pg_catalog.pg_identify_object(d.classid, d.objid, d.objsubid) AS i
         WHERE d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass AND d.deptype = 'e'
           AND (i.type IN ('function', 'table', 'view', 'sequence', 'schema')
                OR EXISTS (SELECT FROM pg_catalog.pg_type AS t
                            WHERE d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass AND t.oid = d.objid AND t.typtype = 'd'))
    LOOP
        EXECUTE pg_catalog.format('ALTER %s %s OWNER TO leasehold_owner', pg_catalog.upper(v_object.type), v_object.identity);
    END LOOP;
END
$$;

-- these look at all companies: see their comments
ALTER FUNCTION leasehold_internal.occupied_slots(uuid, uuid, text) OWNER TO leasehold_worker;
ALTER FUNCTION leasehold_internal.all_live_leases() OWNER TO leasehold_worker;
ALTER FUNCTION leasehold_internal.invitations_of(name) OWNER TO leasehold_worker;

-- Nobody may do anything (publish() has seen to the public functions), except:
DO $$
BEGIN
    PERFORM leasehold_internal.revoke_all('SCHEMA', n.nspname, n.nspacl)
       FROM pg_catalog.pg_namespace AS n WHERE n.nspname IN ('leasehold', 'leasehold_internal');
    PERFORM leasehold_internal.revoke_all(CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END,
                                          c.oid::pg_catalog.regclass::text, c.relacl)
       FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
      WHERE n.nspname IN ('leasehold', 'leasehold_internal') AND c.relkind IN ('r', 'p', 'v', 'S');
    PERFORM leasehold_internal.revoke_all('FUNCTION', p.oid::pg_catalog.regprocedure::text, p.proacl)
       FROM pg_catalog.pg_proc AS p JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
      WHERE n.nspname = 'leasehold_internal' OR n.nspname = 'leasehold' AND p.prosrc <> 'leasehold_gate';
END
$$;
GRANT USAGE ON SCHEMA leasehold
    TO leasehold_worker, leasehold_admin, leasehold_app, leasehold_auditor, leasehold_resolver, pg_monitor;
GRANT USAGE ON SCHEMA leasehold_internal TO leasehold_worker;
GRANT EXECUTE ON FUNCTION leasehold.new_id(), leasehold.acting_role(), leasehold.visible_companies(text),
    leasehold.error_codes(), leasehold.lease_transitions()
    TO leasehold_admin, leasehold_app, leasehold_auditor, leasehold_resolver, leasehold_worker;

GRANT SELECT ON leasehold.companies, leasehold.company_members, leasehold.agents, leasehold.projects, leasehold.routines,
    leasehold.issues, leasehold.execution_workspaces, leasehold.runs, leasehold.environments, leasehold.providers,
    leasehold.provider_access, leasehold.limits, leasehold.leases, leasehold.lease_metadata, leasehold.audit_events,
    leasehold.active_leases, leasehold.lease_timeline, leasehold.cleanup_backlog
    TO leasehold_admin, leasehold_app, leasehold_auditor;
GRANT SELECT ON leasehold.plugins TO leasehold_admin, leasehold_auditor;

GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA leasehold_internal TO leasehold_worker;
GRANT SELECT ON ALL TABLES IN SCHEMA leasehold TO leasehold_worker;
GRANT INSERT, UPDATE, DELETE ON leasehold.leases, leasehold.lease_metadata TO leasehold_worker;
GRANT INSERT ON leasehold.audit_events TO leasehold_worker;
GRANT UPDATE ON leasehold.plugins TO leasehold_worker;
GRANT USAGE ON SEQUENCE leasehold_internal.worker_epoch TO leasehold_worker;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA leasehold_internal TO leasehold_worker;
GRANT EXECUTE ON FUNCTION leasehold_internal.occupied_slots(uuid, uuid, text), leasehold_internal.all_live_leases(),
    leasehold_internal.invitations_of(name) TO leasehold_owner;
REVOKE EXECUTE ON FUNCTION leasehold_internal.publish(regproc, text, text, text[]),
    leasehold_internal.protect(regclass, text, text),
    leasehold_internal.revoke_all(text, text, aclitem[]) FROM leasehold_worker;

-- Dumped with the database: all but what is derived (calls) or node-local.
DO $$
DECLARE
    v_table text;
BEGIN
    FOREACH v_table IN ARRAY ARRAY[
        'leasehold.companies', 'leasehold.company_members', 'leasehold.plugins', 'leasehold.provider_access',
        'leasehold.limits', 'leasehold.leases', 'leasehold.lease_metadata', 'leasehold.audit_events_default',
        'leasehold_internal.installation', 'leasehold_internal.allowed_hosts', 'leasehold_internal.agents',
        'leasehold_internal.projects', 'leasehold_internal.routines', 'leasehold_internal.execution_workspaces',
        'leasehold_internal.issues', 'leasehold_internal.runs', 'leasehold_internal.run_tokens',
        'leasehold_internal.environments', 'leasehold_internal.environment_configs',
        'leasehold_internal.provider_resources', 'leasehold_internal.idempotency_keys'] LOOP
        PERFORM pg_catalog.pg_extension_config_dump(v_table::pg_catalog.regclass, '');
    END LOOP;
    PERFORM pg_catalog.pg_extension_config_dump('leasehold.providers'::pg_catalog.regclass, 'WHERE plugin_key IS NOT NULL');
END
$$;
SELECT pg_catalog.pg_extension_config_dump('leasehold_internal.worker_epoch'::pg_catalog.regclass, '');

-- A drop begins with loading the library that guards it.
CREATE FUNCTION leasehold_internal.guard_drop() RETURNS event_trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'leasehold_guard_drop';
SELECT leasehold_internal.revoke_all('FUNCTION', p.oid::pg_catalog.regprocedure::text, p.proacl)
  FROM pg_catalog.pg_proc AS p WHERE p.oid = 'leasehold_internal.guard_drop()'::pg_catalog.regprocedure;
COMMENT ON FUNCTION leasehold_internal.guard_drop() IS 'Loads the library, whose hook guards DROP EXTENSION';
CREATE EVENT TRIGGER leasehold_guard_drop ON ddl_command_start
    WHEN TAG IN ('DROP EXTENSION', 'DROP OWNED')
    EXECUTE FUNCTION leasehold_internal.guard_drop();
ALTER EVENT TRIGGER leasehold_guard_drop ENABLE ALWAYS;
COMMENT ON EVENT TRIGGER leasehold_guard_drop IS 'Loads the library, whose hook guards DROP EXTENSION';

CREATE FUNCTION leasehold_internal.announce_extension() RETURNS void
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_announce_extension';
SELECT leasehold_internal.revoke_all('FUNCTION', p.oid::pg_catalog.regprocedure::text, p.proacl)
  FROM pg_catalog.pg_proc AS p WHERE p.oid = 'leasehold_internal.announce_extension()'::pg_catalog.regprocedure;
COMMENT ON FUNCTION leasehold_internal.announce_extension() IS 'Tells the launcher of this database';
SELECT leasehold_internal.announce_extension();
