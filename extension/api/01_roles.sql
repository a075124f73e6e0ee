-- 01_roles.sql: the roles, which are made if missing and outlive the extension.
--
-- leasehold_owner   owns every object; public functions run as it
-- leasehold_worker  what the background worker's SQL runs as
-- leasehold_admin   the installation: plugins, limits, operations of all companies
-- leasehold_app     an application or an operator of some companies
-- leasehold_auditor metadata and the audit trail
-- leasehold_resolver may receive the plaintext of secrets
--
-- A role that is there already may have been put there by somebody who wants
-- to be let in, so it is taken only if it has no power of its own and nobody
-- but a superuser gave it members.

DO $$
DECLARE
    wanted record;
    present record;
BEGIN
    FOR wanted IN
        SELECT * FROM (VALUES
            ('leasehold_owner', false, false),
            ('leasehold_worker', true, false),
            ('leasehold_admin', false, true),
            ('leasehold_app', false, true),
            ('leasehold_auditor', false, true),
            ('leasehold_resolver', false, true)) AS r (role_name, bypass, may_have_members)
    LOOP
        SELECT a.* INTO present FROM pg_catalog.pg_authid AS a
         WHERE a.rolname OPERATOR(pg_catalog.=) wanted.role_name::pg_catalog.name;
        IF NOT FOUND THEN
            EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION INHERIT %s',
                wanted.role_name, CASE WHEN wanted.bypass THEN 'BYPASSRLS' ELSE 'NOBYPASSRLS' END);
            CONTINUE;
        END IF;

        IF present.rolcanlogin OR present.rolsuper OR present.rolcreaterole OR present.rolcreatedb
           OR present.rolreplication OR present.rolbypassrls OPERATOR(pg_catalog.<>) wanted.bypass THEN
            RAISE EXCEPTION 'role "%" exists and is not as leasehold needs it', wanted.role_name
                USING ERRCODE = 'PT422', DETAIL = '{"code": "role_unsuitable"}',
                      HINT = 'It must have NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION, and BYPASSRLS only if it is leasehold_worker. Change or drop it.';
        END IF;
        IF EXISTS (SELECT FROM pg_catalog.pg_auth_members AS m
                   LEFT JOIN pg_catalog.pg_authid AS g ON g.oid OPERATOR(pg_catalog.=) m.grantor
                   WHERE m.roleid OPERATOR(pg_catalog.=) present.oid
                     AND NOT (wanted.may_have_members AND COALESCE(g.rolsuper, false))) THEN
            RAISE EXCEPTION 'role "%" exists and has members that leasehold cannot trust', wanted.role_name
                USING ERRCODE = 'PT422', DETAIL = '{"code": "role_unsuitable"}',
                      HINT = 'Revoke the role from members that no superuser granted it to; leasehold_owner and leasehold_worker must have none.';
        END IF;
        IF EXISTS (SELECT FROM pg_catalog.pg_auth_members AS m
                   WHERE m.member OPERATOR(pg_catalog.=) present.oid) THEN
            RAISE EXCEPTION 'role "%" exists and is a member of another role', wanted.role_name
                USING ERRCODE = 'PT422', DETAIL = '{"code": "role_unsuitable"}',
                      HINT = 'Revoke the other role from it.';
        END IF;
    END LOOP;
END
$$;

CREATE SCHEMA leasehold;
COMMENT ON SCHEMA leasehold IS 'Leased places for agents to run: what users read and call';
CREATE SCHEMA leasehold_internal;
COMMENT ON SCHEMA leasehold_internal IS 'What only the owner and the worker of leasehold use';
