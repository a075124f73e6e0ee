/*
 * deadlines.h
 *		Fires the deadlines of leases and runs that have come.
 */
#ifndef LEASEHOLD_DEADLINES_H
#define LEASEHOLD_DEADLINES_H

#include "queue.h"
#include "woken.h"

/*
 * Within a transaction: fires those deadlines.  Whose subject changed is added
 * to woken; the caller empties it if the transaction fails.
 */
extern void deadlines_fire(const QueueKey *keys, int count, Woken *woken);

/*
 * After a failed round, outside of any transaction: each deadline by itself; one
 * that cannot be fired is put off.  Whether any could be dealt with.
 */
extern bool deadlines_fire_one_by_one(const QueueKey *keys, int count, Woken *woken);

#endif							/* LEASEHOLD_DEADLINES_H */
