/*
 * queue.h
 *		A worker's list of due calls, and whose turn it is.
 */
#ifndef LEASEHOLD_QUEUE_H
#define LEASEHOLD_QUEUE_H

#include "lib/ilist.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "shared_state.h"

/*
 * One provider's (or plugin's) due calls, and how it is doing.
 */
typedef struct QueueProvider
{
	char		key[SHARED_KEY_SIZE];	/* hash key */
	dlist_node	node;			/* in the ring of providers that have due calls */
	bool		in_ring;
	dlist_head	companies;		/* ring of QueueCompany with due calls */
	int			queued;
	int			in_flight;
	int			limit;			/* of in_flight */
	TimestampTz overflow_since; /* due calls from here on were left in the table; 0: none */

	BreakerState breaker;
	int			failures;		/* consecutive */
	int64		cooldown_ms;
	TimestampTz retry_at;
	uint64		succeeded;
	uint64		failed;
	SharedProvider *shared;		/* where this is reported, or NULL */
} QueueProvider;

typedef struct QueueKey
{
	pg_uuid_t	company;
	pg_uuid_t	subject;
} QueueKey;

extern void queue_init(void);

/* Forgets all due calls; the providers' states stay. */
extern void queue_clear(void);

/*
 * Adds a due call.  False if it was known already, or if the provider's queue
 * is full (then it is read again later).
 */
extern bool queue_add(const QueueKey *key, const char *provider, TimestampTz due_at, TimestampTz now);

/*
 * Takes up to count calls whose turn it is: in turn over the providers that may
 * be called, and for each in turn over the companies.  They count as in flight
 * until queue_forget().
 */
extern int	queue_take(QueueKey *keys, QueueProvider **providers, TimestampTz *due_at, int count, TimestampTz now);

/* A call that was taken is over, or was not to be had. */
extern void queue_forget(const QueueKey *key, QueueProvider *provider);

/* The provider that a taken call counts for; NULL if it is not taken. */
extern QueueProvider *queue_taker_of(const QueueKey *key);

/* The provider that calls to this key belong to; made if it is new. */
extern QueueProvider *queue_provider(const char *key);

extern int	queue_length(void);
extern bool queue_is_full(void);

/* Whether something can be taken now, and if not, when a breaker lets go (0: never). */
extern bool queue_has_turn(TimestampTz now, TimestampTz *next);

/* The earliest due time that was left in the table for lack of room, once there is room again; else 0. */
extern TimestampTz queue_overflow(void);

/* The circuit breaker: a call of the provider ended well, or badly. */
extern void queue_report(QueueProvider *provider, bool failed, TimestampTz now);

/* Copies the providers' figures to shared memory and obeys requests found there. */
extern void queue_publish(SharedWorker *shared);

/* Applies setting_provider_concurrency and the limits concurrent_calls. */
extern void queue_set_limit(const char *provider, int limit);
extern void queue_reset_limits(int limit);

#endif							/* LEASEHOLD_QUEUE_H */
