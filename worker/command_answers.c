/*
 * command_answers.c
 *		Stores how commands ended, and what came of ending others.
 *
 * What it means is decided in the database (45_command_dispatch.sql).
 */
#include "postgres.h"
#include "compat.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"

#include "command.h"
#include "command_answers.h"
#include "settings.h"
#include "statement.h"
#include "worker.h"

#define COMMAND_ARGS		19	/* of complete_commands() */

static void command_args(Call *const *calls, const int *index, const QueueKey *keys, int count, Datum *args);
static Datum bools(const bool *values, int count);
static Datum bigints(const int64 *values, int count);

void
command_answers_apply(Call *const *calls, const int *index, int count, char *applied)
{
	static SPIPlanPtr plan = NULL;
	static const Oid types[COMMAND_ARGS] = {INT8OID, UUIDARRAYOID, UUIDARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID,
		INT8ARRAYOID, INT4ARRAYOID, TEXTARRAYOID, BOOLARRAYOID, BOOLARRAYOID, BOOLARRAYOID, INT8ARRAYOID, INT8ARRAYOID,
	BOOLARRAYOID, TEXTARRAYOID, INT4OID, INT4OID, INT4OID};
	QueueKey   *keys = palloc(count * sizeof(QueueKey));
	Datum		args[COMMAND_ARGS];

	for (int i = 0; i < count; i++)
		keys[i] = calls[index[i]]->key;
	command_args(calls, index, keys, count, args);
	if (SPI_execute_plan(statement_prepared(&plan, "SELECT * FROM leasehold_internal.complete_commands"
											"($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)",
											COMMAND_ARGS, types), args, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not apply the answers of commands");
	statement_note_applied(applied, index, keys, count);
}

static void
command_args(Call *const *calls, const int *index, const QueueKey *keys, int count, Datum *args)
{
	char	  **outcomes = palloc(count * sizeof(char *));
	char	  **codes = palloc(count * sizeof(char *));
	char	  **messages = palloc(count * sizeof(char *));
	char	  **signals = palloc(count * sizeof(char *));
	char	  **params = palloc(count * sizeof(char *));
	int64	   *retries = palloc(count * sizeof(int64));
	int64	   *out_bytes = palloc(count * sizeof(int64));
	int64	   *err_bytes = palloc(count * sizeof(int64));
	bool	   *timed_out = palloc(count * sizeof(bool));
	bool	   *cancelled = palloc(count * sizeof(bool));
	bool	   *begun = palloc(count * sizeof(bool));
	bool	   *truncated = palloc(count * sizeof(bool));
	Datum	   *exit_codes = palloc(count * sizeof(Datum));
	bool	   *no_exit_code = palloc(count * sizeof(bool));
	int			dims[1] = {count};
	int			lower[1] = {1};

	for (int i = 0; i < count; i++)
	{
		Call	   *call = calls[index[i]];
		Command    *command = call->command;
		bool		not_done = call->outcome == OUTCOME_RETRY || call->outcome == OUTCOME_THROTTLED;

		outcomes[i] = (char *) call_outcome_name(call->outcome);
		codes[i] = call->code[0] ? call->code : NULL;
		messages[i] = call->message[0] ? call->message : NULL;
		signals[i] = command->signal[0] ? command->signal : NULL;
		/* they hold the input, which the database has no more */
		params[i] = not_done ? call->params : NULL;
		retries[i] = call->retry_after_ms;
		out_bytes[i] = command->written[STREAM_STDOUT];
		err_bytes[i] = command->written[STREAM_STDERR];
		timed_out[i] = command->timed_out;
		cancelled[i] = command->cancelled;
		begun[i] = command->begun;
		truncated[i] = command->truncated;
		exit_codes[i] = Int32GetDatum(command->exit_code);
		no_exit_code[i] = !command->has_exit_code;
	}
	args[0] = Int64GetDatum(worker.epoch);
	args[1] = statement_companies(keys, count);
	args[2] = statement_subjects(keys, count);
	args[3] = statement_texts(outcomes, count);
	args[4] = statement_texts(codes, count);
	args[5] = statement_texts(messages, count);
	args[6] = bigints(retries, count);
	args[7] = PointerGetDatum(construct_md_array(exit_codes, no_exit_code, 1, dims, lower, INT4OID, 4, true, TYPALIGN_INT));
	args[8] = statement_texts(signals, count);
	args[9] = bools(timed_out, count);
	args[10] = bools(cancelled, count);
	args[11] = bools(begun, count);
	args[12] = bigints(out_bytes, count);
	args[13] = bigints(err_bytes, count);
	args[14] = bools(truncated, count);
	args[15] = statement_texts(params, count);
	args[16] = Int32GetDatum(setting_retry_base);
	args[17] = Int32GetDatum(setting_retry_max);
	args[18] = Int32GetDatum(setting_acquire_attempts);
}

void
command_answers_apply_cancels(Call *const *calls, const int *index, int count)
{
	QueueKey   *keys = palloc(count * sizeof(QueueKey));
	char	  **outcomes = palloc(count * sizeof(char *));
	char	  **messages = palloc(count * sizeof(char *));
	int64	   *retries = palloc(count * sizeof(int64));
	Datum		args[9];

	for (int i = 0; i < count; i++)
	{
		Call	   *call = calls[index[i]];

		keys[i] = call->key;
		outcomes[i] = (char *) call_outcome_name(call->outcome);
		messages[i] = call->message;
		retries[i] = call->retry_after_ms;
	}
	args[0] = Int64GetDatum(worker.epoch);
	args[1] = statement_companies(keys, count);
	args[2] = statement_subjects(keys, count);
	args[3] = statement_texts(outcomes, count);
	args[4] = statement_texts(messages, count);
	args[5] = bigints(retries, count);
	args[6] = Int32GetDatum(setting_retry_base);
	args[7] = Int32GetDatum(setting_retry_max);
	args[8] = Int32GetDatum(setting_cleanup_attempts);
	if (SPI_execute_with_args("SELECT leasehold_internal.complete_cancels($1, $2, $3, $4, $5, $6, $7, $8, $9)", 9,
							  (Oid[]) {INT8OID, UUIDARRAYOID, UUIDARRAYOID, TEXTARRAYOID, TEXTARRAYOID, INT8ARRAYOID,
									   INT4OID, INT4OID, INT4OID}, args, NULL, false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not apply answers about commands that are to be ended");
}

static Datum
bools(const bool *values, int count)
{
	Datum	   *datums = palloc(count * sizeof(Datum));

	for (int i = 0; i < count; i++)
		datums[i] = BoolGetDatum(values[i]);
	return PointerGetDatum(construct_array(datums, count, BOOLOID, 1, true, TYPALIGN_CHAR));
}

static Datum
bigints(const int64 *values, int count)
{
	Datum	   *datums = palloc(count * sizeof(Datum));

	for (int i = 0; i < count; i++)
		datums[i] = Int64GetDatum(values[i]);
	return PointerGetDatum(construct_array(datums, count, INT8OID, 8, true, TYPALIGN_DOUBLE));
}
