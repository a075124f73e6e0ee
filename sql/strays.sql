-- Resources that no lease claims.  The worker is paused, so that each step of
-- its can be made by hand: epoch -1 is the one that makes them.
\pset format unaligned
\pset tuples_only on
SET client_min_messages = error;
SELECT test.quiet();
SET ROLE regress_admin;
SELECT leasehold.pause_worker('strays.sql');
SET ROLE regress_manager;
SELECT leasehold.create_environment('swept', 'fake', environment_id => test.id('swept')) = test.id('swept') AS made;
RESET ROLE;
SELECT test.eventually('paused', $$SELECT s.state FROM leasehold.status() AS s WHERE s.area = 'worker'$$, 'paused');

-- A sweep that is out; and one page of the answer to it.
INSERT INTO leasehold_internal.calls (company_id, subject_id, slot, operation, provider, shard, payload)
VALUES (test.id('acme'), test.id('swept'), 'sweep', 'reconcile', 'fake', leasehold_internal.shard_of(test.id('acme')),
        jsonb_build_object('environmentId', test.id('swept'), 'configVersion', 1));
CREATE FUNCTION test.page(listed jsonb, next_cursor text DEFAULT NULL, outcome text DEFAULT 'ok') RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
    UPDATE leasehold_internal.calls AS c SET state = 'started', worker_epoch = -1, started_at = now() WHERE c.subject_id = test.id('swept');
    RETURN leasehold_internal.complete_reconcile(-1, test.id('acme'), test.id('swept'), outcome, listed::text, next_cursor,
                                                 'the list is not to be had', 0, '1 hour');
END
$$;
CREATE FUNCTION test.sweep() RETURNS text LANGUAGE sql AS $$
    SELECT format('%s, cursor %s, %s', c.state, COALESCE(c.payload ->> 'cursor', 'none'), COALESCE(c.last_error, 'no error'))
      FROM leasehold_internal.calls AS c WHERE c.subject_id = test.id('swept') AND c.slot = 'sweep' $$;

-- A list is read to its end.
SELECT test.page('[]', 'a') IS NULL AS failed;
SELECT test.is('the next page', test.sweep(), 'queued, cursor a, no error');
SELECT test.page('[]', 'b') IS NULL AS failed;
SELECT test.is('the next page', test.sweep(), 'queued, cursor b, no error');
SELECT test.page('[]') IS NULL AS failed;
SELECT test.is('the end', test.sweep(), 'queued, cursor none, no error');
SELECT test.is('comes again later', c.due_at > now() + interval '59 minutes', true) FROM leasehold_internal.calls AS c WHERE c.subject_id = test.id('swept');
SELECT test.page('[]', 'a') IS NULL AS failed;
SELECT test.page('[]', '') IS NULL AS failed;
SELECT test.is('an empty cursor is the end, too', test.sweep(), 'queued, cursor none, no error');
-- one that has no end is left: pages until then, for circles of several lengths, after some pages before the circle
CREATE FUNCTION test.circle(before integer, length integer) RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
    FOR page IN 1 .. 1000 LOOP
        PERFORM test.page('[]', CASE WHEN page <= before THEN 'before ' || page ELSE 'round ' || page % length END);
        IF test.sweep() NOT LIKE '%cursor before%' AND test.sweep() NOT LIKE '%cursor round%' THEN
            RETURN page;
        END IF;
    END LOOP;
    RETURN NULL;
END
$$;
SELECT test.is(format('%s pages, then a circle of %s', b, l), test.circle(b, l) <= 3 * (b + l) + 1, true)
  FROM unnest(ARRAY[0, 1, 5]) AS b, unnest(ARRAY[1, 2, 3, 7]) AS l;
SELECT test.is('why is kept', test.sweep(), 'queued, cursor none, the provider''s list leads round in a circle');
SET ROLE regress_admin;
SELECT test.is('and told', (d.severity, d.finding)::text, '(warning,"the sweep of 1 environment of provider ""fake"" fails: the provider''s list leads round in a circle")')
  FROM leasehold.doctor() AS d WHERE d.code = 'sweep_failed';
RESET ROLE;
SELECT test.page('[]', 'a') IS NULL AS failed;
SELECT test.is('until a sweep comes to its end', test.sweep(), 'queued, cursor a, the provider''s list leads round in a circle');
SELECT test.page('[]') IS NULL AS failed;
SELECT test.is('then it is forgotten', test.sweep(), 'queued, cursor none, no error');
SELECT test.is('a list without end', (p.next_payload, p.problem)::text, '(,"the provider''s list has more than 10000 pages")')
  FROM leasehold_internal.turn_page('{"cursor": "x", "page": 9999, "mark": "w"}', 'y') AS p;
SELECT test.page('[]', 'a') IS NULL AS failed;
SELECT test.page('[]', outcome => 'failed') IS NULL AS failed;
SELECT test.is('a page that is not to be had ends it', test.sweep(), 'queued, cursor none, the list is not to be had');

-- What the list shows and no lease claims is a stray: a row of its own, its removal, and an event.
CREATE FUNCTION test.entry(resource text, lease text DEFAULT NULL) RETURNS jsonb LANGUAGE sql AS $$
    SELECT jsonb_build_array(jsonb_build_object('providerLeaseId', resource, 'leaseId', lease, 'companyId', test.id('acme'), 'generation', 1)) $$;
CREATE FUNCTION test.stray(resource text) RETURNS text LANGUAGE sql AS $$
    SELECT COALESCE((SELECT CASE WHEN r.lease_id IS NOT NULL THEN 'of a lease' ELSE 'a stray, ' || r.reason END FROM leasehold_internal.provider_resources AS r WHERE r.provider = 'fake' AND r.provider_lease_id = resource), 'nobody''s')
           || COALESCE((SELECT ', ' || c.state FROM leasehold_internal.calls AS c JOIN leasehold_internal.provider_resources AS r ON r.stray_id = c.subject_id WHERE r.provider_lease_id = resource), '')
           || '; ' || COALESCE((SELECT string_agg(replace(e.action, 'environment.', ''), ' ' ORDER BY e.occurred_at, e.id) FROM leasehold.audit_events AS e WHERE e.entity_id = resource), 'no events') $$;
SELECT test.is('found', test.page(test.entry('box 1', 'nonsense') || test.entry('box 1', 'nonsense') || test.entry('box 2', test.id('no such lease')::text)), 2);
SELECT test.is('each is a stray', test.stray(b), 'a stray, no_lease, queued; stray_found') FROM unnest(ARRAY['box 1', 'box 2']) AS b;
SELECT test.is('once', test.page(test.entry('box 1', 'nonsense')), 0);
SELECT test.is('what it was told', (r.environment_id = test.id('swept'), r.config_version, r.made_for, r.generation)::text, '(t,1,nonsense,1)') FROM leasehold_internal.provider_resources AS r WHERE r.provider_lease_id = 'box 1';

-- It belongs to no lease until it is gone: neither one that asks for a resource ...
SET ROLE regress_manager;
SELECT leasehold.request_lease('swept', lease_id => test.id('gets a stray')) = test.id('gets a stray') AS requested;
RESET ROLE;
CREATE FUNCTION test.answer(key text, operation text, outcome text, resource text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    UPDATE leasehold_internal.calls AS c SET state = 'started', worker_epoch = -1, started_at = now(), attempts = 1 WHERE c.subject_id = test.id(key) AND c.slot = 'op' AND c.operation = answer.operation;
    RETURN (SELECT c.applied FROM leasehold.leases AS l, leasehold_internal.complete_calls(-1, ARRAY[l.company_id], ARRAY[l.id], ARRAY[l.generation], ARRAY[outcome], ARRAY[resource],
                ARRAY[NULL], ARRAY[NULL]::timestamptz[], ARRAY[NULL], ARRAY[NULL], ARRAY[0]::bigint[], 20, 1000, 3, 3) AS c WHERE l.id = test.id(key));
END
$$;
SELECT test.is('an acquire is answered with it', test.answer('gets a stray', 'acquire', 'ok', 'box 1'), 'applied');
SELECT test.is('the lease fails', (l.status, l.failure_code, l.provider_lease_id)::text, '(failed,resource_taken,)') FROM leasehold.leases AS l WHERE l.id = test.id('gets a stray');
SELECT test.is('and the stray is one still', test.stray('box 1'), 'a stray, no_lease, queued; stray_found');
-- ... nor one that is imported while the removal is out
UPDATE leasehold_internal.calls AS c SET state = 'started', worker_epoch = -1, started_at = now(), attempts = 1
  FROM leasehold_internal.provider_resources AS r WHERE r.provider_lease_id = 'box 1' AND c.subject_id = r.stray_id;
SET ROLE regress_admin;
SELECT test.refused('while it is being removed', $$SELECT leasehold.import_lease('swept', 'box 1', company => 'acme')$$, 'import_refused');
RESET ROLE;
SELECT test.is('that changes nothing', test.stray('box 1'), 'a stray, no_lease, started; stray_found');
-- the removal can be given up for a lease before
SET ROLE regress_admin;
SELECT test.is('before that it is taken over', leasehold.import_lease('swept', 'box 2', lease_id => test.id('spared'), company => 'acme'), test.id('spared'));
SELECT test.refused('not for another company', $$SELECT leasehold.import_lease('plain', 'box 1', company => 'beta')$$, 'import_refused');
RESET ROLE;
SELECT test.is('it is the lease''s', test.stray('box 2'), 'of a lease; stray_found');
SELECT test.is('nobody is to remove it', count(*), 1) FROM leasehold_internal.calls AS c WHERE c.operation = 'destroy_stray';
SELECT test.is('nor is it found again', test.page(test.entry('box 2', test.id('no such lease')::text)), 0);

-- What removes it: answers, a worker that died, and what the dispatch table lacks.
CREATE FUNCTION test.removal(resource text, outcome text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    stray uuid := (SELECT r.stray_id FROM leasehold_internal.provider_resources AS r WHERE r.provider_lease_id = resource);
BEGIN
    UPDATE leasehold_internal.calls AS c SET state = 'started', worker_epoch = -1, started_at = now(), attempts = 3 WHERE c.subject_id = stray;
    PERFORM leasehold_internal.complete_strays(-1, ARRAY[test.id('acme')], ARRAY[stray], ARRAY[outcome], ARRAY['not now'], ARRAY[0]::bigint[], 20, 1000, 3);
    RETURN test.stray(resource);
END
$$;
SELECT test.is('it fails', test.removal('box 1', 'retry'), 'a stray, no_lease, queued; stray_found stray_not_removed');
DELETE FROM leasehold_internal.calls AS c WHERE c.operation = 'destroy_stray';
SELECT test.is('the call is lost', test.stray('box 1'), 'a stray, no_lease; stray_found stray_not_removed');
SELECT test.is('and made again', leasehold_internal.rebuild_calls(ARRAY[leasehold_internal.shard_of(test.id('acme'))]) >= 1, true);
SELECT test.is('as it was', test.stray('box 1'), 'a stray, no_lease, queued; stray_found stray_not_removed');
CREATE FUNCTION test.claim(resource text) RETURNS text LANGUAGE sql AS $$
    SELECT COALESCE(c.verdict || ' ' || c.code, c.method || ' ' || (c.params::jsonb - 'leaseMetadata' - 'companyId' - 'environmentId' - 'leasehold')::text || ' ' || ((c.params::jsonb -> 'leasehold') - 'installationId' - 'idempotencyKey')::text)
      FROM leasehold_internal.provider_resources AS r, leasehold_internal.claim_calls(-1, ARRAY[r.company_id], ARRAY[r.stray_id], ARRAY['op'], 30000) AS c
     WHERE r.provider_lease_id = resource AND r.stray_id IS NOT NULL $$;
BEGIN;
SELECT test.is('what is sent', test.claim('box 1'), 'environmentDestroyLease {"config": {}, "issueId": null, "driverKey": "fake", "providerLeaseId": "box 1"} {"leaseId": "nonsense", "generation": 1, "disposition": "delete"}');
ROLLBACK;
-- another driver of the same account has a lease with it: then it is not sent
BEGIN;
INSERT INTO leasehold.providers (key, kind, display_name) VALUES ('fake-too', 'sandbox_provider', 'Fake, too');
INSERT INTO leasehold_internal.provider_resources (provider, provider_lease_id, company_id, lease_id) VALUES ('fake-too', 'box 1', test.id('acme'), test.id('spared'));
SELECT test.is('nothing', test.claim('box 1'), 'failed resource_taken');
ROLLBACK;

-- Its environment is needed for that; so is its provider.
SET ROLE regress_manager;
SELECT test.is('given back', leasehold.release_lease(test.id('spared')), 'releasing');
RESET ROLE;
SELECT test.is('removed', test.answer('spared', 'release', 'ok', NULL), 'applied');
SET ROLE regress_manager;
SELECT test.is('what depends on the environment', (i.can_delete, i.live_leases, i.strays)::text, '(f,0,1)') FROM leasehold.environment_impact('swept') AS i;
SELECT test.refused('it cannot be deleted', $$SELECT leasehold.delete_environment('swept')$$, 'still_in_use');
RESET ROLE;
SELECT test.is('removed', test.removal('box 1', 'gone'), 'nobody''s; stray_found stray_not_removed stray_removed');
-- a call whose stray is gone removes nothing, and ends
INSERT INTO leasehold_internal.calls (company_id, subject_id, slot, operation, provider, shard, state, worker_epoch)
VALUES (test.id('acme'), test.id('no stray'), 'op', 'destroy_stray', 'fake', 0, 'queued', NULL);
SELECT test.is('nothing to send', (c.verdict, c.code, c.params)::text, '(failed,subject_gone,)') FROM leasehold_internal.claim_calls(-1, ARRAY[test.id('acme')], ARRAY[test.id('no stray')], ARRAY['op'], 30000) AS c;
SELECT leasehold_internal.complete_strays(-1, ARRAY[test.id('acme')], ARRAY[test.id('no stray')], ARRAY['failed'], ARRAY['gone'], ARRAY[0]::bigint[], 20, 1000, 3);
SELECT test.is('nothing is left to do', count(*), 0) FROM leasehold_internal.calls AS c WHERE c.operation = 'destroy_stray';

-- A resume that is answered with another resource: both that and the parked one are removed.
CREATE FUNCTION test.resuming(key text, status text DEFAULT 'resuming') RETURNS void LANGUAGE sql AS $$
    INSERT INTO leasehold.leases (company_id, id, environment_id, config_version, provider, status, end_status, disposition, policy, generation, ttl, provider_lease_id, acquire_by)
    VALUES (test.id('acme'), test.id(key), test.id('swept'), 1, 'fake', status, CASE status WHEN 'releasing' THEN 'released' END, CASE status WHEN 'releasing' THEN 'delete' END, 'reuse_by_environment', 2, '1 hour', key || ' parked', now() + interval '1 hour');
    INSERT INTO leasehold_internal.provider_resources (provider, provider_lease_id, company_id, lease_id) VALUES ('fake', key || ' parked', test.id('acme'), test.id(key));
    INSERT INTO leasehold_internal.calls (company_id, subject_id, slot, operation, provider, shard, generation) VALUES (test.id('acme'), test.id(key), 'op', 'resume', 'fake', leasehold_internal.shard_of(test.id('acme')), 2);
$$;
SELECT test.resuming('other');
SELECT test.is('applied', test.answer('other', 'resume', 'ok', 'other came'), 'applied');
SELECT test.is('a new one is asked for', (l.status, l.generation, l.provider_lease_id)::text, '(acquiring,3,)') FROM leasehold.leases AS l WHERE l.id = test.id('other');
SELECT test.is('the parked one is to be removed', test.stray('other parked'), 'a stray, resume_failed, queued; stray_found');
SELECT test.is('so is the other', test.stray('other came'), 'a stray, resumed_instead, queued; stray_found');
SELECT test.is('which was made for', (r.made_for = test.id('other')::text, r.generation, r.environment_id = test.id('swept'))::text, '(t,2,t)') FROM leasehold_internal.provider_resources AS r WHERE r.provider_lease_id = 'other came';
SELECT test.is('told', (e.action, e.details ->> 'failureCode', e.details ->> 'failureReason')::text, '(environment.lease_resume_failed,another_resource,"the provider answered with another resource, ""other came""")')
  FROM leasehold.audit_events AS e WHERE e.entity_id = test.id('other')::text;
-- one that somebody else has is not touched
SELECT test.resuming('others');
SELECT test.is('applied', test.answer('others', 'resume', 'ok', 'other came'), 'applied');
SELECT test.is('it is as it was', test.stray('other came'), 'a stray, resumed_instead, queued; stray_found');
-- given back meanwhile: the lease goes on to its end with what it had
SELECT test.resuming('other back', 'releasing');
SELECT test.is('applied', test.answer('other back', 'resume', 'ok', 'other came too'), 'applied');
SELECT test.is('the lease ends with its own', (l.status, l.generation, l.provider_lease_id)::text, '(releasing,2,"other back parked")') FROM leasehold.leases AS l WHERE l.id = test.id('other back');
SELECT test.is('which is its own still', test.stray('other back parked'), 'of a lease; no events');
SELECT test.is('the other is to be removed', test.stray('other came too'), 'a stray, resumed_instead, queued; stray_found');
-- one that is gone is no stray
SELECT test.resuming('other gone');
SELECT test.is('applied', test.answer('other gone', 'resume', 'gone', NULL), 'applied');
SELECT test.is('nothing is to be removed', test.stray('other gone parked'), 'nobody''s; no events');
UPDATE leasehold.leases AS l SET status = CASE WHEN l.status = 'acquiring' THEN 'failed' ELSE 'released' END WHERE l.environment_id = test.id('swept') AND leasehold_internal.may_have_resource(l.status);
DELETE FROM leasehold_internal.calls AS c USING leasehold.leases AS l WHERE l.environment_id = test.id('swept') AND c.subject_id = l.id;
DELETE FROM leasehold_internal.provider_resources AS r USING leasehold.leases AS l WHERE l.environment_id = test.id('swept') AND r.lease_id = l.id;
SELECT test.is('removed', test.removal(r.provider_lease_id, 'ok') LIKE 'nobody''s; % stray_removed', true) FROM leasehold_internal.provider_resources AS r WHERE r.stray_id IS NOT NULL;

-- What is another installation's, or was the original's of a copy, is none, whatever the list says.
SELECT i.id AS installation FROM leasehold_internal.installation AS i \gset
SELECT test.is('another installation''s', test.page(jsonb_set(test.entry('box 3'), '{0,installationId}', to_jsonb(test.id('another')))), 0);
SELECT test.is('this installation''s', test.page(jsonb_set(test.entry('box 3'), '{0,installationId}', to_jsonb(:'installation'::text))), 1);
SELECT test.is('removed', test.removal('box 3', 'ok'), 'nobody''s; stray_found stray_removed');
INSERT INTO leasehold.leases (company_id, id, environment_id, config_version, provider, status, ttl, provider_lease_id)
VALUES (test.id('acme'), test.id('forgotten'), test.id('swept'), 1, 'fake', 'forgotten', '1 hour', 'box 4');
SELECT test.is('the original''s, by its lease', test.page(test.entry('box 5', test.id('forgotten')::text)), 0);
SELECT test.is('by its id', test.page(test.entry('box 4')), 0);
SELECT test.is('nothing is to be removed', count(*), 0) FROM leasehold_internal.provider_resources AS r WHERE r.stray_id IS NOT NULL;

SET ROLE regress_manager;
SELECT test.works('then the environment can go', $$SELECT leasehold.delete_environment('swept')$$);
RESET ROLE;
SELECT test.is('and its sweep with it', test.sweep(), NULL);
SET ROLE regress_admin;
SELECT leasehold.resume_worker();
RESET ROLE;
SELECT test.eventually('goes on', $$SELECT s.state FROM leasehold.status() AS s WHERE s.area = 'worker'$$, 'running');
