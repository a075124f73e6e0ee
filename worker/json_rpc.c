/*
 * json_rpc.c
 *		Reads JSON-RPC answers: see json_rpc.h for what is guaranteed.
 */
#include "json_rpc.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "http_date.h"

static bool too_deep(const char *body, size_t length);
static void malformed(RpcAnswer *answer, const char *text);
static void copy_text(char *to, const char *from);
static void copy_masked(char *to, const char *from, const char *secret);

void
rpc_parse_answer(const char *body, size_t length, const char *id, const char *secret, RpcAnswer *answer)
{
	json_error_t error;
	json_t	   *version;
	json_t	   *answer_id;
	json_t	   *rpc_error;

	memset(answer, 0, sizeof(*answer));
	if (length == 0)
	{
		malformed(answer, "the answer is empty");
		return;
	}
	if (too_deep(body, length))
	{
		malformed(answer, "the answer is nested too deeply");
		return;
	}
	answer->root = json_loadb(body, length, JSON_REJECT_DUPLICATES, &error);
	if (answer->root == NULL)
	{
		malformed(answer, "the answer is not valid JSON");
		return;
	}
	if (!json_is_object(answer->root))
	{
		malformed(answer, "the answer is not a JSON-RPC object");
		return;
	}

	version = json_object_get(answer->root, "jsonrpc");
	answer_id = json_object_get(answer->root, "id");
	answer->result = json_object_get(answer->root, "result");
	rpc_error = json_object_get(answer->root, "error");
	if (!json_is_string(version) || strcmp(json_string_value(version), "2.0") != 0)
		malformed(answer, "the answer is not JSON-RPC 2.0");
	else if (answer->result != NULL && rpc_error != NULL)
		malformed(answer, "the answer has both a result and an error");
	else if (answer->result == NULL && rpc_error == NULL)
		malformed(answer, "the answer has neither a result nor an error");
	else if (rpc_error != NULL)
	{
		json_t	   *code = json_object_get(rpc_error, "code");
		json_t	   *message = json_object_get(rpc_error, "message");

		/* who could not read the request cannot repeat its id */
		if (!json_is_object(rpc_error) || !json_is_integer(code) || !json_is_string(message) ||
			json_integer_value(code) < INT32_MIN || json_integer_value(code) > INT32_MAX ||
			!(json_is_null(answer_id) ||
			  (json_is_string(answer_id) && strcmp(json_string_value(answer_id), id) == 0)))
		{
			malformed(answer, "the answer has a malformed error");
			return;
		}
		answer->kind = RPC_ERROR;
		answer->error_code = (int) json_integer_value(code);
		copy_masked(answer->text, json_string_value(message), secret);
	}
	else if (!json_is_string(answer_id) || strcmp(json_string_value(answer_id), id) != 0)
		malformed(answer, "the answer is to another request");
	else
		answer->kind = RPC_RESULT;
}

void
rpc_free_answer(RpcAnswer *answer)
{
	json_decref(answer->root);
	answer->root = NULL;
	answer->result = NULL;
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
		if (json_is_object(metadata))
		{
			lease->metadata = json_dumps(metadata, JSON_COMPACT);
			if (lease->metadata == NULL || strlen(lease->metadata) > RPC_MAX_METADATA)
			{
				free(lease->metadata);
				lease->metadata = NULL;
				copy_text(text, "metadata is too large");
				return false;
			}
		}
		lease->has_expiry = json_is_string(expires) &&
			rfc3339_parse(json_string_value(expires), &lease->expires_at);
		return true;
	}
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
