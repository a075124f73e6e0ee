# A base backup that is started beside the original holds still until somebody
# says what it is; so does a server restored to a point in time, and a data
# directory that was copied.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use PostgreSQL::Test::RecursiveCopy;
use PostgreSQL::Test::Utils;
use Test::More;

use Leasehold::Node;
use Leasehold::Provider;

my $node = Leasehold::Node->new('original')->setup(
	streaming => 1,
	configuration => q(
leasehold.housekeeping_interval = 1s
leasehold.reconcile_interval = 1s
));
my $provider = Leasehold::Provider->start($node)->register($node);
$node->environment('dev', 'box', {});
$node->environment('busy', 'box', { fault => { acquire => [ 'hang', 'hang' ] } });
my $kept = $node->request(q('dev'));
$node->settles($kept, 'active', 'a lease of the original');
my $short = $node->request(q('dev', ttl => '3 seconds'));
$node->settles($short, 'active', 'another will expire soon');
my $installation = $node->owner('SELECT id FROM leasehold_internal.installation');

# Requests that name an installation.
sub calls_of
{
	my ($id) = @_;
	return scalar grep {
		($_->{params}{leasehold}{installationId} // $_->{params}{instanceInfo}{instanceId} // '') eq $id
	} $provider->requests;
}

subtest 'a base backup beside the original' => sub {
	my $busy = $node->request(q('busy'));
	eventually { $provider->counters->{in_flight} == 1 } 'with a call in flight';
	$node->backup('beside');
	my $copy = Leasehold::Node->new('copy');
	$copy->init_from_backup($node, 'beside');
	$copy->start;
	eventually { $copy->worker_states eq 'held' } 'the copy\'s worker is held';
	like($copy->doctor, qr/^error installation_held: this server is not where the installation was made/m, 'doctor() says so');
	$node->settles($short, 'expired', 'the original goes on: a lease expires');
	is($copy->lease($short), 'active', 'not in the copy');
	$provider->stop('KILL');
	$provider->run;
	$node->settles($busy, 'active', 'what was in flight is adopted by the original');
	is($copy->lease($busy), 'acquiring', 'not by the copy');
	my ($result, $said) = $copy->outcome('alice', "SELECT leasehold.release_lease('$kept')");
	like($said, qr/WARNING.*this server is not where/, 'a release in the copy warns');
	$copy->restart;
	eventually { $copy->answers && $copy->worker_states eq 'held' } 'a restart changes nothing';

	my $before = calls_of($installation);
	my $fork = $copy->boss('SELECT leasehold.fork_installation()');
	$copy->serving;
	is($copy->owner(q(SELECT string_agg(DISTINCT status, ',') FROM leasehold.leases)), 'forgotten', 'forked, it forgets the leases');
	my $own = $copy->request(q('dev'));
	$copy->settles($own, 'active', 'and has its own');
	is($provider->params('acquire', $own)->{leasehold}{installationId}, $fork, 'under its own name');
	# both sweep now, each under its own name
	eventually { grep { $_->{params}{leasehold}{installationId} eq $fork } $provider->requests(method => 'list') }
	'the copy sweeps';
	is((grep { $_->{leaseId} eq $kept } $provider->resources), 1, 'the original\'s resources stay');
	$copy->alice("SELECT leasehold.release_lease('$own')");
	$copy->settles($own, 'released', 'released');
	is($node->lease($kept), 'active', 'the original\'s lease is active');
	$node->alice("SELECT leasehold.release_lease('$busy')");
	$node->settles($busy, 'released', 'its others end');
	$copy->stop;
};

subtest 'a copy of the data directory' => sub {
	my $moved = $node->request(q('dev'));
	$node->settles($moved, 'active', 'one more lease');
	$node->stop;
	my $path = $node->data_dir;
	my $calls = calls_of($installation);

	# a snapshot that is brought up at the same place: another directory of the same name
	rename $path, "$path.away" or BAIL_OUT("could not rename: $!");
	PostgreSQL::Test::RecursiveCopy::copypath("$path.away", $path);
	chmod 0700, $path;
	$node->start;
	eventually { $node->answers && $node->worker_states eq 'held' } 'a snapshot at the same place is held';
	like($node->doctor, qr/^error installation_held: the data directory was copied/m, 'doctor() says why');
	is(calls_of($installation), $calls, 'the provider was not called');
	is($node->boss('SELECT leasehold.takeover_installation()'), 2, 'it takes over');
	$node->comes_back('and serves');
	$node->alice("SELECT leasehold.release_lease('$moved')");
	$node->settles($moved, 'released', 'its leases go on');

	# the same server at another place
	$node->stop;
	rename $path, "$path.moved" or BAIL_OUT("could not rename: $!");
	symlink "$path.moved", $path or BAIL_OUT("could not link: $!");
	$node->start;
	eventually { $node->answers && $node->worker_states eq 'held' } 'a directory that was moved is held';
	my $host = $node->owner('SELECT host FROM leasehold_internal.here()');
	$node->boss(sprintf 'SELECT leasehold.allow_host(%s, %s)', quote($host), quote("$path.moved"));
	$node->comes_back('until its place is allowed');
	$node->restart;
	$node->comes_back('from then on it serves there');
	is($node->lease($kept), 'active', 'the lease is active still');
};

subtest 'another name' => sub {
	$node->owner(q(ALTER SYSTEM SET leasehold.host_identity = 'another-host'));
	$node->reload;
	eventually { $node->worker_states eq 'held' } 'a server that takes another name is held';
	$node->owner(q(ALTER SYSTEM RESET leasehold.host_identity));
	$node->reload;
	$node->comes_back('until it has its own again');
};

subtest 'a point in time' => sub {
	$node->backup('before');
	my $restored = Leasehold::Node->new('restored');
	$restored->init_from_backup($node, 'before', standby => 0, has_restoring => 0);
	# recovery to the end of what the backup has, on a new timeline, at the original's place
	$restored->append_conf('postgresql.conf', "recovery_target = 'immediate'\nrecovery_target_action = 'promote'");
	$restored->append_conf('postgresql.conf', "restore_command = 'false'");
	$restored->set_recovery_mode;
	$restored->start;
	eventually { $restored->answers && $restored->worker_states eq 'held' } 'what was recovered is held';
	my $calls = calls_of($installation);
	is($restored->boss('SELECT leasehold.takeover_installation()'), 3, 'it takes over, after its original has stopped')
	  if $node->stop;
	$restored->comes_back('and serves');
	$restored->alice("SELECT leasehold.release_lease('$kept')");
	$restored->settles($kept, 'released', 'the lease that it knows is released');
	is($provider->counters->{live}, 0, 'nothing is left');
};

$provider->obeyed;
done_testing();
