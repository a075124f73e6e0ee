/*
 * claims.c
 *		Claims calls whose turn it is, and starts them.
 *
 * A call is sent only after the commit of its claim, which is on disk then; so
 * no call is out that the table does not know of.  What was taken from the
 * queue is claimed and out in the end, or forgotten and read again.
 */
#include "postgres.h"
#include "compat.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "claims.h"
#include "command_output.h"
#include "due.h"
#include "plugins.h"
#include "providers/provider.h"
#include "settings.h"
#include "statement.h"
#include "transaction.h"
#include "worker.h"

#define CLAIM_BATCH			500
#define MOST_INPUT			(128 * 1024 * 1024) /* of all commands that are out, in bytes of their params, about */

static const Oid claim_types[] = {INT8OID, UUIDARRAYOID, UUIDARRAYOID, TEXTARRAYOID, INT4OID, INT8OID, INT8OID};

static bool claim_one(Claims *single, int *troubles);
static void claim_work(void *arg);
static void claim_taken(Claims *claims);
static void claim_keys(Claims *claims, const QueueKey *keys, int count, int64 most_input, SPIPlanPtr plan);
static int64 input_that_is_out(void);
static Call *make_call(HeapTuple row, TupleDesc desc, Claims *claims);
static void read_call(Call *call, HeapTuple row, TupleDesc desc);
static QueueSlot slot_of(const char *operation);
static QueueShare *find_taker(Claims *claims, const QueueKey *key);
static void take_back(Claims *claims, int i);
static void postpone_work(void *arg);
static TimestampTz give_up_taken(Claims *claims);
static void start_claimed(Claims *claims);
static void abandon_command(const QueueKey *key);

void
claims_init(Claims *claims, TimestampTz now)
{
	memset(claims, 0, sizeof(*claims));
	claims->now = now;
	claims->taken = palloc(CLAIM_BATCH * sizeof(QueueKey));
	claims->takers = palloc(CLAIM_BATCH * sizeof(QueueShare *));
	claims->taken_due = palloc(CLAIM_BATCH * sizeof(TimestampTz));
	claims->claimed = palloc(CLAIM_BATCH * sizeof(Call *));
}

void
claims_take(Claims *claims)
{
	/*
	 * a limit that was set before a call was queued, which may be since the
	 * round began, holds for it
	 */
	plugins_refresh();
	claims->taken_count = queue_take(claims->taken, claims->takers, claims->taken_due, CLAIM_BATCH, claims->now);
	if (claims->taken_count > 0)
		claim_taken(claims);
}

bool
claims_one_by_one(Claims *claims)
{
	Claims		single = *claims;
	int			troubles = 0;
	bool		any = false;

	for (int i = 0; i < claims->taken_count; i++)
	{
		take_back(claims, i);
		if (claims->takers[i] == NULL)
			continue;
		single.taken = &claims->taken[i];
		single.takers = &claims->takers[i];
		single.taken_due = &claims->taken_due[i];
		single.taken_count = 1;
		single.claimed_count = 0;
		if (claim_one(&single, &troubles))
			any = true;
		else
		{
			claims_drop(&single);
			take_back(claims, i);
			if (!transaction_gives_up(troubles))
				any |= transaction_run("postponing a call", postpone_work, &claims->taken[i]);
		}
		(void) claims_start(&single);
	}
	claims->taken_count = 0;
	return any;
}

/* False if it failed, or was not tried since others failed. */
static bool
claim_one(Claims *single, int *troubles)
{
	if (transaction_gives_up(*troubles))
		return false;
	if (!transaction_run("claiming one call", claim_work, single))
	{
		(void) transaction_troubled(troubles);
		return false;
	}
	*troubles = 0;
	return true;
}

static void
claim_work(void *arg)
{
	claim_taken(arg);
}

static void
claim_taken(Claims *claims)
{
	static SPIPlanPtr calls_plan = NULL;
	static SPIPlanPtr commands_plan = NULL;
	QueueKey   *calls = palloc(claims->taken_count * sizeof(QueueKey));
	QueueKey   *commands = palloc(claims->taken_count * sizeof(QueueKey));
	int			call_count = 0;
	int			command_count = 0;

	for (int i = 0; i < claims->taken_count; i++)
	{
		const QueueKey *key = &claims->taken[i];

		if (key->slot == SLOT_COMMAND || key->slot == SLOT_CANCEL)
			commands[command_count++] = *key;
		else
			calls[call_count++] = *key;
	}
	if (call_count > 0)
		claim_keys(claims, calls, call_count, 0,
				   statement_prepared(&calls_plan, "SELECT *, NULL::bigint FROM leasehold_internal.claim_calls($1, $2, $3, $4, $5)",
									  5, claim_types));
	if (command_count > 0)
		claim_keys(claims, commands, command_count, MOST_INPUT - input_that_is_out(),
				   statement_prepared(&commands_plan, "SELECT * FROM leasehold_internal.claim_commands($1, $2, $3, $4, $5, $6, $7)",
									  7, claim_types));
	plugins_refresh();
}

static void
claim_keys(Claims *claims, const QueueKey *keys, int count, int64 most_input, SPIPlanPtr plan)
{
	Datum		args[7];

	args[0] = Int64GetDatum(worker.epoch);
	args[1] = statement_companies(keys, count);
	args[2] = statement_subjects(keys, count);
	args[3] = statement_slots(keys, count);
	args[4] = Int32GetDatum(setting_rpc_timeout);
	args[5] = Int64GetDatum(setting_max_output * INT64CONST(1024));
	args[6] = Int64GetDatum(most_input);
	if (SPI_execute_plan(plan, args, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not claim calls");
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		Call	   *call = make_call(row, desc, claims);
		bool		isnull;
		Datum		plugin_row = SPI_getbinval(row, desc, 15, &isnull);

		claims->claimed[claims->claimed_count++] = call;

		/*
		 * initialize is about a change that may be later than the claim's
		 * snapshot
		 */
		if (!isnull && (call->method == METHOD_INITIALIZE ||
						!plugin_is_current(call->plugin, DatumGetTransactionId(plugin_row))))
			plugins_forget();
	}
}

/* Of the commands that this worker has; all other calls are small. */
static int64
input_that_is_out(void)
{
	int64		bytes = 0;
	dlist_iter	iter;

	dlist_foreach(iter, &worker.out)
	{
		Call	   *call = dlist_container(Call, node, iter.cur);

		if (call->command != NULL)
			bytes += call->params_length;
	}
	return bytes;
}

static Call *
make_call(HeapTuple row, TupleDesc desc, Claims *claims)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "leasehold call", ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	Call	   *call = palloc0(sizeof(Call));
	char	   *verdict;

	call->context = context;
	read_call(call, row, desc);
	call->queue = find_taker(claims, &call->key);

	/* reached without a call */
	verdict = SPI_getvalue(row, desc, 5);
	if (verdict != NULL)
	{
		char	   *code = SPI_getvalue(row, desc, 6);
		char	   *message = SPI_getvalue(row, desc, 7);

		call_set_outcome(call, strcmp(verdict, "unknown") == 0 ? OUTCOME_UNKNOWN : OUTCOME_FAILED,
						 code, "%s", message ? message : "");
	}
	else if (call->params == NULL)
		call_set_outcome(call, OUTCOME_FAILED, "subject_gone", "what the call is about is gone");
	MemoryContextSwitchTo(old);
	return call;
}

/* What is to be done, as the table says. */
static void
read_call(Call *call, HeapTuple row, TupleDesc desc)
{
	char	   *method;
	bool		isnull;

	call->operation = SPI_getvalue(row, desc, 4);
	call->key.company = *DatumGetUUIDP(SPI_getbinval(row, desc, 1, &isnull));
	call->key.subject = *DatumGetUUIDP(SPI_getbinval(row, desc, 2, &isnull));
	call->key.slot = slot_of(call->operation);
	call->generation = DatumGetInt32(SPI_getbinval(row, desc, 3, &isnull));
	call->plugin = SPI_getvalue(row, desc, 8);
	call->provider = SPI_getvalue(row, desc, 9);
	method = SPI_getvalue(row, desc, 10);
	call->attempt = DatumGetInt32(SPI_getbinval(row, desc, 11, &isnull));
	call->timeout_ms = DatumGetInt64(SPI_getbinval(row, desc, 12, &isnull));
	if (isnull)
		call->timeout_ms = setting_rpc_timeout;
	call->idempotency_key = SPI_getvalue(row, desc, 13);
	call->params = SPI_getvalue(row, desc, 14);
	call->params_length = call->params != NULL ? strlen(call->params) : 0;
	call->method_name = method;
	if (!call_parse_method(method, &call->method))
		elog(ERROR, "unknown method \"%s\"", method);
	if (call->key.slot == SLOT_COMMAND)
	{
		Datum		limit = SPI_getbinval(row, desc, 16, &isnull);

		command_output_begin(call, isnull ? 0 : DatumGetInt64(limit));
	}
}

static QueueSlot
slot_of(const char *operation)
{
	if (strcmp(operation, "reconcile") == 0)
		return SLOT_SWEEP;
	if (strcmp(operation, "execute") == 0)
		return SLOT_COMMAND;
	if (strcmp(operation, "cancel_command") == 0)
		return SLOT_CANCEL;
	return SLOT_OP;
}

static QueueShare *
find_taker(Claims *claims, const QueueKey *key)
{
	for (int i = 0; i < claims->taken_count; i++)
	{
		if (memcmp(&claims->taken[i], key, sizeof(QueueKey)) == 0)
		{
			QueueShare *taker = claims->takers[i];

			claims->takers[i] = NULL;	/* now the call's */
			return taker;
		}
	}
	return NULL;
}

/* make_call() took it, perhaps, before the transaction failed. */
static void
take_back(Claims *claims, int i)
{
	if (claims->takers[i] == NULL)
		claims->takers[i] = queue_taker_of(&claims->taken[i]);
}

static void
postpone_work(void *arg)
{
	due_postpone(arg, false);
}

void
claims_drop(Claims *claims)
{
	for (int i = 0; i < claims->claimed_count; i++)
		MemoryContextDelete(claims->claimed[i]->context);
	claims->claimed_count = 0;
}

TimestampTz
claims_start(Claims *claims)
{
	TimestampTz again = give_up_taken(claims);

	start_claimed(claims);
	return again;
}

/*
 * Calls whose turn it was, but which were not to be had: gone, or locked by
 * somebody.  They are read again after a while.
 */
static TimestampTz
give_up_taken(Claims *claims)
{
	TimestampTz again = DT_NOEND;

	for (int i = 0; i < claims->taken_count; i++)
	{
		if (claims->takers[i] == NULL)
			continue;
		(void) due_forget(&claims->taken[i]);
		due_look_from(claims->taken_due[i] - 1);
		again = TimestampTzPlusMilliseconds(claims->now, LOCKED_PAUSE_MS);
	}
	return again;
}

/* A call that ends while it is started is among the finished ones then. */
static void
start_claimed(Claims *claims)
{
	for (int i = 0; i < claims->claimed_count; i++)
	{
		Call	   *call = claims->claimed[i];

		dlist_push_tail(&worker.out, &call->node);
		worker.in_flight[call_lane(call)]++;
		worker.shared->started_calls++;
		if (call->outcome != OUTCOME_NONE)
		{
			if (call->key.slot == SLOT_CANCEL && strcmp(call->code, "lease_ended") == 0)
				abandon_command(&call->key);
			call->not_asked = true;
			worker_call_finished(call);
		}
		else
			provider_start(call);
	}
}

/* If it is out still: with its lease gone, its end may never come. */
static void
abandon_command(const QueueKey *key)
{
	Call	   *call = command_find(key);

	if (call == NULL)
		return;
	provider_abandon(call);
	call->not_asked = true;
	call_set_outcome(call, OUTCOME_UNKNOWN, "lease_ended", "the lease ended, and the command did not");
	worker_call_finished(call);
}
