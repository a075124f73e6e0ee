-- 02_domains.sql: every closed set of values.

CREATE DOMAIN leasehold.object_key AS text COLLATE "C"
    CHECK (VALUE OPERATOR(pg_catalog.~) '^[a-z0-9][a-z0-9._-]{0,62}$');
COMMENT ON DOMAIN leasehold.object_key IS
    'Name of a company, environment, plugin or provider: lower-case letters, digits, dot, underscore and hyphen, at most 63';

CREATE DOMAIN leasehold.member_level AS text COLLATE "C"
    CHECK (VALUE IN ('viewer', 'user', 'manager'));
COMMENT ON DOMAIN leasehold.member_level IS
    'viewer sees what there is, without configurations; user works with leases and runs; manager also changes environments and members';

CREATE DOMAIN leasehold.object_status AS text COLLATE "C"
    CHECK (VALUE IN ('active', 'archived'));
COMMENT ON DOMAIN leasehold.object_status IS 'Whether a company, agent, environment and so on is in use';

CREATE DOMAIN leasehold.plugin_status AS text COLLATE "C"
    CHECK (VALUE IN ('installed', 'ready', 'disabled', 'error'));
COMMENT ON DOMAIN leasehold.plugin_status IS
    'installed: not yet spoken to; ready: has answered initialize; disabled: by an administrator; error: see last_error';

CREATE DOMAIN leasehold.driver_kind AS text COLLATE "C"
    CHECK (VALUE IN ('sandbox_provider', 'environment_driver'));
COMMENT ON DOMAIN leasehold.driver_kind IS 'The two kinds of driver that a manifest can declare';

CREATE DOMAIN leasehold.run_status AS text COLLATE "C"
    CHECK (VALUE IN ('queued', 'running', 'succeeded', 'failed', 'cancelled', 'timed_out', 'interrupted'));
COMMENT ON DOMAIN leasehold.run_status IS 'State of a run; all but queued and running are final';

CREATE DOMAIN leasehold.lease_status AS text COLLATE "C"
    CHECK (VALUE IN ('acquiring', 'active', 'releasing', 'released', 'retained', 'resuming', 'expired',
                     'failed', 'pending_cleanup', 'irrevocable', 'written_off', 'forgotten'));
COMMENT ON DOMAIN leasehold.lease_status IS 'State of a lease; see leasehold.lease_transitions()';

CREATE DOMAIN leasehold.lease_end AS text COLLATE "C"
    CHECK (VALUE IN ('released', 'expired', 'failed', 'retained'));
COMMENT ON DOMAIN leasehold.lease_end IS 'What a lease becomes when its release has been carried out';

CREATE DOMAIN leasehold.lease_policy AS text COLLATE "C"
    CHECK (VALUE IN ('ephemeral', 'reuse_by_environment', 'retain_on_failure'));
COMMENT ON DOMAIN leasehold.lease_policy IS
    'ephemeral: gone at the end; reuse_by_environment: parked for the next lease of the same agent and workspace; retain_on_failure: parked if it ends as failed';

CREATE DOMAIN leasehold.disposition AS text COLLATE "C"
    CHECK (VALUE IN ('keep', 'stop', 'delete'));
COMMENT ON DOMAIN leasehold.disposition IS
    'What the provider is to do with the resource of a released lease: keep it running, stop it, or delete it';

CREATE DOMAIN leasehold.cleanup_status AS text COLLATE "C"
    CHECK (VALUE IN ('pending', 'success', 'failed'));
COMMENT ON DOMAIN leasehold.cleanup_status IS 'Whether the resource of an ended lease is known to be gone or parked';

CREATE DOMAIN leasehold.command_status AS text COLLATE "C"
    CHECK (VALUE IN ('queued', 'running', 'finished'));
COMMENT ON DOMAIN leasehold.command_status IS
    'queued; running: handed to the provider; finished: see the outcome';

CREATE DOMAIN leasehold.command_outcome AS text COLLATE "C"
    CHECK (VALUE IN ('exited', 'signalled', 'timed_out', 'cancelled', 'failed', 'lost', 'unknown'));
COMMENT ON DOMAIN leasehold.command_outcome IS
    'exited: with an exit code; signalled: ended by a signal; timed_out; cancelled; failed: it never ran; lost: it ran, but its end was not seen; unknown: whether it ran is not known';

CREATE DOMAIN leasehold.output_stream AS text COLLATE "C"
    CHECK (VALUE IN ('stdout', 'stderr', 'notice'));
COMMENT ON DOMAIN leasehold.output_stream IS 'Where output came from; a notice is Leasehold''s own, as of output that was cut';

CREATE DOMAIN leasehold.limit_name AS text COLLATE "C"
    CHECK (VALUE IN ('active_leases', 'concurrent_calls', 'concurrent_commands', 'lease_ttl_max',
                     'lease_starts_per_minute', 'output_bytes', 'resolves_per_minute'));
COMMENT ON DOMAIN leasehold.limit_name IS 'What can be limited; see leasehold.set_limit()';

CREATE DOMAIN leasehold_internal.call_operation AS text COLLATE "C"
    CHECK (VALUE IN ('acquire', 'resume', 'realize', 'release', 'destroy', 'destroy_stray', 'initialize', 'reconcile',
                     'lease_deadline', 'run_deadline', 'places', 'execute', 'cancel_command'));
COMMENT ON DOMAIN leasehold_internal.call_operation IS
    'What a row of the dispatch table asks for: a provider call, the check of a deadline, or to see who waits for a place';

CREATE DOMAIN leasehold_internal.call_slot AS text COLLATE "C"
    CHECK (VALUE IN ('op', 'sweep', 'timer', 'run_timer', 'command', 'cancel'));
COMMENT ON DOMAIN leasehold_internal.call_slot IS 'What a call is to its subject: an operation, or a deadline';

CREATE DOMAIN leasehold_internal.call_state AS text COLLATE "C"
    CHECK (VALUE IN ('queued', 'started', 'waiting', 'quarantined'));
COMMENT ON DOMAIN leasehold_internal.call_state IS
    'queued until due_at; started: a worker has it, its outcome is unknown if the worker dies; waiting for a limit; quarantined after crashes';
