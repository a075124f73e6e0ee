/*
 * woken.h
 *		Whom a round has to tell that something changed.
 */
#ifndef LEASEHOLD_WOKEN_H
#define LEASEHOLD_WOKEN_H

#include "utils/uuid.h"

/* Collected while it is not committed yet; told afterwards. */
typedef struct Woken
{
	pg_uuid_t  *subjects;
	int			count;
	int			room;
} Woken;

/* Empty, with room for that many, in the current memory context. */
extern void woken_init(Woken *woken, int room);

/* The caller sees to it that there is room. */
extern void woken_add(Woken *woken, const pg_uuid_t *subject);

/* Wakes who waits for these subjects; outside of any transaction.  Cannot fail. */
extern void woken_tell(const Woken *woken);

#endif							/* LEASEHOLD_WOKEN_H */
