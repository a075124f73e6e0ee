/*
 * answers.h
 *		Stores the answers of finished calls.
 */
#ifndef LEASEHOLD_ANSWERS_H
#define LEASEHOLD_ANSWERS_H

#include "call.h"
#include "woken.h"

#define ANSWER_BATCH		500

/* What one round stores.  The calls stay in worker.finished until it is settled. */
typedef struct AnswerBatch
{
	Call	  **calls;
	int			count;			/* ANSWER_BATCH at most */
	char	   *applied;		/* per call: 'a'pplied, 'l'ocked, 's'tale */
} AnswerBatch;

/* Takes up finished calls whose time has come; allocates in the current memory context. */
extern void answers_collect(AnswerBatch *batch, TimestampTz now);

/* Within a transaction: writes down what came of the calls, as far as nobody has them locked. */
extern void answers_apply(AnswerBatch *batch);

/*
 * After the commit: what was applied or ignored is over and its call freed, what
 * was locked is tried again a little later.  Whose subject changed is added to
 * woken.  Returns when there is something to be read on account of them, or
 * DT_NOEND.
 */
extern TimestampTz answers_settle(AnswerBatch *batch, Woken *woken);

/*
 * After a failed round, outside of any transaction: applies and settles each
 * answer by itself, so that the one that cannot be stored is found; the batch is
 * empty then.  What could not be dealt with waits for a while.  Whether any could.
 */
extern bool answers_apply_one_by_one(AnswerBatch *batch, Woken *woken);

/* Has the next round store all answers that are here, whatever they wait for. */
extern void answers_wait_no_longer(void);

#endif							/* LEASEHOLD_ANSWERS_H */
