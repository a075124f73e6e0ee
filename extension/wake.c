/*
 * wake.c
 *		The commit-time wake.
 *
 * A statement trigger on the dispatch table marks the transaction; when it has
 * committed, one flag in shared memory is set and one latch.  The callbacks are
 * registered once per process, allocate nothing, take no lock and cannot fail:
 * an error there would take the server down.  A savepoint that made work and
 * was rolled back causes a wake without work, which is harmless; a prepared
 * transaction causes none, and the worker's own check finds its work.
 *
 * The wake comes at the very end of the commit, not with its event: a worker
 * that is woken before the invalidations are sent would look at what it has
 * cached, find it valid, and sleep on.
 */
#include "postgres.h"
#include "compat.h"

#include "access/xact.h"
#include "commands/trigger.h"
#include "miscadmin.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "errors.h"
#include "shared_state.h"
#include "wake.h"

PG_FUNCTION_INFO_V1(leasehold_wake_trigger);
PG_FUNCTION_INFO_V1(leasehold_announce_extension);

static bool workers_marked = false;
static bool launcher_marked = false;
static bool announced = false;	/* the transaction made the extension here */
static bool committed = false;
static SharedDatabase *marked_entry = NULL;
static TimestampTz marked_at;	/* no work of the transaction was due before */

static void wake_xact_callback(XactEvent event, void *arg);
static void wake_release_callback(ResourceReleasePhase phase, bool isCommit, bool isTopLevel, void *arg);

void
wake_init(void)
{
	RegisterXactCallback(wake_xact_callback, NULL);
	RegisterResourceReleaseCallback(wake_release_callback, NULL);
}

void
wake_workers_at_commit(void)
{
	if (workers_marked)
		return;
	/* the only step that takes a lock: not in the callback */
	if (marked_entry == NULL || marked_entry->oid != MyDatabaseId)
		marked_entry = shared_find_database(MyDatabaseId, false);
	workers_marked = marked_entry != NULL;
	marked_at = GetCurrentTransactionStartTimestamp();
}

void
wake_launcher_at_commit(void)
{
	launcher_marked = true;
}

static void
wake_xact_callback(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_PARALLEL_COMMIT:
			committed = workers_marked || launcher_marked;
			break;
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PARALLEL_ABORT:
		case XACT_EVENT_PREPARE:
			workers_marked = launcher_marked = announced = committed = false;
			break;
		default:
			break;
	}
}

/*
 * The last phase of a transaction's end: its changes are visible, their
 * invalidations are sent, and its locks are released.
 */
static void
wake_release_callback(ResourceReleasePhase phase, bool isCommit, bool isTopLevel, void *arg)
{
	if (!committed || !isTopLevel || phase != RESOURCE_RELEASE_AFTER_LOCKS)
		return;

	if (workers_marked && marked_entry->oid == MyDatabaseId)
	{
		/* workers look back a little by themselves, but not that far */
		if (GetCurrentTimestamp() - marked_at > WAKE_LATE_US)
			shared_note_late_work(marked_entry, marked_at);
		shared_wake_workers(marked_entry);
	}
	if (announced)
		shared_announce_database(MyDatabaseId);
	if (launcher_marked)
		shared_wake_launcher();
	workers_marked = launcher_marked = announced = committed = false;
}

/*
 * Statement trigger on leasehold_internal.calls.
 */
Datum
leasehold_wake_trigger(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		elog(ERROR, "leasehold_wake_trigger: not called as a trigger");
	wake_workers_at_commit();
	return PointerGetDatum(NULL);
}

/*
 * announce_extension(): called by the install and upgrade scripts, so that the
 * launcher learns of this database when they commit.
 */
Datum
leasehold_announce_extension(PG_FUNCTION_ARGS)
{
	SharedDatabase *entry = shared_find_database(MyDatabaseId, true);

	if (shared_state == NULL)
		ereport(WARNING,
				(errmsg("leasehold is not preloaded, so nothing will serve this database"),
				 errhint("Add leasehold to shared_preload_libraries and restart the server.")));
	else if (entry == NULL)
		ereport(WARNING,
				(errmsg("no worker can be kept for this database"),
				 errhint("Raise leasehold.max_databases (now %d) and restart the server.",
						 shared_state->max_databases)));
	else
	{
		/* not before the commit: nobody could see the extension yet */
		announced = true;
		wake_launcher_at_commit();
	}
	PG_RETURN_VOID();
}
