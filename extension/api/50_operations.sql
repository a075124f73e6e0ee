-- 50_operations.sql: running the installation, and seeing what it does.

CREATE FUNCTION leasehold_internal.worker_states(
        OUT part integer, OUT pid integer, OUT state text, OUT reason text, OUT started_at timestamptz,
        OUT last_round_at timestamptz, OUT epoch bigint, OUT in_flight integer, OUT queued integer,
        OUT capacity integer, OUT rounds bigint, OUT started_calls bigint, OUT applied_calls bigint,
        OUT stale_answers bigint, OUT failed_batches bigint)
    RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_worker_states';
COMMENT ON FUNCTION leasehold_internal.worker_states() IS 'What the workers of this database say of themselves';

CREATE FUNCTION leasehold_internal.provider_states(
        OUT part integer, OUT provider text, OUT in_flight integer, OUT queued integer, OUT breaker text,
        OUT failures integer, OUT retry_at timestamptz, OUT succeeded bigint, OUT failed bigint,
        OUT held_back integer)
    RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_provider_states';
COMMENT ON FUNCTION leasehold_internal.provider_states() IS 'What the workers say of the providers they call';

CREATE FUNCTION leasehold_internal.request_breaker_reset(provider text) RETURNS boolean
    LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'leasehold_request_breaker_reset';
COMMENT ON FUNCTION leasehold_internal.request_breaker_reset(text) IS 'Has the workers close a circuit breaker';

CREATE FUNCTION leasehold_internal.reset_breaker(provider text) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM leasehold_internal.enter_admin();
    -- plugins themselves, and commands, have names of their own, as status() shows them
    PERFORM FROM leasehold.plugins AS g WHERE provider = 'plugin:' || g.key;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.require_provider(pg_catalog.regexp_replace(provider, '^commands:', ''));
    END IF;
    PERFORM leasehold_internal.record(leasehold_internal.no_company(), 'provider.breaker_reset', 'provider', provider);
    RETURN leasehold_internal.request_breaker_reset(provider);
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.reset_breaker', 'instant',
    'closes the circuit breaker of a provider, of its commands as "commands:KEY", or of a plugin as "plugin:KEY"; false if none was open', 'leasehold_admin');

CREATE FUNCTION leasehold_internal.pause_worker(reason text DEFAULT NULL) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
    PERFORM leasehold_internal.enter_admin();
    PERFORM leasehold_internal.check_text('reason', reason, 200);
    PERFORM leasehold_internal.ensure_installation();
    UPDATE leasehold_internal.installation AS i SET paused = true, paused_reason = reason;
    PERFORM leasehold_internal.record(leasehold_internal.no_company(), 'installation.paused', 'installation',
        (SELECT i.id::text FROM leasehold_internal.installation AS i LIMIT 1),
        pg_catalog.jsonb_build_object('reason', reason));
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.pause_worker', 'instant',
    'stops new calls to providers; those that are out are finished', 'leasehold_admin');

CREATE FUNCTION leasehold_internal.resume_worker() RETURNS void LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
    PERFORM leasehold_internal.enter_admin();
    UPDATE leasehold_internal.installation AS i SET paused = false, paused_reason = NULL, draining = false
     WHERE i.paused OR i.draining;
    IF FOUND THEN
        PERFORM leasehold_internal.record(leasehold_internal.no_company(), 'installation.resumed', 'installation',
            (SELECT i.id::text FROM leasehold_internal.installation AS i LIMIT 1));
    END IF;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.resume_worker', 'instant',
    'undoes pause_worker() and drain_installation()', 'leasehold_admin');

-- What providers hold, or may hold, for this database; asked for by the worker, too,
-- before the database is dropped.
CREATE FUNCTION leasehold_internal.resources_left() RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT (SELECT pg_catalog.count(*) FROM leasehold.leases AS l WHERE leasehold_internal.may_have_resource(l.status))
           + (SELECT pg_catalog.count(*) FROM leasehold_internal.provider_resources AS r WHERE r.stray_id IS NOT NULL)
$$;
COMMENT ON FUNCTION leasehold_internal.resources_left() IS 'How many leases, and strays, have or may have a resource';

CREATE FUNCTION leasehold_internal.drain_installation() RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_companies uuid[];
    v_leases    uuid[];
BEGIN
    PERFORM leasehold_internal.enter_admin();
    UPDATE leasehold_internal.installation AS i SET draining = true;
    SELECT pg_catalog.array_agg(l.company_id), pg_catalog.array_agg(l.id) INTO v_companies, v_leases
      FROM leasehold.leases AS l
     WHERE l.status IN ('acquiring', 'active', 'resuming', 'retained')
        OR l.status IN ('releasing', 'pending_cleanup') AND l.disposition <> 'delete';
    IF v_leases IS NOT NULL THEN
        PERFORM leasehold_internal.end_leases(v_companies, v_leases, 'released', 'delete', 'installation_drained');
    END IF;
    PERFORM leasehold_internal.record(leasehold_internal.no_company(), 'installation.draining', 'installation',
        COALESCE((SELECT i.id::text FROM leasehold_internal.installation AS i LIMIT 1), ''),
        pg_catalog.jsonb_build_object('leases', COALESCE(pg_catalog.cardinality(v_leases), 0)));
    RETURN leasehold_internal.resources_left();
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.drain_installation', 'instant',
    'ends all leases, refuses new ones until resume_worker(), and returns how many, and how many strays, are still there',
    'leasehold_admin');

CREATE FUNCTION leasehold_internal.allow_host(host text, data_directory text DEFAULT NULL) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
    PERFORM leasehold_internal.enter_admin();
    PERFORM leasehold_internal.check_text('host', allow_host.host);
    PERFORM leasehold_internal.check_text('data_directory', allow_host.data_directory, 1000);
    IF allow_host.host = '' THEN
        PERFORM leasehold_internal.refuse('argument_invalid', 'argument "host" must not be empty');
    END IF;
    INSERT INTO leasehold_internal.allowed_hosts (host, data_directory)
    SELECT allow_host.host, COALESCE(allow_host.data_directory, h.data_directory) FROM leasehold_internal.here() AS h
    ON CONFLICT DO NOTHING;
    PERFORM leasehold_internal.record(leasehold_internal.no_company(), 'installation.host_allowed', 'host', allow_host.host,
        pg_catalog.jsonb_build_object('dataDirectory', allow_host.data_directory));
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.allow_host', 'instant',
    'names a host (leasehold.host_identity or the host name) where the installation may go on after a failover',
    'leasehold_admin');

CREATE FUNCTION leasehold_internal.takeover_installation() RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_epoch bigint;
    v_why   text := leasehold_internal.hold_reason();
BEGIN
    PERFORM leasehold_internal.enter_admin();
    IF v_why IS NULL THEN
        PERFORM leasehold_internal.refuse('wrong_state', 'the installation is not held');
    END IF;
    -- restored next to a stamp of its own: the restored one is the original
    DELETE FROM leasehold_internal.installation AS i
     WHERE i.id <> (SELECT j.id FROM leasehold_internal.installation AS j ORDER BY j.created_at LIMIT 1);
    UPDATE leasehold_internal.installation AS i
       SET epoch = i.epoch + 1, database_oid = h.database_oid, system_identifier = h.system_identifier, host = h.host,
           data_directory = h.data_directory, directory_inode = h.directory_inode, timeline = h.timeline,
           dispatch_timeline = NULL, sweep_dry = true
      FROM leasehold_internal.here() AS h
    RETURNING i.epoch INTO v_epoch;
    DELETE FROM leasehold_internal.calls;
    PERFORM leasehold_internal.rebuild_calls(ARRAY(SELECT s::smallint FROM pg_catalog.generate_series(0, 63) AS s));
    PERFORM leasehold_internal.record(leasehold_internal.no_company(), 'installation.taken_over', 'installation',
        (SELECT i.id::text FROM leasehold_internal.installation AS i LIMIT 1),
        pg_catalog.jsonb_build_object('epoch', v_epoch, 'was', v_why));
    RETURN v_epoch;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.takeover_installation', 'instant',
    'says that this copy replaces the original, which must not run any more: its leases go on here', 'leasehold_admin');

CREATE FUNCTION leasehold_internal.fork_installation() RETURNS uuid LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_why    text := leasehold_internal.hold_reason();
    v_id     uuid := leasehold.new_id();
    v_leases bigint;
    v_runs   bigint;
BEGIN
    PERFORM leasehold_internal.enter_admin();
    IF v_why IS NULL THEN
        PERFORM leasehold_internal.refuse('wrong_state', 'the installation is not held');
    END IF;
    DELETE FROM leasehold_internal.installation;
    INSERT INTO leasehold_internal.installation
           (id, database_oid, system_identifier, host, data_directory, directory_inode, timeline)
    SELECT v_id, h.database_oid, h.system_identifier, h.host, h.data_directory, h.directory_inode, h.timeline
      FROM leasehold_internal.here() AS h;
    -- the resources are the original's: nothing of them is ours
    DELETE FROM leasehold_internal.calls;
    DELETE FROM leasehold_internal.provider_resources;
    WITH lease AS (
        UPDATE leasehold.leases AS l SET status = 'forgotten', ended_at = pg_catalog.now(), waiting_for = NULL
         WHERE leasehold_internal.may_have_resource(l.status)
        RETURNING l.*
    ), event AS (
        INSERT INTO leasehold.audit_events (company_id, action, entity_type, entity_id, agent_id, issue_id, run_id, details)
        SELECT l.company_id, 'environment.lease_forgotten', 'environment_lease', l.id::text, l.agent_id, l.issue_id,
               l.run_id, '{}' FROM lease AS l
    )
    SELECT pg_catalog.count(*) INTO v_leases FROM lease;
    UPDATE leasehold_internal.runs AS r
       SET status = 'interrupted', finished_at = pg_catalog.now(), error_code = 'installation_forked'
     WHERE r.status = 'running';
    GET DIAGNOSTICS v_runs = ROW_COUNT;
    DELETE FROM leasehold_internal.run_tokens;
    PERFORM leasehold_internal.rebuild_calls(ARRAY(SELECT s::smallint FROM pg_catalog.generate_series(0, 63) AS s));
    PERFORM leasehold_internal.record(leasehold_internal.no_company(), 'installation.forked', 'installation', v_id::text,
        pg_catalog.jsonb_build_object('was', v_why, 'leases', v_leases, 'runs', v_runs));
    RETURN v_id;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.fork_installation', 'instant',
    'says that this is a copy of its own: the original''s leases are forgotten here and nothing remote is touched',
    'leasehold_admin');

-- Views.

CREATE VIEW leasehold.active_leases WITH (security_barrier) AS
    SELECT l.company_id, l.id AS lease_id, l.status, l.provider, l.environment_id, l.agent_id, l.issue_id, l.run_id,
           l.execution_workspace_id, l.generation, l.provider_lease_id, l.requested_at, l.acquired_at, l.expires_at,
           COALESCE(l.waiting_for,
                    CASE WHEN c.state = 'quarantined' THEN 'quarantine'
                         WHEN l.status IN ('acquiring', 'resuming', 'releasing', 'pending_cleanup') THEN
                              CASE WHEN c.state = 'started' THEN 'provider'
                                   WHEN c.subject_id IS NULL THEN 'rebuild'
                                   ELSE 'worker' END
                         WHEN l.status = 'irrevocable' THEN 'decision' END) AS waiting_for,
           c.operation::text AS next_operation, c.due_at AS next_try_at, c.attempts, c.last_error,
           l.failure_code, l.failure_reason
      FROM leasehold.leases AS l
      LEFT JOIN leasehold_internal.calls AS c
        ON c.company_id = l.company_id AND c.subject_id = l.id AND c.slot = 'op'
     WHERE l.status IN ('acquiring', 'active', 'releasing', 'retained', 'resuming', 'pending_cleanup', 'irrevocable');
COMMENT ON VIEW leasehold.active_leases IS 'Leases that have, or may have, a resource, and what each waits for';

CREATE VIEW leasehold.lease_timeline WITH (security_barrier) AS
    SELECT a.company_id, a.entity_id::uuid AS lease_id, a.occurred_at, a.action, a.acting_role, a.asserted_actor,
           a.agent_id, a.issue_id, a.run_id, a.details, NULL::uuid AS command_id
      FROM leasehold.audit_events AS a
     WHERE a.entity_type = 'environment_lease'
     UNION ALL
    SELECT k.company_id, k.lease_id, a.occurred_at, a.action, a.acting_role, a.asserted_actor,
           a.agent_id, a.issue_id, a.run_id, a.details, k.id
      FROM leasehold.commands AS k
      JOIN leasehold.audit_events AS a
        ON a.company_id = k.company_id AND a.entity_type = 'command' AND a.entity_id = k.id::text;
COMMENT ON VIEW leasehold.lease_timeline IS 'What happened to each lease and its commands; order by occurred_at';

CREATE VIEW leasehold.cleanup_backlog WITH (security_barrier) AS
    SELECT l.company_id, l.id AS lease_id, l.status, l.provider, l.provider_lease_id, l.failure_code, l.failure_reason,
           c.attempts, c.due_at AS next_try_at, c.last_error
      FROM leasehold.leases AS l
      LEFT JOIN leasehold_internal.calls AS c
        ON c.company_id = l.company_id AND c.subject_id = l.id AND c.slot = 'op'
     WHERE l.status IN ('pending_cleanup', 'irrevocable');
COMMENT ON VIEW leasehold.cleanup_backlog IS 'Resources that could not be removed yet, or at all';

CREATE FUNCTION leasehold_internal.status(
        OUT area text, OUT subject text, OUT state text, OUT detail jsonb)
    RETURNS SETOF record LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
DECLARE
    v_admin boolean := leasehold_internal.is_admin();
BEGIN
    RETURN QUERY
    SELECT 'worker'::text, w.part::text, w.state,
           CASE WHEN v_admin THEN pg_catalog.to_jsonb(w) - 'part' - 'state'
                ELSE pg_catalog.jsonb_build_object('reason', w.reason) END
      FROM leasehold_internal.worker_states() AS w;
    RETURN QUERY
    SELECT 'provider'::text, p.provider,
           CASE WHEN pg_catalog.bool_or(p.breaker = 'open') THEN 'breaker_open'
                WHEN pg_catalog.bool_or(p.breaker = 'half_open') THEN 'breaker_half_open' ELSE 'ok' END,
           CASE WHEN v_admin THEN pg_catalog.jsonb_build_object(
                    'inFlight', pg_catalog.sum(p.in_flight), 'queued', pg_catalog.sum(p.queued),
                    'failures', pg_catalog.max(p.failures), 'retryAt', pg_catalog.max(p.retry_at),
                    'heldBack', pg_catalog.sum(p.held_back),
                    'succeeded', pg_catalog.sum(p.succeeded), 'failed', pg_catalog.sum(p.failed))
                ELSE pg_catalog.jsonb_build_object('retryAt', pg_catalog.max(p.retry_at)) END
      FROM leasehold_internal.provider_states() AS p
     WHERE v_admin OR EXISTS (SELECT FROM leasehold_internal.environments AS e WHERE e.provider = p.provider)
     GROUP BY p.provider;
    RETURN QUERY
    SELECT 'leases'::text, c.key::text, l.status::text,
           pg_catalog.jsonb_build_object('count', pg_catalog.count(*), 'oldest', pg_catalog.min(l.requested_at))
      FROM leasehold.leases AS l JOIN leasehold.companies AS c ON c.id = l.company_id
     WHERE l.status IN ('acquiring', 'active', 'releasing', 'retained', 'resuming', 'pending_cleanup', 'irrevocable')
     GROUP BY c.key, l.status;
    RETURN QUERY
    SELECT 'plugin'::text, g.key::text, g.status::text,
           CASE WHEN v_admin THEN pg_catalog.jsonb_build_object('version', g.version, 'lastError', g.last_error)
                ELSE pg_catalog.jsonb_build_object('version', g.version) END
      FROM leasehold.plugins AS g
     WHERE v_admin OR EXISTS (SELECT FROM leasehold_internal.environments AS e
                                JOIN leasehold.providers AS p ON p.key = e.provider WHERE p.plugin_key = g.key);
    IF v_admin THEN
        RETURN QUERY
        SELECT 'installation'::text, i.id::text,
               CASE WHEN pg_catalog.pg_is_in_recovery() THEN 'standby'
                    WHEN leasehold_internal.hold_reason() IS NOT NULL THEN 'held'
                    WHEN i.paused THEN 'paused' WHEN i.draining THEN 'draining' ELSE 'in use' END,
               pg_catalog.jsonb_build_object('epoch', i.epoch, 'holdReason', leasehold_internal.hold_reason(),
                   'pausedReason', i.paused_reason, 'sweepDry', i.sweep_dry)
          FROM leasehold_internal.installation AS i;
    END IF;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.status', 'instant',
    'what the workers, providers, plugins and leases are doing; of leases only those the caller may see',
    'leasehold_admin', 'leasehold_app', 'leasehold_auditor');

CREATE FUNCTION leasehold_internal.doctor(OUT severity text, OUT code text, OUT finding text, OUT what_to_do text)
    RETURNS SETOF record LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
DECLARE
    v_hold    text := leasehold_internal.hold_reason();
    v_standby boolean := pg_catalog.pg_is_in_recovery();
BEGIN
    PERFORM leasehold_internal.enter_admin();
    RETURN QUERY
    SELECT 'notice'::text, 'standby'::text,
           'this server is a standby: nothing can be changed here, and no worker runs'::text,
           'Nothing; a promotion starts the worker.'::text
     WHERE v_standby;
    RETURN QUERY
    SELECT 'warning'::text, 'standby_not_allowed'::text, 'a promotion would be held: ' || v_hold,
           pg_catalog.format('If it is to go on by itself, call allow_host(%L, %L) on the primary.', h.host, h.data_directory)
      FROM leasehold_internal.here() AS h WHERE v_standby AND v_hold IS NOT NULL;
    RETURN QUERY
    SELECT 'error'::text, 'installation_held'::text, v_hold,
           'If it replaces the original, which must be stopped: takeover_installation(). If it is a copy: fork_installation().'::text
     WHERE v_hold IS NOT NULL AND NOT v_standby;
    RETURN QUERY
    SELECT 'error'::text, 'worker_' || w.state, COALESCE(w.reason, 'no worker serves this database'),
           CASE WHEN w.state = 'held' THEN 'See installation_held.'
                WHEN w.state = 'unsupported' THEN 'Run ALTER EXTENSION leasehold UPDATE.'
                WHEN w.reason LIKE '%shared_preload_libraries%'
                THEN 'Add leasehold to shared_preload_libraries and restart the server.'
                WHEN w.reason LIKE '%leasehold.max_databases%'
                THEN 'Raise leasehold.max_databases and restart the server.'
                ELSE 'Look for "leasehold" and "too many background workers" in the server log; raise max_worker_processes if slots are missing.' END
      FROM leasehold_internal.worker_states() AS w WHERE w.state NOT IN ('running', 'paused') AND NOT v_standby;
    -- not what the worker says: it may not have heard yet
    RETURN QUERY
    SELECT 'error'::text, 'worker_paused'::text, COALESCE('paused: ' || i.paused_reason, 'paused by an administrator'),
           'Call resume_worker() when the reason is gone.'::text
      FROM leasehold_internal.installation AS i WHERE i.paused AND v_hold IS NULL AND NOT v_standby;
    RETURN QUERY
    SELECT 'notice'::text, 'installation_draining'::text,
           pg_catalog.format('new leases are refused since drain_installation(); resources left: %s',
                             leasehold_internal.resources_left()),
           'Call resume_worker() to take new leases again.'::text
      FROM leasehold_internal.installation AS i WHERE i.draining AND v_hold IS NULL AND NOT v_standby;
    RETURN QUERY
    SELECT 'error'::text, 'sandboxes_unavailable'::text, 'no sandbox can be made on this host: ' || p.problem,
           'See docs/sandbox.md for what it takes.'::text
      FROM leasehold_internal.sandbox_problem() AS p (problem)
     WHERE p.problem IS NOT NULL AND (pg_catalog.current_setting('leasehold.bubblewrap')::boolean
           OR EXISTS (SELECT FROM leasehold_internal.environments AS e
                       WHERE e.provider = 'bubblewrap' AND e.status = 'active'
                         AND leasehold_internal.may_use_provider(e.company_id, e.provider)));
    RETURN QUERY
    SELECT 'notice'::text, 'sandboxes_without_cgroups'::text,
           'sandboxes on this host: memory is limited for each process, not for a sandbox as a whole; processes, file sizes and workspaces are limited for the whole'::text,
           'Keep memoryMb times processes below what the host can spare, see to OOMPolicy=continue of the service, or use another host: docs/sandbox.md.'::text
     WHERE pg_catalog.current_setting('leasehold.bubblewrap')::boolean AND leasehold_internal.sandbox_problem() IS NULL;
    RETURN QUERY
    SELECT 'warning'::text, 'member_dangling'::text,
           pg_catalog.format('the membership of role "%s" in company "%s" is not valid here', m.role_name, c.key),
           'If it is the same role, call repair_members(); else revoke_company().'::text
      FROM leasehold.company_members AS m JOIN leasehold.companies AS c ON c.id = m.company_id
      LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = m.role_oid AND r.rolname = m.role_name
     CROSS JOIN leasehold_internal.here() AS h
     WHERE r.oid IS NULL OR m.system_identifier <> h.system_identifier;
    RETURN QUERY
    SELECT 'warning'::text, 'role_has_members'::text,
           pg_catalog.format('role "%s" is a member of "%s", and so is kept out of no company', u.rolname, g.rolname),
           pg_catalog.format('REVOKE %I FROM %I; grant leasehold_admin to who runs the installation.', g.rolname, u.rolname)
      FROM pg_catalog.pg_auth_members AS m
      JOIN pg_catalog.pg_roles AS g ON g.oid = m.roleid AND g.rolname IN ('leasehold_owner', 'leasehold_worker')
      JOIN pg_catalog.pg_roles AS u ON u.oid = m.member;
    RETURN QUERY
    SELECT 'warning'::text, 'audit_default_partition'::text,
           'events went to the DEFAULT partition of the audit trail'::text,
           'See that the worker runs; it makes partitions ahead of time.'::text
     WHERE EXISTS (SELECT FROM leasehold.audit_events_default AS a WHERE a.occurred_at > pg_catalog.now() - interval '1 day')
       AND EXISTS (SELECT FROM leasehold.audit_events_default AS a WHERE a.occurred_at < pg_catalog.now() - interval '1 hour');
    RETURN QUERY
    SELECT 'warning'::text, 'lease_irrevocable'::text,
           pg_catalog.format(CASE pg_catalog.count(*) WHEN 1 THEN '%s lease is irrevocable' ELSE '%s leases are irrevocable' END,
                             pg_catalog.count(*))
           || CASE WHEN l.provider_lease_id IS NULL THEN ', and not known to have a resource' ELSE '' END,
           CASE WHEN l.provider_lease_id IS NULL
                THEN 'See cleanup_backlog; retry_lease() each, or check at the provider: if the resource exists, import_lease() first; then write_off_lease().'
                ELSE 'See cleanup_backlog; retry_lease() or write_off_lease() each.' END
      FROM leasehold.leases AS l WHERE l.status = 'irrevocable'
     GROUP BY l.provider_lease_id IS NULL ORDER BY l.provider_lease_id IS NULL;
    RETURN QUERY
    SELECT 'warning'::text, 'stray_not_removed'::text,
           pg_catalog.format(CASE pg_catalog.count(*)
                                 WHEN 1 THEN '%s resource that no lease claims cannot be removed, of provider "%s": %s'
                                 ELSE '%s resources that no lease claims cannot be removed, of provider "%s": %s' END,
                             pg_catalog.count(*), c.provider, pg_catalog.max(c.last_error)),
           'Remove it at the provider, or put it under a lease with import_lease(); the removal is tried on.'::text
      FROM leasehold_internal.calls AS c
     WHERE c.operation = 'destroy_stray' AND c.state <> 'quarantined'
       AND c.attempts >= pg_catalog.current_setting('leasehold.cleanup_attempts')::integer
     GROUP BY c.provider;
    RETURN QUERY
    SELECT 'warning'::text, 'sweep_failed'::text,
           pg_catalog.format(CASE pg_catalog.count(*) WHEN 1 THEN 'the sweep of %s environment of provider "%s" fails: %s'
                                                      ELSE 'the sweeps of %s environments of provider "%s" fail: %s' END,
                             pg_catalog.count(*), c.provider, pg_catalog.max(c.last_error)),
           'What no lease claims may not be found there until the provider lists it.'::text
      FROM leasehold_internal.calls AS c
     WHERE c.slot = 'sweep' AND c.last_error IS NOT NULL
     GROUP BY c.provider;
    RETURN QUERY
    SELECT 'warning'::text, 'call_quarantined'::text,
           pg_catalog.format(CASE pg_catalog.count(*) WHEN 1 THEN '%s call "%s" of "%s" is set aside: the worker ended with it again and again'
                             ELSE '%s calls "%s" of "%s" are set aside: the worker ended with them again and again' END,
                             pg_catalog.count(*), c.operation, c.provider),
           CASE WHEN c.operation = 'initialize' THEN 'See the server log; then restart_plugin().'
                WHEN c.operation IN ('reconcile', 'destroy_stray') THEN 'See the server log; it is tried once more after a day.'
                ELSE 'See the server log, and active_leases whose waiting_for is "quarantine"; release_quarantine() each.' END
      FROM leasehold_internal.calls AS c WHERE c.state = 'quarantined'
     GROUP BY c.operation, c.provider;
    RETURN QUERY
    SELECT 'warning'::text, 'plugin_error'::text, pg_catalog.format('plugin "%s": %s', g.key, g.last_error),
           'Check its address, its token, and leasehold.token_directory; then restart_plugin().'::text
      FROM leasehold.plugins AS g WHERE g.status = 'error';
    RETURN QUERY
    SELECT 'warning'::text, 'breaker_open'::text,
           pg_catalog.format(CASE WHEN p.retry_at > pg_catalog.clock_timestamp()
                                  THEN 'provider "%s" fails, its circuit breaker is open until %s'
                                  ELSE 'provider "%s" fails, its circuit breaker was open until %s and the next call will tell' END,
                             p.provider, p.retry_at) || COALESCE(': ' || c.last_error, ''),
           'Check the provider; reset_breaker() tries again at once.'::text
      FROM leasehold_internal.provider_states() AS p
      LEFT JOIN LATERAL (SELECT x.last_error FROM leasehold_internal.calls AS x
                          WHERE x.provider = p.provider AND x.last_error IS NOT NULL
                          ORDER BY x.started_at DESC NULLS LAST LIMIT 1) AS c ON true
     WHERE p.breaker = 'open';
    RETURN QUERY
    SELECT 'warning'::text, 'company_held_back'::text,
           pg_catalog.format(CASE p.held_back WHEN 1 THEN 'provider "%s" fails for %s company, whose calls to it are held back'
                                              ELSE 'provider "%s" fails for %s companies, whose calls to it are held back' END,
                             p.provider, p.held_back),
           'Look for "held back" in the server log, and at the environments of that company.'::text
      FROM leasehold_internal.provider_states() AS p WHERE p.breaker = 'closed' AND p.held_back > 0;
    RETURN QUERY
    SELECT 'warning'::text, 'no_free_slots'::text,
           pg_catalog.format('all %s places for calls are taken, most by provider "%s": %s', w.capacity, m.provider, m.in_flight),
           'Look at that provider; lower its limit concurrent_calls, or raise leasehold.max_concurrent_calls.'::text
      FROM leasehold_internal.worker_states() AS w
     CROSS JOIN LATERAL (SELECT p.provider, p.in_flight FROM leasehold_internal.provider_states() AS p
                          WHERE p.part = w.part ORDER BY p.in_flight DESC, p.provider LIMIT 1) AS m
     WHERE w.state <> 'absent' AND w.capacity > 0 AND w.in_flight >= w.capacity;
    RETURN QUERY
    SELECT 'notice'::text, 'sweep_dry'::text, 'sweeps only report strays since the takeover'::text,
           'Look at the events environment.stray_reported, then approve_sweep().'::text
      FROM leasehold_internal.installation AS i WHERE i.sweep_dry;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.doctor', 'instant',
    'what is wrong with the installation, and what to do about it', 'leasehold_admin');

-- Leases of all companies by status; for those who watch the installation.  Its
-- owner is the worker's role, which sees all rows; it tells nobody whose they are.
CREATE FUNCTION leasehold_internal.all_live_leases(OUT status text, OUT count bigint) RETURNS SETOF record
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT l.status::text, count(*) FROM leasehold.leases AS l
     WHERE l.status IN ('acquiring', 'active', 'releasing', 'retained', 'resuming', 'pending_cleanup', 'irrevocable')
     GROUP BY 1
$$;
COMMENT ON FUNCTION leasehold_internal.all_live_leases() IS 'Leases of all companies by status';

CREATE FUNCTION leasehold_internal.metrics(
        OUT name text, OUT type text, OUT labels jsonb, OUT value double precision)
    RETURNS SETOF record LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
DECLARE
    v_watcher boolean := leasehold_internal.is_admin()
                         OR pg_catalog.pg_has_role(leasehold.acting_role(), 'pg_monitor', 'USAGE');
BEGIN
    RETURN QUERY
    SELECT 'leasehold_leases'::text, 'gauge'::text, pg_catalog.jsonb_build_object('status', s.status),
           COALESCE(a.count, 0)::double precision
      FROM pg_catalog.unnest(ARRAY['acquiring', 'active', 'releasing', 'retained', 'resuming', 'pending_cleanup',
                                   'irrevocable']) AS s (status)
      LEFT JOIN leasehold_internal.all_live_leases() AS a ON a.status = s.status
     WHERE v_watcher
    UNION ALL
    SELECT 'leasehold_leases'::text, 'gauge'::text, pg_catalog.jsonb_build_object('status', s.status),
           pg_catalog.count(l.id)::double precision
      FROM pg_catalog.unnest(ARRAY['acquiring', 'active', 'releasing', 'retained', 'resuming', 'pending_cleanup',
                                   'irrevocable']) AS s (status)
      LEFT JOIN leasehold.leases AS l ON l.status = s.status
       AND l.status IN ('acquiring', 'active', 'releasing', 'retained', 'resuming', 'pending_cleanup', 'irrevocable')
     WHERE NOT v_watcher
     GROUP BY s.status;
    IF v_watcher THEN
        RETURN QUERY
        SELECT m.name, m.type, pg_catalog.jsonb_build_object('part', w.part), m.value
          FROM leasehold_internal.worker_states() AS w,
               LATERAL (VALUES ('leasehold_worker_up', 'gauge', CASE w.state WHEN 'running' THEN 1 ELSE 0 END::double precision),
                               ('leasehold_calls_in_flight', 'gauge', w.in_flight::double precision),
                               ('leasehold_calls_queued', 'gauge', w.queued::double precision),
                               ('leasehold_calls_started_total', 'counter', w.started_calls::double precision),
                               ('leasehold_calls_applied_total', 'counter', w.applied_calls::double precision),
                               ('leasehold_stale_answers_total', 'counter', w.stale_answers::double precision),
                               ('leasehold_failed_batches_total', 'counter', w.failed_batches::double precision))
                    AS m (name, type, value);
        RETURN QUERY
        SELECT 'leasehold_attached_calls'::text, 'gauge'::text, pg_catalog.jsonb_build_object('state', s.state),
               pg_catalog.count(a.pid)::double precision
          FROM pg_catalog.unnest(ARRAY['held', 'left']) AS s (state)
          LEFT JOIN leasehold_internal.attached_calls() AS a ON a.state = s.state
         GROUP BY s.state;
        RETURN QUERY
        SELECT m.name, m.type, pg_catalog.jsonb_build_object('part', p.part, 'provider', p.provider), m.value
          FROM leasehold_internal.provider_states() AS p,
               LATERAL (VALUES ('leasehold_provider_breaker_open', 'gauge', CASE p.breaker WHEN 'closed' THEN 0 ELSE 1 END::double precision),
                               ('leasehold_provider_calls_succeeded_total', 'counter', p.succeeded::double precision),
                               ('leasehold_provider_calls_failed_total', 'counter', p.failed::double precision))
                    AS m (name, type, value);
    END IF;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.metrics', 'instant',
    'figures for Prometheus, about the companies that the caller may see; for leasehold_admin and pg_monitor about all, and the workers',
    'leasehold_admin', 'leasehold_app', 'leasehold_auditor', 'pg_monitor');

-- Housekeeping: plain functions whose clock the worker is.

-- The worker does each duty in a transaction of its own, so that one that cannot be
-- done does not keep the others from being done.
CREATE FUNCTION leasehold_internal.housekeep(
        duty text, shards smallint[], lease_days integer, audit_days integer, reconcile_seconds integer)
    RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_count integer;
BEGIN
    CASE duty
    WHEN 'partitions' THEN
        IF 0 = ANY (shards) THEN
            BEGIN
                PERFORM leasehold_internal.make_audit_partitions();
                PERFORM leasehold_internal.drop_audit_partitions(pg_catalog.make_interval(days => audit_days));
            EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
                RAISE LOG 'leasehold: partitions of the audit trail have to wait, as somebody uses it: %', SQLERRM;
            END;
        END IF;
    -- in batches, and what a user has locked another time
    WHEN 'idempotency_keys' THEN
        IF 0 = ANY (shards) THEN
            DELETE FROM leasehold_internal.idempotency_keys AS k
             USING (SELECT x.company_id, x.function_name, x.key FROM leasehold_internal.idempotency_keys AS x
                     WHERE x.created_at < pg_catalog.now() - interval '24 hours'
                     LIMIT 10000 FOR UPDATE SKIP LOCKED) AS o
             WHERE k.company_id = o.company_id AND k.function_name = o.function_name AND k.key = o.key;
            GET DIAGNOSTICS v_count = ROW_COUNT;
            RETURN v_count = 10000;
        END IF;
    WHEN 'leases' THEN
        WITH old AS (
            SELECT l.company_id, l.id FROM leasehold.leases AS l
             WHERE l.ended_at < pg_catalog.now() - pg_catalog.make_interval(days => lease_days)
               AND l.status IN ('released', 'expired', 'failed', 'forgotten', 'written_off')
               AND leasehold_internal.shard_of(l.company_id) = ANY (shards)
             LIMIT 1000 FOR UPDATE SKIP LOCKED
        )
        DELETE FROM leasehold.leases AS l USING old AS o WHERE l.company_id = o.company_id AND l.id = o.id;
        GET DIAGNOSTICS v_count = ROW_COUNT;
        RETURN v_count = 1000;
    WHEN 'output' THEN
        WITH old AS (
            SELECT c.company_id, c.id FROM leasehold.commands AS c
             WHERE c.status = 'finished' AND c.output_removed_at IS NULL
               AND c.finished_at < pg_catalog.now()
                   - pg_catalog.make_interval(days => pg_catalog.current_setting('leasehold.output_retention')::integer)
               AND leasehold_internal.shard_of(c.company_id) = ANY (shards)
             LIMIT 100 FOR NO KEY UPDATE SKIP LOCKED
        ), gone AS (
            DELETE FROM leasehold.command_output AS o USING old AS c WHERE o.company_id = c.company_id AND o.command_id = c.id
        )
        UPDATE leasehold.commands AS c SET output_removed_at = pg_catalog.now()
          FROM old AS o WHERE c.company_id = o.company_id AND c.id = o.id;
        GET DIAGNOSTICS v_count = ROW_COUNT;
        RETURN v_count = 100;
    WHEN 'places' THEN
        PERFORM leasehold_internal.give_places(limits_changed => true);
    WHEN 'takeover' THEN
        -- what recover_calls() had to leave, as somebody had it locked
        PERFORM leasehold_internal.take_over_calls(
            ARRAY(SELECT w.epoch FROM leasehold_internal.worker_states() AS w WHERE w.pid IS NOT NULL), shards,
            pg_catalog.current_setting('leasehold.crash_limit')::integer, true, pg_catalog.now() - interval '1 minute');
    WHEN 'rebuild' THEN
        PERFORM leasehold_internal.rebuild_calls(shards);
    WHEN 'reconcile' THEN
        PERFORM leasehold_internal.revive_quarantined(shards);
        IF reconcile_seconds > 0 THEN
            PERFORM leasehold_internal.ensure_reconciles(shards, pg_catalog.make_interval(secs => reconcile_seconds));
        ELSE
            DELETE FROM leasehold_internal.calls AS c
             USING (SELECT x.company_id, x.subject_id, x.slot FROM leasehold_internal.calls AS x
                     WHERE x.operation = 'reconcile' AND x.state = 'queued' AND x.shard = ANY (shards)
                       FOR UPDATE SKIP LOCKED) AS o
             WHERE c.company_id = o.company_id AND c.subject_id = o.subject_id AND c.slot = o.slot;
        END IF;
    END CASE;
    RETURN false;
END
$$;
COMMENT ON FUNCTION leasehold_internal.housekeep(text, smallint[], integer, integer, integer) IS
    'Does one duty of housekeeping; returns whether more of it is likely to be left';
