/*
 * woken.c
 *		Whom a round has to tell that something changed.
 *
 * Nobody is told before the commit, or he would look too early and sleep on.
 * Who is woken for nothing looks, and goes on waiting.
 */
#include "postgres.h"
#include "compat.h"

#include "storage/condition_variable.h"

#include "woken.h"
#include "worker.h"

void
woken_init(Woken *woken, int room)
{
	woken->subjects = palloc(room * sizeof(pg_uuid_t));
	woken->count = 0;
	woken->room = room;
}

void
woken_add(Woken *woken, const pg_uuid_t *subject)
{
	Assert(woken->count < woken->room);
	woken->subjects[woken->count++] = *subject;
}

void
woken_tell(const Woken *woken)
{
	for (int i = 0; i < woken->count; i++)
		ConditionVariableBroadcast(shared_waiters_of(worker.database, &woken->subjects[i]));
}
