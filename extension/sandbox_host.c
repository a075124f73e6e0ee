/*
 * sandbox_host.c
 *		Whether, and how, this host can run sandboxes of the provider "bubblewrap".
 *
 * Workspaces are file systems in memory, each of its own size; in the directory
 * that is configured are only their mount points and who holds them.
 */
#include "postgres.h"
#include "compat.h"

#include <sys/stat.h>
#include <unistd.h>

#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "sandbox_exposure.h"
#include "sandbox_host.h"
#include "sandbox_space.h"
#include "settings.h"

PG_FUNCTION_INFO_V1(leasehold_sandbox_problem);

#define HELPER_NAME			"leasehold_sandbox"

static bool directory_problem(StringInfo problem);

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
		return directory_problem(problem) || sandbox_exposure_problem(problem) || sandbox_space_problem(workspace_mb, problem);
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
