# Commands that need a database alone, while calls hang: the workers stand aside
# and come back.  A copy of a database knows that it is one.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use PostgreSQL::Test::Utils;
use Test::More;

use Leasehold::Node;
use Leasehold::Provider;

my $node = Leasehold::Node->new('main')->setup(
	extension => 0,
	configuration => q(
leasehold.breaker_threshold = 1000
leasehold.max_databases = 20
allow_in_place_tablespaces = on
));
my $provider = Leasehold::Provider->start($node);
my $elsewhere = Leasehold::Provider->start($node, name => 'elsewhere');

# set_up(database, provider): a database with the extension and the plugin.
sub set_up
{
	my ($database, $of) = @_;
	$node->owner("CREATE DATABASE $database");
	$node->install($database);
	$of->register($node, database => $database);
	$node->environment('dev', $of->{name}, {}, $database);
	$node->environment('hang', $of->{name}, { fault => { acquire => ['hang'] } }, $database);
	return;
}

# hang(database, provider): a lease whose acquire hangs.
sub hang
{
	my ($database, $of) = @_;
	my $lease = $node->request(q('hang'), $database);
	eventually { $of->counters->{in_flight} == 1 } 'a call hangs';
	return $lease;
}

# recovers(database, lease, provider, name): the lease is adopted, not got twice.
sub recovers
{
	my ($database, $lease, $of, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	local $node->{database} = $database;
	$node->settles($lease, 'active', $name);
	is($of->counters->{acquires_per_key_max}, 1, 'without a second acquire');
	$node->alice("SELECT leasehold.release_lease('$lease')", $database);
	$node->settles($lease, 'released', 'and released');
	return;
}

set_up('work', $provider);

subtest 'another database is dropped' => sub {
	my $lease = hang('work', $provider);
	my ($worker) = $node->workers('work');
	within(10, 'while a call hangs', sub {
		$node->owner('CREATE DATABASE empty');
		$node->owner('DROP DATABASE empty');
	});
	is_deeply([ $node->workers('work') ], [$worker], 'the worker went on');
	$provider->stop('KILL');
	$provider->run;
	recovers('work', $lease, $provider, 'its call, too');
};

subtest 'a copy' => sub {
	my $kept = $node->request(q('dev'), 'work');
	$node->happens("SELECT status = 'active' FROM leasehold.leases WHERE id = '$kept'", 'a lease', 'work');
	my $lease = hang('work', $provider);
	within(10, 'is made while a call hangs', sub { $node->owner('CREATE DATABASE copy TEMPLATE work') });
	$node->serving('work');
	eventually { $node->worker_states('copy') eq 'held' } 'its worker is held';
	like($node->doctor('copy'), qr/^error installation_held: this database is a copy/m, 'doctor() says so');
	recovers('work', $lease, $provider, 'the original goes on');

	my $calls = sub { my $methods = $provider->counters->{methods}; my $sum = 0; $sum += $_ for values %$methods; return $sum };
	my $before = $calls->();
	my ($result, $said) = $node->outcome('alice', "SELECT leasehold.release_lease('$kept')", 'copy');
	like($said, qr/WARNING.*copy/, 'whoever releases a lease in the copy is warned');
	my $original = $node->owner('SELECT id FROM leasehold_internal.installation', 'work');
	my $fork = $node->boss('SELECT leasehold.fork_installation()', 'copy');
	isnt($fork, $original, 'it becomes an installation of its own');
	$node->serving('copy');
	is($node->owner("SELECT DISTINCT status FROM leasehold.leases WHERE id IN ('$kept', '$lease')", 'copy'),
		'forgotten', 'the leases are the original\'s and forgotten here');
	is($node->owner('SELECT count(*) FROM leasehold_internal.provider_resources', 'copy'), 0, 'with what they held');
	is($node->alice("SELECT leasehold.release_lease('$kept')", 'copy'), 'forgotten', 'releasing one does nothing');
	is($node->alice("SELECT leasehold.destroy_lease('$kept')", 'copy'), 'forgotten', 'nor does destroying');
	my $own = $node->request(q('dev'), 'copy');
	local $node->{database} = 'copy';
	$node->settles($own, 'active', 'it gets leases of its own');
	is($provider->params('acquire', $own)->{leasehold}{installationId}, $fork, 'under its own name');
	$node->alice("SELECT leasehold.release_lease('$own')", 'copy');
	$node->settles($own, 'released', 'and releases them');
	is($provider->requests(method => 'release', leaseId => $kept), 0, 'nothing of the original was touched');
	is($calls->() - $before, 3, 'in no way: these are its own lease, its workspace and its release');
	is($node->owner("SELECT status FROM leasehold.leases WHERE id = '$kept'", 'work'), 'active', 'there it is active still');
	$node->refuses('boss', 'SELECT leasehold.fork_installation()', 'PT409', qr/not held/, 'it need not be said twice', 'copy');
};

subtest 'a copy that takes over' => sub {
	# the original is gone, as after a move
	my $lease = $node->owner(q(SELECT id FROM leasehold.leases WHERE status = 'active'), 'work');
	$node->owner('CREATE DATABASE moved TEMPLATE work');
	$node->owner('ALTER DATABASE work RENAME TO unused');
	$node->owner('ALTER DATABASE unused ALLOW_CONNECTIONS false');
	eventually { $node->worker_states('moved') eq 'held' } 'held first';
	$node->boss('SELECT leasehold.takeover_installation()', 'moved');
	$node->serving('moved');
	is($node->alice("SELECT leasehold.renew_lease('$lease') > now()", 'moved'), 't', 'then its leases go on');
	recovers('moved', $lease, $provider, 'they are active');
	eventually {
		$node->owner(q(SELECT count(*) FROM pg_stat_activity WHERE datname = 'unused')) == 0
	} 'a database that refuses connections has no worker';
	$node->owner('ALTER DATABASE unused ALLOW_CONNECTIONS true');
	$node->owner('SET leasehold.allow_drop = on; DROP DATABASE unused');
	$node->owner('ALTER DATABASE moved RENAME TO work');
	$node->serving('work');
};

subtest 'renaming and moving' => sub {
	my $lease = hang('work', $provider);
	within(10, 'a database is renamed while a call hangs', sub { $node->owner('ALTER DATABASE work RENAME TO office') });
	$node->serving('office');
	recovers('office', $lease, $provider, 'its lease goes on');

	$node->owner(q(CREATE TABLESPACE other LOCATION ''));
	$lease = hang('office', $provider);
	within(10, 'it is moved', sub { $node->owner('ALTER DATABASE office SET TABLESPACE other') });
	$node->serving('office');
	recovers('office', $lease, $provider, 'its lease goes on');
	within(10, 'and back', sub { $node->owner('ALTER DATABASE office SET TABLESPACE pg_default') });
	$node->owner('ALTER DATABASE office RENAME TO work');
	$node->serving('work');
};

subtest 'a command that fails' => sub {
	my $session = $node->background_psql('work');
	my ($result, $said) = $node->outcome('postgres', 'DROP DATABASE work');
	is($result, '55006', 'a database in use is not dropped');
	unlike($said, qr/leasehold/, 'and not because of the worker');
	$session->quit;
	$node->serving('work');
	my $lease = $node->request(q('dev'), 'work');
	local $node->{database} = 'work';
	$node->settles($lease, 'active', 'the worker is back and works');
	$node->alice("SELECT leasehold.release_lease('$lease')", 'work');
	$node->settles($lease, 'released', 'released');

	# who may not do it does not disturb
	my @workers = $node->workers('work');
	$node->owner(q(CREATE ROLE mallory LOGIN CREATEDB));
	for my $command (
		'DROP DATABASE work', 'DROP DATABASE work WITH (FORCE)', 'ALTER DATABASE work RENAME TO mine',
		'ALTER DATABASE work SET TABLESPACE other', 'CREATE DATABASE mine TEMPLATE work')
	{
		my ($code) = $node->outcome('mallory', $command);
		is($code, '42501', "$command is not for everybody");
	}
	is_deeply([ $node->workers('work') ], \@workers, 'and leaves the worker alone');
	for my $command ('DROP DATABASE work', 'CREATE DATABASE mine TEMPLATE work')
	{
		my ($code) = $node->outcome('postgres', "BEGIN; $command");
		is($code, '25001', "$command in a transaction block is refused");
	}
	$node->serving('work');
};

subtest 'databases come and go' => sub {
	set_up('second', $elsewhere);
	my ($first, $second) = (hang('work', $provider), hang('second', $elsewhere));
	$node->refuses('postgres', $_, 'PT409', qr/cannot drop database "second" while 1 resource is held for it.*drain_installation/s,
		"a call hangs, so it is refused: $_") for 'DROP DATABASE second', 'DROP DATABASE second WITH (FORCE)';
	$node->serving('second');
	$node->happens(q(SELECT status = 'active' FROM leasehold.leases), 'the worker comes back and goes on with it', 'second');
	hang('second', $elsewhere);
	$node->refuses('mallory', 'SET leasehold.allow_drop = on', '42501', qr/permission denied/, 'not everybody allows it');
	within(10, 'a database is dropped while its own calls hang',
		sub { $node->owner('SET leasehold.allow_drop = on; DROP DATABASE second') });
	$provider->stop('KILL');
	$provider->run;
	recovers('work', $first, $provider, 'another\'s go on');

	# a transaction that makes the extension takes its time; the launcher looks meanwhile
	$node->owner('CREATE DATABASE third');
	my $session = $node->background_psql('third');
	$session->query_safe('BEGIN');
	$session->query_safe('CREATE EXTENSION leasehold');
	my $looked = $node->owner(q(SELECT max(state_change) FROM pg_stat_activity WHERE backend_type = 'leasehold launcher'));
	for (1 .. 3)
	{
		$node->owner('CREATE DATABASE probe');
		$node->owner('DROP DATABASE probe');
	}
	$node->happens("SELECT max(state_change) > '$looked' FROM pg_stat_activity WHERE backend_type = 'leasehold launcher'",
		'the launcher looks at the databases');
	$session->query_safe('COMMIT');
	$session->quit;
	$node->boss(q(SELECT leasehold.create_company('acme')), 'third');
	$node->serving('third');
	pass('a database is served whose extension took long to make');

	$node->owner('BEGIN; DROP EXTENSION leasehold; ROLLBACK', 'third');
	$node->serving('third');
	$node->owner('DROP EXTENSION leasehold', 'third');
	eventually { $node->workers('third') == 0 } 'the worker goes with the extension';
	$node->owner('BEGIN; CREATE EXTENSION leasehold; ROLLBACK', 'third');
	is($node->workers('third'), 0, 'one that is not committed brings none');
	$node->owner('CREATE EXTENSION leasehold', 'third');
	$node->serving('third');
	pass('one that is made again does');

	# a template is not served
	$node->owner('ALTER DATABASE third IS_TEMPLATE true');
	eventually { $node->workers('third') == 0 } 'a template has no worker';
	$node->owner('CREATE DATABASE fourth TEMPLATE third');
	$node->serving('fourth');
	pass('what was made of a template that held nothing yet is served');
	$node->owner('ALTER DATABASE third IS_TEMPLATE false');
	$node->serving('third');
	pass('when it is none any more, it has one again');
};

$provider->obeyed;
$elsewhere->obeyed;
done_testing();
