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
                                                 'the list is not to be had', '1 hour');
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

DELETE FROM leasehold_internal.calls AS c WHERE c.subject_id = test.id('swept') AND c.slot = 'sweep';
SET ROLE regress_admin;
SELECT leasehold.resume_worker();
RESET ROLE;
SELECT test.eventually('goes on', $$SELECT s.state FROM leasehold.status() AS s WHERE s.area = 'worker'$$, 'running');
