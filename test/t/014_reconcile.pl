# The sweep: what a provider holds under our name and no lease claims is
# removed, and nothing else.

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
leasehold.reconcile_interval = 1s
leasehold.housekeeping_interval = 1s
leasehold.rpc_timeout = 700ms
leasehold.breaker_threshold = 1000
leasehold.retry_max = 50ms
));
# not idempotent: an acquire that comes twice makes two
my $provider = Leasehold::Provider->start($node, idempotent => 'no')->register($node);
$node->boss(q(SELECT leasehold.create_company('rival'); SELECT leasehold.grant_company('rival', 'alice', 'manager')));
my ($acme, $rival) = map { $node->owner("SELECT id FROM leasehold.companies WHERE key = '$_'") } 'acme', 'rival';
my $environment = $node->alice(q(SELECT leasehold.create_environment('dev', 'box-host', '{"pageSize": 2}', company => 'acme')));
my $theirs = $node->alice(q(SELECT leasehold.create_environment('dev', 'box-host', '{"pageSize": 2}', company => 'rival')));
my $installation = $node->owner('SELECT id FROM leasehold_internal.installation');

sub held { return map { $_->{providerLeaseId} => $_ } $provider->resources; }

# stray(lease, generation, more): something that the provider holds for it.
sub stray
{
	my ($lease, $generation, %more) = @_;
	return $provider->create(
		installationId => $installation,
		companyId => $acme,
		environmentId => $environment,
		leaseId => $lease,
		generation => $generation,
		%more);
}

# sweeps: waits for a whole sweep of each environment that begins from now on.
sub sweeps
{
	my ($name) = @_;
	my $whole = sub {
		my %count;
		# the first page of a sweep has no cursor: two of those have a sweep between them
		$count{ $_->{params}{environmentId} } += !defined $_->{params}{cursor} for $provider->requests(method => 'list');
		return \%count;
	};
	my $before = $whole->();
	return eventually {
		my $now = $whole->();
		!grep { $now->{$_} < ($before->{$_} // 0) + 2 } $environment, $theirs
	} $name;
}

my ($lease, $other) = split /\n/, $node->alice(q(SELECT leasehold.request_lease('dev', company => 'acme');
	SELECT leasehold.request_lease('dev', company => 'rival')));
$node->settles($_, 'active', 'a lease') for $lease, $other;
my %resource = map { $_ => $node->lease($_, 'provider_lease_id') } $lease, $other;

subtest 'what no lease claims' => sub {
	my @strays = (
		stray('00000000-0000-4000-8000-00000000000a', 1),    # no such lease
		stray($lease, 1),                                      # a twin of a lease's resource
		stray($lease, 7),                                      # of a generation that never was
		stray('nonsense', 1));
	my $foreign = stray($lease, 1, installationId => '00000000-0000-4000-8000-0000000000ff');
	sweeps('after a sweep');
	eventually { my %held = held(); !grep { $held{$_} } @strays } 'strays are gone';
	my %held = held();
	ok($held{ $resource{$_} }, 'what a lease has stays') for $lease, $other;
	ok($held{$foreign}, 'another installation\'s stays');
	is($node->lease($_), 'active', 'the leases are untouched') for $lease, $other;
	$node->happens(
		sprintf(
			q(SELECT count(DISTINCT entity_id) = 4 FROM leasehold.audit_events
				WHERE action = 'environment.stray_removed' AND entity_id IN (%s)),
			join ', ', map { quote($_) } @strays),
		'each is in the audit trail');
	my @destroys = grep { my $id = $_->{params}{providerLeaseId}; grep { $_ eq $id } @strays } $provider->requests(method => 'destroy');
	is(@destroys, 4, 'each was destroyed by one call');
	is($provider->requests(method => 'release'), 0, 'and none was merely released');
	$provider->forget($foreign);
};

subtest 'what a request may have made' => sub {
	# a request is out whose answer is not here yet: what is found is its own
	$provider->faults(acquire => 'hang', times => 1);
	$provider->faults(find => 'hang', times => 1);
	my $pending = $node->request(q('dev', company => 'acme'));
	eventually { grep { $_->{leaseId} eq $pending } $provider->resources } 'a request has made something, and hangs';
	sweeps('after a sweep');
	$node->settles($pending, 'active', 'it is adopted');
	ok((grep { $_->{leaseId} eq $pending } $provider->resources), 'since the sweep left it');
	is($provider->requests(method => 'acquire', leaseId => $pending), 1, 'there was one acquire');
	$node->alice("SELECT leasehold.release_lease('$pending', company => 'acme')");
	$node->settles($pending, 'released', 'released');
};

subtest 'a request that was acted upon too late' => sub {
	# it was looked for, not found and asked for again; then the first made another
	$provider->faults(acquire => 'slow_act:1500', times => 1);
	my $late = $node->request(q('dev', company => 'acme'));
	$node->settles($late, 'active', 'active');
	eventually { 2 == grep { $_->{leaseId} eq $late } $provider->resources } 'the provider made two';
	eventually { 1 == grep { $_->{leaseId} eq $late } $provider->resources } 'the sweep leaves one';
	is((grep { $_->{leaseId} eq $late } $provider->resources)[0]{providerLeaseId}, $node->lease($late, 'provider_lease_id'),
		'the lease\'s own');
	$node->alice("SELECT leasehold.release_lease('$late', company => 'acme')");
	$node->settles($late, 'released', 'released');

	# an error, or a redirect, whose sender had acted all the same
	for my $fault ('act_rpc_error:-32002', 'act_redirect', 'act_duplicate_id')
	{
		$provider->faults(acquire => $fault, times => 1);
		my $failed = $node->request(q('dev', company => 'acme'));
		$node->settles($failed, 'failed', "$fault: the lease fails");
		eventually { !grep { $_->{leaseId} eq $failed } $provider->resources } "$fault: what was made is removed";
	}
	ok({ held() }->{ $resource{$_} }, 'what a lease has stays') for $lease, $other;
};

subtest 'a lease with the id of an environment' => sub {
	$provider->faults(acquire => 'delay:1500', times => 1);
	my $twin = $node->request("'dev', company => 'acme', lease_id => '$environment'");
	sweeps('the environment is swept while the lease is asked for');
	$node->settles($twin, 'active', 'it gets its resource');
	$node->alice("SELECT leasehold.release_lease('$twin', company => 'acme')");
	$node->settles($twin, 'released', 'and ends');
	sweeps('the sweeps go on');
};

subtest 'a stray that is wanted after all' => sub {
	$provider->faults(destroy => 'status:500');
	my $stray = stray('00000000-0000-4000-8000-00000000000d', 1);
	$node->happens("SELECT count(*) > 0 FROM leasehold_internal.calls WHERE operation = 'destroy_stray' AND attempts > 0",
		'it cannot be removed yet');
	$node->refuses('alice', q(SELECT leasehold.delete_environment('dev', company => 'acme')), 'PT409', qr/leases that may/,
		'leases keep its environment');
	my $import;
	# while a call is out that removes it, the import is refused
	eventually {
		my ($result, $said) = $node->outcome('postgres', "SELECT leasehold.import_lease('dev', '$stray', company => 'acme')");
		($import) = $said =~ /([0-9a-f-]{36})/ if $result eq 'ok';
		$result eq 'ok'
	} 'it is put under a lease';
	$provider->faults(destroy => undef);
	sweeps('after a sweep');
	is($node->lease($import), 'active', 'the lease is active');
	ok({ held() }->{$stray}, 'and has the resource');
	$node->happens(q(SELECT count(*) = 0 FROM leasehold_internal.calls WHERE operation = 'destroy_stray'), 'nothing is to be removed');
	$provider->forget($stray);    # it does not let what it made for one lease be released for another
	$node->alice("SELECT leasehold.release_lease('$import', company => 'acme')");
	$node->settles($import, 'released', 'it ends like any other');
};

subtest 'what vanished' => sub {
	my $gone = $node->request(q('dev', company => 'acme'));
	$node->settles($gone, 'active', 'a lease');
	$provider->forget($node->lease($gone, 'provider_lease_id'));
	sweeps('after a sweep');
	is($node->alice("SELECT leasehold.release_lease('$gone', company => 'acme')"), 'releasing', 'it can be released');
	$node->settles($gone, 'released', 'although its resource is gone');
	is($node->lease($gone, 'cleanup_status'), 'success', 'successfully');
};

subtest 'a sweep that fails' => sub {
	my $stray = stray('00000000-0000-4000-8000-00000000000b', 1);
	$provider->faults(list => [ 'cut', 'status:500', 'html', 'malformed', 'malformed:array', 'huge:2', 'rpc_error:-32002',
			'hang', 'status:429' ], destroy => [ 'status:500', 'cut', 'lose_answer' ]);
	eventually { !{ held() }->{$stray} } 'is done again, until it succeeds';
	ok({ held() }->{ $resource{$_} }, 'what a lease has stays') for $lease, $other;
	eventually {
		$node->owner(q(SELECT count(*) FROM leasehold_internal.calls WHERE operation = 'destroy_stray')) == 0
	} 'nothing remains to be done';
};

subtest 'a provider that asks to come later' => sub {
	$provider->faults(destroy => 'status:429:2', times => 1);
	my $stray = stray('00000000-0000-4000-8000-00000000000d', 1);
	eventually { !{ held() }->{$stray} } 'a stray is removed';
	my @tries = map { $_->{time} } grep { $_->{params}{providerLeaseId} eq $stray } $provider->requests(method => 'destroy');
	is(@tries, 2, 'at the second try');
	cmp_ok($tries[1] - $tries[0], '>=', 2, 'which is not too early');

	$provider->faults(list => 'status:429:4', times => 1);
	my @throttled;
	eventually
	{
		my @lists = $provider->requests(method => 'list');
		my ($first) = grep { ($_->{fault} // '') eq 'status:429:4' } @lists;
		@throttled = grep { $_->{time} >= $first->{time} && $_->{params}{environmentId} eq $first->{params}{environmentId} } @lists
		  if $first;
		@throttled > 1
	}
	'a sweep is done again';
	cmp_ok($throttled[1]{time} - $throttled[0]{time}, '>=', 4, 'not before the provider wants it, however often others are');
};

subtest 'off' => sub {
	$node->owner(q(ALTER SYSTEM SET leasehold.reconcile_interval = 0));
	$node->reload;
	$node->happens(q(SELECT count(*) = 0 FROM leasehold_internal.calls WHERE operation = 'reconcile'),
		'none is to come');
	my $stray = stray('00000000-0000-4000-8000-00000000000c', 1);
	my $count = sub { return scalar $provider->requests(method => 'list') };
	my $before;
	eventually { my $now = $count->(); my $same = defined $before && $now == $before; $before = $now; sleep 2; $same }
	'with leasehold.reconcile_interval at 0 sweeps end';
	ok({ held() }->{$stray}, 'and strays stay');
	$node->owner(q(ALTER SYSTEM RESET leasehold.reconcile_interval));
	$node->owner(q(ALTER SYSTEM SET leasehold.reconcile_interval = '1s'));
	$node->reload;
	eventually { !{ held() }->{$stray} } 'turned on again, they go';
};

$provider->obeyed;
done_testing();
