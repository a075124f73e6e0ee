-- 99_finish.sql: owners, grants, what is dumped, and the announcement.

-- Everything belongs to leasehold_owner; nothing runs with a superuser's rights.
DO $$
DECLARE
    v_object record;
BEGIN
    FOR v_object IN
        SELECT CASE i.type WHEN 'type' THEN 'domain' ELSE i.type END AS type, i.identity
          FROM pg_catalog.pg_depend AS d
          JOIN pg_catalog.pg_extension AS e ON e.oid = d.refobjid AND e.extname = 'leasehold'
         CROSS JOIN LATERAL pg_catalog.pg_identify_object(d.classid, d.objid, d.objsubid) AS i
         WHERE d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass AND d.deptype = 'e'
           AND (i.type IN ('function', 'table', 'view', 'sequence', 'schema')
                OR EXISTS (SELECT FROM pg_catalog.pg_type AS t
                            WHERE d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass AND t.oid = d.objid AND t.typtype = 'd'))
    LOOP
        EXECUTE pg_catalog.format('ALTER %s %s OWNER TO leasehold_owner', pg_catalog.upper(v_object.type), v_object.identity);
    END LOOP;
END
$$;

-- these look at all companies: see their comments
ALTER FUNCTION leasehold_internal.occupied_slots(uuid, uuid, text) OWNER TO leasehold_worker;
ALTER FUNCTION leasehold_internal.all_live_leases() OWNER TO leasehold_worker;
ALTER FUNCTION leasehold_internal.invitations_of(name) OWNER TO leasehold_worker;

-- Nobody may do anything (publish() has seen to the public functions), except:
DO $$
BEGIN
    PERFORM leasehold_internal.revoke_all('SCHEMA', n.nspname, n.nspacl)
       FROM pg_catalog.pg_namespace AS n WHERE n.nspname IN ('leasehold', 'leasehold_internal');
    PERFORM leasehold_internal.revoke_all(CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END,
                                          c.oid::pg_catalog.regclass::text, c.relacl)
       FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
      WHERE n.nspname IN ('leasehold', 'leasehold_internal') AND c.relkind IN ('r', 'p', 'v', 'S');
    PERFORM leasehold_internal.revoke_all('FUNCTION', p.oid::pg_catalog.regprocedure::text, p.proacl)
       FROM pg_catalog.pg_proc AS p JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
      WHERE n.nspname = 'leasehold_internal' OR n.nspname = 'leasehold' AND p.prosrc <> 'leasehold_gate';
END
$$;
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
GRANT SELECT ON leasehold.plugins TO leasehold_admin, leasehold_auditor;

GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA leasehold_internal TO leasehold_worker;
GRANT SELECT ON ALL TABLES IN SCHEMA leasehold TO leasehold_worker;
GRANT INSERT, UPDATE, DELETE ON leasehold.leases, leasehold.lease_metadata TO leasehold_worker;
GRANT INSERT ON leasehold.audit_events TO leasehold_worker;
GRANT UPDATE ON leasehold.plugins TO leasehold_worker;
GRANT USAGE ON SEQUENCE leasehold_internal.worker_epoch TO leasehold_worker;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA leasehold_internal TO leasehold_worker;
GRANT EXECUTE ON FUNCTION leasehold_internal.occupied_slots(uuid, uuid, text), leasehold_internal.all_live_leases(),
    leasehold_internal.invitations_of(name) TO leasehold_owner;
REVOKE EXECUTE ON FUNCTION leasehold_internal.publish(regproc, text, text, text[]),
    leasehold_internal.protect(regclass, text, text),
    leasehold_internal.revoke_all(text, text, aclitem[]) FROM leasehold_worker;

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
SELECT leasehold_internal.announce_extension();
