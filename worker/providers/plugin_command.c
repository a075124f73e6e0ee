/*
 * plugin_command.c
 *		Commands of plugins over HTTP: environmentExecute, of which the answer is
 *		the command's end, and environmentCancelExecute.
 *
 * A plugin may hand output over before the answer, as notifications.  The answer
 * holds all of it, or not; only what did not come before is taken from there.
 */
#include "postgres.h"
#include "compat.h"

#include "common/base64.h"
#include "port/pg_crc32c.h"

#include "command_output.h"
#include "event_loop.h"
#include "plugin_command.h"
#include "plugins.h"
#include "worker.h"

#define END_PAUSE_MS		10000	/* after a cancel was confirmed */

/* What is read for nothing is read slowly: so much, then a pause. */
#define DROPPED_MESSAGES	100
#define DROPPED_BYTES		(256 * 1024)
#define DROPPED_PAUSE_MS	10

struct PluginCommand
{
	RpcScope	scope;
	int64		came[2];		/* bytes of output that came before the answer, by RpcStream */
	pg_crc32c	sums[2];		/* of them */
	bool		cancelled;		/* the plugin says that it ends it */
	bool		brought;		/* the last message had output that is kept */
	EventTimer	give_up;		/* then */
	int			dropped;		/* messages of which nothing is kept, since the last pause */
	size_t		dropped_bytes;
	EventTimer	go_on;			/* after it */
};

static const CommandStream streams[] = {
	[RPC_STDOUT] = STREAM_STDOUT,
	[RPC_STDERR] = STREAM_STDERR,
};

static char *run_of(const Call *call);
static void drained(Call *call);
static bool add_output(PluginCall *state, RpcStream stream, const char *data, size_t length);
static void add_rest(PluginCall *state, RpcStream stream, const char *data, size_t length);
static Call *running(const Call *cancel);
static void lose_sight(Call *call);
static void on_give_up(void *arg);
static void on_go_on(void *arg);

void
plugin_command_prepare(PluginCall *state)
{
	Call	   *call = state->call;
	PluginCommand *command = palloc0(sizeof(PluginCommand));

	command->scope.company = call_id_text(&call->key.company);
	command->scope.command = call_id_text(&call->key.subject);
	command->scope.run = run_of(call);
	for (int i = RPC_STDOUT; i <= RPC_STDERR; i++)
		INIT_CRC32C(command->sums[i]);
	command->give_up.fire = on_give_up;
	command->go_on.fire = on_go_on;
	command->give_up.arg = command->go_on.arg = call;
	state->command = command;
	call->command->drained = drained;
}

/* As the plugin is told; NULL if there is none. */
static char *
run_of(const Call *call)
{
	/* a configuration may have numbers that are too large for an integer */
	json_t	   *params = json_loads(call->params, JSON_DECODE_INT_AS_REAL, NULL);
	const char *run = json_string_value(json_object_get(params, "runId"));
	char	   *copy = run ? pstrdup(run) : NULL;

	json_decref(params);
	return copy;
}

static void
drained(Call *call)
{
	PluginCall *state = call->transport;

	if (state->exchange != NULL)
		http_resume(state->exchange);
}

bool
plugin_command_notified(PluginCall *state, const RpcAnswer *notification)
{
	RpcChunk	chunk;
	char	   *decoded;
	int			length;
	bool		more = true;

	if (!rpc_read_chunk(notification, &state->command->scope, &chunk))
		return true;
	if (!chunk.base64)
		return add_output(state, chunk.stream, chunk.data, chunk.length);
	length = pg_b64_dec_len(chunk.length);
	decoded = palloc(length + 1);
	length = pg_b64_decode(chunk.data, chunk.length, decoded, length);
	if (length >= 0)
		more = add_output(state, chunk.stream, decoded, length);
	pfree(decoded);
	return more;
}

/* Messages that are none, and output that is over the limit, cost time and bring nothing. */
bool
plugin_command_brakes(PluginCall *state, size_t length)
{
	PluginCommand *command = state->command;
	bool		kept = command->brought;

	command->brought = false;
	if (kept)
		return false;
	command->dropped++;
	command->dropped_bytes += length;
	if (command->dropped < DROPPED_MESSAGES && command->dropped_bytes < DROPPED_BYTES)
		return false;
	command->dropped = 0;
	command->dropped_bytes = 0;
	event_loop_set_timer(&command->go_on, DROPPED_PAUSE_MS);
	return true;
}

static void
on_go_on(void *arg)
{
	drained(arg);
}

static bool
add_output(PluginCall *state, RpcStream stream, const char *data, size_t length)
{
	state->command->came[stream] += length;
	COMP_CRC32C(state->command->sums[stream], data, length);
	state->call->command->begun = true;
	state->command->brought = !state->call->command->truncated;
	return command_output_add(state->call, streams[stream], data, length);
}

void
plugin_command_ended(PluginCall *state, const json_t *result)
{
	Command    *command = state->call->command;
	RpcExecution execution;
	char		text[RPC_TEXT_SIZE];

	if (!rpc_read_execution(result, &execution, text))
	{
		plugin_answered_badly(state->call, text);
		return;
	}
	for (int i = RPC_STDOUT; i <= RPC_STDERR && !execution.streamed; i++)
		add_rest(state, i, execution.output[i], execution.length[i]);
	command->begun = true;
	command->has_exit_code = execution.has_exit_code;
	command->exit_code = execution.exit_code;
	if (execution.signal != NULL)
		strlcpy(command->signal, execution.signal, sizeof(command->signal));
	command->timed_out = execution.timed_out;
	command->cancelled = state->command->cancelled && (!execution.has_exit_code || execution.signal != NULL);
}

/* All of the output, without what came before if that is its beginning. */
static void
add_rest(PluginCall *state, RpcStream stream, const char *data, size_t length)
{
	size_t		came = state->command->came[stream];
	pg_crc32c	sum;

	INIT_CRC32C(sum);
	if (came <= length)
		COMP_CRC32C(sum, data, came);
	if (came > length || !EQ_CRC32C(sum, state->command->sums[stream]))
		came = 0;
	if (length > came)
		(void) command_output_add(state->call, streams[stream], data + came, length - came);
}

/*
 * A command that was not sent is not sent.  A plugin that cannot end one is not
 * asked: the connection is closed, which is all that can be done.
 */
void
plugin_command_cancel(Call *call)
{
	const Plugin *plugin = plugin_find(call->plugin);
	Call	   *target = running(call);

	if (target != NULL && plugin_withdraw(target))
	{
		target->not_asked = true;
		call_set_outcome(target, OUTCOME_RETRY, NULL, "the command was cancelled before it was sent");
		worker_call_finished(target);
		call_set_outcome(call, OUTCOME_OK, NULL, "%s", "");
	}
	else if (plugin == NULL || plugin->cancels)
	{
		plugin_start(call);
		return;
	}
	else if (target != NULL)
	{
		lose_sight(target);
		call_set_outcome(call, OUTCOME_OK, NULL, "%s", "");
	}
	else
		call_set_outcome(call, OUTCOME_FAILED, "method_not_implemented", "the plugin has no %s", call->method_name);
	call->not_asked = true;
	worker_call_finished(call);
}

/* The command that is to be ended, if it is out here. */
static Call *
running(const Call *cancel)
{
	Call	   *call = command_find(&cancel->key);

	return call != NULL && call->plugin != NULL && call->transport != NULL ? call : NULL;
}

static void
lose_sight(Call *call)
{
	plugin_give_up(call, OUTCOME_UNKNOWN, "cancel_not_confirmed",
				   "it was cancelled, and the provider cannot tell whether it has ended");
}

void
plugin_command_cancelled(const Call *call)
{
	Call	   *target = running(call);
	PluginCall *state;

	if (target == NULL)
		return;
	state = target->transport;
	if (call->outcome == OUTCOME_OK)
	{
		state->command->cancelled = true;
		event_loop_set_timer(&state->command->give_up, END_PAUSE_MS);
	}
	else if (call->outcome == OUTCOME_FAILED)
		lose_sight(target);
}

/* It was cancelled, but there is no answer that says how it ended. */
static void
on_give_up(void *arg)
{
	Call	   *call = arg;
	PluginCall *state = call->transport;

	if (call->command->full)
	{
		/* the answer may wait behind its output */
		event_loop_set_timer(&state->command->give_up, END_PAUSE_MS);
		return;
	}
	call->command->begun = call->command->cancelled = true;
	plugin_give_up(call, OUTCOME_OK, NULL, "");
}

void
plugin_command_forget(PluginCall *state)
{
	event_loop_cancel_timer(&state->command->give_up);
	event_loop_cancel_timer(&state->command->go_on);
}
