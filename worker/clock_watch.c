/*
 * clock_watch.c
 *		Notices when somebody sets the server's clock back.
 *
 * What a worker has planned by the clock would then come too late, by as much
 * as it was set back.  That may be less than what passed meanwhile, so it is
 * compared with a clock that nobody sets.  A clock that is only slowed down, to
 * be right again, is not set back.
 */
#include "clock_watch.h"

#define SLACK_US		10000
#define SLOWEST			100		/* a slowed clock loses less than one part of these */

bool
clock_was_set_back(ClockWatch *watch, int64_t wall, int64_t steady)
{
	int64_t		passed = steady - watch->steady;
	bool		back = watch->steady != 0 &&
	(wall < watch->wall || wall - watch->wall < passed - passed / SLOWEST - SLACK_US);

	watch->wall = wall;
	watch->steady = steady;
	return back;
}
