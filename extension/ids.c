/*
 * ids.c
 *		Time-ordered identifiers: UUID version 7 (RFC 9562, section 5.7).
 *
 * 48 bits of milliseconds, then 12 bits of the millisecond's fraction (method
 * 3 of section 6.2), then 62 random bits.  Within one backend ids never go
 * backwards, so rows written by one statement sort in the order written.
 */
#include "postgres.h"
#include "compat.h"

#include <time.h>

#include "miscadmin.h"
#include "utils/uuid.h"

PG_FUNCTION_INFO_V1(leasehold_new_id);
PG_FUNCTION_INFO_V1(leasehold_random_bytes);

#define NS_PER_STEP		245		/* a step of the 12-bit fraction: 1e6 / 4096 */
#define RANDOM_AT_ONCE	512		/* asking for 8 bytes costs as much as for these */

static uint64 ids_next_tick(void);
static void ids_take_random(uint8 *bytes);

Datum
leasehold_new_id(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *id = palloc(sizeof(pg_uuid_t));
	uint64		tick = ids_next_tick();
	uint64		millis = tick >> 12;
	uint16		fraction = tick & 0xFFF;

	ids_take_random(id->data + 8);
	for (int i = 0; i < 6; i++)
		id->data[i] = (uint8) (millis >> (8 * (5 - i)));
	id->data[6] = 0x70 | (fraction >> 8);
	id->data[7] = fraction & 0xFF;
	id->data[8] = (id->data[8] & 0x3F) | 0x80;
	PG_RETURN_UUID_P(id);
}

/*
 * Eight random bytes, none of them given out twice.  Ids are no secrets: that
 * some lie ready in memory harms nobody.
 */
static void
ids_take_random(uint8 *bytes)
{
	static uint8 pool[RANDOM_AT_ONCE];
	static int	left = 0;
	static int	filled_by = 0;	/* a forked child must not repeat its parent's */

	if (left == 0 || filled_by != MyProcPid)
	{
		left = 0;
		if (!pg_strong_random(pool, sizeof(pool)))
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("could not generate random bytes for an id")));
		left = sizeof(pool);
		filled_by = MyProcPid;
	}
	left -= 8;
	memcpy(bytes, pool + left, 8);
}

/*
 * Milliseconds since 1970 shifted left by 12, plus the fraction; greater than
 * any value returned before.
 */
static uint64
ids_next_tick(void)
{
	static uint64 last = 0;
	struct timespec now;
	uint64		tick;

	clock_gettime(CLOCK_REALTIME, &now);
	tick = ((uint64) now.tv_sec * 1000 + now.tv_nsec / 1000000) << 12;
	tick |= Min((now.tv_nsec % 1000000) / NS_PER_STEP, 4095);

	if (tick <= last)
		tick = last + 1;
	last = tick;
	return tick;
}

/*
 * random_bytes(count integer) returns bytea: fit for keys and tokens.
 */
Datum
leasehold_random_bytes(PG_FUNCTION_ARGS)
{
	int32		count = PG_GETARG_INT32(0);
	bytea	   *result;

	if (count < 1 || count > 1024)
		elog(ERROR, "random_bytes: bad count %d", count);
	result = palloc(VARHDRSZ + count);
	SET_VARSIZE(result, VARHDRSZ + count);
	if (!pg_strong_random(VARDATA(result), count))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random bytes")));
	PG_RETURN_BYTEA_P(result);
}
