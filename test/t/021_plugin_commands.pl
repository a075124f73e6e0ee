# Commands through plugins: what a plugin says of a command, whole or as it goes,
# and what is known when it does not say it.  Never is one begun twice.

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
leasehold.breaker_threshold = 1000
));
my $provider = Leasehold::Provider->start($node)->register($node);
$node->environment('dev', 'box', {});
my $lease = $node->request(q('dev'));
$node->settles($lease, 'active', 'a lease');

# start(arguments of start_command but the lease, %order): a command's id.  The
# order is for the double: how it answers, and what goes wrong.
sub start
{
	my ($arguments, %order) = @_;
	my $in = delete $order{lease} // $lease;
	my $env = %order ? ', env => ' . quote(json({ DOUBLE => json(\%order) })) : '';
	return $node->alice("SELECT leasehold.start_command('$in', $arguments$env)");
}

sub script { my ($script, %order) = @_; return start('shell => ' . quote($script), %order); }

# state(id, column...): by default how it ended.
sub state
{
	my ($id, @columns) = @_;
	my $list = join ', ', @columns ? @columns : qw(outcome exit_code signal);
	return $node->owner("SELECT $list FROM leasehold.commands WHERE id = '$id'");
}

# ends(id, outcome|exit code|signal, name)
sub ends
{
	my ($id, $state, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$node->poll("SELECT status = 'finished' FROM leasehold.commands WHERE id = '$id'");
	return is(main::state($id), $state, $name)
	  || diag $node->owner("SELECT to_jsonb(c) FROM leasehold.commands AS c WHERE id = '$id'");
}

# output(id, stream): all that is there of it.
sub output
{
	my ($id, $stream) = @_;
	return $node->owner("SELECT convert_from(string_agg(data, '' ORDER BY seq), 'UTF8') FROM leasehold.command_output
		WHERE command_id = '$id' AND stream = '" . ($stream // 'stdout') . "'");
}

# How often the provider has begun it.
sub executions { my ($id) = @_; return scalar grep { $_->{outcome} && $_->{outcome} ne 'not acted' } requests($id); }

sub requests
{
	my ($id) = @_;
	return grep { $_->{params}{leasehold}{commandId} eq $id } $provider->requests(method => 'execute');
}

subtest 'an answer that is whole' => sub {
	my $command = start(q(argv => ARRAY['printf', '%s|', 'a b', '$HOME', '"'], env => '{"A": "1"}', timeout => '1 minute'));
	ends($command, 'exited|0|', 'a program has run');
	is(output($command), 'a b|$HOME|"|', 'with its arguments as they are');
	my ($request) = requests($command);
	my $params = $request->{params};
	my ($company, $environment, $resource) = split /\|/,
	  $node->owner("SELECT company_id, environment_id, provider_lease_id FROM leasehold.leases WHERE id = '$lease'");
	ok(delete $params->{lease}{expiresAt}, 'the plugin is told when the lease expires');
	ok(delete $params->{leasehold}{installationId}, 'and of which installation it is');
	is_deeply(
		$params,
		{
			driverKey => 'box', companyId => $company, environmentId => $environment, issueId => undef, config => {},
			lease => { providerLeaseId => $resource, metadata => { remoteCwd => '/workspace', sandboxId => $resource } },
			command => 'printf', args => [ '%s|', 'a b', '$HOME', '"' ], cwd => '/workspace', env => { A => '1' },
			timeoutMs => 60000, runId => undef, streamOutput => JSON::PP::true,
			leasehold => { leaseId => $lease, generation => 1, commandId => $command,
				idempotencyKey => "$company:$command:execute" },
		},
		'and what it is to do');

	ends(script('exit 7'), 'exited|7|', 'an exit code');
	ends(script('kill -9 $$'), 'signalled||SIGKILL', 'a signal');
	$command = start(q(argv => ARRAY['cat'], stdin => 'from the database'));
	ends($command, 'exited|0|', 'a program that reads');
	is(output($command), 'from the database', 'gets its input');
	$command = script('echo out; echo err >&2');
	ends($command, 'exited|0|', 'a script');
	is(output($command) . '|' . output($command, 'stderr'), "out\n|err\n", 'writes to both streams');
	$command = start(q(shell => 'echo first; sleep 100', timeout => '300 milliseconds'));
	ends($command, 'timed_out||', 'one that takes too long');
	is(output($command), "first\n", 'keeps what it wrote');
	ends(start(q(argv => ARRAY['no-such-program'])), 'exited|127|', 'a program that is not there');
	is($provider->counters->{executions_per_key_max}, 1, 'each has run once');
};

$provider->obeyed;
done_testing();
