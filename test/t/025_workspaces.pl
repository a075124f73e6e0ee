# A provider that makes a workspace in a resource that was just got: it is asked
# to before the lease is active, again if that was not seen to be done, and what
# cannot be made leaves nothing behind.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use PostgreSQL::Test::Utils;
use Test::More;

use Leasehold::Node;
use Leasehold::Provider;

my $node = Leasehold::Node->new('main')->setup(configuration => q(
leasehold.acquire_attempts = 3
leasehold.retry_base = 20ms
leasehold.retry_max = 50ms
leasehold.rpc_timeout = 2s
leasehold.breaker_threshold = 1000
leasehold.crash_limit = 100
));
my $provider = Leasehold::Provider->start($node)->register($node);
my ($company, $installation) = split /\|/,
  $node->owner('SELECT c.id, i.id FROM leasehold.companies AS c, leasehold_internal.installation AS i');
my ($agent, $issue, $workspace) = map { $node->owner('SELECT leasehold.new_id()') } 1 .. 3;
$node->alice("SELECT leasehold.upsert_agent('$agent', adapter_type => 'x'), leasehold.upsert_issue('$issue'),
	leasehold.upsert_execution_workspace('$workspace', mode => 'isolated')");

# environment(key, realize => fault or list, more config): one whose workspaces have these faults.
sub environment
{
	my ($key, $fault, %config) = @_;
	return $node->environment($key, 'box', { %config, $fault ? (fault => { realize => $fault }) : () });
}

# methods(lease): what the provider was asked for it, in order.
sub methods { my ($lease) = @_; return join ' ', map { $_->{method} =~ s/^environment(\w+?)(Lease|Workspace)?$/\l$1/r } $provider->requests(leaseId => $lease); }

sub held { my ($lease) = @_; return scalar grep { $_->{leaseId} eq $lease } $provider->resources; }

sub events
{
	my ($lease) = @_;
	return $node->owner("SELECT string_agg(replace(action, 'environment.lease_', ''), ' ' ORDER BY occurred_at, id)
		FROM leasehold.audit_events WHERE entity_id = '$lease'");
}

subtest 'a workspace' => sub {
	environment('good', undef, image => 'debian', workspace => '/workspace/realized');
	my $run = $node->alice("SELECT started_run_id FROM leasehold.start_run('$agent', issue_id => '$issue', execution_workspace_id => '$workspace')");
	my $lease = $node->request("environment => 'good', run_id => '$run'");
	$node->settles($lease, 'active', 'a lease');
	is(methods($lease), 'acquire realize', 'first a resource, then its workspace');
	my $id = $node->lease($lease, 'provider_lease_id');
	my $environment = $node->lease($lease, 'environment_id');
	my %metadata = (remoteCwd => '/workspace', sandboxId => $id);
	is_deeply(
		$provider->params('realize', $lease),
		{
			driverKey => 'box', companyId => $company, environmentId => $environment, issueId => $issue,
			config => { image => 'debian', workspace => '/workspace/realized' },
			lease => { providerLeaseId => $id, expiresAt => undef, metadata => {
				agentId => $agent, driver => 'sandbox', pluginKey => 'box', sandboxProviderPlugin => JSON::PP::true, provider => 'box',
				executionWorkspaceMode => 'isolated', image => 'debian', workspace => '/workspace/realized', %metadata } },
			workspace => { remotePath => '/workspace', mode => 'isolated', metadata => { workspaceRealizationRequest => {
				version => 1, environmentId => $environment, leaseId => $lease, executionWorkspaceId => $workspace,
				issueId => $issue, runId => $run, requestedMode => 'isolated' } } },
			leasehold => { installationId => $installation, leaseId => $lease, generation => 1,
				idempotencyKey => "$company:$lease:1:realize" },
		},
		'what it is asked for');
	is_deeply(
		json($node->alice("SELECT metadata FROM leasehold.lease_metadata WHERE lease_id = '$lease'")),
		{ %metadata, workspaceRealization => { cwd => '/workspace/realized', metadata => { realized => JSON::PP::true } } },
		'133, 137: what it says is kept with what was said before');
	is(events($lease), 'requested acquired', 'the lease is acquired when both are done');
	my $command = $node->alice("SELECT leasehold.start_command('$lease', argv => ARRAY['true'])");
	$node->happens("SELECT status = 'finished' FROM leasehold.commands WHERE id = '$command'", 'a command');
	my ($execute) = $provider->requests(method => 'execute', leaseId => $lease);
	is($execute->{params}{cwd}, '/workspace/realized', 'begins there');
	$node->alice("SELECT leasehold.finish_run('$run')");
	$node->settles($lease, 'released', 'the end');
};

subtest 'one that cannot be made' => sub {
	my %reasons = (refused => [ 'rpc_error:-32002', qr/error -32002/, 1 ], malformed => [ 'malformed:null', qr/cwd/, 1 ],
		denied => [ 'status:403', qr/status 403/, 3 ], cut => [ 'cut', qr/during/, 3 ], silent => [ 'hang', qr/during/, 3 ]);
	for my $key (sort keys %reasons)
	{
		my ($fault, $reason, $tries) = @{ $reasons{$key} };
		environment($key, $fault);
		my $lease = $node->request("environment => '$key'");
		$node->settles($lease, 'failed', "134: $key");
		is($node->lease($lease, 'failure_code'), 'workspace_realization_failed', 'the lease says why');
		like($node->lease($lease, 'failure_reason'), $reason, 'in words');
		is(methods($lease), join(' ', 'acquire', ('realize') x $tries, 'release'), "after $tries tries the resource is given back");
		is(held($lease), 0, 'nothing is left');
		is(events($lease) =~ s/ call_failed//r, 'requested failed released', 'which is told');
	}
};

subtest 'one that is made at the next try' => sub {
	for my $fault ('cut', 'lose_answer', 'status:503:0', 'rpc_error:-32000', 'hang_before')
	{
		my $key = 'once-' . $fault =~ s/\W/-/gr =~ s/_/-/gr;
		environment($key, [ $fault, $fault ]);
		my $lease = $node->request("environment => '$key'");
		$node->settles($lease, 'active', $fault);
		is(methods($lease), 'acquire realize realize realize', 'asked for until it is there, in one resource');
		$node->alice("SELECT leasehold.release_lease('$lease')");
	}
};

subtest 'given back meanwhile' => sub {
	environment('slow', 'slow_act:700');
	my %ends = (release_lease => 'released', destroy_lease => 'expired');
	for my $how (sort keys %ends)
	{
		my $lease = $node->request("environment => 'slow'");
		eventually { methods($lease) eq 'acquire realize' } 'the workspace is being made';
		is($node->lease($lease), 'acquiring', 'the lease is not active yet');
		$node->alice("SELECT leasehold.$how('$lease')");
		$node->settles($lease, $ends{$how}, "$how ends it");
		is(held($lease), 0, 'nothing is left');
		unlike(events($lease), qr/acquired/, 'it never was');
	}
	environment('queued', [ ('status:503:60') x 9 ]);
	my $lease = $node->request("environment => 'queued'");
	$node->happens("SELECT waiting_for LIKE 'retry%' FROM leasehold.leases WHERE id = '$lease'", 'the next try is far');
	$node->alice("SELECT leasehold.release_lease('$lease')");
	$node->settles($lease, 'released', 'released at once');
	is(methods($lease), 'acquire realize release', 'without another try');
	$lease = $node->request("environment => 'queued', acquire_timeout => '2 seconds'");
	$node->settles($lease, 'failed', 'out of time');
	is($node->lease($lease, 'failure_code'), 'workspace_realization_failed', 'which ends it');
	is(held($lease), 0, 'nothing is left');
};

subtest 'the worker is killed' => sub {
	environment('hung', [ 'hang_before' ]);
	my $lease = $node->request("environment => 'hung'");
	eventually { methods($lease) eq 'acquire realize' } 'the workspace is being made';
	$node->loses(($node->workers)[0]);
	$node->comes_back('the server is back');
	$node->settles($lease, 'active', 'the next one goes on');
	is(methods($lease), 'acquire realize realize', 'where the other was');
	# as after a restore, when nobody knows what was under way
	$node->boss('SELECT leasehold.pause_worker()');
	my $other = $node->request("environment => 'good'");
	$node->owner("BEGIN; SET LOCAL session_replication_role = replica; UPDATE leasehold.leases SET status = 'acquiring', acquired_at = NULL WHERE id = '$lease';
		DELETE FROM leasehold_internal.calls WHERE subject_id = '$lease'; COMMIT;");
	$node->owner('SELECT leasehold_internal.rebuild_calls(ARRAY(SELECT generate_series(0, 32767)::smallint))');
	is($node->owner("SELECT operation, look_up FROM leasehold_internal.calls WHERE subject_id = '$lease' AND slot = 'op'"), 'realize|f',
		'after a restore the workspace is asked for, not another resource');
	$node->boss('SELECT leasehold.resume_worker()');
	$node->settles($_, 'active', 'active') for $lease, $other;
	$node->alice("SELECT leasehold.release_lease('$_')") for $lease, $other;
};

subtest 'a resource that is used again' => sub {
	environment('kept', undef, reuseLease => JSON::PP::true);
	my $lease;
	for my $generation (1, 2)
	{
		my $run = $node->alice("SELECT started_run_id FROM leasehold.start_run('$agent', execution_workspace_id => '$workspace')");
		$lease = $node->request("environment => 'kept', run_id => '$run'");
		$node->settles($lease, 'active', "generation $generation");
		is($node->lease($lease, 'generation'), $generation, 'of it');
		$node->alice("SELECT leasehold.finish_run('$run')");
		$node->settles($lease, 'retained', 'parked');
	}
	is(methods($lease), 'acquire realize release resume realize release', 'gets its workspace each time');
	is(events($lease), 'requested acquired release_requested released resume_requested resumed release_requested released', 'which is told');
	$node->alice("SELECT leasehold.destroy_lease('$lease')");
	$node->settles($lease, 'expired', 'destroyed');
};

subtest 'who is not asked' => sub {
	$node->environment('host', 'box-host', {});
	my $lease = $node->request("environment => 'host'");
	$node->settles($lease, 'active', 'a lease of a driver');
	is(methods($lease), 'acquire', '136: has a workspace of its own');
	$node->alice("SELECT leasehold.release_lease('$lease')");
	my $plain = Leasehold::Provider->start($node, name => 'plain', variant => 'plain', arguments => [ '--without', 'environmentRealizeWorkspace' ])->register($node);
	$node->environment('plain', 'plain', {});
	$lease = $node->request("environment => 'plain'");
	$node->settles($lease, 'active', 'a lease of a plugin that has no such method');
	is(join(' ', map { $_->{method} } $plain->requests(leaseId => $lease)), 'environmentAcquireLease', 'is as it was got');
	$node->alice("SELECT leasehold.release_lease('$lease')");
	$node->settles($lease, 'released', 'it ends');
};

$provider->obeyed;

done_testing();
