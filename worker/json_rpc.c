/*
 * json_rpc.c
 *		Reads JSON-RPC answers: see json_rpc.h for what is guaranteed.
 */
#include "json_rpc.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "http_date.h"

static bool load(const char *body, size_t length, size_t flags, RpcAnswer *answer);
static void judge(RpcAnswer *answer, const char *id, const char *secret);
static void judge_error(RpcAnswer *answer, const json_t *error, const char *id, const char *secret);
static bool is_text(const json_t *value, const char *text);
static void replace_half_pairs(char *body, size_t length);
static int	escaped_unit(const char *body, size_t length);
static bool too_deep(const char *body, size_t length);
static void malformed(RpcAnswer *answer, const char *text);
static bool dump_metadata(const json_t *object, char **dumped, char *text);
static void copy_text(char *to, const char *from);
static void copy_masked(char *to, const char *from, const char *secret);

void
rpc_parse_answer(const char *body, size_t length, const char *id, const char *secret, RpcAnswer *answer)
{
	if (load(body, length, 0, answer))
		judge(answer, id, secret);
}

void
rpc_parse_message(char *body, size_t length, const char *id, const char *secret, RpcAnswer *answer)
{
	json_t	   *method;

	replace_half_pairs(body, length);
	if (!load(body, length, JSON_ALLOW_NUL, answer))
	{
		answer->kind = RPC_NOISE;
		return;
	}
	method = json_object_get(answer->root, "method");
	if (json_is_string(method) && json_object_get(answer->root, "id") == NULL)
	{
		answer->kind = RPC_NOTIFICATION;
		answer->method = json_string_value(method);
		answer->params = json_object_get(answer->root, "params");
		return;
	}
	judge(answer, id, secret);
	if (answer->kind == RPC_MALFORMED && !is_text(json_object_get(answer->root, "id"), id))
		answer->kind = RPC_NOISE;
}

/* False, with a malformed answer, if it is no JSON object. */
static bool
load(const char *body, size_t length, size_t flags, RpcAnswer *answer)
{
	json_error_t error;

	memset(answer, 0, sizeof(*answer));
	if (length == 0)
		malformed(answer, "the answer is empty");
	else if (too_deep(body, length))
		malformed(answer, "the answer is nested too deeply");
	else if ((answer->root = json_loadb(body, length, JSON_REJECT_DUPLICATES | flags, &error)) == NULL)
		malformed(answer, "the answer is not valid JSON");
	else if (!json_is_object(answer->root))
		malformed(answer, "the answer is not a JSON-RPC object");
	else
		return true;
	return false;
}

static void
judge(RpcAnswer *answer, const char *id, const char *secret)
{
	json_t	   *error = json_object_get(answer->root, "error");

	answer->result = json_object_get(answer->root, "result");
	if (!is_text(json_object_get(answer->root, "jsonrpc"), "2.0"))
		malformed(answer, "the answer is not JSON-RPC 2.0");
	else if (answer->result != NULL && error != NULL)
		malformed(answer, "the answer has both a result and an error");
	else if (answer->result == NULL && error == NULL)
		malformed(answer, "the answer has neither a result nor an error");
	else if (error != NULL)
		judge_error(answer, error, id, secret);
	else if (!is_text(json_object_get(answer->root, "id"), id))
		malformed(answer, "the answer is to another request");
	else
		answer->kind = RPC_RESULT;
}

static void
judge_error(RpcAnswer *answer, const json_t *error, const char *id, const char *secret)
{
	json_t	   *answer_id = json_object_get(answer->root, "id");
	json_t	   *code = json_object_get(error, "code");
	json_t	   *message = json_object_get(error, "message");

	/* who could not read the request cannot repeat its id */
	if (!json_is_object(error) || !json_is_integer(code) || !json_is_string(message) ||
		json_integer_value(code) < INT32_MIN || json_integer_value(code) > INT32_MAX ||
		!(json_is_null(answer_id) || is_text(answer_id, id)))
	{
		malformed(answer, "the answer has a malformed error");
		return;
	}
	answer->kind = RPC_ERROR;
	answer->error_code = (int) json_integer_value(code);
	copy_masked(answer->text, json_string_value(message), secret);
}

static bool
is_text(const json_t *value, const char *text)
{
	return json_is_string(value) && json_string_length(value) == strlen(text) &&
		strcmp(json_string_value(value), text) == 0;
}

/*
 * JSON may escape halves of surrogate pairs, which are no characters.  As an
 * escape, U+FFFD has the same length.
 */
static void
replace_half_pairs(char *body, size_t length)
{
	static const char replacement[] = {'f', 'f', 'f', 'd'};
	size_t		at = 0;

	while (at + 1 < length)
	{
		char	   *backslash = memchr(body + at, '\\', length - at - 1);
		int			unit;

		if (backslash == NULL)
			return;
		at = backslash - body;
		unit = escaped_unit(body + at, length - at);
		if (unit < 0xD800 || unit > 0xDFFF)
			at += 2;
		else
		{
			int			next = escaped_unit(body + at + 6, length - at - 6);

			if (unit < 0xDC00 && next >= 0xDC00 && next <= 0xDFFF)
				at += 12;
			else
			{
				memcpy(body + at + 2, replacement, sizeof(replacement));
				at += 6;
			}
		}
	}
}

/* The code unit that is escaped here as \uXXXX; -1 if none is. */
static int
escaped_unit(const char *body, size_t length)
{
	int			unit = 0;

	if (length < 6 || body[0] != '\\' || body[1] != 'u')
		return -1;
	for (int i = 2; i < 6; i++)
	{
		char		c = body[i];

		if (c >= '0' && c <= '9')
			unit = unit * 16 + c - '0';
		else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
			unit = unit * 16 + (c | 0x20) - 'a' + 10;
		else
			return -1;
	}
	return unit;
}

void
rpc_free_answer(RpcAnswer *answer)
{
	json_decref(answer->root);
	answer->root = answer->result = answer->params = NULL;
	answer->method = NULL;
}

bool
rpc_read_lease(const json_t *result, RpcLease *lease, char *text)
{
	const json_t *id = json_object_get(result, "providerLeaseId");
	const json_t *metadata = json_object_get(result, "metadata");
	const json_t *expires = json_object_get(result, "expiresAt");

	memset(lease, 0, sizeof(*lease));
	if (!json_is_object(result))
		copy_text(text, "the result is not an object");
	else if (id == NULL || !(json_is_null(id) || json_is_string(id)))
		copy_text(text, "providerLeaseId is neither a text nor null");
	else if (json_is_string(id) &&
			 (json_string_length(id) == 0 || json_string_length(id) > RPC_MAX_ID))
		copy_text(text, "providerLeaseId is empty or too long");
	else if (metadata != NULL && !json_is_null(metadata) && !json_is_object(metadata))
		copy_text(text, "metadata is not an object");
	else
	{
		if (json_is_string(id))
			lease->provider_lease_id = json_string_value(id);
		if (json_is_object(metadata) && !dump_metadata(metadata, &lease->metadata, text))
			return false;
		lease->has_expiry = json_is_string(expires) &&
			rfc3339_parse(json_string_value(expires), &lease->expires_at);
		return true;
	}
	return false;
}

bool
rpc_read_workspace(const json_t *result, char **workspace, char *text)
{
	const json_t *cwd = json_object_get(result, "cwd");
	const json_t *metadata = json_object_get(result, "metadata");
	json_t	   *kept;
	bool		good;

	*workspace = NULL;
	if (!json_is_string(cwd) || json_string_value(cwd)[0] != '/' || json_string_length(cwd) > RPC_MAX_PATH)
		copy_text(text, "cwd is no absolute path");
	else if (metadata != NULL && !json_is_null(metadata) && !json_is_object(metadata))
		copy_text(text, "metadata is not an object");
	else
	{
		kept = json_pack("{s:O, s:O*}", "cwd", cwd, "metadata", json_is_object(metadata) ? metadata : NULL);
		good = dump_metadata(kept, workspace, text);
		json_decref(kept);
		return good;
	}
	return false;
}

/* As text, malloc'd; false, with a text, if that is too much. */
static bool
dump_metadata(const json_t *object, char **dumped, char *text)
{
	*dumped = json_dumps(object, JSON_COMPACT);
	if (*dumped != NULL && strlen(*dumped) <= RPC_MAX_METADATA)
		return true;
	free(*dumped);
	*dumped = NULL;
	copy_text(text, "metadata is too large");
	return false;
}

bool
rpc_read_list(const json_t *result, char **listed, char **next_cursor, char *text)
{
	const json_t *leases = json_object_get(result, "leases");
	const json_t *cursor = json_object_get(result, "nextCursor");
	json_t	   *out;
	size_t		i;
	const json_t *entry;

	*listed = *next_cursor = NULL;
	if (!json_is_array(leases) || !(cursor == NULL || json_is_null(cursor) || json_is_string(cursor)))
	{
		copy_text(text, "the result is not a page of leases");
		return false;
	}
	out = json_array();
	json_array_foreach(leases, i, entry)
	{
		const json_t *id = json_object_get(entry, "providerLeaseId");
		const json_t *lease = json_object_get(entry, "leaseId");
		const json_t *company = json_object_get(entry, "companyId");
		const json_t *installation = json_object_get(entry, "installationId");
		const json_t *generation = json_object_get(entry, "generation");
		json_int_t	number = json_is_integer(generation) ? json_integer_value(generation) : 0;

		if (!json_is_string(id) || json_string_length(id) == 0 || json_string_length(id) > RPC_MAX_ID ||
			!(lease == NULL || json_is_null(lease) || json_is_string(lease)) ||
			!(company == NULL || json_is_null(company) || json_is_string(company)) ||
			!(installation == NULL || json_is_null(installation) || json_is_string(installation)) ||
			number < 0 || number > INT32_MAX)
		{
			json_decref(out);
			copy_text(text, "a lease of the page is malformed");
			return false;
		}
		json_array_append_new(out, json_pack("{s:s, s:s?, s:s?, s:s?, s:I}", "providerLeaseId", json_string_value(id),
											 "leaseId", json_string_value(lease),
											 "companyId", json_string_value(company),
											 "installationId", json_string_value(installation), "generation", number));
	}
	*listed = json_dumps(out, JSON_COMPACT);
	json_decref(out);
	if (json_is_string(cursor))
		*next_cursor = strdup(json_string_value(cursor));
	return *listed != NULL;
}

/* Counts brackets outside of strings: the parser recurses once for each. */
static bool
too_deep(const char *body, size_t length)
{
	int			depth = 0;
	bool		in_string = false;

	for (size_t i = 0; i < length; i++)
	{
		char		c = body[i];

		if (in_string)
		{
			if (c == '\\')
				i++;
			else if (c == '"')
				in_string = false;
		}
		else if (c == '"')
			in_string = true;
		else if (c == '{' || c == '[')
		{
			if (++depth > RPC_MAX_DEPTH)
				return true;
		}
		else if (c == '}' || c == ']')
			depth--;
	}
	return false;
}

static void
malformed(RpcAnswer *answer, const char *text)
{
	answer->kind = RPC_MALFORMED;
	copy_text(answer->text, text);
}

static void
copy_text(char *to, const char *from)
{
	snprintf(to, RPC_TEXT_SIZE, "%s", from);
}

/* Masks before it cuts, so that no part of the secret is left at the end. */
static void
copy_masked(char *to, const char *from, const char *secret)
{
	static const char mask[] = "***";
	size_t		secret_length = secret ? strlen(secret) : 0;
	size_t		length = 0;

	while (*from && length < RPC_TEXT_SIZE - 1)
	{
		if (secret_length > 0 && strncmp(from, secret, secret_length) == 0)
		{
			for (const char *c = mask; *c && length < RPC_TEXT_SIZE - 1; c++)
				to[length++] = *c;
			from += secret_length;
		}
		else
			to[length++] = *from++;
	}
	to[length] = '\0';
}
