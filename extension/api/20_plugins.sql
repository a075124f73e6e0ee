-- 20_plugins.sql: plugins, the providers that they offer, and which companies
-- may use which provider.
--
-- Plugins belong to the installation.  Registration writes the row and asks the
-- worker to speak to the plugin; it is ready once it has answered initialize.

CREATE TABLE leasehold.plugins (
    key               leasehold.object_key PRIMARY KEY,
    display_name      text NOT NULL,
    version           text NOT NULL,
    manifest          jsonb NOT NULL,
    transport         jsonb NOT NULL,
    allow_addresses   cidr[] NOT NULL DEFAULT '{}',
    status            leasehold.plugin_status NOT NULL DEFAULT 'installed',
    last_error        text,
    supported_methods text[] NOT NULL DEFAULT '{}',
    registered_at     timestamptz NOT NULL DEFAULT pg_catalog.now(),
    updated_at        timestamptz NOT NULL DEFAULT pg_catalog.now(),
    ready_at          timestamptz
);
COMMENT ON TABLE leasehold.plugins IS 'Programs of third parties that offer providers';
COMMENT ON COLUMN leasehold.plugins.transport IS 'How the worker reaches it: {"type": "http", "url": ..., "token_file": ...}';
COMMENT ON COLUMN leasehold.plugins.allow_addresses IS 'Networks that are refused otherwise (private, loopback) but allowed for this plugin';

CREATE TABLE leasehold.providers (
    key                      leasehold.object_key PRIMARY KEY,
    plugin_key               leasehold.object_key REFERENCES leasehold.plugins ON DELETE CASCADE,
    kind                     leasehold.driver_kind NOT NULL,
    display_name             text NOT NULL,
    description              text,
    config_schema            jsonb NOT NULL DEFAULT '{}',
    supports_reusable_leases boolean NOT NULL DEFAULT false
);
COMMENT ON TABLE leasehold.providers IS 'What environments can be made of: built in, or offered by a plugin';
COMMENT ON COLUMN leasehold.providers.plugin_key IS 'NULL for a provider that is built in';

INSERT INTO leasehold.providers (key, kind, display_name, description, supports_reusable_leases)
VALUES ('fake', 'sandbox_provider', 'Fake',
        'Built in, deterministic, does nothing: for tests; needs leasehold.allow_fake_provider', true);

INSERT INTO leasehold.providers (key, kind, display_name, description, supports_reusable_leases)
VALUES ('bubblewrap', 'sandbox_provider', 'Bubblewrap',
        'Built in: sandboxes on the server''s own host; needs leasehold.bubblewrap, and allow_provider() for each company', true);

CREATE TABLE leasehold.provider_access (
    company_id uuid NOT NULL REFERENCES leasehold.companies,
    provider   leasehold.object_key NOT NULL,
    allowed    boolean NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (company_id, provider)
);
COMMENT ON TABLE leasehold.provider_access IS
    'Who may use a provider, if it is not as usual: "bubblewrap" may be used by nobody then, others by every company';
SELECT leasehold_internal.protect('leasehold.provider_access', 'viewer');

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

-- Plugins and providers tell workers when they change.
CREATE TRIGGER plugins_changed AFTER INSERT OR UPDATE OR DELETE ON leasehold.plugins
    FOR EACH STATEMENT EXECUTE FUNCTION leasehold_internal.relation_changed();
CREATE TRIGGER plugins_changed AFTER INSERT OR UPDATE OR DELETE ON leasehold.providers
    FOR EACH STATEMENT EXECUTE FUNCTION leasehold_internal.relation_changed();

-- Returns the manifest, or refuses it.
CREATE FUNCTION leasehold_internal.check_manifest(manifest jsonb) RETURNS jsonb
    LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_problem text;
    v_drivers jsonb := manifest -> 'environmentDrivers';
BEGIN
    PERFORM leasehold_internal.check_object('manifest', manifest, 262144);
    v_problem := CASE
        WHEN pg_catalog.jsonb_typeof(manifest -> 'id') IS DISTINCT FROM 'string'
             OR manifest ->> 'id' !~ '^[a-z0-9][a-z0-9._-]{0,62}$'
            THEN 'id must be a key: lower-case letters, digits, ".", "_", "-", at most 63'
        WHEN pg_catalog.jsonb_typeof(manifest -> 'apiVersion') IS DISTINCT FROM 'number'
             OR manifest -> 'apiVersion' <> '1'
            THEN 'apiVersion must be 1'
        WHEN pg_catalog.jsonb_typeof(manifest -> 'version') IS DISTINCT FROM 'string'
             OR pg_catalog.length(manifest ->> 'version') NOT BETWEEN 1 AND 100
            THEN 'version must be a text of 1 to 100 characters'
        WHEN pg_catalog.jsonb_typeof(manifest -> 'displayName') IS DISTINCT FROM 'string'
             OR pg_catalog.length(manifest ->> 'displayName') NOT BETWEEN 1 AND 100
            THEN 'displayName must be a text of 1 to 100 characters'
        WHEN pg_catalog.jsonb_typeof(v_drivers) IS DISTINCT FROM 'array'
             OR pg_catalog.jsonb_array_length(v_drivers) NOT BETWEEN 1 AND 100
            THEN 'environmentDrivers must be a list of 1 to 100 drivers'
        WHEN pg_catalog.jsonb_typeof(manifest -> 'capabilities') IS DISTINCT FROM 'array'
             OR NOT manifest -> 'capabilities' ? 'environment.drivers.register'
            THEN 'capabilities must contain "environment.drivers.register"'
        END;
    IF v_problem IS NULL THEN
        SELECT CASE
            WHEN pg_catalog.jsonb_typeof(d.driver) <> 'object'
                THEN 'a driver must be an object'
            WHEN pg_catalog.jsonb_typeof(d.driver -> 'driverKey') IS DISTINCT FROM 'string'
                 OR d.driver ->> 'driverKey' !~ '^[a-z0-9][a-z0-9._-]{0,62}$'
                THEN 'driverKey must be a key: lower-case letters, digits, ".", "_", "-", at most 63'
            WHEN d.driver -> 'kind' NOT IN ('"environment_driver"', '"sandbox_provider"')
                THEN 'kind must be "environment_driver" or "sandbox_provider"'
            WHEN pg_catalog.jsonb_typeof(d.driver -> 'displayName') IS DISTINCT FROM 'string'
                 OR pg_catalog.length(d.driver ->> 'displayName') NOT BETWEEN 1 AND 100
                THEN 'displayName of a driver must be a text of 1 to 100 characters'
            WHEN pg_catalog.jsonb_typeof(d.driver -> 'description') <> 'string'
                 OR pg_catalog.length(d.driver ->> 'description') > 500
                THEN 'description of a driver must be a text of at most 500 characters'
            WHEN pg_catalog.jsonb_typeof(d.driver -> 'configSchema') IS DISTINCT FROM 'object'
                THEN 'configSchema of a driver must be a JSON Schema object'
            WHEN COALESCE(pg_catalog.jsonb_typeof(d.driver -> 'supportsReusableLeases'), 'boolean') <> 'boolean'
                THEN 'supportsReusableLeases must be true or false'
            END INTO v_problem
          FROM pg_catalog.jsonb_array_elements(v_drivers) WITH ORDINALITY AS d (driver, nr)
         ORDER BY 1 NULLS LAST LIMIT 1;
    END IF;
    IF v_problem IS NULL AND
       (SELECT pg_catalog.count(*) <> pg_catalog.count(DISTINCT d ->> 'driverKey')
          FROM pg_catalog.jsonb_array_elements(v_drivers) AS d) THEN
        v_problem := 'Duplicate environment driver keys';
    END IF;
    IF v_problem IS NOT NULL THEN
        PERFORM leasehold_internal.refuse('manifest_invalid', 'the manifest is not valid: ' || v_problem);
    END IF;
    RETURN manifest;
END
$$;
COMMENT ON FUNCTION leasehold_internal.check_manifest(jsonb) IS 'Refuses a manifest that the plugin contract does not allow';

-- Returns the transport, or refuses it.
CREATE FUNCTION leasehold_internal.check_transport(transport jsonb) RETURNS jsonb
    LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_unknown text;
    v_problem text;
BEGIN
    PERFORM leasehold_internal.check_object('transport', transport, 8192);
    SELECT k INTO v_unknown FROM pg_catalog.jsonb_object_keys(transport) AS k
     WHERE k NOT IN ('type', 'url', 'token_file') LIMIT 1;
    v_problem := CASE
        WHEN v_unknown IS NOT NULL
            THEN pg_catalog.format('unknown member "%s"', pg_catalog.left(v_unknown, 60))
        WHEN transport ->> 'type' IS DISTINCT FROM 'http'
            THEN 'type must be "http"'
        WHEN pg_catalog.jsonb_typeof(transport -> 'url') IS DISTINCT FROM 'string'
            THEN 'url must be a text'
        WHEN pg_catalog.jsonb_typeof(transport -> 'token_file') NOT IN ('string', 'null')
             OR transport ->> 'token_file' !~ '^[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}$'
            THEN 'token_file must be the name of a file in leasehold.token_directory, without a directory'
        ELSE leasehold_internal.url_problem(transport ->> 'url')
        END;
    IF v_problem IS NOT NULL THEN
        PERFORM leasehold_internal.refuse('transport_invalid', 'the transport is not valid: ' || v_problem);
    END IF;
    RETURN transport;
END
$$;
COMMENT ON FUNCTION leasehold_internal.check_transport(jsonb) IS 'Refuses a transport that is not understood';

CREATE FUNCTION leasehold_internal.url_problem(url text) RETURNS text
    LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'leasehold_url_problem';
COMMENT ON FUNCTION leasehold_internal.url_problem(text) IS 'Why a plugin cannot have this address, or NULL';

CREATE FUNCTION leasehold_internal.check_addresses(allow_addresses text[]) RETURNS cidr[]
    LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_result cidr[];
BEGIN
    IF pg_catalog.cardinality(allow_addresses) > 100 THEN
        PERFORM leasehold_internal.refuse('argument_too_large', 'argument "allow_addresses" has more than 100 networks');
    ELSIF EXISTS (SELECT FROM pg_catalog.unnest(allow_addresses) AS a WHERE a IS NULL) THEN
        PERFORM leasehold_internal.refuse('argument_invalid', 'argument "allow_addresses" must not contain null');
    END IF;
    BEGIN
        SELECT COALESCE(pg_catalog.array_agg(a::cidr), '{}') INTO v_result
          FROM pg_catalog.unnest(allow_addresses) AS a;
    EXCEPTION WHEN invalid_text_representation THEN
        PERFORM leasehold_internal.refuse('argument_invalid', 'argument "allow_addresses" is not a list of networks',
            'Write networks as in 10.1.0.0/16, 127.0.0.0/8 or fd00::/8.');
    END;
    RETURN v_result;
END
$$;
COMMENT ON FUNCTION leasehold_internal.check_addresses(text[]) IS 'Turns texts into networks, or refuses';

-- Makes the plugin's providers those of its manifest.
CREATE FUNCTION leasehold_internal.store_providers(plugin text, manifest jsonb) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_taken text;
BEGIN
    SELECT p.key INTO v_taken
      FROM pg_catalog.jsonb_array_elements(store_providers.manifest -> 'environmentDrivers') AS d
      JOIN leasehold.providers AS p ON p.key = d ->> 'driverKey'
     WHERE p.plugin_key IS DISTINCT FROM plugin LIMIT 1;
    IF FOUND THEN
        PERFORM leasehold_internal.refuse('already_exists',
            pg_catalog.format('provider "%s" is offered by another plugin already', v_taken),
            'Each provider key can be offered once; unregister the other plugin first.');
    END IF;
    SELECT p.key INTO v_taken
      FROM leasehold.providers AS p
     WHERE p.plugin_key = plugin
       AND (EXISTS (SELECT FROM leasehold_internal.environments AS e WHERE e.provider = p.key AND e.status = 'active')
            OR EXISTS (SELECT FROM leasehold.leases AS l
                        WHERE l.provider = p.key AND leasehold_internal.may_have_resource(l.status))
            OR EXISTS (SELECT FROM leasehold_internal.provider_resources AS r
                        WHERE r.provider = p.key AND r.stray_id IS NOT NULL))
       AND NOT EXISTS (SELECT FROM pg_catalog.jsonb_array_elements(store_providers.manifest -> 'environmentDrivers') AS d
                        WHERE d ->> 'driverKey' = p.key)
     LIMIT 1;
    IF FOUND THEN
        PERFORM leasehold_internal.refuse('still_in_use',
            pg_catalog.format('provider "%s" is missing in the manifest, but in use', v_taken),
            'Archive its environments and end their leases first.');
    END IF;

    DELETE FROM leasehold.providers AS p
     WHERE p.plugin_key = plugin
       AND NOT EXISTS (SELECT FROM pg_catalog.jsonb_array_elements(store_providers.manifest -> 'environmentDrivers') AS d
                        WHERE d ->> 'driverKey' = p.key);
    INSERT INTO leasehold.providers
           (key, plugin_key, kind, display_name, description, config_schema, supports_reusable_leases)
    SELECT d ->> 'driverKey', plugin, COALESCE(d ->> 'kind', 'environment_driver'), d ->> 'displayName',
           d ->> 'description', d -> 'configSchema', COALESCE((d ->> 'supportsReusableLeases')::boolean, false)
      FROM pg_catalog.jsonb_array_elements(store_providers.manifest -> 'environmentDrivers') AS d
    ON CONFLICT (key) DO UPDATE
       SET kind = excluded.kind, display_name = excluded.display_name, description = excluded.description,
           config_schema = excluded.config_schema,
           supports_reusable_leases = excluded.supports_reusable_leases;
END
$$;
COMMENT ON FUNCTION leasehold_internal.store_providers(text, jsonb) IS
    'Makes a plugin''s providers those of its manifest; refuses to take one that is in use';

-- Asks the worker to speak to the plugin.
CREATE FUNCTION leasehold_internal.queue_initialize(plugin text) RETURNS void
    LANGUAGE sql VOLATILE AS $$
    INSERT INTO leasehold_internal.calls AS c
           (company_id, subject_id, slot, operation, provider, payload, shard, due_at)
    VALUES (leasehold_internal.no_company(), leasehold_internal.plugin_subject(plugin), 'op', 'initialize',
            'plugin:' || plugin, pg_catalog.jsonb_build_object('plugin', plugin), 0, pg_catalog.clock_timestamp())
    ON CONFLICT (company_id, subject_id, slot) DO UPDATE
       SET state = 'queued', due_at = excluded.due_at, attempts = 0, crashes = 0, last_error = NULL,
           generation = c.generation + 1
$$;
COMMENT ON FUNCTION leasehold_internal.queue_initialize(text) IS 'Asks the worker to speak to the plugin';

-- The same after somebody has seen to it: what failed before does not hold it back.
CREATE FUNCTION leasehold_internal.speak_anew(plugin text) RETURNS void
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
COMMENT ON FUNCTION leasehold_internal.speak_anew(text) IS
    'Asks the worker to speak to the plugin at once, whatever failed before';

-- A plugin's id in the dispatch table, made of its key.
CREATE FUNCTION leasehold_internal.plugin_subject(plugin text) RETURNS uuid
    LANGUAGE sql IMMUTABLE STRICT AS $$ SELECT pg_catalog.md5('plugin ' || plugin)::uuid $$;
COMMENT ON FUNCTION leasehold_internal.plugin_subject(text) IS 'A plugin''s id in the dispatch table';

CREATE FUNCTION leasehold_internal.register_plugin(manifest jsonb, transport jsonb, allow_addresses text[] DEFAULT '{}')
    RETURNS text LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_key text;
BEGIN
    PERFORM leasehold_internal.enter_admin();
    PERFORM leasehold_internal.check_manifest(register_plugin.manifest);
    PERFORM leasehold_internal.check_transport(register_plugin.transport);
    PERFORM leasehold_internal.ensure_installation();
    v_key := register_plugin.manifest ->> 'id';

    INSERT INTO leasehold.plugins (key, display_name, version, manifest, transport, allow_addresses)
    VALUES (v_key, register_plugin.manifest ->> 'displayName', register_plugin.manifest ->> 'version',
            register_plugin.manifest, register_plugin.transport,
            leasehold_internal.check_addresses(register_plugin.allow_addresses))
    ON CONFLICT (key) DO NOTHING;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('already_exists', pg_catalog.format('plugin "%s" is registered already', v_key),
            'Use update_plugin() to change it.');
    END IF;
    PERFORM leasehold_internal.store_providers(v_key, register_plugin.manifest);
    PERFORM leasehold_internal.queue_initialize(v_key);
    PERFORM leasehold_internal.record(leasehold_internal.no_company(), 'plugin.registered', 'plugin', v_key,
        pg_catalog.jsonb_build_object('version', register_plugin.manifest ->> 'version'));
    PERFORM leasehold_internal.warn_if_unserved();
    RETURN v_key;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.register_plugin', 'instant',
    'adds a plugin and its providers, and has the worker speak to it', 'leasehold_admin');

CREATE FUNCTION leasehold_internal.update_plugin(
        plugin text, manifest jsonb DEFAULT NULL, transport jsonb DEFAULT NULL, allow_addresses text[] DEFAULT NULL)
    RETURNS void LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
    PERFORM leasehold_internal.enter_admin();
    IF update_plugin.manifest IS NOT NULL THEN
        PERFORM leasehold_internal.check_manifest(update_plugin.manifest);
        IF update_plugin.manifest ->> 'id' <> plugin THEN
            PERFORM leasehold_internal.refuse('manifest_invalid', 'the manifest is another plugin''s: its id differs');
        END IF;
    END IF;
    IF update_plugin.transport IS NOT NULL THEN
        PERFORM leasehold_internal.check_transport(update_plugin.transport);
    END IF;
    UPDATE leasehold.plugins AS p
       SET manifest = COALESCE(update_plugin.manifest, p.manifest),
           display_name = COALESCE(update_plugin.manifest ->> 'displayName', p.display_name),
           version = COALESCE(update_plugin.manifest ->> 'version', p.version),
           transport = COALESCE(update_plugin.transport, p.transport),
           allow_addresses = CASE WHEN update_plugin.allow_addresses IS NULL THEN p.allow_addresses
                                  ELSE leasehold_internal.check_addresses(update_plugin.allow_addresses) END,
           status = CASE WHEN p.status = 'disabled' THEN 'disabled' ELSE 'installed' END,
           updated_at = pg_catalog.now()
     WHERE p.key = plugin;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('plugin_not_found', pg_catalog.format('plugin "%s" does not exist', pg_catalog.left(plugin, 63)));
    END IF;
    IF update_plugin.manifest IS NOT NULL THEN
        PERFORM leasehold_internal.store_providers(plugin, update_plugin.manifest);
    END IF;
    PERFORM leasehold_internal.speak_anew(p.key) FROM leasehold.plugins AS p
      WHERE p.key = plugin AND p.status <> 'disabled';
    PERFORM leasehold_internal.record(leasehold_internal.no_company(), 'plugin.updated', 'plugin', plugin,
        pg_catalog.jsonb_build_object('manifest', update_plugin.manifest IS NOT NULL,
            'transport', update_plugin.transport IS NOT NULL,
            'allowAddresses', update_plugin.allow_addresses IS NOT NULL));
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.update_plugin', 'instant',
    'changes what is given and has the worker speak to the plugin again', 'leasehold_admin');

CREATE FUNCTION leasehold_internal.set_plugin_status(plugin text, status text, action text) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
    PERFORM leasehold_internal.enter_admin();
    UPDATE leasehold.plugins AS p
       SET status = set_plugin_status.status, last_error = NULL, updated_at = pg_catalog.now()
     WHERE p.key = plugin;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('plugin_not_found', pg_catalog.format('plugin "%s" does not exist', pg_catalog.left(plugin, 63)));
    END IF;
    PERFORM leasehold_internal.record(leasehold_internal.no_company(), action, 'plugin', plugin);
END
$$;
COMMENT ON FUNCTION leasehold_internal.set_plugin_status(text, text, text) IS 'Changes a plugin''s status, with its event';

CREATE FUNCTION leasehold_internal.enable_plugin(plugin text) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM leasehold_internal.set_plugin_status(plugin, 'installed', 'plugin.enabled');
    PERFORM leasehold_internal.speak_anew(plugin);
    PERFORM leasehold_internal.warn_if_unserved();
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.enable_plugin', 'instant',
    'takes a disabled plugin into use again', 'leasehold_admin');

CREATE FUNCTION leasehold_internal.disable_plugin(plugin text) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM leasehold_internal.set_plugin_status(plugin, 'disabled', 'plugin.disabled');
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.disable_plugin', 'instant',
    'stops new leases of a plugin''s providers; what exists is still released through it', 'leasehold_admin');

CREATE FUNCTION leasehold_internal.restart_plugin(plugin text) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
    PERFORM leasehold_internal.enter_admin();
    PERFORM FROM leasehold.plugins AS p
      WHERE p.key = restart_plugin.plugin AND p.status = 'disabled' FOR NO KEY UPDATE;
    IF FOUND THEN
        PERFORM leasehold_internal.refuse('wrong_state',
            pg_catalog.format('plugin "%s" is disabled', plugin), 'enable_plugin() takes it into use again.');
    END IF;
    PERFORM leasehold_internal.set_plugin_status(plugin, 'installed', 'plugin.restarted');
    PERFORM leasehold_internal.speak_anew(plugin);
    PERFORM leasehold_internal.warn_if_unserved();
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.restart_plugin', 'instant',
    'has the worker speak to the plugin anew', 'leasehold_admin');

CREATE FUNCTION leasehold_internal.unregister_plugin(plugin text) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_environments bigint;
    v_leases       bigint;
    v_strays       bigint;
BEGIN
    PERFORM leasehold_internal.enter_admin();
    PERFORM FROM leasehold.plugins AS p WHERE p.key = plugin FOR UPDATE;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('plugin_not_found', pg_catalog.format('plugin "%s" does not exist', pg_catalog.left(plugin, 63)));
    END IF;
    SELECT pg_catalog.count(*) INTO v_environments
      FROM leasehold_internal.environments AS e JOIN leasehold.providers AS p ON p.key = e.provider
     WHERE p.plugin_key = plugin AND e.status = 'active';
    SELECT pg_catalog.count(*) INTO v_leases
      FROM leasehold.leases AS l JOIN leasehold.providers AS p ON p.key = l.provider
     WHERE p.plugin_key = plugin AND leasehold_internal.may_have_resource(l.status);
    SELECT pg_catalog.count(*) INTO v_strays
      FROM leasehold_internal.provider_resources AS r JOIN leasehold.providers AS p ON p.key = r.provider
     WHERE p.plugin_key = plugin AND r.stray_id IS NOT NULL;
    IF v_environments > 0 OR v_leases > 0 OR v_strays > 0 THEN
        PERFORM leasehold_internal.refuse('still_in_use',
            pg_catalog.format('plugin "%s" is still in use', plugin),
            'Archive its environments, end their leases and have strays removed first; disable_plugin() stops new leases.',
            pg_catalog.jsonb_build_object('environments', v_environments, 'leases', v_leases, 'strays', v_strays));
    END IF;
    DELETE FROM leasehold_internal.calls AS c
     WHERE c.company_id = leasehold_internal.no_company()
       AND c.subject_id = leasehold_internal.plugin_subject(plugin);
    DELETE FROM leasehold.plugins AS p WHERE p.key = plugin;
    PERFORM leasehold_internal.record(leasehold_internal.no_company(), 'plugin.unregistered', 'plugin', plugin);
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.unregister_plugin', 'instant',
    'removes a plugin that nothing uses any more', 'leasehold_admin');

CREATE FUNCTION leasehold_internal.set_provider_access(company text, provider text, allowed boolean) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid;
BEGIN
    PERFORM leasehold_internal.enter_admin();
    v_company := leasehold_internal.enter_company(company, 'manager', true);
    PERFORM leasehold_internal.require_provider(set_provider_access.provider);
    INSERT INTO leasehold.provider_access (company_id, provider, allowed)
    VALUES (v_company, set_provider_access.provider, set_provider_access.allowed)
    ON CONFLICT (company_id, provider) DO UPDATE
       SET allowed = excluded.allowed, updated_at = pg_catalog.now();
    PERFORM leasehold_internal.record(v_company,
        CASE WHEN set_provider_access.allowed THEN 'provider.allowed' ELSE 'provider.disallowed' END,
        'provider', set_provider_access.provider);
END
$$;
COMMENT ON FUNCTION leasehold_internal.set_provider_access(text, text, boolean) IS
    'Lets a company use a provider, or not, with its event';

CREATE FUNCTION leasehold_internal.allow_provider(company text, provider text) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM leasehold_internal.set_provider_access(company, provider, true);
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.allow_provider', 'instant',
    'lets a company use a provider', 'leasehold_admin');

CREATE FUNCTION leasehold_internal.disallow_provider(company text, provider text) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM leasehold_internal.set_provider_access(company, provider, false);
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.disallow_provider', 'instant',
    'stops a company from getting new leases of a provider', 'leasehold_admin');

CREATE FUNCTION leasehold_internal.require_provider(provider text) RETURNS void
    LANGUAGE plpgsql STABLE AS $$
BEGIN
    PERFORM FROM leasehold.providers AS p WHERE p.key = provider;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('provider_not_found',
            pg_catalog.format('provider "%s" does not exist', pg_catalog.left(provider, 63)),
            'See the table leasehold.providers; plugins offer more after register_plugin().');
    END IF;
END
$$;
COMMENT ON FUNCTION leasehold_internal.require_provider(text) IS 'Refuses unless there is such a provider';

-- Refuses unless the company may make or use environments of the provider.
CREATE FUNCTION leasehold_internal.require_usable_provider(company_id uuid, provider text) RETURNS void
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
COMMENT ON FUNCTION leasehold_internal.require_usable_provider(uuid, text) IS
    'Refuses unless the company may use the provider and its plugin is not disabled';
