/*
 * due.h
 *		A worker's reading of the dispatch table: what is due, and since when it looks.
 */
#ifndef LEASEHOLD_DUE_H
#define LEASEHOLD_DUE_H

#include "utils/timestamp.h"

#include "call.h"
#include "queue.h"

/* What one round reads. */
typedef struct DueCalls
{
	TimestampTz now;			/* when the round began */
	TimestampTz since;			/* from there on */
	int			limit;
	int			overdue_limit;	/* 0: not looked for */
	bool		more;			/* is likely to be left */
	TimestampTz last;			/* due time of the last that was read */
	int			added;			/* that were not known */
	QueueKey   *timers;			/* deadlines, and requests that ran out of time */
	int			timer_count;	/* limit + overdue_limit at most */
} DueCalls;

/*
 * Before the transaction: from when on to look, and how far.  Everywhere: from
 * the very beginning, and for requests that ran out of time, too.  Allocates in
 * the current memory context.
 */
extern void due_begin(DueCalls *due, TimestampTz now, bool everywhere);

/*
 * Within a transaction: calls that are due go into the queue, deadlines into
 * due->timers.  What was added to the queue stays there if the transaction
 * fails.
 */
extern void due_read(DueCalls *due);

/* Within the transaction, after due_read(): when the next call is due; DT_NOEND if none is. */
extern TimestampTz due_next(const DueCalls *due);

/* After the commit: the next round goes on from where this one came to. */
extern void due_was_read(const DueCalls *due);

/* The next round looks at everything that is due. */
extern void due_look_from_start(void);

/* The next round looks at what is due at that time, too, if not earlier. */
extern void due_look_from(TimestampTz due_at);

/*
 * A taken call is over, or was not to be had: it is not known any more.  What
 * became due again meanwhile is read once more; returns when that is, or
 * DT_NOEND.
 */
extern TimestampTz due_forget(const QueueKey *key);

/*
 * The same for a claimed call that is in one of the worker's lists: it is taken
 * out and freed.  The caller counts.
 */
extern TimestampTz due_forget_call(Call *call);

/*
 * Within a transaction, after one that failed on account of it: has a call, or
 * the deadline of its subject, come again; soon, if what was in the way will
 * pass.
 */
extern void due_postpone(const QueueKey *key, bool deadline);

#endif							/* LEASEHOLD_DUE_H */
