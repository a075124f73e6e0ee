-- Commands: how they end, what they get, and that they end with their lease.
-- (acquire_attempts is 3 here.)  What they write is in command_output.sql.
\pset format unaligned
\pset tuples_only on
SET ROLE regress_user;
SELECT leasehold.upsert_agent(test.id('c agent')) IS NOT NULL AND leasehold.upsert_issue(test.id('c issue')) IS NOT NULL
   AND leasehold.start_run(run_id => test.id('c run'), agent_id => test.id('c agent'), issue_id => test.id('c issue')) IS NOT NULL
   AND leasehold.request_lease('plain', run_id => test.id('c run'), lease_id => test.id('c lease')) IS NOT NULL AS made;
SELECT test.is('active', (leasehold.wait_for_lease(test.id('c lease'), '30 seconds')).status, 'active');

-- Starts a script in the lease; waits for its end; what it wrote; what its events tell.
CREATE FUNCTION pg_temp.start(name text, script text, lease text DEFAULT 'c lease') RETURNS boolean LANGUAGE sql AS $$
    SELECT leasehold.start_command(test.id(lease), shell => script, command_id => test.id(name)) = test.id(name) $$;
CREATE FUNCTION pg_temp.outcome(name text) RETURNS text LANGUAGE sql AS $$
    SELECT (w.status, w.outcome, w.exit_code, w.signal, w.failure_code, w.failure_reason)::text FROM leasehold.wait_for_command(test.id(name), '30 seconds') AS w $$;
CREATE FUNCTION pg_temp.wrote(name text) RETURNS text LANGUAGE sql AS $$
    SELECT string_agg(o.text, '' ORDER BY o.seq) FROM leasehold.read_output(test.id(name)) AS o $$;
CREATE FUNCTION pg_temp.events(name text) RETURNS text LANGUAGE sql AS $$
    SELECT string_agg(replace(e.action, 'environment.command_', ''), ' ' ORDER BY e.occurred_at, e.id) FROM leasehold.audit_events AS e
     WHERE e.entity_type = 'command' AND e.entity_id = test.id(name)::text $$;

-- Outcomes.
CREATE TEMP TABLE scripts (nr serial, name text, script text, outcome text, events text);
INSERT INTO scripts (name, script, outcome, events) VALUES
    ('succeeds', 'echo x', '(finished,exited,0,,,)', 'requested finished'),
    ('fails', 'exit 3', '(finished,exited,3,,,)', 'requested finished'),
    ('is killed', 'kill SIGSEGV', '(finished,signalled,,SIGSEGV,,)', 'requested finished'),
    -- it never ran
    ('is refused', 'refuse', '(finished,failed,,,command_refused,"the fake provider refuses")', 'requested finished'),
    -- it is known to have begun, and no more
    ('is lost', 'lose', '(finished,lost,,,provider_unreachable,"the fake provider''s answer was lost")', 'requested finished'),
    ('is lost in the midst', 'echo x; vanish', '(finished,lost,,,provider_unreachable,"the fake provider did not answer")', 'requested finished'),
    ('is refused too late', 'echo x; refuse', '(finished,lost,,,command_refused,"the fake provider refuses")', 'requested finished'),
    ('fails too late to be tried again', 'echo x; fail 1', '(finished,lost,,,provider_error,"the fake provider fails")', 'requested finished'),
    ('ends without saying how', 'mute', '(finished,lost,,,no_exit_status,"the provider did not say how it ended")', 'requested finished'),
    -- nobody knows whether it ran
    ('vanishes', 'vanish', '(finished,unknown,,,provider_unreachable,"the fake provider did not answer")', 'requested finished'),
    -- what did not begin is tried again; being told to come again is not a failed try
    ('fails twice', 'fail 2; exit 4', '(finished,exited,4,,,)', 'requested finished'),
    ('fails thrice', 'fail 3; exit 4', '(finished,failed,,,provider_error,"the fake provider fails")', 'requested finished'),
    ('waits for the provider', 'busy 5; exit 5', '(finished,exited,5,,,)', 'requested finished');
SELECT bool_and(pg_temp.start(s.name, s.script)) AS started FROM scripts AS s;
SELECT test.is(s.name, (pg_temp.outcome(s.name), pg_temp.events(s.name))::text, (s.outcome, s.events)::text) FROM scripts AS s ORDER BY s.nr;
SELECT test.is('all in order of time', bool_and(k.requested_at <= k.started_at AND k.started_at <= k.finished_at), true),
       test.is('nobody cancelled them', count(k.cancel_requested_at), 0)
  FROM leasehold.commands AS k JOIN scripts AS s ON k.id = test.id(s.name);
SELECT test.is('what was written before the end was lost is kept', pg_temp.wrote('is lost in the midst'), E'x\n');
-- a time limit of its own, and one of its environment
SELECT leasehold.start_command(test.id('c lease'), ARRAY['hang'], timeout => '0.2 seconds', command_id => test.id('takes too long')) IS NOT NULL AS started;
SELECT test.is('takes too long', pg_temp.outcome('takes too long'), '(finished,timed_out,,SIGKILL,,)');
SELECT test.is('and no longer', k.finished_at - k.started_at BETWEEN '0.2 seconds' AND '10 seconds', true) FROM leasehold.commands AS k WHERE k.id = test.id('takes too long');
RESET ROLE;
SELECT test.is('nothing is left to do', count(*), 0) FROM leasehold_internal.calls AS c WHERE c.slot = 'command';
-- those that may run still, for nobody, are ended
SELECT test.eventually('nor to cancel', $$SELECT count(*)::text FROM leasehold_internal.calls AS c WHERE c.slot = 'cancel'$$, '0');
SELECT test.is('and no input is kept', count(*), 0) FROM leasehold_internal.command_inputs;

-- What is stored: the lease's agent, issue and run go with it.
SET ROLE regress_user;
SELECT leasehold.start_command(test.id('c lease'), ARRAY['exit', '7'], cwd => 'here', timeout => '1 hour', generation => 1, command_id => test.id('stored')) IS NOT NULL AS started;
SELECT test.is('exits', pg_temp.outcome('stored'), '(finished,exited,7,,,)');
SELECT test.is('what is stored', (k.lease_id = test.id('c lease'), k.generation, k.provider, k.agent_id = test.id('c agent'), k.issue_id = test.id('c issue'), k.run_id = test.id('c run'),
               k.argv, k.shell, k.cwd, k.timeout, k.requested_by, k.stdout_bytes, k.stderr_bytes, k.output_truncated, k.cancel_reason)::text, '(t,1,fake,t,t,t,"{exit,7}",,here,"@ 1 hour",regress_user,0,0,f,)')
  FROM leasehold.commands AS k WHERE k.id = test.id('stored');
SELECT test.is('the events name the program, and not what it was given', string_agg((e.details - 'leaseId')::text, ' ' ORDER BY e.occurred_at, e.id), '{"program": "exit", "provider": "fake"} {"outcome": "exited", "exitCode": 7, "provider": "fake"}'),
       test.is('they are the lease''s', bool_and(e.details ->> 'leaseId' = test.id('c lease')::text AND e.agent_id = test.id('c agent') AND e.issue_id = test.id('c issue') AND e.run_id = test.id('c run')), true),
       test.is('the worker tells the end', string_agg(e.acting_role, ' ' ORDER BY e.occurred_at, e.id), 'regress_user leasehold_worker')
  FROM leasehold.audit_events AS e WHERE e.entity_id = test.id('stored')::text;
SELECT test.is('a script is called one', e.details ->> 'program', 'shell') FROM leasehold.audit_events AS e WHERE e.entity_id = test.id('succeeds')::text AND e.action = 'environment.command_requested';

-- Waiting.
SELECT pg_temp.start('sleeps', 'sleep 0.3');
SELECT test.is('at the timeout: not done', (w.done, w.outcome)::text, '(f,)') FROM leasehold.wait_for_command(test.id('sleeps'), '0 seconds') AS w;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT test.is('before waiting', k.status <> 'finished', true) FROM leasehold.commands AS k WHERE k.id = test.id('sleeps');
SELECT test.is('waiting sees what happens', pg_temp.outcome('sleeps'), '(finished,exited,0,,,)');
COMMIT;
SELECT test.refused('too long', $$SELECT leasehold.wait_for_command(test.id('sleeps'), '61 seconds')$$, 'argument_invalid');
SELECT test.refused('for what does not exist', $$SELECT leasehold.wait_for_command(test.id('nothing'))$$, 'command_not_found');
SELECT test.refused('for what the own transaction wrote', $$SELECT leasehold.wait_for_command(leasehold.start_command(test.id('c lease'), shell => 'true'))$$, 'own_transaction');
SELECT test.refused('nor does it write', $$SELECT leasehold.read_output(leasehold.start_command(test.id('c lease'), shell => 'true'), timeout => '1 second')$$, 'own_transaction');
BEGIN;
SELECT pg_temp.start('rolled back', 'true');
ROLLBACK;
SELECT test.refused('a start that was rolled back is none', $$SELECT leasehold.wait_for_command(test.id('rolled back'))$$, 'command_not_found');

-- Cancelled while it runs.
SELECT pg_temp.start('hangs', 'echo x; hang');
SELECT test.eventually('it runs', $$SELECT k.status::text FROM leasehold.commands AS k WHERE k.id = test.id('hangs')$$, 'running');
BEGIN;
SELECT test.is('cancelled', leasehold.cancel_command(test.id('hangs')), 'running');
ROLLBACK;
SELECT test.is('a cancel that was rolled back is none', (k.status, k.cancel_requested_at)::text, '(running,)') FROM leasehold.commands AS k WHERE k.id = test.id('hangs');
SELECT test.is('cancelled', leasehold.cancel_command(test.id('hangs'), 'no use'), 'running');
SELECT test.is('it ends', pg_temp.outcome('hangs'), '(finished,cancelled,,SIGTERM,,)');
SELECT test.is('all is told, and once', pg_temp.events('hangs'), 'requested cancel_requested finished');
SELECT test.is('with the reason', (k.cancel_reason, e.details ->> 'reason')::text, '("no use","no use")')
  FROM leasehold.commands AS k JOIN leasehold.audit_events AS e ON e.entity_id = k.id::text AND e.action = 'environment.command_cancel_requested' WHERE k.id = test.id('hangs');
SELECT test.is('cancelled after its end', leasehold.cancel_command(test.id('hangs'), 'again'), 'finished');
SELECT test.is('one that has ended stays as it is', (leasehold.cancel_command(test.id('fails')), pg_temp.outcome('fails'))::text, '(finished,"(finished,exited,3,,,)")');
SELECT test.is('nothing more is told', (pg_temp.events('hangs'), pg_temp.events('fails'))::text, '("requested cancel_requested finished","requested finished")');
-- twice while it runs: once
SELECT pg_temp.start('takes its time', 'stubborn; sleep 0.5; exit 9');
SELECT test.eventually('it runs', $$SELECT k.status::text FROM leasehold.commands AS k WHERE k.id = test.id('takes its time')$$, 'running');
SELECT test.is('cancelled', leasehold.cancel_command(test.id('takes its time'), r), 'running') FROM unnest(ARRAY['first', 'second']) AS r;
SELECT test.is('what exits all the same has exited', pg_temp.outcome('takes its time'), '(finished,exited,9,,,)');
SELECT test.is('asked for once', (k.cancel_requested_at IS NOT NULL, k.cancel_reason, pg_temp.events('takes its time'))::text, '(t,first,"requested cancel_requested finished")') FROM leasehold.commands AS k WHERE k.id = test.id('takes its time');
-- between two tries
SELECT pg_temp.start('waits for ever', 'busy 1000000');
SELECT test.eventually('it waits for the next try', $$SELECT k.status::text FROM leasehold.commands AS k WHERE k.id = test.id('waits for ever')$$, 'queued');
SELECT test.is('cancelled', leasehold.cancel_command(test.id('waits for ever')) IN ('finished', 'running'), true);
SELECT test.is('it is not tried again', pg_temp.outcome('waits for ever'), '(finished,cancelled,,,,)');

-- Before anybody takes it: over at once, without a call.
SET ROLE regress_admin;
SELECT leasehold.pause_worker('commands.sql');
SET ROLE regress_user;
-- the warning says that nobody serves
SELECT leasehold.start_command(test.id('c lease'), ARRAY['cat'], env => '{"A": "the environment"}', stdin => 'the input', command_id => test.id('unsent')) = test.id('unsent') AS started;
SET client_min_messages = error;
SELECT test.is('not begun', (k.status, k.started_at)::text, '(queued,)') FROM leasehold.commands AS k WHERE k.id = test.id('unsent');
SELECT test.refused('nobody serves', $$SELECT leasehold.wait_for_command(test.id('unsent'))$$, 'worker_unavailable');
RESET ROLE;
SELECT test.is('its input is kept for the worker', (i.stdin, i.env)::text, '("the input","{""A"": ""the environment""}")') FROM leasehold_internal.command_inputs AS i WHERE i.command_id = test.id('unsent');
SET ROLE regress_user;
SELECT test.is('over at once', leasehold.cancel_command(test.id('unsent')), 'finished');
SELECT test.is('as cancelled', (pg_temp.outcome('unsent'), pg_temp.events('unsent'))::text, '("(finished,cancelled,,,,)","requested finished")');
SELECT test.is('it never began', k.started_at, NULL) FROM leasehold.commands AS k WHERE k.id = test.id('unsent');
RESET ROLE;
SELECT test.is('nothing is left of it', (SELECT count(*) FROM leasehold_internal.calls AS c WHERE c.subject_id = test.id('unsent')) + (SELECT count(*) FROM leasehold_internal.command_inputs AS i WHERE i.command_id = test.id('unsent')), 0);

-- What the provider is told.
CREATE FUNCTION pg_temp.sent(name text, slot text DEFAULT 'command') RETURNS jsonb LANGUAGE sql AS $$
    SELECT c.params::jsonb || jsonb_build_object('method', c.method, 'ms', c.timeout_ms, 'key', c.idempotency_key, 'limit', c.output_limit)
      FROM leasehold_internal.claim_commands(0, ARRAY[test.id('acme')], ARRAY[test.id(name)], ARRAY[slot], 30000, 5000) AS c $$;
SET ROLE regress_user;
SELECT leasehold.start_command(test.id('c lease'), ARRAY['make', 'check', 'T=a b'], env => '{"A": "1"}', stdin => E'in\n', timeout => '90.5 seconds', command_id => test.id('sent')) IS NOT NULL AS started;
SELECT leasehold.start_command(test.id('c lease'), shell => 'ls | wc', cwd => 'sub/dir', command_id => test.id('sent script')) IS NOT NULL AS started;
SELECT leasehold.start_command(test.id('c lease'), '[5:6]={ls,-l}', cwd => '/srv', command_id => test.id('sent list')) IS NOT NULL AS started;
RESET ROLE;
BEGIN;
-- the reference sends driver, company, environment and issue with every call, and these with this one; the rest is ours
SELECT test.is('members', string_agg(k, ' ' ORDER BY k COLLATE "C"), 'args command companyId config cwd driverKey env environmentId issueId key lease leasehold limit method ms runId stdin streamOutput timeoutMs')
  FROM jsonb_object_keys(pg_temp.sent('sent')) AS k;
ROLLBACK;
BEGIN;
SELECT test.is('whose it is', (s ->> 'driverKey', s ->> 'companyId' = test.id('acme')::text, s ->> 'environmentId' = test.id('acme plain')::text, s ->> 'issueId' = test.id('c issue')::text, s ->> 'runId' = test.id('c run')::text)::text, '(fake,t,t,t,t)'),
       test.is('in which lease', (s -> 'lease' ->> 'providerLeaseId', (s -> 'lease' ->> 'expiresAt')::timestamptz = l.expires_at, s -> 'lease' -> 'metadata' ->> 'provider')::text, format('(%s,t,fake)', l.provider_lease_id)),
       test.is('what', (s ->> 'command', s -> 'args', s -> 'env', s ->> 'stdin', s ->> 'cwd', s -> 'streamOutput', s -> 'timeoutMs')::text, '(make,"[""check"", ""T=a b""]","{""A"": ""1""}","in' || E'\n' || '",/tmp,true,90500)'),
       test.is('how', (s ->> 'method', s -> 'ms', s ->> 'key', s -> 'limit')::text, format('(environmentExecute,120500,%s:%s:execute,5000)', test.id('acme'), test.id('sent'))),
       test.is('by our names', (s -> 'leasehold') - 'installationId', jsonb_build_object('leaseId', test.id('c lease'), 'generation', 1, 'commandId', test.id('sent'), 'idempotencyKey', s ->> 'key'))
  FROM leasehold.leases AS l, LATERAL (SELECT pg_temp.sent('sent')) AS x (s) WHERE l.id = test.id('c lease');
SELECT test.is('a script, below the working directory', (s ->> 'command', s -> 'args', s ->> 'cwd', s -> 'env', s ? 'stdin', s ? 'timeoutMs', s -> 'ms')::text, '(sh,"[""-c"", ""ls | wc""]",/tmp/sub/dir,{},f,f,0)') FROM pg_temp.sent('sent script') AS s;
SELECT test.is('a list that begins elsewhere', (s ->> 'command', s -> 'args', s ->> 'cwd')::text, '(ls,"[""-l""]",/srv)') FROM pg_temp.sent('sent list') AS s;
SELECT test.is('they run then', string_agg(DISTINCT k.status || ' ' || (k.started_at IS NOT NULL), ','), 'running true') FROM leasehold.commands AS k WHERE k.id IN (test.id('sent'), test.id('sent script'), test.id('sent list'));
SELECT test.is('and their input is nowhere', count(*), 0) FROM leasehold_internal.command_inputs;
SELECT test.is('claimed again: nothing', pg_temp.sent('sent'), NULL);
-- to end one
SELECT test.is('cancelled', leasehold.cancel_command(test.id('sent'), company => 'acme'), 'running');
SELECT test.is('that has 30 seconds', (s ->> 'method', s -> 'ms', s ->> 'key', s -> 'leasehold' ->> 'commandId')::text, format('(environmentCancelExecute,30000,%s:%s:cancel,%s)', test.id('acme'), test.id('sent'), test.id('sent'))),
       test.is('and says nothing of what it does', string_agg(k, ' ' ORDER BY k COLLATE "C"), 'companyId config driverKey environmentId issueId key lease leasehold limit method ms')
  FROM (SELECT pg_temp.sent('sent', 'cancel') AS s) AS x, jsonb_object_keys(s) AS k GROUP BY s;
ROLLBACK;
-- what the provider said of the place: where it works, and with which shell
BEGIN;
UPDATE leasehold.lease_metadata SET metadata = metadata || '{"remoteCwd": " /home/agent ", "shellCommand": "bash"}' WHERE lease_id = test.id('c lease');
SELECT test.is('of its own', (s ->> 'command', s ->> 'cwd')::text, '(bash,/home/agent/sub/dir)') FROM pg_temp.sent('sent script') AS s;
SELECT test.is('absolute is absolute', s ->> 'cwd', '/srv') FROM pg_temp.sent('sent list') AS s;
SELECT test.is('none was said', s ->> 'cwd', '/home/agent') FROM pg_temp.sent('sent') AS s;
ROLLBACK;
BEGIN;
UPDATE leasehold.lease_metadata SET metadata = metadata || '{"remoteCwd": " ", "shellCommand": "fish -c rm"}' WHERE lease_id = test.id('c lease');
SELECT test.is('no place and no shell that we know', (s ->> 'command', s ->> 'cwd')::text, '(sh,/tmp/sub/dir)') FROM pg_temp.sent('sent script') AS s;
ROLLBACK;
-- no more is taken at a time than a worker has the memory for; the rest waits
BEGIN;
SELECT test.is('as much input as wanted, and one more', string_agg(c.subject_id::text, ' '), test.id('sent')::text)
  FROM leasehold_internal.claim_commands(0, ARRAY[test.id('acme'), test.id('acme')], ARRAY[test.id('sent'), test.id('sent script')], ARRAY['command', 'command'], 30000, 5000, 1) AS c;
SELECT test.is('the other when there is room again', string_agg(c.subject_id::text, ' '), test.id('sent script')::text)
  FROM leasehold_internal.claim_commands(0, ARRAY[test.id('acme')], ARRAY[test.id('sent script')], ARRAY['command'], 30000, 5000, 1) AS c;
SELECT test.is('nothing where there is none', count(*), 0)
  FROM leasehold_internal.claim_commands(0, ARRAY[test.id('acme')], ARRAY[test.id('sent list')], ARRAY['command'], 30000, 5000, 0) AS c;
ROLLBACK;
-- what a command's end is called
SELECT test.is(label, leasehold_internal.command_outcome(outcome, begun, exit_code, signal, timed_out, cancelled, cancel_requested, cancel_sent, may_go_on), want)
  FROM (VALUES ('a crash before anybody was told to end it', 'ok', true, NULL::integer, 'SIGSEGV', false, false, true, false, true, 'signalled'),
               ('a signal after that', 'ok', true, NULL, 'SIGTERM', false, false, true, true, true, 'cancelled'),
               ('an exit that was faster', 'ok', true, 0, NULL, false, false, true, true, true, 'exited'),
               ('what the provider has cancelled', 'ok', true, NULL, 'SIGKILL', false, true, true, true, true, 'cancelled'),
               ('nothing at all', 'ok', true, NULL, NULL, false, false, false, false, true, 'lost'),
               ('cancelled before it was sent', 'retry', false, NULL, NULL, false, false, true, false, true, 'cancelled'),
               ('not begun, and to be tried again', 'retry', false, NULL, NULL, false, false, false, false, true, NULL),
               ('not begun, and out of tries', 'retry', false, NULL, NULL, false, false, false, false, false, 'failed'),
               ('begun, and then cut off', 'unknown', true, NULL, NULL, false, false, false, false, true, 'lost'),
               ('cut off', 'unknown', false, NULL, NULL, false, false, false, false, true, 'unknown'))
       AS v (label, outcome, begun, exit_code, signal, timed_out, cancelled, cancel_requested, cancel_sent, may_go_on, want);
-- 81: a host's driver is not told the run, nor to stream
BEGIN;
UPDATE leasehold.providers SET kind = 'environment_driver' WHERE key = 'fake';
SELECT test.is('for a host', (s ? 'runId', s ? 'streamOutput', s ->> 'command', s -> 'timeoutMs', s -> 'ms')::text, '(f,f,make,90500,120500)'),
       test.is('which gets its own metadata apart from ours', (SELECT string_agg(k, ' ' ORDER BY k COLLATE "C") FROM jsonb_object_keys(s #> '{lease,metadata}') AS k),
               'agentId driver driverKey executionWorkspaceMode pluginKey providerMetadata')
  FROM (SELECT pg_temp.sent('sent') AS s OFFSET 0) AS o;
ROLLBACK;
-- a lease of another generation, or that is over, gets nothing
BEGIN;
UPDATE leasehold.leases SET generation = 2 WHERE id = test.id('c lease');
SELECT test.is('of another generation', (c.verdict, c.code, c.params)::text, '(failed,lease_ended,)')
  FROM leasehold_internal.claim_commands(0, ARRAY[test.id('acme')], ARRAY[test.id('sent')], ARRAY['command'], 30000, 5000) AS c;
ROLLBACK;
SELECT leasehold.cancel_command(test.id('sent' || s), company => 'acme') AS cancelled FROM unnest(ARRAY['', ' script', ' list']) AS s;

-- 156, 157: how long it may take, and how long its answer is waited for; there is no cap here
SELECT test.is('156: ' || config, (t.work_ms, t.rpc_ms)::text, want)
  FROM (VALUES ('{"timeoutMs": 60000}', '(60000,90000)'), ('{"timeoutMs": 1800000}', '(1800000,1830000)'), ('{"timeoutMs": 120000}', '(120000,150000)'), ('{}', '(,)'), ('{"timeoutMs": 0}', '(,)'),
               ('{"timeoutMs": -5}', '(,)'), ('{"timeoutMs": 0.4}', '(1,30001)'), ('{"timeoutMs": 1e300}', '(31536000000,31536030000)'), ('{"timeoutMs": "60000"}', '(,)'), ('{"timeoutMs": null}', '(,)'),
               -- that of the bridge is for calls about leases
               ('{"bridgeRequestTimeoutMs": 60000}', '(,)')) AS v (config, want), leasehold_internal.call_timeouts('execute', config::jsonb, 30000) AS t;
SELECT test.is('157: 30 seconds for the way', bool_and(t.work_ms = m AND t.work_ms > 0 AND t.work_ms + 30000 <= t.rpc_ms), true)
  FROM (SELECT (1 + i * 86399999::bigint / 1000) AS m FROM generate_series(0, 1000) AS i) AS x, leasehold_internal.call_timeouts('execute', jsonb_build_object('timeoutMs', m), 30000) AS t;
RESET client_min_messages;
SET ROLE regress_admin;
SELECT leasehold.resume_worker();
SET ROLE regress_manager;
SELECT leasehold.create_environment('c-hurried', 'fake', '{"timeoutMs": 200}') IS NOT NULL AND leasehold.request_lease('c-hurried', lease_id => test.id('c hurried')) IS NOT NULL AS made;
SELECT test.is('active', (leasehold.wait_for_lease(test.id('c hurried'), '30 seconds')).status, 'active');
SET ROLE regress_user;
SELECT leasehold.start_command(test.id('c hurried'), ARRAY['hang'], command_id => test.id('as long as it may')) IS NOT NULL AND leasehold.start_command(test.id('c hurried'), ARRAY['sleep', '0.4'], timeout => '1 minute', command_id => test.id('longer')) IS NOT NULL AS started;
SELECT test.is('the environment''s time', pg_temp.outcome('as long as it may'), '(finished,timed_out,,SIGKILL,,)');
SELECT test.is('or its own', pg_temp.outcome('longer'), '(finished,exited,0,,,)');

-- Input: the worker gets it, and nobody else.
SELECT leasehold.start_command(test.id('c lease'), ARRAY['cat'], stdin => s, command_id => test.id('cat ' || n)) IS NOT NULL AS started FROM (VALUES ('nothing', NULL), ('empty', ''), ('text', E'ä\n\x01 "\\ €')) AS v (n, s);
SELECT test.is('it reads ' || n, (pg_temp.outcome('cat ' || n), COALESCE(pg_temp.wrote('cat ' || n), ''))::text, ('(finished,exited,0,,,)', COALESCE(s, ''))::text) FROM (VALUES ('nothing', NULL), ('empty', ''), ('text', E'ä\n\x01 "\\ €')) AS v (n, s);
SELECT leasehold.start_command(test.id('c lease'), ARRAY['cat'], stdin => repeat('x', 1000000), command_id => test.id('cat most')) IS NOT NULL AS started;
SELECT test.is('it reads as much as may be', (pg_temp.outcome('cat most'), length(pg_temp.wrote('cat most')))::text, '("(finished,exited,0,,,)",1000000)');
SELECT leasehold.start_command(test.id('c lease'), ARRAY['env'], env => '{"B": "ü=1", "A": ""}', command_id => test.id('env')) IS NOT NULL AS started;
SELECT test.is('its environment', (pg_temp.outcome('env'), pg_temp.wrote('env'))::text, ('(finished,exited,0,,,)', E'A=\nB=ü=1\n')::text);
-- with the next try, too
SELECT leasehold.start_command(test.id('c lease'), shell => script || '; cat; env', stdin => E'again\n', env => '{"A": "1"}', command_id => test.id('again ' || script)) IS NOT NULL AS started FROM unnest(ARRAY['busy 3', 'fail 2']) AS script;
SELECT test.is('again: ' || script, (pg_temp.outcome('again ' || script), pg_temp.wrote('again ' || script))::text, ('(finished,exited,0,,,)', E'again\nA=1\n')::text) FROM unnest(ARRAY['busy 3', 'fail 2']) AS script;
SELECT leasehold.start_command(test.id('c lease'), shell => 'busy 1000000', stdin => 'telltale', env => '{"telltale": "telltale"}', command_id => test.id('secretive'), idempotency_key => 'secretive') IS NOT NULL AS started;
RESET ROLE;
SELECT test.eventually('between tries it is kept again', $$SELECT (i.stdin, i.env)::text FROM leasehold_internal.command_inputs AS i WHERE i.command_id = test.id('secretive')$$, '(telltale,"{""telltale"": ""telltale""}")');
SELECT test.is('cancelled', leasehold.cancel_command(test.id('secretive'), company => 'acme') IN ('finished', 'running'), true);
SET ROLE regress_user;
SELECT test.is('it ends', pg_temp.outcome('secretive'), '(finished,cancelled,,,,)');
RESET ROLE;
CREATE FUNCTION pg_temp.tables_with(what text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    t     regclass;
    found boolean;
    names text;
BEGIN
    FOR t IN SELECT c.oid::regclass FROM pg_class AS c WHERE c.relnamespace IN ('leasehold'::regnamespace, 'leasehold_internal'::regnamespace) AND c.relkind = 'r' ORDER BY c.oid::regclass::text COLLATE "C" LOOP
        EXECUTE format('SELECT EXISTS (SELECT FROM %s AS t WHERE t::text LIKE ''%%'' || $1 || ''%%'')', t) INTO found USING what;
        names := CASE WHEN found THEN concat_ws(', ', names, t) ELSE names END;
    END LOOP;
    RETURN names;
END
$$;
SELECT test.is('no table has it any more', pg_temp.tables_with('telltale'), NULL);
SELECT test.is('and would have been found', pg_temp.tables_with('busy 1000000'), 'leasehold.commands');

-- Refused, and nothing is written.
SELECT test.quiet();
SELECT test.fingerprint() AS before \gset
SET ROLE regress_user;
SELECT test.refused(label, 'SELECT leasehold.start_command(test.id(''c lease''), ' || arguments || ')', code)
  FROM (VALUES ('nothing to run', 'NULL', 'argument_invalid'), ('twice what to run', '''{true}'', ''true''', 'argument_invalid'), ('an empty list', '''{}''', 'argument_invalid'), ('a nameless program', '''{"", x}''', 'argument_invalid'),
               ('an argument that is none', 'ARRAY[''echo'', NULL]', 'argument_invalid'), ('a list of lists', '''{{a,b},{c,d}}''', 'argument_invalid'), ('an empty script', 'shell => ''''', 'argument_invalid'),
               ('a long script', 'shell => repeat(''x'', 100001)', 'argument_too_large'), ('one in few characters', 'shell => repeat(''ä'', 50001)', 'argument_too_large'), ('a long argument', 'ARRAY[''echo'', repeat(''x'', 100001)]', 'argument_too_large'),
               ('many arguments', 'ARRAY[''echo''] || array_fill(''x''::text, ARRAY[4096])', 'argument_too_large'), ('much in them', 'array_fill(repeat(''x'', 100000), ARRAY[6])', 'argument_too_large'),
               ('much input', '''{cat}'', stdin => repeat(''x'', 1000001)', 'argument_too_large'), ('no directory', '''{pwd}'', cwd => ''''', 'argument_invalid'), ('a long directory', '''{pwd}'', cwd => repeat(''x'', 4001)', 'argument_too_large'),
               ('control characters in a path', '''{pwd}'', cwd => E''a\x01''', 'argument_invalid'), ('an environment of numbers', '''{env}'', env => ''{"A": 1}''', 'argument_invalid'), ('a name that is none', '''{env}'', env => ''{"A-B": "1"}''', 'argument_invalid'),
               ('a secret', '''{env}'', env => ''{"A": {"$secret": "key"}}''', 'argument_invalid'), ('a list for an environment', '''{env}'', env => ''[]''', 'argument_invalid'), ('much in an environment', '''{env}'', env => jsonb_build_object(''A'', repeat(''x'', 65536))', 'argument_too_large'), ('no time', '''{true}'', timeout => ''0''', 'argument_invalid'),
               ('more than a year', '''{true}'', timeout => ''366 days''', 'argument_invalid'), ('another generation', '''{true}'', generation => 2', 'stale_version'), ('an id that there is', '''{true}'', command_id => test.id(''stored'')', 'already_exists'),
               ('an empty key', '''{true}'', idempotency_key => ''''', 'argument_invalid')) AS v (label, arguments, code);
SELECT test.refused('in no lease', $$SELECT leasehold.start_command(test.id('nothing'), '{true}')$$, 'lease_not_found');
SELECT test.refused('a long reason', $$SELECT leasehold.cancel_command(test.id('stored'), repeat('x', 1001))$$, 'argument_too_large');
SELECT test.refused('a command that does not exist', $$SELECT leasehold.cancel_command(test.id('nothing'))$$, 'command_not_found');
RESET ROLE;
SELECT test.is('nothing was written', test.fingerprint(), :'before');
SET ROLE regress_user;
SELECT test.works('as much as may be', $$SELECT leasehold.start_command(test.id('c lease'), array_fill(repeat('x', 100000), ARRAY[5])), leasehold.start_command(test.id('c lease'), array_fill('x'::text, ARRAY[4096])), leasehold.start_command(test.id('c lease'), shell => repeat('x', 100000))$$);

-- The same start again, by its key.
SELECT test.is('the first with a key', leasehold.start_command(test.id('c lease'), '{exit,1}', env => '{"A": "1", "B": "2"}', stdin => 'x', timeout => '90 seconds', command_id => test.id('keyed'), idempotency_key => 'k1'), test.id('keyed'));
SELECT test.is('the same again', leasehold.start_command(test.id('c lease'), '{exit,1}', env => '{"B": "2", "A": "1"}', stdin => 'x', timeout => '00:01:30', command_id => test.id('keyed'), idempotency_key => 'k1'), test.id('keyed'));
SELECT test.is('one command', (SELECT count(*) FROM leasehold.commands AS k WHERE k.timeout = '90 seconds' AND k.argv = '{exit,1}'), 1);
SELECT test.is('that ran once', (pg_temp.outcome('keyed'), pg_temp.events('keyed'))::text, '("(finished,exited,1,,,)","requested finished")');
SELECT test.is('after its end, too', leasehold.start_command(test.id('c lease'), '{exit,1}', env => '{"A": "1", "B": "2"}', stdin => 'x', timeout => '90 seconds', command_id => test.id('keyed'), idempotency_key => 'k1'), test.id('keyed'));
SELECT test.refused('other: ' || changed, format('SELECT leasehold.start_command(lease_id => test.id(%L), argv => %L, env => %L, stdin => %L, timeout => %L, cwd => %L, command_id => test.id(%L), idempotency_key => ''k1'')',
        CASE changed WHEN 'lease' THEN 'c hurried' ELSE 'c lease' END, CASE changed WHEN 'argv' THEN '{exit,2}' ELSE '{exit,1}' END, CASE changed WHEN 'env' THEN '{"A": "1"}' ELSE '{"A": "1", "B": "2"}' END,
        CASE changed WHEN 'stdin' THEN 'y' ELSE 'x' END, CASE changed WHEN 'timeout' THEN '91 seconds' ELSE '90 seconds' END, CASE changed WHEN 'cwd' THEN '/' END, CASE changed WHEN 'id' THEN 'other' ELSE 'keyed' END), 'idempotency_conflict')
  FROM unnest(ARRAY['lease', 'argv', 'env', 'stdin', 'timeout', 'cwd', 'id']) AS changed;
SELECT test.refused('a script of the same words', $$SELECT leasehold.start_command(test.id('c lease'), shell => 'exit 1', idempotency_key => 'k1')$$, 'idempotency_conflict');
SELECT test.refused('a start that fails', $$SELECT leasehold.start_command(test.id('nothing'), '{true}', idempotency_key => 'k2')$$, 'lease_not_found');
SELECT test.works('does not use up its key', $$SELECT leasehold.start_command(test.id('c lease'), '{true}', idempotency_key => 'k2')$$);
SELECT test.works('the same key for a lease', $$SELECT leasehold.request_lease('plain', idempotency_key => 'k1 of commands')$$);

-- Only in a lease that is in use, and of a provider that can.
SET ROLE regress_manager;
SELECT leasehold.create_environment('c-slow', 'fake', '{"delayMs": 4000}') IS NOT NULL AND leasehold.request_lease('c-slow', lease_id => test.id('c acquiring'), acquire_timeout => '1 day') IS NOT NULL
   AND leasehold.request_lease('plain', lease_id => test.id('c parked')) IS NOT NULL AND leasehold.request_lease('plain', lease_id => test.id('c over')) IS NOT NULL AS made;
SELECT test.is('active', (leasehold.wait_for_lease(test.id('c ' || l), '30 seconds')).status, 'active') FROM unnest(ARRAY['parked', 'over']) AS l;
SELECT test.is('given back', leasehold.release_lease(test.id('c ' || l), d), 'releasing') FROM (VALUES ('parked', 'stop'), ('over', 'delete')) AS v (l, d);
SELECT test.is('parked, or over', (leasehold.wait_for_lease(test.id('c ' || l), '30 seconds')).status, s) FROM (VALUES ('parked', 'retained'), ('over', 'released')) AS v (l, s);
SELECT test.refused(s, format('SELECT leasehold.start_command(test.id(%L), ''{true}'')', 'c ' || l), 'wrong_state'),
       test.is('the error tells', e.detail::jsonb ->> 'status', s)
  FROM (VALUES ('acquiring', 'acquiring'), ('parked', 'retained'), ('over', 'released')) AS v (l, s), LATERAL test.error(format('SELECT leasehold.start_command(test.id(%L), ''{true}'')', 'c ' || l)) AS e;
RESET ROLE;
INSERT INTO leasehold.plugins (key, display_name, version, manifest, transport, status, supported_methods) VALUES ('c-plugin', 'x', '1', '{}', '{}', 'ready', '{environmentAcquireLease}');
INSERT INTO leasehold.providers (key, plugin_key, kind, display_name) VALUES ('c-driver', 'c-plugin', 'sandbox_provider', 'x');
INSERT INTO leasehold.leases (company_id, id, environment_id, config_version, provider, ttl, status, expires_at) VALUES (test.id('acme'), test.id('c idle'), test.id('acme plain'), 1, 'c-driver', '1 hour', 'active', now() + interval '1 hour');
SET ROLE regress_user;
SELECT test.refused('a provider that cannot', $$SELECT leasehold.start_command(test.id('c idle'), '{true}')$$, 'provider_unusable');
RESET ROLE;
UPDATE leasehold.plugins SET supported_methods = '{environmentAcquireLease,environmentExecute}' WHERE key = 'c-plugin';
BEGIN;
SELECT test.works('one that can', $$SELECT leasehold.start_command(test.id('c idle'), '{true}', company => 'acme')$$);
ROLLBACK;
UPDATE leasehold.plugins SET supported_methods = '{}' WHERE key = 'c-plugin';
BEGIN;
SELECT test.works('one of which nothing is known', $$SELECT leasehold.start_command(test.id('c idle'), '{true}', company => 'acme')$$);
ROLLBACK;
DELETE FROM leasehold.leases WHERE id = test.id('c idle');
DELETE FROM leasehold.providers WHERE key = 'c-driver';
DELETE FROM leasehold.plugins WHERE key = 'c-plugin';

-- With a lease its commands end, and then its resource is removed.
SET ROLE regress_user;
SELECT leasehold.start_run(run_id => test.id('ends'), heartbeat_timeout => '1 hour') IS NOT NULL AS made;
SELECT leasehold.request_lease('plain', run_id => CASE WHEN l IN ('finish_run', 'release_run_leases') THEN test.id('ends') END, ttl => CASE l WHEN 'expiry' THEN interval '1 second' ELSE '1 hour' END, lease_id => test.id('by ' || l)) IS NOT NULL AS made
  FROM unnest(ARRAY['release', 'destroy', 'parking', 'finish_run', 'expiry', 'patience', 'impatience']) AS l;
SELECT test.is('active', (leasehold.wait_for_lease(test.id('by ' || l), '30 seconds')).status, 'active') FROM unnest(ARRAY['release', 'destroy', 'parking', 'finish_run', 'patience', 'impatience', 'expiry']) AS l;
SELECT pg_temp.start('ends by ' || l, 'echo x; hang', 'by ' || l) FROM unnest(ARRAY['expiry', 'release', 'destroy', 'parking', 'finish_run']) AS l;
SELECT pg_temp.start('ends by patience', 'echo x; stubborn; sleep 1; exit 8', 'by patience'), pg_temp.start('ends by impatience', 'echo x; stubborn; hang', 'by impatience');
SELECT test.eventually('all run', format($$SELECT string_agg(DISTINCT (EXISTS (SELECT FROM leasehold.command_output AS o WHERE o.command_id = test.id(x)))::text, '') FROM unnest(%L::text[]) AS x$$,
    ARRAY['ends by release', 'ends by destroy', 'ends by parking', 'ends by finish_run', 'ends by patience', 'ends by impatience']), 'true');
SELECT test.is('ended', leasehold.release_lease(test.id('by release')), 'releasing'), test.is('ended', leasehold.destroy_lease(test.id('by destroy')), 'releasing'), test.is('ended', leasehold.release_lease(test.id('by parking'), 'keep'), 'releasing'),
       test.is('ended', leasehold.finish_run(test.id('ends')), 'succeeded'), test.is('ended', leasehold.release_lease(test.id('by patience')), 'releasing'), test.is('ended', leasehold.release_lease(test.id('by impatience')), 'releasing');
SELECT test.is(l, (pg_temp.outcome('ends by ' || l), pg_temp.events('ends by ' || l))::text, '("(finished,cancelled,,SIGTERM,,)","requested cancel_requested finished")') FROM unnest(ARRAY['release', 'destroy', 'parking', 'finish_run', 'expiry']) AS l;
SELECT test.is('the reason', string_agg(DISTINCT k.cancel_reason, ','), 'the lease ended') FROM leasehold.commands AS k WHERE k.id IN (SELECT test.id('ends by ' || l) FROM unnest(ARRAY['release', 'destroy', 'parking', 'finish_run', 'expiry', 'patience', 'impatience']) AS l);
SELECT test.is('its resource is removed', (leasehold.wait_for_lease(test.id('by ' || l), '30 seconds')).status, s) FROM (VALUES ('release', 'released'), ('destroy', 'expired'), ('parking', 'retained'), ('finish_run', 'released'), ('expiry', 'expired')) AS v (l, s);
-- what takes a moment to end gets it, and then nobody waits any longer
SELECT test.is('one that takes a second', pg_temp.outcome('ends by patience'), '(finished,exited,8,,,)');
SELECT test.is('is waited for', (leasehold.wait_for_lease(test.id('by patience'), '30 seconds')).status, 'released');
SELECT test.is('and so is each: first the command, then the lease', bool_and(k.finished_at <= l.ended_at AND l.ended_at < k.finished_at + interval '3 seconds'), true)
  FROM leasehold.commands AS k JOIN leasehold.leases AS l ON l.id = k.lease_id WHERE k.id IN (SELECT test.id('ends by ' || l) FROM unnest(ARRAY['release', 'destroy', 'parking', 'finish_run', 'expiry', 'patience']) AS l);
-- what does not end at all is not waited for
SELECT test.is('five seconds', (leasehold.wait_for_lease(test.id('by impatience'), '30 seconds')).status, 'released');
SELECT test.is('and no more', l.ended_at - k.cancel_requested_at BETWEEN '4 seconds' AND '20 seconds', true) FROM leasehold.commands AS k JOIN leasehold.leases AS l ON l.id = k.lease_id WHERE k.id = test.id('ends by impatience');
SELECT test.is('it is lost', pg_temp.outcome('ends by impatience'), '(finished,lost,,,lease_ended,"the lease ended, and the command did not")');
SELECT test.is('and what it wrote is kept', pg_temp.wrote('ends by impatience'), E'x\n');
SELECT test.is('all is told', pg_temp.events('ends by impatience'), 'requested cancel_requested finished');
RESET ROLE;
SELECT test.is('nothing is left to do for any of them', count(*), 0) FROM leasehold_internal.calls AS c WHERE c.slot IN ('command', 'cancel') OR c.subject_id IN (SELECT test.id('by ' || l) FROM unnest(ARRAY['release', 'destroy', 'finish_run', 'expiry', 'patience', 'impatience']) AS l);

-- The holder of before is fenced off.
SET ROLE regress_manager;
SELECT leasehold.create_environment('c-pool', 'fake', '{"reuseLease": true}') IS NOT NULL AND leasehold.upsert_execution_workspace(test.id('c ws')) IS NOT NULL AS made;
SET ROLE regress_user;
CREATE PROCEDURE pg_temp.run(name text) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM leasehold.start_run(run_id => test.id(name), agent_id => test.id('c agent'), execution_workspace_id => test.id('c ws'));
    PERFORM leasehold.request_lease('c-pool', run_id => test.id(name), lease_id => test.id(name));
END
$$;
CALL pg_temp.run('holder 1');
SELECT test.is('active', (leasehold.wait_for_lease(test.id('holder 1'), '30 seconds')).status, 'active');
SELECT pg_temp.start('of holder 1', 'hang', 'holder 1');
SELECT test.eventually('it runs', $$SELECT k.status::text FROM leasehold.commands AS k WHERE k.id = test.id('of holder 1')$$, 'running');
SELECT test.is('its run ends', leasehold.finish_run(test.id('holder 1')), 'succeeded');
SELECT test.is('and the command', pg_temp.outcome('of holder 1'), '(finished,cancelled,,SIGTERM,,)');
SELECT test.eventually('parked', $$SELECT test.lease('holder 1')$$, 'retained');
CALL pg_temp.run('holder 2');
SELECT test.is('the next holder has it', (w.status, w.generation)::text, '(active,2)') FROM leasehold.wait_for_lease(test.id('holder 1'), '30 seconds') AS w;
SELECT test.refused('the former cannot run anything', $$SELECT leasehold.start_command(test.id('holder 1'), '{true}', generation => 1)$$, 'stale_version');
SELECT leasehold.start_command(test.id('holder 1'), ARRAY['exit', '2'], generation => 2, command_id => test.id('of holder 2')) IS NOT NULL AS started;
SELECT test.is('the latter can', (pg_temp.outcome('of holder 2'), (SELECT k.generation FROM leasehold.commands AS k WHERE k.id = test.id('of holder 2')))::text, '("(finished,exited,2,,,)",2)');
SELECT test.is('its run ends', leasehold.finish_run(test.id('holder 2')), 'succeeded');

-- A lease in which something runs is not idle.
SELECT leasehold.request_lease('plain', idle_timeout => '1 second', lease_id => test.id('busy')) IS NOT NULL AS requested;
SELECT test.is('active', (leasehold.wait_for_lease(test.id('busy'), '30 seconds')).status, 'active');
SELECT pg_temp.start('busy', 'sleep 2.5', 'busy');
SELECT test.is('it ends by itself', pg_temp.outcome('busy'), '(finished,exited,0,,,)');
SELECT test.is('in use until then', l.last_used_at >= k.finished_at AND k.cancel_requested_at IS NULL, true) FROM leasehold.leases AS l, leasehold.commands AS k WHERE l.id = test.id('busy') AND k.id = test.id('busy');
SELECT test.eventually('and then idle', $$SELECT test.lease('busy')$$, 'expired');
SELECT test.is('a second later', (l.failure_reason, l.ended_at >= k.finished_at + interval '1 second')::text, '(idle_timeout,t)') FROM leasehold.leases AS l, leasehold.commands AS k WHERE l.id = test.id('busy') AND k.id = test.id('busy');

-- How many at a time.
SET ROLE regress_admin;
SELECT leasehold.set_limit('concurrent_commands', 1, company => 'acme');
SET ROLE regress_user;
SELECT pg_temp.start('turn ' || i, 'sleep 0.2') FROM generate_series(1, 3) AS i;
SELECT test.is('all come', pg_temp.outcome('turn ' || i), '(finished,exited,0,,,)') FROM generate_series(1, 3) AS i;
SELECT test.is('one after the other', count(*), 0) FROM leasehold.commands AS a JOIN leasehold.commands AS b ON a.id <> b.id AND a.started_at BETWEEN b.started_at AND b.started_at + interval '0.2 seconds'
 WHERE a.id IN (SELECT test.id('turn ' || i) FROM generate_series(1, 3) AS i) AND b.id IN (SELECT test.id('turn ' || i) FROM generate_series(1, 3) AS i);
SELECT pg_temp.start('takes the place', 'hang'), pg_temp.start('finds none', 'exit 6');
SELECT test.eventually('one runs, the other waits', $$SELECT string_agg(k.status, ' ' ORDER BY k.status COLLATE "C") FROM leasehold.commands AS k WHERE k.id IN (test.id('takes the place'), test.id('finds none'))$$, 'queued running');
-- neither leases nor other companies wait for that
SELECT leasehold.request_lease('plain', lease_id => test.id('meanwhile')) IS NOT NULL AS requested;
SELECT test.is('a lease is got', (leasehold.wait_for_lease(test.id('meanwhile'), '30 seconds')).status, 'active');
SET ROLE regress_beta;
SELECT leasehold.request_lease('plain', lease_id => test.id('beta c lease')) IS NOT NULL AS requested;
SELECT test.is('active', (leasehold.wait_for_lease(test.id('beta c lease'), '30 seconds')).status, 'active');
SELECT leasehold.start_command(test.id('beta c lease'), ARRAY['exit', '1'], command_id => test.id('finds none')) IS NOT NULL AS started;
SELECT test.is('another company''s of the same id', pg_temp.outcome('finds none'), '(finished,exited,1,,,)');
SELECT leasehold.release_lease(test.id('beta c lease')) AS released;
SET ROLE regress_user;
SELECT test.is('it waits still', (w.done, w.status)::text, '(f,queued)') FROM leasehold.wait_for_command(test.id('finds none'), '0 seconds') AS w;
SELECT test.is('and can be cancelled meanwhile', leasehold.cancel_command(test.id('takes the place')), 'running');
SELECT test.is('a place becomes free', pg_temp.outcome('finds none'), '(finished,exited,6,,,)');
SET ROLE regress_admin;
SELECT leasehold.set_limit('concurrent_commands', 0, provider => 'fake');
SET ROLE regress_user;
SELECT pg_temp.start('none at all', 'true');
SELECT test.is('none at all', (w.done, w.status)::text, '(f,queued)') FROM leasehold.wait_for_command(test.id('none at all'), '0.3 seconds') AS w;
SET ROLE regress_admin;
SELECT leasehold.set_limit('concurrent_commands', provider => 'fake'), leasehold.set_limit('concurrent_commands', company => 'acme');
SET ROLE regress_user;
SELECT test.is('until the limit is gone', pg_temp.outcome('none at all'), '(finished,exited,0,,,)');

-- The breaker of a provider's commands is one of its own.
SET ROLE regress_admin;
SELECT test.is('none is open', leasehold.reset_breaker('commands:fake'), false);
SELECT test.refused('of no provider', $$SELECT leasehold.reset_breaker('commands:nothing')$$, 'provider_not_found');
SELECT test.is('status() shows how commands fare', (s.state, (s.detail ->> 'succeeded')::int > 20)::text, '(ok,t)') FROM leasehold.status() AS s WHERE s.area = 'provider' AND s.subject = 'commands:fake';
RESET ROLE;

-- An end that was set aside after crashes is tried again a day later: nobody can release it by hand.
BEGIN;
INSERT INTO leasehold_internal.calls (company_id, subject_id, slot, operation, provider, shard, state, due_at)
SELECT test.id('acme'), test.id(v.name), 'cancel', 'cancel_command', 'fake', leasehold_internal.shard_of(test.id('acme')), 'quarantined', now() - v.age FROM (VALUES ('is lost', interval '25 hours'), ('vanishes', '23 hours')) AS v (name, age);
SELECT leasehold_internal.revive_quarantined(ARRAY[leasehold_internal.shard_of(test.id('acme'))]);
SELECT test.is(v.name, c.state, v.want) FROM (VALUES ('is lost', 'queued'), ('vanishes', 'quarantined')) AS v (name, want) JOIN leasehold_internal.calls AS c ON c.subject_id = test.id(v.name) ORDER BY v.name;
ROLLBACK;

-- What has finished stays as it is, whoever writes.
SELECT test.refused(label, format('UPDATE leasehold.commands SET %s WHERE id = test.id(''stored'')', change), 'illegal_transition')
  FROM (VALUES ('running again', 'status = ''running'', outcome = NULL, finished_at = NULL, exit_code = NULL'), ('queued again', 'status = ''queued'', outcome = NULL, finished_at = NULL, exit_code = NULL'),
               ('another outcome', 'outcome = ''cancelled'''), ('another exit code', 'exit_code = 0'), ('another signal', 'signal = ''SIGKILL'''), ('another lease', 'lease_id = test.id(''c hurried'')'),
               ('another generation', 'generation = 2'), ('another id', 'id = test.id(''other'')'), ('another company', 'company_id = test.id(''beta'')')) AS v (label, change);
SELECT test.is('the trigger', (t.tgenabled, t.tgtype & 1 = 1, t.tgtype & 2 = 2, t.tgfoid::regproc)::text, '(O,t,t,leasehold_internal.check_command_change)')
  FROM pg_trigger AS t WHERE t.tgrelid = 'leasehold.commands'::regclass AND t.tgname = 'check_change';
SELECT leasehold.release_lease(test.id('c acquiring'), company => 'acme') IS NOT NULL, leasehold.finish_run(test.id('c run'), company => 'acme') IS NOT NULL AS ended;
