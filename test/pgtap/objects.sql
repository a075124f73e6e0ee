-- Every object of the extension is explained and belongs to whom it should.
BEGIN;
SET LOCAL client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
SELECT plan(9);

-- Everything in the two schemas, members of the extension or not: partitions of
-- the audit trail are none.  Types of tables' rows and of arrays come with others.
CREATE TEMPORARY VIEW objects AS
SELECT 'pg_class'::regclass AS classid, c.oid AS objid, c.relowner AS owner, c.relnamespace AS namespace
  FROM pg_class AS c WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
UNION ALL
SELECT 'pg_proc'::regclass, p.oid, p.proowner, p.pronamespace FROM pg_proc AS p
UNION ALL
SELECT 'pg_type'::regclass, t.oid, t.typowner, t.typnamespace FROM pg_type AS t
 WHERE t.typtype <> 'c' AND t.typelem = 0
    OR t.typtype = 'c' AND (SELECT c.relkind FROM pg_class AS c WHERE c.oid = t.typrelid) = 'c'
UNION ALL
SELECT 'pg_namespace'::regclass, n.oid, n.nspowner, n.oid FROM pg_namespace AS n;

CREATE TEMPORARY VIEW our_objects AS
SELECT o.classid, o.objid, o.owner, pg_describe_object(o.classid, o.objid, 0) AS name
  FROM objects AS o WHERE o.namespace IN ('leasehold'::regnamespace, 'leasehold_internal'::regnamespace);

SELECT cmp_ok((SELECT count(*) FROM our_objects), '>', 100::bigint, 'the objects are found');

SELECT is_empty($$
    SELECT o.name FROM our_objects AS o
     WHERE COALESCE(obj_description(o.objid, o.classid::name), '') !~ '\S'
$$, 'every object has a comment');

SELECT is_empty($$
    SELECT p.polrelid::regclass, p.polname FROM pg_policy AS p
      JOIN our_objects AS o ON o.classid = 'pg_class'::regclass AND o.objid = p.polrelid
     WHERE obj_description(p.oid, 'pg_policy') IS NULL
$$, 'every policy has a comment');

SELECT is_empty($$
    SELECT p.proname FROM pg_proc AS p
     WHERE p.pronamespace = 'leasehold'::regnamespace
       AND obj_description(p.oid, 'pg_proc') !~ '^(instant|waits|procedure): \S'
$$, 'the comment of every public function says whether it waits');

-- Three functions look at all companies, so the role that sees all owns them;
-- two belong to the superuser who made the extension, for they are called before
-- and after there is anything to own.
SELECT is_empty($$
    SELECT o.name, o.owner::regrole FROM our_objects AS o
     WHERE o.owner <> CASE
           WHEN o.name IN ('function leasehold_internal.occupied_slots(uuid,uuid,text)',
                           'function leasehold_internal.all_live_leases()',
                           'function leasehold_internal.invitations_of(name)') THEN 'leasehold_worker'::regrole
           WHEN o.name IN ('function leasehold_internal.guard_drop()',
                           'function leasehold_internal.announce_extension()')
           THEN (SELECT e.extowner FROM pg_extension AS e WHERE e.extname = 'leasehold')
           ELSE 'leasehold_owner'::regrole END
$$, 'every object has the right owner');

SELECT results_eq($$
    SELECT r.rolname::text COLLATE "C", r.rolcanlogin OR r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication, r.rolbypassrls
      FROM pg_roles AS r
     WHERE r.rolname IN ('leasehold_owner', 'leasehold_worker', 'leasehold_admin', 'leasehold_app',
                         'leasehold_auditor', 'leasehold_resolver') ORDER BY 1
$$, $$
    VALUES ('leasehold_admin' COLLATE "C", false, false), ('leasehold_app', false, false), ('leasehold_auditor', false, false),
           ('leasehold_owner', false, false), ('leasehold_resolver', false, false), ('leasehold_worker', false, true)
$$, 'no role of the extension has power of its own, and only the worker''s sees the rows of all companies');

SELECT is_empty($$
    SELECT m.roleid::regrole, m.member::regrole FROM pg_auth_members AS m
     WHERE m.roleid IN ('leasehold_owner'::regrole, 'leasehold_worker'::regrole)
$$, 'nobody is a member of the owner or the worker');

SELECT ok(EXISTS (SELECT FROM pg_event_trigger AS t
                   WHERE t.evtname = 'leasehold_guard_drop' AND t.evtenabled = 'A' AND t.evtevent = 'ddl_command_start'
                     AND t.evttags @> ARRAY['DROP EXTENSION', 'DROP OWNED']
                     AND t.evtfoid = 'leasehold_internal.guard_drop'::regproc),
    'the event trigger that guards DROP EXTENSION is enabled always');

SELECT is_empty($$
    SELECT t.tgrelid::regclass, t.tgname FROM pg_trigger AS t
      JOIN our_objects AS o ON o.classid = 'pg_class'::regclass AND o.objid = t.tgrelid
     WHERE t.tgenabled NOT IN ('O', 'A')
$$, 'no trigger is switched off');

SELECT * FROM finish();
ROLLBACK;
