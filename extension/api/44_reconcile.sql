-- 44_reconcile.sql: the sweep that compares what a provider holds under our
-- label with the leases, and removes what no lease claims.
--
-- One row of the dispatch table per environment whose provider can list.  After
-- a takeover the first sweep is dry: it only reports, until approve_sweep().

-- Environments that are to be swept, and how.
CREATE FUNCTION leasehold_internal.swept_environments(shards smallint[])
    RETURNS TABLE (company_id uuid, environment_id uuid, provider text, payload jsonb)
    LANGUAGE sql STABLE ROWS 100 AS $$
    SELECT e.company_id, e.id, e.provider,
           pg_catalog.jsonb_build_object('environmentId', e.id, 'configVersion', e.config_version)
      FROM leasehold_internal.environments AS e
      JOIN leasehold.providers AS p ON p.key = e.provider
      LEFT JOIN leasehold.plugins AS g ON g.key = p.plugin_key
     WHERE (p.key = 'bubblewrap' OR 'environmentListLeases' = ANY (g.supported_methods) AND g.status <> 'disabled')
       AND leasehold_internal.shard_of(e.company_id) = ANY (shards)
$$;
COMMENT ON FUNCTION leasehold_internal.swept_environments(smallint[]) IS
    'Environments whose provider can list, with what their sweep is to ask';

CREATE FUNCTION leasehold_internal.ensure_reconciles(shards smallint[], pause interval) RETURNS integer
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_count integer;
BEGIN
    WITH swept AS MATERIALIZED (
        SELECT * FROM leasehold_internal.swept_environments(shards)
    ), moved AS (
        -- unless somebody has it locked
        UPDATE leasehold_internal.calls AS c
           SET payload = w.payload, provider = w.provider,
               due_at = CASE WHEN c.throttled > 0 THEN c.due_at
                             ELSE LEAST(c.due_at, pg_catalog.clock_timestamp() + pause * pg_catalog.random()) END
          FROM (SELECT x.company_id, x.subject_id, s.provider, s.payload
                  FROM leasehold_internal.calls AS x
                  JOIN swept AS s ON s.company_id = x.company_id AND s.environment_id = x.subject_id
                 WHERE x.slot = 'sweep' AND x.state = 'queued'
                   AND (NOT x.payload @> s.payload
                        -- not when the provider asked for it
                        OR x.throttled = 0 AND x.due_at > pg_catalog.clock_timestamp() + pause)
                   FOR UPDATE OF x SKIP LOCKED) AS w
         WHERE c.company_id = w.company_id AND c.subject_id = w.subject_id AND c.slot = 'sweep'
        RETURNING 1
    ), made AS (
        INSERT INTO leasehold_internal.calls
               (company_id, subject_id, slot, operation, provider, shard, payload, due_at)
        SELECT s.company_id, s.environment_id, 'sweep', 'reconcile', s.provider,
               leasehold_internal.shard_of(s.company_id), s.payload,
               pg_catalog.clock_timestamp() + pause * pg_catalog.random()
          FROM swept AS s
         WHERE EXISTS (SELECT FROM leasehold.leases AS l
                        WHERE l.company_id = s.company_id AND l.environment_id = s.environment_id)
           AND NOT EXISTS (SELECT FROM leasehold_internal.calls AS c
                            WHERE c.company_id = s.company_id AND c.subject_id = s.environment_id AND c.slot = 'sweep')
        ON CONFLICT DO NOTHING
        RETURNING 1
    )
    SELECT (SELECT pg_catalog.count(*) FROM moved) + (SELECT pg_catalog.count(*) FROM made) INTO v_count;
    RETURN v_count;
END
$$;
COMMENT ON FUNCTION leasehold_internal.ensure_reconciles(smallint[], interval) IS
    'Sees to it that every environment whose provider can list is swept';

-- What the call for the next page is to say; NULL if there is none, or why not.
-- Cursors that lead round in a circle are found by comparing each with an earlier
-- one, which is replaced at the pages 1, 2, 4, 8 and so on, so that it comes to
-- be one of the circle.
CREATE FUNCTION leasehold_internal.turn_page(
        payload jsonb, next_cursor text, OUT next_payload jsonb, OUT problem text)
    LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    v_page integer := COALESCE((payload ->> 'page')::integer, 0) + 1;
BEGIN
    IF next_cursor IN (payload ->> 'cursor', payload ->> 'mark') THEN
        problem := 'the provider''s list leads round in a circle';
    ELSIF v_page >= 10000 THEN
        problem := 'the provider''s list has more than 10000 pages';
    ELSIF next_cursor <> '' THEN
        next_payload := payload || pg_catalog.jsonb_build_object('cursor', next_cursor, 'page', v_page,
            'mark', CASE WHEN v_page & (v_page - 1) = 0 THEN next_cursor ELSE payload ->> 'mark' END);
    END IF;
END
$$;
COMMENT ON FUNCTION leasehold_internal.turn_page(jsonb, text) IS
    'What a sweep''s call for the next page is to say, or why there is no next page';

-- What of a provider's list no lease claims, and no request that is under way may
-- be the answer to.
CREATE FUNCTION leasehold_internal.unclaimed_resources(company_id uuid, listed jsonb)
    RETURNS TABLE (provider_lease_id text, made_for text, generation integer)
    LANGUAGE plpgsql STABLE ROWS 100 AS $$
#variable_conflict use_column
DECLARE
    v_installation text := (SELECT i.id FROM leasehold_internal.installation AS i LIMIT 1);
BEGIN
    RETURN QUERY
    WITH held AS (
        SELECT h ->> 'providerLeaseId' AS provider_lease_id, h ->> 'leaseId' AS made_for,
               COALESCE((h ->> 'generation')::integer, 0) AS generation
          FROM pg_catalog.jsonb_array_elements(listed) AS h
         WHERE COALESCE(h ->> 'installationId', v_installation) = v_installation
           -- a list may show other companies': those are for their own sweeps
           AND COALESCE(h ->> 'companyId', unclaimed_resources.company_id::text) = unclaimed_resources.company_id::text
           AND (h ->> 'companyId' IS NOT NULL OR NOT EXISTS (
                SELECT FROM leasehold.leases AS l
                 WHERE l.id::text = h ->> 'leaseId' AND l.company_id <> unclaimed_resources.company_id))
    )
    SELECT h.provider_lease_id, h.made_for, h.generation
      FROM held AS h
     -- by whatever provider: a list may show what other drivers of the same account made
     WHERE NOT EXISTS (SELECT FROM leasehold.providers AS p
                         JOIN leasehold_internal.provider_resources AS r ON r.provider = p.key
                        WHERE r.provider_lease_id = h.provider_lease_id)
       AND NOT EXISTS (SELECT FROM leasehold.leases AS l
                        WHERE l.company_id = unclaimed_resources.company_id AND l.id::text = h.made_for
                          AND (l.provider_lease_id IS NULL OR l.provider_lease_id = h.provider_lease_id)
                          AND leasehold_internal.may_have_resource(l.status))
       -- after a fork: those are the original's
       AND NOT EXISTS (SELECT FROM leasehold.leases AS l
                        WHERE l.company_id = unclaimed_resources.company_id AND l.status = 'forgotten'
                          AND l.id::text = h.made_for)
       AND NOT EXISTS (SELECT FROM leasehold.leases AS l
                        WHERE l.company_id = unclaimed_resources.company_id AND l.status = 'forgotten'
                          AND l.provider_lease_id = h.provider_lease_id);
END
$$;
COMMENT ON FUNCTION leasehold_internal.unclaimed_resources(uuid, jsonb) IS
    'What of a provider''s list no lease claims';

-- Makes strays of resources that a sweep has found, with the calls that remove
-- them and the events.  Returns how many, or NULL if somebody may come to hold one
-- and has not committed yet: then it is to be tried again.
CREATE FUNCTION leasehold_internal.make_strays(
        sweep leasehold_internal.calls, provider_lease_ids text[], made_for text[], generations integer[])
    RETURNS integer LANGUAGE plpgsql VOLATILE
    SET lock_timeout = '2ms' AS $$
#variable_conflict use_column
DECLARE
    v_count integer;
BEGIN
    WITH stray AS (
        INSERT INTO leasehold_internal.provider_resources
               (provider, provider_lease_id, company_id, stray_id, environment_id, config_version, made_for, generation, reason)
        SELECT (sweep).provider, f.provider_lease_id, (sweep).company_id, leasehold.new_id(), (sweep).subject_id,
               ((sweep).payload ->> 'configVersion')::integer, f.made_for, GREATEST(f.generation, 1), 'no_lease'
          FROM ROWS FROM (pg_catalog.unnest(provider_lease_ids), pg_catalog.unnest(make_strays.made_for),
                          pg_catalog.unnest(generations)) AS f (provider_lease_id, made_for, generation)
        ON CONFLICT DO NOTHING
        RETURNING *
    ), call AS (
        INSERT INTO leasehold_internal.calls (company_id, subject_id, slot, operation, provider, shard, generation)
        SELECT s.company_id, s.stray_id, 'op', 'destroy_stray', s.provider, (sweep).shard, s.generation FROM stray AS s
    ), event AS (
        INSERT INTO leasehold.audit_events (company_id, action, entity_type, entity_id, details)
        SELECT s.company_id, 'environment.stray_found', 'provider_resource', s.provider_lease_id,
               leasehold_internal.stray_details(s)
          FROM stray AS s
    )
    SELECT pg_catalog.count(*) INTO v_count FROM stray;
    RETURN v_count;
EXCEPTION WHEN lock_not_available THEN
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION leasehold_internal.make_strays(leasehold_internal.calls, text[], text[], integer[]) IS
    'Makes strays of resources that a sweep has found and queues their removal; NULL if that has to wait';

-- Applies one page of a provider's list.  NULL if somebody has the sweep, or a
-- resource of the list, locked: hand it in again a little later.
CREATE FUNCTION leasehold_internal.complete_reconcile(
        epoch bigint, company_id uuid, subject_id uuid, outcome text, listed text, next_cursor text, message text,
        retry_after_ms bigint, pause interval)
    RETURNS integer LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_call   leasehold_internal.calls;
    v_found  record;
    v_strays integer := 0;
    v_next   record;
BEGIN
    SELECT c.* INTO v_call FROM leasehold_internal.calls AS c
     WHERE c.company_id = complete_reconcile.company_id AND c.subject_id = complete_reconcile.subject_id
       AND c.slot = 'sweep' AND c.state = 'started' AND c.worker_epoch = epoch
       FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        PERFORM FROM leasehold_internal.calls AS c
          WHERE c.company_id = complete_reconcile.company_id AND c.subject_id = complete_reconcile.subject_id
            AND c.slot = 'sweep' AND c.state = 'started' AND c.worker_epoch = epoch;
        RETURN CASE WHEN FOUND THEN NULL ELSE 0 END;
    END IF;
    -- its configuration is needed to remove what is found: whoever deletes it goes first
    PERFORM FROM leasehold_internal.environments AS e
      WHERE e.company_id = v_call.company_id AND e.id = v_call.subject_id FOR KEY SHARE SKIP LOCKED;
    IF NOT FOUND THEN
        PERFORM FROM leasehold_internal.environments AS e
          WHERE e.company_id = v_call.company_id AND e.id = v_call.subject_id;
        IF FOUND THEN
            RETURN NULL;
        END IF;
        DELETE FROM leasehold_internal.calls AS c
         WHERE c.company_id = v_call.company_id AND c.subject_id = v_call.subject_id AND c.slot = 'sweep';
        RETURN 0;
    END IF;

    IF outcome = 'ok' THEN
        SELECT pg_catalog.array_agg(u.provider_lease_id) AS resources, pg_catalog.array_agg(u.made_for) AS made_for,
               pg_catalog.array_agg(u.generation) AS generations
          INTO v_found
          FROM leasehold_internal.unclaimed_resources(v_call.company_id, listed::jsonb) AS u;
        IF (SELECT i.sweep_dry FROM leasehold_internal.installation AS i LIMIT 1) THEN
            INSERT INTO leasehold.audit_events (company_id, action, entity_type, entity_id, details)
            SELECT v_call.company_id, 'environment.stray_reported', 'provider_resource', u.provider_lease_id,
                   pg_catalog.jsonb_build_object('provider', v_call.provider, 'leaseId', u.made_for,
                       'environmentId', v_call.subject_id)
              FROM ROWS FROM (pg_catalog.unnest(v_found.resources), pg_catalog.unnest(v_found.made_for))
                   AS u (provider_lease_id, made_for);
            GET DIAGNOSTICS v_strays = ROW_COUNT;
        ELSIF v_found.resources IS NOT NULL THEN
            v_strays := leasehold_internal.make_strays(v_call, v_found.resources, v_found.made_for, v_found.generations);
            IF v_strays IS NULL THEN
                RETURN NULL;
            END IF;
        END IF;
    END IF;

    SELECT * INTO v_next
      FROM leasehold_internal.turn_page(v_call.payload, CASE WHEN outcome = 'ok' THEN next_cursor END);
    IF pause <= interval '0' AND v_next.next_payload IS NULL THEN
        DELETE FROM leasehold_internal.calls AS c
         WHERE c.company_id = v_call.company_id AND c.subject_id = v_call.subject_id AND c.slot = 'sweep';
        RETURN v_strays;
    END IF;
    UPDATE leasehold_internal.calls AS c
       SET state = 'queued', worker_epoch = NULL, attempts = 0, crashes = 0,
           throttled = CASE WHEN outcome = 'throttled' THEN 1 ELSE 0 END,
           -- the error stays until a sweep has come to its end
           last_error = CASE WHEN outcome <> 'ok' THEN pg_catalog.left(message, 500)
                             WHEN v_next.next_payload IS NOT NULL THEN c.last_error
                             ELSE v_next.problem END,
           payload = COALESCE(v_next.next_payload, c.payload - ARRAY['cursor', 'page', 'mark']),
           due_at = CASE WHEN v_next.next_payload IS NOT NULL THEN pg_catalog.clock_timestamp()
                         ELSE pg_catalog.clock_timestamp() + GREATEST(pause,
                              pg_catalog.make_interval(secs => LEAST(retry_after_ms, 86400000) / 1000.0)) END
     WHERE c.company_id = v_call.company_id AND c.subject_id = v_call.subject_id AND c.slot = 'sweep';
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
    -- strays that the takeover left alone
    PERFORM leasehold_internal.rebuild_calls(ARRAY(SELECT s::smallint FROM pg_catalog.generate_series(0, 63) AS s));
    PERFORM leasehold_internal.record(leasehold_internal.no_company(), 'installation.sweep_approved', 'installation',
        (SELECT i.id::text FROM leasehold_internal.installation AS i LIMIT 1));
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.approve_sweep', 'instant',
    'lets sweeps remove what no lease claims, after the dry one that follows a takeover', 'leasehold_admin');
