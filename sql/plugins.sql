-- Plugins: what is registered, what is refused, who may use what.  Nobody
-- answers at their addresses here; what plugins do is tested in test/t.
\pset format unaligned
\pset tuples_only on
SET client_min_messages = error;
SELECT test.quiet();
SELECT leasehold.pause_worker('plugins.sql');
SET ROLE regress_admin;
CREATE TEMP TABLE manifests (name text, manifest jsonb);
INSERT INTO manifests VALUES ('good', '{"id": "p1", "apiVersion": 1, "version": "1.2.3", "displayName": "Plugin", "capabilities": ["environment.drivers.register", "other"],
    "environmentDrivers": [{"driverKey": "d1", "kind": "sandbox_provider", "displayName": "One", "description": "first", "configSchema": {"type": "object"}, "supportsReusableLeases": true},
                           {"driverKey": "d2", "displayName": "Two", "configSchema": {}}]}');
SELECT test.is('registered', leasehold.register_plugin(m.manifest, '{"type": "http", "url": "https://plugin.invalid/rpc", "token_file": "p1.token"}', '{10.1.0.0/16, fd00::/8}'), 'p1') FROM manifests AS m;
SELECT test.is('as stored', (p.key, p.display_name, p.version, p.status, p.transport, p.allow_addresses, p.last_error, p.supported_methods)::text,
    '(p1,Plugin,1.2.3,installed,"{""url"": ""https://plugin.invalid/rpc"", ""type"": ""http"", ""token_file"": ""p1.token""}","{10.1.0.0/16,fd00::/8}",,{})') FROM leasehold.plugins AS p WHERE p.key = 'p1';
SELECT test.is('with its providers', string_agg((p.key, p.plugin_key, p.kind, p.display_name, p.description, p.config_schema, p.supports_reusable_leases)::text, ' ' ORDER BY p.key),
    '(d1,p1,sandbox_provider,One,first,"{""type"": ""object""}",t) (d2,p1,environment_driver,Two,,{},f)') FROM leasehold.providers AS p WHERE p.plugin_key = 'p1';
SELECT test.is('the built-in one is nobody''s', (p.plugin_key, p.kind)::text, '(,sandbox_provider)') FROM leasehold.providers AS p WHERE p.key = 'fake';
RESET ROLE;
SELECT test.is('it is to be spoken to', (c.operation, c.state, c.payload)::text, '(initialize,queued,"{""plugin"": ""p1""}")') FROM leasehold_internal.calls AS c WHERE c.provider = 'plugin:p1';
SET ROLE regress_admin;
SELECT test.refused('the same again', format('SELECT leasehold.register_plugin(%L, %L)', m.manifest, '{"type": "http", "url": "https://plugin.invalid/rpc"}'), 'already_exists') FROM manifests AS m;
SELECT test.refused('a provider of another plugin', format('SELECT leasehold.register_plugin(%L, %L)', m.manifest || '{"id": "p2"}', '{"type": "http", "url": "https://plugin.invalid/rpc"}'), 'already_exists') FROM manifests AS m;
SELECT test.refused('the built-in one', format('SELECT leasehold.register_plugin(%L, %L)', jsonb_set(m.manifest || '{"id": "p2"}', '{environmentDrivers}', '[{"driverKey": "fake", "displayName": "x", "configSchema": {}}]'), '{"type": "http", "url": "https://plugin.invalid/rpc"}'), 'already_exists') FROM manifests AS m;

-- 195: manifests that the plugin contract does not allow
SELECT test.refused(v.label, format('SELECT leasehold.register_plugin(%L, %L)', m.manifest || '{"id": "p3"}' || v.patch::jsonb, '{"type": "http", "url": "https://plugin.invalid/rpc"}'), 'manifest_invalid')
  FROM manifests AS m, (VALUES
    ('no id', '{"id": null}'), ('an id that is no key', '{"id": "P 3"}'), ('an id that is a number', '{"id": 3}'), ('another contract', '{"apiVersion": 2}'), ('as a text', '{"apiVersion": "1"}'), ('no version', '{"version": ""}'),
    ('a version that is a number', '{"version": 1}'), ('no name', '{"displayName": ""}'), ('too long a name', jsonb_build_object('displayName', repeat('x', 101))::text), ('no drivers', '{"environmentDrivers": []}'),
    ('drivers that are no list', '{"environmentDrivers": {}}'), ('a driver that is none', '{"environmentDrivers": [5]}'), ('a driver without a key', '{"environmentDrivers": [{"displayName": "x", "configSchema": {}}]}'),
    ('a driver''s key that is a number', '{"environmentDrivers": [{"driverKey": 5, "displayName": "x", "configSchema": {}}]}'), ('a kind that is a number', '{"environmentDrivers": [{"driverKey": "a", "kind": 5, "displayName": "x", "configSchema": {}}]}'),
    ('a description that is a number', '{"environmentDrivers": [{"driverKey": "a", "displayName": "x", "configSchema": {}, "description": 5}]}'), ('a driver''s key that is none', '{"environmentDrivers": [{"driverKey": "A", "displayName": "x", "configSchema": {}}]}'), ('an unknown kind', '{"environmentDrivers": [{"driverKey": "a", "kind": "vault", "displayName": "x", "configSchema": {}}]}'),
    ('a driver without a name', '{"environmentDrivers": [{"driverKey": "a", "configSchema": {}}]}'), ('too long a description', jsonb_build_object('environmentDrivers', jsonb_build_array(jsonb_build_object('driverKey', 'a', 'displayName', 'x', 'configSchema', '{}'::jsonb, 'description', repeat('x', 501))))::text),
    ('no schema', '{"environmentDrivers": [{"driverKey": "a", "displayName": "x"}]}'), ('reuse that is neither yes nor no', '{"environmentDrivers": [{"driverKey": "a", "displayName": "x", "configSchema": {}, "supportsReusableLeases": "yes"}]}'),
    ('the same driver twice', '{"environmentDrivers": [{"driverKey": "a", "displayName": "x", "configSchema": {}}, {"driverKey": "a", "displayName": "y", "configSchema": {}}]}'),
    ('without the capability', '{"capabilities": ["other"]}'), ('capabilities that are no list', '{"capabilities": "environment.drivers.register"}')) AS v (label, patch);
SELECT test.refused('no manifest at all', $$SELECT leasehold.register_plugin('{}', '{"type": "http", "url": "https://plugin.invalid/rpc"}')$$, 'manifest_invalid');
SELECT test.refused('no object', $$SELECT leasehold.register_plugin('[]', '{"type": "http", "url": "https://plugin.invalid/rpc"}')$$, 'argument_invalid');
SELECT test.is('the message says what', e.message, 'the manifest is not valid: Duplicate environment driver keys')
  FROM manifests AS m, test.error(format('SELECT leasehold.register_plugin(%L, %L)', m.manifest || '{"id": "p3", "environmentDrivers": [{"driverKey": "a", "displayName": "x", "configSchema": {}}, {"driverKey": "a", "displayName": "y", "configSchema": {}}]}', '{"type": "http", "url": "https://plugin.invalid/rpc"}')) AS e;
-- transports
SELECT test.refused(v.label, format('SELECT leasehold.register_plugin(%L, %L)', jsonb_set(m.manifest || '{"id": "p3"}', '{environmentDrivers}', '[{"driverKey": "d3", "displayName": "x", "configSchema": {}}]'), v.transport), 'transport_invalid')
  FROM manifests AS m, (VALUES ('nothing', '{}'), ('another type', '{"type": "pigeon", "url": "https://plugin.invalid/"}'), ('no url', '{"type": "http"}'), ('a url that is none', '{"type": "http", "url": 5}'), ('an empty one', '{"type": "http", "url": ""}'),
    ('another scheme', '{"type": "http", "url": "file:///etc/passwd"}'), ('another scheme', '{"type": "http", "url": "gopher://plugin.invalid/"}'),
    ('with a password in it', '{"type": "http", "url": "https://user:password@plugin.invalid/rpc"}'), ('no host', '{"type": "http", "url": "https:///rpc"}'), ('an unknown member', '{"type": "http", "url": "https://plugin.invalid/rpc", "proxy": "x"}'),
    ('a token file elsewhere', '{"type": "http", "url": "https://plugin.invalid/rpc", "token_file": "../../etc/passwd"}'), ('an absolute one', '{"type": "http", "url": "https://plugin.invalid/rpc", "token_file": "/etc/passwd"}'),
    ('a hidden one', '{"type": "http", "url": "https://plugin.invalid/rpc", "token_file": ".netrc"}'), ('one that is no name', '{"type": "http", "url": "https://plugin.invalid/rpc", "token_file": 5}')) AS v (label, transport);
SELECT test.refused(v.label, format('SELECT leasehold.register_plugin(%L, %L, %L)', jsonb_set(m.manifest || '{"id": "p3"}', '{environmentDrivers}', '[{"driverKey": "d3", "displayName": "x", "configSchema": {}}]'), '{"type": "http", "url": "https://plugin.invalid/rpc"}', v.networks), 'argument_invalid')
  FROM manifests AS m, (VALUES ('no network', '{everywhere}'), ('bits beyond the mask', '{10.0.0.1/8}'), ('a null', '{NULL}')) AS v (label, networks);
SELECT test.is('nothing of all that is there', (SELECT count(*) FROM leasehold.plugins WHERE key <> 'p1') + (SELECT count(*) FROM leasehold.providers WHERE key NOT IN ('d1', 'd2', 'fake', 'bubblewrap')), 0);

-- Use: an environment of each; what cannot be parked.
SET ROLE regress_manager;
SELECT leasehold.create_environment('of-d1', 'd1', '{"reuseLease": true, "anything": {"goes": 1}}') IS NOT NULL AND leasehold.create_environment('of-d2', 'd2') IS NOT NULL AS made;
SELECT test.refused('26: no time', $$SELECT leasehold.create_environment('of-d3', 'd1', '{"timeoutMs": 0}')$$, 'config_invalid');
SELECT test.refused('26: too much time', $$SELECT leasehold.create_environment('of-d3', 'd1', '{"timeoutMs": 86400001}')$$, 'config_invalid');
SELECT test.refused('119: no reuse where nothing can be parked', $$SELECT leasehold.request_lease('of-d2', policy => 'retain_on_failure')$$, 'provider_unusable');
SELECT leasehold.request_lease('of-d2', lease_id => test.id('of d2')) IS NOT NULL AND leasehold.request_lease('of-d1', lease_id => test.id('of d1')) IS NOT NULL AS requested;
SELECT test.refused('nor kept', $$SELECT leasehold.release_lease(test.id('of d2'), 'keep')$$, 'provider_unusable');
SELECT test.is('with the plugin''s version', (l.provider, l.provider_version, l.policy)::text, '(d1,1.2.3,ephemeral)') FROM leasehold.leases AS l WHERE l.id = test.id('of d1');
-- changed: what is given
SET ROLE regress_admin;
SELECT leasehold.update_plugin('p1', transport => '{"type": "http", "url": "https://other.invalid/rpc"}', allow_addresses => '{}');
SELECT test.is('changed', (p.transport ->> 'url', p.allow_addresses, p.version, p.status)::text, '(https://other.invalid/rpc,{},1.2.3,installed)') FROM leasehold.plugins AS p WHERE p.key = 'p1';
SELECT leasehold.update_plugin('p1', m.manifest || '{"version": "1.3.0"}') FROM manifests AS m;
SELECT test.is('changed', (p.transport ->> 'url', p.version)::text, '(https://other.invalid/rpc,1.3.0)') FROM leasehold.plugins AS p WHERE p.key = 'p1';
SELECT test.refused('not into another plugin', format('SELECT leasehold.update_plugin(''p1'', %L)', m.manifest || '{"id": "p2"}'), 'manifest_invalid') FROM manifests AS m;
SELECT test.refused('not without a provider that is in use', format('SELECT leasehold.update_plugin(''p1'', %L)', m.manifest #- '{environmentDrivers,1}'), 'still_in_use') FROM manifests AS m;
SELECT test.refused('not what is not there', $$SELECT leasehold.update_plugin('p9')$$, 'plugin_not_found');
-- nor while something may be there that only this provider can remove
SET ROLE regress_manager;
SELECT leasehold.archive_environment('of-d2');
SET ROLE regress_admin;
SELECT test.refused('nor while it has leases', format('SELECT leasehold.update_plugin(''p1'', %L)', m.manifest #- '{environmentDrivers,1}'), 'still_in_use') FROM manifests AS m;
SET ROLE regress_manager;
SELECT leasehold.update_environment('of-d2', status => 'active');
SET ROLE regress_admin;
-- 105: disabled: nothing new, what is there can end
SELECT leasehold.disable_plugin('p1');
SET ROLE regress_manager;
SELECT test.refused('no lease', $$SELECT leasehold.request_lease('of-d1')$$, 'provider_unusable');
SELECT test.is('the error tells why', (e.message, e.detail)::text, '("provider ""d1"" cannot be used: its plugin is disabled","{""code"": ""provider_unusable"",""pluginStatus"": ""disabled""}")') FROM test.error($$SELECT leasehold.request_lease('of-d1')$$) AS e;
SELECT test.refused('no environment', $$SELECT leasehold.create_environment('of-d3', 'd1')$$, 'provider_unusable');
SELECT test.is('given back', leasehold.release_lease(test.id(l)), 'released') FROM unnest(ARRAY['of d1', 'of d2']) AS l;
SET ROLE regress_admin;
SELECT test.refused('nor is it enabled by the way', $$SELECT leasehold.restart_plugin('p1')$$, 'wrong_state');
SELECT test.is('the hint says how', e.hint, 'enable_plugin() takes it into use again.') FROM test.error($$SELECT leasehold.restart_plugin('p1')$$) AS e;
SELECT leasehold.enable_plugin('p1');
SELECT test.is('enabled', p.status::text, 'installed') FROM leasehold.plugins AS p WHERE p.key = 'p1';
SELECT leasehold.restart_plugin('p1');
SELECT test.refused('what is not there: ' || f, format('SELECT leasehold.%I(''p9'')', f), 'plugin_not_found') FROM unnest(ARRAY['enable_plugin', 'disable_plugin', 'restart_plugin', 'unregister_plugin']) AS f;
-- removed when nothing uses it
SELECT test.refused('still in use', $$SELECT leasehold.unregister_plugin('p1')$$, 'still_in_use');
SELECT test.is('by what', e.detail, '{"code": "still_in_use","leases": 0, "strays": 0, "environments": 2}') FROM test.error($$SELECT leasehold.unregister_plugin('p1')$$) AS e;
SET ROLE regress_manager;
SELECT leasehold.archive_environment(k) FROM unnest(ARRAY['of-d1', 'of-d2']) AS k;
-- a resource of no lease that is to be removed needs it, too
RESET ROLE;
BEGIN;
INSERT INTO leasehold_internal.provider_resources (provider, provider_lease_id, company_id, stray_id, environment_id, config_version, generation, reason)
SELECT 'd1', 'box', e.company_id, test.id('stray of d1'), e.id, 1, 1, 'no_lease' FROM leasehold_internal.environments AS e WHERE e.key = 'of-d1';
SELECT test.refused('still in use', $$SELECT leasehold.unregister_plugin('p1')$$, 'still_in_use');
SELECT test.refused('nor may the provider go', format('SELECT leasehold.update_plugin(''p1'', %L)', jsonb_set(m.manifest, '{environmentDrivers}', '[{"driverKey": "d2", "displayName": "x", "configSchema": {}}]')), 'still_in_use') FROM manifests AS m;
ROLLBACK;
SET ROLE regress_admin;
SELECT leasehold.unregister_plugin('p1');
SELECT test.is('gone, with its providers', (SELECT count(*) FROM leasehold.plugins) + (SELECT count(*) FROM leasehold.providers WHERE plugin_key IS NOT NULL), 0);
SET ROLE regress_manager;
SELECT test.refused('104: what is left cannot be used', $$SELECT leasehold.update_environment('of-d1', '{"a": 1}', status => 'active')$$, 'provider_not_found');
SET ROLE regress_admin;
SELECT test.is('told', string_agg(e.action || ' ' || e.details::text, ', ' ORDER BY e.occurred_at),
    'plugin.registered {"version": "1.2.3"}, plugin.updated {"manifest": false, "transport": true, "allowAddresses": true}, plugin.updated {"manifest": true, "transport": false, "allowAddresses": false}, plugin.disabled {}, plugin.enabled {}, plugin.restarted {}, plugin.unregistered {}')
  FROM leasehold.audit_events AS e WHERE e.entity_type = 'plugin' AND e.entity_id = 'p1';
RESET ROLE;
SELECT test.is('nothing is left to do', count(*), 0) FROM leasehold_internal.calls AS c WHERE c.operation = 'initialize';
SELECT leasehold.resume_worker();
