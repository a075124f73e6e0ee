-- Closed sets of values: what each domain takes, and that columns have them.
\pset format unaligned
\pset tuples_only on

CREATE TEMP TABLE wanted (domain text PRIMARY KEY, takes text[]);
INSERT INTO wanted VALUES
    ('leasehold.member_level', '{viewer,user,manager}'),
    ('leasehold.object_status', '{active,archived}'),
    ('leasehold.plugin_status', '{installed,ready,disabled,error}'),
    ('leasehold.driver_kind', '{sandbox_provider,environment_driver}'),
    ('leasehold.run_status', '{queued,running,succeeded,failed,cancelled,timed_out,interrupted}'),
    ('leasehold.lease_status', '{acquiring,active,releasing,released,retained,resuming,expired,failed,pending_cleanup,irrevocable,written_off,forgotten}'),
    ('leasehold.lease_end', '{released,expired,failed,retained}'),
    ('leasehold.lease_policy', '{ephemeral,reuse_by_environment,retain_on_failure}'),
    ('leasehold.disposition', '{keep,stop,delete}'),
    ('leasehold.cleanup_status', '{pending,success,failed}'),
    ('leasehold.command_status', '{queued,running,finished}'),
    ('leasehold.command_outcome', '{exited,signalled,timed_out,cancelled,failed,lost,unknown}'),
    ('leasehold.output_stream', '{stdout,stderr,notice}'),
    ('leasehold.limit_name', '{active_leases,concurrent_calls,concurrent_commands,lease_ttl_max,lease_starts_per_minute,output_bytes,resolves_per_minute}'),
    ('leasehold_internal.call_operation', '{acquire,resume,release,destroy,destroy_stray,initialize,reconcile,lease_deadline,run_deadline,places,execute,cancel_command}'),
    ('leasehold_internal.call_slot', '{op,sweep,timer,run_timer,command,cancel}'),
    ('leasehold_internal.call_state', '{queued,started,waiting,quarantined}'),
    ('leasehold.object_key', '{a,0,acme,a.b-c_d,9.9,aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa}');

SELECT test.is('every domain is tested here', string_agg(t.oid::regtype::text, ', ' ORDER BY t.oid::regtype::text), NULL)
  FROM pg_type AS t
 WHERE t.typtype = 'd' AND t.typnamespace IN ('leasehold'::regnamespace, 'leasehold_internal'::regnamespace)
   AND t.oid::regtype::text NOT IN (SELECT w.domain FROM wanted AS w);

-- Each takes its own values, and of all others, and of their variants, none.
CREATE FUNCTION pg_temp.takes(domain text, value text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('SELECT %L::%s', value, domain);
    RETURN true;
EXCEPTION WHEN check_violation THEN
    RETURN false;
END
$$;
SELECT test.is(w.domain, string_agg(v.value, ',' ORDER BY v.value) FILTER (WHERE pg_temp.takes(w.domain, v.value)),
               (SELECT string_agg(t, ',' ORDER BY t) FROM unnest(w.takes) AS t))
  FROM wanted AS w,
       (SELECT DISTINCT f.value FROM wanted AS x, unnest(x.takes) AS x2 (value),
               LATERAL (VALUES (x2.value), (upper(x2.value)), (x2.value || ' '), (' ' || x2.value), (x2.value || E'\n'), ('')) AS f (value)
         WHERE x.domain <> 'leasehold.object_key') AS v
 WHERE w.domain <> 'leasehold.object_key'
 GROUP BY w.domain, w.takes ORDER BY w.domain;
SELECT test.is('a key can be ' || t, pg_temp.takes('leasehold.object_key', t), true) FROM wanted AS w, unnest(w.takes) AS t WHERE w.domain = 'leasehold.object_key';
SELECT test.is('a key cannot be ' || quote_literal(t), pg_temp.takes('leasehold.object_key', t), false)
  FROM unnest(ARRAY['', ' ', 'A', 'aB', '-a', '.a', '_a', 'a b', 'a/b', E'a\n', 'ä', 'a''b', 'a"b', 'a;b', repeat('a', 64)]) AS t;

-- Columns that hold such values have the domain.  An issue's status is the application's own.
SELECT test.is('no column of such a name is plain text', string_agg(a.attrelid::regclass || '.' || a.attname, ', '), NULL)
  FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
 WHERE c.relnamespace IN ('leasehold'::regnamespace, 'leasehold_internal'::regnamespace) AND c.relkind IN ('r', 'p')
   AND a.attname IN ('status', 'end_status', 'level', 'kind', 'policy', 'disposition', 'cleanup_status', 'operation', 'state', 'key', 'outcome', 'stream', 'slot')
   AND a.atttypid = 'text'::regtype
   AND (a.attrelid::regclass::text, a.attname::text) NOT IN (('leasehold_internal.issues', 'status'), ('leasehold_internal.idempotency_keys', 'key'));

-- Whoever writes, a superuser included.
INSERT INTO leasehold.leases (company_id, id, config_version, provider, ttl, status) VALUES (test.id('acme'), test.id('sets'), 1, 'fake', '1 hour', 'released');
INSERT INTO leasehold.commands (company_id, id, lease_id, generation, provider, shell) VALUES (test.id('acme'), test.id('sets'), test.id('sets'), 1, 'fake', 'true');
SELECT test.fails(label, statement, '23514')
  FROM (VALUES ('a company''s status', $$UPDATE leasehold.companies SET status = 'gone'$$),
               ('a company''s key', $$INSERT INTO leasehold.companies (key, name) VALUES ('Not A Key', 'x')$$),
               ('a member''s level', $$UPDATE leasehold.company_members SET level = 'owner'$$),
               ('an environment''s status', $$UPDATE leasehold_internal.environments SET status = 'deleted'$$),
               ('a limit''s name', $$INSERT INTO leasehold.limits (company_id, name, value) VALUES (test.id('acme'), 'money', 1)$$),
               ('a limit below nothing', $$INSERT INTO leasehold.limits (company_id, name, value) VALUES (test.id('acme'), 'active_leases', -1)$$),
               ('a lease''s policy', $$INSERT INTO leasehold.leases (company_id, id, config_version, provider, ttl, policy) VALUES (test.id('acme'), test.id('none'), 1, 'fake', '1 hour', 'reuse_by_execution_workspace')$$),
               ('a lease''s generation', $$INSERT INTO leasehold.leases (company_id, id, config_version, provider, ttl, generation) VALUES (test.id('acme'), test.id('none'), 1, 'fake', '1 hour', 0)$$),
               ('a lease that ends, and nobody knows what becomes of its resource', $$INSERT INTO leasehold.leases (company_id, id, config_version, provider, ttl, status, end_status) VALUES (test.id('acme'), test.id('none'), 1, 'fake', '1 hour', 'releasing', 'released')$$),
               ('a lease that ends without an end', $$INSERT INTO leasehold.leases (company_id, id, config_version, provider, ttl, status) VALUES (test.id('acme'), test.id('none'), 1, 'fake', '1 hour', 'releasing')$$),
               ('a command''s status', $$UPDATE leasehold.commands SET status = 'paused' WHERE id = test.id('sets')$$),
               ('a command''s outcome', $$UPDATE leasehold.commands SET outcome = 'succeeded' WHERE id = test.id('sets')$$),
               ('a command that is two', $$UPDATE leasehold.commands SET argv = '{true}' WHERE id = test.id('sets')$$),
               ('a command that is none', $$UPDATE leasehold.commands SET shell = NULL WHERE id = test.id('sets')$$),
               ('a command that runs without having begun', $$UPDATE leasehold.commands SET status = 'running' WHERE id = test.id('sets')$$),
               ('a command that has finished without an outcome', $$UPDATE leasehold.commands SET status = 'finished', finished_at = now() WHERE id = test.id('sets')$$),
               ('at no time', $$UPDATE leasehold.commands SET status = 'finished', outcome = 'exited', exit_code = 0 WHERE id = test.id('sets')$$),
               ('a command that has an outcome before it has finished', $$UPDATE leasehold.commands SET outcome = 'exited' WHERE id = test.id('sets')$$),
               ('an exit code', $$UPDATE leasehold.commands SET exit_code = 0 WHERE id = test.id('sets')$$),
               ('a signal', $$UPDATE leasehold.commands SET signal = 'SIGKILL' WHERE id = test.id('sets')$$),
               ('a piece of output of no stream', $$INSERT INTO leasehold.command_output VALUES (test.id('acme'), test.id('sets'), 1, 'stdin', now(), 'x')$$),
               ('a run''s status', $$INSERT INTO leasehold_internal.runs (company_id, id, status, heartbeat_timeout) VALUES (test.id('acme'), test.id('none'), 'paused', '1 minute')$$),
               ('a call''s slot', $$INSERT INTO leasehold_internal.calls (company_id, subject_id, slot, operation, shard) VALUES (test.id('acme'), test.id('none'), 'other', 'acquire', 0)$$),
               ('a call''s operation', $$INSERT INTO leasehold_internal.calls (company_id, subject_id, slot, operation, shard) VALUES (test.id('acme'), test.id('none'), 'op', 'format_disk', 0)$$)) AS v (label, statement);
DELETE FROM leasehold.leases WHERE id = test.id('sets');
