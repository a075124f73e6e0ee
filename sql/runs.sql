-- Runs: their end is their leases' end, in one transaction; a run whose
-- heartbeats stop is lost.
\pset format unaligned
\pset tuples_only on
SET ROLE regress_user;
SELECT leasehold.upsert_agent(test.id('runner'), 'runner', 'codex_local') IS NOT NULL AND leasehold.upsert_issue(test.id('task'), 'task') IS NOT NULL
   AND leasehold.upsert_project(test.id('project'), 'project') IS NOT NULL AND leasehold.upsert_routine(test.id('routine'), 'routine') IS NOT NULL
   AND leasehold.upsert_execution_workspace(test.id('place'), 'place') IS NOT NULL AS made;

-- A run begins.
SELECT test.is('its id is the one given', r.started_run_id, test.id('run 1')),
       test.is('its token is random', r.token ~ '^[0-9a-f]{64}$', true)
  FROM leasehold.start_run(run_id => test.id('run 1'), agent_id => test.id('runner'), issue_id => test.id('task'), project_id => test.id('project'),
         routine_id => test.id('routine'), execution_workspace_id => test.id('place'), env => '{"A": "b"}', metadata => '{"m": 1}') AS r;
SELECT test.is('what is stored', (r.status, r.heartbeat_timeout, r.agent_id = test.id('runner'), r.issue_id = test.id('task'), r.project_id = test.id('project'),
        r.routine_id = test.id('routine'), r.execution_workspace_id = test.id('place'), r.env, r.metadata, r.finished_at, r.retry_of_run_id, r.retry_on_loss)::text,
        '(running,"@ 5 mins",t,t,t,t,t,"{""A"": ""b""}","{""m"": 1}",,,f)') FROM leasehold.runs AS r WHERE r.id = test.id('run 1');
SELECT test.refused('it exists', $$SELECT leasehold.start_run(run_id => test.id('run 1'))$$, 'already_exists');
-- the same start again: the same run, but a new token, since only a hash is stored
SELECT r.token AS token FROM leasehold.start_run(run_id => test.id('run k'), idempotency_key => 'start') AS r \gset
SELECT test.is('the same run', r.started_run_id, test.id('run k')), test.is('another token', r.token <> :'token' AND r.token ~ '^[0-9a-f]{64}$', true)
  FROM leasehold.start_run(run_id => test.id('run k'), idempotency_key => 'start') AS r;
RESET ROLE;
SELECT test.is('the old token is worth nothing', count(*), 0) FROM leasehold_internal.run_tokens AS t WHERE t.token_hash = sha256(:'token'::bytea);
SELECT test.is('one token for the run, as a hash', (count(*), max(length(t.token_hash)))::text, '(1,32)') FROM leasehold_internal.run_tokens AS t WHERE t.run_id = test.id('run k');
SELECT test.is('the token is stored nowhere', count(*), 0)
  FROM leasehold_internal.runs AS r, leasehold.audit_events AS e WHERE r.id = test.id('run k') AND e.run_id = r.id AND (r::text LIKE '%' || :'token' || '%' OR e::text LIKE '%' || :'token' || '%');
SET ROLE regress_user;
SELECT test.refused('other arguments', $$SELECT leasehold.start_run(run_id => test.id('run k'), metadata => '{"x": 1}', idempotency_key => 'start')$$, 'idempotency_conflict');

-- Heartbeats.
SELECT test.is('when the next is due', h - clock_timestamp() BETWEEN '4 minutes 50 seconds' AND '5 minutes', true) FROM leasehold.heartbeat(test.id('run 1')) AS h;
SELECT test.refused('of nobody', $$SELECT leasehold.heartbeat(test.id('nothing'))$$, 'run_not_found');

-- 72: the end of a run ends its leases, at once, and no others.
SELECT leasehold.request_lease('plain', run_id => test.id('run 1'), lease_id => test.id('run 1 a')) = test.id('run 1 a') AS requested;
SELECT leasehold.request_lease('plain', run_id => test.id('run 1'), lease_id => test.id('run 1 b')) = test.id('run 1 b') AS requested;
SELECT leasehold.request_lease('plain', run_id => test.id('run k'), lease_id => test.id('run k a')) = test.id('run k a') AS requested;
SELECT test.is('active', (leasehold.wait_for_lease(test.id(l), '30 seconds')).status, 'active') FROM unnest(ARRAY['run 1 a', 'run 1 b', 'run k a']) AS l;
-- 94, 95: a lease has its run's agent and issue, and so have its events
SELECT test.is('the run lends its agent, issue and workspace', (l.agent_id = test.id('runner'), l.issue_id = test.id('task'), l.execution_workspace_id = test.id('place'), l.adapter_type)::text, '(t,t,t,codex_local)')
  FROM leasehold.leases AS l WHERE l.id = test.id('run 1 a');
SELECT test.is('every event of it names them: ' || e.action, (e.agent_id = test.id('runner'), e.issue_id = test.id('task'), e.run_id = test.id('run 1'))::text, '(t,t,t)')
  FROM leasehold.audit_events AS e WHERE e.entity_id = test.id('run 1 a')::text ORDER BY e.occurred_at;
BEGIN;
SELECT test.is('it ends', leasehold.finish_run(test.id('run 1')), 'succeeded');
SELECT test.is('its leases end in the same transaction', (test.lease('run 1 a'), test.lease('run 1 b'))::text, '(releasing,releasing)');
SELECT test.is('others do not', test.lease('run k a'), 'active');
ROLLBACK;
SELECT test.is('or neither', (r.status, test.lease('run 1 a'))::text, '(running,active)') FROM leasehold.runs AS r WHERE r.id = test.id('run 1');
SELECT test.is('it ends', leasehold.finish_run(test.id('run 1'), 'failed', 'no luck', 'adapter_failed'), 'failed');
SELECT test.eventually('its leases end as failed', format('SELECT test.lease(%L)', l), 'failed') FROM unnest(ARRAY['run 1 a', 'run 1 b']) AS l;
SELECT test.is('with its error', (l.failure_code, l.failure_reason, l.cleanup_status)::text, '(adapter_failed,"no luck",success)') FROM leasehold.leases AS l WHERE l.id = test.id('run 1 b');
SELECT test.is('what is stored', (r.status, r.error, r.error_code, r.finished_at >= r.started_at)::text, '(failed,"no luck",adapter_failed,t)') FROM leasehold.runs AS r WHERE r.id = test.id('run 1');
-- an end is final, and told once
SELECT test.is('a second end changes nothing', leasehold.finish_run(test.id('run 1'), 'succeeded'), 'failed');
SELECT test.is('told once', string_agg(e.action || COALESCE(' ' || (e.details ->> 'status'), ''), ', ' ORDER BY e.occurred_at), 'run.started, run.finished failed')
  FROM leasehold.audit_events AS e WHERE e.entity_type = 'run' AND e.entity_id = test.id('run 1')::text;
SELECT test.refused('it has no more heartbeats', $$SELECT leasehold.heartbeat(test.id('run 1'))$$, 'wrong_state');
SELECT test.refused('nor leases', $$SELECT leasehold.request_lease('plain', run_id => test.id('run 1'))$$, 'wrong_state');
SELECT test.refused('nor another start', $$SELECT leasehold.start_run(run_id => test.id('run 1'))$$, 'already_exists');
SELECT test.refused('the end of nobody', $$SELECT leasehold.finish_run(test.id('nothing'))$$, 'run_not_found');
SELECT test.refused('an unknown end', $$SELECT leasehold.finish_run(test.id('run k'), 'running')$$, 'argument_invalid');
RESET ROLE;
SELECT test.is('its token ends with it', count(*), 0) FROM leasehold_internal.run_tokens AS t WHERE t.run_id = test.id('run 1');
SELECT test.is('its deadline, too', count(*), 0) FROM leasehold_internal.calls AS c WHERE c.subject_id = test.id('run 1');
SET ROLE regress_user;
SELECT test.is('repeating its start after its end gives no token', (r.started_run_id = test.id('run k'), r.token)::text, '(t,)')
  FROM leasehold.finish_run(test.id('run k'), 'cancelled') AS f, LATERAL leasehold.start_run(run_id => test.id('run k'), idempotency_key => 'start') AS r WHERE f = 'cancelled';
SELECT test.eventually('a cancelled run''s lease', $$SELECT test.lease('run k a')$$, 'expired');

-- What each end means for a lease; one that nobody has got yet ends at once.
SELECT leasehold.start_run(run_id => test.id('end ' || s)) IS NOT NULL AS started FROM unnest(ARRAY['succeeded', 'failed', 'cancelled', 'timed_out', 'interrupted']) AS s;
SELECT leasehold.request_lease('plain', run_id => test.id('end ' || s), lease_id => test.id('end ' || s)) IS NOT NULL AS requested FROM unnest(ARRAY['succeeded', 'failed', 'cancelled', 'timed_out', 'interrupted']) AS s;
SELECT test.is(s, (leasehold.wait_for_lease(test.id('end ' || s), '30 seconds')).status, 'active') FROM unnest(ARRAY['succeeded', 'failed', 'cancelled', 'timed_out', 'interrupted']) AS s;
SELECT test.is(s, leasehold.finish_run(test.id('end ' || s), s), s) FROM unnest(ARRAY['succeeded', 'failed', 'cancelled', 'timed_out', 'interrupted']) AS s;
SELECT test.is(s, (leasehold.wait_for_lease(test.id('end ' || s), '30 seconds')).status, want)
  FROM (VALUES ('succeeded', 'released'), ('failed', 'failed'), ('cancelled', 'expired'), ('timed_out', 'failed'), ('interrupted', 'released')) AS v (s, want);

-- Its leases can be given back before its end.
SELECT leasehold.start_run(run_id => test.id('run 2')) IS NOT NULL AS started;
SELECT leasehold.request_lease('plain', run_id => test.id('run 2'), lease_id => test.id('run 2 ' || i)) IS NOT NULL AS requested FROM generate_series(1, 3) AS i;
SELECT test.is('active', (leasehold.wait_for_lease(test.id('run 2 ' || i), '30 seconds')).status, 'active') FROM generate_series(1, 3) AS i;
SELECT test.is('one by itself', leasehold.release_lease(test.id('run 2 3')), 'releasing');
SELECT test.is('the two others', leasehold.release_run_leases(test.id('run 2'), 'expired'), 2);
SELECT test.is('71: again: none', leasehold.release_run_leases(test.id('run 2')), 0);
SELECT test.is('as asked for', (leasehold.wait_for_lease(test.id('run 2 ' || i), '30 seconds')).status, want) FROM (VALUES (1, 'expired'), (2, 'expired'), (3, 'released')) AS v (i, want);
SELECT test.is('the run goes on', r.status::text, 'running') FROM leasehold.runs AS r WHERE r.id = test.id('run 2');
SELECT test.refused('of nobody', $$SELECT leasehold.release_run_leases(test.id('nothing'))$$, 'run_not_found');
SELECT test.refused('to an unknown state', $$SELECT leasehold.release_run_leases(test.id('run 2'), 'active')$$, 'argument_invalid');
SELECT leasehold.finish_run(test.id('run 2')) AS finished;

-- 177, 179: heartbeats stop.
SELECT leasehold.start_run(run_id => test.id('lost'), heartbeat_timeout => '1 second', retry_on_loss => true, agent_id => test.id('runner'), issue_id => test.id('task'), env => '{"E": "1"}') IS NOT NULL AS started;
SELECT leasehold.start_run(run_id => test.id('lost for good'), heartbeat_timeout => '1 second') IS NOT NULL AS started;
SELECT leasehold.request_lease('plain', run_id => test.id('lost'), lease_id => test.id('lost with run')) = test.id('lost with run') AS requested;
SELECT test.eventually('the run is lost: ' || r, format('SELECT status::text FROM leasehold.runs WHERE id = test.id(%L)', r), 'failed') FROM unnest(ARRAY['lost', 'lost for good']) AS r;
SELECT test.is('why', (r.error_code, r.error, r.finished_at >= r.heartbeat_at + r.heartbeat_timeout)::text, '(process_lost,"the run''s heartbeats stopped",t)') FROM leasehold.runs AS r WHERE r.id = test.id('lost');
SELECT test.eventually('its lease ends', $$SELECT test.lease('lost with run')$$, 'failed');
SELECT test.is('why', (l.failure_code, l.ended_at IS NOT NULL)::text, '(process_lost,t)') FROM leasehold.leases AS l WHERE l.id = test.id('lost with run');
SELECT test.is('one retry is queued', (count(*), min(r.status::text), bool_and(r.agent_id = test.id('runner') AND r.issue_id = test.id('task') AND r.env = '{"E": "1"}' AND r.heartbeat_timeout = '1 second'))::text, '(1,queued,t)')
  FROM leasehold.runs AS r WHERE r.retry_of_run_id = test.id('lost');
SELECT test.is('none for who asked for none', count(*), 0) FROM leasehold.runs AS r WHERE r.retry_of_run_id = test.id('lost for good');
SELECT test.is('told', string_agg(e.action, ', ' ORDER BY e.occurred_at), 'run.retry_queued') FROM leasehold.audit_events AS e JOIN leasehold.runs AS r ON e.entity_id = r.id::text AND r.retry_of_run_id = test.id('lost');
-- late words of the lost one
SELECT test.refused('a late heartbeat', $$SELECT leasehold.heartbeat(test.id('lost'))$$, 'wrong_state');
SELECT test.is('186: a late end does not overwrite', leasehold.finish_run(test.id('lost'), 'succeeded'), 'failed');
-- the retry is begun, is lost, and has no retry of its own
SELECT r.id AS retry FROM leasehold.runs AS r WHERE r.retry_of_run_id = test.id('lost') \gset
SELECT test.is('the retry begins', (s.started_run_id = :'retry', s.token IS NOT NULL)::text, '(t,t)') FROM leasehold.start_run(run_id => :'retry') AS s;
SELECT test.is('as it was queued', (r.status, r.env, r.retry_of_run_id = test.id('lost'), r.agent_id = test.id('runner'))::text, '(running,"{""E"": ""1""}",t,t)') FROM leasehold.runs AS r WHERE r.id = :'retry';
SELECT test.eventually('the retry is lost', format('SELECT status::text FROM leasehold.runs WHERE id = %L', :'retry'), 'failed');
SELECT test.is('no retry of a retry', count(*), 0) FROM leasehold.runs AS r WHERE r.retry_of_run_id = :'retry';
-- a run that keeps its heartbeats lives
SELECT leasehold.start_run(run_id => test.id('alive'), heartbeat_timeout => '2 seconds') IS NOT NULL AS started;
RESET ROLE;
UPDATE leasehold_internal.runs SET heartbeat_at = heartbeat_at + interval '1 hour' WHERE id = test.id('alive');
SELECT test.eventually('its deadline fires, and is set anew', $$SELECT (c.due_at > now() + interval '50 minutes')::text FROM leasehold_internal.calls AS c WHERE c.subject_id = test.id('alive')$$, 'true');
SET ROLE regress_user;
SELECT test.is('it lives', r.status::text, 'running') FROM leasehold.runs AS r WHERE r.id = test.id('alive');
SELECT leasehold.finish_run(test.id('alive')) AS finished;
-- a queued retry can be cancelled
SELECT leasehold.start_run(run_id => test.id('lost 2'), heartbeat_timeout => '1 second', retry_on_loss => true) IS NOT NULL AS started;
SELECT test.eventually('lost', $$SELECT count(*)::text FROM leasehold.runs WHERE retry_of_run_id = test.id('lost 2')$$, '1');
SELECT test.is('cancelled', leasehold.finish_run(r.id, 'cancelled'), 'cancelled') FROM leasehold.runs AS r WHERE r.retry_of_run_id = test.id('lost 2');
SELECT test.refused('and then not begun', format('SELECT leasehold.start_run(run_id => %L)', r.id), 'already_exists') FROM leasehold.runs AS r WHERE r.retry_of_run_id = test.id('lost 2');

-- Refused, and nothing is written.
RESET ROLE;
SELECT test.quiet();
SELECT test.fingerprint() AS before \gset
SET ROLE regress_user;
SELECT test.refused('too short', $$SELECT leasehold.start_run(heartbeat_timeout => '0.5 seconds')$$, 'argument_invalid');
SELECT test.refused('too long', $$SELECT leasehold.start_run(heartbeat_timeout => '31 days')$$, 'argument_invalid');
SELECT test.refused('no such agent', $$SELECT leasehold.start_run(agent_id => test.id('nobody'))$$, 'agent_not_found');
SELECT test.refused('no such issue', $$SELECT leasehold.start_run(issue_id => test.id('nothing'))$$, 'issue_not_found');
SELECT test.refused('no such project', $$SELECT leasehold.start_run(project_id => test.id('nothing'))$$, 'project_not_found');
SELECT test.refused('no such routine', $$SELECT leasehold.start_run(routine_id => test.id('nothing'))$$, 'routine_not_found');
SELECT test.refused('no such workspace', $$SELECT leasehold.start_run(execution_workspace_id => test.id('nothing'))$$, 'execution_workspace_not_found');
SELECT test.refused('no environment', $$SELECT leasehold.start_run(env => '{"A B": "c"}')$$, 'argument_invalid');
RESET ROLE;
SELECT test.is('nothing was written', test.fingerprint(), :'before');
