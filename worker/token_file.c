/*
 * token_file.c
 *		Reads the text of a token file: see token_file.h.
 *
 * The administrator of the host says in it where the token may be sent, since
 * who registers a plugin names both the file and the address.
 */
#include "token_file.h"

#include <string.h>

#include "address_policy.h"

static void trim_end(char *text);

const char *
token_file_untrusted(const struct stat *st, uid_t server)
{
	if (!S_ISREG(st->st_mode) || (st->st_mode & (S_IWGRP | S_IRWXO)) != 0)
		return "the token file must be a file that others can neither read nor write";
	if (st->st_uid != server && st->st_uid != 0)
		return "the token file must belong to the server's user or root";
	return NULL;
}

char *
token_file_parse(char *text, const char *url, bool *elsewhere, const char **problem)
{
	static const char begins[] = "for:";
	char	   *origin;
	char	   *token = strchr(text, '\n');

	*elsewhere = true;
	if (strncmp(text, begins, strlen(begins)) != 0)
	{
		*problem = "the token file does not begin with a line \"for: https://host\" that says where the token may be sent";
		return NULL;
	}
	if (token != NULL)
		*token++ = '\0';
	origin = text + strlen(begins);
	origin += strspn(origin, " \t");
	trim_end(origin);
	if (!policy_same_origin(url, origin))
	{
		*problem = "the token file is for another address than the plugin's url";
		return NULL;
	}

	*elsewhere = false;
	*problem = "the token file holds no token";
	if (token == NULL)
		return NULL;
	trim_end(token);
	if (token[0] == '\0')
		return NULL;
	/* what no header can hold */
	for (const char *c = token; *c; c++)
	{
		if ((unsigned char) *c <= 0x20 || (unsigned char) *c >= 0x7f)
			return NULL;
	}
	return token;
}

static void
trim_end(char *text)
{
	size_t		length = strlen(text);

	while (length > 0 && strchr(" \t\r\n", text[length - 1]) != NULL)
		text[--length] = '\0';
}
