-- Resources that exist already are put under a lease, by an administrator: whose
-- they are, a company cannot say, as it could take another's.
\pset format unaligned
\pset tuples_only on
SET ROLE regress_admin;
SELECT test.is('imported', leasehold.import_lease('plain', 'sandbox://elsewhere/1', ttl => '10 minutes', metadata => '{"region": "eu"}', lease_id => test.id('imported'), company => 'acme'), test.id('imported'));
SELECT test.is('it is active at once', (l.status, l.generation, l.policy, l.provider_lease_id, l.ttl, l.expires_at - l.acquired_at)::text,
               '(active,1,ephemeral,sandbox://elsewhere/1,"@ 10 mins","@ 10 mins")') FROM leasehold.leases AS l WHERE l.id = test.id('imported');
SELECT test.is('what is known of it an administrator does not see', count(*), 0) FROM leasehold.lease_metadata AS m WHERE m.lease_id = test.id('imported');
SET ROLE regress_manager;
SELECT test.is('but the company', m.metadata, '{"region": "eu"}'::jsonb) FROM leasehold.lease_metadata AS m WHERE m.lease_id = test.id('imported');
SELECT test.is('told', test.events('imported'), 'imported');
SELECT test.is('it can be renewed', leasehold.renew_lease(test.id('imported'), '1 hour') > now() + interval '59 minutes', true);
SET ROLE regress_admin;
-- once
SELECT test.refused('the same resource again', $$SELECT leasehold.import_lease('plain', 'sandbox://elsewhere/1', company => 'acme')$$, 'import_refused');
SELECT test.refused('for another company', $$SELECT leasehold.import_lease('plain', 'sandbox://elsewhere/1', company => 'beta')$$, 'import_refused');
SELECT test.refused('the same id', $$SELECT leasehold.import_lease('plain', 'sandbox://elsewhere/2', lease_id => test.id('imported'), company => 'acme')$$, 'already_exists');
SET ROLE regress_manager;
-- it ends like any other, and then its resource may be imported again
SELECT test.is('given back', leasehold.release_lease(test.id('imported')), 'releasing');
SELECT test.is('removed', (leasehold.wait_for_lease(test.id('imported'), '30 seconds')).status, 'released');
SET ROLE regress_admin;
SELECT test.works('the resource again', $$SELECT leasehold.import_lease('plain', 'sandbox://elsewhere/1', ttl => '1 second', lease_id => test.id('imported again'), company => 'acme')$$);
SELECT test.eventually('it expires like any other', $$SELECT test.lease('imported again')$$, 'expired');
-- the ceiling holds here, too
SELECT test.works('for three days', $$SELECT leasehold.import_lease('plain', 'sandbox://elsewhere/3', ttl => '3 days', lease_id => test.id('imported for long'), company => 'acme')$$);
SELECT test.is('a day is what it gets', l.expires_at - l.acquired_at, '24 hours'::interval) FROM leasehold.leases AS l WHERE l.id = test.id('imported for long');
-- with all that a request has
SET ROLE regress_manager;
SELECT leasehold.upsert_agent(test.id('importer')) IS NOT NULL AND leasehold.upsert_issue(test.id('import issue')) IS NOT NULL AND leasehold.upsert_execution_workspace(test.id('import ws')) IS NOT NULL AS made;
SELECT leasehold.start_run(run_id => test.id('import run')) IS NOT NULL AS started;
SET ROLE regress_admin;
SELECT test.works('of a run', $$SELECT leasehold.import_lease('plain', 'sandbox://elsewhere/4', test.id('importer'), test.id('import issue'), test.id('import run'), test.id('import ws'), lease_id => test.id('imported for run'), company => 'acme')$$);
SET ROLE regress_manager;
SELECT test.is('ends with it', leasehold.finish_run(test.id('import run')), 'succeeded');
SELECT test.eventually('released', $$SELECT test.lease('imported for run')$$, 'released');

-- Refused, and nothing is written.
RESET ROLE;
SELECT test.quiet();
SELECT test.fingerprint() AS before \gset
SET ROLE regress_admin;
SELECT test.refused('no resource', $$SELECT leasehold.import_lease('plain', NULL, company => 'acme')$$, 'argument_required');
SELECT test.refused('an empty one', $$SELECT leasehold.import_lease('plain', '', company => 'acme')$$, 'argument_invalid');
SELECT test.refused('an overlong one', $$SELECT leasehold.import_lease('plain', repeat('x', 1001), company => 'acme')$$, 'argument_too_large');
SELECT test.refused('with control characters', $$SELECT leasehold.import_lease('plain', E'a\x01b', company => 'acme')$$, 'argument_invalid');
SELECT test.refused('no such environment', $$SELECT leasehold.import_lease('nowhere', 'sandbox://elsewhere/9', company => 'acme')$$, 'environment_not_found');
SELECT test.refused('a run that has ended', $$SELECT leasehold.import_lease('plain', 'sandbox://elsewhere/9', run_id => test.id('import run'), company => 'acme')$$, 'wrong_state');
SELECT test.refused('no such agent', $$SELECT leasehold.import_lease('plain', 'sandbox://elsewhere/9', agent_id => test.id('nobody'), company => 'acme')$$, 'agent_not_found');
SELECT test.refused('no time', $$SELECT leasehold.import_lease('plain', 'sandbox://elsewhere/9', ttl => '0', company => 'acme')$$, 'argument_invalid');
SELECT test.refused('metadata that is none', $$SELECT leasehold.import_lease('plain', 'sandbox://elsewhere/9', metadata => '[1]', company => 'acme')$$, 'argument_invalid');
SELECT test.refused('for no company', $$SELECT leasehold.import_lease('plain', 'sandbox://elsewhere/9')$$, 'company_ambiguous');
-- a manager could take what is about to be another company's, or ask whether somebody has it
SET ROLE regress_manager;
SELECT test.fails('by a manager', $$SELECT leasehold.import_lease('plain', 'sandbox://elsewhere/9')$$, '42501');
SELECT test.fails('of what another company has', $$SELECT leasehold.import_lease('plain', 'sandbox://fake/' || test.id('beta lease') || '/1')$$, '42501');
RESET ROLE;
SELECT test.is('nothing was written', test.fingerprint(), :'before');
