-- What a plugin is told, and what its answers mean for reuse.  No worker and no
-- plugin are needed for that: this script claims the calls and answers them.
\pset format unaligned
\pset tuples_only on
SET client_min_messages = error;
SELECT test.quiet();
SELECT leasehold.pause_worker('wire.sql');
SET ROLE regress_admin;
SELECT leasehold.register_plugin('{"id": "w", "apiVersion": 1, "version": "1", "displayName": "W", "capabilities": ["environment.drivers.register"],
    "environmentDrivers": [{"driverKey": "w-box", "kind": "sandbox_provider", "displayName": "Box", "configSchema": {}, "supportsReusableLeases": true},
                           {"driverKey": "w-host", "displayName": "Host", "configSchema": {}, "supportsReusableLeases": true}]}',
    '{"type": "http", "url": "https://plugin.invalid/rpc"}') AS registered;
RESET ROLE;

-- initialize: who we are; it has 15 s
BEGIN;
SELECT test.is('initialize', (c.operation, c.method, c.timeout_ms, c.verdict)::text, '(initialize,initialize,15000,)'),
       test.is('with these members', (SELECT string_agg(k, ' ' ORDER BY k) FROM jsonb_object_keys(c.params::jsonb) AS k), 'apiVersion config instanceInfo manifest')
  FROM leasehold_internal.claim_calls(0, ARRAY[leasehold_internal.no_company()], ARRAY[leasehold_internal.plugin_subject('w')], ARRAY['op'], 30000) AS c;
ROLLBACK;
SELECT test.is('or less, if others have less', t.rpc_ms, 1000) FROM leasehold_internal.call_timeouts('initialize', NULL, 1000) AS t;
-- let it be ready
DELETE FROM leasehold_internal.calls WHERE operation = 'initialize';
UPDATE leasehold.plugins SET status = 'ready' WHERE key = 'w';

-- Claims a lease's call and returns its parameters, with method and time; answers it.
CREATE FUNCTION pg_temp.sent(name text) RETURNS jsonb LANGUAGE sql AS $$
    SELECT c.params::jsonb || jsonb_build_object('method', c.method, 'ms', c.timeout_ms)
      FROM leasehold_internal.claim_calls(0, ARRAY[test.id('acme')], ARRAY[test.id(name)], ARRAY['op'], 30000) AS c $$;
CREATE FUNCTION pg_temp.answer(name text, resource text DEFAULT NULL, metadata text DEFAULT NULL) RETURNS text LANGUAGE sql AS $$
    SELECT c.applied FROM leasehold.leases AS l, leasehold_internal.complete_calls(0, ARRAY[l.company_id], ARRAY[l.id], ARRAY[l.generation], ARRAY['ok'], ARRAY[resource], ARRAY[metadata],
        ARRAY[NULL::timestamptz], ARRAY[NULL::text], ARRAY[NULL::text], ARRAY[NULL::bigint], 20, 100, 3, 3) AS c WHERE l.id = test.id(name) $$;

SET ROLE regress_manager;
SELECT leasehold.create_environment('w-timed', 'w-box', '{"timeoutMs": 1234, "bridgeRequestTimeoutMs": 40000, "template": "  base  "}') IS NOT NULL
   AND leasehold.create_environment('w-short', 'w-box', '{"timeoutMs": 1234}') IS NOT NULL
   AND leasehold.create_environment('w-plain', 'w-box') IS NOT NULL AND leasehold.create_environment('w-host', 'w-host', '{"timeoutMs": 1234}') IS NOT NULL
   AND leasehold.create_environment('w-reused', 'w-box', '{"reuseLease": true}') IS NOT NULL AS made;
-- 23, 74: other members of a configuration are the provider's business; ours are refused
SELECT test.refused('74: ' || k, format('SELECT leasehold.create_environment(''w-bad'', ''w-box'', %L)', jsonb_build_object(k, 'x')), 'config_invalid'),
       test.refused('74: nor later: ' || k, format('SELECT leasehold.update_environment(''w-plain'', %L)', jsonb_build_object(k, 'x')), 'config_invalid')
  FROM unnest(ARRAY['provider', 'driver', 'executionWorkspaceMode', 'pluginId', 'pluginKey', 'providerMetadata', 'sandboxProviderPlugin', 'shellCommand']) AS k;
-- 42-44: another provider starts with an empty configuration, the same one with what was there
SELECT leasehold.create_environment('w-switched', 'w-box', '{"a": 1, "b": 1}') IS NOT NULL AS made;
SELECT test.is('44: of the same one', leasehold.update_environment('w-switched', '{"b": 2}'), 2);
SELECT test.is('44: merged', e.config, '{"a": 1, "b": 2}'::jsonb) FROM leasehold.environments AS e WHERE e.key = 'w-switched';
SELECT test.is('42: another provider', leasehold.update_environment('w-switched', provider => 'w-host'), 3);
SELECT test.is('42: begins anew', e.config, '{}'::jsonb) FROM leasehold.environments AS e WHERE e.key = 'w-switched';
SELECT test.is('and back, with a configuration', leasehold.update_environment('w-switched', '{"c": 3}', provider => 'w-box'), 4);
SELECT test.is('that is all it has', e.config, '{"c": 3}'::jsonb) FROM leasehold.environments AS e WHERE e.key = 'w-switched';
-- a null takes a member out, but only a whole one
SELECT test.is('without a member', leasehold.update_environment('w-switched', '{"c": null, "d": {"x": null}}'), 5);
SELECT test.is('that is left', e.config, '{"d": {"x": null}}'::jsonb) FROM leasehold.environments AS e WHERE e.key = 'w-switched';
SELECT test.is('one that is not there', leasehold.update_environment('w-switched', '{"c": null}'), 5);

SET ROLE regress_user;
SELECT leasehold.upsert_agent(test.id('w agent'), 'w', 'codex_local') IS NOT NULL AND leasehold.upsert_agent(test.id('w no adapter')) IS NOT NULL
   AND leasehold.upsert_issue(test.id('w issue')) IS NOT NULL AND leasehold.upsert_execution_workspace(test.id('w ws'), mode => 'isolated') IS NOT NULL AS made;
SELECT leasehold.request_lease('w-timed', lease_id => test.id('w timed')) IS NOT NULL AND leasehold.request_lease('w-short', lease_id => test.id('w short')) IS NOT NULL
   AND leasehold.request_lease('w-plain', agent_id => test.id('w agent'), lease_id => test.id('w agents')) IS NOT NULL
   AND leasehold.request_lease('w-host', lease_id => test.id('w host')) IS NOT NULL
   AND leasehold.request_lease('w-host', agent_id => test.id('w agent'), issue_id => test.id('w issue'), lease_id => test.id('w hosts agent')) IS NOT NULL AS requested;
RESET ROLE;
CREATE TEMP TABLE sent AS SELECT n.name, pg_temp.sent(n.name) AS p FROM unnest(ARRAY['w timed', 'w short', 'w agents', 'w host', 'w hosts agent']) AS n (name);
SELECT test.is(v.label, (SELECT s.p ->> v.member FROM sent AS s WHERE s.name = v.name), v.want)
  FROM (VALUES ('77: the longer time', 'w timed', 'ms', '70000'), ('73: the time', 'w short', 'ms', '31234'), ('78: no time', 'w agents', 'ms', '30000'), ('an environment driver''s', 'w host', 'ms', '30000'),
               ('22: the configuration as it is', 'w timed', 'config', '{"template": "  base  ", "timeoutMs": 1234, "bridgeRequestTimeoutMs": 40000}'),
               ('92: the agent', 'w agents', 'agentId', test.id('w agent')::text), ('90: the agent, of a host', 'w hosts agent', 'agentId', test.id('w agent')::text),
               ('the issue', 'w hosts agent', 'issueId', test.id('w issue')::text), ('the adapter', 'w agents', 'adapterType', 'codex_local'),
               ('the method', 'w host', 'method', 'environmentAcquireLease'), ('the driver', 'w host', 'driverKey', 'w-host')) AS v (label, name, member, want);
SELECT test.is('91, 96, 97: what is not known is absent, but for the issue: ' || s.name, (SELECT string_agg(k, ' ' ORDER BY k COLLATE "C") FROM jsonb_object_keys(s.p - 'ms' - 'method') AS k), v.want)
  FROM sent AS s JOIN (VALUES ('w timed', 'companyId config driverKey environmentId issueId leasehold runId'), ('w host', 'companyId config driverKey environmentId issueId leasehold runId'),
                              ('w agents', 'adapterType agentId companyId config driverKey environmentId issueId leasehold runId'),
                              ('w hosts agent', 'adapterType agentId companyId config driverKey environmentId issueId leasehold runId')) AS v (name, want) USING (name) ORDER BY s.name;
SELECT test.is('null is the issue, then', s.p -> 'issueId', 'null'::jsonb) FROM sent AS s WHERE s.name = 'w timed';
SELECT test.is('answered', pg_temp.answer(s.name, 'w://' || s.name), 'applied') FROM sent AS s;
SET ROLE regress_user;
SELECT test.is('given back', leasehold.release_lease(test.id('w short')), 'releasing');
RESET ROLE;
SELECT test.is('73: the release has the time, too', p ->> 'ms', '31234'), test.is('and the resource', p ->> 'providerLeaseId', 'w://w short') FROM pg_temp.sent('w short') AS p;
SELECT test.is('answered', pg_temp.answer('w short'), 'applied');

-- 101, 105: as long as the plugin is not ready a request waits, and is not sent; at its end it says why.
UPDATE leasehold.plugins SET status = 'error' WHERE key = 'w';
SET ROLE regress_user;
SELECT leasehold.request_lease('w-plain', lease_id => test.id('w unready')) IS NOT NULL AS requested;
RESET ROLE;
SELECT test.is('101: nothing is sent', pg_temp.sent('w unready'), NULL);
SELECT test.is('101: it says what it waits for', (l.status, l.waiting_for)::text, '(acquiring,plugin)') FROM leasehold.leases AS l WHERE l.id = test.id('w unready');
UPDATE leasehold.leases SET acquire_by = now() - interval '1 second' WHERE id = test.id('w unready');
UPDATE leasehold_internal.calls SET due_at = now() WHERE subject_id = test.id('w unready');
BEGIN;
SELECT test.is('101: too late', (c.verdict, c.code, c.message, c.params)::text, '(failed,acquire_timeout,"no resource was got in time: plugin ""w"" is not ready",)') FROM leasehold_internal.claim_calls(0, ARRAY[test.id('acme')], ARRAY[test.id('w unready')], ARRAY['op'], 30000) AS c;
ROLLBACK;
UPDATE leasehold.leases SET acquire_by = now() + interval '1 minute' WHERE id = test.id('w unready');
UPDATE leasehold.plugins SET status = 'disabled' WHERE key = 'w';
BEGIN;
SELECT test.is('105: disabled meanwhile', (c.verdict, c.code, c.message, c.params)::text, '(failed,provider_unusable,"the provider''s plugin is disabled or gone",)') FROM leasehold_internal.claim_calls(0, ARRAY[test.id('acme')], ARRAY[test.id('w unready')], ARRAY['op'], 30000) AS c;
ROLLBACK;
UPDATE leasehold.plugins SET status = 'ready' WHERE key = 'w';
SELECT test.is('100: ready: sent, once', pg_temp.sent('w unready') ->> 'method', 'environmentAcquireLease');
SELECT test.is('answered', pg_temp.answer('w unready', 'w://w unready'), 'applied');

-- 117, 118: who gets what a run of an agent has left.  One run after the other:
-- of this adapter, when the provider says that; then of that adapter.
CREATE FUNCTION pg_temp.two_runs(name text, adapter text, said text, next_adapter text, resource text, OUT first text, OUT next text) LANGUAGE plpgsql AS $$
DECLARE
    v_agent uuid := test.id(name || ' agent');
BEGIN
    PERFORM leasehold.upsert_agent(v_agent, adapter_type => adapter, company => 'acme');
    PERFORM leasehold.start_run(run_id => test.id(name), agent_id => v_agent, execution_workspace_id => test.id('w ws'), company => 'acme');
    PERFORM leasehold.request_lease('w-reused', run_id => test.id(name), lease_id => test.id(name), company => 'acme');
    PERFORM pg_temp.sent(name);
    PERFORM pg_temp.answer(name, resource, jsonb_build_object('adapterType', said)::text);
    PERFORM leasehold.finish_run(test.id(name), company => 'acme');
    PERFORM pg_temp.sent(name);
    PERFORM pg_temp.answer(name);
    SELECT (l.status, l.policy, l.adapter_type)::text INTO first FROM leasehold.leases AS l WHERE l.id = test.id(name);
    UPDATE leasehold_internal.agents SET adapter_type = next_adapter WHERE id = v_agent;
    PERFORM leasehold.start_run(run_id => test.id(name || ' 2'), agent_id => v_agent, execution_workspace_id => test.id('w ws'), company => 'acme');
    next := CASE leasehold.request_lease('w-reused', run_id => test.id(name || ' 2'), lease_id => test.id(name || ' 2'), company => 'acme')
            WHEN test.id(name) THEN 'resumed' ELSE 'fresh' END;
END
$$;
SELECT test.is(v.label || ': the first', r.first, v.first), test.is(v.label || ': the next', r.next, v.next)
  FROM (VALUES ('X and X', 'X', NULL, 'X', '(retained,reuse_by_environment,X)', 'resumed'), ('117: X and Y', 'X', NULL, 'Y', '(retained,reuse_by_environment,X)', 'fresh'),
               ('117: X and none', 'X', NULL, NULL, '(retained,reuse_by_environment,X)', 'fresh'),
               ('117: none and X', NULL, NULL, 'X', '(released,ephemeral,)', 'fresh'), ('117: none and none', NULL, NULL, NULL, '(released,ephemeral,)', 'fresh'),
               ('118: the provider says X, and X', NULL, 'X', 'X', '(retained,reuse_by_environment,X)', 'resumed'), ('117: the provider says X, and none', NULL, 'X', NULL, '(retained,reuse_by_environment,X)', 'fresh'),
               ('what the run says goes before what the provider says', 'X', 'Y', 'X', '(retained,reuse_by_environment,X)', 'resumed')) AS v (label, adapter, said, next_adapter, first, next),
       LATERAL pg_temp.two_runs('w ' || v.label, v.adapter, v.said, v.next_adapter, 'w://w ' || v.label) AS r;
-- 82: what has no id at the provider cannot be resumed, so it is not parked
SELECT test.is('82: the first', r.first, '(released,ephemeral,X)'), test.is('82: the next', r.next, 'fresh') FROM pg_temp.two_runs('w without an id', 'X', NULL, 'X', NULL) AS r;
-- 93: the resume names the agent
SELECT test.is('the method', p ->> 'method', 'environmentResumeLease'), test.is('93: the agent', p ->> 'agentId', test.id('w X and X agent')::text),
       test.is('the resource', p ->> 'providerLeaseId', 'w://w X and X'), test.is('the generation', p #>> '{leasehold,generation}', '2'),
       test.is('with these members', (SELECT string_agg(k, ' ' ORDER BY k COLLATE "C") FROM jsonb_object_keys(p - 'ms' - 'method') AS k), 'agentId companyId config driverKey environmentId issueId leaseMetadata leasehold providerLeaseId')
  FROM pg_temp.sent('w X and X') AS p;
SELECT test.is('answered', pg_temp.answer('w X and X', 'w://w X and X'), 'applied');
SELECT test.is('active again', test.lease('w X and X'), 'active');

-- All of it ends, as if the plugin said yes to all.
SELECT leasehold.destroy_lease(l.id, company => 'acme') IS NOT NULL AS destroyed FROM leasehold.leases AS l WHERE l.provider LIKE 'w-%' AND leasehold_internal.may_have_resource(l.status) AND l.status NOT IN ('releasing');
SELECT count(c.*) > 0 AS claimed FROM leasehold.leases AS l, leasehold_internal.claim_calls(0, ARRAY[l.company_id], ARRAY[l.id], ARRAY['op'], 30000) AS c WHERE l.provider LIKE 'w-%' AND l.status = 'releasing';
SELECT test.is('over', string_agg(DISTINCT c.applied, ','), 'applied')
  FROM leasehold.leases AS l, leasehold_internal.complete_calls(0, ARRAY[l.company_id], ARRAY[l.id], ARRAY[l.generation], ARRAY['ok'], ARRAY[NULL], ARRAY[NULL], ARRAY[NULL::timestamptz], ARRAY[NULL], ARRAY[NULL], ARRAY[NULL::bigint], 20, 100, 3, 3) AS c
 WHERE l.provider LIKE 'w-%' AND l.status = 'releasing';
SELECT leasehold.finish_run(r.id, company => 'acme') FROM leasehold.runs AS r WHERE r.execution_workspace_id = test.id('w ws') AND r.status = 'running';
SET ROLE regress_manager;
SELECT leasehold.archive_environment(e.key) FROM leasehold.environments AS e WHERE e.provider LIKE 'w-%';
SET ROLE regress_admin;
SELECT leasehold.unregister_plugin('w');
RESET ROLE;
SELECT test.is('nothing is left', count(*), 0) FROM leasehold_internal.calls AS c WHERE c.provider LIKE 'w-%';
SELECT leasehold.resume_worker();
