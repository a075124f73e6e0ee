/*
 * waiting.c
 *		Waiting for a lease: bounded, woken by the worker, and seeing what
 *		commits meanwhile.
 *
 * The state is read with a snapshot of its own at each look, so a caller in a
 * REPEATABLE READ transaction, or in the middle of a statement, waits for what
 * really happens.  What the caller's own transaction wrote cannot go on before
 * it commits: that is an error at once instead of a wait for nothing.
 */
#include "postgres.h"
#include "compat.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/condition_variable.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"
#include "utils/wait_event.h"

#include "errors.h"
#include "service.h"
#include "shared_state.h"

PG_FUNCTION_INFO_V1(leasehold_wait_for_lease);

#define WAIT_LIMIT_MS	60000
#define LOOK_AGAIN_MS	500		/* in case nobody wakes us: changes that users make */

#define STATE_COLUMNS	10		/* of lease_state(): company_id, status, done, …, written_by */
#define RESULT_COLUMNS	8		/* of wait_for_lease(): status … failure_reason */

typedef struct LeaseState
{
	Datum		values[RESULT_COLUMNS];
	bool		nulls[RESULT_COLUMNS];
	bool		done;
	bool		own_change;		/* written by the waiter's own transaction */
} LeaseState;

static int64 wait_milliseconds(FunctionCallInfo fcinfo);
static void read_lease_state(FunctionCallInfo fcinfo, LeaseState *state, MemoryContext context);

/*
 * wait_for_lease(lease_id, timeout, company): the lease's state, once nothing
 * is under way for it or the time is over.
 */
Datum
leasehold_wait_for_lease(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *lease_id = PG_GETARG_UUID_P(0);
	TimestampTz give_up = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), wait_milliseconds(fcinfo));
	SharedDatabase *entry = shared_find_database(MyDatabaseId, false);
	ConditionVariable *waiters = entry ? shared_waiters_of(entry, lease_id) : NULL;
	TupleDesc	desc;
	LeaseState	state;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");

	if (waiters != NULL)
		ConditionVariablePrepareToSleep(waiters);
	for (;;)
	{
		int64		left;

		read_lease_state(fcinfo, &state, CurrentMemoryContext);
		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), give_up);
		if (state.done || left <= 0)
			break;

		if (state.own_change)
			ereport(ERROR,
					(leasehold_error(LHE_OWN_TRANSACTION),
					 errmsg("the lease was changed in this transaction, so nothing happens to it before the commit"),
					 errhint("Commit first, then wait.")));
		{
			char	   *reason;
			LeaseholdError error;

			if (!service_is_available(&reason, &error))
				ereport(ERROR,
						(leasehold_error(error),
						 errmsg("the lease does not go on: %s", reason),
						 errhint("An administrator can call leasehold.doctor().")));
		}
		/* the database may have got its entry while we looked */
		if (waiters == NULL)
		{
			entry = shared_find_database(MyDatabaseId, false);
			if (entry == NULL)
				continue;
			waiters = shared_waiters_of(entry, lease_id);
		}
		(void) ConditionVariableTimedSleep(waiters, Min(left, LOOK_AGAIN_MS), PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();

	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), state.values, state.nulls)));
}

static int64
wait_milliseconds(FunctionCallInfo fcinfo)
{
	Interval   *timeout;
	int64		micros;

	if (PG_ARGISNULL(1))
		return 5000;
	timeout = PG_GETARG_INTERVAL_P(1);
	if (timeout->month != 0 || timeout->day != 0 || timeout->time < 0 ||
		timeout->time > WAIT_LIMIT_MS * INT64CONST(1000))
		ereport(ERROR,
				(leasehold_error(LHE_ARGUMENT_INVALID),
				 errmsg("argument \"timeout\" is out of range"),
				 errhint("It must be between 0 and %d seconds; wait again if that is not enough.",
						 WAIT_LIMIT_MS / 1000)));
	micros = timeout->time;
	return micros / 1000;
}

/*
 * Reads the lease with a new snapshot; refuses if it is not the caller's.
 */
static void
read_lease_state(FunctionCallInfo fcinfo, LeaseState *state, MemoryContext context)
{
	static SPIPlanPtr plan = NULL;
	Datum		args[2];
	char		nulls[2] = {' ', ' '};
	Snapshot	snapshot;
	HeapTuple	row;
	TupleDesc	desc;
	bool		isnull;

	args[0] = PG_GETARG_DATUM(0);
	args[1] = PG_ARGISNULL(2) ? (Datum) 0 : PG_GETARG_DATUM(2);
	if (PG_ARGISNULL(2))
		nulls[1] = 'n';

	SPI_connect();
	if (plan == NULL)
	{
		Oid			types[2] = {UUIDOID, TEXTOID};

		plan = SPI_prepare("SELECT * FROM leasehold_internal.lease_state($1, $2)", 2, types);
		if (plan == NULL || SPI_keepplan(plan) != 0)
			elog(ERROR, "could not prepare the query of a lease's state");
	}
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	if (SPI_execute_snapshot(plan, args, nulls, snapshot, InvalidSnapshot, true, false, 1) != SPI_OK_SELECT ||
		SPI_processed != 1)
		elog(ERROR, "could not read a lease's state");
	UnregisterSnapshot(snapshot);

	row = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	Assert(desc->natts == STATE_COLUMNS);
	state->done = DatumGetBool(SPI_getbinval(row, desc, 3, &isnull));
	state->own_change = TransactionIdIsCurrentTransactionId(
															DatumGetTransactionId(SPI_getbinval(row, desc, STATE_COLUMNS, &isnull)));
	for (int i = 0; i < RESULT_COLUMNS; i++)
	{
		Form_pg_attribute attr = TupleDescAttr(desc, i + 1);
		Datum		value = SPI_getbinval(row, desc, i + 2, &state->nulls[i]);
		MemoryContext old = MemoryContextSwitchTo(context);

		if (!state->nulls[i])
			value = datumCopy(value, attr->attbyval, attr->attlen);
		state->values[i] = value;
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
}
