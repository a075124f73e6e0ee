-- 44_reconcile.sql: the sweep that compares what a provider holds under our
-- label with the leases, and removes what no lease claims.
--
-- One row of the dispatch table per environment whose provider can list.  After
-- a takeover the first sweep is dry: it only reports, until approve_sweep().

CREATE FUNCTION leasehold_internal.ensure_reconciles(shards smallint[], pause interval) RETURNS integer
    LANGUAGE plpgsql VOLATILE
    SET lock_timeout = '10ms' AS $$
#variable_conflict use_column
DECLARE
    v_count integer := 0;
    v_moved integer;
    v_stuck uuid[] := '{}';
    v_new   record;
BEGIN
    -- what is there, unless somebody has it locked
    WITH moved AS (
        UPDATE leasehold_internal.calls AS c
           SET payload = w.payload, provider = w.provider,
               due_at = CASE WHEN c.throttled > 0 THEN c.due_at
                             ELSE LEAST(c.due_at, pg_catalog.clock_timestamp() + pause * pg_catalog.random()) END
          FROM (SELECT x.company_id, x.subject_id, e.provider,
                       pg_catalog.jsonb_build_object('environmentId', e.id, 'configVersion', e.config_version) AS payload
                  FROM leasehold_internal.calls AS x
                  JOIN leasehold_internal.environments AS e ON e.company_id = x.company_id AND e.id = x.subject_id
                  JOIN leasehold.providers AS p ON p.key = e.provider
                  JOIN leasehold.plugins AS g ON g.key = p.plugin_key
                 WHERE x.slot = 'op' AND x.operation = 'reconcile' AND x.state = 'queued' AND x.shard = ANY (shards)
                   AND 'environmentListLeases' = ANY (g.supported_methods) AND g.status <> 'disabled'
                   AND (NOT x.payload @> pg_catalog.jsonb_build_object('environmentId', e.id, 'configVersion', e.config_version)
                        -- not when the provider asked for it
                        OR x.throttled = 0 AND x.due_at > pg_catalog.clock_timestamp() + pause)
                   FOR UPDATE OF x SKIP LOCKED) AS w
         WHERE c.company_id = w.company_id AND c.subject_id = w.subject_id AND c.slot = 'op'
        RETURNING 1
    )
    SELECT pg_catalog.count(*) INTO v_moved FROM moved;

    -- what is not there.  A lease may be asked for with the id of an environment: a
    -- company whose open transaction is in the way has its sweeps another time.
    FOR v_new IN
        SELECT e.company_id, e.id, e.provider,
               pg_catalog.jsonb_build_object('environmentId', e.id, 'configVersion', e.config_version) AS payload
          FROM leasehold_internal.environments AS e
          JOIN leasehold.providers AS p ON p.key = e.provider
          JOIN leasehold.plugins AS g ON g.key = p.plugin_key
         WHERE 'environmentListLeases' = ANY (g.supported_methods) AND g.status <> 'disabled'
           AND leasehold_internal.shard_of(e.company_id) = ANY (shards)
           AND EXISTS (SELECT FROM leasehold.leases AS l WHERE l.company_id = e.company_id AND l.environment_id = e.id)
           AND NOT EXISTS (SELECT FROM leasehold_internal.calls AS c
                            WHERE c.company_id = e.company_id AND c.subject_id = e.id AND c.slot = 'op')
    LOOP
        CONTINUE WHEN v_new.company_id = ANY (v_stuck);
        BEGIN
            INSERT INTO leasehold_internal.calls
                   (company_id, subject_id, slot, operation, provider, shard, payload, due_at)
            VALUES (v_new.company_id, v_new.id, 'op', 'reconcile', v_new.provider,
                    leasehold_internal.shard_of(v_new.company_id), v_new.payload,
                    pg_catalog.clock_timestamp() + pause * pg_catalog.random())
            ON CONFLICT DO NOTHING;
            v_count := v_count + 1;
        EXCEPTION WHEN lock_not_available THEN
            v_stuck := v_stuck || v_new.company_id;
        END;
    END LOOP;
    RETURN v_moved + v_count;
END
$$;
COMMENT ON FUNCTION leasehold_internal.ensure_reconciles(smallint[], interval) IS
    'Sees to it that every environment whose provider can list is swept';

-- Applies one page of a provider's list.  NULL if somebody has the sweep locked:
-- hand it in again a little later.
CREATE FUNCTION leasehold_internal.complete_reconcile(
        epoch bigint, company_id uuid, subject_id uuid, outcome text, listed text, next_cursor text, message text,
        retry_after_ms bigint, pause interval)
    RETURNS integer LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_call   leasehold_internal.calls;
    v_dry    boolean := (SELECT i.sweep_dry FROM leasehold_internal.installation AS i LIMIT 1);
    v_strays integer := 0;
BEGIN
    SELECT c.* INTO v_call FROM leasehold_internal.calls AS c
     WHERE c.company_id = complete_reconcile.company_id AND c.subject_id = complete_reconcile.subject_id
       AND c.slot = 'op' AND c.operation = 'reconcile' AND c.state = 'started' AND c.worker_epoch = epoch
       FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        PERFORM FROM leasehold_internal.calls AS c
          WHERE c.company_id = complete_reconcile.company_id AND c.subject_id = complete_reconcile.subject_id
            AND c.slot = 'op' AND c.operation = 'reconcile' AND c.state = 'started' AND c.worker_epoch = epoch;
        RETURN CASE WHEN FOUND THEN NULL ELSE 0 END;
    END IF;

    IF outcome = 'ok' THEN
        WITH held AS (
            SELECT h ->> 'providerLeaseId' AS provider_lease_id, h ->> 'leaseId' AS lease_id,
                   COALESCE((h ->> 'generation')::integer, 0) AS generation
              FROM pg_catalog.jsonb_array_elements(listed::jsonb) AS h
             -- a list may show other companies': those are for their own sweeps
             WHERE COALESCE(h ->> 'companyId', v_call.company_id::text) = v_call.company_id::text
               AND (h ->> 'companyId' IS NOT NULL OR NOT EXISTS (
                    SELECT FROM leasehold.leases AS l
                     WHERE l.id::text = h ->> 'leaseId' AND l.company_id <> v_call.company_id))
        ), unclaimed AS (
            SELECT h.* FROM held AS h
             -- by whatever provider: a list may show what other drivers of the same account made
             WHERE NOT EXISTS (SELECT FROM leasehold.providers AS p
                                 JOIN leasehold_internal.provider_resources AS r ON r.provider = p.key
                                WHERE r.provider_lease_id = h.provider_lease_id)
               AND NOT EXISTS (SELECT FROM leasehold_internal.calls AS c
                                WHERE c.company_id = v_call.company_id AND c.operation = 'destroy_stray'
                                  AND c.payload ->> 'providerLeaseId' = h.provider_lease_id)
        ), stray AS (
            -- not held by a lease, and no request is under way that it may be the answer to
            SELECT u.* FROM unclaimed AS u
             WHERE NOT EXISTS (SELECT FROM leasehold.leases AS l
                                WHERE l.company_id = v_call.company_id AND l.id::text = u.lease_id
                                  AND (l.provider_lease_id IS NULL OR l.provider_lease_id = u.provider_lease_id)
                                  AND leasehold_internal.may_have_resource(l.status))
        ), queued AS (
            INSERT INTO leasehold_internal.calls
                   (company_id, subject_id, slot, operation, provider, shard, generation, payload)
            SELECT v_call.company_id, leasehold.new_id(), 'op', 'destroy_stray', v_call.provider, v_call.shard,
                   GREATEST(s.generation, 1),
                   v_call.payload - 'cursor' || pg_catalog.jsonb_build_object('providerLeaseId', s.provider_lease_id,
                       'leaseId', s.lease_id, 'reason', 'no_lease')
              FROM stray AS s WHERE NOT v_dry
            RETURNING 1
        ), event AS (
            INSERT INTO leasehold.audit_events (company_id, action, entity_type, entity_id, details)
            SELECT v_call.company_id,
                   CASE WHEN v_dry THEN 'environment.stray_reported' ELSE 'environment.stray_found' END,
                   'provider_resource', s.provider_lease_id,
                   pg_catalog.jsonb_build_object('provider', v_call.provider, 'leaseId', s.lease_id,
                       'environmentId', v_call.subject_id)
              FROM stray AS s
        )
        SELECT pg_catalog.count(*) INTO v_strays FROM stray;
    END IF;

    -- a cursor that leads to itself leads nowhere
    IF outcome <> 'ok' OR next_cursor = v_call.payload ->> 'cursor' THEN
        next_cursor := NULL;
    END IF;
    IF pause <= interval '0' AND next_cursor IS NULL THEN
        DELETE FROM leasehold_internal.calls AS c
         WHERE c.company_id = v_call.company_id AND c.subject_id = v_call.subject_id AND c.slot = 'op';
        RETURN v_strays;
    END IF;
    UPDATE leasehold_internal.calls AS c
       SET state = 'queued', worker_epoch = NULL, attempts = 0, crashes = 0,
           throttled = CASE WHEN outcome = 'throttled' THEN 1 ELSE 0 END,
           last_error = CASE WHEN outcome = 'ok' THEN NULL ELSE pg_catalog.left(message, 500) END,
           payload = CASE WHEN next_cursor IS NOT NULL
                          THEN c.payload || pg_catalog.jsonb_build_object('cursor', next_cursor)
                          ELSE c.payload - 'cursor' END,
           due_at = CASE WHEN next_cursor IS NOT NULL THEN pg_catalog.clock_timestamp()
                         ELSE pg_catalog.clock_timestamp() + GREATEST(pause,
                              pg_catalog.make_interval(secs => LEAST(retry_after_ms, 86400000) / 1000.0)) END
     WHERE c.company_id = v_call.company_id AND c.subject_id = v_call.subject_id AND c.slot = 'op';
    RETURN v_strays;
END
$$;
COMMENT ON FUNCTION leasehold_internal.complete_reconcile(bigint, uuid, uuid, text, text, text, text, bigint, interval) IS
    'Applies one page of a provider''s list: queues the removal of what no lease claims; without a pause the last page ends it';

CREATE FUNCTION leasehold_internal.approve_sweep() RETURNS void LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
    PERFORM leasehold_internal.enter_admin();
    UPDATE leasehold_internal.installation AS i SET sweep_dry = false WHERE i.sweep_dry;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('wrong_state', 'no dry sweep waits for approval');
    END IF;
    UPDATE leasehold_internal.calls AS c SET due_at = pg_catalog.clock_timestamp()
     WHERE c.operation = 'reconcile' AND c.state = 'queued';
    PERFORM leasehold_internal.record(leasehold_internal.no_company(), 'installation.sweep_approved', 'installation',
        (SELECT i.id::text FROM leasehold_internal.installation AS i LIMIT 1));
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.approve_sweep', 'instant',
    'lets sweeps remove what no lease claims, after the dry one that follows a takeover', 'leasehold_admin');
