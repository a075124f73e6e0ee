/*
 * sandbox_holder.c
 *		The processes that hold the workspaces of sandboxes on this host.
 *
 * A sandbox is there as long as its holder lives, whose id and beginning are in
 * its directory.  It is gone only if that is certain: nobody may take what cannot
 * be looked at for what is not there.
 */
#include "postgres.h"
#include "compat.h"

#include <fcntl.h>
#include <unistd.h>

#include "process_identity.h"
#include "sandbox_holder.h"
#include "settings.h"

static SandboxState without_record(void);

SandboxState
sandbox_holder_find(const char *path, SandboxHolder *holder)
{
	char		file_name[MAXPGPATH + 10];
	FILE	   *file;
	int			pid;
	int			fields;
	bool		unreadable;
	int			pidfd;

	snprintf(file_name, sizeof(file_name), "%s/holder", path);
	file = fopen(file_name, "re");
	if (file == NULL)
		return errno == ENOENT ? without_record() : SANDBOX_UNCLEAR;
	fields = fscanf(file, "%d %llu", &pid, &holder->began);
	unreadable = ferror(file);
	fclose(file);
	if (unreadable)
		return SANDBOX_UNCLEAR;
	/* it came to be there whole: the machine has died since */
	if (fields != 2 || pid <= 1)
		return SANDBOX_GONE;
	holder->pid = pid;
	pidfd = process_open(holder->pid, holder->began);
	if (pidfd < 0)
		return errno == ESRCH ? SANDBOX_GONE : SANDBOX_UNCLEAR;
	close(pidfd);
	return SANDBOX_THERE;
}

/* It was never there, or is no more, if it is here that it would be. */
static SandboxState
without_record(void)
{
	int			directory = open(setting_bubblewrap_directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (directory < 0)
		return SANDBOX_UNCLEAR;
	close(directory);
	return SANDBOX_GONE;
}
