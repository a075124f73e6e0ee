/*
 * command_output.h
 *		What commands write, from the provider until it is stored.
 */
#ifndef LEASEHOLD_COMMAND_OUTPUT_H
#define LEASEHOLD_COMMAND_OUTPUT_H

#include "command.h"
#include "woken.h"

/* Gives a call its command; limit: bytes of output that are kept. */
extern void command_output_begin(Call *call, int64 limit);

/*
 * Takes what a command wrote; whether that says that it has begun is the
 * provider's to know.  False if that is enough for now: the provider
 * had better read no more until the command's drained() is called.  Not from
 * foreign callbacks.
 */
extern bool command_output_add(Call *call, CommandStream stream, const char *data, size_t length);

/* No more comes: what waited for the rest of a character is output as it is. */
extern void command_output_end(Call *call);

/* Whether there are pieces that are not stored; those of the round's batch count if asked. */
extern bool command_output_left(const Call *call, bool in_batch_too);

/* Whether something is to be stored now; else when, or 0. */
extern bool command_output_waiting(TimestampTz now, TimestampTz *next);

#define OUTPUT_BATCH		1000	/* pieces */

/* What one round stores. */
typedef struct OutputBatch
{
	struct OutputPiece **pieces;
	Call	  **calls;			/* whose they are */
	int			count;
} OutputBatch;

/* Takes up what is to be stored; allocates in the current memory context. */
extern void command_output_collect(OutputBatch *batch, TimestampTz now);

/* Within a transaction, before answers are applied. */
extern void command_output_apply(OutputBatch *batch);

/* After the commit. */
extern void command_output_settle(OutputBatch *batch, Woken *woken);

/*
 * After a failed round, outside of any transaction: each command's by itself;
 * what can never be stored is given up, and the command's output counts as cut.
 * Whether any could be dealt with.
 */
extern bool command_output_one_by_one(OutputBatch *batch, Woken *woken);

/* Has the next round store all that is here. */
extern void command_output_wait_no_longer(void);

/* A call is freed: what it has here is forgotten. */
extern void command_output_forget(Call *call);

#endif							/* LEASEHOLD_COMMAND_OUTPUT_H */
