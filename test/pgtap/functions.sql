-- Public functions are gates to implementations; what runs as somebody else pins its path.
BEGIN;
SET LOCAL client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
SELECT plan(8);

-- Those that row security, defaults and clients need and that do no work for a
-- caller are C functions by themselves.
CREATE TEMPORARY TABLE without_gate (name) AS
VALUES ('new_id'), ('acting_role'), ('visible_companies'), ('error_codes'), ('lease_transitions');

SELECT results_eq($$
    SELECT p.proname::text COLLATE "C" FROM pg_proc AS p
     WHERE p.pronamespace = 'leasehold'::regnamespace AND p.prokind = 'f' AND p.prosrc <> 'leasehold_gate' ORDER BY 1
$$, $$ SELECT w.name COLLATE "C" FROM without_gate AS w ORDER BY 1 $$,
    'every public function has the gate as its body, but for those on the list');

SELECT is_empty($$
    SELECT p.oid::regprocedure FROM pg_proc AS p JOIN pg_language AS l ON l.oid = p.prolang
     WHERE p.pronamespace = 'leasehold'::regnamespace AND p.prokind = 'f'
       AND (l.lanname <> 'c' OR p.probin <> '$libdir/leasehold' OR p.prosecdef OR p.proconfig IS NOT NULL)
$$, 'every public function is C of our library, runs as its caller and sets nothing');

SELECT is_empty($$
    SELECT p.oid::regprocedure FROM pg_proc AS p
     WHERE p.pronamespace = 'leasehold'::regnamespace AND p.prosrc = 'leasehold_gate'
       AND NOT EXISTS (SELECT FROM pg_proc AS i
                        WHERE i.pronamespace = 'leasehold_internal'::regnamespace AND i.proname = p.proname
                          AND i.prokind = p.prokind AND i.provolatile = p.provolatile
                          AND pg_get_function_arguments(i.oid) = pg_get_function_arguments(p.oid)
                          AND pg_get_function_result(i.oid) = pg_get_function_result(p.oid))
$$, 'every gate has an implementation with the same arguments, defaults and result');

SELECT is_empty($$
    SELECT i.oid::regprocedure FROM pg_proc AS i
     WHERE i.pronamespace = 'leasehold_internal'::regnamespace
       AND obj_description(i.oid, 'pg_proc') LIKE 'Implementation of %'
       AND NOT EXISTS (SELECT FROM pg_proc AS p
                        WHERE p.pronamespace = 'leasehold'::regnamespace AND p.proname = i.proname
                          AND p.prosrc = 'leasehold_gate')
$$, 'every implementation has its gate');

SELECT is_empty($$
    SELECT p.proname FROM pg_proc AS p WHERE p.pronamespace = 'leasehold'::regnamespace GROUP BY 1 HAVING count(*) > 1
$$, 'no public name is overloaded');

SELECT is_empty($$
    SELECT p.oid::regprocedure FROM pg_proc AS p
     WHERE p.pronamespace IN ('leasehold'::regnamespace, 'leasehold_internal'::regnamespace) AND p.prosecdef
       AND NOT EXISTS (SELECT FROM unnest(p.proconfig) AS c WHERE c ~ '^search_path=pg_catalog,.*\mpg_temp$')
$$, 'no SECURITY DEFINER without a pinned search_path');

SELECT is_empty($$
    SELECT p.oid::regprocedure FROM pg_proc AS p
     WHERE p.pronamespace IN ('leasehold'::regnamespace, 'leasehold_internal'::regnamespace) AND p.prosecdef
       AND (SELECT r.rolsuper FROM pg_roles AS r WHERE r.oid = p.proowner)
$$, 'nor one with a superuser''s rights');

SELECT is_empty($$
    SELECT t.tgrelid::regclass, t.tgname FROM pg_trigger AS t
      JOIN pg_class AS c ON c.oid = t.tgrelid JOIN pg_proc AS p ON p.oid = t.tgfoid
     WHERE NOT t.tgisinternal AND c.relnamespace IN ('leasehold'::regnamespace, 'leasehold_internal'::regnamespace)
       AND p.pronamespace <> 'leasehold_internal'::regnamespace
$$, 'no table has a trigger of somebody else');

SELECT * FROM finish();
ROLLBACK;
