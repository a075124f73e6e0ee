/*
 * plugins.h
 *		A worker's copy of the registered plugins, and their tokens.
 */
#ifndef LEASEHOLD_PLUGINS_H
#define LEASEHOLD_PLUGINS_H

#include "address_policy.h"

#define PLUGIN_TOKEN_SIZE	4096

typedef struct Plugin
{
	char		key[64];		/* hash key */
	char	   *url;
	char	   *token_file;		/* name in leasehold.token_directory, or NULL */
	PolicyNetwork *allowed;
	size_t		allowed_count;
	TransactionId row;			/* its row's xmin */
	bool		looks_up;		/* has environmentFindLease */
	bool		cancels;		/* has environmentCancelExecute */
} Plugin;

extern void plugins_init(void);

/*
 * Reads plugins and limits again if they changed; within a transaction.  What
 * plugin_find() returned before stays valid until the next call.
 */
extern void plugins_refresh(void);

/* Has the next refresh read them again. */
extern void plugins_forget(void);

/*
 * Whether the copy of a plugin is of this version of its row (its xmin).  The
 * notice of a change may come after the change can be seen.
 */
extern bool plugin_is_current(const char *key, TransactionId row);

/* NULL if there is no such plugin. */
extern const Plugin *plugin_find(const char *key);

/*
 * Reads the plugin's token into a buffer of PLUGIN_TOKEN_SIZE, which the caller
 * zeroes after use.  False with a code and a static text if there is a file but
 * no token that may be sent to the plugin; true with an empty buffer if the
 * plugin has none.
 */
extern bool plugin_read_token(const Plugin *plugin, char *token, const char **code, const char **problem);

#endif							/* LEASEHOLD_PLUGINS_H */
