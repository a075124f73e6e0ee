/*
 * queue.h
 *		A worker's list of due calls, and whose turn it is.
 */
#ifndef LEASEHOLD_QUEUE_H
#define LEASEHOLD_QUEUE_H

#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "shared_state.h"

/* One company's calls to one provider (or plugin), and how they fare. */
typedef struct QueueShare QueueShare;

/* What a call is to its subject, as in the dispatch table. */
typedef enum QueueSlot
{
	SLOT_OP,					/* of a lease, stray or plugin */
	SLOT_SWEEP,					/* of an environment */
	SLOT_COMMAND,				/* a command is carried out */
	SLOT_CANCEL					/* and ended before its time */
} QueueSlot;

/*
 * Which call.  The id of a lease may be an environment's or command's, too.
 * Hashed as bytes, so it must have no padding.
 */
typedef struct QueueKey
{
	pg_uuid_t	company;
	pg_uuid_t	subject;
	QueueSlot	slot;
} QueueKey;

/*
 * Commands take hours where calls take seconds, so neither takes places from the
 * other: each lane has its own.
 */
typedef enum QueueLane
{
	LANE_CALLS,
	LANE_COMMANDS
} QueueLane;

#define QUEUE_LANES			2
#define QUEUE_COMMANDS		"commands:" /* before a provider's key: its commands */

extern void queue_init(void);

/* Forgets all due calls; how providers and companies fare is kept. */
extern void queue_clear(void);

/*
 * Adds a due call.  False if it was known already, or if there is no room for
 * it (then it is read again later).
 */
extern bool queue_add(const QueueKey *key, const char *provider, TimestampTz due_at, TimestampTz now);

/*
 * Takes up to count calls whose turn it is: in turn over the providers that may
 * be called, and for each in turn over the companies.  They count as in flight
 * until queue_end(), and are known until queue_forget().
 */
extern int	queue_take(QueueKey *keys, QueueShare **shares, TimestampTz *due_at, int count, TimestampTz now);

/* A call that was taken is not out any more: others may have its place. */
extern void queue_end(const QueueKey *key);

/*
 * Its answer is stored, or it was not to be had.  Returns since when the table
 * has had it due again while it was known here, else 0: that was passed over,
 * and is to be read once more.
 */
extern TimestampTz queue_forget(const QueueKey *key);

/* The share that a taken call counts for; NULL if it is not taken. */
extern QueueShare *queue_taker_of(const QueueKey *key);

extern int	queue_length(void);

/* Whether something can be taken now, and if not, when a breaker lets go (0: never). */
extern bool queue_has_turn(TimestampTz now, TimestampTz *next);

/* The earliest due time that was left in the table for lack of room, once there is room again; else 0. */
extern TimestampTz queue_overflow(void);

/* A call that was taken ended well, or badly: unreachable if it never came to the provider. */
extern void queue_report(const QueueKey *key, bool failed, bool unreachable, TimestampTz now);

/* The clock was set back: what is held back is not longer than it would have been. */
extern void queue_clock_set_back(TimestampTz now);

/*
 * Closes the breakers that somebody wants closed, as shared memory says; before
 * calls are taken, so that theirs are among them.
 */
extern void queue_obey_resets(SharedWorker *shared);

/* Copies the providers' figures to shared memory. */
extern void queue_publish(SharedWorker *shared);

/* The limits of call_limits.c have changed. */
extern void queue_limits_changed(void);

#endif							/* LEASEHOLD_QUEUE_H */
