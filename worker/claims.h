/*
 * claims.h
 *		Claims calls whose turn it is, and starts them.
 */
#ifndef LEASEHOLD_CLAIMS_H
#define LEASEHOLD_CLAIMS_H

#include "call.h"
#include "queue.h"

/* What one round takes from the queue, and claims of it. */
typedef struct Claims
{
	TimestampTz now;			/* when the round began */
	QueueKey   *taken;
	QueueShare **takers;		/* NULL: now a claimed call's */
	TimestampTz *taken_due;
	int			taken_count;
	Call	  **claimed;
	int			claimed_count;
} Claims;

/* None yet; allocates in the current memory context. */
extern void claims_init(Claims *claims, TimestampTz now);

/*
 * Within a transaction, if there is room for calls in flight: takes from the
 * queue and claims in the table as many as there is room for.  Afterwards, the
 * caller calls claims_start(), or, if the transaction failed,
 * claims_drop() and claims_one_by_one(); else places stay taken.
 */
extern void claims_take(Claims *claims);

/*
 * After the commit: starts the claimed calls, which are the worker's from now on,
 * and gives up what was not to be had.  Returns when to look for that again, or
 * DT_NOEND.
 */
extern TimestampTz claims_start(Claims *claims);

/* After a failure: frees what was claimed, and remembers only what was taken. */
extern void claims_drop(Claims *claims);

/*
 * After a failed round, outside of any transaction: each claim by itself; those
 * that were claimed are started, and one that cannot be is put off.  Whether
 * any could be dealt with.
 */
extern bool claims_one_by_one(Claims *claims);

#endif							/* LEASEHOLD_CLAIMS_H */
