# Commands when the worker or the server ends: nobody sees their end, so they are
# lost, with what they have written; none runs twice, and those that wait go on.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use PostgreSQL::Test::Utils;
use Test::More;

use Leasehold::Node;

my $node = Leasehold::Node->new('main')->setup(
	configuration => q(
leasehold.crash_limit = 100
leasehold.max_output = 2kB
));
$node->environment('dev', 'fake');
my $lease = $node->request(q('dev'));
$node->settles($lease, 'active', 'a lease');
$node->boss(q(SELECT leasehold.set_limit('concurrent_commands', 2, company => 'acme')));

# start(script, arguments): a command's id.
sub start
{
	my ($script, $more) = @_;
	return $node->alice("SELECT leasehold.start_command('$lease', shell => " . quote($script) . ($more ? ", $more" : '') . ')');
}

# The outcome of a command that ends, what it wrote, what was counted, and its events.
sub ends
{
	my ($id) = @_;
	$node->poll("SELECT status = 'finished' FROM leasehold.commands WHERE id = '$id'");
	return $node->owner(qq(
		SELECT concat_ws(' ', k.outcome, k.exit_code, k.failure_code, k.stdout_bytes,
			(SELECT string_agg(o.seq || ':' || trim(leasehold_internal.output_text(o.data), E'\\n'), ',' ORDER BY o.seq) FROM leasehold.command_output AS o WHERE o.command_id = k.id),
			(SELECT string_agg(replace(e.action, 'environment.command_', ''), ',' ORDER BY e.occurred_at, e.id) FROM leasehold.audit_events AS e WHERE e.entity_id = k.id::text))
		  FROM leasehold.commands AS k WHERE k.id = '$id'));
}

sub writes { my ($id, $count) = @_; return $node->happens("SELECT count(*) = $count FROM leasehold.command_output WHERE command_id = '$id'", 'it has written something'); }
sub runs { my ($id) = @_; return $node->happens("SELECT status = 'running' FROM leasehold.commands WHERE id = '$id'", 'it runs'); }

# prepare: one that has written something, one that has not, and one that waits for a place.
sub prepare
{
	my %command = (writes => start('echo begun; hang'), silent => start('hang'));
	writes($command{writes}, 1);
	runs($command{silent});
	$command{waits} = start('cat', q(stdin => 'kept'));
	is($node->owner("SELECT status FROM leasehold.commands WHERE id = '$command{waits}'"), 'queued', 'another waits');
	return %command;
}

# afterwards: that no trace is left, and that the lease can be used.
sub afterwards
{
	$node->happens(q(SELECT count(*) = 0 FROM leasehold_internal.calls WHERE slot IN ('command', 'cancel')),
		'what may run still is told to end');
	is($node->owner('SELECT count(*) FROM leasehold_internal.command_inputs'), 0, 'no input is left');
	is(ends(start('exit 7')), 'exited 7 0 requested,finished', 'the lease can be used as before');
	is($node->lease($lease), 'active', 'it is active');
	return;
}

# The database only knows what was stored.
sub crashed
{
	my (%command) = @_;
	is(ends($command{writes}), 'lost worker_ended 6 1:begun requested,finished', 'what has written something is lost');
	is(ends($command{silent}), 'unknown worker_ended 0 requested,finished', 'of what has not nobody knows whether it ran');
	is(ends($command{waits}), 'exited 0 4 1:kept requested,finished', 'what waited runs, once, with its input');
	afterwards();
	return;
}

subtest 'the worker is killed' => sub {
	my %command = prepare();
	$node->loses($node->workers);
	$node->comes_back('the server restarts, and the worker with it');
	crashed(%command);
};

subtest 'the postmaster is killed' => sub {
	my %command = prepare();
	my ($pid) = $node->workers;
	$node->kill9;
	eventually { !kill 0, $pid } 'the worker ends', 10;
	eventually { $node->start(fail_ok => 1) } 'the server can be started again', 20;
	$node->comes_back('the worker is back');
	crashed(%command);
};

subtest 'the server is stopped immediately' => sub {
	my %command = prepare();
	$node->stop('immediate');
	$node->start;
	$node->comes_back('the worker is back');
	crashed(%command);
};

# Who ends in order knows more, and stores what it has.
sub ended
{
	my (%command) = @_;
	is(ends($command{writes}), 'lost worker_ended 6 1:begun requested,finished', 'what has written something is lost');
	is(ends($command{silent}), 'lost worker_ended 0 requested,finished', 'and so is what is known to have begun');
	is(ends($command{waits}), 'exited 0 4 1:kept requested,finished', 'what waited runs, once, with its input');
	afterwards();
	return;
}

subtest 'the worker is restarted' => sub {
	my %command = prepare();
	my ($pid) = $node->workers;
	$node->owner("SELECT pg_terminate_backend($pid)");
	eventually { my ($new) = $node->workers; $new && $new ne $pid } 'there is another';
	ended(%command);
	is($node->owner('SELECT count(*) FROM leasehold_internal.calls WHERE crashes > 0'), 0, 'no crash was counted');
};

subtest 'the server is restarted' => sub {
	my %command = prepare();
	$node->restart;
	$node->comes_back('the worker is back');
	ended(%command);
};

subtest 'output that was just written' => sub {
	# faster than rounds are, so that some is not stored yet
	my $command = start(join('; ', map { "echo $_; sleep 0.002" } 1 .. 49));
	writes($command, 1);
	$node->owner('SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = ' . quote('leasehold worker'));
	$node->poll("SELECT status = 'finished' FROM leasehold.commands WHERE id = '$command'");
	is($node->owner("SELECT k.outcome IN ('lost', 'exited') AND sum(octet_length(o.data)) = k.stdout_bytes
			FROM leasehold.commands AS k JOIN leasehold.command_output AS o ON o.command_id = k.id
			WHERE k.id = '$command' GROUP BY k.company_id, k.id"), 't', 'is stored before the worker ends');
	$node->comes_back('the worker is back');
	afterwards();
};

subtest 'an end that cannot be stored' => sub {
	$node->owner(q(
		CREATE FUNCTION public.refuse_exits() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			IF NEW.outcome = 'exited' THEN RAISE EXCEPTION 'not this one'; END IF;
			RETURN NEW;
		END $$;
		CREATE TRIGGER refuse_exits BEFORE UPDATE ON leasehold.commands FOR EACH ROW EXECUTE FUNCTION public.refuse_exits()));
	my $command = start('echo once; exit 3');
	like(ends($command), qr/^(unknown|lost) answer_lost \d+ 1:once requested,finished$/, 'the command is not sent again');
	like(slurp_file($node->logfile), qr/ERROR:  not this one/, 'the server log says why');
	$node->owner('DROP TRIGGER refuse_exits ON leasehold.commands; DROP FUNCTION public.refuse_exits()');
	afterwards();
};

subtest 'in a lease that ends' => sub {
	my $other = $node->request(q('dev'));
	$node->settles($other, 'active', 'another lease');
	my $command = $node->alice("SELECT leasehold.start_command('$other', shell => 'echo begun; stubborn; hang')");
	writes($command, 1);
	$node->alice("SELECT leasehold.release_lease('$other')");
	$node->loses($node->workers);
	$node->comes_back('the server restarts');
	is(ends($command), 'lost worker_ended 6 1:begun requested,cancel_requested,finished', 'the command is lost');
	$node->settles($other, 'released', 'the lease is released');
	afterwards();
};

subtest 'settings are read again' => sub {
	my $command = start('echo one; sleep 0.5; flood 3000; exit 4');
	writes($command, 1);
	$node->append_conf('postgresql.conf', 'leasehold.max_output = 4kB');
	$node->reload;
	my $notice = '[output truncated: the limit of 2048 bytes is reached]';
	is($node->owner("SELECT count(*) FROM leasehold.commands WHERE id = '$command' AND status = 'running'"), 1, 'what runs runs on');
	$node->poll("SELECT status = 'finished' FROM leasehold.commands WHERE id = '$command'");
	is(kept($command), '4 3004 2048 output truncated: the limit of 2048 bytes is reached', 'with what held when it began');
	eventually { my $next = start('flood 5000'); ends($next); kept($next) eq '0 5000 4096 output truncated: the limit of 4096 bytes is reached' }
	'the next has the new limit';
	afterwards();
};

# kept(id): exit code, bytes written, bytes kept, notice.
sub kept
{
	my ($id) = @_;
	return $node->owner(qq(
		SELECT concat_ws(' ', k.exit_code, k.stdout_bytes, sum(octet_length(o.data)) FILTER (WHERE o.stream = 'stdout'),
			trim(string_agg(leasehold_internal.output_text(o.data), '') FILTER (WHERE o.stream = 'notice'), E'\\n'))
		  FROM leasehold.commands AS k JOIN leasehold.command_output AS o ON o.command_id = k.id
		 WHERE k.id = '$id' GROUP BY k.company_id, k.id));
}

subtest 'the worker is paused' => sub {
	my $command = start('echo one; sleep 0.5; echo two; exit 5');
	writes($command, 1);
	$node->boss('SELECT leasehold.pause_worker()');
	my $waits = start('true');
	is(ends($command), 'exited 5 8 1:one,2:two requested,finished', 'what runs goes on, and its end is stored');
	is($node->owner("SELECT status FROM leasehold.commands WHERE id = '$waits'"), 'queued', 'nothing new begins');
	$node->boss('SELECT leasehold.resume_worker()');
	is(ends($waits), 'exited 0 0 requested,finished', 'but afterwards');
	afterwards();
};

$node->alice("SELECT leasehold.release_lease('$lease')");
$node->settles($lease, 'released', 'the end');
done_testing();
