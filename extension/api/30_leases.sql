-- 30_leases.sql: leases, their life cycle, and the dispatch table.
--
-- A lease is one row per provider resource.  Columns that renewals change are
-- in no index and no index predicate, so renewals stay on the page (HOT).

CREATE TABLE leasehold.leases (
    company_id             uuid NOT NULL,
    id                     uuid NOT NULL,
    environment_id         uuid,
    config_version         integer NOT NULL,
    provider               leasehold.object_key NOT NULL,
    provider_version       text NOT NULL DEFAULT '',
    adapter_type           text,
    status                 leasehold.lease_status NOT NULL DEFAULT 'acquiring',
    generation             integer NOT NULL DEFAULT 1,
    policy                 leasehold.lease_policy NOT NULL DEFAULT 'ephemeral',
    agent_id               uuid,
    issue_id               uuid,
    run_id                 uuid,
    execution_workspace_id uuid,
    provider_lease_id      text COLLATE "C",
    ttl                    interval NOT NULL,
    idle_timeout           interval,
    acquire_by             timestamptz,
    requested_at           timestamptz NOT NULL DEFAULT pg_catalog.now(),
    acquired_at            timestamptz,
    last_used_at           timestamptz,
    expires_at             timestamptz,
    provider_expires_at    timestamptz,
    ended_at               timestamptz,
    end_status             leasehold.lease_end,
    disposition            leasehold.disposition,
    waiting_for            text,
    fail_on_limit          boolean NOT NULL DEFAULT false,
    attempts               integer NOT NULL DEFAULT 0,
    failure_code           text,
    failure_reason         text,
    cleanup_status         leasehold.cleanup_status,
    requested_by           name NOT NULL DEFAULT leasehold.acting_role(),
    PRIMARY KEY (company_id, id),
    CONSTRAINT leases_environment FOREIGN KEY (company_id, environment_id) REFERENCES leasehold_internal.environments,
    FOREIGN KEY (company_id, agent_id) REFERENCES leasehold_internal.agents,
    FOREIGN KEY (company_id, issue_id) REFERENCES leasehold_internal.issues,
    FOREIGN KEY (company_id, execution_workspace_id) REFERENCES leasehold_internal.execution_workspaces,
    CHECK (generation > 0),
    CHECK (status NOT IN ('releasing', 'pending_cleanup', 'irrevocable') OR end_status IS NOT NULL AND disposition IS NOT NULL)
) WITH (fillfactor = 80);
COMMENT ON TABLE leasehold.leases IS 'One row per resource that a provider gave, or is asked for';
COMMENT ON COLUMN leasehold.leases.adapter_type IS 'The agent''s, or what the provider says it made the resource for; a plugin''s resource without one is not reused';
COMMENT ON COLUMN leasehold.leases.config_version IS 'The version of the environment''s configuration that the resource was made with';
COMMENT ON COLUMN leasehold.leases.provider_version IS 'The plugin''s version when the resource was made; a parked one of another version is not reused';
COMMENT ON COLUMN leasehold.leases.provider_expires_at IS 'When the provider ends the resource by itself; no renewal goes beyond';
COMMENT ON COLUMN leasehold.leases.generation IS 'Counts the times the resource was taken into use; answers to an older one are ignored';
COMMENT ON COLUMN leasehold.leases.ttl IS 'Time to live, counted from the acquisition or the last renewal';
COMMENT ON COLUMN leasehold.leases.acquire_by IS 'When the request fails if there is still no resource';
COMMENT ON COLUMN leasehold.leases.end_status IS 'What the lease becomes when its release has been carried out';
COMMENT ON COLUMN leasehold.leases.waiting_for IS 'The limit that the request waits for, or what else keeps it from going on';
COMMENT ON COLUMN leasehold.leases.attempts IS 'Calls made for the present step';
COMMENT ON COLUMN leasehold.leases.cleanup_status IS 'Whether the resource of an ended lease is known to be gone or parked';

-- States in which a provider may hold, and bill, something for the lease.
CREATE FUNCTION leasehold_internal.may_have_resource(status leasehold.lease_status) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN status IN ('acquiring', 'active', 'releasing', 'retained', 'resuming', 'pending_cleanup', 'irrevocable');
COMMENT ON FUNCTION leasehold_internal.may_have_resource(leasehold.lease_status) IS
    'Whether a provider may hold something for a lease of this status';

CREATE INDEX leases_live_by_environment ON leasehold.leases (company_id, environment_id)
    WHERE status IN ('acquiring', 'active', 'releasing', 'retained', 'resuming', 'pending_cleanup', 'irrevocable');
CREATE INDEX leases_live_by_run ON leasehold.leases (company_id, run_id)
    WHERE run_id IS NOT NULL AND status IN ('acquiring', 'active', 'resuming');
CREATE INDEX leases_live_by_workspace ON leasehold.leases (company_id, execution_workspace_id)
    WHERE execution_workspace_id IS NOT NULL AND status IN ('acquiring', 'active', 'releasing', 'retained', 'resuming', 'pending_cleanup', 'irrevocable');
CREATE INDEX leases_live_by_issue ON leasehold.leases (company_id, issue_id)
    WHERE issue_id IS NOT NULL AND status IN ('acquiring', 'active', 'releasing', 'retained', 'resuming', 'pending_cleanup', 'irrevocable');
CREATE INDEX leases_by_end ON leasehold.leases (ended_at)
    WHERE status IN ('released', 'expired', 'failed', 'forgotten', 'written_off');
-- for sweeps after a fork
CREATE INDEX leases_forgotten ON leasehold.leases (company_id, provider_lease_id) WHERE status = 'forgotten';
ALTER TABLE leasehold.leases SET (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.02);

CREATE TABLE leasehold.lease_metadata (
    company_id uuid NOT NULL,
    lease_id   uuid NOT NULL,
    metadata   jsonb NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (company_id, lease_id),
    FOREIGN KEY (company_id, lease_id) REFERENCES leasehold.leases ON DELETE CASCADE
);
COMMENT ON TABLE leasehold.lease_metadata IS 'What a provider said of a lease''s resource; from level user on';

-- Node-local: no two leases, of whatever companies, hold one resource.  One that
-- none holds and that is to be removed is a stray; its row stays until it is gone,
-- so that no lease comes to hold it, and that its removal is not forgotten.  The
-- environment of a stray is not a foreign key, which every acquire would pay for:
-- delete_environment() looks.
CREATE TABLE leasehold_internal.provider_resources (
    provider          text COLLATE "C" NOT NULL,
    provider_lease_id text COLLATE "C" NOT NULL,
    company_id        uuid NOT NULL,
    lease_id          uuid,
    stray_id          uuid,
    environment_id    uuid,
    config_version    integer,
    made_for          text,
    generation        integer,
    reason            text,
    PRIMARY KEY (provider, provider_lease_id),
    CHECK (pg_catalog.num_nonnulls(lease_id, stray_id) = 1),
    CHECK (pg_catalog.num_nonnulls(stray_id, environment_id, config_version, generation, reason) IN (0, 5))
);
COMMENT ON TABLE leasehold_internal.provider_resources IS
    'Which lease holds a provider''s resource, unique over all companies; and resources of no lease that are to be removed';
COMMENT ON COLUMN leasehold_internal.provider_resources.stray_id IS
    'Set if no lease holds the resource: the subject of the call that removes it; the columns after it are for that call';
COMMENT ON COLUMN leasehold_internal.provider_resources.config_version IS
    'The version of the environment''s configuration that the removal is to be made with';
COMMENT ON COLUMN leasehold_internal.provider_resources.made_for IS 'The lease that the stray''s label names, if it has one';
COMMENT ON COLUMN leasehold_internal.provider_resources.generation IS 'The generation that the stray''s label names';
COMMENT ON COLUMN leasehold_internal.provider_resources.reason IS
    'no_lease: a sweep found it; resume_failed: it was parked and could not be resumed; resumed_instead: a resume was answered with it';
CREATE INDEX provider_resources_by_lease ON leasehold_internal.provider_resources (company_id, lease_id);
CREATE UNIQUE INDEX provider_resources_strays ON leasehold_internal.provider_resources (company_id, stray_id)
    WHERE stray_id IS NOT NULL;

SELECT leasehold_internal.protect('leasehold.leases', 'viewer');
SELECT leasehold_internal.protect('leasehold.lease_metadata', 'user');
CREATE POLICY imported ON leasehold.lease_metadata FOR INSERT TO leasehold_owner
    WITH CHECK (company_id = ANY ((SELECT leasehold.visible_companies('viewer'))::uuid[]));
COMMENT ON POLICY imported ON leasehold.lease_metadata IS
    'An administrator imports what it may not read afterwards; only import_lease() inserts';
SELECT leasehold_internal.protect('leasehold_internal.provider_resources', 'viewer');

-- What events tell of a stray.
CREATE FUNCTION leasehold_internal.stray_details(stray leasehold_internal.provider_resources) RETURNS jsonb
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN pg_catalog.jsonb_build_object('provider', (stray).provider, 'leaseId', (stray).made_for,
               'generation', (stray).generation, 'environmentId', (stray).environment_id, 'reason', (stray).reason);
COMMENT ON FUNCTION leasehold_internal.stray_details(leasehold_internal.provider_resources) IS
    'What events tell of a stray';

-- When an active or parked lease ends by itself.
CREATE FUNCTION leasehold_internal.lease_deadline(
        status leasehold.lease_status, expires_at timestamptz, last_used_at timestamptz, idle_timeout interval)
    RETURNS timestamptz LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE WHEN status = 'active' THEN LEAST(expires_at, last_used_at + idle_timeout)
                WHEN status = 'retained' THEN expires_at END;
COMMENT ON FUNCTION leasehold_internal.lease_deadline(leasehold.lease_status, timestamptz, timestamptz, interval) IS
    'When an active or parked lease ends by itself';

-- The life cycle.

CREATE FUNCTION leasehold.lease_transitions(OUT from_status text, OUT to_status text, OUT reason text)
    RETURNS SETOF record LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'leasehold_lease_transitions';
COMMENT ON FUNCTION leasehold.lease_transitions() IS 'instant: the changes of a lease''s status that the database allows';

CREATE FUNCTION leasehold_internal.check_lease_change() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'leasehold_check_lease_change';
COMMENT ON FUNCTION leasehold_internal.check_lease_change() IS
    'Refuses changes of status that leasehold.lease_transitions() does not list, and of what identifies a lease';
CREATE TRIGGER check_change BEFORE UPDATE OF company_id, id, status, generation ON leasehold.leases
    FOR EACH ROW EXECUTE FUNCTION leasehold_internal.check_lease_change();

-- The dispatch table: unfinished work, and deadlines.  It is derived, so it is
-- not dumped; the worker makes it again from the states of what it is about.
-- At most one operation and one deadline per subject.  Leases, runs and
-- environments may have the same id, so each kind has slots of its own: who has
-- locked the one must not have the other's work under its lock.

CREATE TABLE leasehold_internal.calls (
    company_id   uuid NOT NULL,
    subject_id   uuid NOT NULL,
    slot         leasehold_internal.call_slot NOT NULL,
    operation    leasehold_internal.call_operation NOT NULL,
    provider     text COLLATE "C" NOT NULL DEFAULT '',
    shard        smallint NOT NULL,
    state        leasehold_internal.call_state NOT NULL DEFAULT 'queued',
    due_at       timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    generation   integer NOT NULL DEFAULT 1,
    attempts     integer NOT NULL DEFAULT 0,
    throttled    integer NOT NULL DEFAULT 0,
    crashes      integer NOT NULL DEFAULT 0,
    granted      boolean NOT NULL DEFAULT false,
    held_by      text COLLATE "C",
    look_up      boolean NOT NULL DEFAULT false,
    worker_epoch bigint,
    started_at   timestamptz,
    queued_at    timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    last_error   text,
    payload      jsonb,
    PRIMARY KEY (company_id, subject_id, slot)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 20000);
COMMENT ON TABLE leasehold_internal.calls IS 'Unfinished work for the workers, and deadlines';
COMMENT ON COLUMN leasehold_internal.calls.slot IS
    'op: a call about a lease, a stray or a plugin; sweep: of an environment; command: it is carried out; cancel: and ended before its time; timer, run_timer: the deadline of a lease or run';
COMMENT ON COLUMN leasehold_internal.calls.shard IS 'Which of several workers it belongs to: hash of the company, 0 to 63';
COMMENT ON COLUMN leasehold_internal.calls.throttled IS
    'How many of the attempts the provider told to come again: they make pauses longer, but are not failed tries';
COMMENT ON COLUMN leasehold_internal.calls.granted IS 'The limits let the operation start; it counts against them';
COMMENT ON COLUMN leasehold_internal.calls.held_by IS 'The limit that had no place for the request: see limit_key()';
COMMENT ON COLUMN leasehold_internal.calls.look_up IS 'An earlier try has an unknown outcome: look for its result first';
-- by time alone: one worker has all shards, and several pass over each other's rows
CREATE INDEX calls_due ON leasehold_internal.calls (due_at) WHERE state = 'queued';
CREATE INDEX calls_not_due ON leasehold_internal.calls (state, held_by, queued_at) WHERE state <> 'queued';
SELECT leasehold_internal.protect('leasehold_internal.calls', 'viewer');

CREATE FUNCTION leasehold_internal.wake() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'leasehold_wake_trigger';
COMMENT ON FUNCTION leasehold_internal.wake() IS 'Wakes the workers when the transaction commits';
CREATE TRIGGER wake AFTER INSERT OR UPDATE ON leasehold_internal.calls
    FOR EACH STATEMENT EXECUTE FUNCTION leasehold_internal.wake();

CREATE FUNCTION leasehold_internal.shard_of(company_id uuid) RETURNS smallint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (pg_catalog.uuid_hash(company_id) & 63)::smallint;
COMMENT ON FUNCTION leasehold_internal.shard_of(uuid) IS 'A company''s share of the dispatch table';

-- Requests that may be repeated.

CREATE TABLE leasehold_internal.idempotency_keys (
    company_id    uuid NOT NULL,
    function_name text NOT NULL,
    key           text NOT NULL,
    arguments     bytea NOT NULL,
    result        uuid NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (company_id, function_name, key)
);
COMMENT ON TABLE leasehold_internal.idempotency_keys IS 'Results of requests, kept for 24 hours for those who repeat them';
CREATE INDEX idempotency_keys_age ON leasehold_internal.idempotency_keys USING brin (created_at);
SELECT leasehold_internal.protect('leasehold_internal.idempotency_keys', 'user');

-- Returns the result of the same request made before, or NULL after noting
-- this one.  A concurrent twin waits for the first to end.
CREATE FUNCTION leasehold_internal.claim_idempotency_key(
        company_id uuid, function_name text, key text, arguments jsonb, result uuid)
    RETURNS uuid LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_hash  bytea := pg_catalog.sha256(pg_catalog.convert_to(claim_idempotency_key.arguments::text, 'UTF8'));
    v_found leasehold_internal.idempotency_keys;
BEGIN
    PERFORM leasehold_internal.check_text('idempotency_key', claim_idempotency_key.key);
    IF claim_idempotency_key.key = '' THEN
        PERFORM leasehold_internal.refuse('argument_invalid', 'argument "idempotency_key" must not be empty');
    END IF;
    INSERT INTO leasehold_internal.idempotency_keys AS k (company_id, function_name, key, arguments, result)
    VALUES (claim_idempotency_key.company_id, claim_idempotency_key.function_name, claim_idempotency_key.key,
            v_hash, claim_idempotency_key.result)
    ON CONFLICT (company_id, function_name, key) DO UPDATE
       SET arguments = excluded.arguments, result = excluded.result, created_at = excluded.created_at
     WHERE k.created_at < pg_catalog.now() - interval '24 hours'
    RETURNING k.* INTO v_found;
    IF FOUND THEN
        RETURN NULL;
    END IF;
    SELECT k.* INTO v_found FROM leasehold_internal.idempotency_keys AS k
     WHERE k.company_id = claim_idempotency_key.company_id
       AND k.function_name = claim_idempotency_key.function_name AND k.key = claim_idempotency_key.key;
    IF v_found.arguments <> v_hash THEN
        PERFORM leasehold_internal.refuse('idempotency_conflict',
            'the idempotency key was used for a request with other arguments',
            'Use a new key for a new request.',
            pg_catalog.jsonb_build_object('result', v_found.result));
    END IF;
    RETURN v_found.result;
END
$$;
COMMENT ON FUNCTION leasehold_internal.claim_idempotency_key(uuid, text, text, jsonb, uuid) IS
    'The result of the same request made before, or NULL after noting this one';
