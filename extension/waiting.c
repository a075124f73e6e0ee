/*
 * waiting.c
 *		Waiting for a lease, a command or its output: bounded, woken by the worker,
 *		and seeing what commits meanwhile.
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
#include "storage/latch.h"
#include "tcop/dest.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"
#include "utils/wait_event.h"

#include "errors.h"
#include "installation.h"
#include "service.h"
#include "shared_state.h"
#include "waiting.h"

PG_FUNCTION_INFO_V1(leasehold_wait_for_lease);
PG_FUNCTION_INFO_V1(leasehold_wait_for_command);
PG_FUNCTION_INFO_V1(leasehold_read_output);

#define WAIT_LIMIT_MS		60000
#define LOOK_AGAIN_MS		500 /* in case nobody wakes us: changes that users make */
#define WAIT_PATIENCE_MS	10000
#define CLIENT_CHECK_MS		1000

WaitSubject wait_lease = {
	.name = "lease",
	.query = "SELECT * FROM leasehold_internal.lease_state($1, $2)",
	.arg_count = 2,.types = {UUIDOID, TEXTOID},
};

WaitSubject wait_command = {
	.name = "command",
	.query = "SELECT * FROM leasehold_internal.command_state($1, $2)",
	.arg_count = 2,.types = {UUIDOID, TEXTOID},
};

WaitSubject wait_output = {
	.name = "command",
	.query = "SELECT * FROM leasehold_internal.output_state($1, $2, $3)",
	.arg_count = 3,.types = {UUIDOID, INT8OID, TEXTOID},
};

static Datum wait_for_record(FunctionCallInfo fcinfo, WaitSubject *subject);
static void require_prospect(const WaitSubject *subject, const WaitState *state, TimestampTz *unserved_since);
static bool is_patient(TimestampTz *unserved_since);
static bool client_check_is_due(TimestampTz *next);
static void check_client(void);
static SPIPlanPtr kept_plan(SPIPlanPtr *plan, const char *query, int count, Oid *types);
static void put_piece(HeapTuple row, TupleDesc desc, void *arg);

/*
 * wait_for_lease(lease_id, timeout, company): the lease's state, once nothing
 * is under way for it or the time is over.
 */
Datum
leasehold_wait_for_lease(PG_FUNCTION_ARGS)
{
	return wait_for_record(fcinfo, &wait_lease);
}

/*
 * wait_for_command(command_id, timeout, company): the command's state, once it
 * has finished or the time is over.
 */
Datum
leasehold_wait_for_command(PG_FUNCTION_ARGS)
{
	return wait_for_record(fcinfo, &wait_command);
}

static Datum
wait_for_record(FunctionCallInfo fcinfo, WaitSubject *subject)
{
	WaitArgs	args;
	WaitState	state;

	wait_args(fcinfo, &args, 2, (int[]) {0, 2});
	wait_for(subject, &args, wait_milliseconds(fcinfo, 1, WAIT_DEFAULT_MS), NULL, &state);
	return wait_record(fcinfo, &state);
}

/*
 * read_output(command_id, after, timeout, company): what the command has
 * written since, once there is some, or it has finished, or the time is over.
 */
Datum
leasehold_read_output(PG_FUNCTION_ARGS)
{
	WaitArgs	args;
	WaitState	state;

	wait_args(fcinfo, &args, 3, (int[]) {0, 1, 3});
	wait_for(&wait_output, &args, wait_milliseconds(fcinfo, 2, 0), NULL, &state);
	InitMaterializedSRF(fcinfo, 0);
	(void) wait_read_output(&args, put_piece, fcinfo->resultinfo);
	return (Datum) 0;
}

static void
put_piece(HeapTuple row, TupleDesc desc, void *arg)
{
	tuplestore_puttuple(((ReturnSetInfo *) arg)->setResult, row);
}

void
wait_args(FunctionCallInfo fcinfo, WaitArgs *args, int count, const int *places)
{
	for (int i = 0; i < count; i++)
	{
		args->nulls[i] = PG_ARGISNULL(places[i]) ? 'n' : ' ';
		args->values[i] = PG_ARGISNULL(places[i]) ? (Datum) 0 : PG_GETARG_DATUM(places[i]);
	}
}

int64
wait_milliseconds(FunctionCallInfo fcinfo, int arg, int64 default_ms)
{
	Interval   *timeout;
	int64		micros;

	if (PG_ARGISNULL(arg))
		return default_ms;
	timeout = PG_GETARG_INTERVAL_P(arg);
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

void
wait_for(WaitSubject *subject, const WaitArgs *args, int64 timeout_ms, TimestampTz *unserved_since, WaitState *state)
{
	pg_uuid_t  *id = DatumGetUUIDP(args->values[0]);
	TimestampTz give_up = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), timeout_ms);
	TimestampTz next_client_check = 0;
	SharedDatabase *entry = shared_find_database(MyDatabaseId, false);
	ConditionVariable *waiters = entry ? shared_waiters_of(entry, id) : NULL;

	if (waiters != NULL)
		ConditionVariablePrepareToSleep(waiters);
	for (;;)
	{
		int64		left;

		wait_read_state(subject, args, state);
		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), give_up);
		if (state->done || left <= 0)
			break;
		require_prospect(subject, state, unserved_since);

		/* the database may have got its entry while we looked */
		if (waiters == NULL)
		{
			entry = shared_find_database(MyDatabaseId, false);
			if (entry == NULL)
			{
				(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, Min(left, LOOK_AGAIN_MS), PG_WAIT_EXTENSION);
				ResetLatch(MyLatch);
				CHECK_FOR_INTERRUPTS();
				continue;
			}
			waiters = shared_waiters_of(entry, id);
		}
		(void) ConditionVariableTimedSleep(waiters, Min(left, LOOK_AGAIN_MS), PG_WAIT_EXTENSION);
		if (client_check_is_due(&next_client_check))
		{
			check_client();
			/* that may have taken what was to wake us */
			ConditionVariablePrepareToSleep(waiters);
		}
	}
	ConditionVariableCancelSleep();
}

/* Refuses to wait for what does not come. */
static void
require_prospect(const WaitSubject *subject, const WaitState *state, TimestampTz *unserved_since)
{
	char	   *reason;
	LeaseholdError error;

	if (state->own_change)
		ereport(ERROR,
				(leasehold_error(LHE_OWN_TRANSACTION),
				 errmsg("the %s was changed in this transaction, so nothing happens to it before the commit", subject->name),
				 errhint("Commit first, then wait.")));
	if (state->under_way ? service_sees_to_ends(&reason, &error) : service_is_available(&reason, &error))
	{
		if (unserved_since != NULL)
			*unserved_since = 0;
	}
	else if (!is_patient(unserved_since))
		ereport(ERROR,
				(leasehold_error(error),
				 errmsg("the %s does not go on: %s", subject->name, reason),
				 errhint("An administrator can call leasehold.doctor().")));
}

static bool
is_patient(TimestampTz *unserved_since)
{
	TimestampTz now = GetCurrentTimestamp();

	if (unserved_since == NULL)
		return false;
	if (*unserved_since == 0)
		*unserved_since = now;
	return !TimestampDifferenceExceeds(*unserved_since, now, WAIT_PATIENCE_MS);
}

static bool
client_check_is_due(TimestampTz *next)
{
	TimestampTz now = GetCurrentTimestamp();

	if (now < *next || MyProcPort == NULL || whereToSendOutput != DestRemote || !WaitEventSetCanReportClosed())
		return false;
	*next = TimestampTzPlusMilliseconds(now, CLIENT_CHECK_MS);
	return true;
}

/* A client that has gone would be noticed only when something is sent to it. */
static void
check_client(void)
{
	if (!pq_check_connection())
	{
		ClientConnectionLost = true;
		InterruptPending = true;
	}
	CHECK_FOR_INTERRUPTS();
}

/*
 * Reads the state with a new snapshot; refuses if it is not the caller's.
 */
void
wait_read_state(WaitSubject *subject, const WaitArgs *args, WaitState *state)
{
	MemoryContext context = CurrentMemoryContext;
	Snapshot	snapshot;
	HeapTuple	row;
	TupleDesc	desc;
	bool		isnull;
	char	   *status;

	SPI_connect();
	(void) kept_plan(&subject->plan, subject->query, subject->arg_count, subject->types);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	if (SPI_execute_snapshot(subject->plan, (Datum *) args->values, args->nulls, snapshot, InvalidSnapshot, true, false,
							 1) != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "could not read the state of a %s", subject->name);
	UnregisterSnapshot(snapshot);

	row = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	status = SPI_getvalue(row, desc, SPI_fnumber(desc, "status"));
	state->under_way = strcmp(status, "running") == 0;
	state->done = DatumGetBool(SPI_getbinval(row, desc, SPI_fnumber(desc, "done"), &isnull));
	state->own_change = TransactionIdIsCurrentTransactionId(
															DatumGetTransactionId(SPI_getbinval(row, desc, desc->natts, &isnull)));
	state->values = MemoryContextAlloc(context, desc->natts * sizeof(Datum));
	state->nulls = MemoryContextAlloc(context, desc->natts * sizeof(bool));
	for (int i = 0; i < desc->natts - 2; i++)
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

Datum
wait_record(FunctionCallInfo fcinfo, const WaitState *state)
{
	TupleDesc	desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), state->values, state->nulls));
}

static SPIPlanPtr
kept_plan(SPIPlanPtr *plan, const char *query, int count, Oid *types)
{
	if (*plan == NULL)
	{
		*plan = SPI_prepare(query, count, types);
		if (*plan == NULL || SPI_keepplan(*plan) != 0)
			elog(ERROR, "could not prepare: %s", query);
	}
	return *plan;
}

/* The pieces, as of now. */
uint64
wait_read_output(const WaitArgs *args, void (*take) (HeapTuple row, TupleDesc desc, void *arg), void *arg)
{
	static SPIPlanPtr plan = NULL;
	Snapshot	snapshot;
	uint64		count;

	SPI_connect();
	(void) kept_plan(&plan, "SELECT * FROM leasehold_internal.output_rows($1, $2, $3)", wait_output.arg_count,
					 wait_output.types);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	if (SPI_execute_snapshot(plan, (Datum *) args->values, args->nulls, snapshot, InvalidSnapshot, true, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read output");
	UnregisterSnapshot(snapshot);
	count = SPI_processed;
	for (uint64 i = 0; i < count; i++)
		take(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, arg);
	SPI_finish();
	return count;
}
