/*
 * due.c
 *		A worker's reading of the dispatch table: what is due, and since when it looks.
 *
 * The table is read from a little before the last look on (the watermark).
 * Transactions that took longer between writing work and committing say how far
 * back to look (wake.c), as does the queue of what it had no room for, and now
 * and then everything is looked at.  Everything that is due before the watermark
 * is known here or was dealt with: who passes over something lowers it.  It is
 * raised only after a commit.
 */
#include "postgres.h"
#include "compat.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "command_output.h"
#include "due.h"
#include "settings.h"
#include "statement.h"
#include "transaction.h"
#include "worker.h"

#define LOOK_BACK_US		20000	/* more than WAKE_LATE_US */
#define DUE_BATCH			1000
#define DUE_BATCH_MAX		50000
#define OVERDUE_BATCH		10000
#define POSTPONED_MS		60000	/* of what cannot be done */

static TimestampTz watermark = DT_NOBEGIN;	/* everything due before was read */
static int	next_limit = DUE_BATCH;

static void read_due(DueCalls *due);
static void read_overdue(DueCalls *due);

void
due_begin(DueCalls *due, TimestampTz now, bool everywhere)
{
	uint64		late;
	TimestampTz overflow;

	memset(due, 0, sizeof(*due));
	due->now = now;
	due->limit = next_limit;
	due->overdue_limit = everywhere ? OVERDUE_BATCH : 0;
	due->timers = palloc((due->limit + due->overdue_limit) * sizeof(QueueKey));

	late = pg_atomic_exchange_u64(&worker.shared->late_since, PG_UINT64_MAX);
	if (late != PG_UINT64_MAX)
		due_look_from((TimestampTz) late);
	overflow = queue_overflow();
	if (overflow != 0)
		due_look_from(overflow - 1);
	due->since = everywhere ? DT_NOBEGIN : watermark;
}

void
due_read(DueCalls *due)
{
	read_due(due);
	if (due->overdue_limit > 0)
		read_overdue(due);
}

static void
read_due(DueCalls *due)
{
	static SPIPlanPtr plan = NULL;
	Datum		args[5];

	args[0] = Int32GetDatum(worker.part);
	args[1] = Int32GetDatum(setting_workers);
	args[2] = TimestampTzGetDatum(due->since);
	args[3] = TimestampTzGetDatum(due->now);
	args[4] = Int32GetDatum(due->limit);
	if (SPI_execute_plan(statement_prepared(&plan, "SELECT * FROM leasehold_internal.due_calls($1, $2, $3, $4, $5)", 5,
											(Oid[]) {INT4OID, INT4OID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT4OID}),
						 args, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read what is due");

	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;
		QueueKey	key;
		char	   *slot = SPI_getvalue(row, desc, 3);

		key.company = *DatumGetUUIDP(SPI_getbinval(row, desc, 1, &isnull));
		key.subject = *DatumGetUUIDP(SPI_getbinval(row, desc, 2, &isnull));
		key.slot = SLOT_OP;
		due->last = DatumGetTimestampTz(SPI_getbinval(row, desc, 5, &isnull));
		if (!statement_parse_slot(slot, &key.slot))
		{
			due->timers[due->timer_count++] = key;
			due->added++;
		}
		else if (queue_add(&key, SPI_getvalue(row, desc, 4), due->last, due->now))
			due->added++;
	}
	due->more = SPI_processed >= (uint64) due->limit;
}

/*
 * Requests that have run out of time without being claimed end with the
 * deadlines.
 */
static void
read_overdue(DueCalls *due)
{
	static SPIPlanPtr plan = NULL;
	Datum		args[3];

	args[0] = Int32GetDatum(worker.part);
	args[1] = Int32GetDatum(setting_workers);
	args[2] = Int32GetDatum(due->overdue_limit);
	if (SPI_execute_plan(statement_prepared(&plan, "SELECT * FROM leasehold_internal.overdue_requests($1, $2, $3)", 3,
											(Oid[]) {INT4OID, INT4OID, INT4OID}),
						 args, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read what is overdue");

	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;
		QueueKey   *key = &due->timers[due->timer_count++];

		key->company = *DatumGetUUIDP(SPI_getbinval(row, desc, 1, &isnull));
		key->subject = *DatumGetUUIDP(SPI_getbinval(row, desc, 2, &isnull));
		key->slot = SLOT_OP;
	}
}

TimestampTz
due_next(const DueCalls *due)
{
	static SPIPlanPtr plan = NULL;
	Datum		args[3];
	bool		isnull;
	Datum		next;

	args[0] = Int32GetDatum(worker.part);
	args[1] = Int32GetDatum(setting_workers);
	args[2] = TimestampTzGetDatum(due->now);
	if (SPI_execute_plan(statement_prepared(&plan, "SELECT leasehold_internal.next_due($1, $2, $3)", 3,
											(Oid[]) {INT4OID, INT4OID, TIMESTAMPTZOID}),
						 args, NULL, false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not find out when the next call is due");
	next = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	return isnull ? DT_NOEND : DatumGetTimestampTz(next);
}

void
due_was_read(const DueCalls *due)
{
	bool		nothing_new = due->more && due->added == 0;

	watermark = due->more ? due->last - 1 : due->now - LOOK_BACK_US;

	/*
	 * all that fits into a batch is of one moment: the rest of it is left to
	 * a look everywhere
	 */
	if (nothing_new && next_limit >= DUE_BATCH_MAX && watermark <= due->since)
		watermark = due->last;
	/* a full batch with nothing new: look further the next time */
	next_limit = nothing_new ? Min(next_limit * 4, DUE_BATCH_MAX) : DUE_BATCH;
}

void
due_look_from_start(void)
{
	watermark = DT_NOBEGIN;
}

TimestampTz
due_forget_call(Call *call)
{
	TimestampTz again = DT_NOEND;

	dlist_delete(&call->node);
	command_output_forget(call);
	if (call->queue != NULL)
		again = due_forget(&call->key);
	MemoryContextDelete(call->context);
	return again;
}

TimestampTz
due_forget(const QueueKey *key)
{
	TimestampTz again = queue_forget(key);

	if (again == 0)
		return DT_NOEND;
	due_look_from(again - 1);
	return again;
}

void
due_look_from(TimestampTz due_at)
{
	watermark = Min(watermark, due_at);
}

void
due_postpone(const QueueKey *key, bool deadline)
{
	Datum		args[4];
	Interval	pause;
	char		nulls[] = {' ', ' ', deadline ? 'n' : ' ', ' '};

	memset(&pause, 0, sizeof(pause));
	pause.time = (transaction_trouble_passes() ? TROUBLE_PAUSE_MS : POSTPONED_MS) * INT64CONST(1000);
	args[0] = UUIDPGetDatum(&key->company);
	args[1] = UUIDPGetDatum(&key->subject);
	args[2] = CStringGetTextDatum(statement_slot(key));
	args[3] = IntervalPGetDatum(&pause);
	if (SPI_execute_with_args("SELECT leasehold_internal.postpone_call($1, $2, $3, $4)", 4,
							  (Oid[]) {UUIDOID, UUIDOID, TEXTOID, INTERVALOID}, args, nulls, false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not postpone a call");
}
