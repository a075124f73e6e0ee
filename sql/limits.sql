-- Limits: whoever finds no place waits and says for what, or fails if asked to.
\pset format unaligned
\pset tuples_only on
SET ROLE regress_manager;
SELECT leasehold.create_environment('tight', 'fake') IS NOT NULL AS made;
SELECT leasehold.create_environment('tight-stuck', 'fake', '{"releaseFailTimes": 1000}') IS NOT NULL AS made;
SELECT leasehold.create_environment('tight-failing', 'fake', '{"rateLimitTimes": 1000, "retryAfterMs": 3600000}') IS NOT NULL AS made;
SET ROLE regress_admin;
SELECT leasehold.set_limit('active_leases', 1, company => 'acme', environment => 'tight');
SET ROLE regress_user;
SELECT test.is('the limit can be read', (l.name, l.value, l.environment_id = e.id, l.provider)::text, '(active_leases,1,t,"")')
  FROM leasehold.limits AS l JOIN leasehold.environments AS e ON e.key = 'tight' WHERE l.company_id = test.id('acme');

-- one place, two requests
SELECT leasehold.request_lease('tight', lease_id => test.id('t1')) = test.id('t1') AS requested;
SELECT test.is('the first gets it', (leasehold.wait_for_lease(test.id('t1'), '30 seconds')).status, 'active');
SELECT leasehold.request_lease('tight', lease_id => test.id('t2')) = test.id('t2') AS requested;
SELECT test.eventually('the second waits', $$SELECT l.status || ' ' || l.waiting_for FROM leasehold.leases AS l WHERE l.id = test.id('t2')$$, 'acquiring active_leases');
SELECT test.is('and says so', (w.status, w.done, w.waiting_for)::text, '(acquiring,f,active_leases)') FROM leasehold.wait_for_lease(test.id('t2'), '0 seconds') AS w;
SELECT test.is('in the view, too', (a.waiting_for, a.next_operation)::text, '(active_leases,acquire)') FROM leasehold.active_leases AS a WHERE a.lease_id = test.id('t2');
-- who would rather fail does so at once, with nothing written
RESET ROLE;
SELECT test.quiet();
SELECT test.fingerprint() AS before \gset
SET ROLE regress_user;
SELECT test.refused('on_limit fail', $$SELECT leasehold.request_lease('tight', on_limit => 'fail')$$, 'quota_exceeded');
SELECT test.is('the error names the limit', e.detail, '{"code": "quota_exceeded","limit": "active_leases"}') FROM test.error($$SELECT leasehold.request_lease('tight', on_limit => 'fail')$$) AS e;
RESET ROLE;
SELECT test.is('nothing was written', test.fingerprint(), :'before');
SET ROLE regress_user;
-- a place becomes free
SELECT test.is('the first is given back', leasehold.release_lease(test.id('t1')), 'releasing');
SELECT test.is('the second goes on', (w.status, w.waiting_for)::text, '(active,)') FROM leasehold.wait_for_lease(test.id('t2'), '30 seconds') AS w;
-- a waiting request that is given back is over at once
SELECT leasehold.request_lease('tight', lease_id => test.id('t3')) = test.id('t3') AS requested;
SELECT test.eventually('waits', $$SELECT l.waiting_for FROM leasehold.leases AS l WHERE l.id = test.id('t3')$$, 'active_leases');
SELECT test.is('given back', leasehold.release_lease(test.id('t3')), 'released');
SELECT test.is('waits for nothing', l.waiting_for, NULL) FROM leasehold.leases AS l WHERE l.id = test.id('t3');
-- a waiting request that waits too long fails
SELECT leasehold.request_lease('tight', lease_id => test.id('t4'), acquire_timeout => '1 second') = test.id('t4') AS requested;
SELECT test.eventually('fails', $$SELECT test.lease('t4')$$, 'failed');
SELECT test.is('and says why', (l.failure_code, l.failure_reason)::text, '(quota_exceeded,"waited too long for active_leases")') FROM leasehold.leases AS l WHERE l.id = test.id('t4');
-- a higher limit lets it go
SELECT leasehold.request_lease('tight', lease_id => test.id('t5')) = test.id('t5') AS requested;
SELECT test.eventually('waits', $$SELECT l.waiting_for FROM leasehold.leases AS l WHERE l.id = test.id('t5')$$, 'active_leases');
SET ROLE regress_admin;
SELECT leasehold.set_limit('active_leases', 2, company => 'acme', environment => 'tight');
SET ROLE regress_user;
SELECT test.is('goes on', (leasehold.wait_for_lease(test.id('t5'), '30 seconds')).status, 'active');

-- Of several limits each must hold: provider, company, installation.
SELECT leasehold.request_lease('tight', lease_id => test.id('t6')) = test.id('t6') AS requested;
SELECT test.eventually('the environment is full', $$SELECT l.waiting_for FROM leasehold.leases AS l WHERE l.id = test.id('t6')$$, 'active_leases');
SET ROLE regress_admin;
SELECT leasehold.set_limit('active_leases', 0, provider => 'fake');
SELECT leasehold.set_limit('active_leases', company => 'acme', environment => 'tight');
SET ROLE regress_user;
SELECT test.eventually('now for the provider''s limit', $$SELECT l.status || ' ' || l.waiting_for FROM leasehold.leases AS l WHERE l.id = test.id('t6')$$, 'acquiring active_leases');
SET ROLE regress_admin;
SELECT leasehold.set_limit('active_leases', 0, company => 'acme');
SELECT leasehold.set_limit('active_leases', provider => 'fake');
SET ROLE regress_user;
SELECT test.eventually('now for the company''s limit', $$SELECT l.status || ' ' || l.waiting_for FROM leasehold.leases AS l WHERE l.id = test.id('t6')$$, 'acquiring active_leases');
SET ROLE regress_beta;
SELECT leasehold.request_lease('plain', lease_id => test.id('beta t')) = test.id('beta t') AS requested;
SELECT test.is('another company is not concerned', (leasehold.wait_for_lease(test.id('beta t'), '30 seconds')).status, 'active');
SET ROLE regress_admin;
SELECT leasehold.set_limit('active_leases', 0);
SELECT leasehold.set_limit('active_leases', company => 'acme');
SET ROLE regress_beta;
SELECT test.refused('the installation''s limit concerns all', $$SELECT leasehold.request_lease('plain', on_limit => 'fail')$$, 'quota_exceeded');
SELECT test.is('it can be read by all', string_agg(l.name || ' ' || l.value, ', '), 'active_leases 0') FROM leasehold.limits AS l;
SET ROLE regress_admin;
SELECT leasehold.set_limit('active_leases');
SET ROLE regress_user;
SELECT test.is('without limits it goes on', (leasehold.wait_for_lease(test.id('t6'), '30 seconds')).status, 'active');
SELECT test.is('given back', leasehold.release_lease(test.id(l)), 'releasing') FROM unnest(ARRAY['t2', 't5', 't6']) AS l;
SELECT test.is('over', (leasehold.wait_for_lease(test.id(l), '30 seconds')).status, 'released') FROM unnest(ARRAY['t2', 't5', 't6']) AS l;

-- Who waits for a limit of his own keeps no place from others: acme has used up
-- its part, and has a long line; the installation has a place left for beta.
SET ROLE regress_manager;
SELECT leasehold.create_environment('line', 'fake') IS NOT NULL AS made;
RESET ROLE;
SELECT test.quiet();
CREATE TEMP VIEW occupied AS SELECT l.company_id FROM leasehold.leases AS l WHERE l.status IN ('active', 'releasing', 'pending_cleanup', 'irrevocable');
SELECT leasehold.set_limit('active_leases', count(*) + 1, company => 'acme') FROM occupied AS o WHERE o.company_id = test.id('acme');
SELECT leasehold.set_limit('active_leases', count(*) + 2) FROM occupied AS o;
SET ROLE regress_manager;
SELECT leasehold.request_lease('line', lease_id => test.id('line 0')) = test.id('line 0') AS requested;
SELECT test.is('the last of acme''s', (leasehold.wait_for_lease(test.id('line 0'), '30 seconds')).status, 'active');
-- all at once
SET ROLE regress_admin;
SELECT leasehold.pause_worker('limits.sql');
SET client_min_messages = error;
SET ROLE regress_manager;
SELECT count(leasehold.request_lease('line', lease_id => test.id('line ' || i))) AS requested FROM generate_series(1, 40) AS i;
SET ROLE regress_beta;
SELECT leasehold.request_lease('plain', lease_id => test.id('beta 1')) = test.id('beta 1') AS requested;
RESET client_min_messages;
SET ROLE regress_admin;
SELECT leasehold.resume_worker();
SET ROLE regress_beta;
SELECT test.eventually('beta has its place', $$SELECT test.lease('beta 1')$$, 'active', '10 seconds');
-- a place that becomes free goes to who can use it, whoever has waited longer
SELECT leasehold.request_lease('plain', lease_id => test.id('beta 2')) = test.id('beta 2') AS requested;
SELECT test.eventually('the installation is full', $$SELECT l.waiting_for FROM leasehold.leases AS l WHERE l.id = test.id('beta 2')$$, 'active_leases');
SELECT test.is('a place becomes free', leasehold.release_lease(test.id('beta 1')), 'releasing');
SELECT test.eventually('beta has it', $$SELECT test.lease('beta 2')$$, 'active', '10 seconds');
-- acme's line goes on, oldest first
SET ROLE regress_manager;
SELECT test.is('nobody of it was let go', count(*), 40) FROM leasehold.leases AS l WHERE l.environment_id = (SELECT e.id FROM leasehold.environments AS e WHERE e.key = 'line') AND l.status = 'acquiring';
SELECT test.is('acme gives one back', leasehold.release_lease(test.id('line 0')), 'releasing');
SELECT test.eventually('the oldest has it', $$SELECT test.lease('line 1')$$, 'active');
SELECT test.eventually('only that one', $$SELECT count(*)::text FROM leasehold.leases AS l WHERE l.waiting_for = 'active_leases'$$, '39');
-- without limits nobody waits
SET ROLE regress_admin;
SELECT leasehold.set_limit('active_leases'), leasehold.set_limit('active_leases', company => 'acme');
SET ROLE regress_manager;
SELECT test.eventually('all come', $$SELECT count(*)::text FROM leasehold.leases AS l WHERE l.environment_id = (SELECT e.id FROM leasehold.environments AS e WHERE e.key = 'line') AND l.status = 'active'$$, '40');
SELECT test.is('given back', count(leasehold.release_lease(test.id('line ' || i))), 40) FROM generate_series(1, 40) AS i;
SELECT test.eventually('over', $$SELECT count(*)::text FROM leasehold.leases AS l WHERE l.environment_id = (SELECT e.id FROM leasehold.environments AS e WHERE e.key = 'line') AND l.status <> 'released'$$, '0');
SET ROLE regress_beta;
SELECT test.is('beta''s, too', leasehold.release_lease(test.id('beta 2')), 'releasing');

-- What counts: not what is parked; but what cannot be removed.
SET ROLE regress_admin;
SELECT leasehold.set_limit('active_leases', 1, company => 'acme', environment => 'tight');
SELECT leasehold.set_limit('active_leases', 1, company => 'acme', environment => 'tight-stuck');
SET ROLE regress_user;
SELECT leasehold.request_lease('tight', lease_id => test.id('p1')) = test.id('p1') AS requested;
SELECT test.is('active', (leasehold.wait_for_lease(test.id('p1'), '30 seconds')).status, 'active');
SELECT test.is('to be parked', leasehold.release_lease(test.id('p1'), 'stop'), 'releasing');
SELECT test.is('parked', (leasehold.wait_for_lease(test.id('p1'), '30 seconds')).status, 'retained');
SELECT test.is('there is a place', leasehold.request_lease('tight', lease_id => test.id('p2'), on_limit => 'fail'), test.id('p2'));
SELECT test.is('active', (leasehold.wait_for_lease(test.id('p2'), '30 seconds')).status, 'active');
SELECT leasehold.request_lease('tight-stuck', lease_id => test.id('s1')) = test.id('s1') AS requested;
SELECT test.is('active', (leasehold.wait_for_lease(test.id('s1'), '30 seconds')).status, 'active');
SELECT test.is('given back', leasehold.release_lease(test.id('s1')), 'releasing');
SELECT test.is('irrevocable', (leasehold.wait_for_lease(test.id('s1'), '30 seconds')).status, 'irrevocable');
SELECT test.refused('there is no place', $$SELECT leasehold.request_lease('tight-stuck', on_limit => 'fail')$$, 'quota_exceeded');
SELECT leasehold.request_lease('tight-stuck', lease_id => test.id('s2')) = test.id('s2') AS requested;
SELECT test.eventually('waits', $$SELECT l.waiting_for FROM leasehold.leases AS l WHERE l.id = test.id('s2')$$, 'active_leases');
SET ROLE regress_manager;
SELECT leasehold.write_off_lease(test.id('s1'), 'for the place');
SELECT test.is('writing it off makes a place', (leasehold.wait_for_lease(test.id('s2'), '30 seconds')).status, 'active');
-- a request that is being tried has its place, and gives it back when it ends
SET ROLE regress_admin;
SELECT leasehold.set_limit('active_leases', 1, company => 'acme', environment => 'tight-failing');
SET ROLE regress_user;
SELECT leasehold.request_lease('tight-failing', lease_id => test.id('f1')) = test.id('f1') AS requested;
SELECT test.eventually('it is tried', $$SELECT l.waiting_for FROM leasehold.leases AS l WHERE l.id = test.id('f1')$$, 'retry: provider_throttled');
SELECT leasehold.request_lease('tight-failing', lease_id => test.id('f2')) = test.id('f2') AS requested;
SELECT test.eventually('the next waits for the place', $$SELECT l.waiting_for FROM leasehold.leases AS l WHERE l.id = test.id('f2')$$, 'active_leases');
SELECT test.is('the first is given back', leasehold.release_lease(test.id('f1')), 'released');
SELECT test.eventually('the next has the place', $$SELECT l.waiting_for FROM leasehold.leases AS l WHERE l.id = test.id('f2')$$, 'retry: provider_throttled');
SELECT test.is('given back', leasehold.release_lease(test.id('f2')), 'released');

-- A parked resource that is taken into use again needs a place, too.
SELECT leasehold.upsert_agent(test.id('tight agent')) IS NOT NULL AND leasehold.upsert_execution_workspace(test.id('tight ws')) IS NOT NULL AS made;
SELECT leasehold.start_run(run_id => test.id('tight run ' || i), agent_id => test.id('tight agent'), execution_workspace_id => test.id('tight ws')) IS NOT NULL AS started FROM generate_series(1, 2) AS i;
SELECT test.is('over', leasehold.release_lease(test.id('p2')), 'releasing');
SELECT test.is('over', (leasehold.wait_for_lease(test.id('p2'), '30 seconds')).status, 'released');
SELECT leasehold.request_lease('tight', run_id => test.id('tight run 1'), policy => 'reuse_by_environment', lease_id => test.id('q1')) = test.id('q1') AS requested;
SELECT test.is('active', (leasehold.wait_for_lease(test.id('q1'), '30 seconds')).status, 'active');
SELECT leasehold.finish_run(test.id('tight run 1')) AS finished;
SELECT test.eventually('parked', $$SELECT test.lease('q1')$$, 'retained');
SELECT leasehold.request_lease('tight', lease_id => test.id('q2')) = test.id('q2') AS requested;
SELECT test.is('somebody else has the place', (leasehold.wait_for_lease(test.id('q2'), '30 seconds')).status, 'active');
SELECT test.refused('the parked one is not to be had at once', $$SELECT leasehold.request_lease('tight', run_id => test.id('tight run 2'), policy => 'reuse_by_environment', on_limit => 'fail')$$, 'quota_exceeded');
SELECT test.is('it is left alone', test.lease('q1'), 'retained');
SELECT test.is('but it can be waited for', leasehold.request_lease('tight', run_id => test.id('tight run 2'), policy => 'reuse_by_environment'), test.id('q1'));
SELECT test.eventually('it waits', $$SELECT l.status || ' ' || l.waiting_for FROM leasehold.leases AS l WHERE l.id = test.id('q1')$$, 'resuming active_leases');
SELECT test.is('the place becomes free', leasehold.release_lease(test.id('q2')), 'releasing');
SELECT test.is('it is resumed', (w.status, w.generation)::text, '(active,2)') FROM leasehold.wait_for_lease(test.id('q1'), '30 seconds') AS w;
SELECT leasehold.finish_run(test.id('tight run 2')) AS finished;

-- Starts per minute.
SET ROLE regress_manager;
SELECT leasehold.create_environment('paced', 'fake') IS NOT NULL AS made;
SET ROLE regress_admin;
SELECT leasehold.set_limit('lease_starts_per_minute', 2, company => 'acme', environment => 'paced');
SET ROLE regress_user;
SELECT leasehold.request_lease('paced', lease_id => test.id('m1')) = test.id('m1') AS requested;
SELECT leasehold.request_lease('paced', lease_id => test.id('m2')) = test.id('m2') AS requested;
SELECT test.is('two start', (leasehold.wait_for_lease(test.id(l), '30 seconds')).status, 'active') FROM unnest(ARRAY['m1', 'm2']) AS l;
SELECT leasehold.request_lease('paced', lease_id => test.id('m3')) = test.id('m3') AS requested;
SELECT test.eventually('the third waits', $$SELECT l.waiting_for FROM leasehold.leases AS l WHERE l.id = test.id('m3')$$, 'lease_starts_per_minute');
SELECT leasehold.request_lease('paced', lease_id => test.id('m4'), on_limit => 'fail') = test.id('m4') AS requested;
SELECT test.is('one that would rather fail does', (w.status, w.failure_code, w.failure_reason)::text, '(failed,quota_exceeded,"the limit lease_starts_per_minute is reached")')
  FROM leasehold.wait_for_lease(test.id('m4'), '30 seconds') AS w;
SELECT test.is('a lease that ends makes no place', leasehold.release_lease(test.id('m1')), 'releasing');
SELECT test.is('over', (leasehold.wait_for_lease(test.id('m1'), '30 seconds')).status, 'released');
SELECT test.is('the third still waits', (w.status, w.done, w.waiting_for)::text, '(acquiring,f,lease_starts_per_minute)') FROM leasehold.wait_for_lease(test.id('m3'), '0.5 seconds') AS w;
RESET ROLE;
-- a minute passes
UPDATE leasehold_internal.lease_starts SET started_at = started_at - interval '1 minute';
SET ROLE regress_user;
SELECT test.is('then it starts', (leasehold.wait_for_lease(test.id('m3'), '30 seconds')).status, 'active');

-- Who would rather fail than wait does not get a parked resource either, if another takes the last place; it is parked as before.
SET ROLE regress_manager;
SELECT leasehold.create_environment('tight-park', 'fake') IS NOT NULL AS made;
SELECT leasehold.upsert_agent(test.id('tight agent')) IS NOT NULL AND leasehold.upsert_execution_workspace(test.id('tight ws')) IS NOT NULL AS made;
SELECT leasehold.start_run(run_id => test.id(r), agent_id => test.id('tight agent'), execution_workspace_id => test.id('tight ws')) IS NOT NULL AS started FROM unnest(ARRAY['parking run 1', 'parking run 2', 'parking run 3']) AS r;
SELECT leasehold.request_lease('tight-park', policy => 'reuse_by_environment', run_id => test.id('parking run 1'), lease_id => test.id('parked')) = test.id('parked') AS requested;
SELECT test.is('active', (leasehold.wait_for_lease(test.id('parked'), '30 seconds')).status, 'active');
SELECT test.is('given back', leasehold.release_lease(test.id('parked')), 'releasing');
SELECT test.is('parked', (leasehold.wait_for_lease(test.id('parked'), '30 seconds')).status, 'retained');
SELECT l.provider_lease_id AS resource, l.expires_at AS expires FROM leasehold.leases AS l WHERE l.id = test.id('parked') \gset
SET ROLE regress_admin;
SELECT leasehold.set_limit('active_leases', 1, company => 'acme', environment => 'tight-park');
SELECT leasehold.pause_worker('limits.sql');
SET client_min_messages = error;
SET ROLE regress_manager;
SELECT leasehold.request_lease('tight-park', lease_id => test.id('taker')) = test.id('taker') AS requested;
SELECT test.is('both were in time', leasehold.request_lease('tight-park', policy => 'reuse_by_environment', run_id => test.id('parking run 2'), on_limit => 'fail'), test.id('parked'));
RESET client_min_messages;
SET ROLE regress_admin;
SELECT leasehold.resume_worker();
SET ROLE regress_manager;
SELECT test.is('one gets the place', (leasehold.wait_for_lease(test.id('taker'), '30 seconds')).status, 'active');
SELECT test.is('the other does not wait', (w.status, w.done, w.generation, w.failure_code, w.failure_reason)::text, '(retained,t,2,quota_exceeded,"the limit active_leases is reached")') FROM leasehold.wait_for_lease(test.id('parked'), '30 seconds') AS w;
SELECT test.is('it is parked as before', (l.provider_lease_id = :'resource', l.expires_at = :'expires', l.end_status, l.disposition, l.cleanup_status, l.waiting_for)::text, '(t,t,retained,stop,success,)') FROM leasehold.leases AS l WHERE l.id = test.id('parked');
SELECT test.is('told', test.events('parked'), 'requested acquired release_requested released resume_requested resume_failed');
RESET ROLE;
SELECT test.is('until its time is over', (c.operation, c.due_at = :'expires')::text, '(lease_deadline,t)') FROM leasehold_internal.calls AS c WHERE c.subject_id = test.id('parked');
-- one that waits is parked again when its time is over
SET ROLE regress_manager;
SELECT test.is('asked for again', leasehold.request_lease('tight-park', policy => 'reuse_by_environment', run_id => test.id('parking run 2'), acquire_timeout => '1 second'), test.id('parked'));
SELECT test.eventually('it has waited too long', $$SELECT test.lease('parked')$$, 'retained', '10 seconds');
SELECT test.is('it is parked as before', (l.provider_lease_id = :'resource', l.expires_at = :'expires', l.failure_code, l.waiting_for)::text, '(t,t,quota_exceeded,)') FROM leasehold.leases AS l WHERE l.id = test.id('parked');
RESET ROLE;
SELECT test.eventually('until its time is over', $$SELECT (c.operation, c.due_at = l.expires_at)::text FROM leasehold_internal.calls AS c JOIN leasehold.leases AS l ON l.id = c.subject_id WHERE l.id = test.id('parked')$$, '(lease_deadline,t)');
SET ROLE regress_manager;
SELECT test.is('a place becomes free', leasehold.release_lease(test.id('taker')), 'releasing');
SELECT test.is('free', (leasehold.wait_for_lease(test.id('taker'), '30 seconds')).status, 'released');
SELECT test.is('then it is taken', leasehold.request_lease('tight-park', policy => 'reuse_by_environment', run_id => test.id('parking run 3'), on_limit => 'fail'), test.id('parked'));
SELECT test.is('into use again', (w.status, w.generation, w.failure_code, w.provider_lease_id = :'resource')::text, '(active,4,,t)') FROM leasehold.wait_for_lease(test.id('parked'), '30 seconds') AS w;
SELECT leasehold.destroy_lease(test.id('parked')) IS NOT NULL AS destroyed;
SELECT test.is('gone', (leasehold.wait_for_lease(test.id('parked'), '30 seconds')).status, 'expired');

-- Finding out what became of a lease needs no place: it has one.
SET ROLE regress_manager;
SELECT leasehold.create_environment('tight-lost', 'fake', environment_id => test.id('tight-lost')) IS NOT NULL AS made;
SET ROLE regress_admin;
SELECT leasehold.set_limit('active_leases', 1, company => 'acme', environment => 'tight-lost');
RESET ROLE;
INSERT INTO leasehold.leases (company_id, id, environment_id, config_version, provider, ttl, status, end_status, disposition, failure_code)
VALUES (test.id('acme'), test.id('tight lost'), test.id('tight-lost'), 1, 'fake', '1 hour', 'irrevocable', 'failed', 'delete', 'acquire_outcome_unknown');
SET ROLE regress_manager;
SELECT test.is('it is looked for', leasehold.retry_lease(test.id('tight lost')), 'pending_cleanup');
SELECT test.eventually('and not there', $$SELECT test.lease('tight lost')$$, 'failed', '10 seconds');

-- What started before the clock was set back keeps nobody waiting.
SET ROLE regress_admin;
SELECT leasehold.set_limit('lease_starts_per_minute', 1, company => 'acme', environment => 'tight-lost');
RESET ROLE;
INSERT INTO leasehold_internal.lease_starts (company_id, started_at, lease_id, environment_id, provider)
VALUES (test.id('acme'), now() + interval '1 hour', test.id('tight lost'), test.id('tight-lost'), 'fake');
SET ROLE regress_manager;
SELECT leasehold.request_lease('tight-lost', lease_id => test.id('after the change')) IS NOT NULL AS requested;
SELECT test.eventually('it starts', $$SELECT test.lease('after the change')$$, 'active', '10 seconds');
SELECT test.is('given back', leasehold.release_lease(test.id('after the change')), 'releasing');

-- Calls at a time: one after the other.
SET ROLE regress_manager;
SELECT leasehold.create_environment('narrow', 'fake', '{"delayMs": 200}') IS NOT NULL AS made;
SET ROLE regress_admin;
SELECT leasehold.set_limit('concurrent_calls', 1, provider => 'fake');
SET ROLE regress_user;
SELECT leasehold.request_lease('narrow', lease_id => test.id('n' || i)) IS NOT NULL AS requested FROM generate_series(1, 3) AS i;
SELECT test.is('all come', (leasehold.wait_for_lease(test.id('n' || i), '30 seconds')).status, 'active') FROM generate_series(1, 3) AS i;
-- each takes 200 ms; answers may be stored a little later than they came
SELECT test.is('one after the other', bool_and(a.apart >= '100 milliseconds'), true)
  FROM (SELECT l.acquired_at - lag(l.acquired_at) OVER (ORDER BY l.acquired_at) AS apart
          FROM leasehold.leases AS l WHERE l.id IN (test.id('n1'), test.id('n2'), test.id('n3'))) AS a;
SET ROLE regress_admin;
SELECT leasehold.set_limit('concurrent_calls', provider => 'fake');

-- Refused, and nothing is written.
RESET ROLE;
SELECT test.quiet();
SELECT test.fingerprint() AS before \gset
SET ROLE regress_admin;
SELECT test.refused('an unknown limit', $$SELECT leasehold.set_limit('leases', 1)$$, 'argument_invalid');
SELECT test.refused('what nothing would limit yet', $$SELECT leasehold.set_limit('resolves_per_minute', 1)$$, 'argument_invalid');
SELECT test.is('the hint tells which there are', e.hint, 'Allowed: active_leases, concurrent_calls, concurrent_commands, lease_ttl_max, lease_starts_per_minute, output_bytes.') FROM test.error($$SELECT leasehold.set_limit('resolves_per_minute', 1)$$) AS e;
SELECT test.refused('per environment, what is counted per worker: ' || n, format('SELECT leasehold.set_limit(%L, 1, company => ''acme'', environment => ''tight'')', n), 'argument_invalid') FROM unnest(ARRAY['concurrent_calls', 'concurrent_commands']) AS n;
SELECT test.refused('no name', $$SELECT leasehold.set_limit(NULL, 1)$$, 'argument_required');
SELECT test.refused('less than nothing', $$SELECT leasehold.set_limit('active_leases', -1)$$, 'argument_invalid');
SELECT test.refused('an environment of nobody', $$SELECT leasehold.set_limit('active_leases', 1, environment => 'tight')$$, 'argument_invalid');
SELECT test.refused('an unknown environment', $$SELECT leasehold.set_limit('active_leases', 1, company => 'acme', environment => 'nowhere')$$, 'environment_not_found');
SELECT test.refused('an unknown company', $$SELECT leasehold.set_limit('active_leases', 1, company => 'nobody')$$, 'company_not_found');
SELECT test.refused('an unknown provider', $$SELECT leasehold.set_limit('active_leases', 1, provider => 'nobody')$$, 'provider_not_found');
RESET ROLE;
SELECT test.is('nothing was written', test.fingerprint(), :'before');
SELECT leasehold.set_limit(l.name, company => 'acme', environment => e.key) FROM leasehold.limits AS l JOIN leasehold_internal.environments AS e ON e.id = l.environment_id;
SELECT test.is('no limit is left', count(*), 0) FROM leasehold.limits AS l;
