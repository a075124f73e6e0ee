/*
 * shared_state.h
 *		What backends and workers share: one entry per served database.
 *
 * Nothing here is durable and nothing is needed for correctness: a wake that
 * is lost is a delay (workers look by themselves), and every figure is only
 * reported.  No pointers to process-local memory.
 */
#ifndef LEASEHOLD_SHARED_STATE_H
#define LEASEHOLD_SHARED_STATE_H

#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/lwlock.h"
#include "storage/spin.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#define SHARED_MAX_WORKERS		8	/* per database */
#define SHARED_MAX_PROVIDERS	64	/* reported per worker at a time */
#define SHARED_WAIT_BUCKETS		64
#define SHARED_REASON_SIZE		256
#define SHARED_KEY_SIZE			80	/* a provider's key, or a plugin's, with what is said before it */

typedef enum WorkerState
{
	WORKER_ABSENT,				/* no process */
	WORKER_RUNNING,
	WORKER_PAUSED,				/* by pause_worker() */
	WORKER_HELD,				/* this is a copy: see takeover_installation() */
	WORKER_UNSUPPORTED			/* SQL objects of a version this library cannot serve */
} WorkerState;

typedef enum BreakerState
{
	BREAKER_CLOSED,
	BREAKER_OPEN,
	BREAKER_HALF_OPEN
} BreakerState;

typedef struct SharedProvider
{
	char		key[SHARED_KEY_SIZE];	/* empty: unused */
	int			in_flight;
	int			queued;
	BreakerState breaker;
	int			failures;		/* consecutive */
	TimestampTz retry_at;		/* when an open breaker lets one call through */
	int			held_back;		/* companies with a breaker of their own that is not closed */
	uint64		succeeded;
	uint64		failed;
	bool		reset_breaker;	/* set by backends, cleared by the worker */
} SharedProvider;

/*
 * Written by its worker only, except the atomic ones and reset_breaker; the
 * figures are protected by mutex.
 */
typedef struct SharedWorker
{
	pg_atomic_uint32 wake;		/* work was committed since the last look */
	pg_atomic_uint64 late_since;	/* a slow transaction committed work that was due then */
	pg_atomic_uint32 left_calls;	/* attachments that were left to it */
	slock_t		mutex;
	int			pid;			/* 0: no process */
	int			procno;
	WorkerState state;
	bool		dismissed;		/* ended because it was told to: a new one need not pause */
	char		reason[SHARED_REASON_SIZE]; /* why it is not running */
	TimestampTz started_at;
	TimestampTz last_round_at;
	int64		epoch;
	int			in_flight;		/* calls */
	int			commands;		/* that are carried out */
	int			queued;
	int			capacity;
	uint64		rounds;
	uint64		started_calls;
	uint64		applied_calls;
	uint64		stale_answers;	/* of an older generation or epoch: ignored */
	uint64		failed_batches;
	SharedProvider providers[SHARED_MAX_PROVIDERS];
} SharedWorker;

#define SHARED_LEFT_UNKNOWN		(-1)

typedef struct SharedDatabase
{
	Oid			oid;			/* InvalidOid: unused */
	bool		wanted;			/* the launcher should keep workers here */
	bool		absent;			/* a worker found that the extension is not here */
	uint32		announcements;	/* how often it was said that it is */
	int			held_off_by;	/* pid of a backend that needs the database alone, or 0 */
	int64		resources_left; /* told by a worker that was held off, or SHARED_LEFT_UNKNOWN */
	char		complaint[SHARED_REASON_SIZE];	/* why workers cannot be started */
	SharedWorker workers[SHARED_MAX_WORKERS];
	ConditionVariable waiters[SHARED_WAIT_BUCKETS];
} SharedDatabase;

typedef enum AttachmentState
{
	ATTACHMENT_FREE,
	ATTACHMENT_HELD,			/* by a session whose CALL goes on */
	ATTACHMENT_LEFT				/* that CALL did not see its end: a worker is to end what it held */
} AttachmentState;

/*
 * What a session that waits for its command holds.  A slot that was left stays
 * until a worker has done its duty, however often workers are restarted.
 */
typedef struct SharedAttachment
{
	slock_t		mutex;			/* protects the rest */
	AttachmentState state;
	Oid			database;
	int			part;			/* whose worker's it is when it is left */
	int			pid;			/* of the session */
	pg_uuid_t	company;
	pg_uuid_t	lease;			/* to be ended with the CALL, or nil */
	int			generation;		/* of the lease: a later one has another holder */
	pg_uuid_t	command;		/* to be cancelled with it, or nil */
} SharedAttachment;

typedef struct SharedState
{
	LWLock	   *lock;			/* protects the set of databases and the launcher's fields */
	int			launcher_procno;
	int			launcher_pid;
	int			max_databases;
	int			max_attachments;
	SharedDatabase databases[FLEXIBLE_ARRAY_MEMBER];
} SharedState;

/* NULL when the library is not preloaded */
extern SharedState *shared_state;
extern SharedAttachment *shared_attachments;	/* max_attachments of them */

extern void shared_state_init(void);

/*
 * The entry of a database; makes one if create is true and there is room.
 * NULL otherwise, and when the library is not preloaded.  Takes the lock.
 */
extern SharedDatabase *shared_find_database(Oid database, bool create);

/* Whether no other database can have an entry. */
extern bool shared_is_full(void);

/*
 * Says that a database has the extension; or, by a worker that found none, that
 * it has not, unless that was said since the count was read.
 */
extern void shared_announce_database(Oid database);
extern void shared_renounce_database(SharedDatabase *entry, uint32 announcements);

/* Whether a living backend needs the database alone. */
extern bool shared_held_off(SharedDatabase *entry);

/* Forgets a database: gone, or (unless somebody announced it just now) without the extension. */
extern void shared_drop_database(Oid database, bool even_if_wanted);

/*
 * Wakes the workers of a database, or the launcher; or tells workers to look
 * for work that became due earlier than they last looked.  Take no lock and
 * cannot fail: they are called when a transaction has committed.
 */
extern void shared_wake_workers(SharedDatabase *entry);
extern void shared_note_late_work(SharedDatabase *entry, TimestampTz since);
extern void shared_wake_launcher(void);

/* The condition variable on which changes of this subject are announced. */
extern ConditionVariable *shared_waiters_of(SharedDatabase *entry, const pg_uuid_t *subject);

extern const char *shared_worker_state_name(WorkerState state);
extern const char *shared_breaker_name(BreakerState state);

#endif							/* LEASEHOLD_SHARED_STATE_H */
