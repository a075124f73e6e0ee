/*
 * rpc_command.c
 *		What plugins say of commands: which message is the answer, what is output
 *		and whose, and how a command ended.
 */
#include "../../worker/http_date.c"
#include "../../worker/json_rpc.c"
#include "../../worker/rpc_command.c"

#include "tap.h"

#define ID			"call-1"
#define COMPANY		"11111111-0000-4000-8000-000000000001"
#define COMMAND		"22222222-0000-4000-8000-000000000002"
#define RUN			"33333333-0000-4000-8000-000000000003"

static const RpcScope scope = {.company = COMPANY,.command = COMMAND,.run = RUN};

/* A copy of the exact size: reading or writing on is found out. */
static void
parse(const char *body, size_t length, RpcAnswer *answer)
{
	char	   *copy = malloc(length ? length : 1);

	memcpy(copy, body, length);
	rpc_parse_message(copy, length, ID, NULL, answer);
	free(copy);
}

/* --- Which message is what --------------------------------------------------- */

static void
is(RpcKind kind, const char *body)
{
	RpcAnswer	answer;

	parse(body, strlen(body), &answer);
	ok(answer.kind == kind, "kind %d: %s", kind, body);
	if (answer.kind != kind)
		printf("# %d: %s\n", answer.kind, answer.text);
	rpc_free_answer(&answer);
}

static void
test_kinds(void)
{
	is(RPC_RESULT, "{\"jsonrpc\":\"2.0\",\"id\":\"call-1\",\"result\":{}}");
	is(RPC_RESULT, "{\"jsonrpc\":\"2.0\",\"id\":\"call-1\",\"result\":null}\r");
	is(RPC_ERROR, "{\"jsonrpc\":\"2.0\",\"id\":\"call-1\",\"error\":{\"code\":-32002,\"message\":\"x\"}}");
	is(RPC_ERROR, "{\"jsonrpc\":\"2.0\",\"id\":null,\"error\":{\"code\":-32700,\"message\":\"x\"}}");
	is(RPC_NOTIFICATION, "{\"jsonrpc\":\"2.0\",\"method\":\"streams.emit\",\"params\":{}}");
	is(RPC_NOTIFICATION, "{\"jsonrpc\":\"2.0\",\"method\":\"log\"}");
	is(RPC_NOTIFICATION, "{\"jsonrpc\":\"2.0\",\"method\":\"log\",\"params\":[],\"paperclipInvocationId\":\"i\"}");

	/* an answer, but none that says anything */
	is(RPC_MALFORMED, "{\"jsonrpc\":\"2.0\",\"id\":\"call-1\"}");
	is(RPC_MALFORMED, "{\"jsonrpc\":\"1.0\",\"id\":\"call-1\",\"result\":{}}");
	is(RPC_MALFORMED, "{\"id\":\"call-1\",\"result\":{}}");
	is(RPC_MALFORMED, "{\"jsonrpc\":\"2.0\",\"id\":\"call-1\",\"result\":{},\"error\":{\"code\":1,\"message\":\"x\"}}");
	is(RPC_MALFORMED, "{\"jsonrpc\":\"2.0\",\"id\":\"call-1\",\"error\":{\"code\":\"1\",\"message\":\"x\"}}");
	is(RPC_MALFORMED, "{\"jsonrpc\":\"2.0\",\"id\":\"call-1\",\"method\":\"ask\",\"params\":{}}");

	/* not for us */
	is(RPC_NOISE, "{\"jsonrpc\":\"2.0\",\"id\":\"call-2\",\"result\":{}}");
	is(RPC_NOISE, "{\"jsonrpc\":\"2.0\",\"id\":\"call-1\\u0000\",\"result\":{}}");
	is(RPC_NOISE, "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}");
	is(RPC_NOISE, "{\"jsonrpc\":\"2.0\",\"result\":{}}");
	is(RPC_NOISE, "{\"jsonrpc\":\"2.0\",\"id\":\"call-2\",\"error\":{\"code\":1,\"message\":\"x\"}}");
	is(RPC_NOISE, "{\"jsonrpc\":\"2.0\",\"id\":\"worker-7\",\"method\":\"config.get\",\"params\":{}}");
	is(RPC_NOISE, "{\"jsonrpc\":\"2.0\",\"method\":7}");
	is(RPC_NOISE, "{}");
	is(RPC_NOISE, "[]");
	is(RPC_NOISE, "null");
	is(RPC_NOISE, "");
	is(RPC_NOISE, "Listening on port 8080");
	is(RPC_NOISE, "{\"jsonrpc\":\"2.0\",\"id\":\"call-1\",\"result\":{}");
	is(RPC_NOISE, "{\"jsonrpc\":\"2.0\",\"id\":\"call-1\",\"result\":{\"a\":1,\"a\":2}}");
	is(RPC_NOISE, "{\"jsonrpc\":\"2.0\",\"method\":\"streams.emit\",\"params\":{\"a\":\"\xff\"}}");
}

/* --- Text that no JSON parser takes, or only just ----------------------------- */

/* The result is a text; inside: between its quotes. */
static void
text(const char *inside, const char *expected, size_t length)
{
	char		body[1000];
	RpcAnswer	answer;

	snprintf(body, sizeof(body), "{\"jsonrpc\":\"2.0\",\"id\":\"call-1\",\"result\":\"%s\"}", inside);
	parse(body, strlen(body), &answer);
	ok(answer.kind == RPC_RESULT && json_string_length(answer.result) == length &&
	   memcmp(json_string_value(answer.result), expected, length) == 0, "the text %s", inside);
	rpc_free_answer(&answer);
}

#define TEXT(inside, expected) text(inside, expected, sizeof(expected) - 1)
#define BAD	"\xef\xbf\xbd"

static void
test_texts(void)
{
	TEXT("a\\u0000b", "a\0b");
	TEXT("\\ud83d\\ude00", "\xf0\x9f\x98\x80");
	TEXT("\\uD83D\\uDE00", "\xf0\x9f\x98\x80");
	TEXT("\\u00e9\\\\ud83d", "\xc3\xa9\\ud83d");
	TEXT("\\\\\\ud83d", "\\" BAD);
	TEXT("\\ud83d", BAD);
	TEXT("\\ude00", BAD);
	TEXT("a\\ud83db", "a" BAD "b");
	TEXT("\\ud83d\\n", BAD "\n");
	TEXT("\\ud83d\\u0041", BAD "A");
	TEXT("\\ud83d\\ud83d\\ude00", BAD "\xf0\x9f\x98\x80");
	TEXT("\\ude00\\ud83d", BAD BAD);
	TEXT("\\ud83d\\ude00\\ude00", "\xf0\x9f\x98\x80" BAD);
	TEXT("\\udbff\\udfff\\ud800\\udc00", "\xf4\x8f\xbf\xbf\xf0\x90\x80\x80");
	TEXT("\\ud7ff\\ue000", "\xed\x9f\xbf\xee\x80\x80");

	/* cut off anywhere */
	for (const char *begin = "\"\\ud83d\\ude00"; *begin; begin++)
	{
		for (size_t length = 0; length <= strlen(begin); length++)
		{
			char	   *body = malloc(length ? length : 1);

			memcpy(body, begin, length);
			replace_half_pairs(body, length);
			free(body);
		}
	}
	ok(true, "whatever is cut off, nothing behind it is touched");
}

/* --- How a command ended ------------------------------------------------------ */

#define ENDED	"\"timedOut\":false,\"stdout\":\"\",\"stderr\":\"\""

static void
ended(const char *json, bool has_exit_code, int exit_code, const char *signal, bool timed_out, bool streamed)
{
	json_t	   *result = json_loads(json, 0, NULL);
	RpcExecution execution;
	char		problem[RPC_TEXT_SIZE];

	ok(rpc_read_execution(result, &execution, problem) && execution.has_exit_code == has_exit_code &&
	   (!has_exit_code || execution.exit_code == exit_code) && (signal == NULL) == (execution.signal == NULL) &&
	   (signal == NULL || strcmp(signal, execution.signal) == 0) && execution.timed_out == timed_out &&
	   execution.streamed == streamed, "an end: %s", json);
	json_decref(result);
}

static void
no_end(const char *json)
{
	json_t	   *result = json_loads(json, JSON_DECODE_ANY, NULL);
	RpcExecution execution;
	char		problem[RPC_TEXT_SIZE] = "";

	ok(!rpc_read_execution(result, &execution, problem) && problem[0] != '\0', "no end: %s", json);
	json_decref(result);
}

static void
test_ends(void)
{
	json_t	   *result;
	RpcExecution execution;
	char		problem[RPC_TEXT_SIZE];

	ended("{\"exitCode\":0," ENDED "}", true, 0, NULL, false, false);
	ended("{\"exitCode\":-1," ENDED ",\"signal\":null,\"metadata\":{\"a\":1}}", true, -1, NULL, false, false);
	ended("{\"exitCode\":2147483647," ENDED ",\"streamed\":false}", true, INT32_MAX, NULL, false, false);
	ended("{\"exitCode\":-2147483648," ENDED ",\"streamed\":null}", true, INT32_MIN, NULL, false, false);
	ended("{\"exitCode\":null," ENDED ",\"signal\":\"SIGKILL\",\"streamed\":true}", false, 0, "SIGKILL", false, true);
	ended("{\"exitCode\":137," ENDED ",\"signal\":\"SIGKILL\"}", true, 137, "SIGKILL", false, false);
	ended("{\"exitCode\":null," ENDED ",\"signal\":\"\"}", false, 0, NULL, false, false);
	ended("{\"exitCode\":null,\"timedOut\":true,\"stdout\":\"\",\"stderr\":\"\"}", false, 0, NULL, true, false);
	ended("{\"exitCode\":null," ENDED ",\"signal\":\"1234567890123456789012345678901\"}", false, 0,
		  "1234567890123456789012345678901", false, false);

	no_end("null");
	no_end("[]");
	no_end("\"done\"");
	no_end("{}");
	no_end("{" ENDED "}");
	no_end("{\"exitCode\":0.0," ENDED "}");
	no_end("{\"exitCode\":\"0\"," ENDED "}");
	no_end("{\"exitCode\":true," ENDED "}");
	no_end("{\"exitCode\":2147483648," ENDED "}");
	no_end("{\"exitCode\":-2147483649," ENDED "}");
	no_end("{\"exitCode\":0," ENDED ",\"signal\":9}");
	no_end("{\"exitCode\":0," ENDED ",\"signal\":\"12345678901234567890123456789012\"}");
	no_end("{\"exitCode\":0," ENDED ",\"streamed\":\"yes\"}");
	no_end("{\"exitCode\":0,\"timedOut\":null,\"stdout\":\"\",\"stderr\":\"\"}");
	no_end("{\"exitCode\":0,\"timedOut\":0,\"stdout\":\"\",\"stderr\":\"\"}");
	no_end("{\"exitCode\":0,\"stdout\":\"\",\"stderr\":\"\"}");
	no_end("{\"exitCode\":0,\"timedOut\":false,\"stderr\":\"\"}");
	no_end("{\"exitCode\":0,\"timedOut\":false,\"stdout\":\"\"}");
	no_end("{\"exitCode\":0,\"timedOut\":false,\"stdout\":null,\"stderr\":\"\"}");
	no_end("{\"exitCode\":0,\"timedOut\":false,\"stdout\":\"\",\"stderr\":[]}");

	result = json_loads("{\"exitCode\":0,\"timedOut\":false,\"stdout\":\"a\\u0000b\",\"stderr\":\"\\u00e9\"}", JSON_ALLOW_NUL, NULL);
	ok(rpc_read_execution(result, &execution, problem) &&
	   execution.length[RPC_STDOUT] == 3 && memcmp(execution.output[RPC_STDOUT], "a\0b", 3) == 0 &&
	   execution.length[RPC_STDERR] == 2 && memcmp(execution.output[RPC_STDERR], "\xc3\xa9", 2) == 0,
	   "an end has output");
	json_decref(result);
}

/* --- Output ------------------------------------------------------------------- */

#define EMIT(channel, company, event) \
	"{\"jsonrpc\":\"2.0\",\"method\":\"streams.emit\",\"params\":{\"channel\":" channel ",\"companyId\":" company \
	",\"event\":" event "}}"
#define OURS(event) EMIT("\"env-exec-output:" COMMAND "\"", "\"" COMPANY "\"", event)
#define LOG(params) "{\"jsonrpc\":\"2.0\",\"method\":\"execute.log\",\"params\":" params "}"
#define OUT(text) "{\"stream\":\"stdout\",\"text\":\"" text "\"}"

static bool
read_chunk(const char *body, const RpcScope *whose, RpcStream stream, const char *data, size_t length, bool base64)
{
	RpcAnswer	answer;
	RpcChunk	chunk;
	bool		good;

	parse(body, strlen(body), &answer);
	good = answer.kind == RPC_NOTIFICATION && rpc_read_chunk(&answer, whose, &chunk) &&
		chunk.stream == stream && chunk.length == length && memcmp(chunk.data, data, length) == 0 &&
		chunk.base64 == base64;
	rpc_free_answer(&answer);
	return good;
}

static void
chunk(const char *body, RpcStream stream, const char *data, bool base64)
{
	ok(read_chunk(body, &scope, stream, data, strlen(data), base64), "output: %s", body);
}

static void
no_chunk_for(const RpcScope *whose, const char *body)
{
	RpcAnswer	answer;
	RpcChunk	chunk;

	parse(body, strlen(body), &answer);
	ok(answer.kind == RPC_NOTIFICATION && !rpc_read_chunk(&answer, whose, &chunk), "no output: %s", body);
	rpc_free_answer(&answer);
}

static void
no_chunk(const char *body)
{
	no_chunk_for(&scope, body);
}

static void
test_chunks(void)
{
	static const RpcScope no_run = {.company = COMPANY,.command = COMMAND};

	chunk(OURS(OUT("a")), RPC_STDOUT, "a", false);
	chunk(OURS(OUT("")), RPC_STDOUT, "", false);
	chunk(OURS("{\"stream\":\"stderr\",\"text\":\"a\\n\",\"more\":1}"), RPC_STDERR, "a\n", false);
	chunk(OURS("{\"stream\":\"stdout\",\"dataBase64\":\"YQ==\"}"), RPC_STDOUT, "YQ==", true);
	chunk(EMIT("\"env-exec-output:" RUN "\"", "\"" COMPANY "\"", OUT("a")), RPC_STDOUT, "a", false);
	chunk(LOG("{\"stream\":\"stdout\",\"chunk\":\"a\"}"), RPC_STDOUT, "a", false);
	chunk(LOG("{\"stream\":\"stderr\",\"chunk\":\"a\"}"), RPC_STDERR, "a", false);
	ok(read_chunk(OURS(OUT("a\\u0000b")), &scope, RPC_STDOUT, "a\0b", 3, false), "output with a NUL character");

	/* somebody else's */
	no_chunk(EMIT("\"env-exec-output:" COMMAND "\"", "\"" RUN "\"", OUT("a")));
	no_chunk(EMIT("\"env-exec-output:" COMMAND "\"", "\"\"", OUT("a")));
	no_chunk(EMIT("\"env-exec-output:" COMMAND "\"", "null", OUT("a")));
	no_chunk(EMIT("\"env-exec-output:" COMPANY "\"", "\"" COMPANY "\"", OUT("a")));
	no_chunk(EMIT("\"env-exec-output:\"", "\"" COMPANY "\"", OUT("a")));
	no_chunk(EMIT("\"env-exec-output:" COMMAND "x\"", "\"" COMPANY "\"", OUT("a")));
	no_chunk(EMIT("\"" COMMAND "\"", "\"" COMPANY "\"", OUT("a")));
	no_chunk(EMIT("\"progress\"", "\"" COMPANY "\"", OUT("a")));
	no_chunk(EMIT("7", "\"" COMPANY "\"", OUT("a")));
	no_chunk_for(&no_run, EMIT("\"env-exec-output:" RUN "\"", "\"" COMPANY "\"", OUT("a")));
	no_chunk_for(&no_run, EMIT("\"env-exec-output:\"", "\"" COMPANY "\"", OUT("a")));
	no_chunk_for(&no_run, EMIT("\"env-exec-output:null\"", "\"" COMPANY "\"", OUT("a")));

	/* of another shape */
	no_chunk(OURS("null"));
	no_chunk(OURS("[]"));
	no_chunk(OURS("\"a\""));
	no_chunk(OURS("{}"));
	no_chunk(OURS("{\"stream\":\"stdout\"}"));
	no_chunk(OURS("{\"text\":\"a\"}"));
	no_chunk(OURS("{\"stream\":\"stdin\",\"text\":\"a\"}"));
	no_chunk(OURS("{\"stream\":\"notice\",\"text\":\"a\"}"));
	no_chunk(OURS("{\"stream\":1,\"text\":\"a\"}"));
	no_chunk(OURS("{\"stream\":\"stdout\",\"text\":1}"));
	no_chunk(OURS("{\"stream\":\"stdout\",\"text\":null}"));
	no_chunk(OURS("{\"stream\":\"stdout\",\"chunk\":\"a\"}"));
	no_chunk(OURS("{\"stream\":\"stdout\",\"dataBase64\":[]}"));
	no_chunk(OURS("{\"stream\":\"stdout\",\"text\":\"a\",\"dataBase64\":\"YQ==\"}"));
	no_chunk(LOG("{\"stream\":\"stdout\",\"text\":\"a\"}"));
	no_chunk(LOG("[]"));
	no_chunk("{\"jsonrpc\":\"2.0\",\"method\":\"execute.log\"}");
	no_chunk("{\"jsonrpc\":\"2.0\",\"method\":\"streams.emit\"}");
	no_chunk("{\"jsonrpc\":\"2.0\",\"method\":\"streams.open\",\"params\":{\"channel\":\"env-exec-output:" COMMAND
			 "\",\"companyId\":\"" COMPANY "\"}}");
	no_chunk("{\"jsonrpc\":\"2.0\",\"method\":\"log\",\"params\":" OUT("a") "}");
}

/* --- Anything ----------------------------------------------------------------- */

static uint32_t seed = 1;

static uint32_t
draw(uint32_t below)
{
	seed = seed * 1664525 + 1013904223;
	return (seed >> 8) % below;
}

/* Good messages, spoiled: whatever comes of it, nothing is read or written that is not there. */
static void
test_spoiled(void)
{
	static const char *const bodies[] = {
		OURS(OUT("a\\ud83d\\ude00b\\u0000")),
		OURS("{\"stream\":\"stdout\",\"dataBase64\":\"YQ==\"}"),
		LOG("{\"stream\":\"stderr\",\"chunk\":\"a\"}"),
		"{\"jsonrpc\":\"2.0\",\"id\":\"call-1\",\"result\":{\"exitCode\":null," ENDED ",\"signal\":\"SIGKILL\"}}",
		"{\"jsonrpc\":\"2.0\",\"id\":\"call-1\",\"error\":{\"code\":-32002,\"message\":\"\\udead\"}}",
	};
	int			read = 0;

	for (int round = 0; round < 50000; round++)
	{
		const char *good = bodies[draw(sizeof(bodies) / sizeof(bodies[0]))];
		size_t		length = strlen(good);
		char	   *body = malloc(length);
		RpcAnswer	answer;
		RpcChunk	chunk;
		RpcExecution execution;

		memcpy(body, good, length);
		for (uint32_t i = draw(4); i > 0; i--)
			body[draw(length)] = "{}[]\":,\\u0d8nt \xff"[draw(16)];
		if (draw(4) == 0)
			length = draw(length);
		rpc_parse_message(body, length, ID, NULL, &answer);
		/* as http_plugin.c does, the body is not needed any more */
		free(body);
		if (answer.kind == RPC_NOTIFICATION)
			read += rpc_read_chunk(&answer, &scope, &chunk) && strlen(chunk.data) <= chunk.length;
		else if (answer.kind == RPC_RESULT)
			read += rpc_read_execution(answer.result, &execution, answer.text);
		rpc_free_answer(&answer);
	}
	ok(read > 1000, "50000 messages that may be spoiled");
}

int
main(void)
{
	test_kinds();
	test_texts();
	test_ends();
	test_chunks();
	test_spoiled();
	return tap_done();
}
