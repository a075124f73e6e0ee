/*
 * message_stream.c
 *		Streams of messages, however the network cuts them: newline-delimited JSON,
 *		and event streams as the HTML standard has them.
 */
#include "../../worker/message_stream.c"

#include <stdint.h>
#include <stdio.h>

#include "tap.h"

#define LIMIT		1000

/* What came of a stream: each message with its length before it, and how it ended. */
static char found[200000];
static size_t found_length;

static uint32_t seed = 1;

static uint32_t
draw(uint32_t below)
{
	seed = seed * 1664525 + 1013904223;
	return (seed >> 8) % below;
}

/* What waits in the stream. */
static MessageState
take(MessageStream *stream)
{
	char	   *message;
	size_t		length;
	MessageState state;

	while ((state = message_stream_next(stream, &message, &length)) == MESSAGE_READY)
	{
		found_length += sprintf(found + found_length, "%zu:", length);
		if (length > 0)
			memcpy(found + found_length, message, length);
		found_length += length;
		/* it may be changed */
		memset(message, '#', length);
	}
	return state;
}

/* Adds a copy of the exact size, so that reading on is found out. */
static void
add(MessageStream *stream, const char *data, size_t length)
{
	char	   *copy = malloc(length ? length : 1);

	memcpy(copy, data, length);
	if (!message_stream_add(stream, copy, length))
		abort();
	free(copy);
}

/* step: bytes at a time; 0: random.  patience: how many additions before messages are taken. */
static MessageState
run(MessageFormat format, size_t limit, const char *body, size_t length, size_t step, int patience)
{
	MessageStream *stream = message_stream_new(format, limit);
	MessageState state = MESSAGE_NONE;
	int			additions = 0;

	found_length = 0;
	for (size_t at = 0; at < length;)
	{
		size_t		part = step ? step : 1 + draw(7);

		part = part < length - at ? part : length - at;
		add(stream, body + at, part);
		at += part;
		if (++additions % patience == 0)
			state = take(stream);
	}
	message_stream_end(stream);
	state = take(stream);
	if (take(stream) != state)
		abort();
	message_stream_free(stream);
	return state;
}

/* Whatever the cuts, these messages. */
static void
gives(MessageFormat format, const char *body, size_t length, const char *expected, size_t expected_length, const char *name)
{
	int			wrong = 0;

	for (size_t step = 0; step <= length + 1; step++)
	{
		for (int patience = 1; patience <= 3; patience++)
		{
			if (run(format, LIMIT, body, length, step, patience) != MESSAGE_NONE || found_length != expected_length ||
				memcmp(found, expected, found_length) != 0)
				wrong++;
		}
	}
	ok(wrong == 0, "%s", name);
	if (wrong)
		printf("# %.*s\n", (int) found_length, found);
}

#define LINES(body, expected) \
	gives(MESSAGE_LINES, body, sizeof(body) - 1, expected, sizeof(expected) - 1, "lines: " #body)
#define EVENTS(body, expected) \
	gives(MESSAGE_EVENTS, body, sizeof(body) - 1, expected, sizeof(expected) - 1, "events: " #body)

static void
test_lines(void)
{
	LINES("", "");
	LINES("\n", "");
	LINES("a\n", "1:a");
	LINES("a\nbc\n", "1:a2:bc");
	LINES("a\nb", "1:a1:b");
	LINES("{\"a\": 1}\r\n{}\r\n", "9:{\"a\": 1}\r3:{}\r");
	LINES("\n\n \t\r\na\n\n", "1:a");
	LINES("a\n ", "1:a");
	LINES("a\rb\n", "3:a\rb");
	LINES("a\0b\n\0\n", "3:a\0b1:\0");
	LINES("data: a\n\n", "7:data: a");
}

static void
test_events(void)
{
	EVENTS("", "");
	EVENTS("data: a\n\n", "1:a");
	EVENTS("data:a\n\n", "1:a");
	EVENTS("data:  a\n\n", "2: a");
	EVENTS("data: a\r\n\r\ndata: b\r\r", "1:a1:b");
	EVENTS("data: a\r\n\ndata: b\n\r\n", "1:a1:b");
	EVENTS("data: a\ndata: b\n\n", "3:a\nb");
	EVENTS("data\n\n", "0:");
	EVENTS("data\ndata\n\n", "1:\n");
	EVENTS("data:\n\n", "0:");
	EVENTS(": comment\n\n:\n\ndata: a\n: between\ndata: b\n\n", "3:a\nb");
	EVENTS("event: x\nid: 7\nretry: 10\nother: y\ndata: a\n\n", "1:a");
	EVENTS("event: x\n\ndata: a\n\n", "1:a");
	EVENTS("datas: a\n\ndat: b\n\n data: c\n\nDATA: d\n\n", "");
	EVENTS("\n\n\ndata: a\n\n\n\n", "1:a");
	EVENTS("\xef\xbb\xbf" "data: a\n\n", "1:a");
	EVENTS("\xef\xbb\xbf\ndata: a\n\n", "1:a");
	EVENTS("data: a\n\n\xef\xbb\xbf" "data: b\n\n", "1:a");
	EVENTS("data: a\0b\n\n", "3:a\0b");
	/* what does not end is no event */
	EVENTS("data: a\n\ndata: b\n", "1:a");
	EVENTS("data: a\n\ndata: b", "1:a");
	EVENTS("data: a\r\r\ndata: b\n\n", "1:a1:b");
}

static void
test_formats(void)
{
	static const struct
	{
		const char *content_type;
		MessageFormat format;
	}			cases[] = {
		{NULL, MESSAGE_WHOLE},
		{"", MESSAGE_WHOLE},
		{"application/json", MESSAGE_WHOLE},
		{"application/x-ndjson", MESSAGE_LINES},
		{"application/x-ndjson; charset=utf-8", MESSAGE_LINES},
		{"Application/X-NDJSON;charset=utf-8", MESSAGE_LINES},
		{" application/x-ndjson ", MESSAGE_LINES},
		{"application/x-ndjsonx", MESSAGE_WHOLE},
		{"application/x-ndjso", MESSAGE_WHOLE},
		{"text/event-stream", MESSAGE_EVENTS},
		{"text/event-stream ;charset=utf-8", MESSAGE_EVENTS},
		{"text/plain", MESSAGE_WHOLE},
		{"text", MESSAGE_WHOLE},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		ok(message_format_of(cases[i].content_type) == cases[i].format, "the format of \"%s\"",
		   cases[i].content_type ? cases[i].content_type : "no type");
}

/* Before it, a message; length bytes of content. */
static void
sized(MessageFormat format, size_t length, bool fits)
{
	char	   *body = malloc(length + 100);
	size_t		at = 0;
	int			wrong = 0;

	at += sprintf(body, format == MESSAGE_LINES ? "a\n" : "data: a\n\ndata: ");
	memset(body + at, 'x', length);
	at += length;
	at += sprintf(body + at, "\n\n");
	for (size_t step = 0; step <= at; step += 1 + step / 3)
	{
		MessageState state = run(format, LIMIT, body, at, step, 1);

		if (state != (fits ? MESSAGE_NONE : MESSAGE_TOO_LARGE) || memcmp(found, "1:a", 3) != 0 ||
			found_length != (fits ? strlen("1:a1000:") + length : 3))
			wrong++;
	}
	ok(wrong == 0, "%s of %zu bytes %s", format == MESSAGE_LINES ? "a line" : "an event", length,
	   fits ? "fits" : "is too large");
	free(body);
}

static void
test_sizes(void)
{
	MessageStream *stream = message_stream_new(MESSAGE_EVENTS, LIMIT);
	MessageState state = MESSAGE_NONE;
	int			rounds = 0;

	sized(MESSAGE_LINES, LIMIT, true);
	sized(MESSAGE_LINES, LIMIT + 1, false);
	sized(MESSAGE_LINES, 100000, false);
	sized(MESSAGE_EVENTS, LIMIT, true);
	sized(MESSAGE_EVENTS, LIMIT + EXTRA, false);
	sized(MESSAGE_EVENTS, 100000, false);

	/* of many small lines, too, an event must not grow for ever */
	while (state == MESSAGE_NONE && rounds++ < 10000)
	{
		add(stream, "data: 0123456789\n", 17);
		state = take(stream);
	}
	ok(state == MESSAGE_TOO_LARGE, "an event of many lines is too large, too");
	message_stream_free(stream);

	/* what is no data does not add up, but is told now and then */
	stream = message_stream_new(MESSAGE_EVENTS, LIMIT);
	found_length = 0;
	add(stream, "data: an event ", 15);
	state = take(stream);
	add(stream, "with two lines\ndata: of data\n", 29);
	state = take(stream);
	for (rounds = 0; rounds < 10000; rounds++)
	{
		add(stream, ": keep the connection alive\n\n", 29);
		state = take(stream);
	}
	ok(state == MESSAGE_NONE && stream->arrived.allocated < 2000 && stream->line.allocated < 2000,
	   "comments for ever take no room");
	found[found_length] = '\0';
	ok(strncmp(found, "31:an event with two lines\nof data0:0:", 38) == 0 && found_length == 34 + 2 * (290000 / SKIPPED_MOST),
	   "and bring an empty message now and then");
	message_stream_free(stream);

	/* many messages, none large */
	stream = message_stream_new(MESSAGE_LINES, LIMIT);
	for (rounds = 0; rounds < 10000; rounds++)
	{
		found_length = 0;
		add(stream, "a line of text\nand half ", 24);
		state = take(stream);
	}
	ok(state == MESSAGE_NONE && stream->arrived.allocated < 2000, "nor do messages that were taken");
	message_stream_free(stream);
}

/* The same by another way, of the whole body: lines, then what they say. */
static size_t
expect(MessageFormat format, const char *body, size_t length, char *expected)
{
	char		event[5000];
	size_t		event_length = 0;
	size_t		out = 0;
	bool		first = true;

	for (size_t at = 0; at < length;)
	{
		size_t		end = at;
		size_t		begin = at;

		while (end < length && body[end] != '\n' && !(format == MESSAGE_EVENTS && body[end] == '\r'))
			end++;
		at = end + (end < length && body[end] == '\r' && end + 1 < length && body[end + 1] == '\n' ? 2 : 1);
		if (format == MESSAGE_LINES)
		{
			size_t		blank = begin;

			while (blank < end && (body[blank] == ' ' || body[blank] == '\t' || body[blank] == '\r'))
				blank++;
			if (blank < end)
			{
				out += sprintf(expected + out, "%zu:", end - begin);
				memcpy(expected + out, body + begin, end - begin);
				out += end - begin;
			}
			continue;
		}
		if (end == length)
			break;
		if (first && end - begin >= 3 && memcmp(body + begin, "\xef\xbb\xbf", 3) == 0)
			begin += 3;
		first = false;
		if (begin == end && event_length > 0)
		{
			out += sprintf(expected + out, "%zu:", event_length - 1);
			memcpy(expected + out, event, event_length - 1);
			out += event_length - 1;
			event_length = 0;
		}
		if (end - begin >= 4 && memcmp(body + begin, "data", 4) == 0 && (end - begin == 4 || body[begin + 4] == ':'))
		{
			begin += end - begin == 4 ? 4 : 5;
			if (begin < end && body[begin] == ' ')
				begin++;
			memcpy(event + event_length, body + begin, end - begin);
			event_length += end - begin;
			event[event_length++] = '\n';
		}
	}
	return out;
}

/* Bodies of what matters to the parser, at random. */
static void
test_random(MessageFormat format, const char *name)
{
	static const char *const parts[] = {"data", ":", " ", "\n", "\r", "\r\n", "x", "{}", "\xef\xbb\xbf", "\t", "id: 1", "\n\n"};
	static char expected[20000];
	int			wrong = 0;

	for (int round = 0; round < 20000; round++)
	{
		char		body[400];
		size_t		length = 0;
		size_t		expected_length;

		for (uint32_t i = draw(40); i > 0; i--)
		{
			const char *part = parts[draw(sizeof(parts) / sizeof(parts[0]))];

			memcpy(body + length, part, strlen(part));
			length += strlen(part);
		}
		if (length > 0 && draw(4) == 0)
			body[draw(length)] = (char) draw(256);
		expected_length = expect(format, body, length, expected);
		if (run(format, LIMIT, body, length, draw(4), 1 + draw(3)) != MESSAGE_NONE || found_length != expected_length ||
			memcmp(found, expected, found_length) != 0)
			wrong++;
	}
	ok(wrong == 0, "20000 streams of %s at random", name);
	if (wrong)
		printf("# %d are not what they should be\n", wrong);
}

int
main(void)
{
	test_formats();
	test_lines();
	test_events();
	test_sizes();
	test_random(MESSAGE_LINES, "lines");
	test_random(MESSAGE_EVENTS, "events");
	return tap_done();
}
