/*
 * sandbox_exposure.h
 *		What of this host a sandbox of the provider "bubblewrap" sees, and what it must not.
 */
#ifndef LEASEHOLD_SANDBOX_EXPOSURE_H
#define LEASEHOLD_SANDBOX_EXPOSURE_H

#include "lib/stringinfo.h"

/*
 * Calls back for every path of the host that a sandbox sees, which it can only
 * read.
 */
extern void sandbox_exposed(void (*each) (const char *path, void *arg), void *arg);

/*
 * Whether something would be seen that must not be, told as a text for
 * administrators in problem.  The current directory is the data directory.
 * Palloc's; looks at files, and raises no errors about what it finds.
 */
extern bool sandbox_exposure_problem(StringInfo problem);

#endif							/* LEASEHOLD_SANDBOX_EXPOSURE_H */
