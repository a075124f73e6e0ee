-- 34_procedures.sql: procedures that wait and commit between their steps, and
-- what they are made of.
--
-- They run as the caller and with the caller's settings: a procedure that commits
-- can have neither another role nor settings of its own.  So every name in them is
-- qualified, types and operators included, and they call public functions only.
-- Where they stop, by an error or otherwise, attach_call() has seen to what is to
-- become of what they began.

-- What a CALL is to be attached to: refuses what is not the caller's company's.
-- A command gets a mark, which lasts where the session's own does not: a server
-- that crashes forgets who waited.
CREATE FUNCTION leasehold_internal.check_attachment(
        lease_id uuid, command_id uuid, company text, OUT company_id uuid, OUT generation integer)
    RETURNS record LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(check_attachment.company, 'user');
    v_lease   uuid;
BEGIN
    company_id := v_company;
    generation := 0;
    IF check_attachment.lease_id IS NOT NULL THEN
        SELECT l.generation INTO generation FROM leasehold.leases AS l
         WHERE l.company_id = v_company AND l.id = check_attachment.lease_id;
        IF NOT FOUND THEN
            PERFORM leasehold_internal.refuse_unknown_lease(check_attachment.lease_id);
        END IF;
    END IF;
    IF check_attachment.command_id IS NOT NULL THEN
        SELECT c.lease_id INTO v_lease FROM leasehold.commands AS c
         WHERE c.company_id = v_company AND c.id = check_attachment.command_id;
        IF NOT FOUND THEN
            PERFORM leasehold_internal.refuse_unknown_command(check_attachment.command_id);
        END IF;
        PERFORM leasehold_internal.lock_lease(v_company, v_lease);
        UPDATE leasehold_internal.calls AS q SET payload = '{"attached": true}'
         WHERE q.company_id = v_company AND q.subject_id = check_attachment.command_id AND q.slot = 'command'
           AND q.state = 'queued';
    END IF;
END
$$;
COMMENT ON FUNCTION leasehold_internal.check_attachment(uuid, uuid, text) IS
    'Refuses what a CALL cannot be attached to, and marks the command; returns the company and the lease''s generation';

-- The ids are those that a CALL of this session was attached to.
CREATE FUNCTION leasehold_internal.unmark_attached(company_id uuid, command_id uuid) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_lease uuid;
BEGIN
    SELECT c.lease_id INTO v_lease FROM leasehold.commands AS c
     WHERE c.company_id = unmark_attached.company_id AND c.id = unmark_attached.command_id AND c.status = 'queued';
    IF FOUND THEN
        PERFORM leasehold_internal.lock_lease(unmark_attached.company_id, v_lease);
        UPDATE leasehold_internal.calls AS q SET payload = NULL
         WHERE q.company_id = unmark_attached.company_id AND q.subject_id = unmark_attached.command_id
           AND q.slot = 'command' AND q.state = 'queued';
    END IF;
END
$$;
COMMENT ON FUNCTION leasehold_internal.unmark_attached(uuid, uuid) IS 'Takes the mark of check_attachment() from a command that is still queued';

CREATE FUNCTION leasehold_internal.attach_call(
        lease_id uuid DEFAULT NULL, command_id uuid DEFAULT NULL, company text DEFAULT NULL)
    RETURNS void LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_attach_call';
SELECT leasehold_internal.publish('leasehold_internal.attach_call', 'instant',
    'called by a procedure: if the CALL ends before detach_call(), the lease is ended and the command cancelled; refuses where the procedure could not commit',
    'leasehold_app');

CREATE FUNCTION leasehold_internal.detach_call(lease_id uuid DEFAULT NULL, command_id uuid DEFAULT NULL) RETURNS void
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_detach_call';
SELECT leasehold_internal.publish('leasehold_internal.detach_call', 'instant',
    'called by a procedure that has seen the end of these, or of all: undoes attach_call()', 'leasehold_app');

CREATE FUNCTION leasehold_internal.attached_calls(
        OUT pid integer, OUT state text, OUT company_id uuid, OUT lease_id uuid, OUT command_id uuid)
    RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_attached_calls';
COMMENT ON FUNCTION leasehold_internal.attached_calls() IS
    'What sessions of this database are attached to (held), or have left to the workers (left)';

CREATE FUNCTION leasehold_internal.follow_lease(
        lease_id uuid, timeout interval DEFAULT '5 seconds', company text DEFAULT NULL,
        OUT status text, OUT done boolean, OUT generation integer, OUT provider_lease_id text,
        OUT expires_at timestamptz, OUT waiting_for text, OUT failure_code text, OUT failure_reason text)
    RETURNS record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_follow_lease';
SELECT leasehold_internal.publish('leasehold_internal.follow_lease', 'waits',
    'does what wait_for_lease() does; at the timeout an INFO message tells what is waited for', 'leasehold_app');

CREATE FUNCTION leasehold_internal.follow_command(
        command_id uuid, timeout interval DEFAULT '5 seconds', company text DEFAULT NULL,
        OUT status text, OUT done boolean, OUT outcome text, OUT exit_code integer, OUT signal text,
        OUT output_truncated boolean, OUT failure_code text, OUT failure_reason text)
    RETURNS record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_follow_command';
SELECT leasehold_internal.publish('leasehold_internal.follow_command', 'waits',
    'does what wait_for_command() does, and shows what the command writes as INFO messages, line by line; the next call of the same procedure goes on where this one stopped',
    'leasehold_app');

CREATE PROCEDURE leasehold.acquire_lease(
        environment text, INOUT lease_id uuid DEFAULT NULL, INOUT status text DEFAULT NULL,
        INOUT expires_at timestamptz DEFAULT NULL, INOUT generation integer DEFAULT NULL,
        agent_id uuid DEFAULT NULL, issue_id uuid DEFAULT NULL, run_id uuid DEFAULT NULL, execution_workspace_id uuid DEFAULT NULL, ttl interval DEFAULT NULL,
        idle_timeout interval DEFAULT NULL, policy text DEFAULT NULL, on_limit text DEFAULT NULL,
        acquire_timeout interval DEFAULT NULL, company text DEFAULT NULL)
    LANGUAGE plpgsql AS $$
DECLARE
    v_lease pg_catalog.record;
BEGIN
    PERFORM leasehold.attach_call(company => acquire_lease.company);
    lease_id := leasehold.request_lease(acquire_lease.environment, agent_id => acquire_lease.agent_id,
        issue_id => acquire_lease.issue_id, run_id => acquire_lease.run_id,
        execution_workspace_id => acquire_lease.execution_workspace_id, ttl => acquire_lease.ttl,
        idle_timeout => acquire_lease.idle_timeout, policy => acquire_lease.policy, on_limit => acquire_lease.on_limit,
        acquire_timeout => acquire_lease.acquire_timeout, lease_id => acquire_lease.lease_id,
        company => acquire_lease.company);
    PERFORM leasehold.attach_call(lease_id => acquire_lease.lease_id, company => acquire_lease.company);
    LOOP
        COMMIT;
        SELECT f.* INTO v_lease FROM leasehold.follow_lease(acquire_lease.lease_id, company => acquire_lease.company) AS f;
        EXIT WHEN v_lease.done;
    END LOOP;
    PERFORM leasehold.detach_call();
    IF v_lease.status OPERATOR(pg_catalog.<>) 'active' THEN
        RAISE EXCEPTION USING ERRCODE = 'PT503',
            MESSAGE = pg_catalog.concat('lease ', lease_id, ' could not be acquired: ',
                COALESCE(v_lease.failure_reason, v_lease.status)),
            DETAIL = pg_catalog.jsonb_build_object('code', 'lease_acquire_failed', 'lease_id', lease_id,
                'status', v_lease.status, 'failure_code', v_lease.failure_code)::pg_catalog.text;
    END IF;
    status := v_lease.status;
    expires_at := v_lease.expires_at;
    generation := v_lease.generation;
END
$$;
SELECT leasehold_internal.publish_procedure('leasehold.acquire_lease',
    'gets a lease: requests it, waits until it is active, and raises an error if it fails', 'leasehold_app');

CREATE PROCEDURE leasehold.run(
        company text, environment text, command text DEFAULT NULL,
        INOUT exit_code integer DEFAULT NULL, INOUT lease_id uuid DEFAULT NULL, INOUT outcome text DEFAULT NULL,
        argv text[] DEFAULT NULL, cwd text DEFAULT NULL, env jsonb DEFAULT NULL, stdin text DEFAULT NULL,
        timeout interval DEFAULT NULL, ttl interval DEFAULT NULL, keep boolean DEFAULT false,
        fail_on_error boolean DEFAULT false, agent_id uuid DEFAULT NULL, issue_id uuid DEFAULT NULL,
        run_id uuid DEFAULT NULL)
    LANGUAGE plpgsql AS $$
DECLARE
    v_own        boolean := lease_id IS NULL;
    v_keep       boolean := COALESCE(keep, false);
    -- short, and renewed: it goes soon if this session is not there to end it
    v_ttl        interval := COALESCE(ttl, CASE WHEN v_keep THEN interval '1 hour' ELSE interval '30 seconds' END);
    v_turn       interval := interval '5 seconds';
    v_generation pg_catalog.int4;
    v_expires    pg_catalog.timestamptz;
    v_renew_at   pg_catalog.timestamptz;
    v_status     pg_catalog.text;
    v_command    pg_catalog.uuid;
    v_state      pg_catalog.record;
BEGIN
    PERFORM leasehold.attach_call(company => run.company);
    IF pg_catalog.num_nonnulls(command, argv) OPERATOR(pg_catalog.<>) 1 THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'one of the arguments "command" and "argv" is needed',
            HINT = 'command => ''...'' is a script for the shell, argv => ARRAY[''program'', ''argument''] a program.',
            DETAIL = '{"code": "argument_invalid"}';
    END IF;
    PERFORM leasehold.check_command(run.argv, run.command, run.cwd, run.env, run.stdin, run.timeout);
    IF v_own THEN
        -- stays attached, as this CALL is
        CALL leasehold.acquire_lease(run.environment, lease_id, v_status, v_expires, v_generation,
            agent_id => run.agent_id, issue_id => run.issue_id, run_id => run.run_id, ttl => v_ttl, company => run.company);
        v_turn := LEAST(v_turn, v_ttl OPERATOR(pg_catalog./) 4);
        v_renew_at := pg_catalog.clock_timestamp()
            OPERATOR(pg_catalog.+) ((v_expires OPERATOR(pg_catalog.-) pg_catalog.clock_timestamp()) OPERATOR(pg_catalog./) 3);
    ELSIF environment IS NOT NULL THEN
        PERFORM leasehold.use_company(run.company);
        PERFORM FROM leasehold.leases AS l
           JOIN leasehold.environments AS e
             ON e.company_id OPERATOR(pg_catalog.=) l.company_id AND e.id OPERATOR(pg_catalog.=) l.environment_id
          WHERE l.id OPERATOR(pg_catalog.=) run.lease_id AND e.key OPERATOR(pg_catalog.<>) run.environment;
        IF FOUND THEN
            RAISE EXCEPTION USING ERRCODE = '22023',
                MESSAGE = pg_catalog.format('lease %s is in another environment', lease_id),
                HINT = 'The environment of a lease that is given can be null.', DETAIL = '{"code": "argument_invalid"}';
        END IF;
    END IF;

    v_command := leasehold.start_command(run.lease_id, argv => run.argv, shell => run.command, cwd => run.cwd,
        env => run.env, stdin => run.stdin, timeout => run.timeout, generation => v_generation, company => run.company);
    PERFORM leasehold.attach_call(command_id => v_command, company => run.company);
    IF v_own AND v_keep THEN
        PERFORM leasehold.detach_call(lease_id => run.lease_id);
    END IF;
    LOOP
        COMMIT;
        SELECT f.* INTO v_state FROM leasehold.follow_command(v_command, v_turn, run.company) AS f;
        IF v_own AND (v_state.done AND v_keep
                      OR NOT v_state.done AND pg_catalog.clock_timestamp() OPERATOR(pg_catalog.>=) v_renew_at) THEN
            BEGIN
                v_expires := leasehold.renew_lease(run.lease_id, v_ttl, generation => v_generation, company => run.company);
                v_renew_at := pg_catalog.clock_timestamp()
                    OPERATOR(pg_catalog.+) ((v_expires OPERATOR(pg_catalog.-) pg_catalog.clock_timestamp()) OPERATOR(pg_catalog./) 3);
            EXCEPTION WHEN SQLSTATE 'PT409' THEN
                -- one that has ended takes the command with it, which is seen soon
                v_renew_at := 'infinity';
            END;
        END IF;
        EXIT WHEN v_state.done;
    END LOOP;
    IF v_own AND NOT v_keep THEN
        BEGIN
            PERFORM leasehold.release_lease(run.lease_id, generation => v_generation, company => run.company);
        EXCEPTION WHEN SQLSTATE 'PT409' THEN
            -- it ended meanwhile, and its resource has another holder
            NULL;
        END;
    END IF;
    COMMIT;
    PERFORM leasehold.detach_call();

    exit_code := v_state.exit_code;
    outcome := v_state.outcome;
    IF fail_on_error AND NOT COALESCE(exit_code OPERATOR(pg_catalog.=) 0, false) THEN
        RAISE EXCEPTION USING ERRCODE = 'PT422',
            MESSAGE = CASE WHEN exit_code IS NOT NULL THEN pg_catalog.concat('the command exited with ', exit_code)
                           ELSE pg_catalog.concat('the command did not exit by itself: ', outcome) END,
            DETAIL = pg_catalog.jsonb_build_object('code', 'command_failed', 'command_id', v_command, 'lease_id', lease_id,
                'outcome', outcome, 'exit_code', exit_code, 'failure_code', v_state.failure_code)::pg_catalog.text;
    END IF;
END
$$;
SELECT leasehold_internal.publish_procedure('leasehold.run',
    'runs a command in a lease of its own, shows its output as it comes, and releases the lease; what is cancelled or lost in between ends with it',
    'leasehold_app');

CREATE PROCEDURE leasehold.execute(
        lease_id uuid, command text DEFAULT NULL,
        INOUT exit_code integer DEFAULT NULL, INOUT outcome text DEFAULT NULL,
        argv text[] DEFAULT NULL, cwd text DEFAULT NULL, env jsonb DEFAULT NULL, stdin text DEFAULT NULL,
        timeout interval DEFAULT NULL, fail_on_error boolean DEFAULT false, company text DEFAULT NULL)
    LANGUAGE plpgsql AS $$
BEGIN
    IF lease_id IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'argument "lease_id" must not be null',
            DETAIL = '{"code": "argument_required"}';
    END IF;
    CALL leasehold.run(execute.company, NULL, execute.command, exit_code, lease_id, outcome, argv => execute.argv,
        cwd => execute.cwd, env => execute.env, stdin => execute.stdin, timeout => execute.timeout,
        fail_on_error => execute.fail_on_error);
END
$$;
SELECT leasehold_internal.publish_procedure('leasehold.execute',
    'runs a command in an active lease and shows its output as it comes; a CALL that is cancelled or lost ends the command',
    'leasehold_app');
