-- A first lease, from nothing.  The variable url is the provider's address; the
-- file `demo` in leasehold.token_directory holds the token that it asks for.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS leasehold;
SELECT to_regrole('demo_admin') IS NULL AS fresh \gset
\if :fresh
    CREATE ROLE demo_admin LOGIN IN ROLE leasehold_admin;
    CREATE ROLE demo_agent LOGIN IN ROLE leasehold_app;
\endif
RESET client_min_messages;
\pset footer off
\pset null '-'

\echo
\echo '--- An administrator says where sandboxes come from, and who may have some.'
SET ROLE demo_admin;
SELECT EXISTS (SELECT FROM leasehold.plugins WHERE key = 'demo') AS known,
       json_build_object('type', 'http', 'url', :'url', 'token_file', 'demo') AS transport \gset
\if :known
    \set ECHO queries
    SELECT leasehold.update_plugin('demo', transport => :'transport');
\else
    \set ECHO queries
    SELECT leasehold.register_plugin(
        '{"id": "demo", "apiVersion": 1, "version": "1.0.0", "displayName": "Demonstration",
          "description": "Sandboxes that are only pretended", "author": "Leasehold", "categories": ["connector"],
          "capabilities": ["environment.drivers.register"], "entrypoints": {"worker": "./worker.js"},
          "environmentDrivers": [{"driverKey": "demo-box", "kind": "sandbox_provider", "displayName": "Box",
                                  "configSchema": {"type": "object"}}]}',
        transport => :'transport', allow_addresses => '{127.0.0.0/8}');
    SELECT leasehold.create_company('acme', 'Acme Ltd');
    SELECT leasehold.grant_company('acme', 'demo_agent', 'manager');
\endif
\set ECHO none

\echo
\echo '--- A member of the company describes what its agents get.'
SET ROLE demo_agent;
SELECT NOT EXISTS (SELECT FROM leasehold.environments WHERE key = 'sandbox') AS fresh \gset
\if :fresh
    \set ECHO queries
    SELECT leasehold.create_environment('sandbox', 'demo-box', '{"image": "debian"}');
    SELECT leasehold.upsert_agent(leasehold.new_id(), 'Ada', 'codex');
\endif
\set ECHO queries
SELECT id AS agent, name FROM leasehold.agents LIMIT 1;
\set ECHO none
SELECT id AS agent FROM leasehold.agents LIMIT 1 \gset

\echo
\echo '--- The agent asks for a lease. The answer comes at once; the worker calls the provider after the commit.'
\set ECHO queries
SELECT leasehold.request_lease('sandbox', agent_id => :'agent', ttl => '10 minutes') AS lease \gset
\echo :lease
\echo
SELECT status, done, provider_lease_id, expires_at FROM leasehold.wait_for_lease(:'lease', '30 seconds');
SELECT leasehold.renew_lease(:'lease', '20 minutes') AS expires_at;

\echo
\echo '--- It gives it back. Sandboxes are not only forgotten: the provider has to say that they are gone.'
SELECT leasehold.release_lease(:'lease');
SELECT status, done FROM leasehold.wait_for_lease(:'lease', '30 seconds');

\echo
\echo '--- What happened to the lease.'
SELECT occurred_at::time(3) AS at, action, acting_role FROM leasehold.lease_timeline
 WHERE lease_id = :'lease' ORDER BY occurred_at;

\echo
\echo '--- The last events of the audit trail.'
SELECT occurred_at::time(3) AS at, action, entity_type, acting_role FROM leasehold.audit_events
 ORDER BY occurred_at DESC LIMIT 6;

\echo
\echo '--- How the installation is doing, and what is wrong with it (nothing).'
SET ROLE demo_admin;
SELECT area, subject, state FROM leasehold.status();
SELECT * FROM leasehold.doctor();
