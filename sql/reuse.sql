-- Parking a resource and taking it into use again: one row, one holder.
\pset format unaligned
\pset tuples_only on
SET ROLE regress_manager;
SELECT leasehold.create_environment('pool', 'fake', '{"reuseLease": true}') IS NOT NULL AS made;
SELECT leasehold.create_environment('pool2', 'fake', '{"reuseLease": true}') IS NOT NULL AS made;
SELECT leasehold.create_environment('forgetful', 'fake', '{"reuseLease": true, "goneOnResume": true}') IS NOT NULL AS made;
SET ROLE regress_user;
SELECT leasehold.upsert_agent(test.id('agent A'), 'A', 'codex_local') IS NOT NULL AND leasehold.upsert_agent(test.id('agent B'), 'B', 'codex_local') IS NOT NULL AS agents;
SELECT leasehold.upsert_execution_workspace(test.id('ws 1'), 'one', mode => 'isolated') IS NOT NULL
   AND leasehold.upsert_execution_workspace(test.id('ws 2'), 'two') IS NOT NULL AS workspaces;
SELECT leasehold.upsert_issue(test.id('issue 1'), 'one') IS NOT NULL AND leasehold.upsert_issue(test.id('issue 2'), 'two') IS NOT NULL AS issues;
-- A run of an agent in a workspace; its request has the run's name.
CREATE PROCEDURE pg_temp.run(name text, environment text, agent text DEFAULT 'agent A', workspace text DEFAULT 'ws 1', issue text DEFAULT NULL)
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM leasehold.start_run(run_id => test.id(name), agent_id => test.id(agent), execution_workspace_id => test.id(workspace),
                                issue_id => test.id(issue));
    PERFORM leasehold.request_lease(environment, run_id => test.id(name), lease_id => test.id(name));
END
$$;
CREATE FUNCTION pg_temp.holds(name text) RETURNS text LANGUAGE sql AS $$
    SELECT (SELECT k FROM unnest(ARRAY['r1', 'r2', 'r3', 'r4', 'r5', 'r6', 'r7', 'r8', 'r9', 'x1', 'x2', 'i1', 'i2', 'i3']) AS k WHERE test.id(k) = l.id)
           || ' ' || l.status || ' ' || l.generation
      FROM leasehold.leases AS l WHERE l.run_id = test.id(name) $$;

-- A run lends its agent and workspace; with reuseLease the lease is one to reuse.
CALL pg_temp.run('r1', 'pool', issue => 'issue 1');
SELECT test.is('active', (leasehold.wait_for_lease(test.id('r1'), '30 seconds')).status, 'active');
SELECT test.is('what is stored', (l.policy, l.adapter_type, l.agent_id = test.id('agent A'), l.execution_workspace_id = test.id('ws 1'), l.issue_id = test.id('issue 1'))::text,
               '(reuse_by_environment,codex_local,t,t,t)') FROM leasehold.leases AS l WHERE l.id = test.id('r1');
SELECT l.provider_lease_id AS resource, l.acquired_at AS acquired FROM leasehold.leases AS l WHERE l.id = test.id('r1') \gset

-- 116: in use by a run, it is not given to another
CALL pg_temp.run('r2', 'pool');
SELECT test.is('another one', (leasehold.wait_for_lease(test.id('r2'), '30 seconds')).status, 'active');
SELECT test.is('the first is left alone', pg_temp.holds('r1'), 'r1 active 1');

-- parked at the end of the run
SELECT test.is('the run ends', leasehold.finish_run(test.id('r1')), 'succeeded');
SELECT test.eventually('the resource is parked', $$SELECT test.lease('r1')$$, 'retained');
SELECT test.is('as a success', (l.end_status, l.disposition, l.cleanup_status, l.provider_lease_id = :'resource')::text, '(retained,stop,success,t)')
  FROM leasehold.leases AS l WHERE l.id = test.id('r1');
SELECT test.is('all is told', test.events('r1'), 'requested acquired release_requested released');

-- 93, 115: the next run of the agent in the workspace gets it: the same row, the next generation
SELECT leasehold.start_run(run_id => test.id('r3'), agent_id => test.id('agent A'), execution_workspace_id => test.id('ws 1'), issue_id => test.id('issue 2')) IS NOT NULL AS started;
SELECT test.is('the request returns it', leasehold.request_lease('pool', run_id => test.id('r3'), ttl => '2 hours', lease_id => test.id('r3'), idempotency_key => 'reuse'), test.id('r1'));
SELECT test.is('repeated, too', leasehold.request_lease('pool', run_id => test.id('r3'), ttl => '2 hours', lease_id => test.id('r3'), idempotency_key => 'reuse'), test.id('r1'));
SELECT test.is('it is resumed', (w.status, w.generation, w.provider_lease_id = :'resource')::text, '(active,2,t)') FROM leasehold.wait_for_lease(test.id('r1'), '30 seconds') AS w;
SELECT test.is('nothing was made for it', test.lease('r3'), NULL);
SELECT test.is('it is the new run''s', (pg_temp.holds('r3'), pg_temp.holds('r1'))::text, '("r1 active 2",)');
SELECT test.is('with its issue and time to live', (l.issue_id = test.id('issue 2'), l.ttl, l.ended_at, l.end_status, l.cleanup_status, l.acquired_at > :'acquired', l.expires_at > now() + interval '119 minutes')::text,
               '(t,"@ 2 hours",,,,t,t)') FROM leasehold.leases AS l WHERE l.id = test.id('r1');
SELECT test.is('all is told', test.events('r1'), 'requested acquired release_requested released resume_requested resumed');
-- the holder of before is fenced off
SELECT test.refused('the old holder cannot renew', $$SELECT leasehold.renew_lease(test.id('r1'), generation => 1)$$, 'stale_version');
SELECT test.refused('nor give back', $$SELECT leasehold.release_lease(test.id('r1'), generation => 1)$$, 'stale_version');
SELECT test.is('the end of the old run changes nothing', leasehold.release_run_leases(test.id('r1')), 0);
SELECT test.is('the new holder renews', leasehold.renew_lease(test.id('r1'), generation => 2) > now(), true);

-- Not reused: by another agent (98), in another workspace, in another environment, after another adapter (117).
SELECT leasehold.finish_run(test.id('r3')) AS finished;
SELECT test.eventually('parked again', $$SELECT test.lease('r1')$$, 'retained');
CALL pg_temp.run('r4', 'pool', agent => 'agent B');
SELECT test.is('another agent gets its own', pg_temp.holds('r4') LIKE 'r4 %', true);
CALL pg_temp.run('r5', 'pool', workspace => 'ws 2');
SELECT test.is('another workspace', pg_temp.holds('r5') LIKE 'r5 %', true);
CALL pg_temp.run('r6', 'pool2');
SELECT test.is('another environment', pg_temp.holds('r6') LIKE 'r6 %', true);
SELECT leasehold.upsert_agent(test.id('agent A'), adapter_type => 'claude_local') IS NOT NULL AS changed;
CALL pg_temp.run('r7', 'pool');
SELECT test.is('another adapter', pg_temp.holds('r7') LIKE 'r7 %', true);
SELECT leasehold.upsert_agent(test.id('agent A'), adapter_type => 'codex_local') IS NOT NULL AS changed;
SELECT test.is('the parked one is left alone', test.lease('r1'), 'retained');
-- 120: nor by a request without a run
SELECT leasehold.request_lease('pool', agent_id => test.id('agent A'), execution_workspace_id => test.id('ws 1'), lease_id => test.id('ad hoc')) = test.id('ad hoc') AS requested;
SELECT test.is('without a run it is ephemeral', l.policy::text, 'ephemeral') FROM leasehold.leases AS l WHERE l.id = test.id('ad hoc');
SELECT test.refused('or refused', $$SELECT leasehold.request_lease('pool', policy => 'reuse_by_environment', agent_id => test.id('agent A'), execution_workspace_id => test.id('ws 1'))$$, 'argument_invalid');
-- who wants a fresh one gets it
SELECT leasehold.start_run(run_id => test.id('r8'), agent_id => test.id('agent A'), execution_workspace_id => test.id('ws 1')) IS NOT NULL AS started;
SELECT test.is('ephemeral', leasehold.request_lease('pool', run_id => test.id('r8'), policy => 'ephemeral', lease_id => test.id('r8')), test.id('r8'));

-- 111: after a change of the configuration the parked one is of no use
SET ROLE regress_manager;
SELECT test.is('the next version', leasehold.update_environment('pool', '{"image": "debian:12"}'), 2);
SET ROLE regress_user;
CALL pg_temp.run('r9', 'pool');
SELECT test.is('a new one', (leasehold.wait_for_lease(test.id('r9'), '30 seconds')).status, 'active');
SELECT test.is('of the new version', (l.config_version, l.generation)::text, '(2,1)') FROM leasehold.leases AS l WHERE l.id = test.id('r9');
SELECT test.eventually('the parked one is removed', $$SELECT test.lease('r1')$$, 'expired');
SELECT test.is('why', (l.failure_reason, l.cleanup_status, l.config_version)::text, '(lease_fingerprint_mismatch,success,1)') FROM leasehold.leases AS l WHERE l.id = test.id('r1');
SELECT test.is('what is in use stays', test.lease('r2'), 'active');

-- 109: the parked resource is gone: a new one, in the same row
CALL pg_temp.run('x1', 'forgetful');
SELECT test.is('active', (leasehold.wait_for_lease(test.id('x1'), '30 seconds')).status, 'active');
SELECT leasehold.finish_run(test.id('x1')) AS finished;
SELECT test.eventually('parked', $$SELECT test.lease('x1')$$, 'retained');
SELECT l.provider_lease_id AS resource FROM leasehold.leases AS l WHERE l.id = test.id('x1') \gset
CALL pg_temp.run('x2', 'forgetful');
SELECT test.is('active again', (w.status, w.generation, w.provider_lease_id <> :'resource')::text, '(active,3,t)') FROM leasehold.wait_for_lease(test.id('x1'), '30 seconds') AS w;
SELECT test.is('all is told', test.events('x1'), 'requested acquired release_requested released resume_requested resume_failed acquired');
RESET ROLE;
SELECT test.is('one resource', count(*), 1) FROM leasehold_internal.provider_resources AS r WHERE r.lease_id = test.id('x1');
SELECT test.is('nothing is left to do', count(*), 0) FROM leasehold_internal.calls AS c WHERE c.slot = 'op' AND c.provider = 'fake' AND c.operation IN ('resume', 'destroy_stray');
SET ROLE regress_user;

-- Given back before the resume was answered.
SELECT leasehold.finish_run(test.id('x2')) AS finished;
SELECT test.eventually('parked', $$SELECT test.lease('x1')$$, 'retained');
BEGIN;
SELECT leasehold.start_run(run_id => test.id('x3'), agent_id => test.id('agent A'), execution_workspace_id => test.id('ws 1')) IS NOT NULL AS started;
SELECT test.is('resuming', leasehold.request_lease('forgetful', run_id => test.id('x3')), test.id('x1'));
SELECT test.is('given back in the same transaction', leasehold.release_lease(test.id('x1'), 'delete'), 'releasing');
COMMIT;
SELECT test.eventually('it ends', $$SELECT test.lease('x1')$$, 'released');

-- 123-126: removing what is parked, by workspace, issue, or both together
CALL pg_temp.run('i1', 'pool', issue => 'issue 1');
CALL pg_temp.run('i2', 'pool', issue => 'issue 2');
CALL pg_temp.run('i3', 'pool', issue => 'issue 1', workspace => 'ws 2');
SELECT test.is(r, (leasehold.wait_for_lease(test.id(r), '30 seconds')).status, 'active') FROM unnest(ARRAY['i1', 'i2', 'i3']) AS r;
SELECT test.is('they end', leasehold.finish_run(test.id(r)), 'succeeded') FROM unnest(ARRAY['i1', 'i2', 'i3']) AS r;
SELECT test.eventually('parked: ' || r, format('SELECT test.lease(%L)', r), 'retained') FROM unnest(ARRAY['i1', 'i2', 'i3']) AS r;
SELECT test.is('125: no scope, nothing', leasehold.destroy_reusable_leases(), 0);
SELECT test.is('126: both scopes', leasehold.destroy_reusable_leases(test.id('issue 1'), test.id('ws 2'), 'both'), 1);
SELECT test.eventually('that one', $$SELECT test.lease('i3')$$, 'expired');
SELECT test.is('why', l.failure_reason, 'both') FROM leasehold.leases AS l WHERE l.id = test.id('i3');
SELECT test.is('by issue', leasehold.destroy_reusable_leases(issue_id => test.id('issue 2')), 1);
SELECT test.eventually('that one', $$SELECT test.lease('i2')$$, 'expired');
SELECT test.is('why', l.failure_reason, 'reusable_lease_destroyed') FROM leasehold.leases AS l WHERE l.id = test.id('i2');
SELECT test.is('again: nothing', leasehold.destroy_reusable_leases(issue_id => test.id('issue 2')), 0);
SELECT test.is('not those', test.lease('i1'), 'retained');
-- 127: an issue that is done, a workspace that is archived
SELECT leasehold.upsert_issue(test.id('issue 1'), status => 'done', closed => true) IS NOT NULL AS closed;
SELECT test.eventually('what was parked for the issue goes', $$SELECT test.lease('i1')$$, 'expired');
SELECT test.is('why', l.failure_reason, 'issue_terminal_done') FROM leasehold.leases AS l WHERE l.id = test.id('i1');
SELECT leasehold.finish_run(test.id('r5')) AS finished;
SELECT test.eventually('parked', $$SELECT test.lease('r5')$$, 'retained');
SELECT leasehold.upsert_execution_workspace(test.id('ws 2'), status => 'archived') IS NOT NULL AS archived;
SELECT test.eventually('123: what was parked for the workspace goes', $$SELECT test.lease('r5')$$, 'expired');
SELECT test.is('why', (l.failure_reason, l.cleanup_status)::text, '(execution_workspace_closed,success)') FROM leasehold.leases AS l WHERE l.id = test.id('r5');
SELECT test.refused('no run in an archived workspace', $$SELECT leasehold.start_run(execution_workspace_id => test.id('ws 2'))$$, 'execution_workspace_not_found');

-- an issue that is done: what a running run holds ends with the run and is not parked; what nobody's run holds ends now
SELECT leasehold.upsert_issue(test.id('issue 3'), 'three') IS NOT NULL AS made;
CALL pg_temp.run('of issue 3', 'pool', workspace => 'ws 1', issue => 'issue 3');
SELECT leasehold.request_lease('plain', issue_id => test.id('issue 3'), lease_id => test.id('ad hoc of issue 3')) IS NOT NULL AS requested;
SELECT test.is('active', (leasehold.wait_for_lease(test.id(l), '30 seconds')).status, 'active') FROM unnest(ARRAY['of issue 3', 'ad hoc of issue 3']) AS l;
SELECT leasehold.upsert_issue(test.id('issue 3'), status => 'cancelled', closed => true) IS NOT NULL AS closed;
SELECT test.eventually('nobody''s', $$SELECT test.lease('ad hoc of issue 3')$$, 'expired');
SELECT test.is('the run''s', test.lease('of issue 3'), 'active');
SELECT leasehold.finish_run(test.id('of issue 3')) AS finished;
SELECT test.eventually('is not parked', $$SELECT test.lease('of issue 3')$$, 'released');
-- what is parked has its time, too: as long as a lease may last
SELECT leasehold.request_lease('plain', ttl => '1 minute', lease_id => test.id('parked for a while')) IS NOT NULL AS requested;
SELECT test.is('active', (leasehold.wait_for_lease(test.id('parked for a while'), '30 seconds')).status, 'active');
SELECT test.is('to be parked', leasehold.release_lease(test.id('parked for a while'), 'stop'), 'releasing');
SELECT test.is('parked, for a day', (w.status, w.expires_at - clock_timestamp() BETWEEN '23 hours 59 minutes' AND '24 hours')::text, '(retained,t)') FROM leasehold.wait_for_lease(test.id('parked for a while'), '30 seconds') AS w;
SET ROLE regress_admin;
SELECT leasehold.set_limit('lease_ttl_max', 1, company => 'acme', environment => 'plain');
SET ROLE regress_user;
SELECT leasehold.request_lease('plain', ttl => '1 minute', lease_id => test.id('parked for a second')) IS NOT NULL AS requested;
SELECT test.is('active', (leasehold.wait_for_lease(test.id('parked for a second'), '30 seconds')).status, 'active');
SELECT test.is('to be parked', leasehold.release_lease(test.id('parked for a second'), 'stop'), 'releasing');
SELECT test.eventually('it expires', $$SELECT test.lease('parked for a second')$$, 'expired');
SELECT test.is('why', l.failure_reason, 'retention_over') FROM leasehold.leases AS l WHERE l.id = test.id('parked for a second');
SET ROLE regress_admin;
SELECT leasehold.set_limit('lease_ttl_max', company => 'acme', environment => 'plain');
SET ROLE regress_user;

-- 88: retain_on_failure
SELECT leasehold.start_run(run_id => test.id('kept')) IS NOT NULL AND leasehold.start_run(run_id => test.id('not kept')) IS NOT NULL AS started;
SELECT leasehold.request_lease('plain', policy => 'retain_on_failure', run_id => test.id(r), lease_id => test.id(r)) = test.id(r) AS requested FROM unnest(ARRAY['kept', 'not kept']) AS r;
SELECT test.is(r, (leasehold.wait_for_lease(test.id(r), '30 seconds')).status, 'active') FROM unnest(ARRAY['kept', 'not kept']) AS r;
SELECT test.is('one fails', leasehold.finish_run(test.id('kept'), 'failed', 'the tests are red', 'adapter_failed'), 'failed');
SELECT test.is('one does not', leasehold.finish_run(test.id('not kept')), 'succeeded');
SELECT test.eventually('kept for a look at it', $$SELECT test.lease('kept')$$, 'retained');
SELECT test.eventually('not kept', $$SELECT test.lease('not kept')$$, 'released');
SELECT test.is('why', (l.failure_code, l.failure_reason, l.ended_at IS NOT NULL)::text, '(adapter_failed,"the tests are red",t)') FROM leasehold.leases AS l WHERE l.id = test.id('kept');
-- 88, 121: an end without a word of its own has the one that belongs to it; a reusable lease that expires is not parked
SELECT leasehold.start_run(run_id => test.id('wordless ' || s), agent_id => test.id('agent A'), execution_workspace_id => test.id('ws 1')) IS NOT NULL AS started FROM unnest(ARRAY['failed', 'cancelled']) AS s;
SELECT leasehold.request_lease('plain', policy => p, run_id => test.id('wordless ' || s), lease_id => test.id('wordless ' || s || ' ' || p)) IS NOT NULL AS requested
  FROM unnest(ARRAY['failed', 'cancelled']) AS s, unnest(ARRAY['ephemeral', 'reuse_by_environment', 'retain_on_failure']) AS p;
SELECT test.is(s || ' ' || p, (leasehold.wait_for_lease(test.id('wordless ' || s || ' ' || p), '30 seconds')).status, 'active')
  FROM unnest(ARRAY['failed', 'cancelled']) AS s, unnest(ARRAY['ephemeral', 'reuse_by_environment', 'retain_on_failure']) AS p;
SELECT test.is(s, leasehold.finish_run(test.id('wordless ' || s), s), s) FROM unnest(ARRAY['failed', 'cancelled']) AS s;
SELECT test.is(v.s || ' ' || v.p, (w.status, w.failure_reason)::text, v.want)
  FROM (VALUES ('failed', 'ephemeral', '(failed,adapter_or_run_failure)'), ('failed', 'reuse_by_environment', '(failed,adapter_or_run_failure)'), ('failed', 'retain_on_failure', '(retained,adapter_or_run_failure)'),
               ('cancelled', 'ephemeral', '(expired,)'), ('cancelled', 'reuse_by_environment', '(expired,lease_expired)'), ('cancelled', 'retain_on_failure', '(expired,)')) AS v (s, p, want),
       leasehold.wait_for_lease(test.id('wordless ' || v.s || ' ' || v.p), '30 seconds') AS w;
SELECT test.is('the event tells it', e.details ->> 'failureReason', 'lease_expired')
  FROM leasehold.audit_events AS e WHERE e.entity_id = test.id('wordless cancelled reuse_by_environment')::text AND e.action = 'environment.lease_released';

-- An environment whose resources are parked cannot be deleted; afterwards its leases remain.
SET ROLE regress_manager;
SELECT leasehold.finish_run(test.id('r6')) AS finished;
SELECT test.eventually('parked', $$SELECT test.lease('r6')$$, 'retained');
SELECT test.is('what depends on it', (i.can_delete, i.live_leases, i.ended_leases)::text, '(f,1,0)') FROM leasehold.environment_impact('pool2') AS i;
SELECT test.refused('still in use', $$SELECT leasehold.delete_environment('pool2')$$, 'still_in_use');
SELECT test.is('destroyed', leasehold.destroy_lease(test.id('r6')), 'releasing');
SELECT test.eventually('gone', $$SELECT test.lease('r6')$$, 'expired');
SELECT test.is('what depends on it', (i.can_delete, i.live_leases, i.ended_leases)::text, '(t,0,1)') FROM leasehold.environment_impact('pool2') AS i;
SELECT leasehold.delete_environment('pool2');
SELECT test.is('the lease is history', (l.status, l.environment_id, l.provider)::text, '(expired,,fake)') FROM leasehold.leases AS l WHERE l.id = test.id('r6');
SELECT test.refused('the environment is gone', $$SELECT * FROM leasehold.environment_impact('pool2')$$, 'environment_not_found');
RESET ROLE;
