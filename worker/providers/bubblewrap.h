/*
 * bubblewrap.h
 *		Between the two files of the provider "bubblewrap": sandboxes and commands.
 */
#ifndef LEASEHOLD_BUBBLEWRAP_H
#define LEASEHOLD_BUBBLEWRAP_H

#include <jansson.h>

#include "call.h"
#include "sandbox_holder.h"

#define SANDBOX_ID_SIZE		100

/*
 * The directory of an installation's sandbox, in path (MAXPGPATH); false, and an
 * empty path, if that are no ids of ours.
 */
extern bool bubblewrap_directory(const char *installation, const char *id, char *path);

/* The outcome of a call, with its code and text, that found it not there. */
extern CallOutcome bubblewrap_missing(SandboxState found, const char **code, const char **message);

/* A positive number of the environment's configuration, or otherwise. */
extern int64 bubblewrap_number(const json_t *params, const char *name, int64 otherwise);

/* The provider's functions for commands: see provider.h. */
extern void bubblewrap_execute(Call *call);
extern void bubblewrap_cancel(Call *call);
extern void bubblewrap_abandon(Call *call);

/* Ends what runs in a sandbox, at once. */
extern void bubblewrap_end_commands(const char *path);

#endif							/* LEASEHOLD_BUBBLEWRAP_H */
