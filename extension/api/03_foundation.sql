-- 03_foundation.sql: what every other file uses: ids, errors, the caller, checks
-- of arguments, and the making of public functions.

CREATE FUNCTION leasehold.new_id() RETURNS uuid
    LANGUAGE c VOLATILE PARALLEL SAFE AS 'MODULE_PATHNAME', 'leasehold_new_id';
COMMENT ON FUNCTION leasehold.new_id() IS 'instant: a new time-ordered id (UUID version 7)';

CREATE FUNCTION leasehold.acting_role() RETURNS name
    LANGUAGE c STABLE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'leasehold_acting_role';
COMMENT ON FUNCTION leasehold.acting_role() IS
    'instant: the role for which the current call is made: the one that was current when the public function was called';

CREATE FUNCTION leasehold.visible_companies(level text DEFAULT 'viewer') RETURNS uuid[]
    LANGUAGE c STABLE STRICT PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'leasehold_visible_companies';
COMMENT ON FUNCTION leasehold.visible_companies(text) IS
    'instant: the companies whose rows the acting role sees at a membership level; row security uses it';

CREATE FUNCTION leasehold.error_codes(OUT code text, OUT sqlstate text) RETURNS SETOF record
    LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'leasehold_error_codes';
COMMENT ON FUNCTION leasehold.error_codes() IS
    'instant: the machine codes that errors carry in DETAIL, and their SQLSTATEs';

CREATE FUNCTION leasehold_internal.refuse(code text, message text, hint text DEFAULT NULL, detail jsonb DEFAULT NULL)
    RETURNS void LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_refuse';
COMMENT ON FUNCTION leasehold_internal.refuse(text, text, text, jsonb) IS 'Raises one of the documented errors';

CREATE FUNCTION leasehold_internal.enter_company(company text, level text, admin_may boolean DEFAULT false)
    RETURNS uuid LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_enter_company';
COMMENT ON FUNCTION leasehold_internal.enter_company(text, text, boolean) IS
    'The company a public function is about, after the check of the caller''s level in it';

CREATE FUNCTION leasehold_internal.enter_own_membership(company text) RETURNS uuid
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_enter_own_membership';
COMMENT ON FUNCTION leasehold_internal.enter_own_membership(text) IS
    'The company, if the caller itself has a membership there, even a pending one; else NULL';

CREATE FUNCTION leasehold_internal.enter_admin() RETURNS void
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_enter_admin';
COMMENT ON FUNCTION leasehold_internal.enter_admin() IS 'Lets only leasehold_admin go on';

CREATE FUNCTION leasehold_internal.is_admin() RETURNS boolean
    LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'leasehold_is_admin';
COMMENT ON FUNCTION leasehold_internal.is_admin() IS 'Whether the caller has the privileges of leasehold_admin';

CREATE FUNCTION leasehold_internal.choose_company(company text, actor text) RETURNS uuid
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_choose_company';
COMMENT ON FUNCTION leasehold_internal.choose_company(text, text) IS 'Behind leasehold.use_company()';

CREATE FUNCTION leasehold_internal.asserted_actor() RETURNS text
    LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'leasehold_asserted_actor';
COMMENT ON FUNCTION leasehold_internal.asserted_actor() IS 'Whom the application says it acts for in this transaction';

-- Statement trigger on every table of which some process keeps a copy.
CREATE FUNCTION leasehold_internal.relation_changed() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'leasehold_relation_changed';
COMMENT ON FUNCTION leasehold_internal.relation_changed() IS
    'Has workers and sessions read again what they keep of the table, workers at once';

-- The id that stands for "the whole installation" where a company's would.
CREATE FUNCTION leasehold_internal.no_company() RETURNS uuid
    LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN '00000000-0000-0000-0000-000000000000'::uuid;
COMMENT ON FUNCTION leasehold_internal.no_company() IS 'Stands for the installation where a company''s id would';

-- Checks of arguments.  Each raises, or returns the value to use.

CREATE FUNCTION leasehold_internal.check_key(argument text, value text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF value OPERATOR(pg_catalog.!~) '^[a-z0-9][a-z0-9._-]{0,62}$' THEN
        PERFORM leasehold_internal.refuse('key_invalid',
            pg_catalog.format('argument "%s" is not a valid key', argument),
            'A key starts with a lower-case letter or digit and goes on with those, ".", "_" or "-", 63 characters at most.');
    END IF;
    RETURN value;
END
$$;
COMMENT ON FUNCTION leasehold_internal.check_key(text, text) IS 'Refuses what is not a key';

CREATE FUNCTION leasehold_internal.check_text(argument text, value text, longest integer DEFAULT 200) RETURNS text
    LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF pg_catalog.length(value) OPERATOR(pg_catalog.>) longest THEN
        PERFORM leasehold_internal.refuse('argument_too_large',
            pg_catalog.format('argument "%s" is too long', argument),
            pg_catalog.format('The limit is %s characters.', longest));
    END IF;
    IF value OPERATOR(pg_catalog.~) '[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]' THEN
        PERFORM leasehold_internal.refuse('argument_invalid',
            pg_catalog.format('argument "%s" contains control characters', argument));
    END IF;
    RETURN value;
END
$$;
COMMENT ON FUNCTION leasehold_internal.check_text(text, text, integer) IS 'Refuses overlong text and control characters';

CREATE FUNCTION leasehold_internal.check_choice(argument text, value text, VARIADIC allowed text[]) RETURNS text
    LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF value IS NULL OR NOT value OPERATOR(pg_catalog.=) ANY (allowed) THEN
        PERFORM leasehold_internal.refuse('argument_invalid',
            pg_catalog.format('argument "%s" has a value that is not allowed', argument),
            pg_catalog.format('Allowed: %s.', pg_catalog.array_to_string(allowed, ', ')));
    END IF;
    RETURN value;
END
$$;
COMMENT ON FUNCTION leasehold_internal.check_choice(text, text, text[]) IS 'Refuses a value outside a closed set';

CREATE FUNCTION leasehold_internal.check_object(argument text, value jsonb, largest integer DEFAULT 65536) RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF value IS NOT NULL AND pg_catalog.jsonb_typeof(value) OPERATOR(pg_catalog.<>) 'object' THEN
        PERFORM leasehold_internal.refuse('argument_invalid',
            pg_catalog.format('argument "%s" must be a JSON object', argument));
    END IF;
    IF pg_catalog.octet_length(value::text) OPERATOR(pg_catalog.>) largest THEN
        PERFORM leasehold_internal.refuse('argument_too_large',
            pg_catalog.format('argument "%s" is too large', argument),
            pg_catalog.format('The limit is %s bytes.', largest));
    END IF;
    RETURN value;
END
$$;
COMMENT ON FUNCTION leasehold_internal.check_object(text, jsonb, integer) IS 'Refuses what is not a JSON object of bounded size';

CREATE FUNCTION leasehold_internal.check_env(argument text, value jsonb) RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    bad text;
BEGIN
    PERFORM leasehold_internal.check_object(argument, value);
    SELECT e.key INTO bad
      FROM pg_catalog.jsonb_each(value) AS e
     WHERE e.key OPERATOR(pg_catalog.!~) '^[A-Za-z_][A-Za-z0-9_]{0,254}$'
        OR NOT CASE pg_catalog.jsonb_typeof(e.value)
               WHEN 'string' THEN true
               -- {"$secret": "<key>"} or {"$secret": {"id": ..., "version": ...}}
               WHEN 'object' THEN e.value OPERATOR(pg_catalog.-) '$secret' OPERATOR(pg_catalog.=) '{}'
                                  AND pg_catalog.jsonb_typeof(e.value OPERATOR(pg_catalog.->) '$secret') IN ('string', 'object')
               ELSE false END
     LIMIT 1;
    IF FOUND THEN
        PERFORM leasehold_internal.refuse('argument_invalid',
            pg_catalog.format('argument "%s" is not a set of environment variables', argument),
            'Names are letters, digits and underscores and do not start with a digit; values are strings or references {"$secret": ...}.',
            pg_catalog.jsonb_build_object('variable', pg_catalog.left(bad, 100)));
    END IF;
    RETURN value;
END
$$;
COMMENT ON FUNCTION leasehold_internal.check_env(text, jsonb) IS 'Refuses what is not a map of environment variables';

CREATE FUNCTION leasehold_internal.check_interval(argument text, value interval, lowest interval, highest interval)
    RETURNS interval LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF value OPERATOR(pg_catalog.<) lowest OR value OPERATOR(pg_catalog.>) highest THEN
        PERFORM leasehold_internal.refuse('argument_invalid',
            pg_catalog.format('argument "%s" is out of range', argument),
            pg_catalog.format('It must be between %s and %s.', lowest, highest));
    END IF;
    RETURN value;
END
$$;
COMMENT ON FUNCTION leasehold_internal.check_interval(text, interval, interval, interval) IS
    'Refuses a duration outside its range';

-- revoke_all() takes from everybody what the installing role's default
-- privileges gave him.

CREATE FUNCTION leasehold_internal.revoke_all(object_type text, object text, acl aclitem[]) RETURNS void
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    grantee oid;
BEGIN
    EXECUTE format('REVOKE ALL ON %s %s FROM PUBLIC CASCADE', object_type, object);
    FOR grantee IN SELECT DISTINCT a.grantee FROM aclexplode(acl) AS a WHERE a.grantee NOT IN (0, a.grantor) LOOP
        EXECUTE format('REVOKE ALL ON %s %s FROM %s CASCADE', object_type, object, grantee::regrole);
    END LOOP;
END
$$;
COMMENT ON FUNCTION leasehold_internal.revoke_all(text, text, aclitem[]) IS
    'Takes all privileges on an object from everybody but its owner, for the install and upgrade scripts';

-- publish() makes the public function of an implementation: same name,
-- arguments, defaults and result, and the entry gate as its body.

CREATE FUNCTION leasehold_internal.publish(implementation regproc, kind text, description text, VARIADIC to_roles text[])
    RETURNS void LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    proc   pg_proc;
    target text;
    grantee text;
BEGIN
    SELECT p.* INTO STRICT proc FROM pg_proc AS p WHERE p.oid = implementation;
    IF kind NOT IN ('instant', 'waits') THEN
        RAISE EXCEPTION 'unknown kind of function: %', kind;
    END IF;
    target := format('leasehold.%I(%s)', proc.proname, pg_get_function_identity_arguments(proc.oid));
    EXECUTE format('CREATE FUNCTION leasehold.%I(%s) RETURNS %s LANGUAGE c %s AS %L, %L',
        proc.proname, pg_get_function_arguments(proc.oid), pg_get_function_result(proc.oid),
        CASE proc.provolatile WHEN 'v' THEN 'VOLATILE' WHEN 's' THEN 'STABLE' ELSE 'IMMUTABLE' END,
        '$libdir/leasehold', 'leasehold_gate');
    PERFORM leasehold_internal.revoke_all('FUNCTION', target,
        (SELECT p.proacl FROM pg_proc AS p WHERE p.pronamespace = 'leasehold'::regnamespace
            AND p.proname = proc.proname AND p.proargtypes = proc.proargtypes));
    FOREACH grantee IN ARRAY to_roles LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', target, grantee);
    END LOOP;
    EXECUTE format('COMMENT ON FUNCTION %s IS %L', target, kind || ': ' || description);
    EXECUTE format('COMMENT ON FUNCTION leasehold_internal.%I(%s) IS %L', proc.proname,
        pg_get_function_identity_arguments(proc.oid), 'Implementation of leasehold.' || proc.proname);
END
$$;
COMMENT ON FUNCTION leasehold_internal.publish(regproc, text, text, text[]) IS
    'Makes the public function of an implementation, for the install and upgrade scripts';

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

-- protect() gives a table its row security: rows of companies that the acting
-- role sees at the level, and the owner, too, is bound by it.  Only the owner has
-- a policy for writing, so a privilege that was given by mistake changes nothing.

CREATE FUNCTION leasehold_internal.protect(target regclass, level text, company_column text DEFAULT 'company_id')
    RETURNS void LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    rows_seen text := format('USING (%I = ANY ((SELECT leasehold.visible_companies(%L))::uuid[]))', company_column, level);
BEGIN
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', target);
    EXECUTE format('CREATE POLICY companies ON %s TO leasehold_owner %s', target, rows_seen);
    EXECUTE format('COMMENT ON POLICY companies ON %s IS %L', target,
        'Rows of the companies in which the acting role has at least the level ' || level);
    IF (SELECT c.relnamespace FROM pg_class AS c WHERE c.oid = target) = 'leasehold'::regnamespace THEN
        EXECUTE format('CREATE POLICY readers ON %s FOR SELECT TO leasehold_admin, leasehold_app, leasehold_auditor %s',
            target, rows_seen);
        EXECUTE format('COMMENT ON POLICY readers ON %s IS %L', target, 'The same rows, to read');
    END IF;
END
$$;
COMMENT ON FUNCTION leasehold_internal.protect(regclass, text, text) IS
    'Gives a table its row security, for the install and upgrade scripts';
