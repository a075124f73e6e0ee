-- 31_lease_api.sql: what users do with leases.
--
-- Lock order: run, leases by id, calls, audit.

CREATE FUNCTION leasehold_internal.warn_if_unserved() RETURNS void
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_warn_if_unserved';
COMMENT ON FUNCTION leasehold_internal.warn_if_unserved() IS
    'Warns the caller when no worker will carry out what was asked for';

-- Refuses unless such a lease is the company's.
CREATE FUNCTION leasehold_internal.refuse_unknown_lease(lease_id uuid) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM leasehold_internal.refuse('lease_not_found', pg_catalog.format('lease %s does not exist', lease_id),
        'It may be another company''s, its request may have been rolled back, or it ended long ago and was removed.');
END
$$;
COMMENT ON FUNCTION leasehold_internal.refuse_unknown_lease(uuid) IS 'The error for a lease that is not there';

-- What a request must know of its environment.
CREATE VIEW leasehold_internal.environment_facts AS
    SELECT e.company_id, e.key, e.id, e.provider, e.status, e.config_version,
           COALESCE(g.version, '') AS provider_version, g.status AS plugin_status, c.status AS company_status,
           p.supports_reusable_leases AS reusable,
           NOT leasehold_internal.may_use_provider(e.company_id, e.provider) AS forbidden,
           COALESCE((k.config ->> 'reuseLease')::boolean, false) AS wants_reuse
      FROM leasehold_internal.environments AS e
      JOIN leasehold.companies AS c ON c.id = e.company_id
      JOIN leasehold_internal.environment_configs AS k
        ON k.company_id = e.company_id AND k.environment_id = e.id AND k.version = e.config_version
      LEFT JOIN leasehold.providers AS p ON p.key = e.provider
      LEFT JOIN leasehold.plugins AS g ON g.key = p.plugin_key;
COMMENT ON VIEW leasehold_internal.environment_facts IS 'What a request for a lease must know of its environment';

CREATE FUNCTION leasehold_internal.environment_facts(company_id uuid, environment text)
    RETURNS leasehold_internal.environment_facts
    LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'leasehold_environment_facts';
COMMENT ON FUNCTION leasehold_internal.environment_facts(uuid, text) IS
    'The row of the view of this name, kept in the session until something that it tells has changed';

-- each of these tables says something that the sessions keep
CREATE TRIGGER facts_changed AFTER INSERT OR UPDATE OR DELETE ON leasehold_internal.environments
    FOR EACH STATEMENT EXECUTE FUNCTION leasehold_internal.relation_changed();
CREATE TRIGGER facts_changed AFTER INSERT OR UPDATE OR DELETE ON leasehold_internal.environment_configs
    FOR EACH STATEMENT EXECUTE FUNCTION leasehold_internal.relation_changed();
CREATE TRIGGER facts_changed AFTER INSERT OR UPDATE OR DELETE ON leasehold.provider_access
    FOR EACH STATEMENT EXECUTE FUNCTION leasehold_internal.relation_changed();

CREATE FUNCTION leasehold_internal.write_lease_request(
        company_id uuid, id uuid, environment_id uuid, config_version integer, provider text, provider_version text,
        adapter_type text, policy text, agent_id uuid, issue_id uuid, run_id uuid, execution_workspace_id uuid,
        ttl interval, idle_timeout interval, fail_on_limit boolean, acquire_by timestamptz, details jsonb)
    RETURNS uuid LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_write_lease_request';
COMMENT ON FUNCTION leasehold_internal.write_lease_request(uuid, uuid, uuid, integer, text, text, text, text, uuid, uuid,
                                                           uuid, uuid, interval, interval, boolean, timestamptz, jsonb) IS
    'Writes a lease, its call and its event, and returns its id; warns the caller when no worker will carry it out';

CREATE FUNCTION leasehold_internal.refuse_while_draining() RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM leasehold_internal.refuse('worker_unavailable', 'the installation is being drained',
        'An administrator can end this with resume_worker().');
END
$$;
COMMENT ON FUNCTION leasehold_internal.refuse_while_draining() IS 'The error for new leases of an installation that is being drained';

CREATE FUNCTION leasehold_internal.request_lease(
        environment text, agent_id uuid DEFAULT NULL, issue_id uuid DEFAULT NULL, run_id uuid DEFAULT NULL,
        execution_workspace_id uuid DEFAULT NULL, ttl interval DEFAULT '1 hour', idle_timeout interval DEFAULT NULL,
        policy text DEFAULT NULL, on_limit text DEFAULT 'wait', acquire_timeout interval DEFAULT '5 minutes',
        lease_id uuid DEFAULT NULL, idempotency_key text DEFAULT NULL, company text DEFAULT NULL)
    RETURNS uuid LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company     uuid := leasehold_internal.enter_company(request_lease.company, 'user');
    v_id          uuid := COALESCE(request_lease.lease_id, leasehold.new_id());
    v_ttl         interval := COALESCE(request_lease.ttl, '1 hour');
    v_acquire     interval := COALESCE(request_lease.acquire_timeout, '5 minutes');
    v_on_limit    text := COALESCE(request_lease.on_limit, 'wait');
    v_environment leasehold_internal.environment_facts;
    v_run         record;
    v_agent       uuid := request_lease.agent_id;
    v_issue       uuid := request_lease.issue_id;
    v_workspace   uuid := request_lease.execution_workspace_id;
    v_adapter     text;
    v_policy      text;
    v_earlier     uuid;
BEGIN
    -- this function is called often: what is usually right is not asked in a query
    IF v_ttl NOT BETWEEN '1 second' AND '365 days' OR request_lease.idle_timeout IS NOT NULL
       OR v_acquire NOT BETWEEN '1 second' AND '1 day' THEN
        PERFORM leasehold_internal.check_interval('ttl', v_ttl, '1 second', '365 days');
        PERFORM leasehold_internal.check_interval('idle_timeout', request_lease.idle_timeout, '1 second', '365 days');
        PERFORM leasehold_internal.check_interval('acquire_timeout', v_acquire, '1 second', '1 day');
    END IF;
    IF v_on_limit NOT IN ('wait', 'fail') OR request_lease.policy IS NOT NULL THEN
        PERFORM leasehold_internal.check_choice('on_limit', v_on_limit, 'wait', 'fail');
        PERFORM leasehold_internal.check_choice('policy', request_lease.policy,
            'ephemeral', 'reuse_by_environment', 'retain_on_failure') WHERE request_lease.policy IS NOT NULL;
    END IF;

    IF leasehold_internal.is_draining() THEN
        PERFORM leasehold_internal.refuse_while_draining();
    END IF;

    IF idempotency_key IS NOT NULL THEN
        v_earlier := leasehold_internal.claim_idempotency_key(v_company, 'request_lease', idempotency_key,
            pg_catalog.jsonb_build_array(environment, request_lease.agent_id, request_lease.issue_id,
                request_lease.run_id, request_lease.execution_workspace_id,
                pg_catalog.date_part('epoch', v_ttl), pg_catalog.date_part('epoch', request_lease.idle_timeout),
                request_lease.policy, v_on_limit, pg_catalog.date_part('epoch', v_acquire),
                request_lease.lease_id), v_id);
        IF v_earlier IS NOT NULL THEN
            RETURN v_earlier;
        END IF;
    END IF;

    -- a run lends its agent, issue and workspace; its row is locked against its end
    IF request_lease.run_id IS NOT NULL THEN
        SELECT r.agent_id, r.issue_id, r.execution_workspace_id, r.status INTO v_run
          FROM leasehold_internal.runs AS r
         WHERE r.company_id = v_company AND r.id = request_lease.run_id FOR SHARE;
        IF NOT FOUND THEN
            PERFORM leasehold_internal.refuse('run_not_found',
                pg_catalog.format('run %s does not exist', request_lease.run_id), 'Begin it with start_run().');
        ELSIF v_run.status <> 'running' THEN
            PERFORM leasehold_internal.refuse('wrong_state',
                pg_catalog.format('run %s is not running', request_lease.run_id), NULL,
                pg_catalog.jsonb_build_object('status', v_run.status));
        END IF;
        v_agent := COALESCE(v_agent, v_run.agent_id);
        v_issue := COALESCE(v_issue, v_run.issue_id);
        v_workspace := COALESCE(v_workspace, v_run.execution_workspace_id);
    END IF;

    -- its row is locked by the foreign key: a deletion meanwhile makes that fail
    v_environment := leasehold_internal.environment_facts(v_company, request_lease.environment);
    IF v_environment.id IS NULL THEN
        PERFORM leasehold_internal.refuse_unknown_environment(request_lease.environment);
    ELSIF v_environment.status <> 'active' THEN
        PERFORM leasehold_internal.refuse('environment_inactive',
            pg_catalog.format('environment "%s" is archived', environment));
    ELSIF v_environment.company_status <> 'active' THEN
        PERFORM leasehold_internal.require_active_company(v_company);
    ELSIF v_environment.forbidden OR v_environment.plugin_status = 'disabled' OR v_environment.provider IN ('fake', 'bubblewrap')
          OR v_environment.reusable IS NULL THEN
        PERFORM leasehold_internal.require_usable_provider(v_company, v_environment.provider);
    END IF;

    IF v_agent IS NOT NULL THEN
        SELECT a.adapter_type INTO v_adapter FROM leasehold_internal.agents AS a
         WHERE a.company_id = v_company AND a.id = v_agent AND a.status = 'active';
        IF NOT FOUND THEN
            PERFORM leasehold_internal.require_agent(v_company, v_agent);
        END IF;
    END IF;
    IF v_issue IS NOT NULL OR v_workspace IS NOT NULL THEN
        PERFORM leasehold_internal.require_issue(v_company, v_issue);
        PERFORM leasehold_internal.require_workspace(v_company, v_workspace);
    END IF;

    v_policy := COALESCE(request_lease.policy,
        CASE WHEN v_environment.wants_reuse AND v_environment.reusable AND v_agent IS NOT NULL
                  AND v_workspace IS NOT NULL AND request_lease.run_id IS NOT NULL
             THEN 'reuse_by_environment' ELSE 'ephemeral' END);
    IF v_policy <> 'ephemeral' AND NOT v_environment.reusable THEN
        PERFORM leasehold_internal.refuse('provider_unusable',
            pg_catalog.format('provider "%s" cannot park resources', v_environment.provider),
            'Use policy => ''ephemeral''.');
    END IF;
    IF v_on_limit = 'fail' THEN
        PERFORM leasehold_internal.require_free_slot(v_company, v_environment.id, v_environment.provider);
    END IF;
    IF v_policy = 'reuse_by_environment' THEN
        IF v_agent IS NULL OR v_workspace IS NULL OR request_lease.run_id IS NULL THEN
            PERFORM leasehold_internal.refuse('argument_invalid',
                'a lease can be reused only with a run, an agent and an execution workspace');
        END IF;
        v_earlier := leasehold_internal.resume_parked_lease(v_company, v_environment.id,
            v_environment.config_version, v_environment.provider_version, v_agent, v_adapter, v_workspace,
            v_issue, request_lease.run_id, v_ttl, request_lease.idle_timeout, v_on_limit = 'fail', v_acquire);
        IF v_earlier IS NOT NULL THEN
            UPDATE leasehold_internal.idempotency_keys AS k SET result = v_earlier
             WHERE k.company_id = v_company AND k.function_name = 'request_lease'
               AND k.key = request_lease.idempotency_key;
            PERFORM leasehold_internal.warn_if_unserved();
            RETURN v_earlier;
        END IF;
    END IF;

    IF request_lease.lease_id IS NOT NULL THEN
        PERFORM leasehold_internal.refuse('already_exists', pg_catalog.format('lease %s already exists', v_id))
           FROM leasehold.leases AS l WHERE l.company_id = v_company AND l.id = v_id;
    END IF;
    -- as an expression: a statement of its own would cost as much as the rows
    RETURN leasehold_internal.write_lease_request(v_company, v_id, v_environment.id, v_environment.config_version,
        v_environment.provider, v_environment.provider_version, v_adapter, v_policy, v_agent, v_issue,
        request_lease.run_id, v_workspace, v_ttl, request_lease.idle_timeout, v_on_limit = 'fail',
        pg_catalog.now() + v_acquire,
        pg_catalog.jsonb_build_object('environmentId', v_environment.id, 'provider', v_environment.provider,
                                      'leasePolicy', v_policy));
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.request_lease', 'instant',
    'asks for a lease in an environment and returns its id; the worker gets it from the provider', 'leasehold_app');

-- Takes a parked resource into use again: one UPDATE claims it, so two runs
-- cannot get the same.  Those that no longer fit are removed on the way.
CREATE FUNCTION leasehold_internal.resume_parked_lease(
        company_id uuid, environment_id uuid, config_version integer, provider_version text, agent_id uuid,
        adapter_type text, execution_workspace_id uuid, issue_id uuid, run_id uuid, ttl interval,
        idle_timeout interval, fail_on_limit boolean, acquire_timeout interval)
    RETURNS uuid LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_id uuid;
BEGIN
    PERFORM leasehold_internal.end_company_leases(resume_parked_lease.company_id, ARRAY(
        SELECT l.id FROM leasehold.leases AS l
         WHERE l.company_id = resume_parked_lease.company_id
           AND l.environment_id = resume_parked_lease.environment_id
           AND l.execution_workspace_id = resume_parked_lease.execution_workspace_id
           AND l.agent_id = resume_parked_lease.agent_id
           AND l.status = 'retained' AND l.policy = 'reuse_by_environment'
           AND (l.config_version, l.provider_version) IS DISTINCT FROM
               (resume_parked_lease.config_version, resume_parked_lease.provider_version)),
        'expired', 'delete', 'lease_fingerprint_mismatch');

    WITH chosen AS (
        SELECT l.id FROM leasehold.leases AS l
         WHERE l.company_id = resume_parked_lease.company_id
           AND l.environment_id = resume_parked_lease.environment_id
           AND l.execution_workspace_id = resume_parked_lease.execution_workspace_id
           AND l.agent_id = resume_parked_lease.agent_id
           -- what a plugin made for an unknown adapter fits none, not even another unknown one
           AND (l.adapter_type = resume_parked_lease.adapter_type
                OR l.adapter_type IS NULL AND resume_parked_lease.adapter_type IS NULL
                   AND NOT EXISTS (SELECT FROM leasehold.providers AS p
                                    WHERE p.key = l.provider AND p.plugin_key IS NOT NULL))
           AND l.config_version = resume_parked_lease.config_version
           AND l.provider_version = resume_parked_lease.provider_version
           AND l.status = 'retained' AND l.policy = 'reuse_by_environment' AND l.provider_lease_id IS NOT NULL
         ORDER BY l.last_used_at DESC
         LIMIT 1 FOR UPDATE SKIP LOCKED
    ), lease AS (
        UPDATE leasehold.leases AS l
           SET status = 'resuming', generation = l.generation + 1, run_id = resume_parked_lease.run_id,
               issue_id = resume_parked_lease.issue_id, ttl = resume_parked_lease.ttl,
               idle_timeout = resume_parked_lease.idle_timeout, requested_at = pg_catalog.now(),
               acquire_by = pg_catalog.now() + resume_parked_lease.acquire_timeout,
               end_status = NULL, disposition = NULL, ended_at = NULL, failure_code = NULL, failure_reason = NULL,
               fail_on_limit = resume_parked_lease.fail_on_limit, cleanup_status = NULL, attempts = 0, requested_by = leasehold.acting_role()
          FROM chosen
         WHERE l.company_id = resume_parked_lease.company_id AND l.id = chosen.id
        RETURNING l.*
    ), call AS (
        INSERT INTO leasehold_internal.calls AS c (company_id, subject_id, slot, operation, provider, shard, generation)
        SELECT l.company_id, l.id, 'op', 'resume', l.provider, leasehold_internal.shard_of(l.company_id), l.generation
          FROM lease AS l
        ON CONFLICT (company_id, subject_id, slot) DO UPDATE
           SET operation = excluded.operation, state = 'queued', due_at = excluded.due_at, attempts = 0, throttled = 0,
               look_up = false, granted = false, held_by = NULL, payload = NULL, crashes = 0,
               queued_at = excluded.queued_at, generation = excluded.generation
    ), event AS (
        INSERT INTO leasehold.audit_events
               (company_id, action, entity_type, entity_id, agent_id, issue_id, run_id, details)
        SELECT l.company_id, 'environment.lease_resume_requested', 'environment_lease', l.id::text, l.agent_id,
               l.issue_id, l.run_id,
               pg_catalog.jsonb_build_object('environmentId', l.environment_id, 'provider', l.provider,
                                             'generation', l.generation)
          FROM lease AS l
    )
    SELECT l.id INTO v_id FROM lease AS l;
    RETURN v_id;
END
$$;
COMMENT ON FUNCTION leasehold_internal.resume_parked_lease(uuid, uuid, integer, text, uuid, text, uuid, uuid, uuid,
                                                           interval, interval, boolean, interval) IS
    'Takes a parked lease that fits into use again, or returns NULL';

-- Ends leases: the one way from "in use" to "over", for one lease or thousands.
--
-- A request whose call was never sent, or is known to have got nothing, is over
-- at once.  The others become releasing; the call that is out, or the one queued
-- here, carries it on.  Leases that are over or ending are left alone, so
-- ending twice is ending once; only what is being parked can still be deleted.
-- A NULL disposition means what the policy says.
CREATE FUNCTION leasehold_internal.end_leases(
        company_ids uuid[], lease_ids uuid[], end_status text, disposition text, reason text DEFAULT NULL,
        code text DEFAULT NULL)
    RETURNS integer LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_count  integer;
    v_places uuid[];
BEGIN
    IF pg_catalog.cardinality(lease_ids) = 0 THEN
        RETURN 0;
    END IF;
    WITH target AS (
        SELECT l.*,
               CASE WHEN end_leases.disposition IS NOT NULL THEN end_leases.disposition
                    WHEN l.policy = 'reuse_by_environment' AND end_leases.end_status = 'released' THEN 'stop'
                    WHEN l.policy = 'retain_on_failure' AND end_leases.end_status = 'failed' THEN 'stop'
                    ELSE 'delete' END AS new_disposition,
               COALESCE(end_leases.reason,
                   CASE WHEN end_leases.end_status = 'failed' THEN 'adapter_or_run_failure'
                        WHEN end_leases.end_status = 'expired' AND l.policy = 'reuse_by_environment'
                             THEN 'lease_expired' END) AS new_reason
          FROM (SELECT * FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(lease_ids)) AS k (company_id, id)
                 ORDER BY 1, 2) AS w
         CROSS JOIN LATERAL (SELECT * FROM leasehold.leases AS x
                              WHERE x.company_id = w.company_id AND x.id = w.id FOR NO KEY UPDATE) AS l
         WHERE l.status IN ('acquiring', 'active', 'resuming', 'retained')
            OR l.status IN ('releasing', 'pending_cleanup') AND l.disposition <> 'delete'
               AND end_leases.disposition = 'delete'
    ), never_sent AS (
        DELETE FROM leasehold_internal.calls AS c
         USING target AS t
         WHERE c.company_id = t.company_id AND c.subject_id = t.id AND c.slot = 'op'
           AND c.operation = 'acquire' AND NOT c.look_up AND c.state IN ('queued', 'waiting')
        RETURNING c.company_id, c.subject_id, c.granted
    ), lease AS (
        UPDATE leasehold.leases AS l
           SET status = CASE WHEN n.subject_id IS NOT NULL THEN end_leases.end_status
                             WHEN t.status = 'pending_cleanup' THEN t.status ELSE 'releasing' END,
               end_status = CASE WHEN t.new_disposition = 'delete' THEN end_leases.end_status ELSE 'retained' END,
               disposition = t.new_disposition,
               ended_at = CASE WHEN n.subject_id IS NOT NULL THEN pg_catalog.now() END,
               cleanup_status = CASE WHEN t.status = 'pending_cleanup' THEN l.cleanup_status
                                     WHEN n.subject_id IS NULL THEN 'pending' END,
               failure_code = COALESCE(end_leases.code, l.failure_code),
               failure_reason = COALESCE(t.new_reason, l.failure_reason),
               waiting_for = NULL, attempts = 0
          FROM target AS t
          LEFT JOIN never_sent AS n ON n.company_id = t.company_id AND n.subject_id = t.id
         WHERE l.company_id = t.company_id AND l.id = t.id
        RETURNING l.*, t.status AS old_status, t.new_reason
    ), call AS (
        INSERT INTO leasehold_internal.calls AS c
               (company_id, subject_id, slot, operation, provider, shard, generation)
        SELECT l.company_id, l.id, 'op',
               CASE WHEN l.disposition = 'delete'
                         AND (l.policy <> 'ephemeral' OR l.old_status IN ('retained', 'releasing', 'pending_cleanup'))
                    THEN 'destroy' ELSE 'release' END,
               l.provider, leasehold_internal.shard_of(l.company_id), l.generation
          FROM lease AS l
         WHERE l.status IN ('releasing', 'pending_cleanup')
        ON CONFLICT (company_id, subject_id, slot) DO UPDATE
               -- a call that is out, or whose outcome is to be looked up, goes on; its answer finds the lease releasing
           SET operation = CASE WHEN c.operation IN ('resume', 'realize', 'release') AND c.state <> 'started'
                                THEN excluded.operation ELSE c.operation END,
               -- one that is just parking the resource is followed by another
               payload = CASE WHEN c.operation = 'release' AND c.state = 'started'
                              THEN '{"destroy": true}' ELSE c.payload END,
               state = CASE WHEN c.state = 'waiting' THEN 'queued' ELSE c.state END,
               due_at = CASE WHEN c.state = 'started' THEN c.due_at ELSE excluded.due_at END
    ), event AS (
        INSERT INTO leasehold.audit_events
               (company_id, action, entity_type, entity_id, agent_id, issue_id, run_id, details)
        SELECT l.company_id,
               CASE WHEN l.status IN ('releasing', 'pending_cleanup') THEN 'environment.lease_release_requested'
                    ELSE 'environment.lease_released' END,
               'environment_lease', l.id::text, l.agent_id, l.issue_id, l.run_id,
               pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
                   'environmentId', l.environment_id, 'provider', l.provider, 'from', l.old_status,
                   'status', l.end_status, 'disposition', l.disposition, 'failureReason', l.new_reason))
          FROM lease AS l
    )
    SELECT pg_catalog.count(*),
           (SELECT pg_catalog.array_agg(DISTINCT n.company_id) FROM never_sent AS n WHERE n.granted)
      INTO v_count, v_places FROM lease AS l;
    PERFORM leasehold_internal.end_commands(company_ids, lease_ids);
    -- those that were granted a place had it without using it
    IF v_places IS NOT NULL THEN
        PERFORM leasehold_internal.announce_places(p) FROM pg_catalog.unnest(v_places) AS p
          WHERE EXISTS (SELECT FROM leasehold.limits AS m WHERE m.name = 'active_leases');
    END IF;
    RETURN v_count;
END
$$;
COMMENT ON FUNCTION leasehold_internal.end_leases(uuid[], uuid[], text, text, text, text) IS
    'Moves leases from use towards their end, with the work and the events that belong to it';

CREATE FUNCTION leasehold_internal.end_company_leases(
        company_id uuid, lease_ids uuid[], end_status text, disposition text, reason text DEFAULT NULL)
    RETURNS integer LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN leasehold_internal.end_leases(
        pg_catalog.array_fill(company_id, ARRAY[pg_catalog.cardinality(lease_ids)]), lease_ids, end_status,
        disposition, reason);
END
$$;
COMMENT ON FUNCTION leasehold_internal.end_company_leases(uuid, uuid[], text, text, text) IS
    'end_leases() for leases of one company';

-- For leases whose purpose is over: what is parked or on its way there goes, and
-- what is in use goes on, of the policies given not to be parked when it ends.
CREATE FUNCTION leasehold_internal.retire_leases(
        company_id uuid, lease_ids uuid[], reason text, unused_too boolean, not_to_be_parked text[])
    RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    -- all of them first, by id: what ends and what goes on is told apart once
    PERFORM FROM leasehold.leases AS l
      WHERE l.company_id = retire_leases.company_id AND l.id = ANY (lease_ids)
        AND leasehold_internal.may_have_resource(l.status)
      ORDER BY l.id FOR NO KEY UPDATE;
    PERFORM leasehold_internal.end_company_leases(retire_leases.company_id,
        ARRAY(SELECT l.id FROM leasehold.leases AS l
               WHERE l.company_id = retire_leases.company_id AND l.id = ANY (lease_ids)
                 AND (l.status IN ('retained', 'releasing', 'pending_cleanup')
                      OR unused_too AND l.run_id IS NULL AND leasehold_internal.may_have_resource(l.status))),
        'expired', 'delete', retire_leases.reason);
    UPDATE leasehold.leases AS l SET policy = 'ephemeral'
     WHERE l.company_id = retire_leases.company_id AND l.id = ANY (lease_ids)
       AND l.policy = ANY (not_to_be_parked) AND l.status IN ('acquiring', 'active', 'resuming');
END
$$;
COMMENT ON FUNCTION leasehold_internal.retire_leases(uuid, uuid[], text, boolean, text[]) IS
    'Ends what is parked of leases whose purpose is over, and what no run holds if asked; the others end with their use';

-- Those among these leases whose cleanup waits for its next try have it now; who
-- asks gives a new reason.
CREATE FUNCTION leasehold_internal.hurry_cleanup(company_id uuid, lease_ids uuid[], reason text) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_locked uuid[];
BEGIN
    WITH lease AS (
        UPDATE leasehold.leases AS l SET failure_reason = COALESCE(hurry_cleanup.reason, l.failure_reason)
          FROM (SELECT x.id FROM leasehold.leases AS x
                 WHERE x.company_id = hurry_cleanup.company_id AND x.id = ANY (lease_ids) AND x.status = 'pending_cleanup'
                 ORDER BY x.id FOR NO KEY UPDATE) AS t
         WHERE l.company_id = hurry_cleanup.company_id AND l.id = t.id
        RETURNING l.id
    )
    SELECT pg_catalog.array_agg(l.id) INTO v_locked FROM lease AS l;
    -- of these alone: nobody holds a call without its lease
    UPDATE leasehold_internal.calls AS c SET due_at = pg_catalog.clock_timestamp()
     WHERE c.company_id = hurry_cleanup.company_id AND c.subject_id = ANY (v_locked)
       AND c.slot = 'op' AND c.state = 'queued';
END
$$;
COMMENT ON FUNCTION leasehold_internal.hurry_cleanup(uuid, uuid[], text) IS
    'Has the cleanup of leases that waits for its next try tried now';

CREATE FUNCTION leasehold_internal.check_generation(lease leasehold.leases, generation integer) RETURNS void
    LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF check_generation.generation IS NOT NULL AND (lease).generation <> check_generation.generation THEN
        PERFORM leasehold_internal.refuse('stale_version',
            pg_catalog.format('lease %s is in use by somebody else now', (lease).id),
            'The generation given is not the present one.',
            pg_catalog.jsonb_build_object('generation', (lease).generation));
    END IF;
END
$$;
COMMENT ON FUNCTION leasehold_internal.check_generation(leasehold.leases, integer) IS
    'Refuses a holder whose generation of the lease is over';

CREATE FUNCTION leasehold_internal.lock_lease(company_id uuid, lease_id uuid, generation integer DEFAULT NULL)
    RETURNS leasehold.leases LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_lease leasehold.leases;
BEGIN
    SELECT l.* INTO v_lease FROM leasehold.leases AS l
     WHERE l.company_id = lock_lease.company_id AND l.id = lock_lease.lease_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse_unknown_lease(lock_lease.lease_id);
    END IF;
    IF lock_lease.generation IS NOT NULL THEN
        PERFORM leasehold_internal.check_generation(v_lease, lock_lease.generation);
    END IF;
    RETURN v_lease;
END
$$;
COMMENT ON FUNCTION leasehold_internal.lock_lease(uuid, uuid, integer) IS
    'The lease, locked, or the error that there is none or that it has another holder';

CREATE FUNCTION leasehold_internal.release_lease(
        lease_id uuid, disposition text DEFAULT NULL, generation integer DEFAULT NULL, company text DEFAULT NULL)
    RETURNS text LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(release_lease.company, 'user');
    v_lease   leasehold.leases;
    v_ended   integer;
BEGIN
    IF release_lease.disposition IS NOT NULL THEN
        PERFORM leasehold_internal.check_choice('disposition', release_lease.disposition, 'keep', 'stop', 'delete');
    END IF;
    v_lease := leasehold_internal.lock_lease(v_company, release_lease.lease_id, release_lease.generation);
    IF release_lease.disposition IN ('keep', 'stop') THEN
        PERFORM FROM leasehold.providers AS p WHERE p.key = v_lease.provider AND p.supports_reusable_leases;
        IF NOT FOUND THEN
            PERFORM leasehold_internal.refuse('provider_unusable',
                pg_catalog.format('provider "%s" cannot park resources', v_lease.provider),
                'Use disposition => ''delete''.');
        END IF;
    END IF;
    IF v_lease.status NOT IN ('acquiring', 'active', 'resuming') THEN
        RETURN v_lease.status;
    END IF;
    v_ended := leasehold_internal.end_company_leases(v_company, ARRAY[v_lease.id], 'released', release_lease.disposition);
    PERFORM leasehold_internal.warn_if_unserved();
    RETURN (SELECT l.status FROM leasehold.leases AS l WHERE l.company_id = v_company AND l.id = v_lease.id);
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.release_lease', 'instant',
    'gives a lease back and returns its status; releasing again changes nothing', 'leasehold_app');

CREATE FUNCTION leasehold_internal.destroy_lease(lease_id uuid, reason text DEFAULT NULL, company text DEFAULT NULL)
    RETURNS text LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(destroy_lease.company, 'user', true);
    v_lease   leasehold.leases;
    v_ended   integer;
BEGIN
    PERFORM leasehold_internal.check_text('reason', destroy_lease.reason, 1000);
    v_lease := leasehold_internal.lock_lease(v_company, destroy_lease.lease_id);
    v_ended := leasehold_internal.end_company_leases(v_company, ARRAY[v_lease.id], 'expired', 'delete',
        COALESCE(destroy_lease.reason, 'lease_destroyed'));
    IF v_ended > 0 THEN
        UPDATE leasehold_internal.calls AS c SET operation = 'destroy'
         WHERE c.company_id = v_company AND c.subject_id = v_lease.id AND c.slot = 'op' AND c.operation = 'release'
           AND c.state <> 'started';
    ELSIF v_lease.status = 'pending_cleanup' THEN
        PERFORM leasehold_internal.hurry_cleanup(v_company, ARRAY[v_lease.id], destroy_lease.reason);
    END IF;
    PERFORM leasehold_internal.warn_if_unserved();
    RETURN (SELECT l.status FROM leasehold.leases AS l WHERE l.company_id = v_company AND l.id = v_lease.id);
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.destroy_lease', 'instant',
    'ends a lease, parked ones included, and has its resource deleted; returns its status',
    'leasehold_app', 'leasehold_admin');

CREATE FUNCTION leasehold_internal.renew_lease(
        lease_id uuid, ttl interval DEFAULT NULL, generation integer DEFAULT NULL, company text DEFAULT NULL)
    RETURNS timestamptz LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(renew_lease.company, 'user');
    v_lease   leasehold.leases;
    v_expires timestamptz;
BEGIN
    IF renew_lease.ttl IS NOT NULL THEN
        PERFORM leasehold_internal.check_interval('ttl', renew_lease.ttl, '1 second', '365 days');
    END IF;
    v_lease := leasehold_internal.lock_lease(v_company, renew_lease.lease_id, renew_lease.generation);
    IF v_lease.status <> 'active' THEN
        PERFORM leasehold_internal.refuse('wrong_state',
            pg_catalog.format('lease %s is not active', v_lease.id),
            CASE WHEN v_lease.status = 'acquiring' THEN 'Wait for it with wait_for_lease().' ELSE 'Request a new one.' END,
            pg_catalog.jsonb_build_object('status', v_lease.status));
    END IF;
    v_expires := LEAST(pg_catalog.clock_timestamp() + LEAST(COALESCE(renew_lease.ttl, v_lease.ttl),
                           leasehold_internal.ttl_ceiling(v_company, v_lease.environment_id, v_lease.provider)),
                       v_lease.provider_expires_at);
    UPDATE leasehold.leases AS l
       SET expires_at = v_expires, last_used_at = pg_catalog.clock_timestamp()
     WHERE l.company_id = v_company AND l.id = v_lease.id;
    -- the deadline's row is moved only if it would come too late
    IF v_expires < v_lease.expires_at THEN
        UPDATE leasehold_internal.calls AS c SET due_at = v_expires
         WHERE c.company_id = v_company AND c.subject_id = v_lease.id AND c.slot = 'timer' AND c.due_at > v_expires;
    END IF;
    RETURN v_expires;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.renew_lease', 'instant',
    'extends an active lease, counted from now, and returns the time that was granted', 'leasehold_app');

CREATE FUNCTION leasehold_internal.release_run_leases(run_id uuid, status text DEFAULT 'released', company text DEFAULT NULL)
    RETURNS integer LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(release_run_leases.company, 'user');
BEGIN
    PERFORM leasehold_internal.check_choice('status', release_run_leases.status, 'released', 'expired', 'failed');
    PERFORM FROM leasehold_internal.runs AS r
      WHERE r.company_id = v_company AND r.id = release_run_leases.run_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('run_not_found',
            pg_catalog.format('run %s does not exist', release_run_leases.run_id), 'Begin it with start_run().');
    END IF;
    PERFORM leasehold_internal.warn_if_unserved();
    RETURN leasehold_internal.end_company_leases(v_company, ARRAY(
        SELECT l.id FROM leasehold.leases AS l
         WHERE l.company_id = v_company AND l.run_id = release_run_leases.run_id
           AND l.status IN ('acquiring', 'active', 'resuming')), release_run_leases.status, NULL);
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.release_run_leases', 'instant',
    'gives back the leases of a run and returns how many there were; a second call returns 0', 'leasehold_app');

CREATE FUNCTION leasehold_internal.destroy_reusable_leases(
        issue_id uuid DEFAULT NULL, execution_workspace_id uuid DEFAULT NULL,
        reason text DEFAULT 'reusable_lease_destroyed', company text DEFAULT NULL)
    RETURNS integer LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(destroy_reusable_leases.company, 'user');
    v_ids     uuid[];
BEGIN
    PERFORM leasehold_internal.check_text('reason', destroy_reusable_leases.reason, 1000);
    IF destroy_reusable_leases.issue_id IS NULL AND destroy_reusable_leases.execution_workspace_id IS NULL THEN
        RETURN 0;
    END IF;
    v_ids := ARRAY(SELECT l.id FROM leasehold.leases AS l
                    WHERE l.company_id = v_company AND l.policy = 'reuse_by_environment'
                      AND leasehold_internal.may_have_resource(l.status)
                      AND (destroy_reusable_leases.issue_id IS NULL OR l.issue_id = destroy_reusable_leases.issue_id)
                      AND (destroy_reusable_leases.execution_workspace_id IS NULL
                           OR l.execution_workspace_id = destroy_reusable_leases.execution_workspace_id));
    PERFORM leasehold_internal.hurry_cleanup(v_company, v_ids, destroy_reusable_leases.reason);
    PERFORM leasehold_internal.warn_if_unserved();
    RETURN leasehold_internal.end_company_leases(v_company, v_ids, 'expired', 'delete',
        COALESCE(destroy_reusable_leases.reason, 'reusable_lease_destroyed'));
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.destroy_reusable_leases', 'instant',
    'removes the reusable leases of an issue, a workspace, or of both together; returns how many', 'leasehold_app');

-- Gives up the removal of a stray, whose resource a lease is to hold; false if it
-- is under way.  The call is locked first, as by workers.
CREATE FUNCTION leasehold_internal.spare_stray(company_id uuid, provider text, provider_lease_id text) RETURNS boolean
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_stray uuid;
    v_state text;
BEGIN
    SELECT r.stray_id INTO v_stray FROM leasehold_internal.provider_resources AS r
     WHERE r.provider = spare_stray.provider AND r.provider_lease_id = spare_stray.provider_lease_id
       AND r.company_id = spare_stray.company_id;
    IF v_stray IS NOT NULL THEN
        SELECT c.state INTO v_state FROM leasehold_internal.calls AS c
         WHERE c.company_id = spare_stray.company_id AND c.subject_id = v_stray AND c.slot = 'op' FOR UPDATE;
        IF v_state = 'started' THEN
            RETURN false;
        END IF;
        DELETE FROM leasehold_internal.calls AS c
         WHERE c.company_id = spare_stray.company_id AND c.subject_id = v_stray AND c.slot = 'op';
        DELETE FROM leasehold_internal.provider_resources AS r
         WHERE r.company_id = spare_stray.company_id AND r.stray_id = v_stray;
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION leasehold_internal.spare_stray(uuid, text, text) IS
    'Gives up the removal of a stray, or returns false if it is under way';

CREATE FUNCTION leasehold_internal.import_lease(
        environment text, provider_lease_id text, agent_id uuid DEFAULT NULL, issue_id uuid DEFAULT NULL,
        run_id uuid DEFAULT NULL, execution_workspace_id uuid DEFAULT NULL, ttl interval DEFAULT '1 hour',
        idle_timeout interval DEFAULT NULL, metadata jsonb DEFAULT NULL, lease_id uuid DEFAULT NULL,
        company text DEFAULT NULL)
    RETURNS uuid LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company     uuid;
    v_id          uuid := COALESCE(import_lease.lease_id, leasehold.new_id());
    v_environment leasehold_internal.environments;
    v_ttl         interval;
BEGIN
    -- whose resource it is, only the installation can tell
    PERFORM leasehold_internal.enter_admin();
    v_company := leasehold_internal.enter_company(import_lease.company, 'manager', true);
    PERFORM leasehold_internal.check_text('provider_lease_id', import_lease.provider_lease_id, 1000);
    IF import_lease.provider_lease_id = '' THEN
        PERFORM leasehold_internal.refuse('argument_invalid', 'argument "provider_lease_id" must not be empty');
    END IF;
    PERFORM leasehold_internal.check_interval('ttl', import_lease.ttl, '1 second', '365 days');
    PERFORM leasehold_internal.check_interval('idle_timeout', import_lease.idle_timeout, '1 second', '365 days');
    PERFORM leasehold_internal.check_object('metadata', import_lease.metadata);
    IF leasehold_internal.is_draining() THEN
        PERFORM leasehold_internal.refuse_while_draining();
    END IF;
    -- locked as the foreign key would, but before, so that a deletion meanwhile is seen
    SELECT e.* INTO v_environment FROM leasehold_internal.environments AS e
     WHERE e.company_id = v_company AND e.key = environment FOR KEY SHARE;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.find_environment(v_company, environment);
    END IF;
    IF v_environment.status <> 'active' THEN
        PERFORM leasehold_internal.refuse('environment_inactive', pg_catalog.format('environment "%s" is archived', environment));
    END IF;
    PERFORM leasehold_internal.require_usable_provider(v_company, v_environment.provider);
    PERFORM leasehold_internal.require_agent(v_company, import_lease.agent_id);
    PERFORM leasehold_internal.require_issue(v_company, import_lease.issue_id);
    PERFORM leasehold_internal.require_workspace(v_company, import_lease.execution_workspace_id);
    PERFORM leasehold_internal.require_running_run(v_company, import_lease.run_id);

    IF NOT leasehold_internal.spare_stray(v_company, v_environment.provider, import_lease.provider_lease_id) THEN
        PERFORM leasehold_internal.refuse('import_refused', 'the resource is just being removed',
            'It is to be removed since no lease claimed it. Try again when that call has ended, if the resource is still there.');
    END IF;
    INSERT INTO leasehold_internal.provider_resources (provider, provider_lease_id, company_id, lease_id)
    VALUES (v_environment.provider, import_lease.provider_lease_id, v_company, v_id)
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('import_refused', 'the resource is held already',
            'A lease has it, or it is to be removed for another company.');
    END IF;
    v_ttl := LEAST(COALESCE(import_lease.ttl, '1 hour'),
                   leasehold_internal.ttl_ceiling(v_company, v_environment.id, v_environment.provider));
    INSERT INTO leasehold.leases AS l
           (company_id, id, environment_id, config_version, provider, provider_version, status, agent_id, issue_id,
            run_id, execution_workspace_id, provider_lease_id, ttl, idle_timeout, acquired_at, last_used_at, expires_at)
    SELECT v_company, v_id, v_environment.id, v_environment.config_version, v_environment.provider,
           COALESCE(g.version, ''), 'active', import_lease.agent_id, import_lease.issue_id, import_lease.run_id,
           import_lease.execution_workspace_id, import_lease.provider_lease_id, v_ttl, import_lease.idle_timeout,
           pg_catalog.now(), pg_catalog.now(), pg_catalog.now() + v_ttl
      FROM leasehold.providers AS p LEFT JOIN leasehold.plugins AS g ON g.key = p.plugin_key
     WHERE p.key = v_environment.provider
    ON CONFLICT (company_id, id) DO NOTHING;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('already_exists', pg_catalog.format('lease %s already exists', v_id));
    END IF;
    INSERT INTO leasehold.lease_metadata (company_id, lease_id, metadata)
    SELECT v_company, v_id, import_lease.metadata WHERE import_lease.metadata IS NOT NULL;
    INSERT INTO leasehold_internal.calls (company_id, subject_id, slot, operation, shard, due_at)
    SELECT l.company_id, l.id, 'timer', 'lease_deadline', leasehold_internal.shard_of(l.company_id),
           leasehold_internal.lease_deadline(l.status, l.expires_at, l.last_used_at, l.idle_timeout)
      FROM leasehold.leases AS l WHERE l.company_id = v_company AND l.id = v_id;
    PERFORM leasehold_internal.record(v_company, 'environment.lease_imported', 'environment_lease', v_id::text,
        pg_catalog.jsonb_build_object('environmentId', v_environment.id, 'provider', v_environment.provider,
            'providerLeaseId', import_lease.provider_lease_id),
        import_lease.agent_id, import_lease.issue_id, import_lease.run_id);
    RETURN v_id;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.import_lease', 'instant',
    'puts a resource that exists at the provider already under a lease', 'leasehold_admin');

CREATE FUNCTION leasehold_internal.retry_lease(lease_id uuid, company text DEFAULT NULL) RETURNS text
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(retry_lease.company, 'user', true);
    v_lease   leasehold.leases;
BEGIN
    v_lease := leasehold_internal.lock_lease(v_company, retry_lease.lease_id);
    IF v_lease.status = 'irrevocable' AND (v_lease.provider_lease_id IS NOT NULL
           OR leasehold_internal.provider_looks_up(v_lease.provider)) THEN
        UPDATE leasehold.leases AS l
           SET status = 'pending_cleanup', attempts = 0, cleanup_status = 'pending', disposition = 'delete',
               -- what could not be parked is removed
               end_status = CASE WHEN l.end_status = 'retained' THEN 'released' ELSE l.end_status END
         WHERE l.company_id = v_company AND l.id = v_lease.id;
        INSERT INTO leasehold_internal.calls AS c
               (company_id, subject_id, slot, operation, provider, shard, generation, look_up)
        VALUES (v_company, v_lease.id, 'op',
                CASE WHEN v_lease.provider_lease_id IS NULL THEN 'acquire' ELSE 'destroy' END,
                v_lease.provider, leasehold_internal.shard_of(v_company), v_lease.generation,
                v_lease.provider_lease_id IS NULL)
        ON CONFLICT (company_id, subject_id, slot) DO UPDATE
           SET state = 'queued', due_at = excluded.due_at, attempts = 0, throttled = 0, crashes = 0, operation = excluded.operation,
               look_up = excluded.look_up;
    ELSIF v_lease.status = 'irrevocable' THEN
        PERFORM leasehold_internal.refuse('wrong_state',
            pg_catalog.format('what became of lease %s cannot be looked up at its provider', v_lease.id),
            'Check at the provider. If the resource exists, have a leasehold_admin import it first with import_lease(); then write_off_lease().');
    ELSE
        UPDATE leasehold_internal.calls AS c
           SET state = 'queued', due_at = pg_catalog.clock_timestamp()
         WHERE c.company_id = v_company AND c.subject_id = v_lease.id AND c.slot = 'op'
           AND c.state IN ('queued', 'waiting');
        IF NOT FOUND THEN
            IF EXISTS (SELECT FROM leasehold_internal.calls AS c
                        WHERE c.company_id = v_company AND c.subject_id = v_lease.id AND c.slot = 'op'
                          AND c.state = 'quarantined') THEN
                PERFORM leasehold_internal.refuse('wrong_state',
                    pg_catalog.format('lease %s is in quarantine', v_lease.id),
                    'A manager can let it out with release_quarantine(), which may end the worker again.',
                    pg_catalog.jsonb_build_object('status', v_lease.status));
            END IF;
            PERFORM leasehold_internal.refuse('wrong_state',
                pg_catalog.format('lease %s has nothing to retry', v_lease.id), NULL,
                pg_catalog.jsonb_build_object('status', v_lease.status));
        END IF;
    END IF;
    PERFORM leasehold_internal.record(v_company, 'environment.lease_retried', 'environment_lease', v_lease.id::text,
        pg_catalog.jsonb_build_object('from', v_lease.status), v_lease.agent_id, v_lease.issue_id, v_lease.run_id);
    PERFORM leasehold_internal.warn_if_unserved();
    RETURN (SELECT l.status FROM leasehold.leases AS l WHERE l.company_id = v_company AND l.id = v_lease.id);
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.retry_lease', 'instant',
    'has what a lease waits for, or failed at, tried again now; returns its status', 'leasehold_app', 'leasehold_admin');

CREATE FUNCTION leasehold_internal.write_off_lease(lease_id uuid, reason text, company text DEFAULT NULL) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(write_off_lease.company, 'manager', true);
    v_lease   leasehold.leases;
BEGIN
    PERFORM leasehold_internal.check_text('reason', write_off_lease.reason, 1000);
    IF pg_catalog.btrim(write_off_lease.reason) = '' THEN
        PERFORM leasehold_internal.refuse('argument_invalid', 'argument "reason" must not be empty');
    END IF;
    v_lease := leasehold_internal.lock_lease(v_company, write_off_lease.lease_id);
    IF v_lease.status <> 'irrevocable' THEN
        PERFORM leasehold_internal.refuse('wrong_state',
            pg_catalog.format('lease %s is not irrevocable', v_lease.id),
            'Only what could not be removed is written off.', pg_catalog.jsonb_build_object('status', v_lease.status));
    END IF;
    UPDATE leasehold.leases AS l
       SET status = 'written_off', ended_at = pg_catalog.now(), failure_reason = write_off_lease.reason
     WHERE l.company_id = v_company AND l.id = v_lease.id;
    DELETE FROM leasehold_internal.calls AS c WHERE c.company_id = v_company AND c.subject_id = v_lease.id;
    DELETE FROM leasehold_internal.provider_resources AS r WHERE r.company_id = v_company AND r.lease_id = v_lease.id;
    PERFORM leasehold_internal.announce_places(v_company);
    PERFORM leasehold_internal.record(v_company, 'environment.lease_written_off', 'environment_lease', v_lease.id::text,
        pg_catalog.jsonb_build_object('reason', write_off_lease.reason, 'providerLeaseId', v_lease.provider_lease_id),
        v_lease.agent_id, v_lease.issue_id, v_lease.run_id);
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.write_off_lease', 'instant',
    'gives an irrevocable lease up, with the reason', 'leasehold_app', 'leasehold_admin');

CREATE FUNCTION leasehold_internal.release_quarantine(lease_id uuid, company text DEFAULT NULL) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(release_quarantine.company, 'manager', true);
    v_lease   leasehold.leases;
BEGIN
    v_lease := leasehold_internal.lock_lease(v_company, release_quarantine.lease_id);
    UPDATE leasehold_internal.calls AS c
       SET state = 'queued', crashes = 0, due_at = pg_catalog.clock_timestamp()
     WHERE c.company_id = v_company AND c.subject_id = v_lease.id AND c.slot = 'op' AND c.state = 'quarantined';
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('call_not_found',
            pg_catalog.format('lease %s has no call in quarantine', v_lease.id));
    END IF;
    UPDATE leasehold.leases AS l SET waiting_for = NULL WHERE l.company_id = v_company AND l.id = v_lease.id;
    PERFORM leasehold_internal.record(v_company, 'environment.lease_unquarantined', 'environment_lease',
        v_lease.id::text, '{}', v_lease.agent_id, v_lease.issue_id, v_lease.run_id);
    PERFORM leasehold_internal.warn_if_unserved();
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.release_quarantine', 'instant',
    'has a call tried again that was set aside because the worker died with it', 'leasehold_app', 'leasehold_admin');

-- Waiting is written in C: it must see what commits meanwhile, whatever the
-- caller's snapshot.
CREATE FUNCTION leasehold_internal.wait_for_lease(
        lease_id uuid, timeout interval DEFAULT '5 seconds', company text DEFAULT NULL,
        OUT status text, OUT done boolean, OUT generation integer, OUT provider_lease_id text,
        OUT expires_at timestamptz, OUT waiting_for text, OUT failure_code text, OUT failure_reason text)
    RETURNS record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_wait_for_lease';
SELECT leasehold_internal.publish('leasehold_internal.wait_for_lease', 'waits',
    'returns a lease''s state once nothing is under way for it, or at the timeout with done = false', 'leasehold_app');

CREATE FUNCTION leasehold_internal.lease_state(
        lease_id uuid, company text,
        OUT company_id uuid, OUT status text, OUT done boolean, OUT generation integer, OUT provider_lease_id text,
        OUT expires_at timestamptz, OUT waiting_for text, OUT failure_code text, OUT failure_reason text,
        OUT written_by xid)
    RETURNS record LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
BEGIN
    company_id := leasehold_internal.enter_company(lease_state.company, 'viewer');
    SELECT l.status, l.status NOT IN ('acquiring', 'resuming', 'releasing', 'pending_cleanup'), l.generation,
           l.provider_lease_id, l.expires_at, l.waiting_for, l.failure_code, l.failure_reason,
           l.xmin
      INTO status, done, generation, provider_lease_id, expires_at, waiting_for, failure_code, failure_reason,
           written_by
      FROM leasehold.leases AS l
     WHERE l.company_id = lease_state.company_id AND l.id = lease_state.lease_id;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse_unknown_lease(lease_state.lease_id);
    END IF;
END
$$;
COMMENT ON FUNCTION leasehold_internal.lease_state(uuid, text) IS 'What wait_for_lease() reads';
