/*
 * follow.c
 *		Waiting for a lease or a command, and showing the client meanwhile what happens.
 *
 * A CALL follows in short turns and commits in between, also while its client
 * does not read: a transaction never lasts longer than a turn.  What must be known
 * from one turn to the next, such as output that was read and not shown, is kept
 * as long as the CALL is attached.  Who is not attached begins anew each time.
 */
#include "postgres.h"
#include "compat.h"

#include "fmgr.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "nodes/pg_list.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "attachment.h"
#include "client_message.h"
#include "output_lines.h"
#include "waiting.h"

PG_FUNCTION_INFO_V1(leasehold_follow_lease);
PG_FUNCTION_INFO_V1(leasehold_follow_command);

#define TELL_AGAIN_MS		30000	/* that a lease is waited for, still */

/* The columns of wait_for_lease() and wait_for_command() that are used here. */
enum
{
	LEASE_STATUS = 0,
	LEASE_WAITING_FOR = 5
};
enum
{
	COMMAND_DONE = 1,
	COMMAND_OUTCOME = 2,
	COMMAND_SIGNAL = 4,
	COMMAND_REASON = 7
};

typedef enum ShownStream
{
	SHOWN_STDOUT,
	SHOWN_STDERR,
	SHOWN_NOTICE,
	SHOWN_COUNT
} ShownStream;

static const struct
{
	const char *name;
	const char *prefix;
}			streams[SHOWN_COUNT] = {
	[SHOWN_STDOUT] = {"stdout", ""},
	[SHOWN_STDERR] = {"stderr", "stderr: "},
	[SHOWN_NOTICE] = {"notice", "leasehold: "},
};

typedef struct LeaseFollower
{
	pg_uuid_t	lease;
	TimestampTz unserved_since;
	TimestampTz told_at;
	char		told[100];
} LeaseFollower;

/* Output that was read and is to be shown. */
typedef struct Piece
{
	ShownStream stream;
	size_t		length;
	size_t		shown;			/* bytes of it that are done with */
	char		data[FLEXIBLE_ARRAY_MEMBER];
} Piece;

typedef struct CommandFollower
{
	pg_uuid_t	command;
	TimestampTz unserved_since;
	int64		after;			/* the last piece that was read */
	MemoryContext context;		/* of the pieces */
	List	   *pieces;
	OutputLines streams[SHOWN_COUNT];
} CommandFollower;

/* Of what this session is, or was last, attached to. */
static LeaseFollower kept_lease;
static CommandFollower kept_command;

static LeaseFollower *lease_follower(const pg_uuid_t *lease);
static CommandFollower *command_follower(const pg_uuid_t *command);
static void tell_progress(LeaseFollower *follower, const WaitState *state);
static bool show_output(CommandFollower *follower, WaitArgs *args, TimestampTz give_up);
static void keep_piece(HeapTuple row, TupleDesc desc, void *arg);
static bool show_pieces(CommandFollower *follower, TimestampTz give_up);
static void show_end(CommandFollower *follower, const WaitState *state);
static void say(const char *text);
static void show_line(const char *line, size_t length, void *arg);
static const char *words_for_end(const char *outcome);

/*
 * follow_lease(lease_id, timeout, company): like wait_for_lease(); if it takes
 * long, the client is told what is waited for.
 */
Datum
leasehold_follow_lease(PG_FUNCTION_ARGS)
{
	LeaseFollower *follower = lease_follower(PG_GETARG_UUID_P(0));
	WaitArgs	args;
	WaitState	state;

	wait_args(fcinfo, &args, 2, (int[]) {0, 2});
	wait_for(&wait_lease, &args, wait_milliseconds(fcinfo, 1, WAIT_DEFAULT_MS), &follower->unserved_since, &state);
	if (!state.done)
		tell_progress(follower, &state);
	return wait_record(fcinfo, &state);
}

static LeaseFollower *
lease_follower(const pg_uuid_t *lease)
{
	LeaseFollower *follower = attachment_has(lease) ? &kept_lease : palloc0(sizeof(LeaseFollower));

	if (memcmp(&follower->lease, lease, UUID_LEN) != 0)
	{
		memset(follower, 0, sizeof(*follower));
		follower->lease = *lease;
	}
	return follower;
}

static void
tell_progress(LeaseFollower *follower, const WaitState *state)
{
	TimestampTz now = GetCurrentTimestamp();
	char	   *status = TextDatumGetCString(state->values[LEASE_STATUS]);
	char	   *why = state->nulls[LEASE_WAITING_FOR] ? NULL : TextDatumGetCString(state->values[LEASE_WAITING_FOR]);
	char	   *text = psprintf("%s%s%s", status, why ? ", waiting for: " : "", why ? why : "");

	if (strncmp(text, follower->told, sizeof(follower->told) - 1) == 0 &&
		!TimestampDifferenceExceeds(follower->told_at, now, TELL_AGAIN_MS))
		return;
	strlcpy(follower->told, text, sizeof(follower->told));
	follower->told_at = now;
	say(psprintf("the lease is %s", text));
}

/*
 * follow_command(command_id, timeout, company): like wait_for_command(); the
 * client is shown what the command writes, and it is done when all was shown.
 */
Datum
leasehold_follow_command(PG_FUNCTION_ARGS)
{
	CommandFollower *follower = command_follower(PG_GETARG_UUID_P(0));
	TimestampTz give_up = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), wait_milliseconds(fcinfo, 1, WAIT_DEFAULT_MS));
	WaitArgs	command;
	WaitArgs	output;
	WaitState	state;

	wait_args(fcinfo, &command, 2, (int[]) {0, 2});
	wait_args(fcinfo, &output, 3, (int[]) {0, 0, 2});
	for (;;)
	{
		bool		all_shown;
		int64		left;
		WaitState	ignored;

		/* the state first: what is read after the end is all there is */
		wait_read_state(&wait_command, &command, &state);
		all_shown = show_output(follower, &output, give_up);
		state.done = state.done && all_shown;
		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), give_up);
		if (state.done || left <= 0)
			break;
		wait_for(&wait_output, &output, left, &follower->unserved_since, &ignored);
	}
	if (state.done)
		show_end(follower, &state);
	state.values[COMMAND_DONE] = BoolGetDatum(state.done);
	return wait_record(fcinfo, &state);
}

static CommandFollower *
command_follower(const pg_uuid_t *command)
{
	bool		attached = attachment_has(command);
	CommandFollower *follower = attached ? &kept_command : palloc0(sizeof(CommandFollower));

	if (memcmp(&follower->command, command, UUID_LEN) == 0)
		return follower;
	if (follower->context != NULL)
		MemoryContextDelete(follower->context);
	memset(follower, 0, sizeof(*follower));
	follower->context = AllocSetContextCreate(attached ? TopMemoryContext : CurrentMemoryContext, "leasehold output to be shown",
											  ALLOCSET_DEFAULT_SIZES);
	follower->command = *command;
	return follower;
}

/*
 * What has come since, until the time is over; whether that was all.  The
 * arguments are set for the next look.
 */
static bool
show_output(CommandFollower *follower, WaitArgs *args, TimestampTz give_up)
{
	bool		shown = show_pieces(follower, give_up);
	uint64		count = 1;

	args->nulls[1] = ' ';
	while (shown && count > 0)
	{
		args->values[1] = Int64GetDatum(follower->after);
		count = wait_read_output(args, keep_piece, follower);
		shown = show_pieces(follower, give_up);
		if (GetCurrentTimestamp() >= give_up)
			break;
	}
	args->values[1] = Int64GetDatum(follower->after);
	return shown && count == 0;
}

static void
keep_piece(HeapTuple row, TupleDesc desc, void *arg)
{
	CommandFollower *follower = arg;
	bool		isnull;
	char	   *name = SPI_getvalue(row, desc, SPI_fnumber(desc, "stream"));
	text	   *data = DatumGetTextPP(SPI_getbinval(row, desc, SPI_fnumber(desc, "text"), &isnull));
	MemoryContext old = MemoryContextSwitchTo(follower->context);
	Piece	   *piece = palloc0(offsetof(Piece, data) + VARSIZE_ANY_EXHDR(data));

	while (piece->stream < SHOWN_COUNT - 1 && strcmp(streams[piece->stream].name, name) != 0)
		piece->stream++;
	piece->length = VARSIZE_ANY_EXHDR(data);
	memcpy(piece->data, VARDATA_ANY(data), piece->length);
	follower->pieces = lappend(follower->pieces, piece);
	follower->after = DatumGetInt64(SPI_getbinval(row, desc, SPI_fnumber(desc, "seq"), &isnull));
	MemoryContextSwitchTo(old);
}

/* As many as the client takes until the time is over; whether those were all. */
static bool
show_pieces(CommandFollower *follower, TimestampTz give_up)
{
	ListCell   *cell;

	foreach(cell, follower->pieces)
	{
		Piece	   *piece = lfirst(cell);

		while (piece->shown < piece->length)
		{
			if (!client_message_room(give_up))
				return false;
			piece->shown += output_lines_add(&follower->streams[piece->stream], piece->data + piece->shown,
											 piece->length - piece->shown, show_line, (void *) streams[piece->stream].prefix);
		}
	}
	follower->pieces = NIL;
	MemoryContextReset(follower->context);
	return true;
}

/* What is unfinished, and how the command ended if that was not by itself. */
static void
show_end(CommandFollower *follower, const WaitState *state)
{
	char	   *outcome = TextDatumGetCString(state->values[COMMAND_OUTCOME]);
	StringInfoData message;

	for (ShownStream s = 0; s < SHOWN_COUNT; s++)
		output_lines_end(&follower->streams[s], show_line, (void *) streams[s].prefix);
	if (strcmp(outcome, "exited") == 0)
		return;
	initStringInfo(&message);
	appendStringInfoString(&message, words_for_end(outcome));
	if (!state->nulls[COMMAND_SIGNAL])
		appendStringInfo(&message, " (%s)", TextDatumGetCString(state->values[COMMAND_SIGNAL]));
	if (!state->nulls[COMMAND_REASON])
		appendStringInfo(&message, ": %s", TextDatumGetCString(state->values[COMMAND_REASON]));
	say(message.data);
}

static const char *
words_for_end(const char *outcome)
{
	static const char *const words[][2] = {
		{"signalled", "the command was ended by a signal"},
		{"timed_out", "the command ran out of time"},
		{"cancelled", "the command was cancelled"},
		{"failed", "the command could not be run"},
		{"lost", "the end of the command was not seen"},
	};

	for (int i = 0; i < (int) lengthof(words); i++)
	{
		if (strcmp(words[i][0], outcome) == 0)
			return words[i][1];
	}
	return "whether the command has run is unknown";
}

/* In our own name. */
static void
say(const char *text)
{
	show_line(text, strlen(text), (void *) streams[SHOWN_NOTICE].prefix);
}

static void
show_line(const char *line, size_t length, void *arg)
{
	const char *prefix = arg;
	size_t		prefix_length = strlen(prefix);
	char	   *text = palloc(prefix_length + length * 4 + 1);
	size_t		used;

	memcpy(text, prefix, prefix_length);
	used = prefix_length + output_visible(line, length, text + prefix_length);
	text[used] = '\0';
	client_message(text);
	pfree(text);
}
