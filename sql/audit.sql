-- The audit trail: what is told of each change, by whom, for whom; and that it
-- cannot be rewritten.
\pset format unaligned
\pset tuples_only on
SET ROLE regress_manager;
SELECT leasehold.upsert_agent(test.id('told agent'), 'told', 'codex_local') IS NOT NULL AND leasehold.upsert_issue(test.id('told issue'), 'told') IS NOT NULL
   AND leasehold.upsert_execution_workspace(test.id('told ws'), 'told') IS NOT NULL AS made;
SELECT leasehold.start_run(run_id => test.id('told run'), agent_id => test.id('told agent'), issue_id => test.id('told issue'), execution_workspace_id => test.id('told ws')) IS NOT NULL AS started;

-- 95: a lease's events
BEGIN;
SELECT leasehold.use_company('acme', 'user:alice') = test.id('acme') AS used;
SELECT leasehold.request_lease('plain', run_id => test.id('told run'), lease_id => test.id('told')) = test.id('told') AS requested;
COMMIT;
SELECT test.is('active', (leasehold.wait_for_lease(test.id('told'), '30 seconds')).status, 'active');
SELECT test.is('given back', leasehold.release_lease(test.id('told'), 'delete'), 'releasing');
SELECT test.is('removed', (leasehold.wait_for_lease(test.id('told'), '30 seconds')).status, 'released');
SELECT test.is(e.action, (e.entity_type, e.acting_role, e.asserted_actor, e.agent_id = test.id('told agent'), e.issue_id = test.id('told issue'), e.run_id = test.id('told run'), e.company_id = test.id('acme'))::text, want)
  FROM leasehold.audit_events AS e
  JOIN (VALUES ('environment.lease_requested', '(environment_lease,regress_manager,user:alice,t,t,t,t)'),
               ('environment.lease_acquired', '(environment_lease,leasehold_worker,,t,t,t,t)'),
               ('environment.lease_release_requested', '(environment_lease,regress_manager,,t,t,t,t)'),
               ('environment.lease_released', '(environment_lease,leasehold_worker,,t,t,t,t)')) AS v (action, want) ON v.action = e.action
 WHERE e.entity_id = test.id('told')::text ORDER BY e.occurred_at;
SELECT test.is('what is told of the ' || e.action, (SELECT string_agg(k || '=' || CASE WHEN k LIKE '%Id' THEN (e.details ->> k IS NOT NULL)::text ELSE COALESCE(e.details ->> k, 'null') END, ' ' ORDER BY k COLLATE "C")
                                          FROM jsonb_object_keys(e.details) AS k), want)
  FROM leasehold.audit_events AS e
  JOIN (VALUES ('environment.lease_requested', 'environmentId=true leasePolicy=ephemeral provider=fake'),
               ('environment.lease_acquired', 'environmentId=true executionWorkspaceId=true generation=1 issueId=true leasePolicy=ephemeral provider=fake providerLeaseId=true'),
               ('environment.lease_release_requested', 'disposition=delete environmentId=true from=active provider=fake status=released'),
               ('environment.lease_released', 'cleanupStatus=success environmentId=true executionWorkspaceId=true generation=1 issueId=true leasePolicy=ephemeral provider=fake status=released')) AS v (action, want) ON v.action = e.action
 WHERE e.entity_id = test.id('told')::text ORDER BY e.occurred_at;
SELECT test.is('the timeline is the same', string_agg(t.action, ' ' ORDER BY t.occurred_at), string_agg(e.action, ' ' ORDER BY e.occurred_at))
  FROM leasehold.lease_timeline AS t FULL JOIN leasehold.audit_events AS e USING (occurred_at, action)
 WHERE t.lease_id = test.id('told') AND e.entity_id = test.id('told')::text;
-- with its commands
SELECT leasehold.request_lease('plain', lease_id => test.id('told of commands')) = test.id('told of commands') AS requested;
SELECT test.is('active', (leasehold.wait_for_lease(test.id('told of commands'), '30 seconds')).status, 'active');
SELECT leasehold.start_command(test.id('told of commands'), '{echo,x}', command_id => test.id('told command')) = test.id('told command') AS started;
SELECT test.is('ends', (leasehold.wait_for_command(test.id('told command'), '30 seconds')).outcome, 'exited');
SELECT test.is('a timeline with a command', string_agg(replace(t.action, 'environment.', '') || CASE t.command_id WHEN test.id('told command') THEN '*' ELSE '' END, ' ' ORDER BY t.occurred_at),
               'lease_requested lease_acquired command_requested* command_finished*')
  FROM leasehold.lease_timeline AS t WHERE t.lease_id = test.id('told of commands');
-- 97: without an agent there is none in the events
SELECT leasehold.request_lease('plain', lease_id => test.id('told of nobody')) = test.id('told of nobody') AS requested;
SELECT test.is('active', (leasehold.wait_for_lease(test.id('told of nobody'), '30 seconds')).status, 'active');
SELECT test.is('nobody''s', bool_and(e.agent_id IS NULL AND e.run_id IS NULL AND e.issue_id IS NULL), true) FROM leasehold.audit_events AS e WHERE e.entity_id = test.id('told of nobody')::text;

-- 191: of a change of an environment the fields are told, never values
SELECT leasehold.create_environment('told-env', 'fake', '{"image": "secret-image"}', env_vars => '{"TOKEN": "secret-token"}', metadata => '{"note": "secret-note"}') IS NOT NULL AS made;
SELECT test.is('changed', leasehold.update_environment('told-env', '{"image": "secret-image-2", "delayMs": 0}', metadata => '{"note": "secret-note-2"}', status => 'archived', description => 'secret-description'), 2);
SELECT test.is('changed', leasehold.update_environment('told-env', name => 'New name', env_vars => '{"TOKEN": "secret-token-2"}', status => 'active'), 3);
SELECT test.is('unchanged', leasehold.update_environment('told-env', name => 'New name'), 3);
SELECT leasehold.delete_environment('told-env');
SELECT test.is(e.action, e.details::text, v.want)
  FROM (SELECT a.*, row_number() OVER (ORDER BY a.occurred_at) AS nr FROM leasehold.audit_events AS a WHERE a.entity_type = 'environment'
         AND a.entity_id = (SELECT b.entity_id FROM leasehold.audit_events AS b WHERE b.details ->> 'key' = 'told-env' LIMIT 1)) AS e
  JOIN (VALUES (1, '{"key": "told-env", "status": "active", "provider": "fake"}'),
               (2, '{"status": "archived", "changedFields": ["config", "description", "metadata", "status"], "configTopLevelKeyCount": 2, "metadataTopLevelKeyCount": 1}'),
               (3, '{"name": "New name", "status": "active", "changedFields": ["env_vars", "name", "status"]}'),
               (4, '{"changedFields": []}'),
               (5, '{"key": "told-env", "status": "active", "provider": "fake"}')) AS v (nr, want) ON v.nr = e.nr
 ORDER BY e.nr;
RESET ROLE;
SELECT test.is('no value of a configuration is told anywhere', count(*), 0) FROM leasehold.audit_events AS e WHERE e::text LIKE '%secret-%';

-- Whom the application acts for: only who may say so, and only about that company.
SET ROLE regress_user;
SELECT test.refused('without the right to', $$SELECT leasehold.use_company('acme', 'user:mallory')$$, 'actor_forbidden');
RESET ROLE;
SELECT leasehold.grant_company('beta', 'regress_manager', 'user');
SET ROLE regress_manager;
BEGIN;
SELECT leasehold.use_company('acme', 'user:alice') = test.id('acme') AS used;
SELECT leasehold.upsert_agent(test.id('for alice')) IS NOT NULL AS made;
SELECT leasehold.upsert_agent(test.id('for alice'), company => 'beta') IS NOT NULL AS made;
COMMIT;
RESET ROLE;
SELECT test.is('said of acme, not of beta', string_agg(c.key || ' ' || COALESCE(e.asserted_actor, 'nobody'), ', ' ORDER BY c.key), 'acme user:alice, beta nobody')
  FROM leasehold.audit_events AS e JOIN leasehold.companies AS c ON c.id = e.company_id WHERE e.entity_id = test.id('for alice')::text;
-- nor by a role that the session changed to
BEGIN;
SET LOCAL ROLE regress_manager;
SELECT leasehold.use_company('acme', 'user:alice') = test.id('acme') AS used;
SET LOCAL ROLE regress_user;
SELECT leasehold.upsert_agent(test.id('not for alice')) IS NOT NULL AS made;
RESET ROLE;
COMMIT;
SELECT test.is('not by who may not', (e.acting_role, e.asserted_actor)::text, '(regress_user,)') FROM leasehold.audit_events AS e WHERE e.entity_id = test.id('not for alice')::text;
-- nor of the installation
SET ROLE regress_manager;
SELECT test.refused('too long', $$SELECT leasehold.use_company('acme', repeat('x', 201))$$, 'argument_too_large');
SELECT test.refused('empty', $$SELECT leasehold.use_company('acme', '')$$, 'argument_invalid');
SELECT test.refused('with control characters', $$SELECT leasehold.use_company('acme', E'a\x01b')$$, 'argument_invalid');
RESET ROLE;
SELECT leasehold.revoke_company('beta', 'regress_manager');

-- Nobody rewrites it, its owner and superusers included.
SELECT test.refused('changed', $$UPDATE leasehold.audit_events SET action = 'nothing'$$, 'append_only');
SELECT test.refused('removed', $$DELETE FROM leasehold.audit_events$$, 'append_only');
SELECT test.refused('emptied', $$TRUNCATE leasehold.audit_events$$, 'append_only');
CREATE TEMP TABLE partitions AS SELECT DISTINCT e.tableoid::regclass AS name FROM leasehold.audit_events AS e LIMIT 1;
SELECT test.refused('one partition changed', format('UPDATE %s SET action = ''nothing''', p.name), 'append_only'),
       test.refused('one partition emptied', format('TRUNCATE %s', p.name), 'append_only') FROM partitions AS p;
SET ROLE leasehold_owner;
SELECT test.refused('by the owner', $$UPDATE leasehold.audit_events_default SET action = 'nothing'$$, 'append_only') WHERE EXISTS (SELECT FROM leasehold.audit_events_default)
 UNION ALL SELECT 'ok - by the owner: append_only' WHERE NOT EXISTS (SELECT FROM leasehold.audit_events_default);
RESET ROLE;
SELECT test.fails('by a member: ' || r, format('SELECT test.as_role(%L, %L)', r, s), '42501')
  FROM unnest(ARRAY['regress_admin', 'regress_manager', 'regress_auditor']) AS r,
       unnest(ARRAY['UPDATE leasehold.audit_events SET action = ''nothing''', 'DELETE FROM leasehold.audit_events', 'TRUNCATE leasehold.audit_events',
                    'INSERT INTO leasehold.audit_events (company_id, action, entity_type, entity_id) VALUES (test.id(''acme''), ''a'', ''b'', ''c'')']) AS s;

-- Events are complete and comparable: in this epoch, with the transaction that made them.
SELECT test.is('of the first epoch', (min(e.epoch), max(e.epoch))::text, '(1,1)') FROM leasehold.audit_events AS e WHERE e.company_id <> leasehold_internal.no_company();
SELECT test.is('ids and times agree', count(*), 0) FROM (SELECT e.occurred_at < lag(e.occurred_at) OVER (ORDER BY e.id) - interval '1 second' AS back FROM leasehold.audit_events AS e) AS x WHERE x.back;
-- partitions are ahead of time
SELECT test.is('five weeks have one', count(*), 5) FROM pg_inherits AS h JOIN pg_class AS c ON c.oid = h.inhrelid WHERE h.inhparent = 'leasehold.audit_events'::regclass AND c.relname ~ '^audit_events_[0-9]{8}$';
SELECT test.is('none is a member of the extension', count(*), 0)
  FROM pg_inherits AS h JOIN pg_depend AS d ON d.classid = 'pg_class'::regclass AND d.objid = h.inhrelid AND d.deptype = 'e'
 WHERE h.inhparent = 'leasehold.audit_events'::regclass AND h.inhrelid <> 'leasehold.audit_events_default'::regclass;
SELECT test.is('the default one is empty', count(*), 0) FROM leasehold.audit_events_default;
