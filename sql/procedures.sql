-- run(), execute() and acquire_lease(), by which people in psql use leases: what
-- they show, how they end, and where they refuse to begin.  What becomes of a
-- CALL that is cut off is tested in test/t/022_call.pl.
\pset format unaligned
\pset tuples_only on
\set SHOW_CONTEXT never
SET ROLE regress_manager;
SELECT leasehold.create_environment('procedures', 'fake', environment_id => test.id('procedures')) IS NOT NULL AS made;
SET ROLE regress_user;

-- The main job: output as messages, line by line, and a lease that is gone afterwards.
CALL leasehold.run('acme', 'procedures', 'echo hello; err trouble; echo bye') \gset
SELECT test.is('it tells the exit code and the outcome', (:'exit_code', :'outcome')::text, '(0,exited)');
SELECT test.is('its lease was given back', l.status IN ('releasing', 'released'), true) FROM leasehold.leases AS l WHERE l.id = :'lease_id';
SELECT test.is('of short life if nobody had done that', l.ttl, interval '30 seconds') FROM leasehold.leases AS l WHERE l.id = :'lease_id';
SELECT test.is('the command is the caller''s', (c.shell, c.outcome, c.requested_by)::text, '("echo hello; err trouble; echo bye",exited,regress_user)') FROM leasehold.commands AS c WHERE c.lease_id = :'lease_id';
\unset lease_id
CALL leasehold.run('acme', 'procedures', 'echo five; exit 5') \gset r_
SELECT test.is('as does one that fails', (:'r_exit_code', :'r_outcome')::text, '(5,exited)');

-- Lines: what ends one, what is held until its end, and what a terminal would obey.
CALL leasehold.run('acme', 'procedures', 'bytes 6f6e65 2074 776f0a; echo three') \gset r_
CALL leasehold.run('acme', 'procedures', 'bytes 6f6e65; err between; bytes 2074776f0a') \gset r_
CALL leasehold.run('acme', 'procedures', 'bytes 756e66696e6973686564') \gset r_
CALL leasehold.run('acme', 'procedures', 'bytes 610d0a0d0a620a; bytes 31250d 32250d 33250d; bytes 0a') \gset r_
CALL leasehold.run('acme', 'procedures', 'bytes 1b5b324a1b5d303b7469746c6507 c29b33316d 09746162097f08') \gset r_
CALL leasehold.run('acme', 'procedures', 'bytes c3a9e282acf09d849e 61ff62c3 28 00 63') \gset r_
-- a client that has not every character
SET client_encoding = 'LATIN1';
CALL leasehold.run('acme', 'procedures', 'bytes e282ac 20616e6420 f09d849e 20656e64') \gset r_
RESET client_encoding;
-- INFO is shown whatever the session wants to see else
SET client_min_messages = error;
CALL leasehold.run('acme', 'procedures', 'echo shown') \gset r_
RESET client_min_messages;

-- What else a command can be given.
CALL leasehold.run('acme', 'procedures', argv => ARRAY['echo', 'a program;', 'no script']) \gset r_
CALL leasehold.run('acme', 'procedures', 'pwd; env; cat', cwd => '/work', env => '{"A": "1", "B": "two"}', stdin => E'input\nof two lines\n') \gset r_

-- Other ends than an exit.
CALL leasehold.run('acme', 'procedures', 'echo a; kill SIGSEGV') \gset r_
\echo an exit code: :{?r_exit_code}
SELECT test.is('ended by a signal', :'r_outcome', 'signalled');
CALL leasehold.run('acme', 'procedures', 'echo b; hang', timeout => '0.2 seconds') \gset r_
SELECT test.is('out of time', :'r_outcome', 'timed_out');
CALL leasehold.run('acme', 'procedures', 'refuse') \gset r_
SELECT test.is('refused', :'r_outcome', 'failed');
CALL leasehold.run('acme', 'procedures', 'echo c; lose') \gset r_
SELECT test.is('lost', :'r_outcome', 'lost');
CALL leasehold.run('acme', 'procedures', 'vanish') \gset r_
SELECT test.is('not even known to have run', :'r_outcome', 'unknown');
CALL leasehold.run('acme', 'procedures', 'mute') \gset r_
SELECT test.is('without a word', :'r_outcome', 'lost');

-- An error, if asked for, when all is done.
\set VERBOSITY terse
CALL leasehold.run('acme', 'procedures', 'echo d; exit 3', fail_on_error => true);
\echo :LAST_ERROR_SQLSTATE
CALL leasehold.run('acme', 'procedures', 'kill SIGKILL', fail_on_error => true);
\echo :LAST_ERROR_SQLSTATE
CALL leasehold.run('acme', 'procedures', 'echo fine', fail_on_error => true) \gset r_
\set VERBOSITY default
SELECT test.is('leases of commands that failed are given back as well', count(*), 0)
  FROM leasehold.leases AS l WHERE l.environment_id = test.id('procedures') AND l.status NOT IN ('releasing', 'released');

-- More output than is kept.
RESET ROLE;
SELECT leasehold.set_limit('output_bytes', 200, company => 'acme');
SET ROLE regress_user;
CALL leasehold.run('acme', 'procedures', 'flood 400; err unheard') \gset r_
RESET ROLE;
SELECT leasehold.set_limit('output_bytes', NULL, company => 'acme');
SET ROLE regress_user;

-- A lease that is kept, and used again.
CALL leasehold.run('acme', 'procedures', 'echo first', keep => true) \gset
SELECT test.is('kept', (l.status, l.ttl = '1 hour', l.expires_at > now() + interval '59 minutes')::text, '(active,t,t)') FROM leasehold.leases AS l WHERE l.id = :'lease_id';
SELECT :'lease_id' AS kept \gset
CALL leasehold.run('acme', 'procedures', 'echo second', lease_id => :'kept') \gset
SELECT test.is('the same', :'lease_id', :'kept');
CALL leasehold.run('acme', NULL, 'echo third', lease_id => :'kept') \gset
CALL leasehold.execute(:'kept', 'err fourth; exit 4') \gset r_
SELECT test.is('the same in short', (:'r_exit_code', :'r_outcome')::text, '(4,exited)');
\set VERBOSITY terse
CALL leasehold.execute(:'kept', 'exit 4', fail_on_error => true);
\set VERBOSITY default
CALL leasehold.execute(:'kept', argv => ARRAY['echo', 'fifth'], cwd => '/', env => '{}', stdin => '', timeout => '1 minute', company => 'acme') \gset r_
SELECT test.is('still active', (l.status, (SELECT count(*) FROM leasehold.commands AS c WHERE c.lease_id = l.id))::text, '(active,6)') FROM leasehold.leases AS l WHERE l.id = :'kept';
CALL leasehold.run('acme', 'procedures', 'echo kept for longer', keep => true, ttl => '2 hours') \gset
SELECT test.is('for as long as wanted', l.expires_at > now() + interval '119 minutes', true) FROM leasehold.leases AS l WHERE l.id = :'lease_id';
SELECT test.is('given back', leasehold.release_lease(:'lease_id'), 'releasing'), test.is('given back', leasehold.release_lease(:'kept'), 'releasing');
SELECT test.eventually('over', format('SELECT status FROM leasehold.leases WHERE id = %L', :'kept'), 'released');

-- A lease of one's own, of the agent, issue and run that are named.
SELECT leasehold.upsert_agent(test.id('p agent')) IS NOT NULL AND leasehold.upsert_issue(test.id('p issue')) IS NOT NULL
   AND leasehold.start_run(test.id('p agent'), run_id => test.id('p run')) IS NOT NULL AS made;
CALL leasehold.run('acme', 'procedures', 'echo for the run', agent_id => test.id('p agent'), issue_id => test.id('p issue'), run_id => test.id('p run')) \gset
SELECT test.is('the lease says so', (l.agent_id, l.issue_id, l.run_id) = (test.id('p agent'), test.id('p issue'), test.id('p run')), true) FROM leasehold.leases AS l WHERE l.id = :'lease_id';

-- A lease is renewed while its command runs.
CALL leasehold.run('acme', 'procedures', 'sleep 3; echo lived on', ttl => '1 second') \gset
SELECT test.is('its command ended by itself', :'outcome', 'exited');
SELECT test.is('more than its ttl after the beginning', c.finished_at - c.started_at >= interval '3 seconds' AND l.ttl = interval '1 second', true)
  FROM leasehold.commands AS c JOIN leasehold.leases AS l ON l.id = c.lease_id WHERE c.lease_id = :'lease_id';

-- Just the lease.
CALL leasehold.acquire_lease('procedures', test.id('p acquired'), ttl => '10 minutes') \gset
SELECT test.is('it is active', (:'lease_id', :'status')::text, (test.id('p acquired'), 'active')::text);
SELECT test.is('for as long as told, of its first holder', (l.expires_at = :'expires_at', :'generation')::text, '(t,1)') FROM leasehold.leases AS l WHERE l.id = :'lease_id';
SELECT test.is('given back', leasehold.release_lease(:'lease_id'), 'releasing');
SET ROLE regress_manager;
SELECT leasehold.create_environment('procedures-fail', 'fake', '{"failPermanently": true}') IS NOT NULL AS made;
SET ROLE regress_user;
CALL leasehold.acquire_lease('procedures-fail', test.id('p failed'));
\echo :LAST_ERROR_SQLSTATE
\set VERBOSITY terse
CALL leasehold.acquire_lease('procedures', test.id('p failed'));
\set VERBOSITY sqlstate
CALL leasehold.run('acme', 'procedures-fail', 'echo never');
\set VERBOSITY default
SELECT test.is('nothing was run', count(*), 0) FROM leasehold.commands AS c WHERE c.shell = 'echo never';

-- Others than those who may do it by hand cannot do it in one go.
SET ROLE regress_viewer;
CALL leasehold.run('acme', 'procedures', 'echo no');
SET ROLE regress_beta;
CALL leasehold.run('acme', 'procedures', 'echo no');
SET ROLE regress_ungrouped;
CALL leasehold.run('acme', 'procedures', 'echo no');
RESET ROLE;
SELECT test.is('only applications', string_agg(DISTINCT g.rolname, ' '), 'leasehold_app')
  FROM pg_proc AS p, aclexplode(p.proacl) AS a JOIN pg_roles AS g ON g.oid = a.grantee
 WHERE p.pronamespace = 'leasehold'::regnamespace AND p.prokind = 'p' AND a.grantee <> p.proowner;
SELECT test.is('as themselves, with their settings', bool_or(p.prosecdef OR p.proconfig IS NOT NULL), false)
  FROM pg_proc AS p WHERE p.pronamespace = 'leasehold'::regnamespace AND p.prokind = 'p';

CREATE FUNCTION test.attached_commands() RETURNS SETOF uuid LANGUAGE sql SECURITY DEFINER AS
    $$ SELECT command_id FROM leasehold_internal.attached_commands(ARRAY(SELECT generate_series(0, 32767)::smallint)) $$;
GRANT EXECUTE ON FUNCTION test.attached_commands() TO regress_user;

-- Names that mean something else for the caller.
CREATE SCHEMA hostile;
GRANT ALL ON SCHEMA hostile TO regress_user;
SET ROLE regress_user;
SET search_path = hostile, pg_catalog;
CREATE DOMAIN hostile.uuid AS pg_catalog.text CHECK (false);
CREATE DOMAIN hostile.text AS pg_catalog.text CHECK (false);
CREATE DOMAIN hostile.timestamptz AS pg_catalog.text CHECK (false);
CREATE FUNCTION hostile.clock_timestamp() RETURNS pg_catalog.timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE 'hostile'; END $$;
CREATE FUNCTION hostile.eq(pg_catalog.text, pg_catalog.text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'hostile'; END $$;
CREATE FUNCTION hostile.eq(integer, integer) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'hostile'; END $$;
CREATE FUNCTION hostile.eq(pg_catalog.uuid, pg_catalog.uuid) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'hostile'; END $$;
CREATE FUNCTION hostile.ge(pg_catalog.timestamptz, pg_catalog.timestamptz) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'hostile'; END $$;
CREATE FUNCTION hostile.plus(pg_catalog.timestamptz, interval) RETURNS pg_catalog.timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE 'hostile'; END $$;
CREATE FUNCTION hostile.by(interval, double precision) RETURNS interval LANGUAGE plpgsql AS $$ BEGIN RAISE 'hostile'; END $$;
CREATE OPERATOR hostile.= (LEFTARG = pg_catalog.text, RIGHTARG = pg_catalog.text, FUNCTION = hostile.eq);
CREATE OPERATOR hostile.<> (LEFTARG = pg_catalog.text, RIGHTARG = pg_catalog.text, FUNCTION = hostile.eq);
CREATE OPERATOR hostile.= (LEFTARG = integer, RIGHTARG = integer, FUNCTION = hostile.eq);
CREATE OPERATOR hostile.<> (LEFTARG = integer, RIGHTARG = integer, FUNCTION = hostile.eq);
CREATE OPERATOR hostile.= (LEFTARG = pg_catalog.uuid, RIGHTARG = pg_catalog.uuid, FUNCTION = hostile.eq);
CREATE OPERATOR hostile.>= (LEFTARG = pg_catalog.timestamptz, RIGHTARG = pg_catalog.timestamptz, FUNCTION = hostile.ge);
CREATE OPERATOR hostile.+ (LEFTARG = pg_catalog.timestamptz, RIGHTARG = interval, FUNCTION = hostile.plus);
CREATE OPERATOR hostile./ (LEFTARG = interval, RIGHTARG = double precision, FUNCTION = hostile.by);
CALL leasehold.run('acme', 'procedures', 'sleep 1; echo not disturbed', ttl => '1 second', keep => true) \gset
CALL leasehold.run('acme', 'procedures', 'echo again', lease_id => :'lease_id', fail_on_error => true) \gset
CALL leasehold.execute(:'lease_id', 'echo and again', fail_on_error => true) \gset r_
CALL leasehold.acquire_lease('procedures') \gset r_
\set VERBOSITY terse
CALL leasehold.execute(:'lease_id', 'exit 1', fail_on_error => true);
\set VERBOSITY default
RESET search_path;
SELECT test.is('given back', count(leasehold.release_lease(l)), 2) FROM unnest(ARRAY[:'lease_id', :'r_lease_id']::uuid[]) AS l;
RESET ROLE;
SET client_min_messages = warning;
DROP SCHEMA hostile CASCADE;
RESET client_min_messages;

-- Where it could not commit it does not begin, and says so before anything is written.
SELECT test.quiet();
SELECT test.fingerprint() AS before \gset
CREATE FUNCTION pg_temp.in_function() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_code    integer;
    v_outcome text;
BEGIN
    CALL leasehold.execute(test.id('p acquired'), 'echo no', v_code, v_outcome);
END
$$;
CREATE PROCEDURE pg_temp.with_settings() LANGUAGE plpgsql SET work_mem = '1MB' AS $$
DECLARE
    v_lease  uuid;
    v_status text;
    v_until  timestamptz;
    v_nr     integer;
BEGIN
    CALL leasehold.acquire_lease('procedures', v_lease, v_status, v_until, v_nr);
END
$$;
SET ROLE regress_user;
BEGIN;
CALL leasehold.run('acme', 'procedures', 'echo no');
ROLLBACK;
\echo :LAST_ERROR_SQLSTATE
SELECT 'before' \; CALL leasehold.execute(test.id('p acquired'), 'echo no');
\set AUTOCOMMIT off
CALL leasehold.acquire_lease('procedures');
ROLLBACK;
\set AUTOCOMMIT on
SELECT pg_temp.in_function();
CALL pg_temp.with_settings();
DO $$
DECLARE
    v_code    integer;
    v_lease   uuid;
    v_outcome text;
BEGIN
    CALL leasehold.run('acme', 'procedures', 'echo no', v_code, v_lease, v_outcome);
EXCEPTION WHEN SQLSTATE '25001' THEN
    RAISE NOTICE 'where exceptions are caught: %', SQLERRM;
END
$$;
SELECT test.refused('and its parts by themselves', 'SELECT leasehold.attach_call()', 'transaction_block');
-- what is wrong with the arguments is said before a place is asked for
CALL leasehold.run('acme', 'procedures');
CALL leasehold.run('acme', 'procedures', 'echo', argv => ARRAY['echo']);
CALL leasehold.run('acme', 'procedures', '');
CALL leasehold.run('acme', 'procedures', 'echo', env => '{"a b": "c"}');
CALL leasehold.run('acme', 'procedures', 'echo', timeout => '0');
CALL leasehold.run('acme', 'procedures', 'echo', ttl => '0.1 seconds');
CALL leasehold.run('acme', NULL, 'echo');
CALL leasehold.run('acme', 'nowhere', 'echo');
CALL leasehold.run('nobody', 'procedures', 'echo');
CALL leasehold.run('acme', 'plain', 'echo', lease_id => test.id('p acquired'));
CALL leasehold.execute(NULL, 'echo');
CALL leasehold.execute(test.id('no such'), 'echo');
CALL leasehold.execute(test.id('p acquired'), 'echo');
CALL leasehold.acquire_lease(NULL);
CALL leasehold.acquire_lease('procedures', on_limit => 'perhaps');
RESET ROLE;
SELECT test.is('nothing was written', test.fingerprint(), :'before');

-- Where it can, it does: in a DO block, several in turn, from a procedure.
SET ROLE regress_user;
DO $$
DECLARE
    v_code    integer;
    v_lease   uuid;
    v_outcome text;
BEGIN
    CALL leasehold.run('acme', 'procedures', 'echo one', v_code, v_lease, v_outcome, keep => true);
    CALL leasehold.execute(v_lease, 'echo two', v_code, v_outcome);
    CALL leasehold.execute(v_lease, 'exit 3', v_code, v_outcome);
    PERFORM leasehold.release_lease(v_lease);
    RAISE NOTICE 'exited with %', v_code;
END
$$;

-- A procedure of one's own; what it forgets to detach is given up by the next.
CREATE PROCEDURE pg_temp.own(forgets boolean) LANGUAGE plpgsql AS $$
DECLARE
    v_state record;
BEGIN
    PERFORM leasehold.attach_call(company => 'acme');
    PERFORM leasehold.request_lease('procedures', lease_id => test.id('p own ' || forgets));
    PERFORM leasehold.attach_call(lease_id => test.id('p own ' || forgets));
    COMMIT;
    SELECT * INTO v_state FROM leasehold.follow_lease(test.id('p own ' || forgets), '30 seconds');
    IF NOT forgets THEN
        PERFORM leasehold.detach_call();
    END IF;
END
$$;
CALL pg_temp.own(false);
CALL pg_temp.own(true);
CALL leasehold.run('acme', 'procedures', 'echo the next') \gset r_
SELECT test.eventually('what was forgotten ends', format('SELECT status FROM leasehold.leases WHERE id = %L', test.id('p own true')), 'expired');
SELECT test.is('and only that', l.status, 'active') FROM leasehold.leases AS l WHERE l.id = test.id('p own false');

-- What it calls shares its attachment: a lease that is got within stays attached,
-- commands come and go, and another lease is none for the same CALL.
CREATE PROCEDURE pg_temp.composed(lease_name text, another boolean) LANGUAGE plpgsql AS $$
DECLARE
    v_lease   uuid := test.id(lease_name);
    v_status  text;
    v_until   timestamptz;
    v_nr      integer;
    v_code    integer;
    v_outcome text;
BEGIN
    PERFORM leasehold.attach_call(company => 'acme');
    CALL leasehold.acquire_lease('procedures', v_lease, v_status, v_until, v_nr);
    CALL leasehold.execute(v_lease, 'echo in it', v_code, v_outcome);
    CALL leasehold.execute(v_lease, 'exit 2', v_code, v_outcome);
    IF another THEN
        v_lease := NULL;
        CALL leasehold.run('acme', 'procedures', 'echo in another', v_code, v_lease, v_outcome);
    END IF;
    PERFORM leasehold.detach_call(lease_id => v_lease);
    RAISE NOTICE 'exited with %', v_code;
    PERFORM leasehold.detach_call();
END
$$;
CALL pg_temp.composed('p composed', false);
SELECT test.is('it lives on', l.status, 'active') FROM leasehold.leases AS l WHERE l.id = test.id('p composed');
SELECT test.is('given back', leasehold.release_lease(test.id('p composed')), 'releasing');
\set VERBOSITY terse
CALL pg_temp.composed('p two', true);
\set VERBOSITY default
SELECT test.eventually('it ends with the CALL', format('SELECT status FROM leasehold.leases WHERE id = %L', test.id('p two')), 'expired');
SELECT test.eventually('as does the other', $$SELECT count(*) FROM leasehold.leases AS l WHERE l.environment_id = test.id('procedures') AND l.status = 'active' AND l.id <> test.id('p own false')$$, '0');

-- What is detached is nobody's, in time or not; a command that this transaction
-- keeps from being begun is not waited for.
CREATE PROCEDURE pg_temp.detached() LANGUAGE plpgsql AS $$
DECLARE
    v_state record;
BEGIN
    PERFORM leasehold.attach_call(company => 'acme');
    PERFORM leasehold.start_command(test.id('p own false'), shell => 'echo free', command_id => test.id('p free'));
    PERFORM leasehold.attach_call(command_id => test.id('p free'));
    RAISE NOTICE 'marked: %', (SELECT count(*) FROM test.attached_commands());
    PERFORM leasehold.detach_call(command_id => test.id('p free'));
    RAISE NOTICE 'marked: %', (SELECT count(*) FROM test.attached_commands());
    PERFORM leasehold.attach_call(command_id => test.id('p free'));
    SELECT * INTO v_state FROM leasehold.follow_command(test.id('p free'));
END
$$;
\set VERBOSITY terse
CALL pg_temp.detached();
\set VERBOSITY default

-- What is not the caller's it cannot attach to.
SET ROLE regress_beta;
SELECT leasehold.request_lease('plain', lease_id => test.id('p beta')) IS NOT NULL AS made;
SET ROLE regress_user;
DO $$ BEGIN PERFORM leasehold.attach_call(lease_id => test.id('p beta')); END $$;
DO $$ BEGIN PERFORM leasehold.attach_call(command_id => test.id('p beta')); END $$;
DO $$ BEGIN PERFORM leasehold.attach_call(company => 'beta'); END $$;
SET ROLE regress_viewer;
DO $$ BEGIN PERFORM leasehold.attach_call(); END $$;
SET ROLE regress_user;

-- Following what one did not start shows it from the beginning.
SELECT leasehold.start_command(test.id('p own false'), shell => 'echo alpha; sleep 0.3; echo omega', command_id => test.id('p followed')) IS NOT NULL AS started;
SELECT status, done, outcome, exit_code FROM leasehold.follow_command(test.id('p followed'), '30 seconds');
SELECT status, done, outcome, exit_code FROM leasehold.follow_command(test.id('p followed'));
SELECT test.refused('not what is not there', 'SELECT leasehold.follow_command(test.id(''no such''))', 'command_not_found'),
       test.refused('nor in one breath', 'SELECT leasehold.follow_command(leasehold.start_command(test.id(''p own false''), shell => ''echo''))', 'own_transaction');
SELECT test.is('given back', leasehold.release_lease(test.id('p own false')), 'releasing');
RESET ROLE;
SELECT test.is('nothing stays attached', count(*), 0) FROM leasehold_internal.attached_calls();
SELECT leasehold.finish_run(test.id('p run'), company => 'acme') AS finished, leasehold.release_lease(test.id('p beta'), company => 'beta') IS NOT NULL AS released;
