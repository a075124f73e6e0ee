/*
 * queue.c
 *		Due calls in memory: fair turns, limits per provider, circuit breakers.
 *
 * The dispatch table is read in the order of due times; whose turn it is, is
 * decided here, so that neither a provider nor a company with a long queue
 * keeps others waiting, and a dead provider's calls cost nothing while they
 * cannot be made.  Memory is bounded: what does not fit stays in the table.
 *
 * Breaker: closed -> open after leasehold.breaker_threshold consecutive
 * failures; open -> half open when its pause is over: one call is let through;
 * half open -> closed if that ends well, -> open with twice the pause if not.
 */
#include "postgres.h"
#include "compat.h"

#include "common/pg_prng.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "queue.h"
#include "settings.h"

#define QUEUE_MAX			50000
#define QUEUE_MAX_PROVIDER	20000
#define COOLDOWN_MAX_MS		300000

typedef struct QueueCompany
{
	dlist_node	node;
	pg_uuid_t	id;
	dlist_head	items;
} QueueCompany;

typedef struct QueueItem
{
	QueueKey	key;			/* hash key */
	dlist_node	node;
	QueueProvider *provider;
	TimestampTz due_at;
	bool		taken;
} QueueItem;

static MemoryContext queue_context;
static HTAB *providers;			/* QueueProvider by key */
static HTAB *items;				/* QueueItem by QueueKey: queued and in flight */
static dlist_head ring = DLIST_STATIC_INIT(ring);
static int	total_queued = 0;
static int	default_limit = 1000;

static bool may_call(QueueProvider *provider, TimestampTz now);
static QueueItem *take_from(QueueProvider *provider);
static QueueCompany *company_of(QueueProvider *provider, const pg_uuid_t *id);
static void open_breaker(QueueProvider *provider, TimestampTz now);

void
queue_init(void)
{
	HASHCTL		ctl;

	queue_context = AllocSetContextCreate(TopMemoryContext, "leasehold queue", ALLOCSET_DEFAULT_SIZES);
	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = SHARED_KEY_SIZE;
	ctl.entrysize = sizeof(QueueProvider);
	ctl.hcxt = queue_context;
	providers = hash_create("leasehold providers", 64, &ctl, HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(QueueKey);
	ctl.entrysize = sizeof(QueueItem);
	ctl.hcxt = queue_context;
	items = hash_create("leasehold due calls", 1024, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

QueueProvider *
queue_provider(const char *key)
{
	char		name[SHARED_KEY_SIZE];
	QueueProvider *provider;
	bool		found;

	strlcpy(name, key, sizeof(name));
	provider = hash_search(providers, name, HASH_ENTER, &found);
	if (!found)
	{
		memset((char *) provider + SHARED_KEY_SIZE, 0, sizeof(QueueProvider) - SHARED_KEY_SIZE);
		dlist_init(&provider->companies);
		provider->limit = default_limit;
		provider->breaker = BREAKER_CLOSED;
	}
	return provider;
}

bool
queue_add(const QueueKey *key, const char *provider_key, TimestampTz due_at, TimestampTz now)
{
	QueueProvider *provider;
	QueueCompany *company;
	QueueItem  *item;
	bool		found;

	if (hash_search(items, key, HASH_FIND, NULL) != NULL)
		return false;
	provider = queue_provider(provider_key);
	if (provider->queued >= QUEUE_MAX_PROVIDER)
	{
		if (provider->overflow_since == 0 || due_at < provider->overflow_since)
			provider->overflow_since = due_at;
		return false;
	}

	item = hash_search(items, key, HASH_ENTER, &found);
	item->provider = provider;
	item->due_at = due_at;
	item->taken = false;
	company = company_of(provider, &key->company);
	dlist_push_tail(&company->items, &item->node);
	provider->queued++;
	total_queued++;
	if (!provider->in_ring)
	{
		dlist_push_tail(&ring, &provider->node);
		provider->in_ring = true;
	}
	return true;
}

int
queue_take(QueueKey *keys, QueueProvider **takers, TimestampTz *due_at, int count, TimestampTz now)
{
	int			taken = 0;
	bool		progress = true;

	while (taken < count && progress)
	{
		dlist_mutable_iter iter;

		progress = false;
		dlist_foreach_modify(iter, &ring)
		{
			QueueProvider *provider = dlist_container(QueueProvider, node, iter.cur);
			QueueItem  *item;

			if (!may_call(provider, now))
				continue;
			item = take_from(provider);
			keys[taken] = item->key;
			takers[taken] = provider;
			due_at[taken] = item->due_at;
			progress = true;
			if (++taken == count)
				break;
		}
	}

	/* the next time somebody else comes first */
	if (!dlist_is_empty(&ring))
		dlist_push_tail(&ring, dlist_pop_head_node(&ring));
	return taken;
}

static bool
may_call(QueueProvider *provider, TimestampTz now)
{
	if (provider->in_flight >= provider->limit)
		return false;
	switch (provider->breaker)
	{
		case BREAKER_CLOSED:
			return true;
		case BREAKER_OPEN:
			return now >= provider->retry_at;
		case BREAKER_HALF_OPEN:
			return false;		/* its one call is out */
	}
	return false;
}

static QueueItem *
take_from(QueueProvider *provider)
{
	QueueCompany *company = dlist_container(QueueCompany, node, dlist_pop_head_node(&provider->companies));
	QueueItem  *item = dlist_container(QueueItem, node, dlist_pop_head_node(&company->items));

	if (dlist_is_empty(&company->items))
		pfree(company);
	else
		dlist_push_tail(&provider->companies, &company->node);

	item->taken = true;
	provider->queued--;
	total_queued--;
	provider->in_flight++;
	if (provider->queued == 0)
	{
		dlist_delete(&provider->node);
		provider->in_ring = false;
	}
	if (provider->breaker == BREAKER_OPEN)
		provider->breaker = BREAKER_HALF_OPEN;
	return item;
}

static QueueCompany *
company_of(QueueProvider *provider, const pg_uuid_t *id)
{
	dlist_iter	iter;
	QueueCompany *company;
	int			looked = 0;

	/*
	 * The latest is the likeliest.  With very many companies waiting a second
	 * entry for one of them is harmless.
	 */
	dlist_reverse_foreach(iter, &provider->companies)
	{
		company = dlist_container(QueueCompany, node, iter.cur);
		if (memcmp(&company->id, id, UUID_LEN) == 0)
			return company;
		if (++looked >= 64)
			break;
	}
	company = MemoryContextAlloc(queue_context, sizeof(QueueCompany));
	company->id = *id;
	dlist_init(&company->items);
	dlist_push_tail(&provider->companies, &company->node);
	return company;
}

void
queue_forget(const QueueKey *key, QueueProvider *provider)
{
	bool		found;

	hash_search(items, key, HASH_REMOVE, &found);
	if (!found)
		return;
	provider->in_flight--;
	/* the one call that was let through came to nothing: the next may try */
	if (provider->breaker == BREAKER_HALF_OPEN && provider->in_flight == 0)
		provider->breaker = BREAKER_OPEN;
}

QueueProvider *
queue_taker_of(const QueueKey *key)
{
	QueueItem  *item = hash_search(items, key, HASH_FIND, NULL);

	return item != NULL && item->taken ? item->provider : NULL;
}

void
queue_clear(void)
{
	HASH_SEQ_STATUS seq;
	QueueProvider *provider;
	QueueItem  *item;

	hash_seq_init(&seq, providers);
	while ((provider = hash_seq_search(&seq)) != NULL)
	{
		while (!dlist_is_empty(&provider->companies))
			pfree(dlist_container(QueueCompany, node, dlist_pop_head_node(&provider->companies)));
		if (provider->in_ring)
			dlist_delete(&provider->node);
		provider->in_ring = false;
		provider->queued = 0;
		provider->overflow_since = 0;
	}
	hash_seq_init(&seq, items);
	while ((item = hash_seq_search(&seq)) != NULL)
	{
		if (!item->taken)
			hash_search(items, &item->key, HASH_REMOVE, NULL);
	}
	total_queued = 0;
}

int
queue_length(void)
{
	return total_queued;
}

bool
queue_is_full(void)
{
	return total_queued >= QUEUE_MAX;
}

bool
queue_has_turn(TimestampTz now, TimestampTz *next)
{
	dlist_iter	iter;

	*next = 0;
	dlist_foreach(iter, &ring)
	{
		QueueProvider *provider = dlist_container(QueueProvider, node, iter.cur);

		if (may_call(provider, now))
			return true;
		if (provider->breaker == BREAKER_OPEN && provider->in_flight < provider->limit &&
			(*next == 0 || provider->retry_at < *next))
			*next = provider->retry_at;
	}
	return false;
}

TimestampTz
queue_overflow(void)
{
	HASH_SEQ_STATUS seq;
	QueueProvider *provider;
	TimestampTz earliest = 0;

	hash_seq_init(&seq, providers);
	while ((provider = hash_seq_search(&seq)) != NULL)
	{
		if (provider->overflow_since != 0 && provider->queued < QUEUE_MAX_PROVIDER / 2)
		{
			if (earliest == 0 || provider->overflow_since < earliest)
				earliest = provider->overflow_since;
			provider->overflow_since = 0;
		}
	}
	return earliest;
}

void
queue_report(QueueProvider *provider, bool failed, TimestampTz now)
{
	if (!failed)
	{
		provider->succeeded++;
		provider->failures = 0;
		provider->cooldown_ms = 0;
		provider->breaker = BREAKER_CLOSED;
		return;
	}
	provider->failed++;
	provider->failures++;
	if (provider->breaker == BREAKER_HALF_OPEN ||
		(provider->breaker == BREAKER_CLOSED && provider->failures >= setting_breaker_threshold))
		open_breaker(provider, now);
}

static void
open_breaker(QueueProvider *provider, TimestampTz now)
{
	double		jitter = 0.75 + pg_prng_double(&pg_global_prng_state) / 2;

	provider->cooldown_ms = Min(Max(provider->cooldown_ms * 2, setting_breaker_cooldown),
								Max(COOLDOWN_MAX_MS, setting_breaker_cooldown));
	provider->retry_at = TimestampTzPlusMilliseconds(now, (int64) (provider->cooldown_ms * jitter));
	if (provider->breaker == BREAKER_CLOSED)
		ereport(LOG,
				(errmsg("leasehold: provider \"%s\" failed %d times in a row, its calls are held back",
						provider->key, provider->failures)));
	provider->breaker = BREAKER_OPEN;
}

void
queue_publish(SharedWorker *shared)
{
	HASH_SEQ_STATUS seq;
	QueueProvider *provider;

	hash_seq_init(&seq, providers);
	while ((provider = hash_seq_search(&seq)) != NULL)
	{
		SharedProvider *slot = provider->shared;

		if (slot == NULL)
		{
			for (int i = 0; i < SHARED_MAX_PROVIDERS && slot == NULL; i++)
			{
				if (shared->providers[i].key[0] == '\0')
					slot = &shared->providers[i];
			}
			if (slot == NULL)
				continue;
			provider->shared = slot;
		}
		SpinLockAcquire(&shared->mutex);
		if (slot->reset_breaker)
		{
			slot->reset_breaker = false;
			provider->breaker = BREAKER_CLOSED;
			provider->failures = 0;
			provider->cooldown_ms = 0;
		}
		strlcpy(slot->key, provider->key, sizeof(slot->key));
		slot->in_flight = provider->in_flight;
		slot->queued = provider->queued;
		slot->breaker = provider->breaker;
		slot->failures = provider->failures;
		slot->retry_at = provider->retry_at;
		slot->succeeded = provider->succeeded;
		slot->failed = provider->failed;
		SpinLockRelease(&shared->mutex);
	}
}

void
queue_set_limit(const char *key, int limit)
{
	queue_provider(key)->limit = Min(limit, default_limit);
}

void
queue_reset_limits(int limit)
{
	HASH_SEQ_STATUS seq;
	QueueProvider *provider;

	default_limit = limit;
	hash_seq_init(&seq, providers);
	while ((provider = hash_seq_search(&seq)) != NULL)
		provider->limit = limit;
}
