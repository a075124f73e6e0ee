/*
 * clock_watch.c
 *		A clock that goes on, is slowed down, set ahead, and set back.
 */
#include "../../worker/clock_watch.c"

#include "tap.h"

#define SECOND	INT64_C(1000000)
#define HOUR	(3600 * SECOND)
#define WALL	(INT64_C(800000000) * SECOND)

static void
seen(int64_t passed_wall, int64_t passed_steady, bool expected, const char *name)
{
	ClockWatch	watch = {0, 0};
	bool		first = clock_was_set_back(&watch, WALL, HOUR);
	bool		second = clock_was_set_back(&watch, WALL + passed_wall, HOUR + passed_steady);
	bool		third = clock_was_set_back(&watch, WALL + passed_wall + SECOND, HOUR + passed_steady + SECOND);

	ok(!first, "%s: nothing at first", name);
	ok(second == expected, "%s: %s", name, expected ? "set back" : "not set back");
	ok(!third, "%s: nothing afterwards", name);
}

int
main(void)
{
	seen(0, 0, false, "no time");
	seen(60 * SECOND, 60 * SECOND, false, "a minute");
	seen(24 * HOUR, 24 * HOUR, false, "a day");
	seen(60 * SECOND - 30000, 60 * SECOND, false, "a slow clock");
	seen(HOUR, SECOND, false, "set ahead");
	seen(-HOUR, SECOND, true, "an hour back");
	seen(-1, 0, true, "one microsecond back");
	seen(5 * SECOND, 10 * SECOND, true, "back by half of what passed");
	seen(SECOND - 50000, SECOND, true, "back by a little");
	return tap_done();
}
