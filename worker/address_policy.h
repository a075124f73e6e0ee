/*
 * address_policy.h
 *		Which URLs a plugin may have, and which addresses may be connected to.
 *
 * Plain C: no server headers, so that it can be fuzzed by itself and called
 * from libcurl's callbacks.
 */
#ifndef LEASEHOLD_ADDRESS_POLICY_H
#define LEASEHOLD_ADDRESS_POLICY_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>

/* A network, as in cidr: family, address bytes, number of leading bits. */
typedef struct PolicyNetwork
{
	int			family;			/* AF_INET or AF_INET6 */
	unsigned char address[16];
	int			bits;
} PolicyNetwork;

/*
 * What is wrong with a URL, as the end of a sentence, or NULL.  Allowed are
 * https, and http (which the socket check then confines to loopback), with a
 * host and without user information or a fragment.
 */
extern const char *policy_url_problem(const char *url);

/*
 * Whether a URL that has no problem has this origin: scheme, host and port,
 * "https://host:port" with nothing after it but perhaps one slash.
 */
extern bool policy_same_origin(const char *url, const char *origin);

/* Whether the URL's scheme is http, not https. */
extern bool policy_url_is_plain(const char *url);

/*
 * Whether an address may be connected to: public unicast ones may; others
 * (loopback, private, link-local, shared, multicast, reserved, the metadata
 * services' …) only if one of the networks contains them.  Unencrypted
 * connections are confined to loopback.  IPv4 inside IPv6 counts as IPv4.
 */
extern bool policy_address_allowed(const struct sockaddr *address, bool plain,
								   const PolicyNetwork *allowed, size_t count);

/* Reads "10.0.0.0/8" or "fd00::/8"; false if it is not a network. */
extern bool policy_parse_network(const char *text, PolicyNetwork *network);

#endif							/* LEASEHOLD_ADDRESS_POLICY_H */
