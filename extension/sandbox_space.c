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

#include "sandbox_space.h"
#include "settings.h"

#define MB					(1024 * 1024)

static int64 available_memory_mb(void);
static int64 promised(void);
static int64 promised_in(const char *installation);
static int64 room_in(const char *sandbox);

bool
sandbox_space_problem(int64 workspace_mb, StringInfo problem)
{
	struct statvfs space;
	int64		memory = available_memory_mb();
	int64		promised_mb = promised() / MB;

	if (statvfs(setting_bubblewrap_directory, &space) != 0)
		appendStringInfo(problem, "leasehold.bubblewrap_directory cannot be examined: %s", strerror(errno));
	else if (space.f_bavail < 1024 || (space.f_files > 0 && space.f_favail < 1024))
		appendStringInfoString(problem, "there is no space left in leasehold.bubblewrap_directory");
	else if (memory >= 0 && memory - promised_mb - workspace_mb < setting_bubblewrap_free_memory)
		appendStringInfo(problem, "memory is short: %lld MB are available, of which workspaces may still take %lld MB, "
						 "and leasehold.bubblewrap_free_memory (%d MB) must stay so",
						 (long long) memory, (long long) promised_mb, setting_bubblewrap_free_memory);
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

/* To all installations of this directory, in bytes. */
static int64
promised(void)
{
	DIR		   *dir = opendir(setting_bubblewrap_directory);
	struct dirent *entry;
	char		path[MAXPGPATH];
	int64		bytes = 0;

	while (dir != NULL && (entry = readdir(dir)) != NULL)
	{
		snprintf(path, sizeof(path), "%s/%s", setting_bubblewrap_directory, entry->d_name);
		if (entry->d_name[0] != '.')
			bytes += promised_in(path);
	}
	if (dir != NULL)
		closedir(dir);
	return bytes;
}

static int64
promised_in(const char *installation)
{
	DIR		   *dir = opendir(installation);
	struct dirent *entry;
	char		path[MAXPGPATH];
	int64		bytes = 0;

	while (dir != NULL && (entry = readdir(dir)) != NULL)
	{
		snprintf(path, sizeof(path), "%s/%s", installation, entry->d_name);
		if (entry->d_name[0] != '.')
			bytes += room_in(path);
	}
	if (dir != NULL)
		closedir(dir);
	return bytes;
}

/* As the holder of the sandbox sees it, in whose namespace alone it is mounted; 0 if there is none. */
static int64
room_in(const char *sandbox)
{
	char		record[MAXPGPATH + 10];
	char		path[2 * MAXPGPATH];
	FILE	   *file;
	int			pid = 0;
	struct stat mounted;
	struct stat around;
	struct statvfs space;

	snprintf(record, sizeof(record), "%s/holder", sandbox);
	file = fopen(record, "re");
	if (file == NULL)
		return 0;
	if (fscanf(file, "%d", &pid) != 1)
		pid = 0;
	fclose(file);
	snprintf(path, sizeof(path), "/proc/%d/root%s", pid, sandbox);
	if (stat(path, &around) != 0)
		return 0;
	strlcat(path, "/workspace", sizeof(path));
	/* where the process is another's by now, nothing is mounted */
	if (stat(path, &mounted) != 0 || mounted.st_dev == around.st_dev || statvfs(path, &space) != 0)
		return 0;
	return (int64) space.f_bavail * (int64) space.f_frsize;
}
