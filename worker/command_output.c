/*
 * command_output.c
 *		What commands write, from the provider until it is stored.
 *
 * Output is stored in the order in which it came, with the worker's rounds, at
 * most STORE_PAUSE_MS after it came.  Pieces end with whole characters, as far as
 * it is UTF-8: the beginning of one waits for its rest.  Memory is bounded: the
 * provider is told when there is enough.  What is over the limit is counted and
 * dropped, and a notice says so.
 *
 * A command's answer is stored after, or together with, the last of its output.
 */
#include "postgres.h"
#include "compat.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "command_output.h"
#include "statement.h"
#include "transaction.h"
#include "worker.h"

#define STORE_PAUSE_MS		50
#define PIECE_SIZE			32768
#define PENDING_ALL			(64 * 1024 * 1024)	/* memory of all commands together that wait to be stored, about */
#define PENDING_LEAST		(4 * PIECE_SIZE)
#define PENDING_MOST		(64 * PIECE_SIZE)
#define PIECE_ROOM			1024
#define FREE_PIECES			1000	/* each one after these counts against the limit with PIECE_COST, too */
#define PIECE_COST			64
#define SHARE_LEAST			20	/* pieces of a command in a batch, however many commands there are */

typedef struct OutputPiece
{
	dlist_node	node;
	CommandStream stream;
	TimestampTz at;
	int64		seq;			/* 0: may grow still */
	bool		in_batch;
	int			length;
	int			room;
	int			size;			/* of the memory */
	char		data[FLEXIBLE_ARRAY_MEMBER];
} OutputPiece;

static dlist_head writing = DLIST_STATIC_INIT(writing); /* commands with pieces */
static int	writing_count = 0;

static int64 enough(void);
static void keep(Call *call, CommandStream stream, const char *data, size_t length);
static void note_truncation(Call *call, const char *text);
static OutputPiece *piece_for(Call *call, CommandStream stream, size_t wanted);
static int	unfinished_character(const char *data, size_t length);
static void release_tail(Call *call, CommandStream stream);
static void take_pieces(OutputBatch *batch, Call *call);
static void apply_work(void *arg);
static void drop_piece(Call *call, OutputPiece *piece);
static bool store_output_of_one(OutputBatch *single, int *troubles, Woken *woken);
static void put_back(OutputBatch *batch);
static void give_up(OutputBatch *batch);
static void stop_writing(Command *command);

void
command_output_begin(Call *call, int64 limit)
{
	Command    *command = MemoryContextAllocZero(call->context, sizeof(Command));

	dlist_init(&command->pieces);
	command->call = call;
	command->limit = limit;
	call->command = command;
}

bool
command_output_add(Call *call, CommandStream stream, const char *data, size_t length)
{
	Command    *command = call->command;

	Assert(stream == STREAM_STDOUT || stream == STREAM_STDERR);
	command->written[stream] += length;
	if (!command->truncated && command->tail_length[stream] > 0)
	{
		/* complete the character, if this does */
		while (length > 0 && command->tail_length[stream] < 4 && ((unsigned char) data[0] & 0xC0) == 0x80 &&
			   unfinished_character(command->tail[stream], command->tail_length[stream]) > 0)
		{
			command->tail[stream][command->tail_length[stream]++] = *data++;
			length--;
		}
		if (length > 0 || unfinished_character(command->tail[stream], command->tail_length[stream]) == 0)
			release_tail(call, stream);
	}
	if (!command->truncated && length > 0)
	{
		int			held = unfinished_character(data, length);

		keep(call, stream, data, length - held);
		memcpy(command->tail[stream], data + length - held, held);
		command->tail_length[stream] = held;
	}
	command->full = command->pending >= enough();
	return !command->full;
}

/* Memory of a command's pieces at which its provider should stop. */
static int64
enough(void)
{
	return Max(PENDING_LEAST, Min(PENDING_MOST, PENDING_ALL / Max(writing_count, 1)));
}

/* What is kept of it becomes pieces. */
static void
keep(Call *call, CommandStream stream, const char *data, size_t length)
{
	Command    *command = call->command;
	size_t		rest = Min(length, (size_t) Max(command->limit - command->kept, 0));
	bool		cut = rest < length;

	if (cut)
		rest -= unfinished_character(data, rest);
	while (rest > 0)
	{
		OutputPiece *piece = piece_for(call, stream, rest);
		size_t		part = Min(rest, (size_t) (piece->room - piece->length));

		if (part < rest)
		{
			/* it ends with the last character that fits */
			part -= unfinished_character(data, part);
			piece->room = piece->length + part;
		}
		memcpy(piece->data + piece->length, data, part);
		piece->length += part;
		command->kept += part;
		data += part;
		rest -= part;
	}
	if (cut && !command->truncated)
	{
		char		text[100];

		snprintf(text, sizeof(text), "output truncated: the limit of " INT64_FORMAT " bytes is reached\n", command->limit);
		note_truncation(call, text);
	}
}

/* In our own name, once. */
static void
note_truncation(Call *call, const char *text)
{
	OutputPiece *piece;

	call->command->truncated = true;
	piece = piece_for(call, STREAM_NOTICE, strlen(text));
	memcpy(piece->data, text, strlen(text));
	piece->length = strlen(text);
}

/* The last piece, if it is of that stream and has room; else a new one. */
static OutputPiece *
piece_for(Call *call, CommandStream stream, size_t wanted)
{
	Command    *command = call->command;
	OutputPiece *piece;
	int			room;

	if (!dlist_is_empty(&command->pieces))
	{
		piece = dlist_tail_element(OutputPiece, node, &command->pieces);
		if (piece->stream == stream && piece->seq == 0 && piece->length < piece->room)
			return piece;
	}
	else
	{
		TimestampTz now = GetCurrentTimestamp();

		dlist_push_tail(&writing, &command->node);
		writing_count++;
		/* unless the clock was set back since */
		command->store_at = Min(Max(command->store_at, now), TimestampTzPlusMilliseconds(now, STORE_PAUSE_MS));
	}
	/* some room for what comes soon after it, all of it for a flood */
	room = Min(Max(wanted, PIECE_ROOM), PIECE_SIZE);
	piece = MemoryContextAlloc(call->context, offsetof(OutputPiece, data) + room);
	piece->stream = stream;
	piece->at = GetCurrentTimestamp();
	piece->seq = 0;
	piece->in_batch = false;
	piece->length = 0;
	piece->room = room;
	piece->size = offsetof(OutputPiece, data) + room;
	command->pending += piece->size;
	if (++command->piece_count > FREE_PIECES)
		command->kept += PIECE_COST;
	dlist_push_tail(&command->pieces, &piece->node);
	return piece;
}

/*
 * How many bytes at the end begin a UTF-8 character that is not complete; 0 if
 * the end is none that could become one (RFC 3629).
 */
static int
unfinished_character(const char *data, size_t length)
{
	for (int back = 1; back <= 3 && (size_t) back <= length; back++)
	{
		unsigned char c = (unsigned char) data[length - back];

		if ((c & 0xC0) == 0x80)
			continue;
		if (c >= 0xC2 && c <= 0xDF)
			return back < 2 ? back : 0;
		if (c >= 0xE0 && c <= 0xEF)
			return back < 3 ? back : 0;
		if (c >= 0xF0 && c <= 0xF4)
			return back;
		return 0;
	}
	return 0;
}

/* What waits for the rest of a character goes as it is. */
static void
release_tail(Call *call, CommandStream stream)
{
	Command    *command = call->command;
	char		tail[4];
	int			length = command->tail_length[stream];

	memcpy(tail, command->tail[stream], length);
	command->tail_length[stream] = 0;
	if (!command->truncated)
		keep(call, stream, tail, length);
}

void
command_output_end(Call *call)
{
	release_tail(call, STREAM_STDOUT);
	release_tail(call, STREAM_STDERR);
	call->command->store_at = 0;
}

bool
command_output_left(const Call *call, bool in_batch_too)
{
	if (call->command == NULL || dlist_is_empty(&call->command->pieces))
		return false;
	/* they are taken from the beginning on */
	return in_batch_too || !dlist_tail_element(OutputPiece, node, &call->command->pieces)->in_batch;
}

bool
command_output_waiting(TimestampTz now, TimestampTz *next)
{
	dlist_iter	iter;

	*next = 0;
	dlist_foreach(iter, &writing)
	{
		Command    *command = dlist_container(Command, node, iter.cur);

		if (command->store_at <= now || command->full)
			return true;
		if (*next == 0 || command->store_at < *next)
			*next = command->store_at;
	}
	return false;
}

void
command_output_wait_no_longer(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &writing)
		dlist_container(Command, node, iter.cur)->store_at = 0;
}

void
command_output_collect(OutputBatch *batch, TimestampTz now)
{
	dlist_iter	iter;

	batch->count = 0;
	batch->pieces = NULL;
	if (dlist_is_empty(&writing))
		return;
	batch->pieces = palloc(OUTPUT_BATCH * sizeof(OutputPiece *));
	batch->calls = palloc(OUTPUT_BATCH * sizeof(Call *));
	dlist_foreach(iter, &writing)
	{
		Command    *command = dlist_container(Command, node, iter.cur);

		if (command->store_at > now && !command->full)
			continue;
		command->store_at = TimestampTzPlusMilliseconds(now, STORE_PAUSE_MS);
		take_pieces(batch, command->call);
		if (batch->count == OUTPUT_BATCH)
			break;
	}
	/* the next time another comes first */
	dlist_push_tail(&writing, dlist_pop_head_node(&writing));
}

/* Not more than its share, so that others come to theirs. */
static void
take_pieces(OutputBatch *batch, Call *call)
{
	int			most = Min(OUTPUT_BATCH, batch->count + Max(OUTPUT_BATCH / writing_count, SHARE_LEAST));
	dlist_iter	iter;

	dlist_foreach(iter, &call->command->pieces)
	{
		OutputPiece *piece = dlist_container(OutputPiece, node, iter.cur);

		if (batch->count == most)
			break;
		if (piece->seq == 0)
			piece->seq = ++call->command->last_seq;
		piece->in_batch = true;
		batch->pieces[batch->count] = piece;
		batch->calls[batch->count++] = call;
	}
}

void
command_output_apply(OutputBatch *batch)
{
	static SPIPlanPtr plan = NULL;
	static char *const streams[] = {
		[STREAM_STDOUT] = "stdout",
		[STREAM_STDERR] = "stderr",
		[STREAM_NOTICE] = "notice",
	};
	int			count = batch->count;
	QueueKey   *keys = palloc(count * sizeof(QueueKey));
	Datum	   *seqs = palloc(count * sizeof(Datum));
	char	  **names = palloc(count * sizeof(char *));
	Datum	   *ats = palloc(count * sizeof(Datum));
	Datum	   *datas = palloc(count * sizeof(Datum));
	Datum		args[7];

	for (int i = 0; i < count; i++)
	{
		OutputPiece *piece = batch->pieces[i];

		keys[i] = batch->calls[i]->key;
		seqs[i] = Int64GetDatum(piece->seq);
		names[i] = streams[piece->stream];
		ats[i] = TimestampTzGetDatum(piece->at);
		datas[i] = PointerGetDatum(cstring_to_text_with_len(piece->data, piece->length));
	}
	args[0] = Int64GetDatum(worker.epoch);
	args[1] = statement_companies(keys, count);
	args[2] = statement_subjects(keys, count);
	args[3] = PointerGetDatum(construct_array(seqs, count, INT8OID, 8, true, TYPALIGN_DOUBLE));
	args[4] = statement_texts(names, count);
	args[5] = PointerGetDatum(construct_array(ats, count, TIMESTAMPTZOID, 8, true, TYPALIGN_DOUBLE));
	args[6] = PointerGetDatum(construct_array(datas, count, BYTEAOID, -1, false, TYPALIGN_INT));
	if (SPI_execute_plan(statement_prepared(&plan, "SELECT leasehold_internal.store_output($1, $2, $3, $4, $5, $6, $7)", 7,
											(Oid[]) {INT8OID, UUIDARRAYOID, UUIDARRAYOID, INT8ARRAYOID, TEXTARRAYOID,
													 TIMESTAMPTZARRAYOID, BYTEAARRAYOID}),
						 args, NULL, false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not store output");
}

void
command_output_settle(OutputBatch *batch, Woken *woken)
{
	for (int i = 0; i < batch->count; i++)
	{
		Call	   *call = batch->calls[i];

		drop_piece(call, batch->pieces[i]);
		if (i + 1 == batch->count || batch->calls[i + 1] != call)
			woken_add(woken, &call->key.subject);
	}
	batch->count = 0;
}

/* It is stored, or never will be. */
static void
drop_piece(Call *call, OutputPiece *piece)
{
	Command    *command = call->command;

	dlist_delete(&piece->node);
	command->pending -= piece->size;
	pfree(piece);
	if (dlist_is_empty(&command->pieces))
		stop_writing(command);
	if (command->full && command->pending < enough() / 2)
	{
		command->full = false;
		if (call->outcome == OUTCOME_NONE && command->drained != NULL)
			command->drained(call);
	}
}

bool
command_output_one_by_one(OutputBatch *batch, Woken *woken)
{
	int			troubles = 0;
	bool		any = false;
	int			end;

	for (int begin = 0; begin < batch->count; begin = end)
	{
		OutputBatch single = {.pieces = &batch->pieces[begin],.calls = &batch->calls[begin]};

		for (end = begin; end < batch->count && batch->calls[end] == batch->calls[begin]; end++)
			single.count++;
		if (store_output_of_one(&single, &troubles, woken))
			any = true;
	}
	batch->count = 0;
	return any;
}

/* What this transaction could not store waits for another if the trouble is not its own, and is given up otherwise. */
static bool
store_output_of_one(OutputBatch *single, int *troubles, Woken *woken)
{
	if (!transaction_gives_up(*troubles))
	{
		if (transaction_run("storing the output of one command", apply_work, single))
		{
			*troubles = 0;
			command_output_settle(single, woken);
			return true;
		}
		if (!transaction_troubled(troubles))
		{
			give_up(single);
			return false;
		}
	}
	put_back(single);
	return false;
}

static void
apply_work(void *arg)
{
	command_output_apply(arg);
}

/* For a later round, which may not have room for all of them. */
static void
put_back(OutputBatch *batch)
{
	for (int i = 0; i < batch->count; i++)
		batch->pieces[i]->in_batch = false;
}

/* Of one command. */
static void
give_up(OutputBatch *batch)
{
	Call	   *call = batch->calls[0];

	for (int i = 0; i < batch->count; i++)
		drop_piece(call, batch->pieces[i]);
	if (!call->command->truncated)
		note_truncation(call, "output truncated: it could not be stored; see the server log\n");
}

void
command_output_forget(Call *call)
{
	if (call->command != NULL && !dlist_is_empty(&call->command->pieces))
		stop_writing(call->command);
}

static void
stop_writing(Command *command)
{
	dlist_delete(&command->node);
	writing_count--;
}

Call *
command_find(const QueueKey *key)
{
	dlist_iter	iter;

	dlist_foreach(iter, &worker.out)
	{
		Call	   *call = dlist_container(Call, node, iter.cur);

		if (call->key.slot == SLOT_COMMAND && memcmp(&call->key.company, &key->company, UUID_LEN) == 0 &&
			memcmp(&call->key.subject, &key->subject, UUID_LEN) == 0)
			return call;
	}
	return NULL;
}
