/*
 * token_file.c
 *		Which files are trusted with a token, and where it may be sent.
 */
#include "../../worker/address_policy.c"
#include "../../worker/token_file.c"

#include "tap.h"

#define URL		"https://example.com/rpc"
#define SERVER	1000

static void
trusted(mode_t mode, uid_t owner, const char *expected, const char *name)
{
	struct stat st = {.st_mode = mode,.st_uid = owner};
	const char *problem = token_file_untrusted(&st, SERVER);

	ok(expected == NULL ? problem == NULL : problem != NULL && strstr(problem, expected) != NULL, "%s", name);
	if (problem != NULL)
		printf("# %s\n", problem);
}

static void
test_files(void)
{
	trusted(S_IFREG | 0600, SERVER, NULL, "a file of the server's user");
	trusted(S_IFREG | 0400, SERVER, NULL, "one that it may only read");
	trusted(S_IFREG | 0640, 0, NULL, "a file of root that the server's group may read");
	trusted(S_IFREG | 0600, SERVER + 1, "belong to", "not a file of somebody else");
	trusted(S_IFREG | 0640, SERVER + 1, "belong to", "nor one that he lets the group read");
	trusted(S_IFREG | 0644, SERVER, "others can neither", "nor one that others can read");
	trusted(S_IFREG | 0604, 0, "others can neither", "be it root's");
	trusted(S_IFREG | 0602, SERVER, "others can neither", "or write");
	trusted(S_IFREG | 0601, SERVER, "others can neither", "or run");
	trusted(S_IFREG | 0620, SERVER, "others can neither", "nor one that the group can write");
	trusted(S_IFDIR | 0700, SERVER, "must be a file", "nor a directory");
	trusted(S_IFIFO | 0600, SERVER, "must be a file", "nor a pipe");
	trusted(S_IFCHR | 0600, 0, "must be a file", "nor a device");
}

/* The text is copied to its exact size, so that reading on is found out. */
static void
parsed(const char *text, const char *token, bool elsewhere, const char *expected, const char *name)
{
	char	   *copy = strdup(text);
	bool		is_elsewhere = !elsewhere;
	const char *problem = NULL;
	char	   *found = token_file_parse(copy, URL, &is_elsewhere, &problem);
	bool		good = token != NULL ? found != NULL && strcmp(found, token) == 0
		: found == NULL && problem != NULL && strstr(problem, expected) != NULL;

	ok(good && is_elsewhere == elsewhere, "%s", name);
	if (!good)
		printf("# %s: %s\n", found ? found : "no token", problem ? problem : "");
	free(copy);
}

static void
holds(const char *text, const char *token, const char *name)
{
	parsed(text, token, false, NULL, name);
}

static void
refuses(const char *text, bool elsewhere, const char *expected, const char *name)
{
	parsed(text, NULL, elsewhere, expected, name);
}

static void
test_texts(void)
{
	holds("for: https://example.com\nsecret\n", "secret", "a token for the url's origin");
	holds("for: https://example.com:443/\nsecret", "secret", "with the port, and no end of the last line");
	holds("for:https://EXAMPLE.com \r\nsecret \r\n\n", "secret", "whatever the white space at the ends");
	holds("for: \t https://example.com\n!\"#$~\n", "!\"#$~", "with any visible characters");

	refuses("secret\n", true, "does not begin with", "a token alone");
	refuses("", true, "does not begin with", "an empty file");
	refuses("\nfor: https://example.com\nsecret\n", true, "does not begin with", "an empty line before");
	refuses("secret\nfor: https://example.com\n", true, "does not begin with", "the other way round");
	refuses("For: https://example.com\nsecret\n", true, "does not begin with", "capitals");
	refuses("for: https://evil.example.com\nsecret\n", true, "another address", "another host");
	refuses("for: https://example.com:8443\nsecret\n", true, "another address", "another port");
	refuses("for: http://example.com:443\nsecret\n", true, "another address", "another scheme");
	refuses("for: https://example.com/rpc\nsecret\n", true, "another address", "more than an origin");
	refuses("for: https://example.com https://evil.com\nsecret\n", true, "another address", "two");
	refuses("for: *\nsecret\n", true, "another address", "any");
	refuses("for:\nsecret\n", true, "another address", "none");
	refuses("for:", true, "another address", "nothing after it");
	refuses("for: https://example.com secret", true, "another address", "all in one line");

	refuses("for: https://example.com", false, "holds no token", "no token");
	refuses("for: https://example.com\n\r\n \n", false, "holds no token", "an empty one");
	refuses("for: https://example.com\n\nsecret\n", false, "holds no token", "an empty line between");
	refuses("for: https://example.com\ntwo words\n", false, "holds no token", "two words");
	refuses("for: https://example.com\nsecret\r\nX-Evil: yes\n", false, "holds no token", "another header");
	refuses("for: https://example.com\nsecr\xc3\xa9t\n", false, "holds no token", "what is not ASCII");
	refuses("for: https://example.com\nsecret\x7f\n", false, "holds no token", "a control character");
}

int
main(void)
{
	test_files();
	test_texts();
	return tap_done();
}
