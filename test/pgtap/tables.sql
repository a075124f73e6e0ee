-- Companies are kept apart: by row security, and by keys.
BEGIN;
SET LOCAL client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
SELECT plan(13);

-- Tables that belong to no company, and why their rows need no row security.
CREATE TEMPORARY TABLE of_no_company (name, reason) AS VALUES
    ('leasehold.plugins', 'plugins are the installation''s; only administrators and auditors may read it'),
    ('leasehold.providers', 'so are the providers that they offer, which everybody may choose from'),
    ('leasehold_internal.installation', 'one row about this installation; internal'),
    ('leasehold_internal.allowed_hosts', 'where the installation may run; internal'),
    ('leasehold_internal.grant_lock', 'one row that is only locked; internal');

CREATE TEMPORARY VIEW our_tables AS
SELECT c.oid, c.relnamespace::regnamespace || '.' || c.relname AS name, c.relkind, c.relrowsecurity, c.relforcerowsecurity, c.relispartition,
       (SELECT a.attnum FROM pg_attribute AS a
         WHERE a.attrelid = c.oid AND NOT a.attisdropped
           AND a.attname = CASE WHEN c.oid = 'leasehold.companies'::regclass THEN 'id' ELSE 'company_id' END) AS company
  FROM pg_class AS c
 WHERE c.relkind IN ('r', 'p') AND c.relnamespace IN ('leasehold'::regnamespace, 'leasehold_internal'::regnamespace);

SELECT cmp_ok((SELECT count(*) FROM our_tables), '>=', 20::bigint, 'the tables are found');

SELECT results_eq($$ SELECT t.name COLLATE "C" FROM our_tables AS t WHERE t.company IS NULL ORDER BY 1 $$,
    $$ SELECT n.name COLLATE "C" FROM of_no_company AS n ORDER BY 1 $$,
    'every table has a company, but for those on the list');

SELECT is_empty($$
    SELECT t.name FROM our_tables AS t
     WHERE t.company IS NOT NULL AND NOT t.relispartition AND NOT (t.relrowsecurity AND t.relforcerowsecurity)
$$, 'the rows of every company are under row security that binds the owner, too');

-- A partition is reached through its parent, whose policies apply; by itself
-- its rows are for nobody.
SELECT is_empty($$
    SELECT t.name FROM our_tables AS t
     WHERE t.relispartition AND (NOT t.relrowsecurity OR EXISTS (SELECT FROM pg_policy AS p WHERE p.polrelid = t.oid))
$$, 'partitions show no row by themselves');

SELECT is_empty($$
    SELECT t.name FROM our_tables AS t
     WHERE t.company IS NOT NULL AND NOT t.relispartition
       AND NOT EXISTS (SELECT FROM pg_policy AS p
                        WHERE p.polrelid = t.oid AND p.polcmd = '*' AND p.polroles = ARRAY['leasehold_owner'::regrole::oid]
                          AND pg_get_expr(p.polqual, p.polrelid) LIKE '%leasehold.visible_companies(%')
$$, 'the policy of every such table asks for the companies that the caller sees');

SELECT is_empty($$
    SELECT p.polrelid::regclass, p.polname FROM pg_policy AS p JOIN our_tables AS t ON t.oid = p.polrelid
     WHERE p.polname <> 'companies'
       AND NOT (p.polname = 'readers' AND p.polcmd = 'r'
                AND pg_get_expr(p.polqual, p.polrelid) LIKE '%leasehold.visible_companies(%')
       -- a company that is being made, what is said of an imported resource; and limits of the whole installation, to read
       AND (p.polname, p.polrelid, p.polcmd) NOT IN (('new_company', 'leasehold.companies'::regclass, 'a'),
                                                     ('imported', 'leasehold.lease_metadata'::regclass, 'a'),
                                                     ('installation', 'leasehold.limits'::regclass, 'r'))
$$, 'no other policy lets more through');

SELECT is_empty($$
    SELECT p.polrelid::regclass, p.polname FROM pg_policy AS p JOIN our_tables AS t ON t.oid = p.polrelid
     WHERE p.polcmd <> 'r' AND p.polroles <> ARRAY['leasehold_owner'::regrole::oid]
$$, 'no policy lets anybody but the owner write');

SELECT is_empty($$
    SELECT t.name FROM our_tables AS t JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attnum = t.company
     WHERE NOT a.attnotnull
$$, 'the company of a row is never missing');

-- The parent of the audit trail has no key; each partition has its own.
SELECT is_empty($$
    SELECT t.name FROM our_tables AS t
     WHERE t.relkind = 'r' AND NOT EXISTS (SELECT FROM pg_index AS i WHERE i.indrelid = t.oid AND i.indisprimary)
$$, 'every table has a primary key');

-- Two are unique over all companies: a provider's resource, so that two
-- companies never hold one, and the key of a company itself.
CREATE TEMPORARY TABLE over_all_companies (name) AS
VALUES ('leasehold_internal.provider_resources_pkey'), ('leasehold.companies_key_key');

SELECT results_eq($$
    SELECT (c.relnamespace::regnamespace || '.' || c.relname) COLLATE "C" FROM our_tables AS t
      JOIN pg_index AS i ON i.indrelid = t.oid AND i.indisunique JOIN pg_class AS c ON c.oid = i.indexrelid
     WHERE t.company IS NOT NULL AND i.indkey[0] <> t.company ORDER BY 1
$$, $$ SELECT o.name COLLATE "C" FROM over_all_companies AS o ORDER BY 1 $$,
    'every primary and unique key begins with the company, but for those on the list');

SELECT is_empty($$
    SELECT t.name, k.conname FROM our_tables AS t JOIN pg_constraint AS k ON k.conrelid = t.oid AND k.contype = 'f'
      LEFT JOIN our_tables AS r ON r.oid = k.confrelid
     WHERE t.company IS NOT NULL AND (k.conkey[1] <> t.company OR k.confkey[1] IS DISTINCT FROM r.company)
$$, 'every foreign key begins with the company, on both sides');

SELECT is_empty($$
    SELECT t.name, k.conname FROM our_tables AS t JOIN pg_constraint AS k ON k.conrelid = t.oid WHERE NOT k.convalidated
    UNION ALL
    SELECT t.name, i.indexrelid::regclass::text FROM our_tables AS t JOIN pg_index AS i ON i.indrelid = t.oid
     WHERE NOT (i.indisvalid AND i.indisready)
$$, 'every constraint and index is valid');

SELECT is_empty($$
    SELECT t.name, r.rulename FROM our_tables AS t JOIN pg_rewrite AS r ON r.ev_class = t.oid
$$, 'no table has a rule');

SELECT * FROM finish();
ROLLBACK;
