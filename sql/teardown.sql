-- Leaves the cluster as it was found, for other suites that use it.
\pset format unaligned
\pset tuples_only on
SET client_min_messages = error;
ALTER SYSTEM RESET leasehold.acquire_attempts;
ALTER SYSTEM RESET leasehold.cleanup_attempts;
SELECT pg_reload_conf();
-- no round of any worker has failed as a whole, in all of this, but by a lock
SELECT test.is('no answer could not be stored', count(*), 0) FROM leasehold.audit_events AS e WHERE e.action = 'environment.lease_quarantined' AND e.entity_id <> test.id('o poison')::text;
DROP OWNED BY regress_admin, regress_manager, regress_user, regress_viewer, regress_auditor, regress_resolver, regress_beta, regress_both, regress_nobody, regress_ungrouped, regress_stranger;
DROP ROLE regress_admin, regress_manager, regress_user, regress_viewer, regress_auditor, regress_resolver, regress_beta, regress_both, regress_nobody, regress_ungrouped, regress_stranger;
