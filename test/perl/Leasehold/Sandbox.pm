# Leasehold::Sandbox - what tests of the provider "bubblewrap" need.
#
#   plan skip_all => $why if my $why = Leasehold::Sandbox::problem();
#   Leasehold::Sandbox::set_up($node);
#   my ($how, $stdout, $stderr) = Leasehold::Sandbox::run($node, $lease, q(echo hello));

package Leasehold::Sandbox;

use strict;
use warnings;

use Leasehold::Node;

# problem: why this machine cannot run sandboxes, or undef.
sub problem
{
	return 'bubblewrap is not installed' unless -x '/usr/bin/bwrap';
	my $said = qx(/usr/bin/bwrap --unshare-all --unshare-user --disable-userns --ro-bind / / true 2>&1);
	return $? == 0 ? undef : "this machine does not let users make sandboxes: $said";
}

# set_up(node): a directory, the settings, the company's permission, the environment "box".
sub set_up
{
	my ($node) = @_;
	my $directory = directory($node);
	mkdir $directory, 0700 or die "could not make $directory: $!";
	$node->append_conf('postgresql.conf', qq(
leasehold.bubblewrap = on
leasehold.bubblewrap_directory = '$directory'
leasehold.bubblewrap_data_filesystem = on
leasehold.bubblewrap_free_memory = 64MB
));
	$node->reload;
	$node->boss(q(SELECT leasehold.allow_provider('acme', 'bubblewrap')));
	$node->environment('box', 'bubblewrap', { workspaceMb => 50, memoryMb => 400, processes => 60 });
	return;
}

sub directory { return $_[0]->basedir . '/sandboxes'; }

# lease(node, environment): one that is active.
sub lease
{
	my ($node, $environment) = @_;
	my $lease = $node->request(quote($environment // 'box'));
	$node->poll("SELECT status NOT IN ('acquiring') FROM leasehold.leases WHERE id = '$lease'");
	die 'no sandbox: ' . $node->lease($lease, 'status', 'failure_reason') unless $node->lease($lease) eq 'active';
	return $lease;
}

# start(node, lease, script, more arguments): the command's id.
sub start
{
	my ($node, $lease, $script, $more) = @_;
	return $node->alice("SELECT leasehold.start_command('$lease', shell => " . quote($script) . ($more ? ", $more" : '') . ')');
}

# ends(node, command): waits for its end; (how, stdout, stderr).
sub ends
{
	my ($node, $command) = @_;
	$node->poll("SELECT status = 'finished' FROM leasehold.commands WHERE id = '$command'") or die "command $command does not end";
	return (
		$node->owner("SELECT outcome || COALESCE(' ' || exit_code, '') || COALESCE(' ' || signal, '') FROM leasehold.commands WHERE id = '$command'"),
		output($node, $command, 'stdout'), output($node, $command, 'stderr'));
}

sub output
{
	my ($node, $command, $stream) = @_;
	my $text = $node->owner("SELECT COALESCE(string_agg(leasehold_internal.output_text(data), '' ORDER BY seq), '')
		FROM leasehold.command_output WHERE command_id = '$command' AND stream = '$stream'");
	chomp $text;
	return $text;
}

sub run
{
	my ($node, @rest) = @_;
	return ends($node, start($node, @rest));
}

# processes(pattern): ids of this machine's processes whose command line has it.
sub processes
{
	my ($pattern) = @_;
	my @found;
	for my $file (glob '/proc/[0-9]*/cmdline')
	{
		open my $handle, '<', $file or next;
		local $/ = undef;
		my $line = <$handle> // '';
		push @found, $file =~ m{/(\d+)/} if $line =~ $pattern;
	}
	return @found;
}

# holders(node): the processes that hold this server's sandboxes.
sub holders { my ($node) = @_; my $directory = directory($node); return processes(qr{^\S*leasehold_sandbox\0hold\0\Q$directory\E/}); }

# inside(node): the processes in them.
sub inside { return processes(qr{^/\.leasehold\0init\0$}); }

1;
