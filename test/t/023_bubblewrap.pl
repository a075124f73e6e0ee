# Sandboxes on the server's own host: what they are for, what they keep in, what
# they cannot see, and that none is left over.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use IO::Socket::INET;
use PostgreSQL::Test::Utils;
use Test::More;

use Leasehold::Node;
use Leasehold::Sandbox;

if (my $why = Leasehold::Sandbox::problem())
{
	plan skip_all => $why;
}

# a limit of memory is one of address space, of which a sanitizer reserves terabytes
plan skip_all => 'memory limits leave no room for sanitizers' if $ENV{SANITIZE};

my $node = Leasehold::Node->new('main')->setup(configuration => q(
leasehold.reconcile_interval = 0
));
my $box = 'Leasehold::Sandbox';

sub run { return Leasehold::Sandbox::run($node, @_); }
sub start { return Leasehold::Sandbox::start($node, @_); }
sub ends { return Leasehold::Sandbox::ends($node, @_); }
sub lease { return Leasehold::Sandbox::lease($node, @_); }

# set(name, value): a setting, for workers and new sessions.
sub set
{
	my ($name, $value) = @_;
	$node->owner('ALTER SYSTEM SET ' . $name . ' = ' . quote($value));
	$node->owner('SELECT pg_reload_conf()');
	$node->poll("SELECT current_setting('$name') = " . quote($value));
	return;
}

sub unset { my ($name) = @_; $node->owner("ALTER SYSTEM RESET $name"); $node->owner('SELECT pg_reload_conf()'); return; }

subtest 'who may have one' => sub {
	$node->refuses('alice', q(SELECT leasehold.create_environment('box', 'bubblewrap')), 'PT422', qr/provider_forbidden/,
		'a company that was not given it');
	$node->boss(q(SELECT leasehold.allow_provider('acme', 'bubblewrap')));
	$node->refuses('alice', q(SELECT leasehold.create_environment('box', 'bubblewrap')), 'PT422', qr/leasehold\.bubblewrap/,
		'nobody while it is off');
	unlike($node->doctor, qr/sandboxes/, 'where nobody asks for it, nothing is said of it');
};

subtest 'what the host must have' => sub {
	set('leasehold.bubblewrap', 'on');
	like($node->doctor, qr/error sandboxes_unavailable: .*leasehold\.bubblewrap_directory is not set/, 'a directory');
	my $directory = Leasehold::Sandbox::directory($node);
	mkdir $directory, 0755 or die $!;
	set('leasehold.bubblewrap_directory', $directory);
	like($node->doctor, qr/sandboxes_unavailable: .*nobody else may enter/, 'of its own');
	chmod 0700, $directory;
	like($node->doctor, qr/sandboxes_unavailable: .*on the file system of the data directory/, 'on another file system');
	set('leasehold.bubblewrap_data_filesystem', 'on');
	set('leasehold.bubblewrap_free_memory', '1000GB');
	like($node->doctor, qr/sandboxes_unavailable: .*memory is short/, 'memory');
	set('leasehold.bubblewrap_free_memory', '64MB');
	set('leasehold.bubblewrap_read_only', '/nonexistent:' . $node->basedir);
	like($node->doctor, qr/sandboxes_unavailable: .*the data directory would be seen/, 'a data directory that is not shown');
	my ($space, $logs) = map { $node->basedir . "/$_" } 'space', 'logs';
	mkdir $_ or die $! for $space, $logs, "$logs/old";
	$node->owner("CREATE TABLESPACE elsewhere LOCATION '$space'");
	set('log_directory', $logs);
	for my $exposed (
		[ $node->data_dir . '/base', qr/the data directory would be seen in sandboxes: "\S+base" is in it/, 'a part of it' ],
		[ $space, qr/a tablespace would be seen in sandboxes: it is below/, 'a tablespace' ],
		[ "$logs/old", qr/the server's log would be seen in sandboxes: "\S+old" is in it/, 'a part of the log' ],
		[ $node->host, qr/(sockets|data directory) would be seen/, 'sockets' ])
	{
		set('leasehold.bubblewrap_read_only', "/nonexistent:$exposed->[0]");
		like($node->doctor, $exposed->[1], "nor $exposed->[2]");
	}
	set('leasehold.bubblewrap_read_only', '');
	unset('log_directory');
	$node->owner('DROP TABLESPACE elsewhere');
	set('leasehold.bubblewrap_program', '/nonexistent');
	like($node->doctor, qr/sandboxes_unavailable: .*install the package bubblewrap/, 'bubblewrap');
	unset('leasehold.bubblewrap_program');
	$node->environment('box', 'bubblewrap', { workspaceMb => 50, memoryMb => 400, processes => 60 });
	eventually { $node->doctor !~ /sandboxes_unavailable/ } 'then all is well';
	$node->refuses('alice', q(SELECT leasehold.create_environment('bad', 'bubblewrap', '{"fileMb": 50.0}')), '22023', qr/config_invalid/,
		'nor a whole number that is written as another');
	# all at once; one that fails ends its session
	my $gate = $node->background_psql('postgres');
	$gate->query_safe('SELECT pg_advisory_lock(1)');
	my @sessions = map { $node->background_psql('postgres', extra_params => [ '-U', 'alice' ]) } 1 .. 5;
	$_->query_until(qr/^$/m, "SELECT pg_advisory_lock_shared(1);\nSELECT leasehold.ensure_local_environment();\n") for @sessions;
	$node->poll(q(SELECT count(*) = 5 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted));
	$gate->quit;
	my %ids = map { $_->query_safe('SELECT leasehold.ensure_local_environment()') =~ /(\S+)\s*$/ => 1 } @sessions;
	is(scalar keys %ids, 1, 'who asks for it at the same time gets the same');
	$_->quit for @sessions;
	my $one = q(SELECT string_agg(id || ' ' || name || ' ' || status || ' ' || provider, ',') FROM leasehold.environments WHERE key = 'local');
	like($node->alice($one), qr/^\S+ Local active bubblewrap$/, 'cases 1, 3: an environment that is made once');
	$node->alice(q(SELECT leasehold.update_environment('local', name => 'Ours', status => 'archived', metadata => '{"ours": true}')));
	my $whole = q(SELECT e FROM leasehold.environments AS e WHERE key = 'local');
	my $before = $node->alice($whole);
	is($node->alice(q(SELECT leasehold.ensure_local_environment())), (split / /, $node->alice($one))[0], 'case 2: and found');
	is($node->alice($whole), $before, 'as it is');
	$node->environment('other', 'fake', {});
	$node->refuses('alice', q(SELECT leasehold.ensure_local_environment('other')), '23505', qr/already_exists/, 'one of another provider is none');
	like($node->doctor, qr/notice sandboxes_without_cgroups/, 'what is not limited is told');
	$node->refuses('alice', "SELECT leasehold.create_environment('bad', 'bubblewrap', " . quote(json($_)) . ')', '22023', qr/config_invalid/,
		'configuration ' . json($_))
	  for { workspaceMb => 0 }, { memoryMb => '1' }, { processes => 1.5 }, { processes => 1048577 }, { disk => 1 }, { cpuSeconds => undef };
};

my $lease = lease();

subtest 'a place to work' => sub {
	my ($how, $out, $err) = run($lease, 'echo hello; echo trouble >&2; exit 3');
	is($how, 'exited 3', 'the exit code');
	is($out, 'hello', 'what it wrote');
	is($err, 'trouble', 'and to stderr');
	run($lease, 'mkdir -p a/b; echo kept >a/b/file; echo kept >/tmp/file');
	is((run($lease, 'cat file', q(cwd => 'a/b')))[1], 'kept', 'files stay until the next command');
	is((run($lease, 'cat /workspace/a/b/file /tmp/file', q(cwd => '/tmp')))[1], "kept\nkept", 'wherever it works');
	is((run($lease, 'cat', q(stdin => 'read this')))[1], 'read this', 'input');
	is((run($lease, 'cat'))[1], '', 'none if none is given');
	is((run($lease, 'echo $A,$HOME,$PATH'))[1], ',/workspace,/usr/local/bin:/usr/bin:/bin', 'variables');
	is((run($lease, 'echo $A,$HOME', q(env => '{"A": "one two", "HOME": "/tmp"}')))[1], 'one two,/tmp', 'and those that it is given');
	is((run($lease, 'kill -9 $$'))[0], 'signalled SIGKILL', 'a signal');
	is((run($lease, 'exit 137'))[0], 'exited 137', 'which is not an exit code');
	is((run($lease, 'nonexistent'))[0], 'exited 127', 'a script that finds no program');
	my $command = $node->alice("SELECT leasehold.start_command('$lease', argv => ARRAY['nonexistent', 'x'])");
	is((ends($command))[0], 'failed', 'a program that is not there');
	like($node->owner("SELECT failure_reason FROM leasehold.commands WHERE id = '$command'"), qr/"nonexistent"/, 'is named');
	is((ends($node->alice("SELECT leasehold.start_command('$lease', argv => ARRAY['printf', '%s.', 'a b', '', '\$HOME', 'ü'])")))[1],
		'a b..$HOME.ü.', 'arguments as they are');
	is((ends(start($lease, 'true', q(cwd => '/nonexistent'))))[0], 'failed', 'a directory that is not there');
	is((run($lease, 'printf "\0\377\033[31m" | od -An -tx1'))[1], ' 00 ff 1b 5b 33 31 6d', 'any byte');
	my ($sum) = (run($lease, 'head -c 300000 /dev/urandom >/tmp/r; md5sum </tmp/r'))[1] =~ /^(\w+)/;
	$command = start($lease, 'cat /tmp/r');
	ends($command);
	is($node->owner("SELECT md5(string_agg(data, ''::bytea ORDER BY seq)) FROM leasehold.command_output WHERE command_id = '$command'"),
		$sum, 'what it wrote is kept byte for byte');
};

subtest 'what came to be exposed later' => sub {
	set('leasehold.bubblewrap_read_only', $node->basedir);
	is((run($lease, 'echo here'))[0], 'failed', 'a command does not begin');
	like($node->owner("SELECT failure_code || ' ' || failure_reason FROM leasehold.commands ORDER BY requested_at DESC LIMIT 1"),
		qr/^sandbox_unavailable .*the data directory would be seen/, 'and says why');
	unset('leasehold.bubblewrap_read_only');
	eventually { (run($lease, 'echo here'))[1] eq 'here' } 'until the path is taken away';
};

subtest 'what was turned off' => sub {
	set('leasehold.bubblewrap', 'off');
	is((run($lease, 'echo here'))[0], 'failed', 'no command begins');
	is($node->owner('SELECT failure_code FROM leasehold.commands ORDER BY requested_at DESC LIMIT 1'), 'provider_forbidden', 'and says why');
	set('leasehold.bubblewrap', 'on');
	eventually { (run($lease, 'echo here'))[1] eq 'here' } 'until it is turned on again';
};

subtest 'memory that is promised' => sub {
	set('leasehold.bubblewrap_free_memory', '1000GB');
	like($node->doctor, qr/of which workspaces may still take (49|50) MB/, 'to an empty workspace');
	run($lease, 'head -c 20M /dev/zero >/tmp/big');
	like($node->doctor, qr/of which workspaces may still take (29|30) MB/, 'and to one that is partly filled');
	run($lease, 'rm /tmp/big');
	set('leasehold.bubblewrap_free_memory', '64MB');
};

subtest 'output as it comes' => sub {
	my $command = start($lease, 'echo first; sleep 1000');
	eventually { Leasehold::Sandbox::output($node, $command, 'stdout') eq 'first' } 'before the end';
	is($node->owner("SELECT status FROM leasehold.commands WHERE id = '$command'"), 'running', 'while it runs');
	$node->alice("SELECT leasehold.cancel_command('$command')");
	is((ends($command))[0], 'cancelled SIGTERM', 'until it is cancelled');
};

subtest 'what ends it ends all of it' => sub {
	my $stubborn = 'trap "" TERM; (trap "" TERM; setsid sleep 4242) & setsid setsid sleep 4242 & sleep 4242; sleep 4242';
	my $command = start($lease, "echo up; $stubborn");
	eventually { Leasehold::Sandbox::processes(qr/^sleep\0004242\0/) >= 3 } 'a tree of processes';
	$node->alice("SELECT leasehold.cancel_command('$command')");
	is((ends($command))[0], 'cancelled SIGKILL', 'one that does not listen');
	is(scalar Leasehold::Sandbox::processes(qr/^sleep\0004242\0/), 0, 'nothing of it is left');
	is((run($lease, $stubborn, q(timeout => '300 ms')))[0], 'timed_out SIGKILL', 'a time limit');
	is(scalar Leasehold::Sandbox::processes(qr/^sleep\0004242\0/), 0, 'nothing of it is left');
	is((run($lease, 'echo partial; sleep 1000', q(timeout => '500 ms')))[1], 'partial', 'what it wrote before is kept');
	is((run($lease, 'setsid sleep 4242 >/dev/null 2>&1 & setsid sleep 4242 & echo done'))[1], 'done', 'what it leaves behind');
	is(scalar Leasehold::Sandbox::processes(qr/^sleep\0004242\0/), 0, 'ends with it');
	is((run($lease, 'trap "exit 0" TERM; sleep 1000 & wait', q(timeout => '300 ms')))[0], 'exited 0', 'one that comes to a good end');
};

subtest 'what it cannot see' => sub {
	my $data = $node->data_dir;
	my $host = $node->host;
	my ($worker) = $node->workers;
	my %seen = map { $_->[0] => (run($lease, $_->[1]))[1] } (
		[ data => "ls $data 2>&1; cat $data/PG_VERSION 2>&1" ],
		[ sockets => "ls $host 2>&1" ],
		[ directory => 'ls ' . Leasehold::Sandbox::directory($node) . ' 2>&1' ],
		[ root => 'ls /' ],
		[ home => 'ls /home /root /var /run /srv 2>&1' ],
		[ etc => 'ls /etc' ],
		[ processes => "ls -d /proc/[0-9]* | wc -l; ls /proc/$worker 2>&1; kill -9 $worker 2>&1" ],
		[ network => 'cat /proc/net/dev | tail -n +3 | cut -d: -f1' ],
		[ environment => 'env | cut -d= -f1 | sort | tr "\n" " "' ],
		[ descriptors => 'ls /proc/self/fd | tr "\n" " "' ],
		[ first => 'cat /proc/1/environ 2>&1; ls /proc/1/fd 2>&1' ],
		[ who => 'id -u; hostname; grep -c Cap.*:.0000000000000000 /proc/self/status; grep NoNewPrivs /proc/self/status' ],
		[ ipc => 'ipcs -m | grep -c 0x' ],
		[ tty => 'echo x >/dev/tty' ],
	);
	like($seen{data}, qr/No such file.*No such file/s, 'the data directory');
	like($seen{sockets}, qr/No such file/, 'the sockets');
	like($seen{directory}, qr/No such file/, 'other sandboxes');
	is($seen{root}, join("\n", grep { -e "/$_" || /^(dev|etc|proc|tmp|usr|workspace)$/ } qw(bin dev etc lib lib32 lib64 libx32 proc sbin tmp usr workspace)),
		'of the host, programs and libraries alone');
	unlike($seen{home}, qr/^\w+$/m, 'homes and state');
	unlike($seen{etc}, qr/shadow|ssh|postgresql|ssl.private/, 'configuration');
	my ($count, @more) = split /\n/, $seen{processes};
	cmp_ok($count, '<', 8, 'processes of the host');
	like("@more", qr/No such (file|process).*No such process/, 'the worker');
	is($seen{network} =~ s/\s//gr, 'lo', 'networks');
	is($seen{environment}, 'HOME LANG LOGNAME PATH PWD SHELL TMPDIR USER ', 'the environment');
	is($seen{descriptors}, '0 1 2 3 ', 'descriptors, but for that of ls itself');
	like($seen{first}, qr/Permission denied.*(Permission denied|cannot open)/s, 'the first process');
	is($seen{who}, "1000\nsandbox\n5\nNoNewPrivs:\t1", 'it is nobody in particular, without capabilities');
	is($seen{ipc}, '0', 'shared memory');

	my $server = IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1') or die $!;
	my $port = $server->sockport;
	like(join(' ', run($lease, "exec 3<>/dev/tcp/127.0.0.1/$port", q(env => '{"X": "1"}')))
		  . join(' ', ends($node->alice("SELECT leasehold.start_command('$lease', argv => ARRAY['bash', '-c', 'exec 3<>/dev/tcp/127.0.0.1/$port'])"))),
		qr/Connection refused/, 'a server of the host');
	like((run($lease, 'bash -c "exec 3<>/dev/tcp/192.0.2.1/80"'))[2], qr/unreachable/, 'the rest of the world');

	my $other = lease();
	run($other, 'echo secret >/workspace/secret; echo secret >/tmp/secret; echo secret >/dev/shm/secret');
	is((run($lease, 'cat /workspace/secret /tmp/secret /dev/shm/secret 2>/dev/null'))[1], '', 'the files of another lease');
	$node->alice("SELECT leasehold.release_lease('$other')");
	$node->settles($other, 'released', 'which ends');
};

subtest 'what it cannot do' => sub {
	for my $attempt (
		'touch /x', 'touch /usr/x', 'touch /etc/x', 'touch /dev/x', 'rm /bin/sh', 'mount -t tmpfs none /tmp', 'umount /workspace',
		'unshare -U true', 'unshare -n true', 'chroot / true', 'mknod /tmp/m c 1 1', 'su nobody -s /bin/true', 'kill -9 1 && sleep 1 && kill -0 1 && false',
		'echo 1 >/proc/sys/kernel/panic', 'echo x >/proc/sysrq-trigger', 'ulimit -u 1000', 'ulimit -d unlimited', 'hostname other',
		"python3 -c 'import socket; socket.socket(40, 1)'", "python3 -c 'import socket; socket.socket(17, 3)'",
		"python3 -c 'import ctypes; exit(ctypes.CDLL(None).syscall(250, 0, -3, 1) < 0)'",
		"python3 -c 'import ctypes; exit(ctypes.CDLL(None).syscall(321, 0, 0, 0) < 0)'",
		'echo 0 >/proc/self/oom_score_adj', 'echo 500 >/proc/self/oom_score_adj',
		(map { "python3 -c 'import socket; socket.socket($_)'" } '2, 1, 132', '2, 1, 262', '10, 6, 33', '16, 3, 9', '16, 3, 16'),
		"python3 -c 'import socket; socket.socketpair(30, 1)'", "python3 -c 'import socket; socket.socketpair(2, 1)'",
		"python3 -c 'import ctypes; exit(ctypes.CDLL(None).syscall(103, 3, 0, 0) < 0)'",
		"python3 -c 'import fcntl, os, struct; fcntl.ioctl(os.openpty()[0], 0x5423, struct.pack(\"i\", 3))'",
		'grep . /proc/cmdline', 'grep . /proc/keys', 'ulimit -n 5000', 'echo x >&0',
		'dmesg', 'chown 0 /workspace', 'nsenter -t 1 -n true', 'ip link set lo down')
	{
		my ($how) = run($lease, "($attempt) >/dev/null 2>&1");
		like($how, qr/^(exited [1-9]|signalled)/, $attempt);
	}
	is((run($lease, "python3 -c 'import socket; [socket.socket(f, t).close() for f in (1, 2, 10) for t in (1, 2)]; socket.socket(16, 3, 0); socket.socketpair(); print(\"well\")'"))[1], 'well',
		'and nothing is broken');
	my $directory = Leasehold::Sandbox::directory($node);
	is((run($lease, "grep -cE '$directory|leasehold_sandbox' /proc/self/mountinfo"))[1], '0', 'no mount tells where the host has it');
	is((run($lease, 'echo more >>/proc/self/fd/0 && echo written', q(stdin => 'input')))[1], '', 'its input cannot grow');
};

subtest 'limits' => sub {
	my ($how, $out, $err) = run($lease, 'head -c 80M /dev/zero >/workspace/big');
	like($err, qr/No space left/, 'the size of the workspace');
	like((run($lease, 'head -c 20M /dev/zero >/dev/shm/big; head -c 40M /dev/zero >/tmp/big'))[2], qr/No space left/, 'with /tmp and /dev/shm');
	like((run($lease, 'rm -f /workspace/big /tmp/big /dev/shm/big; for i in $(seq 20000); do : >/tmp/f$i || exit 9; done'))[0], qr/exited [1-9]/, 'files');
	run($lease, 'rm -rf /tmp/*');
	like((run($lease, 'head -c 700M /dev/zero | tail -c 600M | wc -c'))[2], qr/memory exhausted/, 'memory');
	my $command = start($lease, 'bomb() { bomb | bomb & }; bomb 2>/dev/null; sleep 1; echo $(ls -d /proc/[0-9]* | wc -l)');
	my (undef, $count) = ends($command);
	cmp_ok($count || 0, '<=', 61, 'processes');
	is((run($lease, 'echo well'))[1], 'well', 'the next command runs');
	$node->environment('small', 'bubblewrap', { workspaceMb => 20, fileMb => 1, cpuSeconds => 1 });
	my $small = lease('small');
	is((run($small, 'exec head -c 2M /dev/zero >/workspace/big'))[0], 'signalled SIGXFSZ', 'the size of a file');
	is((run($small, 'while :; do :; done'))[0], 'signalled SIGXCPU', 'time of the processor');
	$node->alice("SELECT leasehold.release_lease('$small')");
	$node->alice("SELECT leasehold.release_lease('$lease')");
	$node->settles($lease, 'released', 'the lease ends');
	$lease = lease();
	my ($sum) = (run($lease, 'yes | head -c 40000000'))[0];
	is($sum, 'exited 0', 'a flood');
	is($node->owner("SELECT output_truncated || ' ' || stdout_bytes FROM leasehold.commands ORDER BY requested_at DESC LIMIT 1"),
		'true 40000000', 'is cut, and counted');
};

subtest 'what an administrator allows at most' => sub {
	set('leasehold.bubblewrap_max_memory', '50MB');
	set('leasehold.bubblewrap_max_processes', 7);
	like((run($lease, 'head -c 90M /dev/zero | tail -c 80M | wc -c'))[2], qr/memory exhausted|Cannot (fork|allocate)/, 'memory');
	like((run($lease, 'for i in 1 2 3 4 5 6 7 8; do sleep 5 & done; wait'))[2], qr/Cannot fork|Resource temporarily/, 'processes');
	unset($_) for 'leasehold.bubblewrap_max_memory', 'leasehold.bubblewrap_max_processes';
};

# Parked, it is there still, with all its files; removed, nothing of it is.
subtest 'one that is used again' => sub {
	$node->environment('kept', 'bubblewrap', { workspaceMb => 20, reuseLease => \1 });
	my ($agent, $workspace) = map { $node->owner('SELECT leasehold.new_id()') } 1 .. 2;
	$node->alice("SELECT leasehold.upsert_agent('$agent', adapter_type => 'x'), leasehold.upsert_execution_workspace('$workspace')");
	my @runs = map { $node->owner('SELECT leasehold.new_id()') } 1 .. 2;
	my $first;
	for my $run (@runs)
	{
		$node->alice("SELECT leasehold.start_run('$agent', execution_workspace_id => '$workspace', run_id => '$run')");
		my $kept = $node->request(qq('kept', run_id => '$run'));
		$node->settles($kept, 'active', 'a lease of a run');
		is((run($kept, 'cat file 2>/dev/null; echo more >>file'))[1], $first ? 'more' : '', 'with the files of the run before');
		is($kept, $first // $kept, 'it is the same');
		$first = $kept;
		my $busy = start($kept, 'echo up; sleep 4247');
		eventually { Leasehold::Sandbox::output($node, $busy, 'stdout') eq 'up' } 'a command runs';
		$node->alice("SELECT leasehold.finish_run('$run')");
		is((ends($busy))[0], 'cancelled SIGTERM', 'it ends with the run');
		$node->settles($kept, 'retained', 'the lease is parked');
	}
	my $holders = Leasehold::Sandbox::holders($node);
	my ($directory) = glob Leasehold::Sandbox::directory($node) . "/*/*.$first.*";
	ok(-e $directory, 'it has a directory');
	$node->alice("SELECT leasehold.destroy_lease('$first')");
	eventually { !-e $directory && Leasehold::Sandbox::holders($node) == $holders - 1 } 'until it is destroyed';
};

subtest 'one that is cancelled at any moment' => sub {
	for my $pause (map { $_ / 1000 } 0 .. 24)
	{
		my $command = start($lease, 'exec sleep 4245');
		eventually { $node->owner("SELECT status FROM leasehold.commands WHERE id = '$command'") ne 'queued' } 'it is claimed';
		select undef, undef, undef, $pause;
		$node->alice("SELECT leasehold.cancel_command('$command')");
		like((ends($command))[0], qr/^cancelled/, "$pause s after that");
	}
	eventually { Leasehold::Sandbox::inside() == 0 && Leasehold::Sandbox::processes(qr/^\S*bwrap\0/) == 0
		&& Leasehold::Sandbox::processes(qr/^sleep\0004245\0/) == 0 && Leasehold::Sandbox::processes(qr/leasehold_sandbox\0enter\0/) == 0 }
		'nothing of them is left';
	my $worker = ($node->workers)[0];
	my @commands = map { start($lease, 'exec sleep 4246') } 1 .. 10;
	eventually { Leasehold::Sandbox::processes(qr/leasehold_sandbox\0enter\0/) > 0 } 'some are coming up';
	kill 'KILL', $worker;
	eventually { Leasehold::Sandbox::inside() == 0 && Leasehold::Sandbox::processes(qr/^\S*bwrap\0/) == 0
		&& Leasehold::Sandbox::processes(qr/^sleep\0004246\0/) == 0 && Leasehold::Sandbox::processes(qr/leasehold_sandbox\0enter\0/) == 0 }
		'nor when the worker dies';
	$node->comes_back('the server is back');
	$_ = (ends($_))[0] for @commands;
	is(scalar(grep { !/^(lost|unknown)$/ } @commands), 0, 'their ends are unknown') or diag "@commands";
};

subtest 'a descriptor that is passed on' => sub {
	my $keeper = start($lease, q(python3 -c '
import socket, time
s = socket.socket(socket.AF_UNIX); s.bind("/workspace/s"); s.listen(); print("up", flush=True)
c = s.accept()[0]; kept = socket.recv_fds(c, 10, 2)[1]; c.send(b"x"); time.sleep(1000)'));
	eventually { Leasehold::Sandbox::output($node, $keeper, 'stdout') eq 'up' } 'a neighbour waits for it';
	is(join(' ', run($lease, q(python3 -c '
import socket
c = socket.socket(socket.AF_UNIX); c.connect("/workspace/s"); print("said", flush=True)
socket.send_fds(c, [b"x"], [1, 2]); c.recv(1)'))), 'exited 0 said ', 'the command that passed it on ends');
	$node->alice("SELECT leasehold.cancel_command('$keeper')");
	ends($keeper);
};

subtest 'what others see of it' => sub {
	my $command = start($lease, 'echo up; sleep 1000 # MARK-SCRIPT', q(stdin => 'MARK-STDIN', env => '{"VALUE": "MARK-ENV"}'));
	eventually { Leasehold::Sandbox::output($node, $command, 'stdout') eq 'up' } 'a command runs';
	is(scalar Leasehold::Sandbox::processes(qr/MARK-/), 0, 'neither script, nor input, nor environment in a list of processes');
	is($node->owner('SELECT count(*) FROM leasehold_internal.command_inputs'), '0', 'nor in the database');
	$node->alice("SELECT leasehold.cancel_command('$command')");
	ends($command);
	is((ends($node->alice("SELECT leasehold.start_command('$lease', argv => ARRAY['sh', '-c', 'echo \$0 \$LEASEHOLD_SCRIPT.'])")))[1], 'sh .',
		'the script sees no difference');
};

subtest 'many at once' => sub {
	my @commands = map { start($lease, "sleep 0.2; echo $_") } 1 .. 20;
	is(join(' ', map { (ends($_))[1] } @commands), join(' ', 1 .. 20), 'each its own');
};

subtest 'the worker ends' => sub {
	run($lease, 'echo kept >/workspace/kept');
	for my $how ('told', 'killed')
	{
		my $command = start($lease, 'echo before; sleep 4243');
		eventually { Leasehold::Sandbox::output($node, $command, 'stdout') eq 'before' } "a command runs ($how)";
		my ($worker) = $node->workers;
		$how eq 'told' ? $node->owner("SELECT pg_terminate_backend($worker)") : $node->loses($worker);
		eventually { Leasehold::Sandbox::processes(qr/^sleep\0004243\0/) == 0 } 'nothing of it is left';
		$node->comes_back('the server is back');
		is((ends($command))[0], 'lost', 'its end is unknown');
		is(Leasehold::Sandbox::output($node, $command, 'stdout'), 'before', 'its output is kept');
		is((run($lease, 'cat /workspace/kept'))[1], 'kept', 'the sandbox is there still');
		$node->happens("SELECT count(*) = 0 FROM leasehold_internal.calls WHERE slot = 'cancel'", 'nothing is left to do');
	}
	$node->restart;
	$node->serving;
	is((run($lease, 'cat /workspace/kept'))[1], 'kept', 'after a restart of the server, too');
};

subtest 'nothing is left over' => sub {
	my $busy = start($lease, 'echo up; sleep 4244');
	eventually { Leasehold::Sandbox::output($node, $busy, 'stdout') eq 'up' } 'a command runs';
	$node->alice("SELECT leasehold.release_lease('$lease')");
	is((ends($busy))[0], 'cancelled SIGTERM', 'it ends with its lease');
	$node->settles($lease, 'released', 'which ends then');
	my $gone = lease();
	kill 'KILL', Leasehold::Sandbox::holders($node);
	eventually { Leasehold::Sandbox::holders($node) == 0 } 'a sandbox dies';
	is((run($gone, 'true'))[0], 'failed', 'its commands cannot run');
	is($node->owner("SELECT failure_code FROM leasehold.commands WHERE lease_id = '$gone'"), 'resource_gone', 'and say why');
	$node->settles($gone, 'failed', 'there is nothing left to lease');
	is($node->lease($gone, 'failure_code'), 'resource_gone', 'which says why, too');

	# what a machine that lost its power left
	my $empty = lease();
	my ($left) = glob Leasehold::Sandbox::directory($node) . "/*/*.$empty.*";
	kill 'TERM', Leasehold::Sandbox::holders($node);
	eventually { Leasehold::Sandbox::holders($node) == 0 } 'a sandbox can be told to end, as by a service that stops';
	open(my $record, '>', "$left/holder") or die $!;
	close $record;
	$node->alice("SELECT leasehold.release_lease('$empty')");
	$node->settles($empty, 'released', 'one whose record is empty is gone');
	ok(!-e $left, 'with its directory');

	# one that no lease knows of
	my $stray = lease();
	my ($directory) = glob Leasehold::Sandbox::directory($node) . '/*/*';
	$node->owner("SET session_replication_role = replica; DELETE FROM leasehold_internal.provider_resources;
		DELETE FROM leasehold_internal.calls WHERE slot <> 'sweep'; DELETE FROM leasehold.leases WHERE id = '$stray'");
	set('leasehold.reconcile_interval', '1s');
	set('leasehold.housekeeping_interval', '1s');
	eventually { !-e $directory } 'a stray is found and removed';
	is(scalar Leasehold::Sandbox::holders($node), 0, 'no process is left');
	is(scalar(() = glob Leasehold::Sandbox::directory($node) . '/*/*'), 0, 'no directory');
	is($node->owner("SELECT string_agg(DISTINCT action, ' ' ORDER BY action) FROM leasehold.audit_events WHERE action LIKE '%stray%'"),
		'environment.stray_found environment.stray_removed', 'and it is told of');
};

done_testing();
