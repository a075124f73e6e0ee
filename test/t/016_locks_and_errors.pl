# Users' locks do not hold the worker up, and what cannot be stored takes
# nothing else with it; wakes reach it however long a transaction took.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use PostgreSQL::Test::Utils;
use Test::More;

use Leasehold::Node;
use Leasehold::Provider;

my $node = Leasehold::Node->new('main')->setup(
	configuration => q(
leasehold.crash_limit = 3
leasehold.breaker_threshold = 1000
max_prepared_transactions = 5
));
my $provider = Leasehold::Provider->start($node)->register($node);
$node->environment('dev', 'box', {});
$node->environment('slow', 'box', { fault => { acquire => ['delay:500'] } });

sub calls { my ($method, $lease) = @_; return scalar $provider->requests(method => $method, leaseId => $lease); }

# request_many(count, arguments): that many leases at once.
sub request_many
{
	my ($count, $arguments) = @_;
	return split /\n/, $node->alice(
		"SELECT leasehold.request_lease($arguments) FROM generate_series(1, $count)");
}

sub release_all
{
	$node->alice(q(SELECT count(leasehold.release_lease(id)) FROM leasehold.leases WHERE status IN ('active', 'acquiring')));
	$node->happens(
		'SELECT count(*) = 0 FROM leasehold.leases WHERE leasehold_internal.may_have_resource(status)', 'all are released');
	is($provider->counters->{live}, 0, 'nothing is left');
	return;
}

subtest 'a lease that a user has locked' => sub {
	my ($locked, @others) = request_many(10, q('slow'));
	my $session = $node->background_psql('postgres');
	$session->query_safe('BEGIN');
	$session->query_safe("SELECT 1 FROM leasehold.leases WHERE id = '$locked' FOR UPDATE");
	$node->settles($_, 'active', 'the others become active') for @others;
	is($node->lease($locked), 'acquiring', 'the locked one waits');
	my $rounds = $node->owner('SELECT failed_batches FROM leasehold_internal.worker_states()');
	is($rounds, 0, 'no round has failed');
	$session->query_safe('COMMIT');
	$node->settles($locked, 'active', 'it goes on when the lock is gone');
	is(calls('acquire', $locked), 1, 'with the answer that it got');

	# the same for a release that is not committed yet
	$session->query_safe('BEGIN');
	$session->query_safe("SET ROLE alice");
	$session->query_safe("SELECT leasehold.release_lease('$locked')");
	$node->alice("SELECT leasehold.release_lease('$others[0]')");
	$node->settles($others[0], 'released', 'another is released meanwhile');
	is($node->lease($locked), 'active', 'nobody has seen it yet');
	$session->query_safe('ROLLBACK');
	is(calls('release', $locked), 0, 'rolled back, it never was');
	$session->query_safe('BEGIN; SET ROLE alice; SAVEPOINT s');
	$session->query_safe("SELECT leasehold.release_lease('$locked')");
	$session->query_safe('ROLLBACK TO s');
	$session->query_safe("SELECT leasehold.release_lease('$others[1]')");
	$session->query_safe('COMMIT');
	$session->quit;
	$node->settles($others[1], 'released', 'of a savepoint that was rolled back nothing is done');
	is($node->lease($locked), 'active', 'but the rest');
	release_all();
};

subtest 'a locked table' => sub {
	my @before = request_many(10, q('slow'));
	eventually { $provider->counters->{in_flight} == 10 } 'calls are out';
	my $session = $node->background_psql('postgres');
	$session->query_safe('BEGIN');
	$session->query_safe('LOCK TABLE leasehold.leases IN ACCESS EXCLUSIVE MODE');
	eventually { $provider->counters->{in_flight} == 0 } 'their answers come while the table of leases is locked';
	my ($worker) = $node->workers;
	$node->happens("SELECT count(*) > 0 FROM pg_locks WHERE pid = $worker AND NOT granted", 'the worker runs into it');
	$node->happens("SELECT count(*) = 0 FROM pg_locks WHERE pid = $worker AND NOT granted", 'and lets go');
	within(10, 'another database can be dropped', sub {
		$node->owner('CREATE DATABASE other');
		$node->owner('DROP DATABASE other');
	});
	$session->query_safe('COMMIT');
	$node->settles($_, 'active', 'then the answers are stored') for @before;
	is(calls('acquire', $_) . calls('find', $_), '10', 'none was asked for again') for @before;
	is($node->owner('SELECT count(*) FROM leasehold_internal.calls WHERE crashes > 0'), 0, 'no crash was counted');

	# the dispatch table, while something is to be done
	$session->query_safe('BEGIN');
	$session->query_safe('LOCK TABLE leasehold_internal.calls IN SHARE MODE');
	my $later = $node->background_psql('postgres', extra_params => [ '-U', 'alice' ]);
	$later->query_until(qr/begun/, "\\echo begun\nSELECT count(leasehold.release_lease(id)) FROM leasehold.leases WHERE status = 'active';\n");
	$node->happens(q(SELECT count(*) > 0 FROM pg_locks WHERE NOT granted), 'somebody waits for the dispatch table');
	$session->query_safe('COMMIT');
	$later->quit;
	$session->quit;
	release_all();
};

subtest 'an answer that cannot be stored' => sub {
	my @leases = request_many(20, q('slow'));
	my $bad = $leases[7];
	$node->owner(qq(
		CREATE FUNCTION public.refuse_one() RETURNS trigger LANGUAGE plpgsql AS \$\$
		BEGIN
			IF NEW.lease_id = '$bad' THEN RAISE EXCEPTION 'not this one'; END IF;
			RETURN NEW;
		END \$\$;
		CREATE TRIGGER refuse_one BEFORE INSERT OR UPDATE ON leasehold.lease_metadata
			FOR EACH ROW EXECUTE FUNCTION public.refuse_one()));
	$node->settles($_, 'active', 'the others are active') for grep { $_ ne $bad } @leases;
	$node->happens("SELECT state = 'quarantined' FROM leasehold_internal.calls WHERE subject_id = '$bad' AND slot = 'op'",
		'the one is set aside after some tries');
	is($node->owner("SELECT last_error FROM leasehold_internal.calls WHERE subject_id = '$bad' AND slot = 'op'"),
		'the answer could not be stored; see the server log', 'with what is wrong');
	like(slurp_file($node->logfile), qr/ERROR:  not this one/, 'the server log says more');
	is(calls('acquire', $bad), 1, 'it was acquired once');
	is((grep { $_->{leaseId} eq $bad } $provider->resources), 1, 'and exists');
	my $next = $node->request(q('dev'));
	$node->settles($next, 'active', 'the worker goes on');
	$node->owner('DROP TRIGGER refuse_one ON leasehold.lease_metadata; DROP FUNCTION public.refuse_one()');
	$node->alice("SELECT leasehold.release_quarantine('$bad')");
	$node->settles($bad, 'active', 'let out when that is mended, it is adopted');
	is(calls('acquire', $bad), 1, 'without another acquire');
	release_all();
};

subtest 'a deadline that cannot be fired' => sub {
	my @leases = request_many(10, q('dev', ttl => '2 seconds'));
	my $bad = $leases[3];
	$node->settles($_, 'active', 'active') for @leases;
	$node->owner(qq(
		CREATE FUNCTION public.refuse_end() RETURNS trigger LANGUAGE plpgsql AS \$\$
		BEGIN
			IF NEW.id = '$bad' AND NEW.status = 'releasing' THEN RAISE EXCEPTION 'not that one'; END IF;
			RETURN NEW;
		END \$\$;
		CREATE TRIGGER refuse_end BEFORE UPDATE ON leasehold.leases
			FOR EACH ROW EXECUTE FUNCTION public.refuse_end()));
	$node->settles($_, 'expired', 'the others expire') for grep { $_ ne $bad } @leases;
	$node->happens("SELECT last_error IS NOT NULL AND due_at > now() + interval '20 s' FROM leasehold_internal.calls
			WHERE subject_id = '$bad' AND slot = 'timer'", 'the one is put off');
	is($node->lease($bad), 'active', 'and not lost');
	$node->owner('DROP TRIGGER refuse_end ON leasehold.leases; DROP FUNCTION public.refuse_end()');
	$node->owner("UPDATE leasehold_internal.calls SET due_at = now() WHERE subject_id = '$bad' AND slot = 'timer'");
	$node->settles($bad, 'expired', 'when it can, it expires');
};

subtest 'a call that cannot be claimed' => sub {
	$node->boss('SELECT leasehold.pause_worker()');
	eventually { $node->worker_states eq 'paused' } 'paused';
	my @leases = request_many(10, q('dev'));
	my $bad = $leases[5];
	$node->owner(qq(
		CREATE FUNCTION public.refuse_claim() RETURNS trigger LANGUAGE plpgsql AS \$\$
		BEGIN
			IF NEW.subject_id = '$bad' AND NEW.state = 'started' THEN RAISE EXCEPTION 'nor that one'; END IF;
			RETURN NEW;
		END \$\$;
		CREATE TRIGGER refuse_claim BEFORE UPDATE ON leasehold_internal.calls
			FOR EACH ROW EXECUTE FUNCTION public.refuse_claim()));
	$node->boss('SELECT leasehold.resume_worker()');
	$node->settles($_, 'active', 'the others are got') for grep { $_ ne $bad } @leases;
	$node->happens("SELECT last_error IS NOT NULL AND due_at > now() + interval '20 s' FROM leasehold_internal.calls
			WHERE subject_id = '$bad' AND slot = 'op'", 'the one is put off');
	$node->owner('DROP TRIGGER refuse_claim ON leasehold_internal.calls; DROP FUNCTION public.refuse_claim()');
	is($node->alice("SELECT leasehold.retry_lease('$bad')"), 'acquiring', 'it can be tried again');
	$node->settles($bad, 'active', 'and is got');
	release_all();
};

# Transactions that somebody leaves open, and another company that goes on.

sub bob { my ($sql) = @_; return $node->_as('bob', $sql); }
sub failed_batches { return $node->owner('SELECT failed_batches FROM leasehold_internal.worker_states()'); }

# open_transaction(role, statement...): a session in a transaction that has done this.
sub open_transaction
{
	my ($role, @statements) = @_;
	my $session = $node->background_psql('postgres', extra_params => [ '-U', $role ]);
	$session->query_safe($_) for 'BEGIN', @statements;
	return $session;
}

sub roll_back { my ($session) = @_; $session->query_safe('ROLLBACK'); $session->quit; return; }

# others_go_on: the other company gets leases, gives one back and lets one expire.
sub others_go_on
{
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($kept, $short) = split /\n/, bob(q(SELECT leasehold.request_lease('dev');
		SELECT leasehold.request_lease('dev', ttl => '1 second')));
	$node->settles($kept, 'active', 'another company gets a lease');
	bob("SELECT leasehold.release_lease('$kept')");
	$node->settles($kept, 'released', 'and gives it back');
	$node->settles($short, 'expired', 'another expires');
	return;
}

$node->owner('CREATE ROLE bob LOGIN IN ROLE leasehold_app');
$node->boss(q(SELECT leasehold.create_company('rival'); SELECT leasehold.grant_company('rival', 'bob', 'manager')));
bob(q(SELECT leasehold.create_environment('dev', 'box', '{}')));

subtest 'a run with the id of a lease' => sub {
	my @leases = request_many(6, q('dev'));
	$node->settles($_, 'active', 'active') for @leases;
	my $failed = failed_batches();
	my $session = open_transaction('alice', map { "SELECT leasehold.start_run(run_id => '$_')" } @leases);
	$node->alice("SELECT leasehold.release_lease('$_')") for @leases;
	others_go_on();
	$node->settles($_, 'released', 'the lease ends all the same') for @leases;
	is(failed_batches(), $failed, 'no round has failed');
	roll_back($session);

	# where both are, each has its deadline
	my $both = $node->request(q('dev', ttl => '2 seconds'));
	$node->alice("SELECT leasehold.start_run(run_id => '$both', heartbeat_timeout => '2 seconds')");
	$node->settles($both, 'expired', 'the deadline of a lease comes beside that of a run');
	$node->happens("SELECT status = 'failed' FROM leasehold_internal.runs WHERE id = '$both'", 'and the other way round');
};

subtest 'a token that is given anew' => sub {
	my $start = q(SELECT count(leasehold.start_run(idempotency_key => 'run ' || i, heartbeat_timeout => '1 second'))
		FROM generate_series(1, 6) AS i);
	$node->alice($start);
	my $session = open_transaction('alice', $start);
	my $failed = failed_batches();
	$node->happens(q(SELECT bool_and(heartbeat_at + heartbeat_timeout < clock_timestamp()) FROM leasehold_internal.runs
		WHERE status = 'running'), 'the heartbeats have stopped');
	others_go_on();
	is($node->owner(q(SELECT count(*) FROM leasehold_internal.runs WHERE status = 'running')), 6, 'the runs wait');
	is(failed_batches(), $failed, 'no round has failed');
	roll_back($session);
	$node->happens(q(SELECT count(*) = 0 FROM leasehold_internal.runs WHERE status = 'running'), 'then they are lost');

	# a lease that a silent run would take with it
	my ($run, $silent) = split /\n/, $node->alice(q(
		SELECT (leasehold.start_run(heartbeat_timeout => '2 seconds')).started_run_id FROM generate_series(1, 2)));
	my $lease = $node->request(qq('dev', run_id => '$run'));
	$node->settles($lease, 'active', 'a run has a lease');
	$session = open_transaction('alice', "SELECT leasehold.renew_lease('$lease')");
	$node->happens("SELECT status = 'failed' FROM leasehold_internal.runs WHERE id = '$silent'", 'another run is lost');
	others_go_on();
	is($node->owner("SELECT status FROM leasehold_internal.runs WHERE id = '$run'"), 'running', 'the run waits for its lease');
	is(failed_batches(), $failed, 'no round has failed');
	roll_back($session);
	$node->settles($lease, 'failed', 'then it takes the lease with it');
};

subtest 'a lock costs nobody else a place' => sub {
	$node->boss(q(SELECT leasehold.set_limit('concurrent_calls', 1, provider => 'box')));
	my $lease = $node->request(q('slow'));
	eventually { $provider->counters->{in_flight} == 1 } 'a call has the only place of its provider';
	my $session = open_transaction('alice', "SELECT leasehold.release_lease('$lease')");
	eventually { $provider->counters->{in_flight} == 0 } 'its answer is here, but cannot be stored';
	others_go_on();
	my $second = $node->request(q('dev'));
	$node->settles($second, 'active', 'the company itself goes on, too');
	is($node->lease($lease), 'acquiring', 'while the answer still waits');
	roll_back($session);
	$node->settles($lease, 'active', 'then it is stored');
	$node->boss(q(SELECT leasehold.set_limit('concurrent_calls', NULL, provider => 'box')));
	release_all();
};

subtest 'limits that cannot be read at once' => sub {
	$provider->reset;
	my $failed = failed_batches();
	my $session = open_transaction('boss', q(SELECT leasehold.set_limit('concurrent_calls', 1, provider => 'box')));
	# who waits for that transaction has the table as soon as it commits
	my $next = $node->background_psql('postgres');
	$next->query_until(qr/begun/, "\\echo begun\nBEGIN; LOCK TABLE leasehold.limits IN ACCESS EXCLUSIVE MODE;\n");
	$node->happens(q(SELECT count(*) > 0 FROM pg_locks WHERE NOT granted), 'somebody waits for the table');
	$session->query_safe('COMMIT');
	$session->quit;
	eventually { failed_batches() > $failed } 'the worker cannot read it';
	roll_back($next);
	my @leases = request_many(6, q('slow'));
	$node->settles($_, 'active', 'active') for @leases;
	is($provider->counters->{in_flight_max}, 1, 'the limit holds all the same');
	$node->boss(q(SELECT leasehold.set_limit('concurrent_calls', NULL, provider => 'box')));
	release_all();
};

subtest 'a resource that somebody may come to hold' => sub {
	$node->environment('fake', 'fake', {});
	my @leases = map { sprintf '00000000-0000-4000-8000-%012d', $_ } 1 .. 6;
	my $session = open_transaction('postgres', map {
		qq(INSERT INTO leasehold_internal.provider_resources
			SELECT 'fake', 'sandbox://fake/$_/1', company_id, '$_' FROM leasehold_internal.environments WHERE key = 'fake') } @leases);
	my $failed = failed_batches();
	$node->request("'fake', lease_id => '$_'") for @leases;
	my $free = $node->request(q('fake'));
	$node->settles($free, 'active', 'one that nobody disputes is got');
	others_go_on();
	is($node->lease($_), 'acquiring', 'the others wait') for @leases;
	is(failed_batches(), $failed, 'no round has failed');
	roll_back($session);
	$node->settles($_, 'active', 'then they go on') for @leases;
	release_all();
};

subtest 'housekeeping' => sub {
	$node->owner(q(ALTER SYSTEM SET leasehold.housekeeping_interval = 1));
	$node->owner(q(ALTER SYSTEM SET leasehold.reconcile_interval = 1));
	$node->alice(qq(SELECT leasehold.request_lease('dev', idempotency_key => '$_'))) for 'used again', 'forgotten';
	release_all();
	my $lease = bob(q(SELECT leasehold.request_lease('dev', idempotency_key => 'one')));
	$node->settles($lease, 'active', 'a lease');
	$node->owner(q(UPDATE leasehold_internal.idempotency_keys SET created_at = now() - interval '25 hours' WHERE key <> 'one'));
	my $session = open_transaction('alice', q(SELECT leasehold.request_lease('dev', idempotency_key => 'used again')));
	$node->reload;
	$node->happens(q(SELECT count(*) = 0 FROM leasehold_internal.idempotency_keys WHERE key = 'forgotten'),
		'an old key is removed while another is used again');
	$node->owner("DELETE FROM leasehold_internal.calls WHERE subject_id = '$lease'");
	$node->happens("SELECT count(*) = 1 FROM leasehold_internal.calls WHERE subject_id = '$lease'", 'what is lacking is made again');
	roll_back($session);

	# a duty that cannot be done
	$session = open_transaction('postgres', 'LOCK TABLE leasehold_internal.idempotency_keys IN ACCESS EXCLUSIVE MODE');
	$node->owner("DELETE FROM leasehold_internal.calls WHERE subject_id = '$lease'");
	$node->happens("SELECT count(*) = 1 FROM leasehold_internal.calls WHERE subject_id = '$lease'", 'is no reason to leave the others undone');
	roll_back($session);
	bob("SELECT leasehold.release_lease('$lease')");
	$node->settles($lease, 'released', 'released');
};

subtest 'an environment that is being deleted' => sub {
	my @gone = map { $node->environment("gone$_", 'box', {}) } 1 .. 4;
	my $list = join ', ', map { quote($_) } @gone;
	$node->request("'gone$_'") for 1 .. 4;
	release_all();
	my $swept = "FROM leasehold_internal.calls WHERE operation = 'reconcile' AND subject_id IN ($list)";
	$node->happens("SELECT count(*) = 4 $swept", 'environments are swept');
	$provider->faults(list => 'delay:1500');
	$node->happens("SELECT count(*) = 4 $swept AND state = 'started'", 'sweeps are out');
	my $failed = failed_batches();
	my $session = open_transaction('alice', map { "SELECT leasehold.delete_environment('gone$_')" } 1 .. 4);
	$provider->faults(list => undef);
	eventually { $provider->counters->{in_flight} == 0 } 'their answers are here';
	my $new = bob(q(SELECT leasehold.create_environment('new', 'box', '{}')));
	my $lease = bob(q(SELECT leasehold.request_lease('new', ttl => '1 second')));
	$node->happens("SELECT count(*) = 1 FROM leasehold_internal.calls WHERE subject_id = '$new'", 'another company is swept');
	others_go_on();
	is($node->owner("SELECT count(*) $swept"), 4, 'nobody knows of the deletion yet');
	is(failed_batches(), $failed, 'no round has failed');
	roll_back($session);
	$node->happens("SELECT count(*) = 4 $swept AND state = 'queued'", 'then the answers are taken');

	# of those that wait, too, and of a lease with an environment's id
	my $last = bob(q(SELECT leasehold.create_environment('last', 'box', '{}')));
	$session = open_transaction('bob', "SELECT leasehold.request_lease('dev', lease_id => '$last')");
	bob(q(SELECT leasehold.request_lease('last', ttl => '1 second')));
	my $more = $node->environment('more', 'box', {});
	$node->request(q('more'));
	$node->happens("SELECT count(*) = 1 FROM leasehold_internal.calls WHERE subject_id = '$more'",
		'a lease with the id of an environment does not keep others from being swept');
	roll_back($session);
	$node->happens("SELECT count(*) = 1 FROM leasehold_internal.calls WHERE subject_id = '$last'", 'then that one is, too');

	# a sweep finds what somebody is importing
	my $swept = $node->environment('swept', 'box', {});
	my $old = $node->request(q('swept'));
	$node->settles($old, 'active', 'a lease');
	my ($shown) = grep { $_->{leaseId} eq $old } $provider->resources;
	$node->boss('SELECT leasehold.pause_worker()');
	my $found = $provider->create(map({ $_ => $shown->{$_} } qw(installationId companyId environmentId)),
		leaseId => '00000000-0000-4000-8000-000000000009', generation => 1);
	$session = open_transaction('postgres', "SELECT leasehold.import_lease('swept', '$found', company => 'acme')");
	$failed = failed_batches();
	my $lists = sub { return scalar grep { $_->{params}{environmentId} eq $swept } $provider->requests(method => 'list') };
	my $seen = $lists->();
	$node->boss('SELECT leasehold.resume_worker()');
	eventually { $lists->() > $seen } 'it is swept';
	others_go_on();
	is(failed_batches(), $failed, 'no round has failed');
	$session->query_safe('COMMIT');
	$session->quit;
	$seen = $lists->();
	eventually { $lists->() > $seen + 1 } 'and again, when the import is done';
	is($node->owner("SELECT status FROM leasehold.leases WHERE provider_lease_id = '$found'"), 'active', 'the lease has the resource');
	ok((grep { $_->{providerLeaseId} eq $found } $provider->resources), 'which is there still');
	is($node->owner("SELECT count(*) FROM leasehold.audit_events WHERE entity_id = '$found'"), 0, 'and never was a stray');
	$provider->forget($found);    # it does not let what it made for one lease be released for another

	$node->owner(q(ALTER SYSTEM RESET leasehold.housekeeping_interval));
	$node->owner(q(ALTER SYSTEM SET leasehold.reconcile_interval = 0));
	$node->reload;
	release_all();
};

subtest 'wakes' => sub {
	$node->owner('ALTER SYSTEM SET leasehold.idle_check = 3600');
	$node->reload;
	$node->poll("SELECT current_setting('leasehold.idle_check') = '1h'");
	# a transaction that takes long between the request and its commit, while others pass it
	my $session = $node->background_psql('postgres', extra_params => [ '-U', 'alice' ]);
	$session->query_safe('BEGIN');
	my $slow = $session->query_safe(q(SELECT leasehold.request_lease('dev')));
	for (1 .. 3)
	{
		my $lease = $node->request(q('dev'));
		$node->settles($lease, 'active', 'a later request is carried out');
	}
	sleep 1;
	$session->query_safe('COMMIT');
	$node->settles($slow, 'active', 'so is one whose transaction took long');

	# a deadline that comes by itself
	my $short = $node->request(q('dev', ttl => '1 second'));
	$node->settles($short, 'expired', 'deadlines need no wake');

	# a plugin that is to be spoken to anew, while it is being spoken to
	my $greetings = $provider->requests(method => 'initialize');
	$provider->faults(initialize => 'delay:1500', times => 1);
	$node->boss(q(SELECT leasehold.restart_plugin('box')));
	eventually { $provider->counters->{in_flight} == 1 } 'a plugin is being spoken to';
	$node->boss(q(SELECT leasehold.restart_plugin('box')));
	$node->happens(q(SELECT status = 'ready' FROM leasehold.plugins WHERE key = 'box'), 'it is spoken to anew, and ready');
	is($provider->requests(method => 'initialize'), $greetings + 2, 'by another call');

	# housekeeping keeps its own time
	$node->owner('ALTER SYSTEM SET leasehold.housekeeping_interval = 1');
	$node->reload;
	my $kept = $node->request(q('dev'));
	$node->settles($kept, 'active', 'a lease');
	for (1 .. 2)
	{
		$node->owner("DELETE FROM leasehold_internal.calls WHERE subject_id = '$kept'");
		$node->happens("SELECT count(*) = 1 FROM leasehold_internal.calls WHERE subject_id = '$kept'",
			'housekeeping comes when it is time, although nothing else happens');
	}
	$node->owner('ALTER SYSTEM RESET leasehold.housekeeping_interval');
	$node->reload;

	# two-phase commit makes none: the worker's own check finds the work
	$session->query_safe('BEGIN');
	my $prepared = $session->query_safe(q(SELECT leasehold.request_lease('dev')));
	$session->query_safe(q(PREPARE TRANSACTION 'lease'));
	$session->query_safe(q(COMMIT PREPARED 'lease'));
	$session->quit;
	$node->owner('ALTER SYSTEM SET leasehold.idle_check = 1');
	$node->reload;
	$node->settles($prepared, 'active', 'a prepared transaction is found');
	release_all();
};

$provider->obeyed;
done_testing();
