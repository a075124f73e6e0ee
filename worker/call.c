/*
 * call.c
 *		Names and outcomes of calls.
 */
#include "postgres.h"
#include "compat.h"

#include "mb/pg_wchar.h"
#include "utils/builtins.h"

#include "call.h"

static const struct
{
	const char *name;
	CallMethod	method;
}			methods[] = {
	{"initialize", METHOD_INITIALIZE},
	{"environmentAcquireLease", METHOD_ACQUIRE},
	{"environmentResumeLease", METHOD_RESUME},
	{"environmentRealizeWorkspace", METHOD_REALIZE},
	{"environmentReleaseLease", METHOD_RELEASE},
	{"environmentDestroyLease", METHOD_DESTROY},
	{"environmentFindLease", METHOD_FIND},
	{"environmentListLeases", METHOD_LIST},
	{"environmentExecute", METHOD_EXECUTE},
	{"environmentCancelExecute", METHOD_CANCEL},
};

bool
call_parse_method(const char *name, CallMethod *method)
{
	for (int i = 0; i < (int) lengthof(methods); i++)
	{
		if (strcmp(methods[i].name, name) == 0)
		{
			*method = methods[i].method;
			return true;
		}
	}
	return false;
}

const char *
call_outcome_name(CallOutcome outcome)
{
	switch (outcome)
	{
		case OUTCOME_NONE:
			break;
		case OUTCOME_OK:
			return "ok";
		case OUTCOME_GONE:
			return "gone";
		case OUTCOME_RETRY:
			return "retry";
		case OUTCOME_THROTTLED:
			return "throttled";
		case OUTCOME_FAILED:
			return "failed";
		case OUTCOME_UNKNOWN:
			return "unknown";
	}
	return "unknown";
}

char *
call_id_text(const pg_uuid_t *id)
{
	return DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id)));
}

/*
 * The message may hold text from a provider: what is not valid UTF-8, and
 * control characters, are replaced.
 */
void
call_set_outcome(Call *call, CallOutcome outcome, const char *code, const char *format,...)
{
	va_list		args;
	int			valid;

	call->outcome = outcome;
	strlcpy(call->code, code ? code : "", sizeof(call->code));

	va_start(args, format);
	vsnprintf(call->message, sizeof(call->message), format, args);
	va_end(args);

	for (char *c = call->message; *c; c++)
	{
		if ((unsigned char) *c < 0x20 || *c == 0x7f)
			*c = ' ';
	}
	for (;;)
	{
		valid = pg_encoding_verifymbstr(PG_UTF8, call->message, strlen(call->message));
		if (call->message[valid] == '\0')
			break;
		/* a character cut off at the end goes, a bad one inside is replaced */
		if (strlen(call->message) == sizeof(call->message) - 1 &&
			valid > (int) sizeof(call->message) - 5)
			call->message[valid] = '\0';
		else
			call->message[valid] = '?';
	}
}
