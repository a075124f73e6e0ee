-- 99_finish.sql: owners, grants, what is dumped, and the announcement.

-- A drop begins with loading the library that guards it.
CREATE FUNCTION leasehold_internal.guard_drop() RETURNS event_trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'leasehold_guard_drop';
SELECT leasehold_internal.revoke_all('FUNCTION', p.oid::pg_catalog.regprocedure::text, p.proacl)
  FROM pg_catalog.pg_proc AS p WHERE p.oid = 'leasehold_internal.guard_drop()'::pg_catalog.regprocedure;
COMMENT ON FUNCTION leasehold_internal.guard_drop() IS 'Loads the library, whose hook guards DROP EXTENSION';
CREATE EVENT TRIGGER leasehold_guard_drop ON ddl_command_start
    WHEN TAG IN ('DROP EXTENSION', 'DROP OWNED')
    EXECUTE FUNCTION leasehold_internal.guard_drop();
ALTER EVENT TRIGGER leasehold_guard_drop ENABLE ALWAYS;
COMMENT ON EVENT TRIGGER leasehold_guard_drop IS 'Loads the library, whose hook guards DROP EXTENSION';

CREATE FUNCTION leasehold_internal.announce_extension() RETURNS void
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_announce_extension';
SELECT leasehold_internal.revoke_all('FUNCTION', p.oid::pg_catalog.regprocedure::text, p.proacl)
  FROM pg_catalog.pg_proc AS p WHERE p.oid = 'leasehold_internal.announce_extension()'::pg_catalog.regprocedure;
COMMENT ON FUNCTION leasehold_internal.announce_extension() IS 'Tells the launcher of this database';

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

-- these look at all companies: see their comments
ALTER FUNCTION leasehold_internal.occupied_slots(uuid, uuid, text) OWNER TO leasehold_worker;
ALTER FUNCTION leasehold_internal.all_live_leases() OWNER TO leasehold_worker;
ALTER FUNCTION leasehold_internal.invitations_of(name) OWNER TO leasehold_worker;

GRANT USAGE ON SCHEMA leasehold
    TO leasehold_worker, leasehold_admin, leasehold_app, leasehold_auditor, leasehold_resolver, pg_monitor;
GRANT USAGE ON SCHEMA leasehold_internal TO leasehold_worker;
GRANT EXECUTE ON FUNCTION leasehold.new_id(), leasehold.acting_role(), leasehold.visible_companies(text),
    leasehold.error_codes(), leasehold.lease_transitions()
    TO leasehold_admin, leasehold_app, leasehold_auditor, leasehold_resolver, leasehold_worker;

GRANT SELECT ON leasehold.companies, leasehold.company_members, leasehold.agents, leasehold.projects, leasehold.routines,
    leasehold.issues, leasehold.execution_workspaces, leasehold.runs, leasehold.environments, leasehold.providers,
    leasehold.provider_access, leasehold.limits, leasehold.leases, leasehold.lease_metadata, leasehold.audit_events,
    leasehold.active_leases, leasehold.lease_timeline, leasehold.cleanup_backlog
    TO leasehold_admin, leasehold_app, leasehold_auditor;
GRANT SELECT ON leasehold.commands, leasehold.command_output TO leasehold_admin, leasehold_app, leasehold_auditor;
GRANT SELECT ON leasehold.plugins TO leasehold_admin, leasehold_auditor;

-- in every upgrade
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA leasehold_internal TO leasehold_worker;
-- in every upgrade
GRANT SELECT ON ALL TABLES IN SCHEMA leasehold TO leasehold_worker;
GRANT INSERT, UPDATE, DELETE ON leasehold.leases, leasehold.lease_metadata TO leasehold_worker;
GRANT INSERT, UPDATE ON leasehold.commands, leasehold.command_output TO leasehold_worker;
GRANT DELETE ON leasehold.command_output TO leasehold_worker;
GRANT INSERT ON leasehold.audit_events TO leasehold_worker;
GRANT UPDATE ON leasehold.plugins TO leasehold_worker;
GRANT USAGE ON SEQUENCE leasehold_internal.worker_epoch TO leasehold_worker;
-- in every upgrade
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA leasehold_internal TO leasehold_worker;
GRANT EXECUTE ON FUNCTION leasehold_internal.occupied_slots(uuid, uuid, text), leasehold_internal.all_live_leases(),
    leasehold_internal.invitations_of(name) TO leasehold_owner;
-- in every upgrade
REVOKE EXECUTE ON FUNCTION leasehold_internal.publish(regproc, text, text, text[]),
    leasehold_internal.publish_procedure(regproc, text, text[]),
    leasehold_internal.protect(regclass, text, text),
    leasehold_internal.revoke_all(text, text, aclitem[]), leasehold_internal.guard_drop(),
    leasehold_internal.announce_extension() FROM leasehold_worker;

-- Dumped with the database: all but what is derived (calls) or node-local.
DO $$
DECLARE
    v_table text;
BEGIN
    FOREACH v_table IN ARRAY ARRAY[
        'leasehold.companies', 'leasehold.company_members', 'leasehold.plugins', 'leasehold.provider_access',
        'leasehold.limits', 'leasehold.leases', 'leasehold.lease_metadata', 'leasehold.audit_events_default',
        'leasehold_internal.installation', 'leasehold_internal.allowed_hosts', 'leasehold_internal.agents',
        'leasehold_internal.projects', 'leasehold_internal.routines', 'leasehold_internal.execution_workspaces',
        'leasehold_internal.issues', 'leasehold_internal.runs', 'leasehold_internal.run_tokens',
        'leasehold_internal.environments', 'leasehold_internal.environment_configs',
        'leasehold_internal.provider_resources', 'leasehold_internal.idempotency_keys'] LOOP
        PERFORM pg_catalog.pg_extension_config_dump(v_table::pg_catalog.regclass, '');
    END LOOP;
    PERFORM pg_catalog.pg_extension_config_dump('leasehold.providers'::pg_catalog.regclass, 'WHERE plugin_key IS NOT NULL');
END
$$;
SELECT pg_catalog.pg_extension_config_dump('leasehold_internal.worker_epoch'::pg_catalog.regclass, '');
SELECT pg_catalog.pg_extension_config_dump('leasehold.commands'::pg_catalog.regclass, '');
SELECT pg_catalog.pg_extension_config_dump('leasehold.command_output'::pg_catalog.regclass, '');

-- in every upgrade
SELECT leasehold_internal.announce_extension();
