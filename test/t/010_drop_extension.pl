# Dropping the extension is guarded, however it is done; and what happens where
# nobody serves the database.

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
leasehold.max_databases = 2
leasehold.acquire_attempts = 100
));
my $provider = Leasehold::Provider->start($node, variant => 'plain');

# gone(database): that nothing of the extension is left.
sub gone
{
	my ($where, $database) = @_;
	is(
		$where->owner(q(SELECT count(*) FROM pg_extension WHERE extname = 'leasehold'), $database)
		  . $where->owner(q(SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'leasehold%'), $database)
		  . $where->owner(q(SELECT count(*) FROM pg_event_trigger), $database),
		'000',
		'nothing of it is left');
	return;
}

sub guarded
{
	my ($where, $command, $leases, $database) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $many = $leases == 1 ? '1 lease may' : "$leases leases may";
	return $where->refuses('postgres', $command, 'PT409', qr/cannot drop extension leasehold while $many have a remote resource/,
		"$command is refused", $database);
}

subtest 'with live leases' => sub {
	$node->install;
	$provider->register($node);
	$node->environment('dev', 'box', {});
	$node->environment('lost', 'box', { fault => { acquire => ['lose_answer'] } });
	my ($agent, $workspace) = split /\n/, $node->alice(q(SELECT leasehold.upsert_agent(leasehold.new_id(), adapter_type => 'codex');
		SELECT leasehold.upsert_execution_workspace(leasehold.new_id())));
	my $active = $node->request(q('dev'));
	$node->settles($active, 'active', 'one is active');
	guarded($node, 'DROP EXTENSION leasehold', 1);
	guarded($node, 'DROP EXTENSION leasehold CASCADE', 1);
	guarded($node, 'DROP EXTENSION IF EXISTS leasehold', 1);
	$node->owner('DROP SCHEMA public CASCADE; CREATE SCHEMA public');
	is($node->owner(q(SELECT count(*) FROM leasehold.leases)), 1, 'it is not in the schema that was current when it was made');
	$node->refuses('postgres', 'DROP SCHEMA leasehold CASCADE', '2BP01', qr/extension leasehold requires it/,
		'a schema of the extension cannot be dropped by itself');
	$node->refuses('postgres', 'DROP TABLE leasehold.leases CASCADE', '2BP01', qr/extension leasehold requires it/,
		'nor can a table');

	# every state counts in which something may be left
	my $run = $node->alice("SELECT started_run_id FROM leasehold.start_run(agent_id => '$agent',
		execution_workspace_id => '$workspace')");
	my $parked = $node->request("'dev', run_id => '$run', policy => 'reuse_by_environment'");
	$node->settles($parked, 'active', 'another');
	$node->alice("SELECT leasehold.finish_run('$run')");
	$node->settles($parked, 'retained', 'is parked');
	my $unknown = $node->request(q('lost'));
	$node->settles($unknown, 'irrevocable', 'of one the outcome is unknown');
	guarded($node, 'DROP EXTENSION leasehold', 3);
	$provider->stop;
	my $pending = $node->request(q('dev'));
	guarded($node, 'DROP EXTENSION leasehold', 4);
	$node->alice("SELECT leasehold.release_lease('$active')");
	$node->settles($active, 'pending_cleanup', 'one cannot be released');
	guarded($node, 'DROP EXTENSION leasehold', 4);
	is($node->owner(q(SELECT count(*) FROM leasehold.leases)), 4, 'all is as it was');
	$provider->run;
	$node->boss(q(SELECT leasehold.reset_breaker('box')));
	$node->settles($pending, 'active', 'the worker, too');

	$node->refuses('boss', 'SET leasehold.allow_drop = on', '42501', qr/permission denied/,
		'only a superuser can decide to abandon resources');
	$node->refuses('boss', 'DROP EXTENSION leasehold', '42501', qr/must be owner/, 'or drop it at all');
};

subtest 'by its owner\'s end' => sub {
	$node->owner(q(CREATE ROLE installer SUPERUSER; CREATE DATABASE owned));
	$node->owner('SET ROLE installer; CREATE EXTENSION leasehold', 'owned');
	$node->boss(q(SELECT leasehold.create_company('acme'); SELECT leasehold.grant_company('acme', 'alice', 'manager')), 'owned');
	$node->serving('owned');
	$node->environment('dev', 'fake', { delayMs => 100000 }, 'owned');
	my $lease = $node->request(q('dev'), 'owned');
	guarded($node, 'DROP OWNED BY installer', 1, 'owned');
	guarded($node, 'DROP OWNED BY installer CASCADE', 1, 'owned');
	$node->alice("SELECT leasehold.release_lease('$lease')", 'owned');
	$node->owner("SET leasehold.allow_drop = on; DROP OWNED BY installer", 'owned');
	gone($node, 'owned');
	eventually { $node->workers('owned') == 0 } 'the worker, too';
};

subtest 'drained' => sub {
	$node->boss('SELECT leasehold.drain_installation()');
	$node->happens(q(SELECT count(*) = 1 FROM leasehold.leases WHERE leasehold_internal.may_have_resource(status)),
		'draining leaves what needs a decision');
	guarded($node, 'DROP EXTENSION leasehold', 1);
	$node->alice(q(SELECT leasehold.write_off_lease(id, 'removed by hand') FROM leasehold.leases WHERE status = 'irrevocable'));
	$node->owner('DROP EXTENSION leasehold');
	gone($node);
	eventually { $node->workers == 0 } 'the worker is gone';
	is($provider->counters->{live}, 1, 'the provider holds only what was written off');
	is($node->owner(q(SELECT count(*) FROM pg_roles WHERE rolname ~ '^leasehold_')), 6, 'the roles stay');
	$provider->obeyed;
};

subtest 'abandoned' => sub {
	$node->install;
	$provider->reset;
	$provider->register($node);
	$node->environment('dev', 'box', {});
	my $lease = $node->request(q('dev'));
	$node->settles($lease, 'active', 'installed again, it works');
	$node->owner('SET leasehold.allow_drop = on; DROP EXTENSION leasehold');
	gone($node);
	is($provider->counters->{live}, 1, 'leasehold.allow_drop abandons what there is');
	is($node->owner('SELECT 1'), 1, 'the server is fine');
};

subtest 'more databases than leasehold.max_databases' => sub {
	$node->install;
	$node->owner('CREATE DATABASE second');
	$node->install('second');
	$node->owner('CREATE DATABASE third');
	my ($result, $said) = $node->outcome('postgres', 'CREATE EXTENSION leasehold', 'third');
	is($result, 'ok', 'the extension can be made');
	like($said, qr/WARNING.*no worker can be kept for this database.*max_databases/s, 'with a warning');
	$node->boss(q(SELECT leasehold.create_company('acme'); SELECT leasehold.grant_company('acme', 'alice', 'manager')), 'third');
	like($node->doctor('third'), qr/^error worker_absent: .*leasehold\.max_databases/m, 'doctor() says why there is no worker');
	$node->environment('dev', 'fake', {}, 'third');
	($result, $said) = $node->outcome('alice', q(SELECT leasehold.request_lease('dev')), 'third');
	is($result, 'ok', 'requests are kept');
	like($said, qr/WARNING.*leasehold\.max_databases/, 'with a warning that says why nothing happens');
	is($node->worker_states('second'), 'running', 'the others are served');
	my ($lease) = $said =~ /^([0-9a-f-]{36})/m;

	$node->owner('DROP DATABASE second');
	local $node->{database} = 'third';
	$node->settles($lease, 'active', 'one is dropped: the next is served');
};

$node->stop;
my $bare = Leasehold::Node->new('bare')->setup(preload => 0, extension => 0);

subtest 'not preloaded' => sub {
	my ($result, $said) = $bare->outcome('postgres', 'CREATE EXTENSION leasehold');
	is($result, 'ok', 'the extension can be made');
	like($said, qr/WARNING.*leasehold is not preloaded.*shared_preload_libraries/s, 'with a warning');
	$bare->owner('CREATE ROLE boss LOGIN IN ROLE leasehold_admin; CREATE ROLE alice LOGIN IN ROLE leasehold_app');
	$bare->boss(q(SELECT leasehold.create_company('acme'); SELECT leasehold.grant_company('acme', 'alice', 'manager')));
	$bare->environment('dev', 'fake', {});
	($result, $said) = $bare->outcome('alice', q(SELECT leasehold.request_lease('dev')));
	is($result, 'ok', 'a request is kept');
	like($said, qr/WARNING:  55000:.*not in shared_preload_libraries/, 'with a warning that says why nothing happens');
	my ($lease) = $said =~ /^([0-9a-f-]{36})/m;
	$bare->refuses('alice', "SELECT * FROM leasehold.wait_for_lease('$lease')", '55000', qr/not in shared_preload_libraries/,
		'waiting fails at once');
	like($bare->doctor, qr/^error worker_absent: leasehold is not in shared_preload_libraries/m, 'doctor() says why');
	is($bare->boss(q(SELECT state FROM leasehold.status() WHERE area = 'worker')), 'absent', 'status() works');
	guarded($bare, 'DROP EXTENSION leasehold', 1);
	guarded($bare, 'SET session_replication_role = replica; DROP EXTENSION leasehold', 1);
	is($bare->alice("SELECT leasehold.release_lease('$lease')"), 'released', 'a request that nobody sent is over when released');
	$bare->owner('DROP EXTENSION leasehold');
	gone($bare);
};

subtest 'preloaded later' => sub {
	$bare->owner('CREATE EXTENSION leasehold');
	$bare->boss(q(SELECT leasehold.create_company('acme'); SELECT leasehold.grant_company('acme', 'alice', 'manager')));
	$bare->environment('dev', 'fake', {});
	my $lease = $bare->request(q('dev'));
	$bare->append_conf('postgresql.conf', "shared_preload_libraries = 'leasehold'");
	$bare->append_conf('postgresql.conf', 'max_worker_processes = 2');
	$bare->restart;
	# the launcher and the one for logical replication have taken both
	eventually {
		$bare->doctor =~ /^error worker_absent: no free background worker slot \(max_worker_processes\)/m
	} 'without a free slot for a worker doctor() says so';
	my ($result, $said) = $bare->outcome('alice', q(SELECT leasehold.request_lease('dev')));
	like($said, qr/WARNING.*no free background worker slot/, 'so does a request');
	is(scalar(() = slurp_file($bare->logfile) =~ /could not start a worker/g), 1, 'the server log tells once');
	$bare->append_conf('postgresql.conf', 'max_worker_processes = 8');
	$bare->restart;
	$bare->settles($lease, 'active', 'with slots the request from before is carried out');
};

done_testing();
