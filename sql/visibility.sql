-- What views, functions and errors tell: of other companies nothing, not even
-- that they exist.  zeta leaves its name wherever it can.
\pset format unaligned
\pset tuples_only on
SET client_min_messages = error;
CREATE ROLE regress_zeta LOGIN IN ROLE leasehold_app;
SELECT leasehold.create_company('zeta', 'Zeta', test.id('zeta')) IS NOT NULL AS made;
SELECT leasehold.grant_company('zeta', 'regress_zeta', 'manager', true);
SET ROLE regress_zeta;
SELECT leasehold.create_environment('plain', 'fake') IS NOT NULL AS made;
SELECT leasehold.upsert_agent(test.id('v agent'), 'zeta agent', 'zeta_adapter', '{"ZETA": "zeta"}', '{"zeta": 1}') IS NOT NULL AND leasehold.upsert_issue(test.id('v issue'), 'zeta issue', 'zeta status') IS NOT NULL
   AND leasehold.upsert_project(test.id('v project'), 'zeta project') IS NOT NULL AND leasehold.upsert_routine(test.id('v routine'), 'zeta routine') IS NOT NULL
   AND leasehold.upsert_execution_workspace(test.id('v ws'), 'zeta ws', mode => 'zeta mode') IS NOT NULL
   AND leasehold.create_environment('zeta-v-env', 'fake', '{"image": "zeta", "failTimes": 1000}', 'zeta env', 'zeta description') IS NOT NULL
   AND leasehold.start_run(run_id => test.id('v run'), agent_id => test.id('v agent'), metadata => '{"zeta": 1}') IS NOT NULL
   AND leasehold.request_lease('plain', run_id => test.id('v run'), lease_id => test.id('v lease')) IS NOT NULL
   AND leasehold.request_lease('zeta-v-env', lease_id => test.id('v failed'), acquire_timeout => '10 seconds') IS NOT NULL AS made;
SELECT test.is('active', (leasehold.wait_for_lease(test.id('v lease'), '30 seconds')).status, 'active');
SELECT test.is('failed', (leasehold.wait_for_lease(test.id('v failed'), '30 seconds')).status, 'failed');
SELECT leasehold.start_command(test.id('v lease'), shell => 'echo zeta', cwd => 'zeta', env => '{"ZETA": "zeta"}', command_id => test.id('v command')) IS NOT NULL AS started;
SELECT test.is('it wrote', string_agg(o.text, ''), E'zeta\n') FROM leasehold.wait_for_command(test.id('v command'), '30 seconds'), leasehold.read_output(test.id('v command')) AS o;
RESET ROLE;
SELECT leasehold.allow_provider('zeta', 'fake'), leasehold.set_limit('lease_starts_per_minute', 77, company => 'zeta', environment => 'zeta-v-env');
SELECT leasehold.grant_company('zeta', 'regress_both', 'user');
-- telltale strings: zeta's key, and every id that is zeta's and not acme's
CREATE TABLE test.telltales AS
SELECT 'zeta' AS telltale UNION SELECT test.id('zeta')::text UNION SELECT l.id::text FROM leasehold.leases AS l WHERE l.company_id = test.id('zeta')
 UNION SELECT e.id::text FROM leasehold_internal.environments AS e WHERE e.company_id = test.id('zeta') UNION SELECT r.id::text FROM leasehold_internal.runs AS r WHERE r.company_id = test.id('zeta');
GRANT SELECT ON test.telltales TO PUBLIC;

-- Every relation, and every function that takes no argument and shows something.
CREATE FUNCTION pg_temp.tells(what text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_text text;
BEGIN
    EXECUTE format('SELECT string_agg(x::text, '' '') FROM %s AS x', what) INTO v_text;
    RETURN (SELECT string_agg(t.telltale, ' ') FROM test.telltales AS t WHERE v_text ILIKE '%' || t.telltale || '%');
EXCEPTION WHEN insufficient_privilege THEN
    RETURN NULL;
END
$$;
CREATE TEMP TABLE sources AS
SELECT c.oid::regclass::text AS what FROM pg_class AS c WHERE c.relnamespace IN ('leasehold'::regnamespace, 'leasehold_internal'::regnamespace) AND c.relkind IN ('r', 'v', 'p')
 UNION SELECT 'leasehold.' || f || '()' FROM unnest(ARRAY['status', 'metrics', 'visible_companies', 'error_codes', 'lease_transitions', 'acting_role', 'doctor']) AS f;
GRANT SELECT ON sources TO PUBLIC;
CREATE FUNCTION pg_temp.all_tell(OUT told text, OUT asked bigint) LANGUAGE sql AS $$ SELECT string_agg(s.what || ': ' || t.tells, ', '), count(*) FROM sources AS s, LATERAL (SELECT pg_temp.tells(s.what)) AS t (tells) $$;
SET ROLE regress_zeta;
SELECT test.is('zeta itself is told', (SELECT string_agg(s.what, ', ' ORDER BY s.what) FROM sources AS s WHERE pg_temp.tells(s.what) IS NOT NULL),
    'leasehold.acting_role(), leasehold.active_leases, leasehold.agents, leasehold.audit_events, leasehold.command_output, leasehold.commands, leasehold.companies, leasehold.company_members, leasehold.environments, leasehold.execution_workspaces, leasehold.issues, '
    'leasehold.lease_metadata, leasehold.lease_timeline, leasehold.leases, leasehold.limits, leasehold.projects, leasehold.provider_access, leasehold.routines, leasehold.runs, leasehold.status(), leasehold.visible_companies()');
SET ROLE regress_manager;
SELECT test.is('acme''s manager', a.told, NULL) FROM pg_temp.all_tell() AS a;
SET ROLE regress_user;
SELECT test.is('acme''s user', a.told, NULL) FROM pg_temp.all_tell() AS a;
SET ROLE regress_viewer;
SELECT test.is('acme''s viewer', a.told, NULL) FROM pg_temp.all_tell() AS a;
SET ROLE regress_auditor;
SELECT test.is('acme''s auditor', a.told, NULL) FROM pg_temp.all_tell() AS a;
SET ROLE regress_resolver;
SELECT test.is('acme''s resolver', a.told, NULL) FROM pg_temp.all_tell() AS a;
SET ROLE regress_nobody;
SELECT test.is('a member of nothing', a.told, NULL) FROM pg_temp.all_tell() AS a;
SELECT test.is('sees no lease in status()', count(*), 0) FROM leasehold.status() AS s WHERE s.area IN ('leases', 'provider', 'plugin', 'installation');
SELECT test.is('nor in metrics()', sum(m.value), 0) FROM leasehold.metrics() AS m WHERE m.name = 'leasehold_leases';
SELECT test.is('nor anything of workers', string_agg(DISTINCT m.name, ', '), 'leasehold_leases') FROM leasehold.metrics() AS m;
RESET ROLE;

-- status() and metrics(): a member has its own companies' figures, an administrator all and the installation's.
SET ROLE regress_both;
SELECT test.is('of several companies without a choice: none', count(*), 0) FROM leasehold.status() AS s WHERE s.area = 'leases';
BEGIN;
SELECT leasehold.use_company('zeta') IS NOT NULL AS chosen;
SELECT test.is('of the chosen one', string_agg(DISTINCT s.subject, ','), 'zeta') FROM leasehold.status() AS s WHERE s.area = 'leases';
COMMIT;
SET ROLE regress_user;
SELECT test.is('a member''s worker has no figures', s.detail - 'reason', '{}'::jsonb) FROM leasehold.status() AS s WHERE s.area = 'worker';
SELECT test.is('its provider neither', string_agg(k, ', ' ORDER BY k), 'retryAt') FROM leasehold.status() AS s, jsonb_object_keys(s.detail) AS k WHERE s.area = 'provider' AND s.subject = 'fake';
SELECT test.is('nor is it told of the installation', count(*), 0) FROM leasehold.status() AS s WHERE s.area = 'installation';
SET ROLE regress_admin;
SELECT test.is('an administrator has all', (count(DISTINCT s.subject) FILTER (WHERE s.area = 'leases') >= 1, count(*) FILTER (WHERE s.area = 'installation'), bool_or(s.detail ? 'inFlight'))::text, '(t,1,t)') FROM leasehold.status() AS s;
SELECT test.is('in all units', string_agg(DISTINCT m.name || ' ' || m.type, ', ' ORDER BY m.name || ' ' || m.type),
    'leasehold_attached_calls gauge, leasehold_calls_applied_total counter, leasehold_calls_in_flight gauge, leasehold_calls_queued gauge, leasehold_calls_started_total counter, leasehold_failed_batches_total counter, leasehold_leases gauge, '
    'leasehold_provider_breaker_open gauge, leasehold_provider_calls_failed_total counter, leasehold_provider_calls_succeeded_total counter, leasehold_stale_answers_total counter, leasehold_worker_up gauge') FROM leasehold.metrics() AS m;
RESET ROLE;
SELECT test.is('metrics count what there is: ' || m.status, m.value, (SELECT count(*) FROM leasehold.leases AS l WHERE l.status = m.status))
  FROM (SELECT x.labels ->> 'status' AS status, x.value FROM leasehold.metrics() AS x WHERE x.name = 'leasehold_leases') AS m ORDER BY m.status;
-- those who watch the server watch all companies, by number and not by name
CREATE ROLE regress_monitor LOGIN IN ROLE pg_monitor;
SET ROLE regress_monitor;
SELECT test.is('a monitor counts all leases', sum(m.value) FILTER (WHERE m.name = 'leasehold_leases') > 0 AND bool_or(m.name = 'leasehold_worker_up'), true) FROM leasehold.metrics() AS m;
SELECT test.is('and is told nothing else', a.told, NULL) FROM pg_temp.all_tell() AS a;
SELECT test.fails('no status', 'SELECT * FROM leasehold.status()', '42501');
RESET ROLE;
DROP ROLE regress_monitor;

-- Errors: that of another company is not said, be it by id, key, resource or limit.
CREATE FUNCTION pg_temp.says(statement text) RETURNS text LANGUAGE sql AS $$
    SELECT (SELECT string_agg(t.telltale, ' ') FROM test.telltales AS t WHERE concat_ws(' ', e.message, e.detail, e.hint) ILIKE '%' || t.telltale || '%' AND NOT statement ILIKE '%' || t.telltale || '%')
           || ' in ' || e.message FROM test.error(statement) AS e $$;
SET ROLE regress_manager;
SELECT test.is('of ' || count(*) || ' errors none tells', string_agg(pg_temp.says(s), ', '), NULL)
  FROM unnest(ARRAY[format('SELECT leasehold.renew_lease(%L)', test.id('v lease')), format('SELECT leasehold.wait_for_lease(%L)', test.id('v lease')), format('SELECT leasehold.release_lease(%L)', test.id('v lease')),
    format('SELECT leasehold.start_command(%L, shell => ''true'')', test.id('v lease')), format('SELECT leasehold.wait_for_command(%L)', test.id('v command')), format('SELECT leasehold.read_output(%L)', test.id('v command')), format('SELECT leasehold.cancel_command(%L)', test.id('v command')),
    format('SELECT leasehold.request_lease(''plain'', run_id => %L)', test.id('v run')), format('SELECT leasehold.request_lease(''plain'', agent_id => %L)', test.id('v agent')),
    'SELECT leasehold.request_lease(''zeta-v-env'')', 'SELECT leasehold.use_company(''zeta'')',
    'SELECT leasehold.revoke_company(''acme'', ''regress_zeta'')', 'SELECT leasehold.create_environment(''plain'', ''fake'')']) AS s;
SET ROLE regress_admin;
SELECT leasehold.set_limit('active_leases', 0);
SET ROLE regress_manager;
SELECT test.is('of a limit that others use up', (e.code, pg_temp.says($$SELECT leasehold.request_lease('plain', on_limit => 'fail')$$))::text, '(quota_exceeded,)') FROM test.error($$SELECT leasehold.request_lease('plain', on_limit => 'fail')$$) AS e;
SET ROLE regress_admin;
SELECT leasehold.set_limit('active_leases');
RESET ROLE;
SELECT leasehold.set_limit('lease_starts_per_minute', company => 'zeta', environment => 'zeta-v-env');
SELECT leasehold.finish_run(test.id('v run'), company => 'zeta') AS finished;
SELECT test.eventually('over', $$SELECT test.lease('v lease')$$, 'released');
DROP TABLE test.telltales;
SELECT leasehold.revoke_company('zeta', r) FROM unnest(ARRAY['regress_zeta', 'regress_both']) AS r;
DROP ROLE regress_zeta;
