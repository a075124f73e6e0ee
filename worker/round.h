/*
 * round.h
 *		A worker's round with the database: one transaction for all that there is to do.
 */
#ifndef LEASEHOLD_ROUND_H
#define LEASEHOLD_ROUND_H

#include "utils/timestamp.h"

#include "installation_check.h"

/*
 * Stores the answers of finished calls, fires deadlines, reads what is due and
 * claims as much as there is room for; then starts the claimed calls.  Does of
 * it what the state allows.  Returns when there is something to do next, by the
 * clock.  Outside of any transaction; what fails is logged.  It takes the memory
 * of transaction_fresh_memory().
 */
extern TimestampTz round_run(InstallationState state, bool look_everywhere);

/* No round makes sense before this time: nothing could be done. */
extern TimestampTz round_not_before(void);

/* The clock was set back: nothing waits for a time that was near before. */
extern void round_clock_set_back(TimestampTz now);

#endif							/* LEASEHOLD_ROUND_H */
