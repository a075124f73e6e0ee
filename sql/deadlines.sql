-- Renewal, expiry, idle time, and the ceiling of a lease's life.
\pset format unaligned
\pset tuples_only on
SET ROLE regress_user;
SELECT leasehold.request_lease('plain', lease_id => test.id('renewed')) = test.id('renewed') AS requested;
SELECT test.is('active', (leasehold.wait_for_lease(test.id('renewed'), '30 seconds')).status, 'active');

-- counted from now, longer or shorter, and what is returned is what was granted
SELECT test.is('ten minutes from now', g - clock_timestamp() BETWEEN '9 minutes 50 seconds' AND '10 minutes', true)
  FROM leasehold.renew_lease(test.id('renewed'), '10 minutes') AS g;
SELECT test.is('the grant is stored', l.expires_at - clock_timestamp() BETWEEN '9 minutes 50 seconds' AND '10 minutes', true)
  FROM leasehold.leases AS l WHERE l.id = test.id('renewed');
SELECT test.is('without a time: the one of the request', g - clock_timestamp() BETWEEN '59 minutes 50 seconds' AND '60 minutes', true)
  FROM leasehold.renew_lease(test.id('renewed')) AS g;
SELECT test.is('no more than a day', g - clock_timestamp() BETWEEN '23 hours 59 minutes' AND '24 hours', true)
  FROM leasehold.renew_lease(test.id('renewed'), '48 hours') AS g;
SELECT test.is('the present generation may', leasehold.renew_lease(test.id('renewed'), generation => 1) > now(), true);
SELECT test.refused('an older holder may not', $$SELECT leasehold.renew_lease(test.id('renewed'), generation => 0)$$, 'stale_version');
SELECT test.refused('nor one from the future', $$SELECT leasehold.renew_lease(test.id('renewed'), generation => 2)$$, 'stale_version');
SELECT test.is('the error tells the present generation', e.detail::jsonb ->> 'generation', '1')
  FROM test.error($$SELECT leasehold.renew_lease(test.id('renewed'), generation => 0)$$) AS e;
SELECT test.refused('an older holder may not give it back', $$SELECT leasehold.release_lease(test.id('renewed'), generation => 0)$$, 'stale_version');
SELECT test.refused('for no time', $$SELECT leasehold.renew_lease(test.id('renewed'), '0')$$, 'argument_invalid');
SELECT test.refused('backwards', $$SELECT leasehold.renew_lease(test.id('renewed'), '-1 hour')$$, 'argument_invalid');
SELECT test.refused('for more than a year', $$SELECT leasehold.renew_lease(test.id('renewed'), '366 days')$$, 'argument_invalid');
SELECT test.refused('what does not exist', $$SELECT leasehold.renew_lease(test.id('nothing'))$$, 'lease_not_found');

-- The ceiling: of the limits that fit, the lowest.
SET ROLE regress_admin;
SELECT leasehold.set_limit('lease_ttl_max', 7200, company => 'acme');
SET ROLE regress_user;
SELECT test.is('the company''s: two hours', date_trunc('minute', g - clock_timestamp()), '1 hour 59 minutes')
  FROM leasehold.renew_lease(test.id('renewed'), '10 hours') AS g;
SET ROLE regress_admin;
SELECT leasehold.set_limit('lease_ttl_max', 3600, company => 'acme', environment => 'plain');
SET ROLE regress_user;
SELECT test.is('the environment''s: one hour', date_trunc('minute', g - clock_timestamp()), '59 minutes')
  FROM leasehold.renew_lease(test.id('renewed'), '10 hours') AS g;
SET ROLE regress_admin;
SELECT leasehold.set_limit('lease_ttl_max', 1800, provider => 'fake');
SET ROLE regress_user;
SELECT test.is('the provider''s: half an hour', date_trunc('minute', g - clock_timestamp()), '29 minutes')
  FROM leasehold.renew_lease(test.id('renewed'), '10 hours') AS g;
SET ROLE regress_admin;
SELECT leasehold.set_limit('lease_ttl_max', 60, company => 'beta');
SELECT leasehold.set_limit('lease_ttl_max', 600);
SET ROLE regress_user;
SELECT test.is('the installation''s: ten minutes; another company''s does not count', date_trunc('minute', g - clock_timestamp()), '9 minutes')
  FROM leasehold.renew_lease(test.id('renewed'), '10 hours') AS g;
SELECT leasehold.request_lease('plain', ttl => '10 hours', lease_id => test.id('capped')) = test.id('capped') AS requested;
SELECT test.is('at the acquisition, too', date_trunc('minute', w.expires_at - clock_timestamp()), '9 minutes')
  FROM leasehold.wait_for_lease(test.id('capped'), '30 seconds') AS w;
SET ROLE regress_admin;
SELECT leasehold.set_limit('lease_ttl_max');
SELECT leasehold.set_limit('lease_ttl_max', company => 'acme');
SELECT leasehold.set_limit('lease_ttl_max', company => 'beta');
SELECT leasehold.set_limit('lease_ttl_max', provider => 'fake');
SELECT leasehold.set_limit('lease_ttl_max', company => 'acme', environment => 'plain');
SET ROLE regress_user;
SELECT test.is('without limits again: a day', g - clock_timestamp() BETWEEN '23 hours 59 minutes' AND '24 hours', true)
  FROM leasehold.renew_lease(test.id('renewed'), '48 hours') AS g;

-- What is not active is not renewed.
SELECT test.is('given back', leasehold.release_lease(test.id('renewed')), 'releasing');
SELECT test.is('it ends', (leasehold.wait_for_lease(test.id('renewed'), '30 seconds')).status, 'released');
SELECT test.refused('over', $$SELECT leasehold.renew_lease(test.id('renewed'))$$, 'wrong_state');
SELECT test.is('the error tells the state', e.detail, '{"code": "wrong_state","status": "released"}')
  FROM test.error($$SELECT leasehold.renew_lease(test.id('renewed'))$$) AS e;
BEGIN;
SELECT leasehold.request_lease('plain', lease_id => test.id('not yet')) = test.id('not yet') AS requested;
SELECT test.refused('not there yet', $$SELECT leasehold.renew_lease(test.id('not yet'))$$, 'wrong_state');
ROLLBACK;

-- Expiry.
SELECT leasehold.request_lease('plain', ttl => '1 second', lease_id => test.id('short')) = test.id('short') AS requested;
SELECT test.eventually('it expires', $$SELECT test.lease('short')$$, 'expired');
SELECT test.is('why, and what became of the resource', (l.end_status, l.failure_code, l.failure_reason, l.disposition, l.cleanup_status)::text,
               '(expired,,lease_expired,delete,success)'),
       test.is('not before its time', l.ended_at >= l.expires_at, true)
  FROM leasehold.leases AS l WHERE l.id = test.id('short');
SELECT test.is('all is told', test.events('short'), 'requested acquired release_requested released');
RESET ROLE;
SELECT test.is('no deadline is left', count(*), 0) FROM leasehold_internal.calls AS c WHERE c.subject_id = test.id('short');
SET ROLE regress_user;

-- A renewal moves the end, and only the lease's row; the deadline's row follows when it fires.
SELECT leasehold.request_lease('plain', ttl => '3 seconds', lease_id => test.id('put off')) = test.id('put off') AS requested;
SELECT test.is('active', (leasehold.wait_for_lease(test.id('put off'), '30 seconds')).status, 'active');
RESET ROLE;
SELECT c.xmin AS timer FROM leasehold_internal.calls AS c WHERE c.subject_id = test.id('put off') AND c.slot = 'timer' \gset
SET ROLE regress_user;
SELECT test.is('renewed for an hour', leasehold.renew_lease(test.id('put off'), '1 hour') > now() + interval '59 minutes', true);
RESET ROLE;
SELECT test.is('the deadline''s row was not touched', c.xmin::text, :'timer') FROM leasehold_internal.calls AS c WHERE c.subject_id = test.id('put off') AND c.slot = 'timer';
SELECT test.eventually('it fires and is set anew',
    $$SELECT (c.due_at > now() + interval '50 minutes')::text FROM leasehold_internal.calls AS c WHERE c.subject_id = test.id('put off') AND c.slot = 'timer'$$, 'true');
SELECT test.is('the lease lives', test.lease('put off'), 'active');
SET ROLE regress_user;
SELECT test.is('a renewal may shorten', leasehold.renew_lease(test.id('put off'), '1 second') < now() + interval '2 seconds', true);
SELECT test.eventually('then it ends then', $$SELECT test.lease('put off')$$, 'expired');

-- Idle time; a renewal is use.
SELECT leasehold.request_lease('plain', idle_timeout => '1 second', lease_id => test.id('idle')) = test.id('idle') AS requested;
SELECT leasehold.request_lease('plain', idle_timeout => '1 hour', lease_id => test.id('not idle')) = test.id('not idle') AS requested;
SELECT test.eventually('it expires', $$SELECT test.lease('idle')$$, 'expired');
SELECT test.is('why', (l.failure_code, l.failure_reason)::text, '(,idle_timeout)') FROM leasehold.leases AS l WHERE l.id = test.id('idle');
SELECT test.is('the other does not', test.lease('not idle'), 'active');
SELECT leasehold.request_lease('plain', idle_timeout => '2 seconds', lease_id => test.id('used')) = test.id('used') AS requested;
SELECT test.is('active', (leasehold.wait_for_lease(test.id('used'), '30 seconds')).status, 'active');
SELECT test.is('renewed', leasehold.renew_lease(test.id('used')) > now(), true);
SELECT test.eventually('it expires', $$SELECT test.lease('used')$$, 'expired');
SELECT test.is('two seconds after the renewal', l.ended_at >= l.last_used_at + interval '2 seconds' AND l.last_used_at > l.acquired_at, true)
  FROM leasehold.leases AS l WHERE l.id = test.id('used');

-- Expiry of a lease that the provider cannot remove yet keeps its end.
SET ROLE regress_manager;
SELECT leasehold.create_environment('sticky', 'fake', '{"releaseFailTimes": 1}') IS NOT NULL AS made;
SET ROLE regress_user;
SELECT leasehold.request_lease('sticky', ttl => '1 second', lease_id => test.id('sticky')) = test.id('sticky') AS requested;
SELECT test.eventually('it expires all the same', $$SELECT test.lease('sticky')$$, 'expired');
SELECT test.is('all is told', test.events('sticky'), 'requested acquired release_requested cleanup_failed released');

-- No resource in time.
SET ROLE regress_manager;
SELECT leasehold.create_environment('busy', 'fake', '{"rateLimitTimes": 1000000, "retryAfterMs": 100}') IS NOT NULL AS made;
SET ROLE regress_user;
SELECT leasehold.request_lease('busy', acquire_timeout => '1 second', lease_id => test.id('too late')) = test.id('too late') AS requested;
SELECT test.eventually('being told to wait is no failed try, but ends in time', $$SELECT test.lease('too late')$$, 'failed');
SELECT test.is('why', l.failure_code IN ('acquire_timeout', 'provider_throttled'), true),
       test.is('nothing is held', (l.provider_lease_id, l.cleanup_status)::text, '(,)') FROM leasehold.leases AS l WHERE l.id = test.id('too late');
RESET ROLE;
