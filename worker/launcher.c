/*
 * launcher.c
 *		The process that keeps workers where they are needed.
 *
 * It is connected to no database.  It starts a worker in every database that
 * may have the extension; a worker that finds none says so in shared memory and
 * ends, and the launcher leaves that database alone until somebody announces
 * the extension there.  States of a database here:
 *
 *	unknown		not looked at yet: a worker is started to find out
 *	served		has the extension: workers are kept running
 *	absent		does not have it; becomes unknown when it is announced
 *
 * Template databases and those that refuse connections are never touched, nor
 * one that a backend needs alone (database_guard.c).
 */
#include "postgres.h"
#include "compat.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "storage/procsignal.h"
#include "tcop/tcopprot.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "launcher.h"
#include "settings.h"
#include "shared_state.h"
#include "worker.h"

#define LOOK_AT_DATABASES_MS	60000
#define RESTART_PAUSE_MS		1000
#define RESTART_PAUSE_MAX_MS	60000

typedef struct LaunchedWorker
{
	BackgroundWorkerHandle *handle; /* NULL: none started, or it has ended */
	TimestampTz started_at;
	TimestampTz not_before;		/* pause after a worker that ended badly */
	int			pause_ms;
} LaunchedWorker;

typedef struct LaunchedDatabase
{
	Oid			oid;			/* hash key */
	bool		exists;			/* seen by the last look at pg_database */
	bool		absent;			/* has no extension */
	LaunchedWorker workers[SHARED_MAX_WORKERS];
} LaunchedDatabase;

PGDLLEXPORT void leasehold_launcher_main(Datum main_arg);

static HTAB *databases;
static bool slots_lacking = false;	/* said so already */

static void launcher_exit(int code, Datum arg);
static void look_at_databases(void);
static bool send_away(LaunchedDatabase *database);
static void notice_announcements(void);
static int64 tend_workers(void);
static bool tend_worker(LaunchedDatabase *database, SharedDatabase *entry, int part, TimestampTz now, int64 *wait_ms);
static bool start_worker(LaunchedDatabase *database, SharedDatabase *entry, int part);
static bool worker_lives(SharedDatabase *entry, int part);

void
launcher_register(void)
{
	BackgroundWorker launcher;

	memset(&launcher, 0, sizeof(launcher));
	launcher.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	launcher.bgw_start_time = BgWorkerStart_RecoveryFinished;
	launcher.bgw_restart_time = 5;
	strlcpy(launcher.bgw_library_name, "leasehold", BGW_MAXLEN);
	strlcpy(launcher.bgw_function_name, "leasehold_launcher_main", BGW_MAXLEN);
	strlcpy(launcher.bgw_name, "leasehold launcher", BGW_MAXLEN);
	strlcpy(launcher.bgw_type, "leasehold launcher", BGW_MAXLEN);
	RegisterBackgroundWorker(&launcher);
}

void
leasehold_launcher_main(Datum main_arg)
{
	HASHCTL		ctl;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	shared_state->launcher_pid = MyProcPid;
	shared_state->launcher_procno = MyProc->pgprocno;
	LWLockRelease(shared_state->lock);
	before_shmem_exit(launcher_exit, (Datum) 0);

	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(LaunchedDatabase);
	databases = hash_create("leasehold databases", 32, &ctl, HASH_ELEM | HASH_BLOBS);

	for (;;)
	{
		int64		wait_ms;

		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}

		/* a new database shows up at once if CREATE DATABASE woke us */
		look_at_databases();
		notice_announcements();
		wait_ms = tend_workers();
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 Max(wait_ms, 10), PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
}

static void
launcher_exit(int code, Datum arg)
{
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	shared_state->launcher_pid = 0;
	shared_state->launcher_procno = -1;
	LWLockRelease(shared_state->lock);
}

/*
 * Reads pg_database; forgets databases that are gone.
 */
static void
look_at_databases(void)
{
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;
	HASH_SEQ_STATUS seq;
	LaunchedDatabase *database;

	hash_seq_init(&seq, databases);
	while ((database = hash_seq_search(&seq)) != NULL)
		database->exists = false;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	pgstat_report_activity(STATE_RUNNING, "looking for databases with leasehold");
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);
		bool		found;

		if (form->datistemplate || !form->datallowconn)
			continue;
		database = hash_search(databases, &form->oid, HASH_ENTER, &found);
		if (!found)
			memset((char *) database + sizeof(Oid), 0, sizeof(LaunchedDatabase) - sizeof(Oid));
		database->exists = true;
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
	pgstat_report_activity(STATE_IDLE, NULL);

	hash_seq_init(&seq, databases);
	while ((database = hash_seq_search(&seq)) != NULL)
	{
		if (!database->exists && send_away(database))
		{
			shared_drop_database(database->oid, true);
			hash_search(databases, &database->oid, HASH_REMOVE, NULL);
		}
	}
}

/*
 * The database is gone, or has become a template or refuses connections: ends
 * its workers, and returns whether that is done.
 */
static bool
send_away(LaunchedDatabase *database)
{
	SharedDatabase *entry = shared_find_database(database->oid, false);
	bool		gone = true;

	for (int part = 0; part < SHARED_MAX_WORKERS; part++)
	{
		LaunchedWorker *launched = &database->workers[part];
		pid_t		pid;

		if (launched->handle != NULL)
		{
			if (GetBackgroundWorkerPid(launched->handle, &pid) != BGWH_STOPPED)
			{
				TerminateBackgroundWorker(launched->handle);
				gone = false;
				continue;
			}
			pfree(launched->handle);
			launched->handle = NULL;
		}
		if (entry != NULL && worker_lives(entry, part))
		{
			kill(entry->workers[part].pid, SIGTERM);
			gone = false;
		}
	}
	return gone;
}

/*
 * A database whose extension was just announced is looked at again; one whose
 * worker found none is not.
 */
static void
notice_announcements(void)
{
	for (int i = 0; i < shared_state->max_databases; i++)
	{
		SharedDatabase *entry = &shared_state->databases[i];
		LaunchedDatabase *database;

		if (!OidIsValid(entry->oid))
			continue;
		database = hash_search(databases, &entry->oid, HASH_FIND, NULL);
		if (database != NULL && entry->wanted)
			database->absent = false;
	}
}

/*
 * Starts what is missing.  Returns how long nothing needs to be done.
 */
static int64
tend_workers(void)
{
	HASH_SEQ_STATUS seq;
	LaunchedDatabase *database;
	int64		wait_ms = LOOK_AT_DATABASES_MS;
	TimestampTz now = GetCurrentTimestamp();

	hash_seq_init(&seq, databases);
	while ((database = hash_seq_search(&seq)) != NULL)
	{
		SharedDatabase *entry;

		if (database->absent || !database->exists)
			continue;
		entry = shared_find_database(database->oid, true);
		if (entry == NULL)
		{
			if (!slots_lacking)
				ereport(LOG,
						(errmsg("leasehold: no worker can be kept for more than %d databases",
								shared_state->max_databases),
						 errhint("Raise leasehold.max_databases and restart the server.")));
			slots_lacking = true;
			continue;
		}
		if (shared_held_off(entry))
		{
			wait_ms = Min(wait_ms, 1000);
			continue;
		}
		/* the first finds out whether the extension is there */
		for (int part = 0; part < (entry->wanted ? setting_workers : 1); part++)
		{
			if (!tend_worker(database, entry, part, now, &wait_ms))
				break;
		}
	}
	return wait_ms;
}

/*
 * Returns false if the database turned out not to have the extension.
 */
static bool
tend_worker(LaunchedDatabase *database, SharedDatabase *entry, int part, TimestampTz now, int64 *wait_ms)
{
	LaunchedWorker *launched = &database->workers[part];
	pid_t		pid;

	if (launched->handle != NULL)
	{
		BgwHandleStatus status = GetBackgroundWorkerPid(launched->handle, &pid);

		if (status == BGWH_STARTED || status == BGWH_NOT_YET_STARTED)
			return true;
		pfree(launched->handle);
		launched->handle = NULL;

		if (entry->absent)
		{
			/* it looked, and there is no extension */
			database->absent = true;
			shared_drop_database(database->oid, false);
			return false;
		}
		if (entry->workers[part].dismissed || now - launched->started_at > RESTART_PAUSE_MAX_MS * INT64CONST(1000))
			launched->pause_ms = 0;
		launched->not_before = TimestampTzPlusMilliseconds(now, launched->pause_ms);
		launched->pause_ms = Min(Max(launched->pause_ms * 2, RESTART_PAUSE_MS), RESTART_PAUSE_MAX_MS);
	}

	/*
	 * one that an earlier launcher started goes on without us; at its end it
	 * wakes us
	 */
	if (worker_lives(entry, part))
		return true;
	/* however the clock was set meanwhile */
	launched->not_before = Min(launched->not_before, TimestampTzPlusMilliseconds(now, RESTART_PAUSE_MAX_MS));
	if (now < launched->not_before)
		*wait_ms = Min(*wait_ms, TimestampDifferenceMilliseconds(now, launched->not_before) + 1);
	else if (!start_worker(database, entry, part))
		*wait_ms = Min(*wait_ms, RESTART_PAUSE_MS * 5);
	return true;
}

static bool
start_worker(LaunchedDatabase *database, SharedDatabase *entry, int part)
{
	BackgroundWorker request;
	MemoryContext old;
	bool		registered;

	memset(&request, 0, sizeof(request));
	request.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	request.bgw_start_time = BgWorkerStart_RecoveryFinished;
	request.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(request.bgw_library_name, "leasehold", BGW_MAXLEN);
	strlcpy(request.bgw_function_name, "leasehold_worker_main", BGW_MAXLEN);
	snprintf(request.bgw_name, BGW_MAXLEN, "leasehold worker %d", part);
	strlcpy(request.bgw_type, "leasehold worker", BGW_MAXLEN);
	request.bgw_main_arg = ObjectIdGetDatum(database->oid);
	memcpy(request.bgw_extra, &part, sizeof(part));
	request.bgw_notify_pid = MyProcPid;

	old = MemoryContextSwitchTo(TopMemoryContext);
	registered = RegisterDynamicBackgroundWorker(&request, &database->workers[part].handle);
	MemoryContextSwitchTo(old);

	if (registered)
	{
		database->workers[part].started_at = GetCurrentTimestamp();
		entry->complaint[0] = '\0';
	}
	else if (entry->complaint[0] == '\0')
	{
		/* once: the state stays visible in doctor() */
		strlcpy(entry->complaint, "no free background worker slot (max_worker_processes)",
				sizeof(entry->complaint));
		ereport(LOG,
				(errmsg("leasehold: could not start a worker for database %u: no free slot", database->oid),
				 errhint("Raise max_worker_processes and restart the server.")));
	}
	return registered;
}

static bool
worker_lives(SharedDatabase *entry, int part)
{
	int			pid = entry->workers[part].pid;

	return pid != 0 && BackendPidGetProc(pid) != NULL;
}
