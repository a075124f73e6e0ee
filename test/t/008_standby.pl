# A standby reads and does not write; promoted, it goes on if that was agreed
# beforehand, and else waits for somebody to say what it is.

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
leasehold.housekeeping_interval = 1s
leasehold.reconcile_interval = 1s
));
my $provider = Leasehold::Provider->start($primary)->register($primary);
$primary->environment('dev', 'box', {});
my $kept = $primary->request(q('dev'));
$primary->settles($kept, 'active', 'a lease of the primary');

# standby_of(node, name): a streaming standby, started.
sub standby_of
{
	my ($of, $name) = @_;
	$of->backup("for-$name");
	my $standby = Leasehold::Node->new($name);
	$standby->init_from_backup($of, "for-$name", has_streaming => 1);
	$standby->append_conf('postgresql.conf', "leasehold.host_identity = 'host-$name'");
	$standby->start;
	return $standby;
}

my $b = standby_of($primary, 'b');
$primary->wait_for_catchup($b);

subtest 'a standby' => sub {
	is($b->alice(q(SELECT status FROM leasehold.leases)), 'active', 'tables can be read');
	is($b->alice(q(SELECT key FROM leasehold.environments)), 'dev', 'and views');
	is($b->alice("SELECT status, done FROM leasehold.wait_for_lease('$kept')"), 'active|t',
		'a lease that nothing is under way for need not be waited for');
	is($b->boss(q(SELECT count(*) > 0 FROM leasehold.status())), 't', 'status() works');
	is($b->boss(q(SELECT count(*) > 0 FROM leasehold.metrics())), 't', 'metrics() works');
	like($b->doctor, qr/^notice standby:/m, 'doctor() says that this is a standby');
	like($b->doctor, qr/^warning standby_not_allowed: .*host-b/m, 'and that nobody has allowed it to go on');
	unlike($b->doctor, qr/^error/m, 'which is no error');
	is($b->boss(q(SELECT state FROM leasehold.status() WHERE area = 'installation')), 'standby', 'so does status()');
	is($b->workers, 0, 'no worker runs');

	for my $call (
		q(request_lease('dev')), "release_lease('$kept')", "renew_lease('$kept')", "destroy_lease('$kept')",
		"retry_lease('$kept')", "write_off_lease('$kept', 'x')", "release_quarantine('$kept')",
		q(start_run()), q(heartbeat(leasehold.new_id())), q(finish_run(leasehold.new_id())),
		q(release_run_leases(leasehold.new_id())), q(destroy_reusable_leases(leasehold.new_id())),
		q(create_environment('other', 'box')),
		q(update_environment('dev', name => 'x')), q(archive_environment('dev')), q(delete_environment('dev')),
		q(upsert_agent(leasehold.new_id())), q(archive_agent(leasehold.new_id())), q(upsert_project(leasehold.new_id())), q(upsert_issue(leasehold.new_id())),
		q(upsert_routine(leasehold.new_id())), q(upsert_execution_workspace(leasehold.new_id())),
		q(grant_company('acme', 'boss')), q(revoke_company('acme', 'alice')), q(accept_company('acme')))
	{
		my ($name) = $call =~ /^(\w+)/;
		$b->refuses('alice', "SELECT leasehold.$call", '25006', qr/read-only|recovery/, "$name() is refused");
	}
	for my $call (
		q(create_company('other')), q(repair_members()), q(import_lease('dev', 'some-sandbox', company => 'acme')), q(set_limit('active_leases', 1)),
		sprintf('register_plugin(%s, %s)', quote(json({ %{ $provider->manifest }, id => 'new' })),
			quote(json({ type => 'http', url => $provider->url }))), q(update_plugin('box')), q(enable_plugin('box')), q(disable_plugin('box')),
		q(restart_plugin('box')), q(unregister_plugin('box')), q(allow_provider('acme', 'box')),
		q(disallow_provider('acme', 'box')), q(reset_breaker('box')), q(pause_worker()), q(resume_worker()),
		q(drain_installation()), q(allow_host('x')), q(takeover_installation()), q(fork_installation()), q(approve_sweep()))
	{
		my ($name) = $call =~ /^(\w+)/;
		$b->refuses('boss', "SELECT leasehold.$call", '25006', qr/read-only|recovery/, "$name() is refused");
	}
};

subtest 'waiting on a standby' => sub {
	$primary->boss('SELECT leasehold.pause_worker()');
	my $waiting = $primary->request(q('dev'));
	$primary->wait_for_catchup($b);
	$b->refuses('alice', "SELECT * FROM leasehold.wait_for_lease('$waiting')", '25006', qr/standby/, 'fails at once');
	is($b->alice("SELECT status, done FROM leasehold.wait_for_lease('$waiting', '0 s')"), 'acquiring|f', 'looking does not');
	$primary->alice("SELECT leasehold.release_lease('$waiting')");
	$primary->boss('SELECT leasehold.resume_worker()');
};

subtest 'promotion of an allowed host' => sub {
	$primary->boss(sprintf q(SELECT leasehold.allow_host('host-b', %s)), quote($b->data_dir));
	$primary->wait_for_catchup($b);
	unlike($b->doctor, qr/standby_not_allowed/, 'it is agreed that it goes on');
	# a call is out when the primary dies
	$primary->environment('late', 'box', { fault => { acquire => ['hang'] } });
	my $late = $primary->request(q('late'));
	eventually { $provider->counters->{in_flight} == 1 } 'an acquire is out';
	$primary->wait_for_catchup($b);
	$primary->stop('immediate');

	$b->promote;
	$b->comes_back('the worker serves at once');
	$b->settles($late, 'active', 'what was out is looked up and adopted');
	is($provider->requests(method => 'acquire', leaseId => $late), 1, 'and not acquired again');
	is($b->alice("SELECT leasehold.renew_lease('$kept') > now()"), 't', 'leases can be renewed');
	my $fresh = $b->request(q('dev'));
	$b->settles($fresh, 'active', 'and got');
	$b->alice("SELECT leasehold.release_lease('$_')") for $late, $fresh;
	$b->settles($_, 'released', 'and released') for $late, $fresh;
	unlike($b->doctor, qr/^error/m, 'doctor() finds no error');
	$b->restart;
	$b->comes_back('after a restart it serves, too');
};

subtest 'promotion of another host' => sub {
	my $c = standby_of($b, 'c');
	$b->wait_for_catchup($c);
	$b->stop('immediate');
	# something that a sweep would remove
	my ($held) = grep { $_->{leaseId} eq $kept } $provider->resources;
	my $orphan = $provider->create(
		leaseId => '00000000-0000-4000-8000-000000000001',
		generation => 1,
		map { $_ => $held->{$_} } qw(installationId companyId environmentId));
	my $calls = sub { my $methods = $provider->counters->{methods}; my $sum = 0; $sum += $_ for values %$methods; return $sum };
	my $before = $calls->();
	$c->promote;
	eventually { $c->answers && $c->worker_states eq 'held' } 'the worker is held';
	like($c->doctor, qr/^error installation_held: this server is not where the installation was made/m, 'doctor() says so');
	is($c->boss(q(SELECT state FROM leasehold.status() WHERE area = 'installation')), 'held', 'status(), too');
	is($c->alice("SELECT status FROM leasehold.leases WHERE id = '$kept'"), 'active', 'reading works');
	my ($result, $said) = $c->outcome('alice', "SELECT leasehold.release_lease('$kept')");
	is($result, 'ok', 'writing works');
	like($said, qr/WARNING.*this server is not where/, 'with a warning that nothing is done');
	$c->refuses('alice', "SELECT * FROM leasehold.wait_for_lease('$kept')", 'PT503', qr/does not go on/, 'waiting fails at once');
	$c->restart;
	eventually { $c->answers && $c->worker_states eq 'held' } 'a restart changes nothing';
	is($calls->(), $before, 'the provider was not called');
	$c->refuses('alice', 'SELECT leasehold.takeover_installation()', '42501', qr/permission|leasehold_admin/,
		'not everybody can decide what it is');

	my $epoch = $c->owner('SELECT epoch FROM leasehold_internal.installation');
	is($c->boss('SELECT leasehold.takeover_installation()'), $epoch + 1, 'an administrator says that it takes over');
	$c->comes_back('the worker serves');
	$c->settles($kept, 'released', 'what was asked for meanwhile is carried out');
	$c->refuses('boss', 'SELECT leasehold.takeover_installation()', 'PT409', qr/not held/, 'it need not be said twice');

	$c->happens(
		"SELECT count(*) > 0 FROM leasehold.audit_events
		  WHERE action = 'environment.stray_reported' AND entity_id = '$orphan'",
		'the first sweep reports what no lease claims');
	is((grep { $_->{providerLeaseId} eq $orphan } $provider->resources), 1, 'and leaves it');
	like($c->doctor, qr/^notice sweep_dry/m, 'doctor() says that it waits for approval');
	$c->boss('SELECT leasehold.approve_sweep()');
	eventually { !grep { $_->{providerLeaseId} eq $orphan } $provider->resources } 'approved, it is removed';
	$c->refuses('boss', 'SELECT leasehold.approve_sweep()', 'PT409', qr/no dry sweep/, 'there is nothing more to approve');
	my $lease = $c->request(q('dev'));
	$c->settles($lease, 'active', 'new leases are got');
	$c->alice("SELECT leasehold.release_lease('$lease')");
	$c->settles($lease, 'released', 'and released');
	is($provider->counters->{live}, 0, 'nothing is left');
};

$provider->obeyed;
done_testing();
