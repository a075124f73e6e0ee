-- 21_environments.sql: environments, of one provider each.
--
-- A change of configuration makes a new version; each lease keeps the version
-- it was acquired with, so that it can be released the same way however the
-- environment was changed meanwhile.

CREATE TABLE leasehold_internal.environments (
    company_id     uuid NOT NULL REFERENCES leasehold.companies,
    id             uuid NOT NULL DEFAULT leasehold.new_id(),
    key            leasehold.object_key NOT NULL,
    name           text NOT NULL,
    description    text,
    provider       leasehold.object_key NOT NULL,
    status         leasehold.object_status NOT NULL DEFAULT 'active',
    config_version integer NOT NULL DEFAULT 1,
    created_at     timestamptz NOT NULL DEFAULT pg_catalog.now(),
    updated_at     timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (company_id, id),
    CONSTRAINT environments_key_key UNIQUE (company_id, key)
);
COMMENT ON TABLE leasehold_internal.environments IS 'Environments: see the view leasehold.environments';

CREATE TABLE leasehold_internal.environment_configs (
    company_id     uuid NOT NULL,
    environment_id uuid NOT NULL,
    version        integer NOT NULL,
    provider       leasehold.object_key NOT NULL,
    config         jsonb NOT NULL,
    env_vars       jsonb NOT NULL DEFAULT '{}',
    metadata       jsonb NOT NULL DEFAULT '{}',
    created_at     timestamptz NOT NULL DEFAULT pg_catalog.now(),
    created_by     name NOT NULL DEFAULT leasehold.acting_role(),
    PRIMARY KEY (company_id, environment_id, version),
    FOREIGN KEY (company_id, environment_id) REFERENCES leasehold_internal.environments ON DELETE CASCADE
);
COMMENT ON TABLE leasehold_internal.environment_configs IS 'Every version of each environment''s configuration';

SELECT leasehold_internal.protect('leasehold_internal.environments', 'viewer');
SELECT leasehold_internal.protect('leasehold_internal.environment_configs', 'user');

CREATE VIEW leasehold.environments WITH (security_barrier) AS
    SELECT e.company_id, e.id, e.key, e.name, e.description, e.provider, e.status, e.config_version,
           c.config, c.env_vars, c.metadata, e.created_at, e.updated_at
      FROM leasehold_internal.environments AS e
      LEFT JOIN leasehold_internal.environment_configs AS c
        ON c.company_id = e.company_id AND c.environment_id = e.id AND c.version = e.config_version;
COMMENT ON VIEW leasehold.environments IS
    'Environments; config, env_vars and metadata are shown from level user on';

CREATE FUNCTION leasehold_internal.refuse_unknown_environment(environment text) RETURNS void
    LANGUAGE plpgsql STABLE AS $$
BEGIN
    PERFORM leasehold_internal.refuse('environment_not_found',
        pg_catalog.format('environment "%s" does not exist', pg_catalog.left(environment, 63)),
        'See the view leasehold.environments; create_environment() makes one.');
END
$$;
COMMENT ON FUNCTION leasehold_internal.refuse_unknown_environment(text) IS 'The error for an environment that is not there';

CREATE FUNCTION leasehold_internal.find_environment(company_id uuid, environment text)
    RETURNS leasehold_internal.environments LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_environment leasehold_internal.environments;
BEGIN
    SELECT e.* INTO v_environment FROM leasehold_internal.environments AS e
     WHERE e.company_id = find_environment.company_id AND e.key = environment;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse_unknown_environment(environment);
    END IF;
    RETURN v_environment;
END
$$;
COMMENT ON FUNCTION leasehold_internal.find_environment(uuid, text) IS 'The environment of this key, or the error that there is none';

-- Refuses a configuration that its provider cannot have.  What a plugin says of
-- its own configuration comes with its schema.
CREATE FUNCTION leasehold_internal.check_config(provider text, config jsonb) RETURNS jsonb
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
COMMENT ON FUNCTION leasehold_internal.check_config(text, jsonb) IS 'Refuses a configuration that its provider cannot have';

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

-- The fake provider's knobs; see docs/providers.md.
CREATE FUNCTION leasehold_internal.fake_config_problem(config jsonb) RETURNS text
    LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN k.key NOT IN ('image', 'reuseLease', 'timeoutMs', 'delayMs', 'failTimes', 'failPermanently',
                           'rateLimitTimes', 'retryAfterMs', 'loseAnswerTimes', 'malformedTimes',
                           'goneOnResume', 'releaseFailTimes', 'lookup')
            THEN pg_catalog.format('unknown key "%s"', pg_catalog.left(k.key, 60))
        WHEN k.key = 'image' AND (pg_catalog.jsonb_typeof(k.value) <> 'string' OR pg_catalog.length(k.value #>> '{}') = 0)
            THEN 'image must be a text'
        WHEN k.key IN ('failPermanently', 'goneOnResume', 'lookup') AND pg_catalog.jsonb_typeof(k.value) <> 'boolean'
            THEN pg_catalog.format('%s must be true or false', k.key)
        WHEN k.key IN ('delayMs', 'failTimes', 'rateLimitTimes', 'retryAfterMs', 'loseAnswerTimes', 'malformedTimes',
                       'releaseFailTimes')
             AND (pg_catalog.jsonb_typeof(k.value) <> 'number'
                  OR (k.value #>> '{}')::numeric NOT BETWEEN 0 AND 86400000 OR (k.value #>> '{}')::numeric % 1 <> 0)
            THEN pg_catalog.format('%s must be a whole number from 0 to 86400000', k.key)
        END AS problem
    FROM pg_catalog.jsonb_each(config) AS k
    ORDER BY 1 NULLS LAST LIMIT 1
$$;
COMMENT ON FUNCTION leasehold_internal.fake_config_problem(jsonb) IS 'What is wrong with a fake environment''s configuration, or NULL';

CREATE FUNCTION leasehold_internal.create_environment(
        environment text, provider text, config jsonb DEFAULT '{}', name text DEFAULT NULL,
        description text DEFAULT NULL, env_vars jsonb DEFAULT '{}', metadata jsonb DEFAULT '{}',
        environment_id uuid DEFAULT NULL, company text DEFAULT NULL)
    RETURNS uuid LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(create_environment.company, 'manager');
    v_id      uuid := COALESCE(create_environment.environment_id, leasehold.new_id());
BEGIN
    PERFORM leasehold_internal.check_key('environment', environment);
    PERFORM leasehold_internal.check_text('name', create_environment.name);
    PERFORM leasehold_internal.check_text('description', create_environment.description, 2000);
    PERFORM leasehold_internal.check_env('env_vars', create_environment.env_vars);
    PERFORM leasehold_internal.check_object('metadata', create_environment.metadata);
    PERFORM leasehold_internal.require_active_company(v_company);
    PERFORM leasehold_internal.require_usable_provider(v_company, create_environment.provider);
    PERFORM leasehold_internal.check_config(create_environment.provider, COALESCE(create_environment.config, '{}'));

    INSERT INTO leasehold_internal.environments (company_id, id, key, name, description, provider)
    VALUES (v_company, v_id, environment, COALESCE(create_environment.name, environment),
            create_environment.description, create_environment.provider)
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('already_exists', pg_catalog.format('environment "%s" already exists', environment),
            'Use update_environment() to change it.');
    END IF;
    INSERT INTO leasehold_internal.environment_configs
           (company_id, environment_id, version, provider, config, env_vars, metadata)
    VALUES (v_company, v_id, 1, create_environment.provider, COALESCE(create_environment.config, '{}'),
            COALESCE(create_environment.env_vars, '{}'), COALESCE(create_environment.metadata, '{}'));
    PERFORM leasehold_internal.record(v_company, 'environment.created', 'environment', v_id::text,
        pg_catalog.jsonb_build_object('key', environment, 'provider', create_environment.provider, 'status', 'active'));
    RETURN v_id;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.create_environment', 'instant',
    'makes an environment of a provider; its key is for good', 'leasehold_app');

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

CREATE FUNCTION leasehold_internal.update_environment(
        environment text, config jsonb DEFAULT NULL, name text DEFAULT NULL, description text DEFAULT NULL,
        env_vars jsonb DEFAULT NULL, metadata jsonb DEFAULT NULL, provider text DEFAULT NULL,
        status text DEFAULT NULL, expected_version integer DEFAULT NULL, company text DEFAULT NULL)
    RETURNS integer LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company  uuid := leasehold_internal.enter_company(update_environment.company, 'manager');
    v_old      leasehold_internal.environments;
    v_current  leasehold_internal.environment_configs;
    v_provider text;
    v_config   jsonb;
    v_changed  text[];
    v_version  integer;
BEGIN
    PERFORM leasehold_internal.check_text('name', update_environment.name);
    PERFORM leasehold_internal.check_text('description', update_environment.description, 2000);
    PERFORM leasehold_internal.check_env('env_vars', update_environment.env_vars);
    PERFORM leasehold_internal.check_object('metadata', update_environment.metadata);
    IF update_environment.status IS NOT NULL THEN
        PERFORM leasehold_internal.check_choice('status', update_environment.status, 'active', 'archived');
    END IF;
    v_old := leasehold_internal.find_environment(v_company, environment);
    SELECT e.* INTO v_old FROM leasehold_internal.environments AS e
     WHERE e.company_id = v_company AND e.id = v_old.id FOR NO KEY UPDATE;
    IF expected_version IS NOT NULL AND v_old.config_version <> expected_version THEN
        PERFORM leasehold_internal.refuse('stale_version',
            pg_catalog.format('environment "%s" was changed meanwhile', environment),
            'Read it again and repeat the change.',
            pg_catalog.jsonb_build_object('version', v_old.config_version));
    END IF;
    SELECT c.* INTO STRICT v_current FROM leasehold_internal.environment_configs AS c
     WHERE c.company_id = v_company AND c.environment_id = v_old.id AND c.version = v_old.config_version;

    -- another provider starts with an empty configuration: the old one's must not leak into it
    v_provider := COALESCE(update_environment.provider, v_old.provider);
    v_config := CASE WHEN v_provider = v_old.provider THEN v_current.config ELSE '{}'::jsonb END
                || COALESCE(leasehold_internal.check_object('config', update_environment.config, 262144), '{}');
    -- a null takes a member out
    v_config := v_config - ARRAY(SELECT c.key FROM pg_catalog.jsonb_each(update_environment.config) AS c
                                  WHERE c.value = 'null');
    IF v_provider <> v_old.provider OR update_environment.config IS NOT NULL THEN
        PERFORM leasehold_internal.require_usable_provider(v_company, v_provider);
        PERFORM leasehold_internal.check_config(v_provider, v_config);
    END IF;

    v_changed := pg_catalog.array_remove(ARRAY[
        CASE WHEN v_config <> v_current.config THEN 'config' END,
        CASE WHEN update_environment.description <> COALESCE(v_old.description, '') THEN 'description' END,
        CASE WHEN update_environment.env_vars <> v_current.env_vars THEN 'env_vars' END,
        CASE WHEN update_environment.metadata <> v_current.metadata THEN 'metadata' END,
        CASE WHEN update_environment.name <> v_old.name THEN 'name' END,
        CASE WHEN v_provider <> v_old.provider THEN 'provider' END,
        CASE WHEN update_environment.status <> v_old.status THEN 'status' END], NULL);
    v_version := v_old.config_version
                 + CASE WHEN v_changed && ARRAY['config', 'env_vars', 'metadata', 'provider'] THEN 1 ELSE 0 END;
    IF v_version > v_old.config_version THEN
        INSERT INTO leasehold_internal.environment_configs
               (company_id, environment_id, version, provider, config, env_vars, metadata)
        VALUES (v_company, v_old.id, v_version, v_provider, v_config,
                COALESCE(update_environment.env_vars, v_current.env_vars),
                COALESCE(update_environment.metadata, v_current.metadata));
    END IF;
    UPDATE leasehold_internal.environments AS e
       SET name = COALESCE(update_environment.name, e.name),
           description = COALESCE(update_environment.description, e.description),
           provider = v_provider, status = COALESCE(update_environment.status, e.status),
           config_version = v_version, updated_at = pg_catalog.now()
     WHERE e.company_id = v_company AND e.id = v_old.id;
    PERFORM leasehold_internal.record(v_company, 'environment.updated', 'environment', v_old.id::text,
        pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
            'changedFields', pg_catalog.to_jsonb(v_changed),
            'name', CASE WHEN 'name' = ANY (v_changed) THEN update_environment.name END,
            'provider', CASE WHEN 'provider' = ANY (v_changed) THEN v_provider END,
            'status', CASE WHEN 'status' = ANY (v_changed) THEN update_environment.status END,
            'configTopLevelKeyCount', CASE WHEN 'config' = ANY (v_changed)
                THEN (SELECT pg_catalog.count(*) FROM pg_catalog.jsonb_object_keys(v_config)) END,
            'metadataTopLevelKeyCount', CASE WHEN 'metadata' = ANY (v_changed)
                THEN (SELECT pg_catalog.count(*) FROM pg_catalog.jsonb_object_keys(update_environment.metadata)) END)));
    RETURN v_version;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.update_environment', 'instant',
    'changes what is given, merging config into the present one, from which a null takes a member out, and returns the version of the configuration',
    'leasehold_app');

CREATE FUNCTION leasehold_internal.archive_environment(environment text, company text DEFAULT NULL) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM leasehold_internal.update_environment(environment, status => 'archived', company => company);
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.archive_environment', 'instant',
    'stops new leases of an environment; update_environment(..., status => ''active'') undoes it', 'leasehold_app');

CREATE FUNCTION leasehold_internal.environment_impact(environment text, company text DEFAULT NULL,
        OUT environment_id uuid, OUT can_delete boolean, OUT live_leases bigint, OUT ended_leases bigint,
        OUT strays bigint)
    RETURNS record LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(environment_impact.company, 'viewer', true);
BEGIN
    environment_id := (leasehold_internal.find_environment(v_company, environment)).id;
    SELECT pg_catalog.count(*) FILTER (WHERE leasehold_internal.may_have_resource(l.status)),
           pg_catalog.count(*) FILTER (WHERE NOT leasehold_internal.may_have_resource(l.status))
      INTO live_leases, ended_leases
      FROM leasehold.leases AS l
     WHERE l.company_id = v_company AND l.environment_id = environment_impact.environment_id;
    SELECT pg_catalog.count(*) INTO strays FROM leasehold_internal.provider_resources AS r
     WHERE r.company_id = v_company AND r.stray_id IS NOT NULL AND r.environment_id = environment_impact.environment_id;
    can_delete := live_leases = 0 AND strays = 0;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.environment_impact', 'instant',
    'says what depends on an environment', 'leasehold_app', 'leasehold_admin', 'leasehold_auditor');

CREATE FUNCTION leasehold_internal.delete_environment(environment text, company text DEFAULT NULL) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(delete_environment.company, 'manager');
    v_old     leasehold_internal.environments;
BEGIN
    v_old := leasehold_internal.find_environment(v_company, environment);
    -- the lock keeps request_lease() out until this has been decided, and without its call no sweep finds strays
    PERFORM FROM leasehold_internal.environments AS e WHERE e.company_id = v_company AND e.id = v_old.id FOR UPDATE;
    DELETE FROM leasehold_internal.calls AS c
     WHERE c.company_id = v_company AND c.subject_id = v_old.id AND c.slot = 'sweep';
    IF EXISTS (SELECT FROM leasehold.leases AS l
                WHERE l.company_id = v_company AND l.environment_id = v_old.id
                  AND leasehold_internal.may_have_resource(l.status)) THEN
        PERFORM leasehold_internal.refuse('still_in_use',
            pg_catalog.format('environment "%s" has leases that may have a resource', environment),
            'Archive it, end its leases, and delete it then; see environment_impact().');
    END IF;
    IF EXISTS (SELECT FROM leasehold_internal.provider_resources AS r
                WHERE r.company_id = v_company AND r.stray_id IS NOT NULL AND r.environment_id = v_old.id) THEN
        PERFORM leasehold_internal.refuse('still_in_use',
            pg_catalog.format('environment "%s" has resources of no lease that are still to be removed', environment),
            'The worker removes them; doctor() tells what it cannot remove, which import_lease() puts under a lease.');
    END IF;
    -- ended leases stay as history, without their environment
    UPDATE leasehold.leases AS l SET environment_id = NULL
     WHERE l.company_id = v_company AND l.environment_id = v_old.id;
    DELETE FROM leasehold_internal.environments AS e WHERE e.company_id = v_company AND e.id = v_old.id;
    PERFORM leasehold_internal.record(v_company, 'environment.deleted', 'environment', v_old.id::text,
        pg_catalog.jsonb_build_object('key', v_old.key, 'provider', v_old.provider, 'status', v_old.status));
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.delete_environment', 'instant',
    'removes an environment without live leases or strays', 'leasehold_app');
