/*
 * sandbox_host.h
 *		Whether, and how, this host can run sandboxes of the provider "bubblewrap".
 */
#ifndef LEASEHOLD_SANDBOX_HOST_H
#define LEASEHOLD_SANDBOX_HOST_H

#include "lib/stringinfo.h"

/* The program of sandbox/leasehold_sandbox.c, as it is installed. */
extern const char *sandbox_host_helper(void);

/*
 * What keeps sandboxes from being made now, as a text for administrators in
 * problem; false if nothing does.  workspace_mb: what a new one would take, or
 * 0.  Palloc's; looks at files, and raises no errors about what it finds.
 */
extern bool sandbox_host_problem(int64 workspace_mb, StringInfo problem);

#endif							/* LEASEHOLD_SANDBOX_HOST_H */
