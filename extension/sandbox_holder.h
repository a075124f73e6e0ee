/*
 * sandbox_holder.h
 *		The processes that hold the workspaces of sandboxes on this host.
 */
#ifndef LEASEHOLD_SANDBOX_HOLDER_H
#define LEASEHOLD_SANDBOX_HOLDER_H

#include <sys/types.h>

/* Who holds a sandbox's workspace. */
typedef struct SandboxHolder
{
	pid_t		pid;
	unsigned long long began;
} SandboxHolder;

typedef enum SandboxState
{
	SANDBOX_THERE,
	SANDBOX_GONE,				/* for certain */
	SANDBOX_UNCLEAR				/* descriptors or memory are short, say */
} SandboxState;

/* Whether the sandbox with this directory is there, and who holds its workspace then. */
extern SandboxState sandbox_holder_find(const char *path, SandboxHolder *holder);

#endif							/* LEASEHOLD_SANDBOX_HOLDER_H */
