/*
 * client_message.c
 *		Messages for the client of this session alone.
 *
 * What a command writes is its owner's, and may be much.  Whether a message is
 * for the log is decided when it begins, from log_min_messages; so that is
 * raised just then.  It is sent like any other: a session that waits for its
 * client to read can be terminated.
 */
#include "postgres.h"
#include "compat.h"

#include "catalog/namespace.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "tcop/dest.h"
#include "tcop/tcopprot.h"
#include "utils/elog.h"
#include "utils/guc.h"
#include "utils/wait_event.h"

#include "client_message.h"

static int	set_log_min_messages(int level);
static const char *in_clients_encoding(const char *text);

void
client_message(const char *text)
{
	const char *sent = in_clients_encoding(text);
	ErrorContextCallback *save_context = error_context_stack;
	int			save_log_min_messages = log_min_messages;

	/*
	 * Where in a procedure it comes from would be said with each line.  An
	 * interrupt that comes while it is sent leaves this to its own handler.
	 */
	error_context_stack = NULL;
	log_min_messages = PANIC;
	ereport(INFO, (set_log_min_messages(save_log_min_messages), errmsg_internal("%s", sent)));
	log_min_messages = save_log_min_messages;
	error_context_stack = save_context;
}

static int
set_log_min_messages(int level)
{
	log_min_messages = level;
	return 0;
}

bool
client_message_room(TimestampTz give_up)
{
	if (MyProcPort == NULL || whereToSendOutput != DestRemote)
		return true;
	for (;;)
	{
		int64		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), give_up);
		WaitEvent	events[FeBeWaitSetNEvents];
		uint32		happened = 0;
		int			count;

		ModifyWaitEvent(FeBeWaitSet, FeBeWaitSetSocketPos, WL_SOCKET_WRITEABLE, NULL);
		count = WaitEventSetWait(FeBeWaitSet, left, events, lengthof(events), WAIT_EVENT_CLIENT_WRITE);
		for (int i = 0; i < count; i++)
			happened |= events[i].events;
		if (happened & WL_POSTMASTER_DEATH)
			ereport(FATAL,
					(errcode(ERRCODE_ADMIN_SHUTDOWN),
					 errmsg("terminating connection due to unexpected postmaster exit")));
		if (happened & WL_LATCH_SET)
			ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		/* one that is lost has room, too: what is sent to it finds out */
		if (happened & WL_SOCKET_WRITEABLE)
			return true;
		if (left <= 0 && (happened & WL_LATCH_SET) == 0)
			return false;
	}
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
