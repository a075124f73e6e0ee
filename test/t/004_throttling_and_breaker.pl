# Providers that are busy, dead or slow: they are left in peace, it shows, and
# nobody else suffers.

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
leasehold.max_concurrent_calls = 200
));
my $provider = Leasehold::Provider->start($node)->register($node);
my $other = Leasehold::Provider->start($node, name => 'other')->register($node);
$node->environment('other', 'other');

# change(name, value): a setting of the server, from now on.
sub change
{
	my ($name, $value) = @_;
	$node->owner("ALTER SYSTEM SET $name = " . quote($value));
	$node->owner('SELECT pg_reload_conf()');
	$node->poll("SELECT current_setting('$name') = " . quote($value)) or BAIL_OUT("$name was not set");
	return;
}

# pauses(method, lease): seconds between its requests, as the provider saw them.
sub pauses
{
	my ($method, $lease) = @_;
	my @times = map { $_->{time} } $provider->requests(method => $method, leaseId => $lease);
	return map { $times[ $_ + 1 ] - $times[$_] } 0 .. $#times - 1;
}

sub breaker
{
	my ($key) = @_;
	return $node->boss("SELECT state FROM leasehold.status() WHERE area = 'provider' AND subject = '$key'");
}

subtest 'Retry-After is honoured' => sub {
	my %least = ('status:429:1' => 1, 'status:503:1' => 1, 'status:429:date' => 1.9, 'status:503:date' => 1.9);
	my %leases;
	for my $fault (sort keys %least)
	{
		my $key = 'busy-' . ($fault =~ s/[^a-z0-9]/-/gr);
		$node->environment($key, 'box', { fault => { acquire => [ $fault, $fault ], release => [$fault] } });
		$leases{$fault} = $node->request(quote($key));
	}
	is($node->poll("SELECT bool_or(waiting_for = 'retry: provider_throttled') FROM leasehold.leases"),
		1, 'the lease says what it waits for');
	for my $fault (sort keys %least)
	{
		my $lease = $leases{$fault};
		$node->settles($lease, 'active', "$fault: acquired after all");
		is(scalar(grep { $_ < $least{$fault} } pauses('acquire', $lease)), 0, "$fault: never too early");
		is(scalar(pauses('acquire', $lease)), 2, "$fault: at the third try");
		is($provider->requests(method => 'find', leaseId => $lease), 0, "$fault: nothing is unknown");
		$node->alice("SELECT leasehold.release_lease('$lease')");
	}
	for my $fault (sort keys %least)
	{
		$node->settles($leases{$fault}, 'released', "$fault: released");
		is(scalar(grep { $_ < $least{$fault} } pauses('release', $leases{$fault})), 0, "$fault: not too early either");
	}
	is(breaker('box'), 'ok', 'being told to wait does not open the circuit breaker');

	# so it is for a plugin that is spoken to
	my $greeted = $provider->requests(method => 'initialize');
	$provider->faults(initialize => 'status:429:1', times => 2);
	$node->boss(q(SELECT leasehold.restart_plugin('box')));
	$node->happens(q(SELECT status = 'ready' FROM leasehold.plugins WHERE key = 'box'), 'initialize: ready after all');
	my @greetings = map { $_->{time} } $provider->requests(method => 'initialize');
	@greetings = splice @greetings, $greeted;
	is(@greetings, 3, 'initialize: at the third try');
	is(scalar(grep { $greetings[$_] - $greetings[ $_ - 1 ] < 1 } 1 .. $#greetings), 0, 'initialize: never too early');

	# a provider that says "tomorrow" does not keep a request for ever
	$node->environment('tomorrow', 'box', { fault => { acquire => 'status:429:86400' } });
	my $lease = $node->request(q('tomorrow', acquire_timeout => '2 seconds'));
	$node->settles($lease, 'failed', 'a request ends when its own time is over');
	is($node->lease($lease, 'failure_code'), 'acquire_timeout', 'and says so');
};

subtest 'refusals do not open the circuit breaker' => sub {
	$node->environment('refused', 'box', { fault => { acquire => 'rpc_error:-32002' } });
	my @leases = map { $node->request(q('refused')) } 1 .. 5;
	$node->settles($_, 'failed', 'refused') for @leases;
	is(breaker('box'), 'ok', 'five leases were refused, and the provider is fine');
};

subtest 'the circuit breaker' => sub {
	$node->environment('dead', 'box', {});
	$provider->stop;
	my @leases = map { $node->request(q('dead')) } 1 .. 6;
	my $late = $node->request(q('dead', acquire_timeout => '3 seconds'));
	eventually { breaker('box') eq 'breaker_open' } 'opens after some failures';
	like($node->doctor, qr/^warning breaker_open: provider "box" fails, its circuit breaker is open until [^\n]*: .*connect/m,
		'doctor() tells, and why');
	is(
		$node->boss(q(SELECT (detail ->> 'failures')::int >= 3, (detail ->> 'retryAt')::timestamptz > now() + interval '5 min'
			FROM leasehold.status() WHERE area = 'provider' AND subject = 'box')),
		't|t', 'status() tells how many failures there were and when it tries again');
	is($node->boss(q(SELECT value FROM leasehold.metrics() WHERE name = 'leasehold_provider_breaker_open'
			AND labels ->> 'provider' = 'box')), '1', 'metrics() tells, too');
	is($node->alice(q(SELECT state FROM leasehold.status() WHERE area = 'provider' AND subject = 'box')),
		'breaker_open', 'and so do they those who use it');

	$provider->run;
	my $lease = $node->request(q('other'));
	$node->settles($lease, 'active', 'another provider works');
	$node->settles($late, 'failed', 'a request ends when its time is over, breaker or not');
	is($node->lease($late, 'failure_code'), 'acquire_timeout', 'and says so');
	like($node->lease($late, 'failure_reason'), qr/^no resource was got in time/, 'in words');
	is($provider->counters->{methods}{environmentAcquireLease} // 0, 0, 'the provider is back, but not called yet');

	$node->refuses('alice', q(SELECT leasehold.reset_breaker('box')), '42501', qr/permission|leasehold_admin/,
		'not everybody closes it');
	$node->refuses('boss', q(SELECT leasehold.reset_breaker('nothing')), 'PT404', qr/does not exist/, 'of no provider');
	is($node->boss(q(SELECT leasehold.reset_breaker('box'))), 't', 'an administrator does');
	$node->settles($_, 'active', 'what waited goes on') for @leases;
	is(breaker('box'), 'ok', 'it is closed');
	is($node->boss(q(SELECT leasehold.reset_breaker('box'))), 'f', 'closing it again does nothing');
	unlike($node->doctor, qr/breaker_open/, 'doctor() is content');

	change('leasehold.breaker_cooldown', '50ms');
	$provider->stop;
	$node->alice("SELECT leasehold.release_lease('$_')") for @leases;
	eventually { breaker('box') ne 'ok' } 'it opens again';
	$provider->run;
	$node->settles($_, 'released', 'and closes by itself when a try succeeds') for @leases;
	is(breaker('box'), 'ok', 'closed');
	is($provider->counters->{live}, 0, 'nothing is left');
};

subtest 'a provider that hangs harms nobody else' => sub {
	change('leasehold.provider_concurrency', '5');
	$node->environment('hanging', 'box', { fault => { acquire => 'hang_before' } });
	$node->owner(q(SET ROLE alice; SELECT leasehold.request_lease('hanging') FROM generate_series(1, 300)));
	eventually { $provider->counters->{in_flight} == 5 } 'as many calls as leasehold.provider_concurrency are out';
	within(
		20, 'the other provider is not held up',
		sub {
			my @leases = map { $node->request(q('other')) } 1 .. 20;
			$node->settles($_, 'active', 'active') for @leases;
			$node->alice("SELECT leasehold.release_lease('$_')") for @leases;
			$node->settles($_, 'released', 'released') for @leases;
		});
	is($provider->counters->{in_flight_max}, 5, 'never more');

	# those that were sent are out until they time out, the others end at once
	$node->alice(q(SELECT count(leasehold.release_lease(id)) FROM leasehold.leases WHERE status = 'acquiring'));
	is($node->owner(q(SELECT count(*) FROM leasehold.leases WHERE status = 'releasing')), 5, 'five are out');
	$provider->stop('KILL');
	$provider->run;
	$node->happens(q(SELECT count(*) = 0 FROM leasehold.leases WHERE status IN ('acquiring', 'releasing')),
		'the provider restarts: their outcome is looked up, and they end');
	is($provider->counters->{live}, 0, 'nothing is left');
	$node->boss(q(SELECT leasehold.reset_breaker('box')));

	$provider->reset;
	$node->boss(q(SELECT leasehold.set_limit('concurrent_calls', 2, provider => 'box')));
	$node->environment('slow', 'box', { fault => { acquire => 'delay:50' } });
	my @leases = map { $node->request(q('slow')) } 1 .. 12;
	$node->settles($_, 'active', 'slow, but active') for @leases;
	is($provider->counters->{in_flight_max} <= 2, 1, 'a lower limit of one provider holds');
	$node->alice("SELECT leasehold.release_lease('$_')") for @leases;
	$node->settles($_, 'released', 'released') for @leases;
	$node->boss(q(SELECT leasehold.set_limit('concurrent_calls', NULL, provider => 'box')));
	change('leasehold.provider_concurrency', '1000');
};

subtest 'a plugin that cannot be spoken to' => sub {
	change('leasehold.breaker_cooldown', '1h');
	my $mute = Leasehold::Provider->start($node, name => 'mute');
	$mute->stop;
	$mute->register($node, ready => 0);
	eventually { breaker('plugin:mute') eq 'breaker_open' } 'is held back after some tries';
	like($node->doctor, qr/^warning breaker_open: provider "plugin:mute" fails.*connect/m, 'doctor() tells');
	$node->refuses('boss', q(SELECT leasehold.reset_breaker('plugin:nothing')), 'PT404', qr/does not exist/, 'there is no such plugin');
	is($node->boss(q(SELECT leasehold.reset_breaker('plugin:mute'))), 't', 'an administrator can have it tried again');
	eventually { breaker('plugin:mute') eq 'breaker_open' } 'in vain';
	$mute->run;
	$node->boss(q(SELECT leasehold.restart_plugin('mute')));
	$node->happens(q(SELECT status = 'ready' FROM leasehold.plugins WHERE key = 'mute'),
		'who restarts it need not know of breakers');
	is(breaker('plugin:mute'), 'ok', 'it goes well');
	change('leasehold.breaker_cooldown', '50ms');
};

subtest 'tokens' => sub {
	my $fresh = Leasehold::Provider->start($node, name => 'fresh');
	my $path = $node->token_directory . "/$fresh->{token_file}";
	unlink $path;
	$fresh->register($node, ready => 0);
	$node->happens(q(SELECT status = 'error' AND last_error LIKE '%token%' FROM leasehold.plugins WHERE key = 'fresh'),
		'a plugin without its token is not ready, and why');
	like($node->doctor, qr/^warning plugin_error: plugin "fresh": the token file cannot be opened \("\Q$fresh->{token_file}\E"\)/m,
		'doctor() tells');
	is($node->boss(q(SELECT (detail ->> 'succeeded')::int + (detail ->> 'failed')::int FROM leasehold.status()
			WHERE area = 'provider' AND subject = 'plugin:fresh')), '0', 'that says nothing about the plugin');
	$node->environment('fresh', 'fresh');
	my $lease = $node->request(q('fresh'));
	$node->happens("SELECT waiting_for = 'plugin' FROM leasehold.leases WHERE id = '$lease'", 'requests wait for it');

	for my $case (
		[ 'token', qr/others can neither/, 'a token that others can read is not used', mode => 0644 ],
		[ 'token', qr/others can neither/, 'nor one that the group can write', mode => 0620 ],
		[ '', qr/holds no token/, 'nor an empty one' ],
		[ 'two words', qr/holds no token/, 'nor one that no header can hold' ],
		[ "tok\r\nX-Evil: yes", qr/holds no token/, 'nor one that would add headers' ],
		[ 'x' x 4096, qr/too long/, 'nor one that is too long' ],
		[ 'x' x 100_000, qr/too long/, 'however long' ],
		[ 'token', qr/does not begin with a line "for:/, 'nor one that does not say where it may be sent', text => "token\n" ],
		[ 'token', qr/for another address/, 'nor one for another provider', url => $provider->url ])
	{
		my ($token, $pattern, $name, %options) = @$case;
		$fresh->put_token($node, $token, %options);
		$node->boss(q(SELECT leasehold.restart_plugin('fresh')));
		eventually {
			$node->owner(q(SELECT last_error FROM leasehold.plugins WHERE key = 'fresh')) =~ $pattern
		} $name;
	}
	like($node->doctor, qr/^warning plugin_error: plugin "fresh": the token file is for another address/m, 'doctor() tells');
	rename $path, "$path-elsewhere";
	symlink "$path-elsewhere", $path;
	$node->boss(q(SELECT leasehold.restart_plugin('fresh')));
	$node->happens(q(SELECT last_error LIKE '%cannot be opened%' FROM leasehold.plugins WHERE key = 'fresh'),
		'a symbolic link is not followed');
	is_deeply($fresh->counters->{methods}, {}, 'without a token the provider is not called');

	$fresh->put_token($node, $fresh->{token});
	$node->settles($lease, 'active', 'as soon as the token is there, the request goes on');
	is($node->owner(q(SELECT status FROM leasehold.plugins WHERE key = 'fresh')), 'ready', 'the plugin is ready');

	# rotation: the provider has the new one first
	$fresh->stop;
	$fresh->{token} = 'a-rotated-token';
	$fresh->run;
	$node->alice("SELECT leasehold.release_lease('$lease')");
	$node->happens("SELECT failure_code = 'provider_unauthorized' FROM leasehold.leases WHERE id = '$lease'",
		'the old token is refused');
	$fresh->put_token($node, $fresh->{token});
	$node->settles($lease, 'released', 'the new one is used at once');

	# an administrator of the database cannot have a token sent to where the host's has not said
	my $thief = Leasehold::Provider->start($node, name => 'thief');
	my $second = $node->request(q('fresh'));
	$node->settles($second, 'active', 'another lease');
	$node->boss(sprintf(q(SELECT leasehold.update_plugin('fresh', transport => %s)),
			quote(json({ type => 'http', url => $thief->url, token_file => $fresh->{token_file} }))));
	$node->happens(q(SELECT status = 'error' AND last_error LIKE '%for another address%' FROM leasehold.plugins WHERE key = 'fresh'),
		'a token is not sent to another address');
	$node->alice("SELECT leasehold.release_lease('$second')");
	$node->happens("SELECT failure_code = 'token_not_for_origin' FROM leasehold.leases WHERE id = '$second'",
		'nor with any other call');
	is($thief->counters->{connections_total}, 1, 'nobody connected there but this test');
	$node->boss(sprintf(q(SELECT leasehold.update_plugin('fresh', transport => %s)),
			quote(json({ type => 'http', url => $fresh->url, token_file => $fresh->{token_file} }))));
	$node->settles($second, 'released', 'with the right address it is used again');

	# nor does it come back in the text of an error
	$node->environment('talkative', 'fresh', { fault => { acquire => 'echo_token' } });
	my $echoed = $node->request(q('talkative'));
	$node->settles($echoed, 'failed', 'a provider repeats the token in an error');
	is($node->lease($echoed, 'failure_reason'),
		'the provider answered with error -32002: may *** do this? ***', 'which is masked');

	for my $name ('../secret', '/etc/passwd', '.hidden', 'a/b', '')
	{
		my $transport = { type => 'http', url => $fresh->url, token_file => $name };
		$node->refuses(
			'boss', sprintf(q(SELECT leasehold.update_plugin('fresh', transport => %s)), quote(json($transport))),
			'22023', qr/token_file/, "a token file cannot be \"$name\"");
	}
	unlike(slurp_file($node->logfile), qr/a-rotated-token|a-token-of-/, 'no token is in the server\'s log');
	is(
		$node->owner(q(
			SELECT (SELECT count(*) FROM leasehold.audit_events AS a WHERE a::text ~ 'a-rotated-token|a-token-of')
				 + (SELECT count(*) FROM leasehold.leases AS l WHERE l::text ~ 'a-rotated-token|a-token-of')
				 + (SELECT count(*) FROM leasehold.plugins AS p WHERE p::text ~ 'a-rotated-token|a-token-of'))),
		'0', 'nor in the database');
};

subtest 'more providers than are reported at a time' => sub {
	change('leasehold.breaker_cooldown', '10min');
	my $many = Leasehold::Provider->start($node, name => 'many');
	my $manifest = $many->manifest;
	my ($driver) = @{ $manifest->{environmentDrivers} };
	$manifest->{environmentDrivers} = [ map { { %$driver, driverKey => "many$_" } } 1 .. 80 ];
	$many->register($node, manifest => $manifest);
	$node->environment("many$_", "many$_", {}) for 1 .. 80;
	my @leases = map { $node->request("'many$_'") } 1 .. 80;
	$node->settles($_, 'active', 'active') for @leases;
	$many->stop;
	$node->alice("SELECT leasehold.release_lease('$leases[$_]')") for 0, 40, 79;
	for my $key (map { "many$_" } 1, 41, 80)
	{
		eventually { breaker($key) eq 'breaker_open' } "$key: that it is held back is told, however many were there before";
	}
	$many->run;
	is($node->boss("SELECT leasehold.reset_breaker('$_')"), 't', "$_: an administrator lets it go on") for 'many1', 'many41', 'many80';
	$node->alice("SELECT leasehold.release_lease('$_')") for @leases;
	$node->settles($_, 'released', 'released') for @leases;
	$many->obeyed;
};

$provider->obeyed;
$other->obeyed;
done_testing();
