/*
 * clock_watch.h
 *		Notices when somebody sets the server's clock back.
 */
#ifndef LEASEHOLD_CLOCK_WATCH_H
#define LEASEHOLD_CLOCK_WATCH_H

#include <stdbool.h>
#include <stdint.h>

/* All zero: nothing was seen yet. */
typedef struct ClockWatch
{
	int64_t		wall;
	int64_t		steady;
} ClockWatch;

/*
 * Whether the clock was set back since the last call.  Both times are in
 * microseconds: wall is what it says, steady what passes whoever sets it.
 */
extern bool clock_was_set_back(ClockWatch *watch, int64_t wall, int64_t steady);

#endif							/* LEASEHOLD_CLOCK_WATCH_H */
