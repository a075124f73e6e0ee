/*
 * breaker.h
 *		Circuit breakers: when to leave alone what fails again and again.
 */
#ifndef LEASEHOLD_BREAKER_H
#define LEASEHOLD_BREAKER_H

#include "utils/timestamp.h"

#include "shared_state.h"

/* All zero: closed, without failures. */
typedef struct Breaker
{
	BreakerState state;
	int			failures;		/* consecutive */
	int64		cooldown_ms;
	TimestampTz retry_at;		/* not closed: when a call is let through */
} Breaker;

extern bool breaker_lets_through(const Breaker *breaker, TimestampTz now);

/* A call is let through; true if it is the one that tries. */
extern bool breaker_try(Breaker *breaker, TimestampTz now);

/* The call that tries came to nothing: the next may. */
extern void breaker_not_tried(Breaker *breaker, TimestampTz now);

/*
 * A call failed, perhaps the one that tried.  True if that opens a breaker that
 * was closed, which happens only if it may.
 */
extern bool breaker_failed(Breaker *breaker, bool tried, bool may_open, TimestampTz now);

/* The clock was set back to now: the pause begins anew at most. */
extern void breaker_clock_set_back(Breaker *breaker, TimestampTz now);

extern void breaker_close(Breaker *breaker);

#endif							/* LEASEHOLD_BREAKER_H */
