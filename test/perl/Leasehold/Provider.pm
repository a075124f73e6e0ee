# Leasehold::Provider - the HTTP provider double, run by a test.
#
#   my $provider = Leasehold::Provider->start($node);
#   $provider->register($node);
#   $provider->faults(acquire => 'lose_answer', times => 1);
#   is($provider->counters->{live}, 1, 'one sandbox');
#
# Each has its own port and token file.  The plugin it is registered as offers
# two providers: one named like itself, a sandbox provider, and NAME-host, an
# environment driver.

package Leasehold::Provider;

use strict;
use warnings;

use Carp;
use Cwd qw(abs_path);
use File::Basename qw(dirname);
use HTTP::Tiny;
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use Leasehold::Node qw(json quote);

my $DOUBLES = abs_path(dirname(__FILE__) . '/../../doubles');
my @processes;
my $number = 0;

# start(node, %options): starts the double.
#   name => 'box'        the plugin's and the provider's key
#   variant => 'lookup'  or 'plain', without the optional methods
#   idempotent => 'yes'  or 'no'
#   arguments => []      more for the double
sub start
{
	my ($class, $node, %options) = @_;
	my $directory = PostgreSQL::Test::Utils::tempdir();
	my $self = bless {
		name => $options{name} // 'box',
		variant => $options{variant} // 'lookup',
		directory => $directory,
		token_file => 'token-' . ++$number,
		port => 0,
		arguments => [
			'--state' => "$directory/state",
			$options{idempotent} ? ('--idempotent' => $options{idempotent}) : (),
			@{ $options{arguments} // [] } ],
	}, $class;
	$self->{token} = 'a-token-of-' . $self->{name};
	$self->run;
	$self->put_token($node, $self->{token});
	return $self;
}

# put_token(node, token, %options): writes the token file as an administrator would.
#   url => text   for the origin of this URL, not for that of the double
#   text => text  this and nothing else
#   mode => 0600
sub put_token
{
	my ($self, $node, $token, %options) = @_;
	my $path = $node->token_directory . '/' . $self->{token_file};
	my ($origin) = ($options{url} // $self->url) =~ m{^(\w+://[^/?]+)};
	unlink $path;
	open my $file, '>', $path or croak "could not write $path: $!";
	print $file $options{text} // "for: $origin\n$token\n";
	close $file;
	chmod $options{mode} // 0600, $path;
	return $path;
}

# Starts the process, again at the same port once it had one.
sub run
{
	my ($self) = @_;
	my $ready = "$self->{directory}/ready";
	($self->{pid}, $self->{port}) = start_python(
		$ready, "$self->{directory}/output", 'http_provider.py',
		'--port' => $self->{port}, '--token' => $self->{token},
		'--variant' => $self->{variant}, '--ready-file' => $ready, @{ $self->{arguments} });
	return $self;
}

# start_python(ready file, output file, script of test/doubles, argument…): its
# pid and the port that it wrote to the ready file.
sub start_python
{
	my ($ready, $output, $script, @arguments) = @_;
	unlink $ready;
	my $pid = fork // croak "could not fork: $!";
	if ($pid == 0)
	{
		open STDOUT, '>>', $output;
		open STDERR, '>&', \*STDOUT;
		exec 'python3', '-B', "$DOUBLES/$script", @arguments or POSIX::_exit(127);
	}
	push @processes, $pid;
	my $give_up = time + $Leasehold::Node::PATIENCE;
	until (-s $ready)
	{
		croak "$script did not start: " . slurp_file($output)
		  if time > $give_up || waitpid($pid, 1) != 0;
		sleep 0.02;
	}
	chomp(my $port = slurp_file($ready));
	return ($pid, $port);
}

# stop: as if the provider's machine were switched off; run() brings it back.
sub stop
{
	my ($self, $signal) = @_;
	return unless $self->{pid};
	stop_process(delete $self->{pid}, $signal);
	return;
}

sub stop_process
{
	my ($pid, $signal) = @_;
	kill $signal // 'TERM', $pid;
	waitpid $pid, 0;
	@processes = grep { $_ != $pid } @processes;
	return;
}

sub url { my ($self) = @_; return "http://127.0.0.1:$self->{port}/rpc"; }

# The manifest of a plugin that could be published.
sub manifest
{
	my ($self) = @_;
	my %driver = (
		configSchema => { type => 'object' },
		supportsReusableLeases => JSON::PP::true);
	return {
		id => $self->{name},
		apiVersion => 1,
		version => $self->{version} // '1.0.0',
		displayName => "Box $self->{name}",
		description => 'Sandboxes that are only pretended',
		author => 'Leasehold tests',
		categories => ['connector'],
		capabilities => ['environment.drivers.register'],
		entrypoints => { worker => './dist/worker.js' },
		environmentDrivers => [
			{ %driver, driverKey => $self->{name}, kind => 'sandbox_provider', displayName => 'Box' },
			{ %driver, driverKey => "$self->{name}-host", kind => 'environment_driver', displayName => 'Host' },
		],
	};
}

# register(node, %options): makes it a plugin of the database and waits until
# that is ready.
#   url, allow (list of networks), manifest, ready => 0 (do not wait), database
sub register
{
	my ($self, $node, %options) = @_;
	my $transport = {
		type => 'http',
		url => $options{url} // $self->url,
		token_file => $self->{token_file} };
	$self->put_token($node, $self->{token}, url => $options{url}) if $options{url};
	my $networks = join ', ', map { quote($_) } @{ $options{allow} // ['127.0.0.0/8'] };
	$node->boss(
		sprintf('SELECT leasehold.register_plugin(%s, %s, ARRAY[%s]::text[])',
			quote(json($options{manifest} // $self->manifest)), quote(json($transport)), $networks),
		$options{database});
	return $self if exists $options{ready} && !$options{ready};
	$node->poll("SELECT status = 'ready' FROM leasehold.plugins WHERE key = '$self->{name}'", $options{database})
	  or croak 'the plugin did not become ready: '
	  . $node->owner('SELECT key, status, last_error FROM leasehold.plugins', $options{database});
	return $self;
}

# Looking in and interfering.

sub _admin
{
	my ($self, $method, $path, $body) = @_;
	my $response = HTTP::Tiny->new(timeout => 30)->request(
		$method, "http://127.0.0.1:$self->{port}/_admin/$path",
		defined $body ? { content => json($body) } : {});
	croak "the provider double refused $path: $response->{content}" unless $response->{success};
	return json($response->{content});
}

sub resources { my ($self) = @_; return @{ $self->_admin('GET', 'state')->{resources} }; }
sub counters { my ($self) = @_; return $self->_admin('GET', 'state')->{counters}; }

# requests(method => 'acquire', leaseId => …): those that came, oldest first.
sub requests
{
	my ($self, %wanted) = @_;
	return @{ $self->_admin('GET', 'requests?' . join('&', map { "$_=$wanted{$_}" } sort keys %wanted)) };
}

# params(method, leaseId): the parameters of the only such request.
sub params
{
	my ($self, $method, $lease) = @_;
	my @requests = $self->requests(method => $method, $lease ? (leaseId => $lease) : ());
	croak scalar(@requests) . " $method requests instead of one" if @requests != 1;
	return $requests[0]{params};
}

sub faults { my ($self, %order) = @_; $self->_admin('POST', 'faults', \%order); return; }
sub reset { my ($self, %order) = @_; $self->_admin('POST', 'reset', \%order); return; }
sub forget { my ($self, $id) = @_; $self->_admin('POST', 'forget', { providerLeaseId => $id }); return; }
sub create { my ($self, %order) = @_; return $self->_admin('POST', 'create', \%order)->{providerLeaseId}; }

# obeyed(name): tests that no request broke the protocol.
sub obeyed
{
	my ($self, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $counters = $self->counters;
	return is_deeply($counters->{violations}, [], $name // 'no request broke the protocol');
}

END
{
	my $status = $?;
	stop_process($processes[0], 'KILL') while @processes;
	$? = $status;
}

1;
