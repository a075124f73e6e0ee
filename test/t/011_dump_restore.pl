# A dump holds everything but what is derived; what is restored knows that it is
# a copy, and touches nothing until somebody says what it is.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use PostgreSQL::Test::Utils;
use Test::More;

use Leasehold::Node;
use Leasehold::Provider;

my $configuration = q(
leasehold.housekeeping_interval = 1s
leasehold.reconcile_interval = 1s
leasehold.breaker_threshold = 1000
);
my $node = Leasehold::Node->new('original')->setup(configuration => $configuration);
my $provider = Leasehold::Provider->start($node)->register($node);
my $directory = PostgreSQL::Test::Utils::tempdir();

# Rows in every table.
my ($agent, $project, $issue, $routine, $workspace) = split /\n/, $node->alice(q(
	SELECT leasehold.upsert_agent(leasehold.new_id(), adapter_type => 'codex', env => '{"A": "b"}');
	SELECT leasehold.upsert_project(leasehold.new_id(), metadata => '{"p": [1, null, "ü"]}');
	SELECT leasehold.upsert_issue(leasehold.new_id(), title => E'tab\tand "quotes"');
	SELECT leasehold.upsert_routine(leasehold.new_id());
	SELECT leasehold.upsert_execution_workspace(leasehold.new_id());));
$node->boss(q(SELECT leasehold.create_company('rival');
	SELECT leasehold.disallow_provider('rival', 'box');
	SELECT leasehold.set_limit('active_leases', 1000);
	SELECT leasehold.allow_host('elsewhere', '/data');));
$node->environment('dev', 'box', { image => 'a' });
$node->alice(q(SELECT leasehold.update_environment('dev', '{"image": "b"}')));
$node->environment('slow', 'box', { fault => { acquire => [ 'hang', 'hang' ] } });
$node->environment('stuck', 'box', { fault => { release => [ 'status:429:3600' ] } });
my $start_run = sub {
	return $node->alice("SELECT started_run_id FROM leasehold.start_run(agent_id => '$agent', issue_id => '$issue',
		project_id => '$project', routine_id => '$routine', execution_workspace_id => '$workspace')");
};
my %lease = (active => $node->request(q('dev', idempotency_key => 'once')), stuck => $node->request(q('stuck')));
my $run = $start_run->();
$lease{retained} = $node->request("'dev', run_id => '$run', policy => 'reuse_by_environment'");
$node->settles($lease{$_}, 'active', "$_: active") for sort keys %lease;
$node->alice("SELECT leasehold.finish_run('$run')");
$node->settles($lease{retained}, 'retained', 'one is parked');
$lease{running} = $node->request("'dev', run_id => '" . $start_run->() . q('));
$node->settles($lease{running}, 'active', 'one is a run\'s');
$lease{released} = $node->request(q('dev'));
$node->settles($lease{released}, 'active', 'one');
$node->alice("SELECT leasehold.release_lease('$lease{released}'); SELECT leasehold.release_lease('$lease{stuck}')");
$node->settles($lease{released}, 'released', 'is released');
$node->settles($lease{stuck}, 'pending_cleanup', 'one cannot be yet');
$lease{unknown} = $node->request(q('slow'));
eventually { $provider->counters->{in_flight} == 1 } 'of one nobody knows';
# what no lease claims, and cannot be removed yet
$provider->faults(destroy => 'status:500');
my ($like) = grep { $_->{leaseId} eq $lease{active} } $provider->resources;
my $stray = $provider->create(
	leaseId => '00000000-0000-4000-8000-000000000002',
	generation => 1,
	map { $_ => $like->{$_} } qw(installationId companyId environmentId));
# commands: one is over, one runs, and one waits for the worker, with what it will read
$node->environment('pretended', 'fake');
$lease{commands} = $node->request(q('pretended'));
$node->settles($lease{commands}, 'active', 'one in which something runs');
my %command;
$command{$_} = $node->alice(sprintf q(SELECT leasehold.start_command('%s', shell => 'echo %s; err ü; %s')),
	$lease{commands}, $_, $_ eq 'over' ? 'exit 3' : 'hang')
  for 'over', 'runs';
$node->happens(q(SELECT count(*) = 4 FROM leasehold.command_output), 'both have written something');
$node->happens("SELECT outcome = 'exited' FROM leasehold.commands WHERE id = '$command{over}'", 'and one is over');
my $commands = q(SELECT string_agg(concat_ws(' ', argv, shell, status, outcome, failure_code), ', ' ORDER BY requested_at) FROM leasehold.commands);
my $strays = 'FROM leasehold_internal.provider_resources WHERE stray_id IS NOT NULL';
$node->happens("SELECT count(*) = 1 $strays", 'one resource is no lease\'s');
# the audit trail has partitions, and the DEFAULT one has rows, too
$node->happens(q(SELECT count(*) >= 5 FROM pg_inherits WHERE inhparent = 'leasehold.audit_events'::regclass),
	'the audit trail has partitions');
$node->owner(q(
	INSERT INTO leasehold.audit_events (company_id, occurred_at, action, entity_type, entity_id)
	SELECT c.id, now() + w * interval '7 days', 'test.event', 'test', w::text
	  FROM leasehold.companies AS c, generate_series(-1, 4) AS w));

# contents(node, database): a fingerprint and the number of rows of each table.
sub contents
{
	my ($of, $database) = @_;
	my @tables = split /\n/, $of->owner(q(
		SELECT c.oid::regclass FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
		 WHERE n.nspname LIKE 'leasehold%' AND c.relkind = 'r' ORDER BY 1::text), $database);
	return {
		map {
			my $table = $_;
			$table => $of->owner("SELECT count(*) || ' ' || COALESCE(md5(string_agg(t::text, '|' ORDER BY t::text)), '')
				FROM $table AS t", $database)
		} grep { $_ !~ /\.(calls|lease_starts|command_inputs)$/ } @tables };
}

sub dump_of
{
	my ($of, $database, $file, @options) = @_;
	$of->command_checks_all([ 'pg_dump', '-d', $of->connstr($database), '-f', $file, @options ],
		0, [qr/^$/], [qr/^$/], "$database is dumped without a warning");
	return $file;
}

# Nothing may change while it is compared.
$node->boss('SELECT leasehold.pause_worker()');
eventually { $node->worker_states eq 'paused' } 'the worker rests';
$command{waits} = $node->alice("SELECT leasehold.start_command('$lease{commands}', ARRAY['cat'], stdin => 'not for everybody')");
is($node->owner('SELECT count(*) FROM leasehold_internal.command_inputs'), 1, 'with what it will read');
my $before = contents($node, 'postgres');
is_deeply([ grep { $before->{$_} =~ /^0 / } sort keys %$before ], [], 'every table has rows');
my $plain = dump_of($node, 'postgres', "$directory/plain.sql");
$node->boss('SELECT leasehold.resume_worker()');
unlike(slurp_file($plain), qr/COPY leasehold_internal\.calls/, 'calls are not dumped');
unlike(slurp_file($plain), qr/COPY leasehold_internal\.command_inputs|not for everybody/, 'nor is what commands will read');

sub calls { my $methods = $provider->counters->{methods}; my $sum = 0; $sum += $_ for values %$methods; return $sum }

subtest 'restored beside the original' => sub {
	$node->boss('SELECT leasehold.pause_worker()');
	eventually { $node->worker_states eq 'paused' } 'the original rests';
	my $calls = calls();
	$node->owner('CREATE DATABASE first TEMPLATE template0');
	$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('first'), '-f', $plain ],
		'a plain dump is restored');
	is_deeply(contents($node, 'first'), $before, 'with every row');
	eventually { $node->worker_states('first') eq 'held' } 'its worker is held';
	like($node->doctor('first'), qr/^error installation_held: this database is a copy or was restored from a dump/m,
		'doctor() says so');
	is($node->owner('SELECT count(*) FROM leasehold_internal.calls', 'first'), 0, 'there are no calls');
	is($node->owner(q(SELECT count(*) FROM pg_inherits WHERE inhparent = 'leasehold.audit_events'::regclass), 'first'),
		$node->owner(q(SELECT count(*) FROM pg_inherits WHERE inhparent = 'leasehold.audit_events'::regclass)),
		'the audit trail has its partitions');
	$node->refuses('postgres', q(DELETE FROM leasehold.audit_events WHERE action = 'test.event'), '42501',
		qr/cannot be changed or removed/, 'which are append-only here, too', 'first');
	$node->refuses('postgres', sprintf('TRUNCATE %s', (grep { /audit_events_\d/ } sort keys %$before)[0]), '42501',
		qr/cannot be changed or removed/, 'each of them', 'first');

	# and once more, in the other format, in parallel
	my $custom = dump_of($node, 'first', "$directory/custom.dump", '-Fd', '-j', '2');
	$node->owner('CREATE DATABASE second TEMPLATE template0');
	{
		# several sessions do not keep the order that foreign keys want
		local $ENV{PGOPTIONS} = '-c session_replication_role=replica';
		$node->command_ok([ 'pg_restore', '--exit-on-error', '-j', '2', '-d', $node->connstr('second'), $custom ],
			'a dump of that is restored');
	}
	is_deeply(contents($node, 'second'), $before, 'with every row');
	eventually { $node->worker_states('second') eq 'held' } 'its worker is held';
	is(calls(), $calls, 'the provider was not called');

	# a membership holds where its role is the one it was granted to
	is($node->alice("SELECT status FROM leasehold.leases WHERE id = '$lease{active}'", 'second'), 'active',
		'in the same cluster members are who they were');
	# that is held, so that nothing is its own
	$node->owner('DROP DATABASE first');
	$node->boss('SELECT leasehold.fork_installation()', 'second');
	$node->boss('SELECT leasehold.resume_worker()', 'second');
	$node->serving('second');
	is($node->owner('SELECT count(*) FROM leasehold.leases WHERE leasehold_internal.may_have_resource(status)', 'second'), 0,
		'forked, it has nothing of the original');
	is($node->owner(q(SELECT count(*) FROM leasehold.runs WHERE status = 'running'), 'second'), 0, 'and no runs go on');
	is($node->owner("SELECT count(*) $strays", 'second'), 0, 'nor has it what the original is to remove');
	$node->happens(q(SELECT bool_and(status = 'finished') FROM leasehold.commands), 'nor do its commands', 'second');
	is($node->owner(q(SELECT count(*) FROM leasehold_internal.calls WHERE slot IN ('command', 'cancel')), 'second'), 0,
		'of which nobody is told anything');
	my $lease = $node->request(q('dev'), 'second');
	local $node->{database} = 'second';
	$node->settles($lease, 'active', 'it gets its own leases');
	$node->alice("SELECT leasehold.release_lease('$lease')", 'second');
	$node->settles($lease, 'released', 'and releases them');
	$node->owner('DROP DATABASE second');
	$node->boss('SELECT leasehold.resume_worker()');
};

subtest 'moved to another cluster' => sub {
	$node->boss('SELECT leasehold.pause_worker()');
	eventually { $node->worker_states eq 'paused' } 'the original rests';
	$node->alice("SELECT leasehold.start_command('$lease{commands}', ARRAY['cat'], stdin => 'not for everybody')");
	$before = contents($node, 'postgres');
	my $last = dump_of($node, 'postgres', "$directory/last.dump", '-Fc');
	$node->stop('immediate');
	my ($held) = grep { $_->{leaseId} eq $lease{active} } $provider->resources;
	my $orphan = $provider->create(
		leaseId => '00000000-0000-4000-8000-000000000001',
		generation => 1,
		map { $_ => $held->{$_} } qw(installationId companyId environmentId));

	my $new = Leasehold::Node->new('moved')->setup(extension => 0, configuration => $configuration);
	$provider->put_token($new, $provider->{token});
	# other roles of these names, as far as this cluster knows
	$new->owner('CREATE ROLE leasehold_admin NOLOGIN; CREATE ROLE leasehold_app NOLOGIN;
		CREATE ROLE filler; CREATE ROLE boss LOGIN IN ROLE leasehold_admin; CREATE ROLE alice LOGIN IN ROLE leasehold_app');
	$new->owner('CREATE DATABASE here TEMPLATE template0');
	$new->command_ok([ 'pg_restore', '--exit-on-error', '-d', $new->connstr('here'), $last ], 'restored');
	is_deeply(contents($new, 'here'), $before, 'with every row');
	local $new->{database} = 'here';
	my $calls = calls();
	eventually { $new->worker_states('here') eq 'held' } 'the worker is held';

	is($new->alice('SELECT count(*) FROM leasehold.leases', 'here'), 0, 'alice is no member here');
	$new->refuses('alice', q(SELECT leasehold.request_lease('dev', company => 'acme')), 'PT404', qr/company/,
		'and may do nothing', 'here');
	like($new->doctor('here'), qr/^warning member_dangling: .*"alice"/m, 'doctor() tells');
	is($new->boss('SELECT leasehold.repair_members()', 'here'), 1, 'until an administrator says that she is the same');
	is($new->alice('SELECT count(*) > 0 FROM leasehold.leases', 'here'), 't', 'then she is');
	unlike($new->doctor('here'), qr/member_dangling/, 'doctor() is content');

	is($new->owner("SELECT provider_lease_id $strays", 'here'), $stray, 'what is to be removed is known here');
	$provider->faults(destroy => undef);
	is($new->boss('SELECT leasehold.takeover_installation()', 'here'), 2, 'the installation goes on here');
	$new->boss('SELECT leasehold.resume_worker()', 'here');
	$new->serving('here');
	# with the queue, what they were to read is gone; and what ran may run still, for nobody
	$new->happens(q(SELECT bool_and(status = 'finished') FROM leasehold.commands), 'commands do not go on', 'here');
	is($new->owner($commands, 'here'),
		'echo over; err ü; exit 3 finished exited, echo runs; err ü; hang finished lost dispatch_lost, {cat} finished exited, {cat} finished unknown dispatch_lost',
		'as lost if they have written something, else of unknown outcome');
	is($new->owner("SELECT string_agg(stream || ' ' || leasehold_internal.output_text(data), '' ORDER BY seq)
			FROM leasehold.command_output WHERE command_id = '$command{runs}'", 'here'), "stdout runs\nstderr ü\n", 'what they wrote is kept');
	is($new->owner("SELECT stdout_bytes, stderr_bytes FROM leasehold.commands WHERE id = '$command{runs}'", 'here'), '5|3', 'and counted');
	$new->happens(q(SELECT count(*) = 0 FROM leasehold_internal.calls WHERE slot IN ('command', 'cancel')),
		'what may run still is told to end', 'here');
	$new->settles($lease{unknown}, 'active', 'what nobody knew is looked up and adopted');
	is($provider->counters->{acquires_per_key_max}, 1, 'nothing was acquired twice');
	$new->settles($lease{stuck}, 'released', 'what waited is removed');
	is($new->lease($lease{$_}), 'active', "the $_ lease is active") for 'active', 'running';
	is($new->lease($lease{retained}), 'retained', 'the parked one is parked');
	is($new->alice(q(SELECT leasehold.request_lease('dev', idempotency_key => 'once')), 'here'), $lease{active},
		'a repeated request gets what it got');
	is(
		$new->owner(q(SELECT count(*) FROM leasehold_internal.calls AS c JOIN leasehold.leases AS l ON l.id = c.subject_id
			WHERE c.slot = 'timer' AND l.status = 'active'), 'here'),
		$new->owner(q(SELECT count(*) FROM leasehold.leases WHERE status = 'active'), 'here'),
		'every active lease has its deadline again');
	$new->happens("SELECT count(*) > 0 FROM leasehold.audit_events WHERE action = 'environment.stray_reported'
			AND entity_id = '$orphan'", 'the first sweep reports what no lease claims', 'here');
	is((grep { $_->{providerLeaseId} eq $orphan } $provider->resources), 1, 'and leaves it');
	is((grep { $_->{providerLeaseId} eq $stray } $provider->resources), 1,
		'nor is removed what was to be removed before: somebody may use it since');
	$new->boss('SELECT leasehold.approve_sweep()', 'here');
	eventually { !grep { $_->{providerLeaseId} eq $orphan } $provider->resources } 'until that is approved';
	eventually { !grep { $_->{providerLeaseId} eq $stray } $provider->resources } 'both go then';
	is($new->owner(q(SELECT max(epoch) FROM leasehold.audit_events), 'here'), 2, 'audit events are of a new epoch');
	is($new->owner(q(SELECT count(*) = 0 FROM leasehold.audit_events_default
			WHERE occurred_at > now() - interval '1 minute'), 'here'), 't', 'in their partition');

	$new->boss('SELECT leasehold.drain_installation()', 'here');
	$new->happens('SELECT count(*) = 0 FROM leasehold.leases WHERE leasehold_internal.may_have_resource(status)',
		'all can be released', 'here');
	is($provider->counters->{live}, 0, 'nothing is left');
};

$provider->obeyed;
done_testing();
