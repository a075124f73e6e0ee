/*
 * left_calls.h
 *		Ending what sessions have left whose CALL did not see its end.
 */
#ifndef LEASEHOLD_LEFT_CALLS_H
#define LEASEHOLD_LEFT_CALLS_H

#include "utils/timestamp.h"

/*
 * A worker has taken over: commands that were started for a session, which a
 * crash of the server has ended, are to be found.
 */
extern void left_calls_look_for_lost(void);

/*
 * Whether there may be something to do now; else *next becomes the time when there
 * is, if that is earlier.  Cheap.
 */
extern bool left_calls_waiting(TimestampTz now, TimestampTz *next);

/* Does it; outside of any transaction.  Takes the memory of transaction_fresh_memory(). */
extern void left_calls_end(void);

#endif							/* LEASEHOLD_LEFT_CALLS_H */
