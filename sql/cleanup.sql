-- What cannot be removed is tried again, then kept, counted and shown until
-- somebody decides.  (cleanup_attempts is 3 here.)
\pset format unaligned
\pset tuples_only on
SET ROLE regress_manager;
SELECT leasehold.create_environment('reluctant', 'fake', '{"releaseFailTimes": 2}') IS NOT NULL AS made;
SELECT leasehold.create_environment('stuck', 'fake', '{"releaseFailTimes": 1000, "image": "stuck"}') IS NOT NULL AS made;
SELECT leasehold.create_environment('stuck2', 'fake', '{"releaseFailTimes": 1000}') IS NOT NULL AS made;
SET ROLE regress_user;

-- 86: a release that fails is no exception and ends all the same
SELECT leasehold.request_lease('reluctant', lease_id => test.id('reluctant')) = test.id('reluctant') AS requested;
SELECT test.is('active', (leasehold.wait_for_lease(test.id('reluctant'), '30 seconds')).status, 'active');
SELECT test.is('given back', leasehold.release_lease(test.id('reluctant')), 'releasing');
SELECT test.is('waiting sees the end, not the tries', (w.status, w.done)::text, '(released,t)') FROM leasehold.wait_for_lease(test.id('reluctant'), '30 seconds') AS w;
SELECT test.is('of the failed tries the first is told', test.events('reluctant'), 'requested acquired release_requested cleanup_failed released');
SELECT test.is('a success in the end', (l.cleanup_status, l.attempts, l.waiting_for)::text, '(success,0,)') FROM leasehold.leases AS l WHERE l.id = test.id('reluctant');

-- Too many tries.
SELECT leasehold.request_lease('stuck', lease_id => test.id('stuck')) = test.id('stuck') AS requested;
SELECT test.is('active', (leasehold.wait_for_lease(test.id('stuck'), '30 seconds')).status, 'active');
SELECT test.is('given back', leasehold.release_lease(test.id('stuck')), 'releasing');
SELECT test.is('irrevocable', (w.status, w.done, w.failure_code)::text, '(irrevocable,t,lease_cleanup_failed)') FROM leasehold.wait_for_lease(test.id('stuck'), '30 seconds') AS w;
SELECT test.is('it keeps what it would have been', (l.end_status, l.cleanup_status, l.ended_at, l.provider_lease_id IS NOT NULL)::text, '(released,failed,,t)')
  FROM leasehold.leases AS l WHERE l.id = test.id('stuck');
SELECT test.is('all is told', test.events('stuck'), 'requested acquired release_requested cleanup_failed irrevocable');
SELECT test.is('it is shown as waiting for somebody', (a.status, a.waiting_for)::text, '(irrevocable,decision)') FROM leasehold.active_leases AS a WHERE a.lease_id = test.id('stuck');
SELECT test.is('and in the backlog', (b.status, b.failure_code, b.provider_lease_id IS NOT NULL)::text, '(irrevocable,lease_cleanup_failed,t)') FROM leasehold.cleanup_backlog AS b WHERE b.lease_id = test.id('stuck');
SELECT test.is('given back again: nothing', leasehold.release_lease(test.id('stuck')), 'irrevocable');
SELECT test.is('destroyed: nothing either', leasehold.destroy_lease(test.id('stuck')), 'irrevocable');
SET ROLE regress_admin;
SELECT test.is('the doctor names it', (d.severity, d.finding)::text, '(warning,"1 lease is irrevocable")') FROM leasehold.doctor() AS d WHERE d.code = 'lease_irrevocable';
SELECT test.is('metrics count it', m.value, 1) FROM leasehold.metrics() AS m WHERE m.name = 'leasehold_leases' AND m.labels = '{"status": "irrevocable"}';
SET ROLE regress_manager;
SELECT test.refused('its environment stays', $$SELECT leasehold.delete_environment('stuck')$$, 'still_in_use');

-- Tried again, without success and with.
SET ROLE regress_user;
SELECT test.is('tried again', leasehold.retry_lease(test.id('stuck')), 'pending_cleanup');
SELECT test.is('in vain', (leasehold.wait_for_lease(test.id('stuck'), '30 seconds')).status, 'irrevocable');
RESET ROLE;
-- the provider is repaired: what the lease was made with says so
UPDATE leasehold_internal.environment_configs SET config = '{}' WHERE config ->> 'image' = 'stuck';
SET ROLE regress_user;
SELECT test.is('tried again', leasehold.retry_lease(test.id('stuck')), 'pending_cleanup');
SELECT test.is('removed', (leasehold.wait_for_lease(test.id('stuck'), '30 seconds')).status, 'released');
SELECT test.is('all is told', test.events('stuck'),
    'requested acquired release_requested cleanup_failed irrevocable retried cleanup_failed irrevocable retried released');
SELECT test.is('nothing is left of it', count(*), 0) FROM leasehold.cleanup_backlog AS b WHERE b.lease_id = test.id('stuck');
SELECT test.refused('nothing is to be tried again', $$SELECT leasehold.retry_lease(test.id('stuck'))$$, 'wrong_state');

-- What could not be parked is removed by the retry, and not parked then.
SET ROLE regress_manager;
SELECT leasehold.create_environment('stuck3', 'fake', '{"releaseFailTimes": 1000, "image": "stuck3"}') IS NOT NULL AS made;
SELECT leasehold.request_lease('stuck3', lease_id => test.id('to be kept')) = test.id('to be kept') AS requested;
SELECT test.is('active', (leasehold.wait_for_lease(test.id('to be kept'), '30 seconds')).status, 'active');
SELECT test.is('to be kept', leasehold.release_lease(test.id('to be kept'), 'keep'), 'releasing');
SELECT test.is('irrevocable', (leasehold.wait_for_lease(test.id('to be kept'), '30 seconds')).status, 'irrevocable');
RESET ROLE;
UPDATE leasehold_internal.environment_configs SET config = '{}' WHERE config ->> 'image' = 'stuck3';
SET ROLE regress_manager;
SELECT test.is('tried again', leasehold.retry_lease(test.id('to be kept')), 'pending_cleanup');
SELECT test.is('removed', (leasehold.wait_for_lease(test.id('to be kept'), '30 seconds')).status, 'released');
SELECT test.is('as it was asked for', (l.end_status, l.disposition, l.cleanup_status)::text, '(released,delete,success)') FROM leasehold.leases AS l WHERE l.id = test.id('to be kept');
RESET ROLE;
SELECT test.is('its resource is nobody''s', count(*), 0) FROM leasehold_internal.provider_resources AS r WHERE r.lease_id = test.id('to be kept');
SET ROLE regress_user;

-- Written off: only what is irrevocable, with a reason, by a manager.
SELECT leasehold.request_lease('stuck2', lease_id => test.id('lost')) = test.id('lost') AS requested;
SELECT test.is('active', (leasehold.wait_for_lease(test.id('lost'), '30 seconds')).status, 'active');
SET ROLE regress_manager;
SELECT test.refused('not an active one', $$SELECT leasehold.write_off_lease(test.id('lost'), 'gone')$$, 'wrong_state');
SELECT test.is('given back', leasehold.release_lease(test.id('lost')), 'releasing');
SELECT test.is('irrevocable', (leasehold.wait_for_lease(test.id('lost'), '30 seconds')).status, 'irrevocable');
SELECT test.refused('not without a reason', $$SELECT leasehold.write_off_lease(test.id('lost'), NULL)$$, 'argument_required');
SELECT test.refused('nor with an empty one', $$SELECT leasehold.write_off_lease(test.id('lost'), '  ')$$, 'argument_invalid');
SET ROLE regress_user;
SELECT test.refused('not by everybody', $$SELECT leasehold.write_off_lease(test.id('lost'), 'gone')$$, 'forbidden');
SET ROLE regress_manager;
SELECT leasehold.write_off_lease(test.id('lost'), 'the account was closed');
SELECT test.is('written off', (l.status, l.failure_reason, l.ended_at IS NOT NULL, l.provider_lease_id IS NOT NULL)::text, '(written_off,"the account was closed",t,t)')
  FROM leasehold.leases AS l WHERE l.id = test.id('lost');
SELECT test.is('told, with what was given up', (e.details ->> 'reason', e.details ->> 'providerLeaseId' LIKE 'sandbox://fake/%', e.acting_role)::text, '("the account was closed",t,regress_manager)')
  FROM leasehold.audit_events AS e WHERE e.entity_id = test.id('lost')::text AND e.action = 'environment.lease_written_off';
SELECT test.refused('once', $$SELECT leasehold.write_off_lease(test.id('lost'), 'again')$$, 'wrong_state');
SELECT test.refused('it is over', $$SELECT leasehold.retry_lease(test.id('lost'))$$, 'wrong_state');
RESET ROLE;
SELECT test.is('nothing is left to do', count(*), 0) FROM leasehold_internal.calls AS c WHERE c.subject_id = test.id('lost');
SELECT test.is('its resource may be another''s', count(*), 0) FROM leasehold_internal.provider_resources AS r WHERE r.lease_id = test.id('lost');
SET ROLE regress_manager;
SELECT test.works('the environment can go', $$SELECT leasehold.delete_environment('stuck2')$$);

-- An administrator may, too, for any company; and hurry up what waits for its next try.
RESET ROLE;
SELECT leasehold.request_lease('stuck', lease_id => test.id('held back'), company => 'acme') = test.id('held back') AS requested;
SELECT test.eventually('active', $$SELECT test.lease('held back')$$, 'active');
SET ROLE regress_admin;
SELECT leasehold.pause_worker();
SET client_min_messages = error;
SELECT test.is('destroyed by an administrator', leasehold.destroy_lease(test.id('held back'), company => 'acme'), 'releasing');
RESET ROLE;
UPDATE leasehold_internal.calls SET due_at = now() + interval '1 day' WHERE subject_id = test.id('held back') AND slot = 'op';
SET ROLE regress_admin;
SELECT test.is('tried at once', leasehold.retry_lease(test.id('held back'), company => 'acme'), 'releasing');
RESET client_min_messages;
SELECT leasehold.resume_worker();
SELECT test.eventually('gone', $$SELECT test.lease('held back')$$, 'expired');
RESET ROLE;

-- A resource of unknown fate: the provider cannot tell whether it made one.
SET ROLE regress_manager;
SELECT leasehold.create_environment('mute', 'fake', '{"loseAnswerTimes": 1, "lookup": false}') IS NOT NULL AS made;
SELECT leasehold.request_lease('mute', lease_id => test.id('unknown')) = test.id('unknown') AS requested;
SELECT test.is('irrevocable, for that reason', (w.status, w.failure_code, w.provider_lease_id)::text, '(irrevocable,acquire_outcome_unknown,)')
  FROM leasehold.wait_for_lease(test.id('unknown'), '30 seconds') AS w;
SELECT test.is('all is told, the look-ups'' series with its first; nothing was asked for twice', test.events('unknown'), 'requested outcome_unknown call_failed irrevocable');
SET ROLE regress_admin;
SELECT test.is('the doctor says what can be done', (d.severity, d.finding, d.what_to_do)::text,
    '(warning,"1 lease is irrevocable, and not known to have a resource","See cleanup_backlog; retry_lease() each, or check at the provider: if the resource exists, import_lease() first; then write_off_lease().")')
  FROM leasehold.doctor() AS d WHERE d.code = 'lease_irrevocable';
-- it was there after all: imported, nothing of it gets lost
SELECT test.works('imported', $$SELECT leasehold.import_lease('mute', 'sandbox://fake/found', lease_id => test.id('found'), company => 'acme')$$);
SET ROLE regress_manager;
SELECT leasehold.write_off_lease(test.id('unknown'), 'imported as another');
SELECT test.is('written off', test.lease('unknown'), 'written_off');
SELECT test.is('what was found is given back', leasehold.release_lease(test.id('found')), 'releasing');
SELECT test.is('and removed', (leasehold.wait_for_lease(test.id('found'), '30 seconds')).status, 'released');
RESET ROLE;

-- Found after all, it is deleted, even where a plain release would park it.
SET ROLE regress_manager;
SELECT leasehold.create_environment('mute2', 'fake', '{"loseAnswerTimes": 1, "lookup": false, "reuseLease": true}') IS NOT NULL AS made;
SELECT leasehold.request_lease('mute2', lease_id => test.id('found late')) = test.id('found late') AS requested;
SELECT test.is('irrevocable', (leasehold.wait_for_lease(test.id('found late'), '30 seconds')).status, 'irrevocable');
SELECT test.is('to be deleted', (l.end_status, l.disposition)::text, '(failed,delete)') FROM leasehold.leases AS l WHERE l.id = test.id('found late');
SET ROLE regress_admin;
SELECT leasehold.pause_worker('cleanup.sql');
RESET ROLE;
SELECT test.eventually('paused', $$SELECT s.state FROM leasehold.status() AS s WHERE s.area = 'worker'$$, 'paused');
SET client_min_messages = error;
SELECT test.is('looked up again', leasehold.retry_lease(test.id('found late'), company => 'acme'), 'pending_cleanup');
RESET client_min_messages;
CREATE FUNCTION pg_temp.claim() RETURNS text LANGUAGE sql AS $$
    SELECT concat_ws(' ', c.method, c.params::jsonb -> 'leasehold' ->> 'disposition') FROM leasehold_internal.claim_calls(-1, ARRAY[test.id('acme')], ARRAY[test.id('found late')], ARRAY['op'], 30000) AS c $$;
SELECT test.is('the look-up', pg_temp.claim(), 'environmentFindLease');
SELECT test.is('it is there', c.applied, 'applied') FROM leasehold_internal.complete_calls(-1, ARRAY[test.id('acme')], ARRAY[test.id('found late')], ARRAY[1], ARRAY['ok'], ARRAY['sandbox://found/late'],
    ARRAY[NULL], ARRAY[NULL]::timestamptz[], ARRAY[NULL], ARRAY[NULL], ARRAY[0]::bigint[], 20, 1000, 3, 3) AS c;
BEGIN;
SELECT test.is('what is sent', pg_temp.claim(), 'environmentDestroyLease delete');
ROLLBACK;
SET ROLE regress_admin;
SELECT leasehold.resume_worker();
SELECT test.eventually('removed', $$SELECT test.lease('found late')$$, 'failed');
RESET ROLE;
