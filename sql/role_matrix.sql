-- Who may do what: every kind of role against every table, view and function,
-- from the catalog, compared with what is written here from the requirement.
--
-- Group roles give privileges, memberships give companies; both are needed.
--   admin       leasehold_admin, member of nothing
--   manager, user, viewer   leasehold_app, member of acme at that level
--   auditor     leasehold_auditor, viewer in acme
--   resolver    leasehold_resolver, user in acme
--   nobody      leasehold_app, member of nothing
--   ungrouped   manager in acme, but in no group role
--   stranger    neither
--   beta        leasehold_app, manager in beta
\pset format unaligned
\pset tuples_only on
SET client_min_messages = error;
CREATE TEMP TABLE roles (nr serial, role name);
INSERT INTO roles (role) SELECT 'regress_' || r FROM unnest(ARRAY['admin', 'manager', 'user', 'viewer', 'auditor', 'resolver', 'nobody', 'ungrouped', 'stranger', 'beta']) AS r;

-- Runs a statement as a role, undoes it, and tells how it ended.
CREATE FUNCTION pg_temp.try(role name, statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_value text;
    v_state text;
    v_detail text;
BEGIN
    EXECUTE format('SET LOCAL ROLE %I', role);
    EXECUTE statement INTO v_value;
    RAISE EXCEPTION USING ERRCODE = 'ZZ000', MESSAGE = COALESCE(v_value, '');
EXCEPTION
    WHEN SQLSTATE 'ZZ000' THEN RETURN 'ok';
    WHEN OTHERS THEN
        GET STACKED DIAGNOSTICS v_state = RETURNED_SQLSTATE, v_detail = PG_EXCEPTION_DETAIL;
        RETURN COALESCE(CASE WHEN v_detail LIKE '{"code": %' THEN v_detail::jsonb ->> 'code' END, v_state);
END
$$;
CREATE FUNCTION pg_temp.value(role name, statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_value text;
BEGIN
    EXECUTE format('SET LOCAL ROLE %I', role);
    EXECUTE statement INTO v_value;
    RAISE EXCEPTION USING ERRCODE = 'ZZ000', MESSAGE = COALESCE(v_value, 'null');
EXCEPTION
    WHEN SQLSTATE 'ZZ000' THEN RETURN SQLERRM;
    WHEN insufficient_privilege THEN RETURN 'denied';
END
$$;

-- Something of both companies in every table, and a membership that asserts nothing.
SELECT leasehold.upsert_agent(test.id('m agent'), env => '{"A": "1"}', metadata => '{"m": 1}', company => c) IS NOT NULL
   AND leasehold.upsert_project(test.id('m project'), env => '{"A": "1"}', metadata => '{"m": 1}', company => c) IS NOT NULL
   AND leasehold.upsert_routine(test.id('m routine'), env => '{"A": "1"}', metadata => '{"m": 1}', company => c) IS NOT NULL
   AND leasehold.upsert_execution_workspace(test.id('m ws'), env => '{"A": "1"}', metadata => '{"m": 1}', company => c) IS NOT NULL
   AND leasehold.upsert_issue(test.id('m issue'), env => '{"A": "1"}', metadata => '{"m": 1}', company => c) IS NOT NULL
   AND leasehold.start_run(run_id => test.id('m run'), env => '{"A": "1"}', metadata => '{"m": 1}', company => c) IS NOT NULL AS made
  FROM unnest(ARRAY['acme', 'beta']) AS c;
SELECT leasehold.allow_provider(c, 'fake'), leasehold.set_limit('lease_starts_per_minute', 100000, company => c) FROM unnest(ARRAY['acme', 'beta']) AS c;
INSERT INTO leasehold.leases (company_id, id, environment_id, config_version, provider, ttl, status, end_status, disposition, provider_lease_id, run_id, expires_at, acquired_at, last_used_at)
SELECT test.id(c), test.id('m ' || s), test.id(c || ' plain'), 1, 'fake', '1 hour', s, 'released', 'delete', 'sandbox://matrix', test.id('m run'), now() + interval '1 hour', now(), now()
  FROM unnest(ARRAY['acme', 'beta']) AS c, unnest(ARRAY['active', 'irrevocable', 'released', 'retained']) AS s;
INSERT INTO leasehold.lease_metadata (company_id, lease_id, metadata) SELECT test.id(c), test.id('m active'), '{"x": 1}' FROM unnest(ARRAY['acme', 'beta']) AS c;
INSERT INTO leasehold.commands (company_id, id, lease_id, generation, provider, shell, status, outcome, finished_at) SELECT test.id(c), test.id('m command'), test.id('m active'), 1, 'fake', 'true', 'finished', 'exited', now() FROM unnest(ARRAY['acme', 'beta']) AS c;
INSERT INTO leasehold.command_output SELECT test.id(c), test.id('m command'), 1, 'stdout', now(), 'x' FROM unnest(ARRAY['acme', 'beta']) AS c;
INSERT INTO leasehold_internal.calls (company_id, subject_id, slot, operation, shard, state) SELECT test.id('acme'), test.id('m active'), 'op', 'release', 0, 'quarantined';
INSERT INTO leasehold.audit_events (company_id, action, entity_type, entity_id) SELECT test.id(c), 'matrix', 'environment_lease', test.id('m active') FROM unnest(ARRAY['acme', 'beta']) AS c;

-- Reading.  Per role: "-" not allowed; "." nothing; "a", "b" or "ab" that company's rows; "+" rows of no company.
CREATE TEMP TABLE wanted_reads (relation text PRIMARY KEY, admin text, member text, auditor text, resolver text, nobody text, beta text);
INSERT INTO wanted_reads
SELECT 'leasehold.' || r, 'ab', 'a', 'a', '-', '.', 'b'
  FROM unnest(ARRAY['companies', 'company_members', 'agents', 'projects', 'routines', 'issues', 'execution_workspaces', 'runs', 'environments',
                    'provider_access', 'limits', 'leases', 'audit_events', 'active_leases', 'lease_timeline', 'cleanup_backlog']) AS r;
INSERT INTO wanted_reads VALUES
    -- what a provider says of a resource needs level user
    ('leasehold.lease_metadata', '.', 'a', '.', '-', '.', 'b'),
    -- and so does what runs in it, and what that writes
    ('leasehold.commands', '.', 'a', '.', '-', '.', 'b'),
    ('leasehold.command_output', '.', 'a', '.', '-', '.', 'b'),
    ('leasehold.providers', '+', '+', '+', '-', '+', '+'),
    -- addresses and transports are no application's business
    ('leasehold.plugins', '.', '-', '.', '-', '-', '-');
-- partitions and everything internal: nobody
INSERT INTO wanted_reads
SELECT c.oid::regclass::text, '-', '-', '-', '-', '-', '-'
  FROM pg_class AS c WHERE c.relkind IN ('r', 'v', 'S', 'p')
   AND (c.relnamespace = 'leasehold_internal'::regnamespace OR c.relnamespace = 'leasehold'::regnamespace AND c.relispartition);
SELECT test.is('every relation is in the list', string_agg(c.oid::regclass::text, ', '), NULL)
  FROM pg_class AS c
 WHERE c.relkind IN ('r', 'v', 'S', 'p', 'm', 'f') AND c.relnamespace IN ('leasehold'::regnamespace, 'leasehold_internal'::regnamespace)
   AND NOT EXISTS (SELECT FROM wanted_reads AS w WHERE w.relation = c.oid::regclass::text);

CREATE FUNCTION pg_temp.reads(role name, relation regclass) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_column text;
    v_rows   text;
BEGIN
    SELECT a.attname INTO v_column FROM pg_attribute AS a WHERE a.attrelid = relation
       AND a.attname = CASE WHEN relation = 'leasehold.companies'::regclass THEN 'id' ELSE 'company_id' END;
    v_rows := pg_temp.value(role, CASE WHEN v_column IS NULL THEN format('SELECT CASE WHEN count(*) > 0 THEN ''+'' ELSE ''.'' END FROM %s', relation)
        ELSE format('SELECT COALESCE(string_agg(DISTINCT CASE %1$I WHEN %2$L THEN ''a'' WHEN %3$L THEN ''b'' ELSE ''?'' END, ''''), ''.'') FROM %4$s WHERE %1$I <> %5$L',
                    v_column, test.id('acme'), test.id('beta'), relation, '00000000-0000-0000-0000-000000000000') END);
    RETURN CASE WHEN v_rows = 'denied' THEN '-' ELSE v_rows END;
END
$$;

CREATE TEMP VIEW wanted_by_role AS
SELECT w.relation, r.nr, r.role,
       CASE r.role WHEN 'regress_admin' THEN w.admin WHEN 'regress_manager' THEN w.member WHEN 'regress_user' THEN w.member
            WHEN 'regress_viewer' THEN CASE WHEN w.relation IN ('leasehold.lease_metadata', 'leasehold.commands', 'leasehold.command_output') THEN '.' ELSE w.member END
            WHEN 'regress_auditor' THEN w.auditor WHEN 'regress_resolver' THEN w.resolver WHEN 'regress_nobody' THEN w.nobody
            WHEN 'regress_beta' THEN w.beta ELSE '-' END AS wanted
  FROM wanted_reads AS w, roles AS r;
SELECT test.is(w.role || ' reads what it may', string_agg(w.relation || ' ' || g.got, ', ') FILTER (WHERE g.got <> w.wanted), NULL)
  FROM wanted_by_role AS w, LATERAL (SELECT pg_temp.reads(w.role, w.relation::regclass) AS got) AS g
 GROUP BY w.nr, w.role ORDER BY w.nr;

-- A role's own membership is enough for its rows, not for another's: with use_company() one company at a time.
SELECT test.is('a member of two sees none without a choice', pg_temp.value('regress_both', 'SELECT count(*) FROM leasehold.leases'), '0');
SELECT test.is('and then those of its choice: ' || c, pg_temp.value('regress_both', format('SELECT string_agg(DISTINCT (l.company_id = test.id(%L))::text, '','') FROM leasehold.use_company(%L), leasehold.leases AS l', c, c)), 'true')
  FROM unnest(ARRAY['acme', 'beta']) AS c;

-- Configuration, environment variables and metadata are shown from level user on.
CREATE TEMP TABLE wanted_columns (relation text, columns text[]);
INSERT INTO wanted_columns VALUES ('leasehold.agents', '{env,metadata}'), ('leasehold.projects', '{env,metadata}'), ('leasehold.routines', '{env,metadata}'),
    ('leasehold.issues', '{env,metadata}'), ('leasehold.execution_workspaces', '{env,metadata}'), ('leasehold.runs', '{env,metadata}'), ('leasehold.environments', '{config,env_vars,metadata}');
SELECT test.is('such columns are in the list', string_agg(a.attrelid::regclass || '.' || a.attname, ', '), NULL)
  FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid AND c.relkind IN ('r', 'v') AND c.relnamespace = 'leasehold'::regnamespace
 WHERE a.attname IN ('env', 'metadata', 'config', 'env_vars') AND a.attrelid::regclass::text <> 'leasehold.lease_metadata'
   AND NOT EXISTS (SELECT FROM wanted_columns AS w WHERE w.relation = a.attrelid::regclass::text AND a.attname = ANY (w.columns));
SELECT test.is(r.role || ' sees ' || CASE WHEN r.role IN ('regress_manager', 'regress_user') THEN 'all of them' ELSE 'none of them' END,
               string_agg(w.relation || '.' || c, ', ') FILTER (WHERE pg_temp.value(r.role, format('SELECT count(%I) > 0 FROM %s', c, w.relation)) <> CASE WHEN r.role IN ('regress_manager', 'regress_user') THEN 'true' ELSE 'false' END), NULL)
  FROM roles AS r, wanted_columns AS w, unnest(w.columns) AS c
 WHERE r.role IN ('regress_manager', 'regress_user', 'regress_viewer', 'regress_auditor', 'regress_admin', 'regress_nobody')
 GROUP BY r.nr, r.role ORDER BY r.nr;

-- Writing: nobody writes any relation directly, in any way.
SELECT test.is(r.role || ' writes nothing', string_agg(g.what, ', '), NULL)
  FROM roles AS r
  LEFT JOIN LATERAL (SELECT w.relation || ' ' || p AS what FROM wanted_reads AS w, unnest(ARRAY['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) AS p
                WHERE (SELECT c.relkind FROM pg_class AS c WHERE c.oid = w.relation::regclass) <> 'S'
                  AND (has_table_privilege(r.role, w.relation, p) OR p IN ('INSERT', 'UPDATE', 'REFERENCES') AND has_any_column_privilege(r.role, w.relation, p))) AS g ON true
 GROUP BY r.nr, r.role ORDER BY r.nr;
SELECT test.is(r.role || ' is stopped when it tries', count(*) FILTER (WHERE pg_temp.try(r.role, s.statement) <> '42501'), 0)
  FROM roles AS r, wanted_reads AS w, unnest(ARRAY[format('DELETE FROM %s', w.relation), format('INSERT INTO %s DEFAULT VALUES', w.relation), format('TRUNCATE %s', w.relation)]) AS s (statement)
 WHERE (SELECT c.relkind FROM pg_class AS c WHERE c.oid = w.relation::regclass) IN ('r', 'p')
 GROUP BY r.nr, r.role ORDER BY r.nr;
SELECT test.is(r.role || ' creates nothing in our schemas', (pg_temp.try(r.role, 'CREATE TABLE leasehold.mine ()'), pg_temp.try(r.role, 'CREATE FUNCTION leasehold_internal.mine() RETURNS int LANGUAGE sql RETURN 1'))::text, '(42501,42501)')
  FROM roles AS r ORDER BY r.nr;

-- Functions: which group role may call which.
CREATE TEMP TABLE wanted_calls (function text PRIMARY KEY, groups text);
INSERT INTO wanted_calls SELECT f, 'admin' FROM unnest(ARRAY['create_company', 'repair_members', 'register_plugin', 'update_plugin', 'enable_plugin', 'disable_plugin',
    'restart_plugin', 'unregister_plugin', 'allow_provider', 'disallow_provider', 'set_limit', 'approve_sweep', 'reset_breaker', 'pause_worker', 'resume_worker',
    'drain_installation', 'allow_host', 'takeover_installation', 'fork_installation', 'doctor', 'import_lease']) AS f;
INSERT INTO wanted_calls SELECT f, 'app' FROM unnest(ARRAY['upsert_agent', 'archive_agent', 'upsert_project', 'upsert_routine', 'upsert_execution_workspace', 'upsert_issue',
    'create_environment', 'update_environment', 'archive_environment', 'delete_environment', 'request_lease', 'wait_for_lease', 'renew_lease', 'release_lease',
    'release_run_leases', 'destroy_reusable_leases', 'start_run', 'heartbeat', 'finish_run', 'start_command', 'wait_for_command', 'read_output', 'cancel_command']) AS f;
INSERT INTO wanted_calls SELECT f, 'app' FROM unnest(ARRAY['acquire_lease', 'run', 'execute', 'check_command', 'attach_call', 'detach_call', 'follow_lease', 'follow_command', 'ensure_local_environment']) AS f;
INSERT INTO wanted_calls SELECT f, 'admin app' FROM unnest(ARRAY['grant_company', 'destroy_lease', 'retry_lease', 'write_off_lease', 'release_quarantine']) AS f;
INSERT INTO wanted_calls SELECT f, 'admin app auditor' FROM unnest(ARRAY['environment_impact', 'status']) AS f;
INSERT INTO wanted_calls SELECT f, 'admin app auditor resolver' FROM unnest(ARRAY['use_company', 'pre_request', 'invitations', 'accept_company', 'revoke_company']) AS f;
INSERT INTO wanted_calls SELECT f, 'admin app auditor resolver worker' FROM unnest(ARRAY['new_id', 'acting_role', 'visible_companies', 'error_codes', 'lease_transitions']) AS f;
INSERT INTO wanted_calls VALUES ('metrics', 'admin app auditor pg_monitor');
SELECT test.is('every function is in the list', string_agg(p.proname, ', '), NULL)
  FROM pg_proc AS p WHERE p.pronamespace = 'leasehold'::regnamespace AND p.proname NOT IN (SELECT w.function FROM wanted_calls AS w);
SELECT test.is('no function has other callers', string_agg(p.proname || ' ' || g.groups, ', ') FILTER (WHERE g.groups IS DISTINCT FROM w.groups), NULL)
  FROM pg_proc AS p JOIN wanted_calls AS w ON w.function = p.proname
 CROSS JOIN LATERAL (SELECT string_agg(replace(r.rolname, 'leasehold_', ''), ' ' ORDER BY replace(r.rolname, 'leasehold_', '') COLLATE "C") AS groups FROM pg_roles AS r
                WHERE r.rolname IN ('leasehold_admin', 'leasehold_app', 'leasehold_auditor', 'leasehold_resolver', 'leasehold_worker', 'pg_monitor')
                  AND has_function_privilege(r.rolname, p.oid, 'EXECUTE')) AS g
 WHERE p.pronamespace = 'leasehold'::regnamespace;
SELECT test.is('nobody but the worker calls what is internal', string_agg(DISTINCT r.role || ' ' || p.proname, ', '), NULL)
  FROM pg_proc AS p, roles AS r WHERE p.pronamespace = 'leasehold_internal'::regnamespace AND has_function_privilege(r.role, p.oid, 'EXECUTE');
-- and what the catalog says is what happens: called without arguments that mean anything
SELECT test.is(r.role || ' calls what it may', string_agg(p.proname, ', ') FILTER (WHERE (g.got = '42501') = h.may), NULL)
  FROM roles AS r, pg_proc AS p
 CROSS JOIN LATERAL (SELECT has_function_privilege(r.role, p.oid, 'EXECUTE') AND has_schema_privilege(r.role, 'leasehold', 'USAGE') AS may) AS h
 CROSS JOIN LATERAL (SELECT pg_temp.try(r.role, format('SELECT count(*) FROM leasehold.%I(%s) AS x', p.proname,
        (SELECT string_agg('NULL::' || format_type(t, NULL), ', ' ORDER BY nr) FROM unnest(p.proargtypes) WITH ORDINALITY AS a (t, nr)))) AS got) AS g
 WHERE p.pronamespace = 'leasehold'::regnamespace AND p.prokind = 'f' AND p.proname NOT IN ('takeover_installation', 'fork_installation', 'drain_installation')
 GROUP BY r.nr, r.role ORDER BY r.nr;

SELECT test.is(r.role || ' calls what procedures it may', string_agg(p.proname, ', ') FILTER (WHERE (g.got = '42501') = h.may), NULL)
  FROM roles AS r, pg_proc AS p
 CROSS JOIN LATERAL (SELECT has_function_privilege(r.role, p.oid, 'EXECUTE') AND has_schema_privilege(r.role, 'leasehold', 'USAGE') AS may) AS h
 CROSS JOIN LATERAL (SELECT pg_temp.try(r.role, format('CALL leasehold.%I(%s)', p.proname,
        (SELECT string_agg('NULL::' || format_type(t, NULL), ', ' ORDER BY nr) FROM unnest(p.proargtypes) WITH ORDINALITY AS a (t, nr)))) AS got) AS g
 WHERE p.pronamespace = 'leasehold'::regnamespace AND p.prokind = 'p'
 GROUP BY r.nr, r.role ORDER BY r.nr;

-- Levels: each function at the least level it needs, and one below; for acme.
CREATE TEMP TABLE wanted_levels (nr serial, statement text, level text, admin text);
INSERT INTO wanted_levels (statement, level, admin) VALUES
    ($$leasehold.use_company('acme')$$, 'viewer', 'ok'),
    ($$leasehold.environment_impact('plain', company => 'acme')$$, 'viewer', 'ok'),
    ($$leasehold.wait_for_lease(test.id('m released'), company => 'acme')$$, 'viewer', '42501'),
    ($$leasehold.upsert_agent(test.id('m agent'), company => 'acme')$$, 'user', '42501'),
    ($$leasehold.upsert_project(test.id('m project'), company => 'acme')$$, 'user', '42501'),
    ($$leasehold.upsert_routine(test.id('m routine'), company => 'acme')$$, 'user', '42501'),
    ($$leasehold.upsert_execution_workspace(test.id('m ws'), company => 'acme')$$, 'user', '42501'),
    ($$leasehold.upsert_issue(test.id('m issue'), company => 'acme')$$, 'user', '42501'),
    ($$leasehold.request_lease('plain', company => 'acme')$$, 'user', '42501'),
    ($$leasehold.renew_lease(test.id('m active'), company => 'acme')$$, 'user', '42501'),
    ($$leasehold.release_lease(test.id('m active'), company => 'acme')$$, 'user', '42501'),
    ($$leasehold.destroy_lease(test.id('m active'), company => 'acme')$$, 'user', 'ok'),
    ($$leasehold.retry_lease(test.id('m irrevocable'), company => 'acme')$$, 'user', 'ok'),
    ($$leasehold.release_run_leases(test.id('m run'), company => 'acme')$$, 'user', '42501'),
    ($$leasehold.destroy_reusable_leases(issue_id => test.id('m issue'), company => 'acme')$$, 'user', '42501'),
    ($$leasehold.start_command(test.id('m active'), shell => 'true', company => 'acme')$$, 'user', '42501'),
    ($$leasehold.wait_for_command(test.id('m command'), company => 'acme')$$, 'user', '42501'),
    ($$leasehold.read_output(test.id('m command'), company => 'acme')$$, 'user', '42501'),
    ($$leasehold.cancel_command(test.id('m command'), company => 'acme')$$, 'user', '42501'),
    ($$leasehold.follow_lease(test.id('m released'), company => 'acme')$$, 'viewer', '42501'),
    ($$leasehold.follow_command(test.id('m command'), company => 'acme')$$, 'user', '42501'),
    ($$leasehold.check_command(shell => 'true')$$, 'any', '42501'), ($$leasehold.detach_call()$$, 'any', '42501'),
    ($$leasehold.start_run(company => 'acme')$$, 'user', '42501'),
    ($$leasehold.heartbeat(test.id('m run'), company => 'acme')$$, 'user', '42501'),
    ($$leasehold.finish_run(test.id('m run'), company => 'acme')$$, 'user', '42501'),
    ($$leasehold.create_environment('m-new', 'fake', company => 'acme')$$, 'manager', '42501'),
    ($$leasehold.update_environment('plain', name => 'x', company => 'acme')$$, 'manager', '42501'),
    ($$leasehold.archive_agent(test.id('m agent'), company => 'acme')$$, 'user', '42501'),
    ($$leasehold.archive_environment('plain', company => 'acme')$$, 'manager', '42501'),
    ($$leasehold.delete_environment('m-old', company => 'acme')$$, 'manager', '42501'),
    ($$leasehold.grant_company('acme', 'regress_nobody', 'viewer')$$, 'manager', 'ok'),
    ($$leasehold.revoke_company('acme', 'regress_both')$$, 'manager', 'ok'),
    ($$leasehold.accept_company('acme')$$, 'viewer', 'company_not_found'),
    ($$leasehold.write_off_lease(test.id('m irrevocable'), 'gone', company => 'acme')$$, 'manager', 'ok'),
    ($$leasehold.release_quarantine(test.id('m active'), company => 'acme')$$, 'manager', 'ok'),
    ($$leasehold.create_company('m-co')$$, 'admin', 'ok'), ($$leasehold.import_lease('plain', 'sandbox://m', company => 'acme')$$, 'admin', 'ok'), ($$leasehold.repair_members('acme')$$, 'admin', 'ok'), ($$leasehold.allow_provider('acme', 'fake')$$, 'admin', 'ok'),
    ($$leasehold.disallow_provider('acme', 'fake')$$, 'admin', 'ok'), ($$leasehold.set_limit('active_leases', 5, company => 'acme')$$, 'admin', 'ok'),
    ($$leasehold.reset_breaker('fake')$$, 'admin', 'ok'), ($$leasehold.pause_worker()$$, 'admin', 'ok'), ($$leasehold.resume_worker()$$, 'admin', 'ok'),
    ($$leasehold.drain_installation()$$, 'admin', 'ok'), ($$leasehold.allow_host('here')$$, 'admin', 'ok'), ($$leasehold.doctor()$$, 'admin', 'ok'),
    ($$leasehold.takeover_installation()$$, 'admin', 'wrong_state'), ($$leasehold.fork_installation()$$, 'admin', 'wrong_state'), ($$leasehold.approve_sweep()$$, 'admin', 'wrong_state'),
    ($$leasehold.disable_plugin('none')$$, 'admin', 'plugin_not_found'), ($$leasehold.enable_plugin('none')$$, 'admin', 'plugin_not_found'), ($$leasehold.restart_plugin('none')$$, 'admin', 'plugin_not_found'),
    ($$leasehold.update_plugin('none')$$, 'admin', 'plugin_not_found'), ($$leasehold.unregister_plugin('none')$$, 'admin', 'plugin_not_found'), ($$leasehold.register_plugin('{}', '{}')$$, 'admin', 'manifest_invalid'),
    ($$leasehold.status()$$, 'any', 'ok'), ($$leasehold.metrics()$$, 'any', 'ok'), ($$leasehold.pre_request()$$, 'any', 'ok'), ($$leasehold.invitations()$$, 'any', 'ok'), ($$leasehold.new_id()$$, 'any', 'ok'),
    ($$leasehold.acting_role()$$, 'any', 'ok'), ($$leasehold.visible_companies()$$, 'any', 'ok'), ($$leasehold.error_codes()$$, 'any', 'ok'), ($$leasehold.lease_transitions()$$, 'any', 'ok');
SELECT leasehold.create_environment('m-old', 'fake', company => 'acme') IS NOT NULL AS made;
SELECT test.is('every function is in the list', string_agg(p.proname, ', '), NULL)
  -- procedures, and what only they may call, are in procedures.sql; the other is below
  FROM pg_proc AS p WHERE p.pronamespace = 'leasehold'::regnamespace AND p.prokind = 'f' AND p.proname NOT IN ('attach_call', 'ensure_local_environment') AND NOT EXISTS (SELECT FROM wanted_levels AS w WHERE w.statement LIKE 'leasehold.' || p.proname || '(%');
SELECT test.is(format('%-9s %s', v.role, w.statement), pg_temp.try('regress_' || v.role, 'SELECT count(*) FROM ' || w.statement || ' AS x'), v.want)
  FROM wanted_levels AS w
 CROSS JOIN LATERAL (VALUES
        ('admin', w.admin),
        ('manager', CASE w.level WHEN 'admin' THEN '42501' ELSE 'ok' END),
        ('user', CASE w.level WHEN 'admin' THEN '42501' WHEN 'manager' THEN 'forbidden' ELSE 'ok' END),
        ('viewer', CASE w.level WHEN 'admin' THEN '42501' WHEN 'any' THEN 'ok' WHEN 'viewer' THEN 'ok' ELSE 'forbidden' END),
        -- who does not belong to the company is told that there is none
        ('nobody', CASE w.level WHEN 'admin' THEN '42501' WHEN 'any' THEN 'ok' ELSE 'company_not_found' END),
        ('beta', CASE w.level WHEN 'admin' THEN '42501' WHEN 'any' THEN 'ok' ELSE 'company_not_found' END),
        ('ungrouped', '42501'), ('stranger', '42501')) AS v (role, want)
 ORDER BY w.nr, v.role;

-- for managers, but usually for nobody
SELECT test.is(r || ' leasehold.ensure_local_environment()', pg_temp.try('regress_' || r, $$SELECT leasehold.ensure_local_environment(company => 'acme')$$), want)
  FROM (VALUES ('manager', 'provider_forbidden'), ('user', 'forbidden'), ('beta', 'company_not_found'), ('admin', '42501')) AS v (r, want);

-- leave nothing behind that others would stumble over
DELETE FROM leasehold_internal.calls WHERE subject_id = test.id('m active');
DELETE FROM leasehold.leases WHERE id IN (test.id('m active'), test.id('m irrevocable'), test.id('m released'), test.id('m retained'));
SELECT leasehold.finish_run(test.id('m run'), company => c) FROM unnest(ARRAY['acme', 'beta']) AS c;
SELECT leasehold.set_limit('lease_starts_per_minute', company => c) FROM unnest(ARRAY['acme', 'beta']) AS c;
