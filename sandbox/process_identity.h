/*
 * process_identity.h
 *		Processes by their id and when they began, which tells one from a later one
 *		that has the same id.
 */
#ifndef LEASEHOLD_PROCESS_IDENTITY_H
#define LEASEHOLD_PROCESS_IDENTITY_H

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

/*
 * In clock ticks since the machine began; 0 if it cannot be said, be it that there
 * is no such process.  See proc(5).
 */
static inline unsigned long long
process_start_time(pid_t pid)
{
	char		path[64];
	char		line[1024];
	unsigned long long began = 0;
	FILE	   *file;
	char	   *rest;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	file = fopen(path, "re");
	if (file == NULL)
		return 0;
	/* the program's name, in parentheses, may hold anything */
	rest = fgets(line, sizeof(line), file) != NULL ? strrchr(line, ')') : NULL;
	fclose(file);
	if (rest == NULL ||
		sscanf(rest, ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", &began) != 1)
		return 0;
	return began;
}

/*
 * A descriptor (pidfd) of the process of that id that began then.  -1 if there is
 * none: with errno ESRCH if that process has ended, be it reaped or not; with
 * another errno if it cannot be said.
 */
static inline int
process_open(pid_t pid, unsigned long long began)
{
	int			pidfd = (int) syscall(SYS_pidfd_open, pid, 0);
	struct pollfd ended = {.fd = pidfd,.events = POLLIN};
	unsigned long long now;
	bool		over;
	bool		foreign;

	if (pidfd < 0)
	{
		/* the id of a thread is no process's: pidfd_open(2); newer kernels have another word for it */
		if (errno == EINVAL || errno == ENOENT)
			errno = ESRCH;
		return -1;
	}
	/* asked after it is held */
	now = process_start_time(pid);
	over = poll(&ended, 1, 0) == 1;
	if (now == began && !over)
		return pidfd;
	/* processes of others may be hidden */
	foreign = now == 0 && syscall(SYS_pidfd_send_signal, pidfd, 0, NULL, 0) != 0 && errno == EPERM;
	close(pidfd);
	errno = over || now != 0 || foreign ? ESRCH : EAGAIN;
	return -1;
}

#endif							/* LEASEHOLD_PROCESS_IDENTITY_H */
