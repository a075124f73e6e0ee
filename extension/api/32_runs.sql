-- 32_runs.sql: heartbeat runs.  A run's end and the release of its leases are
-- one transaction; a run whose heartbeats stop is lost, and its leases with it.

CREATE TABLE leasehold_internal.runs (
    company_id             uuid NOT NULL REFERENCES leasehold.companies,
    id                     uuid NOT NULL,
    agent_id               uuid,
    issue_id               uuid,
    project_id             uuid,
    routine_id             uuid,
    execution_workspace_id uuid,
    status                 leasehold.run_status NOT NULL DEFAULT 'queued',
    heartbeat_timeout      interval NOT NULL,
    heartbeat_at           timestamptz,
    started_at             timestamptz,
    finished_at            timestamptz,
    error                  text,
    error_code             text,
    retry_of_run_id        uuid,
    retry_on_loss          boolean NOT NULL DEFAULT false,
    env                    jsonb NOT NULL DEFAULT '{}',
    metadata               jsonb NOT NULL DEFAULT '{}',
    created_at             timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (company_id, id),
    -- a lost run is retried at most once (no key to the table itself: pg_dump would warn of a circle)
    CONSTRAINT runs_one_retry UNIQUE (company_id, retry_of_run_id),
    FOREIGN KEY (company_id, agent_id) REFERENCES leasehold_internal.agents,
    FOREIGN KEY (company_id, issue_id) REFERENCES leasehold_internal.issues,
    FOREIGN KEY (company_id, project_id) REFERENCES leasehold_internal.projects,
    FOREIGN KEY (company_id, routine_id) REFERENCES leasehold_internal.routines,
    FOREIGN KEY (company_id, execution_workspace_id) REFERENCES leasehold_internal.execution_workspaces
) WITH (fillfactor = 80);
COMMENT ON TABLE leasehold_internal.runs IS 'Runs: see the view leasehold.runs';
SELECT leasehold_internal.protect('leasehold_internal.runs', 'viewer');

ALTER TABLE leasehold.leases ADD FOREIGN KEY (company_id, run_id) REFERENCES leasehold_internal.runs;

CREATE TABLE leasehold_internal.run_tokens (
    company_id uuid NOT NULL,
    run_id     uuid NOT NULL,
    token_hash bytea NOT NULL,
    PRIMARY KEY (company_id, run_id),
    FOREIGN KEY (company_id, run_id) REFERENCES leasehold_internal.runs ON DELETE CASCADE
);
COMMENT ON TABLE leasehold_internal.run_tokens IS 'Hashes of the tokens of running runs';
SELECT leasehold_internal.protect('leasehold_internal.run_tokens', 'user');

CREATE VIEW leasehold.runs WITH (security_barrier) AS
    SELECT r.company_id, r.id, r.agent_id, r.issue_id, r.project_id, r.routine_id, r.execution_workspace_id,
           r.status, r.heartbeat_timeout, r.heartbeat_at, r.started_at, r.finished_at, r.error, r.error_code,
           r.retry_of_run_id, r.retry_on_loss,
           CASE WHEN r.company_id = ANY ((SELECT leasehold.visible_companies('user'))::uuid[]) THEN r.env END AS env,
           CASE WHEN r.company_id = ANY ((SELECT leasehold.visible_companies('user'))::uuid[]) THEN r.metadata END AS metadata,
           r.created_at
      FROM leasehold_internal.runs AS r;
COMMENT ON VIEW leasehold.runs IS 'Runs of agents; env and metadata are shown from level user on';

CREATE FUNCTION leasehold_internal.require_running_run(company_id uuid, run_id uuid) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_status text;
BEGIN
    IF run_id IS NULL THEN RETURN; END IF;
    SELECT r.status INTO v_status FROM leasehold_internal.runs AS r
     WHERE r.company_id = require_running_run.company_id AND r.id = require_running_run.run_id FOR SHARE;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('run_not_found', pg_catalog.format('run %s does not exist', run_id),
            'Begin it with start_run().');
    ELSIF v_status <> 'running' THEN
        PERFORM leasehold_internal.refuse('wrong_state', pg_catalog.format('run %s is not running', run_id), NULL,
            pg_catalog.jsonb_build_object('status', v_status));
    END IF;
END
$$;
COMMENT ON FUNCTION leasehold_internal.require_running_run(uuid, uuid) IS
    'Refuses unless the run is the company''s and running; its row is locked against its end';

CREATE FUNCTION leasehold_internal.start_run(
        agent_id uuid DEFAULT NULL, issue_id uuid DEFAULT NULL, project_id uuid DEFAULT NULL,
        routine_id uuid DEFAULT NULL, execution_workspace_id uuid DEFAULT NULL,
        heartbeat_timeout interval DEFAULT '5 minutes', retry_on_loss boolean DEFAULT false, env jsonb DEFAULT NULL,
        metadata jsonb DEFAULT NULL, run_id uuid DEFAULT NULL, idempotency_key text DEFAULT NULL,
        company text DEFAULT NULL, OUT started_run_id uuid, OUT token text)
    RETURNS record LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(start_run.company, 'user');
    v_id      uuid := COALESCE(start_run.run_id, leasehold.new_id());
    v_timeout interval := COALESCE(start_run.heartbeat_timeout, '5 minutes');
    v_earlier uuid;
    v_run     leasehold_internal.runs;
BEGIN
    PERFORM leasehold_internal.check_interval('heartbeat_timeout', v_timeout, '1 second', '30 days');
    PERFORM leasehold_internal.check_env('env', start_run.env);
    PERFORM leasehold_internal.check_object('metadata', start_run.metadata);
    PERFORM leasehold_internal.require_active_company(v_company);
    PERFORM leasehold_internal.require_agent(v_company, start_run.agent_id);
    PERFORM leasehold_internal.require_issue(v_company, start_run.issue_id);
    PERFORM leasehold_internal.require_project(v_company, start_run.project_id);
    PERFORM leasehold_internal.require_workspace(v_company, start_run.execution_workspace_id);
    IF start_run.routine_id IS NOT NULL AND NOT EXISTS (
           SELECT FROM leasehold_internal.routines AS r WHERE r.company_id = v_company AND r.id = start_run.routine_id) THEN
        PERFORM leasehold_internal.refuse('routine_not_found',
            pg_catalog.format('routine %s does not exist', start_run.routine_id), 'Make it known with upsert_routine().');
    END IF;

    token := pg_catalog.encode(leasehold_internal.random_bytes(32), 'hex');
    IF idempotency_key IS NOT NULL THEN
        v_earlier := leasehold_internal.claim_idempotency_key(v_company, 'start_run', idempotency_key,
            pg_catalog.jsonb_build_array(start_run.agent_id, start_run.issue_id, start_run.project_id,
                start_run.routine_id, start_run.execution_workspace_id, pg_catalog.date_part('epoch', v_timeout),
                COALESCE(start_run.retry_on_loss, false), start_run.env, start_run.metadata, start_run.run_id), v_id);
        IF v_earlier IS NOT NULL THEN
            -- the token cannot be read again, so the repeater gets a new one; the
            -- run is locked first, as by those who end it and its token
            started_run_id := v_earlier;
            PERFORM FROM leasehold_internal.runs AS r
              WHERE r.company_id = v_company AND r.id = v_earlier FOR NO KEY UPDATE;
            UPDATE leasehold_internal.run_tokens AS t
               SET token_hash = pg_catalog.sha256(pg_catalog.convert_to(token, 'UTF8'))
             WHERE t.company_id = v_company AND t.run_id = v_earlier;
            IF NOT FOUND THEN
                token := NULL;
            END IF;
            RETURN;
        END IF;
    END IF;

    -- a new run, or the queued retry of a lost one
    INSERT INTO leasehold_internal.runs AS r
           (company_id, id, agent_id, issue_id, project_id, routine_id, execution_workspace_id, status,
            heartbeat_timeout, heartbeat_at, started_at, retry_on_loss, env, metadata)
    VALUES (v_company, v_id, start_run.agent_id, start_run.issue_id, start_run.project_id, start_run.routine_id,
            start_run.execution_workspace_id, 'running', v_timeout, pg_catalog.clock_timestamp(), pg_catalog.now(),
            COALESCE(start_run.retry_on_loss, false), COALESCE(start_run.env, '{}'), COALESCE(start_run.metadata, '{}'))
    ON CONFLICT (company_id, id) DO UPDATE
       SET status = 'running', heartbeat_at = excluded.heartbeat_at, started_at = excluded.started_at,
           agent_id = COALESCE(excluded.agent_id, r.agent_id), issue_id = COALESCE(excluded.issue_id, r.issue_id),
           env = COALESCE(start_run.env, r.env), metadata = COALESCE(start_run.metadata, r.metadata)
     WHERE r.status = 'queued'
    RETURNING r.* INTO v_run;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('already_exists', pg_catalog.format('run %s already exists', v_id));
    END IF;
    INSERT INTO leasehold_internal.run_tokens (company_id, run_id, token_hash)
    VALUES (v_company, v_id, pg_catalog.sha256(pg_catalog.convert_to(token, 'UTF8')));
    INSERT INTO leasehold_internal.calls AS c (company_id, subject_id, slot, operation, shard, due_at)
    VALUES (v_company, v_id, 'run_timer', 'run_deadline', leasehold_internal.shard_of(v_company),
            v_run.heartbeat_at + v_run.heartbeat_timeout)
    ON CONFLICT (company_id, subject_id, slot) DO UPDATE SET due_at = excluded.due_at, state = 'queued';
    PERFORM leasehold_internal.record(v_company, 'run.started', 'run', v_id::text, '{}', v_run.agent_id,
        v_run.issue_id, v_id);
    PERFORM leasehold_internal.warn_if_unserved();
    started_run_id := v_id;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.start_run', 'instant',
    'begins a run, or the queued retry of a lost one, and returns the token that proves it', 'leasehold_app');

CREATE FUNCTION leasehold_internal.heartbeat(run_id uuid, company text DEFAULT NULL) RETURNS timestamptz
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company  uuid := leasehold_internal.enter_company(heartbeat.company, 'user');
    v_deadline timestamptz;
    v_status   text;
BEGIN
    UPDATE leasehold_internal.runs AS r SET heartbeat_at = pg_catalog.clock_timestamp()
     WHERE r.company_id = v_company AND r.id = heartbeat.run_id AND r.status = 'running'
    RETURNING r.heartbeat_at + r.heartbeat_timeout INTO v_deadline;
    IF NOT FOUND THEN
        SELECT r.status INTO v_status FROM leasehold_internal.runs AS r
         WHERE r.company_id = v_company AND r.id = heartbeat.run_id;
        IF NOT FOUND THEN
            PERFORM leasehold_internal.refuse('run_not_found', pg_catalog.format('run %s does not exist', heartbeat.run_id),
                'Begin it with start_run().');
        END IF;
        PERFORM leasehold_internal.refuse('wrong_state', pg_catalog.format('run %s is not running', heartbeat.run_id),
            'It has ended, perhaps because its heartbeats stopped; its leases are gone.',
            pg_catalog.jsonb_build_object('status', v_status));
    END IF;
    RETURN v_deadline;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.heartbeat', 'instant',
    'says that a run is alive and returns when the next heartbeat is due', 'leasehold_app');

-- What a run's end means for its leases.
CREATE FUNCTION leasehold_internal.lease_end_of_run(status text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE WHEN status IN ('failed', 'timed_out') THEN 'failed'
                WHEN status = 'cancelled' THEN 'expired' ELSE 'released' END;
COMMENT ON FUNCTION leasehold_internal.lease_end_of_run(text) IS 'What a run''s end means for its leases';

CREATE FUNCTION leasehold_internal.finish_run(
        run_id uuid, status text DEFAULT 'succeeded', error text DEFAULT NULL, error_code text DEFAULT NULL,
        company text DEFAULT NULL)
    RETURNS text LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(finish_run.company, 'user');
    v_run     leasehold_internal.runs;
BEGIN
    PERFORM leasehold_internal.check_choice('status', finish_run.status,
        'succeeded', 'failed', 'cancelled', 'timed_out', 'interrupted');
    PERFORM leasehold_internal.check_text('error', finish_run.error, 4000);
    PERFORM leasehold_internal.check_text('error_code', finish_run.error_code, 100);
    SELECT r.* INTO v_run FROM leasehold_internal.runs AS r
     WHERE r.company_id = v_company AND r.id = finish_run.run_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('run_not_found', pg_catalog.format('run %s does not exist', finish_run.run_id),
            'Begin it with start_run().');
    END IF;
    -- a late end does not change what was decided before
    IF v_run.status NOT IN ('queued', 'running') THEN
        RETURN v_run.status;
    END IF;
    PERFORM leasehold_internal.end_runs(ARRAY[v_company], ARRAY[v_run.id], finish_run.status, finish_run.error,
        finish_run.error_code);
    PERFORM leasehold_internal.warn_if_unserved();
    RETURN finish_run.status;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.finish_run', 'instant',
    'ends a run and gives back its leases in the same transaction; returns the status the run has', 'leasehold_app');

-- Ends runs that the caller has locked, with their leases.
CREATE FUNCTION leasehold_internal.end_runs(
        company_ids uuid[], run_ids uuid[], status text, error text, error_code text)
    RETURNS integer LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_count     integer;
    v_companies uuid[];
    v_leases    uuid[];
BEGIN
    WITH run AS (
        UPDATE leasehold_internal.runs AS r
           SET status = end_runs.status, finished_at = pg_catalog.now(), error = end_runs.error,
               error_code = end_runs.error_code
          FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(run_ids)) AS w (company_id, id)
         WHERE r.company_id = w.company_id AND r.id = w.id AND r.status IN ('queued', 'running')
        RETURNING r.*
    ), token AS (
        DELETE FROM leasehold_internal.run_tokens AS t USING run AS r
         WHERE t.company_id = r.company_id AND t.run_id = r.id
    ), timer AS (
        DELETE FROM leasehold_internal.calls AS c USING run AS r
         WHERE c.company_id = r.company_id AND c.subject_id = r.id AND c.slot = 'run_timer'
    ), event AS (
        INSERT INTO leasehold.audit_events
               (company_id, action, entity_type, entity_id, agent_id, issue_id, run_id, details)
        SELECT r.company_id, 'run.finished', 'run', r.id::text, r.agent_id, r.issue_id, r.id,
               pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
                   'status', r.status, 'errorCode', r.error_code))
          FROM run AS r
    )
    SELECT pg_catalog.count(*) INTO v_count FROM run AS r;

    SELECT pg_catalog.array_agg(l.company_id), pg_catalog.array_agg(l.id) INTO v_companies, v_leases
      FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(run_ids)) AS w (company_id, id)
     CROSS JOIN LATERAL (SELECT x.company_id, x.id FROM leasehold.leases AS x
                          WHERE x.company_id = w.company_id AND x.run_id = w.id
                            AND x.status IN ('acquiring', 'active', 'resuming') OFFSET 0) AS l;
    IF FOUND AND v_leases IS NOT NULL THEN
        PERFORM leasehold_internal.end_leases(v_companies, v_leases,
            leasehold_internal.lease_end_of_run(end_runs.status), NULL, end_runs.error, end_runs.error_code);
    END IF;
    RETURN v_count;
END
$$;
COMMENT ON FUNCTION leasehold_internal.end_runs(uuid[], uuid[], text, text, text) IS 'Ends runs, and their leases with them';

-- Ends the runs among these whose heartbeats stopped, and queues their retries.
CREATE FUNCTION leasehold_internal.lose_runs(company_ids uuid[], run_ids uuid[]) RETURNS integer
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_companies uuid[];
    v_runs      uuid[];
BEGIN
    -- whoever holds a run's row is about to say that it is alive, or has ended
    SELECT pg_catalog.array_agg(s.company_id), pg_catalog.array_agg(s.id) INTO v_companies, v_runs
      FROM (SELECT r.*
              FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(run_ids)) AS w (company_id, id)
             CROSS JOIN LATERAL (SELECT * FROM leasehold_internal.runs AS x
                                  WHERE x.company_id = w.company_id AND x.id = w.id
                                    FOR NO KEY UPDATE SKIP LOCKED) AS r) AS s
     WHERE s.status = 'running' AND COALESCE(s.heartbeat_at + s.heartbeat_timeout <= pg_catalog.clock_timestamp(), true);
    -- their leases end with them, so those whose leases somebody has locked come again
    SELECT pg_catalog.array_agg(w.company_id), pg_catalog.array_agg(w.id) INTO v_companies, v_runs
      FROM ROWS FROM (pg_catalog.unnest(v_companies), pg_catalog.unnest(v_runs)) AS w (company_id, id)
     CROSS JOIN LATERAL (
           SELECT pg_catalog.count(*) AS leases, pg_catalog.count(k.id) AS locked
             FROM leasehold.leases AS l
             LEFT JOIN LATERAL (SELECT x.id FROM leasehold.leases AS x
                                 WHERE x.company_id = l.company_id AND x.id = l.id
                                   FOR NO KEY UPDATE SKIP LOCKED) AS k ON true
            WHERE l.company_id = w.company_id AND l.run_id = w.id
              AND l.status IN ('acquiring', 'active', 'resuming')) AS n
     WHERE n.leases = n.locked;
    IF v_runs IS NULL THEN
        RETURN 0;
    END IF;
    PERFORM leasehold_internal.end_runs(v_companies, v_runs, 'failed', 'the run''s heartbeats stopped', 'process_lost');

    WITH retry AS (
        INSERT INTO leasehold_internal.runs
               (company_id, id, agent_id, issue_id, project_id, routine_id, execution_workspace_id,
                heartbeat_timeout, retry_of_run_id, env, metadata)
        SELECT r.company_id, leasehold.new_id(), r.agent_id, r.issue_id, r.project_id, r.routine_id,
               r.execution_workspace_id, r.heartbeat_timeout, r.id, r.env, r.metadata
          FROM leasehold_internal.runs AS r
          JOIN ROWS FROM (pg_catalog.unnest(v_companies), pg_catalog.unnest(v_runs)) AS w (company_id, id)
            ON r.company_id = w.company_id AND r.id = w.id
         WHERE r.retry_on_loss AND r.retry_of_run_id IS NULL
        ON CONFLICT (company_id, retry_of_run_id) DO NOTHING
        RETURNING *
    )
    INSERT INTO leasehold.audit_events
           (company_id, action, entity_type, entity_id, agent_id, issue_id, run_id, details)
    SELECT r.company_id, 'run.retry_queued', 'run', r.id::text, r.agent_id, r.issue_id, r.id,
           pg_catalog.jsonb_build_object('retryOfRunId', r.retry_of_run_id)
      FROM retry AS r;
    RETURN pg_catalog.cardinality(v_runs);
END
$$;
COMMENT ON FUNCTION leasehold_internal.lose_runs(uuid[], uuid[]) IS
    'Ends those of these runs whose heartbeats stopped, and queues at most one retry of each';

CREATE FUNCTION leasehold_internal.random_bytes(count integer) RETURNS bytea
    LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'leasehold_random_bytes';
COMMENT ON FUNCTION leasehold_internal.random_bytes(integer) IS 'Random bytes fit for keys and tokens';
