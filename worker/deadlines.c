/*
 * deadlines.c
 *		Fires the deadlines of leases and runs that have come.
 *
 * A deadline that fires too early, or twice, does nothing: the database looks
 * at the lease.
 */
#include "postgres.h"
#include "compat.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"

#include "deadlines.h"
#include "due.h"
#include "statement.h"
#include "transaction.h"

/* One deadline. */
typedef struct Deadline
{
	const QueueKey *key;
	Woken	   *woken;
} Deadline;

static void fire_work(void *arg);
static void postpone_work(void *arg);

bool
deadlines_fire_one_by_one(const QueueKey *keys, int count, Woken *woken)
{
	int			troubles = 0;
	bool		any = false;

	for (int i = 0; i < count; i++)
	{
		Deadline	deadline = {.key = &keys[i],.woken = woken};

		if (transaction_run("firing one deadline", fire_work, &deadline))
		{
			troubles = 0;
			any = true;
		}
		else
		{
			(void) transaction_troubled(&troubles);
			any |= transaction_run("postponing a deadline", postpone_work, &deadline);
		}
		if (transaction_gives_up(troubles))
			break;
	}
	return any;
}

static void
fire_work(void *arg)
{
	Deadline   *deadline = arg;

	deadlines_fire(deadline->key, 1, deadline->woken);
}

static void
postpone_work(void *arg)
{
	Deadline   *deadline = arg;

	due_postpone(deadline->key, true);
}

void
deadlines_fire(const QueueKey *keys, int count, Woken *woken)
{
	static SPIPlanPtr plan = NULL;
	Datum		args[2];

	args[0] = statement_companies(keys, count);
	args[1] = statement_subjects(keys, count);
	if (SPI_execute_plan(statement_prepared(&plan, "SELECT * FROM leasehold_internal.fire_deadlines($1, $2)", 2,
											(Oid[]) {UUIDARRAYOID, UUIDARRAYOID}),
						 args, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not fire deadlines");
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;

		woken_add(woken, DatumGetUUIDP(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2, &isnull)));
	}
}
