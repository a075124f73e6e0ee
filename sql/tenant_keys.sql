-- Every table of companies has the company first in every key, so that no row
-- can refer to another company's: from the catalog, and by trying.
\pset format unaligned
\pset tuples_only on

-- One table is an exception: a provider's resources are unique across companies.
CREATE TEMP VIEW tenant_tables AS
SELECT c.oid, c.oid::regclass::text AS name, a.attnum AS company
  FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'company_id'
 WHERE c.relnamespace IN ('leasehold'::regnamespace, 'leasehold_internal'::regnamespace) AND c.relkind = 'r'
   AND c.oid <> 'leasehold_internal.provider_resources'::regclass;
SELECT test.is('there are such tables', count(*) >= 20, true) FROM tenant_tables;

-- What is not a company's: the installation itself.
SELECT test.is('tables without a company', string_agg(c.oid::regclass::text, ', ' ORDER BY c.oid::regclass::text COLLATE "C"),
    'leasehold.companies, leasehold.plugins, leasehold.providers, leasehold_internal.allowed_hosts, leasehold_internal.grant_lock, leasehold_internal.installation')
  FROM pg_class AS c
 WHERE c.relnamespace IN ('leasehold'::regnamespace, 'leasehold_internal'::regnamespace) AND c.relkind = 'r'
   AND NOT EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attname = 'company_id');

SELECT test.is('no company is missing', string_agg(t.name, ', '), NULL)
  FROM tenant_tables AS t JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attnum = t.company WHERE NOT a.attnotnull;
SELECT test.is('every table has a primary key', string_agg(t.name, ', '), NULL)
  FROM tenant_tables AS t WHERE NOT EXISTS (SELECT FROM pg_index AS i WHERE i.indrelid = t.oid AND i.indisprimary);
SELECT test.is('the company is first in every primary and unique key', string_agg(i.indexrelid::regclass::text, ', '), NULL)
  FROM tenant_tables AS t JOIN pg_index AS i ON i.indrelid = t.oid AND i.indisunique WHERE i.indkey[0] <> t.company;
SELECT test.is('and in every foreign key, on both sides', string_agg(t.name || ' ' || k.conname, ', '), NULL)
  FROM tenant_tables AS t JOIN pg_constraint AS k ON k.conrelid = t.oid AND k.contype = 'f'
  LEFT JOIN tenant_tables AS r ON r.oid = k.confrelid
 WHERE k.conkey[1] <> t.company
    OR k.confkey[1] <> CASE WHEN k.confrelid = 'leasehold.companies'::regclass
                            THEN (SELECT a.attnum FROM pg_attribute AS a WHERE a.attrelid = k.confrelid AND a.attname = 'id') ELSE r.company END
    OR k.confrelid <> 'leasehold.companies'::regclass AND r.oid IS NULL;
SELECT test.is('columns that name another row have a foreign key', string_agg(t.name || '.' || a.attname, ', ' ORDER BY t.name, a.attname), NULL)
  FROM tenant_tables AS t JOIN pg_attribute AS a ON a.attrelid = t.oid
 WHERE a.attname IN ('environment_id', 'agent_id', 'issue_id', 'run_id', 'project_id', 'routine_id', 'execution_workspace_id', 'lease_id', 'retry_of_run_id', 'command_id')
   -- events outlive what they are about; limits and starts may be about everything
   AND t.name NOT LIKE 'leasehold.audit\_events%' AND t.name NOT IN ('leasehold.limits', 'leasehold_internal.lease_starts')
   -- a table that refers to itself could not be dumped without a warning; only lose_runs() writes this one
   AND a.attname <> 'retry_of_run_id'
   -- of a command they are copies of its lease's, to be found by: its key to the lease is enough
   AND NOT (t.name = 'leasehold.commands' AND a.attname IN ('agent_id', 'issue_id', 'run_id'))
   AND NOT EXISTS (SELECT FROM pg_constraint AS k WHERE k.conrelid = t.oid AND k.contype = 'f' AND a.attnum = ANY (k.conkey));

-- By trying, as a superuser: beta's rows are not there for acme.
SELECT leasehold.upsert_agent(test.id('beta agent'), company => 'beta') IS NOT NULL AND leasehold.upsert_issue(test.id('beta issue'), company => 'beta') IS NOT NULL
   AND leasehold.upsert_project(test.id('beta project'), company => 'beta') IS NOT NULL AND leasehold.upsert_execution_workspace(test.id('beta ws'), company => 'beta') IS NOT NULL
   AND leasehold.upsert_routine(test.id('beta routine'), company => 'beta') IS NOT NULL AND leasehold.start_run(run_id => test.id('beta run'), company => 'beta') IS NOT NULL AS made;
SELECT test.fails('a lease with beta''s ' || c, format('INSERT INTO leasehold.leases (company_id, id, config_version, provider, ttl, status, %I) VALUES (test.id(''acme''), test.id(''cross''), 1, ''fake'', ''1 hour'', ''released'', test.id(%L))', c, k), '23503')
  FROM (VALUES ('environment_id', 'beta plain'), ('agent_id', 'beta agent'), ('issue_id', 'beta issue'), ('run_id', 'beta run'), ('execution_workspace_id', 'beta ws')) AS v (c, k);
SELECT test.fails('a run with beta''s ' || c, format('INSERT INTO leasehold_internal.runs (company_id, id, heartbeat_timeout, %I) VALUES (test.id(''acme''), test.id(''cross''), ''1 hour'', test.id(%L))', c, k), '23503')
  FROM (VALUES ('agent_id', 'beta agent'), ('issue_id', 'beta issue'), ('project_id', 'beta project'), ('routine_id', 'beta routine'), ('execution_workspace_id', 'beta ws')) AS v (c, k);
SELECT test.fails('an issue of beta''s ' || c, format('INSERT INTO leasehold_internal.issues (company_id, id, title, %I) VALUES (test.id(''acme''), test.id(''cross''), ''x'', test.id(%L))', c, k), '23503')
  FROM (VALUES ('project_id', 'beta project'), ('execution_workspace_id', 'beta ws')) AS v (c, k);
SELECT test.fails('a configuration of beta''s environment', $$INSERT INTO leasehold_internal.environment_configs (company_id, environment_id, version, provider, config) VALUES (test.id('acme'), test.id('beta plain'), 9, 'fake', '{}')$$, '23503');
INSERT INTO leasehold.leases (company_id, id, config_version, provider, ttl, status) VALUES (test.id('beta'), test.id('beta lease'), 1, 'fake', '1 hour', 'released');
INSERT INTO leasehold.commands (company_id, id, lease_id, generation, provider, shell) VALUES (test.id('beta'), test.id('beta command'), test.id('beta lease'), 1, 'fake', 'true');
SELECT test.fails('a command in beta''s lease', $$INSERT INTO leasehold.commands (company_id, id, lease_id, generation, provider, shell) VALUES (test.id('acme'), test.id('cross'), test.id('beta lease'), 1, 'fake', 'true')$$, '23503');
SELECT test.fails('output of beta''s command', $$INSERT INTO leasehold.command_output VALUES (test.id('acme'), test.id('beta command'), 1, 'stdout', now(), 'x')$$, '23503');
SELECT test.fails('input of beta''s command', $$INSERT INTO leasehold_internal.command_inputs VALUES (test.id('acme'), test.id('beta command'), 'x')$$, '23503');
DELETE FROM leasehold.leases WHERE id = test.id('beta lease');
SELECT test.fails('a company of nobody', $$INSERT INTO leasehold_internal.agents (company_id, id, name) VALUES (test.id('nobody'), test.id('cross'), 'x')$$, '23503');

-- One resource, one lease, whatever the companies: both inserted by hand.
SELECT test.works('acme holds it', $$INSERT INTO leasehold_internal.provider_resources VALUES ('fake', 'sandbox://shared', test.id('acme'), test.id('cross'))$$);
SELECT test.fails('so beta cannot', $$INSERT INTO leasehold_internal.provider_resources VALUES ('fake', 'sandbox://shared', test.id('beta'), test.id('cross'))$$, '23505');
DELETE FROM leasehold_internal.provider_resources WHERE provider_lease_id = 'sandbox://shared';
-- while ids are each company's own
SELECT test.works('the same agent id in two companies', $$SELECT leasehold.upsert_agent(test.id('beta agent'), 'acme''s', company => 'acme')$$);
SELECT test.is('are two agents', string_agg(c.key || ' ' || a.name, ', ' ORDER BY c.key) , 'acme acme''s, beta ' || test.id('beta agent'))
  FROM leasehold_internal.agents AS a JOIN leasehold.companies AS c ON c.id = a.company_id WHERE a.id = test.id('beta agent');
SELECT leasehold.finish_run(test.id('beta run'), company => 'beta') AS finished;
