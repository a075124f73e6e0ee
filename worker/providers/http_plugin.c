/*
 * http_plugin.c
 *		Plugins over HTTP: JSON-RPC 2.0, one request per POST.
 *
 * The method names, parameters, results and error codes are those of the plugin
 * contract (docs/plugins.md).  What matters most here is to say truthfully what
 * is known of a call's effect: "not done" lets the caller send it again, and is
 * said only where the plugin cannot have acted.
 */
#include "postgres.h"
#include "compat.h"

#include <time.h>

#include "lib/stringinfo.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "command.h"
#include "http_date.h"
#include "http_plugin.h"
#include "plugin_command.h"
#include "plugins.h"
#include "provider.h"
#include "worker.h"

#define MICROSECONDS_TO_2000	(((int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE)) * USECS_PER_DAY)

static char *request_body(const PluginCall *state);
static void send_request(PluginCall *state, const Plugin *plugin, const char *token);
static void plugin_abandon(Call *call);
static void abandon(void *arg);
static void plugin_answered(void *arg, const HttpResponse *response);
static HttpNext plugin_said(void *arg, char *message, size_t length, const char *token);
static void finished(PluginCall *state);
static void judge_silence(Call *call, const HttpResponse *response);
static void judge_status(Call *call, const HttpResponse *response);
static void judge_answer(Call *call, const RpcAnswer *answer);
static void judge_error(Call *call, const RpcAnswer *answer);
static const char *refusal_code(const Call *call);
static void judge_result(Call *call, const RpcAnswer *answer);
static void take_lease(Call *call, const json_t *result);
static void take_workspace(Call *call, const json_t *result);
static void take_page(Call *call, const json_t *result);
static void take_methods(Call *call, const json_t *result);
static bool is_removal(const Call *call);
static bool is_persistent(const Call *call);

const Provider http_plugin_provider = {
	.name = "plugin",
	.initialize = plugin_start,
	.acquire = plugin_start,
	.resume = plugin_start,
	.realize = plugin_start,
	.release = plugin_start,
	.destroy = plugin_start,
	.find = plugin_start,
	.list = plugin_start,
	.execute = plugin_start,
	.cancel = plugin_command_cancel,
	.withdraw = plugin_withdraw,
	.abandon = plugin_abandon,
};

void
plugin_start(Call *call)
{
	MemoryContext old = MemoryContextSwitchTo(call->context);
	const Plugin *plugin = plugin_find(call->plugin);
	PluginCall *state = palloc0(sizeof(PluginCall));
	const char *code = NULL;
	const char *problem = NULL;
	char		token[PLUGIN_TOKEN_SIZE];

	state->call = call;
	call->transport = state;
	if (plugin == NULL)
		call_set_outcome(call, OUTCOME_RETRY, "plugin_not_found", "plugin \"%s\" is not registered", call->plugin);
	else if (!plugin_read_token(plugin, token, &code, &problem))
		call_set_outcome(call, OUTCOME_RETRY, code, "%s (\"%s\")", problem, plugin->token_file);
	else
		send_request(state, plugin, token[0] != '\0' ? token : NULL);
	explicit_bzero(token, sizeof(token));
	MemoryContextSwitchTo(old);
	if (call->outcome != OUTCOME_NONE)
	{
		call->not_asked = true;
		worker_call_finished(call);
	}
}

static void
send_request(PluginCall *state, const Plugin *plugin, const char *token)
{
	static uint64 counter = 0;
	Call	   *call = state->call;
	const char *problem;
	HttpRequest request;

	snprintf(state->request_id, sizeof(state->request_id), INT64_FORMAT "-" UINT64_FORMAT,
			 worker.epoch, ++counter);
	state->allowed = palloc(Max(plugin->allowed_count, 1) * sizeof(PolicyNetwork));
	memcpy(state->allowed, plugin->allowed, plugin->allowed_count * sizeof(PolicyNetwork));

	memset(&request, 0, sizeof(request));
	request.url = plugin->url;
	request.token = token;
	request.request_id = state->request_id;
	request.idempotency_key = call->idempotency_key;
	request.body = request_body(state);
	request.length = strlen(request.body);
	request.timeout_ms = call->timeout_ms;
	/* nobody can be asked later: do not risk an ambiguous end */
	request.fresh_connection = call->method == METHOD_EXECUTE ||
		(call->method == METHOD_ACQUIRE && !plugin->looks_up);
	request.allowed = state->allowed;
	request.allowed_count = plugin->allowed_count;
	request.done = plugin_answered;
	if (call->method == METHOD_EXECUTE)
	{
		plugin_command_prepare(state);
		/* all that is kept of its output can be in one answer */
		request.more_body = call->command->limit;
		request.message = plugin_said;
	}
	request.arg = call;
	state->cleanup.func = abandon;
	state->cleanup.arg = state;
	MemoryContextRegisterResetCallback(call->context, &state->cleanup);
	state->exchange = http_post(&request, &problem);
	if (state->exchange == NULL)
		call_set_outcome(call, OUTCOME_RETRY, "request_not_started", "%s", problem);
}

static char *
request_body(const PluginCall *state)
{
	StringInfoData body;

	initStringInfo(&body);
	appendStringInfo(&body, "{\"jsonrpc\":\"2.0\",\"id\":\"%s\",\"method\":\"%s\",\"params\":%s}",
					 state->request_id, state->call->method_name, state->call->params);
	return body.data;
}

bool
plugin_withdraw(Call *call)
{
	PluginCall *state = call->transport;

	if (state == NULL || state->exchange == NULL || http_may_be_sent(state->exchange))
		return false;
	abandon(state);
	return true;
}

static void
plugin_abandon(Call *call)
{
	if (call->transport != NULL)
		abandon(call->transport);
}

void
plugin_give_up(Call *call, CallOutcome outcome, const char *code, const char *message)
{
	plugin_abandon(call);
	call_set_outcome(call, outcome, code, "%s", message);
	worker_call_finished(call);
}

/* Also if the call's memory goes while it is out. */
static void
abandon(void *arg)
{
	PluginCall *state = arg;

	if (state->command != NULL)
		plugin_command_forget(state);
	if (state->exchange != NULL)
		http_abandon(state->exchange);
	state->exchange = NULL;
}

static void
plugin_answered(void *arg, const HttpResponse *response)
{
	Call	   *call = arg;
	PluginCall *state = call->transport;
	MemoryContext old = MemoryContextSwitchTo(call->context);

	if (!response->answered)
		judge_silence(call, response);
	else if (response->status != 200)
		judge_status(call, response);
	else if (response->in_messages)
		plugin_answered_badly(call, "the stream has ended without an answer");
	else
	{
		RpcAnswer	answer;

		if (call->method == METHOD_EXECUTE)
			rpc_parse_message(response->body, response->length, state->request_id, response->token, &answer);
		else
			rpc_parse_answer(response->body, response->length, state->request_id, response->token, &answer);
		judge_answer(call, &answer);
		rpc_free_answer(&answer);
	}
	MemoryContextSwitchTo(old);
	finished(state);
}

/* A message of a stream: what a command writes, or the answer. */
static HttpNext
plugin_said(void *arg, char *message, size_t length, const char *token)
{
	Call	   *call = arg;
	PluginCall *state = call->transport;
	MemoryContext old = MemoryContextSwitchTo(call->context);
	HttpNext	next = HTTP_GO_ON;
	RpcAnswer	answer;

	rpc_parse_message(message, length, state->request_id, token, &answer);

	/*
	 * an error that names no request is about one that could not be read;
	 * this one was
	 */
	if (answer.kind == RPC_ERROR && call->command->begun && json_is_null(json_object_get(answer.root, "id")))
		answer.kind = RPC_NOISE;
	if (answer.kind == RPC_NOTIFICATION && !plugin_command_notified(state, &answer))
		next = HTTP_PAUSE;
	else if (answer.kind == RPC_NOTIFICATION || answer.kind == RPC_NOISE)
		next = plugin_command_brakes(state, length) ? HTTP_BRAKE : HTTP_GO_ON;
	else
	{
		judge_answer(call, &answer);
		next = HTTP_ENOUGH;
	}
	rpc_free_answer(&answer);
	MemoryContextSwitchTo(old);
	if (next == HTTP_ENOUGH)
		finished(state);
	return next;
}

/* The owner of the exchange ends it after this. */
static void
finished(PluginCall *state)
{
	state->exchange = NULL;
	abandon(state);
	if (state->call->method == METHOD_CANCEL)
		plugin_command_cancelled(state->call);
	worker_call_finished(state->call);
}

void
plugin_answered_badly(Call *call, const char *text)
{
	call->provider_failed = true;
	if (call->command != NULL)
		call->command->begun = true;
	call_set_outcome(call, OUTCOME_UNKNOWN, "malformed_answer", "%s", text);
}

/* No complete response came. */
static void
judge_silence(Call *call, const HttpResponse *response)
{
	call->provider_failed = true;
	/* what is not sent does not depend on whose it is */
	call->transport_failed = response->progress == HTTP_NOT_SENT;
	if (response->too_large && response->status == 200)
	{
		plugin_answered_badly(call, response->problem);
		return;
	}
	/* what it may take of time is less than what it is waited for */
	if (call->command != NULL && response->timed_out && response->progress == HTTP_MAYBE_SENT)
		call->command->timed_out = true;
	call_set_outcome(call, response->progress == HTTP_NOT_SENT ? OUTCOME_RETRY : OUTCOME_UNKNOWN,
					 response->timed_out ? "provider_timeout" : "provider_unreachable",
					 "%s during %s", response->problem, response->phase);
}

/*
 * A status other than 200.  3xx and 4xx say that the request was not carried
 * out.  A 5xx may come from something in between that lost the answer, so only
 * one that asks to come again later is taken for "not done".
 */
static void
judge_status(Call *call, const HttpResponse *response)
{
	int64_t		retry_after = 0;
	bool		asks_back = response->retry_after != NULL &&
	http_parse_retry_after(response->retry_after, (int64_t) time(NULL), &retry_after);
	long		status = response->status;
	CallOutcome outcome;
	const char *code;

	call->retry_after_ms = asks_back ? retry_after : 0;
	if (status == 429 || (status == 503 && asks_back))
	{
		outcome = OUTCOME_THROTTLED;
		code = "provider_throttled";
	}
	else if (status == 401 || status == 403)
	{
		/* the token may be replaced */
		outcome = OUTCOME_RETRY;
		code = "provider_unauthorized";
		call->provider_failed = true;
	}
	else if (status >= 300 && status < 500)
	{
		outcome = is_persistent(call) || call->method == METHOD_INITIALIZE ? OUTCOME_RETRY : OUTCOME_FAILED;
		code = "provider_refused";
	}
	else
	{
		outcome = OUTCOME_UNKNOWN;
		code = "provider_error";
		call->provider_failed = true;
	}
	call_set_outcome(call, outcome, code, "the provider answered with HTTP status %ld", status);
}

static void
judge_answer(Call *call, const RpcAnswer *answer)
{
	if (answer->kind == RPC_RESULT)
		judge_result(call, answer);
	else if (answer->kind == RPC_ERROR)
		judge_error(call, answer);
	else
		plugin_answered_badly(call, answer->kind == RPC_NOTIFICATION ? "the answer is a notification" : answer->text);
}

/*
 * A JSON-RPC error.  The contract obliges a plugin whose acquire throws to
 * remove what it made, so that is "not done"; codes that say that the answer
 * was lost on the way are not.  A plugin that throws while a command runs says
 * nothing about the command.
 */
static void
judge_error(Call *call, const RpcAnswer *answer)
{
	CallOutcome outcome;
	const char *code;

	switch (answer->error_code)
	{
		case RPC_WORKER_UNAVAILABLE:
		case RPC_TIMEOUT:
		case RPC_UNKNOWN:
		case RPC_INTERNAL_ERROR:
			outcome = OUTCOME_UNKNOWN;
			code = answer->error_code == RPC_TIMEOUT ? "provider_timeout" : "provider_unavailable";
			call->provider_failed = true;
			break;
		case RPC_METHOD_NOT_FOUND:
		case RPC_NOT_IMPLEMENTED:
			outcome = OUTCOME_FAILED;
			code = "method_not_implemented";
			break;
		case RPC_PARSE_ERROR:
		case RPC_INVALID_REQUEST:
		case RPC_INVALID_PARAMS:
		case RPC_CAPABILITY_DENIED:
		case RPC_SCOPE_DENIED:
			outcome = is_persistent(call) ? OUTCOME_RETRY : OUTCOME_FAILED;
			code = refusal_code(call);
			break;
		default:
			outcome = is_persistent(call) ? OUTCOME_RETRY :
				call->method == METHOD_EXECUTE ? OUTCOME_UNKNOWN : OUTCOME_FAILED;
			code = call->method == METHOD_EXECUTE ? "provider_error" : refusal_code(call);
			break;
	}
	call_set_outcome(call, outcome, code, "the provider answered with error %d: %s",
					 answer->error_code, answer->text);
}

static const char *
refusal_code(const Call *call)
{
	return call->method == METHOD_ACQUIRE ? "lease_acquire_failed" :
		is_removal(call) ? "lease_cleanup_failed" : "provider_refused";
}

static void
judge_result(Call *call, const RpcAnswer *answer)
{
	call_set_outcome(call, OUTCOME_OK, NULL, "%s", "");
	switch (call->method)
	{
		case METHOD_ACQUIRE:
		case METHOD_RESUME:
		case METHOD_FIND:
			take_lease(call, answer->result);
			break;
		case METHOD_REALIZE:
			take_workspace(call, answer->result);
			break;
		case METHOD_LIST:
			take_page(call, answer->result);
			break;
		case METHOD_INITIALIZE:
			take_methods(call, answer->result);
			break;
		case METHOD_EXECUTE:
			plugin_command_ended(call->transport, answer->result);
			break;
		case METHOD_CANCEL:
		case METHOD_RELEASE:
		case METHOD_DESTROY:
			/* whatever it says: it did not say no */
			break;
	}
}

static void
take_lease(Call *call, const json_t *result)
{
	RpcLease	lease;
	char		text[RPC_TEXT_SIZE];

	if (!rpc_read_lease(result, &lease, text))
	{
		plugin_answered_badly(call, text);
		return;
	}
	if (lease.provider_lease_id != NULL)
		call->provider_lease_id = pstrdup(lease.provider_lease_id);
	else if (call->method != METHOD_ACQUIRE)
		call_set_outcome(call, OUTCOME_GONE, "resource_gone", "the provider has no such resource");
	if (lease.metadata != NULL)
		call->metadata = pstrdup(lease.metadata);
	free(lease.metadata);
	call->has_expiry = lease.has_expiry;
	call->expires_at = lease.expires_at - MICROSECONDS_TO_2000;
}

static void
take_workspace(Call *call, const json_t *result)
{
	char	   *workspace;
	char		text[RPC_TEXT_SIZE];

	if (!rpc_read_workspace(result, &workspace, text))
	{
		/* it would say the same again */
		call_set_outcome(call, OUTCOME_FAILED, "malformed_answer", "%s", text);
		return;
	}
	call->metadata = pstrdup(workspace);
	free(workspace);
}

static void
take_page(Call *call, const json_t *result)
{
	char	   *listed;
	char	   *cursor;
	char		text[RPC_TEXT_SIZE];

	if (!rpc_read_list(result, &listed, &cursor, text))
	{
		plugin_answered_badly(call, text);
		return;
	}
	call->listed = pstrdup(listed);
	call->next_cursor = cursor ? pstrdup(cursor) : NULL;
	free(listed);
	free(cursor);
}

static void
take_methods(Call *call, const json_t *result)
{
	const json_t *methods = json_object_get(result, "supportedMethods");
	size_t		i;
	const json_t *method;

	if (!json_is_true(json_object_get(result, "ok")) || !(methods == NULL || json_is_array(methods)) ||
		json_array_size(methods) > 200)
	{
		call_set_outcome(call, OUTCOME_RETRY, "initialize_refused",
						 "the plugin did not answer initialize with ok and a list of methods");
		return;
	}
	call->supported_methods = palloc0((json_array_size(methods) + 1) * sizeof(char *));
	json_array_foreach(methods, i, method)
	{
		if (json_is_string(method) && json_string_length(method) <= 100)
			call->supported_methods[call->supported_method_count++] = pstrdup(json_string_value(method));
	}
}

static bool
is_removal(const Call *call)
{
	return call->method == METHOD_RELEASE || call->method == METHOD_DESTROY;
}

/* Calls that must be tried again for as long as that makes sense. */
static bool
is_persistent(const Call *call)
{
	return is_removal(call) || call->method == METHOD_CANCEL;
}
