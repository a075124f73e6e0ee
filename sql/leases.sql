-- A lease from the request to its end; repeated requests; waiting.
\pset format unaligned
\pset tuples_only on
SET ROLE regress_user;

-- 65, 66: a lease without run, agent, issue or workspace
SELECT test.is('the request returns the id that it was given',
    leasehold.request_lease('plain', lease_id => test.id('lease 1')), test.id('lease 1'));
SELECT test.is('it becomes active', (w.status, w.done, w.generation, w.waiting_for, w.failure_code, w.failure_reason)::text,
               '(active,t,1,,,)'),
       test.is('the provider named the resource', w.provider_lease_id LIKE 'sandbox://fake/%', true),
       test.is('it lasts an hour', w.expires_at - now() BETWEEN '58 minutes' AND '61 minutes', true)
  FROM leasehold.wait_for_lease(test.id('lease 1'), '30 seconds') AS w;
SELECT test.is('what is stored', (l.provider, l.policy, l.agent_id, l.issue_id, l.run_id, l.execution_workspace_id, l.ttl,
               l.config_version, l.requested_by, l.cleanup_status, l.ended_at, l.end_status)::text,
               '(fake,ephemeral,,,,,"@ 1 hour",1,regress_user,,,)'),
       test.is('in order of time', l.requested_at <= l.acquired_at AND l.acquired_at <= l.last_used_at AND l.last_used_at < l.expires_at, true)
  FROM leasehold.leases AS l WHERE l.id = test.id('lease 1');
SELECT test.is('what the provider said of it', m.metadata, '{"image": "ubuntu:24.04", "provider": "fake", "reuseLease": false}'::jsonb)
  FROM leasehold.lease_metadata AS m WHERE m.lease_id = test.id('lease 1');

-- 71: given back twice
SELECT test.is('given back', leasehold.release_lease(test.id('lease 1')), 'releasing');
SELECT test.is('it ends', (w.status, w.done)::text, '(released,t)') FROM leasehold.wait_for_lease(test.id('lease 1'), '30 seconds') AS w;
SELECT test.is('given back again', leasehold.release_lease(test.id('lease 1')), 'released');
SELECT test.is('destroyed after its end', leasehold.destroy_lease(test.id('lease 1')), 'released');
SELECT test.is('all is told, and once', test.events('lease 1'), 'requested acquired release_requested released');
SELECT test.is('how it ended', (l.end_status, l.disposition, l.cleanup_status, l.failure_code, l.failure_reason)::text, '(released,delete,success,,)'),
       test.is('and when', l.ended_at >= l.acquired_at, true)
  FROM leasehold.leases AS l WHERE l.id = test.id('lease 1');
RESET ROLE;
SELECT test.is('nothing is left to do for it', count(*), 0) FROM leasehold_internal.calls AS c WHERE c.subject_id = test.id('lease 1');
SELECT test.is('its resource is nobody''s', count(*), 0) FROM leasehold_internal.provider_resources AS r WHERE r.lease_id = test.id('lease 1');
SET ROLE regress_user;

-- an id is taken once
SELECT test.refused('the same id again', format('SELECT leasehold.request_lease(''plain'', lease_id => %L)', test.id('lease 1')), 'already_exists');

-- The same request again, by its key.
SELECT test.is('the first request with a key', leasehold.request_lease('plain', ttl => '90 minutes', lease_id => test.id('keyed'), idempotency_key => 'k1'), test.id('keyed'));
SELECT test.is('the same again', leasehold.request_lease('plain', ttl => '90 minutes', lease_id => test.id('keyed'), idempotency_key => 'k1'), test.id('keyed'));
SELECT test.is('one lease', count(*), 1) FROM leasehold.leases AS l WHERE l.ttl = '90 minutes';
SELECT test.is('one request', count(*), 1) FROM leasehold.audit_events AS e
 WHERE e.entity_id = test.id('keyed')::text AND e.action = 'environment.lease_requested';
SELECT test.refused('another time to live', $$SELECT leasehold.request_lease('plain', ttl => '91 minutes', lease_id => test.id('keyed'), idempotency_key => 'k1')$$, 'idempotency_conflict');
SELECT test.refused('another environment', $$SELECT leasehold.request_lease('other', ttl => '90 minutes', lease_id => test.id('keyed'), idempotency_key => 'k1')$$, 'idempotency_conflict');
SELECT test.refused('another time to wait', $$SELECT leasehold.request_lease('plain', ttl => '90 minutes', lease_id => test.id('keyed'), acquire_timeout => '1 minute', idempotency_key => 'k1')$$, 'idempotency_conflict');
SELECT test.is('the error tells the first result', (e.detail::jsonb ->> 'result')::uuid, test.id('keyed'))
  FROM test.error($$SELECT leasehold.request_lease('plain', idempotency_key => 'k1')$$) AS e;
-- equal are the values, not how they are written or displayed
SET intervalstyle = 'sql_standard';
SELECT test.is('an hour and a half is ninety minutes', leasehold.request_lease('plain', ttl => '01:30', lease_id => test.id('keyed'), idempotency_key => 'k1'), test.id('keyed'));
RESET intervalstyle;
-- an id in the place of another is another request
SELECT leasehold.upsert_agent(test.id('twin'), 'twin') = leasehold.upsert_issue(test.id('twin'), 'twin') AS twins;
SELECT test.is('for an agent', leasehold.request_lease('plain', agent_id => test.id('twin'), lease_id => test.id('for agent'), idempotency_key => 'k2'), test.id('for agent'));
SELECT test.refused('for an issue of the same id', $$SELECT leasehold.request_lease('plain', issue_id => test.id('twin'), lease_id => test.id('for agent'), idempotency_key => 'k2')$$, 'idempotency_conflict');
SELECT test.refused('an empty key', $$SELECT leasehold.request_lease('plain', idempotency_key => '')$$, 'argument_invalid');
SELECT test.refused('an overlong key', $$SELECT leasehold.request_lease('plain', idempotency_key => repeat('k', 201))$$, 'argument_too_large');
-- a request that fails does not use up its key
SELECT test.refused('a request that fails', $$SELECT leasehold.request_lease('nowhere', idempotency_key => 'k3')$$, 'environment_not_found');
SELECT test.works('the key is still free', $$SELECT leasehold.request_lease('plain', idempotency_key => 'k3')$$);
-- keys are a company's and a function's own
SELECT test.works('the same key for a run', $$SELECT leasehold.start_run(run_id => test.id('keyed run'), idempotency_key => 'k1')$$);
SET ROLE regress_beta;
SELECT test.is('the same key in another company', leasehold.request_lease('plain', lease_id => test.id('beta keyed'), idempotency_key => 'k1'), test.id('beta keyed'));
RESET ROLE;
UPDATE leasehold_internal.idempotency_keys SET created_at = created_at - interval '25 hours' WHERE key = 'k1' AND company_id = test.id('acme');
SET ROLE regress_user;
SELECT test.is('after a day the key is free again', leasehold.request_lease('plain', lease_id => test.id('keyed later'), idempotency_key => 'k1'), test.id('keyed later'));

-- Waiting: the present state at the timeout, never an error.
RESET ROLE;
SET ROLE regress_manager;
SELECT leasehold.create_environment('slow', 'fake', '{"delayMs": 2000}') IS NOT NULL AS made;
SET ROLE regress_user;
SELECT leasehold.request_lease('slow', lease_id => test.id('slow 1')) = test.id('slow 1') AS requested;
SELECT test.is('at the timeout: not done', (w.status, w.done, w.provider_lease_id)::text, '(acquiring,f,)')
  FROM leasehold.wait_for_lease(test.id('slow 1'), '0 seconds') AS w;
SELECT test.is('a while later: still not done', (w.status, w.done)::text, '(acquiring,f)')
  FROM leasehold.wait_for_lease(test.id('slow 1'), '0.2 seconds') AS w;
-- ... whatever the snapshot of the waiting transaction
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT test.is('before waiting', test.lease('slow 1'), 'acquiring');
SELECT test.is('waiting sees what happens', (w.status, w.done)::text, '(active,t)')
  FROM leasehold.wait_for_lease(test.id('slow 1'), '30 seconds') AS w;
SELECT test.is('the transaction sees what it saw', test.lease('slow 1'), 'acquiring');
COMMIT;
BEGIN READ ONLY;
SELECT test.is('waiting writes nothing', (w.status, w.done)::text, '(active,t)') FROM leasehold.wait_for_lease(test.id('slow 1')) AS w;
SELECT test.fails('requesting does', $$SELECT leasehold.request_lease('plain')$$, '25006');
COMMIT;
SELECT test.refused('too long', $$SELECT leasehold.wait_for_lease(test.id('slow 1'), '61 seconds')$$, 'argument_invalid');
SELECT test.refused('a day', $$SELECT leasehold.wait_for_lease(test.id('slow 1'), '1 day')$$, 'argument_invalid');
SELECT test.refused('before now', $$SELECT leasehold.wait_for_lease(test.id('slow 1'), '-1 second')$$, 'argument_invalid');
SELECT test.refused('for what does not exist', $$SELECT leasehold.wait_for_lease(test.id('nothing'))$$, 'lease_not_found');

-- What the own transaction wrote does not go on before its commit.
SELECT test.refused('in one statement', $$SELECT leasehold.wait_for_lease(leasehold.request_lease('plain'))$$, 'own_transaction');
BEGIN;
SAVEPOINT s;
SELECT leasehold.request_lease('plain', lease_id => test.id('own')) = test.id('own') AS requested;
RELEASE s;
SELECT test.refused('from a savepoint that was released', $$SELECT leasehold.wait_for_lease(test.id('own'))$$, 'own_transaction');
SELECT test.is('without waiting it can be looked at', (w.status, w.done)::text, '(acquiring,f)') FROM leasehold.wait_for_lease(test.id('own'), '0 seconds') AS w;
ROLLBACK;
SELECT test.is('nothing is left of what was rolled back', test.lease('own'), NULL);
BEGIN;
SELECT test.is('released, not committed', leasehold.release_lease(test.id('slow 1')), 'releasing');
SELECT test.refused('waiting for the end', $$SELECT leasehold.wait_for_lease(test.id('slow 1'))$$, 'own_transaction');
ROLLBACK;
SELECT test.is('still active', test.lease('slow 1'), 'active');

-- Given back before the provider answered: what it then gives is removed.
SELECT leasehold.request_lease('slow', lease_id => test.id('slow 2')) = test.id('slow 2') AS requested;
RESET ROLE;
SELECT test.eventually('the provider was asked', $$SELECT c.state::text FROM leasehold_internal.calls AS c WHERE c.subject_id = test.id('slow 2')$$, 'started');
SET ROLE regress_user;
SELECT test.is('given back meanwhile', leasehold.release_lease(test.id('slow 2')), 'releasing');
SELECT test.is('it ends', (w.status, w.done, w.provider_lease_id IS NOT NULL)::text, '(released,t,t)') FROM leasehold.wait_for_lease(test.id('slow 2'), '30 seconds') AS w;

-- What it becomes when it is given back: kept or stopped is parked, deleted is gone.
SELECT leasehold.request_lease('plain', lease_id => test.id('to ' || d)) = test.id('to ' || d) AS requested
  FROM unnest(ARRAY['keep', 'stop', 'delete']) AS d;
SELECT test.is(d, (leasehold.wait_for_lease(test.id('to ' || d), '30 seconds')).status, 'active')
  FROM unnest(ARRAY['keep', 'stop', 'delete']) AS d;
SELECT test.refused('another word', $$SELECT leasehold.release_lease(test.id('to keep'), 'burn')$$, 'argument_invalid');
SELECT test.is(d, leasehold.release_lease(test.id('to ' || d), d), 'releasing') FROM unnest(ARRAY['keep', 'stop', 'delete']) AS d;
SELECT test.is(d, (leasehold.wait_for_lease(test.id('to ' || d), '30 seconds')).status, want)
  FROM (VALUES ('keep', 'retained'), ('stop', 'retained'), ('delete', 'released')) AS v (d, want);
RESET ROLE;
SELECT test.is('what is parked keeps its resource: ' || d, count(r.*), want)
  FROM (VALUES ('keep', 1), ('stop', 1), ('delete', 0)) AS v (d, want)
  LEFT JOIN leasehold_internal.provider_resources AS r ON r.lease_id = test.id('to ' || d)
 GROUP BY d, want ORDER BY d;
SET ROLE regress_user;
SELECT test.is('a parked one that is released stays parked', leasehold.release_lease(test.id('to stop')), 'retained');
-- destroyed
SELECT test.is('destroyed', leasehold.destroy_lease(test.id('to ' || d), 'not needed'), 'releasing') FROM unnest(ARRAY['keep', 'stop']) AS d;
SELECT test.is(d || ' is gone', (w.status, w.failure_reason)::text, '(expired,"not needed")')
  FROM unnest(ARRAY['keep', 'stop']) AS d, leasehold.wait_for_lease(test.id('to ' || d), '30 seconds') AS w;
SELECT leasehold.request_lease('plain', lease_id => test.id('to destroy')) = test.id('to destroy') AS requested;
SELECT test.is('an active one', (leasehold.wait_for_lease(test.id('to destroy'), '30 seconds')).status, 'active');
SELECT test.is('destroyed', leasehold.destroy_lease(test.id('to destroy')), 'releasing');
SELECT test.is('with the default reason', (w.status, w.failure_reason)::text, '(expired,lease_destroyed)') FROM leasehold.wait_for_lease(test.id('to destroy'), '30 seconds') AS w;

-- Given back before anybody asked the provider: over at once, without a call.
SET ROLE regress_admin;
SELECT leasehold.pause_worker('leases.sql');
SET ROLE regress_user;
SET client_min_messages = error;
SELECT leasehold.request_lease('plain', lease_id => test.id('unsent')) = test.id('unsent') AS requested;
SELECT test.is('over at once', leasehold.release_lease(test.id('unsent')), 'released');
SELECT leasehold.request_lease('plain', lease_id => test.id('unsent 2')) = test.id('unsent 2') AS requested;
SELECT test.is('destroyed at once', leasehold.destroy_lease(test.id('unsent 2')), 'expired');
SELECT test.is('told as the end it is', test.events('unsent'), 'requested released');
SELECT leasehold.request_lease('plain', lease_id => test.id('unserved')) = test.id('unserved') AS requested;
RESET client_min_messages;
-- nobody serves: the request is kept, with a warning; waiting fails at once
SELECT leasehold.request_lease('plain', lease_id => test.id('unserved 2')) = test.id('unserved 2') AS requested;
SELECT test.refused('nobody serves', $$SELECT leasehold.wait_for_lease(test.id('unserved'), '30 seconds')$$, 'worker_unavailable');
SELECT test.is('what has ended can be read all the same', (w.status, w.done)::text, '(released,t)') FROM leasehold.wait_for_lease(test.id('unsent')) AS w;
RESET ROLE;
SELECT test.is('nothing is left to do for those', count(*), 0) FROM leasehold_internal.calls AS c WHERE c.subject_id IN (test.id('unsent'), test.id('unsent 2'));
SET ROLE regress_admin;
SELECT leasehold.resume_worker();
SET ROLE regress_user;
SELECT test.is('afterwards they go on', (leasehold.wait_for_lease(test.id(l), '30 seconds')).status, 'active') FROM unnest(ARRAY['unserved', 'unserved 2']) AS l;

-- 68 and others: refused, and nothing is written
RESET ROLE;
SELECT test.quiet();
SELECT test.fingerprint() AS before \gset
SET ROLE regress_user;
SELECT test.refused('no such environment', $$SELECT leasehold.request_lease('nowhere')$$, 'environment_not_found');
SELECT test.refused('no such agent', $$SELECT leasehold.request_lease('plain', agent_id => test.id('nobody'))$$, 'agent_not_found');
SELECT test.refused('no such issue', $$SELECT leasehold.request_lease('plain', issue_id => test.id('nothing'))$$, 'issue_not_found');
SELECT test.refused('no such run', $$SELECT leasehold.request_lease('plain', run_id => test.id('nothing'))$$, 'run_not_found');
SELECT test.refused('no such workspace', $$SELECT leasehold.request_lease('plain', execution_workspace_id => test.id('nothing'))$$, 'execution_workspace_not_found');
SELECT test.refused('too short', $$SELECT leasehold.request_lease('plain', ttl => '0.5 seconds')$$, 'argument_invalid');
SELECT test.refused('backwards', $$SELECT leasehold.request_lease('plain', ttl => '-1 hour')$$, 'argument_invalid');
SELECT test.refused('more than a year', $$SELECT leasehold.request_lease('plain', ttl => '366 days')$$, 'argument_invalid');
SELECT test.refused('no idle time', $$SELECT leasehold.request_lease('plain', idle_timeout => '0 seconds')$$, 'argument_invalid');
SELECT test.refused('no time to wait', $$SELECT leasehold.request_lease('plain', acquire_timeout => '0 seconds')$$, 'argument_invalid');
SELECT test.refused('another policy', $$SELECT leasehold.request_lease('plain', policy => 'reuse_by_execution_workspace')$$, 'argument_invalid');
SELECT test.refused('another answer to limits', $$SELECT leasehold.request_lease('plain', on_limit => 'ignore')$$, 'argument_invalid');
SELECT test.refused('120: reuse without a run', $$SELECT leasehold.request_lease('plain', policy => 'reuse_by_environment')$$, 'argument_invalid');
RESET ROLE;
SELECT test.is('nothing was written', test.fingerprint(), :'before');
SET ROLE regress_manager;
SELECT leasehold.create_environment('closed', 'fake') IS NOT NULL AS made;
SELECT leasehold.archive_environment('closed');
SET ROLE regress_user;
SELECT test.refused('68: an archived environment', $$SELECT leasehold.request_lease('closed')$$, 'environment_inactive');
SET ROLE regress_manager;
SELECT leasehold.update_environment('closed', status => 'active') AS version;
SET ROLE regress_user;
SELECT test.works('taken into use again', $$SELECT leasehold.request_lease('closed')$$);
RESET ROLE;
