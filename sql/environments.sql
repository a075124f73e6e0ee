-- Environments: made, changed by versions, archived, deleted.
\pset format unaligned
\pset tuples_only on
SET ROLE regress_manager;
-- 7: several of one provider
SELECT test.is('made', leasehold.create_environment('e1', 'fake', '{"image": "a"}', 'Name', 'Description', '{"E": "1"}', '{"m": 1}', test.id('e1')), test.id('e1'));
SELECT test.works('and another', $$SELECT leasehold.create_environment('e2', 'fake')$$);
SELECT test.is('as stored', (e.key, e.name, e.description, e.provider, e.status, e.config_version, e.config, e.env_vars, e.metadata)::text, '(e1,Name,Description,fake,active,1,"{""image"": ""a""}","{""E"": ""1""}","{""m"": 1}")') FROM leasehold.environments AS e WHERE e.id = test.id('e1');
SELECT test.is('by default', (e.name, e.description, e.config, e.env_vars, e.metadata)::text, '(e2,,{},{},{})') FROM leasehold.environments AS e WHERE e.key = 'e2';
-- 4: a key is taken once
SELECT test.refused('the same key', $$SELECT leasehold.create_environment('e1', 'fake')$$, 'already_exists');
SELECT test.refused('the same id', $$SELECT leasehold.create_environment('e3', 'fake', environment_id => test.id('e1'))$$, 'already_exists');
-- a change of the configuration is a version; it merges
SELECT test.is('the next version', leasehold.update_environment('e1', '{"delayMs": 1}'), 2);
SELECT test.is('merged', e.config, '{"image": "a", "delayMs": 1}'::jsonb) FROM leasehold.environments AS e WHERE e.id = test.id('e1');
SELECT test.is('the same again is no change', leasehold.update_environment('e1', '{"delayMs": 1}'), 2);
SELECT test.is('a name is no version', leasehold.update_environment('e1', name => 'Name 2'), 2);
SELECT test.is('variables are', leasehold.update_environment('e1', env_vars => '{"E": "2"}'), 3);
SELECT test.is('metadata are', leasehold.update_environment('e1', metadata => '{"m": 2}'), 4);
RESET ROLE;
SELECT test.is('each version is kept', string_agg(c.version || ' ' || c.config::text || ' ' || c.env_vars::text || ' ' || c.metadata::text || ' ' || c.created_by, ', ' ORDER BY c.version),
    '1 {"image": "a"} {"E": "1"} {"m": 1} regress_manager, 2 {"image": "a", "delayMs": 1} {"E": "1"} {"m": 1} regress_manager, 3 {"image": "a", "delayMs": 1} {"E": "2"} {"m": 1} regress_manager, 4 {"image": "a", "delayMs": 1} {"E": "2"} {"m": 2} regress_manager')
  FROM leasehold_internal.environment_configs AS c WHERE c.environment_id = test.id('e1');
SET ROLE regress_manager;
-- concurrent changes: who read an older version is told
SELECT test.is('of the present version', leasehold.update_environment('e1', '{"delayMs": 2}', expected_version => 4), 5);
SELECT test.refused('of an older one', $$SELECT leasehold.update_environment('e1', '{"delayMs": 3}', expected_version => 4)$$, 'stale_version');
SELECT test.is('the error tells the present one', e.detail, '{"code": "stale_version","version": 5}') FROM test.error($$SELECT leasehold.update_environment('e1', '{"delayMs": 3}', expected_version => 4)$$) AS e;
-- a lease keeps the configuration that it was made with
SET ROLE regress_user;
SELECT leasehold.request_lease('e1', lease_id => test.id('e1 lease')) IS NOT NULL AS requested;
SELECT test.is('active', (leasehold.wait_for_lease(test.id('e1 lease'), '30 seconds')).status, 'active');
SET ROLE regress_manager;
SELECT test.is('made unusable', leasehold.update_environment('e1', '{"failPermanently": true, "releaseFailTimes": 1000}'), 6);
SET ROLE regress_user;
SELECT test.is('given back', leasehold.release_lease(test.id('e1 lease')), 'releasing');
SELECT test.is('as if nothing had changed', (w.status)::text, 'released') FROM leasehold.wait_for_lease(test.id('e1 lease'), '30 seconds') AS w;
SET ROLE regress_manager;
-- archived: nothing new, and back
SELECT leasehold.archive_environment('e1');
SELECT test.is('archived', e.status::text, 'archived') FROM leasehold.environments AS e WHERE e.key = 'e1';
SELECT leasehold.archive_environment('e1');
SELECT test.refused('142: no lease', $$SELECT leasehold.request_lease('e1')$$, 'environment_inactive');
SELECT test.is('back', leasehold.update_environment('e1', status => 'active'), 6);
-- a request that waits is told when its environment is archived meanwhile
RESET ROLE;
SELECT leasehold.set_limit('active_leases', 0, company => 'acme', environment => 'e2');
SET ROLE regress_manager;
SELECT leasehold.request_lease('e2', lease_id => test.id('e2 lease')) IS NOT NULL AS requested;
SELECT test.eventually('it waits', $$SELECT l.waiting_for FROM leasehold.leases AS l WHERE l.id = test.id('e2 lease')$$, 'active_leases');
SELECT leasehold.archive_environment('e2');
RESET ROLE;
SELECT leasehold.set_limit('active_leases', company => 'acme', environment => 'e2');
SET ROLE regress_manager;
SELECT test.is('it fails', (w.status, w.failure_code)::text, '(failed,environment_inactive)') FROM leasehold.wait_for_lease(test.id('e2 lease'), '30 seconds') AS w;
-- deleted: with the history of its leases, without its configurations
SELECT test.is('what depends on it', (i.environment_id = test.id('e1'), i.can_delete, i.live_leases, i.ended_leases)::text, '(t,t,0,1)') FROM leasehold.environment_impact('e1') AS i;
SELECT leasehold.delete_environment('e1');
SELECT test.is('gone', count(*), 0) FROM leasehold.environments AS e WHERE e.key = 'e1';
SELECT test.is('its lease is history', (l.status, l.environment_id, l.config_version)::text, '(released,,5)') FROM leasehold.leases AS l WHERE l.id = test.id('e1 lease');
SELECT test.refused('once', $$SELECT leasehold.delete_environment('e1')$$, 'environment_not_found');
SELECT test.works('its key is free', $$SELECT leasehold.create_environment('e1', 'fake')$$);

-- Which provider: by an administrator's leave.
RESET ROLE;
SELECT leasehold.disallow_provider('acme', 'fake');
SELECT test.refused('no import', $$SELECT leasehold.import_lease('e1', 'sandbox://e', company => 'acme')$$, 'provider_forbidden');
SET ROLE regress_manager;
SELECT test.refused('no environment', $$SELECT leasehold.create_environment('e4', 'fake')$$, 'provider_forbidden');
SELECT test.refused('no lease', $$SELECT leasehold.request_lease('e1')$$, 'provider_forbidden');
SELECT test.refused('no new configuration', $$SELECT leasehold.update_environment('e1', '{"image": "z"}')$$, 'provider_forbidden');
SELECT test.works('but a new name', $$SELECT leasehold.update_environment('e1', name => 'z')$$);
SET ROLE regress_beta;
SELECT test.works('others are not concerned', $$SELECT leasehold.create_environment('e4', 'fake')$$);
RESET ROLE;
SELECT leasehold.allow_provider('acme', 'fake');
SET ROLE regress_manager;
SELECT test.works('allowed again', $$SELECT leasehold.create_environment('e4', 'fake')$$);
SELECT test.is('told', string_agg(e.action || ' ' || e.entity_id, ', ' ORDER BY e.occurred_at), 'provider.disallowed fake, provider.allowed fake')
  FROM (SELECT * FROM leasehold.audit_events AS a WHERE a.entity_type = 'provider' ORDER BY a.occurred_at DESC LIMIT 2) AS e;

-- Refused, and nothing is written.
RESET ROLE;
SELECT test.quiet();
SELECT leasehold.pause_worker();
SELECT test.fingerprint() AS before \gset
SET ROLE regress_manager;
SELECT test.refused('25: a key that is none: ' || quote_literal(k), format('SELECT leasehold.create_environment(%L, ''fake'')', k), 'key_invalid') FROM unnest(ARRAY['Bad Key', '', '-x', repeat('x', 64), E'x\n']) AS k;
SELECT test.refused('an unknown provider', $$SELECT leasehold.create_environment('e5', 'nowhere')$$, 'provider_not_found');
SELECT test.refused('24: an unknown key', $$SELECT leasehold.create_environment('e5', 'fake', '{"unknown": 1}')$$, 'config_invalid');
SELECT test.refused('a change that is none', $$SELECT leasehold.update_environment('e4', '{"failTimes": -1}')$$, 'config_invalid');
SELECT test.refused('an overlong description', $$SELECT leasehold.create_environment('e5', 'fake', description => repeat('x', 2001))$$, 'argument_too_large');
SELECT test.refused('an unknown status', $$SELECT leasehold.update_environment('e4', status => 'deleted')$$, 'argument_invalid');
SELECT test.refused('an unknown environment', $$SELECT leasehold.update_environment('e5')$$, 'environment_not_found');
SELECT test.refused('an unknown environment', $$SELECT leasehold.archive_environment('e5')$$, 'environment_not_found');
SELECT test.refused('an unknown environment', $$SELECT leasehold.delete_environment('e5')$$, 'environment_not_found');
RESET ROLE;
SELECT test.is('nothing was written', test.fingerprint(), :'before');
SELECT leasehold.resume_worker();
