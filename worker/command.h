/*
 * command.h
 *		A command that a provider carries out: what it has written, and how it ended.
 */
#ifndef LEASEHOLD_COMMAND_H
#define LEASEHOLD_COMMAND_H

#include "call.h"

typedef enum CommandStream
{
	STREAM_STDOUT,
	STREAM_STDERR,
	STREAM_NOTICE				/* ours */
} CommandStream;

#define COMMAND_SIGNAL_SIZE	32

/*
 * Belongs to a call with SLOT_COMMAND, in whose memory it lives.  The provider
 * sets the first part before it ends the call; the rest is command_output.c's.
 */
struct Command
{
	Call	   *call;

	/* how it fares */
	bool		begun;			/* it is known to run, or to have run */
	bool		has_exit_code;
	int			exit_code;
	char		signal[COMMAND_SIGNAL_SIZE];	/* "SIGKILL"; empty: none */
	bool		timed_out;
	bool		cancelled;		/* it ended since it was cancelled */

	/* the provider's: there is room for output again */
	void		(*drained) (Call *call);

	/* what it wrote */
	int64		limit;			/* bytes that are kept */
	int64		kept;
	int64		written[2];		/* bytes, kept or not, of stdout and stderr */
	bool		truncated;
	char		tail[2][4];		/* the beginning of a character, whose rest is to come */
	int			tail_length[2];
	dlist_head	pieces;			/* to be stored */
	int64		pending;		/* memory of them */
	int64		piece_count;	/* of all that were made */
	bool		full;			/* the provider was told that there is no room */
	int64		last_seq;		/* of those that were numbered */
	TimestampTz store_at;
	dlist_node	node;			/* in the list of commands with pieces */
};

/* The command of that id that this worker has out, or NULL. */
extern Call *command_find(const QueueKey *key);

#endif							/* LEASEHOLD_COMMAND_H */
