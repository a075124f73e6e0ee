-- 40_dispatch.sql: the protocol between the dispatch table and whoever makes
-- the calls: due, claim, complete, fire, recover.
--
-- A worker claims a call and commits before it speaks to the provider, so every
-- remote effect has a row first.  What comes back is applied only while the
-- call is still claimed by the same worker (worker_epoch) for the same
-- generation of the lease; an answer that comes too late changes nothing.
--
-- A worker must not wait for users: rows that somebody has locked are skipped
-- and tried again.

-- Calls that are due by now for one of several workers, oldest first.  since
-- bounds the look back, so that rows that are gone but not yet vacuumed are not
-- read again and again.
CREATE FUNCTION leasehold_internal.due_calls(
        part integer, parts integer, since timestamptz, until timestamptz, count integer)
    RETURNS TABLE (company_id uuid, subject_id uuid, slot text, provider text, due_at timestamptz)
    LANGUAGE plpgsql VOLATILE ROWS 500 AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT c.company_id, c.subject_id, c.slot::text, c.provider, c.due_at
      FROM leasehold_internal.calls AS c
     WHERE c.shard % parts = part AND c.state = 'queued' AND c.due_at > since AND c.due_at <= until
     ORDER BY c.due_at
     LIMIT count;
END
$$;
COMMENT ON FUNCTION leasehold_internal.due_calls(integer, integer, timestamptz, timestamptz, integer) IS
    'Calls that are due for one of several workers, oldest first';

-- When the next call is due, for a worker that has nothing to do.
CREATE FUNCTION leasehold_internal.next_due(part integer, parts integer, since timestamptz) RETURNS timestamptz
    LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN (SELECT c.due_at FROM leasehold_internal.calls AS c
             WHERE c.shard % parts = part AND c.state = 'queued' AND c.due_at > since
             ORDER BY c.due_at LIMIT 1);
END
$$;
COMMENT ON FUNCTION leasehold_internal.next_due(integer, integer, timestamptz) IS 'When the next call is due';

-- Whether a provider can tell what became of an acquire.
-- A driver of a plugin of its own has no workspace of ours.
CREATE FUNCTION leasehold_internal.provider_realizes(provider text) RETURNS boolean
    LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM leasehold.providers AS p JOIN leasehold.plugins AS g ON g.key = p.plugin_key
                    WHERE p.key = provider AND p.kind = 'sandbox_provider'
                      AND 'environmentRealizeWorkspace' = ANY (g.supported_methods))
$$;
COMMENT ON FUNCTION leasehold_internal.provider_realizes(text) IS
    'Whether a provider has something to do between getting a resource and its use';

CREATE FUNCTION leasehold_internal.provider_looks_up(provider text) RETURNS boolean
    LANGUAGE sql STABLE AS $$
    SELECT COALESCE((SELECT p.plugin_key IS NULL OR 'environmentFindLease' = ANY (g.supported_methods)
                       FROM leasehold.providers AS p LEFT JOIN leasehold.plugins AS g ON g.key = p.plugin_key
                      WHERE p.key = provider), false)
$$;
COMMENT ON FUNCTION leasehold_internal.provider_looks_up(text) IS
    'Whether a provider can tell what became of an acquire whose outcome is unknown';

-- The time that a provider gets for its work and the time we wait for its
-- answer, in milliseconds: work_ms + 30 s <= rpc_ms, so that its side ends first.
-- A command takes as long as it is allowed, and if nothing is said, for ever.
CREATE FUNCTION leasehold_internal.call_timeouts(kind text, config jsonb, default_ms integer)
    RETURNS TABLE (work_ms bigint, rpc_ms bigint) LANGUAGE sql IMMUTABLE ROWS 1 AS $$
    SELECT w.ms, COALESCE(w.ms + 30000, CASE kind WHEN 'initialize' THEN LEAST(default_ms, 15000)
                                                  WHEN 'execute' THEN NULL ELSE default_ms END)
      FROM (SELECT CASE WHEN kind = 'execute' THEN
                       CASE WHEN pg_catalog.jsonb_typeof(config -> 'timeoutMs') = 'number' AND (config ->> 'timeoutMs')::numeric > 0
                            THEN pg_catalog.ceil(LEAST((config ->> 'timeoutMs')::numeric, 31536000000))::bigint END
                   WHEN kind = 'sandbox_provider' THEN GREATEST(
                       CASE WHEN pg_catalog.jsonb_typeof(config -> 'timeoutMs') = 'number'
                             AND (config ->> 'timeoutMs')::numeric > 0
                            THEN pg_catalog.trunc(LEAST((config ->> 'timeoutMs')::numeric, 86400000))::bigint END,
                       CASE WHEN pg_catalog.jsonb_typeof(config -> 'bridgeRequestTimeoutMs') = 'number'
                             AND (config ->> 'bridgeRequestTimeoutMs')::numeric > 0
                            THEN pg_catalog.trunc(LEAST((config ->> 'bridgeRequestTimeoutMs')::numeric, 86400000))::bigint END)
                   END) AS w (ms)
$$;
COMMENT ON FUNCTION leasehold_internal.call_timeouts(text, jsonb, integer) IS
    'How long a provider may work on a call, and how long its answer is waited for';

-- The document a provider is given back about its own resource.
CREATE FUNCTION leasehold_internal.lease_document(
        kind text, plugin_key text, provider text, agent_id uuid, workspace_mode text, config jsonb, metadata jsonb)
    RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN agent_id IS NULL THEN '{}'::jsonb ELSE pg_catalog.jsonb_build_object('agentId', agent_id) END
        || CASE WHEN kind = 'environment_driver'
           THEN pg_catalog.jsonb_build_object('providerMetadata', COALESCE(metadata, '{}'), 'driver', 'plugin',
                    'executionWorkspaceMode', workspace_mode, 'pluginKey', plugin_key, 'driverKey', provider)
           ELSE pg_catalog.jsonb_build_object('driver', 'sandbox', 'executionWorkspaceMode', workspace_mode,
                    'pluginKey', plugin_key, 'sandboxProviderPlugin', true, 'provider', provider)
                || config || COALESCE(metadata, '{}')
           END
$$;
COMMENT ON FUNCTION leasehold_internal.lease_document(text, text, text, uuid, text, jsonb, jsonb) IS
    'The leaseMetadata of a provider call';

-- The params of initialize.  Volatile: the call may be of a change of the
-- plugin that was committed after claim_calls() began, so it is read anew.
CREATE FUNCTION leasehold_internal.initialize_params(plugin text, installation_id uuid) RETURNS jsonb
    LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN (SELECT pg_catalog.jsonb_build_object('manifest', g.manifest, 'config', '{}'::jsonb, 'apiVersion', 1,
                       'instanceInfo', pg_catalog.jsonb_build_object('instanceId', installation_id, 'hostVersion',
                           (SELECT x.extversion || '.0' FROM pg_catalog.pg_extension AS x WHERE x.extname = 'leasehold')))
              FROM leasehold.plugins AS g WHERE g.key = plugin);
END
$$;
COMMENT ON FUNCTION leasehold_internal.initialize_params(text, uuid) IS 'The params of a plugin''s initialize';

-- Claims calls and returns what is to be done: a method with its params, or a
-- verdict that is reached without a call ("failed" or "unknown", with code and
-- message), which the worker hands to complete_calls() like an answer.
CREATE FUNCTION leasehold_internal.claim_calls(
        epoch bigint, company_ids uuid[], subject_ids uuid[], slots text[], default_timeout_ms integer)
    RETURNS TABLE (company_id uuid, subject_id uuid, generation integer, operation text, verdict text, code text,
                   message text, plugin text, provider text, method text, attempt integer, timeout_ms bigint,
                   idempotency_key text, params text, plugin_row xid)
    LANGUAGE plpgsql VOLATILE ROWS 100 AS $$
#variable_conflict use_column
DECLARE
    v_limited boolean := EXISTS (SELECT FROM leasehold.limits AS l
                                  WHERE l.name IN ('active_leases', 'lease_starts_per_minute'));
BEGIN
    IF v_limited THEN
        PERFORM leasehold_internal.grant_starts(company_ids, subject_ids);
    END IF;
    IF EXISTS (SELECT FROM leasehold.plugins AS g WHERE g.status IN ('installed', 'error')) THEN
        PERFORM leasehold_internal.hold_unready(company_ids, subject_ids);
    END IF;

    RETURN QUERY
    WITH claimed AS (
        UPDATE leasehold_internal.calls AS c
           SET state = 'started', worker_epoch = epoch, started_at = pg_catalog.clock_timestamp(),
               -- a look-up that finds nothing must ask for its place like others
               attempts = c.attempts + 1, granted = c.granted OR NOT c.look_up
          FROM (SELECT q.company_id, q.subject_id, q.slot, q.state, q.due_at, q.granted, q.payload, q.look_up, q.operation
                  FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(subject_ids), pg_catalog.unnest(slots))
                       AS w (company_id, subject_id, slot)
                 CROSS JOIN LATERAL (SELECT * FROM leasehold_internal.calls AS x
                                      WHERE x.company_id = w.company_id AND x.subject_id = w.subject_id AND x.slot = w.slot
                                        FOR UPDATE SKIP LOCKED) AS q) AS p
         WHERE c.company_id = p.company_id AND c.subject_id = p.subject_id AND c.slot = p.slot
           AND p.state = 'queued' AND p.due_at <= pg_catalog.clock_timestamp()
           -- one that a user had locked a moment ago was not decided on
           AND (NOT v_limited OR p.granted OR p.payload ? 'limit' OR p.look_up OR p.operation NOT IN ('acquire', 'resume'))
        RETURNING c.*
    )
    SELECT c.company_id, c.subject_id, c.generation, c.operation::text,
           v.verdict, v.code,
           CASE v.code WHEN 'environment_inactive' THEN 'the environment was archived meanwhile'
                       WHEN 'provider_unusable' THEN 'the provider''s plugin is disabled or gone'
                       WHEN 'acquire_timeout' THEN 'no resource was got in time'
                            || CASE WHEN g.status IN ('installed', 'error')
                                    THEN pg_catalog.format(': plugin "%s" is not ready', g.key)
                                    ELSE COALESCE(': ' || c.last_error, '') END
                       WHEN 'quota_exceeded' THEN pg_catalog.format('the limit %s is reached', c.payload ->> 'limit')
                       WHEN 'acquire_outcome_unknown' THEN 'the provider cannot tell what became of the request'
                       WHEN 'resource_taken' THEN 'a lease holds the resource'
                       WHEN 'subject_gone' THEN 'what the call is about is gone'
           END,
           COALESCE(p.plugin_key, c.payload ->> 'plugin')::text, c.provider, m.method, c.attempts,
           t.rpc_ms, m.idempotency_key,
           CASE WHEN v.verdict IS NULL THEN (CASE c.operation
           WHEN 'initialize' THEN
               leasehold_internal.initialize_params(c.payload ->> 'plugin', i.id)
           ELSE
               pg_catalog.jsonb_build_object(
                   'driverKey', c.provider, 'companyId', c.company_id,
                   'environmentId', COALESCE(l.environment_id, st.environment_id, (c.payload ->> 'environmentId')::uuid),
                   'issueId', l.issue_id, 'config', COALESCE(k.config, '{}'))
               || CASE WHEN m.method = 'environmentListLeases' THEN
                      pg_catalog.jsonb_build_object('cursor', c.payload -> 'cursor',
                          'leasehold', pg_catalog.jsonb_build_object('installationId', i.id))
                  ELSE pg_catalog.jsonb_build_object('leasehold',
                          pg_catalog.jsonb_build_object('installationId', i.id,
                              'leaseId', COALESCE(l.id::text, st.made_for), 'generation', c.generation,
                              'idempotencyKey', m.idempotency_key)
                          || CASE WHEN m.method IN ('environmentReleaseLease', 'environmentDestroyLease')
                             THEN pg_catalog.jsonb_build_object('disposition', COALESCE(l.disposition, 'delete'))
                             ELSE '{}' END)
                  END
               || CASE WHEN m.method IN ('environmentAcquireLease')
                  THEN pg_catalog.jsonb_build_object('runId', COALESCE(l.run_id, l.id))
                       || CASE WHEN l.agent_id IS NULL THEN '{}' ELSE pg_catalog.jsonb_build_object('agentId', l.agent_id) END
                       || CASE WHEN ws.mode IS NULL THEN '{}' ELSE pg_catalog.jsonb_build_object('workspaceMode', ws.mode) END
                       || CASE WHEN l.execution_workspace_id IS NULL THEN '{}'
                               ELSE pg_catalog.jsonb_build_object('executionWorkspaceId', l.execution_workspace_id) END
                       || CASE WHEN l.adapter_type IS NULL THEN '{}'
                               ELSE pg_catalog.jsonb_build_object('adapterType', l.adapter_type) END
                  WHEN m.method IN ('environmentResumeLease', 'environmentReleaseLease', 'environmentDestroyLease')
                  THEN pg_catalog.jsonb_build_object(
                           'providerLeaseId', COALESCE(l.provider_lease_id, st.provider_lease_id),
                           'leaseMetadata', d.document)
                       || CASE WHEN m.method = 'environmentResumeLease' AND l.agent_id IS NOT NULL
                          THEN pg_catalog.jsonb_build_object('agentId', l.agent_id) ELSE '{}' END
                  WHEN m.method = 'environmentRealizeWorkspace'
                  THEN pg_catalog.jsonb_build_object(
                           'lease', pg_catalog.jsonb_build_object('providerLeaseId', l.provider_lease_id,
                               'metadata', d.document, 'expiresAt', l.provider_expires_at),
                           'workspace', pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
                               'remotePath', NULLIF(pg_catalog.btrim(md.metadata ->> 'remoteCwd'), ''), 'mode', ws.mode,
                               'metadata', pg_catalog.jsonb_build_object('workspaceRealizationRequest',
                                   pg_catalog.jsonb_build_object('version', 1, 'environmentId', l.environment_id,
                                       'leaseId', l.id, 'executionWorkspaceId', l.execution_workspace_id,
                                       'issueId', l.issue_id, 'runId', l.run_id, 'requestedMode', ws.mode)))))
                  ELSE '{}' END
           END)::text END,
           -- which version of its plugin the call is for: the worker keeps a copy
           COALESCE(g.xmin, (SELECT g3.xmin FROM leasehold.plugins AS g3 WHERE g3.key = c.payload ->> 'plugin'))
      FROM claimed AS c
     CROSS JOIN (SELECT s.id FROM leasehold_internal.installation AS s LIMIT 1) AS i
      LEFT JOIN leasehold.leases AS l ON c.slot = 'op' AND l.company_id = c.company_id AND l.id = c.subject_id
      LEFT JOIN leasehold_internal.provider_resources AS st
        ON c.operation = 'destroy_stray' AND st.company_id = c.company_id AND st.stray_id = c.subject_id
      LEFT JOIN leasehold_internal.environments AS e ON e.company_id = l.company_id AND e.id = l.environment_id
      LEFT JOIN leasehold_internal.environment_configs AS k
        ON k.company_id = c.company_id
       AND k.environment_id = COALESCE(l.environment_id, st.environment_id, (c.payload ->> 'environmentId')::uuid)
       AND k.version = COALESCE(l.config_version, st.config_version, (c.payload ->> 'configVersion')::integer)
      LEFT JOIN leasehold_internal.execution_workspaces AS ws
        ON ws.company_id = l.company_id AND ws.id = l.execution_workspace_id
      LEFT JOIN leasehold.lease_metadata AS md ON md.company_id = l.company_id AND md.lease_id = l.id
      LEFT JOIN leasehold.providers AS p ON p.key = c.provider
      LEFT JOIN leasehold.plugins AS g ON g.key = p.plugin_key
     CROSS JOIN LATERAL (SELECT leasehold_internal.lease_document(p.kind, p.plugin_key, c.provider, l.agent_id, ws.mode,
                                    COALESCE(k.config, '{}'), md.metadata)) AS d (document)
     CROSS JOIN LATERAL (
        SELECT CASE
            WHEN c.operation = 'initialize' THEN 'initialize'
            WHEN c.operation = 'reconcile' THEN 'environmentListLeases'
            WHEN c.look_up THEN 'environmentFindLease'
            WHEN c.operation = 'acquire' THEN 'environmentAcquireLease'
            WHEN c.operation = 'resume' THEN 'environmentResumeLease'
            WHEN c.operation = 'realize' THEN 'environmentRealizeWorkspace'
            WHEN c.operation IN ('destroy', 'destroy_stray') THEN 'environmentDestroyLease'
            -- a plugin that reads reuseLease in its configuration would park what is to be deleted
            WHEN l.disposition = 'delete' AND k.config ->> 'reuseLease' = 'true' THEN 'environmentDestroyLease'
            ELSE 'environmentReleaseLease' END,
            CASE WHEN c.operation NOT IN ('initialize', 'reconcile')
                 -- with the company: callers may bring ids of their own
                 THEN c.company_id || ':' || c.subject_id || ':' || c.generation || ':' || c.operation END) AS m (method, idempotency_key)
     CROSS JOIN LATERAL (
        SELECT CASE WHEN x.code = 'acquire_outcome_unknown' THEN 'unknown' WHEN x.code IS NOT NULL THEN 'failed' END, x.code
          FROM (SELECT CASE
            WHEN c.operation IN ('initialize', 'reconcile') THEN NULL
            WHEN c.operation = 'destroy_stray' THEN CASE
                 WHEN st.stray_id IS NULL THEN 'subject_gone'
                 -- by whatever provider: several drivers may be of the same account
                 WHEN EXISTS (SELECT FROM leasehold.providers AS o
                                JOIN leasehold_internal.provider_resources AS r ON r.provider = o.key
                               WHERE r.provider_lease_id = st.provider_lease_id AND r.lease_id IS NOT NULL)
                 THEN 'resource_taken' END
            WHEN p.key IS NULL THEN 'provider_unusable'
            WHEN c.operation IN ('acquire', 'resume') AND c.payload ? 'limit' THEN 'quota_exceeded'
            WHEN c.operation = 'acquire' AND c.look_up AND NOT (p.plugin_key IS NULL
                 OR 'environmentFindLease' = ANY (g.supported_methods)) THEN 'acquire_outcome_unknown'
            WHEN c.operation IN ('acquire', 'realize') AND NOT c.look_up AND l.acquire_by < pg_catalog.clock_timestamp() THEN 'acquire_timeout'
            WHEN c.operation = 'acquire' AND NOT c.look_up AND e.status <> 'active' THEN 'environment_inactive'
            WHEN c.operation IN ('acquire', 'resume', 'realize') AND NOT c.look_up AND g.status = 'disabled' THEN 'provider_unusable'
            END) AS x (code)) AS v (verdict, code)
     CROSS JOIN LATERAL leasehold_internal.call_timeouts(
                    CASE WHEN c.operation = 'initialize' THEN 'initialize' ELSE p.kind END, k.config,
                    default_timeout_ms) AS t;
END
$$;
COMMENT ON FUNCTION leasehold_internal.claim_calls(bigint, uuid[], uuid[], text[], integer) IS
    'Claims calls for a worker and returns what is to be sent';

-- Requests whose plugin has not answered initialize yet wait for it, as long as
-- they have time; complete_initialize() lets them go on.
CREATE FUNCTION leasehold_internal.hold_unready(company_ids uuid[], subject_ids uuid[]) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
    WITH held AS (
        UPDATE leasehold_internal.calls AS c
           SET due_at = pg_catalog.clock_timestamp() + interval '1 second', last_error = 'the plugin is not ready'
          FROM (SELECT q.company_id, q.subject_id
                  FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(subject_ids)) AS w (company_id, subject_id)
                 CROSS JOIN LATERAL (SELECT * FROM leasehold_internal.calls AS x
                                      WHERE x.company_id = w.company_id AND x.subject_id = w.subject_id AND x.slot = 'op'
                                        FOR UPDATE SKIP LOCKED) AS q
                  JOIN leasehold.leases AS l ON l.company_id = q.company_id AND l.id = q.subject_id
                  JOIN leasehold.providers AS p ON p.key = q.provider
                  JOIN leasehold.plugins AS g ON g.key = p.plugin_key
                 WHERE q.state = 'queued' AND q.operation IN ('acquire', 'resume') AND NOT q.look_up
                   AND g.status IN ('installed', 'error') AND l.acquire_by > pg_catalog.clock_timestamp()) AS n
         WHERE c.company_id = n.company_id AND c.subject_id = n.subject_id AND c.slot = 'op'
        RETURNING c.company_id, c.subject_id
    )
    UPDATE leasehold.leases AS l SET waiting_for = 'plugin'
      FROM (SELECT t.company_id, t.id FROM leasehold.leases AS t
              JOIN held AS h ON h.company_id = t.company_id AND h.subject_id = t.id
             WHERE t.waiting_for IS DISTINCT FROM 'plugin'
               FOR NO KEY UPDATE OF t SKIP LOCKED) AS n
     WHERE l.company_id = n.company_id AND l.id = n.id;
END
$$;
COMMENT ON FUNCTION leasehold_internal.hold_unready(uuid[], uuid[]) IS
    'Has requests wait whose plugin is not ready';

-- One row, locked by who grants places.  Not an advisory lock: those anybody can take.
CREATE TABLE leasehold_internal.grant_lock (
    only_one boolean PRIMARY KEY CHECK (only_one)
);
COMMENT ON TABLE leasehold_internal.grant_lock IS 'One row, locked by the worker that grants places under limits';
INSERT INTO leasehold_internal.grant_lock VALUES (true);

-- A limit's name in calls.held_by.
CREATE FUNCTION leasehold_internal.limit_key(a_limit leasehold.limits) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (a_limit).company_id::text || '/' || (a_limit).name || '/' || (a_limit).environment_id::text || '/' || (a_limit).provider;
COMMENT ON FUNCTION leasehold_internal.limit_key(leasehold.limits) IS 'Names a limit for those who wait for it';

-- How many more starts a limit allows.
CREATE FUNCTION leasehold_internal.room_of_limit(a_limit leasehold.limits) RETURNS bigint
    LANGUAGE sql VOLATILE AS $$
    SELECT (a_limit).value - CASE (a_limit).name
        WHEN 'active_leases' THEN
            leasehold_internal.occupied_slots((a_limit).company_id, (a_limit).environment_id, (a_limit).provider)
        ELSE (SELECT pg_catalog.count(*) FROM leasehold_internal.lease_starts AS s
               WHERE (a_limit).company_id IN (s.company_id, leasehold_internal.no_company())
                 AND (a_limit).environment_id IN (s.environment_id, leasehold_internal.no_company())
                 AND (a_limit).provider IN (s.provider, '')) END
$$;
COMMENT ON FUNCTION leasehold_internal.room_of_limit(leasehold.limits) IS 'How many more starts a limit allows; below zero after it was lowered';

-- Goes through requests, oldest first, and gives each a place in every limit
-- that holds for it, or in none: who must wait for one limit takes no place that
-- another needs.  held_by is the limit that has no place for it, NULL if all have;
-- the one that it waits for already, if that is still full.  A look-up asks for
-- nothing: its lease counts already.
CREATE FUNCTION leasehold_internal.fit_limits(company_ids uuid[], subject_ids uuid[])
    RETURNS TABLE (company_id uuid, subject_id uuid, environment_id uuid, provider text, acquire_by timestamptz,
                   fails boolean, name text, held_by text)
    LANGUAGE plpgsql VOLATILE ROWS 100 AS $$
#variable_conflict use_column
DECLARE
    v_keys    text[];
    v_names   text[];
    v_room    bigint[];
    v_request record;
    v_full    integer;
BEGIN
    SELECT pg_catalog.array_agg(leasehold_internal.limit_key(n.m)), pg_catalog.array_agg((n.m).name::text),
           pg_catalog.array_agg(leasehold_internal.room_of_limit(n.m))
      INTO v_keys, v_names, v_room
      FROM (SELECT DISTINCT ON (m.company_id, m.name, m.environment_id, m.provider) m
              FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(subject_ids)) AS w (company_id, subject_id)
              JOIN leasehold.leases AS l ON l.company_id = w.company_id AND l.id = w.subject_id
              JOIN leasehold.limits AS m ON leasehold_internal.limit_holds(m, l.company_id, l.environment_id, l.provider)
             WHERE m.name IN ('active_leases', 'lease_starts_per_minute')) AS n;

    FOR v_request IN
        SELECT c.company_id, c.subject_id, l.environment_id, c.provider::text AS provider, l.acquire_by,
               -- a parked resource that waits too long is parked again
               l.fail_on_limit OR c.operation = 'resume' AND l.acquire_by <= pg_catalog.clock_timestamp() AS fails,
               ARRAY(SELECT pg_catalog.array_position(v_keys, leasehold_internal.limit_key(m))
                       FROM leasehold.limits AS m
                      WHERE m.name IN ('active_leases', 'lease_starts_per_minute')
                        AND leasehold_internal.limit_holds(m, l.company_id, l.environment_id, l.provider)
                      ORDER BY leasehold_internal.limit_key(m) IS DISTINCT FROM c.held_by) AS limits
          FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(subject_ids)) AS w (company_id, subject_id)
         CROSS JOIN LATERAL (SELECT * FROM leasehold_internal.calls AS x
                              WHERE x.company_id = w.company_id AND x.subject_id = w.subject_id AND x.slot = 'op'
                                FOR UPDATE SKIP LOCKED) AS c
          JOIN leasehold.leases AS l ON l.company_id = c.company_id AND l.id = c.subject_id
         WHERE c.operation IN ('acquire', 'resume') AND NOT c.granted AND NOT c.look_up
           AND (c.state = 'waiting' OR c.state = 'queued' AND c.due_at <= pg_catalog.clock_timestamp())
         ORDER BY c.queued_at, c.subject_id
    LOOP
        v_full := NULL;
        FOR i IN 1 .. pg_catalog.cardinality(v_request.limits) LOOP
            IF v_room[v_request.limits[i]] <= 0 THEN
                v_full := v_request.limits[i];
                EXIT;
            END IF;
        END LOOP;
        IF v_full IS NULL THEN
            FOR i IN 1 .. pg_catalog.cardinality(v_request.limits) LOOP
                v_room[v_request.limits[i]] := v_room[v_request.limits[i]] - 1;
            END LOOP;
        END IF;
        company_id := v_request.company_id;
        subject_id := v_request.subject_id;
        environment_id := v_request.environment_id;
        provider := v_request.provider;
        acquire_by := v_request.acquire_by;
        fails := v_request.fails;
        name := v_names[v_full];
        held_by := v_keys[v_full];
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION leasehold_internal.fit_limits(uuid[], uuid[]) IS
    'Says for each of these requests whether the limits have a place for it, oldest first';

-- Lets those of these requests start for which the limits have a place, and has
-- the others wait; returns for how many that is news.  Whoever starts something
-- where a limit holds takes one lock, so that two cannot take the last place;
-- where there are no limits this is never called.
CREATE FUNCTION leasehold_internal.grant_starts(company_ids uuid[], subject_ids uuid[]) RETURNS integer
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_count integer;
BEGIN
    PERFORM FROM leasehold_internal.grant_lock FOR UPDATE;
    DELETE FROM leasehold_internal.lease_starts AS s
     WHERE s.started_at < pg_catalog.clock_timestamp() - interval '1 minute'
        -- before the clock was set back
        OR s.started_at > pg_catalog.clock_timestamp() + interval '1 second';

    WITH fitted AS MATERIALIZED (
        SELECT * FROM leasehold_internal.fit_limits(company_ids, subject_ids)
    ), waiting AS (
        -- a limit of starts makes room by itself; the others when a lease ends
        UPDATE leasehold_internal.calls AS c
           SET state = CASE WHEN b.fails OR b.name = 'lease_starts_per_minute' THEN 'queued' ELSE 'waiting' END,
               due_at = CASE WHEN b.fails THEN c.due_at ELSE pg_catalog.clock_timestamp() + interval '1 second' END,
               payload = CASE WHEN b.fails THEN pg_catalog.jsonb_build_object('limit', b.name) END,
               held_by = b.held_by
          FROM fitted AS b
         WHERE b.held_by IS NOT NULL AND c.company_id = b.company_id AND c.subject_id = b.subject_id AND c.slot = 'op'
           AND NOT (c.state = 'waiting' AND c.held_by = b.held_by)
        RETURNING 1
    ), deadline AS (
        INSERT INTO leasehold_internal.calls AS c (company_id, subject_id, slot, operation, shard, due_at)
        SELECT b.company_id, b.subject_id, 'timer', 'lease_deadline', leasehold_internal.shard_of(b.company_id), b.acquire_by
          FROM fitted AS b WHERE b.held_by IS NOT NULL
        -- a parked lease has one for its retention
        ON CONFLICT (company_id, subject_id, slot) DO UPDATE SET due_at = LEAST(c.due_at, excluded.due_at)
    ), granted AS (
        UPDATE leasehold_internal.calls AS c
           SET granted = true, held_by = NULL, payload = NULL, state = 'queued',
               due_at = CASE c.state WHEN 'waiting' THEN pg_catalog.clock_timestamp() ELSE c.due_at END
          FROM fitted AS k
         WHERE k.held_by IS NULL AND c.company_id = k.company_id AND c.subject_id = k.subject_id AND c.slot = 'op'
        RETURNING c.company_id, c.subject_id, k.environment_id, c.provider
    ), start AS (
        INSERT INTO leasehold_internal.lease_starts (company_id, started_at, lease_id, environment_id, provider)
        SELECT g.company_id, pg_catalog.clock_timestamp(), g.subject_id, g.environment_id, g.provider
          FROM granted AS g
         WHERE EXISTS (SELECT FROM leasehold.limits AS m WHERE m.name = 'lease_starts_per_minute')
    ), lease AS (
        UPDATE leasehold.leases AS l SET waiting_for = n.name
          FROM (SELECT t.company_id, t.id, f.name
                  FROM leasehold.leases AS t
                  JOIN fitted AS f ON t.company_id = f.company_id AND t.id = f.subject_id
                 WHERE t.waiting_for IS DISTINCT FROM f.name
                   FOR NO KEY UPDATE OF t SKIP LOCKED) AS n
         WHERE l.company_id = n.company_id AND l.id = n.id
    )
    SELECT (SELECT pg_catalog.count(*) FROM waiting) + (SELECT pg_catalog.count(*) FROM granted) INTO v_count;
    RETURN v_count;
END
$$;
COMMENT ON FUNCTION leasehold_internal.grant_starts(uuid[], uuid[]) IS
    'Decides which requests may start under the limits; returns how many were let go or have another limit to wait for';

-- Leases that count against the limit active_leases: those for which something
-- is, or may be, held at a provider.  Parked ones do not count.  It counts for
-- every company, whatever the caller sees (its owner is the worker's role): a
-- limit of the installation is about all of them, and tells nobody whose.
CREATE FUNCTION leasehold_internal.occupied_slots(company_id uuid, environment_id uuid, provider text) RETURNS bigint
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT (SELECT pg_catalog.count(*) FROM leasehold.leases AS l
             WHERE l.status IN ('active', 'releasing', 'pending_cleanup', 'irrevocable')
               AND (occupied_slots.company_id = leasehold_internal.no_company() OR l.company_id = occupied_slots.company_id)
               AND (occupied_slots.environment_id = leasehold_internal.no_company() OR l.environment_id = occupied_slots.environment_id)
               AND (occupied_slots.provider = '' OR l.provider = occupied_slots.provider))
         + (SELECT pg_catalog.count(*) FROM leasehold_internal.calls AS c
              JOIN leasehold.leases AS l ON l.company_id = c.company_id AND l.id = c.subject_id
             WHERE c.slot = 'op' AND c.operation IN ('acquire', 'resume') AND c.granted
               AND l.status IN ('acquiring', 'resuming')
               AND (occupied_slots.company_id = leasehold_internal.no_company() OR c.company_id = occupied_slots.company_id)
               AND (occupied_slots.environment_id = leasehold_internal.no_company() OR l.environment_id = occupied_slots.environment_id)
               AND (occupied_slots.provider = '' OR c.provider = occupied_slots.provider))
$$;
COMMENT ON FUNCTION leasehold_internal.occupied_slots(uuid, uuid, text) IS 'Leases that count against the limit active_leases';

-- For a request that would rather fail than wait: refuses at once when it is
-- plain that there is no place.  Two that see the same last place both pass;
-- grant_starts() then gives it to one and fails the other.
CREATE FUNCTION leasehold_internal.require_free_slot(company_id uuid, environment_id uuid, provider text) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM FROM leasehold.limits AS m
      WHERE m.name = 'active_leases'
        AND leasehold_internal.limit_holds(m, require_free_slot.company_id, require_free_slot.environment_id,
                                           require_free_slot.provider)
        AND leasehold_internal.room_of_limit(m) <= 0;
    IF FOUND THEN
        PERFORM leasehold_internal.refuse('quota_exceeded', 'the limit active_leases is reached',
            'Release a lease, ask for a higher limit, or use on_limit => ''wait''.',
            '{"limit": "active_leases"}');
    END IF;
END
$$;
COMMENT ON FUNCTION leasehold_internal.require_free_slot(uuid, uuid, text) IS
    'Refuses a request if the limit active_leases plainly leaves no place for it';

-- Gives places that have become free to those who wait for them, each limit's
-- oldest first.  One who finds that another limit is full goes over to that one's,
-- and the next is asked.  A limit that is gone holds nobody: with limits_changed
-- that is looked for, too.  For workers only: the lock makes sure that a request
-- which another worker finds no place for at this moment is either seen here, or
-- sees the place.
CREATE FUNCTION leasehold_internal.give_places(limits_changed boolean) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_companies uuid[];
    v_subjects  uuid[];
BEGIN
    PERFORM FROM leasehold_internal.grant_lock FOR UPDATE;
    LOOP
        SELECT pg_catalog.array_agg(w.company_id), pg_catalog.array_agg(w.subject_id) INTO v_companies, v_subjects
          FROM (SELECT leasehold_internal.limit_key(m) AS key, leasehold_internal.room_of_limit(m) AS room
                  FROM leasehold.limits AS m
                 WHERE m.name = 'active_leases'
                   AND EXISTS (SELECT FROM leasehold_internal.calls AS x
                                WHERE x.state = 'waiting' AND x.held_by = leasehold_internal.limit_key(m))
                OFFSET 0) AS r
         CROSS JOIN LATERAL (SELECT x.company_id, x.subject_id FROM leasehold_internal.calls AS x
                              WHERE x.state = 'waiting' AND x.held_by = r.key
                              ORDER BY x.queued_at LIMIT CASE WHEN r.room > 0 THEN 500 ELSE 0 END
                                FOR UPDATE SKIP LOCKED) AS w;
        EXIT WHEN v_companies IS NULL OR leasehold_internal.grant_starts(v_companies, v_subjects) = 0;
    END LOOP;
    WHILE limits_changed LOOP
        SELECT pg_catalog.array_agg(w.company_id), pg_catalog.array_agg(w.subject_id) INTO v_companies, v_subjects
          FROM (SELECT x.company_id, x.subject_id FROM leasehold_internal.calls AS x
                 WHERE x.state = 'waiting'
                   AND NOT EXISTS (SELECT FROM leasehold.limits AS m WHERE leasehold_internal.limit_key(m) = x.held_by)
                 ORDER BY x.queued_at LIMIT 500
                   FOR UPDATE SKIP LOCKED) AS w;
        EXIT WHEN v_companies IS NULL OR leasehold_internal.grant_starts(v_companies, v_subjects) = 0;
    END LOOP;
END
$$;
COMMENT ON FUNCTION leasehold_internal.give_places(boolean) IS 'Gives places that have become free to those who wait for them';

-- Has a worker do that once the transaction has committed.  Users do not do it
-- themselves: a worker that is just finding no place for a request would not be
-- seen, and the request would wait for a place that is free.
CREATE FUNCTION leasehold_internal.announce_places(company_id uuid) RETURNS void
    LANGUAGE sql VOLATILE AS $$
    INSERT INTO leasehold_internal.calls (company_id, subject_id, slot, operation, shard)
    VALUES (announce_places.company_id, leasehold.new_id(), 'timer', 'places',
            leasehold_internal.shard_of(announce_places.company_id))
$$;
COMMENT ON FUNCTION leasehold_internal.announce_places(uuid) IS
    'Says that there may be places for requests that wait';
