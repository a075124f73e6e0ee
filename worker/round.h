/*
 * round.h
 *		A worker's dealings with the database: one round is one transaction.
 */
#ifndef LEASEHOLD_ROUND_H
#define LEASEHOLD_ROUND_H

#include "utils/timestamp.h"

typedef enum RoundState
{
	ROUND_SERVING,
	ROUND_PAUSED,				/* answers and deadlines only */
	ROUND_HELD,					/* this is a copy: nothing at all */
	ROUND_EMPTY,				/* no installation yet, or one that is being restored: the same */
	ROUND_UNSUPPORTED,			/* SQL objects of another version */
	ROUND_NO_EXTENSION
} RoundState;

/*
 * Looks whether the extension is here and may be served; sets the shared
 * state.  Cheap if nothing changed.
 */
extern RoundState round_check(void);

/* Takes over what an earlier worker left, and sets worker.epoch. */
extern void round_recover(void);

/*
 * Stores the answers of finished calls, fires deadlines, reads what is due and
 * claims as much as there is room for; then starts the claimed calls.  Returns
 * when there is something to do next, by the clock.
 */
extern TimestampTz round_run(RoundState state, bool look_everywhere);

/* No round makes sense before this time: nothing could be done. */
extern TimestampTz round_not_before(void);

/* The clock was set back: nothing waits for a time that was near before. */
extern void round_clock_set_back(TimestampTz now);

/* Partitions, retention, and what else is the clock's. */
extern void round_housekeep(void);

/* Gives calls that are out back to the table, since this process ends. */
extern void round_give_back(void);

#endif							/* LEASEHOLD_ROUND_H */
