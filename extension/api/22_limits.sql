-- 22_limits.sql: limits, for the installation, a company, one of its
-- environments, or a provider; of several that fit, each must hold.

CREATE TABLE leasehold.limits (
    company_id     uuid NOT NULL,
    name           leasehold.limit_name NOT NULL,
    environment_id uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    provider       text COLLATE "C" NOT NULL DEFAULT '',
    value          bigint NOT NULL CHECK (value >= 0),
    updated_at     timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (company_id, name, environment_id, provider)
);
COMMENT ON TABLE leasehold.limits IS 'Limits; the nil id stands for every company or environment, an empty provider for all';
COMMENT ON COLUMN leasehold.limits.value IS 'A number; seconds for lease_ttl_max, bytes for output_bytes';
SELECT leasehold_internal.protect('leasehold.limits', 'viewer');
-- no function here: readers may not call those of leasehold_internal
CREATE POLICY installation ON leasehold.limits FOR SELECT USING (company_id = '00000000-0000-0000-0000-000000000000');
COMMENT ON POLICY installation ON leasehold.limits IS 'The installation''s own limits hold for everybody and hide nothing';
CREATE TRIGGER limits_changed AFTER INSERT OR UPDATE OR DELETE ON leasehold.limits
    FOR EACH STATEMENT EXECUTE FUNCTION leasehold_internal.relation_changed();

-- workers have to know how many there are: a company's part of a provider depends on it
CREATE TRIGGER companies_changed AFTER INSERT OR UPDATE OR DELETE ON leasehold.companies
    FOR EACH STATEMENT EXECUTE FUNCTION leasehold_internal.relation_changed();

-- Starts of the last minute, kept only where a limit of starts applies.
CREATE TABLE leasehold_internal.lease_starts (
    company_id     uuid NOT NULL,
    started_at     timestamptz NOT NULL,
    lease_id       uuid NOT NULL,
    environment_id uuid NOT NULL,
    provider       text COLLATE "C" NOT NULL,
    PRIMARY KEY (company_id, started_at, lease_id)
);
COMMENT ON TABLE leasehold_internal.lease_starts IS 'Starts of the last minute, where lease_starts_per_minute applies';
SELECT leasehold_internal.protect('leasehold_internal.lease_starts', 'viewer');

CREATE FUNCTION leasehold_internal.set_limit(
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
SELECT leasehold_internal.publish('leasehold_internal.set_limit', 'instant',
    'sets a limit, or removes it with NULL', 'leasehold_admin');

-- For which leases a limit holds; short, so that the planner sees through it.
CREATE FUNCTION leasehold_internal.limit_holds(a_limit leasehold.limits, company_id uuid, environment_id uuid, provider text)
    RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (a_limit).company_id = ANY (ARRAY[company_id, leasehold_internal.no_company()])
       AND (a_limit).environment_id = ANY (ARRAY[environment_id, leasehold_internal.no_company()])
       AND (a_limit).provider = ANY (ARRAY[provider, '']);
COMMENT ON FUNCTION leasehold_internal.limit_holds(leasehold.limits, uuid, uuid, text) IS
    'Whether a limit holds for the leases of a company''s environment';

-- The longest time to live that a lease of this environment may get.
CREATE FUNCTION leasehold_internal.ttl_ceiling(company_id uuid, environment_id uuid, provider text) RETURNS interval
    LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (SELECT pg_catalog.make_interval(secs => COALESCE(pg_catalog.min(l.value), 86400))
              FROM leasehold.limits AS l
             WHERE l.name = 'lease_ttl_max'
               AND leasehold_internal.limit_holds(l, ttl_ceiling.company_id, ttl_ceiling.environment_id, ttl_ceiling.provider));
END
$$;
COMMENT ON FUNCTION leasehold_internal.ttl_ceiling(uuid, uuid, text) IS
    'The longest time to live that a lease may get: the lowest limit lease_ttl_max that fits, else 24 hours';
