-- 33_commands.sql: what runs in leases, and its output.
--
-- A command is carried out at most once: it is handed to the provider after the
-- commit that says so, and what is known to have begun is never begun again.
-- What it reads and its environment are kept for the worker alone, and only until
-- the worker has taken them.
--
-- Lock order: lease, commands by id, calls, audit.

CREATE TABLE leasehold.commands (
    company_id          uuid NOT NULL,
    id                  uuid NOT NULL,
    lease_id            uuid NOT NULL,
    generation          integer NOT NULL,
    provider            leasehold.object_key NOT NULL,
    agent_id            uuid,
    issue_id            uuid,
    run_id              uuid,
    argv                text[],
    shell               text,
    cwd                 text,
    timeout             interval,
    status              leasehold.command_status NOT NULL DEFAULT 'queued',
    outcome             leasehold.command_outcome,
    exit_code           integer,
    signal              text,
    failure_code        text,
    failure_reason      text,
    stdout_bytes        bigint NOT NULL DEFAULT 0,
    stderr_bytes        bigint NOT NULL DEFAULT 0,
    output_truncated    boolean NOT NULL DEFAULT false,
    requested_at        timestamptz NOT NULL DEFAULT pg_catalog.now(),
    started_at          timestamptz,
    finished_at         timestamptz,
    cancel_requested_at timestamptz,
    cancel_reason       text,
    output_removed_at   timestamptz,
    requested_by        name NOT NULL DEFAULT leasehold.acting_role(),
    PRIMARY KEY (company_id, id),
    FOREIGN KEY (company_id, lease_id) REFERENCES leasehold.leases ON DELETE CASCADE,
    CHECK (pg_catalog.num_nonnulls(argv, shell) = 1),
    CHECK (CASE status WHEN 'finished' THEN pg_catalog.num_nonnulls(outcome, finished_at) = 2
                       ELSE pg_catalog.num_nonnulls(outcome, finished_at, exit_code, signal) = 0 END),
    CHECK (status <> 'running' OR started_at IS NOT NULL)
) WITH (fillfactor = 80);
COMMENT ON TABLE leasehold.commands IS 'Commands that run in leases; from level user on';
COMMENT ON COLUMN leasehold.commands.generation IS 'The generation of the lease that the command is for';
COMMENT ON COLUMN leasehold.commands.shell IS 'A script for the shell of the place it runs in, instead of argv';
COMMENT ON COLUMN leasehold.commands.cwd IS 'Working directory; one that is not absolute is below the lease''s own';
COMMENT ON COLUMN leasehold.commands.timeout IS 'How long it may run; NULL: as long as its lease lives';
COMMENT ON COLUMN leasehold.commands.started_at IS 'When it was handed to the provider';
COMMENT ON COLUMN leasehold.commands.stdout_bytes IS 'What it wrote, whether kept or not';
COMMENT ON COLUMN leasehold.commands.stderr_bytes IS 'What it wrote, whether kept or not';
COMMENT ON COLUMN leasehold.commands.output_truncated IS 'It wrote more than is kept';
COMMENT ON COLUMN leasehold.commands.output_removed_at IS 'When its output was removed for age';
CREATE INDEX commands_live ON leasehold.commands (company_id, lease_id) WHERE status <> 'finished';
CREATE INDEX commands_by_lease ON leasehold.commands (company_id, lease_id);
CREATE INDEX commands_with_output ON leasehold.commands (finished_at) WHERE status = 'finished' AND output_removed_at IS NULL;
SELECT leasehold_internal.protect('leasehold.commands', 'user');

CREATE TABLE leasehold.command_output (
    company_id uuid NOT NULL,
    command_id uuid NOT NULL,
    seq        bigint NOT NULL,
    stream     leasehold.output_stream NOT NULL,
    at         timestamptz NOT NULL,
    data       bytea NOT NULL,
    PRIMARY KEY (company_id, command_id, seq),
    FOREIGN KEY (company_id, command_id) REFERENCES leasehold.commands ON DELETE CASCADE
);
-- compressing it would cost more than writing it
ALTER TABLE leasehold.command_output ALTER COLUMN data SET STORAGE EXTERNAL;
COMMENT ON TABLE leasehold.command_output IS
    'What commands wrote, in pieces that end with whole characters; see leasehold.read_output()';
COMMENT ON COLUMN leasehold.command_output.seq IS 'Counts the pieces of a command from 1 on, whatever their stream';
COMMENT ON COLUMN leasehold.command_output.at IS 'When the first of it came';
SELECT leasehold_internal.protect('leasehold.command_output', 'user');

-- Nobody reads these: they are deleted when a worker takes them.
CREATE TABLE leasehold_internal.command_inputs (
    company_id uuid NOT NULL,
    command_id uuid NOT NULL,
    stdin      text,
    env        jsonb,
    PRIMARY KEY (company_id, command_id),
    FOREIGN KEY (company_id, command_id) REFERENCES leasehold.commands ON DELETE CASCADE
);
COMMENT ON TABLE leasehold_internal.command_inputs IS
    'What queued commands will read, and their environment; not dumped';
SELECT leasehold_internal.protect('leasehold_internal.command_inputs', 'user');

CREATE FUNCTION leasehold_internal.check_command_change() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.company_id, NEW.id, NEW.lease_id, NEW.generation) IS DISTINCT FROM (OLD.company_id, OLD.id, OLD.lease_id, OLD.generation) THEN
        PERFORM leasehold_internal.refuse('illegal_transition', 'what identifies a command cannot be changed');
    ELSIF OLD.status = 'finished' THEN
        PERFORM leasehold_internal.refuse('illegal_transition', pg_catalog.format('command %s has finished', OLD.id));
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION leasehold_internal.check_command_change() IS 'Refuses to change a command that has finished';
CREATE TRIGGER check_change BEFORE UPDATE OF company_id, id, lease_id, generation, status, outcome, exit_code, signal
    ON leasehold.commands FOR EACH ROW EXECUTE FUNCTION leasehold_internal.check_command_change();

CREATE FUNCTION leasehold_internal.check_argv(argv text[], shell text) RETURNS void
    LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF pg_catalog.num_nonnulls(argv, shell) <> 1 THEN
        PERFORM leasehold_internal.refuse('argument_invalid', 'one of the arguments "argv" and "shell" is needed',
            'argv => ARRAY[''program'', ''argument''] runs a program, shell => ''...'' a script.');
    ELSIF pg_catalog.octet_length(shell) > 100000 THEN
        PERFORM leasehold_internal.refuse('argument_too_large', 'argument "shell" is too long',
            'The limit is 100000 bytes; longer scripts can be given as stdin.');
    ELSIF shell = '' OR pg_catalog.array_ndims(argv) <> 1 OR pg_catalog.cardinality(argv) = 0 OR argv[pg_catalog.array_lower(argv, 1)] = ''
          OR pg_catalog.array_position(argv, NULL) IS NOT NULL THEN
        PERFORM leasehold_internal.refuse('argument_invalid', 'there is no command to run',
            'argv is a list of a program and its arguments, without nulls.');
    ELSIF pg_catalog.cardinality(argv) > 4096
          OR (SELECT pg_catalog.max(pg_catalog.octet_length(a)) > 100000 OR pg_catalog.sum(pg_catalog.octet_length(a)) > 500000
                FROM pg_catalog.unnest(argv) AS a) THEN
        PERFORM leasehold_internal.refuse('argument_too_large', 'argument "argv" is too long',
            'The limits are 4096 arguments, 100000 bytes each and 500000 together.');
    END IF;
END
$$;
COMMENT ON FUNCTION leasehold_internal.check_argv(text[], text) IS 'Refuses what is not a command';

CREATE FUNCTION leasehold_internal.check_command(
        argv text[] DEFAULT NULL, shell text DEFAULT NULL, cwd text DEFAULT NULL, env jsonb DEFAULT NULL,
        stdin text DEFAULT NULL, timeout interval DEFAULT NULL)
    RETURNS void LANGUAGE plpgsql STABLE AS $$
BEGIN
    PERFORM leasehold_internal.check_argv(argv, shell);
    PERFORM leasehold_internal.check_text('cwd', cwd, 4000);
    PERFORM leasehold_internal.check_env('env', env);
    PERFORM leasehold_internal.check_interval('timeout', timeout, '0.1 seconds', '365 days');
    IF cwd = '' THEN
        PERFORM leasehold_internal.refuse('argument_invalid', 'argument "cwd" must not be empty');
    ELSIF pg_catalog.octet_length(stdin) > 1000000 THEN
        PERFORM leasehold_internal.refuse('argument_too_large', 'argument "stdin" is too large', 'The limit is 1000000 bytes.');
    ELSIF EXISTS (SELECT FROM pg_catalog.jsonb_each(env) AS e WHERE pg_catalog.jsonb_typeof(e.value) <> 'string') THEN
        PERFORM leasehold_internal.refuse('argument_invalid', 'argument "env" holds a reference to a secret',
            'Commands take values only.');
    END IF;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.check_command', 'instant',
    'raises the error that start_command() would raise for these arguments', 'leasehold_app');

CREATE FUNCTION leasehold_internal.start_command(
        lease_id uuid, argv text[] DEFAULT NULL, shell text DEFAULT NULL, cwd text DEFAULT NULL,
        env jsonb DEFAULT NULL, stdin text DEFAULT NULL, timeout interval DEFAULT NULL, generation integer DEFAULT NULL,
        command_id uuid DEFAULT NULL, idempotency_key text DEFAULT NULL, company text DEFAULT NULL)
    RETURNS uuid LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(start_command.company, 'user');
    v_id      uuid := COALESCE(start_command.command_id, leasehold.new_id());
    v_earlier uuid;
    v_lease   leasehold.leases;
BEGIN
    PERFORM leasehold_internal.check_command(start_command.argv, start_command.shell, start_command.cwd, start_command.env,
        start_command.stdin, start_command.timeout);

    IF start_command.idempotency_key IS NOT NULL THEN
        v_earlier := leasehold_internal.claim_idempotency_key(v_company, 'start_command', start_command.idempotency_key,
            pg_catalog.jsonb_build_array(start_command.lease_id, start_command.argv, start_command.shell, start_command.cwd,
                start_command.env, start_command.stdin, pg_catalog.date_part('epoch', start_command.timeout),
                start_command.command_id), v_id);
        IF v_earlier IS NOT NULL THEN
            RETURN v_earlier;
        END IF;
    END IF;

    v_lease := leasehold_internal.lock_lease(v_company, start_command.lease_id, start_command.generation);
    IF v_lease.status <> 'active' THEN
        PERFORM leasehold_internal.refuse('wrong_state', pg_catalog.format('lease %s is not active', v_lease.id),
            CASE WHEN v_lease.status IN ('acquiring', 'resuming') THEN 'Wait for it with wait_for_lease().'
                 ELSE 'Request a new one.' END,
            pg_catalog.jsonb_build_object('status', v_lease.status));
    END IF;
    PERFORM leasehold_internal.require_execution(v_lease.provider);

    INSERT INTO leasehold.commands AS c
           (company_id, id, lease_id, generation, provider, agent_id, issue_id, run_id, argv, shell, cwd, timeout)
    VALUES (v_company, v_id, v_lease.id, v_lease.generation, v_lease.provider, v_lease.agent_id, v_lease.issue_id, v_lease.run_id,
            start_command.argv, start_command.shell, start_command.cwd, start_command.timeout)
    ON CONFLICT (company_id, id) DO NOTHING;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('already_exists', pg_catalog.format('command %s already exists', v_id));
    END IF;
    INSERT INTO leasehold_internal.command_inputs (company_id, command_id, stdin, env)
    SELECT v_company, v_id, start_command.stdin, start_command.env
     WHERE pg_catalog.num_nonnulls(start_command.stdin, start_command.env) > 0;
    -- a lease in which something begins is in use
    UPDATE leasehold.leases AS l SET last_used_at = pg_catalog.clock_timestamp()
     WHERE l.company_id = v_company AND l.id = v_lease.id;
    INSERT INTO leasehold_internal.calls (company_id, subject_id, slot, operation, provider, shard, generation)
    VALUES (v_company, v_id, 'command', 'execute', v_lease.provider, leasehold_internal.shard_of(v_company), v_lease.generation);
    PERFORM leasehold_internal.record(v_company, 'environment.command_requested', 'command', v_id::text,
        pg_catalog.jsonb_build_object('leaseId', v_lease.id, 'provider', v_lease.provider,
            'program', COALESCE(pg_catalog.left(start_command.argv[pg_catalog.array_lower(start_command.argv, 1)], 200), 'shell')),
        v_lease.agent_id, v_lease.issue_id, v_lease.run_id);
    PERFORM leasehold_internal.warn_if_unserved();
    RETURN v_id;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.start_command', 'instant',
    'has a program or a shell script run in an active lease and returns the command''s id', 'leasehold_app');

CREATE FUNCTION leasehold_internal.require_execution(provider text) RETURNS void
    LANGUAGE plpgsql STABLE AS $$
BEGIN
    PERFORM leasehold_internal.refuse('provider_unusable', pg_catalog.format('provider "%s" cannot run commands', p.key),
        'Its plugin has no environmentExecute.')
       FROM leasehold.providers AS p JOIN leasehold.plugins AS g ON g.key = p.plugin_key
      WHERE p.key = require_execution.provider
        AND g.supported_methods <> '{}' AND 'environmentExecute' <> ALL (g.supported_methods);
END
$$;
COMMENT ON FUNCTION leasehold_internal.require_execution(text) IS 'Refuses a provider that cannot run commands';

CREATE FUNCTION leasehold_internal.refuse_unknown_command(command_id uuid) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM leasehold_internal.refuse('command_not_found', pg_catalog.format('command %s does not exist', command_id),
        'It may be another company''s, its start may have been rolled back, or it ended long ago and was removed.');
END
$$;
COMMENT ON FUNCTION leasehold_internal.refuse_unknown_command(uuid) IS 'The error for a command that is not there';

-- Ends commands before their time, of whatever companies: those that no worker
-- has taken are over at once, of the others the workers are told.  Those that are
-- over, or about to be, are left alone.
CREATE FUNCTION leasehold_internal.cancel_commands(company_ids uuid[], command_ids uuid[], reason text) RETURNS integer
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_count integer;
BEGIN
    -- first the locks, then, in a later snapshot, the rows
    PERFORM FROM (SELECT * FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(command_ids)) AS k (company_id, id)
                   ORDER BY 1, 2) AS w
     CROSS JOIN LATERAL (SELECT x.id FROM leasehold.commands AS x
                          WHERE x.company_id = w.company_id AND x.id = w.id FOR NO KEY UPDATE) AS c;
    WITH target AS (
        SELECT c.* FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(command_ids)) AS w (company_id, id)
         CROSS JOIN LATERAL (SELECT * FROM leasehold.commands AS x
                              WHERE x.company_id = w.company_id AND x.id = w.id OFFSET 0) AS c
         WHERE c.status <> 'finished'
           -- one of which the provider could not be told is told again
           AND (c.cancel_requested_at IS NULL OR NOT EXISTS (
                    SELECT FROM leasehold_internal.calls AS x
                     WHERE x.company_id = c.company_id AND x.subject_id = c.id AND x.slot = 'cancel'))
    ), never_sent AS (
        DELETE FROM leasehold_internal.calls AS q
         USING target AS t
         WHERE q.company_id = t.company_id AND q.subject_id = t.id AND q.slot = 'command' AND q.state <> 'started'
        RETURNING q.company_id, q.subject_id
    ), command AS (
        UPDATE leasehold.commands AS c
           SET cancel_requested_at = COALESCE(t.cancel_requested_at, pg_catalog.clock_timestamp()),
               cancel_reason = COALESCE(t.cancel_reason, cancel_commands.reason),
               status = CASE WHEN n.subject_id IS NULL THEN c.status ELSE 'finished' END,
               outcome = CASE WHEN n.subject_id IS NOT NULL THEN 'cancelled' END,
               finished_at = CASE WHEN n.subject_id IS NOT NULL THEN pg_catalog.clock_timestamp() END
          FROM target AS t LEFT JOIN never_sent AS n ON n.company_id = t.company_id AND n.subject_id = t.id
         WHERE c.company_id = t.company_id AND c.id = t.id
        RETURNING c.*
    ), input AS (
        DELETE FROM leasehold_internal.command_inputs AS i
         USING never_sent AS n WHERE i.company_id = n.company_id AND i.command_id = n.subject_id
    ), call AS (
        INSERT INTO leasehold_internal.calls (company_id, subject_id, slot, operation, provider, shard, generation)
        SELECT c.company_id, c.id, 'cancel', 'cancel_command', c.provider, leasehold_internal.shard_of(c.company_id), c.generation
          FROM command AS c WHERE c.status <> 'finished'
        ON CONFLICT DO NOTHING
    ), event AS (
        INSERT INTO leasehold.audit_events (company_id, action, entity_type, entity_id, agent_id, issue_id, run_id, details)
        SELECT c.company_id,
               CASE c.status WHEN 'finished' THEN 'environment.command_finished' ELSE 'environment.command_cancel_requested' END,
               'command', c.id::text, c.agent_id, c.issue_id, c.run_id,
               pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object('leaseId', c.lease_id, 'provider', c.provider,
                   'outcome', c.outcome, 'reason', c.cancel_reason))
          FROM command AS c
    )
    SELECT pg_catalog.count(*) INTO v_count FROM command;
    RETURN v_count;
END
$$;
COMMENT ON FUNCTION leasehold_internal.cancel_commands(uuid[], uuid[], text) IS
    'Ends commands before their time, or has the workers do it; returns how many';

CREATE FUNCTION leasehold_internal.may_have_commands(status leasehold.lease_status) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN status IN ('active', 'releasing', 'pending_cleanup');
COMMENT ON FUNCTION leasehold_internal.may_have_commands(leasehold.lease_status) IS
    'Whether something may run in a lease of this status, and its end be seen';

-- With a lease its commands end.  Its resource is not removed at once then: they
-- get a moment, so that the rest of their output and their end are seen.
CREATE FUNCTION leasehold_internal.end_commands(company_ids uuid[], lease_ids uuid[]) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_companies uuid[];
    v_commands  uuid[];
BEGIN
    SELECT pg_catalog.array_agg(c.company_id), pg_catalog.array_agg(c.id) INTO v_companies, v_commands
      FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(lease_ids)) AS w (company_id, id)
      JOIN leasehold.commands AS c ON c.company_id = w.company_id AND c.lease_id = w.id
     WHERE c.status <> 'finished';
    IF v_commands IS NULL THEN
        RETURN;
    END IF;
    PERFORM leasehold_internal.cancel_commands(v_companies, v_commands, 'the lease ended');
    UPDATE leasehold_internal.calls AS q SET due_at = GREATEST(q.due_at, pg_catalog.clock_timestamp() + interval '5 seconds')
      FROM (SELECT DISTINCT c.company_id, c.lease_id
              FROM ROWS FROM (pg_catalog.unnest(v_companies), pg_catalog.unnest(v_commands)) AS w (company_id, id)
              JOIN leasehold.commands AS c ON c.company_id = w.company_id AND c.id = w.id
             WHERE c.status <> 'finished') AS t
     WHERE q.company_id = t.company_id AND q.subject_id = t.lease_id AND q.slot = 'op' AND q.state = 'queued';
END
$$;
COMMENT ON FUNCTION leasehold_internal.end_commands(uuid[], uuid[]) IS 'Cancels the commands of leases that end';

CREATE FUNCTION leasehold_internal.cancel_command(command_id uuid, reason text DEFAULT NULL, company text DEFAULT NULL)
    RETURNS text LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(cancel_command.company, 'user');
    v_lease   uuid;
BEGIN
    PERFORM leasehold_internal.check_text('reason', cancel_command.reason, 1000);
    SELECT c.lease_id INTO v_lease FROM leasehold.commands AS c WHERE c.company_id = v_company AND c.id = cancel_command.command_id;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse_unknown_command(cancel_command.command_id);
    END IF;
    -- what a worker has got the lock of it can write, with all that belongs to it
    PERFORM leasehold_internal.lock_lease(v_company, v_lease);
    PERFORM leasehold_internal.cancel_commands(ARRAY[v_company], ARRAY[cancel_command.command_id],
        COALESCE(cancel_command.reason, 'cancelled'));
    PERFORM leasehold_internal.warn_if_unserved();
    RETURN (SELECT c.status FROM leasehold.commands AS c WHERE c.company_id = v_company AND c.id = cancel_command.command_id);
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.cancel_command', 'instant',
    'has a command ended and returns its status; one that is over stays as it is', 'leasehold_app');

CREATE FUNCTION leasehold_internal.command_kept_by(company_id uuid, command_id uuid, written_by xid) RETURNS xid
    LANGUAGE sql STABLE
    RETURN COALESCE((SELECT q.xmin FROM leasehold_internal.calls AS q
                      WHERE q.company_id = command_kept_by.company_id AND q.subject_id = command_kept_by.command_id
                        AND q.slot = 'command' AND q.state = 'queued'), written_by);
COMMENT ON FUNCTION leasehold_internal.command_kept_by(uuid, uuid, xid) IS
    'The transaction before whose end a command cannot go on: who wrote its call while it is queued, or itself';

CREATE FUNCTION leasehold_internal.command_state(
        command_id uuid, company text,
        OUT company_id uuid, OUT status text, OUT done boolean, OUT outcome text, OUT exit_code integer, OUT signal text,
        OUT output_truncated boolean, OUT failure_code text, OUT failure_reason text, OUT written_by xid)
    RETURNS record LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
BEGIN
    company_id := leasehold_internal.enter_company(command_state.company, 'user');
    SELECT c.status, c.status = 'finished', c.outcome, c.exit_code, c.signal, c.output_truncated, c.failure_code,
           c.failure_reason, leasehold_internal.command_kept_by(c.company_id, c.id, c.xmin)
      INTO status, done, outcome, exit_code, signal, output_truncated, failure_code, failure_reason, written_by
      FROM leasehold.commands AS c
     WHERE c.company_id = command_state.company_id AND c.id = command_state.command_id;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse_unknown_command(command_state.command_id);
    END IF;
END
$$;
COMMENT ON FUNCTION leasehold_internal.command_state(uuid, text) IS 'What wait_for_command() reads';

CREATE FUNCTION leasehold_internal.wait_for_command(
        command_id uuid, timeout interval DEFAULT '5 seconds', company text DEFAULT NULL,
        OUT status text, OUT done boolean, OUT outcome text, OUT exit_code integer, OUT signal text,
        OUT output_truncated boolean, OUT failure_code text, OUT failure_reason text)
    RETURNS record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_wait_for_command';
SELECT leasehold_internal.publish('leasehold_internal.wait_for_command', 'waits',
    'returns a command''s state once it has finished, or at the timeout with done = false', 'leasehold_app');

-- Text that anybody can be shown: what is no UTF-8, or no text at all, is replaced.
CREATE FUNCTION leasehold_internal.output_text(data bytea) RETURNS text
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'leasehold_output_text';
COMMENT ON FUNCTION leasehold_internal.output_text(bytea) IS
    'Output as text: what is not valid in it is replaced by U+FFFD';

CREATE FUNCTION leasehold_internal.output_state(
        command_id uuid, after bigint, company text, OUT company_id uuid, OUT status text, OUT done boolean,
        OUT written_by xid)
    RETURNS record LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
BEGIN
    company_id := leasehold_internal.enter_company(output_state.company, 'user');
    SELECT c.status, leasehold_internal.command_kept_by(c.company_id, c.id, c.xmin) INTO status, written_by
      FROM leasehold.commands AS c
     WHERE c.company_id = output_state.company_id AND c.id = output_state.command_id;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse_unknown_command(output_state.command_id);
    END IF;
    done := status = 'finished' OR EXISTS (
        SELECT FROM leasehold.command_output AS o
         WHERE o.company_id = output_state.company_id AND o.command_id = output_state.command_id AND o.seq > COALESCE(output_state.after, 0));
END
$$;
COMMENT ON FUNCTION leasehold_internal.output_state(uuid, bigint, text) IS 'What read_output() waits for';

CREATE FUNCTION leasehold_internal.output_rows(
        command_id uuid, after bigint, company text,
        OUT seq bigint, OUT stream text, OUT "text" text, OUT data bytea, OUT at timestamptz)
    RETURNS SETOF record LANGUAGE plpgsql STABLE ROWS 100 AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(output_rows.company, 'user');
    v_bytes   bigint := 0;
BEGIN
    FOR seq, stream, data, at IN
        SELECT o.seq, o.stream, o.data, o.at FROM leasehold.command_output AS o
         WHERE o.company_id = v_company AND o.command_id = output_rows.command_id AND o.seq > COALESCE(output_rows.after, 0)
         ORDER BY o.seq
    LOOP
        "text" := leasehold_internal.output_text(data);
        RETURN NEXT;
        -- the rest at the next call
        v_bytes := v_bytes + pg_catalog.octet_length(data);
        EXIT WHEN v_bytes >= 1048576;
    END LOOP;
END
$$;
COMMENT ON FUNCTION leasehold_internal.output_rows(uuid, bigint, text) IS 'What read_output() returns';

CREATE FUNCTION leasehold_internal.read_output(
        command_id uuid, after bigint DEFAULT 0, timeout interval DEFAULT '0 seconds', company text DEFAULT NULL,
        OUT seq bigint, OUT stream text, OUT "text" text, OUT data bytea, OUT at timestamptz)
    RETURNS SETOF record LANGUAGE c VOLATILE ROWS 100 AS 'MODULE_PATHNAME', 'leasehold_read_output';
SELECT leasehold_internal.publish('leasehold_internal.read_output', 'waits',
    'returns what a command has written since the piece numbered "after", about a megabyte at a time; with a timeout it waits for something to return or the command''s end',
    'leasehold_app');
