/*
 * handover.c
 *		From one worker process to the next: taking calls over, and giving them back.
 *
 * A call in the table that is not of a living worker's epoch may have had an
 * effect that nobody knows of.  Such calls are queued again, to be looked up,
 * before a worker makes its first call; a worker that ends in peace does it
 * itself, except for calls that were not sent yet, which had none.
 */
#include "postgres.h"
#include "compat.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "postmaster/interrupt.h"
#include "utils/wait_event.h"

#include "answers.h"
#include "command_output.h"
#include "due.h"
#include "event_loop.h"
#include "handover.h"
#include "providers/provider.h"
#include "round.h"
#include "settings.h"
#include "statement.h"
#include "transaction.h"
#include "worker.h"

#define TAKE_PAUSE_MS		100
#define STORE_TRIES			5
#define GIVE_BACK_TRIES		10

static void take_work(void *arg);
static void withdraw_unsent(void);
static void store_finished(void);
static void give_back_work(void *arg);
static void recover_calls(int64 epoch, bool crashed);
static void count_left_work(void *arg);

void
handover_take(void)
{
	queue_clear();
	due_look_from_start();
	while (!transaction_run("taking over", take_work, NULL))
	{
		/* nothing can be served before this; a lock may be in the way */
		event_loop_wait(TAKE_PAUSE_MS, PG_WAIT_EXTENSION);
		if (ShutdownRequestPending)
			return;
	}
}

static void
take_work(void *arg)
{
	bool		isnull;

	if (SPI_execute("SELECT pg_catalog.nextval('leasehold_internal.worker_epoch')", false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not get an epoch");
	worker.epoch = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	if (SPI_execute("SELECT leasehold_internal.distrust_calls_after_failover()", false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not look for a failover");
	recover_calls(worker.epoch, true);
}

void
handover_give_back(void)
{
	dlist_mutable_iter iter;

	transaction_fresh_memory();
	withdraw_unsent();
	/* answers that are here are stored; what is still out is not waited for */
	store_finished();
	for (int tries = 0; tries < GIVE_BACK_TRIES && (!dlist_is_empty(&worker.out) || worker.finished_count > 0); tries++)
	{
		if (transaction_run("giving calls back", give_back_work, NULL))
			break;
	}
	dlist_foreach_modify(iter, &worker.out)
		(void) due_forget_call(dlist_container(Call, node, iter.cur));
}

/* What was not sent yet is known to have had no effect. */
static void
withdraw_unsent(void)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &worker.out)
	{
		Call	   *call = dlist_container(Call, node, iter.cur);

		if (provider_withdraw(call))
		{
			call_set_outcome(call, OUTCOME_RETRY, "worker_ended", "the worker ended before it could send the request");
			worker_call_finished(call);
		}
		else if (call->key.slot == SLOT_COMMAND)
		{
			/* nobody will see its end; what it wrote is kept */
			call_set_outcome(call, OUTCOME_UNKNOWN, "worker_ended", "the worker ended before the command did");
			worker_call_finished(call);
		}
	}
}

/*
 * Stores answers without regard to when they should be tried again.  A round
 * may be interrupted by whoever tells us to end once more.
 */
static void
store_finished(void)
{
	int			tries = 0;

	while (worker.finished_count > 0 && tries < STORE_TRIES)
	{
		int			left = worker.finished_count;

		answers_wait_no_longer();
		command_output_wait_no_longer();
		QueryCancelPending = false;
		(void) round_run(INSTALLATION_PAUSED, false);
		if (worker.finished_count == left)
			tries++;
	}
}

static void
give_back_work(void *arg)
{
	recover_calls(-1, false);
}

/* Calls of this worker's shards that are out in another epoch; crashed: they count that. */
static void
recover_calls(int64 epoch, bool crashed)
{
	Datum		args[4];

	args[0] = Int64GetDatum(epoch);
	args[1] = statement_my_shards();
	args[2] = Int32GetDatum(setting_crash_limit);
	args[3] = BoolGetDatum(crashed);
	if (SPI_execute_with_args("SELECT leasehold_internal.recover_calls($1, $2, $3, $4)", 4,
							  (Oid[]) {INT8OID, INT2ARRAYOID, INT4OID, BOOLOID}, args, NULL, false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not queue the calls of a worker again");
}

void
handover_tell_left(InstallationState state)
{
	int64		left = 0;

	QueryCancelPending = false;
	transaction_fresh_memory();
	if (installation_may_write(state) && !transaction_run("counting what is left", count_left_work, &left))
		return;
	if (installation_may_write(state) || state == INSTALLATION_HELD || state == INSTALLATION_EMPTY)
		worker.database->resources_left = left;
}

static void
count_left_work(void *arg)
{
	bool		isnull;

	if (SPI_execute("SELECT leasehold_internal.resources_left()", true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not count what is left");
	*(int64 *) arg = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
}
