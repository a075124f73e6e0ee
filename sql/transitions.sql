-- A lease's states: every pair, by the list below, which is written from the
-- requirement and not from the product.
\pset format unaligned
\pset tuples_only on

CREATE TEMP TABLE wanted (from_status text, to_status text);
INSERT INTO wanted VALUES
    -- acquiring -> active -> releasing -> released | retained | expired | failed
    ('acquiring', 'active'), ('active', 'releasing'),
    ('releasing', 'released'), ('releasing', 'retained'), ('releasing', 'expired'), ('releasing', 'failed'),
    -- a request that gets nothing; or ends before, or while, it is made
    ('acquiring', 'failed'), ('acquiring', 'released'), ('acquiring', 'expired'), ('acquiring', 'releasing'),
    -- nobody can tell whether the provider made something
    ('acquiring', 'irrevocable'),
    -- retained -> resuming -> active; or the parked resource is of no use, or given back, or there is no place for it
    ('retained', 'resuming'), ('resuming', 'active'), ('resuming', 'acquiring'), ('resuming', 'releasing'), ('resuming', 'retained'), ('retained', 'releasing'),
    -- what cannot be removed is tried again, and in the end given up
    ('releasing', 'pending_cleanup'), ('releasing', 'irrevocable'), ('pending_cleanup', 'irrevocable'),
    ('pending_cleanup', 'released'), ('pending_cleanup', 'retained'), ('pending_cleanup', 'expired'), ('pending_cleanup', 'failed'),
    -- until an operator retries it or writes it off
    ('irrevocable', 'pending_cleanup'), ('irrevocable', 'written_off');
-- a copy of the installation forgets whatever may be the original's
INSERT INTO wanted SELECT s, 'forgotten' FROM unnest(ARRAY['acquiring', 'active', 'releasing', 'retained', 'resuming', 'pending_cleanup', 'irrevocable']) AS s;

SELECT test.is('the product lists these and no others: ' || COALESCE(t.from_status, w.from_status) || ' to ' || COALESCE(t.to_status, w.to_status),
               (t.from_status IS NOT NULL, w.from_status IS NOT NULL)::text, '(t,t)')
  FROM leasehold.lease_transitions() AS t FULL JOIN wanted AS w ON (t.from_status, t.to_status) = (w.from_status, w.to_status)
 WHERE t.from_status IS NULL OR w.from_status IS NULL;
SELECT test.is('as many', (SELECT count(*) FROM leasehold.lease_transitions()), (SELECT count(*) FROM wanted));
SELECT test.is('each with a reason', bool_and(t.reason <> ''), true) FROM leasehold.lease_transitions() AS t;

-- All pairs, as a superuser, whom no privilege stops.
CREATE TEMP TABLE states AS
SELECT s.status, s.nr FROM unnest(ARRAY['acquiring', 'active', 'releasing', 'released', 'retained', 'resuming', 'expired', 'failed',
                                 'pending_cleanup', 'irrevocable', 'written_off', 'forgotten']) WITH ORDINALITY AS s (status, nr);
CREATE FUNCTION pg_temp.change(from_status text, to_status text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_id    uuid := leasehold.new_id();
    v_after text;
    v_error record;
BEGIN
    -- a plain INSERT is accepted in every state: a restore brings back what was there
    INSERT INTO leasehold.leases (company_id, id, config_version, provider, ttl, status, end_status, disposition)
    VALUES (test.id('acme'), v_id, 1, 'fake', '1 hour', from_status, 'released', 'delete');
    SELECT * INTO v_error FROM test.error(format('UPDATE leasehold.leases SET status = %L WHERE company_id = %L AND id = %L', to_status, test.id('acme'), v_id));
    SELECT l.status INTO v_after FROM leasehold.leases AS l WHERE l.id = v_id;
    RETURN CASE WHEN v_error.state IS NULL AND v_after = to_status THEN 'allowed'
                WHEN v_error.state = 'PT409' AND v_error.code = 'illegal_transition' AND v_after = from_status THEN 'refused'
                ELSE format('%s %s, then %s', v_error.state, v_error.message, v_after) END;
END
$$;
BEGIN;
SELECT test.is(count(*) || ' pairs', count(*) FILTER (WHERE pg_temp.change(a.status, b.status)
               = CASE WHEN a.status = b.status OR EXISTS (SELECT FROM wanted AS w WHERE (w.from_status, w.to_status) = (a.status, b.status)) THEN 'allowed' ELSE 'refused' END), 144)
  FROM states AS a, states AS b;
-- which, if any, is otherwise
SELECT a.status, b.status, c.is
  FROM states AS a, states AS b, LATERAL (SELECT pg_temp.change(a.status, b.status) AS is) AS c
 WHERE c.is <> CASE WHEN a.status = b.status OR EXISTS (SELECT FROM wanted AS w WHERE (w.from_status, w.to_status) = (a.status, b.status)) THEN 'allowed' ELSE 'refused' END;
-- the end is the end
SELECT test.is('nothing leads out of ' || s.status, count(w.*), 0) FROM states AS s LEFT JOIN wanted AS w ON w.from_status = s.status
 WHERE s.status IN ('released', 'expired', 'failed', 'written_off', 'forgotten') GROUP BY s.status, s.nr ORDER BY s.nr;

-- What identifies a lease never changes, and its generation does not go back.
INSERT INTO leasehold.leases (company_id, id, config_version, provider, ttl, status, generation) VALUES (test.id('acme'), test.id('fixed'), 1, 'fake', '1 hour', 'active', 5);
SELECT test.refused('another id', $$UPDATE leasehold.leases SET id = test.id('other') WHERE id = test.id('fixed')$$, 'illegal_transition');
SELECT test.refused('another company', $$UPDATE leasehold.leases SET company_id = test.id('beta') WHERE id = test.id('fixed')$$, 'illegal_transition');
SELECT test.refused('an older generation', $$UPDATE leasehold.leases SET generation = 4 WHERE id = test.id('fixed')$$, 'illegal_transition');
SELECT test.works('the same', $$UPDATE leasehold.leases SET id = id, company_id = company_id, generation = 5, status = 'active' WHERE id = test.id('fixed')$$);
SELECT test.works('the next', $$UPDATE leasehold.leases SET generation = 6 WHERE id = test.id('fixed')$$);
ROLLBACK;

-- Nothing goes around the trigger: it is there, enabled, before each row.
SELECT test.is('the trigger', (t.tgenabled, t.tgtype & 1 = 1, t.tgtype & 2 = 2, t.tgfoid::regproc)::text, '(O,t,t,leasehold_internal.check_lease_change)')
  FROM pg_trigger AS t WHERE t.tgrelid = 'leasehold.leases'::regclass AND t.tgname = 'check_change';
