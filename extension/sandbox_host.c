/*
 * sandbox_host.c
 *		Whether, and how, this host can run sandboxes of the provider "bubblewrap".
 *
 * Workspaces are file systems in memory, each of its own size; in the directory
 * that is configured are only their mount points and who holds them.  A sandbox
 * sees the system's programs and libraries, read-only, and nothing of the data
 * directory, whatever the administrator configured: that is checked here.
 */
#include "postgres.h"
#include "compat.h"

#include <limits.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "fmgr.h"
#include "miscadmin.h"
#include "postmaster/postmaster.h"
#include "utils/builtins.h"
#include "utils/varlena.h"

#include "sandbox_host.h"
#include "settings.h"

PG_FUNCTION_INFO_V1(leasehold_sandbox_problem);

#define HELPER_NAME			"leasehold_sandbox"

/* Programs, libraries, and what they look for in /etc; no configuration of the host. */
static const char *const system_paths[] = {
	"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32",
	"/etc/alternatives", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime",
	"/etc/mime.types", "/etc/terminfo", "/etc/ssl/certs", "/etc/ssl/openssl.cnf",
};

typedef struct Hidden
{
	const char *path;			/* real path of what must not be seen */
	const char *exposed_by;
} Hidden;

static bool directory_problem(StringInfo problem);
static bool exposure_problem(StringInfo problem);
static bool is_exposed(const char *path, const char *what, StringInfo problem);
static void compare_exposed(const char *path, void *arg);
static bool space_problem(int64 workspace_mb, StringInfo problem);
static int64 available_memory_mb(void);

const char *
sandbox_host_helper(void)
{
	static char path[MAXPGPATH];

	snprintf(path, sizeof(path), "%s/%s", pkglib_path, HELPER_NAME);
	return path;
}

/*
 * sandbox_problem() returns text: why this host cannot run sandboxes; NULL if it can
 */
Datum
leasehold_sandbox_problem(PG_FUNCTION_ARGS)
{
	StringInfoData problem;

	initStringInfo(&problem);
	if (sandbox_host_problem(0, &problem))
		PG_RETURN_TEXT_P(cstring_to_text(problem.data));
	PG_RETURN_NULL();
}

bool
sandbox_host_problem(int64 workspace_mb, StringInfo problem)
{
	if (!setting_bubblewrap)
		appendStringInfoString(problem, "leasehold.bubblewrap is off");
	else if (access(setting_bubblewrap_program, X_OK) != 0)
		appendStringInfo(problem, "\"%s\" cannot be run: install the package bubblewrap", setting_bubblewrap_program);
	else if (access(sandbox_host_helper(), X_OK) != 0)
		appendStringInfo(problem, "\"%s\" is not installed", sandbox_host_helper());
	else
		return directory_problem(problem) || exposure_problem(problem) || space_problem(workspace_mb, problem);
	return true;
}

static bool
directory_problem(StringInfo problem)
{
	const char *directory = setting_bubblewrap_directory;
	struct stat status;
	struct stat data;

	if (directory[0] == '\0')
		appendStringInfoString(problem, "leasehold.bubblewrap_directory is not set");
	else if (directory[0] != '/')
		appendStringInfoString(problem, "leasehold.bubblewrap_directory is not an absolute path");
	else if (lstat(directory, &status) != 0 || !S_ISDIR(status.st_mode))
		appendStringInfo(problem, "leasehold.bubblewrap_directory \"%s\" is not a directory", directory);
	else if (status.st_uid != geteuid() || (status.st_mode & (S_IRWXG | S_IRWXO)) != 0)
		appendStringInfo(problem, "leasehold.bubblewrap_directory \"%s\" must belong to the server's user, and nobody else may enter it (mode 0700)",
						 directory);
	else if (!setting_bubblewrap_data_filesystem && stat(DataDir, &data) == 0 && data.st_dev == status.st_dev)
		appendStringInfo(problem, "leasehold.bubblewrap_directory \"%s\" is on the file system of the data directory (leasehold.bubblewrap_data_filesystem allows it)",
						 directory);
	else
		return false;
	return true;
}

/* What must not be seen from within. */
static bool
exposure_problem(StringInfo problem)
{
	char	   *sockets = pstrdup(Unix_socket_directories);
	List	   *directories = NIL;
	ListCell   *cell;

	if (is_exposed(DataDir, "the data directory", problem) ||
		is_exposed(setting_bubblewrap_directory, "leasehold.bubblewrap_directory", problem) ||
		(setting_token_directory[0] != '\0' && is_exposed(setting_token_directory, "leasehold.token_directory", problem)))
		return true;
	if (!SplitDirectoriesString(sockets, ',', &directories))
		return false;
	foreach(cell, directories)
	{
		if (((char *) lfirst(cell))[0] == '/' && is_exposed(lfirst(cell), "a directory of the server's sockets", problem))
			return true;
	}
	return false;
}

static bool
is_exposed(const char *path, const char *what, StringInfo problem)
{
	char		real[PATH_MAX]; /* as realpath() wants it */
	Hidden		hidden = {real, NULL};

	if (realpath(path, real) == NULL)
		return false;
	sandbox_host_exposed(compare_exposed, &hidden);
	if (hidden.exposed_by == NULL)
		return false;
	appendStringInfo(problem, "%s would be seen in sandboxes: it is below \"%s\"", what, hidden.exposed_by);
	return true;
}

static void
compare_exposed(const char *path, void *arg)
{
	Hidden	   *hidden = arg;
	char		real[PATH_MAX]; /* as realpath() wants it */
	size_t		length;

	if (realpath(path, real) == NULL)
		return;
	length = strlen(real);
	if (strncmp(hidden->path, real, length) == 0 && (hidden->path[length] == '/' || hidden->path[length] == '\0' || length == 1))
		hidden->exposed_by = pstrdup(path);
}

void
sandbox_host_exposed(void (*each) (const char *path, void *arg), void *arg)
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

static bool
space_problem(int64 workspace_mb, StringInfo problem)
{
	struct statvfs space;
	int64		memory = available_memory_mb();

	if (statvfs(setting_bubblewrap_directory, &space) != 0)
		appendStringInfo(problem, "leasehold.bubblewrap_directory cannot be examined: %s", strerror(errno));
	else if (space.f_bavail < 1024 || (space.f_files > 0 && space.f_favail < 1024))
		appendStringInfoString(problem, "there is no space left in leasehold.bubblewrap_directory");
	else if (memory >= 0 && memory - workspace_mb < setting_bubblewrap_free_memory)
		appendStringInfo(problem, "memory is short: %lld MB are available, and leasehold.bubblewrap_free_memory (%d MB) must stay so",
						 (long long) memory, setting_bubblewrap_free_memory);
	else
		return false;
	return true;
}

/* -1 if the kernel does not say: see proc(5). */
static int64
available_memory_mb(void)
{
	FILE	   *file = fopen("/proc/meminfo", "r");
	char		line[200];
	long long	kb = -1;

	if (file == NULL)
		return -1;
	while (kb < 0 && fgets(line, sizeof(line), file) != NULL)
		(void) sscanf(line, "MemAvailable: %lld kB", &kb);
	fclose(file);
	return kb < 0 ? -1 : kb / 1024;
}
