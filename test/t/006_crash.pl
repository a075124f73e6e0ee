# Crashes with calls in flight: what was out is of unknown outcome, is found out
# about, and goes on; what brings the worker down again and again is set aside.

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
));
my $provider = Leasehold::Provider->start($node)->register($node);

sub calls { my ($method, $lease) = @_; return scalar $provider->requests(method => $method, leaseId => $lease); }

# in_flight(count): waits until the provider has so many calls.
sub in_flight
{
	my ($count) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return eventually { $provider->counters->{in_flight} == $count } "$count calls are out";
}

# prepare(name): leases with an acquire, a release, a destroy and a resume in
# flight, half of which the provider has acted upon.
my ($agent, $workspace) = split /\n/, $node->alice(q(
	SELECT leasehold.upsert_agent(leasehold.new_id(), adapter_type => 'codex');
	SELECT leasehold.upsert_execution_workspace(leasehold.new_id());));

sub prepare
{
	my ($name) = @_;
	my %leases;
	my $run = sub {
		return $node->alice("SELECT started_run_id FROM leasehold.start_run(agent_id => '$agent',
			execution_workspace_id => '$workspace')");
	};
	my %config = (
		'acquire-done' => { fault => { acquire => ['hang'] } },
		'acquire-not' => { fault => { acquire => ['hang_before'] } },
		'release-done' => { fault => { release => ['hang'] } },
		'release-not' => { fault => { release => ['hang_before'] } },
		'destroy-done' => { fault => { destroy => ['hang'] } },
		'resume-done' => { fault => { resume => ['hang'] }, reuseLease => JSON::PP::true });
	$node->environment("$name-$_", 'box', $config{$_}) for sort keys %config;
	my $first = $run->();
	for my $key (grep { !/acquire/ } sort keys %config)
	{
		$leases{$key} = $node->request("'$name-$key'" . ($key =~ /resume/ ? ", run_id => '$first'" : ''));
	}
	$node->settles($_, 'active', 'active') for values %leases;
	$node->alice("SELECT leasehold.finish_run('$first')");
	$node->settles($leases{'resume-done'}, 'retained', 'parked');

	my $second = $run->();
	$leases{$_} = $node->request("'$name-$_'") for 'acquire-done', 'acquire-not';
	$node->alice("SELECT leasehold.release_lease('$leases{'release-done'}')");
	$node->alice("SELECT leasehold.release_lease('$leases{'release-not'}')");
	$node->alice("SELECT leasehold.destroy_lease('$leases{'destroy-done'}')");
	is($node->request("'$name-resume-done', run_id => '$second'"), $leases{'resume-done'}, 'being resumed');
	in_flight(6);
	$leases{run} = $second;
	return %leases;
}

# check(leases): that all goes on.
sub check
{
	my (%leases) = @_;
	my %resource = map { $_->{leaseId} => $_ } $provider->resources;
	$node->settles($leases{'acquire-done'}, 'active', 'the acquire that was acted upon is adopted');
	is($node->lease($leases{'acquire-done'}, 'provider_lease_id'),
		$resource{ $leases{'acquire-done'} }{providerLeaseId}, 'with the resource that was made for it');
	is(calls('acquire', $leases{'acquire-done'}), 1, 'there was no second acquire');
	$node->settles($leases{'acquire-not'}, 'active', 'the one that was not is made anew');
	is(calls('acquire', $leases{'acquire-not'}) . calls('find', $leases{'acquire-not'}), '21', 'after a look');
	$node->settles($leases{'release-done'}, 'released', 'the release that was acted upon ends');
	$node->settles($leases{'release-not'}, 'released', 'the one that was not, too');
	$node->settles($leases{'destroy-done'}, 'expired', 'so does the destroy');
	$node->settles($leases{'resume-done'}, 'active', 'the resumed lease is active');
	is($node->lease($leases{'resume-done'}, 'generation'), 2, 'in its second generation');
	is($provider->counters->{duplicate_live_max}, 1, 'never two resources for one lease');
	is($provider->counters->{acquires_per_key_max}, 1, 'no acquire was acted upon twice');

	$node->alice("SELECT leasehold.finish_run('$leases{run}')");
	$node->alice("SELECT leasehold.destroy_lease(id) FROM leasehold.leases WHERE status IN ('active', 'retained', 'releasing')");
	$node->happens(
		'SELECT count(*) = 0 FROM leasehold.leases WHERE leasehold_internal.may_have_resource(status)', 'all end');
	is($provider->counters->{live}, 0, 'and nothing is left');
	return;
}

subtest 'the worker is killed' => sub {
	my %leases = prepare('kill');
	my ($pid) = $node->workers;
	$node->loses($pid);
	$node->comes_back('the server restarts, and the worker with it');
	like(slurp_file($node->logfile), qr/leasehold worker.*\(PID $pid\) was terminated by signal 9/, 'it was the worker');
	check(%leases);
};

subtest 'the postmaster is killed' => sub {
	my %leases = prepare('postmaster');
	my ($pid) = $node->workers;
	$node->kill9;
	eventually { !kill 0, $pid } 'the worker notices and ends', 10;
	eventually { $node->start(fail_ok => 1) } 'the server can be started again', 20;
	$node->comes_back('the worker is back');
	check(%leases);
};

subtest 'the server is stopped immediately' => sub {
	my %leases = prepare('immediate');
	$node->stop('immediate');
	$node->start;
	$node->comes_back('the worker is back');
	check(%leases);
};

subtest 'a backend is killed' => sub {
	# what it committed is done, what it did not commit never was
	$node->environment('backend', 'box', {});
	my $session = $node->background_psql('postgres', extra_params => [ '-U', 'alice' ], on_error_stop => 0);
	my $committed = $session->query_safe(q(SELECT leasehold.request_lease('backend')));
	my $pid = $session->query_safe('SELECT pg_backend_pid()');
	$session->query_safe('BEGIN');
	my $lost = $session->query_safe(q(SELECT leasehold.request_lease('backend')));
	$node->loses($pid);
	$node->comes_back('the server restarts');
	eval { $session->quit };
	$node->settles($committed, 'active', 'a request that was committed is carried out');
	is($node->owner("SELECT count(*) FROM leasehold.leases WHERE id = '$lost'"), 0, 'one that was not does not exist');
	is(calls('acquire', $lost), 0, 'and never reached the provider');
	$node->alice("SELECT leasehold.release_lease('$committed')");
	$node->settles($committed, 'released', 'released');
};

# What looks for its result in between must not make it innocent.
subtest 'a request that is fatal each time' => sub {
	$node->environment('fatal', 'box', { fault => { acquire => [ ('hang_before') x 5 ] } });
	my $fatal = $node->request(q('fatal'));
	for my $crash (1 .. 3)
	{
		eventually { $provider->requests(method => 'acquire', leaseId => $fatal) == $crash && $provider->counters->{in_flight} == 1 }
		"request $crash is out";
		$node->loses($node->workers);
		$node->comes_back('the server is back');
	}
	$node->happens("SELECT state = 'quarantined' AND crashes = 3 FROM leasehold_internal.calls WHERE subject_id = '$fatal' AND slot = 'op'",
		'it is set aside after as many crashes as any other');
	like($node->doctor, qr/^warning call_quarantined: 1 call "acquire" of "box" is set aside/m, 'doctor() tells');
	is(calls('acquire', $fatal), 3, 'it is not sent any more');
	$node->alice("SELECT leasehold.release_lease('$fatal'); SELECT leasehold.release_quarantine('$fatal')");
	$node->settles($fatal, 'released', 'let out, it ends');
	unlike($node->doctor, qr/call_quarantined/, 'doctor() is content');
};

subtest 'quarantine' => sub {
	$node->environment('poison', 'box', { fault => { acquire => ['hang'], find => [ 'hang', 'hang' ] } });
	my $poison = $node->request(q('poison'));
	for my $crash (1 .. 3)
	{
		in_flight(1);
		is($node->owner("SELECT crashes FROM leasehold_internal.calls WHERE subject_id = '$poison'"),
			$crash - 1, "crash $crash");
		$node->loses($node->workers);
		$node->comes_back('the server is back');
	}
	$node->happens("SELECT waiting_for = 'quarantine' FROM leasehold.leases WHERE id = '$poison'",
		'a call that was out in every crash is set aside');
	is($node->alice("SELECT waiting_for FROM leasehold.active_leases WHERE lease_id = '$poison'"), 'quarantine', 'visibly');
	is($node->alice("SELECT count(*) FROM leasehold.lease_timeline
			WHERE lease_id = '$poison' AND action = 'environment.lease_quarantined'"), 1, 'it is in the audit trail');
	my $calls = calls('find', $poison);
	my $lease = $node->request(q('backend'));
	$node->settles($lease, 'active', 'other leases are got meanwhile');
	is(calls('find', $poison), $calls, 'the provider is not asked about it any more');

	# a decision, for which trying again is not enough
	$node->refuses('alice', "SELECT leasehold.retry_lease('$poison')", 'PT409', qr/is in quarantine.*release_quarantine/s,
		'it cannot just be tried again');
	$node->refuses('alice', "SELECT leasehold.release_quarantine('$lease')", 'PT404', qr/no call in quarantine/,
		'only what is in quarantine can be let out');
	is($node->alice("SELECT leasehold.release_lease('$poison')"), 'releasing', 'releasing waits for the decision, too');
	$node->alice("SELECT leasehold.release_quarantine('$poison')");
	$node->settles($poison, 'released', 'let out, it is looked up and released');
	is($provider->requests(method => 'release', leaseId => $poison), 1, 'by a call');
	$node->alice("SELECT leasehold.release_lease('$lease')");
	$node->settles($lease, 'released', 'the others end');
	is($provider->counters->{live}, 0, 'nothing is left');
};

$provider->obeyed;
done_testing();
