/*
 * child_process.c
 *		Programs that a worker starts.
 *
 * posix_spawn() neither copies the worker's memory nor runs code of the server in
 * the child.  Processes are held by descriptors (pidfds), not by their ids, which
 * may come to be others'.
 */
#include "postgres.h"
#include "compat.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "child_process.h"

#define COPIES_FROM		64		/* where copies of descriptors are put before they get their places */

static bool spawn(char *const argv[], const int *copies, int fd_count, pid_t *pid);

int
child_process_start(char *const argv[], const int *fds, int fd_count, const char **problem)
{
	int			copies[CHILD_MAX_FDS];
	int			count;
	pid_t		pid;
	int			pidfd = -1;

	Assert(fd_count <= CHILD_MAX_FDS);
	*problem = NULL;
	for (count = 0; count < fd_count; count++)
	{
		copies[count] = fcntl(fds[count], F_DUPFD_CLOEXEC, COPIES_FROM);
		if (copies[count] < 0)
			break;
	}
	if (count < fd_count)
		*problem = "no descriptors are left";
	else if (!spawn(argv, copies, fd_count, &pid))
		*problem = "the program could not be started";
	else
	{
		/* it is ours to reap, so its id is still its own */
		pidfd = (int) syscall(SYS_pidfd_open, pid, 0);
		if (pidfd < 0)
		{
			*problem = "no descriptors are left";
			kill(pid, SIGKILL);
			while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
				;
		}
	}
	while (count > 0)
		close(copies[--count]);
	return pidfd;
}

static bool
spawn(char *const argv[], const int *copies, int fd_count, pid_t *pid)
{
	static char *const environment[] = {"PATH=/usr/bin:/bin", "LANG=C", NULL};
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;
	sigset_t	none;
	sigset_t	all;
	bool		ok;

	if (posix_spawn_file_actions_init(&actions) != 0)
		return false;
	if (posix_spawnattr_init(&attributes) != 0)
	{
		posix_spawn_file_actions_destroy(&actions);
		return false;
	}
	sigemptyset(&none);
	sigfillset(&all);
	ok = posix_spawnattr_setsigmask(&attributes, &none) == 0 &&
		posix_spawnattr_setsigdefault(&attributes, &all) == 0 &&
		posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSID) == 0;
	for (int i = 0; ok && i < fd_count; i++)
		ok = posix_spawn_file_actions_adddup2(&actions, copies[i], i) == 0;
	ok = ok && posix_spawn_file_actions_addclosefrom_np(&actions, fd_count) == 0 &&
		posix_spawn(pid, argv[0], &actions, &attributes, argv, environment) == 0;
	posix_spawnattr_destroy(&attributes);
	posix_spawn_file_actions_destroy(&actions);
	return ok;
}

void
child_process_reap(int pidfd)
{
	siginfo_t	info;

	while (waitid(P_PIDFD, pidfd, &info, WEXITED) != 0 && errno == EINTR)
		;
	close(pidfd);
}

void
child_process_kill(int pidfd)
{
	(void) syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
	child_process_reap(pidfd);
}

int
child_process_memory_file(const char *name, const char *data, size_t length)
{
	int			fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0)
		return -1;
	while (length > 0)
	{
		ssize_t		part = write(fd, data, length);

		if (part <= 0)
		{
			close(fd);
			return -1;
		}
		data += part;
		length -= part;
	}
	/* who has it may read it; it is no memory that grows */
	if (lseek(fd, 0, SEEK_SET) != 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) != 0)
	{
		close(fd);
		return -1;
	}
	return fd;
}
