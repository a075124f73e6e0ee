-- 45_command_dispatch.sql: the protocol between commands and the workers: claim,
-- store output, complete, lose.
--
-- As with other calls a claim is committed before anything is sent.  But a command
-- is never sent twice: only if it is known that it did not begin, it is queued
-- again, and who has died with one leaves it as lost, or unknown.

-- What a provider is to be told of a command, or of ending one.
CREATE FUNCTION leasehold_internal.command_params(
        command leasehold.commands, lease leasehold.leases, installation_id uuid, config jsonb, metadata jsonb,
        document jsonb, kind text, slot text, stdin text, env jsonb, work_ms bigint)
    RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT pg_catalog.jsonb_build_object(
               'driverKey', (command).provider, 'companyId', (command).company_id, 'environmentId', (lease).environment_id,
               'issueId', (lease).issue_id, 'config', config,
               'lease', pg_catalog.jsonb_build_object('providerLeaseId', (lease).provider_lease_id,
                   'metadata', document, 'expiresAt', (lease).expires_at),
               'leasehold', pg_catalog.jsonb_build_object('installationId', installation_id, 'leaseId', (lease).id,
                   'generation', (lease).generation, 'commandId', (command).id,
                   'idempotencyKey', (command).company_id || ':' || (command).id
                                     || CASE slot WHEN 'command' THEN ':execute' ELSE ':cancel' END))
        || CASE WHEN slot = 'command' THEN pg_catalog.jsonb_build_object(
               'command', COALESCE((command).argv[pg_catalog.array_lower((command).argv, 1)], s.shell),
               'args', COALESCE(pg_catalog.to_jsonb((command).argv[pg_catalog.array_lower((command).argv, 1) + 1 :]),
                                pg_catalog.jsonb_build_array('-c', (command).shell)),
               'cwd', CASE WHEN (command).cwd LIKE '/%' THEN (command).cwd ELSE s.home || COALESCE('/' || (command).cwd, '') END,
               'env', COALESCE(env, '{}'))
            || pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object('stdin', stdin, 'timeoutMs', work_ms))
            || CASE WHEN kind = 'sandbox_provider'
               THEN pg_catalog.jsonb_build_object('runId', (lease).run_id, 'streamOutput', true) ELSE '{}' END
           ELSE '{}' END
      FROM (SELECT CASE WHEN metadata ->> 'shellCommand' IN ('bash', 'sh') THEN metadata ->> 'shellCommand' ELSE 'sh' END,
                   COALESCE(metadata #>> '{workspaceRealization,cwd}', NULLIF(pg_catalog.btrim(metadata ->> 'remoteCwd'), ''), '/tmp')) AS s (shell, home)
$$;
COMMENT ON FUNCTION leasehold_internal.command_params(leasehold.commands, leasehold.leases, uuid, jsonb, jsonb, jsonb, text, text,
                                                      text, jsonb, bigint) IS
    'What a provider is to be told of a command';

-- Claims commands, and the ending of others, for a worker: as many as have together
-- no more input than most_input, about, when it is written as JSON.
CREATE FUNCTION leasehold_internal.claim_commands(
        epoch bigint, company_ids uuid[], subject_ids uuid[], slots text[], default_timeout_ms integer, most_output bigint,
        most_input bigint DEFAULT 268435456)
    RETURNS TABLE (company_id uuid, subject_id uuid, generation integer, operation text, verdict text, code text,
                   message text, plugin text, provider text, method text, attempt integer, timeout_ms bigint,
                   idempotency_key text, params text, plugin_row xid, output_limit bigint)
    LANGUAGE plpgsql VOLATILE ROWS 100 AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH found AS (
        SELECT q.company_id, q.subject_id, q.slot, g.status IN ('installed', 'error') AS unready,
               -- of what comes before it
               COALESCE(pg_catalog.sum(i.bytes) OVER (ORDER BY w.nr ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS before
          FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(subject_ids), pg_catalog.unnest(slots))
               WITH ORDINALITY AS w (company_id, subject_id, slot, nr)
         -- one that a user has locked may be about to be cancelled
         CROSS JOIN LATERAL (SELECT x.provider FROM leasehold.commands AS x
                              WHERE x.company_id = w.company_id AND x.id = w.subject_id
                                FOR NO KEY UPDATE SKIP LOCKED) AS k
         CROSS JOIN LATERAL (SELECT * FROM leasehold_internal.calls AS x
                              WHERE x.company_id = w.company_id AND x.subject_id = w.subject_id AND x.slot = w.slot
                                FOR UPDATE SKIP LOCKED) AS q
          LEFT JOIN leasehold.providers AS p ON p.key = k.provider
          LEFT JOIN leasehold.plugins AS g ON g.key = p.plugin_key
          -- a character becomes six at most
          LEFT JOIN LATERAL (SELECT 6::bigint * pg_catalog.octet_length(x.stdin) + 2 * pg_catalog.octet_length(x.env::text)
                               FROM leasehold_internal.command_inputs AS x
                              WHERE w.slot = 'command' AND x.company_id = w.company_id AND x.command_id = w.subject_id) AS i (bytes) ON true
         WHERE q.state = 'queued' AND q.due_at <= pg_catalog.clock_timestamp()
    ), chosen AS MATERIALIZED (
        SELECT * FROM found AS f WHERE f.before < most_input
    ), held AS (
        UPDATE leasehold_internal.calls AS c
           SET due_at = pg_catalog.clock_timestamp() + interval '1 second', last_error = 'the plugin is not ready'
          FROM chosen AS n
         WHERE n.unready AND c.company_id = n.company_id AND c.subject_id = n.subject_id AND c.slot = n.slot
    ), claimed AS (
        UPDATE leasehold_internal.calls AS c
           SET state = 'started', worker_epoch = epoch, started_at = pg_catalog.clock_timestamp(), attempts = c.attempts + 1
          FROM chosen AS n
         WHERE n.unready IS NOT TRUE AND c.company_id = n.company_id AND c.subject_id = n.subject_id AND c.slot = n.slot
        RETURNING c.*
    ), running AS (
        UPDATE leasehold.commands AS k
           SET status = 'running', started_at = pg_catalog.clock_timestamp()
          FROM claimed AS c
         WHERE c.slot = 'command' AND k.company_id = c.company_id AND k.id = c.subject_id AND k.status = 'queued'
    ), input AS (
        DELETE FROM leasehold_internal.command_inputs AS i
         USING claimed AS c
         WHERE c.slot = 'command' AND i.company_id = c.company_id AND i.command_id = c.subject_id
        RETURNING i.*
    )
    SELECT c.company_id, c.subject_id, c.generation, c.operation::text,
           CASE WHEN v.code = 'answer_lost' THEN 'unknown' WHEN v.code IS NOT NULL THEN 'failed' END, v.code,
           CASE v.code WHEN 'lease_ended' THEN 'the lease has ended'
                       WHEN 'provider_unusable' THEN 'the provider''s plugin is disabled or gone'
                       WHEN 'subject_gone' THEN 'the command has ended'
                       WHEN 'answer_lost' THEN 'its end could not be stored; see the server log' END,
           p.plugin_key::text, c.provider,
           CASE c.slot WHEN 'command' THEN 'environmentExecute' ELSE 'environmentCancelExecute' END, c.attempts,
           -- without a limit of time, 0
           CASE c.slot WHEN 'command' THEN COALESCE(t.rpc_ms, 0) ELSE default_timeout_ms END,
           c.company_id || ':' || c.subject_id || CASE c.slot WHEN 'command' THEN ':execute' ELSE ':cancel' END,
           CASE WHEN v.code IS NULL THEN leasehold_internal.command_params(k, l, n.id, COALESCE(f.config, '{}'), md.metadata,
                                             leasehold_internal.lease_document(p.kind, p.plugin_key, c.provider, l.agent_id,
                                                 ws.mode, COALESCE(f.config, '{}'), md.metadata),
                                             p.kind, c.slot, i.stdin, i.env, t.work_ms)::text END,
           g.xmin,
           (SELECT LEAST(pg_catalog.min(m.value), most_output) FROM leasehold.limits AS m
             WHERE m.name = 'output_bytes'
               AND leasehold_internal.limit_holds(m, l.company_id, l.environment_id, l.provider))
      FROM claimed AS c
     CROSS JOIN (SELECT s.id FROM leasehold_internal.installation AS s LIMIT 1) AS n
      JOIN leasehold.commands AS k ON k.company_id = c.company_id AND k.id = c.subject_id
      LEFT JOIN leasehold.leases AS l ON l.company_id = k.company_id AND l.id = k.lease_id
      LEFT JOIN leasehold_internal.environment_configs AS f
        ON f.company_id = l.company_id AND f.environment_id = l.environment_id AND f.version = l.config_version
      LEFT JOIN leasehold.lease_metadata AS md ON md.company_id = l.company_id AND md.lease_id = l.id
      LEFT JOIN leasehold_internal.execution_workspaces AS ws
        ON ws.company_id = l.company_id AND ws.id = l.execution_workspace_id
      LEFT JOIN leasehold.providers AS p ON p.key = c.provider
      LEFT JOIN leasehold.plugins AS g ON g.key = p.plugin_key
      LEFT JOIN input AS i ON c.slot = 'command' AND i.company_id = c.company_id AND i.command_id = c.subject_id
     CROSS JOIN LATERAL leasehold_internal.call_timeouts('execute',
                    COALESCE(f.config, '{}') || CASE WHEN k.timeout IS NULL THEN '{}'
                        ELSE pg_catalog.jsonb_build_object('timeoutMs', pg_catalog.date_part('epoch', k.timeout) * 1000) END,
                    default_timeout_ms) AS t
     CROSS JOIN LATERAL (SELECT CASE
            -- it was sent, and is not to be sent again
            WHEN c.slot = 'command' AND k.status = 'running' THEN 'answer_lost'
            WHEN p.key IS NULL OR c.slot = 'command' AND g.status = 'disabled' THEN 'provider_unusable'
            WHEN l.generation <> k.generation OR NOT leasehold_internal.may_have_resource(l.status) THEN 'lease_ended'
            WHEN c.slot = 'command' AND l.status <> 'active' THEN 'lease_ended'
            WHEN k.status <> 'finished' AND NOT leasehold_internal.may_have_commands(l.status) THEN 'lease_ended'
            WHEN c.slot = 'cancel' AND k.status = 'finished' AND k.outcome NOT IN ('lost', 'unknown', 'timed_out')
            THEN 'subject_gone'
            END) AS v (code);
END
$$;
COMMENT ON FUNCTION leasehold_internal.claim_commands(bigint, uuid[], uuid[], text[], integer, bigint, bigint) IS
    'Claims commands, and the ending of others, for a worker and returns what is to be sent';

-- What commands have written, as long as they are this worker's.
CREATE FUNCTION leasehold_internal.store_output(
        epoch bigint, company_ids uuid[], command_ids uuid[], seqs bigint[], streams text[], ats timestamptz[], datas bytea[])
    RETURNS void LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
    INSERT INTO leasehold.command_output (company_id, command_id, seq, stream, at, data)
    SELECT o.company_id, o.command_id, o.seq, o.stream, o.at, o.data
      FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(command_ids), pg_catalog.unnest(seqs),
                      pg_catalog.unnest(streams), pg_catalog.unnest(ats), pg_catalog.unnest(datas))
           AS o (company_id, command_id, seq, stream, at, data)
      JOIN leasehold_internal.calls AS c
        ON c.company_id = o.company_id AND c.subject_id = o.command_id AND c.slot = 'command'
     WHERE c.state = 'started' AND c.worker_epoch = epoch;
END
$$;
COMMENT ON FUNCTION leasehold_internal.store_output(bigint, uuid[], uuid[], bigint[], text[], timestamptz[], bytea[]) IS
    'Stores what commands have written';

-- What became of a command, from what is known of the call (see 41_completion.sql):
-- the outcome, or NULL if it is to be sent again.
CREATE FUNCTION leasehold_internal.command_outcome(
        outcome text, begun boolean, exit_code integer, signal text, timed_out boolean, cancelled boolean,
        cancel_requested boolean, cancel_sent boolean, may_go_on boolean)
    RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN outcome = 'ok' THEN CASE
            WHEN timed_out THEN 'timed_out'
            WHEN cancelled OR cancel_sent AND exit_code IS NULL THEN 'cancelled'
            WHEN exit_code IS NOT NULL THEN 'exited'
            WHEN signal IS NOT NULL THEN 'signalled'
            ELSE 'lost' END
        WHEN begun THEN CASE WHEN timed_out THEN 'timed_out' ELSE 'lost' END
        WHEN outcome = 'unknown' THEN 'unknown'
        WHEN outcome IN ('retry', 'throttled') THEN CASE WHEN cancel_requested THEN 'cancelled' WHEN NOT may_go_on THEN 'failed' END
        ELSE 'failed' END
$$;
COMMENT ON FUNCTION leasehold_internal.command_outcome(text, boolean, integer, text, boolean, boolean, boolean, boolean, boolean) IS
    'What became of a command; NULL if it is to be sent again';

CREATE FUNCTION leasehold_internal.stored_output(
        company_id uuid, command_id uuid, OUT pieces bigint, OUT stdout bigint, OUT stderr bigint, OUT truncated boolean)
    RETURNS record LANGUAGE sql STABLE AS $$
    SELECT pg_catalog.count(*),
           COALESCE(pg_catalog.sum(pg_catalog.octet_length(o.data)) FILTER (WHERE o.stream = 'stdout'), 0),
           COALESCE(pg_catalog.sum(pg_catalog.octet_length(o.data)) FILTER (WHERE o.stream = 'stderr'), 0),
           COALESCE(pg_catalog.bool_or(o.stream = 'notice'), false)
      FROM leasehold.command_output AS o
     WHERE o.company_id = stored_output.company_id AND o.command_id = stored_output.command_id
$$;
COMMENT ON FUNCTION leasehold_internal.stored_output(uuid, uuid) IS 'How much of a command''s output is stored, and whether it was cut';

-- Applies answers to commands.  Returns for each: applied; locked, if a user has
-- the command locked; or stale.  What is to be sent again gets its input back.
CREATE FUNCTION leasehold_internal.complete_commands(
        epoch bigint, company_ids uuid[], subject_ids uuid[], outcomes text[], codes text[], messages text[],
        retry_after_ms bigint[], exit_codes integer[], signals text[], timed_out boolean[], cancelled boolean[],
        begun boolean[], stdout_bytes bigint[], stderr_bytes bigint[], truncated boolean[], params text[],
        base_ms integer, most_ms integer, tries integer)
    RETURNS TABLE (company_id uuid, subject_id uuid, applied text)
    LANGUAGE plpgsql VOLATILE ROWS 100 AS $$
#variable_conflict use_column
DECLARE
    v_locked smallint[];
    v_gone   record;
BEGIN
    -- first the locks, then, in a later snapshot, the rows
    -- (1: locked; 0: somebody else has it, or its lease, locked; NULL: there is no such command)
    SELECT pg_catalog.array_agg(CASE WHEN k.id IS NOT NULL THEN 1 WHEN e.lease_id IS NOT NULL THEN 0 END ORDER BY w.nr)
      INTO v_locked
      FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(subject_ids)) WITH ORDINALITY AS w (company_id, id, nr)
      LEFT JOIN LATERAL (SELECT x.lease_id FROM leasehold.commands AS x
                          WHERE x.company_id = w.company_id AND x.id = w.id OFFSET 0) AS e ON true
      LEFT JOIN LATERAL (SELECT x.id FROM leasehold.leases AS x
                          WHERE x.company_id = w.company_id AND x.id = e.lease_id
                            FOR NO KEY UPDATE SKIP LOCKED) AS l ON true
      LEFT JOIN LATERAL (SELECT x.id FROM leasehold.commands AS x
                          WHERE l.id IS NOT NULL AND x.company_id = w.company_id AND x.id = w.id
                            FOR NO KEY UPDATE SKIP LOCKED) AS k ON true;

    RETURN QUERY
    WITH step AS MATERIALIZED (
        SELECT a.*, k.lease_id, c.attempts,
               leasehold_internal.command_outcome(a.outcome, a.begun, a.exit_code, a.signal, a.timed_out, a.cancelled,
                   k.cancel_requested_at IS NOT NULL,
                   k.cancel_requested_at IS NOT NULL AND NOT EXISTS (
                       SELECT FROM leasehold_internal.calls AS x
                        WHERE x.company_id = a.company_id AND x.subject_id = a.id AND x.slot = 'cancel'
                          AND x.state = 'queued' AND x.attempts = 0),
                   a.outcome = 'throttled' OR a.code = 'worker_ended' OR c.attempts - c.throttled < tries) AS verdict
          FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(subject_ids), pg_catalog.unnest(outcomes),
                          pg_catalog.unnest(codes), pg_catalog.unnest(messages), pg_catalog.unnest(retry_after_ms),
                          pg_catalog.unnest(exit_codes), pg_catalog.unnest(signals), pg_catalog.unnest(timed_out),
                          pg_catalog.unnest(cancelled), pg_catalog.unnest(begun), pg_catalog.unnest(stdout_bytes),
                          pg_catalog.unnest(stderr_bytes), pg_catalog.unnest(truncated), pg_catalog.unnest(params),
                          pg_catalog.unnest(v_locked))
               AS a (company_id, id, outcome, code, message, retry_after_ms, exit_code, signal, timed_out, cancelled, begun,
                     stdout_bytes, stderr_bytes, truncated, params, locked)
         CROSS JOIN LATERAL (SELECT * FROM leasehold.commands AS x
                              WHERE x.company_id = a.company_id AND x.id = a.id OFFSET 0) AS k
         CROSS JOIN LATERAL (SELECT * FROM leasehold_internal.calls AS x
                              WHERE x.company_id = a.company_id AND x.subject_id = a.id AND x.slot = 'command' OFFSET 0) AS c
         WHERE a.locked = 1 AND k.status = 'running' AND c.state = 'started' AND c.worker_epoch = epoch
    ), again AS (
        UPDATE leasehold_internal.calls AS c
           SET state = 'queued', worker_epoch = NULL, last_error = pg_catalog.left(s.message, 500),
               throttled = c.throttled + CASE WHEN s.outcome = 'throttled' OR s.code = 'worker_ended' THEN 1 ELSE 0 END,
               due_at = pg_catalog.clock_timestamp() + CASE WHEN s.code = 'worker_ended' THEN '0'
                            ELSE leasehold_internal.retry_pause(s.attempts, base_ms, most_ms, s.retry_after_ms) END
          FROM step AS s
         WHERE s.verdict IS NULL AND c.company_id = s.company_id AND c.subject_id = s.id AND c.slot = 'command'
    ), input AS (
        INSERT INTO leasehold_internal.command_inputs (company_id, command_id, stdin, env)
        SELECT s.company_id, s.id, s.params::jsonb ->> 'stdin', NULLIF(s.params::jsonb -> 'env', '{}')
          FROM step AS s WHERE s.verdict IS NULL AND (s.params::jsonb ? 'stdin' OR s.params::jsonb -> 'env' <> '{}')
    ), command AS (
        UPDATE leasehold.commands AS k
           SET status = CASE WHEN s.verdict IS NULL THEN 'queued' ELSE 'finished' END,
               outcome = s.verdict,
               started_at = CASE WHEN s.verdict IS NULL THEN NULL ELSE k.started_at END,
               finished_at = CASE WHEN s.verdict IS NOT NULL THEN pg_catalog.clock_timestamp() END,
               exit_code = CASE WHEN s.verdict IS NOT NULL THEN s.exit_code END,
               signal = CASE WHEN s.verdict IS NOT NULL THEN s.signal END,
               failure_code = CASE WHEN s.verdict = 'lost' AND s.outcome = 'ok' THEN 'no_exit_status'
                                   WHEN s.verdict IN ('failed', 'lost', 'unknown') THEN s.code END,
               failure_reason = CASE WHEN s.verdict = 'lost' AND s.outcome = 'ok' THEN 'the provider did not say how it ended'
                                     WHEN s.verdict IN ('failed', 'lost', 'unknown') THEN s.message END,
               -- of one that was set aside the worker knows nothing any more
               stdout_bytes = CASE s.code WHEN 'answer_lost' THEN w.stdout ELSE s.stdout_bytes END,
               stderr_bytes = CASE s.code WHEN 'answer_lost' THEN w.stderr ELSE s.stderr_bytes END,
               output_truncated = CASE s.code WHEN 'answer_lost' THEN w.truncated ELSE s.truncated END
          FROM step AS s
          LEFT JOIN LATERAL (SELECT o.* FROM leasehold_internal.stored_output(s.company_id, s.id) AS o
                              WHERE s.code = 'answer_lost') AS w ON true
         WHERE k.company_id = s.company_id AND k.id = s.id
        RETURNING k.*
    ), unseen AS (
        -- those whose end the provider did not tell
        SELECT s.company_id, s.id FROM step AS s
         WHERE s.verdict IN ('lost', 'unknown') OR s.verdict = 'timed_out' AND s.outcome <> 'ok'
    ), over AS (
        DELETE FROM leasehold_internal.calls AS c
         USING command AS k
         WHERE k.status = 'finished' AND c.company_id = k.company_id AND c.subject_id = k.id
           AND (c.slot = 'command' OR c.slot = 'cancel' AND c.state = 'queued'
                AND NOT EXISTS (SELECT FROM unseen AS u WHERE u.company_id = k.company_id AND u.id = k.id))
    ), cancel AS (
        -- it may be running still, for nobody
        INSERT INTO leasehold_internal.calls (company_id, subject_id, slot, operation, provider, shard, generation)
        SELECT k.company_id, k.id, 'cancel', 'cancel_command', k.provider, leasehold_internal.shard_of(k.company_id), k.generation
          FROM command AS k JOIN unseen AS u ON u.company_id = k.company_id AND u.id = k.id
          JOIN leasehold.leases AS l ON l.company_id = k.company_id AND l.id = k.lease_id
         WHERE leasehold_internal.may_have_resource(l.status)
        ON CONFLICT DO NOTHING
    ), lease AS (
        UPDATE leasehold.leases AS l SET last_used_at = pg_catalog.clock_timestamp()
          FROM (SELECT DISTINCT k.company_id, k.lease_id FROM command AS k) AS u
         WHERE l.company_id = u.company_id AND l.id = u.lease_id AND l.status = 'active'
    ), event AS (
        INSERT INTO leasehold.audit_events (company_id, action, entity_type, entity_id, agent_id, issue_id, run_id, details)
        SELECT k.company_id, 'environment.command_finished', 'command', k.id::text, k.agent_id, k.issue_id, k.run_id,
               pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object('leaseId', k.lease_id, 'provider', k.provider,
                   'outcome', k.outcome, 'exitCode', k.exit_code, 'signal', k.signal, 'failureCode', k.failure_code,
                   'failureReason', k.failure_reason))
          FROM command AS k WHERE k.status = 'finished'
    )
    SELECT a.company_id, a.id, CASE WHEN k.id IS NOT NULL THEN 'applied' WHEN a.locked = 0 THEN 'locked' ELSE 'stale' END
      FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(subject_ids), pg_catalog.unnest(v_locked))
           AS a (company_id, id, locked)
      LEFT JOIN command AS k ON k.company_id = a.company_id AND k.id = a.id;

    PERFORM leasehold_internal.hurry_removal(company_ids, subject_ids);
    -- where a command found no place to run in, there is nothing left to lease
    SELECT pg_catalog.array_agg(k.company_id) AS companies, pg_catalog.array_agg(k.lease_id) AS leases INTO v_gone
      FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(subject_ids), pg_catalog.unnest(outcomes),
                      pg_catalog.unnest(v_locked)) AS a (company_id, id, outcome, locked)
      JOIN leasehold.commands AS k ON k.company_id = a.company_id AND k.id = a.id
     WHERE a.outcome = 'gone' AND a.locked = 1 AND k.failure_code = 'resource_gone';
    IF v_gone.leases IS NOT NULL THEN
        PERFORM leasehold_internal.end_leases(v_gone.companies, v_gone.leases, 'failed', 'delete', 'the resource is gone',
                                              'resource_gone');
    END IF;
END
$$;
COMMENT ON FUNCTION leasehold_internal.complete_commands(bigint, uuid[], uuid[], text[], text[], text[], bigint[], integer[],
        text[], boolean[], boolean[], boolean[], bigint[], bigint[], boolean[], text[], integer, integer, integer) IS
    'Applies answers to commands';

-- The removal of a lease's resource that waits for its commands need wait no
-- longer when the last of them has ended.
CREATE FUNCTION leasehold_internal.hurry_removal(company_ids uuid[], command_ids uuid[]) RETURNS void
    LANGUAGE sql VOLATILE AS $$
    UPDATE leasehold_internal.calls AS q SET due_at = pg_catalog.clock_timestamp()
      FROM (SELECT c.company_id, c.subject_id
              FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(command_ids)) AS w (company_id, id)
              JOIN leasehold.commands AS k ON k.company_id = w.company_id AND k.id = w.id
              JOIN leasehold.leases AS l ON l.company_id = k.company_id AND l.id = k.lease_id
              JOIN leasehold_internal.calls AS c ON c.company_id = l.company_id AND c.subject_id = l.id AND c.slot = 'op'
             WHERE l.status IN ('releasing', 'pending_cleanup') AND c.state = 'queued' AND c.attempts = 0
               AND NOT EXISTS (SELECT FROM leasehold.commands AS o
                                WHERE o.company_id = l.company_id AND o.lease_id = l.id AND o.status <> 'finished')
               FOR UPDATE OF c SKIP LOCKED) AS t
     WHERE q.company_id = t.company_id AND q.subject_id = t.subject_id AND q.slot = 'op'
$$;
COMMENT ON FUNCTION leasehold_internal.hurry_removal(uuid[], uuid[]) IS
    'Has resources removed whose last command has ended';

-- What runs on in a lease that is over, though it was told to end: nobody waits for
-- its end any more.  Whoever claims such a call abandons the command.
CREATE FUNCTION leasehold_internal.abandon_commands(company_ids uuid[], lease_ids uuid[]) RETURNS void
    LANGUAGE sql VOLATILE AS $$
    INSERT INTO leasehold_internal.calls AS c (company_id, subject_id, slot, operation, provider, shard, generation)
    SELECT k.company_id, k.id, 'cancel', 'cancel_command', k.provider, leasehold_internal.shard_of(k.company_id), k.generation
      FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(lease_ids)) AS w (company_id, id)
      JOIN leasehold.commands AS k ON k.company_id = w.company_id AND k.lease_id = w.id AND k.status <> 'finished'
      JOIN leasehold.leases AS l ON l.company_id = w.company_id AND l.id = w.id
     WHERE NOT leasehold_internal.may_have_commands(l.status)
    ON CONFLICT (company_id, subject_id, slot) DO UPDATE SET due_at = excluded.due_at WHERE c.state = 'queued'
$$;
COMMENT ON FUNCTION leasehold_internal.abandon_commands(uuid[], uuid[]) IS
    'Has the workers abandon commands that did not end with their lease';

-- Answers about commands that are to be ended.  What cannot be told to the
-- provider is given up in the end: with the lease, the command ends anyway.
CREATE FUNCTION leasehold_internal.complete_cancels(
        epoch bigint, company_ids uuid[], subject_ids uuid[], outcomes text[], messages text[], retry_after_ms bigint[],
        base_ms integer, most_ms integer, tries integer)
    RETURNS void LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
    WITH answer AS (
        SELECT c.company_id, c.subject_id, c.attempts, c.provider, a.message, a.retry_after_ms, a.outcome,
               k.agent_id, k.issue_id, k.run_id,
               k.status = 'finished' AND k.outcome NOT IN ('lost', 'unknown', 'timed_out')
               OR NOT leasehold_internal.may_have_resource(l.status) AND a.outcome = 'failed' AS needless,
               -- a command that is told to end, and does not, is abandoned with the next
               (a.outcome IN ('ok', 'gone') AND (k.status = 'finished' OR leasehold_internal.may_have_commands(l.status)))
               OR a.outcome = 'failed'
               OR a.outcome <> 'throttled' AND c.attempts - c.throttled >= tries
                  AND (k.status = 'finished' OR leasehold_internal.may_have_commands(l.status)) AS over, k.lease_id
          FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(subject_ids), pg_catalog.unnest(outcomes),
                          pg_catalog.unnest(messages), pg_catalog.unnest(retry_after_ms))
               AS a (company_id, id, outcome, message, retry_after_ms)
         CROSS JOIN LATERAL (SELECT * FROM leasehold_internal.calls AS x
                              WHERE x.company_id = a.company_id AND x.subject_id = a.id AND x.slot = 'cancel' OFFSET 0) AS c
         CROSS JOIN LATERAL (SELECT * FROM leasehold.commands AS x
                              WHERE x.company_id = a.company_id AND x.id = a.id OFFSET 0) AS k
         CROSS JOIN LATERAL (SELECT x.status FROM leasehold.leases AS x
                              WHERE x.company_id = k.company_id AND x.id = k.lease_id OFFSET 0) AS l
         WHERE c.state = 'started' AND c.worker_epoch = epoch
    ), done AS (
        DELETE FROM leasehold_internal.calls AS c USING answer AS a
         WHERE (a.over OR a.needless) AND c.company_id = a.company_id AND c.subject_id = a.subject_id AND c.slot = 'cancel'
    ), later AS (
        UPDATE leasehold_internal.calls AS c
           SET state = 'queued', worker_epoch = NULL, crashes = 0, last_error = pg_catalog.left(a.message, 500),
               throttled = c.throttled + CASE WHEN a.outcome = 'throttled' THEN 1 ELSE 0 END,
               due_at = pg_catalog.clock_timestamp()
                        + leasehold_internal.retry_pause(a.attempts, base_ms, most_ms, a.retry_after_ms)
          FROM answer AS a
         WHERE NOT a.over AND NOT a.needless
           AND c.company_id = a.company_id AND c.subject_id = a.subject_id AND c.slot = 'cancel'
    )
    INSERT INTO leasehold.audit_events (company_id, action, entity_type, entity_id, agent_id, issue_id, run_id, details)
    SELECT a.company_id, 'environment.command_cancel_failed', 'command', a.subject_id::text, a.agent_id, a.issue_id, a.run_id,
           pg_catalog.jsonb_build_object('leaseId', a.lease_id, 'provider', a.provider, 'failureReason', a.message)
      FROM answer AS a WHERE a.over AND NOT a.needless AND a.outcome NOT IN ('ok', 'gone');
END
$$;
COMMENT ON FUNCTION leasehold_internal.complete_cancels(bigint, uuid[], uuid[], text[], text[], bigint[], integer, integer,
                                                       integer) IS
    'Applies answers about commands that are to be ended';

-- Commands that no live worker has, though one took them: nobody sees their end
-- any more.  The provider is told to end them.  Those for which the dispatch
-- table has nothing, as after a restore, are the same.
CREATE FUNCTION leasehold_internal.lose_commands(live_epochs bigint[], shards smallint[], started_before timestamptz)
    RETURNS integer LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_count integer;
BEGIN
    WITH target AS (
        SELECT k.company_id, k.id, c.subject_id IS NULL AS is_restored, c.worker_epoch = 0 AS is_distrusted
          FROM (SELECT x.company_id, x.id FROM leasehold.commands AS x WHERE x.status <> 'finished') AS w
          LEFT JOIN leasehold_internal.calls AS c ON c.company_id = w.company_id AND c.subject_id = w.id AND c.slot = 'command'
         CROSS JOIN LATERAL (SELECT * FROM leasehold.commands AS x
                              WHERE x.company_id = w.company_id AND x.id = w.id FOR NO KEY UPDATE SKIP LOCKED) AS k
         WHERE leasehold_internal.shard_of(k.company_id) = ANY (shards) AND k.status <> 'finished'
           AND CASE WHEN c.subject_id IS NULL THEN k.requested_at <= started_before
                    ELSE c.state = 'started' AND (c.started_at <= started_before OR c.started_at IS NULL)
                         AND NOT COALESCE(c.worker_epoch = ANY (live_epochs), false) END
    ), command AS (
        UPDATE leasehold.commands AS k
           SET status = 'finished', finished_at = pg_catalog.clock_timestamp(),
               outcome = CASE WHEN w.pieces > 0 THEN 'lost' ELSE 'unknown' END,
               -- as far as is known
               stdout_bytes = w.stdout, stderr_bytes = w.stderr, output_truncated = w.truncated,
               failure_code = CASE WHEN t.is_restored THEN 'dispatch_lost' WHEN t.is_distrusted THEN 'failed_over'
                                   ELSE 'worker_ended' END,
               failure_reason = CASE WHEN t.is_restored THEN 'the database was restored meanwhile'
                                     WHEN t.is_distrusted THEN 'the server it was queued on may have sent it before it failed over'
                                     ELSE 'the worker ended before the answer came' END
          FROM target AS t
         CROSS JOIN LATERAL leasehold_internal.stored_output(t.company_id, t.id) AS w
         WHERE k.company_id = t.company_id AND k.id = t.id
        RETURNING k.*
    ), call AS (
        DELETE FROM leasehold_internal.calls AS c
         USING command AS k WHERE c.company_id = k.company_id AND c.subject_id = k.id AND c.slot = 'command'
    ), input AS (
        DELETE FROM leasehold_internal.command_inputs AS i
         USING command AS k WHERE i.company_id = k.company_id AND i.command_id = k.id
    ), cancel AS (
        INSERT INTO leasehold_internal.calls (company_id, subject_id, slot, operation, provider, shard, generation)
        SELECT k.company_id, k.id, 'cancel', 'cancel_command', k.provider, leasehold_internal.shard_of(k.company_id), k.generation
          FROM command AS k JOIN leasehold.leases AS l ON l.company_id = k.company_id AND l.id = k.lease_id
         WHERE leasehold_internal.may_have_resource(l.status)
        ON CONFLICT DO NOTHING
    ), event AS (
        INSERT INTO leasehold.audit_events (company_id, action, entity_type, entity_id, agent_id, issue_id, run_id, details)
        SELECT k.company_id, 'environment.command_finished', 'command', k.id::text, k.agent_id, k.issue_id, k.run_id,
               pg_catalog.jsonb_build_object('leaseId', k.lease_id, 'provider', k.provider, 'outcome', k.outcome,
                   'failureCode', k.failure_code, 'failureReason', k.failure_reason)
          FROM command AS k
    )
    SELECT pg_catalog.count(*) INTO v_count FROM command;
    RETURN v_count;
END
$$;
COMMENT ON FUNCTION leasehold_internal.lose_commands(bigint[], smallint[], timestamptz) IS
    'Ends commands that no live worker has, as lost or of unknown outcome';
