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
PG_FUNCTION_INFO_V1(leasehold_wait_for_command);
PG_FUNCTION_INFO_V1(leasehold_read_output);

#define WAIT_LIMIT_MS	60000
#define LOOK_AGAIN_MS	500		/* in case nobody wakes us: changes that users make */
#define MAX_ARGS		3

/*
 * What is waited for.  The query returns company_id, what the waiting function
 * returns if it returns that, whether to wait no longer in the column "done",
 * and last who wrote it.
 */
typedef struct Subject
{
	const char *name;			/* for errors */
	const char *query;
	int			arg_count;
	int			args[MAX_ARGS]; /* the query's, as the function's */
	Oid			types[MAX_ARGS];
	int			timeout;		/* the argument that says how long */
	SPIPlanPtr	plan;
} Subject;

static Subject lease_subject = {
	.name = "lease",
	.query = "SELECT * FROM leasehold_internal.lease_state($1, $2)",
	.arg_count = 2,.args = {0, 2},.types = {UUIDOID, TEXTOID},.timeout = 1,
};

static Subject command_subject = {
	.name = "command",
	.query = "SELECT * FROM leasehold_internal.command_state($1, $2)",
	.arg_count = 2,.args = {0, 2},.types = {UUIDOID, TEXTOID},.timeout = 1,
};

static Subject output_subject = {
	.name = "command",
	.query = "SELECT * FROM leasehold_internal.output_state($1, $2, $3)",
	.arg_count = 3,.args = {0, 1, 3},.types = {UUIDOID, INT8OID, TEXTOID},.timeout = 2,
};

typedef struct SubjectState
{
	Datum	   *values;			/* the columns between the first and the last */
	bool	   *nulls;
	bool		done;
	bool		own_change;		/* written by the waiter's own transaction */
} SubjectState;

static Datum wait_for_record(FunctionCallInfo fcinfo, Subject *subject, int64 default_ms);
static void wait_for(FunctionCallInfo fcinfo, Subject *subject, int64 default_ms, SubjectState *state);
static void refuse_to_wait(const Subject *subject, const SubjectState *state);
static int64 wait_milliseconds(FunctionCallInfo fcinfo, int arg, int64 default_ms);
static void read_state(FunctionCallInfo fcinfo, Subject *subject, SubjectState *state, MemoryContext context);
static void query_args(FunctionCallInfo fcinfo, const Subject *subject, Datum *args, char *nulls);
static SPIPlanPtr kept_plan(SPIPlanPtr *plan, const char *query, int count, Oid *types);
static void return_output(FunctionCallInfo fcinfo);

/*
 * wait_for_lease(lease_id, timeout, company): the lease's state, once nothing
 * is under way for it or the time is over.
 */
Datum
leasehold_wait_for_lease(PG_FUNCTION_ARGS)
{
	return wait_for_record(fcinfo, &lease_subject, 5000);
}

/*
 * wait_for_command(command_id, timeout, company): the command's state, once it
 * has finished or the time is over.
 */
Datum
leasehold_wait_for_command(PG_FUNCTION_ARGS)
{
	return wait_for_record(fcinfo, &command_subject, 5000);
}

/*
 * read_output(command_id, after, timeout, company): what the command has
 * written since, once there is some, or it has finished, or the time is over.
 */
Datum
leasehold_read_output(PG_FUNCTION_ARGS)
{
	SubjectState state;

	wait_for(fcinfo, &output_subject, 0, &state);
	InitMaterializedSRF(fcinfo, 0);
	return_output(fcinfo);
	return (Datum) 0;
}

static Datum
wait_for_record(FunctionCallInfo fcinfo, Subject *subject, int64 default_ms)
{
	TupleDesc	desc;
	SubjectState state;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	wait_for(fcinfo, subject, default_ms, &state);
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), state.values, state.nulls));
}

static void
wait_for(FunctionCallInfo fcinfo, Subject *subject, int64 default_ms, SubjectState *state)
{
	pg_uuid_t  *id = PG_GETARG_UUID_P(0);
	TimestampTz give_up = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													  wait_milliseconds(fcinfo, subject->timeout, default_ms));
	SharedDatabase *entry = shared_find_database(MyDatabaseId, false);
	ConditionVariable *waiters = entry ? shared_waiters_of(entry, id) : NULL;

	if (waiters != NULL)
		ConditionVariablePrepareToSleep(waiters);
	for (;;)
	{
		int64		left;

		read_state(fcinfo, subject, state, CurrentMemoryContext);
		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), give_up);
		if (state->done || left <= 0)
			break;
		refuse_to_wait(subject, state);

		/* the database may have got its entry while we looked */
		if (waiters == NULL)
		{
			entry = shared_find_database(MyDatabaseId, false);
			if (entry == NULL)
				continue;
			waiters = shared_waiters_of(entry, id);
		}
		(void) ConditionVariableTimedSleep(waiters, Min(left, LOOK_AGAIN_MS), PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
}

/* If there is nothing to wait for. */
static void
refuse_to_wait(const Subject *subject, const SubjectState *state)
{
	char	   *reason;
	LeaseholdError error;

	if (state->own_change)
		ereport(ERROR,
				(leasehold_error(LHE_OWN_TRANSACTION),
				 errmsg("the %s was changed in this transaction, so nothing happens to it before the commit", subject->name),
				 errhint("Commit first, then wait.")));
	if (!service_is_available(&reason, &error))
		ereport(ERROR,
				(leasehold_error(error),
				 errmsg("the %s does not go on: %s", subject->name, reason),
				 errhint("An administrator can call leasehold.doctor().")));
}

static int64
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

/*
 * Reads the state with a new snapshot; refuses if it is not the caller's.
 */
static void
read_state(FunctionCallInfo fcinfo, Subject *subject, SubjectState *state, MemoryContext context)
{
	Datum		args[MAX_ARGS];
	char		nulls[MAX_ARGS];
	Snapshot	snapshot;
	HeapTuple	row;
	TupleDesc	desc;
	bool		isnull;

	query_args(fcinfo, subject, args, nulls);
	SPI_connect();
	(void) kept_plan(&subject->plan, subject->query, subject->arg_count, subject->types);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	if (SPI_execute_snapshot(subject->plan, args, nulls, snapshot, InvalidSnapshot, true, false, 1) != SPI_OK_SELECT ||
		SPI_processed != 1)
		elog(ERROR, "could not read the state of a %s", subject->name);
	UnregisterSnapshot(snapshot);

	row = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
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

static void
query_args(FunctionCallInfo fcinfo, const Subject *subject, Datum *args, char *nulls)
{
	for (int i = 0; i < subject->arg_count; i++)
	{
		int			arg = subject->args[i];

		nulls[i] = PG_ARGISNULL(arg) ? 'n' : ' ';
		args[i] = PG_ARGISNULL(arg) ? (Datum) 0 : PG_GETARG_DATUM(arg);
	}
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
static void
return_output(FunctionCallInfo fcinfo)
{
	static SPIPlanPtr plan = NULL;
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Datum		args[MAX_ARGS];
	char		nulls[MAX_ARGS];
	Snapshot	snapshot;

	query_args(fcinfo, &output_subject, args, nulls);
	SPI_connect();
	(void) kept_plan(&plan, "SELECT * FROM leasehold_internal.output_rows($1, $2, $3)", output_subject.arg_count,
					 output_subject.types);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	if (SPI_execute_snapshot(plan, args, nulls, snapshot, InvalidSnapshot, true, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read output");
	UnregisterSnapshot(snapshot);
	for (uint64 i = 0; i < SPI_processed; i++)
		tuplestore_puttuple(rsinfo->setResult, SPI_tuptable->vals[i]);
	SPI_finish();
}
