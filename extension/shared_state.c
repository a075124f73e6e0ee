/*
 * shared_state.c
 *		Sets up the shared memory of shared_state.h and finds one's way in it.
 */
#include "postgres.h"
#include "compat.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "storage/shmem.h"

#include "settings.h"
#include "shared_state.h"

SharedState *shared_state = NULL;
SharedAttachment *shared_attachments = NULL;

static shmem_request_hook_type prev_shmem_request_hook = NULL;
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;

static Size shared_size(void);
static Size attachments_size(void);
static void shared_request(void);
static void shared_startup(void);
static void attachments_startup(void);
static void attachments_forget(Oid database);
static void shared_reset_entry(SharedDatabase *entry, Oid database);
static void wake_process(int procno);

/* Called from _PG_init in the postmaster. */
void
shared_state_init(void)
{
	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = shared_request;
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = shared_startup;
}

static Size
shared_size(void)
{
	return add_size(offsetof(SharedState, databases),
					mul_size(setting_max_databases, sizeof(SharedDatabase)));
}

static Size
attachments_size(void)
{
	return mul_size(setting_max_attached_calls, sizeof(SharedAttachment));
}

static void
shared_request(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();
	RequestAddinShmemSpace(shared_size());
	RequestAddinShmemSpace(attachments_size());
	RequestNamedLWLockTranche("leasehold", 1);
}

static void
shared_startup(void)
{
	bool		found;

	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared_state = ShmemInitStruct("leasehold", shared_size(), &found);
	if (!found)
	{
		memset(shared_state, 0, shared_size());
		shared_state->lock = &(GetNamedLWLockTranche("leasehold"))->lock;
		shared_state->launcher_procno = -1;
		shared_state->max_databases = setting_max_databases;
		for (int i = 0; i < shared_state->max_databases; i++)
		{
			SharedDatabase *entry = &shared_state->databases[i];

			for (int w = 0; w < SHARED_MAX_WORKERS; w++)
			{
				pg_atomic_init_u32(&entry->workers[w].wake, 0);
				pg_atomic_init_u64(&entry->workers[w].late_since, PG_UINT64_MAX);
				pg_atomic_init_u32(&entry->workers[w].left_calls, 0);
				SpinLockInit(&entry->workers[w].mutex);
			}
			for (int b = 0; b < SHARED_WAIT_BUCKETS; b++)
				ConditionVariableInit(&entry->waiters[b]);
			shared_reset_entry(entry, InvalidOid);
		}
	}
	attachments_startup();
	LWLockRelease(AddinShmemInitLock);
}

static void
attachments_startup(void)
{
	bool		found;

	shared_attachments = ShmemInitStruct("leasehold attachments", attachments_size(), &found);
	if (found)
		return;
	memset(shared_attachments, 0, attachments_size());
	shared_state->max_attachments = setting_max_attached_calls;
	for (int i = 0; i < shared_state->max_attachments; i++)
		SpinLockInit(&shared_attachments[i].mutex);
}

SharedDatabase *
shared_find_database(Oid database, bool create)
{
	SharedDatabase *result = NULL;
	SharedDatabase *unused = NULL;

	if (shared_state == NULL)
		return NULL;

	LWLockAcquire(shared_state->lock, create ? LW_EXCLUSIVE : LW_SHARED);
	for (int i = 0; i < shared_state->max_databases && result == NULL; i++)
	{
		SharedDatabase *entry = &shared_state->databases[i];

		if (entry->oid == database)
			result = entry;
		else if (entry->oid == InvalidOid && unused == NULL)
			unused = entry;
	}
	if (result == NULL && create && unused != NULL)
	{
		shared_reset_entry(unused, database);
		result = unused;
	}
	LWLockRelease(shared_state->lock);
	return result;
}

bool
shared_is_full(void)
{
	bool		full = true;

	LWLockAcquire(shared_state->lock, LW_SHARED);
	for (int i = 0; i < shared_state->max_databases && full; i++)
		full = OidIsValid(shared_state->databases[i].oid);
	LWLockRelease(shared_state->lock);
	return full;
}

void
shared_announce_database(Oid database)
{
	SharedDatabase *entry = shared_find_database(database, true);

	if (entry == NULL)
		return;
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	entry->wanted = true;
	entry->absent = false;
	entry->announcements++;
	LWLockRelease(shared_state->lock);
}

void
shared_renounce_database(SharedDatabase *entry, uint32 announcements)
{
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	if (entry->announcements == announcements)
	{
		entry->wanted = false;
		entry->absent = true;
	}
	LWLockRelease(shared_state->lock);
}

void
shared_drop_database(Oid database, bool even_if_wanted)
{
	if (shared_state == NULL)
		return;

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	for (int i = 0; i < shared_state->max_databases; i++)
	{
		SharedDatabase *entry = &shared_state->databases[i];

		if (entry->oid == database && (even_if_wanted || !entry->wanted))
		{
			shared_reset_entry(entry, InvalidOid);
			attachments_forget(database);
		}
	}
	LWLockRelease(shared_state->lock);
}

/* No worker will see to what was left there.  Who holds a slot frees it himself. */
static void
attachments_forget(Oid database)
{
	for (int i = 0; i < shared_state->max_attachments; i++)
	{
		SharedAttachment *slot = &shared_attachments[i];

		SpinLockAcquire(&slot->mutex);
		if (slot->state == ATTACHMENT_LEFT && slot->database == database)
			slot->state = ATTACHMENT_FREE;
		SpinLockRelease(&slot->mutex);
	}
}

/*
 * Locks, condition variables and the wake flags keep their state: somebody
 * may still look at them.
 */
static void
shared_reset_entry(SharedDatabase *entry, Oid database)
{
	entry->wanted = false;
	entry->absent = false;
	entry->held_off_by = 0;
	entry->resources_left = SHARED_LEFT_UNKNOWN;
	entry->complaint[0] = '\0';
	for (int w = 0; w < SHARED_MAX_WORKERS; w++)
	{
		SharedWorker *worker = &entry->workers[w];

		SpinLockAcquire(&worker->mutex);
		worker->pid = 0;
		worker->procno = -1;
		worker->state = WORKER_ABSENT;
		worker->dismissed = false;
		worker->reason[0] = '\0';
		worker->started_at = worker->last_round_at = 0;
		worker->epoch = 0;
		worker->in_flight = worker->queued = worker->capacity = 0;
		worker->rounds = worker->started_calls = worker->applied_calls = 0;
		worker->stale_answers = worker->failed_batches = 0;
		memset(worker->providers, 0, sizeof(worker->providers));
		SpinLockRelease(&worker->mutex);
		pg_atomic_write_u32(&worker->left_calls, 0);
	}
	entry->oid = database;
}

bool
shared_held_off(SharedDatabase *entry)
{
	int			pid;

	LWLockAcquire(shared_state->lock, LW_SHARED);
	pid = entry->held_off_by;
	LWLockRelease(shared_state->lock);
	return pid != 0 && BackendPidGetProc(pid) != NULL;
}

void
shared_wake_workers(SharedDatabase *entry)
{
	for (int w = 0; w < SHARED_MAX_WORKERS; w++)
	{
		SharedWorker *worker = &entry->workers[w];

		/* whoever sets the flag wakes: a thousand commits are one wake */
		if (worker->pid != 0 && pg_atomic_exchange_u32(&worker->wake, 1) == 0)
			wake_process(worker->procno);
	}
}

void
shared_note_late_work(SharedDatabase *entry, TimestampTz since)
{
	for (int w = 0; w < SHARED_MAX_WORKERS; w++)
	{
		pg_atomic_uint64 *late = &entry->workers[w].late_since;
		uint64		old = pg_atomic_read_u64(late);

		while ((uint64) since < old && !pg_atomic_compare_exchange_u64(late, &old, (uint64) since))
			;
	}
}

void
shared_wake_launcher(void)
{
	if (shared_state != NULL)
		wake_process(shared_state->launcher_procno);
}

/*
 * A process that has gone may have left its number to another one, for which
 * a wake without reason is harmless.
 */
static void
wake_process(int procno)
{
	if (procno >= 0)
		SetLatch(&ProcGlobal->allProcs[procno].procLatch);
}

ConditionVariable *
shared_waiters_of(SharedDatabase *entry, const pg_uuid_t *subject)
{
	uint32		hash = hash_bytes(subject->data, UUID_LEN);

	return &entry->waiters[hash % SHARED_WAIT_BUCKETS];
}

const char *
shared_worker_state_name(WorkerState state)
{
	switch (state)
	{
		case WORKER_ABSENT:
			return "absent";
		case WORKER_RUNNING:
			return "running";
		case WORKER_PAUSED:
			return "paused";
		case WORKER_HELD:
			return "held";
		case WORKER_UNSUPPORTED:
			return "unsupported";
	}
	return "?";
}

const char *
shared_breaker_name(BreakerState state)
{
	switch (state)
	{
		case BREAKER_CLOSED:
			return "closed";
		case BREAKER_OPEN:
			return "open";
		case BREAKER_HALF_OPEN:
			return "half_open";
	}
	return "?";
}
