-- PUBLIC may do nothing, and nobody but owner and worker sees the inside.
BEGIN;
SET LOCAL client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
SELECT plan(7);

CREATE TEMPORARY VIEW granted AS
SELECT g.object, a.grantee, a.privilege_type
  FROM (SELECT pg_describe_object('pg_class'::regclass, c.oid, 0),
               COALESCE(c.relacl, acldefault(CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", c.relowner)), c.relnamespace
          FROM pg_class AS c WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
        UNION ALL
        SELECT pg_describe_object('pg_class'::regclass, c.oid, t.attnum), t.attacl, c.relnamespace
          FROM pg_attribute AS t JOIN pg_class AS c ON c.oid = t.attrelid WHERE t.attacl IS NOT NULL
        UNION ALL
        SELECT pg_describe_object('pg_proc'::regclass, p.oid, 0), COALESCE(p.proacl, acldefault('f', p.proowner)), p.pronamespace
          FROM pg_proc AS p
        UNION ALL
        SELECT pg_describe_object('pg_namespace'::regclass, n.oid, 0), COALESCE(n.nspacl, acldefault('n', n.nspowner)), n.oid
          FROM pg_namespace AS n) AS g (object, acl, namespace)
 CROSS JOIN LATERAL aclexplode(g.acl) AS a
 WHERE g.namespace IN ('leasehold'::regnamespace, 'leasehold_internal'::regnamespace);

SELECT cmp_ok((SELECT count(*) FROM granted), '>', 100::bigint, 'the privileges are found');

SELECT is_empty($$ SELECT g.object, g.privilege_type FROM granted AS g WHERE g.grantee = 0 $$,
    'PUBLIC may execute, select or use nothing');

SELECT is_empty($$
    SELECT g.object, g.grantee::regrole, g.privilege_type FROM granted AS g
     WHERE g.object LIKE '%leasehold\_internal%'
       AND g.grantee NOT IN ('leasehold_owner'::regrole, 'leasehold_worker'::regrole)
       -- who made the extension owns what guards it
       AND g.grantee <> (SELECT e.extowner FROM pg_extension AS e WHERE e.extname = 'leasehold')
$$, 'only owner and worker may do anything inside of leasehold_internal');

SELECT is_empty($$
    SELECT g.object, g.grantee::regrole, g.privilege_type FROM granted AS g
      JOIN pg_class AS c ON g.object = pg_describe_object('pg_class'::regclass, c.oid, 0)
     WHERE g.privilege_type IN ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER')
       AND g.grantee NOT IN ('leasehold_owner'::regrole, 'leasehold_worker'::regrole)
$$, 'nobody else writes to a table: functions do');

SELECT is_empty($$
    SELECT g.object, g.privilege_type FROM granted AS g
     WHERE g.grantee = 'leasehold_worker'::regrole AND g.privilege_type IN ('TRUNCATE', 'REFERENCES', 'TRIGGER', 'CREATE')
$$, 'the worker makes, empties and arms nothing');

SELECT is_empty($$
    SELECT d.defaclnamespace::regnamespace, d.defaclobjtype, a.privilege_type
      FROM pg_default_acl AS d CROSS JOIN LATERAL aclexplode(d.defaclacl) AS a
     WHERE a.grantee = 0 AND d.defaclnamespace IN ('leasehold'::regnamespace, 'leasehold_internal'::regnamespace)
$$, 'nor will PUBLIC be given what is made later');

SELECT is_empty($$
    SELECT c.oid::regclass FROM pg_class AS c
     WHERE c.relnamespace = 'leasehold'::regnamespace AND c.relkind = 'v'
       AND NOT COALESCE(c.reloptions && ARRAY['security_barrier=true', 'security_barrier=on', 'security_barrier=1'], false)
$$, 'every view is a barrier: conditions of users come after its own');

SELECT * FROM finish();
ROLLBACK;
