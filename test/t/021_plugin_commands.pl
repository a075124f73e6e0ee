# Commands through plugins: what a plugin says of a command, whole or as it goes,
# and what is known when it does not say it.  Never is one begun twice.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use IO::Socket::INET;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use Leasehold::Node;
use Leasehold::Provider;

my $node = Leasehold::Node->new('main')->setup(
	configuration => q(
leasehold.breaker_threshold = 1000
leasehold.acquire_attempts = 100
leasehold.max_response_size = 200kB
leasehold.rpc_timeout = 5s
leasehold.max_output = 100MB
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

# touch(file): makes a file in the directory of the lease, for a script that waits for it.
sub touch
{
	my ($file) = @_;
	return ends(start("argv => ARRAY['touch', '$file']"), 'exited|0|', "a script may go on: $file");
}

sub await_file { my ($file) = @_; return "until [ -e $file ]; do sleep 0.02; done"; }

sub cancel { my ($id) = @_; return $node->alice("SELECT leasehold.cancel_command('$id')"); }

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

# writes(id, text, name): waits until it has written that.
sub writes
{
	my ($id, $text, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return $node->happens(
		"SELECT string_agg(convert_from(data, 'UTF8'), '' ORDER BY seq) = " . quote($text)
		  . " FROM leasehold.command_output WHERE command_id = '$id'", $name);
}

sub running { return $provider->counters->{running}; }

# requests(id, method, provider): those about it, in order.
sub requests
{
	my ($id, $method, $from) = @_;
	return grep { ($_->{params}{leasehold}{commandId} // '') eq $id }
	  ($from // $provider)->requests(method => $method // 'execute');
}

# These take their time, longer than calls may, and longer than the other tests,
# which leave their provider alone.
my $slow_provider = Leasehold::Provider->start($node, name => 'slow')->register($node);
$node->environment('slow', 'slow', {});
my $slow_lease = $node->request(q('slow'));
$node->settles($slow_lease, 'active', 'a lease for slow commands');
my %slow = (
	unlimited => script('sleep 8; echo done', lease => $slow_lease, format => 'lines'),
	silent => start(q(shell => 'sleep 600', timeout => '100 milliseconds'), lease => $slow_lease, fault => 'hang_before'),
	partial => start(q(shell => 'echo partial; sleep 600', timeout => '400 milliseconds'),
		lease => $slow_lease, format => 'lines', fault => 'hang_stream'),
	map {; "noise of $_" => start(q(shell => 'echo partial; sleep 600', timeout => '400 milliseconds'),
		lease => $slow_lease, format => $_, fault => 'noise_stream') } qw(lines events),
);

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
			lease => { providerLeaseId => $resource, metadata => { driver => 'sandbox', executionWorkspaceMode => undef,
				pluginKey => $provider->{name}, sandboxProviderPlugin => JSON::PP::true, provider => 'box',
				remoteCwd => '/workspace', sandboxId => $resource,
				workspaceRealization => { cwd => '/workspace', metadata => { realized => JSON::PP::true } } } },
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
	is($node->owner("SELECT string_agg(stream, ' ' ORDER BY seq) FROM leasehold.command_output WHERE command_id = '$command'"),
		'stdout stderr', 'which come one after the other');
	$command = start(q(shell => 'echo first; sleep 100', timeout => '300 milliseconds'));
	ends($command, 'timed_out||', 'one that takes too long');
	is(output($command), "first\n", 'keeps what it wrote');
	ends(start(q(argv => ARRAY['no-such-program'])), 'exited|127|', 'a program that is not there');
	is($provider->counters->{executions_per_key_max}, 1, 'each has run once');
};

subtest 'output as it comes' => sub {
	my $run = $node->alice('SELECT (leasehold.start_run()).started_run_id');
	my $of_run = $node->request("'dev', run_id => '$run'");
	$node->settles($of_run, 'active', 'a lease of a run');
	my $file = 0;
	for my $case (
		[ 'lines, in the channel of the run', lease => $of_run, format => 'lines' ],
		[ 'events, in the channel of the run', lease => $of_run, format => 'events' ],
		[ 'lines, in the channel of the command', format => 'lines' ],
		[ 'events, in the channel of the command', lease => $of_run, format => 'events', notify => 'command' ],
		[ 'lines, as the log of the request', format => 'lines', notify => 'log' ],
		[ 'events, as the log of the request', format => 'events', notify => 'log' ],
		[ 'lines, encoded', format => 'lines', encoding => 'base64' ],
		[ 'events, in small pieces', format => 'events', chunk => 1, split => 7 ])
	{
		my ($name, %order) = @$case;
		my $at = $order{lease} // $lease;
		my @go = map { 'go' . ++$file } 1 .. 2;
		my $command = script("echo one; @{[ await_file($go[0]) ]}; echo two >&2; @{[ await_file($go[1]) ]}; echo three", %order);
		writes($command, "one\n", "$name: output comes while it runs");
		ends(start("argv => ARRAY['touch', '$go[0]']", lease => $at), 'exited|0|', "$name: it goes on");
		writes($command, "one\ntwo\n", "$name: more");
		is(state($command, 'status'), 'running', "$name: it runs still");
		ends(start("argv => ARRAY['touch', '$go[1]']", lease => $at), 'exited|0|', "$name: it goes on");
		ends($command, 'exited|0|', "$name: it has ended");
		writes($command, "one\ntwo\nthree\n", "$name: all output is there, once, in order");
		is(output($command, 'stderr'), "two\n", "$name: each stream has its own");
		is(requests($command), 1, "$name: it was sent once");
	}
	$node->alice("SELECT leasehold.release_lease('$of_run')");
	$node->settles($of_run, 'released', 'released');
};

subtest 'characters and other bytes' => sub {
	my $text = "h\303\251 \360\237\230\200 \342\202\254";
	my $octal = join '', map { sprintf '\\%03o', ord } split //, $text;
	for my $format ('whole', 'lines', 'events')
	{
		for my $encoding ('text', 'base64')
		{
			my $command = script("printf '$octal'; printf 'a\\000b'", format => $format, encoding => $encoding, chunk => 1);
			ends($command, 'exited|0|', "$format, $encoding: a program writes");
			is(
				$node->owner("SELECT encode(string_agg(data, '' ORDER BY seq), 'hex') FROM leasehold.command_output
					WHERE command_id = '$command'"),
				unpack('H*', $text . "a\0b"), "$format, $encoding: each byte, NUL included");
			is(
				$node->owner("SELECT bool_or(leasehold_internal.output_text(data) LIKE U&'%\\FFFD%' AND data::text NOT LIKE '%00%')
					FROM leasehold.command_output WHERE command_id = '$command'"),
				'f', "$format, $encoding: no character is cut");
		}
	}
	my $command = script(q(printf '\377\376'), format => 'lines', encoding => 'base64');
	ends($command, 'exited|0|', 'what is no text');
	is($node->owner("SELECT data FROM leasehold.command_output WHERE command_id = '$command'"), '\xfffe', 'comes as it is');
};

subtest 'an answer that holds what came before' => sub {
	for my $format ('lines', 'events')
	{
		my $command = script('echo one; echo two >&2; echo three', format => $format, streamed => JSON::PP::false, chunk => 3);
		ends($command, 'exited|0|', "$format: all of it");
		is(output($command) . output($command, 'stderr'), "one\nthree\ntwo\n", "$format: it is there once");
		$command = script('echo one; echo two; echo three', format => $format, streamed => JSON::PP::false, chunk => 5, live => 1);
		ends($command, 'exited|0|', "$format: more than came before");
		is(output($command), "one\ntwo\nthree\n", "$format: the rest is taken from it");
		$command = script('echo one; echo two', format => $format, chunk => 4, live => 1);
		ends($command, 'exited|0|', "$format: nothing, since all is said to have come");
		is(output($command), "one\n", "$format: what came is there");
	}
};

subtest 'what is no output' => sub {
	for my $format ('lines', 'events')
	{
		for my $fault ('garbage_line', 'foreign_chunk', 'malformed_chunk', 'after_answer')
		{
			my $command = script('echo mine', format => $format, fault => $fault);
			ends($command, 'exited|0|', "$format, $fault: the command ends as if nothing were");
			writes($command, "mine\n", "$format, $fault: its output is its own");
		}
	}
	is($node->owner(q(SELECT count(*) FROM leasehold.command_output WHERE position('somebody else'::bytea IN data) > 0)), 0,
		'nothing of another company, or another channel');
};

# What is known when the answer does not tell.  Executed: how often.

subtest 'answers that are none' => sub {
	my %is = (
		# not begun, and never will be
		'status:400' => [ 'failed||', 'provider_refused', 0 ],
		'status:404' => [ 'failed||', 'provider_refused', 0 ],
		'redirect' => [ 'failed||', 'provider_refused', 0 ],
		'rpc_error:-32602' => [ 'failed||', 'provider_refused', 0 ],
		'rpc_error:-32001' => [ 'failed||', 'provider_refused', 0 ],
		'rpc_error:-32601' => [ 'failed||', 'method_not_implemented', 0 ],
		'rpc_error:-32004' => [ 'failed||', 'method_not_implemented', 0 ],
		# it cannot be told
		'cut' => [ 'unknown||', 'provider_unreachable', 0 ],
		'lose_answer' => [ 'unknown||', 'provider_unreachable', 1 ],
		'cut_mid' => [ 'unknown||', 'provider_unreachable', 1 ],
		'status:500' => [ 'unknown||', 'provider_error', 0 ],
		'act_status:504' => [ 'unknown||', 'provider_error', 1 ],
		'status:503' => [ 'unknown||', 'provider_error', 0 ],
		'act_rpc_error:-32002' => [ 'unknown||', 'provider_error', 1 ],
		'act_rpc_error:-32000' => [ 'unknown||', 'provider_unavailable', 1 ],
		'rpc_error:-32003' => [ 'unknown||', 'provider_timeout', 0 ],
		'rpc_error:-32603' => [ 'unknown||', 'provider_unavailable', 0 ],
		# there is an answer: so it was begun
		(map { $_ => [ 'lost||', 'malformed_answer', 1 ] }
			'malformed', 'malformed:array', 'malformed:null', 'wrong_id', 'no_id', 'both', 'deep', 'dup_keys', 'bad_utf8',
			'act_garbage', 'act_html'),
		# only late, or odd
		'delay:300' => [ 'exited|3|', '', 1 ],
		'slow_act:300' => [ 'exited|3|', '', 1 ],
		'chunked' => [ 'exited|3|', '', 1 ],
		'nul' => [ 'exited|3|', '', 1 ],
		# larger than other answers may be
		'huge:1' => [ 'exited|3|', '', 1 ],
		# not begun, so far
		(map { $_ => [ 'exited|3|', '', 1 ] } 'status:429', 'status:429:0', 'status:503:0', 'status:401', 'status:403'),
	);
	my %commands = map { $_ => start(q(argv => ARRAY['sh', '-c', 'cat; exit 3'], stdin => 'input'), fault => [$_]) } sort keys %is;
	for my $fault (sort keys %is)
	{
		my ($state, $code, $executed) = @{ $is{$fault} };
		my $command = $commands{$fault};
		ends($command, $state, "$fault: how it ended");
		is(state($command, 'failure_code'), $code, "$fault: why");
		is(state($command, 'failure_reason IS NULL'), $code eq '' ? 't' : 'f', "$fault: in words, too");
		is(output($command), 'input', "$fault: it had its input") if $state =~ /exited/;
		my @acted = grep { $_->{outcome} && $_->{outcome} ne 'not acted' } requests($command);
		is(@acted, $executed, "$fault: how often it was begun");
		# what may run on is to be ended
		$node->happens("SELECT count(*) = 0 FROM leasehold_internal.calls WHERE subject_id = '$command'", "$fault: nothing is left");
		is(requests($command, 'cancel') > 0 ? 1 : 0, $state =~ /unknown|lost/ ? 1 : 0, "$fault: the plugin is told if it may run on");
	}
	is($provider->counters->{executions_per_key_max}, 1, 'none has run twice');
	# as much larger as output may be kept
	$node->boss(q(SELECT leasehold.set_limit('output_bytes', 300000, company => 'acme')));
	my $command = start(q(argv => ARRAY['true']), fault => 'huge:1');
	ends($command, 'lost||', 'an answer that is too large');
	is(state($command, 'failure_code'), 'malformed_answer', 'is none');
	$node->boss(q(SELECT leasehold.set_limit('output_bytes', NULL, company => 'acme')));
};

# What a plugin cannot be told, it is told again when somebody wants it again.
subtest 'a command that cannot be cancelled at first' => sub {
	my %settings = ('leasehold.cleanup_attempts' => 2, 'leasehold.retry_base' => '20ms');
	$node->owner("ALTER SYSTEM SET $_ = '$settings{$_}'") for sort keys %settings;
	$node->owner('SELECT pg_reload_conf()');
	my $command = script('echo begun; sleep 600', format => 'lines');
	eventually { output($command) eq "begun\n" } 'a command';
	$provider->faults(cancel => 'rpc_error:-32000');
	cancel($command);
	$node->happens("SELECT count(*) = 1 FROM leasehold.audit_events WHERE entity_id = '$command' AND action = 'environment.command_cancel_failed'",
		'the plugin could not be told');
	is(state($command, 'status'), 'running', 'it runs still');
	$provider->faults(cancel => [ 'status:429:0', 'status:429:0', 'status:429:0' ]);
	cancel($command);
	ends($command, 'cancelled||SIGTERM', 'told again, however busy the plugin is, it ends');
	$provider->faults(cancel => undef);
	$node->owner("ALTER SYSTEM RESET $_") for sort keys %settings;
	$node->owner('SELECT pg_reload_conf()');
};

subtest 'streams that end too early' => sub {
	my %code = (
		cut_stream => 'provider_unreachable',
		lose_answer => 'provider_unreachable',
		cut_mid => 'provider_unreachable',
		no_answer => 'malformed_answer',
		wrong_id => 'malformed_answer',
		'huge_line:1' => 'malformed_answer',
		malformed => 'malformed_answer',
		'act_rpc_error:-32002' => 'provider_error',
		'act_rpc_error:-32602' => 'provider_refused',
	);
	for my $format ('lines', 'events')
	{
		for my $fault (sort keys %code)
		{
			my $script = $fault eq 'cut_stream' ? 'echo begun; sleep 600' : 'echo begun';
			my $command = script($script, format => $format, fault => $fault);
			ends($command, 'lost||', "$format, $fault: it had begun, more is not known");
			is(state($command, 'failure_code'), $code{$fault}, "$format, $fault: why");
			is(output($command), $fault eq 'huge_line:1' ? '' : "begun\n", "$format, $fault: what came is kept");
			is(requests($command), 1, "$format, $fault: it is not sent again");
			eventually { requests($command, 'cancel') > 0 } "$format, $fault: the plugin is told to end it";
		}
	}
	eventually { running() == 0 } 'and it did';

	# the limit is for a message, not for all of them
	my $command = script('yes | head -c 1000000', format => 'lines');
	ends($command, 'exited|0|', 'a stream that is larger than an answer may be');
	is(state($command, 'stdout_bytes'), 1000000, 'is read to its end');
};

subtest 'a command that does not end with its lease' => sub {
	my $short = $node->request(q('dev'));
	$node->settles($short, 'active', 'a lease');
	my $command = script('echo begun; sleep 600', lease => $short, format => 'lines', fault => 'hang_stream');
	writes($command, "begun\n", 'a command whose end will not be told');
	$node->alice("SELECT leasehold.release_lease('$short')");
	$node->settles($short, 'released', 'does not keep the resource for ever');
	ends($command, 'lost||', 'it is given up');
	is(state($command, 'failure_code'), 'lease_ended', 'and why');
	eventually { requests($command, 'cancel') == 1 } 'the plugin was told to end it';
	# that it would have been given up without that, too, is past: see the next test, which takes longer
};

subtest 'cancelled, with the help of the plugin' => sub {
	# the plugin says that it ends it, but it does not
	$provider->faults(cancel => 'pretend', times => 1);
	my $stubborn = script('echo begun; sleep 600', format => 'lines');
	writes($stubborn, "begun\n", 'a command runs');
	is(cancel($stubborn), 'running', 'it is to be cancelled');
	eventually { requests($stubborn, 'cancel') == 1 } 'the plugin is told';
	my $begun = time;

	for my $format ('whole', 'lines', 'events')
	{
		my $command = script("echo begun; touch ready-$format; sleep 600", format => $format);
		ends(script(await_file("ready-$format")), 'exited|0|', "$format: a command runs");
		cancel($command);
		ends($command, 'cancelled||SIGTERM', "$format: it is cancelled");
		is(output($command), "begun\n", "$format: what it wrote is kept");
		is(requests($command, 'cancel'), 1, "$format: the plugin was told once");
		my ($request) = requests($command, 'cancel');
		my ($company) = $request->{params}{companyId};
		delete $request->{params}{leasehold}{installationId};
		is_deeply(
			$request->{params}{leasehold},
			{ leaseId => $lease, generation => 1, commandId => $command, idempotencyKey => "$company:$command:cancel" },
			"$format: of which command");
	}
	my $command = script(q(trap 'echo bye; exit 5' TERM; echo begun; while :; do sleep 0.05; done), format => 'lines');
	writes($command, "begun\n", 'one that does something before it ends');
	cancel($command);
	ends($command, 'exited|5|', 'ends as it likes');
	is(output($command), "begun\nbye\n", 'and says its last words');

	$provider->faults(cancel => [ 'status:500', 'status:429:0', 'rpc_error:-32002', 'status:404', 'cut' ]);
	$command = script('echo begun; sleep 600', format => 'lines');
	writes($command, "begun\n", 'the plugin does not listen at first');
	cancel($command);
	ends($command, 'cancelled||SIGTERM', 'it is told again and again');
	is(requests($command, 'cancel'), 6, 'until it does');

	$provider->faults(cancel => 'rpc_error:-32601', times => 1);
	$command = script('echo begun; sleep 600', format => 'lines');
	writes($command, "begun\n", 'the plugin promised too much');
	cancel($command);
	ends($command, 'lost||', 'what it cannot cancel is given up');
	is(state($command, 'failure_code'), 'cancel_not_confirmed', 'and why');

	ends($stubborn, 'cancelled||', 'the one that goes on is given up');
	is(time - $begun >= 9 ? 'late' : 'early', 'late', 'after a while');
	is(output($stubborn), "begun\n", 'its output is kept');
};

subtest 'output that cannot be stored' => sub {
	my $size = 40_000_000;
	my $session = $node->background_psql('postgres');
	$session->query_safe($_) for 'BEGIN', 'LOCK TABLE leasehold.command_output IN SHARE MODE';
	my $command = script("yes | head -c $size", format => 'lines');
	my $streamed = sub { my ($request) = requests($command); return $request ? $request->{streamed} : 0; };
	eventually { $streamed->() > 1_000_000 } 'a command writes much';
	my $before = -1;
	eventually { my $now = $streamed->(); sleep 0.5; ($before, $now) = ($now, $before); $before == $now } 'it is read no more';
	cmp_ok($before, '<', $size / 2, 'before too much has come');
	$session->query_safe('ROLLBACK');
	$session->quit;
	ends($command, 'exited|0|', 'when it can be stored again, it goes on');
	is($node->owner("SELECT sum(length(data)), sum(length(replace(convert_from(data, 'UTF8'), E'y\\n', ''))) FROM leasehold.command_output
		WHERE command_id = '$command'"), "$size|0", 'all of it is there');
};

subtest 'connections' => sub {
	my $command = script('touch listening; sleep 600');
	ends(script(await_file('listening')), 'exited|0|', 'a command runs');
	# of a connection to the provider, the timer for probes is set (02), to a minute
	my $peer = sprintf '0100007F:%04X', $provider->{port};
	my @timers = map { /^\s*\d+: \S+ $peer 01 \S+ 02:([0-9A-F]+)/ ? hex($1) / 100 : () } split /\n/, slurp_file('/proc/net/tcp');
	ok(@timers > 0 && !(grep { $_ > 60 } @timers), 'a host that is gone would be noticed');
	cancel($command);
	ends($command, 'cancelled||SIGTERM', 'ended');

	my $before = $provider->counters->{connections_total};
	ends(start(q(argv => ARRAY['true'])), 'exited|0|', 'a command') for 1 .. 3;
	# one is this test's
	is($provider->counters->{connections_total} - $before, 3 + 1, 'each has a connection of its own');
};

subtest 'time limits' => sub {
	$node->environment('limited', 'box', { timeoutMs => 120000 });
	my $limited = $node->request(q('limited'));
	$node->settles($limited, 'active', 'a lease with a time limit for commands');
	for my $case (
		[ $lease, '', undef, 'none' ],
		[ $lease, ", timeout => '60 seconds'", 60000, 'the command\'s' ],
		[ $limited, '', 120000, 'the environment\'s' ],
		[ $limited, ", timeout => '1800 seconds'", 1800000, 'the command\'s before the environment\'s' ])
	{
		my ($in, $timeout, $expected, $name) = @$case;
		my $command = start("argv => ARRAY['true']$timeout", lease => $in);
		ends($command, 'exited|0|', "$name: a command");
		my ($request) = requests($command);
		is($request->{params}{timeoutMs}, $expected, "$name: what the plugin is told");
	}
	is($node->owner(q(SELECT bool_and(rpc_ms = work_ms + 30000 AND work_ms = ms) FROM unnest(ARRAY[1, 60000, 86400000]) AS ms
		CROSS JOIN LATERAL leasehold_internal.call_timeouts('execute', jsonb_build_object('timeoutMs', ms), 30000))),
		't', 'its answer is waited for a little longer');

	ends($slow{unlimited}, 'exited|0|', 'without one, a command may take longer than any call');
	for my $name ('partial', 'noise of lines', 'noise of events')
	{
		ends($slow{$name}, 'timed_out||', "$name: the plugin should have ended it, and says nothing");
		is(output($slow{$name}), "partial\n", "$name: what it wrote is kept");
	}
	# a hundred messages, of three bytes, then a pause: and what fits into the buffers of a connection
	cmp_ok((requests($slow{'noise of lines'}, 'execute', $slow_provider))[0]{streamed}, '<', 20_000_000, 'noise is read slowly');
	ends($slow{silent}, 'unknown||', 'if there is nothing, it is not known whether it began');
	is(state($slow{silent}, 'failure_code'), 'provider_timeout', 'and why');
	eventually { requests($slow{$_}, 'cancel', $slow_provider) == 1 } "the plugin is told to end it: $_"
	  for 'partial', 'silent', 'noise of lines', 'noise of events';
	is(requests($slow{unlimited}, 'cancel', $slow_provider), 0, 'unless it has');
	$slow_provider->obeyed;
};

subtest 'a plugin that is not there' => sub {
	my $port = $provider->{port};
	$provider->stop;
	my $command = start(q(argv => ARRAY['cat'], stdin => 'input', env => '{"A": "1"}'));
	$node->happens("SELECT attempts >= 3 FROM leasehold_internal.calls WHERE subject_id = '$command'", 'it is tried again and again');
	is(state($command, 'outcome IS NULL'), 't', 'since it cannot have begun');
	$provider->run;
	ends($command, 'exited|0|', 'then it runs');
	is(output($command), 'input', 'with its input');
	my ($request) = requests($command);
	is_deeply($request->{params}{env}, { A => '1' }, 'and its environment');
	is(requests($command), 1, 'once');
};

subtest 'cancelled before it was sent' => sub {
	my $silent = IO::Socket::INET->new(Listen => 5, LocalAddr => '127.0.0.1') or die "no socket: $!";
	my $url = 'https://127.0.0.1:' . $silent->sockport . '/rpc';
	my $turn = sub {
		my ($to) = @_;
		$provider->put_token($node, $provider->{token}, url => $to);
		$node->owner("UPDATE leasehold.plugins SET transport = transport || '{\"url\": \"$to\"}' WHERE key = 'box'");
	};
	$turn->($url);
	my $command = start(q(argv => ARRAY['cat'], stdin => 'input'));
	$node->happens("SELECT state = 'started' FROM leasehold_internal.calls WHERE subject_id = '$command'", 'a connection is not there yet');
	cancel($command);
	within(5, 'it is over at once', sub { ends($command, 'cancelled||', 'cancelled') });
	$turn->($provider->url);
	is(requests($command), 0, 'the plugin never heard of it');
	$silent->close;
};

subtest 'a worker that ends' => sub {
	my $command = script('echo begun; sleep 600', format => 'lines');
	my $silent = script('touch begun; sleep 600');
	writes($command, "begun\n", 'a command runs');
	ends(script(await_file('begun')), 'exited|0|', 'and another');
	$node->restart;
	$node->serving;
	ends($command, 'lost||', 'the new worker does not know how one ended');
	is(output($command) . state($command, 'failure_code'), "begun\nworker_ended", 'its output is kept');
	ends($silent, 'unknown||', 'nor whether the other began');
	eventually { requests($_, 'cancel') > 0 } 'the plugin is told to end it' for $command, $silent;

	$command = script('echo begun; sleep 600', format => 'events');
	writes($command, "begun\n", 'another runs');
	my ($worker) = $node->workers;
	$node->loses($worker);
	$node->comes_back('a worker is killed');
	ends($command, 'lost||', 'the same');
	is(output($command) . state($command, 'failure_code'), "begun\nworker_ended", 'what was stored is kept');
	eventually { requests($command, 'cancel') > 0 } 'the plugin is told to end it';
	is(requests($command), 1, 'it is not sent again');
};

subtest 'a plugin without the optional methods' => sub {
	my $plain = Leasehold::Provider->start($node, name => 'plain', variant => 'plain')->register($node);
	$node->environment('plain', 'plain', {});
	my $in = $node->request(q('plain'));
	$node->settles($in, 'active', 'a lease');
	ends(start(q(argv => ARRAY['true']), lease => $in), 'exited|0|', 'it runs commands');
	my $command = script('echo begun; sleep 600', lease => $in, format => 'lines');
	my $silent = script('touch begun; sleep 600', lease => $in);
	writes($command, "begun\n", 'one runs');
	ends(script(await_file('begun'), lease => $in), 'exited|0|', 'and another');
	cancel($_) for $command, $silent;
	ends($command, 'lost||', 'when it is cancelled nobody knows what becomes of it');
	ends($silent, 'unknown||', 'nor of the other');
	for my $id ($command, $silent)
	{
		is(state($id, 'failure_code'), 'cancel_not_confirmed', 'why');
		like(state($id, 'failure_reason'), qr/cannot tell whether it has ended/, 'in words');
		$node->happens("SELECT count(*) = 0 FROM leasehold_internal.calls WHERE subject_id = '$id'", 'nothing is left to do');
	}
	is(output($command), "begun\n", 'what came is kept');
	eventually { $plain->counters->{in_flight} == 0 } 'the connections are closed';

	$command = script('echo begun; sleep 600', lease => $in, format => 'lines');
	writes($command, "begun\n", 'another');
	$node->restart;
	$node->serving;
	ends($command, 'lost||', 'its worker has ended');
	$node->happens("SELECT count(*) = 1 FROM leasehold.audit_events WHERE entity_id = '$command'
		AND action = 'environment.command_cancel_failed'", 'that it may run on is on record');
	$node->alice("SELECT leasehold.release_lease('$in')");
	$node->settles($in, 'released', 'with the lease');
	eventually { $plain->counters->{running} == 0 } 'all end';
	is($plain->counters->{executions_per_key_max}, 1, 'none has run twice');
	$plain->obeyed;
};

subtest 'the end of a lease' => sub {
	my $short = $node->request(q('dev'));
	$node->settles($short, 'active', 'a lease');
	my $command = script('echo begun; sleep 600', lease => $short, format => 'lines');
	writes($command, "begun\n", 'a command runs in it');
	$node->alice("SELECT leasehold.release_lease('$short')");
	ends($command, 'cancelled||SIGTERM', 'it is cancelled');
	$node->settles($short, 'released', 'then the resource is removed');
	my ($released) = $provider->requests(method => 'release', leaseId => $short);
	my ($cancelled) = requests($command, 'cancel');
	cmp_ok($cancelled->{time}, '<', $released->{time}, 'in that order');

	is($provider->counters->{executions_per_key_max}, 1, 'no command has ever run twice');
	$node->alice(q(SELECT count(leasehold.release_lease(id)) FROM leasehold.leases WHERE status = 'active'));
	$node->happens(q(SELECT bool_and(status = 'released') FROM leasehold.leases), 'all leases end');
	eventually { running() == 0 } 'nothing runs any more';
};

$provider->obeyed;
done_testing();
