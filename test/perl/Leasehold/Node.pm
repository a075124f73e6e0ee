# Leasehold::Node - a server for the TAP tests, with the extension.
#
#   my $node = Leasehold::Node->new('main')->setup;
#   $node->environment('dev', 'box', { timeoutMs => 1234 });
#   my $lease = $node->request(q(environment => 'dev'));
#   $node->settles($lease, 'active', 'the lease gets its resource');
#
# Three roles speak to it: postgres, a superuser, who looks at what users do not
# see; boss, who has leasehold_admin; alice, an application that is manager of
# the company acme.

package Leasehold::Node;

use strict;
use warnings;

use parent -norequire, 'PostgreSQL::Test::Cluster';

use Carp;
use JSON::PP ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils ();
use Test::More;
use Time::HiRes qw(sleep time);

use Exporter 'import';
our @EXPORT = qw(eventually within json quote);

# How long to wait for what must happen.  Tests wait for conditions; only when
# something is broken is this reached.
our $PATIENCE = $ENV{LEASEHOLD_TEST_PATIENCE} || 60;

# whoever runs the tests, the superuser has the same name
$ENV{PGUSER} = 'postgres';

my $json = JSON::PP->new->canonical->allow_nonref;

# json(value): encodes a Perl value, or decodes a text.
sub json
{
	my ($value) = @_;
	return ref $value ? $json->encode($value) : $json->decode($value);
}

# quote(text): an SQL literal.
sub quote
{
	my ($text) = @_;
	return 'NULL' unless defined $text;
	$text =~ s/'/''/g;
	return $text =~ s/\\/\\\\/g ? "E'$text'" : "'$text'";
}

# eventually { condition } name: polls until the condition is true; its value.
sub eventually(&$;$)
{
	my ($condition, $name, $patience) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $value = _poll($condition, $patience // $PATIENCE);
	ok($value, $name);
	return $value;
}

# The same without a test; the last value, true or not.
sub _poll
{
	my ($condition, $patience) = @_;
	my $give_up = time + $patience;
	my $pause = 0.01;
	while (1)
	{
		my $value = $condition->();
		return $value if $value || time > $give_up;
		sleep $pause;
		$pause = $pause * 1.5 if $pause < 0.1;
	}
}

# within(seconds, name, code): runs the code, and fails if that took longer: a
# generous limit, for what must not hang.
sub within
{
	my ($seconds, $name, $code) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $begun = time;
	my $value = $code->();
	my $took = time - $begun;
	ok($took < $seconds, $name) or diag(sprintf 'it took %.1f s', $took);
	return $value;
}

# Quick retries, so that tests of failures do not take minutes.
my $CONFIGURATION = q(
leasehold.retry_base = 20ms
leasehold.retry_max = 200ms
leasehold.breaker_cooldown = 50ms
leasehold.idle_check = 1s
leasehold.allow_fake_provider = on
restart_after_crash = on
max_worker_processes = 20
);

# For tests of what holds calls back: a circuit breaker that opens soon and does
# not close by itself, and retries that do not run out.
my $HOLDING_BACK = q(
leasehold.breaker_threshold = 3
leasehold.breaker_cooldown = 600s
leasehold.acquire_attempts = 100
leasehold.cleanup_attempts = 100
);

# setup(%options): initdb, configuration, start, extension and people.
#   preload => 0           do not preload the library
#   holding_back => 1      with $HOLDING_BACK
#   configuration => text  more settings; they come last
#   streaming => 1         a primary for standbys and base backups
#   extension => 0         stop before CREATE EXTENSION
#   before_start => code   is called with the node before its first start
sub setup
{
	my ($self, %options) = @_;

	$self->init(
		extra => [ '--locale=C.UTF-8', '-E', 'UTF8', '-U', 'postgres' ],
		allows_streaming => $options{streaming} // 0);
	$self->make_token_directory;
	$self->append_conf('postgresql.conf', "shared_preload_libraries = 'leasehold'")
	  unless exists $options{preload} && !$options{preload};
	# without preload the settings are not known when the file is read, which is allowed
	$self->append_conf('postgresql.conf', $CONFIGURATION);
	$self->append_conf('postgresql.conf',
		"leasehold.token_directory = '" . $self->token_directory . "'");
	$self->append_conf('postgresql.conf', $HOLDING_BACK) if $options{holding_back};
	$self->append_conf('postgresql.conf', $options{configuration}) if $options{configuration};
	$options{before_start}->($self) if $options{before_start};
	$self->start;
	$self->install unless exists $options{extension} && !$options{extension};
	return $self;
}

sub token_directory { return $_[0]->basedir . '/tokens'; }

sub make_token_directory
{
	my ($self) = @_;
	mkdir $self->token_directory, 0700 or croak "could not make the token directory: $!";
	return;
}

# install(database): CREATE EXTENSION, the roles boss and alice, the company acme.
sub install
{
	my ($self, $database) = @_;
	$self->owner(
		q(
		CREATE EXTENSION leasehold;
		DO $$
		BEGIN
			IF to_regrole('boss') IS NULL THEN
				CREATE ROLE boss LOGIN IN ROLE leasehold_admin;
				CREATE ROLE alice LOGIN IN ROLE leasehold_app;
			END IF;
		END
		$$;), $database);
	$self->boss(
		q(SELECT leasehold.create_company('acme');
		  SELECT leasehold.grant_company('acme', 'alice', 'manager');), $database);
	$self->serving($database);
	return $self;
}

# Waits until all workers of the database run.
sub serving
{
	my ($self, $database) = @_;
	my $good = _poll(
		sub { $self->worker_states($database) =~ /^running(\nrunning)*$/ }, $PATIENCE);
	croak 'no worker serves: ' . $self->worker_states($database) unless $good;
	return $self;
}

sub worker_states
{
	my ($self, $database) = @_;
	return $self->owner(
		'SELECT state FROM leasehold_internal.worker_states() ORDER BY part', $database);
}

# Running SQL.

sub owner { my ($self, $sql, $database) = @_; return $self->_as('postgres', $sql, $database); }
sub boss { my ($self, $sql, $database) = @_; return $self->_as('boss', $sql, $database); }
sub alice { my ($self, $sql, $database) = @_; return $self->_as('alice', $sql, $database); }

sub _as
{
	my ($self, $role, $sql, $database) = @_;
	my ($stdout, $stderr) = ('', '');
	my $result = $self->psql(
		$database // 'postgres', $sql,
		stdout => \$stdout,
		stderr => \$stderr,
		extra_params => [ '-U', $role ],
		on_error_stop => 1);
	croak "$role could not run: $sql\n$stderr" if $result != 0;
	return $stdout;
}

# outcome(role, sql): (ok or SQLSTATE, all that psql said).
sub outcome
{
	my ($self, $role, $sql, $database) = @_;
	my ($stdout, $stderr) = ('', '');
	my $result = $self->psql(
		$database // 'postgres', $sql,
		stdout => \$stdout,
		stderr => \$stderr,
		extra_params => [ '-U', $role, '-v', 'VERBOSITY=verbose' ],
		on_error_stop => 1);
	return ('ok', $stdout . $stderr) if $result == 0;
	my ($code) = $stderr =~ /(?:ERROR|FATAL):\s+([0-9A-Z]{5}):/;
	return ($code // 'lost', $stderr);
}

# refuses(role, sql, SQLSTATE, pattern, name)
sub refuses
{
	my ($self, $role, $sql, $code, $pattern, $name, $database) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($got, $said) = $self->outcome($role, $sql, $database);
	return subtest $name => sub {
		is($got, $code, 'error code') or diag($said);
		like($said, $pattern, 'error text');
	};
}

# The use of leases.

sub environment
{
	my ($self, $key, $provider, $config, $database) = @_;
	return $self->alice(
		sprintf('SELECT leasehold.create_environment(%s, %s, %s)',
			quote($key), quote($provider), quote(json($config // {}))),
		$database);
}

sub request
{
	my ($self, $arguments, $database) = @_;
	return $self->alice("SELECT leasehold.request_lease($arguments)", $database);
}

# lease(id, column...): these columns of the lease, status by default, '|' between.
sub lease
{
	my ($self, $id, @columns) = @_;
	my $list = join ', ', @columns ? @columns : 'status';
	return $self->owner("SELECT $list FROM leasehold.leases WHERE id = '$id'", $self->{database});
}

# settles(id, status, name): waits until the lease has the status.
sub settles
{
	my ($self, $id, $status, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $now;
	_poll(
		sub {
			$now = $self->lease($id);
			return $now eq $status || $now =~ /^(released|expired|failed|forgotten|written_off)$/;
		},
		$PATIENCE);
	my $good = ok($now eq $status, $name);
	diag('the lease: '
		  . $self->owner("SELECT to_jsonb(l) FROM leasehold.leases AS l WHERE id = '$id'", $self->{database})
		  . "\nits calls: "
		  . $self->owner("SELECT to_jsonb(c) FROM leasehold_internal.calls AS c WHERE subject_id = '$id'",
			$self->{database}))
	  unless $good;
	return $good;
}

# poll(sql): waits until the superuser's query gives true; whether it did.
sub poll
{
	my ($self, $sql, $database) = @_;
	return _poll(sub { $self->owner($sql, $database) eq 't' }, $PATIENCE);
}

# happens(sql, name): the same as a test.
sub happens
{
	my ($self, $sql, $name, $database) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $good = ok($self->poll($sql, $database), $name);
	diag("never true: $sql") unless $good;
	return $good;
}

# What doctor() says, one "severity code: finding" per line.
sub doctor
{
	my ($self, $database) = @_;
	return $self->boss(
		q(SELECT severity || ' ' || code || ': ' || finding FROM leasehold.doctor()), $database);
}

# answers: whether the server accepts connections.
sub answers
{
	my ($self) = @_;
	return ($self->psql('postgres', 'SELECT 1', stdout => \my $out, stderr => \my $err) // 2) == 0;
}

# loses(pids): kills processes of the server, and waits until it has noticed: what
# answers before that is not the one that comes back.
sub loses
{
	my ($self, @pids) = @_;
	my $restarts = sub { scalar(() = PostgreSQL::Test::Utils::slurp_file($self->logfile) =~ /all server processes terminated; reinitializing/g) };
	my $before = $restarts->();
	kill 'KILL', @pids;
	_poll(sub { $restarts->() > $before }, $PATIENCE) or die 'the server has not noticed that a process was killed';
	return;
}

# comes_back(name): after a crash, waits for the server and its workers.
sub comes_back
{
	my ($self, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $good = _poll(sub { $self->answers }, $PATIENCE)
	  && _poll(sub { eval { $self->worker_states =~ /^running(\nrunning)*$/ } }, $PATIENCE);
	return ok($good, $name);
}

# The pids of the database's workers.
sub workers
{
	my ($self, $database) = @_;
	return split /\n/,
	  $self->owner(
		q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'leasehold worker'
			AND datname = current_database() ORDER BY pid), $database);
}

1;
