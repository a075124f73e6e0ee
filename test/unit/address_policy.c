/*
 * address_policy.c
 *		URLs and addresses, against the IANA special-purpose registries, RFC 4291,
 *		RFC 3056 (6to4), RFC 4380 (Teredo) and RFC 6052 (NAT64).
 */
#include "../../worker/address_policy.c"

#include <netdb.h>
#include <stdio.h>
#include <sys/un.h>

#include "tap.h"

/* What a text like an address or host number, in any of its forms, connects to. */
static bool
allowed_host(const char *text, bool plain, const char *network)
{
	struct addrinfo hints = {.ai_flags = AI_NUMERICHOST,.ai_socktype = SOCK_STREAM};
	struct addrinfo *info = NULL;
	PolicyNetwork allowed;
	bool		result;

	if (getaddrinfo(text, NULL, &hints, &info) != 0 ||
		(network != NULL && !policy_parse_network(network, &allowed)))
	{
		printf("# the test itself is wrong: %s %s\n", text, network ? network : "");
		ok(false, "can be read: %s", text);
		return false;
	}
	result = policy_address_allowed(info->ai_addr, plain, network ? &allowed : NULL, network ? 1 : 0);
	freeaddrinfo(info);
	return result;
}

static void
is_public(const char *text)
{
	ok(allowed_host(text, false, NULL), "%s is public", text);
	ok(!allowed_host(text, true, "::/0") && !allowed_host(text, true, "0.0.0.0/0"),
	   "%s is never spoken to unencrypted", text);
}

/* Refused, unless a network is allowed that contains it. */
static void
is_special(const char *text, const char *network)
{
	ok(!allowed_host(text, false, NULL), "%s is refused", text);
	ok(allowed_host(text, false, network), "%s is allowed by %s", text, network);
}

static void
test_public(void)
{
	is_public("1.1.1.1");
	is_public("9.255.255.255");
	is_public("11.0.0.0");
	is_public("100.63.255.255");
	is_public("100.128.0.0");
	is_public("126.255.255.255");
	is_public("128.0.0.0");
	is_public("168.63.129.15");
	is_public("168.63.129.17");
	is_public("169.253.255.255");
	is_public("169.255.0.0");
	is_public("172.15.255.255");
	is_public("172.32.0.0");
	is_public("192.0.1.0");
	is_public("192.167.255.255");
	is_public("192.169.0.0");
	is_public("198.17.255.255");
	is_public("198.20.0.0");
	is_public("223.255.255.255");
	is_public("2000::1");
	is_public("2001:200::1");
	is_public("2001:4860:4860::8888");
	is_public("2a00:1450:4001::1");
	is_public("3ffe::1");
	is_public("::ffff:1.1.1.1");
	is_public("64:ff9b::1.1.1.1");
}

static void
test_special_ipv4(void)
{
	is_special("0.0.0.0", "0.0.0.0/8");
	is_special("0.255.255.255", "0.0.0.0/8");
	is_special("10.0.0.0", "10.0.0.0/8");
	is_special("10.255.255.255", "10.0.0.0/8");
	is_special("100.64.0.0", "100.64.0.0/10");
	is_special("100.100.100.200", "100.100.100.200");
	is_special("100.127.255.255", "100.64.0.0/10");
	is_special("127.0.0.1", "127.0.0.0/8");
	is_special("127.255.255.255", "127.0.0.0/8");
	is_special("168.63.129.16", "168.63.129.16/32");
	is_special("169.254.0.0", "169.254.0.0/16");
	is_special("169.254.169.254", "169.254.169.254/32");
	is_special("169.254.170.2", "169.254.0.0/16");
	is_special("172.16.0.0", "172.16.0.0/12");
	is_special("172.31.255.255", "172.16.0.0/12");
	is_special("192.0.0.192", "192.0.0.0/24");
	is_special("192.0.2.1", "192.0.2.0/24");
	is_special("192.88.99.1", "192.88.99.0/24");
	is_special("192.168.0.0", "192.168.0.0/16");
	is_special("192.168.255.255", "192.168.0.0/16");
	is_special("198.18.0.0", "198.18.0.0/15");
	is_special("198.19.255.255", "198.18.0.0/15");
	is_special("198.51.100.1", "198.51.100.0/24");
	is_special("203.0.113.1", "203.0.113.0/24");
	is_special("224.0.0.1", "224.0.0.0/4");
	is_special("239.255.255.255", "224.0.0.0/4");
	is_special("240.0.0.1", "240.0.0.0/4");
	is_special("255.255.255.255", "255.255.255.255/32");
}

static void
test_special_ipv6(void)
{
	is_special("::", "::/128");
	is_special("::1", "::1/128");
	is_special("64:ff9b:1::1", "64:ff9b:1::/48");
	is_special("100::1", "100::/64");
	is_special("2001:2::1", "2001:2::/48");
	is_special("2001:10::1", "2001::/23");
	is_special("2001:db8::1", "2001:db8::/32");
	is_special("3fff::1", "3fff::/20");
	is_special("3fff:fff:ffff::1", "3fff::/20");
	is_special("5f00::1", "5f00::/16");
	is_special("fc00::1", "fc00::/7");
	is_special("fd00:ec2::254", "fd00:ec2::254/128");
	is_special("fdff:ffff::1", "fc00::/7");
	is_special("fe80::1", "fe80::/10");
	is_special("febf::1", "fe80::/10");
	is_special("fec0::1", "fec0::/10");
	is_special("ff02::1", "ff00::/8");

	/* not given to anybody: only 2000::/3 is global unicast */
	is_special("1::1", "1::/16");
	is_special("200::1", "200::/7");
	is_special("1fff::1", "1000::/4");
	is_special("4000::1", "4000::/3");
	is_special("8000::1", "8000::/1");
	is_special("e000::1", "8000::/1");
}

/* IPv4 in IPv6's clothes. */
static void
test_embedded(void)
{
	/* mapped and translated: counts as the IPv4 address, allow-lists included */
	is_special("::ffff:169.254.169.254", "169.254.0.0/16");
	is_special("::ffff:a9fe:a9fe", "169.254.0.0/16");
	is_special("::ffff:127.0.0.1", "127.0.0.0/8");
	is_special("::ffff:10.1.2.3", "10.0.0.0/8");
	is_special("::ffff:0.0.0.0", "0.0.0.0/8");
	is_special("64:ff9b::169.254.169.254", "169.254.0.0/16");
	is_special("64:ff9b::7f00:1", "127.0.0.0/8");
	is_special("64:ff9b::192.168.1.1", "192.168.0.0/16");
	ok(!allowed_host("::ffff:10.1.2.3", false, "::/0"), "a mapped address is not allowed by all of IPv6");
	ok(!allowed_host("10.1.2.3", false, "::/0"), "nor is an address of IPv4");
	ok(!allowed_host("::1", false, "0.0.0.0/0"), "nor one of IPv6 by all of IPv4");

	/* compatible (deprecated), 6to4, Teredo: refused whatever is inside */
	is_special("::127.0.0.1", "::/96");
	is_special("::169.254.169.254", "::/96");
	is_special("::10.0.0.1", "::/96");
	is_special("::8.8.8.8", "::/96");
	is_special("::2", "::/96");
	is_special("::ffff:0:169.254.169.254", "::ffff:0:0:0/96");
	is_special("2002:a9fe:a9fe::1", "2002::/16");
	is_special("2002:7f00:1::1", "2002:7f00::/24");
	is_special("2002:a00:1::1", "2002::/16");
	is_special("2002:808:808::1", "2002::/16");
	is_special("2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001::/32");
	is_special("2001:0:a9fe:a9fe::1", "2001::/32");
	is_special("64:ff9b:1::10.0.0.1", "64:ff9b:1::/48");
}

/* Forms that resolvers take for an address: it is the address that counts. */
static void
test_odd_forms(void)
{
	is_special("0177.0.0.1", "127.0.0.0/8");
	is_special("0x7f.0.0.1", "127.0.0.0/8");
	is_special("0x7f000001", "127.0.0.0/8");
	is_special("017700000001", "127.0.0.0/8");
	is_special("2130706433", "127.0.0.0/8");
	is_special("127.1", "127.0.0.0/8");
	is_special("127.0.1", "127.0.0.0/8");
	is_special("0", "0.0.0.0/8");
	is_special("2852039166", "169.254.0.0/16");
	is_special("0xa9.0xfe.0xa9.0xfe", "169.254.0.0/16");
	is_special("0251.0376.0251.0376", "169.254.0.0/16");
	is_special("169.254.43518", "169.254.0.0/16");
	is_special("012.0.0.1", "10.0.0.0/8");
	is_special("0000::0001", "::1/128");
	is_special("::FFFF:7F00:1", "127.0.0.0/8");
}

static void
test_plain(void)
{
	ok(allowed_host("127.0.0.1", true, "127.0.0.0/8"), "http to loopback, if it is allowed");
	ok(allowed_host("127.9.9.9", true, "127.0.0.0/8"), "all of 127/8 is loopback");
	ok(allowed_host("::1", true, "::1"), "http to IPv6's loopback");
	ok(allowed_host("::ffff:127.0.0.1", true, "127.0.0.1"), "http to mapped loopback");
	ok(!allowed_host("127.0.0.1", true, NULL), "not to loopback unless it is allowed");
	ok(!allowed_host("::1", true, NULL), "nor to IPv6's");
	ok(!allowed_host("127.0.0.1", true, "127.0.0.2"), "nor if another address is allowed");
	ok(!allowed_host("10.0.0.1", true, "10.0.0.0/8"), "no http to a private network, even if it is allowed");
	ok(!allowed_host("169.254.169.254", true, "0.0.0.0/0"), "nor to the metadata service");
	ok(!allowed_host("fe80::1", true, "::/0"), "nor to link-local addresses");
	ok(!allowed_host("0.0.0.0", true, "0.0.0.0/0"), "nor to the unspecified address, which is this host");
	ok(!allowed_host("::", true, "::/0"), "nor to IPv6's");
	ok(!allowed_host("::2", true, "::/0"), "nor beside loopback");
}

static void
test_allow_lists(void)
{
	struct sockaddr_in in = {.sin_family = AF_INET};
	struct sockaddr_un un = {.sun_family = AF_UNIX,.sun_path = "/tmp/socket"};
	PolicyNetwork networks[3];

	ok(allowed_host("10.1.255.255", false, "10.1.0.0/16"), "the last of a network is in it");
	ok(!allowed_host("10.2.0.0", false, "10.1.0.0/16"), "the next is not");
	ok(allowed_host("10.127.0.1", false, "10.64.0.0/10"), "prefixes end within a byte, too");
	ok(!allowed_host("10.128.0.0", false, "10.64.0.0/10"), "and bound there");
	ok(!allowed_host("10.63.255.255", false, "10.64.0.0/10"), "on both sides");
	ok(allowed_host("10.0.0.3", false, "10.0.0.2/31"), "31 bits are two addresses");
	ok(!allowed_host("10.0.0.4", false, "10.0.0.2/31"), "not three");
	ok(allowed_host("10.1.2.3", false, "10.9.9.9/8"), "bits after the prefix do not count");
	ok(allowed_host("10.1.2.3", false, "0.0.0.0/0"), "0 bits are everything");
	ok(allowed_host("fd12:3456::1", false, "fd12:3400::/24"), "prefixes of IPv6");
	ok(!allowed_host("fd12:3556::1", false, "fd12:3400::/24"), "and their bounds");
	ok(allowed_host("fd00::7", false, "fd00::6/127"), "127 bits are two addresses");
	ok(!allowed_host("fd00::8", false, "fd00::6/127"), "not three");

	policy_parse_network("192.168.0.0/16", &networks[0]);
	policy_parse_network("fd00::/8", &networks[1]);
	policy_parse_network("10.0.0.0/8", &networks[2]);
	inet_pton(AF_INET, "10.1.1.1", &in.sin_addr);
	ok(policy_address_allowed((struct sockaddr *) &in, false, networks, 3), "any of several networks will do");
	ok(!policy_address_allowed((struct sockaddr *) &in, false, networks, 2), "one that is not on the list will not");
	ok(!policy_address_allowed((struct sockaddr *) &un, false, networks, 3), "a socket in the file system is no host");
}

static void
network(const char *text, int family, int bits)
{
	PolicyNetwork found;

	ok(policy_parse_network(text, &found) && found.family == family && found.bits == bits,
	   "\"%s\" is a network of %d bits", text, bits);
}

static void
no_network(const char *text)
{
	PolicyNetwork found;

	ok(!policy_parse_network(text, &found), "\"%s\" is no network", text);
}

static void
test_networks(void)
{
	network("10.0.0.0/8", AF_INET, 8);
	network("0.0.0.0/0", AF_INET, 0);
	network("10.1.2.3", AF_INET, 32);
	network("10.1.2.3/32", AF_INET, 32);
	network("fd00::/8", AF_INET6, 8);
	network("::/0", AF_INET6, 0);
	network("::1", AF_INET6, 128);
	network("::1/128", AF_INET6, 128);
	network("ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255/128", AF_INET6, 128);

	no_network("");
	no_network("/");
	no_network("/8");
	no_network("10.0.0.0/");
	no_network("10.0.0.0/33");
	no_network("10.0.0.0/-1");
	no_network("10.0.0.0/+8");
	no_network("10.0.0.0/ 8");
	no_network("10.0.0.0/8 ");
	no_network("10.0.0.0/8/8");
	no_network("10.0.0.0/0x8");
	no_network("10.0.0.0/4294967304");
	no_network("10.0.0.0/18446744073709551624");
	no_network("10.0.0.0/255.0.0.0");
	no_network("10/8");
	no_network("10.0.0/8");
	no_network("010.0.0.0/8");
	no_network("0x0a000000/8");
	no_network("256.0.0.0/8");
	no_network(" 10.0.0.0/8");
	no_network("::/129");
	no_network("fe80::1%lo/64");
	no_network("[::1]/128");
	no_network(":::/8");
	no_network("localhost");
	no_network("ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255:ffff:ffff:ffff/128");
}

static void
good_url(const char *url)
{
	const char *problem = policy_url_problem(url);

	ok(problem == NULL, "%s may be used", url);
	if (problem != NULL)
		printf("# %s\n", problem);
}

static void
bad_url(const char *url, const char *expected)
{
	const char *problem = policy_url_problem(url);

	ok(problem != NULL && strstr(problem, expected) != NULL, "%s: %s", url, expected);
	if (problem == NULL || strstr(problem, expected) == NULL)
		printf("# %s\n", problem ? problem : "was accepted");
}

static void
test_urls(void)
{
	good_url("https://example.com");
	good_url("https://example.com/");
	good_url("HTTPS://EXAMPLE.COM/rpc");
	good_url("https://example.com./rpc");
	good_url("https://a-b.example_c.com:8443/rpc?x=1&y=%20");
	good_url("https://example.com?x=a@b:c");
	good_url("https://example.com/a@b:c/[d]");
	good_url("https://xn--bcher-kva.example/");
	good_url("https://192.0.2.1:1/");
	good_url("https://192.0.2.1:65535/");
	good_url("https://[2001:db8::1]");
	good_url("https://[2001:db8::1]:443/rpc");
	good_url("https://[::ffff:192.0.2.1]/");
	good_url("https://[fe80::1%25eth0]/");
	good_url("http://127.0.0.1:8080/rpc");

	/* schemes */
	bad_url("", "must begin with");
	bad_url("https", "must begin with");
	bad_url("https:/example.com", "must begin with");
	bad_url("https:example.com", "must begin with");
	bad_url("//example.com", "must begin with");
	bad_url("example.com", "must begin with");
	bad_url("ftp://example.com", "must begin with");
	bad_url("file:///etc/passwd", "must begin with");
	bad_url("unix:///tmp/socket", "must begin with");
	bad_url("gopher://127.0.0.1:25/", "must begin with");
	bad_url("httpss://example.com", "must begin with");

	/* who is the host? */
	bad_url("https://user@example.com/", "user name");
	bad_url("https://user:password@example.com/", "user name");
	bad_url("https://@example.com/", "user name");
	bad_url("https://example.com:443@127.0.0.1/", "user name");
	bad_url("https://example.com@[::1]/", "user name");
	bad_url("https://", "no host");
	bad_url("https:///path", "no host");
	bad_url("https://?x", "no host");
	bad_url("https://:443/", "no host");
	bad_url("https://#f", "no host");
	bad_url("https://%31%32%37.0.0.1/", "malformed host");
	bad_url("https://example%2ecom/", "malformed host");
	bad_url("https://example.com%00.evil.com/", "malformed host");
	bad_url("https://exa*mple.com/", "malformed host");
	bad_url("https://example.com;evil.com/", "malformed host");
	bad_url("https://example.com&evil.com/", "malformed host");
	bad_url("https://[::1", "malformed host");
	bad_url("https://::1]/", "");
	bad_url("https://[::1]x/", "malformed host");
	bad_url("https://[::1].example.com/", "malformed host");
	bad_url("https://[]/", "malformed host");
	bad_url("https://[example.com]/", "malformed host");
	bad_url("https://[127.0.0.1]/", "malformed host");
	bad_url("https://[::1/]/", "malformed host");
	bad_url("https://[:::1]/", "malformed host");
	bad_url("https://[fe80::1%eth0]/", "malformed host");
	bad_url("https://[fe80::1%25]/", "malformed host");
	bad_url("https://[fe80::1%25a%00b]/", "malformed host");

	/* ports */
	bad_url("https://example.com:/", "malformed port");
	bad_url("https://example.com:0/", "malformed port");
	bad_url("https://example.com:00000/", "malformed port");
	bad_url("https://example.com:65536/", "malformed port");
	bad_url("https://example.com:4294967739/", "malformed port");
	bad_url("https://example.com:-1/", "malformed port");
	bad_url("https://example.com:+443/", "malformed port");
	bad_url("https://example.com:443:443/", "malformed port");
	bad_url("https://example.com:https/", "malformed port");
	bad_url("https://[::1]:/", "malformed port");
	bad_url("https://[::1]:99999/", "malformed port");

	/* the rest */
	bad_url("https://example.com/#fragment", "fragment");
	bad_url("https://example.com#@evil.com/", "fragment");
	bad_url("https://example.com/?x#", "fragment");
}

static void
test_url_characters(void)
{
	static const char refused[] = " \"<>\\^`{|}\x7f\x80\xff";
	char		url[64];
	char		longest[2002];
	int			accepted = 0;

	for (int c = 1; c < 0x20; c++)
	{
		snprintf(url, sizeof(url), "https://example.com/%c", c);
		accepted += policy_url_problem(url) == NULL;
		snprintf(url, sizeof(url), "https://example.com%c/", c);
		accepted += policy_url_problem(url) == NULL;
	}
	ok(accepted == 0, "no control character in a url");
	for (const char *c = refused; *c; c++)
	{
		snprintf(url, sizeof(url), "https://example.com/?x=%c", *c);
		ok(policy_url_problem(url) != NULL, "the character %02x must be encoded", (unsigned char) *c);
	}
	bad_url("https://example.com\\@evil.com/", "percent-encoded");
	bad_url(" https://example.com/", "percent-encoded");
	ok(policy_url_problem("https://example.com/\r\nHost:evil.com") != NULL, "no header goes into a url");
	bad_url("https://b\xc3\xbc" "cher.example/", "percent-encoded");

	memset(longest, 'a', sizeof(longest));
	memcpy(longest, "https://a/", 10);
	longest[2000] = '\0';
	ok(policy_url_problem(longest) == NULL, "2000 bytes are not too long");
	longest[2000] = 'a';
	longest[2001] = '\0';
	ok(policy_url_problem(longest) != NULL, "2001 are");
}

static void
test_schemes(void)
{
	ok(policy_url_is_plain("http://localhost/"), "http is plain");
	ok(policy_url_is_plain("HTTP://localhost/"), "HTTP is, too");
	ok(!policy_url_is_plain("https://localhost/"), "https is not");
	ok(!policy_url_is_plain("HtTpS://localhost/"), "however it is written");
}

static void
same_origin(const char *url, const char *origin)
{
	ok(policy_same_origin(url, origin), "%s is at %s", url, origin);
}

static void
other_origin(const char *url, const char *origin)
{
	ok(!policy_same_origin(url, origin), "%s is not at %s", url, origin);
}

static void
test_origins(void)
{
	same_origin("https://example.com/rpc", "https://example.com");
	same_origin("https://example.com/rpc", "https://example.com/");
	same_origin("https://example.com", "https://example.com:443");
	same_origin("https://example.com:443?x=:1", "https://example.com");
	same_origin("https://example.com:0443/", "https://example.com");
	same_origin("HTTPS://Example.COM/rpc", "https://eXample.com");
	same_origin("http://127.0.0.1:8080/rpc", "http://127.0.0.1:8080");
	same_origin("http://localhost/rpc", "http://localhost:80");
	same_origin("https://[2001:db8::1]/rpc", "https://[2001:DB8::1]:443");
	same_origin("https://[2001:db8::1]:8443?", "https://[2001:db8::1]:8443");

	other_origin("http://example.com/rpc", "https://example.com");
	other_origin("http://example.com:443/rpc", "https://example.com");
	other_origin("https://example.com/rpc", "http://example.com:443");
	other_origin("https://example.com:8443/rpc", "https://example.com");
	other_origin("https://example.com/rpc", "https://example.com:8443");
	other_origin("https://example.com.evil.com/rpc", "https://example.com");
	other_origin("https://example.co/rpc", "https://example.com");
	other_origin("https://evil.com/https://example.com", "https://example.com");
	other_origin("https://evil.com?https://example.com", "https://example.com");
	other_origin("https://example.com./rpc", "https://example.com");
	other_origin("https://[2001:db8::1]/rpc", "https://[2001:db8::2]");
	other_origin("https://[fe80::1%25eth0]/rpc", "https://[fe80::1%25eth1]");

	/* what is no origin is none of these */
	other_origin("https://example.com/rpc", "");
	other_origin("https://example.com/rpc", "example.com");
	other_origin("https://example.com/rpc", "https://");
	other_origin("https://example.com/rpc", "https://*");
	other_origin("https://example.com/rpc", "https://example.com/rpc");
	other_origin("https://example.com/rpc", "https://example.com//");
	other_origin("https://example.com/rpc", "https://example.com?");
	other_origin("https://example.com/rpc", "https://example.com https://evil.com");
	other_origin("https://example.com/rpc", "https://user@example.com");
	other_origin("https://example.com/rpc", "https://example.com:");
}

int
main(void)
{
	test_public();
	test_special_ipv4();
	test_special_ipv6();
	test_embedded();
	test_odd_forms();
	test_plain();
	test_allow_lists();
	test_networks();
	test_urls();
	test_url_characters();
	test_schemes();
	test_origins();
	return tap_done();
}
