/*
 * call_limits.h
 *		How many calls may be in flight: for a provider, a company, or both.
 */
#ifndef LEASEHOLD_CALL_LIMITS_H
#define LEASEHOLD_CALL_LIMITS_H

#include "queue.h"

/* Forgets all limits; the capacities are those of this worker, for each lane. */
extern void call_limits_reset(const int capacities[QUEUE_LANES], bool several_companies);

/* A limit of a lane; the nil company is every one, an empty provider all. */
extern void call_limits_set(QueueLane lane, const pg_uuid_t *company, const char *provider, int64 value);

extern int	call_limit_of_all(QueueLane lane);
extern int	call_limit_of_provider(QueueLane lane, const char *provider);
extern int	call_limit_of_company(QueueLane lane, const pg_uuid_t *company);
extern int	call_limit_of_share(QueueLane lane, const char *provider, const pg_uuid_t *company);

#endif							/* LEASEHOLD_CALL_LIMITS_H */
