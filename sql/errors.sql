-- Every documented error, raised once: with its SQLSTATE, its machine code as
-- JSON in DETAIL, and a message in the style of the server's.
\pset format unaligned
\pset tuples_only on
SET client_min_messages = error;
-- The table: as it was promised (see setup.sql), and fit for pools and PostgREST.
SELECT test.is('the product lists these and no others: ' || COALESCE(t.code, w.code), (t.sqlstate, w.sqlstate)::text, NULL)
  FROM leasehold.error_codes() AS t FULL JOIN test.error_codes AS w ON t.code = w.code AND t.sqlstate = w.sqlstate WHERE t.code IS NULL OR w.code IS NULL;
SELECT test.is('as many', (SELECT count(*) FROM leasehold.error_codes()), (SELECT count(*) FROM test.error_codes));
SELECT test.is('none looks like a lost connection, a retry or a shutdown', count(*), 0) FROM leasehold.error_codes() AS c WHERE c.sqlstate ~ '^(08|40|57|53|58|XX)';
SELECT test.is('those for HTTP are numbers of HTTP', string_agg(DISTINCT c.sqlstate, ', ' ORDER BY c.sqlstate), 'PT404, PT409, PT422, PT429, PT503') FROM leasehold.error_codes() AS c WHERE c.sqlstate LIKE 'PT%';

-- What they need: a lease in each state that is asked for, an index that acts, a limit, a second company.
SET ROLE regress_manager;
SELECT leasehold.request_lease('plain', lease_id => test.id('err active')) IS NOT NULL AND leasehold.request_lease('plain', lease_id => test.id('err over')) IS NOT NULL AND leasehold.start_run(run_id => test.id('err run')) IS NOT NULL
   AND leasehold.request_lease('plain', lease_id => test.id('err keyed'), idempotency_key => 'err') IS NOT NULL AND leasehold.create_environment('err-closed', 'fake') IS NOT NULL AND leasehold.create_environment('err-full', 'fake') IS NOT NULL AS made;
SELECT test.is('active', (leasehold.wait_for_lease(test.id(l), '30 seconds')).status, 'active') FROM unnest(ARRAY['err active', 'err over', 'err keyed']) AS l;
SELECT leasehold.release_lease(test.id('err over')) AS released;
SELECT test.is('released', (leasehold.wait_for_lease(test.id('err over'), '30 seconds')).status, 'released');
SELECT leasehold.archive_environment('err-closed');
SET ROLE regress_admin;
SELECT leasehold.set_limit('active_leases', 0, company => 'acme', environment => 'err-full');
SELECT leasehold.create_company('err-archived', company_id => test.id('err archived')) IS NOT NULL AS made;
SELECT leasehold.grant_company('err-archived', 'regress_manager', 'manager');
RESET ROLE;
UPDATE leasehold.companies SET status = 'archived' WHERE key = 'err-archived';
INSERT INTO leasehold.plugins (key, display_name, version, manifest, transport, status) VALUES ('err-plugin', 'x', '1', '{}', '{}', 'disabled');
INSERT INTO leasehold.providers (key, plugin_key, kind, display_name) VALUES ('err-driver', 'err-plugin', 'sandbox_provider', 'x');
SELECT leasehold.disallow_provider('beta', 'fake');
CREATE FUNCTION test.err_trap(i int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN IF current_setting('test.armed', true) = 'on' THEN PERFORM leasehold.status(); END IF; RETURN i; END $$;
CREATE TABLE test.err_bait (i int);
INSERT INTO test.err_bait VALUES (1);
CREATE INDEX ON test.err_bait (test.err_trap(i));

CREATE TEMP TABLE raised (nr serial, code text, role name, statement text);
INSERT INTO raised (code, role, statement) VALUES
    ('company_not_found', 'regress_manager', $$SELECT leasehold.use_company('nowhere')$$),
    ('member_not_found', 'regress_manager', $$SELECT leasehold.revoke_company('acme', 'regress_nobody')$$),
    ('role_not_found', 'regress_manager', $$SELECT leasehold.grant_company('acme', 'regress_missing')$$),
    ('agent_not_found', 'regress_manager', $$SELECT leasehold.request_lease('plain', agent_id => test.id('none'), company => 'acme')$$),
    ('project_not_found', 'regress_manager', $$SELECT leasehold.upsert_issue(test.id('none'), project_id => test.id('none'), company => 'acme')$$),
    ('issue_not_found', 'regress_manager', $$SELECT leasehold.request_lease('plain', issue_id => test.id('none'), company => 'acme')$$),
    ('execution_workspace_not_found', 'regress_manager', $$SELECT leasehold.request_lease('plain', execution_workspace_id => test.id('none'), company => 'acme')$$),
    ('run_not_found', 'regress_manager', $$SELECT leasehold.heartbeat(test.id('none'), company => 'acme')$$),
    ('routine_not_found', 'regress_manager', $$SELECT leasehold.start_run(routine_id => test.id('none'), company => 'acme')$$),
    ('environment_not_found', 'regress_manager', $$SELECT leasehold.request_lease('nowhere', company => 'acme')$$),
    ('plugin_not_found', 'regress_admin', $$SELECT leasehold.restart_plugin('nothing')$$),
    ('provider_not_found', 'regress_manager', $$SELECT leasehold.create_environment('err', 'nothing', company => 'acme')$$),
    ('lease_not_found', 'regress_manager', $$SELECT leasehold.renew_lease(test.id('none'), company => 'acme')$$),
    ('command_not_found', 'regress_manager', $$SELECT leasehold.cancel_command(test.id('none'), company => 'acme')$$),
    ('call_not_found', 'regress_manager', $$SELECT leasehold.release_quarantine(test.id('err active'), company => 'acme')$$),
    ('argument_required', 'regress_manager', $$SELECT leasehold.renew_lease(NULL)$$),
    ('argument_invalid', 'regress_manager', $$SELECT leasehold.renew_lease(test.id('err active'), '-1 hour', company => 'acme')$$),
    ('argument_too_large', 'regress_manager', $$SELECT leasehold.upsert_agent(test.id('none'), repeat('x', 201), company => 'acme')$$),
    ('key_invalid', 'regress_manager', $$SELECT leasehold.create_environment('No Key', 'fake', company => 'acme')$$),
    ('config_invalid', 'regress_manager', $$SELECT leasehold.create_environment('err', 'fake', '{"x": 1}', company => 'acme')$$),
    ('manifest_invalid', 'regress_admin', $$SELECT leasehold.register_plugin('{}', '{}')$$),
    ('transport_invalid', 'regress_admin', $$SELECT leasehold.update_plugin('err-plugin', transport => '{}')$$),
    ('company_ambiguous', 'regress_manager', $$SELECT leasehold.heartbeat(test.id('none'))$$),
    ('forbidden', 'regress_user', $$SELECT leasehold.create_environment('err', 'fake')$$),
    ('restricted_operation', NULL, $$SELECT set_config('test.armed', 'on', true); REINDEX TABLE test.err_bait$$),
    ('actor_forbidden', 'regress_user', $$SELECT leasehold.use_company('acme', 'user:x')$$),
    ('append_only', NULL, $$DELETE FROM leasehold.audit_events$$),
    ('already_exists', 'regress_manager', $$SELECT leasehold.create_environment('plain', 'fake', company => 'acme')$$),
    ('wrong_state', 'regress_manager', $$SELECT leasehold.renew_lease(test.id('err over'), company => 'acme')$$),
    ('illegal_transition', NULL, $$UPDATE leasehold.leases SET status = 'active' WHERE id = test.id('err over')$$),
    ('stale_version', 'regress_manager', $$SELECT leasehold.renew_lease(test.id('err active'), generation => 7, company => 'acme')$$),
    ('idempotency_conflict', 'regress_manager', $$SELECT leasehold.request_lease('plain', idempotency_key => 'err', company => 'acme')$$),
    ('still_in_use', 'regress_manager', $$SELECT leasehold.delete_environment('plain', company => 'acme')$$),
    ('drop_guarded', NULL, $$DROP EXTENSION leasehold CASCADE$$),
    ('environment_inactive', 'regress_manager', $$SELECT leasehold.request_lease('err-closed', company => 'acme')$$),
    ('company_inactive', 'regress_manager', $$SELECT leasehold.start_run(company => 'err-archived')$$),
    ('provider_unusable', 'regress_manager', $$SELECT leasehold.create_environment('err', 'err-driver', company => 'acme')$$),
    ('provider_forbidden', 'regress_beta', $$SELECT leasehold.request_lease('plain')$$),
    ('role_unsuitable', 'regress_manager', $$SELECT leasehold.grant_company('acme', 'leasehold_admin')$$),
    ('import_refused', 'regress_admin', $$SELECT leasehold.import_lease('plain', 'sandbox://fake/' || test.id('err active') || '/1', company => 'acme')$$),
    ('quota_exceeded', 'regress_manager', $$SELECT leasehold.request_lease('err-full', on_limit => 'fail', company => 'acme')$$),
    ('transaction_block', 'regress_manager', $$SELECT leasehold.attach_call(company => 'acme')$$),
    ('own_transaction', 'regress_manager', $$SELECT leasehold.wait_for_lease(leasehold.request_lease('plain', company => 'acme'), company => 'acme')$$),
    ('worker_unavailable', 'regress_manager', $$SELECT leasehold.wait_for_lease(test.id('err waits'), company => 'acme')$$),
    ('installation_held', 'regress_manager', $$SELECT leasehold.wait_for_lease(test.id('err waits'), company => 'acme')$$);
SELECT test.is('each is raised here', string_agg(w.code, ', ' ORDER BY w.code),
    -- a server without the library is in test/t, what procedures raise in procedures.sql; in a read-only transaction it is the server itself that refuses
    'command_failed, lease_acquire_failed, not_preloaded, read_only')
  FROM test.error_codes AS w WHERE NOT EXISTS (SELECT FROM raised AS r WHERE r.code = w.code);

CREATE FUNCTION pg_temp.raise(role name, statement text) RETURNS SETOF record LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY SELECT e.* FROM test.error(CASE WHEN role IS NULL THEN statement ELSE format('SELECT test.as_role(%L, %L)', role, statement) END) AS e;
END
$$;
CREATE FUNCTION pg_temp.blame(wanted text, e record) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    RETURN concat_ws(', ',
        CASE WHEN e.state IS NULL THEN 'went through' END,
        CASE WHEN e.code IS DISTINCT FROM wanted THEN 'is ' || COALESCE(e.code, e.state) || ' ' || e.message END,
        CASE WHEN e.state IS DISTINCT FROM (SELECT c.sqlstate FROM test.error_codes AS c WHERE c.code = wanted) THEN 'has SQLSTATE ' || e.state END,
        CASE WHEN e.code IS NOT NULL AND jsonb_typeof(e.detail::jsonb) <> 'object' THEN 'has no JSON object in DETAIL' END,
        CASE WHEN e.message !~ '^[a-z]' OR e.message ~ '[.!]$' OR e.message ~ E'\n' OR e.message ~ 'leasehold_internal|unable|Failed|failed to' THEN 'has a message of another style: ' || e.message END,
        CASE WHEN e.hint <> '' AND e.hint !~ '^[A-Z].*[.]$' THEN 'has a hint of another style: ' || e.hint END);
END
$$;
SELECT test.is(r.code, pg_temp.blame(r.code, e), '')
  FROM raised AS r, LATERAL pg_temp.raise(r.role, r.statement) AS e (state text, code text, message text, detail text, hint text)
 WHERE r.code NOT IN ('worker_unavailable', 'installation_held') ORDER BY r.nr;
-- the two that need a worker who does not serve
SELECT leasehold.pause_worker();
SELECT leasehold.request_lease('plain', lease_id => test.id('err waits'), company => 'acme') IS NOT NULL AS requested;
SELECT test.is(r.code, pg_temp.blame(r.code, e), '') FROM raised AS r, LATERAL pg_temp.raise(r.role, r.statement) AS e (state text, code text, message text, detail text, hint text) WHERE r.code = 'worker_unavailable';
UPDATE leasehold_internal.installation SET database_oid = 1, paused = false;
SELECT test.eventually('held', $$SELECT s.state FROM leasehold.status() AS s WHERE s.area = 'worker'$$, 'held');
SELECT test.is(r.code, pg_temp.blame(r.code, e), '') FROM raised AS r, LATERAL pg_temp.raise(r.role, r.statement) AS e (state text, code text, message text, detail text, hint text) WHERE r.code = 'installation_held';
UPDATE leasehold_internal.installation AS i SET database_oid = h.database_oid FROM leasehold_internal.here() AS h;
SELECT test.eventually('goes on', $$SELECT test.lease('err waits')$$, 'active');

-- In a read-only transaction it is the server that refuses, with the same SQLSTATE; reading works.
BEGIN READ ONLY;
SELECT test.fails('a request', $$SELECT leasehold.request_lease('plain', company => 'acme')$$, '25006');
SELECT test.fails('an administrator''s', $$SELECT leasehold.pause_worker()$$, '25006');
SELECT test.fails('one that only writes its event', $$SELECT leasehold.reset_breaker('fake')$$, '25006');
SELECT test.works('reading', $$SELECT leasehold.status(), leasehold.environment_impact('plain', company => 'acme')$$);
COMMIT;

DROP TABLE test.err_bait;
DROP FUNCTION test.err_trap(int);
SELECT leasehold.unregister_plugin('err-plugin');
SELECT leasehold.allow_provider('beta', 'fake');
SELECT leasehold.set_limit('active_leases', company => 'acme', environment => 'err-full');
SELECT leasehold.revoke_company('err-archived', 'regress_manager');
SELECT leasehold.finish_run(test.id('err run'), company => 'acme') AS finished;
SELECT leasehold.release_lease(test.id('err ' || l), company => 'acme') AS released FROM unnest(ARRAY['active', 'keyed', 'waits']) AS l;
