# Leasehold::Terminal - a person who sits at psql, in a terminal.
#
#   my $terminal = Leasehold::Terminal->start($node, 'alice');
#   $terminal->type("CALL leasehold.run('acme', 'dev', 'npm test');");
#   $terminal->sees(qr/INFO:  hello/, 'the output appears');
#   $terminal->type("\cC");
#
# What is typed is echoed, as terminals do.

package Leasehold::Terminal;

use strict;
use warnings;

use IPC::Run ();
use Test::More;
use Time::HiRes qw(time);

use Leasehold::Node;

sub start
{
	my ($class, $node, $role) = @_;
	my $self = bless { in => '', out => '' }, $class;
	local %ENV = (%ENV, TERM => 'dumb', PSQL_PAGER => '', PSQL_HISTORY => '/dev/null', INPUTRC => '/dev/null');
	$self->{run} = IPC::Run::start(
		[ $node->installed_command('psql'), '-X', '-n', '-v', 'SHOW_CONTEXT=never', '-d', $node->connstr('postgres') . " user=$role" ],
		'<pty<', \$self->{in}, '>pty>', \$self->{out}, '2>&1');
	$self->sees(qr/postgres[=#]> /, "$role sits at psql");
	return $self;
}

# type(text): as a line, unless it is a control character.
sub type
{
	my ($self, $text) = @_;
	$self->{out} = '';
	$self->{in} .= $text =~ /^[\x00-\x1f]/ ? $text : "$text\n";
	$self->{run}->pump_nb while length $self->{in};
	return;
}

# sees(pattern, name): waits until the terminal shows it, since something was typed.
sub sees
{
	my ($self, $pattern, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $give_up = time + $Leasehold::Node::PATIENCE;
	until ($self->{out} =~ $pattern || time > $give_up || !$self->{run}->pumpable)
	{
		$self->{run}->pump_nb;
		select undef, undef, undef, 0.02;
	}
	return like($self->{out}, $pattern, $name);
}

# pid: of psql.
sub pid { my ($self) = @_; return $self->{run}->{KIDS}->[0]->{PID}; }

sub kill
{
	my ($self) = @_;
	kill 'KILL', $self->pid;
	eval { $self->{run}->finish };
	return;
}

sub quit
{
	my ($self) = @_;
	$self->type('\q');
	eval { $self->{run}->finish };
	return;
}

1;
