/*
 * address_policy.c
 *		The guard against being sent to addresses that a plugin has no business
 *		with (SSRF): the decision is made on the address that is really connected
 *		to, so a name that changes its address in between gains nothing.
 *
 * The lists follow the IANA special-purpose address registries (RFC 6890 and
 * updates).  Of IPv6 only 2000::/3 is public unicast (RFC 4291): what is outside,
 * the deprecated ::a.b.c.d included, nobody has a business with.
 */
#include "address_policy.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* Not public unicast; and 168.63.129.16, where Azure's machines get what is theirs alone. */
static const char *const special_networks[] = {
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16",
	"172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16",
	"198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
	"::/3", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "4000::/2", "8000::/1",
};

static const char *const loopback_networks[] = {"127.0.0.0/8", "::1/128"};

typedef struct Origin
{
	const char *host;			/* in the URL; of IPv6 with the brackets */
	size_t		host_length;
	long		port;
} Origin;

static const char *read_origin(const char *url, Origin *origin);
static const char *literal_end(const char *host, const char *end);
static bool address_bytes(const struct sockaddr *address, PolicyNetwork *host);
static bool network_contains(const PolicyNetwork *network, const PolicyNetwork *host);
static bool any_contains(const char *const *networks, size_t count, const PolicyNetwork *host);
static bool embedded_ipv4(const unsigned char *address, unsigned char *ipv4);

const char *
policy_url_problem(const char *url)
{
	size_t		length = strlen(url);
	const char *host;
	const char *end;

	if (length > 2000)
		return "url is too long";
	for (const char *c = url; *c; c++)
	{
		if ((unsigned char) *c <= 0x20 || (unsigned char) *c >= 0x7f ||
			strchr("\\\"<>^`{|}", *c) != NULL)
			return "url contains a character that must be percent-encoded";
	}
	if (strncasecmp(url, "https://", 8) == 0)
		host = url + 8;
	else if (strncasecmp(url, "http://", 7) == 0)
		host = url + 7;
	else
		return "url must begin with https://, or for loopback with http://";

	end = host + strcspn(host, "/?#");
	if (memchr(host, '@', end - host) != NULL)
		return "url must not contain a user name or password; use token_file";
	if (end == host || *host == ':')
		return "url has no host";
	if (strchr(end, '#') != NULL)
		return "url must not contain a fragment";
	if (*host == '[')
	{
		host = literal_end(host, end);
		if (host == NULL)
			return "url has a malformed host";
	}
	else
	{
		for (const char *c = host; c < end && *c != ':'; c++)
		{
			if (!isalnum((unsigned char) *c) && *c != '-' && *c != '.' && *c != '_')
				return "url has a malformed host";
		}
		host += strcspn(host, ":/?#");
	}
	if (host < end)
	{
		long		port = 0;

		if (end - host < 2 || end - host > 6)
			return "url has a malformed port";
		for (const char *c = host + 1; c < end; c++)
		{
			if (!isdigit((unsigned char) *c))
				return "url has a malformed port";
			port = port * 10 + (*c - '0');
		}
		if (port < 1 || port > 65535)
			return "url has a malformed port";
	}
	return NULL;
}

/*
 * The end of an address of IPv6 in brackets, with or without a zone ("%25eth0",
 * RFC 6874), or NULL if it is malformed or something else than a port follows.
 */
static const char *
literal_end(const char *host, const char *end)
{
	const char *close = memchr(host, ']', end - host);
	const char *zone;
	char		text[INET6_ADDRSTRLEN];
	struct in6_addr address;
	size_t		length;

	if (close == NULL || (close + 1 != end && close[1] != ':'))
		return NULL;
	zone = memchr(host, '%', close - host);
	if (zone != NULL && (close - zone < 4 || zone[1] != '2' || zone[2] != '5' ||
						 memchr(zone + 1, '%', close - zone - 1) != NULL))
		return NULL;
	length = (zone ? zone : close) - (host + 1);
	if (length >= sizeof(text))
		return NULL;
	memcpy(text, host + 1, length);
	text[length] = '\0';
	return inet_pton(AF_INET6, text, &address) == 1 ? close + 1 : NULL;
}

bool
policy_same_origin(const char *url, const char *origin)
{
	Origin		one;
	Origin		other;
	const char *rest;

	if (policy_url_problem(url) != NULL || policy_url_problem(origin) != NULL)
		return false;
	read_origin(url, &one);
	rest = read_origin(origin, &other);
	return (rest[0] == '\0' || strcmp(rest, "/") == 0) &&
		policy_url_is_plain(url) == policy_url_is_plain(origin) && one.port == other.port &&
		one.host_length == other.host_length && strncasecmp(one.host, other.host, one.host_length) == 0;
}

/* Of a URL that has no problem; returns what follows. */
static const char *
read_origin(const char *url, Origin *origin)
{
	const char *end;

	origin->host = strstr(url, "://") + 3;
	end = origin->host + strcspn(origin->host, "/?#");
	origin->host_length = *origin->host == '[' ? strcspn(origin->host, "]") + 1 : strcspn(origin->host, ":/?#");
	if (origin->host + origin->host_length < end)
		origin->port = strtol(origin->host + origin->host_length + 1, NULL, 10);
	else
		origin->port = policy_url_is_plain(url) ? 80 : 443;
	return end;
}

bool
policy_url_is_plain(const char *url)
{
	return strncasecmp(url, "http://", 7) == 0;
}

bool
policy_address_allowed(const struct sockaddr *address, bool plain,
					   const PolicyNetwork *allowed, size_t count)
{
	PolicyNetwork host;

	if (!address_bytes(address, &host))
		return false;
	if (plain && !any_contains(loopback_networks, sizeof(loopback_networks) / sizeof(char *), &host))
		return false;
	if (!any_contains(special_networks, sizeof(special_networks) / sizeof(char *), &host))
		return true;
	for (size_t i = 0; i < count; i++)
	{
		if (network_contains(&allowed[i], &host))
			return true;
	}
	return false;
}

bool
policy_parse_network(const char *text, PolicyNetwork *network)
{
	char		address[INET6_ADDRSTRLEN];
	const char *slash = strchr(text, '/');
	size_t		length = slash ? (size_t) (slash - text) : strlen(text);
	int			most;

	if (length >= sizeof(address))
		return false;
	memcpy(address, text, length);
	address[length] = '\0';

	memset(network, 0, sizeof(*network));
	if (inet_pton(AF_INET, address, network->address) == 1)
	{
		network->family = AF_INET;
		most = 32;
	}
	else if (inet_pton(AF_INET6, address, network->address) == 1)
	{
		network->family = AF_INET6;
		most = 128;
	}
	else
		return false;

	network->bits = most;
	if (slash != NULL)
	{
		char	   *end;
		long		bits;

		if (!isdigit((unsigned char) slash[1]))
			return false;
		bits = strtol(slash + 1, &end, 10);
		if (*end != '\0' || bits < 0 || bits > most)
			return false;
		network->bits = (int) bits;
	}
	return true;
}

/* The address as a network of one; IPv4 inside IPv6 is taken out. */
static bool
address_bytes(const struct sockaddr *address, PolicyNetwork *host)
{
	memset(host, 0, sizeof(*host));
	if (address->sa_family == AF_INET)
	{
		const struct sockaddr_in *in = (const struct sockaddr_in *) (const void *) address;

		host->family = AF_INET;
		host->bits = 32;
		memcpy(host->address, &in->sin_addr, 4);
		return true;
	}
	if (address->sa_family == AF_INET6)
	{
		const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *) (const void *) address;
		unsigned char ipv4[4];

		if (embedded_ipv4(in6->sin6_addr.s6_addr, ipv4))
		{
			host->family = AF_INET;
			host->bits = 32;
			memcpy(host->address, ipv4, 4);
			return true;
		}
		host->family = AF_INET6;
		host->bits = 128;
		memcpy(host->address, in6->sin6_addr.s6_addr, 16);
		return true;
	}
	return false;
}

/* ::ffff:a.b.c.d (mapped) and 64:ff9b::a.b.c.d (translated) */
static bool
embedded_ipv4(const unsigned char *address, unsigned char *ipv4)
{
	static const unsigned char mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
	static const unsigned char translated[12] = {0, 0x64, 0xff, 0x9b};

	if (memcmp(address, mapped, 12) != 0 && memcmp(address, translated, 12) != 0)
		return false;
	memcpy(ipv4, address + 12, 4);
	return true;
}

static bool
network_contains(const PolicyNetwork *network, const PolicyNetwork *host)
{
	int			bytes = network->bits / 8;
	int			rest = network->bits % 8;

	if (network->family != host->family || memcmp(network->address, host->address, bytes) != 0)
		return false;
	if (rest == 0)
		return true;
	return ((network->address[bytes] ^ host->address[bytes]) >> (8 - rest)) == 0;
}

static bool
any_contains(const char *const *networks, size_t count, const PolicyNetwork *host)
{
	for (size_t i = 0; i < count; i++)
	{
		PolicyNetwork network;

		if (policy_parse_network(networks[i], &network) && network_contains(&network, host))
			return true;
	}
	return false;
}
