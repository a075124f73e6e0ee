# An application behind a pooler in transaction mode runs commands: the example
# of the documentation, through PgBouncer.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

use Leasehold::Node;
use Leasehold::Sandbox;

my ($pgbouncer) = grep { -x } map { "$_/pgbouncer" } split(/:/, $ENV{PATH}), '/usr/sbin';
plan skip_all => 'PgBouncer is not installed' unless $pgbouncer;

my $node = Leasehold::Node->new('main')->setup;
my $example = "$FindBin::RealBin/../../examples/run_command.py";
my $directory = $node->basedir . '/pgbouncer';
my $port = PostgreSQL::Test::Cluster::get_free_port();
mkdir $directory, 0700 or die $!;
append_to_file("$directory/users.txt", qq("alice" ""\n));
append_to_file("$directory/pgbouncer.ini", <<INI);
[databases]
postgres = host=@{[ $node->host ]} port=@{[ $node->port ]}
[pgbouncer]
listen_addr =
unix_socket_dir = $directory
listen_port = $port
auth_type = trust
auth_file = $directory/users.txt
pool_mode = transaction
default_pool_size = 2
logfile = $directory/log
INI
my $pooler = IPC::Run::start([ $pgbouncer, "$directory/pgbouncer.ini" ], '>', "$directory/out", '2>', "$directory/err");
eventually { -S "$directory/.s.PGSQL.$port" } 'the pooler listens';

$node->environment('dev', 'fake', {});
my $connection = "host=$directory port=$port dbname=postgres user=alice";

sub example
{
	my ($environment, $command) = @_;
	my ($out, $err);
	IPC::Run::run([ 'python3', $example, $connection, 'acme', $environment, $command ], '>', \$out, '2>', \$err,
		IPC::Run::timeout(120));
	return ($? >> 8, $out, $err);
}

is_deeply([ example('dev', 'echo one; err two; sleep 0.2; echo three; exit 3') ], [ 3, "one\nthree\n", "two\n" ],
	'output of both kinds, and the exit code');
is_deeply([ example('dev', 'echo one; lose') ], [ 125, "one\n", "lost: the fake provider's answer was lost\n" ],
	'a command that is lost');
is((example('nonexistent', 'true'))[0], 1, 'an environment that there is not');
$node->happens(q(SELECT bool_and(status = 'released') AND count(*) = 2 FROM leasehold.leases), 'every lease is given back');

# more clients than the pooler has sessions
my @clients = map {
	my $n = $_;
	my $client = { out => '', err => '' };
	$client->{run} = IPC::Run::start([ 'python3', $example, $connection, 'acme', 'dev', "echo $n; sleep 0.3; echo end $n" ],
		'>', \$client->{out}, '2>', \$client->{err}, IPC::Run::timeout(120));
	$client;
} 1 .. 8;
for my $n (1 .. 8)
{
	$clients[ $n - 1 ]{run}->finish;
	is($clients[ $n - 1 ]{out}, "$n\nend $n\n", "client $n of 8 that share two sessions");
}

SKIP:
{
	my $why = Leasehold::Sandbox::problem();
	skip $why, 1 if $why;
	Leasehold::Sandbox::set_up($node);
	is_deeply([ example('box', 'echo "int main(void) { return 7; }" >a.c && cc -o a a.c && ./a') ], [ 7, '', '' ], 'in a real sandbox');
	$node->happens(q(SELECT bool_and(status = 'released') FROM leasehold.leases), 'which is given back');
}

$pooler->signal('TERM');
$pooler->finish;
done_testing();
