/*
 * call_limits.c
 *		How many calls, or commands, may be out: for a provider, a company, or both.
 *
 * A call may hang for as long as its environment allows, and nothing takes its
 * place back.  So that nobody can take all places, each has half at most: a
 * provider of the worker's, and, once there are other companies, a company of
 * the worker's and of each provider's.  A limit concurrent_calls replaces the
 * half that it is about.  With commands, which are expected to take their time,
 * it is the same but for providers: one may have all places of the lane.
 */
#include "postgres.h"
#include "compat.h"

#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "call_limits.h"
#include "settings.h"
#include "shared_state.h"

#define HALF(n)		Max(((n) + 1) / 2, 1)

typedef struct LimitKey
{
	pg_uuid_t	company;
	QueueLane	lane;
	char		provider[SHARED_KEY_SIZE];
} LimitKey;

typedef struct CallLimit
{
	LimitKey	key;			/* hash key */
	int			value;
} CallLimit;

static HTAB *limits = NULL;
static int	all[QUEUE_LANES] = {1, 1};
static bool several = false;

static const pg_uuid_t every_company;	/* nil */

static bool look_up(QueueLane lane, const pg_uuid_t *company, const char *provider, int *value);
static LimitKey key_of(QueueLane lane, const pg_uuid_t *company, const char *provider);

void
call_limits_reset(const int capacities[QUEUE_LANES], bool several_companies)
{
	HASHCTL		ctl;

	if (limits != NULL)
		hash_destroy(limits);
	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(LimitKey);
	ctl.entrysize = sizeof(CallLimit);
	ctl.hcxt = TopMemoryContext;
	limits = hash_create("leasehold call limits", 16, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	memcpy(all, capacities, sizeof(all));
	several = several_companies;
}

void
call_limits_set(QueueLane lane, const pg_uuid_t *company, const char *provider, int64 value)
{
	LimitKey	key = key_of(lane, company, provider);
	CallLimit  *limit = hash_search(limits, &key, HASH_ENTER, NULL);

	limit->value = (int) Min(value, INT_MAX);
}

int
call_limit_of_all(QueueLane lane)
{
	int			value;

	return look_up(lane, &every_company, "", &value) ? Min(value, all[lane]) : all[lane];
}

int
call_limit_of_provider(QueueLane lane, const char *provider)
{
	int			value;

	if (look_up(lane, &every_company, provider, &value))
		return Min(value, all[lane]);
	return lane == LANE_CALLS ? Min(setting_provider_concurrency, HALF(all[lane])) : all[lane];
}

int
call_limit_of_company(QueueLane lane, const pg_uuid_t *company)
{
	int			value;

	if (look_up(lane, company, "", &value))
		return value;
	return several ? HALF(all[lane]) : all[lane];
}

int
call_limit_of_share(QueueLane lane, const char *provider, const pg_uuid_t *company)
{
	int			value;

	if (look_up(lane, company, provider, &value))
		return value;
	value = call_limit_of_provider(lane, provider);
	return several ? HALF(value) : value;
}

static bool
look_up(QueueLane lane, const pg_uuid_t *company, const char *provider, int *value)
{
	LimitKey	key = key_of(lane, company, provider);
	CallLimit  *limit = limits != NULL ? hash_search(limits, &key, HASH_FIND, NULL) : NULL;

	if (limit != NULL)
		*value = limit->value;
	return limit != NULL;
}

static LimitKey
key_of(QueueLane lane, const pg_uuid_t *company, const char *provider)
{
	LimitKey	key;

	memset(&key, 0, sizeof(key));
	key.company = *company;
	key.lane = lane;
	strlcpy(key.provider, provider, sizeof(key.provider));
	return key;
}
