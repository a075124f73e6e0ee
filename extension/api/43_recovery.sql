-- 43_recovery.sql: what a worker does before it serves: find out what its
-- predecessor left, and what the dispatch table lacks.

-- Calls that were started and never ended: their outcome is unknown.  One that
-- was in flight in several crashes is set aside.  What a user has locked at this
-- moment must not keep the worker from serving the others: housekeeping takes
-- it over later.
CREATE FUNCTION leasehold_internal.recover_calls(epoch bigint, shards smallint[], crash_limit integer, crashed boolean)
    RETURNS integer LANGUAGE sql VOLATILE AS $$
    SELECT leasehold_internal.take_over_calls(ARRAY[epoch], shards, crash_limit, crashed, pg_catalog.clock_timestamp())
$$;
COMMENT ON FUNCTION leasehold_internal.recover_calls(bigint, smallint[], integer, boolean) IS
    'Takes over calls that an earlier worker left without an answer';

-- On an allowed host after a failover, or a recovery to a point in time: what the
-- other server did last may not have come here.  Whatever is queued may be out, or
-- done: acquires are looked up first, and commands are not sent again; once per
-- timeline, by the worker that is first.  Waits for those who have a call locked.
CREATE FUNCTION leasehold_internal.distrust_calls_after_failover() RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_was      integer;
    v_commands bigint;
BEGIN
    SELECT COALESCE(i.dispatch_timeline, i.timeline) INTO v_was
      FROM leasehold_internal.installation AS i, leasehold_internal.here() AS h
     WHERE COALESCE(i.dispatch_timeline, i.timeline) <> h.timeline AND leasehold_internal.hold_reason() IS NULL
       FOR UPDATE OF i;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    UPDATE leasehold_internal.installation AS i SET dispatch_timeline = h.timeline FROM leasehold_internal.here() AS h;
    -- one that is not there waits for its limit again
    UPDATE leasehold_internal.calls AS c
       SET look_up = true, held_by = NULL, state = CASE c.state WHEN 'waiting' THEN 'queued' ELSE c.state END,
           due_at = CASE c.state WHEN 'waiting' THEN pg_catalog.clock_timestamp() ELSE c.due_at END
     WHERE c.slot = 'op' AND c.operation = 'acquire' AND NOT c.look_up;
    -- as if a worker had begun them that is no more: see lose_commands()
    UPDATE leasehold_internal.calls AS c SET state = 'started', worker_epoch = 0, started_at = NULL
     WHERE c.slot = 'command' AND c.state IN ('queued', 'waiting');
    GET DIAGNOSTICS v_commands = ROW_COUNT;
    PERFORM leasehold_internal.record(leasehold_internal.no_company(), 'installation.failed_over', 'installation',
        (SELECT i.id::text FROM leasehold_internal.installation AS i LIMIT 1),
        pg_catalog.jsonb_build_object('timeline', (SELECT h.timeline FROM leasehold_internal.here() AS h), 'was', v_was,
            'commands', v_commands));
END
$$;
COMMENT ON FUNCTION leasehold_internal.distrust_calls_after_failover() IS
    'Has what was queued before a failover looked up, or given up, instead of done twice';

CREATE FUNCTION leasehold_internal.take_over_calls(
        live_epochs bigint[], shards smallint[], crash_limit integer, crashed boolean, started_before timestamptz)
    RETURNS integer LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_count integer;
BEGIN
    WITH lost AS (
        UPDATE leasehold_internal.calls AS c
           SET state = CASE WHEN crashed AND c.crashes + 1 >= crash_limit THEN 'quarantined' ELSE 'queued' END,
               crashes = c.crashes + CASE WHEN crashed THEN 1 ELSE 0 END,
               look_up = c.look_up OR c.operation = 'acquire', worker_epoch = NULL,
               due_at = pg_catalog.clock_timestamp(), last_error = 'the worker ended before the answer came'
          FROM (SELECT x.company_id, x.subject_id, x.slot FROM leasehold_internal.calls AS x
                 WHERE x.state = 'started' AND x.shard = ANY (shards) AND x.slot <> 'command'
                   AND (x.started_at <= started_before OR x.started_at IS NULL)
                   AND NOT COALESCE(x.worker_epoch = ANY (live_epochs), false)
                   FOR UPDATE SKIP LOCKED) AS p
         WHERE c.company_id = p.company_id AND c.subject_id = p.subject_id AND c.slot = p.slot
        RETURNING c.*
    ), lease AS (
        UPDATE leasehold.leases AS l SET waiting_for = 'quarantine'
          FROM (SELECT x.company_id, x.id FROM leasehold.leases AS x
                  JOIN lost AS c ON x.company_id = c.company_id AND x.id = c.subject_id
                 WHERE c.slot = 'op' AND c.state = 'quarantined' FOR NO KEY UPDATE OF x SKIP LOCKED) AS p
         WHERE l.company_id = p.company_id AND l.id = p.id
    ), event AS (
        INSERT INTO leasehold.audit_events (company_id, action, entity_type, entity_id, details)
        SELECT c.company_id,
               CASE c.operation WHEN 'initialize' THEN 'plugin.quarantined'
                                WHEN 'reconcile' THEN 'environment.sweep_quarantined'
                                WHEN 'destroy_stray' THEN 'environment.stray_quarantined'
                                WHEN 'cancel_command' THEN 'environment.command_cancel_quarantined'
                                ELSE 'environment.lease_quarantined' END,
               CASE c.operation WHEN 'initialize' THEN 'plugin' WHEN 'reconcile' THEN 'environment'
                                WHEN 'destroy_stray' THEN 'provider_resource' WHEN 'cancel_command' THEN 'command'
                                ELSE 'environment_lease' END,
               CASE c.operation WHEN 'initialize' THEN c.payload ->> 'plugin'
                                WHEN 'destroy_stray' THEN COALESCE(r.provider_lease_id, c.subject_id::text)
                                ELSE c.subject_id::text END,
               pg_catalog.jsonb_build_object('operation', c.operation, 'crashes', c.crashes)
          FROM lost AS c
          LEFT JOIN leasehold_internal.provider_resources AS r
            ON c.operation = 'destroy_stray' AND r.company_id = c.company_id AND r.stray_id = c.subject_id
         WHERE c.state = 'quarantined'
    )
    SELECT pg_catalog.count(*) INTO v_count FROM lost;
    RETURN v_count + leasehold_internal.lose_commands(live_epochs, shards, started_before);
END
$$;
COMMENT ON FUNCTION leasehold_internal.take_over_calls(bigint[], smallint[], integer, boolean, timestamptz) IS
    'Takes over calls that no live worker has; but none that a user has locked';

-- Sweeps, and the removal of what they found, are tried once more after a day:
-- nobody else lets them out.  They keep their count of crashes, so that one more
-- sets them aside again; an answer forgives them.
CREATE FUNCTION leasehold_internal.revive_quarantined(shards smallint[]) RETURNS void
    LANGUAGE sql VOLATILE AS $$
    UPDATE leasehold_internal.calls AS c SET state = 'queued', due_at = pg_catalog.clock_timestamp()
      FROM (SELECT x.company_id, x.subject_id, x.slot FROM leasehold_internal.calls AS x
             WHERE x.state = 'quarantined' AND x.operation IN ('reconcile', 'destroy_stray', 'cancel_command')
               AND x.shard = ANY (shards) AND x.due_at < pg_catalog.clock_timestamp() - interval '1 day'
               FOR UPDATE SKIP LOCKED) AS p
     WHERE c.company_id = p.company_id AND c.subject_id = p.subject_id AND c.slot = p.slot
$$;
COMMENT ON FUNCTION leasehold_internal.revive_quarantined(smallint[]) IS
    'Has sweeps, removals of strays and ends of commands tried again that were set aside a day ago';

-- Queues what the states of leases and runs, and strays, ask for and the dispatch
-- table does not have: after a restore, or when a state was changed by hand.
CREATE FUNCTION leasehold_internal.rebuild_calls(shards smallint[]) RETURNS integer
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_count integer;
BEGIN
    WITH wanted AS (
        SELECT l.company_id, l.id, 'op'::text AS slot, l.provider, l.generation,
               CASE WHEN l.status = 'acquiring' AND l.provider_lease_id IS NOT NULL THEN 'realize'
                    WHEN l.status = 'acquiring' OR l.provider_lease_id IS NULL AND l.acquired_at IS NULL THEN 'acquire'
                    WHEN l.status = 'resuming' THEN 'resume'
                    WHEN l.disposition = 'delete' AND l.policy <> 'ephemeral' THEN 'destroy'
                    ELSE 'release' END AS operation,
               -- whether the request was ever sent is not known
               l.provider_lease_id IS NULL AND (l.status = 'acquiring' OR l.acquired_at IS NULL) AS look_up,
               pg_catalog.clock_timestamp() AS due_at
          FROM leasehold.leases AS l
         WHERE l.status IN ('acquiring', 'resuming', 'releasing', 'pending_cleanup')
        UNION ALL
        SELECT l.company_id, l.id, 'timer', '', l.generation, 'lease_deadline', false,
               leasehold_internal.lease_deadline(l.status, l.expires_at, l.last_used_at, l.idle_timeout)
          FROM leasehold.leases AS l WHERE l.status IN ('active', 'retained')
        UNION ALL
        SELECT r.company_id, r.id, 'run_timer', '', 1, 'run_deadline', false, r.heartbeat_at + r.heartbeat_timeout
          FROM leasehold_internal.runs AS r WHERE r.status = 'running'
        UNION ALL
        SELECT r.company_id, r.stray_id, 'op', r.provider, r.generation, 'destroy_stray', false,
               pg_catalog.clock_timestamp()
          FROM leasehold_internal.provider_resources AS r
         WHERE r.stray_id IS NOT NULL
           -- after a takeover somebody may use it since: not before approve_sweep()
           AND NOT EXISTS (SELECT FROM leasehold_internal.installation AS i WHERE i.sweep_dry)
    ), missing AS MATERIALIZED (
        SELECT w.*
          FROM wanted AS w
         WHERE leasehold_internal.shard_of(w.company_id) = ANY (shards)
           AND NOT EXISTS (SELECT FROM leasehold_internal.calls AS c
                            WHERE c.company_id = w.company_id AND c.subject_id = w.id AND c.slot = w.slot)
    ), made AS (
        INSERT INTO leasehold_internal.calls
               (company_id, subject_id, slot, operation, provider, shard, generation, look_up, due_at)
        SELECT m.company_id, m.id, m.slot, m.operation, m.provider, leasehold_internal.shard_of(m.company_id),
               m.generation, m.look_up, COALESCE(m.due_at, pg_catalog.clock_timestamp())
          FROM missing AS m
          -- somebody who has the subject locked may be about to write its calls
          LEFT JOIN LATERAL (SELECT x.id FROM leasehold.leases AS x
                              WHERE m.slot <> 'run_timer' AND x.company_id = m.company_id AND x.id = m.id
                                FOR NO KEY UPDATE SKIP LOCKED) AS l ON true
          LEFT JOIN LATERAL (SELECT x.id FROM leasehold_internal.runs AS x
                              WHERE m.slot = 'run_timer' AND x.company_id = m.company_id AND x.id = m.id
                                FOR NO KEY UPDATE SKIP LOCKED) AS r ON true
          LEFT JOIN LATERAL (SELECT x.stray_id AS id FROM leasehold_internal.provider_resources AS x
                              WHERE m.operation = 'destroy_stray' AND x.company_id = m.company_id AND x.stray_id = m.id
                                FOR NO KEY UPDATE SKIP LOCKED) AS s ON true
         WHERE l.id IS NOT NULL OR r.id IS NOT NULL OR s.id IS NOT NULL
        ON CONFLICT DO NOTHING
        RETURNING 1
    )
    SELECT pg_catalog.count(*) INTO v_count FROM made;

    PERFORM leasehold_internal.queue_initialize(p.key) FROM leasehold.plugins AS p
      WHERE 0 = ANY (shards) AND p.status IN ('installed', 'error')
        AND NOT EXISTS (SELECT FROM leasehold_internal.calls AS c
                         WHERE c.company_id = leasehold_internal.no_company()
                           AND c.subject_id = leasehold_internal.plugin_subject(p.key));
    RETURN v_count;
END
$$;
COMMENT ON FUNCTION leasehold_internal.rebuild_calls(smallint[]) IS
    'Queues what states ask for and the dispatch table lacks';

-- An answer that could not be stored counts as unknown; a call that this
-- happens to again and again is set aside.
CREATE FUNCTION leasehold_internal.set_answer_aside(
        epoch bigint, company_id uuid, subject_id uuid, slot text, crash_limit integer, base_ms integer)
    RETURNS void LANGUAGE sql VOLATILE AS $$
    UPDATE leasehold_internal.calls AS c
       SET state = CASE WHEN c.crashes + 1 >= crash_limit THEN 'quarantined' ELSE 'queued' END,
           crashes = c.crashes + 1, look_up = c.look_up OR c.operation = 'acquire', worker_epoch = NULL,
           due_at = pg_catalog.clock_timestamp() + leasehold_internal.backoff(c.crashes + 1, base_ms, 60000),
           last_error = 'the answer could not be stored; see the server log'
     WHERE c.company_id = set_answer_aside.company_id AND c.subject_id = set_answer_aside.subject_id
       AND c.slot = set_answer_aside.slot AND c.state = 'started' AND c.worker_epoch = epoch
$$;
COMMENT ON FUNCTION leasehold_internal.set_answer_aside(bigint, uuid, uuid, text, integer, integer) IS
    'Puts a call aside whose answer could not be stored';

-- A call that could not be worked on comes again after a pause, or, without a
-- slot, the deadlines of its subject; not what somebody has locked, who may
-- change it.
CREATE FUNCTION leasehold_internal.postpone_call(company_id uuid, subject_id uuid, slot text, pause interval)
    RETURNS void LANGUAGE sql VOLATILE AS $$
    UPDATE leasehold_internal.calls AS c
       SET due_at = pg_catalog.clock_timestamp() + pause,
           last_error = 'could not be worked on; see the server log'
      FROM (SELECT x.company_id, x.subject_id, x.slot FROM leasehold_internal.calls AS x
             WHERE x.company_id = postpone_call.company_id AND x.subject_id = postpone_call.subject_id
               AND (x.slot = postpone_call.slot OR postpone_call.slot IS NULL AND x.slot IN ('timer', 'run_timer'))
               AND x.state = 'queued'
               FOR UPDATE SKIP LOCKED) AS p
     WHERE c.company_id = p.company_id AND c.subject_id = p.subject_id AND c.slot = p.slot
$$;
COMMENT ON FUNCTION leasehold_internal.postpone_call(uuid, uuid, text, interval) IS
    'Has a call or deadline come again after a pause';
