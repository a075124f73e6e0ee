/*
 * queue.c
 *		Due calls in memory: fair turns, room, and who is held back.
 *
 * The dispatch table is read in the order of due times; whose turn it is, is
 * decided here, so that neither a provider nor a company with a long queue
 * keeps others waiting, and a dead provider's calls cost nothing while they
 * cannot be made.
 *
 * Memory is bounded: what does not fit stays in the table.  Where there is no
 * room, a company that has less than its even part of it displaces the newest
 * call of the company that has most.
 *
 * Failures: a provider that cannot be reached, or that fails for several
 * companies in a row, is held back by its breaker; a company that fails alone,
 * which may be due to what it asks for, only by a breaker of its own with that
 * provider.  Its failures count for the provider until then.
 */
#include "postgres.h"
#include "compat.h"

#include "lib/ilist.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "breaker.h"
#include "call_limits.h"
#include "queue.h"

#define QUEUE_MAX			50000
#define QUEUE_MAX_PROVIDER	20000
#define RECENT_MS			600000	/* how long a share is remembered that is not used */
#define UNSTORED_MIN		100 /* answers that a share may leave unstored, if its limit is lower */

/* One provider (or plugin). */
typedef struct QueueProvider
{
	char		key[SHARED_KEY_SIZE];	/* hash key */
	QueueLane	lane;
	const char *name;			/* what limits call it: the key without QUEUE_COMMANDS */
	dlist_node	node;			/* in the ring of providers that have due calls */
	bool		in_ring;
	dlist_head	waiting;		/* ring of shares with due calls */
	int			waiting_count;
	dlist_head	shares;			/* all, by latest use */
	int			share_count;
	int			held_back;		/* shares whose own breaker is not closed */
	int			queued;
	int			in_flight;
	int			limit;			/* of in_flight */

	Breaker		breaker;
	bool		unreachable;	/* its failures are such */
	bool		several;		/* they are of several companies */
	pg_uuid_t	first_failing;
	uint64		succeeded;
	uint64		failed;
	SharedProvider *shared;		/* where this is reported, or NULL */
} QueueProvider;

typedef struct CompanyKey
{
	pg_uuid_t	id;
	QueueLane	lane;
} CompanyKey;

typedef struct QueueCompany
{
	CompanyKey	key;			/* hash key */
	int			share_count;
	int			in_flight;
	int			limit;			/* of in_flight */
} QueueCompany;

typedef struct ShareKey
{
	QueueProvider *provider;
	pg_uuid_t	company;
} ShareKey;

struct QueueShare
{
	ShareKey	key;			/* hash key */
	QueueCompany *company;
	dlist_node	node;			/* in the provider's ring */
	dlist_node	use_node;		/* in its list by latest use */
	TimestampTz used_at;
	dlist_head	items;			/* due calls */
	int			queued;
	int			in_flight;
	int			limit;			/* of in_flight */
	int			unstored;		/* ended, but not forgotten yet */
	TimestampTz overflow_since; /* due calls from here on were left in the table; 0: none */
	Breaker		breaker;
	bool		held_back;		/* counted in the provider's held_back */
};

typedef struct QueueItem
{
	QueueKey	key;			/* hash key */
	dlist_node	node;
	QueueShare *share;
	TimestampTz due_at;
	bool		taken;
	bool		ended;			/* taken, but not in flight any more */
	TimestampTz again_since;	/* taken, and due in the table again since then; 0: not */
	bool		tries_provider; /* it is the one that a breaker let through */
	bool		tries_share;
} QueueItem;

static MemoryContext queue_context;
static HTAB *providers;			/* QueueProvider by key */
static HTAB *companies;			/* QueueCompany by CompanyKey */
static HTAB *shares;			/* QueueShare by ShareKey */
static HTAB *items;				/* QueueItem by QueueKey: queued and in flight */
static dlist_head ring = DLIST_STATIC_INIT(ring);
static int	total_queued = 0;
static int	total_waiting = 0;	/* shares with due calls */
static int	total_in_flight[QUEUE_LANES] = {0, 0};
static int	overflowing = 0;	/* shares with overflow_since */

static HTAB *make_table(const char *name, Size key_size, Size entry_size, int flags);
static QueueProvider *provider_of(QueueLane lane, const char *key);
static QueueShare *share_of(QueueProvider *provider, const pg_uuid_t *company);
static void note_use(QueueShare *share, TimestampTz now);
static void forget_unused(QueueProvider *provider, TimestampTz now);
static bool make_room(QueueShare *share);
static int	even_part(const QueueShare *share);
static QueueShare *longest_of(QueueProvider *provider, QueueShare *longest);
static void leave_in_table(QueueShare *share, TimestampTz due_at);
static QueueItem *remove_item(QueueShare *share, dlist_node *node);
static bool provider_may(const QueueProvider *provider, TimestampTz now);
static bool has_places(const QueueProvider *provider);
static bool has_place(const QueueShare *share);
static void give_place_back(QueueItem *item);
static QueueShare *choose_share(QueueProvider *provider, TimestampTz now);
static QueueItem *take_from(QueueShare *share, TimestampTz now);
static void count_held_back(QueueShare *share);
static void blame_provider(QueueItem *item, bool unreachable, TimestampTz now);
static void forgive_provider(QueueProvider *provider);
static const Breaker *reported_breaker(QueueProvider *provider);
static void reset_breakers(QueueProvider *provider);
static SharedProvider *slot_for(const QueueProvider *provider, SharedWorker *shared);
static bool is_quiet(const QueueProvider *provider);

void
queue_init(void)
{
	queue_context = AllocSetContextCreate(TopMemoryContext, "leasehold queue", ALLOCSET_DEFAULT_SIZES);
	providers = make_table("leasehold providers", SHARED_KEY_SIZE, sizeof(QueueProvider), HASH_STRINGS);
	companies = make_table("leasehold companies", sizeof(CompanyKey), sizeof(QueueCompany), HASH_BLOBS);
	shares = make_table("leasehold shares", sizeof(ShareKey), sizeof(QueueShare), HASH_BLOBS);
	items = make_table("leasehold due calls", sizeof(QueueKey), sizeof(QueueItem), HASH_BLOBS);
}

static HTAB *
make_table(const char *name, Size key_size, Size entry_size, int flags)
{
	HASHCTL		ctl;

	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = key_size;
	ctl.entrysize = entry_size;
	ctl.hcxt = queue_context;
	return hash_create(name, 256, &ctl, flags | HASH_ELEM | HASH_CONTEXT);
}

/* Providers, companies, and shares */

/* Made if it is new. */
static QueueProvider *
provider_of(QueueLane lane, const char *name)
{
	const char *prefix = lane == LANE_COMMANDS ? QUEUE_COMMANDS : "";
	char		key[SHARED_KEY_SIZE];
	QueueProvider *provider;
	bool		found;

	snprintf(key, sizeof(key), "%s%s", prefix, name);
	provider = hash_search(providers, key, HASH_ENTER, &found);
	if (!found)
	{
		memset((char *) provider + SHARED_KEY_SIZE, 0, sizeof(QueueProvider) - SHARED_KEY_SIZE);
		dlist_init(&provider->waiting);
		dlist_init(&provider->shares);
		provider->lane = lane;
		provider->name = provider->key + strlen(prefix);
		provider->limit = call_limit_of_provider(lane, provider->name);
		breaker_close(&provider->breaker);
	}
	return provider;
}

/* Made if it is new. */
static QueueShare *
share_of(QueueProvider *provider, const pg_uuid_t *company)
{
	ShareKey	key = {provider, *company};
	CompanyKey	company_key = {*company, provider->lane};
	QueueShare *share;
	bool		found;

	share = hash_search(shares, &key, HASH_ENTER, &found);
	if (found)
		return share;
	memset((char *) share + sizeof(ShareKey), 0, sizeof(QueueShare) - sizeof(ShareKey));
	dlist_init(&share->items);
	share->limit = call_limit_of_share(provider->lane, provider->name, company);
	breaker_close(&share->breaker);
	dlist_push_tail(&provider->shares, &share->use_node);
	provider->share_count++;

	share->company = hash_search(companies, &company_key, HASH_ENTER, &found);
	if (!found)
	{
		share->company->share_count = share->company->in_flight = 0;
		share->company->limit = call_limit_of_company(provider->lane, company);
	}
	share->company->share_count++;
	return share;
}

static void
note_use(QueueShare *share, TimestampTz now)
{
	share->used_at = now;
	dlist_delete(&share->use_node);
	dlist_push_tail(&share->key.provider->shares, &share->use_node);
}

static void
forget_unused(QueueProvider *provider, TimestampTz now)
{
	while (!dlist_is_empty(&provider->shares))
	{
		QueueShare *share = dlist_head_element(QueueShare, use_node, &provider->shares);

		if (now < TimestampTzPlusMilliseconds(share->used_at, RECENT_MS))
			break;
		if (share->queued > 0 || share->in_flight > 0 || share->unstored > 0 || share->overflow_since != 0 ||
			!breaker_lets_through(&share->breaker, now))
		{
			note_use(share, now);
			continue;
		}
		breaker_close(&share->breaker);
		count_held_back(share);
		dlist_delete(&share->use_node);
		provider->share_count--;
		if (--share->company->share_count == 0)
			hash_search(companies, &share->company->key, HASH_REMOVE, NULL);
		hash_search(shares, &share->key, HASH_REMOVE, NULL);
	}
}

void
queue_limits_changed(void)
{
	HASH_SEQ_STATUS seq;
	QueueProvider *provider;
	QueueCompany *company;
	QueueShare *share;

	hash_seq_init(&seq, providers);
	while ((provider = hash_seq_search(&seq)) != NULL)
		provider->limit = call_limit_of_provider(provider->lane, provider->name);
	hash_seq_init(&seq, companies);
	while ((company = hash_seq_search(&seq)) != NULL)
		company->limit = call_limit_of_company(company->key.lane, &company->key.id);
	hash_seq_init(&seq, shares);
	while ((share = hash_seq_search(&seq)) != NULL)
		share->limit = call_limit_of_share(share->key.provider->lane, share->key.provider->name, &share->key.company);
}

/* Due calls */

bool
queue_add(const QueueKey *key, const char *provider_key, TimestampTz due_at, TimestampTz now)
{
	QueueProvider *provider;
	QueueShare *share;
	QueueItem  *item;

	item = hash_search(items, key, HASH_FIND, NULL);
	if (item != NULL)
	{
		/*
		 * queued again while its older form is out: whoever forgets that
		 * looks again
		 */
		if (item->taken && (item->again_since == 0 || due_at < item->again_since))
			item->again_since = due_at;
		return false;
	}
	provider = provider_of(key->slot == SLOT_COMMAND ? LANE_COMMANDS : LANE_CALLS, provider_key);
	share = share_of(provider, &key->company);
	note_use(share, now);
	if (!make_room(share))
	{
		leave_in_table(share, due_at);
		return false;
	}

	item = hash_search(items, key, HASH_ENTER, NULL);
	item->share = share;
	item->due_at = due_at;
	item->taken = item->ended = item->tries_provider = item->tries_share = false;
	item->again_since = 0;
	dlist_push_tail(&share->items, &item->node);
	if (share->queued++ == 0)
	{
		dlist_push_tail(&provider->waiting, &share->node);
		provider->waiting_count++;
		total_waiting++;
	}
	provider->queued++;
	total_queued++;
	if (!provider->in_ring)
	{
		dlist_push_tail(&ring, &provider->node);
		provider->in_ring = true;
	}
	return true;
}

/* Whether there is room for one more of this share, if need be at another's expense. */
static bool
make_room(QueueShare *share)
{
	QueueProvider *provider = share->key.provider;
	QueueShare *longest = NULL;
	QueueItem  *newest;

	if (provider->queued < QUEUE_MAX_PROVIDER && total_queued < QUEUE_MAX)
		return true;
	if (share->queued >= even_part(share))
		return false;
	if (provider->queued >= QUEUE_MAX_PROVIDER)
		longest = longest_of(provider, NULL);
	else
	{
		dlist_iter	iter;

		dlist_foreach(iter, &ring)
			longest = longest_of(dlist_container(QueueProvider, node, iter.cur), longest);
	}
	if (longest == NULL || longest->queued <= share->queued + 1)
		return false;
	newest = remove_item(longest, dlist_tail_node(&longest->items));
	leave_in_table(longest, newest->due_at);
	hash_search(items, &newest->key, HASH_REMOVE, NULL);
	return true;
}

/* What each would have if all who wait had the same. */
static int
even_part(const QueueShare *share)
{
	int			more = share->queued == 0 ? 1 : 0;

	return Max(Min(QUEUE_MAX_PROVIDER / (share->key.provider->waiting_count + more),
				   QUEUE_MAX / (total_waiting + more)), 1);
}

static QueueShare *
longest_of(QueueProvider *provider, QueueShare *longest)
{
	dlist_iter	iter;

	dlist_foreach(iter, &provider->waiting)
	{
		QueueShare *share = dlist_container(QueueShare, node, iter.cur);

		if (longest == NULL || share->queued > longest->queued)
			longest = share;
	}
	return longest;
}

static void
leave_in_table(QueueShare *share, TimestampTz due_at)
{
	if (share->overflow_since == 0)
		overflowing++;
	if (share->overflow_since == 0 || due_at < share->overflow_since)
		share->overflow_since = due_at;
}

TimestampTz
queue_overflow(void)
{
	HASH_SEQ_STATUS seq;
	QueueShare *share;
	TimestampTz earliest = 0;

	if (overflowing == 0)
		return 0;
	hash_seq_init(&seq, shares);
	while ((share = hash_seq_search(&seq)) != NULL)
	{
		if (share->overflow_since == 0 || share->queued > even_part(share) / 2)
			continue;
		if (earliest == 0 || share->overflow_since < earliest)
			earliest = share->overflow_since;
		share->overflow_since = 0;
		overflowing--;
	}
	return earliest;
}

/* Takes a due call off its share's list; it stays known. */
static QueueItem *
remove_item(QueueShare *share, dlist_node *node)
{
	QueueProvider *provider = share->key.provider;

	dlist_delete(node);
	if (--share->queued == 0)
	{
		dlist_delete(&share->node);
		provider->waiting_count--;
		total_waiting--;
	}
	total_queued--;
	if (--provider->queued == 0)
	{
		dlist_delete(&provider->node);
		provider->in_ring = false;
	}
	return dlist_container(QueueItem, node, node);
}

void
queue_clear(void)
{
	HASH_SEQ_STATUS seq;
	QueueShare *share;

	hash_seq_init(&seq, shares);
	while ((share = hash_seq_search(&seq)) != NULL)
	{
		while (share->queued > 0)
			hash_search(items, &remove_item(share, dlist_head_node(&share->items))->key, HASH_REMOVE, NULL);
		share->overflow_since = 0;
	}
	overflowing = 0;
}

int
queue_length(void)
{
	return total_queued;
}

/* Turns */

int
queue_take(QueueKey *keys, QueueShare **takers, TimestampTz *due_at, int count, TimestampTz now)
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
			QueueShare *share = provider_may(provider, now) ? choose_share(provider, now) : NULL;
			QueueItem  *item;

			if (share == NULL)
				continue;
			item = take_from(share, now);
			keys[taken] = item->key;
			takers[taken] = share;
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

bool
queue_has_turn(TimestampTz now, TimestampTz *next)
{
	dlist_iter	iter;

	*next = 0;
	dlist_foreach(iter, &ring)
	{
		QueueProvider *provider = dlist_container(QueueProvider, node, iter.cur);
		dlist_iter	share_iter;

		if (!has_places(provider))
			continue;
		dlist_foreach(share_iter, &provider->waiting)
		{
			QueueShare *share = dlist_container(QueueShare, node, share_iter.cur);
			TimestampTz at = now;

			if (!has_place(share))
				continue;
			if (!breaker_lets_through(&provider->breaker, now))
				at = provider->breaker.retry_at;
			if (!breaker_lets_through(&share->breaker, now))
				at = Max(at, share->breaker.retry_at);
			if (at <= now)
				return true;
			if (*next == 0 || at < *next)
				*next = at;
		}
	}
	return false;
}

static bool
provider_may(const QueueProvider *provider, TimestampTz now)
{
	return has_places(provider) && breaker_lets_through(&provider->breaker, now);
}

static bool
has_places(const QueueProvider *provider)
{
	return total_in_flight[provider->lane] < call_limit_of_all(provider->lane) && provider->in_flight < provider->limit;
}

static bool
has_place(const QueueShare *share)
{
	return share->in_flight < share->limit && share->company->in_flight < share->company->limit &&
		share->unstored < Max(share->limit, UNSTORED_MIN);
}

/*
 * The next that may; the one call that tries a provider again is rather of a
 * company that had no failures, which says more.
 */
static QueueShare *
choose_share(QueueProvider *provider, TimestampTz now)
{
	QueueShare *second = NULL;

	for (int i = provider->waiting_count; i > 0; i--)
	{
		dlist_node *node = dlist_pop_head_node(&provider->waiting);
		QueueShare *share = dlist_container(QueueShare, node, node);

		dlist_push_tail(&provider->waiting, node);
		if (!has_place(share) || !breaker_lets_through(&share->breaker, now))
			continue;
		if (provider->breaker.state == BREAKER_CLOSED || share->breaker.failures == 0)
			return share;
		if (second == NULL)
			second = share;
	}
	return second;
}

static QueueItem *
take_from(QueueShare *share, TimestampTz now)
{
	QueueProvider *provider = share->key.provider;
	QueueItem  *item = remove_item(share, dlist_head_node(&share->items));

	item->taken = true;
	item->tries_provider = breaker_try(&provider->breaker, now);
	item->tries_share = breaker_try(&share->breaker, now);
	note_use(share, now);
	share->in_flight++;
	share->company->in_flight++;
	provider->in_flight++;
	total_in_flight[provider->lane]++;
	return item;
}

/*
 * Whoever has the lease locked may keep the answer from being stored for as
 * long as he likes: that must cost neither the provider nor other companies a
 * place, nor himself any until he overdoes it (has_place()).
 */
void
queue_end(const QueueKey *key)
{
	QueueItem  *item = hash_search(items, key, HASH_FIND, NULL);

	if (item == NULL || !item->taken || item->ended)
		return;
	give_place_back(item);
	item->ended = true;
	item->share->unstored++;
}

TimestampTz
queue_forget(const QueueKey *key)
{
	QueueItem  *item = hash_search(items, key, HASH_FIND, NULL);
	TimestampTz again_since;

	if (item == NULL || !item->taken)
		return 0;
	if (item->ended)
		item->share->unstored--;
	else
		give_place_back(item);
	again_since = item->again_since;
	hash_search(items, key, HASH_REMOVE, NULL);
	return again_since;
}

static void
give_place_back(QueueItem *item)
{
	QueueShare *share = item->share;
	TimestampTz now = GetCurrentTimestamp();

	share->in_flight--;
	share->company->in_flight--;
	share->key.provider->in_flight--;
	total_in_flight[share->key.provider->lane]--;
	if (item->tries_provider)
		breaker_not_tried(&share->key.provider->breaker, now);
	if (item->tries_share)
		breaker_not_tried(&share->breaker, now);
}

QueueShare *
queue_taker_of(const QueueKey *key)
{
	QueueItem  *item = hash_search(items, key, HASH_FIND, NULL);

	return item != NULL && item->taken ? item->share : NULL;
}

/* Failures */

void
queue_report(const QueueKey *key, bool failed, bool unreachable, TimestampTz now)
{
	QueueItem  *item = hash_search(items, key, HASH_FIND, NULL);
	QueueShare *share;
	QueueProvider *provider;

	if (item == NULL || !item->taken)
		return;
	share = item->share;
	provider = share->key.provider;
	if (!failed)
	{
		provider->succeeded++;
		forgive_provider(provider);
		breaker_close(&share->breaker);
		count_held_back(share);
		return;
	}

	provider->failed++;
	if (unreachable)
	{
		blame_provider(item, true, now);
		return;
	}
	/* so it can be reached */
	if (item->tries_provider && provider->breaker.state != BREAKER_CLOSED && provider->unreachable)
		forgive_provider(provider);
	/* that a company fails which is held back tells nothing new */
	if (share->breaker.state == BREAKER_CLOSED || item->tries_provider)
		blame_provider(item, false, now);
	if (breaker_failed(&share->breaker, item->tries_share, true, now))
	{
		ereport(LOG,
				(errmsg("leasehold: provider \"%s\" failed %d times in a row for one company, whose calls to it are held back",
						provider->key, share->breaker.failures),
				 errdetail("The company is %s.",
						   DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&share->key.company))))));
		if (provider->breaker.state == BREAKER_CLOSED && !provider->unreachable)
			forgive_provider(provider);
	}
	count_held_back(share);
}

/* Counts a failure for the provider's own breaker. */
static void
blame_provider(QueueItem *item, bool unreachable, TimestampTz now)
{
	QueueProvider *provider = item->share->key.provider;
	const pg_uuid_t *company = &item->share->key.company;

	/* failures of another kind begin anew; while open, it is for the first */
	if (provider->breaker.state == BREAKER_CLOSED && provider->unreachable != unreachable)
	{
		forgive_provider(provider);
		provider->unreachable = unreachable;
	}
	if (provider->breaker.failures == 0)
		provider->first_failing = *company;
	else if (memcmp(&provider->first_failing, company, UUID_LEN) != 0)
		provider->several = true;
	if (breaker_failed(&provider->breaker, item->tries_provider, unreachable || provider->several, now))
		ereport(LOG,
				(errmsg("leasehold: provider \"%s\" failed %d times in a row, its calls are held back",
						provider->key, provider->breaker.failures)));
}

static void
forgive_provider(QueueProvider *provider)
{
	breaker_close(&provider->breaker);
	provider->several = false;
}

static void
count_held_back(QueueShare *share)
{
	bool		held_back = share->breaker.state != BREAKER_CLOSED;

	if (held_back != share->held_back)
		share->key.provider->held_back += held_back ? 1 : -1;
	share->held_back = held_back;
}

void
queue_clock_set_back(TimestampTz now)
{
	HASH_SEQ_STATUS seq;
	QueueProvider *provider;
	QueueShare *share;

	hash_seq_init(&seq, providers);
	while ((provider = hash_seq_search(&seq)) != NULL)
		breaker_clock_set_back(&provider->breaker, now);
	hash_seq_init(&seq, shares);
	while ((share = hash_seq_search(&seq)) != NULL)
	{
		breaker_clock_set_back(&share->breaker, now);
		share->used_at = Min(share->used_at, now);
	}
}

/* Reports */

/*
 * The provider's own breaker; but if every company that used it of late is held
 * back, then that of the one whose turn comes first.
 */
static const Breaker *
reported_breaker(QueueProvider *provider)
{
	const Breaker *first = NULL;
	dlist_iter	iter;

	if (provider->breaker.state != BREAKER_CLOSED || provider->held_back == 0 ||
		provider->held_back < provider->share_count)
		return &provider->breaker;
	dlist_foreach(iter, &provider->shares)
	{
		const Breaker *breaker = &dlist_container(QueueShare, use_node, iter.cur)->breaker;

		if (first == NULL || breaker->retry_at < first->retry_at)
			first = breaker;
	}
	return first;
}

static void
reset_breakers(QueueProvider *provider)
{
	dlist_iter	iter;

	forgive_provider(provider);
	dlist_foreach(iter, &provider->shares)
	{
		QueueShare *share = dlist_container(QueueShare, use_node, iter.cur);

		breaker_close(&share->breaker);
		count_held_back(share);
	}
}

/*
 * Where a provider is reported: in a free place, or in that of one of which
 * there is nothing to tell.  NULL if there is none.
 */
static SharedProvider *
slot_for(const QueueProvider *provider, SharedWorker *shared)
{
	HASH_SEQ_STATUS seq;
	QueueProvider *other;
	SharedProvider *slot;

	for (int i = 0; i < SHARED_MAX_PROVIDERS; i++)
	{
		if (shared->providers[i].key[0] == '\0')
			return &shared->providers[i];
	}
	if (is_quiet(provider))
		return NULL;
	hash_seq_init(&seq, providers);
	while ((other = hash_seq_search(&seq)) != NULL)
	{
		if (other->shared == NULL || !is_quiet(other))
			continue;
		hash_seq_term(&seq);
		slot = other->shared;
		other->shared = NULL;
		SpinLockAcquire(&shared->mutex);
		memset(slot, 0, sizeof(SharedProvider));
		SpinLockRelease(&shared->mutex);
		return slot;
	}
	return NULL;
}

static bool
is_quiet(const QueueProvider *provider)
{
	return provider->in_flight == 0 && provider->queued == 0 && provider->held_back == 0 &&
		provider->breaker.state == BREAKER_CLOSED;
}

void
queue_obey_resets(SharedWorker *shared)
{
	HASH_SEQ_STATUS seq;
	QueueProvider *provider;

	hash_seq_init(&seq, providers);
	while ((provider = hash_seq_search(&seq)) != NULL)
	{
		bool		reset;

		if (provider->shared == NULL)
			continue;
		SpinLockAcquire(&shared->mutex);
		reset = provider->shared->reset_breaker;
		provider->shared->reset_breaker = false;
		SpinLockRelease(&shared->mutex);
		if (reset)
			reset_breakers(provider);
	}
}

void
queue_publish(SharedWorker *shared)
{
	HASH_SEQ_STATUS seq;
	QueueProvider *provider;
	TimestampTz now = GetCurrentTimestamp();

	hash_seq_init(&seq, providers);
	while ((provider = hash_seq_search(&seq)) != NULL)
	{
		SharedProvider *slot = provider->shared;
		const Breaker *breaker;

		forget_unused(provider, now);
		if (slot == NULL)
			slot = provider->shared = slot_for(provider, shared);
		if (slot == NULL)
			continue;
		breaker = reported_breaker(provider);

		SpinLockAcquire(&shared->mutex);
		strlcpy(slot->key, provider->key, sizeof(slot->key));
		slot->in_flight = provider->in_flight;
		slot->queued = provider->queued;
		slot->breaker = breaker->state;
		slot->failures = breaker->failures;
		slot->retry_at = breaker->retry_at;
		slot->held_back = provider->held_back;
		slot->succeeded = provider->succeeded;
		slot->failed = provider->failed;
		SpinLockRelease(&shared->mutex);
	}
}
