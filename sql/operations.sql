-- Running the installation: pausing, draining, quarantine, copies; and what
-- happens when nobody serves.
\pset format unaligned
\pset tuples_only on
SET client_min_messages = error;
SET ROLE regress_admin;

-- Paused: requests are kept, what is out is finished, nothing new begins.
SET ROLE regress_manager;
SELECT leasehold.create_environment('o-slow', 'fake', '{"delayMs": 1000}') IS NOT NULL AS made;
SELECT leasehold.request_lease('o-slow', lease_id => test.id('o out')) IS NOT NULL AS requested;
RESET ROLE;
SELECT test.eventually('it is out', $$SELECT c.state::text FROM leasehold_internal.calls AS c WHERE c.subject_id = test.id('o out')$$, 'started');
SET ROLE regress_admin;
SELECT leasehold.pause_worker('maintenance');
SELECT test.is('the doctor knows at once, whatever the worker has heard', (d.severity, d.finding)::text, '(error,"paused: maintenance")') FROM leasehold.doctor() AS d WHERE d.code = 'worker_paused';
SELECT test.eventually('status says so', $$SELECT s.state || ' ' || (s.detail ->> 'reason') FROM leasehold.status() AS s WHERE s.area = 'worker'$$, 'paused paused: maintenance');
SELECT test.is('of the installation, too', (s.state, s.detail ->> 'pausedReason')::text, '(paused,maintenance)') FROM leasehold.status() AS s WHERE s.area = 'installation';
SET ROLE regress_manager;
SELECT leasehold.request_lease('plain', lease_id => test.id('o kept')) IS NOT NULL AS requested;
SELECT test.eventually('what is out is finished', $$SELECT test.lease('o out')$$, 'active');
SELECT test.is('nothing new begins', test.lease('o kept'), 'acquiring');
SELECT test.is('the view says for whom it waits', a.waiting_for, 'worker') FROM leasehold.active_leases AS a WHERE a.lease_id = test.id('o kept');
-- a lease whose time is over ends all the same, as far as it can without the provider
SELECT leasehold.renew_lease(test.id('o out'), '1 second') IS NOT NULL AS renewed;
SELECT test.eventually('it expires, and waits', $$SELECT test.lease('o out')$$, 'releasing');
-- everybody who asks for something is warned
SET client_min_messages = warning;
SELECT leasehold.release_lease(test.id('o kept')) AS released;
SET client_min_messages = error;
SET ROLE regress_admin;
SELECT leasehold.resume_worker();
SELECT test.eventually('goes on', $$SELECT test.lease('o out')$$, 'expired');
SELECT test.is('told', string_agg(e.action || COALESCE(' ' || (e.details ->> 'reason'), ''), ', ' ORDER BY e.occurred_at DESC), 'installation.resumed, installation.paused maintenance')
  FROM (SELECT * FROM leasehold.audit_events AS a WHERE a.entity_type = 'installation' ORDER BY a.occurred_at DESC LIMIT 2) AS e;

-- Quarantine: a call with which the worker died again and again is set aside.
SET ROLE regress_manager;
SELECT leasehold.request_lease('plain', lease_id => test.id('o poison')) IS NOT NULL AS requested;
SELECT test.is('active', (leasehold.wait_for_lease(test.id('o poison'), '30 seconds')).status, 'active');
SET ROLE regress_admin;
SELECT leasehold.pause_worker();
SET ROLE regress_manager;
SELECT leasehold.release_lease(test.id('o poison')) AS released;
RESET ROLE;
-- three workers come and die with it: the third is one too many
UPDATE leasehold_internal.calls AS c SET state = 'started', worker_epoch = -1 WHERE c.subject_id = test.id('o poison') AND c.slot = 'op';
SELECT test.is('the first death', leasehold_internal.recover_calls(0, ARRAY[leasehold_internal.shard_of(test.id('acme'))], 3, true), 1);
SELECT test.is('is of unknown outcome', (c.state, c.crashes)::text, '(queued,1)') FROM leasehold_internal.calls AS c WHERE c.subject_id = test.id('o poison') AND c.slot = 'op';
UPDATE leasehold_internal.calls AS c SET state = 'started', worker_epoch = -1, crashes = 2 WHERE c.subject_id = test.id('o poison') AND c.slot = 'op';
SELECT test.is('the third', leasehold_internal.recover_calls(0, ARRAY[leasehold_internal.shard_of(test.id('acme'))], 3, true), 1);
SELECT test.is('sets it aside', (c.state, c.crashes)::text, '(quarantined,3)') FROM leasehold_internal.calls AS c WHERE c.subject_id = test.id('o poison') AND c.slot = 'op';
SELECT leasehold.resume_worker();
SET ROLE regress_manager;
SELECT test.is('it is shown', (a.status, a.waiting_for, a.next_operation)::text, '(releasing,quarantine,release)') FROM leasehold.active_leases AS a WHERE a.lease_id = test.id('o poison');
SELECT test.is('told', test.events('o poison'), 'requested acquired release_requested quarantined');
SET ROLE regress_user;
SELECT test.refused('not everybody lets it out', $$SELECT leasehold.release_quarantine(test.id('o poison'))$$, 'forbidden');
SET ROLE regress_manager;
SELECT leasehold.release_quarantine(test.id('o poison'));
SELECT test.eventually('then it goes on', $$SELECT test.lease('o poison')$$, 'released');
SELECT test.refused('once', $$SELECT leasehold.release_quarantine(test.id('o poison'))$$, 'call_not_found');

-- It is a manager's decision: trying again is no way out.
SET ROLE regress_admin;
SELECT leasehold.pause_worker();
SET ROLE regress_manager;
SELECT leasehold.request_lease('plain', lease_id => test.id('o set aside')) IS NOT NULL AS requested;
RESET ROLE;
UPDATE leasehold_internal.calls AS c SET state = 'quarantined', crashes = 3 WHERE c.subject_id = test.id('o set aside') AND c.slot = 'op';
SET ROLE regress_user;
SELECT test.refused('a user does not let it out', $$SELECT leasehold.retry_lease(test.id('o set aside'))$$, 'wrong_state');
SET ROLE regress_manager;
SELECT test.refused('nor a manager that way', $$SELECT leasehold.retry_lease(test.id('o set aside'))$$, 'wrong_state');
SELECT test.is('the hint says how', e.hint, 'A manager can let it out with release_quarantine(), which may end the worker again.') FROM test.error($$SELECT leasehold.retry_lease(test.id('o set aside'))$$) AS e;
-- every call that is set aside is told, whatever it is about
RESET ROLE;
CREATE FUNCTION test.make_stray(resource text) RETURNS void LANGUAGE sql AS $$
    INSERT INTO leasehold_internal.provider_resources (provider, provider_lease_id, company_id, stray_id, environment_id, config_version, generation, reason)
    VALUES ('fake', resource, test.id('acme'), test.id(resource), test.id('acme plain'), 1, 1, 'no_lease') $$;
SELECT test.make_stray('o stray 1'), test.make_stray('o stray 2');
INSERT INTO leasehold_internal.calls (company_id, subject_id, slot, operation, provider, shard, state, crashes, due_at, payload)
VALUES (test.id('acme'), test.id('acme plain'), 'sweep', 'reconcile', 'fake', leasehold_internal.shard_of(test.id('acme')), 'quarantined', 3, now() - interval '25 hours', '{}'),
       (test.id('acme'), test.id('o stray 1'), 'op', 'destroy_stray', 'fake', leasehold_internal.shard_of(test.id('acme')), 'quarantined', 3, now() - interval '25 hours', NULL),
       (test.id('acme'), test.id('o stray 2'), 'op', 'destroy_stray', 'fake', leasehold_internal.shard_of(test.id('acme')), 'quarantined', 3, now() - interval '23 hours', NULL),
       (leasehold_internal.no_company(), test.id('o plugin'), 'op', 'initialize', 'plugin:none', 0, 'quarantined', 3, now() - interval '25 hours', '{"plugin": "none"}');
SET ROLE regress_admin;
SELECT d.finding, d.what_to_do FROM leasehold.doctor() AS d WHERE d.code = 'call_quarantined' ORDER BY d.finding;
-- sweeps and strays have nobody who lets them out: a day later they are tried again, and one crash is enough to set them aside
RESET ROLE;
SELECT leasehold_internal.housekeep('reconcile', ARRAY[leasehold_internal.shard_of(test.id('acme'))], 30, 30, 3600) AS more;
SELECT test.is('a sweep, and what is old enough', string_agg((c.operation, c.state, c.crashes)::text, ' ' ORDER BY c.operation, c.state), '(destroy_stray,quarantined,3) (destroy_stray,queued,3) (reconcile,queued,3)')
  FROM leasehold_internal.calls AS c WHERE c.subject_id IN (test.id('acme plain'), test.id('o stray 1'), test.id('o stray 2'));
UPDATE leasehold_internal.calls AS c SET state = 'started', worker_epoch = -1 WHERE c.state = 'queued' AND c.subject_id IN (test.id('acme plain'), test.id('o stray 1'));
SELECT test.is('another crash', leasehold_internal.recover_calls(0, ARRAY[leasehold_internal.shard_of(test.id('acme'))], 3, true), 2);
SELECT test.is('is one too many', count(*), 3) FROM leasehold_internal.calls AS c WHERE c.subject_id IN (test.id('acme plain'), test.id('o stray 1'), test.id('o stray 2')) AND c.state = 'quarantined';
SELECT test.is('told as what they are', string_agg(e.action || ' ' || e.entity_type || ' ' || CASE e.entity_id WHEN test.id('acme plain')::text THEN 'o sweep' ELSE e.entity_id END, ', ' ORDER BY e.action),
    'environment.stray_quarantined provider_resource o stray 1, environment.sweep_quarantined environment o sweep')
  FROM leasehold.audit_events AS e WHERE e.action IN ('environment.stray_quarantined', 'environment.sweep_quarantined');
-- an answer forgives; what it asks for is kept
UPDATE leasehold_internal.calls AS c SET state = 'started', worker_epoch = -1 WHERE c.subject_id = test.id('acme plain');
SELECT test.is('an answer', leasehold_internal.complete_reconcile(-1, test.id('acme'), test.id('acme plain'), 'throttled', NULL, NULL, 'later', 7200000, '1 hour'), 0);
SELECT test.is('forgives', (c.state, c.crashes, c.due_at > now() + interval '119 minutes')::text, '(queued,0,t)') FROM leasehold_internal.calls AS c WHERE c.subject_id = test.id('acme plain');
DELETE FROM leasehold_internal.calls AS c WHERE c.subject_id IN (test.id('acme plain'), test.id('o stray 1'), test.id('o stray 2'), test.id('o plugin'));
DELETE FROM leasehold_internal.provider_resources AS r WHERE r.provider_lease_id LIKE 'o stray %';
SELECT leasehold.resume_worker();
SET ROLE regress_manager;
SELECT leasehold.release_quarantine(test.id('o set aside'));
SELECT test.eventually('let out, it goes on', $$SELECT test.lease('o set aside')$$, 'active');

-- Everything ends, even what somebody left without a deadline.
SELECT leasehold.start_run(run_id => test.id('o endless run')) IS NOT NULL AS started;
RESET ROLE;
UPDATE leasehold.leases AS l SET expires_at = NULL WHERE l.id = test.id('o set aside');
UPDATE leasehold_internal.runs AS r SET heartbeat_at = NULL WHERE r.id = test.id('o endless run');
DELETE FROM leasehold_internal.calls AS c WHERE c.subject_id IN (test.id('o set aside'), test.id('o endless run'));
SELECT test.is('its deadlines are made again', leasehold_internal.rebuild_calls(ARRAY[leasehold_internal.shard_of(test.id('acme'))]), 2);
SET ROLE regress_manager;
SELECT test.eventually('and it is over', $$SELECT test.lease('o set aside')$$, 'expired');
SELECT test.is('why', l.failure_reason, 'lease_expired') FROM leasehold.leases AS l WHERE l.id = test.id('o set aside');
SELECT test.eventually('so is the run', $$SELECT r.status FROM leasehold.runs AS r WHERE r.id = test.id('o endless run')$$, 'failed');

-- What the dispatch table lacks is made again from the states of leases and runs.
SELECT leasehold.request_lease('plain', lease_id => test.id('o lost')) IS NOT NULL AS requested;
SELECT test.is('active', (leasehold.wait_for_lease(test.id('o lost'), '30 seconds')).status, 'active');
SET ROLE regress_admin;
SELECT leasehold.pause_worker();
SET ROLE regress_manager;
SELECT leasehold.start_run(run_id => test.id('o run')) IS NOT NULL AS started;
SELECT leasehold.request_lease('plain', lease_id => test.id('o asked')) IS NOT NULL AND leasehold.release_lease(test.id('o lost')) = 'releasing' AS asked;
RESET ROLE;
SELECT test.is('a request is for the worker that has its company', c.shard, leasehold_internal.shard_of(test.id('acme'))) FROM leasehold_internal.calls AS c WHERE c.subject_id = test.id('o asked');
DELETE FROM leasehold_internal.calls AS c WHERE c.subject_id IN (test.id('o lost'), test.id('o asked'), test.id('o run'));
SET ROLE regress_manager;
SELECT test.is('the view says so', a.waiting_for, 'rebuild') FROM leasehold.active_leases AS a WHERE a.lease_id = test.id('o lost');
RESET ROLE;
SELECT test.is('made again', leasehold_internal.rebuild_calls(ARRAY(SELECT i::smallint FROM generate_series(0, 63) AS i)) >= 3, true);
SELECT test.is('made again', string_agg((c.slot, c.operation, c.look_up)::text, ' ' ORDER BY c.slot, c.operation), '(op,acquire,t) (op,release,f) (run_timer,run_deadline,f)')
  FROM leasehold_internal.calls AS c WHERE c.subject_id IN (test.id('o lost'), test.id('o asked'), test.id('o run'));
SELECT leasehold.resume_worker();
SELECT test.eventually('released', $$SELECT test.lease('o lost')$$, 'released');
-- whether the request was sent is not known, so it is looked up first; it was not
SELECT test.eventually('active', $$SELECT test.lease('o asked')$$, 'active');
SELECT leasehold.finish_run(test.id('o run'), company => 'acme') AS finished;

-- A copy of the installation: held until somebody says what it is.
SELECT test.quiet();
UPDATE leasehold_internal.installation SET system_identifier = '1';
SELECT test.eventually('held', $$SELECT s.state FROM leasehold.status() AS s WHERE s.area = 'worker'$$, 'held');
SELECT test.is('the doctor says what to do', (d.severity, d.finding, d.what_to_do LIKE '%takeover_installation()%fork_installation()%')::text, '(error,"this database is a copy or was restored from a dump",t)') FROM leasehold.doctor() AS d WHERE d.code = 'installation_held';
SET ROLE regress_manager;
SET client_min_messages = warning;
SELECT leasehold.request_lease('plain', lease_id => test.id('o held')) = test.id('o held') AS requested;
SET client_min_messages = error;
SELECT test.refused('waiting fails at once', $$SELECT leasehold.wait_for_lease(test.id('o held'))$$, 'installation_held');
SELECT test.is('reading works', test.lease('o asked'), 'active');
SELECT test.fails('not everybody decides', 'SELECT leasehold.takeover_installation()', '42501');
RESET ROLE;
-- resources of no lease; the dispatch table is of the place where it was
SELECT test.make_stray('o stray');
SET ROLE regress_admin;
SELECT test.is('it replaces the original: the next epoch', leasehold.takeover_installation(), 2);
SELECT test.eventually('what waited goes on', $$SELECT test.lease('o held')$$, 'active');
RESET ROLE;
SELECT test.is('what no lease has is left alone until somebody agrees', count(*), 0) FROM leasehold_internal.calls AS c WHERE c.operation = 'destroy_stray';
SET ROLE regress_admin;
SELECT test.is('the first sweep asks', count(*), 1) FROM leasehold.doctor() AS d WHERE d.code = 'sweep_dry';
SELECT leasehold.approve_sweep();
RESET ROLE;
SELECT test.eventually('then it is removed', $$SELECT string_agg(e.action, ' ') FROM leasehold.audit_events AS e WHERE e.entity_id = 'o stray'$$, 'environment.stray_removed');
SET ROLE regress_admin;
SELECT test.refused('once', 'SELECT leasehold.approve_sweep()', 'wrong_state');
SELECT test.refused('nothing to take over', 'SELECT leasehold.takeover_installation()', 'wrong_state');
SELECT test.refused('nothing to fork', 'SELECT leasehold.fork_installation()', 'wrong_state');
SET ROLE regress_manager;
SELECT leasehold.upsert_agent(test.id('o agent')) IS NOT NULL AS made;
SELECT test.is('events are of the new epoch', e.epoch, 2) FROM leasehold.audit_events AS e WHERE e.entity_id = test.id('o agent')::text;
-- named hosts go on by themselves
RESET ROLE;
SELECT test.quiet();
UPDATE leasehold_internal.installation SET host = 'elsewhere';
SELECT test.eventually('held', $$SELECT s.state FROM leasehold.status() AS s WHERE s.area = 'worker'$$, 'held');
SELECT h.host AS here FROM leasehold_internal.here() AS h \gset
SET ROLE regress_admin;
SELECT leasehold.allow_host(:'here');
RESET ROLE;
UPDATE leasehold_internal.installation SET host = host;
SELECT test.eventually('goes on', $$SELECT s.state FROM leasehold.status() AS s WHERE s.area = 'worker'$$, 'running');
DELETE FROM leasehold_internal.allowed_hosts;
UPDATE leasehold_internal.installation AS i SET host = h.host FROM leasehold_internal.here() AS h;
-- it is a copy: the original's leases are forgotten, and nothing remote is touched
SELECT test.quiet();
SELECT i.id AS original FROM leasehold_internal.installation AS i \gset
UPDATE leasehold_internal.installation SET database_oid = 1;
SELECT test.eventually('held', $$SELECT s.state FROM leasehold.status() AS s WHERE s.area = 'worker'$$, 'held');
SELECT leasehold.start_run(run_id => test.id('o run 2'), company => 'acme') IS NOT NULL AS started;
SELECT test.make_stray('o original''s stray');
SET ROLE regress_admin;
SELECT test.is('another installation', leasehold.fork_installation() <> :'original', true);
RESET ROLE;
SELECT test.is('of the original''s leases none is left', count(*), 0) FROM leasehold.leases AS l WHERE leasehold_internal.may_have_resource(l.status);
SELECT test.is('forgotten', (test.lease('o asked'), test.lease('o held'))::text, '(forgotten,forgotten)');
SELECT test.is('its runs are interrupted', (r.status, r.error_code)::text, '(interrupted,installation_forked)') FROM leasehold_internal.runs AS r WHERE r.id = test.id('o run 2');
SELECT test.is('no work, resources or tokens', (SELECT count(*) FROM leasehold_internal.calls) + (SELECT count(*) FROM leasehold_internal.provider_resources) + (SELECT count(*) FROM leasehold_internal.run_tokens), 0);
SELECT test.eventually('it runs', $$SELECT s.state FROM leasehold.status() AS s WHERE s.area = 'worker'$$, 'running');
SET ROLE regress_manager;
SELECT leasehold.request_lease('plain', lease_id => test.id('o new')) IS NOT NULL AS requested;
SELECT test.is('new leases are its own', (leasehold.wait_for_lease(test.id('o new'), '30 seconds')).status, 'active');
SET ROLE regress_admin;
SELECT test.is('told', string_agg(e.action, ', ' ORDER BY e.occurred_at), 'installation.taken_over, installation.sweep_approved, installation.forked')
  FROM leasehold.audit_events AS e WHERE e.action IN ('installation.taken_over', 'installation.sweep_approved', 'installation.forked');

-- Drained: everything ends, nothing new.
SELECT test.is('how many still have to end', leasehold.drain_installation(), 1);
SET ROLE regress_manager;
SELECT test.refused('nothing new', $$SELECT leasehold.request_lease('plain')$$, 'worker_unavailable');
SET ROLE regress_admin;
SELECT test.refused('nothing that is there already either', $$SELECT leasehold.import_lease('plain', 'sandbox://elsewhere/drained', company => 'acme')$$, 'worker_unavailable');
SET ROLE regress_manager;
SELECT test.eventually('it ends', $$SELECT test.lease('o new')$$, 'released');
SET ROLE regress_admin;
SELECT test.is('nothing is left', leasehold.drain_installation(), 0);
SELECT test.is('status says so', s.state, 'draining') FROM leasehold.status() AS s WHERE s.area = 'installation';
SELECT test.is('the doctor, too', string_agg(d.severity || ': ' || d.finding || '; ' || d.what_to_do, ' and '), 'notice: new leases are refused since drain_installation(); resources left: 0; Call resume_worker() to take new leases again.') FROM leasehold.doctor() AS d;
SELECT leasehold.resume_worker();
SET ROLE regress_manager;
SELECT test.works('afterwards', $$SELECT leasehold.request_lease('plain')$$);

-- Circuit breakers.
SET ROLE regress_admin;
SELECT test.is('of the fake provider, now and then open', leasehold.reset_breaker('fake') IN (true, false), true);
SELECT test.refused('of nobody', $$SELECT leasehold.reset_breaker('nobody')$$, 'provider_not_found');
SELECT test.refused('an empty host', $$SELECT leasehold.allow_host('')$$, 'argument_invalid');
SELECT test.refused('an overlong reason', $$SELECT leasehold.pause_worker(repeat('x', 201))$$, 'argument_too_large');
RESET ROLE;
