-- 41_completion.sql: what an answer, or its absence, does to a lease.
--
-- Outcomes, as the worker classifies them:
--   ok         the provider did it
--   gone       there is no such resource (any more)
--   retry      known not to have been done; may work later
--   throttled  the same, and the provider says so itself (429, 503): not a failed
--              try, though the pauses grow
--   failed     known not to have been done, and will not be
--   unknown    it may have been done: cut, timed out, garbage, a crash

CREATE FUNCTION leasehold_internal.backoff(attempts integer, base_ms integer, most_ms integer) RETURNS interval
    LANGUAGE sql VOLATILE AS $$
    SELECT pg_catalog.make_interval(secs =>
        LEAST(base_ms * pg_catalog.power(2, LEAST(GREATEST(attempts, 1) - 1, 30)), most_ms) / 1000.0
        * (0.5 + pg_catalog.random()))
$$;
COMMENT ON FUNCTION leasehold_internal.backoff(integer, integer, integer) IS
    'The pause before a retry: doubled each time up to a limit, give or take half';

-- Longer if the provider asks for it, but no longer than a day.
CREATE FUNCTION leasehold_internal.retry_pause(attempts integer, base_ms integer, most_ms integer, retry_after_ms bigint)
    RETURNS interval LANGUAGE sql VOLATILE AS $$
    SELECT GREATEST(leasehold_internal.backoff(attempts, base_ms, most_ms),
                    pg_catalog.make_interval(secs => LEAST(retry_after_ms, 86400000) / 1000.0))
$$;
COMMENT ON FUNCTION leasehold_internal.retry_pause(integer, integer, integer, bigint) IS
    'The pause before a retry that the provider may have asked to come later';

-- The one place where an outcome becomes a decision.
--   realize    it has its resource, whose workspace the provider is to make
--   activate   the lease has its resource
--   dispose    it has one, but is to end: release it
--   unusable   it has one that is of no use: the request has failed, release it
--   reacquire  the parked resource is of no use: get a new one
--   look_up    find out what became of the request
--   again      the request is known to have had no effect: send it again
--   later      try the same again after a pause
--   cleanup    could not be removed yet: try again after a pause
--   fail       the request has failed
--   end        over, with nothing left at the provider but what was parked
--   park       the limits leave no place to take the parked resource into use
--   irrevocable
CREATE FUNCTION leasehold_internal.decide(
        operation text, look_up boolean, outcome text, status text, attempts integer, in_time boolean,
        looks_up boolean, realizes boolean, acquire_attempts integer, cleanup_attempts integer)
    RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE operation
    WHEN 'acquire' THEN CASE
        WHEN outcome = 'ok' THEN CASE WHEN status <> 'acquiring' THEN 'dispose' WHEN realizes THEN 'realize' ELSE 'activate' END
        WHEN look_up THEN CASE
            WHEN outcome = 'gone' THEN CASE WHEN status <> 'acquiring' THEN 'end' WHEN in_time THEN 'again' ELSE 'fail' END
            WHEN outcome = 'throttled' OR attempts < cleanup_attempts THEN 'later'
            ELSE 'irrevocable' END
        WHEN outcome = 'unknown' THEN CASE WHEN looks_up THEN 'look_up' ELSE 'irrevocable' END
        WHEN status <> 'acquiring' THEN 'end'
        WHEN outcome = 'failed' OR outcome = 'gone' OR NOT in_time THEN 'fail'
        WHEN outcome = 'throttled' OR attempts < acquire_attempts THEN 'later'
        ELSE 'fail' END
    WHEN 'resume' THEN CASE
        WHEN status <> 'resuming' THEN CASE WHEN outcome = 'gone' THEN 'end' ELSE 'dispose' END
        WHEN outcome = 'ok' THEN CASE WHEN realizes THEN 'realize' ELSE 'activate' END
        WHEN outcome = 'throttled' AND in_time THEN 'later'
        WHEN outcome IN ('retry', 'unknown') AND in_time AND attempts < acquire_attempts THEN 'later'
        ELSE 'reacquire' END
    -- which can be done twice
    WHEN 'realize' THEN CASE
        WHEN status NOT IN ('acquiring', 'resuming') THEN 'dispose'
        WHEN outcome = 'ok' THEN 'activate'
        WHEN outcome = 'throttled' AND in_time THEN 'later'
        WHEN outcome IN ('retry', 'unknown') AND in_time AND attempts < acquire_attempts THEN 'later'
        ELSE 'unusable' END
    ELSE CASE
        WHEN outcome IN ('ok', 'gone') THEN 'end'
        WHEN outcome = 'failed' THEN 'irrevocable'
        WHEN outcome = 'throttled' OR attempts < cleanup_attempts THEN 'cleanup'
        ELSE 'irrevocable' END
    END
$$;
COMMENT ON FUNCTION leasehold_internal.decide(text, boolean, text, text, integer, boolean, boolean, boolean, integer, integer) IS
    'What an outcome means for a lease';

-- Notes which leases hold these resources.  One that another lease holds, or that
-- is to be removed, is not this lease's.  Who holds one without having committed
-- decides for that resource alone: returns the places in the arrays of those that
-- it has to be waited for.
CREATE FUNCTION leasehold_internal.claim_resources(
        providers text[], provider_lease_ids text[], company_ids uuid[], lease_ids uuid[])
    RETURNS integer[] LANGUAGE plpgsql VOLATILE
    SET lock_timeout = '2ms' AS $$
#variable_conflict use_column
DECLARE
    v_busy integer[] := '{}';
BEGIN
    BEGIN
        INSERT INTO leasehold_internal.provider_resources (provider, provider_lease_id, company_id, lease_id)
        SELECT * FROM ROWS FROM (pg_catalog.unnest(providers), pg_catalog.unnest(provider_lease_ids),
                                 pg_catalog.unnest(company_ids), pg_catalog.unnest(lease_ids))
        ON CONFLICT DO NOTHING;
        RETURN v_busy;
    EXCEPTION WHEN lock_not_available THEN
        NULL;  -- then one by one
    END;
    FOR i IN 1 .. pg_catalog.cardinality(lease_ids) LOOP
        BEGIN
            INSERT INTO leasehold_internal.provider_resources (provider, provider_lease_id, company_id, lease_id)
            VALUES (providers[i], provider_lease_ids[i], company_ids[i], lease_ids[i])
            ON CONFLICT DO NOTHING;
        EXCEPTION WHEN lock_not_available THEN
            v_busy := v_busy || i;
        END;
    END LOOP;
    RETURN v_busy;
END
$$;
COMMENT ON FUNCTION leasehold_internal.claim_resources(text[], text[], uuid[], uuid[]) IS
    'Notes which leases hold these resources; returns the places of those that cannot be decided yet';

-- Applies answers.  Returns for each what became of it: applied; locked (by a
-- user: hand it in again a little later); or stale (it is of an older
-- generation or epoch, and was ignored).  ended says that a place became free.
CREATE FUNCTION leasehold_internal.complete_calls(
        epoch bigint, company_ids uuid[], subject_ids uuid[], generations integer[], outcomes text[],
        provider_lease_ids text[], metadatas text[], expirations timestamptz[], codes text[], messages text[],
        retry_after_ms bigint[], base_ms integer, most_ms integer, acquire_attempts integer, cleanup_attempts integer)
    RETURNS TABLE (company_id uuid, subject_id uuid, applied text, ended boolean)
    LANGUAGE plpgsql VOLATILE ROWS 100 AS $$
#variable_conflict use_column
DECLARE
    v_locked   smallint[];
    v_got      record;
    v_busy     integer;
    v_ceilings boolean := EXISTS (SELECT FROM leasehold.limits AS m WHERE m.name = 'lease_ttl_max');
    v_realize  boolean := EXISTS (SELECT FROM leasehold.plugins AS g
                                   WHERE 'environmentRealizeWorkspace' = ANY (g.supported_methods));
BEGIN
    -- first the locks, then, in a later snapshot, the rows
    -- (1: locked; 0: somebody else has it locked; NULL: there is no such lease)
    SELECT pg_catalog.array_agg(CASE WHEN l.id IS NOT NULL THEN 1 WHEN e.id IS NOT NULL THEN 0 END ORDER BY w.nr)
      INTO v_locked
      FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(subject_ids)) WITH ORDINALITY AS w (company_id, id, nr)
      LEFT JOIN LATERAL (SELECT x.id FROM leasehold.leases AS x
                          WHERE x.company_id = w.company_id AND x.id = w.id
                            FOR NO KEY UPDATE SKIP LOCKED) AS l ON true
      LEFT JOIN LATERAL (SELECT x.id FROM leasehold.leases AS x
                          WHERE l.id IS NULL AND x.company_id = w.company_id AND x.id = w.id OFFSET 0) AS e ON true;

    SELECT pg_catalog.array_agg(a.nr::integer) AS places, pg_catalog.array_agg(l.provider::text) AS providers,
           pg_catalog.array_agg(a.provider_lease_id) AS resources,
           pg_catalog.array_agg(l.company_id) AS companies, pg_catalog.array_agg(l.id) AS ids
      INTO v_got
      FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(subject_ids), pg_catalog.unnest(generations),
                      pg_catalog.unnest(outcomes), pg_catalog.unnest(provider_lease_ids), pg_catalog.unnest(v_locked))
           WITH ORDINALITY AS a (company_id, id, generation, outcome, provider_lease_id, locked, nr)
     CROSS JOIN LATERAL (SELECT * FROM leasehold.leases AS x
                          WHERE x.company_id = a.company_id AND x.id = a.id OFFSET 0) AS l
     CROSS JOIN LATERAL (SELECT * FROM leasehold_internal.calls AS x
                          WHERE x.company_id = a.company_id AND x.subject_id = a.id AND x.slot = 'op' OFFSET 0) AS c
     WHERE a.locked = 1 AND a.outcome = 'ok' AND a.provider_lease_id IS NOT NULL AND l.generation = a.generation
       AND (c.operation = 'acquire' OR c.operation = 'resume' AND a.provider_lease_id <> l.provider_lease_id)
       AND c.state = 'started' AND c.worker_epoch = epoch;
    IF v_got.places IS NOT NULL THEN
        FOREACH v_busy IN ARRAY leasehold_internal.claim_resources(v_got.providers, v_got.resources, v_got.companies,
                                                                   v_got.ids) LOOP
            v_locked[v_got.places[v_busy]] := 0;
        END LOOP;
    END IF;

    RETURN QUERY
    WITH found AS MATERIALIZED (
        SELECT a.company_id, a.id, a.generation, a.provider_lease_id, a.metadata, a.expires_at, a.retry_after_ms,
               CASE WHEN o.other THEN 'failed' ELSE a.outcome END AS outcome,
               CASE WHEN o.other THEN 'another_resource' ELSE a.code END AS code,
               CASE WHEN o.other THEN pg_catalog.format('the provider answered with another resource, "%s"', a.provider_lease_id)
                    ELSE a.message END AS message,
               l.status AS old_status, l.provider, l.provider_lease_id AS old_resource,
               c.operation, c.look_up, c.attempts, c.attempts - c.throttled AS tries, c.last_error,
               CASE WHEN c.operation = 'acquire' AND a.outcome = 'ok' AND l.policy = 'reuse_by_environment'
                         AND l.adapter_type IS NULL
                    THEN COALESCE(pg_catalog.left(a.metadata::jsonb ->> 'adapterType', 200), '') END AS new_adapter,
               COALESCE(c.payload ? 'destroy', false) AS then_destroy, COALESCE(c.payload ? 'limit', false) AS no_place,
               -- what was destroyed is not parked, even if it should have been
               c.operation = 'release' AND a.outcome = 'ok' AND l.end_status = 'retained' AS parked,
               -- during a look-up the lease remembers how often it was asked for
               (l.acquire_by IS NULL OR l.acquire_by > pg_catalog.clock_timestamp())
               AND (NOT c.look_up OR l.attempts < acquire_attempts) AS in_time,
               CASE WHEN a.outcome = 'unknown' THEN leasehold_internal.provider_looks_up(l.provider) END AS looks_up,
               v_realize AND a.outcome = 'ok' AND c.operation IN ('acquire', 'resume') AND a.provider_lease_id IS NOT NULL
               AND leasehold_internal.provider_realizes(l.provider) AS realizes,
               CASE WHEN a.outcome = 'ok' AND c.operation = 'acquire' AND a.provider_lease_id IS NOT NULL THEN
                    NOT EXISTS (SELECT FROM leasehold_internal.provider_resources AS r
                                 WHERE r.provider = l.provider AND r.provider_lease_id = a.provider_lease_id
                                   AND r.company_id = l.company_id AND r.lease_id = l.id) END AS taken
          FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(subject_ids), pg_catalog.unnest(generations),
                          pg_catalog.unnest(outcomes), pg_catalog.unnest(provider_lease_ids), pg_catalog.unnest(metadatas),
                          pg_catalog.unnest(expirations), pg_catalog.unnest(codes), pg_catalog.unnest(messages),
                          pg_catalog.unnest(retry_after_ms), pg_catalog.unnest(v_locked))
               AS a (company_id, id, generation, outcome, provider_lease_id, metadata, expires_at, code, message,
                     retry_after_ms, locked)
         CROSS JOIN LATERAL (SELECT * FROM leasehold.leases AS x
                              WHERE x.company_id = a.company_id AND x.id = a.id OFFSET 0) AS l
         CROSS JOIN LATERAL (SELECT * FROM leasehold_internal.calls AS x
                              WHERE x.company_id = a.company_id AND x.subject_id = a.id AND x.slot = 'op' OFFSET 0) AS c
         -- a resumed resource is the one that was parked, not some other, which may be somebody else's
         CROSS JOIN LATERAL (SELECT c.operation = 'resume' AND a.outcome = 'ok'
                                    AND a.provider_lease_id IS DISTINCT FROM l.provider_lease_id AS other) AS o
         WHERE a.locked = 1 AND l.generation = a.generation AND c.state = 'started' AND c.worker_epoch = epoch
    ), answer AS (
        SELECT f.*, leasehold_internal.decide(f.operation, f.look_up, f.outcome, f.old_status, f.tries, f.in_time,
                   f.looks_up, f.realizes, acquire_attempts, cleanup_attempts) AS decision
          FROM found AS f
    ), step AS MATERIALIZED (
        -- a taken resource is somebody else's: the request failed, and it must not be removed
        SELECT a.*, CASE WHEN a.taken AND a.operation = 'acquire' AND a.outcome = 'ok'
                         THEN CASE WHEN a.old_status = 'acquiring' THEN 'fail' ELSE 'end' END
                         -- it was parked, but is to be deleted meanwhile
                         WHEN a.then_destroy AND a.decision = 'end' AND a.outcome = 'ok' THEN 'dispose'
                         -- it could be resumed, if only there were a place for it
                         WHEN a.no_place AND a.decision = 'reacquire' THEN 'park'
                         ELSE a.decision END AS step,
               pg_catalog.clock_timestamp()
               + leasehold_internal.retry_pause(a.attempts, base_ms, most_ms, a.retry_after_ms) AS later
          FROM answer AS a
    ), lease AS (
        UPDATE leasehold.leases AS l
           SET status = CASE s.step
                   WHEN 'activate' THEN 'active'
                   WHEN 'dispose' THEN CASE WHEN l.status = 'pending_cleanup' THEN 'pending_cleanup' ELSE 'releasing' END
                   WHEN 'unusable' THEN 'releasing'
                   WHEN 'reacquire' THEN 'acquiring'
                   WHEN 'cleanup' THEN 'pending_cleanup'
                   WHEN 'fail' THEN 'failed'
                   WHEN 'irrevocable' THEN 'irrevocable'
                   WHEN 'park' THEN 'retained'
                   WHEN 'end' THEN CASE WHEN l.end_status = 'retained' AND NOT s.parked THEN 'released'
                                        ELSE COALESCE(l.end_status, 'released') END
                   ELSE l.status END,
               generation = l.generation + CASE WHEN s.step = 'reacquire' THEN 1 ELSE 0 END,
               -- what nobody could take into use again is not parked
               adapter_type = COALESCE(NULLIF(s.new_adapter, ''), l.adapter_type),
               policy = CASE WHEN l.policy = 'reuse_by_environment' AND s.operation = 'acquire' AND s.outcome = 'ok'
                                  AND s.provider_lease_id IS NULL THEN 'ephemeral'
                             WHEN s.new_adapter = '' AND EXISTS (
                                   SELECT FROM leasehold.providers AS p
                                    WHERE p.key = l.provider AND p.plugin_key IS NOT NULL)
                             THEN 'ephemeral' ELSE l.policy END,
               provider_lease_id = CASE WHEN s.taken THEN NULL
                   WHEN s.outcome = 'ok' AND s.operation = 'acquire' THEN s.provider_lease_id
                   WHEN s.outcome = 'ok' AND s.step IN ('activate', 'realize') THEN COALESCE(s.provider_lease_id, l.provider_lease_id)
                   WHEN s.step = 'reacquire' THEN NULL ELSE l.provider_lease_id END,
               acquired_at = CASE s.step WHEN 'activate' THEN pg_catalog.clock_timestamp()
                                         WHEN 'reacquire' THEN NULL ELSE l.acquired_at END,
               last_used_at = CASE WHEN s.step = 'activate' THEN pg_catalog.clock_timestamp() ELSE l.last_used_at END,
               provider_expires_at = CASE WHEN s.operation = 'realize' THEN l.provider_expires_at
                                          WHEN s.outcome = 'ok' AND s.step IN ('activate', 'dispose', 'realize') THEN s.expires_at
                                          ELSE l.provider_expires_at END,
               -- a parked resource waits for its next use as long as a lease may live
               expires_at = CASE WHEN s.step = 'end' AND s.parked THEN
                   pg_catalog.clock_timestamp()
                   + CASE WHEN v_ceilings THEN leasehold_internal.ttl_ceiling(l.company_id, l.environment_id, l.provider)
                          ELSE interval '24 hours' END
                   WHEN s.step = 'activate' THEN
                   LEAST(pg_catalog.clock_timestamp()
                         + LEAST(l.ttl, CASE WHEN v_ceilings THEN leasehold_internal.ttl_ceiling(l.company_id, l.environment_id, l.provider)
                                         ELSE interval '24 hours' END),
                         CASE WHEN s.operation = 'realize' THEN l.provider_expires_at ELSE s.expires_at END)
                   ELSE l.expires_at END,
               end_status = CASE WHEN s.step = 'park' THEN 'retained'
                                 WHEN s.step IN ('fail', 'irrevocable', 'unusable') THEN COALESCE(l.end_status, 'failed') ELSE l.end_status END,
               -- what is found after all was asked for by somebody who has given up
               disposition = CASE WHEN s.step = 'park' THEN 'stop'
                                  WHEN s.step IN ('irrevocable', 'unusable') THEN COALESCE(l.disposition, 'delete') ELSE l.disposition END,
               ended_at = CASE WHEN s.step IN ('fail', 'end', 'park') THEN pg_catalog.clock_timestamp() ELSE l.ended_at END,
               cleanup_status = CASE WHEN s.step IN ('end', 'park') THEN 'success'
                                     WHEN s.step IN ('cleanup', 'irrevocable') THEN 'failed' ELSE l.cleanup_status END,
               failure_code = CASE WHEN s.taken THEN 'resource_taken'
                                   WHEN s.step = 'unusable' THEN 'workspace_realization_failed'
                                   WHEN s.step = 'fail' AND s.look_up THEN 'lease_acquire_failed'
                                   WHEN s.step IN ('fail', 'cleanup', 'irrevocable', 'reacquire', 'park')
                                        THEN COALESCE(CASE WHEN s.step = 'irrevocable' AND s.operation = 'acquire'
                                                           THEN 'acquire_outcome_unknown' END, s.code, l.failure_code)
                                   WHEN s.step = 'activate' THEN NULL ELSE l.failure_code END,
               failure_reason = CASE WHEN s.taken THEN 'the provider answered with a resource that another lease holds or that is to be removed'
                                     WHEN s.step = 'fail' AND s.look_up THEN COALESCE(s.last_error, s.message)
                                     WHEN s.step IN ('fail', 'cleanup', 'irrevocable', 'park', 'unusable') AND l.failure_reason IS NULL
                                          THEN s.message
                                     WHEN s.step = 'activate' THEN NULL ELSE l.failure_reason END,
               attempts = CASE WHEN s.step IN ('again', 'later') AND s.look_up THEN l.attempts
                               WHEN s.step = 'look_up' THEN s.tries
                               WHEN s.step IN ('later', 'cleanup') THEN s.attempts ELSE 0 END,
               waiting_for = CASE WHEN s.step IN ('later', 'look_up', 'cleanup')
                                  THEN pg_catalog.concat_ws(': ', 'retry', s.code) END
          FROM step AS s
         WHERE l.company_id = s.company_id AND l.id = s.id
        RETURNING l.*, s.step, s.outcome, s.operation, s.code, s.message, s.metadata, s.old_status, s.old_resource, s.later,
                  s.attempts AS attempt, s.generation AS old_generation
    ), done AS (
        DELETE FROM leasehold_internal.calls AS c
         USING lease AS l
         WHERE c.company_id = l.company_id AND c.subject_id = l.id
           AND (c.slot = 'op' AND l.step IN ('activate', 'fail', 'end', 'irrevocable', 'park')
                OR c.slot = 'timer' AND l.step IN ('fail', 'end', 'irrevocable', 'dispose') AND l.status <> 'retained')
    ), next AS (
        UPDATE leasehold_internal.calls AS c
           SET state = 'queued', worker_epoch = NULL, generation = l.generation,
               operation = CASE WHEN c.payload ? 'destroy' THEN 'destroy' ELSE CASE l.step
                   WHEN 'realize' THEN 'realize'
                   WHEN 'reacquire' THEN 'acquire'
                   WHEN 'later' THEN c.operation WHEN 'look_up' THEN c.operation WHEN 'again' THEN c.operation WHEN 'cleanup' THEN c.operation
                   -- its resource is to go
                   ELSE CASE WHEN l.disposition = 'delete' AND l.policy <> 'ephemeral' THEN 'destroy' ELSE 'release' END
                   END END,
               payload = CASE WHEN c.payload ? 'destroy' THEN NULL ELSE c.payload END,
               look_up = CASE l.step WHEN 'look_up' THEN true WHEN 'later' THEN c.look_up ELSE false END,
               attempts = CASE WHEN l.step IN ('dispose', 'reacquire', 'look_up', 'realize', 'unusable') THEN 0
                               WHEN l.step = 'again' THEN l.attempts ELSE c.attempts END,
               throttled = CASE WHEN l.step IN ('dispose', 'reacquire', 'look_up', 'again', 'realize', 'unusable') THEN 0
                                WHEN l.outcome = 'throttled' THEN c.throttled + 1 ELSE c.throttled END,
               -- a look that went well says nothing about the request that it is for
               crashes = CASE WHEN l.step IN ('dispose', 'reacquire', 'realize', 'unusable') THEN 0 ELSE c.crashes END,
               last_error = CASE WHEN l.step = 'again' THEN c.last_error ELSE pg_catalog.left(l.message, 500) END,
               -- a request does not wait longer than it may live
               due_at = CASE WHEN l.step = 'later' AND l.operation IN ('acquire', 'resume', 'realize') AND NOT c.look_up
                             THEN LEAST(l.later, GREATEST(l.acquire_by, pg_catalog.clock_timestamp()))
                             WHEN l.step IN ('later', 'look_up', 'cleanup') THEN l.later
                             ELSE pg_catalog.clock_timestamp() END
          FROM lease AS l
         WHERE c.company_id = l.company_id AND c.subject_id = l.id AND c.slot = 'op'
           AND l.step IN ('dispose', 'reacquire', 'look_up', 'again', 'later', 'cleanup', 'realize', 'unusable')
    ), timer AS (
        INSERT INTO leasehold_internal.calls AS c (company_id, subject_id, slot, operation, shard, due_at, generation)
        SELECT l.company_id, l.id, 'timer', 'lease_deadline', leasehold_internal.shard_of(l.company_id),
               leasehold_internal.lease_deadline(l.status, l.expires_at, l.last_used_at, l.idle_timeout), l.generation
          FROM lease AS l WHERE l.step = 'activate' OR l.status = 'retained'
        ON CONFLICT (company_id, subject_id, slot) DO UPDATE SET due_at = excluded.due_at, state = 'queued'
    ), stray AS (
        -- a parked resource that could not be resumed, and one that came in its stead, are removed on their own
        UPDATE leasehold_internal.provider_resources AS r
           SET lease_id = NULL, stray_id = leasehold.new_id(), environment_id = l.environment_id,
               config_version = l.config_version, made_for = l.id::text, generation = l.old_generation,
               reason = CASE WHEN r.provider_lease_id = l.old_resource THEN 'resume_failed' ELSE 'resumed_instead' END
          FROM lease AS l
         WHERE l.operation = 'resume' AND r.company_id = l.company_id AND r.lease_id = l.id
           AND (l.step = 'reacquire' AND l.outcome <> 'gone' OR r.provider_lease_id <> l.old_resource)
        RETURNING r.*
    ), removal AS (
        INSERT INTO leasehold_internal.calls (company_id, subject_id, slot, operation, provider, shard, generation)
        SELECT r.company_id, r.stray_id, 'op', 'destroy_stray', r.provider, leasehold_internal.shard_of(r.company_id),
               r.generation
          FROM stray AS r
    ), stray_event AS (
        INSERT INTO leasehold.audit_events (company_id, action, entity_type, entity_id, details)
        SELECT r.company_id, 'environment.stray_found', 'provider_resource', r.provider_lease_id,
               leasehold_internal.stray_details(r)
          FROM stray AS r
    ), freed AS (
        DELETE FROM leasehold_internal.provider_resources AS r
         USING lease AS l
         WHERE r.company_id = l.company_id AND r.lease_id = l.id
           AND (l.step = 'end' AND l.status <> 'retained' OR l.step = 'reacquire' AND l.outcome = 'gone')
    ), metadata AS (
        INSERT INTO leasehold.lease_metadata AS m (company_id, lease_id, metadata)
        SELECT l.company_id, l.id, CASE l.operation WHEN 'realize'
               THEN pg_catalog.jsonb_build_object('workspaceRealization', l.metadata::jsonb) ELSE l.metadata::jsonb END
          FROM lease AS l
         WHERE l.metadata IS NOT NULL AND l.outcome = 'ok' AND l.step IN ('activate', 'dispose', 'realize')
        ON CONFLICT (company_id, lease_id) DO UPDATE
               -- what the provider said of the resource stays when it says something of the workspace
           SET metadata = CASE WHEN excluded.metadata ? 'workspaceRealization' THEN m.metadata ELSE '{}' END || excluded.metadata,
               updated_at = pg_catalog.now()
    ), event AS (
        INSERT INTO leasehold.audit_events
               (company_id, action, entity_type, entity_id, agent_id, issue_id, run_id, details)
        SELECT l.company_id,
               CASE l.step WHEN 'activate' THEN CASE WHEN l.old_status = 'resuming' THEN 'environment.lease_resumed'
                                                     ELSE 'environment.lease_acquired' END
                           WHEN 'end' THEN 'environment.lease_released'
                           WHEN 'fail' THEN 'environment.lease_failed'
                           WHEN 'unusable' THEN 'environment.lease_failed'
                           WHEN 'irrevocable' THEN 'environment.lease_irrevocable'
                           WHEN 'cleanup' THEN 'environment.lease_cleanup_failed'
                           WHEN 'look_up' THEN 'environment.lease_outcome_unknown'
                           WHEN 'reacquire' THEN 'environment.lease_resume_failed'
                           WHEN 'park' THEN 'environment.lease_resume_failed'
                           ELSE 'environment.lease_call_failed' END,
               'environment_lease', l.id::text, l.agent_id, l.issue_id, l.run_id,
               CASE WHEN l.step = 'activate'
               THEN pg_catalog.jsonb_build_object('environmentId', l.environment_id, 'provider', l.provider,
                        'leasePolicy', l.policy, 'executionWorkspaceId', l.execution_workspace_id,
                        'issueId', l.issue_id, 'generation', l.generation, 'providerLeaseId', l.provider_lease_id)
               ELSE pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object('environmentId', l.environment_id,
                        'provider', l.provider, 'leasePolicy', l.policy,
                        'executionWorkspaceId', l.execution_workspace_id, 'issueId', l.issue_id,
                        'generation', l.generation, 'status', l.status, 'cleanupStatus', l.cleanup_status,
                        'failureCode', CASE WHEN l.step = 'end' THEN l.failure_code ELSE COALESCE(l.failure_code, l.code) END,
                        'failureReason', CASE WHEN l.step = 'end' THEN l.failure_reason ELSE COALESCE(l.message, l.failure_reason) END))
               END
          FROM lease AS l
         -- of a series of failing tries the first is told
         WHERE l.step IN ('activate', 'end', 'fail', 'unusable', 'irrevocable', 'look_up', 'reacquire', 'park')
            OR l.attempt = 1 AND l.step IN ('later', 'cleanup')
    )
    SELECT a.company_id, a.id,
           CASE WHEN l.id IS NOT NULL THEN 'applied'
                WHEN a.locked = 0 THEN 'locked'
                ELSE 'stale' END,
           COALESCE(l.step IN ('end', 'fail', 'park'), false)
      FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(subject_ids), pg_catalog.unnest(v_locked))
           AS a (company_id, id, locked)
      LEFT JOIN lease AS l ON l.company_id = a.company_id AND l.id = a.id;
    PERFORM leasehold_internal.abandon_commands(company_ids, subject_ids);
END
$$;
COMMENT ON FUNCTION leasehold_internal.complete_calls(bigint, uuid[], uuid[], integer[], text[], text[], text[],
        timestamptz[], text[], text[], bigint[], integer, integer, integer, integer) IS
    'Applies answers to leases, with their next calls, deadlines and events, in one statement';

-- Answers about resources that no lease claims.  There is no lease that could
-- be irrevocable, so the removal is tried on at long intervals; doctor() tells.
CREATE FUNCTION leasehold_internal.complete_strays(
        epoch bigint, company_ids uuid[], subject_ids uuid[], outcomes text[], messages text[],
        retry_after_ms bigint[], base_ms integer, most_ms integer, cleanup_attempts integer)
    RETURNS void LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
    WITH answer AS (
        SELECT c.company_id, c.subject_id, c.attempts, c.provider, r.provider_lease_id, a.message, a.retry_after_ms,
               leasehold_internal.stray_details(r) AS details,
               -- without its row there is nothing to remove
               a.outcome IN ('ok', 'gone') OR r.stray_id IS NULL AS over
          FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(subject_ids), pg_catalog.unnest(outcomes),
                          pg_catalog.unnest(messages), pg_catalog.unnest(retry_after_ms))
               AS a (company_id, id, outcome, message, retry_after_ms)
         CROSS JOIN LATERAL (SELECT * FROM leasehold_internal.calls AS x
                              WHERE x.company_id = a.company_id AND x.subject_id = a.id AND x.slot = 'op' OFFSET 0) AS c
          LEFT JOIN leasehold_internal.provider_resources AS r ON r.company_id = c.company_id AND r.stray_id = c.subject_id
         WHERE c.operation = 'destroy_stray' AND c.state = 'started' AND c.worker_epoch = epoch
    ), done AS (
        DELETE FROM leasehold_internal.calls AS c USING answer AS a
         WHERE a.over AND c.company_id = a.company_id AND c.subject_id = a.subject_id AND c.slot = 'op'
    ), gone AS (
        DELETE FROM leasehold_internal.provider_resources AS r USING answer AS a
         WHERE a.over AND r.company_id = a.company_id AND r.stray_id = a.subject_id
        RETURNING a.company_id, a.provider_lease_id, a.details
    ), later AS (
        UPDATE leasehold_internal.calls AS c
           SET state = 'queued', worker_epoch = NULL, crashes = 0,
               due_at = pg_catalog.clock_timestamp()
                        + leasehold_internal.retry_pause(a.attempts, base_ms, most_ms, a.retry_after_ms),
               last_error = pg_catalog.left(a.message, 500)
          FROM answer AS a
         WHERE NOT a.over AND c.company_id = a.company_id AND c.subject_id = a.subject_id AND c.slot = 'op'
    )
    INSERT INTO leasehold.audit_events (company_id, action, entity_type, entity_id, details)
    SELECT g.company_id, 'environment.stray_removed', 'provider_resource', g.provider_lease_id, g.details
      FROM gone AS g
    UNION ALL
    SELECT a.company_id, 'environment.stray_not_removed', 'provider_resource', a.provider_lease_id,
           a.details || pg_catalog.jsonb_build_object('failureReason', a.message)
      FROM answer AS a WHERE NOT a.over AND a.attempts = cleanup_attempts;
END
$$;
COMMENT ON FUNCTION leasehold_internal.complete_strays(bigint, uuid[], uuid[], text[], text[], bigint[], integer, integer,
                                                      integer) IS
    'Applies answers about resources that no lease claims';

-- A plugin's answer to initialize.  Returns what became of it, as
-- complete_calls() does.  The plugin is locked before the call, as by those who
-- change it.
CREATE FUNCTION leasehold_internal.complete_initialize(
        epoch bigint, subject_id uuid, generation integer, outcome text, supported_methods text[], message text,
        retry_after_ms bigint, base_ms integer, most_ms integer)
    RETURNS text LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_call   leasehold_internal.calls;
    v_key    text;
    v_status text;
BEGIN
    SELECT c.payload ->> 'plugin' INTO v_key FROM leasehold_internal.calls AS c
     WHERE c.company_id = leasehold_internal.no_company() AND c.subject_id = complete_initialize.subject_id
       AND c.slot = 'op';
    SELECT p.status INTO v_status FROM leasehold.plugins AS p WHERE p.key = v_key FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND AND EXISTS (SELECT FROM leasehold.plugins AS p WHERE p.key = v_key) THEN
        RETURN 'locked';
    END IF;
    SELECT c.* INTO v_call FROM leasehold_internal.calls AS c
     WHERE c.company_id = leasehold_internal.no_company() AND c.subject_id = complete_initialize.subject_id
       AND c.slot = 'op' AND c.state = 'started' AND c.worker_epoch = epoch
       AND c.generation = complete_initialize.generation FOR UPDATE;
    IF NOT FOUND THEN
        RETURN 'stale';
    END IF;
    IF outcome = 'ok' OR v_status = 'disabled' THEN
        UPDATE leasehold.plugins AS p
           SET status = 'ready', last_error = NULL, ready_at = pg_catalog.now(),
               supported_methods = complete_initialize.supported_methods
         WHERE p.key = v_key AND outcome = 'ok' AND p.status <> 'disabled';
        DELETE FROM leasehold_internal.calls AS c
         WHERE c.company_id = v_call.company_id AND c.subject_id = v_call.subject_id AND c.slot = 'op';
    END IF;
    IF outcome = 'ok' AND v_status <> 'disabled' THEN
        -- requests that waited for this
        UPDATE leasehold_internal.calls AS c SET due_at = pg_catalog.clock_timestamp()
          FROM (SELECT q.company_id, q.subject_id
                  FROM leasehold_internal.calls AS q JOIN leasehold.providers AS p ON p.key = q.provider
                 WHERE p.plugin_key = v_key AND q.slot = 'op' AND q.state = 'queued' AND q.attempts = 0
                   AND q.operation IN ('acquire', 'resume')
                   FOR UPDATE OF q SKIP LOCKED) AS w
         WHERE c.company_id = w.company_id AND c.subject_id = w.subject_id AND c.slot = 'op';
        PERFORM leasehold_internal.record(leasehold_internal.no_company(), 'plugin.ready', 'plugin', v_key,
            pg_catalog.jsonb_build_object('supportedMethods', complete_initialize.supported_methods));
    ELSIF outcome <> 'ok' AND v_status <> 'disabled' THEN
        UPDATE leasehold.plugins AS p
           SET status = 'error', last_error = pg_catalog.left(complete_initialize.message, 500)
         WHERE p.key = v_key;
        UPDATE leasehold_internal.calls AS c
           SET state = 'queued', crashes = 0, last_error = pg_catalog.left(complete_initialize.message, 500),
               due_at = pg_catalog.clock_timestamp()
                        + leasehold_internal.retry_pause(v_call.attempts, base_ms, most_ms, retry_after_ms)
         WHERE c.company_id = v_call.company_id AND c.subject_id = v_call.subject_id AND c.slot = 'op';
        IF v_call.attempts = 1 THEN
            PERFORM leasehold_internal.record(leasehold_internal.no_company(), 'plugin.error', 'plugin', v_key,
                pg_catalog.jsonb_build_object('error', complete_initialize.message));
        END IF;
    END IF;
    RETURN 'applied';
END
$$;
COMMENT ON FUNCTION leasehold_internal.complete_initialize(bigint, uuid, integer, text, text[], text, bigint, integer,
                                                          integer) IS
    'Applies a plugin''s answer to initialize';
