/*
 * transaction.c
 *		One piece of a worker's work in one transaction, and what its failure says.
 *
 * No error leaves a piece of work: it is logged, its transaction is undone, and
 * its code is kept until the next one fails, so that the caller can decide who
 * has to wait.
 */
#include "postgres.h"
#include "compat.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "transaction.h"

#define TROUBLES_IN_ROW		3	/* then the rest has to wait, too; locks do not count */
#define LOCKS_PATIENTLY		3	/* then the rest of a round waits for none */
#define LOCK_TIMEOUT_SHORT	"5ms"
#define REPORT_AGAIN_MS		60000

static MemoryContext lasting_context = NULL;
static int	trouble = 0;		/* SQLSTATE of the latest transaction that failed */
static int	locks_met = 0;		/* by the pieces of a failed round */

static bool run(const char *what, TransactionWork work, void *arg, bool trouble_is_known);
static void note_trouble(bool is_known);

void
transaction_fresh_memory(void)
{
	if (lasting_context == NULL)
		lasting_context = AllocSetContextCreate(TopMemoryContext, "leasehold round", ALLOCSET_DEFAULT_SIZES);
	MemoryContextReset(lasting_context);
	MemoryContextSwitchTo(lasting_context);
}

bool
transaction_run(const char *what, TransactionWork work, void *arg)
{
	return run(what, work, arg, false);
}

bool
transaction_run_again(const char *what, TransactionWork work, void *arg)
{
	return run(what, work, arg, true);
}

static bool
run(const char *what, TransactionWork work, void *arg, bool trouble_is_known)
{
	volatile bool ok = false;
	MemoryContext context = lasting_context;

	SetCurrentStatementStartTimestamp();
	pgstat_report_activity(STATE_RUNNING, what);
	PG_TRY();
	{
		StartTransactionCommand();
		SPI_connect();
		PushActiveSnapshot(GetTransactionSnapshot());
		work(arg);
		PopActiveSnapshot();
		SPI_finish();
		CommitTransactionCommand();
		ok = true;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		/* the process is told to end: that is no failure of the work */
		note_trouble(trouble_is_known);
		FlushErrorState();
		AbortCurrentTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	pgstat_report_activity(STATE_IDLE, NULL);
	return ok;
}

/*
 * Keeps the code of the error that is being handled, and reports it, unless it
 * is one that passes and was reported a moment ago, or is known.
 */
static void
note_trouble(bool is_known)
{
	static int	reported = 0;
	static TimestampTz reported_at = 0;
	TimestampTz now = GetCurrentTimestamp();

	trouble = geterrcode();
	if (transaction_trouble_passes() &&
		(is_known ||
		 (trouble == reported && now >= reported_at && now < TimestampTzPlusMilliseconds(reported_at, REPORT_AGAIN_MS))))
		return;
	reported = trouble;
	reported_at = now;
	EmitErrorReport();
}

bool
transaction_troubled(int *in_row)
{
	*in_row = transaction_trouble_is_general() ? *in_row + 1 : 0;
	if (trouble == ERRCODE_LOCK_NOT_AVAILABLE && ++locks_met == LOCKS_PATIENTLY)
		SetConfigOption("lock_timeout", LOCK_TIMEOUT_SHORT, PGC_SUSET, PGC_S_OVERRIDE);
	return transaction_trouble_passes();
}

bool
transaction_gives_up(int in_row)
{
	return ShutdownRequestPending || in_row >= TROUBLES_IN_ROW;
}

void
transaction_forget_locks(void)
{
	if (locks_met >= LOCKS_PATIENTLY)
		SetConfigOption("lock_timeout", TRANSACTION_LOCK_TIMEOUT, PGC_SUSET, PGC_S_OVERRIDE);
	locks_met = 0;
}

bool
transaction_trouble_passes(void)
{
	return trouble == ERRCODE_LOCK_NOT_AVAILABLE || transaction_trouble_is_general() ||
		ERRCODE_TO_CATEGORY(trouble) == MAKE_SQLSTATE('4', '0', '0', '0', '0'); /* deadlock */
}

bool
transaction_trouble_is_general(void)
{
	switch (ERRCODE_TO_CATEGORY(trouble))
	{
		case MAKE_SQLSTATE('5', '3', '0', '0', '0'):	/* resources */
		case MAKE_SQLSTATE('5', '7', '0', '0', '0'):	/* intervention */
		case MAKE_SQLSTATE('5', '8', '0', '0', '0'):	/* the system */
			return true;
		default:
			return false;
	}
}
