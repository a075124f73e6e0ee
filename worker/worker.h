/*
 * worker.h
 *		What the parts of a worker process share.
 */
#ifndef LEASEHOLD_WORKER_H
#define LEASEHOLD_WORKER_H

#include "call.h"
#include "shared_state.h"

/* This process. */
typedef struct Worker
{
	SharedDatabase *database;
	SharedWorker *shared;
	int			part;			/* of setting_workers */
	int64		epoch;
	int			capacity[QUEUE_LANES];	/* calls in flight, and commands, by settings and descriptors */
	int			in_flight[QUEUE_LANES];
	dlist_head	finished;		/* calls with an outcome, to be stored */
	int			finished_count;
	dlist_head	out;			/* calls that are out */
} Worker;

extern Worker worker;

/*
 * A provider is done with a call; its outcome is set.  Called from the event
 * loop, outside of any transaction, never from a foreign callback.
 */
extern void worker_call_finished(Call *call);

#endif							/* LEASEHOLD_WORKER_H */
