/*
 * message_stream.c
 *		Splits the body of a response into messages: see message_stream.h.
 *
 * Both formats consist of lines, so that is what is found first: with a line
 * feed at the end; in event streams also with a carriage return, or both.
 */
#include "message_stream.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define EXTRA	8				/* of an event: the name of the field, the end of the last line */
#define SKIPPED_MOST	4096	/* bytes that are no message's, until the caller is told */

/* Bytes that grow. */
typedef struct Buffer
{
	char	   *data;
	size_t		length;
	size_t		allocated;
} Buffer;

struct MessageStream
{
	MessageFormat format;
	size_t		limit;
	Buffer		arrived;		/* as it came */
	size_t		at;				/* so much of it is dealt with */
	Buffer		line;			/* so far */
	Buffer		event;			/* its data so far, each line with its end */
	size_t		skipped;		/* bytes that are no message's, since the caller was told */
	bool		first_line;
	bool		after_return;	/* a line feed here belongs to the end before it */
	bool		ended;
	bool		handed_out;		/* the message is over with the next call */
	MessageState trouble;		/* or MESSAGE_NONE */
};

static bool take_line(MessageStream *stream);
static bool skipped_much(MessageStream *stream, size_t event_length);
static bool take_event_line(MessageStream *stream);
static bool is_blank(const Buffer *line);
static bool append(MessageStream *stream, Buffer *buffer, const char *data, size_t length);
static bool grow(Buffer *buffer, const char *data, size_t length);

MessageFormat
message_format_of(const char *content_type)
{
	static const struct
	{
		const char *name;
		MessageFormat format;
	}			formats[] = {
		{"application/x-ndjson", MESSAGE_LINES},
		{"text/event-stream", MESSAGE_EVENTS},
	};
	size_t		length;

	if (content_type == NULL)
		return MESSAGE_WHOLE;
	content_type += strspn(content_type, " \t");
	length = strcspn(content_type, " \t;");
	for (size_t i = 0; i < sizeof(formats) / sizeof(formats[0]); i++)
	{
		if (length == strlen(formats[i].name) && strncasecmp(content_type, formats[i].name, length) == 0)
			return formats[i].format;
	}
	return MESSAGE_WHOLE;
}

MessageStream *
message_stream_new(MessageFormat format, size_t limit)
{
	MessageStream *stream = calloc(1, sizeof(MessageStream));

	if (stream != NULL)
	{
		stream->format = format;
		stream->limit = limit;
		stream->first_line = true;
	}
	return stream;
}

void
message_stream_free(MessageStream *stream)
{
	if (stream == NULL)
		return;
	free(stream->arrived.data);
	free(stream->line.data);
	free(stream->event.data);
	free(stream);
}

bool
message_stream_add(MessageStream *stream, const char *data, size_t length)
{
	if (stream->at == stream->arrived.length)
		stream->at = stream->arrived.length = 0;
	return grow(&stream->arrived, data, length);
}

void
message_stream_end(MessageStream *stream)
{
	stream->ended = true;
}

MessageState
message_stream_next(MessageStream *stream, char **message, size_t *length)
{
	Buffer	   *whole = stream->format == MESSAGE_LINES ? &stream->line : &stream->event;

	if (stream->handed_out)
		whole->length = 0;
	stream->handed_out = false;
	while (stream->trouble == MESSAGE_NONE && take_line(stream))
	{
		size_t		event_length = stream->event.length;

		if (stream->format == MESSAGE_EVENTS ? take_event_line(stream) : !is_blank(&stream->line))
		{
			*message = whole->data;
			*length = whole->length;
			stream->handed_out = true;
			return MESSAGE_READY;
		}
		if (skipped_much(stream, event_length))
		{
			static char nothing[1];

			*message = nothing;
			*length = 0;
			return MESSAGE_READY;
		}
	}
	return stream->trouble;
}

/* Is done with a line that has completed no message; whether the caller should hear of it. */
static bool
skipped_much(MessageStream *stream, size_t event_length)
{
	if (stream->event.length == event_length)
		stream->skipped += stream->line.length + 1;
	stream->line.length = 0;
	if (stream->skipped < SKIPPED_MOST || stream->trouble != MESSAGE_NONE)
		return false;
	stream->skipped = 0;
	return true;
}

/* Goes on with a line; whether it is complete. */
static bool
take_line(MessageStream *stream)
{
	bool		events = stream->format == MESSAGE_EVENTS;
	const char *data = stream->arrived.data;
	size_t		begin;

	if (stream->at < stream->arrived.length && stream->after_return)
	{
		stream->after_return = false;
		if (data[stream->at] == '\n')
			stream->at++;
	}
	begin = stream->at;
	while (stream->at < stream->arrived.length && data[stream->at] != '\n' && !(events && data[stream->at] == '\r'))
		stream->at++;
	if (stream->at > begin && !append(stream, &stream->line, data + begin, stream->at - begin))
		return false;
	if (stream->at == stream->arrived.length)
		/* what of an event has come without its end is none */
		return stream->ended && !events && stream->line.length > 0;
	stream->after_return = data[stream->at++] == '\r';
	return true;
}

/* One line of an event; whether it is complete, with data. */
static bool
take_event_line(MessageStream *stream)
{
	const char *value = stream->line.data;
	size_t		length = stream->line.length;
	static const char mark[] = "\xef\xbb\xbf";
	static const char field[] = "data";

	if (stream->first_line && length >= strlen(mark) && memcmp(value, mark, strlen(mark)) == 0)
	{
		value += strlen(mark);
		length -= strlen(mark);
	}
	stream->first_line = false;
	if (length == 0)
	{
		stream->line.length = 0;
		if (stream->event.length == 0)
			return false;
		stream->event.length--; /* the last line's end */
		return true;
	}
	/* comments and other fields do not matter */
	if (length < strlen(field) || memcmp(value, field, strlen(field)) != 0 ||
		(length > strlen(field) && value[strlen(field)] != ':'))
		return false;
	value += strlen(field);
	length -= strlen(field);
	for (const char *skipped = ": "; *skipped && length > 0 && *value == *skipped; skipped++)
	{
		value++;
		length--;
	}
	if (append(stream, &stream->event, value, length))
		(void) append(stream, &stream->event, "\n", 1);
	return false;
}

static bool
is_blank(const Buffer *line)
{
	for (size_t i = 0; i < line->length; i++)
	{
		if (strchr(" \t\r", line->data[i]) == NULL || line->data[i] == '\0')
			return false;
	}
	return true;
}

/* Adds to what may become a message. */
static bool
append(MessageStream *stream, Buffer *buffer, const char *data, size_t length)
{
	size_t		most = stream->limit + (stream->format == MESSAGE_EVENTS ? EXTRA : 0);

	if (length > most - buffer->length)
		stream->trouble = MESSAGE_TOO_LARGE;
	else if (!grow(buffer, data, length))
		stream->trouble = MESSAGE_NO_MEMORY;
	return stream->trouble == MESSAGE_NONE;
}

static bool
grow(Buffer *buffer, const char *data, size_t length)
{
	if (length == 0)
		return true;
	if (buffer->length + length > buffer->allocated)
	{
		size_t		allocated = buffer->allocated ? buffer->allocated : 1024;
		char	   *grown;

		while (allocated < buffer->length + length)
			allocated *= 2;
		grown = realloc(buffer->data, allocated);
		if (grown == NULL)
			return false;
		buffer->data = grown;
		buffer->allocated = allocated;
	}
	memcpy(buffer->data + buffer->length, data, length);
	buffer->length += length;
	return true;
}
