-- Ways into another company, or into the installation, that must lead nowhere.
--
-- mallory is a manager of beta, and nothing in acme.
\pset format unaligned
\pset tuples_only on
SET client_min_messages = error;
SELECT current_user AS me \gset
CREATE ROLE regress_mallory LOGIN IN ROLE leasehold_app;
SELECT leasehold.grant_company('beta', 'regress_mallory', 'manager');
CREATE SCHEMA mallory AUTHORIZATION regress_mallory;
GRANT USAGE ON SCHEMA mallory TO PUBLIC;
SELECT leasehold.upsert_agent(test.id('a agent'), company => 'acme') IS NOT NULL AND leasehold.upsert_agent(test.id('b agent'), company => 'beta') IS NOT NULL AS made;
SELECT leasehold.request_lease('plain', lease_id => test.id('a lease'), company => 'acme') IS NOT NULL AND leasehold.request_lease('plain', lease_id => test.id('b lease'), company => 'beta') IS NOT NULL AS requested;
SELECT test.eventually('active', format('SELECT test.lease(%L)', l), 'active') FROM unnest(ARRAY['a lease', 'b lease']) AS l;

-- A trap for whoever maintains a table: an index and a view whose functions
-- act once they are armed.  A superuser walks in.
SET ROLE regress_mallory;
CREATE TABLE mallory.armed (attack text);
GRANT SELECT ON mallory.armed TO PUBLIC;
CREATE FUNCTION mallory.trap(i int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    attack text;
BEGIN
    SELECT a.attack INTO attack FROM mallory.armed AS a;
    IF attack IS NOT NULL THEN
        EXECUTE attack;
    END IF;
    RETURN i;
END
$$;
CREATE TABLE mallory.bait (i int);
INSERT INTO mallory.bait VALUES (1), (2);
CREATE INDEX bait_index ON mallory.bait (mallory.trap(i));
CREATE MATERIALIZED VIEW mallory.view AS SELECT mallory.trap(i) FROM mallory.bait;
CREATE MATERIALIZED VIEW mallory.leases AS SELECT * FROM leasehold.leases;
RESET ROLE;
CREATE TEMP TABLE attacks (nr serial, label text, attack text);
INSERT INTO attacks (label, attack) VALUES
    ('to become a manager of acme', $$SELECT leasehold.grant_company('acme', 'regress_mallory', 'manager')$$),
    ('to read as an administrator', $$SELECT count(*) FROM leasehold.status()$$),
    ('to get a lease', $$SELECT leasehold.request_lease('plain', company => 'acme')$$),
    ('to choose a company', $$SELECT leasehold.use_company('acme')$$),
    ('to act even for itself', $$SELECT leasehold.upsert_agent(test.id('b agent'), company => 'beta')$$);
SELECT test.quiet();
SELECT test.fingerprint() AS before \gset
SELECT test.refused(a.label || ', by ' || m.command, format('TRUNCATE mallory.armed; INSERT INTO mallory.armed VALUES (%L); %s', a.attack, m.command), 'restricted_operation')
  FROM attacks AS a, unnest(ARRAY['REINDEX TABLE mallory.bait', 'ANALYZE mallory.bait', 'REFRESH MATERIALIZED VIEW mallory.view', 'CLUSTER mallory.bait USING bait_index']) WITH ORDINALITY AS m (command, nr)
 ORDER BY a.nr, m.nr;
SELECT test.is('nothing came of it', test.fingerprint(), :'before');
-- what is not the gate's business says who really acts: the trap's owner
TRUNCATE mallory.armed;
INSERT INTO mallory.armed VALUES ($$SELECT 1 / (leasehold.acting_role() = 'regress_mallory' AND leasehold.visible_companies() = ARRAY[test.id('beta')])::int$$);
SELECT test.works('in the trap the acting role is its owner', 'REINDEX TABLE mallory.bait');
TRUNCATE mallory.armed;
-- a view of leases that a superuser refreshes has its owner's rows
REFRESH MATERIALIZED VIEW mallory.leases;
SELECT test.is('a refreshed view', string_agg(DISTINCT c.key, ','), 'beta') FROM mallory.leases AS l JOIN leasehold.companies AS c ON c.id = l.company_id;

-- Definer functions: the call is its owner's, whoever calls; the session tells who.
SET ROLE regress_user;
CREATE FUNCTION pg_temp.wrapper() RETURNS name LANGUAGE sql SECURITY DEFINER AS $$
    SELECT leasehold.upsert_agent(test.id('wrapped')); SELECT leasehold.acting_role() $$;
RESET ROLE;
SET SESSION AUTHORIZATION regress_nobody;
SELECT test.is('an application''s wrapper acts as its owner', pg_temp.wrapper(), 'regress_user');
RESET SESSION AUTHORIZATION;
SELECT test.is('the event tells both', (e.session_role, e.acting_role)::text, '(regress_nobody,regress_user)') FROM leasehold.audit_events AS e WHERE e.entity_id = test.id('wrapped')::text;
SET ROLE regress_mallory;
CREATE FUNCTION mallory.wrapper() RETURNS void LANGUAGE sql SECURITY DEFINER AS $$ SELECT leasehold.grant_company('acme', 'regress_mallory', 'manager') $$;
CREATE FUNCTION mallory.invoker() RETURNS name LANGUAGE sql AS $$ SELECT leasehold.acting_role() $$;
RESET ROLE;
SELECT test.refused('mallory''s wrapper, called by a superuser', 'SELECT mallory.wrapper()', 'company_not_found');
SET ROLE regress_manager;
SELECT test.refused('and by a manager of acme', 'SELECT mallory.wrapper()', 'company_not_found');
SELECT test.is('an invoker function is its caller''s', mallory.invoker(), 'regress_manager');
RESET ROLE;

-- Roles: nothing trusts the session's user or the setting "role".
SET ROLE regress_mallory;
SELECT test.is('a superuser that became mallory is mallory', (leasehold.acting_role(), (SELECT count(*) FROM leasehold.companies))::text, '(regress_mallory,1)');
RESET ROLE;

-- What was prepared, opened or chosen as one role shows nothing to the next.
PREPARE q AS SELECT string_agg(c.key, ',' ORDER BY c.key) FROM leasehold.companies AS c WHERE c.key IN ('acme', 'beta');
SET plan_cache_mode = force_generic_plan;
SET ROLE regress_manager;
EXECUTE q;
SET ROLE regress_mallory;
EXECUTE q;
SET ROLE regress_nobody;
EXECUTE q;
RESET plan_cache_mode;
RESET ROLE;
DEALLOCATE q;
SET ROLE regress_user;
CREATE FUNCTION pg_temp.opens(c refcursor) RETURNS refcursor LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN OPEN c FOR SELECT l.id FROM leasehold.leases AS l; RETURN c; END $$;
SET ROLE regress_mallory;
BEGIN;
SELECT pg_temp.opens('c');
MOVE ALL IN c;
SELECT test.is('a cursor of a definer is read as who reads it', string_agg((l.company_id = test.id('beta'))::text, ','), NULL) FROM leasehold.leases AS l WHERE l.id = test.id('a lease');
COMMIT;
RESET ROLE;
-- memberships are as of now: seen at once, and undone with their transaction
BEGIN;
SELECT leasehold.grant_company('acme', 'regress_mallory', 'viewer');
SET LOCAL ROLE regress_mallory;
SELECT leasehold.use_company('acme') IS NOT NULL AS chosen;
SELECT test.is('granted', count(*), 1) FROM leasehold.leases AS l WHERE l.id = test.id('a lease');
ROLLBACK;
SET ROLE regress_mallory;
SELECT test.is('undone', count(*), 0) FROM leasehold.leases AS l WHERE l.id = test.id('a lease');
SELECT test.refused('undone', $$SELECT leasehold.use_company('acme')$$, 'company_not_found');

-- A function in WHERE that tells what it sees, and that the planner finds cheap.
CREATE TEMP TABLE seen (company_id uuid);
CREATE FUNCTION pg_temp.leak(company_id uuid) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$ BEGIN INSERT INTO seen VALUES (company_id); RETURN true; END $$;
CREATE OPERATOR pg_temp.<<< (procedure = pg_temp.leak, rightarg = uuid);
SELECT test.works(r, format('SELECT count(*) FROM leasehold.%I AS t WHERE OPERATOR(pg_temp.<<<) t.%I', r, CASE r WHEN 'companies' THEN 'id' ELSE 'company_id' END))
  FROM unnest(ARRAY['companies', 'company_members', 'agents', 'projects', 'routines', 'issues', 'execution_workspaces', 'runs', 'environments',
                    'provider_access', 'limits', 'leases', 'lease_metadata', 'commands', 'command_output', 'audit_events', 'active_leases', 'lease_timeline', 'cleanup_backlog']) AS r;
RESET ROLE;
SELECT test.is('it saw beta''s rows', count(*) > 5, true) FROM seen WHERE company_id = test.id('beta');
SELECT test.is('and no others', count(*), 0) FROM seen WHERE company_id <> test.id('beta');
DROP TABLE seen;
-- without row security there is nothing
SET ROLE regress_mallory;
SET row_security = off;
SELECT test.fails('row security turned off', 'SELECT count(*) FROM leasehold.leases', '42501');
RESET row_security;
RESET ROLE;

-- A privilege that somebody gave by mistake: the functions are still the only way to write.
GRANT INSERT, UPDATE, DELETE ON leasehold.leases, leasehold.company_members, leasehold.lease_metadata TO regress_mallory;
SET ROLE regress_mallory;
SELECT test.fails('a membership of its own company', $$INSERT INTO leasehold.company_members (company_id, role_name, role_oid, level, system_identifier) VALUES (test.id('beta'), 'regress_user', 'regress_user'::regrole, 'user', '1')$$, '42501');
WITH changed AS (UPDATE leasehold.leases SET provider_lease_id = 'sandbox://other' WHERE id = test.id('b lease') RETURNING 1) SELECT test.is('its lease is not changed', count(*), 0) FROM changed;
WITH gone AS (DELETE FROM leasehold.company_members RETURNING 1) SELECT test.is('nor is a membership removed', count(*), 0) FROM gone;
SELECT test.fails('nor is anything said of a resource', $$INSERT INTO leasehold.lease_metadata (company_id, lease_id, metadata) VALUES (test.id('beta'), test.id('b lease'), '{}')$$, '42501');
RESET ROLE;
REVOKE INSERT, UPDATE, DELETE ON leasehold.leases, leasehold.company_members, leasehold.lease_metadata FROM regress_mallory;

-- A manager of one company and the roles that it has no say over.
SET ROLE regress_mallory;
SELECT leasehold.grant_company('beta', r, 'user') FROM unnest(ARRAY['regress_user', 'regress_nobody', :'me']) AS r;
SET ROLE regress_user;
SELECT test.works('who has a company is not made ambiguous', $$SELECT leasehold.upsert_agent(test.id('a agent'))$$);
SET ROLE regress_nobody;
SELECT test.refused('who has none is not drawn in', $$SELECT leasehold.upsert_agent(test.id('a agent'))$$, 'company_ambiguous');
SET ROLE regress_mallory;
SELECT leasehold.revoke_company('beta', r) FROM unnest(ARRAY['regress_user', 'regress_nobody', :'me']) AS r;
RESET ROLE;

-- Who can act as the owner or the worker is past all of this; the doctor says so.
SELECT test.is('nobody can', count(*), 0) FROM leasehold.doctor() AS d WHERE d.code = 'role_has_members';
GRANT leasehold_owner TO regress_stranger;
GRANT leasehold_worker TO regress_stranger;
SELECT test.is('the doctor tells', string_agg(d.severity || ': ' || d.finding || '. ' || d.what_to_do, E'\n' ORDER BY d.finding),
    E'warning: role "regress_stranger" is a member of "leasehold_owner", and so is kept out of no company. REVOKE leasehold_owner FROM regress_stranger; grant leasehold_admin to who runs the installation.\n'
    'warning: role "regress_stranger" is a member of "leasehold_worker", and so is kept out of no company. REVOKE leasehold_worker FROM regress_stranger; grant leasehold_admin to who runs the installation.')
  FROM leasehold.doctor() AS d WHERE d.code = 'role_has_members';
REVOKE leasehold_owner, leasehold_worker FROM regress_stranger;

-- Names: own functions, operators, tables and types, first in the path and in
-- pg_temp, that say so if they are taken for the system's or ours.
CREATE ROLE regress_hijacker LOGIN IN ROLE leasehold_app, leasehold_admin;
SELECT leasehold.grant_company('acme', 'regress_hijacker', 'manager', asserts_actor => true);
CREATE SCHEMA hijack AUTHORIZATION regress_hijacker;
\c - regress_hijacker
\pset format unaligned
\pset tuples_only on
DO $$
DECLARE
    f      record;
    common oidvector := (SELECT string_agg(t::regtype::oid::text, ' ')::oidvector
        FROM unnest(ARRAY['uuid', 'text', 'name', 'oid', 'bool', 'int4', 'int8', 'int2', 'timestamptz', 'interval', 'jsonb', 'uuid[]', 'text[]', 'float8', 'numeric', 'bytea', 'regclass', 'xid', 'cstring']) AS t);
BEGIN
    -- every function of the system whose arguments are of the kinds that we use
    FOR f IN SELECT p.proname, p.proargtypes, format_type(p.prorettype, NULL) AS result, p.proretset,
                    (SELECT string_agg(format_type(a, NULL), ', ' ORDER BY n) FROM unnest(p.proargtypes) WITH ORDINALITY AS x (a, n)) AS arguments
               FROM pg_proc AS p
              WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f' AND NOT p.proretset AND p.provariadic = 0
                AND p.proargtypes::oid[] <@ common::oid[] AND p.prorettype = ANY (common::oid[]) AND p.prorettype <> 'cstring'::regtype AND NOT 'cstring'::regtype = ANY (p.proargtypes::oid[]) LOOP
        EXECUTE format('CREATE FUNCTION hijack.%I(%s) RETURNS %s LANGUAGE plpgsql AS %L', f.proname, f.arguments, f.result,
                       format('BEGIN RAISE EXCEPTION ''hijacked: %s''; END', f.proname));
    END LOOP;
    FOR f IN SELECT o.oprname, o.oprleft, o.oprright, o.oprresult FROM pg_operator AS o
              WHERE o.oprnamespace = 'pg_catalog'::regnamespace AND o.oprleft = ANY (common::oid[]) AND o.oprright = ANY (common::oid[]) AND o.oprresult = ANY (common::oid[]) LOOP
        EXECUTE format('CREATE FUNCTION hijack.%I(%s, %s) RETURNS %s LANGUAGE plpgsql AS %L', 'op ' || f.oprname, format_type(f.oprleft, NULL), format_type(f.oprright, NULL),
                       format_type(f.oprresult, NULL), format('BEGIN RAISE EXCEPTION ''hijacked: operator %s''; END', replace(f.oprname, '%', '%%')));
        EXECUTE format('CREATE OPERATOR hijack.%s (procedure = hijack.%I, leftarg = %s, rightarg = %s)', f.oprname, 'op ' || f.oprname, format_type(f.oprleft, NULL), format_type(f.oprright, NULL));
    END LOOP;
END
$$;
SELECT count(*) > 500 AS many FROM pg_proc WHERE pronamespace = 'hijack'::regnamespace;
CREATE TEMP TABLE companies (id uuid, key text);
CREATE TEMP TABLE leases (LIKE leasehold.leases);
CREATE TEMP TABLE pg_roles (rolname name, oid oid);
CREATE TEMP TABLE target (a int);
CREATE TEMP TABLE lease (a int);
CREATE DOMAIN pg_temp.uuid AS pg_catalog.int4;
CREATE DOMAIN pg_temp.jsonb AS pg_catalog.int4;
CREATE DOMAIN pg_temp.interval AS pg_catalog.int4;
CREATE FUNCTION pg_temp.now() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'hijacked: now'; END $$;
\set path 'SET search_path = hijack, pg_temp, leasehold_internal, leasehold, pg_catalog'
:path;
-- the trap is set: taken by name, even this is the hijacker's
SELECT pg_catalog.left(message, 18) FROM test.error('SELECT now()');
SELECT pg_catalog.left(message, 27) FROM test.error('SELECT ''a''::text = ''a''::text');
-- but nothing of ours falls into it
SELECT test.id('h env') AS env, test.id('h agent') AS agent, test.id('h issue') AS issue, test.id('h run') AS run, test.id('h ws') AS ws, test.id('h lease') AS lease, test.id('h project') AS project \gset
RESET search_path;
SELECT 'SELECT leasehold.' || s AS statement INTO TEMP TABLE pg_temp.calls
  FROM unnest(ARRAY[$$use_company('acme', 'user:h')$$, $$pre_request()$$, $$status()$$, $$metrics()$$,
    $$upsert_project('$$ || :'project' || $$', 'p', '{"A": "b"}', '{"m": 1}')$$, $$upsert_agent('$$ || :'agent' || $$', 'a', 'codex_local', '{"A": "b"}', '{"m": 1}')$$,
    $$upsert_routine('$$ || :'agent' || $$', 'a', '{"A": "b"}', '{"m": 1}')$$, $$upsert_execution_workspace('$$ || :'ws' || $$', 'w', '$$ || :'project' || $$', 'm')$$,
    $$upsert_issue('$$ || :'issue' || $$', 'i', 'open', false, '$$ || :'project' || $$', '$$ || :'ws' || $$')$$,
    $$create_environment('hijack', 'fake', '{"image": "a", "delayMs": 1, "reuseLease": true}', 'n', 'd', '{"A": "b"}', '{"m": 1}', '$$ || :'env' || $$')$$,
    $$update_environment('hijack', '{"image": "b"}', 'n2', 'd2', '{"A": "c"}', '{"m": 2}', expected_version => 1)$$, $$environment_impact('hijack')$$,
    $$start_run('$$ || :'agent' || $$', '$$ || :'issue' || $$', '$$ || :'project' || $$', '$$ || :'agent' || $$', '$$ || :'ws' || $$', '5 minutes', true, '{"A": "b"}', '{"m": 1}', '$$ || :'run' || $$', 'key')$$,
    $$heartbeat('$$ || :'run' || $$')$$,
    $$request_lease('hijack', run_id => '$$ || :'run' || $$', ttl => '1 hour', idle_timeout => '1 hour', lease_id => '$$ || :'lease' || $$', idempotency_key => 'key')$$,
    $$import_lease('hijack', 'sandbox://h', '$$ || :'agent' || $$', '$$ || :'issue' || $$', '$$ || :'run' || $$', '$$ || :'ws' || $$', '1 hour', '1 hour', '{"m": 1}')$$,
    $$wait_for_lease('$$ || :'lease' || $$', '0 seconds')$$, $$release_run_leases('$$ || :'run' || $$')$$, $$destroy_reusable_leases('$$ || :'issue' || $$')$$,
    $$destroy_lease('$$ || :'lease' || $$', 'r')$$, $$finish_run('$$ || :'run' || $$', 'failed', 'e', 'c')$$, $$archive_environment('hijack')$$, $$archive_agent('$$ || :'agent' || $$')$$,
    $$grant_company('acme', 'regress_nobody', 'viewer')$$, $$revoke_company('acme', 'regress_nobody')$$]) AS s;
:path;
DO $$
DECLARE
    c record;
    e record;
BEGIN
    FOR c IN SELECT statement FROM pg_temp.calls LOOP
        BEGIN
            EXECUTE c.statement;
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'NOT OK - %: %', c.statement, SQLERRM;
        END;
    END LOOP;
END
$$;
SELECT test.error($$SELECT leasehold.request_lease('hijack')$$);
RESET search_path;
SELECT test.is('the calls did what they say', (l.status IN ('releasing', 'released'), r.status, e.config_version, e.config)::text, '(t,failed,2,"{""image"": ""b"", ""delayMs"": 1, ""reuseLease"": true}")')
  FROM leasehold.leases AS l, leasehold.runs AS r, leasehold.environments AS e WHERE l.id = :'lease' AND r.id = :'run' AND e.id = :'env';
-- reading, with hostile names around
:path;
SELECT pg_catalog.count(*) OPERATOR(pg_catalog.>) 0 FROM leasehold.leases;
SELECT pg_catalog.count(*) OPERATOR(pg_catalog.>) 0 FROM leasehold.environments;
RESET search_path;

-- Settings of the session that change how text is read: nothing of ours reads differently.
\c - regress_hijacker
\pset format unaligned
\pset tuples_only on
SET client_min_messages = error;
SET standard_conforming_strings = off;
SET escape_string_warning = off;
SET backslash_quote = on;
SET transform_null_equals = on;
SET quote_all_identifiers = on;
SET intervalstyle = 'iso_8601';
SET datestyle = 'SQL, DMY';
SET timezone = 'Asia/Kathmandu';
SET bytea_output = 'escape';
SET extra_float_digits = -15;
SET default_transaction_isolation = 'serializable';
SET plpgsql.extra_errors = 'all';
SELECT test.is('a request', leasehold.request_lease('plain', lease_id => test.id('odd settings'), ttl => 'PT1H', idempotency_key => 'odd') = test.id('odd settings'), true);
SELECT test.is('again', leasehold.request_lease('plain', lease_id => test.id('odd settings'), ttl => '1 hour', idempotency_key => 'odd') = test.id('odd settings'), true);
SELECT test.is('active', (leasehold.wait_for_lease(test.id('odd settings'), 'PT30S')).status, 'active');
SELECT test.is('given back', leasehold.release_lease(test.id('odd settings')), 'releasing');
SELECT test.refused('control characters', $$SELECT leasehold.upsert_agent(test.id('x'), E'a\x07b')$$, 'argument_invalid');
SELECT test.refused('one of our own roles', $$SELECT leasehold.grant_company('acme', 'leasehold_admin')$$, 'role_unsuitable');
SELECT test.refused('a key', $$SELECT leasehold.create_environment('a b', 'fake')$$, 'key_invalid');

-- Types of one's own are turned into ours before the call, as oneself.
\c - regress_mallory
\pset format unaligned
\pset tuples_only on
SET client_min_messages = error;
CREATE TYPE mallory.lure AS (t text);
CREATE FUNCTION mallory.to_text(l mallory.lure) RETURNS text LANGUAGE plpgsql AS $$ BEGIN IF leasehold.acting_role() <> 'regress_mallory' OR current_user <> 'regress_mallory' THEN RAISE EXCEPTION 'inside'; END IF; RETURN (l).t; END $$;
CREATE CAST (mallory.lure AS text) WITH FUNCTION mallory.to_text(mallory.lure) AS IMPLICIT;
CREATE FUNCTION mallory.check_id(u uuid) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN IF leasehold.acting_role() <> 'regress_mallory' OR current_user <> 'regress_mallory' THEN RAISE EXCEPTION 'inside'; END IF; RETURN true; END $$;
CREATE DOMAIN mallory.id AS uuid CHECK (mallory.check_id(VALUE));
SELECT test.works('a hostile cast', $$SELECT leasehold.environment_impact(ROW('plain')::mallory.lure)$$);
SELECT test.works('a hostile domain', $$SELECT leasehold.upsert_agent(test.id('b agent')::mallory.id)$$);
SELECT test.refused('acme by a cast', $$SELECT leasehold.environment_impact('plain', company => ROW('acme')::mallory.lure)$$, 'company_not_found');

-- Roles: nobody becomes another.
SELECT test.fails('another role''s name', 'SET ROLE regress_manager', '42501');
SELECT test.fails('by way of the setting', $$SELECT set_config('role', 'regress_manager', false)$$, '42501');
SELECT test.fails('another session', 'SET SESSION AUTHORIZATION regress_manager', '42501');

-- Nothing internal can be called, nor the gate be given another name.
SELECT test.fails('what is internal', $$SELECT leasehold_internal.choose_company('acme', NULL)$$, '42501');
SELECT test.fails('an own gate', $$CREATE FUNCTION mallory.end_leases() RETURNS void LANGUAGE c AS '$libdir/leasehold', 'leasehold_gate'$$, '42501');
SELECT test.fails('an own wrapper of what is internal', $$CREATE FUNCTION mallory.inner() RETURNS uuid LANGUAGE sql BEGIN ATOMIC SELECT leasehold_internal.choose_company('acme', NULL); END$$, '42501');
SELECT test.fails('an own rule', $$CREATE RULE r AS ON INSERT TO leasehold.leases DO ALSO NOTHING$$, '42501');
SELECT test.fails('an own trigger', $$CREATE TRIGGER t BEFORE INSERT ON leasehold.leases FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()$$, '42501');
SELECT test.fails('an own policy', $$CREATE POLICY p ON leasehold.leases USING (true)$$, '42501');
SELECT test.fails('our owner', $$SET ROLE leasehold_owner$$, '42501');
SELECT test.fails('our worker', $$SET ROLE leasehold_worker$$, '42501');
-- not even a superuser gets past the gate's own checks by calling inside
\c - :me
\pset format unaligned
\pset tuples_only on
SELECT test.fails('outside of a call there is no company to enter', $$SELECT leasehold_internal.enter_company('acme', 'user')$$, 'XX000');
SELECT test.is('acme has no new members', string_agg(m.role_name, ','), NULL) FROM leasehold.company_members AS m WHERE m.company_id = test.id('acme') AND m.role_name IN ('regress_mallory', 'regress_nobody');
SELECT leasehold.release_lease(test.id('a lease'), company => 'acme') IS NOT NULL AND leasehold.release_lease(test.id('b lease'), company => 'beta') IS NOT NULL AS released;
SELECT leasehold.revoke_company('beta', 'regress_mallory');
SELECT leasehold.revoke_company('acme', 'regress_hijacker');
SET client_min_messages = error;
DROP SCHEMA mallory, hijack CASCADE;
DROP OWNED BY regress_mallory, regress_hijacker;
DROP ROLE regress_mallory, regress_hijacker;
