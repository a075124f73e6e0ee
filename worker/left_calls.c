/*
 * left_calls.c
 *		Ending what sessions have left whose CALL did not see its end.
 *
 * What was left is in shared memory (extension/attachment.c) until it is done.  What
 * a user has locked is tried again a little later.
 */
#include "postgres.h"
#include "compat.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"

#include "attachment.h"
#include "left_calls.h"
#include "statement.h"
#include "transaction.h"
#include "worker.h"

#define BATCH				100

typedef struct Batch
{
	LeftAttachment *items;
	bool	   *done;
	int			count;
} Batch;

static bool look_for_lost = false;
static TimestampTz not_before = 0;

static void lost_work(void *arg);
static void batch_work(void *arg);
static void end_items(const LeftAttachment *items, int count, bool *done);
static void one_by_one(Batch *batch);
static Datum generations(const LeftAttachment *items, int count);
static Datum uuids(const LeftAttachment *items, int count, size_t offset);

void
left_calls_look_for_lost(void)
{
	look_for_lost = true;
	not_before = 0;
}

bool
left_calls_waiting(TimestampTz now, TimestampTz *next)
{
	if (!look_for_lost && pg_atomic_read_u32(&worker.shared->left_calls) == 0)
		return false;
	if (now >= not_before)
		return true;
	*next = Min(*next, not_before);
	return false;
}

void
left_calls_end(void)
{
	static int	from = 0;
	Batch		batch;
	bool		all = true;

	transaction_fresh_memory();
	not_before = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LOCKED_PAUSE_MS);
	if (look_for_lost)
	{
		bool		all_lost = false;

		look_for_lost = !transaction_run("looking for commands whose session is lost", lost_work, &all_lost) || !all_lost;
	}

	batch.items = palloc(BATCH * sizeof(LeftAttachment));
	batch.done = palloc0(BATCH * sizeof(bool));
	batch.count = attachment_read_left(worker.database->oid, worker.part, &from, batch.items, BATCH);
	if (batch.count == 0)
		return;
	if (!transaction_run("ending what sessions have left", batch_work, &batch))
		one_by_one(&batch);
	for (int i = 0; i < batch.count; i++)
	{
		all &= batch.done[i];
		if (batch.done[i])
			attachment_free(worker.shared, &batch.items[i]);
	}
	if (all)
		not_before = 0;
}

static void
batch_work(void *arg)
{
	Batch	   *batch = arg;

	end_items(batch->items, batch->count, batch->done);
}

static void
one_by_one(Batch *batch)
{
	int			troubles = 0;

	memset(batch->done, 0, batch->count * sizeof(bool));
	for (int i = 0; i < batch->count && !transaction_gives_up(troubles); i++)
	{
		Batch		single = {.items = &batch->items[i],.done = &batch->done[i],.count = 1};

		if (transaction_run("ending what a session has left", batch_work, &single))
		{
			troubles = 0;
			continue;
		}
		batch->done[i] = false;
		if (!transaction_troubled(&troubles))
			not_before = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), TROUBLE_PAUSE_MS);
	}
	transaction_forget_locks();
}

/* Commands that were started for a session of which nobody knows any more; whether all of them are ended. */
static void
lost_work(void *arg)
{
	bool	   *all = arg;
	Datum		shards = statement_my_shards();
	LeftAttachment *lost;
	int			count = 0;
	bool	   *done;

	if (SPI_execute_with_args("SELECT * FROM leasehold_internal.attached_commands($1)", 1,
							  (Oid[]) {INT2ARRAYOID}, &shards, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not find the commands of sessions");
	lost = palloc0(SPI_processed * sizeof(LeftAttachment));
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;

		lost[count].company = *DatumGetUUIDP(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull));
		lost[count].command = *DatumGetUUIDP(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2, &isnull));

		/*
		 * whoever starts one is attached before it is to be seen, until its
		 * end is
		 */
		if (!attachment_exists(worker.database->oid, &lost[count].company, &lost[count].command))
			count++;
	}
	*all = true;
	if (count == 0)
		return;
	done = palloc(count * sizeof(bool));
	end_items(lost, count, done);
	for (int i = 0; i < count; i++)
		*all &= done[i];
}

static void
end_items(const LeftAttachment *items, int count, bool *done)
{
	Datum		args[4];
	Datum	   *values;
	int			value_count;
	bool		isnull;

	args[0] = uuids(items, count, offsetof(LeftAttachment, company));
	args[1] = uuids(items, count, offsetof(LeftAttachment, lease));
	args[2] = generations(items, count);
	args[3] = uuids(items, count, offsetof(LeftAttachment, command));
	if (SPI_execute_with_args("SELECT leasehold_internal.end_left_calls($1, $2, $3, $4)", 4,
							  (Oid[]) {UUIDARRAYOID, UUIDARRAYOID, INT4ARRAYOID, UUIDARRAYOID}, args, NULL, false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not end what sessions have left");
	deconstruct_array(DatumGetArrayTypeP(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull)),
					  BOOLOID, 1, true, TYPALIGN_CHAR, &values, NULL, &value_count);
	for (int i = 0; i < count; i++)
		done[i] = DatumGetBool(values[i]);
}

static Datum
generations(const LeftAttachment *items, int count)
{
	Datum	   *values = palloc(count * sizeof(Datum));

	for (int i = 0; i < count; i++)
		values[i] = Int32GetDatum(items[i].generation);
	return PointerGetDatum(construct_array(values, count, INT4OID, sizeof(int32), true, TYPALIGN_INT));
}

/* One member of each, nil ids as nulls. */
static Datum
uuids(const LeftAttachment *items, int count, size_t offset)
{
	Datum	   *values = palloc(count * sizeof(Datum));
	bool	   *nulls = palloc(count * sizeof(bool));
	int			dims[1] = {count};
	int			lower[1] = {1};

	for (int i = 0; i < count; i++)
	{
		const pg_uuid_t *id = (const pg_uuid_t *) ((const char *) &items[i] + offset);

		values[i] = UUIDPGetDatum(id);
		nulls[i] = attachment_is_nil(id);
	}
	return PointerGetDatum(construct_md_array(values, nulls, 1, dims, lower, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR));
}
