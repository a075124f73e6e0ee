-- The main job, from nothing: a sandbox for an agent, a command in it, and what is
-- known of both afterwards.  Variables: provider, and, if that is a plugin's,
-- url, where it is; the file `demo` in leasehold.token_directory holds the token
-- that it asks for.
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
SELECT :'provider' = 'bubblewrap' AS real, :'url' <> '' AS remote \gset

\echo
\echo '--- An administrator says who may have sandboxes, and of which provider.'
SET ROLE demo_admin;
SELECT NOT EXISTS (SELECT FROM leasehold.companies) AS fresh,
       EXISTS (SELECT FROM leasehold.plugins WHERE key = 'demo') AS known,
       json_build_object('type', 'http', 'url', :'url', 'token_file', 'demo') AS transport \gset
\if :remote
    \if :known
        \set ECHO queries
        SELECT leasehold.update_plugin('demo', transport => :'transport');
        \set ECHO none
    \else
        \set ECHO queries
        SELECT leasehold.register_plugin(
            '{"id": "demo", "apiVersion": 1, "version": "1.0.0", "displayName": "Demonstration",
              "description": "Sandboxes that are only pretended", "author": "Leasehold", "categories": ["connector"],
              "capabilities": ["environment.drivers.register"], "entrypoints": {"worker": "./worker.js"},
              "environmentDrivers": [{"driverKey": "demo-box", "kind": "sandbox_provider", "displayName": "Box",
                                      "configSchema": {"type": "object"}}]}',
            transport => :'transport', allow_addresses => '{127.0.0.0/8}');
        \set ECHO none
    \endif
\endif
\if :fresh
    \set ECHO queries
    SELECT leasehold.create_company('acme', 'Acme Ltd');
    SELECT leasehold.grant_company('acme', 'demo_agent', 'manager');
    \set ECHO none
\endif
\set ECHO queries
SELECT leasehold.allow_provider('acme', :'provider');
\set ECHO none

\echo
\echo '--- A member of the company describes what its agents get.'
SET ROLE demo_agent;
SELECT NOT EXISTS (SELECT FROM leasehold.environments WHERE provider = :'provider') AS fresh \gset
\if :fresh
    \set ECHO queries
    SELECT leasehold.create_environment('sandbox', :'provider');
    SELECT leasehold.upsert_agent(leasehold.new_id(), 'Ada', 'codex');
    \set ECHO none
\endif
\set ECHO queries
SELECT id AS agent, name FROM leasehold.agents LIMIT 1;
\set ECHO none
SELECT id AS agent FROM leasehold.agents LIMIT 1 \gset

\echo
\echo '--- The main job in one line: a sandbox, a command in it, its output as it comes, and the sandbox given back.'
\if :real
    \set ECHO queries
    CALL leasehold.run('acme', 'sandbox', $script$
cat >primes.c <<'C'
#include <stdio.h>
#include <unistd.h>

int main(void)
{
    for (int n = 2; n < 24; n++)
    {
        int prime = 1;

        for (int d = 2; d * d <= n; d++)
            prime &= n % d != 0;
        if (!prime)
            continue;
        printf("%d is prime\n", n);
        fflush(stdout);
        usleep(200000);
    }
    return 0;
}
C
cc -Wall -O2 -o primes primes.c && ./primes
echo "run by $(id -un) on $(hostname), in $(pwd)"
$script$, agent_id => :'agent');
\else
    \set ECHO queries
    CALL leasehold.run('acme', 'sandbox', argv => ARRAY['echo', 'hello from a sandbox that is only pretended'], agent_id => :'agent');
\endif

\echo
\echo '--- The same step by step, as an application does it. Each call returns at once; the worker acts after the commit.'
SELECT leasehold.request_lease('sandbox', agent_id => :'agent', ttl => '10 minutes') AS lease \gset
\echo :lease
SELECT status, done, provider_lease_id, expires_at FROM leasehold.wait_for_lease(:'lease', '30 seconds');
SELECT leasehold.start_command(:'lease', argv => ARRAY['echo', 'one', 'two']) AS command \gset
SELECT status, outcome, exit_code FROM leasehold.wait_for_command(:'command', '30 seconds');
SELECT seq, stream, text FROM leasehold.read_output(:'command');
SELECT leasehold.release_lease(:'lease');
SELECT status, done FROM leasehold.wait_for_lease(:'lease', '30 seconds');

\echo
\echo '--- What happened to the lease.'
SELECT occurred_at::time(3) AS at, action, acting_role FROM leasehold.lease_timeline
 WHERE lease_id = :'lease' ORDER BY occurred_at;

\echo
\echo '--- The last events of the audit trail.'
SELECT occurred_at::time(3) AS at, action, entity_type, acting_role FROM leasehold.audit_events
 ORDER BY occurred_at DESC LIMIT 8;

\echo
\echo '--- How the installation is doing, and what there is to know of it.'
SET ROLE demo_admin;
SELECT area, subject, state FROM leasehold.status();
SELECT * FROM leasehold.doctor();
