/*
 * sandbox_exposure.c
 *		What of this host a sandbox of the provider "bubblewrap" sees, and what it must not.
 *
 * It sees the system's programs and libraries, read-only, and what the
 * administrator adds; and nothing of what the server keeps to itself, whatever
 * came to be configured: that is asked before each sandbox and each command.
 */
#include "postgres.h"
#include "compat.h"

#include <dirent.h>
#include <limits.h>
#include <stdlib.h>

#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "postmaster/postmaster.h"
#include "postmaster/syslogger.h"
#include "utils/guc.h"
#include "utils/varlena.h"

#include "sandbox_exposure.h"
#include "settings.h"

/* Programs, libraries, and what they look for in /etc; no configuration of the host. */
static const char *const system_paths[] = {
	"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32",
	"/etc/alternatives", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime",
	"/etc/mime.types", "/etc/terminfo", "/etc/ssl/certs", "/etc/ssl/openssl.cnf",
};

/* Asked of one path after another. */
typedef struct Exposure
{
	List	   *paths;			/* as they are exposed */
	List	   *real;			/* the same, without links */
	StringInfo	problem;
} Exposure;

static void note_exposed(const char *path, void *arg);
static bool server_is_exposed(const Exposure *exposure);
static const char *without_prefix(const char *keytab);
static bool sockets_are_exposed(const Exposure *exposure);
static bool tablespace_is_exposed(const Exposure *exposure);
static bool is_exposed(const Exposure *exposure, const char *path, const char *what, bool all_of_it);
static bool is_below(const char *path, const char *directory);

void
sandbox_exposed(void (*each) (const char *path, void *arg), void *arg)
{
	char	   *more = pstrdup(setting_bubblewrap_read_only);
	char	   *save;

	for (int i = 0; i < (int) lengthof(system_paths); i++)
		each(system_paths[i], arg);
	for (char *path = strtok_r(more, ":", &save); path != NULL; path = strtok_r(NULL, ":", &save))
	{
		if (path[0] == '/')
			each(path, arg);
	}
	pfree(more);
}

bool
sandbox_exposure_problem(StringInfo problem)
{
	Exposure	exposure = {.problem = problem};
	bool		found;

	sandbox_exposed(note_exposed, &exposure);
	found = server_is_exposed(&exposure) || sockets_are_exposed(&exposure) || tablespace_is_exposed(&exposure);
	list_free_deep(exposure.paths);
	list_free_deep(exposure.real);
	return found;
}

static void
note_exposed(const char *path, void *arg)
{
	Exposure   *exposure = arg;
	char		real[PATH_MAX]; /* as realpath() wants it */

	if (realpath(path, real) == NULL)
		return;
	exposure->paths = lappend(exposure->paths, pstrdup(path));
	exposure->real = lappend(exposure->real, pstrdup(real));
}

static bool
server_is_exposed(const Exposure *exposure)
{
	return is_exposed(exposure, DataDir, "the data directory", true) ||
		is_exposed(exposure, "pg_wal", "the write-ahead log", true) ||
		is_exposed(exposure, Log_directory, "the server's log", true) ||
		is_exposed(exposure, setting_bubblewrap_directory, "leasehold.bubblewrap_directory", true) ||
		is_exposed(exposure, setting_token_directory, "leasehold.token_directory", true) ||
		is_exposed(exposure, ConfigFileName, "the server's configuration", false) ||
		is_exposed(exposure, HbaFileName, "hba_file", false) ||
		is_exposed(exposure, IdentFileName, "ident_file", false) ||
		is_exposed(exposure, GetConfigOption("ssl_key_file", true, false), "ssl_key_file", false) ||
		is_exposed(exposure, without_prefix(GetConfigOption("krb_server_keyfile", true, false)), "krb_server_keyfile", false);
}

static const char *
without_prefix(const char *keytab)
{
	return keytab != NULL && strncmp(keytab, "FILE:", 5) == 0 ? keytab + 5 : keytab;
}

static bool
sockets_are_exposed(const Exposure *exposure)
{
	char	   *sockets = pstrdup(Unix_socket_directories);
	List	   *directories = NIL;
	ListCell   *cell;
	bool		found = false;

	(void) SplitDirectoriesString(sockets, ',', &directories);
	foreach(cell, directories)
	{
		const char *directory = lfirst(cell);

		if (!found && directory[0] == '/')
			found = is_exposed(exposure, directory, "a directory of the server's sockets", false);
	}
	list_free_deep(directories);
	pfree(sockets);
	return found;
}

static bool
tablespace_is_exposed(const Exposure *exposure)
{
	DIR		   *links = opendir("pg_tblspc");
	struct dirent *link;
	bool		found = false;

	while (links != NULL && !found && (link = readdir(links)) != NULL)
	{
		char		path[MAXPGPATH];

		snprintf(path, sizeof(path), "pg_tblspc/%s", link->d_name);
		found = link->d_name[0] != '.' && is_exposed(exposure, path, "a tablespace", true);
	}
	if (links == NULL)
	{
		appendStringInfo(exposure->problem, "it cannot be said where the tablespaces are: %s", strerror(errno));
		return true;
	}
	closedir(links);
	return found;
}

/*
 * The path may be relative to the data directory, where all processes of the
 * server are.  all_of_it: nothing in it is to be seen, either.
 */
static bool
is_exposed(const Exposure *exposure, const char *path, const char *what, bool all_of_it)
{
	char		hidden[PATH_MAX];	/* as realpath() wants it */

	if (path == NULL || path[0] == '\0' || realpath(path, hidden) == NULL)
		return false;
	for (int i = 0; i < list_length(exposure->real); i++)
	{
		const char *real = list_nth(exposure->real, i);
		const char *exposed = list_nth(exposure->paths, i);

		if (is_below(hidden, real))
			appendStringInfo(exposure->problem, "%s would be seen in sandboxes: it is below \"%s\"", what, exposed);
		else if (all_of_it && is_below(real, hidden))
			appendStringInfo(exposure->problem, "%s would be seen in sandboxes: \"%s\" is in it", what, exposed);
		else
			continue;
		return true;
	}
	return false;
}

static bool
is_below(const char *path, const char *directory)
{
	size_t		length = strlen(directory);

	return strncmp(path, directory, length) == 0 && (path[length] == '/' || path[length] == '\0' || length == 1);
}
