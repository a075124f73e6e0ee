/*
 * hanging_resolver.c
 *		A name server that does not answer, for programs that it is preloaded
 *		into: looking up a name that begins with "hang." takes as long as
 *		HANGING_RESOLVER_S says.
 *
 * Only getaddrinfo() is replaced, and only for such names.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int (*Resolve) (const char *, const char *, const struct addrinfo *, struct addrinfo **);

int
getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **result)
{
	static Resolve resolve = NULL;

	if (name != NULL && strncmp(name, "hang.", 5) == 0)
	{
		const char *seconds = getenv("HANGING_RESOLVER_S");

		sleep(seconds ? (unsigned) atoi(seconds) : 30);
		return EAI_AGAIN;
	}
	if (resolve == NULL)
		resolve = (Resolve) dlsym(RTLD_NEXT, "getaddrinfo");
	return resolve(name, service, hints, result);
}
