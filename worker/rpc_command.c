/*
 * rpc_command.c
 *		Reads what plugins say of a command: see rpc_command.h.
 *
 * The public plugin SDK has had two notifications for output: streams.emit, with
 * a channel that is named for the run, and execute.log, which belongs to the
 * request that is being answered.
 */
#include "rpc_command.h"

#include <stdio.h>
#include <string.h>

#define CHANNEL		"env-exec-output:"

static const char *const streams[] = {
	[RPC_STDOUT] = "stdout",
	[RPC_STDERR] = "stderr",
};

static bool read_stream(const json_t *value, RpcStream *stream);
static bool is_channel(const char *channel, const char *id);
static bool is_absent(const json_t *value);

bool
rpc_read_execution(const json_t *result, RpcExecution *execution, char *text)
{
	const json_t *exit_code = json_object_get(result, "exitCode");
	const json_t *signal = json_object_get(result, "signal");
	const json_t *timed_out = json_object_get(result, "timedOut");
	const json_t *streamed = json_object_get(result, "streamed");
	const char *problem = NULL;

	memset(execution, 0, sizeof(*execution));
	if (!json_is_object(result))
		problem = "the result is not an object";
	else if (!(json_is_null(exit_code) || json_is_integer(exit_code)) ||
			 json_integer_value(exit_code) < INT32_MIN || json_integer_value(exit_code) > INT32_MAX)
		problem = "exitCode is neither an integer nor null";
	else if (!is_absent(signal) && (!json_is_string(signal) || json_string_length(signal) > RPC_MAX_SIGNAL))
		problem = "signal is not the name of a signal";
	else if (!json_is_boolean(timed_out))
		problem = "timedOut is neither true nor false";
	else if (!is_absent(streamed) && !json_is_boolean(streamed))
		problem = "streamed is neither true nor false";
	for (int i = RPC_STDOUT; i <= RPC_STDERR; i++)
	{
		const json_t *output = json_object_get(result, streams[i]);

		if (problem == NULL && !json_is_string(output))
			problem = i == RPC_STDOUT ? "stdout is not a text" : "stderr is not a text";
		execution->output[i] = json_string_value(output);
		execution->length[i] = json_string_length(output);
	}
	if (problem != NULL)
	{
		snprintf(text, RPC_TEXT_SIZE, "%s", problem);
		return false;
	}
	execution->has_exit_code = json_is_integer(exit_code);
	execution->exit_code = (int) json_integer_value(exit_code);
	if (json_is_string(signal) && json_string_value(signal)[0] != '\0')
		execution->signal = json_string_value(signal);
	execution->timed_out = json_is_true(timed_out);
	execution->streamed = json_is_true(streamed);
	return true;
}

bool
rpc_read_chunk(const RpcAnswer *notification, const RpcScope *scope, RpcChunk *chunk)
{
	const json_t *event = notification->params;
	const json_t *text;
	const json_t *base64 = NULL;

	if (strcmp(notification->method, "execute.log") == 0)
		text = json_object_get(event, "chunk");
	else if (strcmp(notification->method, "streams.emit") == 0)
	{
		const char *channel = json_string_value(json_object_get(notification->params, "channel"));
		const char *company = json_string_value(json_object_get(notification->params, "companyId"));

		if (company == NULL || strcmp(company, scope->company) != 0 || channel == NULL ||
			!(is_channel(channel, scope->command) || is_channel(channel, scope->run)))
			return false;
		event = json_object_get(notification->params, "event");
		text = json_object_get(event, "text");
		base64 = json_object_get(event, "dataBase64");
	}
	else
		return false;

	if (!read_stream(json_object_get(event, "stream"), &chunk->stream) ||
		(text == NULL) == (base64 == NULL) || !json_is_string(text ? text : base64))
		return false;
	chunk->base64 = base64 != NULL;
	chunk->data = json_string_value(text ? text : base64);
	chunk->length = json_string_length(text ? text : base64);
	return true;
}

static bool
read_stream(const json_t *value, RpcStream *stream)
{
	const char *name = json_string_value(value);

	for (int i = RPC_STDOUT; i <= RPC_STDERR; i++)
	{
		if (name != NULL && strcmp(name, streams[i]) == 0)
		{
			*stream = i;
			return true;
		}
	}
	return false;
}

static bool
is_channel(const char *channel, const char *id)
{
	return id != NULL && strncmp(channel, CHANNEL, strlen(CHANNEL)) == 0 && strcmp(channel + strlen(CHANNEL), id) == 0;
}

static bool
is_absent(const json_t *value)
{
	return value == NULL || json_is_null(value);
}
