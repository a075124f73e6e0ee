# The processes: they end when told to, at any moment; the launcher brings them
# back; several share the work of a database; each database has its own.

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
leasehold.workers = 3
leasehold.breaker_threshold = 1000
));
my $provider = Leasehold::Provider->start($node)->register($node);
my @companies = ('acme', map { "company-$_" } 1 .. 20);

# Several calls hang; these are waited for.
sub hang
{
	my ($key) = @_;
	$node->alice(
		sprintf 'SELECT leasehold.create_environment(%s, %s, %s, company => %s); SELECT leasehold.request_lease(%s, company => %s);',
		quote($key), quote('box'), quote(json({ fault => { acquire => ['hang'] } })), quote($_), quote($key), quote($_))
	  for @companies;
	eventually { $provider->counters->{in_flight} == @companies } 'calls hang';
	return;
}

# release_all: every company gives back what it has.
sub release_all
{
	$node->alice(
		"BEGIN; SELECT leasehold.use_company('$_'); SELECT leasehold.release_lease(l.id)
		   FROM leasehold.leases AS l JOIN leasehold.companies AS c ON c.id = l.company_id
		  WHERE c.key = '$_' AND l.status = 'active'; COMMIT") for @companies;
	$node->happens(
		'SELECT count(*) = 0 FROM leasehold.leases WHERE leasehold_internal.may_have_resource(status)', 'all are released');
	is($provider->counters->{live}, 0, 'nothing is left');
	return;
}

# What hung is found and given back.
sub recovers
{
	$node->happens(q(SELECT count(*) = 0 FROM leasehold.leases WHERE status = 'acquiring'), 'what was out is looked up');
	is($node->owner(q(SELECT count(*) FROM leasehold.leases WHERE status = 'active')), @companies, 'and adopted');
	is($node->owner('SELECT count(*) FROM leasehold_internal.calls WHERE crashes > 0'), 0, 'no crash was counted');
	release_all();
	return;
}

# with ids that are the same each time: who serves them is not left to chance
for my $number (1 .. $#companies)
{
	my $id = sprintf '00000000-0000-4000-8000-%012d', $number;
	$node->boss("SELECT leasehold.create_company('$companies[$number]', company_id => '$id');
		SELECT leasehold.grant_company('$companies[$number]', 'alice', 'manager')");
}

subtest 'several workers share the work' => sub {
	my @workers = $node->workers;
	is(@workers, 3, 'there are as many as leasehold.workers says');
	for my $company (@companies)
	{
		$node->alice("SELECT leasehold.create_environment('dev', 'box', company => '$company');
			SELECT leasehold.request_lease('dev', company => '$company') FROM generate_series(1, 5)");
	}
	$node->happens(q(SELECT count(*) = 105 FROM leasehold.leases WHERE status = 'active'), 'leases of many companies');
	is($provider->counters->{methods}{environmentAcquireLease}, 105, 'each was asked for once');
	is($node->owner('SELECT count(*) FROM leasehold_internal.worker_states() WHERE started_calls > 0'), 3, 'each worker did a part');
	is($node->owner(q(SELECT DISTINCT session_role, acting_role FROM leasehold.audit_events
			WHERE action = 'environment.lease_acquired')), 'leasehold_worker|leasehold_worker', 'as leasehold_worker');
	release_all();
};

subtest 'a worker is terminated in mid-call' => sub {
	hang('terminate');
	my @before = $node->workers;
	within(
		10, 'it ends at once, although its calls hang',
		sub {
			$node->owner("SELECT pg_terminate_backend($_)") for @before;
			eventually { my %now = map { $_ => 1 } $node->workers; !grep { $now{$_} } @before } 'gone';
		});
	eventually { $node->workers == 3 } 'the launcher brings new ones';
	recovers();
};

subtest 'a worker that cannot take over yet is told to cancel' => sub {
	my ($before) = $node->workers;
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	$session->query_safe('BEGIN; LOCK TABLE leasehold_internal.calls IN ACCESS EXCLUSIVE MODE');
	$node->owner("SELECT pg_terminate_backend($before)");
	$node->happens(q(SELECT count(*) = 1 FROM pg_stat_activity WHERE query = 'taking over'), 'a new one waits for a lock');
	my $new = $node->owner(q(SELECT pid FROM pg_stat_activity WHERE query = 'taking over'));
	$node->owner("SELECT pg_cancel_backend($new), pg_sleep(0.03)") for 1 .. 20;
	$session->query_safe('ROLLBACK');
	$session->quit;
	$node->serving;
	ok((grep { $_ == $new } $node->workers), 'it is still there, and serves');
};

subtest 'a fast shutdown in mid-call' => sub {
	hang('shutdown');
	within(15, 'the server stops, although calls hang', sub { $node->stop('fast') });
	$node->start;
	$node->comes_back('the workers are back');
	recovers();
};

subtest 'the launcher ends' => sub {
	hang('launcher');
	my @before = $node->workers;
	my $launcher = $node->owner(q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'leasehold launcher'));
	$node->owner("SELECT pg_terminate_backend($launcher)");
	$node->happens("SELECT EXISTS (SELECT FROM pg_stat_activity
		WHERE backend_type = 'leasehold launcher' AND pid <> $launcher AND state_change IS NOT NULL)", 'a new one comes');
	# a new database is served, so the new launcher has looked around
	$node->owner('CREATE DATABASE beside');
	$node->install('beside');
	is_deeply([ $node->workers ], \@before, 'the workers go on, and there are no others');
	kill 'TERM', $before[0];
	eventually { my @now = $node->workers; @now == 3 && !grep { $_ == $before[0] } @now } 'the new launcher tends them, too';
	$provider->stop('KILL');
	$provider->run;
	recovers();
};

subtest 'paused' => sub {
	$node->boss(q(SELECT leasehold.pause_worker('a look at the provider')));
	eventually { $node->worker_states eq "paused\npaused\npaused" } 'the workers are paused';
	my ($result, $said) = $node->outcome('alice', q(SELECT leasehold.request_lease('dev', company => 'acme')));
	is($result, 'ok', 'requests are kept');
	like($said, qr/WARNING.*paused: a look at the provider/, 'with a warning that says why nothing happens');
	my ($lease) = $said =~ /^([0-9a-f-]{36})/m;
	$node->refuses('alice', "SELECT * FROM leasehold.wait_for_lease('$lease', company => 'acme')", 'PT503',
		qr/paused: a look at the provider/, 'waiting fails at once');
	like($node->doctor, qr/^error worker_paused: paused: a look at the provider/m, 'doctor() tells');
	is($provider->requests(leaseId => $lease), 0, 'the provider is not called');
	my ($worker) = $node->workers;
	$node->owner("SELECT pg_terminate_backend($worker)");
	eventually { $node->worker_states eq "paused\npaused\npaused" && !grep { $_ == $worker } $node->workers }
	'a new worker is paused, too';
	$node->boss(q(SELECT leasehold.resume_worker()));
	$node->settles($lease, 'active', 'when they are resumed the request is carried out');
	$node->alice("SELECT leasehold.release_lease('$lease', company => 'acme')");
	$node->settles($lease, 'released', 'and released');
};

subtest 'idle workers rest' => sub {
	$node->owner('ALTER SYSTEM SET leasehold.idle_check = 3600');
	$node->owner('ALTER SYSTEM SET leasehold.housekeeping_interval = 86400');
	$node->reload;
	my $rounds = sub { $node->owner('SELECT sum(rounds) FROM leasehold_internal.worker_states()') };
	my $quiet = 0;
	eventually {
		my $before = $rounds->();
		sleep 2;
		$quiet = $rounds->() == $before;
	} 'without work there are no rounds';
	is($node->owner(q(SELECT count(*) FROM pg_stat_activity
			WHERE backend_type = 'leasehold worker' AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL OR state <> 'idle'))),
		0, 'no snapshot, no transaction');
	my $lease = $node->request(q('dev', company => 'acme'));
	$node->settles($lease, 'active', 'a commit wakes the worker');
	$node->alice("SELECT leasehold.release_lease('$lease', company => 'acme')");
	$node->settles($lease, 'released', 'and again');
};

# Who cannot read the state of the installation for a moment goes on as before;
# above all it does not take what is out for lost.
subtest 'a look at the installation that fails' => sub {
	my $plain = Leasehold::Provider->start($node, name => 'plain', variant => 'plain')->register($node);
	$node->alice(
		sprintf 'SELECT leasehold.create_environment(%s, %s, %s, company => %s)',
		map { quote($_) } 'slow', 'plain', json({ fault => { acquire => ['delay:3000'] } }), 'acme');
	my $lease = $node->request(q('slow', company => 'acme'));
	eventually { $plain->counters->{in_flight} == 1 } 'a call is out';
	my $offset = -s $node->logfile;
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	$session->query_safe('BEGIN; LOCK TABLE leasehold_internal.installation IN ACCESS EXCLUSIVE MODE');
	$node->reload;
	eventually { slurp_file($node->logfile, $offset) =~ /canceling statement due to lock timeout/ } 'a look fails';
	$session->query_safe('ROLLBACK');
	$session->quit;
	$node->reload;
	$node->settles($lease, 'active', 'the answer is taken');
	is($node->owner(q(SELECT count(*) FROM leasehold_internal.calls WHERE crashes > 0)), 0, 'no crash was counted');
	$node->alice("SELECT leasehold.release_lease('$lease', company => 'acme')");
	$node->settles($lease, 'released', 'and the lease released');
	is($plain->counters->{live}, 0, 'nothing is left');
	$plain->obeyed;
};

$provider->obeyed;
done_testing();
