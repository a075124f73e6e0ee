/*
 * token_file.h
 *		What a file with a provider's token must look like.
 *
 * Plain C: no server headers, so that it can be tested by itself.
 */
#ifndef LEASEHOLD_TOKEN_FILE_H
#define LEASEHOLD_TOKEN_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/stat.h>

/*
 * Why the file must not be used, or NULL: it must be a regular file of the
 * server's user or root, that others can neither read nor write.
 */
extern const char *token_file_untrusted(const struct stat *st, uid_t server);

/*
 * Takes the token out of the file's text, which is terminated and changed:
 *
 *		for: https://host:port
 *		token
 *
 * NULL with a static text, and *elsewhere if the file is not for the URL's
 * origin, or does not say for which it is.
 */
extern char *token_file_parse(char *text, const char *url, bool *elsewhere, const char **problem);

#endif							/* LEASEHOLD_TOKEN_FILE_H */
