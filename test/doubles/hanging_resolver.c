/*
 * hanging_resolver.c
 *		A name server that does not answer, for tests: loaded with LD_PRELOAD.
 *
 * Names that end in .hang.test are loopback, unless the file that the
 * environment variable HANGING_RESOLVER names exists: then looking them up
 * takes for ever.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

typedef int (*Lookup) (const char *, const char *, const struct addrinfo *, struct addrinfo **);

int
getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **result)
{
	static const char suffix[] = ".hang.test";
	Lookup		lookup = (Lookup) dlsym(RTLD_NEXT, "getaddrinfo");
	size_t		length = node ? strlen(node) : 0;

	if (length >= sizeof(suffix) && strcmp(node + length - (sizeof(suffix) - 1), suffix) == 0)
	{
		const char *file = getenv("HANGING_RESOLVER");

		while (file != NULL && access(file, F_OK) == 0)
			pause();
		node = "127.0.0.1";
	}
	return lookup(node, service, hints, result);
}
