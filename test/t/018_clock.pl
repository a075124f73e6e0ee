# The server's clock is set back: the worker does not wait until it is again as
# late as it was.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use PostgreSQL::Test::Utils;
use Test::More;

use Leasehold::Node;
use Leasehold::Provider;

my $directory = PostgreSQL::Test::Utils::tempdir();
my $shim = "$directory/wrong_clock.so";
my $clock = "$directory/clock";
my $built = IPC::Run::run [ 'gcc', '-shared', '-fPIC', '-O1', '-o', $shim, "$FindBin::RealBin/../doubles/wrong_clock.c" ],
  '>&', \my $said;
BAIL_OUT("could not build the clock: $said") unless $built;

# set_clock(seconds): from now on it is wrong by so much.
sub set_clock
{
	my ($seconds) = @_;
	open my $file, -e $clock ? '+<' : '>', $clock or BAIL_OUT("could not write $clock: $!");
	syswrite $file, pack('q', $seconds);
	close $file;
	return;
}
set_clock(0);

my $node = Leasehold::Node->new('main')->setup(
	extension => 0,
	configuration => q(
leasehold.idle_check = 3600s
leasehold.rpc_timeout = 3s
leasehold.breaker_threshold = 2
leasehold.breaker_cooldown = 2s
));
$node->stop;
{
	local $ENV{LD_PRELOAD} = join ' ', $shim, grep { defined } $ENV{LD_PRELOAD};
	local $ENV{WRONG_CLOCK} = $clock;
	$node->start;
}
my ($pid) = slurp_file($node->data_dir . '/postmaster.pid') =~ /^(\d+)/;
plan skip_all => 'the server does not load what LD_PRELOAD names'
  unless slurp_file("/proc/$pid/maps") =~ /wrong_clock/;
$node->install;

my $provider = Leasehold::Provider->start($node)->register($node);
my $other = Leasehold::Provider->start($node, name => 'other')->register($node);
$node->environment('dev', 'box', {});
$node->environment('hanging', 'box', { fault => { acquire => ['hang'] } });
$node->environment('other', 'other', {});

sub breaker { return $node->boss(q(SELECT state FROM leasehold.status() WHERE area = 'provider' AND subject = 'other')); }

# in one session, where a request takes no longer than a worker looks back by itself
my $session = $node->background_psql('postgres', extra_params => [ '-U', 'alice' ]);
my @leases = map { $session->query_safe(q(SELECT leasehold.request_lease('dev'))) } 1 .. 5;
$node->settles($_, 'active', 'a lease') for @leases;
my ($worker) = $node->workers;

my $hanging = $node->request(q('hanging'));
eventually { $provider->counters->{in_flight} == 1 } 'a call hangs';
set_clock(-3600);
$node->settles($hanging, 'active', 'the clock is set back by an hour: the call is given up in time');
set_clock(-7200);
my $after = $session->query_safe(q(SELECT leasehold.request_lease('dev')));
$session->quit;
$node->settles($after, 'active', 'and again: a lease is got');
my $short = $node->request(q('dev', ttl => '1 second'));
$node->settles($short, 'expired', 'another ends when its time is over');

$other->stop;
$node->request(q('other')) for 1 .. 3;
eventually { breaker() ne 'ok' } 'a provider is held back';
$other->run;
set_clock(-10800);
my $reached = $node->request(q('other'));
$node->settles($reached, 'active', 'the clock is set back: it is not held back for an hour more');

push @leases, $hanging, $after, $reached;
$node->alice("SELECT leasehold.release_lease('$_')") for @leases;
$node->settles($_, 'released', 'released') for @leases;
is(join(' ', $node->workers), $worker, 'the worker is the same');
like(slurp_file($node->logfile), qr/LOG:  leasehold: the clock was set back/, 'the server log tells');

set_clock(3600);
my $ahead = $node->request(q('dev'));
$node->settles($ahead, 'active', 'set ahead, it makes no difference');
$node->alice("SELECT leasehold.release_lease('$ahead')");
$node->settles($ahead, 'released', 'released');

$provider->obeyed;
done_testing();
