# To whom the worker speaks: only to addresses that a plugin may have, only to
# certificates that are right, and never elsewhere because it was told to.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use IO::Select;
use IO::Socket::INET;
use PostgreSQL::Test::Utils;
use Test::More;

use Leasehold::Node;
use Leasehold::Provider;

# A proxy that the environment asks for must not be used.
my $proxy = IO::Socket::INET->new(Listen => 5, LocalAddr => '127.0.0.1') or BAIL_OUT("no listener: $!");
my $proxy_url = 'http://127.0.0.1:' . $proxy->sockport;
my $node;
{
	local @ENV{qw(http_proxy https_proxy HTTPS_PROXY all_proxy ALL_PROXY)} = ($proxy_url) x 5;
	$node = Leasehold::Node->new('main')->setup(
		configuration => q(
leasehold.connect_timeout = 1s
leasehold.acquire_attempts = 2
leasehold.breaker_threshold = 1000
leasehold.retry_max = 50ms
));
}
my $provider = Leasehold::Provider->start($node)->register($node);
my $port = $provider->{port};

# says(url, networks, pattern, name): what initialize makes of it.
my $tried = Leasehold::Provider->start($node, name => 'tried')->register($node);

sub says
{
	my ($url, $networks, $pattern, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$tried->put_token($node, $tried->{token}, url => $url);
	$node->boss(
		sprintf(
			'SELECT leasehold.update_plugin(%s, transport => %s, allow_addresses => ARRAY[%s]::text[])',
			quote('tried'),
			quote(json({ type => 'http', url => $url, token_file => $tried->{token_file} })),
			join ', ', map { quote($_) } @$networks));
	my $said = '';
	my $good = $node->poll(q(SELECT status <> 'installed' FROM leasehold.plugins WHERE key = 'tried'));
	$said = $node->owner(q(SELECT COALESCE(last_error, status::text) FROM leasehold.plugins WHERE key = 'tried'));
	return like($said, $pattern, $name);
}

subtest 'addresses' => sub {
	# nothing may be allowed that is not said
	for my $host (
		'127.0.0.1', 'localhost', '127.1', '2130706433', '0x7f000001', '0.0.0.0', '[::1]', '[::ffff:127.0.0.1]',
		'[::ffff:7f00:1]', '[64:ff9b::7f00:1]', '169.254.169.254', '[::ffff:169.254.169.254]', '[fd00:ec2::254]',
		'[fe80::1]', '10.0.0.1', '172.16.0.1', '192.168.1.1', '100.64.0.1', '192.0.2.1', '224.0.0.1', '255.255.255.255')
	{
		says("https://$host:$port/rpc", [], qr/not allowed/, "https://$host is refused");
	}
	says("http://127.0.0.1:$port/rpc", [], qr/not allowed/, 'http://127.0.0.1 is refused');
	says("https://127.0.0.1:$port/rpc", ['10.0.0.0/8'], qr/not allowed/, 'what is allowed is only what is said');

	# without TLS only loopback, whatever is allowed
	for my $host ('10.0.0.1', '169.254.169.254', '192.168.1.1', '[::ffff:10.0.0.1]', '[fd00::1]', '198.51.100.7')
	{
		says("http://$host:$port/rpc", [ '0.0.0.0/0', '::/0' ], qr/not allowed/, "http://$host is refused, though allowed");
	}
	is_deeply($tried->counters->{methods}, { initialize => 1 }, 'nobody was called');
	is_deeply($provider->counters->{methods}, { initialize => 1 },
		'not over the connection either that a plugin to which it is allowed has left open');
	says("http://127.0.0.1:$tried->{port}/rpc", ['127.0.0.1/32'], qr/^ready$/, 'a single address can be allowed');
	says("http://[::ffff:127.0.0.1]:$tried->{port}/rpc", ['127.0.0.0/8'], qr/^ready$/,
		'written as IPv6 it is the same address');
	says("http://[::ffff:127.0.0.1]:$tried->{port}/rpc", ['::/0'], qr/not allowed/, 'and no other');
	says("http://localhost:$tried->{port}/rpc", ['127.0.0.0/8', '::1/128' ], qr/^ready$/, 'names are looked up');
};

subtest 'URLs' => sub {
	for my $url (
		'ftp://example.com/', 'file:///etc/passwd', 'gopher://127.0.0.1/', 'example.com', 'https://', 'https:///rpc',
		'https://user:secret@example.com/', 'https://example.com/#x', "https://example.com/\nX: y", 'https://exa mple.com/',
		'https://example.com:99999/', 'https://example.com:/', 'https://[::1/', 'https://[::1]x/')
	{
		$node->refuses(
			'boss',
			sprintf('SELECT leasehold.update_plugin(%s, transport => %s)', quote('tried'), quote(json({ type => 'http', url => $url }))),
			'22023', qr/transport is not valid/, 'no plugin can have the URL ' . ($url =~ s/\n/\\n/r));
	}
};

# Certificates: an authority of our own, and what it signed.
my $directory = PostgreSQL::Test::Utils::tempdir();
my @new_key = qw(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes);

sub openssl
{
	my @arguments = @_;
	my $result = IPC::Run::run [ 'openssl', @arguments ], '>', \my $out, '2>', \my $err;
	BAIL_OUT("openssl @arguments: $err") unless $result;
	return;
}

sub authority
{
	my ($name) = @_;
	openssl('req', '-x509', @new_key, '-keyout', "$directory/$name.key", '-out', "$directory/$name.pem",
		'-days', 2, '-subj', "/CN=$name");
	return "$directory/$name.pem";
}

# certificate(name, authority, alternative names, days)
sub certificate
{
	my ($name, $by, $names, $days) = @_;
	my $path = "$directory/$name";
	append_to_file("$path.ext", "subjectAltName=$names\n");
	openssl('req', @new_key, '-keyout', "$path.key", '-out', "$path.csr", '-subj', '/CN=provider');
	openssl('x509', '-req', '-in', "$path.csr", '-CA', "$directory/$by.pem", '-CAkey', "$directory/$by.key",
		'-CAcreateserial', '-days', $days // 2, '-extfile', "$path.ext", '-out', "$path.pem");
	return $name;
}

# front(certificate, options): TLS before the provider; the port.
sub front
{
	my ($name, @options) = @_;
	my $ready = "$directory/$name.ready";
	my (undef, $tls_port) = Leasehold::Provider::start_python(
		$ready, "$directory/$name.out", 'tls_front.py', '--certificate', "$directory/$name.pem",
		'--key', "$directory/$name.key", '--ready-file', $ready, @options);
	return $tls_port;
}

sub set_ca
{
	my ($file) = @_;
	$node->owner("ALTER SYSTEM SET leasehold.ca_file = '$file'");
	$node->reload;
	$node->poll("SELECT current_setting('leasehold.ca_file') = '$file'");
	return;
}

subtest 'certificates' => sub {
	my $ours = authority('ours');
	my $theirs = authority('theirs');
	my @target = ('--target', "127.0.0.1:$tried->{port}");
	my $good = front(certificate('good', 'ours', 'IP:127.0.0.1,DNS:localhost'), @target);
	my $other_name = front(certificate('other-name', 'ours', 'DNS:elsewhere.example'), @target);
	my $expired = front(certificate('expired', 'ours', 'IP:127.0.0.1', -1), @target);
	my $foreign = front(certificate('foreign', 'theirs', 'IP:127.0.0.1'), @target);
	my $redirecting = front(certificate('redirecting', 'ours', 'IP:127.0.0.1'),
		'--redirect', 'http://169.254.169.254/latest/meta-data/');
	my @loopback = ('127.0.0.0/8');
	my $calls = sub { return $tried->counters->{methods}{initialize}; };

	says("https://127.0.0.1:$good/rpc", \@loopback, qr/certificate.*during connection or TLS handshake/, 'an unknown authority is refused');
	set_ca($ours);
	says("https://127.0.0.1:$other_name/rpc", \@loopback, qr/certificate|peer/, 'a certificate of another name is refused');
	# not before: a retry may have come between the new authorities and the other address
	my $before = $calls->();
	says("https://127.0.0.1:$expired/rpc", \@loopback, qr/certificate/, 'an expired one, too');
	says("https://127.0.0.1:$foreign/rpc", \@loopback, qr/certificate/, 'and one of another authority');
	says("https://127.0.0.1:$redirecting/rpc", \@loopback, qr/HTTP status 307/, 'a redirect to the metadata service is an error');
	says("https://127.0.0.1:$port/rpc", \@loopback, qr/during connection or TLS handshake/, 'a server without TLS is refused');
	my $silent = IO::Socket::INET->new(Listen => 5, LocalAddr => '127.0.0.1');
	says('https://127.0.0.1:' . $silent->sockport . '/rpc', \@loopback, qr/Timeout was reached during connection or TLS handshake/,
		'one that says nothing is given up');
	is($calls->(), $before, 'none of them got a request');

	says("https://localhost:$good/rpc", [ @loopback, '::1/128' ], qr/^ready$/, 'the right one, by its name');
	says("https://127.0.0.1:$good/rpc", \@loopback, qr/^ready$/, 'or address, is spoken to');
	is($calls->(), $before + 2, 'the requests came through');
	$node->environment('tls', 'tried', {});
	my $lease = $node->request(q('tls'));
	$node->settles($lease, 'active', 'leases work over TLS');
	$node->alice("SELECT leasehold.release_lease('$lease')");
	$node->settles($lease, 'released', 'and are released');

	set_ca("$directory/nothing");
	says("https://127.0.0.1:$good/rpc", \@loopback, qr/CA|certificate/, 'a missing file of authorities trusts nobody');
	$tried->obeyed;
};

subtest 'a request that was never sent has no unknown outcome' => sub {
	my $plain = Leasehold::Provider->start($node, name => 'plain', variant => 'plain');
	set_ca("$directory/ours.pem");
	my $tls = front(certificate('plain', 'ours', 'IP:127.0.0.1'), '--target', "127.0.0.1:$plain->{port}");
	$plain->register($node, url => "https://127.0.0.1:$tls/rpc");
	$node->environment('plain', 'plain', {});
	set_ca("$directory/theirs.pem");
	my $lease = $node->request(q('plain'));
	$node->settles($lease, 'failed', 'the certificate is not trusted any more: the request fails');
	is($node->lease($lease, 'failure_code'), 'provider_unreachable', 'since the provider cannot be reached');
	is($plain->counters->{methods}{environmentAcquireLease}, undef, 'it never saw the request');
	set_ca("$directory/ours.pem");
	$lease = $node->request(q('plain'));
	$node->settles($lease, 'active', 'trusted again: a request succeeds');
	$plain->obeyed;
};

is(IO::Select->new($proxy)->can_read(0) ? 'used' : 'unused', 'unused', 'no proxy was used');
$provider->obeyed;
done_testing();
