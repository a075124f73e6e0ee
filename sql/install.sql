-- Installing and dropping the extension: what must hold before, what hostile
-- things may be there already, and what keeps it from being dropped.
\pset format unaligned
\pset tuples_only on
SET client_min_messages = error;
SELECT current_database() AS home \gset
-- what an interrupted run may have left
DROP DATABASE IF EXISTS regress_install WITH (FORCE);
DROP DATABASE IF EXISTS regress_ascii WITH (FORCE);
CREATE DATABASE regress_install TEMPLATE template0 ENCODING 'UTF8';
CREATE DATABASE regress_ascii TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C';
\set VERBOSITY sqlstate

\c regress_ascii
\pset tuples_only on
SET client_min_messages = error;
CREATE EXTENSION leasehold;
\c regress_install
\pset format unaligned
\pset tuples_only on
SET client_min_messages = error;
-- roles: one that somebody may already be in is not taken
GRANT leasehold_owner TO regress_stranger;
CREATE EXTENSION leasehold;
REVOKE leasehold_owner FROM regress_stranger;
ALTER ROLE leasehold_app LOGIN;
CREATE EXTENSION leasehold;
ALTER ROLE leasehold_app NOLOGIN;
ALTER ROLE leasehold_auditor BYPASSRLS;
CREATE EXTENSION leasehold;
ALTER ROLE leasehold_auditor NOBYPASSRLS;
GRANT pg_read_all_data TO leasehold_resolver;
CREATE EXTENSION leasehold;
REVOKE pg_read_all_data FROM leasehold_resolver;
-- schemas: one that is there already is not taken
CREATE SCHEMA leasehold AUTHORIZATION regress_stranger;
CREATE EXTENSION leasehold;
DROP SCHEMA leasehold;
CREATE SCHEMA leasehold_internal AUTHORIZATION regress_stranger;
CREATE EXTENSION leasehold;
DROP SCHEMA leasehold_internal;

-- names: own functions and operators, first in the path of who installs, that say so if they are taken
CREATE SCHEMA hijack;
DO $$
DECLARE
    f      record;
    common oid[] := ARRAY['uuid', 'text', 'name', 'oid', 'bool', 'int4', 'int8', 'timestamptz', 'interval', 'jsonb', 'uuid[]', 'text[]', 'regclass', '"char"', 'regproc']::regtype[]::oid[];
BEGIN
    FOR f IN SELECT p.proname, format_type(p.prorettype, NULL) AS result,
                    (SELECT string_agg(format_type(a, NULL), ', ' ORDER BY n) FROM unnest(p.proargtypes) WITH ORDINALITY AS x (a, n)) AS arguments
               FROM pg_proc AS p
              WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f' AND NOT p.proretset AND p.provariadic = 0 AND p.proargtypes::oid[] <@ common AND p.prorettype = ANY (common) LOOP
        EXECUTE format('CREATE FUNCTION hijack.%I(%s) RETURNS %s LANGUAGE plpgsql AS %L', f.proname, f.arguments, f.result, 'BEGIN RAISE EXCEPTION ''hijacked''; END');
    END LOOP;
    FOR f IN SELECT o.oprname, o.oprleft, o.oprright, o.oprresult FROM pg_operator AS o
              WHERE o.oprnamespace = 'pg_catalog'::regnamespace AND o.oprleft = ANY (common) AND o.oprright = ANY (common) AND o.oprresult = ANY (common) LOOP
        EXECUTE format('CREATE FUNCTION hijack.%I(%s, %s) RETURNS %s LANGUAGE plpgsql AS %L', 'op ' || f.oprname, format_type(f.oprleft, NULL), format_type(f.oprright, NULL), format_type(f.oprresult, NULL), 'BEGIN RAISE EXCEPTION ''hijacked''; END');
        EXECUTE format('CREATE OPERATOR hijack.%s (procedure = hijack.%I, leftarg = %s, rightarg = %s)', f.oprname, 'op ' || f.oprname, format_type(f.oprleft, NULL), format_type(f.oprright, NULL));
    END LOOP;
END
$$;
-- functions that fit better than the system's own, which take anything
CREATE FUNCTION hijack.format(text, text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'hijacked: format'; END $$;
CREATE FUNCTION hijack.format(text, text, text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'hijacked: format'; END $$;
CREATE TEMP TABLE pg_proc (oid oid, proname name);
CREATE TEMP TABLE pg_roles (rolname name);
SET search_path = hijack, pg_temp;
CREATE EXTENSION leasehold;
RESET search_path;
SELECT e.extversion ~ '^[0-9]+[.][0-9]+' AS installed, e.extrelocatable AS relocatable FROM pg_extension AS e WHERE e.extname = 'leasehold';
DROP TABLE pg_temp.pg_proc, pg_temp.pg_roles;
SELECT count(*) AS objects_that_depend_on_hijack FROM pg_depend AS d JOIN pg_proc AS p ON d.refclassid = 'pg_proc'::regclass AND d.refobjid = p.oid AND p.pronamespace = 'hijack'::regnamespace
  JOIN pg_depend AS x ON x.classid = d.classid AND x.objid = d.objid AND x.deptype = 'e' AND x.refclassid = 'pg_extension'::regclass;
DROP SCHEMA hijack CASCADE;
SELECT count(*) AS the_extension_does_not_go_with_a_schema FROM pg_extension WHERE extname = 'leasehold';
CREATE EXTENSION leasehold;
ALTER EXTENSION leasehold SET SCHEMA public;
-- nothing belongs to a superuser, but what an extension must leave him
SELECT DISTINCT pg_get_userbyid(c.relowner) FROM pg_class AS c WHERE c.relnamespace IN ('leasehold'::regnamespace, 'leasehold_internal'::regnamespace);

-- dropping: not while resources may be there; nobody gets around it
SELECT leasehold.create_company('acme') IS NOT NULL AS made;
SELECT leasehold.grant_company('acme', 'regress_manager', 'manager');
SET ROLE regress_manager;
SELECT leasehold.create_environment('plain', 'fake') IS NOT NULL AS made;
SELECT leasehold.request_lease('plain', lease_id => '00000000-0000-0000-0000-00000000000a') IS NOT NULL AS requested;
RESET ROLE;
DROP EXTENSION leasehold;
DROP EXTENSION leasehold CASCADE;
DROP SCHEMA leasehold CASCADE;
DROP OWNED BY leasehold_owner CASCADE;
-- in a session that has not used it yet, too
\c
\pset format unaligned
\pset tuples_only on
SET client_min_messages = error;
DROP EXTENSION leasehold;
SELECT count(*) FROM leasehold.leases;
SET ROLE regress_manager;
SET leasehold.allow_drop = on;
RESET ROLE;
-- emptied, it can go; its roles stay, and it can come again
SELECT leasehold.drain_installation() <= 1 AS draining;
DO $$
BEGIN
    FOR i IN 1 .. 3000 LOOP
        EXIT WHEN NOT EXISTS (SELECT FROM leasehold.leases WHERE leasehold_internal.may_have_resource(status));
        PERFORM pg_sleep(0.01);
    END LOOP;
END
$$;
-- a resource of no lease that is to be removed counts, too
INSERT INTO leasehold_internal.provider_resources (provider, provider_lease_id, company_id, stray_id, environment_id, config_version, generation, reason)
SELECT 'nobody', 'box', e.company_id, e.id, e.id, 1, 1, 'no_lease' FROM leasehold_internal.environments AS e WHERE e.key = 'plain';
DROP EXTENSION leasehold;
SELECT leasehold.drain_installation() AS draining;
DELETE FROM leasehold_internal.provider_resources WHERE provider = 'nobody';
DROP EXTENSION leasehold;
SELECT count(*) AS roles FROM pg_roles WHERE rolname LIKE 'leasehold\_%';
SELECT count(*) AS schemas FROM pg_namespace WHERE nspname LIKE 'leasehold%';
CREATE EXTENSION leasehold;
SELECT count(*) AS companies FROM leasehold.companies;
-- resources may be abandoned by who says so
SELECT leasehold.create_company('acme') IS NOT NULL AS made;
SELECT leasehold.grant_company('acme', 'regress_manager', 'manager');
SET ROLE regress_manager;
SELECT leasehold.create_environment('plain', 'fake') IS NOT NULL AS made;
SELECT leasehold.request_lease('plain') IS NOT NULL AS requested;
RESET ROLE;
SET leasehold.allow_drop = on;
DROP EXTENSION leasehold;
SELECT count(*) AS installed FROM pg_extension WHERE extname = 'leasehold';
-- a database goes while its worker is connected, without force
CREATE EXTENSION leasehold;
SELECT leasehold.create_company('acme') IS NOT NULL AS made;
\c :home
SET client_min_messages = error;
DROP DATABASE regress_install;
DROP DATABASE regress_ascii;
SELECT count(*) AS databases FROM pg_database WHERE datname IN ('regress_install', 'regress_ascii');
