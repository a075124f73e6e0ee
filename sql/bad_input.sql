-- Bad input: every public function, every argument, every kind of bad value, from
-- the catalog.  Each call goes through, since the value was not so bad after
-- all, or ends with one of the documented errors or the server's own for values
-- that are not of the type; and nothing stays written.
\pset format unaligned
\pset tuples_only on
SET client_min_messages = error;
-- somebody who may do everything, so that nothing hides behind a privilege
CREATE ROLE regress_all LOGIN IN ROLE leasehold_admin, leasehold_app, leasehold_auditor, leasehold_resolver;
SELECT leasehold.grant_company('acme', 'regress_all', 'manager', asserts_actor => true);
SELECT leasehold.upsert_agent(test.id('bi agent'), company => 'acme') IS NOT NULL AND leasehold.upsert_issue(test.id('bi issue'), company => 'acme') IS NOT NULL
   AND leasehold.upsert_project(test.id('bi project'), company => 'acme') IS NOT NULL AND leasehold.upsert_routine(test.id('bi routine'), company => 'acme') IS NOT NULL
   AND leasehold.upsert_execution_workspace(test.id('bi ws'), company => 'acme') IS NOT NULL AND leasehold.start_run(run_id => test.id('bi run'), company => 'acme') IS NOT NULL
   AND leasehold.request_lease('plain', lease_id => test.id('bi lease'), company => 'acme') IS NOT NULL
   AND leasehold.request_lease('plain', lease_id => test.id('bi beta lease'), company => 'beta') IS NOT NULL AS made;
SELECT test.eventually('active', format('SELECT test.lease(%L)', l), 'active') FROM unnest(ARRAY['bi lease', 'bi beta lease']) AS l;
SELECT leasehold.start_command(test.id('bi lease'), shell => 'true', command_id => test.id('bi command'), company => 'acme') IS NOT NULL AS started;
SELECT test.is('a command has run', (leasehold.wait_for_command(test.id('bi command'), '30 seconds', 'acme')).outcome, 'exited');
SELECT test.quiet();
SELECT leasehold.pause_worker();
SELECT leasehold.register_plugin('{"id": "bi-plugin", "apiVersion": 1, "version": "1", "displayName": "x", "capabilities": ["environment.drivers.register"],
    "environmentDrivers": [{"driverKey": "bi-driver", "displayName": "x", "configSchema": {}}]}', '{"type": "http", "url": "https://plugin.invalid/rpc"}') AS registered;

-- A good value for every argument that must have one, by function and name, or by name alone.
CREATE TEMP TABLE good (function text, argument text, value text);
INSERT INTO good VALUES
    ('', 'company', 'acme'), ('create_company', 'company', 'bi-new'), ('', 'environment', 'plain'), ('create_environment', 'environment', 'bi-new'), ('', 'provider', 'fake'),
    ('', 'lease_id', test.id('bi lease')::text), ('', 'command_id', test.id('bi command')::text), ('', 'shell', 'true'), ('', 'run_id', test.id('bi run')::text), ('', 'agent_id', test.id('bi agent')::text), ('', 'issue_id', test.id('bi issue')::text),
    ('', 'project_id', test.id('bi project')::text), ('', 'routine_id', test.id('bi routine')::text), ('', 'execution_workspace_id', test.id('bi ws')::text),
    ('', 'to_role', 'regress_nobody'), ('', 'from_role', 'regress_viewer'), ('', 'name', 'active_leases'), ('', 'host', 'host'), ('', 'reason', 'because'), ('', 'provider_lease_id', 'sandbox://bi'),
    ('', 'plugin', 'bi-plugin'), ('', 'transport', '{"type": "http", "url": "https://plugin.invalid/rpc"}'),
    ('', 'manifest', '{"id": "bi-other", "apiVersion": 1, "version": "1", "displayName": "x", "capabilities": ["environment.drivers.register"], "environmentDrivers": [{"driverKey": "bi-other", "displayName": "x", "configSchema": {}}]}');

-- Bad values by type; NULL stands for NULL.
CREATE TEMP TABLE bad (type text, label text, value text);
INSERT INTO bad SELECT 'text', v.* FROM (VALUES ('null', NULL), ('empty', ''), ('a blank', ' '), ('a line', E'a\nb'), ('a control character', E'a\x01b'), ('delete', E'\x7f'),
    ('an injection', 'x''; DROP TABLE leasehold.leases; --'), ('a dollar', '$$ || $1'), ('a format', '%s%n%I%L%%'), ('a backslash', 'a\''b'), ('a quote', '"'),
    ('a JSON end', '"}]'), ('capitals', 'ACME'), ('an accent', 'ä'), ('right to left', U&'\202Eacme'), ('an emoji', '🦆'), ('a zero-width joiner', U&'ac\200Dme'),
    ('63 characters', repeat('x', 63)), ('64 characters', repeat('x', 64)), ('many characters', repeat('x', 100000)), ('too many', repeat('x', 1100000)), ('a schema', 'pg_catalog.pg_class'), ('a path', '../../etc/passwd'),
    ('a number', '5'), ('an id', test.id('bi lease')::text)) AS v;
INSERT INTO bad SELECT 'uuid', v.* FROM (VALUES ('null', NULL), ('no id', 'acme'), ('empty', ''), ('nil', '00000000-0000-0000-0000-000000000000'), ('the last', 'ffffffff-ffff-ffff-ffff-ffffffffffff'),
    ('of nobody', test.id('of nobody')::text), ('of another company', test.id('bi beta lease')::text), ('of another kind', test.id('bi project')::text)) AS v;
INSERT INTO bad SELECT 'jsonb', v.* FROM (VALUES ('null', NULL), ('a JSON null', 'null'), ('a list', '[]'), ('a list of objects', '[{}]'), ('a text', '"x"'), ('a number', '5'), ('true', 'true'), ('no JSON', '{'), ('empty', ''),
    ('an empty object', '{}'), ('an unknown key', '{"unknown": 1}'), ('an empty key', '{"": ""}'), ('a zero byte', '{"a": "\u0000"}'), ('a large number', '{"timeoutMs": 1e400}'), ('a null in it', '{"image": null}'),
    ('depth', repeat('{"a":', 500) || '1' || repeat('}', 500)), ('a large one', '{"a": "' || repeat('x', 300000) || '"}'), ('a too large one', '{"a": "' || repeat('x', 1100000) || '"}'),
    ('many keys', (SELECT jsonb_object_agg('K' || i, 'v')::text FROM generate_series(1, 5000) AS i)), ('a reference', '{"A": {"$secret": "x"}}'), ('a list for a text', '{"id": [], "displayName": [], "type": [], "url": []}'),
    ('an injection', '{"x''; DROP TABLE leasehold.leases; --": "x"}')) AS v;
INSERT INTO bad SELECT 'interval', v.* FROM (VALUES ('null', NULL), ('no time', 'soon'), ('empty', ''), ('zero', '0'), ('backwards', '-1 hour'), ('half a second', '0.5 seconds'), ('a year and a day', '366 days'),
    ('a month', '1 month'), ('for ever', '170000000 years'), ('too long', '1 year 170000000000 years'), ('mixed', '1 month -31 days')) AS v;
INSERT INTO bad SELECT t, v.* FROM unnest(ARRAY['integer', 'bigint']) AS t, (VALUES ('null', NULL), ('no number', 'x'), ('below zero', '-1'), ('zero', '0'), ('large', '2147483647'), ('too large', '9223372036854775808'), ('a fraction', '1.5')) AS v;
INSERT INTO bad SELECT 'boolean', v.* FROM (VALUES ('null', NULL), ('perhaps', 'perhaps'), ('empty', '')) AS v;
INSERT INTO bad SELECT 'text[]', v.* FROM (VALUES ('null', NULL), ('empty', '{}'), ('a null in it', '{NULL}'), ('no network', '{x}'), ('an empty one', '{""}'), ('bits beyond the mask', '{10.0.0.1/8}'), ('a matrix', '{{10.0.0.0/8},{fd00::/8}}'),
    ('no list', 'x'), ('too many', (SELECT array_agg('10.0.0.0/8'::text)::text FROM generate_series(1, 101))), ('far too many', (SELECT array_agg('10.0.0.0/8'::text)::text FROM generate_series(1, 60000)))) AS v;

CREATE TEMP VIEW arguments AS
SELECT p.oid, p.proname, p.prokind, p.pronargs, p.pronargdefaults, a.nr, p.proargnames[a.nr] AS name, format_type(a.type, NULL) AS type, a.nr <= p.pronargs - p.pronargdefaults AS required,
       -- a command is argv or shell: neither is required by itself
       p.proname IN ('start_command', 'check_command') AND p.proargnames[a.nr] = 'shell' AS needed,
       COALESCE((SELECT g.value FROM good AS g WHERE g.function = p.proname AND g.argument = p.proargnames[a.nr]), (SELECT g.value FROM good AS g WHERE g.function = '' AND g.argument = p.proargnames[a.nr])) AS good
  FROM pg_proc AS p, unnest(p.proargtypes) WITH ORDINALITY AS a (type, nr)
 WHERE p.pronamespace = 'leasehold'::regnamespace;
SELECT test.is('there are bad values for every type', string_agg(DISTINCT a.type, ', '), NULL) FROM arguments AS a WHERE a.prokind = 'f' AND a.type NOT IN (SELECT b.type FROM bad AS b);
SELECT test.is('there are good values for every required argument', string_agg(DISTINCT a.proname || ' ' || a.name, ', '), NULL) FROM arguments AS a WHERE a.required AND a.good IS NULL;

-- How a call ends: "went through", or what it raised; undone in any case.
CREATE TYPE pg_temp.ending AS (state text, code text, message text, detail text);
CREATE FUNCTION pg_temp.call(statement text) RETURNS pg_temp.ending LANGUAGE plpgsql AS $$
DECLARE
    e pg_temp.ending;
BEGIN
    EXECUTE statement;
    RAISE EXCEPTION USING ERRCODE = 'ZZ000';
EXCEPTION
    WHEN SQLSTATE 'ZZ000' THEN RETURN ROW('00000', NULL, 'went through', NULL)::pg_temp.ending;
    WHEN OTHERS THEN
        GET STACKED DIAGNOSTICS e.state = RETURNED_SQLSTATE, e.message = MESSAGE_TEXT, e.detail = PG_EXCEPTION_DETAIL;
        IF e.detail LIKE '{"code": %' THEN
            e.code := e.detail::jsonb ->> 'code';
        END IF;
        RETURN e;
END
$$;
CREATE FUNCTION pg_temp.statement(function oid, argument text, value text) RETURNS text LANGUAGE sql AS $$
    SELECT format('SELECT * FROM leasehold.%I(%s)', p.proname,
                  (SELECT string_agg(format('%I => %L::%s', a.name, CASE WHEN a.name = argument THEN value ELSE a.good END, a.type), ', ' ORDER BY a.nr)
                     FROM arguments AS a WHERE a.oid = function AND (a.required OR a.needed AND argument <> 'argv' OR a.name = argument)))
      FROM pg_proc AS p WHERE p.oid = function $$;
-- what is wrong with an ending, if anything
CREATE FUNCTION pg_temp.blame(e pg_temp.ending) RETURNS text LANGUAGE sql AS $$
    SELECT CASE
        WHEN e.state = '00000' THEN NULL
        -- one of ours, with its SQLSTATE and a message for people
        WHEN e.code IS NOT NULL THEN CASE
            WHEN NOT EXISTS (SELECT FROM test.error_codes AS c WHERE c.code = e.code AND c.sqlstate = e.state) THEN 'undocumented ' || e.state || ' ' || e.code
            WHEN e.message !~ '^[a-zäö]' OR e.message ~ '\.$' OR e.message ~ 'leasehold_internal|plpgsql|violates' OR length(e.message) > 300 THEN 'unclear: ' || left(e.message, 300) END
        -- the server's own: the value is not of the type
        WHEN e.state IN ('22P02', '22007', '22008', '22015', '22003', '22P05', '54000', '2202E') THEN NULL
        ELSE 'raw ' || e.state || ': ' || left(e.message, 200) END $$;
GRANT SELECT ON arguments, good, bad TO regress_all;

SELECT test.fingerprint() AS before \gset
SET ROLE regress_all;
-- the good values are good: each function goes through with them, but for the few that have nothing to do now
SELECT test.is('with good values', string_agg(f.proname || ' ' || COALESCE(e.code, e.state), ', ' ORDER BY f.proname COLLATE "C"),
    'approve_sweep wrong_state, attach_call transaction_block, delete_environment still_in_use, ensure_local_environment provider_forbidden, fork_installation wrong_state, release_quarantine call_not_found, retry_lease wrong_state, takeover_installation wrong_state, write_off_lease wrong_state')
  FROM (SELECT DISTINCT p.oid, p.proname FROM pg_proc AS p WHERE p.pronamespace = 'leasehold'::regnamespace AND p.prokind = 'f') AS f, LATERAL pg_temp.call(COALESCE(pg_temp.statement(f.oid, '', NULL), format('SELECT * FROM leasehold.%I()', f.proname))) AS e
 WHERE e.state <> '00000';
CREATE TEMP TABLE endings AS
SELECT a.proname, a.name, a.type, a.required, b.label, e.state, e.code, e.message, e.detail, pg_temp.blame(e) AS blame
  -- procedures are in procedures.sql
  FROM arguments AS a JOIN bad AS b ON b.type = a.type AND a.prokind = 'f', LATERAL pg_temp.call(pg_temp.statement(a.oid, a.name, b.value)) AS e;
RESET ROLE;
SELECT test.is('more than two thousand calls', count(*) > 2000, true) FROM endings;
SELECT test.is('each function with arguments was called', count(DISTINCT e.proname), (SELECT count(*) FROM pg_proc AS p WHERE p.pronamespace = 'leasehold'::regnamespace AND p.prokind = 'f' AND p.pronargs > 0)) FROM endings AS e;
SELECT 'NOT OK - ' || e.proname || ' ' || e.name || ', ' || e.label || ': ' || e.blame FROM endings AS e WHERE e.blame IS NOT NULL ORDER BY 1;
SELECT test.is('a required argument that is null', string_agg(e.proname || ' ' || e.name || ' ' || COALESCE(e.code, e.state), ', ') FILTER (WHERE e.code IS DISTINCT FROM 'argument_required'), NULL)
  FROM endings AS e WHERE e.required AND e.label = 'null';
SELECT test.is('the message names it', bool_and(e.message = format('argument "%s" must not be null', e.name)), true) FROM endings AS e WHERE e.code = 'argument_required';
SELECT test.is('more than a megabyte', string_agg(e.proname || ' ' || e.name || ' ' || COALESCE(e.code, e.state), ', ') FILTER (WHERE e.code IS DISTINCT FROM 'argument_too_large'), NULL)
  FROM endings AS e WHERE e.type IN ('text', 'jsonb') AND e.label IN ('too many', 'a too large one') AND e.proname <> 'visible_companies';
SELECT test.is('but for the one that has no gate', string_agg(DISTINCT COALESCE(e.code, e.state), ', '), 'argument_invalid') FROM endings AS e WHERE e.proname = 'visible_companies' AND e.label <> 'null';
SELECT test.is('too many networks, or arguments', string_agg(DISTINCT COALESCE(e.code, e.state), ', '), 'argument_too_large') FROM endings AS e WHERE e.type = 'text[]' AND e.label IN ('too many', 'far too many') AND (e.name, e.label) <> ('argv', 'too many');
SELECT test.is('lists that are no commands', string_agg(DISTINCT e.label || ' ' || e.code, ', '), 'a matrix argument_invalid, a null in it argument_invalid, an empty one argument_invalid, empty argument_invalid, far too many argument_too_large, null argument_invalid')
  FROM endings AS e WHERE e.name = 'argv' AND e.code IS NOT NULL;
-- a script and what it reads are whatever they are
SELECT test.is('a large text is no name, key or reason', string_agg(DISTINCT e.proname || ' ' || e.name, ', '), NULL) FROM endings AS e WHERE e.type = 'text' AND e.label = 'many characters' AND e.state = '00000' AND e.name NOT IN ('shell', 'stdin');
SELECT test.is('control characters get nowhere', string_agg(e.proname || ' ' || e.name, ', '), NULL) FROM endings AS e WHERE e.label IN ('a control character', 'delete') AND e.state = '00000' AND e.name NOT IN ('shell', 'stdin');
SELECT test.is('no key is invented', string_agg(e.proname || ' ' || e.name || ' ' || e.label, ', '), NULL)
  FROM endings AS e WHERE e.name IN ('company', 'environment', 'provider', 'plugin') AND e.type = 'text' AND e.state = '00000'
   AND e.label NOT IN ('null', '63 characters', 'a number', 'an id', 'a schema');
SELECT test.is('durations out of range', string_agg(e.proname || ' ' || e.name || ' ' || e.label, ', '), NULL)
  FROM endings AS e WHERE e.type = 'interval' AND e.state = '00000' AND e.label NOT IN ('null', 'a month')
   -- a wait can be none; a command can be short
   AND NOT (e.name = 'timeout' AND (e.label = 'half a second' OR e.label = 'zero' AND e.proname NOT IN ('start_command', 'check_command')));
SELECT test.is('documents that are no objects', string_agg(e.proname || ' ' || e.name || ' ' || e.label, ', '), NULL)
  FROM endings AS e WHERE e.type = 'jsonb' AND e.state = '00000' AND e.label IN ('a JSON null', 'a list', 'a list of objects', 'a text', 'a number', 'true');
SELECT test.is('environment variables that are none', string_agg(e.proname || ' ' || e.name || ' ' || e.label, ', '), NULL)
  FROM endings AS e WHERE e.name IN ('env', 'env_vars') AND e.state = '00000' AND e.label NOT IN ('null', 'an empty object') AND NOT (e.label = 'a reference' AND e.proname NOT IN ('start_command', 'check_command'));
SELECT test.is('configurations that are none', string_agg(e.proname || ' ' || e.name || ' ' || e.label, ', '), NULL)
  FROM endings AS e WHERE e.name IN ('config', 'manifest', 'transport') AND e.state = '00000' AND e.label NOT IN ('null', 'an empty object')
   -- where it takes a member out
   AND NOT (e.proname = 'update_environment' AND e.label = 'a null in it');
SELECT test.is('nothing was written', test.fingerprint(), :'before');

-- Calls that are none: unknown names of arguments, missing ones, too many.
SELECT test.is('an argument that there is not', string_agg(DISTINCT e.state, ','), '42883')
  FROM pg_proc AS p, LATERAL pg_temp.call(format('SELECT leasehold.%I(no_such_argument => 1)', p.proname)) AS e WHERE p.pronamespace = 'leasehold'::regnamespace;
SELECT test.is('nothing where something is required', string_agg(DISTINCT e.state, ','), '42883')
  FROM pg_proc AS p, LATERAL pg_temp.call(format('SELECT leasehold.%I()', p.proname)) AS e WHERE p.pronamespace = 'leasehold'::regnamespace AND p.pronargs > p.pronargdefaults;
SELECT test.is('no name is overloaded', string_agg(x.proname, ', '), NULL) FROM (SELECT p.proname FROM pg_proc AS p WHERE p.pronamespace = 'leasehold'::regnamespace GROUP BY 1 HAVING count(*) > 1) AS x;
SELECT test.is('arguments for ids end in _id and are uuid, others do not', string_agg(a.proname || ' ' || a.name, ', '), 'import_lease provider_lease_id')
  FROM arguments AS a WHERE (a.name LIKE '%\_id') <> (a.type = 'uuid');
SELECT test.is('durations are intervals', string_agg(a.proname || ' ' || a.name, ', '), NULL) FROM arguments AS a WHERE a.name ~ 'ttl|timeout' AND a.type <> 'interval';

SELECT leasehold.unregister_plugin('bi-plugin');
SELECT leasehold.resume_worker();
SELECT leasehold.finish_run(test.id('bi run'), company => 'acme') AS finished;
SELECT leasehold.release_lease(test.id('bi lease'), company => 'acme') AS released, leasehold.release_lease(test.id('bi beta lease'), company => 'beta') AS released;
SELECT leasehold.revoke_company('acme', 'regress_all');
DROP OWNED BY regress_all;
DROP ROLE regress_all;
