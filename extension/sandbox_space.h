/*
 * sandbox_space.h
 *		Whether this host has the memory for another sandbox of the provider "bubblewrap".
 */
#ifndef LEASEHOLD_SANDBOX_SPACE_H
#define LEASEHOLD_SANDBOX_SPACE_H

#include "lib/stringinfo.h"

/*
 * What is short for a workspace of workspace_mb more, as a text for
 * administrators in problem; false if nothing is.  Palloc's; looks at files, and
 * raises no errors about what it finds.
 */
extern bool sandbox_space_problem(int64 workspace_mb, StringInfo problem);

#endif							/* LEASEHOLD_SANDBOX_SPACE_H */
