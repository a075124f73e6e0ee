-- The application's own objects: made known and changed by the same call.
\pset format unaligned
\pset tuples_only on
SET ROLE regress_user;
SELECT test.is('a project', leasehold.upsert_project(test.id('c project'), 'Project', '{"P": "1"}', '{"p": 1}'), test.id('c project'));
SELECT test.is('an agent', leasehold.upsert_agent(test.id('c agent'), 'Agent', 'codex_local', '{"A": "1", "S": {"$secret": "key"}}', '{"a": 1}'), test.id('c agent'));
SELECT test.is('a routine', leasehold.upsert_routine(test.id('c routine'), 'Routine', '{"R": "1"}', '{"r": 1}'), test.id('c routine'));
SELECT test.is('a workspace', leasehold.upsert_execution_workspace(test.id('c ws'), 'Workspace', test.id('c project'), 'isolated', 'active', '{"W": "1"}', '{"w": 1}'), test.id('c ws'));
SELECT test.is('an issue', leasehold.upsert_issue(test.id('c issue'), 'Issue', 'todo', false, test.id('c project'), test.id('c ws'), '{"I": "1"}', '{"i": 1}'), test.id('c issue'));
SELECT test.is('as stored', (SELECT (a.name, a.adapter_type, a.status, a.env, a.metadata)::text FROM leasehold.agents AS a WHERE a.id = test.id('c agent')), '(Agent,codex_local,active,"{""A"": ""1"", ""S"": {""$secret"": ""key""}}","{""a"": 1}")');
SELECT test.is('as stored', (SELECT (i.title, i.status, i.closed, i.project_id = test.id('c project'), i.execution_workspace_id = test.id('c ws'), i.env, i.metadata)::text FROM leasehold.issues AS i WHERE i.id = test.id('c issue')),
               '(Issue,todo,f,t,t,"{""I"": ""1""}","{""i"": 1}")');
SELECT test.is('as stored', (SELECT (w.name, w.mode, w.status, w.project_id = test.id('c project'), w.env, w.metadata)::text FROM leasehold.execution_workspaces AS w WHERE w.id = test.id('c ws')), '(Workspace,isolated,active,t,"{""W"": ""1""}","{""w"": 1}")');
-- what is not given stays
SELECT leasehold.upsert_agent(test.id('c agent'), name => 'Agent 2') IS NOT NULL AND leasehold.upsert_issue(test.id('c issue'), status => 'doing') IS NOT NULL AND leasehold.upsert_project(test.id('c project'), metadata => '{}') IS NOT NULL
   AND leasehold.upsert_routine(test.id('c routine')) IS NOT NULL AND leasehold.upsert_execution_workspace(test.id('c ws'), env => '{}') IS NOT NULL AS changed;
SELECT test.is('changed', (SELECT (a.name, a.adapter_type, a.env - 'S')::text FROM leasehold.agents AS a WHERE a.id = test.id('c agent')), '("Agent 2",codex_local,"{""A"": ""1""}")');
SELECT test.is('changed', (SELECT (i.title, i.status, i.env)::text FROM leasehold.issues AS i WHERE i.id = test.id('c issue')), '(Issue,doing,"{""I"": ""1""}")');
SELECT test.is('changed', (SELECT (p.name, p.env, p.metadata)::text FROM leasehold.projects AS p WHERE p.id = test.id('c project')), '(Project,"{""P"": ""1""}",{})');
SELECT test.is('unchanged', (SELECT (r.name, r.env, r.metadata)::text FROM leasehold.routines AS r WHERE r.id = test.id('c routine')), '(Routine,"{""R"": ""1""}","{""r"": 1}")');
SELECT test.is('changed', (SELECT (w.name, w.env, w.metadata)::text FROM leasehold.execution_workspaces AS w WHERE w.id = test.id('c ws')), '(Workspace,{},"{""w"": 1}")');
-- told as what it was, without values
SELECT test.is('told', string_agg(e.action || ' ' || e.details::text, ', ' ORDER BY e.occurred_at),
    'project.created {}, agent.created {}, routine.created {}, execution_workspace.created {"status": "active"}, issue.created {"closed": false, "status": "todo"}, '
    'agent.updated {}, issue.updated {"closed": false, "status": "doing"}, project.updated {}, routine.updated {}, execution_workspace.updated {"status": "active"}')
  FROM leasehold.audit_events AS e WHERE e.entity_id IN (SELECT test.id('c ' || k)::text FROM unnest(ARRAY['project', 'agent', 'routine', 'ws', 'issue']) AS k);
-- a name by default
SELECT leasehold.upsert_agent(test.id('c nameless')) IS NOT NULL AS made;
SELECT test.is('is the id', a.name, a.id::text) FROM leasehold.agents AS a WHERE a.id = test.id('c nameless');
-- an archived agent gets nothing new; what was parked for it is removed, what it uses goes on and is not parked
SET ROLE regress_manager;
SELECT leasehold.create_environment('c-reused', 'fake', '{"reuseLease": true}') IS NOT NULL AS made;
SET ROLE regress_user;
SELECT leasehold.start_run(test.id('c agent'), execution_workspace_id => test.id('c ws'), run_id => test.id('c run 1')) IS NOT NULL AND leasehold.start_run(test.id('c agent'), execution_workspace_id => test.id('c ws'), run_id => test.id('c run 2')) IS NOT NULL AS started;
SELECT leasehold.request_lease('c-reused', run_id => test.id('c run 1'), lease_id => test.id('ctx parked')) IS NOT NULL AND leasehold.request_lease('c-reused', run_id => test.id('c run 2'), lease_id => test.id('c used')) IS NOT NULL AS requested;
SELECT test.is('active', (leasehold.wait_for_lease(test.id('ctx parked'), '30 seconds')).status || (leasehold.wait_for_lease(test.id('c used'), '30 seconds')).status, 'activeactive');
SELECT leasehold.finish_run(test.id('c run 1')) AS finished;
SELECT test.eventually('parked', $$SELECT test.lease('ctx parked')$$, 'retained');
SET ROLE regress_viewer;
SELECT test.refused('not by everybody', $$SELECT leasehold.archive_agent(test.id('c agent'))$$, 'forbidden');
SET ROLE regress_user;
SELECT test.refused('nor one that is not there', $$SELECT leasehold.archive_agent(test.id('c nobody'))$$, 'agent_not_found');
SELECT leasehold.archive_agent(test.id('c agent'));
SELECT leasehold.archive_agent(test.id('c agent'));
SELECT test.is('archived', a.status::text, 'archived') FROM leasehold.agents AS a WHERE a.id = test.id('c agent');
SELECT test.refused('no lease', $$SELECT leasehold.request_lease('plain', agent_id => test.id('c agent'))$$, 'agent_not_found');
SELECT test.refused('no run', $$SELECT leasehold.start_run(test.id('c agent'))$$, 'agent_not_found');
SELECT test.eventually('what was parked is removed', $$SELECT test.lease('ctx parked')$$, 'expired');
SELECT test.is('why', l.failure_reason, 'agent_archived') FROM leasehold.leases AS l WHERE l.id = test.id('ctx parked');
SELECT test.is('what it uses goes on', test.lease('c used'), 'active');
SELECT leasehold.finish_run(test.id('c run 2')) AS finished;
SELECT test.eventually('and is not parked', $$SELECT test.lease('c used')$$, 'released');
SELECT test.is('told', count(*), 2) FROM leasehold.audit_events AS e WHERE e.entity_id = test.id('c agent')::text AND e.action = 'agent.archived';
SELECT leasehold.upsert_agent(test.id('c agent')) IS NOT NULL AS known;
SELECT test.works('made known again, it is in use', $$SELECT leasehold.request_lease('plain', agent_id => test.id('c agent'))$$);
-- an archived workspace can come back
SELECT leasehold.upsert_execution_workspace(test.id('c ws'), status => 'archived') IS NOT NULL AS archived;
SELECT test.refused('not for a lease', $$SELECT leasehold.request_lease('plain', execution_workspace_id => test.id('c ws'))$$, 'execution_workspace_not_found');
SELECT test.refused('not for an issue', $$SELECT leasehold.upsert_issue(test.id('c issue'), execution_workspace_id => test.id('c ws'))$$, 'execution_workspace_not_found');
SELECT leasehold.upsert_execution_workspace(test.id('c ws'), status => 'active') IS NOT NULL AS active;
SELECT test.works('for a lease', $$SELECT leasehold.request_lease('plain', execution_workspace_id => test.id('c ws'))$$);

-- Refused, and nothing is written.
RESET ROLE;
SELECT test.quiet();
SELECT leasehold.pause_worker();
SELECT test.fingerprint() AS before \gset
SET ROLE regress_user;
SELECT test.refused('no id', $$SELECT leasehold.upsert_agent(NULL)$$, 'argument_required');
SELECT test.refused('an overlong name', $$SELECT leasehold.upsert_agent(test.id('c bad'), repeat('x', 201))$$, 'argument_too_large');
SELECT test.refused('a title may be longer, but not that long', $$SELECT leasehold.upsert_issue(test.id('c bad'), repeat('x', 1001))$$, 'argument_too_large');
SELECT test.refused('control characters', $$SELECT leasehold.upsert_project(test.id('c bad'), E'a\x1bb')$$, 'argument_invalid');
SELECT test.refused('an unknown status', $$SELECT leasehold.upsert_execution_workspace(test.id('c bad'), status => 'gone')$$, 'argument_invalid');
SELECT test.refused('no such project', $$SELECT leasehold.upsert_issue(test.id('c bad'), project_id => test.id('c nothing'))$$, 'project_not_found');
SELECT test.refused('no such project', $$SELECT leasehold.upsert_execution_workspace(test.id('c bad'), project_id => test.id('c nothing'))$$, 'project_not_found');
SELECT test.refused('no such workspace', $$SELECT leasehold.upsert_issue(test.id('c bad'), execution_workspace_id => test.id('c nothing'))$$, 'execution_workspace_not_found');
SELECT test.refused('variables: ' || label, format('SELECT leasehold.upsert_agent(test.id(''c bad''), env => %L)', v), code)
  FROM (VALUES ('a blank in a name', '{"A B": "x"}', 'argument_invalid'), ('a digit first', '{"1A": "x"}', 'argument_invalid'), ('no name', '{"": "x"}', 'argument_invalid'), ('a number', '{"A": 1}', 'argument_invalid'),
               ('a null', '{"A": null}', 'argument_invalid'), ('a list', '{"A": ["x"]}', 'argument_invalid'), ('an object', '{"A": {"x": "y"}}', 'argument_invalid'), ('more than a reference', '{"A": {"$secret": "k", "x": 1}}', 'argument_invalid'),
               ('a reference to a number', '{"A": {"$secret": 1}}', 'argument_invalid'), ('a list of all', '["A"]', 'argument_invalid'), ('too much', '{"A": "' || repeat('x', 70000) || '"}', 'argument_too_large')) AS x (label, v, code);
SELECT test.is('the error names the variable', e.detail, '{"code": "argument_invalid","variable": "A B"}') FROM test.error($$SELECT leasehold.upsert_agent(test.id('c bad'), env => '{"A B": "x"}')$$) AS e;
RESET ROLE;
SELECT test.is('nothing was written', test.fingerprint(), :'before');
SELECT leasehold.resume_worker();
