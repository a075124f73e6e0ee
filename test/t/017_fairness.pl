# No company can take everything: neither places for calls, nor room in the
# queue, nor a provider's good name.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use PostgreSQL::Test::Utils;
use Test::More;

use Leasehold::Node;
use Leasehold::Provider;

my $node = Leasehold::Node->new('main')->setup(
	holding_back => 1,
	configuration => q(
leasehold.max_concurrent_calls = 20
leasehold.reconcile_interval = 0
));
my %provider = map { $_ => Leasehold::Provider->start($node, name => $_)->register($node) } qw(box other third);
my $provider = $provider{box};

# alice works for acme, bob for rival
$node->owner('CREATE ROLE bob LOGIN IN ROLE leasehold_app');
$node->boss(q(SELECT leasehold.create_company('rival'); SELECT leasehold.grant_company('rival', 'bob', 'manager')));
sub bob { my ($sql) = @_; return $node->_as('bob', $sql); }

for my $key (keys %provider)
{
	$node->environment("hang-$key", $key, { fault => { acquire => 'hang_before' } });
	bob("SELECT leasehold.create_environment('dev-$key', '$key', '{}')");
}
$node->environment('dev', 'box', {});
$node->environment('slow', 'box', { fault => { acquire => 'delay:50' } });

sub request_many
{
	my ($count, $environment) = @_;
	return split /\n/, $node->alice("SELECT leasehold.request_lease('$environment') FROM generate_series(1, $count)");
}

sub provider_state
{
	my ($column) = @_;
	return $node->boss("SELECT $column FROM leasehold.status() WHERE area = 'provider' AND subject = 'box'");
}

# bob_gets(provider, name): a lease, and gives it back.
sub bob_gets
{
	my ($key, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $lease = bob("SELECT leasehold.request_lease('dev-$key')");
	my $good = $node->settles($lease, 'active', $name);
	bob("SELECT leasehold.release_lease('$lease')");
	return $node->settles($lease, 'released', "$name, and gives it back") && $good;
}

# end_all: the leases of both, hanging calls included.
sub end_all
{
	$node->alice(q(SELECT count(leasehold.release_lease(id)) FROM leasehold.leases WHERE status IN ('acquiring', 'active')));
	bob(q(SELECT count(leasehold.release_lease(id)) FROM leasehold.leases WHERE status IN ('acquiring', 'active')));
	for my $each (values %provider)
	{
		$each->stop('KILL');
		$each->run;
	}
	eventually
	{
		$node->boss("SELECT leasehold.reset_breaker('$_')") for keys %provider;
		$node->owner('SELECT count(*) FROM leasehold.leases WHERE leasehold_internal.may_have_resource(status)') eq '0'
	}
	'all leases end';
	$node->boss("SELECT leasehold.reset_breaker('$_')") for keys %provider;
	$_->reset for values %provider;
	return;
}

subtest 'calls that hang' => sub {
	my @hanging = map { request_many(25, "hang-$_") } qw(box other third);
	eventually
	{
		my $out = 0;
		$out += $_->counters->{in_flight} for values %provider;
		$out == 10
	}
	'one company has half of the places at most';
	bob_gets($_, "another company gets a lease of $_") for sort keys %provider;
	ok($_->counters->{in_flight_max} <= 6, 'of each provider it has half of a half') for values %provider;
	unlike($node->doctor, qr/no_free_slots/, 'there are free places');

	$node->boss(q(
		SELECT leasehold.set_limit('concurrent_calls', 12, provider => 'box');
		SELECT leasehold.set_limit('concurrent_calls', 12, company => 'acme', provider => 'box');
		SELECT leasehold.set_limit('concurrent_calls', 100, company => 'acme')));
	eventually { $node->doctor =~ /^warning no_free_slots: all 20 places for calls are taken, most by provider "box": \d+$/m }
	'limits that are set replace the halves, and doctor() tells when nothing is free';
	$node->boss(q(
		SELECT leasehold.set_limit('concurrent_calls', NULL, provider => 'box');
		SELECT leasehold.set_limit('concurrent_calls', NULL, company => 'acme', provider => 'box');
		SELECT leasehold.set_limit('concurrent_calls', NULL, company => 'acme')));
	end_all();
};

subtest 'the limit concurrent_calls of a company' => sub {
	for my $case (
		[ q(2, company => 'acme'), 2 ],
		[ q(1, company => 'acme', provider => 'box'), 1 ],
		[ q(3), 3 ])
	{
		my ($arguments, $most) = @$case;
		$node->boss("SELECT leasehold.set_limit('concurrent_calls', $arguments)");
		my @leases = request_many(12, 'slow');
		$node->settles($_, 'active', 'active') for @leases;
		ok($provider->counters->{in_flight_max} <= $most, "never more than $arguments");
		$node->boss("SELECT leasehold.set_limit('concurrent_calls', " . $arguments =~ s/^\d+/NULL/r . ')');
		end_all();
	}
	$node->refuses('boss', q(SELECT leasehold.set_limit('concurrent_calls', 1, company => 'acme', environment => 'dev')),
		'22023', qr/cannot be set for an environment/, 'it cannot be set for an environment');

	$node->boss(q(SELECT leasehold.set_limit('concurrent_calls', 0, company => 'acme')));
	my $lease = $node->request(q('dev'));
	bob_gets('box', 'others are not concerned');
	is($node->lease($lease), 'acquiring', 'with a limit of 0 nothing is called');
	$node->boss(q(SELECT leasehold.set_limit('concurrent_calls', NULL, company => 'acme')));
	$node->settles($lease, 'active', 'until it is removed');
	end_all();
};

subtest 'a queue that is full' => sub {
	request_many(30, 'hang-box');
	eventually { $provider->counters->{in_flight} >= 5 } 'calls hang';
	my $queued = sub {
		return $node->owner('SELECT sum(queued) FROM leasehold_internal.worker_states()');
	};
	# what only waits needs no lease
	my $fill = sub {
		my ($count, $key) = @_;
		$node->owner(qq(
			INSERT INTO leasehold_internal.calls (company_id, subject_id, slot, operation, provider, shard)
			SELECT c.id, gen_random_uuid(), 'op', 'destroy_stray', '$key', leasehold_internal.shard_of(c.id)
			  FROM leasehold.companies AS c, generate_series(1, $count) WHERE c.key = 'acme'));
	};
	my $deadline = $node->alice(q(SELECT leasehold.request_lease('hang-third', acquire_timeout => '5 minutes')));
	$node->boss(q(SELECT leasehold.set_limit('concurrent_calls', 0, company => 'acme')));
	$fill->(22000, 'box');
	eventually { $queued->() >= 20000 } 'one company has more due calls than there is room for';
	bob_gets('box', 'another still gets its turn');
	ok($queued->() < 21000, 'and room is bounded');

	$fill->(22000, 'other');
	$fill->(22000, 'third');
	eventually { $queued->() == 50000 } 'all room is taken';
	bob_gets($_, "others get their turn still, of $_") for sort keys %provider;
	my $short = bob(q(SELECT leasehold.request_lease('dev-box', ttl => '1 second')));
	$node->happens("SELECT acquired_at IS NOT NULL FROM leasehold.leases WHERE id = '$short'", 'and leases');
	$node->settles($short, 'expired', 'whose deadlines are seen');
	cmp_ok($queued->(), '<=', 50000, 'room is bounded');

	$node->owner(q(DELETE FROM leasehold_internal.calls WHERE operation = 'destroy_stray'));
	$node->boss(q(SELECT leasehold.set_limit('concurrent_calls', NULL, company => 'acme')));
	end_all();
	eventually { $queued->() == 0 } 'the queue runs empty';
};

subtest 'one company\'s failures' => sub {
	$node->environment('bad', 'box', { fault => { acquire => 'rpc_error:-32603' } });
	bob_gets('box', 'another company uses the provider');
	my @bad = request_many(10, 'bad');
	eventually { $node->doctor =~ /^warning company_held_back: provider "box" fails for 1 company/m } 'the company is held back';
	is(provider_state('state'), 'ok', 'the provider is not');
	is(provider_state("detail ->> 'heldBack'"), '1', 'status() tells');
	bob_gets('box', 'the other company goes on');
	my $good = $node->request(q('dev'));
	bob_gets('box', 'and on');
	is($node->lease($good), 'acquiring', 'the first waits with all its calls');
	$node->alice("SELECT leasehold.release_lease('$_')") for @bad;
	is($node->boss(q(SELECT leasehold.reset_breaker('box'))), 't', 'an administrator lets it go on');
	$node->settles($good, 'active', 'it does');
	is(provider_state("detail ->> 'heldBack'"), '0', 'nobody is held back');
	end_all();
};

subtest 'a provider that fails for several' => sub {
	bob(q(SELECT leasehold.create_environment('bad', 'box', '{"fault": {"acquire": "rpc_error:-32603"}}')));
	$node->owner('CREATE ROLE carol LOGIN IN ROLE leasehold_app');
	$node->boss(q(SELECT leasehold.create_company('third'); SELECT leasehold.grant_company('third', 'carol', 'manager')));
	$node->_as('carol', q(SELECT leasehold.create_environment('dev', 'box', '{}')));

	# in one round, so that both have a part in the first three
	$node->boss('SELECT leasehold.pause_worker()');
	eventually { $node->worker_states eq 'paused' } 'paused';
	my @bad = map { ($node->request(q('bad')), bob(q(SELECT leasehold.request_lease('bad')))) } 1 .. 2;
	$node->boss('SELECT leasehold.resume_worker()');
	eventually { provider_state('state') eq 'breaker_open' } 'its breaker opens';
	my $good = $node->_as('carol', q(SELECT leasehold.request_lease('dev')));
	is($node->lease($good), 'acquiring', 'for all');
	$node->boss(q(SELECT leasehold.reset_breaker('box')));
	$node->settles($good, 'active', 'they go on when it is closed');
	$node->_as('carol', "SELECT leasehold.release_lease('$good')");
	end_all();

	# the call that tries again is of the company that had no failures, whoever is first in the queue
	$node->owner(q(ALTER SYSTEM SET leasehold.breaker_cooldown = '1s'));
	$node->reload;
	$node->poll(q(SELECT current_setting('leasehold.breaker_cooldown') = '1s'));
	my %often = (acquire => 'rpc_error:-32603', find => [ ('rpc_error:-32603') x 3 ]);
	$node->environment('worse', 'box', { fault => \%often });
	bob("SELECT leasehold.create_environment('worse', 'box', " . quote(json({ fault => \%often })) . ')');
	$node->boss('SELECT leasehold.pause_worker()');
	eventually { $node->worker_states eq 'paused' } 'paused';
	push @bad, map { ($node->request(q('worse')), bob(q(SELECT leasehold.request_lease('worse')))) } 1 .. 2;
	$node->boss('SELECT leasehold.resume_worker()');
	eventually { provider_state('state') ne 'ok' } 'its breaker opens again';
	$node->boss('SELECT leasehold.pause_worker()');
	eventually { $node->worker_states eq 'paused' && $provider->counters->{in_flight} == 0 } 'paused, and nothing is out';
	my $before = $provider->requests;
	$good = $node->_as('carol', q(SELECT leasehold.request_lease('dev')));
	$node->boss('SELECT leasehold.resume_worker()');
	$node->settles($good, 'active', 'the one without failures goes on when the pause is over');
	is(($provider->requests)[$before]{leaseId}, $good, 'it was the first to try');
	$node->_as('carol', "SELECT leasehold.release_lease('$good')");
	$node->owner(q(ALTER SYSTEM SET leasehold.breaker_cooldown = '600s'));
	$node->reload;
	end_all();

	# unreachable: that is nobody's fault
	bob_gets('box', 'two companies use it');
	$provider->stop;
	my @waiting = request_many(6, 'dev');
	eventually { provider_state('state') eq 'breaker_open' } 'a provider that cannot be reached is held back for all';
	$provider->run;
	my $other = bob(q(SELECT leasehold.request_lease('dev-box')));
	bob_gets('third', 'other providers are not');
	is($node->lease($other), 'acquiring', 'a company that did not fail waits, too');
	$node->boss(q(SELECT leasehold.reset_breaker('box')));
	$node->settles($_, 'active', 'all go on') for @waiting, $other;
	end_all();
};

$_->obeyed for values %provider;
done_testing();
