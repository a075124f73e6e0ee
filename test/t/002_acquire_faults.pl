# What can go wrong between an acquire and its answer: nothing is got twice,
# nothing that was got is lost, and what is not known is not guessed.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use PostgreSQL::Test::Utils;
use Test::More;

use Leasehold::Node;
use Leasehold::Provider;

# An environment driver's calls have this time limit.
my $node = Leasehold::Node->new('main')->setup(
	configuration => q(
leasehold.rpc_timeout = 700ms
leasehold.breaker_threshold = 1000
leasehold.cleanup_attempts = 4
));

# Faults by what they leave behind when the answer does not tell.
my @without_effect = (
	'cut', 'hang_before', 'garbage', 'html',
	'status:500', 'status:502', 'status:503', 'status:504',
	'rpc_error:-32000', 'rpc_error:-32003', 'rpc_error:-32603', 'rpc_error:-32099');
my @with_effect = (
	'lose_answer', 'cut_mid', 'hang', 'drip', 'wrong_id', 'no_id', 'both', 'empty_id',
	'malformed', 'malformed:array', 'malformed:null', 'malformed:string', 'malformed:number',
	'huge:2', 'deep', 'dup_keys', 'nul', 'bad_utf8', 'act_cut', 'act_garbage', 'act_html',
	'act_status:500', 'act_status:504', 'act_rpc_error:-32000', 'act_rpc_error:-32603');
# Those whose answer says that nothing was done, and what it makes of the lease.
my %refused = (
	'status:400' => 'provider_refused',
	'status:404' => 'provider_refused',
	'status:422' => 'provider_refused',
	'redirect' => 'provider_refused',
	'rpc_error:-32002' => 'lease_acquire_failed',
	'rpc_error:-32602' => 'lease_acquire_failed',
	'rpc_error:-32001' => 'lease_acquire_failed');
# Those that only delay.
my @harmless = ('status:401', 'status:403', 'status:429', 'status:503:0', 'delay:100', 'chunked', 'expired');

# request_each(provider, faults…): a lease for each, all at once; fault => lease.
# Each fault strikes once.
sub request_each
{
	my ($provider, @faults) = @_;
	my %leases;
	my $sql = '';
	for my $number (0 .. $#faults)
	{
		my $key = "$provider->{name}-" . ++$provider->{environments};
		$sql .= sprintf "SELECT leasehold.create_environment(%s, %s, %s) IS NULL;\n",
		  quote($key), quote("$provider->{name}-host"),
		  quote(json({ fault => { acquire => [ $faults[$number] ] } }));
		$sql .= sprintf "SELECT leasehold.request_lease(%s);\n", quote($key);
	}
	my @answers = grep { $_ ne 'f' } split /\n/, $node->alice($sql);
	@leases{@faults} = @answers;
	return %leases;
}

sub acquires { my ($provider, $lease) = @_; return scalar $provider->requests(method => 'acquire', leaseId => $lease); }
sub finds { my ($provider, $lease) = @_; return scalar $provider->requests(method => 'find', leaseId => $lease); }

# Callers may bring ids: what one company asked for is never another's, whatever
# ids it knows, and whatever became of the answer.
subtest 'two companies with a lease of the same id' => sub {
	my $provider = Leasehold::Provider->start($node, name => 'shared')->register($node);
	$node->boss(q(SELECT leasehold.create_company('neighbour'); SELECT leasehold.grant_company('neighbour', 'alice', 'manager')));
	$node->alice(q(
		SELECT leasehold.create_environment('lost', 'shared', '{"fault": {"acquire": "lose_answer"}}', company => 'acme');
		SELECT leasehold.create_environment('sound', 'shared', '{}', company => 'neighbour')));
	my $id = '88888888-0000-7000-8000-000000000001';
	$node->alice("SELECT leasehold.request_lease('lost', lease_id => '$id', company => 'acme')");
	eventually { $provider->counters->{live} > 0 } 'the provider has made something for the first';
	$node->alice("SELECT leasehold.request_lease('sound', lease_id => '$id', company => 'neighbour')");
	$node->happens("SELECT count(*) = 2 FROM leasehold.leases WHERE id = '$id' AND status = 'active'", 'both are got');
	is_deeply(
		{ map { $_->{companyId} => $_->{providerLeaseId} } $provider->resources },
		{ map { split /\|/ } split /\n/, $node->owner("SELECT company_id, provider_lease_id FROM leasehold.leases WHERE id = '$id'") },
		'each has its own');
	$node->alice("SELECT leasehold.release_lease('$id', company => c) FROM unnest(ARRAY['acme', 'neighbour']) AS c");
	$node->happens("SELECT count(*) = 2 FROM leasehold.leases WHERE id = '$id' AND status = 'released'", 'and both are released');
	is($provider->counters->{live}, 0, 'nothing is left');
	$node->boss(q(SELECT leasehold.revoke_company('neighbour', 'alice')));
	$provider->obeyed;
	$provider->stop;
};

subtest 'a provider that can look up' => sub {
	my $provider = Leasehold::Provider->start($node, name => 'box')->register($node);
	my %leases = request_each($provider, @without_effect, @with_effect, keys %refused, @harmless);

	for my $fault (@without_effect)
	{
		my $lease = $leases{$fault};
		$node->settles($lease, 'active', "$fault: looked up, not found, and acquired again");
		is(acquires($provider, $lease) . ' ' . finds($provider, $lease), '2 1', "$fault: one more acquire, one look");
	}
	for my $fault (@with_effect)
	{
		my $lease = $leases{$fault};
		$node->settles($lease, 'active', "$fault: looked up and adopted");
		is(acquires($provider, $lease) . ' ' . finds($provider, $lease), '1 1', "$fault: no second acquire");
	}
	for my $fault (sort keys %refused)
	{
		my $lease = $leases{$fault};
		$node->settles($lease, 'failed', "$fault: the lease fails");
		is($node->lease($lease, 'failure_code'), $refused{$fault}, "$fault: and says why");
		isnt($node->lease($lease, 'failure_reason'), '', "$fault: in words, too");
		is(acquires($provider, $lease) . ' ' . finds($provider, $lease), '1 0', "$fault: after one call");
	}
	for my $fault (@harmless)
	{
		my $lease = $leases{$fault};
		$node->settles($lease, 'active', "$fault: the lease is got all the same");
		is(finds($provider, $lease), 0, "$fault: nothing is unknown");
	}
	is($node->lease($leases{expired}, 'provider_expires_at IS NULL AND expires_at > now()'),
		't', 'an end that is no time counts as none');

	is(
		$node->owner(q(
			SELECT count(*) FROM leasehold.leases AS l
			 WHERE l.status = 'active' AND l.provider = 'box-host' AND NOT EXISTS (
				SELECT FROM leasehold_internal.provider_resources AS r
				 WHERE r.provider_lease_id = l.provider_lease_id AND r.lease_id = l.id))),
		'0', 'every resource is registered for its lease');
	my %held = map { $_->{leaseId} => $_->{providerLeaseId} } $provider->resources;
	my %leased = map { split /\|/ } split /\n/,
	  $node->owner(q(SELECT id, provider_lease_id FROM leasehold.leases WHERE status = 'active'));
	is_deeply(\%held, \%leased, 'the provider holds exactly what the database has');
	is($provider->counters->{duplicate_live_max}, 1, 'never two for one lease');
	is($provider->counters->{acquires_per_key_max}, 1, 'no acquire was acted upon twice');

	is(
		$node->owner(
			"SELECT string_agg(action, ' ' ORDER BY occurred_at) FROM leasehold.lease_timeline
			  WHERE lease_id = '$leases{lose_answer}'"),
		'environment.lease_requested environment.lease_outcome_unknown environment.lease_acquired',
		'the audit trail tells of the unknown outcome');

	$node->alice(q(SELECT leasehold.release_lease(id) FROM leasehold.leases WHERE status = 'active'));
	$node->happens(
		'SELECT count(*) = 0 FROM leasehold.leases WHERE leasehold_internal.may_have_resource(status)',
		'all are released');
	is($provider->counters->{live}, 0, 'and gone');
	$provider->obeyed;
	$provider->stop;
};

subtest 'a plugin that cannot look up' => sub {
	my $provider = Leasehold::Provider->start($node, name => 'plain', variant => 'plain')->register($node);
	my %leases = request_each($provider, @without_effect, @with_effect, keys %refused, @harmless);

	for my $fault (@without_effect, @with_effect)
	{
		my $lease = $leases{$fault};
		$node->settles($lease, 'irrevocable', "$fault: nobody knows");
		is($node->lease($lease, 'failure_code'), 'acquire_outcome_unknown', "$fault: that is said");
		is(acquires($provider, $lease), 1, "$fault: never a second create");
	}
	for my $fault (sort keys %refused)
	{
		my $lease = $leases{$fault};
		$node->settles($lease, 'failed', "$fault: the lease fails");
		is(acquires($provider, $lease), 1, "$fault: after one call");
	}
	for my $fault (@harmless)
	{
		$node->settles($leases{$fault}, 'active', "$fault: the lease is got all the same");
	}
	is($provider->counters->{duplicate_live_max}, 1, 'never two for one lease');
	is($provider->counters->{methods}{environmentFindLease}, undef, 'a method it does not have is not called');
	is($provider->counters->{methods}{environmentListLeases}, undef, 'nor another');

	# a decision is needed, and can be made
	my $lease = $leases{lose_answer};
	like($node->doctor, qr/lease_irrevocable/, 'doctor() tells of them');
	is($node->alice("SELECT status FROM leasehold.cleanup_backlog WHERE lease_id = '$lease'"),
		'irrevocable', 'they are in the backlog');
	is($node->alice("SELECT waiting_for FROM leasehold.active_leases WHERE lease_id = '$lease'"),
		'decision', 'waiting for a decision');
	is($node->alice("SELECT leasehold.release_lease('$lease')"), 'irrevocable', 'releasing does not end one');
	$node->refuses('alice', "SELECT leasehold.retry_lease('$lease')", 'PT409',
		qr/cannot be looked up.*import it first with import_lease\(\); then write_off_lease/s,
		'nor retrying, since there is nothing to ask');
	$node->refuses('alice', "SELECT leasehold.write_off_lease('$lease', ' ')", '22023', qr/must not be empty/,
		'to write one off needs a reason');
	$node->alice("SELECT leasehold.write_off_lease('$lease', 'seen to it at the provider')");
	is($node->lease($lease, 'status', 'failure_reason'), 'written_off|seen to it at the provider', 'written off');

	# such a lease takes its place under a limit
	$node->alice(q(SELECT leasehold.release_lease(id) FROM leasehold.leases WHERE status = 'active'));
	$node->happens(q(SELECT count(*) = 0 FROM leasehold.leases WHERE status IN ('active', 'releasing')), 'the others end');
	my $unknown = $node->owner(
		q(SELECT count(*) FROM leasehold.leases WHERE status = 'irrevocable' AND provider = 'plain-host'));
	$node->environment('limited', 'plain-host');
	$node->boss("SELECT leasehold.set_limit('active_leases', $unknown, provider => 'plain-host')");
	$node->refuses(
		'alice', q(SELECT leasehold.request_lease('limited', on_limit => 'fail')),
		'PT429', qr/active_leases/, 'a lease of unknown outcome counts against its limit');
	$provider->obeyed;
	$provider->stop;
};

subtest 'the outcome is still unknown when the lease is given up' => sub {
	my $provider = Leasehold::Provider->start($node, name => 'late')->register($node);
	for my $case ([ lose_answer => 1 ], [ cut => 0 ])
	{
		my ($fault, $made) = @$case;
		my $key = "late-$made";
		$node->environment($key, 'late-host', { fault => { acquire => [$fault], find => [ 'delay:500', 'cut' ] } });
		my $lease = $node->request(quote($key));
		eventually { finds($provider, $lease) } "$fault: the look-up is under way";
		is($node->alice("SELECT leasehold.release_lease('$lease')"), 'releasing', "$fault: released meanwhile");
		$node->settles($lease, 'released', "$fault: ends as released");
		is(acquires($provider, $lease), 1, "$fault: without a second acquire");
		is($provider->requests(method => 'release', leaseId => $lease), $made, "$fault: releases called");
	}
	is($provider->counters->{live}, 0, 'nothing is left');

	$node->environment('late-answer', 'late-host', { fault => { acquire => ['delay:400'] } });
	my $lease = $node->request(q('late-answer'));
	eventually { acquires($provider, $lease) } 'an acquire is out';
	is($node->alice("SELECT leasehold.release_lease('$lease')"), 'releasing', 'the lease is released');
	$node->settles($lease, 'released', 'the answer comes: what was got is given back');
	is($provider->counters->{live}, 0, 'nothing is left');

	# an acquire that the provider acts upon long after we gave up waiting
	$node->environment('late-act', 'late-host', { fault => { acquire => ['slow_act:1500'] } });
	$lease = $node->request(q('late-act'));
	$node->settles($lease, 'active', 'it was looked for, not found, and asked for again');
	eventually { $provider->counters->{repeated_acquires} } 'then the first is acted upon';
	is($provider->counters->{live}, 1, 'the key that both carry keeps it at one');
	$node->alice("SELECT leasehold.release_lease('$lease')");
	$node->settles($lease, 'released', 'released');
	is($provider->counters->{live}, 0, 'nothing is left');
	$provider->obeyed;
	$provider->stop;
};

subtest 'a look-up that fails' => sub {
	my $provider = Leasehold::Provider->start($node, name => 'blind')->register($node);
	$node->environment('blind', 'blind-host', {
			fault => { acquire => ['lose_answer'], find => [ 'cut', 'status:500', 'html', 'hang' ] } });
	my $lease = $node->request(q('blind'));
	$node->settles($lease, 'irrevocable', 'is tried a few times, then somebody must decide');
	is(finds($provider, $lease), 4, 'as often as leasehold.cleanup_attempts says');
	is(acquires($provider, $lease), 1, 'there was one acquire');
	is($provider->counters->{live}, 1, 'the resource exists');

	is($node->alice("SELECT leasehold.retry_lease('$lease')"), 'pending_cleanup', 'it can be retried');
	$node->settles($lease, 'failed', 'then it is found and removed');
	is($provider->counters->{live}, 0, 'it is gone');
	is(acquires($provider, $lease), 1, 'still after one acquire');

	# an acquire that comes to nothing is not repeated for ever, either
	$node->environment('cut', 'blind-host', { fault => { acquire => 'cut' } });
	$lease = $node->request(q('cut'));
	$node->settles($lease, 'failed', 'a request that gets lost each time fails');
	is(acquires($provider, $lease) . ' ' . finds($provider, $lease), '5 5',
		'after as many tries as leasehold.acquire_attempts says');
	is($node->lease($lease, 'failure_code'), 'lease_acquire_failed', 'and says so');
	like($node->lease($lease, 'failure_reason'), qr/during/, 'with what went wrong with the request');

	# throttled look-ups are not failed ones
	$node->environment('busy', 'blind-host', {
			fault => { acquire => ['lose_answer'], find => [ ('status:429') x 8 ] } });
	$lease = $node->request(q('busy'));
	$node->settles($lease, 'active', 'a provider that says "later" is asked later');
	is(finds($provider, $lease), 9, 'however often');
	$provider->obeyed;
	$provider->stop;
};

subtest 'a resource of somebody else' => sub {
	my $provider = Leasehold::Provider->start($node, name => 'twins')->register($node);
	$node->environment('twins', 'twins-host');
	my $first = $node->request(q('twins'));
	$node->settles($first, 'active', 'a lease has a resource');
	my $id = $node->lease($first, 'provider_lease_id');

	$provider->faults(acquire => 'duplicate_id', times => 1);
	my $second = $node->request(q('twins'));
	$node->settles($second, 'failed', 'another is given the same: it fails');
	is($node->lease($second, 'failure_code', 'provider_lease_id'), 'resource_taken|', 'and does not claim it');

	$provider->faults(acquire => 'hang_before', times => 1);
	$provider->faults(find => 'duplicate_id', times => 1);
	my $third = $node->request(q('twins'));
	eventually { acquires($provider, $third) } 'a third is given up while its outcome is unknown';
	$node->alice("SELECT leasehold.release_lease('$third')");
	$node->settles($third, 'released', 'and looking it up gives the same: it ends');

	# other companies
	$node->boss(q(SELECT leasehold.create_company('rival');
		SELECT leasehold.grant_company('rival', 'alice', 'manager')));
	$node->alice(q(SELECT leasehold.create_environment('twins', 'twins-host', company => 'rival')));
	$provider->faults(acquire => 'duplicate_id', times => 1);
	my $theirs = $node->request(q('twins', company => 'rival'));
	$node->settles($theirs, 'failed', 'another company cannot have it either');

	is($node->lease($first, 'status', 'provider_lease_id'), "active|$id", 'the first keeps what it has');
	is(scalar(grep { $_->{providerLeaseId} eq $id } $provider->resources), 1, 'which nobody removed');
	is($provider->requests(method => 'release') + $provider->requests(method => 'destroy'), 0, 'or tried to');
	$provider->obeyed;
};

done_testing();
