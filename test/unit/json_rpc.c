/*
 * json_rpc.c
 *		Answers from the network, against JSON-RPC 2.0, RFC 8259 and the caps in
 *		json_rpc.h.
 */
#include "../../worker/http_date.c"
#include "../../worker/json_rpc.c"

#include "tap.h"

#define ID		"call-1"
#define SECRET	"s3cret-token"
#define GOOD	"{\"jsonrpc\":\"2.0\",\"id\":\"call-1\",\"result\":"

/* The body is copied to its exact size, so that reading on is found out. */
static void
parse(const char *body, size_t length, RpcAnswer *answer)
{
	char	   *copy = malloc(length ? length : 1);

	memcpy(copy, body, length);
	rpc_parse_answer(copy, length, ID, SECRET, answer);
	free(copy);
}

static void
answers(const char *body, size_t length, RpcKind kind, const char *name)
{
	RpcAnswer	answer;

	parse(body, length, &answer);
	ok(answer.kind == kind && (kind == RPC_MALFORMED) == (answer.text[0] != '\0' && kind != RPC_ERROR),
	   "%s", name);
	if (answer.kind != kind)
		printf("# kind %d, %s\n", answer.kind, answer.text);
	rpc_free_answer(&answer);
}

static void
result(const char *body)
{
	answers(body, strlen(body), RPC_RESULT, body);
}

static void
malformed_answer(const char *body)
{
	answers(body, strlen(body), RPC_MALFORMED, body);
}

static void
error(const char *body, int code, const char *message)
{
	RpcAnswer	answer;

	parse(body, strlen(body), &answer);
	ok(answer.kind == RPC_ERROR && answer.error_code == code && strcmp(answer.text, message) == 0, "%s", body);
	rpc_free_answer(&answer);
}

static void
test_results(void)
{
	RpcAnswer	answer;

	result(GOOD "{}}");
	result(GOOD "null}");
	result(GOOD "false}");
	result(GOOD "0}");
	result(GOOD "[]}");
	result(GOOD "\"text\"}");
	answers(" \t\r\n" GOOD " {} } \r\n", strlen(" \t\r\n" GOOD " {} } \r\n"), RPC_RESULT, "spaces around everything");
	result("{\"result\":{},\"id\":\"call-1\",\"jsonrpc\":\"2.0\",\"extra\":[1]}");
	result("{\"\\u006asonrpc\":\"2.0\",\"id\":\"call\\u002d1\",\"result\":{}}");

	parse(GOOD "{\"a\":7}}", strlen(GOOD "{\"a\":7}}"), &answer);
	ok(json_integer_value(json_object_get(answer.result, "a")) == 7, "the result can be read");
	rpc_free_answer(&answer);
	ok(answer.root == NULL && answer.result == NULL, "and is given back");
	rpc_free_answer(&answer);
	ok(true, "twice is no harm");
}

static void
test_errors(void)
{
	error("{\"jsonrpc\":\"2.0\",\"id\":\"call-1\",\"error\":{\"code\":-32601,\"message\":\"no\"}}",
		  RPC_METHOD_NOT_FOUND, "no");
	error("{\"jsonrpc\":\"2.0\",\"id\":null,\"error\":{\"code\":-32700,\"message\":\"what?\"}}",
		  RPC_PARSE_ERROR, "what?");
	error("{\"jsonrpc\":\"2.0\",\"id\":\"call-1\",\"error\":{\"code\":0,\"message\":\"\",\"data\":{\"a\":1}}}", 0, "");
	error("{\"jsonrpc\":\"2.0\",\"id\":\"call-1\",\"error\":{\"code\":2147483647,\"message\":\"x\"}}", INT32_MAX, "x");
	error("{\"jsonrpc\":\"2.0\",\"id\":\"call-1\",\"error\":{\"code\":-2147483648,\"message\":\"x\"}}", INT32_MIN, "x");

	malformed_answer("{\"jsonrpc\":\"2.0\",\"id\":\"call-1\",\"error\":{\"code\":2147483648,\"message\":\"x\"}}");
	malformed_answer("{\"jsonrpc\":\"2.0\",\"id\":\"call-1\",\"error\":{\"code\":-2147483649,\"message\":\"x\"}}");
	malformed_answer("{\"jsonrpc\":\"2.0\",\"id\":\"call-1\",\"error\":{\"code\":4294934695,\"message\":\"x\"}}");
	malformed_answer("{\"jsonrpc\":\"2.0\",\"id\":\"call-1\",\"error\":{\"code\":-32000.0,\"message\":\"x\"}}");
	malformed_answer("{\"jsonrpc\":\"2.0\",\"id\":\"call-1\",\"error\":{\"code\":\"-32000\",\"message\":\"x\"}}");
	malformed_answer("{\"jsonrpc\":\"2.0\",\"id\":\"call-1\",\"error\":{\"message\":\"x\"}}");
	malformed_answer("{\"jsonrpc\":\"2.0\",\"id\":\"call-1\",\"error\":{\"code\":-32000}}");
	malformed_answer("{\"jsonrpc\":\"2.0\",\"id\":\"call-1\",\"error\":{\"code\":-32000,\"message\":null}}");
	malformed_answer("{\"jsonrpc\":\"2.0\",\"id\":\"call-1\",\"error\":{\"code\":-32000,\"message\":[]}}");
	malformed_answer("{\"jsonrpc\":\"2.0\",\"id\":\"call-1\",\"error\":{}}");
	malformed_answer("{\"jsonrpc\":\"2.0\",\"id\":\"call-1\",\"error\":null}");
	malformed_answer("{\"jsonrpc\":\"2.0\",\"id\":\"call-1\",\"error\":\"failed\"}");
	malformed_answer("{\"jsonrpc\":\"2.0\",\"id\":\"call-1\",\"error\":[]}");
	malformed_answer("{\"jsonrpc\":\"2.0\",\"id\":\"call-2\",\"error\":{\"code\":-32000,\"message\":\"x\"}}");
	malformed_answer("{\"jsonrpc\":\"2.0\",\"id\":1,\"error\":{\"code\":-32000,\"message\":\"x\"}}");
	malformed_answer("{\"jsonrpc\":\"2.0\",\"error\":{\"code\":-32000,\"message\":\"x\"}}");
}

static void
test_envelopes(void)
{
	malformed_answer("{\"jsonrpc\":\"2.0\",\"id\":\"call-1\"}");
	malformed_answer("{\"jsonrpc\":\"2.0\",\"id\":\"call-1\",\"method\":\"log\",\"params\":{}}");
	malformed_answer(GOOD "{},\"error\":{\"code\":1,\"message\":\"x\"}}");
	malformed_answer(GOOD "{},\"error\":null}");
	malformed_answer(GOOD "null,\"error\":{\"code\":1,\"message\":\"x\"}}");

	malformed_answer("{\"jsonrpc\":\"2.0\",\"id\":\"call-2\",\"result\":{}}");
	malformed_answer("{\"jsonrpc\":\"2.0\",\"id\":\"call-1 \",\"result\":{}}");
	malformed_answer("{\"jsonrpc\":\"2.0\",\"id\":\"CALL-1\",\"result\":{}}");
	malformed_answer("{\"jsonrpc\":\"2.0\",\"id\":\"\",\"result\":{}}");
	malformed_answer("{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}");
	malformed_answer("{\"jsonrpc\":\"2.0\",\"id\":null,\"result\":{}}");
	malformed_answer("{\"jsonrpc\":\"2.0\",\"id\":[\"call-1\"],\"result\":{}}");
	malformed_answer("{\"jsonrpc\":\"2.0\",\"result\":{}}");

	malformed_answer("{\"jsonrpc\":\"1.0\",\"id\":\"call-1\",\"result\":{}}");
	malformed_answer("{\"jsonrpc\":\"2\",\"id\":\"call-1\",\"result\":{}}");
	malformed_answer("{\"jsonrpc\":2.0,\"id\":\"call-1\",\"result\":{}}");
	malformed_answer("{\"jsonrpc\":null,\"id\":\"call-1\",\"result\":{}}");
	malformed_answer("{\"id\":\"call-1\",\"result\":{}}");

	malformed_answer("null");
	malformed_answer("true");
	malformed_answer("7");
	malformed_answer("\"text\"");
	malformed_answer("{}");
	malformed_answer("[]");
	malformed_answer("[" GOOD "{}}]");
}

static void
test_json(void)
{
	malformed_answer("");
	malformed_answer(" ");
	malformed_answer("<html></html>");
	malformed_answer(GOOD "{}");
	malformed_answer(GOOD "{}}x");
	malformed_answer(GOOD "{}}}");
	malformed_answer(GOOD "{}}" GOOD "{}}");
	malformed_answer(GOOD "{},}");
	malformed_answer(GOOD "{'a':1}}");
	malformed_answer(GOOD "NaN}");
	malformed_answer(GOOD "1e999}");
	malformed_answer(GOOD "9223372036854775808}");
	malformed_answer(GOOD "01}");
	malformed_answer(GOOD "/* comment */{}}");
	malformed_answer("\xef\xbb\xbf" GOOD "{}}");

	/* members twice, the same by another spelling, at any depth */
	malformed_answer(GOOD "{},\"result\":{}}");
	malformed_answer("{\"jsonrpc\":\"2.0\",\"id\":\"call-1\",\"id\":\"call-1\",\"result\":{}}");
	malformed_answer("{\"jsonrpc\":\"2.0\",\"id\":\"call-1\",\"\\u0069d\":\"call-1\",\"result\":{}}");
	malformed_answer(GOOD "{\"a\":{\"b\":1,\"b\":1}}}");
	malformed_answer(GOOD "[{\"b\":1,\"b\":1}]}");

	/* NUL, by itself and as an escape, in values and names */
	answers(GOOD "{}}\0", sizeof(GOOD "{}}"), RPC_MALFORMED, "a NUL byte after the answer");
	answers("\0", 1, RPC_MALFORMED, "a NUL byte alone");
	answers(GOOD "\"a\0b\"}", sizeof(GOOD "\"a\0b\"}") - 1, RPC_MALFORMED, "a NUL byte in a text");
	malformed_answer(GOOD "\"a\\u0000b\"}");
	malformed_answer(GOOD "{\"a\\u0000b\":1}}");
	malformed_answer("{\"jsonrpc\":\"2.0\",\"id\":\"call-1\\u0000\",\"result\":{}}");
	answers(GOOD "\"a\nb\"}", strlen(GOOD "\"a\nb\"}"), RPC_MALFORMED, "a line's end in a text");

	/* UTF-8: alone, overlong, surrogates, beyond Unicode, cut off */
	answers(GOOD "\"\xc3\xa9\xf0\x9f\x98\x80\"}", strlen(GOOD "\"\xc3\xa9\xf0\x9f\x98\x80\"}"), RPC_RESULT, "valid UTF-8");
	answers(GOOD "\"\xff\"}", strlen(GOOD "\"\xff\"}"), RPC_MALFORMED, "a byte that is never in UTF-8");
	answers(GOOD "\"\x80\"}", strlen(GOOD "\"\x80\"}"), RPC_MALFORMED, "a continuation alone");
	answers(GOOD "\"\xc0\xaf\"}", strlen(GOOD "\"\xc0\xaf\"}"), RPC_MALFORMED, "an overlong slash");
	answers(GOOD "\"\xe0\x80\x80\"}", strlen(GOOD "\"\xe0\x80\x80\"}"), RPC_MALFORMED, "an overlong NUL");
	answers(GOOD "\"\xed\xa0\x80\"}", strlen(GOOD "\"\xed\xa0\x80\"}"), RPC_MALFORMED, "a surrogate");
	answers(GOOD "\"\xf4\x90\x80\x80\"}", strlen(GOOD "\"\xf4\x90\x80\x80\"}"), RPC_MALFORMED, "beyond Unicode");
	answers(GOOD "\"\xc3\"}", strlen(GOOD "\"\xc3\"}"), RPC_MALFORMED, "a character cut off");
	answers(GOOD "{\"\xff\":1}}", strlen(GOOD "{\"\xff\":1}}"), RPC_MALFORMED, "invalid UTF-8 in a name");
	malformed_answer(GOOD "\"\\ud800\"}");
	malformed_answer(GOOD "\"\\udc00\\ud800\"}");
}

/* An answer whose arrays or objects are nested so deep, the envelope included. */
static void
nested(int depth, bool objects, RpcKind kind)
{
	char	   *body = malloc(sizeof(GOOD) + depth * 6);
	char	   *end = body + sprintf(body, "%s", GOOD);
	char		name[64];

	for (int i = 1; i < depth; i++)
		end += sprintf(end, objects ? "{\"a\":" : "[");
	if (objects)
		end += sprintf(end, "1");
	for (int i = 1; i < depth; i++)
		*end++ = objects ? '}' : ']';
	*end++ = '}';
	snprintf(name, sizeof(name), "%d %s in each other", depth, objects ? "objects" : "arrays");
	answers(body, end - body, kind, name);
	free(body);
}

static void
test_depth(void)
{
	char		body[1024];
	char	   *bomb = malloc(1000000);

	nested(RPC_MAX_DEPTH, false, RPC_RESULT);
	nested(RPC_MAX_DEPTH + 1, false, RPC_MALFORMED);
	nested(RPC_MAX_DEPTH, true, RPC_RESULT);
	nested(RPC_MAX_DEPTH + 1, true, RPC_MALFORMED);

	snprintf(body, sizeof(body), GOOD "[%.*s{}]}", 240,
			 "[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],"
			 "[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],[],");
	result(body);
	snprintf(body, sizeof(body), GOOD "\"%0100d\\\"%s\"}", 0,
			 "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[");
	answers(body, strlen(body), RPC_RESULT, "brackets in a text do not count");
	snprintf(body, sizeof(body), GOOD "[\"\\\\\",%s", "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[");
	answers(body, strlen(body), RPC_MALFORMED, "those after a text that ends in a backslash do");

	memset(bomb, '[', 1000000);
	answers(bomb, 1000000, RPC_MALFORMED, "a million brackets");
	memset(bomb, '"', 1);
	memset(bomb + 1, '\\', 999999);
	answers(bomb, 1000000, RPC_MALFORMED, "a million backslashes");
	free(bomb);
}

static void
masked(const char *message, const char *expected)
{
	char		body[2000];
	RpcAnswer	answer;

	snprintf(body, sizeof(body), "{\"jsonrpc\":\"2.0\",\"id\":\"call-1\",\"error\":{\"code\":1,\"message\":\"%s\"}}", message);
	parse(body, strlen(body), &answer);
	ok(answer.kind == RPC_ERROR && strcmp(answer.text, expected) == 0, "a message with the secret: %.60s", message);
	if (strcmp(answer.text, expected) != 0)
		printf("# %s\n", answer.text);
	rpc_free_answer(&answer);
}

static void
test_secret(void)
{
	char		message[RPC_TEXT_SIZE + 20];
	char		expected[RPC_TEXT_SIZE];

	masked(SECRET, "***");
	masked("Bearer " SECRET " is wrong", "Bearer *** is wrong");
	masked(SECRET SECRET, "******");
	masked("s3cret-toke" SECRET "s3cret-toke", "s3cret-toke***s3cret-toke");
	masked("s3\\u0063ret-token", "***");
	masked("the token", "the token");

	/* no part of it is left where the text is cut */
	for (int before = RPC_TEXT_SIZE - 1 - (int) strlen(SECRET); before < RPC_TEXT_SIZE - 1; before++)
	{
		snprintf(message, sizeof(message), "%0*d" SECRET, before, 0);
		snprintf(expected, sizeof(expected), "%0*d***", before, 0);
		masked(message, expected);
	}
}

static void
test_messages(void)
{
	char		body[2000];
	RpcAnswer	answer;

	snprintf(body, sizeof(body), "{\"jsonrpc\":\"2.0\",\"id\":\"call-1\",\"error\":{\"code\":1,\"message\":\"%0999d\"}}", 0);
	parse(body, strlen(body), &answer);
	ok(answer.kind == RPC_ERROR && strlen(answer.text) == RPC_TEXT_SIZE - 1, "a long message is cut");
	rpc_free_answer(&answer);
}

/* --- Leases -------------------------------------------------------------- */

static bool
read_lease(const char *text, RpcLease *lease, json_t **parsed, char *problem)
{
	problem[0] = '\0';
	*parsed = json_loads(text, JSON_DECODE_ANY, NULL);
	return rpc_read_lease(*parsed, lease, problem);
}

static void
good_lease(const char *text, const char *id, const char *metadata, bool has_expiry, int64_t expires_at)
{
	RpcLease	lease;
	json_t	   *parsed;
	char		problem[RPC_TEXT_SIZE];
	bool		read = read_lease(text, &lease, &parsed, problem);

	ok(read && (id == NULL) == (lease.provider_lease_id == NULL) &&
	   (id == NULL || strcmp(lease.provider_lease_id, id) == 0) &&
	   (metadata == NULL) == (lease.metadata == NULL) &&
	   (metadata == NULL || strcmp(lease.metadata, metadata) == 0) &&
	   lease.has_expiry == has_expiry && (!has_expiry || lease.expires_at == expires_at), "a lease: %s", text);
	if (read)
		free(lease.metadata);
	json_decref(parsed);
}

static void
bad_lease(const char *text)
{
	RpcLease	lease;
	json_t	   *parsed;
	char		problem[RPC_TEXT_SIZE];

	ok(!read_lease(text, &lease, &parsed, problem) && problem[0] != '\0' && lease.metadata == NULL,
	   "no lease: %.60s", text);
	json_decref(parsed);
}

static void
test_leases(void)
{
	good_lease("{\"providerLeaseId\":\"a\"}", "a", NULL, false, 0);
	good_lease("{\"providerLeaseId\":null}", NULL, NULL, false, 0);
	good_lease("{\"providerLeaseId\":\"a\",\"metadata\":null,\"expiresAt\":null}", "a", NULL, false, 0);
	good_lease("{\"providerLeaseId\":\"a\",\"metadata\":{}}", "a", "{}", false, 0);
	good_lease("{\"providerLeaseId\":\"a\",\"metadata\":{\"b\": [1, null, \"\\u00e9\"]}}", "a",
			   "{\"b\":[1,null,\"\xc3\xa9\"]}", false, 0);
	good_lease("{\"providerLeaseId\":\"a\",\"expiresAt\":\"1970-01-01T00:00:01.5Z\"}", "a", NULL, true, 1500000);
	good_lease("{\"providerLeaseId\":\"a\",\"other\":{\"x\":[]}}", "a", NULL, false, 0);

	/* an expiry that is no time counts as absent */
	good_lease("{\"providerLeaseId\":\"a\",\"expiresAt\":\"soon\"}", "a", NULL, false, 0);
	good_lease("{\"providerLeaseId\":\"a\",\"expiresAt\":\"\"}", "a", NULL, false, 0);
	good_lease("{\"providerLeaseId\":\"a\",\"expiresAt\":\"0001-01-01T00:00:00Z\"}", "a", NULL, false, 0);
	good_lease("{\"providerLeaseId\":\"a\",\"expiresAt\":1767225600}", "a", NULL, false, 0);
	good_lease("{\"providerLeaseId\":\"a\",\"expiresAt\":{}}", "a", NULL, false, 0);

	bad_lease("null");
	bad_lease("[]");
	bad_lease("\"a\"");
	bad_lease("1");
	bad_lease("{}");
	bad_lease("{\"providerleaseid\":\"a\"}");
	bad_lease("{\"providerLeaseId\":\"\"}");
	bad_lease("{\"providerLeaseId\":1}");
	bad_lease("{\"providerLeaseId\":[\"a\"]}");
	bad_lease("{\"providerLeaseId\":false}");
	bad_lease("{\"providerLeaseId\":\"a\",\"metadata\":[]}");
	bad_lease("{\"providerLeaseId\":\"a\",\"metadata\":\"{}\"}");
	bad_lease("{\"providerLeaseId\":\"a\",\"metadata\":0}");
}

/* The result with an id and metadata of these sizes in bytes. */
static void
sized_lease(int id_bytes, int metadata_bytes, bool good)
{
	char	   *id = calloc(id_bytes + 1, 1);
	char	   *filling = calloc(metadata_bytes + 1, 1);
	json_t	   *parsed;
	RpcLease	lease;
	char		problem[RPC_TEXT_SIZE] = "";
	bool		read;

	memset(id, 'i', id_bytes);
	memset(filling, 'm', metadata_bytes - strlen("{\"a\":\"\"}"));
	parsed = json_pack("{s:s, s:{s:s}}", "providerLeaseId", id, "metadata", "a", filling);
	read = rpc_read_lease(parsed, &lease, problem);
	ok(read == good && (good || (problem[0] != '\0' && lease.metadata == NULL)),
	   "an id of %d bytes with metadata of %d", id_bytes, metadata_bytes);
	if (read)
		free(lease.metadata);
	json_decref(parsed);
	free(filling);
	free(id);
}

static void
test_sizes(void)
{
	sized_lease(RPC_MAX_ID, 100, true);
	sized_lease(RPC_MAX_ID + 1, 100, false);
	sized_lease(100000, 100, false);
	sized_lease(1, RPC_MAX_METADATA, true);
	sized_lease(1, RPC_MAX_METADATA + 1, false);
	sized_lease(1, 10000000, false);
}

/* --- Lists --------------------------------------------------------------- */

static void
good_list(const char *text, const char *expected, const char *cursor)
{
	json_t	   *parsed = json_loads(text, JSON_DECODE_ANY, NULL);
	json_t	   *wanted = json_loads(expected, 0, NULL);
	char	   *listed;
	char	   *next;
	char		problem[RPC_TEXT_SIZE] = "";
	bool		read = rpc_read_list(parsed, &listed, &next, problem);
	json_t	   *found = read ? json_loads(listed, 0, NULL) : NULL;

	ok(read && json_equal(found, wanted) && (cursor == NULL) == (next == NULL) &&
	   (cursor == NULL || strcmp(next, cursor) == 0), "a list: %s", text);
	free(listed);
	free(next);
	json_decref(found);
	json_decref(wanted);
	json_decref(parsed);
}

static void
bad_list(const char *text)
{
	json_t	   *parsed = json_loads(text, JSON_DECODE_ANY, NULL);
	char	   *listed;
	char	   *next;
	char		problem[RPC_TEXT_SIZE] = "";

	ok(!rpc_read_list(parsed, &listed, &next, problem) && problem[0] != '\0' && listed == NULL && next == NULL,
	   "no list: %s", text);
	json_decref(parsed);
}

static void
test_lists(void)
{
	char		id[RPC_MAX_ID + 2] = "";
	char		text[RPC_MAX_ID + 100];

	good_list("{\"leases\":[]}", "[]", NULL);
	good_list("{\"leases\":[],\"nextCursor\":null}", "[]", NULL);
	good_list("{\"leases\":[],\"nextCursor\":\"p2\"}", "[]", "p2");
	good_list("{\"leases\":[{\"providerLeaseId\":\"a\"}]}",
			  "[{\"providerLeaseId\":\"a\",\"leaseId\":null,\"companyId\":null,\"installationId\":null,\"generation\":0}]", NULL);
	good_list("{\"leases\":[{\"providerLeaseId\":\"a\",\"leaseId\":\"l\",\"companyId\":\"c\",\"installationId\":\"i\","
			  "\"generation\":3,\"x\":{}},"
			  "{\"providerLeaseId\":\"b\",\"leaseId\":null,\"companyId\":null,\"installationId\":null,\"generation\":2147483647}]}",
			  "[{\"providerLeaseId\":\"a\",\"leaseId\":\"l\",\"companyId\":\"c\",\"installationId\":\"i\",\"generation\":3},"
			  "{\"providerLeaseId\":\"b\",\"leaseId\":null,\"companyId\":null,\"installationId\":null,\"generation\":2147483647}]", NULL);

	bad_list("null");
	bad_list("[]");
	bad_list("{}");
	bad_list("{\"leases\":null}");
	bad_list("{\"leases\":{}}");
	bad_list("{\"leases\":[],\"nextCursor\":2}");
	bad_list("{\"leases\":[],\"nextCursor\":{}}");
	bad_list("{\"leases\":[null]}");
	bad_list("{\"leases\":[\"a\"]}");
	bad_list("{\"leases\":[[]]}");
	bad_list("{\"leases\":[{}]}");
	bad_list("{\"leases\":[{\"providerLeaseId\":null}]}");
	bad_list("{\"leases\":[{\"providerLeaseId\":\"\"}]}");
	bad_list("{\"leases\":[{\"providerLeaseId\":1}]}");
	bad_list("{\"leases\":[{\"providerLeaseId\":\"a\",\"leaseId\":1}]}");
	bad_list("{\"leases\":[{\"providerLeaseId\":\"a\",\"companyId\":[]}]}");
	bad_list("{\"leases\":[{\"providerLeaseId\":\"a\",\"installationId\":7}]}");
	bad_list("{\"leases\":[{\"providerLeaseId\":\"a\",\"generation\":-1}]}");
	bad_list("{\"leases\":[{\"providerLeaseId\":\"a\",\"generation\":2147483648}]}");
	bad_list("{\"leases\":[{\"providerLeaseId\":\"a\"},{\"leaseId\":\"l\"}],\"nextCursor\":\"p2\"}");

	memset(id, 'i', RPC_MAX_ID + 1);
	snprintf(text, sizeof(text), "{\"leases\":[{\"providerLeaseId\":\"%s\"}]}", id);
	bad_list(text);
	id[RPC_MAX_ID] = '\0';
	snprintf(text, sizeof(text), "{\"leases\":[{\"providerLeaseId\":\"%s\"}]}", id);
	{
		json_t	   *parsed = json_loads(text, 0, NULL);
		char	   *listed;
		char	   *next;
		char		problem[RPC_TEXT_SIZE];

		ok(rpc_read_list(parsed, &listed, &next, problem), "an id of %d bytes in a list", RPC_MAX_ID);
		free(listed);
		json_decref(parsed);
	}
}

int
main(void)
{
	test_results();
	test_errors();
	test_envelopes();
	test_json();
	test_depth();
	test_messages();
	test_secret();
	test_leases();
	test_sizes();
	test_lists();
	return tap_done();
}
