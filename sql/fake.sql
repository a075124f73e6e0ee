-- The faults of the fake provider, one by one.  (acquire_attempts is 3 here.)
\pset format unaligned
\pset tuples_only on
SET ROLE regress_manager;
CREATE PROCEDURE pg_temp.try(name text, config jsonb) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM leasehold.create_environment(name, 'fake', config);
    PERFORM leasehold.request_lease(name, lease_id => test.id(name), acquire_timeout => '20 seconds');
END
$$;
CREATE FUNCTION pg_temp.outcome(name text) RETURNS text LANGUAGE sql AS $$
    SELECT (w.status, w.failure_code, w.failure_reason)::text FROM leasehold.wait_for_lease(test.id(name), '40 seconds') AS w $$;

CALL pg_temp.try('fails-twice', '{"failTimes": 2}');
SELECT test.is('the third try succeeds', pg_temp.outcome('fails-twice'), '(active,,)');
SELECT test.is('of the failed tries the first is told', test.events('fails-twice'), 'requested call_failed acquired');
CALL pg_temp.try('fails-thrice', '{"failTimes": 3}');
SELECT test.is('there is no fourth', pg_temp.outcome('fails-thrice'), '(failed,provider_error,"the fake provider fails, try 3")');
SELECT test.is('told', test.events('fails-thrice'), 'requested call_failed failed');
SELECT test.is('nothing is held', (l.provider_lease_id, l.cleanup_status, l.ended_at IS NOT NULL)::text, '(,,t)') FROM leasehold.leases AS l WHERE l.id = test.id('fails-thrice');
CALL pg_temp.try('refuses', '{"failPermanently": true}');
SELECT test.is('refused for good: no second try', pg_temp.outcome('refuses'), '(failed,lease_acquire_failed,"the fake provider refuses")');
SELECT test.is('told', test.events('refuses'), 'requested failed');
-- being told to come again is not a failed try
CALL pg_temp.try('throttles', '{"rateLimitTimes": 5, "retryAfterMs": 30}');
SELECT test.is('five times told to wait', pg_temp.outcome('throttles'), '(active,,)');
SELECT test.is('told once', test.events('throttles'), 'requested call_failed acquired');
SELECT test.is('and waited as told', l.acquired_at >= l.requested_at + interval '150 milliseconds', true) FROM leasehold.leases AS l WHERE l.id = test.id('throttles');
-- the provider acted, but its answer was lost, or garbage: looked up, not asked for again
CALL pg_temp.try('loses', '{"loseAnswerTimes": 1}');
SELECT test.is('found', pg_temp.outcome('loses'), '(active,,)');
SELECT test.is('told', test.events('loses'), 'requested outcome_unknown acquired');
CALL pg_temp.try('garbles', '{"malformedTimes": 1}');
SELECT test.is('found', pg_temp.outcome('garbles'), '(active,,)');
SELECT test.is('told', test.events('garbles'), 'requested outcome_unknown acquired');
SELECT test.is('the resource is that of the first request', l.provider_lease_id, 'sandbox://fake/' || l.id || '/1') FROM leasehold.leases AS l WHERE l.id = test.id('garbles');
SELECT test.is('given back', leasehold.release_lease(test.id('loses')), 'releasing');
SELECT test.is('removed', pg_temp.outcome('loses'), '(released,,)');
-- given back while its fate is unknown
CALL pg_temp.try('slow-and-loses', '{"loseAnswerTimes": 1, "delayMs": 300}');
SELECT test.is('given back', leasehold.release_lease(test.id('slow-and-loses')) IN ('releasing', 'released'), true);
SELECT test.is('it ends', pg_temp.outcome('slow-and-loses'), '(released,,)');
RESET ROLE;
SELECT test.is('with nothing left', count(*), 0) FROM leasehold_internal.provider_resources AS r WHERE r.lease_id = test.id('slow-and-loses');
SET ROLE regress_manager;

-- Knobs are checked.
SELECT test.refused(label, format('SELECT leasehold.create_environment(''wrong'', ''fake'', %L)', config), 'config_invalid')
  FROM (VALUES ('an unknown knob', '{"fails": 1}'), ('not a number', '{"failTimes": "1"}'), ('negative', '{"delayMs": -1}'),
               ('a fraction', '{"failTimes": 1.5}'), ('too large', '{"delayMs": 86400001}'), ('not a yes or no', '{"lookup": 1}'),
               ('an image that is none', '{"image": 5}'), ('an empty image', '{"image": ""}'), ('26: no time', '{"timeoutMs": 0}'),
               ('26: too much time', '{"timeoutMs": 86400001}'), ('a provider in the configuration', '{"provider": "fake"}'),
               ('reuse that is neither yes nor no', '{"reuseLease": "yes"}'), ('a null', '{"failTimes": null}')) AS v (label, config);
SELECT test.refused('not an object', $$SELECT leasehold.create_environment('wrong', 'fake', '[]')$$, 'argument_invalid');
SELECT test.is('nothing was made', count(*), 0) FROM leasehold.environments AS e WHERE e.key = 'wrong';

-- 38: the fake provider is for tests only
RESET ROLE;
ALTER SYSTEM SET leasehold.allow_fake_provider = off;
SELECT pg_reload_conf();
SELECT test.eventually('turned off', $$SELECT setting FROM pg_file_settings WHERE name = 'leasehold.allow_fake_provider' AND applied$$, 'off');
\c
\pset format unaligned
\pset tuples_only on
SET ROLE regress_manager;
SELECT test.refused('no environment of it', $$SELECT leasehold.create_environment('more', 'fake')$$, 'provider_forbidden');
SELECT test.refused('no lease of it', $$SELECT leasehold.request_lease('plain')$$, 'provider_forbidden');
RESET ROLE;
ALTER SYSTEM RESET leasehold.allow_fake_provider;
SELECT pg_reload_conf();
SELECT test.eventually('turned on', $$SELECT setting FROM pg_file_settings WHERE name = 'leasehold.allow_fake_provider' AND applied$$, 'on');
\c
\pset format unaligned
\pset tuples_only on
SET ROLE regress_manager;
SELECT test.works('an environment of it', $$SELECT leasehold.create_environment('more', 'fake')$$);
RESET ROLE;
