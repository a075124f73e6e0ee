# What can go wrong when a resource is given back, resumed or listed: removals
# are tried until they succeed or somebody must decide, and never too widely.

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
leasehold.rpc_timeout = 700ms
leasehold.breaker_threshold = 1000
leasehold.cleanup_attempts = 4
leasehold.retry_max = 50ms
));
my $provider = Leasehold::Provider->start($node)->register($node);
my $count = 0;

# An answer that is lost, late or garbled; a plain "no", too, is tried again.
my @recoverable = (
	'cut', 'lose_answer', 'cut_mid', 'hang_before', 'hang', 'garbage', 'html', 'wrong_id', 'both', 'huge:2', 'deep',
	'dup_keys', 'nul', 'status:400', 'status:401', 'status:429', 'status:429:0', 'status:500', 'status:503',
	'act_status:504', 'redirect', 'rpc_error:-32002', 'act_rpc_error:-32002', 'rpc_error:-32603', 'delay:100');
# What a release answers with is of no interest, as long as it is an answer.
my @indifferent = ('malformed', 'malformed:null', 'malformed:string', 'chunked', 'echo_secret');

# lease_each(config => …, faults…): active leases whose calls of this kind have the fault; fault => lease.
sub lease_each
{
	my ($call, $config, @faults) = @_;
	my $sql = '';
	for my $fault (@faults)
	{
		my $key = 'environment-' . ++$count;
		$sql .= sprintf "SELECT leasehold.create_environment(%s, 'box-host', %s) IS NULL;\n", quote($key),
		  quote(json({ %$config, fault => { $call => ref $fault ? $fault : [$fault] } }));
		$sql .= sprintf "SELECT leasehold.request_lease(%s);\n", quote($key);
	}
	my @leases = grep { $_ ne 'f' } split /\n/, $node->alice($sql);
	$node->poll(
		sprintf 'SELECT bool_and(status = \'active\') FROM leasehold.leases WHERE id IN (%s)',
		join ', ', map { quote($_) } @leases) or BAIL_OUT('leases were not acquired');
	my %leases;
	@leases{@faults} = @leases;
	return %leases;
}

sub calls { my ($method, $lease) = @_; return scalar $provider->requests(method => $method, leaseId => $lease); }

subtest 'release' => sub {
	my %leases = lease_each('release', {}, @recoverable, @indifferent);
	$node->alice(q(SELECT leasehold.release_lease(id) FROM leasehold.leases WHERE status = 'active'));
	for my $fault (@recoverable)
	{
		my $lease = $leases{$fault};
		$node->settles($lease, 'released', "$fault: released in the end");
		is(calls('release', $lease), $fault eq 'delay:100' ? 1 : 2, "$fault: calls");
		is($node->lease($lease, 'cleanup_status'), 'success', "$fault: the cleanup is known to have succeeded");
	}
	for my $fault (@indifferent)
	{
		$node->settles($leases{$fault}, 'released', "$fault: released");
		is(calls('release', $leases{$fault}), 1, "$fault: by one call");
	}
	is($provider->counters->{live}, 0, 'nothing is left');
};

subtest 'destroy' => sub {
	my %leases = lease_each('destroy', {}, @recoverable);
	$node->alice(q(SELECT leasehold.destroy_lease(id) FROM leasehold.leases WHERE status = 'active'));
	for my $fault (@recoverable)
	{
		$node->settles($leases{$fault}, 'expired', "$fault: destroyed in the end");
	}
	is($provider->counters->{live}, 0, 'nothing is left');
	is($provider->counters->{stale_generation_calls}, 0, 'every call was of the lease\'s generation');
};

subtest 'a release that never succeeds' => sub {
	my ($lease) = values %{ { lease_each('release', {}, [ 'status:500', ('rpc_error:-32002') x 20 ]) } };
	$node->alice("SELECT leasehold.release_lease('$lease')");
	$node->settles($lease, 'irrevocable', 'somebody must decide');
	is(calls('release', $lease), 4, 'after as many tries as leasehold.cleanup_attempts says');
	is($node->lease($lease, 'failure_code', 'cleanup_status', 'end_status'), 'lease_cleanup_failed|failed|released',
		'what it was to become is remembered');
	is(
		$node->owner("SELECT string_agg(action, ' ' ORDER BY occurred_at) FROM leasehold.lease_timeline
			WHERE lease_id = '$lease' AND action LIKE '%cleanup%' OR lease_id = '$lease' AND action LIKE '%irrevocable'"),
		'environment.lease_cleanup_failed environment.lease_irrevocable',
		'the first failure and the end of trying are in the audit trail');
	$provider->faults(destroy => undef);
	is($node->alice("SELECT leasehold.retry_lease('$lease')"), 'pending_cleanup', 'it can be retried');
	$node->settles($lease, 'released', 'and is released then');
	is($provider->counters->{live}, 0, 'nothing is left');
};

subtest 'a provider that is away' => sub {
	my ($lease) = values %{ { lease_each('release', {}, 'delay:0') } };
	$node->owner(q(ALTER SYSTEM SET leasehold.cleanup_attempts = 100));
	$node->reload;
	$provider->stop;
	is($node->alice("SELECT leasehold.release_lease('$lease')"), 'releasing', 'releasing does not need it');
	$node->settles($lease, 'pending_cleanup', 'the cleanup waits');
	is($node->lease($lease, 'cleanup_status', 'failure_code'), 'failed|provider_unreachable', 'and says so');
	is($node->alice("SELECT last_error LIKE '%connect%' FROM leasehold.cleanup_backlog WHERE lease_id = '$lease'"),
		't', 'in the backlog, too');
	is($node->alice("SELECT leasehold.destroy_lease('$lease')"), 'pending_cleanup', 'to destroy it does not help');
	$provider->run;
	$node->settles($lease, 'released', 'it is back: released');
	is($node->lease($lease, 'cleanup_status'), 'success', 'successfully');
	is($provider->counters->{live}, 0, 'nothing is left');
	$node->owner(q(ALTER SYSTEM RESET leasehold.cleanup_attempts));
	$node->reload;
};

subtest 'what is being parked is destroyed instead' => sub {
	my %leases = lease_each('release', {}, 'delay:600', 'delay:601', 'act_status:504');
	my ($parking, $closed, $repeated) = @leases{ 'delay:600', 'delay:601', 'act_status:504' };
	my $issue = $node->alice('SELECT leasehold.upsert_issue(leasehold.new_id())');
	$node->owner("UPDATE leasehold.leases SET issue_id = '$issue', policy = 'reuse_by_environment' WHERE id = '$closed'");
	is($node->alice("SELECT leasehold.release_lease('$_', 'stop')"), 'releasing', 'to be parked') for values %leases;
	eventually { calls('release', $parking) && calls('release', $closed) } 'the provider is told to park two';
	is($node->alice("SELECT leasehold.destroy_lease('$parking', 'no longer wanted')"), 'releasing', 'one is destroyed meanwhile');
	is($node->alice("SELECT leasehold.upsert_issue('$issue', status => 'done', closed => true)"), $issue, 'the other\'s issue is closed');
	$node->settles($parking, 'expired', 'the first is not parked');
	$node->settles($closed, 'expired', 'nor the second');
	is($node->lease($parking, 'failure_reason', 'cleanup_status'), 'no longer wanted|success', 'with its reason');
	is($node->lease($closed, 'failure_reason', 'cleanup_status'), 'issue_terminal_done|success', 'and with that of the other');
	is(calls('release', $_) . ' ' . calls('destroy', $_), '1 1', 'parked, and then destroyed') for $parking, $closed;
	$node->settles($repeated, 'retained', 'a third is parked by a second call');
	is($node->alice("SELECT leasehold.destroy_lease('$repeated')"), 'releasing', 'and destroyed');
	$node->settles($repeated, 'expired', 'it is gone');
	is($provider->counters->{$_}, 0, "$_: nothing is left") for 'live', 'parked';
};

# 124: the provider is away, and back
subtest 'a cleanup that waits can be asked for again' => sub {
	my %leases = lease_each('probe', {}, 'destroy', 'park');
	$node->owner(q(ALTER SYSTEM SET leasehold.cleanup_attempts = 100));
	$node->reload;
	$provider->stop;
	$node->alice("SELECT leasehold.destroy_lease('$leases{destroy}', 'first'); SELECT leasehold.release_lease('$leases{park}', 'stop')");
	$node->settles($_, 'pending_cleanup', 'it waits') for values %leases;
	is($node->lease($leases{destroy}, 'failure_reason', 'cleanup_status'), 'first|failed', 'with its reason');
	is($node->alice("SELECT leasehold.destroy_lease('$_')"), 'pending_cleanup', 'asked for again') for values %leases;
	is($node->lease($leases{destroy}, 'failure_reason'), 'first', 'without a reason the first stays');
	is($node->alice("SELECT leasehold.destroy_lease('$leases{destroy}', 'second')"), 'pending_cleanup', 'with a reason');
	is($node->lease($leases{destroy}, 'failure_reason', 'cleanup_status'), 'second|failed', 'it is the new one');
	$provider->run;
	$node->settles($_, 'expired', 'the provider is back: gone') for values %leases;
	is($node->lease($leases{destroy}, 'failure_reason', 'cleanup_status'), 'second|success', 'for the new reason');
	is($node->lease($leases{park}, 'failure_reason', 'cleanup_status'), 'lease_destroyed|success', 'what was to be parked, too');
	is($provider->counters->{$_}, 0, "$_: nothing is left") for 'live', 'parked';
	$node->owner(q(ALTER SYSTEM RESET leasehold.cleanup_attempts));
	$node->reload;
};

subtest 'a resource that vanished' => sub {
	my %leases = lease_each('release', {}, 'delay:0', 'delay:1');
	my ($released, $destroyed) = @leases{ 'delay:0', 'delay:1' };
	$provider->forget($node->lease($_, 'provider_lease_id')) for $released, $destroyed;
	$node->alice("SELECT leasehold.release_lease('$released'); SELECT leasehold.destroy_lease('$destroyed')");
	$node->settles($released, 'released', 'can be released');
	$node->settles($destroyed, 'expired', 'or destroyed');
	is($provider->counters->{already_gone} > 0, 1, 'and is already gone then');
};

subtest 'resume' => sub {
	my ($agent, $workspace) = split /\n/, $node->alice(q(
		SELECT leasehold.upsert_agent(leasehold.new_id(), adapter_type => 'codex');
		SELECT leasehold.upsert_execution_workspace(leasehold.new_id());));
	my $run = sub {
		return $node->alice("SELECT started_run_id FROM leasehold.start_run(agent_id => '$agent',
			execution_workspace_id => '$workspace')");
	};
	# resuming is asked for again: it cannot make a second one
	my @again = (
		'cut', 'lose_answer', 'cut_mid', 'hang', 'garbage', 'html', 'wrong_id', 'both', 'empty_id', 'malformed',
		'malformed:array', 'huge:2', 'deep', 'bad_utf8', 'status:401', 'status:429', 'status:500', 'act_status:504',
		'status:503:0', 'rpc_error:-32603');
	# the resource is of no use any more
	my @replaced = ('status:404', 'redirect', 'rpc_error:-32002', 'rpc_error:-32602');
	my (%leases, %resources);
	my $sql = '';
	for my $fault (@again, @replaced)
	{
		my $key = 'resume-' . ++$count;
		$leases{$fault} = { key => $key };
		$sql .= sprintf "SELECT leasehold.create_environment(%s, 'box-host', %s);\n", quote($key),
		  quote(json({ reuseLease => JSON::PP::true, fault => { resume => [$fault] } }));
	}
	$node->alice($sql);
	my $first = $run->();
	my @faults = sort keys %leases;
	my @parked = split /\n/,
	  $node->alice(join '', map { "SELECT leasehold.request_lease('$leases{$_}{key}', run_id => '$first');\n" } @faults);
	$leases{ $faults[$_] }{id} = $parked[$_] for 0 .. $#faults;
	$node->poll("SELECT bool_and(status = 'active') FROM leasehold.leases WHERE run_id = '$first'");
	$node->alice("SELECT leasehold.finish_run('$first')");
	$node->settles($_, 'retained', 'parked') for @parked;
	$resources{$_} = $node->lease($_, 'provider_lease_id') for @parked;

	my $second = $run->();
	my @resumed = split /\n/,
	  $node->alice(join '', map { "SELECT leasehold.request_lease('$leases{$_}{key}', run_id => '$second');\n" } @faults);
	is_deeply(\@resumed, \@parked, 'all are asked for again');
	for my $fault (@again)
	{
		my $lease = $leases{$fault}{id};
		$node->settles($lease, 'active', "$fault: active again");
		is($node->lease($lease, 'generation', 'provider_lease_id'), "2|$resources{$lease}", "$fault: with the same resource");
		is(calls('resume', $lease) . ' ' . calls('acquire', $lease), '2 1', "$fault: by asking again");
	}
	for my $fault (@replaced)
	{
		my $lease = $leases{$fault}{id};
		$node->settles($lease, 'active', "$fault: active again");
		isnt($node->lease($lease, 'provider_lease_id'), $resources{$lease}, "$fault: with a new resource");
		is($node->lease($lease, 'generation'), 3, "$fault: of a new generation");
		eventually { calls('destroy', $lease) == 1 } "$fault: the old one is destroyed";
	}
	is(
		$node->owner("SELECT count(*) FROM leasehold.lease_timeline WHERE action = 'environment.lease_resume_failed'"),
		scalar(@replaced),
		'each replacement is in the audit trail');

	# released while it is being resumed
	$node->environment('undecided', 'box', { reuseLease => JSON::PP::true, fault => { resume => ['delay:400'] } });
	my $third = $run->();
	my $lease = $node->request("'undecided', run_id => '$third'");
	$node->settles($lease, 'active', 'one more');
	$node->alice("SELECT leasehold.finish_run('$third')");
	$node->settles($lease, 'retained', 'is parked');
	my $fourth = $run->();
	is($node->request("'undecided', run_id => '$fourth'"), $lease, 'taken again');
	eventually { calls('resume', $lease) } 'the provider is asked';
	$node->alice("SELECT leasehold.finish_run('$fourth')");
	$node->settles($lease, 'retained', 'the run ends meanwhile: it is parked again');
	my ($resource) = grep { $_->{leaseId} eq $lease } $provider->resources;
	is($resource && $resource->{state}, 'parked', 'at the provider, too')
	  or diag explain [ map { "$_->{time} $_->{method} $_->{generation}: $_->{outcome}" } $provider->requests(leaseId => $lease) ];

	$node->boss('SELECT leasehold.drain_installation()');
	$node->happens(
		'SELECT count(*) = 0 FROM leasehold.leases WHERE leasehold_internal.may_have_resource(status)',
		'everything can be removed', undef);
	is($provider->counters->{live}, 0, 'and is');
	is($provider->counters->{duplicate_live_max} <= 2, 1, 'a replacement came at most beside what it replaced');
};

$provider->obeyed;
done_testing();
