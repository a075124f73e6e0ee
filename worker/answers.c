/*
 * answers.c
 *		Stores the answers of finished calls.
 *
 * What an answer means is decided in the database (41_completion.sql); here it
 * is told what is known of the call's effect, many answers with one statement.
 * An answer is kept until a commit has stored it, or the database has called it
 * stale, or it was set aside: none is lost.
 */
#include "postgres.h"
#include "compat.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "answers.h"
#include "command_answers.h"
#include "command_output.h"
#include "due.h"
#include "settings.h"
#include "statement.h"
#include "transaction.h"
#include "worker.h"

#define LOCKED_PAUSE_DOUBLINGS 5
#define LEASE_ARGS			15	/* of complete_calls() */

static bool apply_one(AnswerBatch *single, int *troubles);
static void apply_work(void *arg);
static void set_aside_work(void *arg);
static void apply_lease_answers(AnswerBatch *batch, const int *index, int count);
static void lease_args(Call *const *calls, const int *index, const QueueKey *keys, int count, Datum *args);
static bool any_ended(void);
static void let_requests_go_on(void);
static void apply_stray_answers(AnswerBatch *batch, const int *index, int count);
static char apply_initialize_answer(Call *call);
static char apply_reconcile_answer(Call *call);

void
answers_collect(AnswerBatch *batch, TimestampTz now)
{
	dlist_iter	iter;

	batch->calls = palloc(ANSWER_BATCH * sizeof(Call *));
	batch->applied = palloc0(ANSWER_BATCH);
	batch->count = 0;
	dlist_foreach(iter, &worker.finished)
	{
		Call	   *call = dlist_container(Call, node, iter.cur);

		if (call->apply_after > now || command_output_left(call, false))
			continue;
		batch->calls[batch->count++] = call;
		if (batch->count == ANSWER_BATCH)
			break;
	}
}

bool
answers_apply_one_by_one(AnswerBatch *batch, Woken *woken)
{
	int			troubles = 0;
	bool		any = false;

	for (int i = 0; i < batch->count; i++)
	{
		Call	   *call = batch->calls[i];
		char		applied = 'a';
		AnswerBatch single = {.calls = &call,.count = 1,.applied = &applied};

		if (transaction_gives_up(troubles) || command_output_left(call, true))
			call->apply_after = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LOCKED_PAUSE_MS);
		else if (apply_one(&single, &troubles))
		{
			(void) answers_settle(&single, woken);
			any = true;
		}
		else
			call->apply_after = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), TROUBLE_PAUSE_MS);
	}
	batch->count = 0;
	return any;
}

/* Applied, or set aside for good. */
static bool
apply_one(AnswerBatch *single, int *troubles)
{
	if (transaction_run("applying one answer", apply_work, single))
	{
		*troubles = 0;
		return true;
	}
	if (transaction_troubled(troubles) ||
		!transaction_run("setting an answer aside", set_aside_work, single->calls[0]))
		return false;
	single->applied[0] = 'a';
	return true;
}

static void
apply_work(void *arg)
{
	answers_apply(arg);
}

/*
 * An answer that cannot be stored counts as unknown; a call that this happens
 * to again and again is quarantined.
 */
static void
set_aside_work(void *arg)
{
	Call	   *call = arg;
	Datum		args[6];

	args[0] = Int64GetDatum(worker.epoch);
	args[1] = UUIDPGetDatum(&call->key.company);
	args[2] = UUIDPGetDatum(&call->key.subject);
	args[3] = CStringGetTextDatum(statement_slot(&call->key));
	args[4] = Int32GetDatum(setting_crash_limit);
	args[5] = Int32GetDatum(setting_retry_base);
	if (SPI_execute_with_args("SELECT leasehold_internal.set_answer_aside($1, $2, $3, $4, $5, $6)", 6,
							  (Oid[]) {INT8OID, UUIDOID, UUIDOID, TEXTOID, INT4OID, INT4OID}, args, NULL, false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not set an answer aside");
}

void
answers_apply(AnswerBatch *batch)
{
	int		   *leases = palloc(batch->count * sizeof(int));
	int		   *strays = palloc(batch->count * sizeof(int));
	int			lease_count = 0;
	int			stray_count = 0;
	int		   *commands = palloc(batch->count * sizeof(int));
	int			command_count = 0;
	int		   *cancels = palloc(batch->count * sizeof(int));
	int			cancel_count = 0;

	for (int i = 0; i < batch->count; i++)
	{
		Call	   *call = batch->calls[i];

		batch->applied[i] = 'a';
		if (call->key.slot == SLOT_COMMAND)
			commands[command_count++] = i;
		else if (call->key.slot == SLOT_CANCEL)
			cancels[cancel_count++] = i;
		else if (strcmp(call->operation, "destroy_stray") == 0)
			strays[stray_count++] = i;
		else if (strcmp(call->operation, "initialize") == 0)
			batch->applied[i] = apply_initialize_answer(call);
		else if (strcmp(call->operation, "reconcile") == 0)
			batch->applied[i] = apply_reconcile_answer(call);
		else
			leases[lease_count++] = i;
	}
	if (lease_count > 0)
		apply_lease_answers(batch, leases, lease_count);
	if (stray_count > 0)
		apply_stray_answers(batch, strays, stray_count);
	if (command_count > 0)
		command_answers_apply(batch->calls, commands, command_count, batch->applied);
	if (cancel_count > 0)
		command_answers_apply_cancels(batch->calls, cancels, cancel_count);
}

/* The index says which of the batch. */
static void
apply_lease_answers(AnswerBatch *batch, const int *index, int count)
{
	static SPIPlanPtr plan = NULL;
	static const Oid types[LEASE_ARGS] = {INT8OID, UUIDARRAYOID, UUIDARRAYOID, INT4ARRAYOID, TEXTARRAYOID, TEXTARRAYOID,
		TEXTARRAYOID, TIMESTAMPTZARRAYOID, TEXTARRAYOID, TEXTARRAYOID, INT8ARRAYOID,
	INT4OID, INT4OID, INT4OID, INT4OID};
	QueueKey   *keys = palloc(count * sizeof(QueueKey));
	Datum		args[LEASE_ARGS];

	for (int i = 0; i < count; i++)
		keys[i] = batch->calls[index[i]]->key;
	lease_args(batch->calls, index, keys, count, args);
	if (SPI_execute_plan(statement_prepared(&plan, "SELECT * FROM leasehold_internal.complete_calls"
											"($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
											LEASE_ARGS, types), args, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not apply answers");
	statement_note_applied(batch->applied, index, keys, count);
	if (any_ended())
		let_requests_go_on();
}

static void
lease_args(Call *const *calls, const int *index, const QueueKey *keys, int count, Datum *args)
{
	Datum	   *generations = palloc(count * sizeof(Datum));
	Datum	   *expirations = palloc(count * sizeof(Datum));
	Datum	   *retries = palloc(count * sizeof(Datum));
	bool	   *no_expiry = palloc(count * sizeof(bool));
	char	  **outcomes = palloc(count * sizeof(char *));
	char	  **ids = palloc(count * sizeof(char *));
	char	  **metadata = palloc(count * sizeof(char *));
	char	  **codes = palloc(count * sizeof(char *));
	char	  **messages = palloc(count * sizeof(char *));
	int			dims[1] = {count};
	int			lower[1] = {1};

	for (int i = 0; i < count; i++)
	{
		Call	   *call = calls[index[i]];

		generations[i] = Int32GetDatum(call->generation);
		outcomes[i] = (char *) call_outcome_name(call->outcome);
		ids[i] = call->provider_lease_id;
		metadata[i] = call->metadata;
		expirations[i] = TimestampTzGetDatum(call->expires_at);
		no_expiry[i] = !call->has_expiry;
		codes[i] = call->code[0] ? call->code : NULL;
		messages[i] = call->message[0] ? call->message : NULL;
		retries[i] = Int64GetDatum(call->retry_after_ms);
	}
	args[0] = Int64GetDatum(worker.epoch);
	args[1] = statement_companies(keys, count);
	args[2] = statement_subjects(keys, count);
	args[3] = PointerGetDatum(construct_array(generations, count, INT4OID, 4, true, TYPALIGN_INT));
	args[4] = statement_texts(outcomes, count);
	args[5] = statement_texts(ids, count);
	args[6] = statement_texts(metadata, count);
	args[7] = PointerGetDatum(construct_md_array(expirations, no_expiry, 1, dims, lower,
												 TIMESTAMPTZOID, 8, true, TYPALIGN_DOUBLE));
	args[8] = statement_texts(codes, count);
	args[9] = statement_texts(messages, count);
	args[10] = PointerGetDatum(construct_array(retries, count, INT8OID, 8, true, TYPALIGN_DOUBLE));
	args[11] = Int32GetDatum(setting_retry_base);
	args[12] = Int32GetDatum(setting_retry_max);
	args[13] = Int32GetDatum(setting_acquire_attempts);
	args[14] = Int32GetDatum(setting_cleanup_attempts);
}

/* Whether complete_calls() has returned that anything ended. */
static bool
any_ended(void)
{
	for (uint64 r = 0; r < SPI_processed; r++)
	{
		bool		isnull;

		if (DatumGetBool(SPI_getbinval(SPI_tuptable->vals[r], SPI_tuptable->tupdesc, 4, &isnull)))
			return true;
	}
	return false;
}

/* Places under limits have become free. */
static void
let_requests_go_on(void)
{
	static SPIPlanPtr plan = NULL;

	/* asked anew: the first limit may have been set a moment ago */
	if (SPI_execute_plan(statement_prepared(&plan, "SELECT leasehold_internal.give_places(false)"
											" WHERE EXISTS (SELECT FROM leasehold.limits)", 0, NULL),
						 NULL, NULL, false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not let requests go on");
}

static void
apply_stray_answers(AnswerBatch *batch, const int *index, int count)
{
	QueueKey   *keys = palloc(count * sizeof(QueueKey));
	char	  **outcomes = palloc(count * sizeof(char *));
	char	  **messages = palloc(count * sizeof(char *));
	Datum	   *retries = palloc(count * sizeof(Datum));
	Datum		args[9];

	for (int i = 0; i < count; i++)
	{
		Call	   *call = batch->calls[index[i]];

		keys[i] = call->key;
		outcomes[i] = (char *) call_outcome_name(call->outcome);
		messages[i] = call->message;
		retries[i] = Int64GetDatum(call->retry_after_ms);
	}
	args[0] = Int64GetDatum(worker.epoch);
	args[1] = statement_companies(keys, count);
	args[2] = statement_subjects(keys, count);
	args[3] = statement_texts(outcomes, count);
	args[4] = statement_texts(messages, count);
	args[5] = PointerGetDatum(construct_array(retries, count, INT8OID, 8, true, TYPALIGN_DOUBLE));
	args[6] = Int32GetDatum(setting_retry_base);
	args[7] = Int32GetDatum(setting_retry_max);
	args[8] = Int32GetDatum(setting_cleanup_attempts);
	if (SPI_execute_with_args("SELECT leasehold_internal.complete_strays($1, $2, $3, $4, $5, $6, $7, $8, $9)", 9,
							  (Oid[]) {INT8OID, UUIDARRAYOID, UUIDARRAYOID, TEXTARRAYOID, TEXTARRAYOID, INT8ARRAYOID,
									   INT4OID, INT4OID, INT4OID}, args, NULL, false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not apply answers about strays");
}

/* Returns the first letter of what became of it. */
static char
apply_initialize_answer(Call *call)
{
	Datum		args[9];

	args[0] = Int64GetDatum(worker.epoch);
	args[1] = UUIDPGetDatum(&call->key.subject);
	args[2] = Int32GetDatum(call->generation);
	args[3] = CStringGetTextDatum(call_outcome_name(call->outcome));
	args[4] = statement_texts(call->supported_methods, call->supported_method_count);
	args[5] = CStringGetTextDatum(call->message);
	args[6] = Int64GetDatum(call->retry_after_ms);
	args[7] = Int32GetDatum(setting_retry_base);
	args[8] = Int32GetDatum(setting_retry_max);
	if (SPI_execute_with_args("SELECT leasehold_internal.complete_initialize($1, $2, $3, $4, $5, $6, $7, $8, $9)", 9,
							  (Oid[]) {INT8OID, UUIDOID, INT4OID, TEXTOID, TEXTARRAYOID, TEXTOID, INT8OID, INT4OID, INT4OID},
							  args, NULL, false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not apply the answer of a plugin");
	return SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1)[0];
}

/* The same. */
static char
apply_reconcile_answer(Call *call)
{
	Datum		args[9];
	char		nulls[9] = {' ', ' ', ' ', ' ', ' ', ' ', ' ', ' ', ' '};
	Interval	pause;
	bool		isnull;

	memset(&pause, 0, sizeof(pause));
	pause.time = setting_reconcile_interval * USECS_PER_SEC;
	args[0] = Int64GetDatum(worker.epoch);
	args[1] = UUIDPGetDatum(&call->key.company);
	args[2] = UUIDPGetDatum(&call->key.subject);
	args[3] = CStringGetTextDatum(call_outcome_name(call->outcome));
	args[4] = statement_text(call->listed, &isnull);
	nulls[4] = isnull ? 'n' : ' ';
	args[5] = statement_text(call->next_cursor, &isnull);
	nulls[5] = isnull ? 'n' : ' ';
	args[6] = CStringGetTextDatum(call->message);
	args[7] = Int64GetDatum(call->retry_after_ms);
	args[8] = IntervalPGetDatum(&pause);
	if (SPI_execute_with_args("SELECT leasehold_internal.complete_reconcile($1, $2, $3, $4, $5, $6, $7, $8, $9)", 9,
							  (Oid[]) {INT8OID, UUIDOID, UUIDOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, INT8OID, INTERVALOID},
							  args, nulls, false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not apply a provider's list");
	(void) SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	return isnull ? 'l' : 'a';
}

TimestampTz
answers_settle(AnswerBatch *batch, Woken *woken)
{
	TimestampTz next = DT_NOEND;

	for (int i = 0; i < batch->count; i++)
	{
		Call	   *call = batch->calls[i];
		TimestampTz again;

		if (batch->applied[i] == 'l')
		{
			call->apply_after = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
															LOCKED_PAUSE_MS << Min(call->times_locked, LOCKED_PAUSE_DOUBLINGS));
			call->times_locked++;
			continue;
		}
		if (batch->applied[i] == 's')
			worker.shared->stale_answers++;
		else
			woken_add(woken, &call->key.subject);
		worker.finished_count--;
		again = due_forget_call(call);
		next = Min(next, again);
	}
	batch->count = 0;
	return next;
}

void
answers_wait_no_longer(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &worker.finished)
		dlist_container(Call, node, iter.cur)->apply_after = 0;
}
