-- Another company's ids and keys in every argument: as if they did not exist.
\pset format unaligned
\pset tuples_only on
SET client_min_messages = error;
-- one of each in acme and in beta, and of nothing a third
SELECT leasehold.upsert_agent(test.id(c || ' f agent'), company => c) IS NOT NULL AND leasehold.upsert_project(test.id(c || ' f project'), company => c) IS NOT NULL
   AND leasehold.upsert_routine(test.id(c || ' f routine'), company => c) IS NOT NULL AND leasehold.upsert_execution_workspace(test.id(c || ' f ws'), company => c) IS NOT NULL
   AND leasehold.upsert_issue(test.id(c || ' f issue'), company => c) IS NOT NULL AND leasehold.start_run(run_id => test.id(c || ' f run'), company => c) IS NOT NULL
   AND leasehold.create_environment(c || '-f-env', 'fake', company => c) IS NOT NULL
   AND leasehold.request_lease('plain', run_id => test.id(c || ' f run'), lease_id => test.id(c || ' f lease'), company => c) IS NOT NULL AS made
  FROM unnest(ARRAY['acme', 'beta']) AS c;
SELECT test.eventually('active', format('SELECT test.lease(%L)', c || ' f lease'), 'active') FROM unnest(ARRAY['acme', 'beta']) AS c;
SELECT leasehold.start_command(test.id(c || ' f lease'), shell => 'true', command_id => test.id(c || ' f command'), company => c) IS NOT NULL AS started FROM unnest(ARRAY['acme', 'beta']) AS c;
SELECT test.is('a command has run', (leasehold.wait_for_command(test.id(c || ' f command'), '30 seconds', c)).outcome, 'exited') FROM unnest(ARRAY['acme', 'beta']) AS c;
SELECT test.quiet();
SELECT leasehold.pause_worker();
CREATE TEMP TABLE good AS
SELECT a.argument, a.type, c || suffix AS name, c AS company FROM unnest(ARRAY['acme', 'beta', 'nobody']) AS c,
       (VALUES ('agent_id', 'uuid', ' f agent'), ('project_id', 'uuid', ' f project'), ('routine_id', 'uuid', ' f routine'), ('execution_workspace_id', 'uuid', ' f ws'),
               ('issue_id', 'uuid', ' f issue'), ('run_id', 'uuid', ' f run'), ('lease_id', 'uuid', ' f lease'), ('command_id', 'uuid', ' f command'), ('environment', 'text', '-f-env'), ('company', 'text', '')) AS a (argument, type, suffix);

-- Arguments that name what must be there; the others of the kind name something new.
CREATE TEMP VIEW arguments AS
SELECT p.oid, p.proname, a.nr, p.proargnames[a.nr] AS name, format_type(a.type, NULL) AS type, a.nr <= p.pronargs - p.pronargdefaults AS required
  FROM pg_proc AS p, unnest(p.proargtypes) WITH ORDINALITY AS a (type, nr)
 -- procedures, and what only they may call, are in procedures.sql
 WHERE p.pronamespace = 'leasehold'::regnamespace AND p.prokind = 'f' AND p.proname <> 'attach_call';
CREATE TEMP TABLE naming AS
SELECT a.* FROM arguments AS a JOIN (SELECT DISTINCT g.argument, g.type FROM good AS g) AS g ON g.argument = a.name AND g.type = a.type
 WHERE (a.proname, a.name) NOT IN (('create_company', 'company'), ('create_environment', 'environment'), ('ensure_local_environment', 'environment'), ('request_lease', 'lease_id'), ('import_lease', 'lease_id'), ('start_run', 'run_id'), ('start_command', 'command_id'),
        ('upsert_agent', 'agent_id'), ('upsert_project', 'project_id'), ('upsert_routine', 'routine_id'), ('upsert_execution_workspace', 'execution_workspace_id'), ('upsert_issue', 'issue_id'))
   -- a scope, not a name: nothing of that scope is nothing to do
   AND a.proname <> 'destroy_reusable_leases';
SELECT test.is('ids that are no names of what must be there', string_agg(a.proname || ' ' || a.name, ', ' ORDER BY a.proname, a.name),
    'create_company company_id, create_environment environment_id, destroy_reusable_leases execution_workspace_id, destroy_reusable_leases issue_id, import_lease lease_id, request_lease lease_id, '
    'start_command command_id, start_run run_id, upsert_agent agent_id, upsert_execution_workspace execution_workspace_id, upsert_issue issue_id, upsert_project project_id, upsert_routine routine_id')
  FROM arguments AS a WHERE a.type = 'uuid' AND NOT EXISTS (SELECT FROM naming AS n WHERE n.oid = a.oid AND n.name = a.name);

CREATE FUNCTION pg_temp.statement(function oid, tried text, owner text) RETURNS text LANGUAGE sql AS $$
    SELECT format('SELECT * FROM leasehold.%I(%s)', p.proname, string_agg(format('%I => %s', a.name,
             CASE WHEN g.type = 'uuid' THEN format('test.id(%L)', g.name) WHEN g.type = 'text' THEN quote_literal(g.name)
                  ELSE quote_literal(CASE a.name WHEN 'provider' THEN 'fake' WHEN 'provider_lease_id' THEN 'sandbox://f' WHEN 'reason' THEN 'because' WHEN 'to_role' THEN 'regress_nobody'
                                     WHEN 'from_role' THEN 'regress_viewer' WHEN 'name' THEN 'active_leases' WHEN 'plugin' THEN 'none' WHEN 'shell' THEN 'true' ELSE '{}' END) END), ', ' ORDER BY a.nr))
      FROM pg_proc AS p JOIN arguments AS a ON a.oid = p.oid
      LEFT JOIN good AS g ON g.argument = a.name AND g.type = a.type AND g.company = CASE WHEN a.name = tried THEN owner ELSE 'acme' END
     -- a command is argv or shell: neither is required by itself
     WHERE p.oid = function AND (a.required OR a.name = tried OR a.name = 'shell') GROUP BY p.proname $$;
CREATE FUNCTION pg_temp.ending(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_state text; v_message text; v_detail text; v_hint text;
BEGIN
    EXECUTE statement;
    RAISE EXCEPTION USING ERRCODE = 'ZZ000';
EXCEPTION
    WHEN SQLSTATE 'ZZ000' THEN RETURN 'went through';
    WHEN OTHERS THEN
        GET STACKED DIAGNOSTICS v_state = RETURNED_SQLSTATE, v_message = MESSAGE_TEXT, v_detail = PG_EXCEPTION_DETAIL, v_hint = PG_EXCEPTION_HINT;
        -- names and ids of both may differ, and nothing else
        RETURN format('%s %s %s %s', v_state, regexp_replace(v_message, '[0-9a-f]{8}-[0-9a-f-]{27}|"(beta|nobody)[^"]*"', '<it>', 'g'), v_detail, v_hint);
END
$$;
GRANT SELECT ON arguments, good, naming TO PUBLIC;
SELECT test.fingerprint() AS before \gset
-- for each such argument: acme's own goes through, or fails of its own accord; beta's is refused as nobody's is
CREATE TEMP TABLE endings AS SELECT n.proname, n.name, ''::text AS role, ''::text AS own, ''::text AS foreign_one, ''::text AS missing FROM naming AS n LIMIT 0;
GRANT ALL ON endings TO PUBLIC;
SET ROLE regress_manager;
INSERT INTO endings SELECT n.proname, n.name, current_user, pg_temp.ending(pg_temp.statement(n.oid, n.name, 'acme')), pg_temp.ending(pg_temp.statement(n.oid, n.name, 'beta')), pg_temp.ending(pg_temp.statement(n.oid, n.name, 'nobody'))
  FROM naming AS n WHERE has_function_privilege(n.oid, 'EXECUTE');
SET ROLE regress_auditor;
INSERT INTO endings SELECT n.proname, n.name, current_user, pg_temp.ending(pg_temp.statement(n.oid, n.name, 'acme')), pg_temp.ending(pg_temp.statement(n.oid, n.name, 'beta')), pg_temp.ending(pg_temp.statement(n.oid, n.name, 'nobody'))
  FROM naming AS n WHERE has_function_privilege(n.oid, 'EXECUTE');
-- an administrator may name any company, but not mix what two have
SET ROLE regress_admin;
BEGIN;
SELECT leasehold.use_company('acme') IS NOT NULL AS chosen;
INSERT INTO endings SELECT n.proname, n.name, current_user, pg_temp.ending(pg_temp.statement(n.oid, n.name, 'acme')), pg_temp.ending(pg_temp.statement(n.oid, n.name, 'beta')), pg_temp.ending(pg_temp.statement(n.oid, n.name, 'nobody'))
  FROM naming AS n WHERE n.proname = 'import_lease' AND n.name <> 'company';
COMMIT;
RESET ROLE;
SELECT test.is('every such argument was tried', string_agg(n.proname || ' ' || n.name, ', ' ORDER BY n.proname, n.name),
    'allow_provider company, disallow_provider company, import_lease company, repair_members company, set_limit company, set_limit environment')
  FROM naming AS n WHERE NOT EXISTS (SELECT FROM endings AS e WHERE e.proname = n.proname AND e.name = n.name);
SELECT test.is(e.role || ' ' || e.proname || ' ' || e.name, (e.foreign_one LIKE 'PT404 %', CASE WHEN e.foreign_one = e.missing THEN 'the same' ELSE e.foreign_one || ' / ' || e.missing END)::text, '(t,"the same")')
  FROM endings AS e ORDER BY e.role, e.proname COLLATE "C", e.name COLLATE "C";
SELECT test.is('with acme''s own all went through, but for', string_agg(e.proname || ' ' || e.name || ' ' || left(e.own, 5), ', ' ORDER BY e.proname, e.name),
    'create_environment company 23505, detach_call command_id PT404, detach_call lease_id PT404, ensure_local_environment company PT422, release_quarantine company PT404, release_quarantine lease_id PT404, retry_lease company PT409, retry_lease lease_id PT409, write_off_lease company PT409, write_off_lease lease_id PT409')
  FROM endings AS e WHERE e.own <> 'went through' AND e.role = 'regress_manager';
SELECT test.is('nothing was written', test.fingerprint(), :'before');

-- Scopes of another company are empty.
SET ROLE regress_manager;
SELECT test.is('beta''s issue', leasehold.destroy_reusable_leases(issue_id => test.id('beta f issue')), 0);
SELECT test.is('beta''s workspace', leasehold.destroy_reusable_leases(execution_workspace_id => test.id('beta f ws')), 0);

-- New things may have ids that another company has: they are other things.
SELECT test.is('a lease of beta''s id', leasehold.request_lease('plain', lease_id => test.id('beta f lease')), test.id('beta f lease'));
SELECT test.is('a run of beta''s id', r.started_run_id, test.id('beta f run')) FROM leasehold.start_run(run_id => test.id('beta f run')) AS r;
SELECT test.works('an environment of beta''s key', $$SELECT leasehold.create_environment('beta-f-env', 'fake', environment_id => test.id('beta plain'))$$);
SELECT test.is('given back', leasehold.release_lease(test.id('beta f lease')), 'released');
SELECT test.is('ended', leasehold.finish_run(test.id('beta f run')), 'succeeded');
SELECT leasehold.delete_environment('beta-f-env');
RESET ROLE;
SELECT test.is('beta''s are what they were', (l.status, r.status, e.key)::text, '(active,running,plain)')
  FROM leasehold.leases AS l, leasehold_internal.runs AS r, leasehold_internal.environments AS e
 WHERE l.company_id = test.id('beta') AND l.id = test.id('beta f lease') AND r.company_id = test.id('beta') AND r.id = test.id('beta f run') AND e.company_id = test.id('beta') AND e.id = test.id('beta plain');
SELECT leasehold.resume_worker();
SELECT leasehold.finish_run(test.id(c || ' f run'), company => c) AS finished FROM unnest(ARRAY['acme', 'beta']) AS c;
