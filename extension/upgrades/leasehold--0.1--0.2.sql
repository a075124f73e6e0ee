\echo Use "ALTER EXTENSION leasehold UPDATE" to load this file. \quit

-- Closed sets that became larger.
-- instead of: CREATE DOMAIN leasehold_internal.call_operation
-- without: CREATE DOMAIN leasehold_internal.call_operation
ALTER DOMAIN leasehold_internal.call_operation DROP CONSTRAINT call_operation_check;
ALTER DOMAIN leasehold_internal.call_operation ADD CONSTRAINT call_operation_check
    CHECK (VALUE IN ('acquire', 'resume', 'realize', 'release', 'destroy', 'destroy_stray', 'initialize', 'reconcile',
                     'lease_deadline', 'run_deadline', 'places', 'execute', 'cancel_command'));
-- instead of: CREATE DOMAIN leasehold_internal.call_slot
-- without: CREATE DOMAIN leasehold_internal.call_slot
ALTER DOMAIN leasehold_internal.call_slot DROP CONSTRAINT call_slot_check;
ALTER DOMAIN leasehold_internal.call_slot ADD CONSTRAINT call_slot_check
    CHECK (VALUE IN ('op', 'sweep', 'timer', 'run_timer', 'command', 'cancel'));

-- Another description.
-- instead of: SELECT leasehold_internal.publish('leasehold_internal.reset_breaker'
-- without: SELECT leasehold_internal.publish('leasehold_internal.reset_breaker'
COMMENT ON FUNCTION leasehold.reset_breaker(text) IS
    'instant: closes the circuit breaker of a provider, of its commands as "commands:KEY", or of a plugin as "plugin:KEY"; false if none was open';

-- It got an argument.
-- without: CREATE FUNCTION leasehold_internal.decide(
-- without: COMMENT ON FUNCTION leasehold_internal.decide(
DROP FUNCTION leasehold_internal.decide(text, boolean, text, text, integer, boolean, boolean, integer, integer);

-- It got a column.
-- instead of: CREATE TABLE leasehold_internal.installation
-- without: CREATE TABLE leasehold_internal.installation
ALTER TABLE leasehold_internal.installation ADD COLUMN dispatch_timeline integer;

CREATE DOMAIN leasehold.command_status AS text COLLATE "C"
    CHECK (VALUE IN ('queued', 'running', 'finished'));

COMMENT ON DOMAIN leasehold.command_status IS
    'queued; running: handed to the provider; finished: see the outcome';

CREATE DOMAIN leasehold.command_outcome AS text COLLATE "C"
    CHECK (VALUE IN ('exited', 'signalled', 'timed_out', 'cancelled', 'failed', 'lost', 'unknown'));

COMMENT ON DOMAIN leasehold.command_outcome IS
    'exited: with an exit code; signalled: ended by a signal; timed_out; cancelled; failed: it never ran; lost: it ran, but its end was not seen; unknown: whether it ran is not known';

CREATE DOMAIN leasehold.output_stream AS text COLLATE "C"
    CHECK (VALUE IN ('stdout', 'stderr', 'notice'));

COMMENT ON DOMAIN leasehold.output_stream IS 'Where output came from; a notice is Leasehold''s own, as of output that was cut';

-- publish_procedure() gives a procedure to roles.  Procedures that commit have no
-- gate: they run as the caller, and what they call is public.

CREATE FUNCTION leasehold_internal.publish_procedure(procedure regproc, description text, VARIADIC to_roles text[])
    RETURNS void LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    target  text := procedure::oid::regprocedure::text;
    grantee text;
BEGIN
    PERFORM leasehold_internal.revoke_all('PROCEDURE', target, (SELECT p.proacl FROM pg_proc AS p WHERE p.oid = procedure));
    FOREACH grantee IN ARRAY to_roles LOOP
        EXECUTE format('GRANT EXECUTE ON PROCEDURE %s TO %I', target, grantee);
    END LOOP;
    EXECUTE format('COMMENT ON PROCEDURE %s IS %L', target, 'procedure: ' || description);
END
$$;

COMMENT ON FUNCTION leasehold_internal.publish_procedure(regproc, text, text[]) IS
    'Gives a procedure to roles, for the install and upgrade scripts';

INSERT INTO leasehold.providers (key, kind, display_name, description, supports_reusable_leases)
VALUES ('bubblewrap', 'sandbox_provider', 'Bubblewrap',
        'Built in: sandboxes on the server''s own host; needs leasehold.bubblewrap, and allow_provider() for each company', true);

COMMENT ON TABLE leasehold.provider_access IS
    'Who may use a provider, if it is not as usual: "bubblewrap" may be used by nobody then, others by every company';

CREATE FUNCTION leasehold_internal.may_use_provider(company_id uuid, provider text) RETURNS boolean
    LANGUAGE sql STABLE AS $$
    SELECT COALESCE((SELECT a.allowed FROM leasehold.provider_access AS a
                      WHERE a.company_id = may_use_provider.company_id AND a.provider = may_use_provider.provider),
                    may_use_provider.provider <> 'bubblewrap')
$$;

COMMENT ON FUNCTION leasehold_internal.may_use_provider(uuid, text) IS 'Whether a company was given, or not denied, a provider';

CREATE FUNCTION leasehold_internal.sandbox_problem() RETURNS text
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_sandbox_problem';

COMMENT ON FUNCTION leasehold_internal.sandbox_problem() IS
    'What keeps this host from running sandboxes of the provider "bubblewrap", or NULL';

-- The same after somebody has seen to it: what failed before does not hold it back.
CREATE OR REPLACE FUNCTION leasehold_internal.speak_anew(plugin text) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
    PERFORM leasehold_internal.request_breaker_reset('plugin:' || plugin);
    PERFORM leasehold_internal.request_breaker_reset(k.key)
       FROM leasehold.providers AS p CROSS JOIN LATERAL (VALUES (p.key::text), ('commands:' || p.key)) AS k (key)
      WHERE p.plugin_key = speak_anew.plugin;
    PERFORM leasehold_internal.queue_initialize(plugin);
END
$$;

-- Refuses unless the company may make or use environments of the provider.
CREATE OR REPLACE FUNCTION leasehold_internal.require_usable_provider(company_id uuid, provider text) RETURNS void
    LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_plugin leasehold.plugins;
BEGIN
    PERFORM leasehold_internal.require_provider(provider);
    IF NOT leasehold_internal.may_use_provider(require_usable_provider.company_id, require_usable_provider.provider) THEN
        PERFORM leasehold_internal.refuse('provider_forbidden',
            pg_catalog.format('the company may not use provider "%s"', provider),
            'An administrator can change this with allow_provider().');
    END IF;
    IF provider = 'fake' THEN
        IF NOT pg_catalog.current_setting('leasehold.allow_fake_provider')::boolean THEN
            PERFORM leasehold_internal.refuse('provider_forbidden', 'provider "fake" is for tests only',
                'Turn on leasehold.allow_fake_provider on a server that is for tests.');
        END IF;
        RETURN;
    END IF;
    IF provider = 'bubblewrap' THEN
        IF NOT pg_catalog.current_setting('leasehold.bubblewrap')::boolean THEN
            PERFORM leasehold_internal.refuse('provider_forbidden', 'sandboxes on the server''s own host are not allowed',
                'An administrator of the server can turn on leasehold.bubblewrap.');
        END IF;
        RETURN;
    END IF;
    SELECT g.* INTO v_plugin FROM leasehold.plugins AS g
      JOIN leasehold.providers AS p ON p.plugin_key = g.key WHERE p.key = provider;
    IF v_plugin.status = 'disabled' THEN
        PERFORM leasehold_internal.refuse('provider_unusable',
            pg_catalog.format('provider "%s" cannot be used: its plugin is disabled', provider),
            'An administrator can change this with enable_plugin().',
            pg_catalog.jsonb_build_object('pluginStatus', v_plugin.status));
    END IF;
END
$$;

-- Refuses a configuration that its provider cannot have.  What a plugin says of
-- its own configuration comes with its schema.
CREATE OR REPLACE FUNCTION leasehold_internal.check_config(provider text, config jsonb) RETURNS jsonb
    LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_problem text;
    -- what we tell a provider beside its configuration, and read back
    v_ours    text := (SELECT pg_catalog.min(k) FROM pg_catalog.unnest(ARRAY['driver', 'executionWorkspaceMode', 'pluginId',
                           'pluginKey', 'provider', 'providerMetadata', 'sandboxProviderPlugin', 'shellCommand']) AS k
                        WHERE config ? k);
BEGIN
    PERFORM leasehold_internal.check_object('config', config, 262144);
    v_problem := CASE
        WHEN v_ours = 'provider' THEN 'it must not contain "provider": the environment has its own'
        WHEN v_ours IS NOT NULL THEN pg_catalog.format('it must not contain "%s", which is not the provider''s', v_ours)
        WHEN config ? 'timeoutMs' AND (pg_catalog.jsonb_typeof(config -> 'timeoutMs') <> 'number'
              OR (config ->> 'timeoutMs')::numeric NOT BETWEEN 1 AND 86400000
              OR (config ->> 'timeoutMs')::numeric % 1 <> 0)
            THEN 'timeoutMs must be a whole number from 1 to 86400000'
        WHEN config ? 'reuseLease' AND pg_catalog.jsonb_typeof(config -> 'reuseLease') <> 'boolean'
            THEN 'reuseLease must be true or false'
        WHEN provider = 'fake' THEN leasehold_internal.fake_config_problem(config)
        WHEN provider = 'bubblewrap' THEN leasehold_internal.bubblewrap_config_problem(config)
        END;
    IF v_problem IS NOT NULL THEN
        PERFORM leasehold_internal.refuse('config_invalid', 'the configuration is not valid: ' || v_problem);
    END IF;
    RETURN config;
END
$$;

-- What a sandbox on the server's own host gets; see docs/sandbox.md.
CREATE FUNCTION leasehold_internal.bubblewrap_config_problem(config jsonb) RETURNS text
    LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN k.key NOT IN ('workspaceMb', 'memoryMb', 'processes', 'fileMb', 'cpuSeconds', 'timeoutMs', 'reuseLease')
            THEN pg_catalog.format('unknown key "%s"', pg_catalog.left(k.key, 60))
        WHEN k.key NOT IN ('timeoutMs', 'reuseLease')
             AND (pg_catalog.jsonb_typeof(k.value) <> 'number'
                  OR (k.value #>> '{}')::numeric NOT BETWEEN 1 AND 1048576 OR k.value #>> '{}' !~ '^[0-9]+$')
            THEN pg_catalog.format('%s must be a whole number from 1 to 1048576', k.key)
        END AS problem
    FROM pg_catalog.jsonb_each(config) AS k
    ORDER BY 1 NULLS LAST LIMIT 1
$$;

COMMENT ON FUNCTION leasehold_internal.bubblewrap_config_problem(jsonb) IS
    'What is wrong with the configuration of an environment of sandboxes on this host, or NULL';

CREATE FUNCTION leasehold_internal.ensure_local_environment(
        environment text DEFAULT 'local', config jsonb DEFAULT '{}', company text DEFAULT NULL)
    RETURNS uuid LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(ensure_local_environment.company, 'manager');
    v_found   leasehold_internal.environments;
BEGIN
    SELECT e.* INTO v_found FROM leasehold_internal.environments AS e
     WHERE e.company_id = v_company AND e.key = environment;
    IF NOT FOUND THEN
        BEGIN
            RETURN leasehold_internal.create_environment(environment, 'bubblewrap', ensure_local_environment.config,
                'Local', company => ensure_local_environment.company);
        EXCEPTION WHEN unique_violation THEN
            -- somebody else was faster
            SELECT e.* INTO v_found FROM leasehold_internal.environments AS e
             WHERE e.company_id = v_company AND e.key = environment;
        END;
    END IF;
    IF v_found.provider <> 'bubblewrap' THEN
        PERFORM leasehold_internal.refuse('already_exists',
            pg_catalog.format('environment "%s" is one of provider "%s"', v_found.key, v_found.provider), 'Take another key.');
    END IF;
    RETURN v_found.id;
END
$$;

SELECT leasehold_internal.publish('leasehold_internal.ensure_local_environment', 'instant',
    'makes an environment of sandboxes on the server''s own host, unless it is there; what is there stays as it is, archived or not',
    'leasehold_app');

COMMENT ON COLUMN leasehold.limits.value IS 'A number; seconds for lease_ttl_max, bytes for output_bytes';

CREATE OR REPLACE FUNCTION leasehold_internal.set_limit(
        name text, value bigint DEFAULT NULL, company text DEFAULT NULL, environment text DEFAULT NULL, provider text DEFAULT NULL)
    RETURNS void LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company     uuid := leasehold_internal.no_company();
    v_environment uuid := leasehold_internal.no_company();
BEGIN
    -- the other name of the domain is kept for what this version does not do: setting it would limit nothing
    PERFORM leasehold_internal.check_choice('name', set_limit.name, 'active_leases', 'concurrent_calls',
        'concurrent_commands', 'lease_ttl_max', 'lease_starts_per_minute', 'output_bytes');
    IF set_limit.value < 0 THEN
        PERFORM leasehold_internal.refuse('argument_invalid', 'argument "value" must not be negative', 'NULL removes the limit.');
    END IF;
    PERFORM leasehold_internal.enter_admin();
    IF set_limit.company IS NOT NULL THEN
        v_company := leasehold_internal.enter_company(set_limit.company, 'manager', true);
    END IF;
    IF set_limit.environment IS NOT NULL THEN
        IF set_limit.company IS NULL THEN
            PERFORM leasehold_internal.refuse('argument_invalid', 'argument "environment" needs argument "company"');
        END IF;
        IF set_limit.name IN ('concurrent_calls', 'concurrent_commands') AND set_limit.value IS NOT NULL THEN
            PERFORM leasehold_internal.refuse('argument_invalid',
                pg_catalog.format('limit "%s" cannot be set for an environment', set_limit.name),
                'Set it for the company, with or without a provider; active_leases can be set for an environment.');
        END IF;
        v_environment := (leasehold_internal.find_environment(v_company, set_limit.environment)).id;
    END IF;
    IF set_limit.provider IS NOT NULL THEN
        PERFORM leasehold_internal.require_provider(set_limit.provider);
    END IF;

    IF set_limit.value IS NULL THEN
        DELETE FROM leasehold.limits AS l
         WHERE l.company_id = v_company AND l.name = set_limit.name AND l.environment_id = v_environment
           AND l.provider = COALESCE(set_limit.provider, '');
    ELSE
        INSERT INTO leasehold.limits (company_id, name, environment_id, provider, value)
        VALUES (v_company, set_limit.name, v_environment, COALESCE(set_limit.provider, ''), set_limit.value)
        ON CONFLICT (company_id, name, environment_id, provider) DO UPDATE
           SET value = excluded.value, updated_at = pg_catalog.now();
    END IF;
    -- leases that wait may go on, or find out that they must wait
    PERFORM leasehold_internal.announce_places(v_company);
    PERFORM leasehold_internal.record(v_company, 'limit.changed', 'limit', set_limit.name,
        pg_catalog.jsonb_build_object('value', set_limit.value, 'environment', set_limit.environment,
                                      'provider', set_limit.provider));
END
$$;

COMMENT ON COLUMN leasehold_internal.calls.slot IS
    'op: a call about a lease, a stray or a plugin; sweep: of an environment; command: it is carried out; cancel: and ended before its time; timer, run_timer: the deadline of a lease or run';

-- What a request must know of its environment.
CREATE OR REPLACE VIEW leasehold_internal.environment_facts AS
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

CREATE OR REPLACE FUNCTION leasehold_internal.request_lease(
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

-- Ends leases: the one way from "in use" to "over", for one lease or thousands.
--
-- A request whose call was never sent, or is known to have got nothing, is over
-- at once.  The others become releasing; the call that is out, or the one queued
-- here, carries it on.  Leases that are over or ending are left alone, so
-- ending twice is ending once; only what is being parked can still be deleted.
-- A NULL disposition means what the policy says.
CREATE OR REPLACE FUNCTION leasehold_internal.end_leases(
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

-- 33_commands.sql: what runs in leases, and its output.
--
-- A command is carried out at most once: it is handed to the provider after the
-- commit that says so, and what is known to have begun is never begun again.
-- What it reads and its environment are kept for the worker alone, and only until
-- the worker has taken them.
--
-- Lock order: lease, commands by id, calls, audit.

CREATE TABLE leasehold.commands (
    company_id          uuid NOT NULL,
    id                  uuid NOT NULL,
    lease_id            uuid NOT NULL,
    generation          integer NOT NULL,
    provider            leasehold.object_key NOT NULL,
    agent_id            uuid,
    issue_id            uuid,
    run_id              uuid,
    argv                text[],
    shell               text,
    cwd                 text,
    timeout             interval,
    status              leasehold.command_status NOT NULL DEFAULT 'queued',
    outcome             leasehold.command_outcome,
    exit_code           integer,
    signal              text,
    failure_code        text,
    failure_reason      text,
    stdout_bytes        bigint NOT NULL DEFAULT 0,
    stderr_bytes        bigint NOT NULL DEFAULT 0,
    output_truncated    boolean NOT NULL DEFAULT false,
    requested_at        timestamptz NOT NULL DEFAULT pg_catalog.now(),
    started_at          timestamptz,
    finished_at         timestamptz,
    cancel_requested_at timestamptz,
    cancel_reason       text,
    output_removed_at   timestamptz,
    requested_by        name NOT NULL DEFAULT leasehold.acting_role(),
    PRIMARY KEY (company_id, id),
    FOREIGN KEY (company_id, lease_id) REFERENCES leasehold.leases ON DELETE CASCADE,
    CHECK (pg_catalog.num_nonnulls(argv, shell) = 1),
    CHECK (CASE status WHEN 'finished' THEN pg_catalog.num_nonnulls(outcome, finished_at) = 2
                       ELSE pg_catalog.num_nonnulls(outcome, finished_at, exit_code, signal) = 0 END),
    CHECK (status <> 'running' OR started_at IS NOT NULL)
) WITH (fillfactor = 80);

COMMENT ON TABLE leasehold.commands IS 'Commands that run in leases; from level user on';

COMMENT ON COLUMN leasehold.commands.generation IS 'The generation of the lease that the command is for';

COMMENT ON COLUMN leasehold.commands.shell IS 'A script for the shell of the place it runs in, instead of argv';

COMMENT ON COLUMN leasehold.commands.cwd IS 'Working directory; one that is not absolute is below the lease''s own';

COMMENT ON COLUMN leasehold.commands.timeout IS 'How long it may run; NULL: as long as its lease lives';

COMMENT ON COLUMN leasehold.commands.started_at IS 'When it was handed to the provider';

COMMENT ON COLUMN leasehold.commands.stdout_bytes IS 'What it wrote, whether kept or not';

COMMENT ON COLUMN leasehold.commands.stderr_bytes IS 'What it wrote, whether kept or not';

COMMENT ON COLUMN leasehold.commands.output_truncated IS 'It wrote more than is kept';

COMMENT ON COLUMN leasehold.commands.output_removed_at IS 'When its output was removed for age';

CREATE INDEX commands_live ON leasehold.commands (company_id, lease_id) WHERE status <> 'finished';

CREATE INDEX commands_by_lease ON leasehold.commands (company_id, lease_id);

CREATE INDEX commands_with_output ON leasehold.commands (finished_at) WHERE status = 'finished' AND output_removed_at IS NULL;

SELECT leasehold_internal.protect('leasehold.commands', 'user');

CREATE TABLE leasehold.command_output (
    company_id uuid NOT NULL,
    command_id uuid NOT NULL,
    seq        bigint NOT NULL,
    stream     leasehold.output_stream NOT NULL,
    at         timestamptz NOT NULL,
    data       bytea NOT NULL,
    PRIMARY KEY (company_id, command_id, seq),
    FOREIGN KEY (company_id, command_id) REFERENCES leasehold.commands ON DELETE CASCADE
);

-- compressing it would cost more than writing it
ALTER TABLE leasehold.command_output ALTER COLUMN data SET STORAGE EXTERNAL;

COMMENT ON TABLE leasehold.command_output IS
    'What commands wrote, in pieces that end with whole characters; see leasehold.read_output()';

COMMENT ON COLUMN leasehold.command_output.seq IS 'Counts the pieces of a command from 1 on, whatever their stream';

COMMENT ON COLUMN leasehold.command_output.at IS 'When the first of it came';

SELECT leasehold_internal.protect('leasehold.command_output', 'user');

-- Nobody reads these: they are deleted when a worker takes them.
CREATE TABLE leasehold_internal.command_inputs (
    company_id uuid NOT NULL,
    command_id uuid NOT NULL,
    stdin      text,
    env        jsonb,
    PRIMARY KEY (company_id, command_id),
    FOREIGN KEY (company_id, command_id) REFERENCES leasehold.commands ON DELETE CASCADE
);

COMMENT ON TABLE leasehold_internal.command_inputs IS
    'What queued commands will read, and their environment; not dumped';

SELECT leasehold_internal.protect('leasehold_internal.command_inputs', 'user');

CREATE FUNCTION leasehold_internal.check_command_change() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.company_id, NEW.id, NEW.lease_id, NEW.generation) IS DISTINCT FROM (OLD.company_id, OLD.id, OLD.lease_id, OLD.generation) THEN
        PERFORM leasehold_internal.refuse('illegal_transition', 'what identifies a command cannot be changed');
    ELSIF OLD.status = 'finished' THEN
        PERFORM leasehold_internal.refuse('illegal_transition', pg_catalog.format('command %s has finished', OLD.id));
    END IF;
    RETURN NEW;
END
$$;

COMMENT ON FUNCTION leasehold_internal.check_command_change() IS 'Refuses to change a command that has finished';

CREATE TRIGGER check_change BEFORE UPDATE OF company_id, id, lease_id, generation, status, outcome, exit_code, signal
    ON leasehold.commands FOR EACH ROW EXECUTE FUNCTION leasehold_internal.check_command_change();

CREATE FUNCTION leasehold_internal.check_argv(argv text[], shell text) RETURNS void
    LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF pg_catalog.num_nonnulls(argv, shell) <> 1 THEN
        PERFORM leasehold_internal.refuse('argument_invalid', 'one of the arguments "argv" and "shell" is needed',
            'argv => ARRAY[''program'', ''argument''] runs a program, shell => ''...'' a script.');
    ELSIF pg_catalog.octet_length(shell) > 100000 THEN
        PERFORM leasehold_internal.refuse('argument_too_large', 'argument "shell" is too long',
            'The limit is 100000 bytes; longer scripts can be given as stdin.');
    ELSIF shell = '' OR pg_catalog.array_ndims(argv) <> 1 OR pg_catalog.cardinality(argv) = 0 OR argv[pg_catalog.array_lower(argv, 1)] = ''
          OR pg_catalog.array_position(argv, NULL) IS NOT NULL THEN
        PERFORM leasehold_internal.refuse('argument_invalid', 'there is no command to run',
            'argv is a list of a program and its arguments, without nulls.');
    ELSIF pg_catalog.cardinality(argv) > 4096
          OR (SELECT pg_catalog.max(pg_catalog.octet_length(a)) > 100000 OR pg_catalog.sum(pg_catalog.octet_length(a)) > 500000
                FROM pg_catalog.unnest(argv) AS a) THEN
        PERFORM leasehold_internal.refuse('argument_too_large', 'argument "argv" is too long',
            'The limits are 4096 arguments, 100000 bytes each and 500000 together.');
    END IF;
END
$$;

COMMENT ON FUNCTION leasehold_internal.check_argv(text[], text) IS 'Refuses what is not a command';

CREATE FUNCTION leasehold_internal.check_command(
        argv text[] DEFAULT NULL, shell text DEFAULT NULL, cwd text DEFAULT NULL, env jsonb DEFAULT NULL,
        stdin text DEFAULT NULL, timeout interval DEFAULT NULL)
    RETURNS void LANGUAGE plpgsql STABLE AS $$
BEGIN
    PERFORM leasehold_internal.check_argv(argv, shell);
    PERFORM leasehold_internal.check_text('cwd', cwd, 4000);
    PERFORM leasehold_internal.check_env('env', env);
    PERFORM leasehold_internal.check_interval('timeout', timeout, '0.1 seconds', '365 days');
    IF cwd = '' THEN
        PERFORM leasehold_internal.refuse('argument_invalid', 'argument "cwd" must not be empty');
    ELSIF pg_catalog.octet_length(stdin) > 1000000 THEN
        PERFORM leasehold_internal.refuse('argument_too_large', 'argument "stdin" is too large', 'The limit is 1000000 bytes.');
    ELSIF EXISTS (SELECT FROM pg_catalog.jsonb_each(env) AS e WHERE pg_catalog.jsonb_typeof(e.value) <> 'string') THEN
        PERFORM leasehold_internal.refuse('argument_invalid', 'argument "env" holds a reference to a secret',
            'Commands take values only.');
    END IF;
END
$$;

SELECT leasehold_internal.publish('leasehold_internal.check_command', 'instant',
    'raises the error that start_command() would raise for these arguments', 'leasehold_app');

CREATE FUNCTION leasehold_internal.start_command(
        lease_id uuid, argv text[] DEFAULT NULL, shell text DEFAULT NULL, cwd text DEFAULT NULL,
        env jsonb DEFAULT NULL, stdin text DEFAULT NULL, timeout interval DEFAULT NULL, generation integer DEFAULT NULL,
        command_id uuid DEFAULT NULL, idempotency_key text DEFAULT NULL, company text DEFAULT NULL)
    RETURNS uuid LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(start_command.company, 'user');
    v_id      uuid := COALESCE(start_command.command_id, leasehold.new_id());
    v_earlier uuid;
    v_lease   leasehold.leases;
BEGIN
    PERFORM leasehold_internal.check_command(start_command.argv, start_command.shell, start_command.cwd, start_command.env,
        start_command.stdin, start_command.timeout);

    IF start_command.idempotency_key IS NOT NULL THEN
        v_earlier := leasehold_internal.claim_idempotency_key(v_company, 'start_command', start_command.idempotency_key,
            pg_catalog.jsonb_build_array(start_command.lease_id, start_command.argv, start_command.shell, start_command.cwd,
                start_command.env, start_command.stdin, pg_catalog.date_part('epoch', start_command.timeout),
                start_command.command_id), v_id);
        IF v_earlier IS NOT NULL THEN
            RETURN v_earlier;
        END IF;
    END IF;

    v_lease := leasehold_internal.lock_lease(v_company, start_command.lease_id, start_command.generation);
    IF v_lease.status <> 'active' THEN
        PERFORM leasehold_internal.refuse('wrong_state', pg_catalog.format('lease %s is not active', v_lease.id),
            CASE WHEN v_lease.status IN ('acquiring', 'resuming') THEN 'Wait for it with wait_for_lease().'
                 ELSE 'Request a new one.' END,
            pg_catalog.jsonb_build_object('status', v_lease.status));
    END IF;
    PERFORM leasehold_internal.require_execution(v_lease.provider);

    INSERT INTO leasehold.commands AS c
           (company_id, id, lease_id, generation, provider, agent_id, issue_id, run_id, argv, shell, cwd, timeout)
    VALUES (v_company, v_id, v_lease.id, v_lease.generation, v_lease.provider, v_lease.agent_id, v_lease.issue_id, v_lease.run_id,
            start_command.argv, start_command.shell, start_command.cwd, start_command.timeout)
    ON CONFLICT (company_id, id) DO NOTHING;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('already_exists', pg_catalog.format('command %s already exists', v_id));
    END IF;
    INSERT INTO leasehold_internal.command_inputs (company_id, command_id, stdin, env)
    SELECT v_company, v_id, start_command.stdin, start_command.env
     WHERE pg_catalog.num_nonnulls(start_command.stdin, start_command.env) > 0;
    -- a lease in which something begins is in use
    UPDATE leasehold.leases AS l SET last_used_at = pg_catalog.clock_timestamp()
     WHERE l.company_id = v_company AND l.id = v_lease.id;
    INSERT INTO leasehold_internal.calls (company_id, subject_id, slot, operation, provider, shard, generation)
    VALUES (v_company, v_id, 'command', 'execute', v_lease.provider, leasehold_internal.shard_of(v_company), v_lease.generation);
    PERFORM leasehold_internal.record(v_company, 'environment.command_requested', 'command', v_id::text,
        pg_catalog.jsonb_build_object('leaseId', v_lease.id, 'provider', v_lease.provider,
            'program', COALESCE(pg_catalog.left(start_command.argv[pg_catalog.array_lower(start_command.argv, 1)], 200), 'shell')),
        v_lease.agent_id, v_lease.issue_id, v_lease.run_id);
    PERFORM leasehold_internal.warn_if_unserved();
    RETURN v_id;
END
$$;

SELECT leasehold_internal.publish('leasehold_internal.start_command', 'instant',
    'has a program or a shell script run in an active lease and returns the command''s id', 'leasehold_app');

CREATE FUNCTION leasehold_internal.require_execution(provider text) RETURNS void
    LANGUAGE plpgsql STABLE AS $$
BEGIN
    PERFORM leasehold_internal.refuse('provider_unusable', pg_catalog.format('provider "%s" cannot run commands', p.key),
        'Its plugin has no environmentExecute.')
       FROM leasehold.providers AS p JOIN leasehold.plugins AS g ON g.key = p.plugin_key
      WHERE p.key = require_execution.provider
        AND g.supported_methods <> '{}' AND 'environmentExecute' <> ALL (g.supported_methods);
END
$$;

COMMENT ON FUNCTION leasehold_internal.require_execution(text) IS 'Refuses a provider that cannot run commands';

CREATE FUNCTION leasehold_internal.refuse_unknown_command(command_id uuid) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM leasehold_internal.refuse('command_not_found', pg_catalog.format('command %s does not exist', command_id),
        'It may be another company''s, its start may have been rolled back, or it ended long ago and was removed.');
END
$$;

COMMENT ON FUNCTION leasehold_internal.refuse_unknown_command(uuid) IS 'The error for a command that is not there';

-- Ends commands before their time, of whatever companies: those that no worker
-- has taken are over at once, of the others the workers are told.  Those that are
-- over, or about to be, are left alone.
CREATE FUNCTION leasehold_internal.cancel_commands(company_ids uuid[], command_ids uuid[], reason text) RETURNS integer
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_count integer;
BEGIN
    -- first the locks, then, in a later snapshot, the rows
    PERFORM FROM (SELECT * FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(command_ids)) AS k (company_id, id)
                   ORDER BY 1, 2) AS w
     CROSS JOIN LATERAL (SELECT x.id FROM leasehold.commands AS x
                          WHERE x.company_id = w.company_id AND x.id = w.id FOR NO KEY UPDATE) AS c;
    WITH target AS (
        SELECT c.* FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(command_ids)) AS w (company_id, id)
         CROSS JOIN LATERAL (SELECT * FROM leasehold.commands AS x
                              WHERE x.company_id = w.company_id AND x.id = w.id OFFSET 0) AS c
         WHERE c.status <> 'finished'
           -- one of which the provider could not be told is told again
           AND (c.cancel_requested_at IS NULL OR NOT EXISTS (
                    SELECT FROM leasehold_internal.calls AS x
                     WHERE x.company_id = c.company_id AND x.subject_id = c.id AND x.slot = 'cancel'))
    ), never_sent AS (
        DELETE FROM leasehold_internal.calls AS q
         USING target AS t
         WHERE q.company_id = t.company_id AND q.subject_id = t.id AND q.slot = 'command' AND q.state <> 'started'
        RETURNING q.company_id, q.subject_id
    ), command AS (
        UPDATE leasehold.commands AS c
           SET cancel_requested_at = COALESCE(t.cancel_requested_at, pg_catalog.clock_timestamp()),
               cancel_reason = COALESCE(t.cancel_reason, cancel_commands.reason),
               status = CASE WHEN n.subject_id IS NULL THEN c.status ELSE 'finished' END,
               outcome = CASE WHEN n.subject_id IS NOT NULL THEN 'cancelled' END,
               finished_at = CASE WHEN n.subject_id IS NOT NULL THEN pg_catalog.clock_timestamp() END
          FROM target AS t LEFT JOIN never_sent AS n ON n.company_id = t.company_id AND n.subject_id = t.id
         WHERE c.company_id = t.company_id AND c.id = t.id
        RETURNING c.*
    ), input AS (
        DELETE FROM leasehold_internal.command_inputs AS i
         USING never_sent AS n WHERE i.company_id = n.company_id AND i.command_id = n.subject_id
    ), call AS (
        INSERT INTO leasehold_internal.calls (company_id, subject_id, slot, operation, provider, shard, generation)
        SELECT c.company_id, c.id, 'cancel', 'cancel_command', c.provider, leasehold_internal.shard_of(c.company_id), c.generation
          FROM command AS c WHERE c.status <> 'finished'
        ON CONFLICT DO NOTHING
    ), event AS (
        INSERT INTO leasehold.audit_events (company_id, action, entity_type, entity_id, agent_id, issue_id, run_id, details)
        SELECT c.company_id,
               CASE c.status WHEN 'finished' THEN 'environment.command_finished' ELSE 'environment.command_cancel_requested' END,
               'command', c.id::text, c.agent_id, c.issue_id, c.run_id,
               pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object('leaseId', c.lease_id, 'provider', c.provider,
                   'outcome', c.outcome, 'reason', c.cancel_reason))
          FROM command AS c
    )
    SELECT pg_catalog.count(*) INTO v_count FROM command;
    RETURN v_count;
END
$$;

COMMENT ON FUNCTION leasehold_internal.cancel_commands(uuid[], uuid[], text) IS
    'Ends commands before their time, or has the workers do it; returns how many';

CREATE FUNCTION leasehold_internal.may_have_commands(status leasehold.lease_status) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN status IN ('active', 'releasing', 'pending_cleanup');

COMMENT ON FUNCTION leasehold_internal.may_have_commands(leasehold.lease_status) IS
    'Whether something may run in a lease of this status, and its end be seen';

-- With a lease its commands end.  Its resource is not removed at once then: they
-- get a moment, so that the rest of their output and their end are seen.
CREATE FUNCTION leasehold_internal.end_commands(company_ids uuid[], lease_ids uuid[]) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_companies uuid[];
    v_commands  uuid[];
BEGIN
    SELECT pg_catalog.array_agg(c.company_id), pg_catalog.array_agg(c.id) INTO v_companies, v_commands
      FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(lease_ids)) AS w (company_id, id)
      JOIN leasehold.commands AS c ON c.company_id = w.company_id AND c.lease_id = w.id
     WHERE c.status <> 'finished';
    IF v_commands IS NULL THEN
        RETURN;
    END IF;
    PERFORM leasehold_internal.cancel_commands(v_companies, v_commands, 'the lease ended');
    UPDATE leasehold_internal.calls AS q SET due_at = GREATEST(q.due_at, pg_catalog.clock_timestamp() + interval '5 seconds')
      FROM (SELECT DISTINCT c.company_id, c.lease_id
              FROM ROWS FROM (pg_catalog.unnest(v_companies), pg_catalog.unnest(v_commands)) AS w (company_id, id)
              JOIN leasehold.commands AS c ON c.company_id = w.company_id AND c.id = w.id
             WHERE c.status <> 'finished') AS t
     WHERE q.company_id = t.company_id AND q.subject_id = t.lease_id AND q.slot = 'op' AND q.state = 'queued';
END
$$;

COMMENT ON FUNCTION leasehold_internal.end_commands(uuid[], uuid[]) IS 'Cancels the commands of leases that end';

CREATE FUNCTION leasehold_internal.cancel_command(command_id uuid, reason text DEFAULT NULL, company text DEFAULT NULL)
    RETURNS text LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(cancel_command.company, 'user');
    v_lease   uuid;
BEGIN
    PERFORM leasehold_internal.check_text('reason', cancel_command.reason, 1000);
    SELECT c.lease_id INTO v_lease FROM leasehold.commands AS c WHERE c.company_id = v_company AND c.id = cancel_command.command_id;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse_unknown_command(cancel_command.command_id);
    END IF;
    -- what a worker has got the lock of it can write, with all that belongs to it
    PERFORM leasehold_internal.lock_lease(v_company, v_lease);
    PERFORM leasehold_internal.cancel_commands(ARRAY[v_company], ARRAY[cancel_command.command_id],
        COALESCE(cancel_command.reason, 'cancelled'));
    PERFORM leasehold_internal.warn_if_unserved();
    RETURN (SELECT c.status FROM leasehold.commands AS c WHERE c.company_id = v_company AND c.id = cancel_command.command_id);
END
$$;

SELECT leasehold_internal.publish('leasehold_internal.cancel_command', 'instant',
    'has a command ended and returns its status; one that is over stays as it is', 'leasehold_app');

CREATE FUNCTION leasehold_internal.command_kept_by(company_id uuid, command_id uuid, written_by xid) RETURNS xid
    LANGUAGE sql STABLE
    RETURN COALESCE((SELECT q.xmin FROM leasehold_internal.calls AS q
                      WHERE q.company_id = command_kept_by.company_id AND q.subject_id = command_kept_by.command_id
                        AND q.slot = 'command' AND q.state = 'queued'), written_by);

COMMENT ON FUNCTION leasehold_internal.command_kept_by(uuid, uuid, xid) IS
    'The transaction before whose end a command cannot go on: who wrote its call while it is queued, or itself';

CREATE FUNCTION leasehold_internal.command_state(
        command_id uuid, company text,
        OUT company_id uuid, OUT status text, OUT done boolean, OUT outcome text, OUT exit_code integer, OUT signal text,
        OUT output_truncated boolean, OUT failure_code text, OUT failure_reason text, OUT written_by xid)
    RETURNS record LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
BEGIN
    company_id := leasehold_internal.enter_company(command_state.company, 'user');
    SELECT c.status, c.status = 'finished', c.outcome, c.exit_code, c.signal, c.output_truncated, c.failure_code,
           c.failure_reason, leasehold_internal.command_kept_by(c.company_id, c.id, c.xmin)
      INTO status, done, outcome, exit_code, signal, output_truncated, failure_code, failure_reason, written_by
      FROM leasehold.commands AS c
     WHERE c.company_id = command_state.company_id AND c.id = command_state.command_id;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse_unknown_command(command_state.command_id);
    END IF;
END
$$;

COMMENT ON FUNCTION leasehold_internal.command_state(uuid, text) IS 'What wait_for_command() reads';

CREATE FUNCTION leasehold_internal.wait_for_command(
        command_id uuid, timeout interval DEFAULT '5 seconds', company text DEFAULT NULL,
        OUT status text, OUT done boolean, OUT outcome text, OUT exit_code integer, OUT signal text,
        OUT output_truncated boolean, OUT failure_code text, OUT failure_reason text)
    RETURNS record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_wait_for_command';

SELECT leasehold_internal.publish('leasehold_internal.wait_for_command', 'waits',
    'returns a command''s state once it has finished, or at the timeout with done = false', 'leasehold_app');

-- Text that anybody can be shown: what is no UTF-8, or no text at all, is replaced.
CREATE FUNCTION leasehold_internal.output_text(data bytea) RETURNS text
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'leasehold_output_text';

COMMENT ON FUNCTION leasehold_internal.output_text(bytea) IS
    'Output as text: what is not valid in it is replaced by U+FFFD';

CREATE FUNCTION leasehold_internal.output_state(
        command_id uuid, after bigint, company text, OUT company_id uuid, OUT status text, OUT done boolean,
        OUT written_by xid)
    RETURNS record LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
BEGIN
    company_id := leasehold_internal.enter_company(output_state.company, 'user');
    SELECT c.status, leasehold_internal.command_kept_by(c.company_id, c.id, c.xmin) INTO status, written_by
      FROM leasehold.commands AS c
     WHERE c.company_id = output_state.company_id AND c.id = output_state.command_id;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse_unknown_command(output_state.command_id);
    END IF;
    done := status = 'finished' OR EXISTS (
        SELECT FROM leasehold.command_output AS o
         WHERE o.company_id = output_state.company_id AND o.command_id = output_state.command_id AND o.seq > COALESCE(output_state.after, 0));
END
$$;

COMMENT ON FUNCTION leasehold_internal.output_state(uuid, bigint, text) IS 'What read_output() waits for';

CREATE FUNCTION leasehold_internal.output_rows(
        command_id uuid, after bigint, company text,
        OUT seq bigint, OUT stream text, OUT "text" text, OUT data bytea, OUT at timestamptz)
    RETURNS SETOF record LANGUAGE plpgsql STABLE ROWS 100 AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(output_rows.company, 'user');
    v_bytes   bigint := 0;
BEGIN
    FOR seq, stream, data, at IN
        SELECT o.seq, o.stream, o.data, o.at FROM leasehold.command_output AS o
         WHERE o.company_id = v_company AND o.command_id = output_rows.command_id AND o.seq > COALESCE(output_rows.after, 0)
         ORDER BY o.seq
    LOOP
        "text" := leasehold_internal.output_text(data);
        RETURN NEXT;
        -- the rest at the next call
        v_bytes := v_bytes + pg_catalog.octet_length(data);
        EXIT WHEN v_bytes >= 1048576;
    END LOOP;
END
$$;

COMMENT ON FUNCTION leasehold_internal.output_rows(uuid, bigint, text) IS 'What read_output() returns';

CREATE FUNCTION leasehold_internal.read_output(
        command_id uuid, after bigint DEFAULT 0, timeout interval DEFAULT '0 seconds', company text DEFAULT NULL,
        OUT seq bigint, OUT stream text, OUT "text" text, OUT data bytea, OUT at timestamptz)
    RETURNS SETOF record LANGUAGE c VOLATILE ROWS 100 AS 'MODULE_PATHNAME', 'leasehold_read_output';

SELECT leasehold_internal.publish('leasehold_internal.read_output', 'waits',
    'returns what a command has written since the piece numbered "after", about a megabyte at a time; with a timeout it waits for something to return or the command''s end',
    'leasehold_app');

-- 34_procedures.sql: procedures that wait and commit between their steps, and
-- what they are made of.
--
-- They run as the caller and with the caller's settings: a procedure that commits
-- can have neither another role nor settings of its own.  So every name in them is
-- qualified, types and operators included, and they call public functions only.
-- Where they stop, by an error or otherwise, attach_call() has seen to what is to
-- become of what they began.

-- What a CALL is to be attached to: refuses what is not the caller's company's.
-- A command gets a mark, which lasts where the session's own does not: a server
-- that crashes forgets who waited.
CREATE FUNCTION leasehold_internal.check_attachment(
        lease_id uuid, command_id uuid, company text, OUT company_id uuid, OUT generation integer)
    RETURNS record LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(check_attachment.company, 'user');
    v_lease   uuid;
BEGIN
    company_id := v_company;
    generation := 0;
    IF check_attachment.lease_id IS NOT NULL THEN
        SELECT l.generation INTO generation FROM leasehold.leases AS l
         WHERE l.company_id = v_company AND l.id = check_attachment.lease_id;
        IF NOT FOUND THEN
            PERFORM leasehold_internal.refuse_unknown_lease(check_attachment.lease_id);
        END IF;
    END IF;
    IF check_attachment.command_id IS NOT NULL THEN
        SELECT c.lease_id INTO v_lease FROM leasehold.commands AS c
         WHERE c.company_id = v_company AND c.id = check_attachment.command_id;
        IF NOT FOUND THEN
            PERFORM leasehold_internal.refuse_unknown_command(check_attachment.command_id);
        END IF;
        PERFORM leasehold_internal.lock_lease(v_company, v_lease);
        UPDATE leasehold_internal.calls AS q SET payload = '{"attached": true}'
         WHERE q.company_id = v_company AND q.subject_id = check_attachment.command_id AND q.slot = 'command'
           AND q.state = 'queued';
    END IF;
END
$$;

COMMENT ON FUNCTION leasehold_internal.check_attachment(uuid, uuid, text) IS
    'Refuses what a CALL cannot be attached to, and marks the command; returns the company and the lease''s generation';

-- The ids are those that a CALL of this session was attached to.
CREATE FUNCTION leasehold_internal.unmark_attached(company_id uuid, command_id uuid) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_lease uuid;
BEGIN
    SELECT c.lease_id INTO v_lease FROM leasehold.commands AS c
     WHERE c.company_id = unmark_attached.company_id AND c.id = unmark_attached.command_id AND c.status = 'queued';
    IF FOUND THEN
        PERFORM leasehold_internal.lock_lease(unmark_attached.company_id, v_lease);
        UPDATE leasehold_internal.calls AS q SET payload = NULL
         WHERE q.company_id = unmark_attached.company_id AND q.subject_id = unmark_attached.command_id
           AND q.slot = 'command' AND q.state = 'queued';
    END IF;
END
$$;

COMMENT ON FUNCTION leasehold_internal.unmark_attached(uuid, uuid) IS 'Takes the mark of check_attachment() from a command that is still queued';

CREATE FUNCTION leasehold_internal.attach_call(
        lease_id uuid DEFAULT NULL, command_id uuid DEFAULT NULL, company text DEFAULT NULL)
    RETURNS void LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_attach_call';

SELECT leasehold_internal.publish('leasehold_internal.attach_call', 'instant',
    'called by a procedure: if the CALL ends before detach_call(), the lease is ended and the command cancelled; refuses where the procedure could not commit',
    'leasehold_app');

CREATE FUNCTION leasehold_internal.detach_call(lease_id uuid DEFAULT NULL, command_id uuid DEFAULT NULL) RETURNS void
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_detach_call';

SELECT leasehold_internal.publish('leasehold_internal.detach_call', 'instant',
    'called by a procedure that has seen the end of these, or of all: undoes attach_call()', 'leasehold_app');

CREATE FUNCTION leasehold_internal.attached_calls(
        OUT pid integer, OUT state text, OUT company_id uuid, OUT lease_id uuid, OUT command_id uuid)
    RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_attached_calls';

COMMENT ON FUNCTION leasehold_internal.attached_calls() IS
    'What sessions of this database are attached to (held), or have left to the workers (left)';

CREATE FUNCTION leasehold_internal.follow_lease(
        lease_id uuid, timeout interval DEFAULT '5 seconds', company text DEFAULT NULL,
        OUT status text, OUT done boolean, OUT generation integer, OUT provider_lease_id text,
        OUT expires_at timestamptz, OUT waiting_for text, OUT failure_code text, OUT failure_reason text)
    RETURNS record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_follow_lease';

SELECT leasehold_internal.publish('leasehold_internal.follow_lease', 'waits',
    'does what wait_for_lease() does; at the timeout an INFO message tells what is waited for', 'leasehold_app');

CREATE FUNCTION leasehold_internal.follow_command(
        command_id uuid, timeout interval DEFAULT '5 seconds', company text DEFAULT NULL,
        OUT status text, OUT done boolean, OUT outcome text, OUT exit_code integer, OUT signal text,
        OUT output_truncated boolean, OUT failure_code text, OUT failure_reason text)
    RETURNS record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_follow_command';

SELECT leasehold_internal.publish('leasehold_internal.follow_command', 'waits',
    'does what wait_for_command() does, and shows what the command writes as INFO messages, line by line; the next call of the same procedure goes on where this one stopped',
    'leasehold_app');

CREATE PROCEDURE leasehold.acquire_lease(
        environment text, INOUT lease_id uuid DEFAULT NULL, INOUT status text DEFAULT NULL,
        INOUT expires_at timestamptz DEFAULT NULL, INOUT generation integer DEFAULT NULL,
        agent_id uuid DEFAULT NULL, issue_id uuid DEFAULT NULL, run_id uuid DEFAULT NULL, execution_workspace_id uuid DEFAULT NULL, ttl interval DEFAULT NULL,
        idle_timeout interval DEFAULT NULL, policy text DEFAULT NULL, on_limit text DEFAULT NULL,
        acquire_timeout interval DEFAULT NULL, company text DEFAULT NULL)
    LANGUAGE plpgsql AS $$
DECLARE
    v_lease pg_catalog.record;
BEGIN
    PERFORM leasehold.attach_call(company => acquire_lease.company);
    lease_id := leasehold.request_lease(acquire_lease.environment, agent_id => acquire_lease.agent_id,
        issue_id => acquire_lease.issue_id, run_id => acquire_lease.run_id,
        execution_workspace_id => acquire_lease.execution_workspace_id, ttl => acquire_lease.ttl,
        idle_timeout => acquire_lease.idle_timeout, policy => acquire_lease.policy, on_limit => acquire_lease.on_limit,
        acquire_timeout => acquire_lease.acquire_timeout, lease_id => acquire_lease.lease_id,
        company => acquire_lease.company);
    PERFORM leasehold.attach_call(lease_id => acquire_lease.lease_id, company => acquire_lease.company);
    LOOP
        COMMIT;
        SELECT f.* INTO v_lease FROM leasehold.follow_lease(acquire_lease.lease_id, company => acquire_lease.company) AS f;
        EXIT WHEN v_lease.done;
    END LOOP;
    PERFORM leasehold.detach_call();
    IF v_lease.status OPERATOR(pg_catalog.<>) 'active' THEN
        RAISE EXCEPTION USING ERRCODE = 'PT503',
            MESSAGE = pg_catalog.concat('lease ', lease_id, ' could not be acquired: ',
                COALESCE(v_lease.failure_reason, v_lease.status)),
            DETAIL = pg_catalog.jsonb_build_object('code', 'lease_acquire_failed', 'lease_id', lease_id,
                'status', v_lease.status, 'failure_code', v_lease.failure_code)::pg_catalog.text;
    END IF;
    status := v_lease.status;
    expires_at := v_lease.expires_at;
    generation := v_lease.generation;
END
$$;

SELECT leasehold_internal.publish_procedure('leasehold.acquire_lease',
    'gets a lease: requests it, waits until it is active, and raises an error if it fails', 'leasehold_app');

CREATE PROCEDURE leasehold.run(
        company text, environment text, command text DEFAULT NULL,
        INOUT exit_code integer DEFAULT NULL, INOUT lease_id uuid DEFAULT NULL, INOUT outcome text DEFAULT NULL,
        argv text[] DEFAULT NULL, cwd text DEFAULT NULL, env jsonb DEFAULT NULL, stdin text DEFAULT NULL,
        timeout interval DEFAULT NULL, ttl interval DEFAULT NULL, keep boolean DEFAULT false,
        fail_on_error boolean DEFAULT false, agent_id uuid DEFAULT NULL, issue_id uuid DEFAULT NULL,
        run_id uuid DEFAULT NULL)
    LANGUAGE plpgsql AS $$
DECLARE
    v_own        boolean := lease_id IS NULL;
    v_keep       boolean := COALESCE(keep, false);
    -- short, and renewed: it goes soon if this session is not there to end it
    v_ttl        interval := COALESCE(ttl, CASE WHEN v_keep THEN interval '1 hour' ELSE interval '30 seconds' END);
    v_turn       interval := interval '5 seconds';
    v_generation pg_catalog.int4;
    v_expires    pg_catalog.timestamptz;
    v_renew_at   pg_catalog.timestamptz;
    v_status     pg_catalog.text;
    v_command    pg_catalog.uuid;
    v_state      pg_catalog.record;
BEGIN
    PERFORM leasehold.attach_call(company => run.company);
    IF pg_catalog.num_nonnulls(command, argv) OPERATOR(pg_catalog.<>) 1 THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'one of the arguments "command" and "argv" is needed',
            HINT = 'command => ''...'' is a script for the shell, argv => ARRAY[''program'', ''argument''] a program.',
            DETAIL = '{"code": "argument_invalid"}';
    END IF;
    PERFORM leasehold.check_command(run.argv, run.command, run.cwd, run.env, run.stdin, run.timeout);
    IF v_own THEN
        -- stays attached, as this CALL is
        CALL leasehold.acquire_lease(run.environment, lease_id, v_status, v_expires, v_generation,
            agent_id => run.agent_id, issue_id => run.issue_id, run_id => run.run_id, ttl => v_ttl, company => run.company);
        v_turn := LEAST(v_turn, v_ttl OPERATOR(pg_catalog./) 4);
        v_renew_at := pg_catalog.clock_timestamp()
            OPERATOR(pg_catalog.+) ((v_expires OPERATOR(pg_catalog.-) pg_catalog.clock_timestamp()) OPERATOR(pg_catalog./) 3);
    ELSIF environment IS NOT NULL THEN
        PERFORM leasehold.use_company(run.company);
        PERFORM FROM leasehold.leases AS l
           JOIN leasehold.environments AS e
             ON e.company_id OPERATOR(pg_catalog.=) l.company_id AND e.id OPERATOR(pg_catalog.=) l.environment_id
          WHERE l.id OPERATOR(pg_catalog.=) run.lease_id AND e.key OPERATOR(pg_catalog.<>) run.environment;
        IF FOUND THEN
            RAISE EXCEPTION USING ERRCODE = '22023',
                MESSAGE = pg_catalog.format('lease %s is in another environment', lease_id),
                HINT = 'The environment of a lease that is given can be null.', DETAIL = '{"code": "argument_invalid"}';
        END IF;
    END IF;

    v_command := leasehold.start_command(run.lease_id, argv => run.argv, shell => run.command, cwd => run.cwd,
        env => run.env, stdin => run.stdin, timeout => run.timeout, generation => v_generation, company => run.company);
    PERFORM leasehold.attach_call(command_id => v_command, company => run.company);
    IF v_own AND v_keep THEN
        PERFORM leasehold.detach_call(lease_id => run.lease_id);
    END IF;
    LOOP
        COMMIT;
        SELECT f.* INTO v_state FROM leasehold.follow_command(v_command, v_turn, run.company) AS f;
        IF v_own AND (v_state.done AND v_keep
                      OR NOT v_state.done AND pg_catalog.clock_timestamp() OPERATOR(pg_catalog.>=) v_renew_at) THEN
            BEGIN
                v_expires := leasehold.renew_lease(run.lease_id, v_ttl, generation => v_generation, company => run.company);
                v_renew_at := pg_catalog.clock_timestamp()
                    OPERATOR(pg_catalog.+) ((v_expires OPERATOR(pg_catalog.-) pg_catalog.clock_timestamp()) OPERATOR(pg_catalog./) 3);
            EXCEPTION WHEN SQLSTATE 'PT409' THEN
                -- one that has ended takes the command with it, which is seen soon
                v_renew_at := 'infinity';
            END;
        END IF;
        EXIT WHEN v_state.done;
    END LOOP;
    IF v_own AND NOT v_keep THEN
        BEGIN
            PERFORM leasehold.release_lease(run.lease_id, generation => v_generation, company => run.company);
        EXCEPTION WHEN SQLSTATE 'PT409' THEN
            -- it ended meanwhile, and its resource has another holder
            NULL;
        END;
    END IF;
    COMMIT;
    PERFORM leasehold.detach_call();

    exit_code := v_state.exit_code;
    outcome := v_state.outcome;
    IF fail_on_error AND NOT COALESCE(exit_code OPERATOR(pg_catalog.=) 0, false) THEN
        RAISE EXCEPTION USING ERRCODE = 'PT422',
            MESSAGE = CASE WHEN exit_code IS NOT NULL THEN pg_catalog.concat('the command exited with ', exit_code)
                           ELSE pg_catalog.concat('the command did not exit by itself: ', outcome) END,
            DETAIL = pg_catalog.jsonb_build_object('code', 'command_failed', 'command_id', v_command, 'lease_id', lease_id,
                'outcome', outcome, 'exit_code', exit_code, 'failure_code', v_state.failure_code)::pg_catalog.text;
    END IF;
END
$$;

SELECT leasehold_internal.publish_procedure('leasehold.run',
    'runs a command in a lease of its own, shows its output as it comes, and releases the lease; what is cancelled or lost in between ends with it',
    'leasehold_app');

CREATE PROCEDURE leasehold.execute(
        lease_id uuid, command text DEFAULT NULL,
        INOUT exit_code integer DEFAULT NULL, INOUT outcome text DEFAULT NULL,
        argv text[] DEFAULT NULL, cwd text DEFAULT NULL, env jsonb DEFAULT NULL, stdin text DEFAULT NULL,
        timeout interval DEFAULT NULL, fail_on_error boolean DEFAULT false, company text DEFAULT NULL)
    LANGUAGE plpgsql AS $$
BEGIN
    IF lease_id IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'argument "lease_id" must not be null',
            DETAIL = '{"code": "argument_required"}';
    END IF;
    CALL leasehold.run(execute.company, NULL, execute.command, exit_code, lease_id, outcome, argv => execute.argv,
        cwd => execute.cwd, env => execute.env, stdin => execute.stdin, timeout => execute.timeout,
        fail_on_error => execute.fail_on_error);
END
$$;

SELECT leasehold_internal.publish_procedure('leasehold.execute',
    'runs a command in an active lease and shows its output as it comes; a CALL that is cancelled or lost ends the command',
    'leasehold_app');

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

-- The time that a provider gets for its work and the time we wait for its
-- answer, in milliseconds: work_ms + 30 s <= rpc_ms, so that its side ends first.
-- A command takes as long as it is allowed, and if nothing is said, for ever.
CREATE OR REPLACE FUNCTION leasehold_internal.call_timeouts(kind text, config jsonb, default_ms integer)
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

-- The params of initialize.  Volatile: the call may be of a change of the
-- plugin that was committed after claim_calls() began, so it is read anew.
CREATE OR REPLACE FUNCTION leasehold_internal.initialize_params(plugin text, installation_id uuid) RETURNS jsonb
    LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN (SELECT pg_catalog.jsonb_build_object('manifest', g.manifest, 'config', '{}'::jsonb, 'apiVersion', 1,
                       'instanceInfo', pg_catalog.jsonb_build_object('instanceId', installation_id, 'hostVersion',
                           (SELECT x.extversion || '.0' FROM pg_catalog.pg_extension AS x WHERE x.extname = 'leasehold')))
              FROM leasehold.plugins AS g WHERE g.key = plugin);
END
$$;

-- Claims calls and returns what is to be done: a method with its params, or a
-- verdict that is reached without a call ("failed" or "unknown", with code and
-- message), which the worker hands to complete_calls() like an answer.
CREATE OR REPLACE FUNCTION leasehold_internal.claim_calls(
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

-- Applies answers.  Returns for each what became of it: applied; locked (by a
-- user: hand it in again a little later); or stale (it is of an older
-- generation or epoch, and was ignored).  ended says that a place became free.
CREATE OR REPLACE FUNCTION leasehold_internal.complete_calls(
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

-- 42_deadlines.sql: deadlines that come by themselves.
--
-- Deadlines are lazy: a renewal or heartbeat changes only its own row.  When
-- the deadline's row is due, the lease or run is read; if it has more time, the
-- row is moved to the new deadline.

-- A lease in which a command runs is in use.
CREATE FUNCTION leasehold_internal.used_at(lease leasehold.leases) RETURNS timestamptz
    LANGUAGE sql VOLATILE AS $$
    SELECT CASE WHEN (lease).idle_timeout IS NOT NULL
                     AND EXISTS (SELECT FROM leasehold.commands AS c
                                  WHERE c.company_id = (lease).company_id AND c.lease_id = (lease).id AND c.status <> 'finished')
                THEN pg_catalog.clock_timestamp() ELSE (lease).last_used_at END
$$;

COMMENT ON FUNCTION leasehold_internal.used_at(leasehold.leases) IS 'When a lease was in use last; now, if a command runs in it';

CREATE OR REPLACE FUNCTION leasehold_internal.fire_deadlines(company_ids uuid[], subject_ids uuid[])
    RETURNS TABLE (company_id uuid, subject_id uuid) LANGUAGE plpgsql VOLATILE ROWS 100 AS $$
#variable_conflict use_column
DECLARE
    v_company uuid[];
    v_subject uuid[];
    v_over    record;
    v_places  boolean;
BEGIN
    -- a parked resource that has waited too long for a place asks once more, and is parked again
    UPDATE leasehold_internal.calls AS c SET state = 'queued', due_at = pg_catalog.clock_timestamp()
      FROM (SELECT l.company_id, l.id
              FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(subject_ids)) AS w (company_id, id)
             CROSS JOIN LATERAL (SELECT * FROM leasehold.leases AS x
                                  WHERE x.company_id = w.company_id AND x.id = w.id
                                    FOR NO KEY UPDATE SKIP LOCKED) AS l
             WHERE l.status = 'resuming' AND l.acquire_by <= pg_catalog.clock_timestamp()) AS o
     WHERE c.company_id = o.company_id AND c.subject_id = o.id AND c.slot = 'op' AND c.state = 'waiting';

    -- leases whose time is over, by reason; those that a user has locked come again
    FOR v_over IN
        SELECT s.reason, s.code, s.end_status, pg_catalog.array_agg(s.company_id) AS companies,
               pg_catalog.array_agg(s.id) AS ids
          FROM (SELECT l.company_id, l.id,
                       CASE WHEN l.status IN ('acquiring', 'resuming') THEN 'failed' ELSE 'expired' END AS end_status,
                       CASE WHEN l.status IN ('acquiring', 'resuming')
                                 AND l.waiting_for IN ('active_leases', 'lease_starts_per_minute', 'plugin')
                            THEN 'waited too long for ' || l.waiting_for
                            WHEN l.status IN ('acquiring', 'resuming') THEN 'no resource was got in time'
                                 || COALESCE((SELECT ': ' || c.last_error FROM leasehold_internal.calls AS c
                                               WHERE c.company_id = l.company_id AND c.subject_id = l.id AND c.slot = 'op'), '')
                            WHEN l.status = 'retained' THEN 'retention_over'
                            WHEN l.expires_at <= pg_catalog.clock_timestamp() OR leasehold_internal.used_at(l) + l.idle_timeout IS NULL
                            THEN 'lease_expired'
                            ELSE 'idle_timeout' END AS reason,
                       CASE WHEN l.status IN ('acquiring', 'resuming')
                            THEN CASE WHEN l.waiting_for IN ('active_leases', 'lease_starts_per_minute')
                                      THEN 'quota_exceeded' ELSE 'acquire_timeout' END END AS code
                  FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(subject_ids)) AS w (company_id, id)
                 CROSS JOIN LATERAL (SELECT * FROM leasehold.leases AS x
                                      WHERE x.company_id = w.company_id AND x.id = w.id
                                        FOR NO KEY UPDATE SKIP LOCKED) AS l
                 -- everything ends: what has no deadline, which takes somebody's hand, is over
                 WHERE COALESCE(leasehold_internal.lease_deadline(l.status, l.expires_at, leasehold_internal.used_at(l), l.idle_timeout)
                                <= pg_catalog.clock_timestamp(), l.status IN ('active', 'retained'))
                    OR l.status IN ('acquiring', 'resuming') AND l.acquire_by <= pg_catalog.clock_timestamp()
                       AND NOT (l.status = 'resuming' AND l.waiting_for IN ('active_leases', 'lease_starts_per_minute'))
                       AND EXISTS (SELECT FROM leasehold_internal.calls AS c
                                    WHERE c.company_id = l.company_id AND c.subject_id = l.id AND c.slot = 'op'
                                      AND c.state IN ('waiting', 'queued') AND NOT c.look_up)) AS s
         GROUP BY 1, 2, 3
    LOOP
        PERFORM leasehold_internal.end_leases(v_over.companies, v_over.ids, v_over.end_status, 'delete',
            v_over.reason, v_over.code);
        v_company := v_company || v_over.companies;
        v_subject := v_subject || v_over.ids;
    END LOOP;

    PERFORM leasehold_internal.lose_runs(company_ids, subject_ids);

    -- what is left is moved to its deadline, or is about something that is over
    WITH due AS (
        SELECT c.company_id, c.subject_id, c.slot, c.operation,
               CASE c.operation WHEN 'lease_deadline' THEN
                    (SELECT CASE WHEN l.status IN ('active', 'retained')
                                 THEN leasehold_internal.lease_deadline(l.status, l.expires_at, leasehold_internal.used_at(l), l.idle_timeout)
                                 WHEN l.status IN ('acquiring', 'resuming') THEN GREATEST(l.acquire_by, pg_catalog.clock_timestamp() + interval '1 second') END
                       FROM leasehold.leases AS l WHERE l.company_id = c.company_id AND l.id = c.subject_id)
               WHEN 'run_deadline' THEN
                    (SELECT r.heartbeat_at + r.heartbeat_timeout FROM leasehold_internal.runs AS r
                      WHERE r.company_id = c.company_id AND r.id = c.subject_id AND r.status = 'running')
               END AS deadline
          FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(subject_ids)) AS w (company_id, subject_id)
         CROSS JOIN LATERAL (SELECT * FROM leasehold_internal.calls AS x
                              WHERE x.company_id = w.company_id AND x.subject_id = w.subject_id
                                AND x.slot IN ('timer', 'run_timer')
                                FOR UPDATE SKIP LOCKED) AS c
    ), moved AS (
        UPDATE leasehold_internal.calls AS c
           SET due_at = GREATEST(d.deadline, pg_catalog.clock_timestamp() + interval '100 milliseconds')
          FROM due AS d
         WHERE c.company_id = d.company_id AND c.subject_id = d.subject_id AND c.slot = d.slot
           AND d.deadline IS NOT NULL
    ), gone AS (
        DELETE FROM leasehold_internal.calls AS c
         USING due AS d
         WHERE c.company_id = d.company_id AND c.subject_id = d.subject_id AND c.slot = d.slot AND d.deadline IS NULL
        RETURNING c.operation
    )
    SELECT pg_catalog.bool_or(g.operation = 'places') INTO v_places FROM gone AS g;
    IF v_places THEN
        PERFORM leasehold_internal.give_places(limits_changed => true);
    END IF;

    RETURN QUERY SELECT * FROM ROWS FROM (pg_catalog.unnest(v_company), pg_catalog.unnest(v_subject));
END
$$;

-- Requests whose time is over but which nobody even claims, since the circuit
-- breaker of their provider is open or all its places are taken: for
-- fire_deadlines().
CREATE OR REPLACE FUNCTION leasehold_internal.overdue_requests(part integer, parts integer, count integer)
    RETURNS TABLE (company_id uuid, subject_id uuid) LANGUAGE sql VOLATILE ROWS 100 AS $$
    SELECT c.company_id, c.subject_id
      FROM leasehold_internal.calls AS c
     CROSS JOIN LATERAL (SELECT x.acquire_by FROM leasehold.leases AS x
                          WHERE x.company_id = c.company_id AND x.id = c.subject_id OFFSET 0) AS l
     WHERE c.state = 'queued' AND c.due_at <= pg_catalog.clock_timestamp() - interval '1 second'
       AND c.shard % parts = part AND c.operation IN ('acquire', 'resume', 'realize') AND NOT c.look_up
       AND l.acquire_by <= pg_catalog.clock_timestamp()
     LIMIT count
$$;

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

CREATE OR REPLACE FUNCTION leasehold_internal.take_over_calls(
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

-- Sweeps, and the removal of what they found, are tried once more after a day:
-- nobody else lets them out.  They keep their count of crashes, so that one more
-- sets them aside again; an answer forgives them.
CREATE OR REPLACE FUNCTION leasehold_internal.revive_quarantined(shards smallint[]) RETURNS void
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
CREATE OR REPLACE FUNCTION leasehold_internal.rebuild_calls(shards smallint[]) RETURNS integer
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

-- 44_reconcile.sql: the sweep that compares what a provider holds under our
-- label with the leases, and removes what no lease claims.
--
-- One row of the dispatch table per environment whose provider can list.  After
-- a takeover the first sweep is dry: it only reports, until approve_sweep().

-- Environments that are to be swept, and how.
CREATE OR REPLACE FUNCTION leasehold_internal.swept_environments(shards smallint[])
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

-- 46_left_calls.sql: what becomes of commands and leases when the CALL that waited
-- for them has ended in its midst.  See extension/attachment.c and 34_procedures.sql.

-- Ends what sessions have left: a lease, a command, or both for each (null where
-- there is none).  A lease of another generation has another holder by now, and
-- is not ended.  Returns for each whether it is done; it is not, if a user has
-- something of it locked.
CREATE FUNCTION leasehold_internal.end_left_calls(
        company_ids uuid[], lease_ids uuid[], generations integer[], command_ids uuid[])
    RETURNS boolean[] LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_done boolean[];
BEGIN
    SELECT pg_catalog.array_agg((t.id IS NULL OR l.id IS NOT NULL) AND (u.id IS NULL OR c.id IS NOT NULL) ORDER BY w.nr)
      INTO v_done
      FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(lease_ids), pg_catalog.unnest(generations),
                     pg_catalog.unnest(command_ids)) WITH ORDINALITY AS w (company_id, lease_id, generation, command_id, nr)
      LEFT JOIN LATERAL (SELECT x.id FROM leasehold.leases AS x
                          WHERE x.company_id = w.company_id AND x.id = w.lease_id AND x.generation = w.generation
                         OFFSET 0) AS t ON true
      LEFT JOIN LATERAL (SELECT x.id FROM leasehold.leases AS x
                          WHERE x.company_id = w.company_id AND x.id = w.lease_id AND x.generation = w.generation
                            FOR NO KEY UPDATE SKIP LOCKED) AS l ON true
      LEFT JOIN LATERAL (SELECT x.id FROM leasehold.commands AS x
                          WHERE x.company_id = w.company_id AND x.id = w.command_id OFFSET 0) AS u ON true
      LEFT JOIN LATERAL (SELECT x.id FROM leasehold.commands AS x
                          WHERE x.company_id = w.company_id AND x.id = w.command_id FOR NO KEY UPDATE SKIP LOCKED) AS c ON true;

    PERFORM leasehold_internal.cancel_commands(pg_catalog.array_agg(w.company_id), pg_catalog.array_agg(w.command_id),
                'the session that waited for it ended')
       FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(command_ids), pg_catalog.unnest(v_done))
            AS w (company_id, command_id, done)
      WHERE w.done AND w.command_id IS NOT NULL;
    -- as with a run that is cancelled
    PERFORM leasehold_internal.end_leases(pg_catalog.array_agg(w.company_id), pg_catalog.array_agg(w.lease_id),
                leasehold_internal.lease_end_of_run('cancelled'), NULL, 'session_ended')
       FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(lease_ids), pg_catalog.unnest(generations),
                       pg_catalog.unnest(v_done)) AS w (company_id, lease_id, generation, done)
       JOIN leasehold.leases AS l ON l.company_id = w.company_id AND l.id = w.lease_id AND l.generation = w.generation
      WHERE w.done
     HAVING pg_catalog.count(*) > 0;
    RETURN v_done;
END
$$;

COMMENT ON FUNCTION leasehold_internal.end_left_calls(uuid[], uuid[], integer[], uuid[]) IS
    'Ends what sessions have left whose CALL did not see its end';

-- Those that began are lost with the worker that had them; of the others a worker
-- that takes over asks whether somebody waits.
CREATE FUNCTION leasehold_internal.attached_commands(shards smallint[], OUT company_id uuid, OUT command_id uuid)
    RETURNS SETOF record LANGUAGE sql VOLATILE AS $$
    SELECT q.company_id, q.subject_id FROM leasehold_internal.calls AS q
     WHERE q.slot = 'command' AND q.payload ? 'attached' AND q.shard = ANY (shards)
$$;

COMMENT ON FUNCTION leasehold_internal.attached_commands(smallint[]) IS
    'Commands that were started for a session that waits for them';

CREATE OR REPLACE FUNCTION leasehold_internal.reset_breaker(provider text) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
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

CREATE OR REPLACE FUNCTION leasehold_internal.takeover_installation() RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
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

CREATE OR REPLACE VIEW leasehold.lease_timeline WITH (security_barrier) AS
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

CREATE OR REPLACE FUNCTION leasehold_internal.doctor(OUT severity text, OUT code text, OUT finding text, OUT what_to_do text)
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

CREATE OR REPLACE FUNCTION leasehold_internal.metrics(
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

-- Housekeeping: plain functions whose clock the worker is.

-- The worker does each duty in a transaction of its own, so that one that cannot be
-- done does not keep the others from being done.
CREATE OR REPLACE FUNCTION leasehold_internal.housekeep(
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

-- What is new belongs to leasehold_owner (nothing runs with a superuser's rights),
-- and nobody may do anything with it, publish() and publish_procedure() having seen
-- to what is public.  In an upgrade, what is there already keeps the grants that it has.
-- in every upgrade
DO $$
DECLARE
    v_object record;
BEGIN
    FOR v_object IN
        SELECT o.*
          FROM (SELECT 'pg_catalog.pg_proc'::pg_catalog.regclass AS class, p.oid, 'ROUTINE' AS type,
                       p.oid::pg_catalog.regprocedure::text AS name, p.proowner AS owner, p.proacl AS acl,
                       p.pronamespace <> 'leasehold'::pg_catalog.regnamespace
                       OR p.prosrc <> 'leasehold_gate' AND p.prokind <> 'p' AS closed
                  FROM pg_catalog.pg_proc AS p
                UNION ALL
                SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, c.oid,
                       CASE c.relkind WHEN 'S' THEN 'SEQUENCE' WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END,
                       c.oid::pg_catalog.regclass::text, c.relowner, c.relacl, true
                  FROM pg_catalog.pg_class AS c WHERE c.relkind IN ('r', 'p', 'v', 'S')
                UNION ALL
                SELECT 'pg_catalog.pg_namespace'::pg_catalog.regclass, n.oid, 'SCHEMA', n.nspname, n.nspowner, n.nspacl, true
                  FROM pg_catalog.pg_namespace AS n
                UNION ALL
                SELECT 'pg_catalog.pg_type'::pg_catalog.regclass, t.oid, 'DOMAIN', t.oid::pg_catalog.regtype::text, t.typowner,
                       t.typacl, false
                  FROM pg_catalog.pg_type AS t WHERE t.typtype = 'd') AS o
          JOIN pg_catalog.pg_depend AS d ON d.classid = o.class AND d.objid = o.oid AND d.deptype = 'e'
           AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass
          JOIN pg_catalog.pg_extension AS e ON e.oid = d.refobjid AND e.extname = 'leasehold'
         WHERE o.owner NOT IN ('leasehold_owner'::pg_catalog.regrole, 'leasehold_worker'::pg_catalog.regrole)
           -- superusers run these two: who could act as leasehold_owner must not be able to put others in their place
           AND o.name NOT IN ('leasehold_internal.guard_drop()', 'leasehold_internal.announce_extension()')
    LOOP
        IF v_object.closed THEN
            PERFORM leasehold_internal.revoke_all(CASE v_object.type WHEN 'VIEW' THEN 'TABLE' ELSE v_object.type END,
                v_object.name, v_object.acl);
        END IF;
        EXECUTE pg_catalog.format('ALTER %s %s OWNER TO leasehold_owner', v_object.type, v_object.name);
    END LOOP;
END
$$;

GRANT SELECT ON leasehold.commands, leasehold.command_output TO leasehold_admin, leasehold_app, leasehold_auditor;

-- in every upgrade
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA leasehold_internal TO leasehold_worker;

-- in every upgrade
GRANT SELECT ON ALL TABLES IN SCHEMA leasehold TO leasehold_worker;

GRANT INSERT, UPDATE ON leasehold.commands, leasehold.command_output TO leasehold_worker;

GRANT DELETE ON leasehold.command_output TO leasehold_worker;

-- in every upgrade
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA leasehold_internal TO leasehold_worker;

-- in every upgrade
REVOKE EXECUTE ON FUNCTION leasehold_internal.publish(regproc, text, text, text[]),
    leasehold_internal.publish_procedure(regproc, text, text[]),
    leasehold_internal.protect(regclass, text, text),
    leasehold_internal.revoke_all(text, text, aclitem[]), leasehold_internal.guard_drop(),
    leasehold_internal.announce_extension() FROM leasehold_worker;

SELECT pg_catalog.pg_extension_config_dump('leasehold.commands'::pg_catalog.regclass, '');

SELECT pg_catalog.pg_extension_config_dump('leasehold.command_output'::pg_catalog.regclass, '');

-- in every upgrade
SELECT leasehold_internal.announce_extension();
