/*
 * command_answers.h
 *		Stores how commands ended, and what came of ending others.
 */
#ifndef LEASEHOLD_COMMAND_ANSWERS_H
#define LEASEHOLD_COMMAND_ANSWERS_H

#include "call.h"

/* Within a transaction; the index says which calls.  applied: as in AnswerBatch. */
extern void command_answers_apply(Call *const *calls, const int *index, int count, char *applied);
extern void command_answers_apply_cancels(Call *const *calls, const int *index, int count);

#endif							/* LEASEHOLD_COMMAND_ANSWERS_H */
