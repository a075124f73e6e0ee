/*
 * client_message.c
 *		Messages for the client of this session alone.
 *
 * What a command writes is its owner's, and may be much.  Whether a message is
 * for the log is decided when it begins, from log_min_messages; so that is
 * raised for as long as it takes.  Nothing else can be logged meanwhile, since
 * interrupts are held off; a client that is lost is noticed at the next check.
 */
#include "postgres.h"
#include "compat.h"

#include "catalog/namespace.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/elog.h"
#include "utils/guc.h"

#include "client_message.h"

static const char *in_clients_encoding(const char *text);

void
client_message(const char *text)
{
	const char *volatile sent = in_clients_encoding(text);
	int			save_log_min_messages = log_min_messages;

	HOLD_INTERRUPTS();
	PG_TRY();
	{
		log_min_messages = PANIC;

		/*
		 * where in a procedure it comes from would be said with each line;
		 * PG_TRY restores it
		 */
		error_context_stack = NULL;
		ereport(INFO, (errmsg_internal("%s", sent)));
	}
	PG_FINALLY();
	{
		log_min_messages = save_log_min_messages;
	}
	PG_END_TRY();
	RESUME_INTERRUPTS();
	CHECK_FOR_INTERRUPTS();
}

/* An error would end what the message is about. */
static const char *
in_clients_encoding(const char *text)
{
	int			encoding = pg_get_client_encoding();
	int			length = strlen(text);
	Oid			conversion;
	char	   *scratch;
	char	   *result;
	char	   *to;

	if (encoding == PG_UTF8 || encoding == PG_SQL_ASCII)
		return text;
	conversion = FindDefaultConversionProc(PG_UTF8, encoding);
	if (!OidIsValid(conversion))
		return text;

	scratch = palloc((Size) length * MAX_CONVERSION_GROWTH + 1);
	to = result = palloc(length + 1);
	while (length > 0)
	{
		int			good = pg_do_encoding_conversion_buf(conversion, PG_UTF8, encoding, (unsigned char *) text, length,
														 (unsigned char *) scratch, length * MAX_CONVERSION_GROWTH + 1, true);
		int			bad;

		memcpy(to, text, good);
		to += good;
		text += good;
		length -= good;
		if (length == 0)
			break;
		*to++ = '?';
		bad = pg_utf_mblen((const unsigned char *) text);
		text += bad;
		length -= bad;
	}
	*to = '\0';
	return result;
}
