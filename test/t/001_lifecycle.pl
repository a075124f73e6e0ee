# The life of a lease over HTTP, and what exactly the provider is told.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use PostgreSQL::Test::Utils;
use Test::More;

use Leasehold::Node;
use Leasehold::Provider;

my $node = Leasehold::Node->new('main')->setup;
my $provider = Leasehold::Provider->start($node)->register($node);
my $company = $node->owner("SELECT id FROM leasehold.companies WHERE key = 'acme'");
my $installation = $node->owner('SELECT id FROM leasehold_internal.installation');

# What the application knows: an agent, an issue, a workspace, and a second agent.
my ($agent, $other_agent, $issue, $workspace) = split /\n/, $node->alice(q(
	SELECT leasehold.upsert_agent(leasehold.new_id(), adapter_type => 'codex');
	SELECT leasehold.upsert_agent(leasehold.new_id(), adapter_type => 'codex');
	SELECT leasehold.upsert_issue(leasehold.new_id());
	SELECT leasehold.upsert_execution_workspace(leasehold.new_id(), mode => 'isolated');));

# What the provider says of a workspace that it has made.
my $realized = { cwd => '/workspace', metadata => { realized => JSON::PP::true } };

# start_run(agent): a run of the agent in the workspace.
sub start_run
{
	my ($of) = @_;
	return $node->alice(
		sprintf 'SELECT started_run_id FROM leasehold.start_run(agent_id => %s, issue_id => %s, execution_workspace_id => %s)',
		quote($of), quote($issue), quote($workspace));
}

# label(lease, generation, operation): the member that we add to parameters.
sub label
{
	my ($lease, $generation, $operation, %more) = @_;
	return {
		installationId => $installation,
		leaseId => $lease,
		generation => $generation,
		idempotencyKey => "$company:$lease:$generation:$operation",
		%more };
}

# resource_of(lease): what the provider holds for it now.
sub resource_of
{
	my ($lease) = @_;
	my @found = grep { $_->{leaseId} eq $lease } $provider->resources;
	return @found == 1 ? $found[0] : undef;
}

subtest 'a plugin is told who we are' => sub {
	is_deeply(
		$provider->params('initialize'),
		{
			manifest => $provider->manifest,
			config => {},
			apiVersion => 1,
			instanceInfo => { instanceId => $installation, hostVersion => $node->owner(q(SELECT extversion FROM pg_extension WHERE extname = 'leasehold')) . '.0' } },
		'parameters of initialize');
	is($node->owner("SELECT cardinality(supported_methods) > 5 FROM leasehold.plugins WHERE key = 'box'"),
		't', 'what it supports is remembered');
};

subtest 'an operator tries an environment: no agent and no run' => sub {
	my $environment = $node->environment('plain', 'box', { timeoutMs => 1234, image => 'debian' });
	my $lease = $node->request(q(environment => 'plain'));
	$node->settles($lease, 'active', 'active');

	my $params = $provider->params('acquire', $lease);
	my $run = delete $params->{runId};
	like($run, qr/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/, 'runId is a generated id');
	is_deeply(
		$params,
		{
			driverKey => 'box',
			companyId => $company,
			environmentId => $environment,
			issueId => undef,
			config => { timeoutMs => 1234, image => 'debian' },
			leasehold => label($lease, 1, 'acquire') },
		'acquire: issueId is null, agentId and all that is not known are absent');

	my $resource = resource_of($lease);
	is($node->lease($lease, 'provider_lease_id'), $resource->{providerLeaseId}, 'the provider\'s id is kept');
	is($node->lease($lease, 'run_id IS NULL AND agent_id IS NULL AND policy = \'ephemeral\''),
		't', 'the lease is ephemeral and nobody\'s');
	is($node->lease($lease, q(expires_at - acquired_at BETWEEN '59 min' AND '61 min')),
		't', 'it is granted an hour');
	is_deeply(
		json($node->alice("SELECT metadata FROM leasehold.lease_metadata WHERE lease_id = '$lease'")),
		{ remoteCwd => '/workspace', sandboxId => $resource->{providerLeaseId}, workspaceRealization => $realized },
		'what the provider says of it, and of its workspace, is kept');

	is($node->alice("SELECT leasehold.release_lease('$lease')"), 'releasing', 'released');
	is($node->alice("SELECT leasehold.release_lease('$lease')") =~ /^releas(ing|ed)$/, 1, 'releasing again is fine');
	$node->settles($lease, 'released', 'and over');
	is($node->alice("SELECT leasehold.release_lease('$lease')"), 'released', 'releasing what is over changes nothing');
	is_deeply(
		$provider->params('release', $lease),
		{
			driverKey => 'box',
			companyId => $company,
			environmentId => $environment,
			issueId => undef,
			config => { timeoutMs => 1234, image => 'debian' },
			providerLeaseId => $resource->{providerLeaseId},
			leaseMetadata => {
				driver => 'sandbox',
				pluginKey => 'box',
				sandboxProviderPlugin => JSON::PP::true,
				provider => 'box',
				executionWorkspaceMode => undef,
				timeoutMs => 1234,
				image => 'debian',
				remoteCwd => '/workspace',
				sandboxId => $resource->{providerLeaseId},
				workspaceRealization => $realized },
			leasehold => label($lease, 1, 'release', disposition => 'delete') },
		'one release, with the lease\'s own metadata and without agentId');
	is(resource_of($lease), undef, 'the resource is gone');
	is($node->lease($lease, 'cleanup_status', 'ended_at IS NOT NULL'), 'success|t', 'and known to be');
};

subtest 'a run\'s lease carries agent, issue, run and workspace, and ends with the run' => sub {
	my $run = start_run($agent);
	my $lease = $node->request("environment => 'plain', run_id => '$run'");
	$node->settles($lease, 'active', 'active');
	my $params = $provider->params('acquire', $lease);
	is_deeply(
		{ map { $_ => $params->{$_} } qw(agentId issueId runId executionWorkspaceId workspaceMode adapterType) },
		{
			agentId => $agent,
			issueId => $issue,
			runId => $run,
			executionWorkspaceId => $workspace,
			workspaceMode => 'isolated',
			adapterType => 'codex' },
		'acquire names them all');
	is(
		$node->alice("SELECT agent_id, run_id, entity_id FROM leasehold.audit_events
			WHERE action = 'environment.lease_acquired' AND entity_id = '$lease'"),
		"$agent|$run|$lease",
		'and so does the audit event');

	my $second = $node->request("environment => 'plain', run_id => '" . start_run($agent) . q('));
	$node->settles($second, 'active', 'another run has its own');
	is($node->alice("SELECT leasehold.finish_run('$run')"), 'succeeded', 'the run ends');
	$node->settles($lease, 'released', 'and with it the lease');
	is($provider->params('release', $lease)->{leaseMetadata}{agentId}, $agent, 'the lease metadata names the agent');
	is($node->lease($second), 'active', 'the other run\'s lease goes on');
	is($node->alice("SELECT leasehold.release_run_leases((SELECT run_id FROM leasehold.leases WHERE id = '$second'))"),
		'1', 'a run\'s leases can be released by themselves');
	is($node->alice("SELECT leasehold.release_run_leases((SELECT run_id FROM leasehold.leases WHERE id = '$second'))"),
		'0', 'the second time there are none');
	$node->settles($second, 'released', 'they end');
};

subtest 'an environment driver' => sub {
	my $environment = $node->environment('host', 'box-host', { size => 2, timeoutMs => 1234 });
	$provider->faults(acquire => 'early_expiry:1800', times => 1);
	my $lease = $node->request(q(environment => 'host'));
	$node->settles($lease, 'active', 'active');
	my $params = $provider->params('acquire', $lease);
	ok(defined delete $params->{runId}, 'there is a runId');
	is_deeply(
		$params,
		{
			driverKey => 'box-host',
			companyId => $company,
			environmentId => $environment,
			issueId => undef,
			config => { size => 2, timeoutMs => 1234 },
			leasehold => label($lease, 1, 'acquire') },
		'acquire: the same parameters, no agentId');
	is($node->lease($lease, 'expires_at = provider_expires_at AND expires_at < now() + interval \'31 min\''),
		't', 'it ends when the provider ends it');
	is($node->alice("SELECT leasehold.renew_lease('$lease', '5 h')
		= (SELECT provider_expires_at FROM leasehold.leases WHERE id = '$lease')"),
		't', 'and no renewal goes beyond');
	my $resource = resource_of($lease);
	$node->alice("SELECT leasehold.release_lease('$lease')");
	$node->settles($lease, 'released', 'released');
	is_deeply(
		$provider->params('release', $lease)->{leaseMetadata},
		{
			driver => 'plugin',
			pluginKey => 'box',
			driverKey => 'box-host',
			executionWorkspaceMode => undef,
			providerMetadata => { remoteCwd => '/workspace', sandboxId => $resource->{providerLeaseId} } },
		'the provider\'s metadata is nested, so that it cannot pass for ours');

	my $run = start_run($agent);
	$lease = $node->request("environment => 'host', run_id => '$run'");
	$node->settles($lease, 'active', 'a run\'s lease');
	is($provider->params('acquire', $lease)->{agentId}, $agent, 'has the agent');
	is($node->alice("SELECT leasehold.destroy_lease('$lease', 'no longer wanted')"), 'releasing', 'destroyed');
	$node->settles($lease, 'expired', 'and gone');
	is($node->lease($lease, 'failure_reason'), 'no longer wanted', 'with its reason');
	$params = $provider->params('destroy', $lease);
	is($params->{leaseMetadata}{agentId}, $agent, 'destroy carries the lease\'s metadata');
	is_deeply($params->{leasehold}, label($lease, 1, 'destroy', disposition => 'delete'), 'and the label');
	is($provider->requests(method => 'release', leaseId => $lease), 0, 'no release besides');
};

subtest 'a lease is released as it was acquired, whatever happened to the environment' => sub {
	$node->environment('moving', 'box', { image => 'before', apiRegion => 'x' });
	my $lease = $node->request(q(environment => 'moving'));
	$node->settles($lease, 'active', 'active');
	$node->alice(q(SELECT leasehold.update_environment('moving', provider => 'fake')));
	$node->alice("SELECT leasehold.release_lease('$lease')");
	$node->settles($lease, 'released', 'released');
	my $params = $provider->params('release', $lease);
	is($params->{driverKey}, 'box', 'by the provider it was got from');
	is_deeply($params->{config}, { image => 'before', apiRegion => 'x' }, 'with the configuration it was got with');
};

subtest 'time limits of calls' => sub {
	my $limits = sub {
		my ($kind, $config) = @_;
		return $node->owner(sprintf 'SELECT * FROM leasehold_internal.call_timeouts(%s, %s, 30000)',
			quote($kind), quote(json($config)));
	};
	is($limits->('sandbox_provider', { timeoutMs => 1234 }), '1234|31234', 'the provider\'s own plus 30 s');
	is($limits->('sandbox_provider', { timeoutMs => 1234, bridgeRequestTimeoutMs => 40000 }),
		'40000|70000', 'the longer of two');
	is($limits->('sandbox_provider', {}), '|30000', 'else 30 s');
	is($limits->('sandbox_provider', { timeoutMs => 0 }), '|30000', 'zero is none');
	is($limits->('sandbox_provider', { timeoutMs => 1.5, bridgeRequestTimeoutMs => '9' }),
		'1|30001', 'a fraction is cut, a text is none');
	is($limits->('environment_driver', { timeoutMs => 1234 }), '|30000', 'an environment driver\'s are always 30 s');
};

subtest 'parking and resuming' => sub {
	my $environment = $node->environment('parked', 'box', { reuseLease => JSON::PP::true, image => 'a' });
	my $run = start_run($agent);
	my $lease = $node->request("environment => 'parked', run_id => '$run'");
	$node->settles($lease, 'active', 'acquired');
	is($node->lease($lease, 'policy'), 'reuse_by_environment', 'the configuration makes it reusable');
	my $id = resource_of($lease)->{providerLeaseId};
	$node->alice("SELECT leasehold.finish_run('$run')");
	$node->settles($lease, 'retained', 'the run ends, the resource is parked');
	is($provider->params('release', $lease)->{leasehold}{disposition}, 'stop', 'the provider is told to');
	is(resource_of($lease)->{state}, 'parked', 'and has');

	# the same agent and workspace: the same resource, for one of two runs
	my @runs = (start_run($agent), start_run($agent));
	my @sessions = map { $node->background_psql('postgres', extra_params => [ '-U', 'alice' ]) } @runs;
	$_->query_safe('BEGIN') for @sessions;
	my @leases = map { $sessions[$_]->query_safe(
			"SELECT leasehold.request_lease('parked', run_id => '$runs[$_]')") } 0, 1;
	$_->query_safe('COMMIT') for @sessions;
	$_->quit for @sessions;
	isnt($leases[0], $leases[1], 'two runs at once get two leases');
	is((grep { $_ eq $lease } @leases), 1, 'one of them the parked one');
	$node->settles($_, 'active', 'active') for @leases;
	is_deeply(
		$provider->params('resume', $lease),
		{
			driverKey => 'box',
			companyId => $company,
			environmentId => $environment,
			issueId => $issue,
			config => { reuseLease => JSON::PP::true, image => 'a' },
			providerLeaseId => $id,
			agentId => $agent,
			leaseMetadata => {
				agentId => $agent,
				driver => 'sandbox',
				pluginKey => 'box',
				sandboxProviderPlugin => JSON::PP::true,
				provider => 'box',
				executionWorkspaceMode => 'isolated',
				reuseLease => JSON::PP::true,
				image => 'a',
				remoteCwd => '/workspace',
				sandboxId => $id,
				workspaceRealization => $realized },
			leasehold => label($lease, 2, 'resume') },
		'resume carries agentId and the second generation');
	is($node->lease($lease, 'generation', 'provider_lease_id'), "2|$id", 'the lease has both');
	is(resource_of($lease)->{generation}, 2, 'the resource too');
	my ($fresh) = grep { $_ ne $lease } @leases;
	is($provider->requests(method => 'resume', leaseId => $fresh), 0, 'the other run got a fresh one');
	$node->refuses(
		'alice', "SELECT leasehold.renew_lease('$lease', generation => 1)",
		'PT409', qr/in use by somebody else/, 'the holder of the first generation is not the holder any more');

	# another agent in the same workspace
	$node->alice("SELECT leasehold.finish_run('$_')") for @runs;
	$node->settles($_, 'retained', 'parked') for @leases;
	my $foreign = start_run($other_agent);
	my $theirs = $node->request("environment => 'parked', run_id => '$foreign'");
	$node->settles($theirs, 'active', 'another agent');
	ok(!grep({ $_ eq $theirs } @leases), 'gets no resource of the first');
	is($provider->params('acquire', $theirs)->{agentId}, $other_agent, 'but its own, with its agentId');

	# no run: never resumes, and is never parked
	my $adhoc = $node->request(
		"environment => 'parked', agent_id => '$agent', execution_workspace_id => '$workspace'");
	$node->settles($adhoc, 'active', 'an ad-hoc request');
	is($node->lease($adhoc, 'policy'), 'ephemeral', 'is ephemeral');
	ok(defined $provider->params('acquire', $adhoc)->{runId}, 'is acquired with a generated run id');
	$node->alice("SELECT leasehold.release_lease('$adhoc')");
	$node->settles($adhoc, 'released', 'and released');
	is(resource_of($adhoc), undef, 'deleted, although the configuration says reuseLease');

	# the configuration changes: parked resources of the old one are removed
	$node->alice(q(SELECT leasehold.update_environment('parked', '{"image": "b"}')));
	my $after = start_run($agent);
	my $changed = $node->request("environment => 'parked', run_id => '$after'");
	$node->settles($changed, 'active', 'after a change of the configuration');
	ok(!grep({ $_ eq $changed } @leases), 'a fresh resource');
	is($provider->params('acquire', $changed)->{config}{image}, 'b', 'of the new configuration');
	$node->settles($_, 'expired', 'the old one is removed') for @leases;
	is($node->lease($lease, 'failure_reason', 'cleanup_status'), 'lease_fingerprint_mismatch|success', 'and why');
	is($provider->requests(method => 'destroy', leaseId => $_), 1, 'by one call') for @leases;
	is(resource_of($lease), undef, 'it is gone');
	is($node->lease($theirs), 'active', 'a lease in use is left alone');

	# a workspace that closes takes its leases with it
	$node->alice("SELECT leasehold.finish_run('$after')");
	$node->settles($changed, 'retained', 'parked');
	$node->alice("SELECT leasehold.upsert_execution_workspace('$workspace', status => 'archived')");
	$node->settles($changed, 'expired', 'archiving the workspace ends what is parked in it');
	is($node->lease($changed, 'failure_reason', 'cleanup_status'), 'execution_workspace_closed|success', 'and why');
	$node->happens(
		"SELECT bool_and(NOT leasehold_internal.may_have_resource(status)) FROM leasehold.leases
		  WHERE execution_workspace_id = '$workspace'",
		'and its other leases');
	is(resource_of($changed), undef, 'and their resources');
	$node->alice("SELECT leasehold.upsert_execution_workspace('$workspace', status => 'active')");
};

subtest 'a resource that cannot be resumed is replaced' => sub {
	$node->environment('again', 'box', { reuseLease => JSON::PP::true });
	my $park = sub {
		my $run = start_run($agent);
		my $lease = $node->request("environment => 'again', run_id => '$run'");
		$node->settles($lease, 'active', 'active');
		$node->alice("SELECT leasehold.finish_run('$run')");
		$node->settles($lease, 'retained', 'parked');
		return ($lease, resource_of($lease)->{providerLeaseId});
	};

	my ($lease, $old) = $park->();
	$provider->faults(resume => 'rpc_error:-32002');
	my $run = start_run($agent);
	is($node->request("environment => 'again', run_id => '$run'"), $lease, 'it is asked for');
	$node->settles($lease, 'active', 'and replaced, since resuming fails');
	$provider->faults(resume => undef);
	isnt($node->lease($lease, 'provider_lease_id'), $old, 'by a new resource');
	is($provider->params('destroy', $lease)->{providerLeaseId}, $old, 'the old one is destroyed');
	eventually { !grep { $_->{providerLeaseId} eq $old } $provider->resources } 'and gone';
	is($node->lease($lease, 'generation'), '3', 'its generation is new, too');
	$node->alice("SELECT leasehold.finish_run('$run')");
	$node->settles($lease, 'retained', 'parked again');

	$provider->forget($node->lease($lease, 'provider_lease_id'));
	$run = start_run($agent);
	is($node->request("environment => 'again', run_id => '$run'"), $lease, 'it vanished at the provider');
	$node->settles($lease, 'active', 'and is replaced without further ado');
	is(scalar($provider->requests(method => 'destroy', leaseId => $lease)), 1, 'nothing is left to destroy');
	$node->alice("SELECT leasehold.finish_run('$run')");
	$node->settles($lease, 'retained', 'parked again');

	is($node->alice("SELECT leasehold.destroy_reusable_leases()"), '0', 'without a scope nothing is destroyed');
	is($node->alice("SELECT leasehold.destroy_reusable_leases(execution_workspace_id => '$workspace', reason => 'spring')"),
		'1', 'what is parked can be destroyed by its workspace');
	$node->settles($lease, 'expired', 'it is');
	is($node->lease($lease, 'failure_reason', 'cleanup_status'), 'spring|success', 'with the reason given');
};

subtest 'a closed issue' => sub {
	my $run = start_run($agent);
	my $lease = $node->request("environment => 'again', run_id => '$run'");
	$node->settles($lease, 'active', 'active');
	$node->alice("SELECT leasehold.finish_run('$run')");
	$node->settles($lease, 'retained', 'parked');
	$node->alice("SELECT leasehold.upsert_issue('$issue', status => 'done', closed => true)");
	$node->settles($lease, 'expired', 'what was parked for it is removed');
	is($node->lease($lease, 'failure_reason', 'cleanup_status'), 'issue_terminal_done|success', 'and why');
	is(resource_of($lease), undef, 'it is gone');
	$node->alice("SELECT leasehold.upsert_issue('$issue', status => 'open', closed => false)");
};

subtest 'retain on failure' => sub {
	for my $case ([ 'failed', 'retained', 'parked' ], [ 'succeeded', 'released', undef ])
	{
		my ($end, $status, $state) = @$case;
		my $run = start_run($agent);
		my $lease = $node->request("environment => 'plain', run_id => '$run', policy => 'retain_on_failure'");
		$node->settles($lease, 'active', 'active');
		$node->alice("SELECT leasehold.finish_run('$run', '$end', error => 'as told')");
		$node->settles($lease, $status, "a run that $end leaves the lease $status");
		is((resource_of($lease) // {})->{state}, $state, 'and the resource ' . ($state // 'gone'));
		next if $status ne 'retained';
		is($node->lease($lease, 'failure_reason'), 'as told', 'the run\'s error is told');
		is($node->alice("SELECT leasehold.destroy_lease('$lease')"), 'releasing', 'it can be destroyed');
		$node->settles($lease, 'expired', 'then it is gone');
	}
};

subtest 'leases end by themselves' => sub {
	my $short = $node->request(q(environment => 'plain', ttl => '1 second'));
	my $idle = $node->request(q(environment => 'plain', idle_timeout => '1 second'));
	my $renewed = $node->request(q(environment => 'plain', ttl => '1 second'));
	$node->settles($renewed, 'active', 'active');
	is($node->alice("SELECT leasehold.renew_lease('$renewed', '1 h') > now() + interval '50 min'"),
		't', 'one is renewed');
	$node->settles($short, 'expired', 'at the end of their time to live');
	is($node->lease($short, 'failure_reason'), 'lease_expired', 'as expired');
	is($provider->params('release', $short)->{leasehold}{disposition}, 'delete', 'the provider is told to delete');
	is(resource_of($short), undef, 'and did');
	$node->settles($idle, 'expired', 'or when idle for too long');
	is($node->lease($renewed), 'active', 'the renewed one goes on');

	my $run = $node->alice(
		"SELECT started_run_id FROM leasehold.start_run(agent_id => '$agent', heartbeat_timeout => '1 second')");
	my $lease = $node->request("environment => 'plain', run_id => '$run'");
	$node->settles($lease, 'failed', 'a run without heartbeats ends with its lease');
	is($node->alice("SELECT status, error_code FROM leasehold.runs WHERE id = '$run'"), 'failed|process_lost', 'as lost');
};

subtest 'a provider that did not opt in to reuse' => sub {
	my $plain = Leasehold::Provider->start($node, name => 'plainbox');
	my $manifest = $plain->manifest;
	delete $_->{supportsReusableLeases} for @{ $manifest->{environmentDrivers} };
	$plain->register($node, manifest => $manifest);
	$node->environment('no-reuse', 'plainbox', { reuseLease => JSON::PP::true });
	my $run = start_run($agent);
	my $lease = $node->request("environment => 'no-reuse', run_id => '$run'");
	$node->settles($lease, 'active', 'active');
	is($node->lease($lease, 'policy'), 'ephemeral', 'reuseLease in the configuration does not make a lease reusable');
	$node->alice("SELECT leasehold.finish_run('$run')");
	$node->settles($lease, 'released', 'released');
	is($plain->counters->{live}, 0, 'the provider keeps nothing, although it reads reuseLease');
	$plain->obeyed;
};

subtest 'the rest ends' => sub {
	$node->boss('SELECT leasehold.drain_installation()');
	$node->happens(
		'SELECT count(*) = 0 FROM leasehold.leases WHERE leasehold_internal.may_have_resource(status)',
		'draining ends every lease');
	$node->refuses('alice', q(SELECT leasehold.request_lease('plain')), 'PT503', qr/being drained/,
		'and no new ones are given');
	my $counters = $provider->counters;
	is($counters->{live}, 0, 'the provider holds nothing any more');
	is($counters->{acquires_per_key_max}, 1, 'nothing was acquired twice');
	is($counters->{stale_generation_calls}, 0, 'no call was of an old generation');
	$provider->obeyed;
};

done_testing();
