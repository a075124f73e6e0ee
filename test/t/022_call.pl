# CALLs that wait for a command, by a person at a terminal: output while it comes,
# and however the CALL ends, nothing goes on behind its back.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;

use Leasehold::Node;
use Leasehold::Terminal;

my $node = Leasehold::Node->new('main')->setup(configuration => "log_min_messages = debug1\n");
$node->environment('dev', 'fake', {});
$node->environment('full', 'fake', {});

# newest(table, column…): these columns of the lease or command that came last.
sub newest
{
	my ($table, @columns) = @_;
	return $node->owner("SELECT " . join(', ', @columns) . " FROM leasehold.$table ORDER BY requested_at DESC LIMIT 1");
}

sub attached { return $node->owner(q(SELECT count(*) FROM leasehold_internal.attached_calls())); }

# ends_with_session(name, code): after what the code does the newest command is
# cancelled and its lease ended; both since the session is gone.
sub ends_with_session
{
	my ($name, $code) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	subtest $name => sub {
		my ($command, $lease) = split /\|/, newest('commands', 'id', 'lease_id');
		is(attached(), 1, 'one session is attached');
		$code->();
		# much sooner than the lease would have ended by itself
		within(15, 'it takes effect soon', sub {
			$node->happens(qq(SELECT outcome = 'cancelled' FROM leasehold.commands WHERE id = '$command'), 'the command is cancelled');
			$node->settles($lease, 'expired', 'the lease ends');
		});
		is($node->owner("SELECT cancel_reason FROM leasehold.commands WHERE id = '$command'"),
			'the session that waited for it ended', 'the command says why');
		is($node->lease($lease, 'failure_reason'), 'session_ended', 'the lease, too');
		is(attached(), 0, 'nothing stays attached');
	};
	return;
}

my $terminal = Leasehold::Terminal->start($node, 'alice');

subtest 'a command that ends by itself' => sub {
	$terminal->type(q[CALL leasehold.run('acme', 'dev', 'echo first; sleep 1; err second; exit 7');]);
	$terminal->sees(qr/^INFO:  first\r?$/m, 'output appears');
	is(newest('commands', 'status'), 'running', 'while the command runs');
	$terminal->sees(qr/^INFO:  stderr: second\r?$/m, 'and what comes later');
	$terminal->sees(qr/^ +7 \| [0-9a-f-]{36} \| exited\r?$/m, 'and then how it ended');
	$node->settles(newest('leases', 'id'), 'released', 'its lease is released');
	is(attached(), 0, 'nothing stays attached');
};

subtest 'Ctrl-C' => sub {
	$terminal->type(q[CALL leasehold.run('acme', 'dev', 'echo begun; hang');]);
	$terminal->sees(qr/^INFO:  begun\r?$/m, 'output appears');
	ends_with_session('while the command runs', sub {
		$terminal->type("\cC");
		$terminal->sees(qr/ERROR:  canceling statement due to user request/, 'psql says so');
	});
	$terminal->type(q[CALL leasehold.run('acme', 'dev', 'echo still here');]);
	$terminal->sees(qr/exited/, 'the next CALL of the session is as good as the first');
};

subtest 'an error' => sub {
	$terminal->type(q[SET statement_timeout = '500ms'; CALL leasehold.run('acme', 'dev', 'echo begun; hang'); RESET statement_timeout;]);
	ends_with_session('a timeout', sub { $terminal->sees(qr/ERROR:  canceling statement due to statement timeout/, 'psql says so') })
	  if $terminal->sees(qr/INFO:  begun/, 'output appears');
};

subtest 'only what belongs to the CALL ends with it' => sub {
	$terminal->type(q[CALL leasehold.run('acme', 'dev', 'echo begun; hang', keep => true);]);
	$terminal->sees(qr/INFO:  begun/, 'in a lease that is to be kept');
	my ($command, $lease) = split /\|/, newest('commands', 'id', 'lease_id');
	$terminal->type("\cC");
	$terminal->sees(qr/ERROR:  canceling/, 'cancelled');
	$node->happens(qq(SELECT outcome = 'cancelled' FROM leasehold.commands WHERE id = '$command'), 'the command is cancelled');
	is($node->lease($lease), 'active', 'the lease is kept');

	$terminal->type(qq[CALL leasehold.execute('$lease', 'echo again; hang');]);
	$terminal->sees(qr/INFO:  again/, 'in a lease that was there before');
	$command = newest('commands', 'id');
	$terminal->type("\cC");
	$terminal->sees(qr/ERROR:  canceling/, 'cancelled');
	$node->happens(qq(SELECT outcome = 'cancelled' FROM leasehold.commands WHERE id = '$command'), 'the command is cancelled');
	is($node->lease($lease), 'active', 'the lease stays');
	is(attached(), 0, 'nothing stays attached');
	$node->alice("SELECT leasehold.release_lease('$lease')");
};

subtest 'waiting for a place' => sub {
	$node->boss(q(SELECT leasehold.set_limit('active_leases', 1, company => 'acme', environment => 'full')));
	my $first = $node->request(q('full'));
	$node->settles($first, 'active', 'the only place is taken');
	$terminal->type(q[CALL leasehold.acquire_lease('full');]);
	$terminal->sees(qr/^INFO:  leasehold: the lease is acquiring, waiting for: active_leases\r?$/m, 'one is told what is waited for');
	my $second = newest('leases', 'id');
	$terminal->type("\cC");
	$terminal->sees(qr/ERROR:  canceling/, 'cancelled');
	$node->settles($second, 'expired', 'the request ends');

	$terminal->type(q[CALL leasehold.run('acme', 'full', 'echo at last');]);
	$node->happens(q(SELECT waiting_for = 'active_leases' FROM leasehold.leases ORDER BY requested_at DESC LIMIT 1), 'another waits');
	$node->alice("SELECT leasehold.release_lease('$first')");
	$terminal->sees(qr/INFO:  at last.* exited/s, 'it runs when the place is free');
	is(attached(), 0, 'nothing stays attached');
};

$terminal->type(q[CALL leasehold.run('acme', 'dev', 'echo begun; hang');]);
$terminal->sees(qr/INFO:  begun/, 'another command');
ends_with_session('pg_terminate_backend', sub {
	$node->owner('SELECT pg_terminate_backend(pid) FROM leasehold_internal.attached_calls()');
	$terminal->sees(qr/FATAL:  terminating connection due to administrator command/, 'psql says so');
});
$terminal->quit;

$terminal = Leasehold::Terminal->start($node, 'alice');
$terminal->type(q[CALL leasehold.run('acme', 'dev', 'echo begun; hang');]);
$terminal->sees(qr/INFO:  begun/, 'a command that is silent from here on');
ends_with_session('the client is killed', sub { $terminal->kill });

subtest 'a client that does not read' => sub {
	my $psql = Leasehold::Terminal->start($node, 'alice');
	$psql->type(q[CALL leasehold.run('acme', 'dev', 'flood 3000000; hang');]);
	$node->happens(q(SELECT count(*) = 1 FROM leasehold_internal.attached_calls()), 'a CALL');
	kill 'STOP', $psql->pid;
	my $backend = q(pg_stat_activity WHERE pid = (SELECT pid FROM leasehold_internal.attached_calls()));
	$node->happens("SELECT wait_event = 'ClientWrite' FROM $backend", 'the session waits for its client');
	my $begun = $node->owner("SELECT xact_start FROM $backend");
	$node->happens("SELECT xact_start <> '$begun' FROM $backend", 'but not in one transaction');
	ends_with_session('terminated nevertheless', sub {
		my $pid = $node->owner('SELECT pid FROM leasehold_internal.attached_calls()');
		$node->owner("SELECT pg_terminate_backend($pid)");
		$node->happens("SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid", 'the session ends');
	});
	$psql->kill;
};

# A lease that went to another holder while the CALL was not looking is his.
subtest 'a lease of another by now' => sub {
	$node->environment('shared', 'fake', { reuseLease => \1 });
	my ($agent, $workspace) = map { $node->owner('SELECT leasehold.new_id()') } 1 .. 2;
	$node->alice("SELECT leasehold.upsert_agent('$agent', adapter_type => 'x'), leasehold.upsert_execution_workspace('$workspace')");
	for my $how ('goes on', 'is terminated')
	{
		my ($first, $second) = map { $node->owner('SELECT leasehold.new_id()') } 1 .. 2;
		$node->alice("SELECT leasehold.start_run('$agent', execution_workspace_id => '$workspace', run_id => '$first')");
		my $psql = Leasehold::Terminal->start($node, 'alice');
		$psql->type("CALL leasehold.run('acme', 'shared', 'echo begun; hang', run_id => '$first');");
		$psql->sees(qr/INFO:  begun/, 'a command of a run');
		my $lease = newest('commands', 'lease_id');
		my $pid = $node->owner('SELECT pid FROM leasehold_internal.attached_calls()');
		kill 'STOP', $pid;
		$node->alice("SELECT leasehold.finish_run('$first')");
		$node->settles($lease, 'retained', 'the run ends, and the lease is parked');
		$node->alice("SELECT leasehold.start_run('$agent', execution_workspace_id => '$workspace', run_id => '$second')");
		is($node->request(qq('shared', run_id => '$second')), $lease, 'the next run takes it');
		$node->settles($lease, 'active', 'it has it');
		$node->owner("SELECT pg_terminate_backend($pid)") if $how eq 'is terminated';
		kill 'CONT', $pid;
		$node->happens('SELECT count(*) = 0 FROM leasehold_internal.attached_calls()', "the CALL $how and is over");
		is($node->owner("SELECT status, run_id FROM leasehold.leases WHERE id = '$lease'"), "active|$second", 'the lease is the next run\'s');
		$node->alice("SELECT leasehold.finish_run('$second')");
		$node->settles($lease, 'retained', 'until that ends');
		$psql->quit if $how eq 'goes on';
		$node->alice("SELECT leasehold.destroy_lease('$lease')") if $how eq 'is terminated';
	}
};

subtest 'a lease that somebody has locked' => sub {
	$terminal = Leasehold::Terminal->start($node, 'alice');
	$terminal->type(q[CALL leasehold.run('acme', 'dev', 'echo begun; hang');]);
	$terminal->sees(qr/INFO:  begun/, 'a command');
	my ($command, $lease) = split /\|/, newest('commands', 'id', 'lease_id');
	my $locker = $node->background_psql('postgres');
	$locker->query_safe("BEGIN");
	$locker->query_safe("SELECT FROM leasehold.leases WHERE id = '$lease' FOR UPDATE");
	$terminal->type("\cC");
	$terminal->sees(qr/ERROR:  canceling/, 'cancelled');
	$terminal->type(q[CALL leasehold.run('acme', 'dev', 'echo meanwhile');]);
	$terminal->sees(qr/INFO:  meanwhile.*exited/s, 'the worker does other work meanwhile');
	is($node->owner(q(SELECT state FROM leasehold_internal.attached_calls())), 'left', 'it has not forgotten');
	$locker->query_safe('COMMIT');
	$locker->quit;
	$node->settles($lease, 'expired', 'the lease ends when the lock is gone');
	is(attached(), 0, 'nothing stays attached');
	is($node->owner('SELECT failed_batches FROM leasehold_internal.worker_states()'), 0, 'no round has failed');
};

# What a company leaves behind and keeps locked is its own trouble: others find
# places, and what they leave is seen to.
subtest 'many that are left' => sub {
	my $lease = $node->request(q('dev'));
	$node->settles($lease, 'active', 'a lease');
	my $locker = $node->background_psql('postgres');
	$locker->query_safe("BEGIN");
	$locker->query_safe("SELECT FROM leasehold.leases WHERE id = '$lease' FOR UPDATE");
	my (undef, undef, $said) = $node->psql('postgres', "DO \$\$ BEGIN PERFORM leasehold.attach_call(lease_id => '$lease'); END \$\$;\n" x 130,
		extra_params => [ '-U', 'alice' ]);
	like($said, qr/ERROR:  what 125 earlier CALLs of this company left behind has not been ended yet/, 'no more than a quarter of all places');
	$node->boss(q(SELECT leasehold.create_company('other'); SELECT leasehold.grant_company('other', 'alice', 'manager');));
	$node->alice(q(SELECT leasehold.create_environment('dev', 'fake', company => 'other')));
	$node->alice(q(CALL leasehold.run('other', 'dev', 'echo yes', fail_on_error => true)));
	pass('others work');
	$terminal->type(q[CALL leasehold.run('other', 'dev', 'echo begun; hang');]);
	$terminal->sees(qr/INFO:  begun/, 'and are cut off');
	my $theirs = newest('leases', 'id');
	$terminal->type("\cC");
	$node->settles($theirs, 'expired', 'with the usual end');
	$locker->query_safe('COMMIT');
	$locker->quit;
	$node->settles($lease, 'expired', 'so has this one when the lock is gone');
	$node->happens('SELECT count(*) = 0 FROM leasehold_internal.attached_calls()', 'nothing stays attached');
};

subtest 'left while no worker was there' => sub {
	$terminal->type(q[CALL leasehold.run('acme', 'dev', 'echo begun; hang');]);
	$terminal->sees(qr/INFO:  begun/, 'a command');
	my $lease = newest('leases', 'id');
	my ($worker) = $node->workers;
	# it is asked to end while it cannot do anything
	kill 'STOP', $worker;
	$terminal->type("\cC");
	$terminal->sees(qr/ERROR:  canceling/, 'cancelled');
	is($node->owner(q(SELECT state FROM leasehold_internal.attached_calls())), 'left', 'it is left to whom it may concern');
	kill 'TERM', $worker;
	kill 'CONT', $worker;
	$node->settles($lease, 'expired', 'the next worker ends the lease');
	is($node->lease($lease, 'failure_reason'), 'session_ended', 'for this reason');
	isnt(($node->workers)[0], $worker, 'it is another one');
	is(attached(), 0, 'nothing stays attached');
};

subtest 'paused meanwhile' => sub {
	$terminal->type(q[CALL leasehold.run('acme', 'dev', 'echo begun; sleep 2; echo ended');]);
	$terminal->sees(qr/INFO:  begun/, 'a command');
	$node->boss(q(SELECT leasehold.pause_worker('for a while')));
	$terminal->sees(qr/INFO:  ended.* exited/s, 'what runs is seen to its end');
	$terminal->type(q[CALL leasehold.run('acme', 'dev', 'echo no');]);
	$terminal->sees(qr/ERROR:  nothing would be done at the provider now: paused: for a while/, 'nothing new begins');
	$node->boss('SELECT leasehold.resume_worker()');
	is(attached(), 0, 'nothing stays attached');
};
$terminal->quit;

subtest 'the server crashes' => sub {
	$node->append_conf('postgresql.conf', 'leasehold.max_concurrent_commands = 1');
	$node->reload;
	my $first = $node->background_psql('postgres', extra_params => [ '-U', 'alice' ], on_error_stop => 0);
	$first->query_until(qr/^$/m, q[CALL leasehold.run('acme', 'dev', 'echo lost; hang');] . "\n");
	$node->happens(q(SELECT count(*) > 0 FROM leasehold.command_output WHERE data = E'lost\\n'), 'one command runs');
	my $second = $node->background_psql('postgres', extra_params => [ '-U', 'alice' ], on_error_stop => 0);
	$second->query_until(qr/^$/m, q[CALL leasehold.run('acme', 'dev', 'echo never');] . "\n");
	$node->happens(q(SELECT count(*) = 1 FROM leasehold.commands WHERE status = 'queued'), 'another waits for its turn');
	my ($command, $lease) = split /\|/, newest('commands', 'id', 'lease_id');
	my $victim = $node->owner(q(SELECT min(pid) FROM leasehold_internal.attached_calls()));
	$node->loses($victim);
	$node->comes_back('the server is back');
	$node->happens("SELECT status = 'finished' FROM leasehold.commands WHERE id = '$command'", 'its command is over');
	is($node->owner("SELECT outcome, started_at IS NULL FROM leasehold.commands WHERE id = '$command'"), 'cancelled|t',
		'and was not begun, as nobody waits');
	is($node->owner(q(SELECT outcome FROM leasehold.commands WHERE shell = 'echo lost; hang')), 'lost', 'the other was lost with its worker');
	$node->settles($lease, 'expired', 'the lease is not renewed any more');
	eval { $_->quit } for $first, $second;
	$node->append_conf('postgresql.conf', 'leasehold.max_concurrent_commands = 200');
	$node->reload;
};

# pgbench(script, options…): its outcome and what it says.
sub pgbench
{
	my ($script, @options) = @_;
	my $file = PostgreSQL::Test::Utils::tempdir() . '/script';
	PostgreSQL::Test::Utils::append_to_file($file, $script);
	my @command = ($node->installed_command('pgbench'), '-n', '-f', $file, @options, '-U', 'alice',
		'-h', $node->host, '-p', $node->port, 'postgres');
	my $said;
	my $good = IPC::Run::run(\@command, '>&', \$said);
	return ($good, $said);
}

sub all_over
{
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$node->happens(q(SELECT count(*) = 0 FROM leasehold.leases WHERE leasehold_internal.may_have_resource(status)), 'all leases end');
	is($node->owner(q(SELECT count(*) FROM leasehold.commands WHERE status <> 'finished')), 0, 'and all commands');
	is(attached(), 0, 'nothing stays attached');
	return;
}

subtest 'fifty at once' => sub {
	my ($good, $said) = pgbench(
		q[CALL leasehold.run('acme', 'dev', 'echo one; sleep 0.5; echo two', fail_on_error => true);], '-c', 50, '-t', 2);
	ok($good, 'all see the end of theirs') or diag($said);
	my $count = () = $said =~ /INFO:  two/g;
	is($count, 100, 'and its output');
	is($node->owner(q(SELECT count(*) FROM leasehold.leases WHERE status = 'expired' AND failure_reason = 'session_ended'
		AND requested_at > now() - interval '1 minute' AND id IN (SELECT lease_id FROM leasehold.commands WHERE shell LIKE '%two'))), 0,
		'none was ended by somebody else');
	all_over();
};

subtest 'cut off anywhere' => sub {
	my ($good, $said) = pgbench(
		"\\set t random(1, 300)\nSET statement_timeout = :t;\nCALL leasehold.run('acme', 'dev', 'echo one; hang');\n", '-c', 50, '-t', 1);
	my $count = () = $said =~ /canceling statement due to statement timeout/g;
	is($count, 50, 'all are cut off') or diag($said);
	all_over();
};

subtest 'in a pipeline' => sub {
	my $before = $node->owner('SELECT count(*) FROM leasehold.leases');
	my (undef, $said) = pgbench(
		"\\startpipeline\nSELECT 1;\nCALL leasehold.run('acme', 'dev', 'echo no');\n\\endpipeline\n", '-M', 'extended', '-t', 1);
	like($said, qr/a procedure that waits cannot be called in a transaction block/, 'refused');
	is($node->owner('SELECT count(*) FROM leasehold.leases'), $before, 'before anything was written');
};

# The words are hidden in the statements, since those may be in the log.
subtest 'the server log' => sub {
	my $words = unpack 'H*', "confidential words\n";
	my ($good, $said) = pgbench("CALL leasehold.run('acme', 'dev', 'bytes $words');\n", '-t', 1);
	like($said, qr/INFO:  confidential words/, 'output is shown');
	my $log = slurp_file($node->logfile);
	like($log, qr/DEBUG:  /, 'at this level much is logged');
	unlike($log, qr/INFO:  |confidential words/, 'but no output');
};

subtest 'too many' => sub {
	$node->append_conf('postgresql.conf', "leasehold.max_attached_calls = 1\nleasehold.workers = 3\n");
	$node->restart;
	$node->serving;
	$terminal = Leasehold::Terminal->start($node, 'alice');
	$terminal->type(q[CALL leasehold.run('acme', 'dev', 'echo begun; hang');]);
	$terminal->sees(qr/INFO:  begun/, 'one');
	my $leases = $node->owner('SELECT count(*) FROM leasehold.leases');
	$node->refuses('alice', q[CALL leasehold.run('acme', 'dev', 'echo no')], 'PT429', qr/leasehold\.max_attached_calls \(now 1\)/, 'another is refused');
	is($node->owner('SELECT count(*) FROM leasehold.leases'), $leases, 'before anything was written');
	$terminal->type("\cC");
	$terminal->sees(qr/ERROR:  canceling/, 'the one is cancelled');
	$node->happens('SELECT count(*) = 0 FROM leasehold_internal.attached_calls()', 'its place is free again');
	$node->alice(q[CALL leasehold.run('acme', 'dev', 'echo yes', fail_on_error => true)]);
};

# With several workers each sees to what is left of its companies.
subtest 'several workers' => sub {
	for my $company (map { "company-$_" } 1 .. 8)
	{
		$node->boss("SELECT leasehold.create_company('$company'); SELECT leasehold.grant_company('$company', 'alice', 'manager');");
		$node->alice("SELECT leasehold.create_environment('dev', 'fake', company => '$company')");
		$terminal->type("CALL leasehold.run('$company', 'dev', 'echo begun; hang');");
		$terminal->sees(qr/INFO:  begun/, "in $company");
		my $lease = newest('leases', 'id');
		$terminal->type("\cC");
		$terminal->sees(qr/ERROR:  canceling/, 'cancelled');
		$node->settles($lease, 'expired', 'the lease ends');
		is(attached(), 0, 'nothing stays attached');
	}
};
$terminal->quit;

done_testing();
