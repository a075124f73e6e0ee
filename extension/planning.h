/*
 * planning.h
 *		Table sizes as our own statements are to be planned for.
 */
#ifndef LEASEHOLD_PLANNING_H
#define LEASEHOLD_PLANNING_H

extern void planning_init(void);

/* In this process every statement is ours: a worker. */
extern void planning_assume_own_statements(void);

#endif							/* LEASEHOLD_PLANNING_H */
