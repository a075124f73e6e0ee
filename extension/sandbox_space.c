/*
 * sandbox_space.c
 *		Whether this host has the memory for another sandbox of the provider "bubblewrap".
 *
 * Workspaces are file systems in memory.  What those that there are may still
 * take counts as taken: they can all fill up without taking what was to stay.
 */
#include "postgres.h"
#include "compat.h"

#include <dirent.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "sandbox_holder.h"
#include "sandbox_space.h"
#include "settings.h"

#define MB					(1024 * 1024)

static int64 available_memory_mb(void);
static bool add_promised(int64 *bytes);
static bool add_promised_in(const char *installation, int64 *bytes);
static bool add_room_in(const char *sandbox, int64 *bytes);

bool
sandbox_space_problem(int64 workspace_mb, StringInfo problem)
{
	struct statvfs space;
	int64		memory = available_memory_mb();
	int64		promised = 0;

	if (!add_promised(&promised))
		appendStringInfoString(problem, "it cannot be said how much memory workspaces may still take: descriptors or memory are short");
	else if (statvfs(setting_bubblewrap_directory, &space) != 0)
		appendStringInfo(problem, "leasehold.bubblewrap_directory cannot be examined: %s", strerror(errno));
	else if (space.f_bavail < 1024 || (space.f_files > 0 && space.f_favail < 1024))
		appendStringInfoString(problem, "there is no space left in leasehold.bubblewrap_directory");
	else if (memory >= 0 && memory - promised / MB - workspace_mb < setting_bubblewrap_free_memory)
		appendStringInfo(problem, "memory is short: %lld MB are available, of which workspaces may still take %lld MB, "
						 "and leasehold.bubblewrap_free_memory (%d MB) must stay so",
						 (long long) memory, (long long) (promised / MB), setting_bubblewrap_free_memory);
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

/* To all installations of this directory; false if it cannot be said. */
static bool
add_promised(int64 *bytes)
{
	DIR		   *dir = opendir(setting_bubblewrap_directory);
	bool		known = dir != NULL;
	struct dirent *entry;
	char		path[MAXPGPATH];

	while (known && (entry = readdir(dir)) != NULL)
	{
		snprintf(path, sizeof(path), "%s/%s", setting_bubblewrap_directory, entry->d_name);
		known = entry->d_name[0] == '.' || add_promised_in(path, bytes);
	}
	if (dir != NULL)
		closedir(dir);
	return known;
}

static bool
add_promised_in(const char *installation, int64 *bytes)
{
	DIR		   *dir = opendir(installation);
	bool		known = dir != NULL || errno == ENOTDIR || errno == ENOENT;
	struct dirent *entry;
	char		path[MAXPGPATH];

	while (dir != NULL && known && (entry = readdir(dir)) != NULL)
	{
		snprintf(path, sizeof(path), "%s/%s", installation, entry->d_name);
		known = entry->d_name[0] == '.' || add_room_in(path, bytes);
	}
	if (dir != NULL)
		closedir(dir);
	return known;
}

/* As the holder of the sandbox sees it, in whose namespace alone it is mounted. */
static bool
add_room_in(const char *sandbox, int64 *bytes)
{
	char		path[2 * MAXPGPATH];
	SandboxHolder holder;
	SandboxState found = sandbox_holder_find(sandbox, &holder);
	struct stat mounted;
	struct stat around;
	struct statvfs space;

	if (found != SANDBOX_THERE)
		return found == SANDBOX_GONE;
	snprintf(path, sizeof(path), "/proc/%d/root%s", (int) holder.pid, sandbox);
	if (stat(path, &around) != 0)
		return true;
	strlcat(path, "/workspace", sizeof(path));
	/* where it has died just now, nothing is mounted */
	if (stat(path, &mounted) == 0 && mounted.st_dev != around.st_dev && statvfs(path, &space) == 0)
		*bytes += (int64) space.f_bavail * (int64) space.f_frsize;
	return true;
}
