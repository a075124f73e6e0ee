-- 42_deadlines.sql: deadlines that come by themselves.
--
-- Deadlines are lazy: a renewal or heartbeat changes only its own row.  When
-- the deadline's row is due, the lease or run is read; if it has more time, the
-- row is moved to the new deadline.

-- A lease in which a command runs is in use.
CREATE FUNCTION leasehold_internal.used_at(lease leasehold.leases) RETURNS timestamptz
    LANGUAGE sql VOLATILE AS $$
    SELECT CASE WHEN (lease).idle_timeout IS NOT NULL
                     AND EXISTS (SELECT FROM leasehold.commands AS c
                                  WHERE c.company_id = (lease).company_id AND c.lease_id = (lease).id AND c.status <> 'finished')
                THEN pg_catalog.clock_timestamp() ELSE (lease).last_used_at END
$$;
COMMENT ON FUNCTION leasehold_internal.used_at(leasehold.leases) IS 'When a lease was in use last; now, if a command runs in it';

CREATE FUNCTION leasehold_internal.fire_deadlines(company_ids uuid[], subject_ids uuid[])
    RETURNS TABLE (company_id uuid, subject_id uuid) LANGUAGE plpgsql VOLATILE ROWS 100 AS $$
#variable_conflict use_column
DECLARE
    v_company uuid[];
    v_subject uuid[];
    v_over    record;
    v_places  boolean;
BEGIN
    -- a parked resource that has waited too long for a place asks once more, and is parked again
    UPDATE leasehold_internal.calls AS c SET state = 'queued', due_at = pg_catalog.clock_timestamp()
      FROM (SELECT l.company_id, l.id
              FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(subject_ids)) AS w (company_id, id)
             CROSS JOIN LATERAL (SELECT * FROM leasehold.leases AS x
                                  WHERE x.company_id = w.company_id AND x.id = w.id
                                    FOR NO KEY UPDATE SKIP LOCKED) AS l
             WHERE l.status = 'resuming' AND l.acquire_by <= pg_catalog.clock_timestamp()) AS o
     WHERE c.company_id = o.company_id AND c.subject_id = o.id AND c.slot = 'op' AND c.state = 'waiting';

    -- leases whose time is over, by reason; those that a user has locked come again
    FOR v_over IN
        SELECT s.reason, s.code, s.end_status, pg_catalog.array_agg(s.company_id) AS companies,
               pg_catalog.array_agg(s.id) AS ids
          FROM (SELECT l.company_id, l.id,
                       CASE WHEN l.status IN ('acquiring', 'resuming') THEN 'failed' ELSE 'expired' END AS end_status,
                       CASE WHEN l.status IN ('acquiring', 'resuming')
                                 AND l.waiting_for IN ('active_leases', 'lease_starts_per_minute', 'plugin')
                            THEN 'waited too long for ' || l.waiting_for
                            WHEN l.status IN ('acquiring', 'resuming') THEN 'no resource was got in time'
                                 || COALESCE((SELECT ': ' || c.last_error FROM leasehold_internal.calls AS c
                                               WHERE c.company_id = l.company_id AND c.subject_id = l.id AND c.slot = 'op'), '')
                            WHEN l.status = 'retained' THEN 'retention_over'
                            WHEN l.expires_at <= pg_catalog.clock_timestamp() OR leasehold_internal.used_at(l) + l.idle_timeout IS NULL
                            THEN 'lease_expired'
                            ELSE 'idle_timeout' END AS reason,
                       CASE WHEN l.status IN ('acquiring', 'resuming')
                            THEN CASE WHEN l.waiting_for IN ('active_leases', 'lease_starts_per_minute')
                                      THEN 'quota_exceeded' ELSE 'acquire_timeout' END END AS code
                  FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(subject_ids)) AS w (company_id, id)
                 CROSS JOIN LATERAL (SELECT * FROM leasehold.leases AS x
                                      WHERE x.company_id = w.company_id AND x.id = w.id
                                        FOR NO KEY UPDATE SKIP LOCKED) AS l
                 -- everything ends: what has no deadline, which takes somebody's hand, is over
                 WHERE COALESCE(leasehold_internal.lease_deadline(l.status, l.expires_at, leasehold_internal.used_at(l), l.idle_timeout)
                                <= pg_catalog.clock_timestamp(), l.status IN ('active', 'retained'))
                    OR l.status IN ('acquiring', 'resuming') AND l.acquire_by <= pg_catalog.clock_timestamp()
                       AND NOT (l.status = 'resuming' AND l.waiting_for IN ('active_leases', 'lease_starts_per_minute'))
                       AND EXISTS (SELECT FROM leasehold_internal.calls AS c
                                    WHERE c.company_id = l.company_id AND c.subject_id = l.id AND c.slot = 'op'
                                      AND c.state IN ('waiting', 'queued') AND NOT c.look_up)) AS s
         GROUP BY 1, 2, 3
    LOOP
        PERFORM leasehold_internal.end_leases(v_over.companies, v_over.ids, v_over.end_status, 'delete',
            v_over.reason, v_over.code);
        v_company := v_company || v_over.companies;
        v_subject := v_subject || v_over.ids;
    END LOOP;

    PERFORM leasehold_internal.lose_runs(company_ids, subject_ids);

    -- what is left is moved to its deadline, or is about something that is over
    WITH due AS (
        SELECT c.company_id, c.subject_id, c.slot, c.operation,
               CASE c.operation WHEN 'lease_deadline' THEN
                    (SELECT CASE WHEN l.status IN ('active', 'retained')
                                 THEN leasehold_internal.lease_deadline(l.status, l.expires_at, leasehold_internal.used_at(l), l.idle_timeout)
                                 WHEN l.status IN ('acquiring', 'resuming') THEN GREATEST(l.acquire_by, pg_catalog.clock_timestamp() + interval '1 second') END
                       FROM leasehold.leases AS l WHERE l.company_id = c.company_id AND l.id = c.subject_id)
               WHEN 'run_deadline' THEN
                    (SELECT r.heartbeat_at + r.heartbeat_timeout FROM leasehold_internal.runs AS r
                      WHERE r.company_id = c.company_id AND r.id = c.subject_id AND r.status = 'running')
               END AS deadline
          FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(subject_ids)) AS w (company_id, subject_id)
         CROSS JOIN LATERAL (SELECT * FROM leasehold_internal.calls AS x
                              WHERE x.company_id = w.company_id AND x.subject_id = w.subject_id
                                AND x.slot IN ('timer', 'run_timer')
                                FOR UPDATE SKIP LOCKED) AS c
    ), moved AS (
        UPDATE leasehold_internal.calls AS c
           SET due_at = GREATEST(d.deadline, pg_catalog.clock_timestamp() + interval '100 milliseconds')
          FROM due AS d
         WHERE c.company_id = d.company_id AND c.subject_id = d.subject_id AND c.slot = d.slot
           AND d.deadline IS NOT NULL
    ), gone AS (
        DELETE FROM leasehold_internal.calls AS c
         USING due AS d
         WHERE c.company_id = d.company_id AND c.subject_id = d.subject_id AND c.slot = d.slot AND d.deadline IS NULL
        RETURNING c.operation
    )
    SELECT pg_catalog.bool_or(g.operation = 'places') INTO v_places FROM gone AS g;
    IF v_places THEN
        PERFORM leasehold_internal.give_places(limits_changed => true);
    END IF;

    RETURN QUERY SELECT * FROM ROWS FROM (pg_catalog.unnest(v_company), pg_catalog.unnest(v_subject));
END
$$;
COMMENT ON FUNCTION leasehold_internal.fire_deadlines(uuid[], uuid[]) IS
    'Ends the leases and runs among these whose time is over, and moves the other deadlines';

-- Requests whose time is over but which nobody even claims, since the circuit
-- breaker of their provider is open or all its places are taken: for
-- fire_deadlines().
CREATE FUNCTION leasehold_internal.overdue_requests(part integer, parts integer, count integer)
    RETURNS TABLE (company_id uuid, subject_id uuid) LANGUAGE sql VOLATILE ROWS 100 AS $$
    SELECT c.company_id, c.subject_id
      FROM leasehold_internal.calls AS c
     CROSS JOIN LATERAL (SELECT x.acquire_by FROM leasehold.leases AS x
                          WHERE x.company_id = c.company_id AND x.id = c.subject_id OFFSET 0) AS l
     WHERE c.state = 'queued' AND c.due_at <= pg_catalog.clock_timestamp() - interval '1 second'
       AND c.shard % parts = part AND c.operation IN ('acquire', 'resume', 'realize') AND NOT c.look_up
       AND l.acquire_by <= pg_catalog.clock_timestamp()
     LIMIT count
$$;
COMMENT ON FUNCTION leasehold_internal.overdue_requests(integer, integer, integer) IS
    'Requests whose time is over but which nobody claims';
