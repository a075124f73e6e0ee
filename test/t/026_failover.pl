# A failover that loses what the primary did last: the provider knows more than
# the database.  Nothing is acquired twice, and no command is begun twice.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use PostgreSQL::Test::Utils;
use Test::More;

use Leasehold::Node;
use Leasehold::Provider;

my $primary = Leasehold::Node->new('primary')->setup(
	streaming => 1,
	configuration => q(
leasehold.host_identity = 'host-a'
));
my $provider = Leasehold::Provider->start($primary)->register($primary);
$primary->environment('dev', 'box', {});
$primary->environment('one', 'box', {});
my $lease = $primary->request(q('dev'));
$primary->settles($lease, 'active', 'a lease');
my $holder = $primary->request(q('one'));
$primary->settles($holder, 'active', 'another one');

$primary->backup('for-b');
my $b = Leasehold::Node->new('b');
$b->init_from_backup($primary, 'for-b', has_streaming => 1);
$b->append_conf('postgresql.conf', q(leasehold.host_identity = 'host-b'));
$b->start;
$primary->boss(sprintf q(SELECT leasehold.allow_host('host-b', %s)), quote($b->data_dir));

# start(script): a command's id.
sub start { my ($script) = @_; return $primary->alice("SELECT leasehold.start_command('$lease', shell => " . quote($script) . ')'); }

# Each waits for the one before it, and its turn comes when the standby no longer hears of it.
$primary->boss(q(SELECT leasehold.set_limit('concurrent_commands', 1, company => 'acme')));
$primary->boss(q(SELECT leasehold.set_limit('active_leases', 1, company => 'acme', environment => 'one')));
my $first = start('echo one >> ran; sleep 1000');
$primary->poll("SELECT status = 'running' FROM leasehold.commands WHERE id = '$first'");
my $second = start('echo two >> ran; sleep 1000');
my $third = start('echo three >> ran');
my $waiting = $primary->request(q('one'));
$primary->happens("SELECT waiting_for = 'active_leases' FROM leasehold.active_leases WHERE lease_id = '$waiting'", 'a lease waits');
my $patient = $primary->request(q('one'));
$primary->happens("SELECT waiting_for = 'active_leases' FROM leasehold.active_leases WHERE lease_id = '$patient'", 'and another one');
$primary->wait_for_catchup($b);
is($b->owner("SELECT string_agg(status, ',' ORDER BY requested_at) FROM leasehold.commands"), 'running,queued,queued',
	'the standby knows of two that wait');
$b->stop;

$primary->alice("SELECT leasehold.cancel_command('$first')");
$primary->alice("SELECT leasehold.release_lease('$holder')");
$primary->settles($waiting, 'active', 'the primary acquires the lease');
$primary->poll("SELECT status = 'running' FROM leasehold.commands WHERE id = '$second'");
$primary->stop('immediate');
my $acquired = $provider->requests(method => 'acquire', leaseId => $waiting);
is($acquired, 1, 'the provider was asked once');

$b->start;
is($b->owner("SELECT string_agg(status, ',' ORDER BY requested_at) FROM leasehold.commands"), 'running,queued,queued',
	'nothing of that came to the standby');
$b->promote;
$b->comes_back('the worker serves');
$b->happens("SELECT count(*) = 3 FROM leasehold.commands WHERE status = 'finished'", 'the commands end');
for ([ $first, 'worker_ended', 'one that ran' ], [ $second, 'failed_over', 'one that may have begun' ],
	[ $third, 'failed_over', 'one of which it is not known that it did not' ])
{
	my ($id, $code, $name) = @$_;
	is($b->owner("SELECT outcome, failure_code FROM leasehold.commands WHERE id = '$id'"), "unknown|$code", $name);
}
is($provider->requests(method => 'execute', leaseId => $lease), 2, 'none was sent again');
is($b->boss(q(SELECT details ->> 'commands' FROM leasehold.audit_events WHERE action = 'installation.failed_over')), 2,
	'the trail tells of the failover');

$b->alice("SELECT leasehold.release_lease('$holder')");
$b->settles($holder, 'released', 'what is gone already is released');
$b->settles($waiting, 'active', 'what was acquired is found');
is($provider->requests(method => 'acquire', leaseId => $waiting), $acquired, 'and not acquired again');
$b->happens("SELECT waiting_for = 'active_leases' FROM leasehold.active_leases WHERE lease_id = '$patient'",
	'what was not acquired still waits for its limit');

$b->boss(q(SELECT leasehold.set_limit('concurrent_commands', NULL, company => 'acme')));
$b->restart;
$b->comes_back('a restart is no failover');
my $fresh = $b->alice("SELECT leasehold.start_command('$lease', shell => 'cat ran')");
$b->poll("SELECT status = 'finished' FROM leasehold.commands WHERE id = '$fresh'");
is($b->owner("SELECT outcome, exit_code FROM leasehold.commands WHERE id = '$fresh'"), 'exited|0', 'new commands run');
is($b->boss(q(SELECT count(*) FROM leasehold.audit_events WHERE action = 'installation.failed_over')), 1,
	'and queued ones are believed from then on');

$b->alice("SELECT leasehold.release_lease('$_')") for $lease, $waiting, $patient;
$b->settles($_, 'released', 'a lease is released') for $lease, $waiting, $patient;
is($provider->counters->{live}, 0, 'nothing is left');
$provider->obeyed;
done_testing();
