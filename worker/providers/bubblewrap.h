/*
 * bubblewrap.h
 *		Between the two files of the provider "bubblewrap": sandboxes and commands.
 */
#ifndef LEASEHOLD_BUBBLEWRAP_H
#define LEASEHOLD_BUBBLEWRAP_H

#include <sys/types.h>

#include "call.h"

#define SANDBOX_ID_SIZE		100

/* Who holds a sandbox's workspace. */
typedef struct SandboxHolder
{
	pid_t		pid;
	unsigned long long began;
} SandboxHolder;

/*
 * The directory of an installation's sandbox, in path (MAXPGPATH); false, and an
 * empty path, if that are no ids of ours.
 */
extern bool bubblewrap_directory(const char *installation, const char *id, char *path);

typedef enum SandboxState
{
	SANDBOX_THERE,
	SANDBOX_GONE,				/* for certain */
	SANDBOX_UNCLEAR				/* descriptors or memory are short, say */
} SandboxState;

/* Whether a sandbox is there, and who holds its workspace then. */
extern SandboxState bubblewrap_holder(const char *path, SandboxHolder *holder);

/* The outcome of a call, with its code and text, that found it not there. */
extern CallOutcome bubblewrap_missing(SandboxState found, const char **code, const char **message);

/* The provider's functions for commands: see provider.h. */
extern void bubblewrap_execute(Call *call);
extern void bubblewrap_cancel(Call *call);
extern void bubblewrap_abandon(Call *call);

/* Ends what runs in a sandbox, at once. */
extern void bubblewrap_end_commands(const char *path);

#endif							/* LEASEHOLD_BUBBLEWRAP_H */
