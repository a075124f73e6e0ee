\echo Use "ALTER EXTENSION leasehold UPDATE" to load this file. \quit

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

-- What is new belongs to leasehold_owner (nothing runs with a superuser's rights),
-- and nobody may do anything with it, publish() having seen to the public
-- functions.  In an upgrade, what is there already keeps the grants that it has.
-- in every upgrade
DO $$
DECLARE
    v_object record;
BEGIN
    FOR v_object IN
        SELECT o.*
          FROM (SELECT 'pg_catalog.pg_proc'::pg_catalog.regclass AS class, p.oid, 'FUNCTION' AS type,
                       p.oid::pg_catalog.regprocedure::text AS name, p.proowner AS owner, p.proacl AS acl,
                       p.pronamespace <> 'leasehold'::pg_catalog.regnamespace OR p.prosrc <> 'leasehold_gate' AS closed
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

-- in every upgrade
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA leasehold_internal TO leasehold_worker;

-- in every upgrade
GRANT SELECT ON ALL TABLES IN SCHEMA leasehold TO leasehold_worker;

-- in every upgrade
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA leasehold_internal TO leasehold_worker;

-- in every upgrade
REVOKE EXECUTE ON FUNCTION leasehold_internal.publish(regproc, text, text, text[]),
    leasehold_internal.protect(regclass, text, text),
    leasehold_internal.revoke_all(text, text, aclitem[]), leasehold_internal.guard_drop(),
    leasehold_internal.announce_extension() FROM leasehold_worker;

-- in every upgrade
SELECT leasehold_internal.announce_extension();
