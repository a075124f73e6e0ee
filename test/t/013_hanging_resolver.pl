# A name server that does not answer: nobody waits for it but those who asked,
# and it brings up no herd of threads.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use PostgreSQL::Test::Utils;
use Test::More;

use Leasehold::Node;
use Leasehold::Provider;

my $directory = PostgreSQL::Test::Utils::tempdir();
my $shim = "$directory/hanging_resolver.so";
my $hang = "$directory/hang";
my $built = IPC::Run::run [ 'gcc', '-shared', '-fPIC', '-O1', '-o', $shim,
	"$FindBin::RealBin/../doubles/hanging_resolver.c", '-ldl' ], '>&', \my $said;
BAIL_OUT("could not build the resolver: $said") unless $built;

my $node = Leasehold::Node->new('main')->setup(
	extension => 0,
	configuration => q(
leasehold.connect_timeout = 1s
leasehold.breaker_threshold = 10000
leasehold.acquire_attempts = 100
leasehold.retry_max = 50ms
));
$node->stop;

# with the shim; a server that is started through a script of its own may not have it
sub start_with_shim
{
	local $ENV{LD_PRELOAD} = join ' ', $shim, grep { defined } $ENV{LD_PRELOAD};
	local $ENV{HANGING_RESOLVER} = $hang;
	$node->start;
	return;
}
start_with_shim();
my ($pid) = slurp_file($node->data_dir . '/postmaster.pid') =~ /^(\d+)/;
plan skip_all => 'the server does not load what LD_PRELOAD names'
  unless slurp_file("/proc/$pid/maps") =~ /hanging_resolver/;
$node->install;

my $provider = Leasehold::Provider->start($node)->register($node);
my $named = Leasehold::Provider->start($node, name => 'named');
$named->register($node, url => "http://named.hang.test:$named->{port}/rpc");
$node->environment('dev', 'box', {});
$node->environment('named', 'named', {});

sub threads
{
	my ($worker) = $node->workers;
	my @tasks = glob "/proc/$worker/task/*";
	return @tasks - 1;
}

sub hangs { my ($yes) = @_; $yes ? append_to_file($hang, "yes\n") : unlink $hang; return; }

# the worker keeps what it looked up a while: a new one has to ask again
sub forget
{
	my ($before_it_serves) = @_;
	my ($worker) = $node->workers;
	$node->owner("SELECT pg_terminate_backend($worker)");
	eventually { my @now = $node->workers; @now == 1 && $now[0] != $worker } 'a new worker';
	$before_it_serves->() if $before_it_serves;
	$node->serving;
	return;
}

subtest 'a name that is looked up' => sub {
	my $lease = $node->request(q('named'));
	$node->settles($lease, 'active', 'works');
	$node->alice("SELECT leasehold.release_lease('$lease')");
	$node->settles($lease, 'released', 'as ever');
};

hangs(1);
forget();
my $waiting;

subtest 'nobody else waits' => sub {
	$waiting = $node->request(q('named'));
	eventually { threads() > 0 } 'a name is being looked up';
	within(10, 'leases of other providers are got', sub {
		my $lease = $node->request(q('dev'));
		$node->settles($lease, 'active', 'active');
		$node->alice("SELECT leasehold.release_lease('$lease')");
		$node->settles($lease, 'released', 'released');
	});
	within(10, 'another database is dropped', sub {
		$node->owner('CREATE DATABASE other');
		$node->owner('DROP DATABASE other');
	});
	$node->happens("SELECT waiting_for = 'retry: provider_timeout' FROM leasehold.leases WHERE id = '$waiting'",
		'the request is tried again and again');
	$node->happens("SELECT last_error LIKE '%during name resolution' FROM leasehold_internal.calls WHERE subject_id = '$waiting'",
		'and says what takes so long');
	is($named->requests(method => 'find', leaseId => $waiting), 0, 'it was never sent, so nothing is unknown');

	# somebody waits for it, and gives up
	my $session = $node->background_psql('postgres', extra_params => [ '-U', 'alice' ], on_error_stop => 0);
	my $backend = $session->query_safe('SELECT pg_backend_pid()');
	$session->query_until(qr/waiting/, "\\echo waiting\nSELECT * FROM leasehold.wait_for_lease('$waiting', '60 s');\n");
	$node->happens("SELECT wait_event_type = 'Extension' FROM pg_stat_activity WHERE pid = $backend", 'a session waits');
	within(10, 'it can be cancelled', sub {
		$node->owner("SELECT pg_cancel_backend($backend)");
		$node->happens("SELECT state = 'idle' FROM pg_stat_activity WHERE pid = $backend", 'it is idle');
	});
	$session->quit;
};

subtest 'the worker ends' => sub {
	eventually { threads() > 0 } 'a name is being looked up';
	my ($worker) = $node->workers;
	within(10, 'at once', sub {
		$node->owner("SELECT pg_terminate_backend($worker)");
		eventually { !kill 0, $worker } 'gone';
	});
	$node->serving;
	eventually { threads() > 0 } 'the new one looks it up again';
	within(15, 'the server stops', sub { $node->stop('fast') });
	start_with_shim();
	$node->comes_back('it starts');
	within(10, 'its database can be renamed', sub {
		$node->owner('ALTER DATABASE postgres RENAME TO renamed', 'template1');
		$node->owner('ALTER DATABASE renamed RENAME TO postgres', 'template1');
	});
	$node->serving;
};

subtest 'many ask' => sub {
	$node->owner(q(SET ROLE alice; SELECT leasehold.request_lease('named') FROM generate_series(1, 400)));
	$node->happens(q(SELECT count(*) > 300 FROM leasehold.leases WHERE provider = 'named' AND waiting_for IS NOT NULL),
		'they are all tried');
	my $most = 0;
	for (1 .. 30)
	{
		my $now = threads();
		$most = $now if $now > $most;
		Time::HiRes::sleep(0.1);
	}
	cmp_ok($most, '<=', 140, 'the threads that look names up are few');
	within(10, 'leases of other providers are got', sub {
		my $lease = $node->request(q('dev'));
		$node->settles($lease, 'active', 'active');
		$node->alice("SELECT leasehold.release_lease('$lease')");
		$node->settles($lease, 'released', 'released');
	});
};

subtest 'the name server answers again' => sub {
	# what is out has given up by then, and nothing is sent before the new worker serves
	$node->boss(q(SELECT leasehold.pause_worker()));
	$node->happens(q(SELECT count(*) = 0 FROM leasehold_internal.calls WHERE state = 'started'), 'no request is out');
	hangs(0);
	forget(sub { $node->boss(q(SELECT leasehold.resume_worker())) });
	$node->happens(q(SELECT count(*) = 401 FROM leasehold.leases WHERE provider = 'named' AND status = 'active'),
		'everything that waited is got');
	is($named->counters->{acquires_per_key_max}, 1, 'once');
	is($named->counters->{methods}{environmentFindLease}, undef, 'nothing had to be looked up at the provider')
	  or diag(explain([ map { { %$_, events => $node->owner("SELECT json_agg(json_build_array(occurred_at, action, details) ORDER BY occurred_at) FROM leasehold.audit_events WHERE entity_id = '$_->{params}{leasehold}{leaseId}'"), was => $waiting } } $named->requests(method => 'find') ]));
	$node->alice(q(SELECT count(leasehold.release_lease(id)) FROM leasehold.leases WHERE provider = 'named'));
	$node->happens(q(SELECT count(*) = 402 FROM leasehold.leases WHERE provider = 'named' AND status = 'released'), 'and released');
	is($named->counters->{live}, 0, 'nothing is left');
};

$provider->obeyed;
$named->obeyed;
done_testing();
