/*
 * breaker.c
 *		Circuit breakers: when to leave alone what fails again and again.
 *
 * Closed -> open after leasehold.breaker_threshold consecutive failures; open ->
 * half open when its pause is over: one call is let through; half open -> closed
 * if that ends well, -> open with twice the pause if not.  A call that was let
 * through and does not end is not waited for: after a while another is.
 *
 * Whose breaker a failure counts for is decided in queue.c.
 */
#include "postgres.h"
#include "compat.h"

#include "common/pg_prng.h"

#include "breaker.h"
#include "settings.h"

#define COOLDOWN_MAX_MS		300000

static void open_breaker(Breaker *breaker, TimestampTz now);

bool
breaker_lets_through(const Breaker *breaker, TimestampTz now)
{
	return breaker->state == BREAKER_CLOSED || now >= breaker->retry_at;
}

bool
breaker_try(Breaker *breaker, TimestampTz now)
{
	if (breaker->state == BREAKER_CLOSED)
		return false;
	breaker->state = BREAKER_HALF_OPEN;
	breaker->retry_at = TimestampTzPlusMilliseconds(now, Max(breaker->cooldown_ms, setting_rpc_timeout));
	return true;
}

void
breaker_not_tried(Breaker *breaker, TimestampTz now)
{
	if (breaker->state != BREAKER_HALF_OPEN)
		return;
	breaker->state = BREAKER_OPEN;
	breaker->retry_at = now;
}

bool
breaker_failed(Breaker *breaker, bool tried, bool may_open, TimestampTz now)
{
	bool		closed = breaker->state == BREAKER_CLOSED;

	breaker->failures++;
	if (closed ? may_open && breaker->failures >= setting_breaker_threshold : tried)
	{
		open_breaker(breaker, now);
		return closed;
	}
	return false;
}

static void
open_breaker(Breaker *breaker, TimestampTz now)
{
	double		jitter = 0.75 + pg_prng_double(&pg_global_prng_state) / 2;

	breaker->cooldown_ms = Min(Max(breaker->cooldown_ms * 2, setting_breaker_cooldown),
							   Max(COOLDOWN_MAX_MS, setting_breaker_cooldown));
	breaker->retry_at = TimestampTzPlusMilliseconds(now, (int64) (breaker->cooldown_ms * jitter));
	breaker->state = BREAKER_OPEN;
}

void
breaker_clock_set_back(Breaker *breaker, TimestampTz now)
{
	breaker->retry_at = Min(breaker->retry_at, TimestampTzPlusMilliseconds(now, breaker->cooldown_ms));
}

void
breaker_close(Breaker *breaker)
{
	memset(breaker, 0, sizeof(Breaker));
	breaker->state = BREAKER_CLOSED;
}
