-- What is to be done is written down: deadlines, calls, and where events go.
BEGIN;
SET LOCAL client_min_messages = warning;
SET LOCAL timezone = 'UTC';
CREATE EXTENSION IF NOT EXISTS pgtap;
SELECT plan(15);

-- A database that nobody has used yet gets something to look at.
SELECT NOT EXISTS (SELECT FROM leasehold_internal.installation) AS fresh,
       current_setting('leasehold.allow_fake_provider')::boolean AS pretend \gset
\if :fresh
SELECT leasehold.create_company('pgtap') IS NULL AS company \gset
SELECT leasehold.grant_company('pgtap', current_user::text, 'manager') IS NULL AS granted \gset
\if :pretend
SELECT leasehold.create_environment('box', 'fake', company => 'pgtap') AS environment,
       (leasehold.start_run(company => 'pgtap')).started_run_id AS run \gset
SELECT leasehold.request_lease('box', run_id => :'run', company => 'pgtap') AS requested,
       leasehold.import_lease('box', 'sandbox://pgtap', company => 'pgtap') AS imported \gset
SELECT leasehold.start_command(:'imported', shell => 'cat', stdin => 'x', company => 'pgtap') AS started \gset
\endif
\endif

-- Partitions: the week of now and the three after it.
CREATE TEMPORARY VIEW weeks AS
SELECT 'audit_events_' || to_char(w.begins, 'YYYYMMDD') AS name,
       format('FOR VALUES FROM (%L) TO (%L)', w.begins, w.begins + interval '7 days') AS bound
  FROM generate_series(date_trunc('week', now()), date_trunc('week', now()) + interval '3 weeks', interval '1 week') AS w (begins);

SELECT is_empty($$
    SELECT w.name, w.bound FROM weeks AS w
     WHERE NOT EXISTS (SELECT FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
                        WHERE i.inhparent = 'leasehold.audit_events'::regclass AND NOT i.inhdetachpending
                          AND c.relname = w.name AND pg_get_expr(c.relpartbound, c.oid) = w.bound)
$$, 'the audit trail has partitions for this week and the next three');

SELECT is_empty($$ SELECT d.occurred_at, d.id FROM leasehold.audit_events_default AS d LIMIT 10 $$,
    'no event is in the partition for those that came too early');

SELECT is_empty($$
    SELECT i.inhrelid::regclass FROM pg_inherits AS i
     WHERE i.inhparent = 'leasehold.audit_events'::regclass
       AND NOT EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgrelid = i.inhrelid AND t.tgname = 'append_only' AND t.tgenabled <> 'D')
    UNION ALL
    SELECT i.inhrelid::regclass FROM pg_inherits AS i
     WHERE i.inhparent = 'leasehold.audit_events'::regclass
       AND NOT EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgrelid = i.inhrelid AND t.tgname = 'append_only_truncate' AND t.tgenabled <> 'D')
$$, 'no partition can be rewritten or emptied');

-- The dispatch table, by the states that ask for a call or have a deadline.
SELECT is_empty($$
    SELECT l.company_id, l.id, l.status FROM leasehold.leases AS l
     WHERE l.status IN ('acquiring', 'resuming', 'releasing', 'pending_cleanup')
       AND NOT EXISTS (SELECT FROM leasehold_internal.calls AS c
                        WHERE c.company_id = l.company_id AND c.subject_id = l.id AND c.slot = 'op')
$$, 'every lease that something is to be done for has its call');

SELECT is_empty($$
    SELECT l.company_id, l.id, l.status FROM leasehold.leases AS l
     WHERE l.status IN ('active', 'retained')
       AND NOT EXISTS (SELECT FROM leasehold_internal.calls AS c
                        WHERE c.company_id = l.company_id AND c.subject_id = l.id AND c.slot = 'timer'
                          AND c.operation = 'lease_deadline' AND c.state = 'queued')
$$, 'every lease that ends by itself has its deadline');

SELECT is_empty($$
    SELECT r.company_id, r.id FROM leasehold_internal.runs AS r
     WHERE r.status = 'running'
       AND NOT EXISTS (SELECT FROM leasehold_internal.calls AS c
                        WHERE c.company_id = r.company_id AND c.subject_id = r.id AND c.slot = 'run_timer'
                          AND c.operation = 'run_deadline' AND c.state = 'queued')
$$, 'every run whose heart beats has its deadline');

SELECT is_empty($$
    SELECT c.company_id, c.subject_id, c.operation, l.status FROM leasehold_internal.calls AS c
      LEFT JOIN leasehold.leases AS l ON l.company_id = c.company_id AND l.id = c.subject_id
     WHERE c.slot = 'op' AND c.operation IN ('acquire', 'resume', 'release', 'destroy')
       AND (l.id IS NULL OR l.status NOT IN ('acquiring', 'resuming', 'releasing', 'pending_cleanup'))
$$, 'no call is about a lease that asks for none');

SELECT is_empty($$
    SELECT r.company_id, r.provider, r.provider_lease_id FROM leasehold_internal.provider_resources AS r
     WHERE r.stray_id IS NOT NULL
       AND NOT EXISTS (SELECT FROM leasehold_internal.calls AS c
                        WHERE c.company_id = r.company_id AND c.subject_id = r.stray_id AND c.operation = 'destroy_stray')
$$, 'every resource of no lease has the call that removes it');

SELECT is_empty($$
    SELECT c.company_id, c.subject_id, c.provider FROM leasehold_internal.calls AS c
     WHERE c.operation = 'destroy_stray'
       AND NOT EXISTS (SELECT FROM leasehold_internal.provider_resources AS r
                        WHERE r.company_id = c.company_id AND r.stray_id = c.subject_id)
$$, 'no such call is about a resource that a lease holds, or that is gone');

SELECT is_empty($$
    SELECT c.company_id, c.subject_id, c.state FROM leasehold_internal.calls AS c
     WHERE c.state = 'started' AND (c.worker_epoch IS NULL OR c.started_at IS NULL)
        OR c.state <> 'started' AND c.worker_epoch IS NOT NULL
$$, 'a call that was started, and no other, has a worker');

-- Commands: those that are not over, and what they are still to read.
SELECT is_empty($$
    SELECT k.company_id, k.id, k.status FROM leasehold.commands AS k
     WHERE k.status <> 'finished'
       AND NOT EXISTS (SELECT FROM leasehold_internal.calls AS c
                        WHERE c.company_id = k.company_id AND c.subject_id = k.id AND c.slot = 'command'
                          AND (c.state = 'started') = (k.status = 'running'))
$$, 'every command that is not over has its call, which a worker has if it runs');

SELECT is_empty($$
    SELECT c.company_id, c.subject_id, k.status FROM leasehold_internal.calls AS c
      LEFT JOIN leasehold.commands AS k ON k.company_id = c.company_id AND k.id = c.subject_id
     WHERE c.slot = 'command' AND k.status IS DISTINCT FROM 'queued' AND k.status IS DISTINCT FROM 'running'
        OR c.slot = 'cancel' AND (k.id IS NULL OR k.status = 'queued')
$$, 'no call is about a command that asks for none');

SELECT is_empty($$
    SELECT i.company_id, i.command_id FROM leasehold_internal.command_inputs AS i
      JOIN leasehold.commands AS k ON k.company_id = i.company_id AND k.id = i.command_id WHERE k.status <> 'queued'
$$, 'what commands read is kept for those alone that have not begun');

SELECT is_empty($$
    SELECT k.company_id, k.id, l.status FROM leasehold.commands AS k
      JOIN leasehold.leases AS l ON l.company_id = k.company_id AND l.id = k.lease_id
     WHERE k.status <> 'finished' AND l.status <> 'active' AND k.cancel_requested_at IS NULL
$$, 'no command outlives its lease without having been cancelled');

-- Two rows that say who holds a resource would be two leases with one sandbox.
SELECT is_empty($$
    SELECT l.provider, l.provider_lease_id FROM leasehold.leases AS l
     WHERE l.status IN ('active', 'resuming', 'releasing', 'retained', 'pending_cleanup') AND l.provider_lease_id IS NOT NULL
     GROUP BY 1, 2 HAVING count(*) > 1
$$, 'no resource has two leases');

SELECT * FROM finish();
ROLLBACK;
