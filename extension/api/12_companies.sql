-- 12_companies.sql: companies, their members, and the choice of one.

CREATE TABLE leasehold.companies (
    id          uuid PRIMARY KEY DEFAULT leasehold.new_id(),
    key         leasehold.object_key NOT NULL,
    name        text NOT NULL,
    status      leasehold.object_status NOT NULL DEFAULT 'active',
    created_at  timestamptz NOT NULL DEFAULT pg_catalog.now(),
    updated_at  timestamptz NOT NULL DEFAULT pg_catalog.now(),
    CONSTRAINT companies_key_key UNIQUE (key)
);
COMMENT ON TABLE leasehold.companies IS 'The tenants: everything else belongs to one of them';

CREATE TABLE leasehold.company_members (
    company_id        uuid NOT NULL REFERENCES leasehold.companies,
    role_name         name NOT NULL,
    role_oid          oid NOT NULL,
    level             leasehold.member_level NOT NULL,
    asserts_actor     boolean NOT NULL DEFAULT false,
    pending           boolean NOT NULL DEFAULT false,
    system_identifier text NOT NULL,
    granted_by        name NOT NULL DEFAULT leasehold.acting_role(),
    granted_at        timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (company_id, role_name)
);
COMMENT ON TABLE leasehold.company_members IS 'Which roles work for which company, and at which level';
COMMENT ON COLUMN leasehold.company_members.asserts_actor IS 'The role may name in use_company() whom it acts for';
COMMENT ON COLUMN leasehold.company_members.pending IS
    'A manager granted it and the role has not accepted it: it gives nothing yet';
COMMENT ON COLUMN leasehold.company_members.role_oid IS
    'With the name and the cluster''s system identifier: the role this was granted to, and no other of its name';

SELECT leasehold_internal.protect('leasehold.companies', 'viewer', 'id');
CREATE POLICY new_company ON leasehold.companies FOR INSERT TO leasehold_owner WITH CHECK (true);
COMMENT ON POLICY new_company ON leasehold.companies IS
    'A company that is being made cannot be visible before; only create_company() has the privilege to insert';
SELECT leasehold_internal.protect('leasehold.company_members', 'viewer');

CREATE TRIGGER members_changed AFTER INSERT OR UPDATE OR DELETE ON leasehold.company_members
    FOR EACH STATEMENT EXECUTE FUNCTION leasehold_internal.relation_changed();
CREATE TRIGGER members_truncated AFTER TRUNCATE ON leasehold.company_members
    FOR EACH STATEMENT EXECUTE FUNCTION leasehold_internal.relation_changed();

-- Refuses unless the company is in use.
CREATE FUNCTION leasehold_internal.require_active_company(company_id uuid) RETURNS void
    LANGUAGE plpgsql STABLE AS $$
BEGIN
    PERFORM FROM leasehold.companies AS c
      WHERE c.id = require_active_company.company_id AND c.status = 'active';
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('company_inactive', 'the company is archived');
    END IF;
END
$$;
COMMENT ON FUNCTION leasehold_internal.require_active_company(uuid) IS 'Refuses unless the company is in use';

CREATE FUNCTION leasehold_internal.create_company(company text, name text DEFAULT NULL, company_id uuid DEFAULT NULL)
    RETURNS uuid LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_id uuid := COALESCE(create_company.company_id, leasehold.new_id());
BEGIN
    PERFORM leasehold_internal.enter_admin();
    PERFORM leasehold_internal.check_key('company', company);
    PERFORM leasehold_internal.check_text('name', create_company.name);
    IF v_id = leasehold_internal.no_company() THEN
        PERFORM leasehold_internal.refuse('argument_invalid', 'argument "company_id" must not be the nil id');
    END IF;
    PERFORM leasehold_internal.ensure_installation();

    BEGIN
        INSERT INTO leasehold.companies (id, key, name)
        VALUES (v_id, company, COALESCE(create_company.name, company));
    EXCEPTION WHEN unique_violation THEN
        PERFORM leasehold_internal.refuse('already_exists', pg_catalog.format('company "%s" already exists', company),
            'Take another key; use_company() or grant_company() work with the one there is.');
    END;
    PERFORM leasehold_internal.record(v_id, 'company.created', 'company', v_id::text,
        pg_catalog.jsonb_build_object('key', company));
    RETURN v_id;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.create_company', 'instant',
    'makes a company; its key is for good', 'leasehold_admin');

-- Another company can be a burden (which one is meant is ambiguous then) or a
-- trap (what is meant for none, or for another, lands there).  So a manager only
-- invites; the role itself has to accept.  A role with members is not asked: each
-- of them could answer for all.

CREATE FUNCTION leasehold_internal.has_members(role name) RETURNS boolean
    LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM pg_catalog.pg_auth_members AS m
                     JOIN pg_catalog.pg_roles AS r ON r.oid = m.roleid WHERE r.rolname = has_members.role)
$$;
COMMENT ON FUNCTION leasehold_internal.has_members(name) IS 'Whether others can act as the role';

CREATE FUNCTION leasehold_internal.grant_company(
        company text, to_role text, level text DEFAULT 'user', asserts_actor boolean DEFAULT false)
    RETURNS void LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid;
    v_role    record;
    v_pending boolean;
BEGIN
    v_company := leasehold_internal.enter_company(company, 'manager', true);
    PERFORM leasehold_internal.check_choice('level', grant_company.level, 'viewer', 'user', 'manager');
    SELECT a.oid, a.rolname INTO v_role FROM pg_catalog.pg_roles AS a WHERE a.rolname = to_role::name;
    IF NOT FOUND OR v_role.rolname::text <> to_role THEN
        PERFORM leasehold_internal.refuse('role_not_found',
            pg_catalog.format('role "%s" does not exist', pg_catalog.left(to_role, 63)),
            'Make it first: CREATE ROLE ... LOGIN IN ROLE leasehold_app.');
    END IF;
    IF v_role.rolname::text LIKE 'leasehold\_%' THEN
        PERFORM leasehold_internal.refuse('role_unsuitable',
            pg_catalog.format('role "%s" is one of leasehold''s own', to_role),
            'Grant the company to a role of a person or an application.');
    END IF;

    INSERT INTO leasehold.company_members AS m
           (company_id, role_name, role_oid, level, asserts_actor, pending, system_identifier)
    SELECT v_company, v_role.rolname, v_role.oid, grant_company.level,
           COALESCE(grant_company.asserts_actor, false), NOT leasehold_internal.is_admin(), h.system_identifier
      FROM leasehold_internal.here() AS h
    ON CONFLICT (company_id, role_name) DO UPDATE
       SET role_oid = excluded.role_oid, level = excluded.level, asserts_actor = excluded.asserts_actor,
           system_identifier = excluded.system_identifier, granted_by = excluded.granted_by,
           granted_at = excluded.granted_at,
           -- who has accepted need not do so again, if it is the same role
           pending = excluded.pending AND (m.pending OR m.role_oid <> excluded.role_oid
                                           OR m.system_identifier <> excluded.system_identifier)
    RETURNING m.pending INTO v_pending;
    PERFORM leasehold_internal.record(v_company, 'company.member_granted', 'company_member', to_role,
        pg_catalog.jsonb_build_object('level', grant_company.level, 'assertsActor', COALESCE(grant_company.asserts_actor, false),
                                      'pending', v_pending));
    IF NOT pg_catalog.pg_has_role(v_role.oid, 'leasehold_app', 'USAGE')
       AND NOT pg_catalog.pg_has_role(v_role.oid, 'leasehold_auditor', 'USAGE')
       AND NOT pg_catalog.pg_has_role(v_role.oid, 'leasehold_admin', 'USAGE') THEN
        RAISE NOTICE 'role "%" may not call any of Leasehold''s functions yet', v_role.rolname
              USING HINT = pg_catalog.format('GRANT leasehold_app TO %I.', v_role.rolname);
    END IF;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.grant_company', 'instant',
    'lets a role work for a company at a level, or changes the level; what a manager grants, the role has to accept',
    'leasehold_admin', 'leasehold_app');

-- Its owner is the worker's role: the companies are not among those that the caller sees.
CREATE FUNCTION leasehold_internal.invitations_of(
        role name, OUT company text, OUT level text, OUT asserts_actor boolean, OUT granted_by name,
        OUT granted_at timestamptz)
    RETURNS SETOF record LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT c.key, m.level, m.asserts_actor, m.granted_by, m.granted_at
      FROM leasehold.company_members AS m
      JOIN leasehold.companies AS c ON c.id = m.company_id
      JOIN pg_roles AS r ON r.oid = m.role_oid AND r.rolname = m.role_name
     CROSS JOIN leasehold_internal.here() AS h
     WHERE m.pending AND m.role_name = invitations_of.role AND m.system_identifier = h.system_identifier
$$;
COMMENT ON FUNCTION leasehold_internal.invitations_of(name) IS 'The pending memberships of a role';

CREATE FUNCTION leasehold_internal.invitations(
        OUT company text, OUT level text, OUT asserts_actor boolean, OUT granted_by name, OUT granted_at timestamptz)
    RETURNS SETOF record LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN QUERY SELECT i.* FROM leasehold_internal.invitations_of(leasehold.acting_role()) AS i;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.invitations', 'instant',
    'the memberships that managers granted to the role and that it has not accepted',
    'leasehold_admin', 'leasehold_app', 'leasehold_auditor', 'leasehold_resolver');

CREATE FUNCTION leasehold_internal.accept_company(company text) RETURNS uuid
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_role    name := leasehold.acting_role();
    v_company uuid := COALESCE(leasehold_internal.enter_own_membership(company),
                               leasehold_internal.enter_company(company, 'viewer'));
    v_level   text;
    v_pending boolean;
BEGIN
    SELECT m.level, m.pending INTO v_level, v_pending FROM leasehold.company_members AS m
     WHERE m.company_id = v_company AND m.role_name = v_role FOR UPDATE;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('member_not_found',
            pg_catalog.format('role "%s" has no membership of its own in the company', v_role));
    END IF;
    IF v_pending THEN
        IF leasehold_internal.has_members(v_role) THEN
            PERFORM leasehold_internal.refuse('forbidden',
                pg_catalog.format('role "%s" cannot accept for all its members', v_role),
                'Have a leasehold_admin call grant_company().');
        END IF;
        UPDATE leasehold.company_members AS m SET pending = false WHERE m.company_id = v_company AND m.role_name = v_role;
        PERFORM leasehold_internal.record(v_company, 'company.member_accepted', 'company_member', v_role::text,
            pg_catalog.jsonb_build_object('level', v_level));
    END IF;
    RETURN v_company;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.accept_company', 'instant',
    'accepts a membership that a manager granted to the role, and returns the company''s id',
    'leasehold_admin', 'leasehold_app', 'leasehold_auditor', 'leasehold_resolver');

CREATE FUNCTION leasehold_internal.revoke_company(company text, from_role text) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid;
BEGIN
    IF from_role = leasehold.acting_role()::text AND NOT leasehold_internal.has_members(from_role::name) THEN
        v_company := leasehold_internal.enter_own_membership(company);
    END IF;
    IF v_company IS NULL THEN
        v_company := leasehold_internal.enter_company(company, 'manager', true);
    END IF;
    PERFORM FROM leasehold.company_members AS m
      WHERE m.company_id = v_company AND m.role_name = from_role::name AND m.role_name::text = from_role FOR UPDATE;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('member_not_found',
            pg_catalog.format('role "%s" is not a member of the company', pg_catalog.left(from_role, 63)));
    END IF;
    -- first the event: afterwards the actor whom the role asserts is not its to assert
    PERFORM leasehold_internal.record(v_company, 'company.member_revoked', 'company_member', from_role);
    DELETE FROM leasehold.company_members AS m WHERE m.company_id = v_company AND m.role_name = from_role::name;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.revoke_company', 'instant',
    'ends a role''s membership in a company, or the caller''s own, also a pending one',
    'leasehold_admin', 'leasehold_app', 'leasehold_auditor', 'leasehold_resolver');

CREATE FUNCTION leasehold_internal.repair_members(company text DEFAULT NULL)
    RETURNS integer LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company  uuid;
    v_repaired record;
    v_count    integer := 0;
BEGIN
    PERFORM leasehold_internal.enter_admin();
    IF company IS NOT NULL THEN
        v_company := leasehold_internal.enter_company(company, 'manager', true);
    END IF;
    FOR v_repaired IN
        UPDATE leasehold.company_members AS m
           SET role_oid = a.oid, system_identifier = h.system_identifier,
               granted_by = leasehold.acting_role(), granted_at = pg_catalog.now()
          FROM pg_catalog.pg_roles AS a, leasehold_internal.here() AS h
         WHERE a.rolname = m.role_name
           AND (m.company_id = v_company OR v_company IS NULL)
           AND (m.role_oid <> a.oid OR m.system_identifier <> h.system_identifier)
        RETURNING m.company_id, m.role_name, m.level
    LOOP
        v_count := v_count + 1;
        PERFORM leasehold_internal.record(v_repaired.company_id, 'company.member_repaired', 'company_member',
            v_repaired.role_name::text, pg_catalog.jsonb_build_object('level', v_repaired.level));
    END LOOP;
    RETURN v_count;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.repair_members', 'instant',
    'makes memberships valid again whose roles were recreated or which were restored from elsewhere, and returns how many',
    'leasehold_admin');

CREATE FUNCTION leasehold_internal.use_company(company text, actor text DEFAULT NULL) RETURNS uuid
    LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM leasehold_internal.check_text('actor', actor);
    RETURN leasehold_internal.choose_company(company, actor);
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.use_company', 'instant',
    'chooses the company, and whom the caller acts for, until the transaction ends',
    'leasehold_admin', 'leasehold_app', 'leasehold_auditor', 'leasehold_resolver');

-- For PostgREST's db-pre-request: the claims "company" and "actor" of the
-- request's token.  They only choose among what the role may do anyway; an
-- actor without a company means the role's only one.
CREATE FUNCTION leasehold_internal.pre_request() RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_claims jsonb := NULLIF(pg_catalog.current_setting('request.jwt.claims', true), '')::jsonb;
BEGIN
    PERFORM leasehold_internal.check_text('actor', v_claims ->> 'actor');
    IF v_claims ->> 'company' IS NOT NULL OR v_claims ->> 'actor' IS NOT NULL THEN
        PERFORM leasehold_internal.choose_company(v_claims ->> 'company', v_claims ->> 'actor');
    END IF;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.pre_request', 'instant',
    'use_company() with the claims "company" and "actor" of PostgREST''s request',
    'leasehold_admin', 'leasehold_app', 'leasehold_auditor', 'leasehold_resolver');
