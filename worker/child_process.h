/*
 * child_process.h
 *		Programs that a worker starts.
 */
#ifndef LEASEHOLD_CHILD_PROCESS_H
#define LEASEHOLD_CHILD_PROCESS_H

#include <sys/types.h>

#define CHILD_MAX_FDS	16

/*
 * Starts a program whose descriptors 0, 1, … are copies of these and which has no
 * others, in a session of its own, with a clean environment and no blocked or
 * ignored signals.  Returns a descriptor (pidfd) that is readable when it has
 * ended; child_process_reap() then, or child_process_kill() before.  -1, with a
 * static text, if it could not be started.
 */
extern int	child_process_start(char *const argv[], const int *fds, int fd_count, const char **problem);

/* After its end, or to wait for it: takes its status and closes the descriptor. */
extern void child_process_reap(int pidfd);

/* Kills it, and waits until it has ended. */
extern void child_process_kill(int pidfd);

/* A file in memory with that content, sealed, to be handed to a child; -1 if there is none to be had. */
extern int	child_process_memory_file(const char *name, const char *data, size_t length);

#endif							/* LEASEHOLD_CHILD_PROCESS_H */
