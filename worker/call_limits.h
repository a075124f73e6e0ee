/*
 * call_limits.h
 *		How many calls may be in flight: for a provider, a company, or both.
 */
#ifndef LEASEHOLD_CALL_LIMITS_H
#define LEASEHOLD_CALL_LIMITS_H

#include "utils/uuid.h"

/* Forgets all limits; capacity is that of this worker. */
extern void call_limits_reset(int capacity, bool several_companies);

/* A limit concurrent_calls; the nil company is every one, an empty provider all. */
extern void call_limits_set(const pg_uuid_t *company, const char *provider, int64 value);

extern int	call_limit_of_all(void);
extern int	call_limit_of_provider(const char *provider);
extern int	call_limit_of_company(const pg_uuid_t *company);
extern int	call_limit_of_share(const char *provider, const pg_uuid_t *company);

#endif							/* LEASEHOLD_CALL_LIMITS_H */
