/*
 * message_stream.h
 *		Splits the body of a response into messages, as it comes.
 *
 * Plain C, so that it can be fuzzed by itself, and used in foreign callbacks:
 * it uses malloc and raises no errors.
 */
#ifndef LEASEHOLD_MESSAGE_STREAM_H
#define LEASEHOLD_MESSAGE_STREAM_H

#include <stdbool.h>
#include <stddef.h>

typedef enum MessageFormat
{
	MESSAGE_WHOLE,				/* the body is one message: not for here */
	MESSAGE_LINES,				/* application/x-ndjson: each line one */
	MESSAGE_EVENTS				/* text/event-stream: the data of each event */
} MessageFormat;

typedef enum MessageState
{
	MESSAGE_NONE,				/* more must come first */
	MESSAGE_READY,
	MESSAGE_TOO_LARGE,			/* for good */
	MESSAGE_NO_MEMORY
} MessageState;

typedef struct MessageStream MessageStream;

/* By a Content-Type header, or NULL. */
extern MessageFormat message_format_of(const char *content_type);

/* limit: bytes of one message.  NULL if there is no memory. */
extern MessageStream *message_stream_new(MessageFormat format, size_t limit);
extern void message_stream_free(MessageStream *stream);

/* Takes more of the body; false if there is no memory. */
extern bool message_stream_add(MessageStream *stream, const char *data, size_t length);

/* No more comes: a last line needs no end. */
extern void message_stream_end(MessageStream *stream);

/*
 * The next message, which stays, and may be changed, until the next call.  After
 * much that is no message, comments and empty lines, there is an empty one, so
 * that the caller notices what it costs.
 */
extern MessageState message_stream_next(MessageStream *stream, char **message, size_t *length);

#endif							/* LEASEHOLD_MESSAGE_STREAM_H */
