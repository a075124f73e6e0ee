/*
 * database_guard.c
 *		Stands aside for commands that need a database alone, and guards DROP
 *		EXTENSION.
 *
 * DROP DATABASE, CREATE DATABASE ... TEMPLATE, ALTER DATABASE ... RENAME and
 * ... SET TABLESPACE fail while anybody is connected, our workers included.
 * Before such a command its database's workers are stopped and held off, and
 * when its transaction has ended, however it ended, they may come back.  A hold
 * whose backend has died does not count.
 *
 * Dropping the extension or its database while resources are live or unknown
 * would leave them running and billed with nobody who knows, so it is refused
 * unless leasehold.allow_drop is on.  An event trigger sees to it that this
 * library is loaded when a drop of the extension begins.  Of another database a
 * worker says on its way out what is left there; where none runs, nobody knows.
 */
#include "postgres.h"
#include "compat.h"

#include "catalog/dependency.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/event_trigger.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/procarray.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "database_guard.h"
#include "errors.h"
#include "settings.h"
#include "shared_state.h"
#include "wake.h"

PG_FUNCTION_INFO_V1(leasehold_guard_drop);

#define STAND_ASIDE_LIMIT_MS	5000

/* A table that knows of what providers may hold. */
typedef struct GuardedTable
{
	const char *schema;
	const char *name;
	const char *count_query;	/* qualified throughout: the search path is that of whoever drops */
	const char *one;			/* what is said of the count */
	const char *several;
	const char *hint;
} GuardedTable;

static const GuardedTable guarded_tables[] = {
	{"leasehold", "leases",
		"SELECT pg_catalog.count(*) FROM leasehold.leases"
		" WHERE status::pg_catalog.text OPERATOR(pg_catalog.=) ANY ('{acquiring, active, releasing,"
		" retained, resuming, pending_cleanup, irrevocable}'::pg_catalog.text[])",
		"cannot drop extension leasehold while %lld lease may have a remote resource",
		"cannot drop extension leasehold while %lld leases may have a remote resource",
	"Call leasehold.drain_installation() and wait for the leases to end, or set leasehold.allow_drop to abandon the resources."},
	{"leasehold_internal", "provider_resources",
		"SELECT pg_catalog.count(*) FROM leasehold_internal.provider_resources WHERE stray_id IS NOT NULL",
		"cannot drop extension leasehold while %lld resource of no lease is to be removed",
		"cannot drop extension leasehold while %lld resources of no lease are to be removed",
	"See leasehold.doctor() for what is in the way, or set leasehold.allow_drop to abandon the resources."},
};

static ProcessUtility_hook_type prev_process_utility = NULL;
static object_access_hook_type prev_object_access = NULL;
static SharedDatabase *held_entry = NULL;	/* whose workers this transaction holds off */

static void guard_process_utility(PlannedStmt *pstmt, const char *queryString,
								  bool readOnlyTree, ProcessUtilityContext context,
								  ParamListInfo params, QueryEnvironment *queryEnv,
								  DestReceiver *dest, QueryCompletion *qc);
static void guard_object_access(ObjectAccessType access, Oid classId, Oid objectId,
								int subId, void *arg);
static const char *database_needed_alone(Node *statement);
static SharedDatabase *stand_aside(const char *database);
static void guard_database(const char *database, SharedDatabase *entry);
static bool workers_gone(SharedDatabase *entry, bool terminate);
static void come_back(ResourceReleasePhase phase, bool isCommit, bool isTopLevel, void *arg);
static const GuardedTable *guarded_table(Oid relid);
static void guard_resources(const GuardedTable *table);

void
database_guard_init(void)
{
	prev_object_access = object_access_hook;
	object_access_hook = guard_object_access;
	if (process_shared_preload_libraries_in_progress)
	{
		prev_process_utility = ProcessUtility_hook;
		ProcessUtility_hook = guard_process_utility;
		RegisterResourceReleaseCallback(come_back, NULL);
	}
}

/*
 * Event trigger function for ddl_command_start: being called is all it is for,
 * since that loads the library and with it the hook.
 */
Datum
leasehold_guard_drop(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_EVENT_TRIGGER(fcinfo))
		elog(ERROR, "leasehold_guard_drop: not called as an event trigger");
	PG_RETURN_NULL();
}

static void
guard_process_utility(PlannedStmt *pstmt, const char *queryString,
					  bool readOnlyTree, ProcessUtilityContext context,
					  ParamListInfo params, QueryEnvironment *queryEnv,
					  DestReceiver *dest, QueryCompletion *qc)
{
	const char *database = database_needed_alone(pstmt->utilityStmt);
	ProcessUtility_hook_type next = prev_process_utility ? prev_process_utility : standard_ProcessUtility;

	if (database != NULL)
	{
		SharedDatabase *entry = stand_aside(database);

		if (entry != NULL && IsA(pstmt->utilityStmt, DropdbStmt) && !setting_allow_drop)
			guard_database(database, entry);
	}
	next(pstmt, queryString, readOnlyTree, context, params, queryEnv, dest, qc);

	/* it may have another database to serve, or one less */
	if (database != NULL || IsA(pstmt->utilityStmt, CreatedbStmt) || IsA(pstmt->utilityStmt, AlterDatabaseStmt))
		wake_launcher_at_commit();
}

/* The name of the database that a command needs without other sessions, or NULL. */
static const char *
database_needed_alone(Node *statement)
{
	ListCell   *lc;

	switch (nodeTag(statement))
	{
		case T_DropdbStmt:
			return ((DropdbStmt *) statement)->dbname;
		case T_RenameStmt:
			if (((RenameStmt *) statement)->renameType == OBJECT_DATABASE)
				return ((RenameStmt *) statement)->subname;
			return NULL;
		case T_AlterDatabaseStmt:
			foreach(lc, ((AlterDatabaseStmt *) statement)->options)
			{
				if (strcmp(lfirst_node(DefElem, lc)->defname, "tablespace") == 0)
					return ((AlterDatabaseStmt *) statement)->dbname;
			}
			return NULL;
		case T_CreatedbStmt:
			foreach(lc, ((CreatedbStmt *) statement)->options)
			{
				DefElem    *option = lfirst_node(DefElem, lc);

				if (strcmp(option->defname, "template") == 0 && option->arg != NULL)
					return defGetString(option);
			}
			return NULL;
		default:
			return NULL;
	}
}

/*
 * Holds the database's workers off until the transaction ends, and waits until
 * they are gone.  If they do not go in time the command is run anyway: the
 * server then says who is connected.  Returns NULL if there was nothing to do.
 */
static SharedDatabase *
stand_aside(const char *database)
{
	Oid			oid = get_database_oid(database, true);
	SharedDatabase *entry = OidIsValid(oid) ? shared_find_database(oid, false) : NULL;
	TimestampTz give_up;

	/* the command will be refused: that must not disturb the workers */
	if (entry == NULL || !pg_database_ownercheck(oid, GetUserId()))
		return NULL;

	held_entry = entry;
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	entry->held_off_by = MyProcPid;
	entry->resources_left = SHARED_LEFT_UNKNOWN;
	LWLockRelease(shared_state->lock);

	give_up = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), STAND_ASIDE_LIMIT_MS);
	for (bool first = true; !workers_gone(entry, first); first = false)
	{
		if (GetCurrentTimestamp() > give_up)
			break;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 10, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	return entry;
}

/*
 * Refuses to drop a database for which providers hold something.  The workers
 * that told of it come back when the transaction has failed.
 */
static void
guard_database(const char *database, SharedDatabase *entry)
{
	int64		left = entry->resources_left;

	if (left > 0)
		ereport(ERROR,
				(leasehold_error(LHE_DROP_GUARDED),
				 errmsg_plural("cannot drop database \"%s\" while %lld resource is held for it",
							   "cannot drop database \"%s\" while %lld resources are held for it",
							   (unsigned long) left, database, (long long) left),
				 errhint("Call leasehold.drain_installation() there and wait for the leases to end, or set leasehold.allow_drop to abandon the resources.")));
	if (left == SHARED_LEFT_UNKNOWN && entry->wanted)
		ereport(WARNING,
				(errmsg("nobody could tell whether resources are held for database \"%s\"", database),
				 errdetail("None of its workers was running.")));
}

static bool
workers_gone(SharedDatabase *entry, bool terminate)
{
	bool		gone = true;

	for (int w = 0; w < SHARED_MAX_WORKERS; w++)
	{
		int			pid = entry->workers[w].pid;

		if (pid == 0 || BackendPidGetProc(pid) == NULL)
			continue;
		gone = false;
		if (terminate)
			kill(pid, SIGTERM);
	}
	return gone;
}

/*
 * The transaction's end, however it ended, when its locks are released: workers
 * may come back.  A backend that dies before is forgiven its hold.
 */
static void
come_back(ResourceReleasePhase phase, bool isCommit, bool isTopLevel, void *arg)
{
	SharedDatabase *entry = held_entry;

	if (entry == NULL || !isTopLevel || phase != RESOURCE_RELEASE_AFTER_LOCKS)
		return;
	held_entry = NULL;
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	if (entry->held_off_by == MyProcPid)
		entry->held_off_by = 0;
	LWLockRelease(shared_state->lock);
	shared_wake_launcher();
}

static void
guard_object_access(ObjectAccessType access, Oid classId, Oid objectId, int subId, void *arg)
{
	if (prev_object_access)
		prev_object_access(access, classId, objectId, subId, arg);

	if (access == OAT_DROP && classId == RelationRelationId && subId == 0)
	{
		const GuardedTable *table = guarded_table(objectId);

		if (table != NULL)
			guard_resources(table);
	}
}

/* What is to be known of a table that is about to be dropped; NULL if it is not guarded. */
static const GuardedTable *
guarded_table(Oid relid)
{
	char	   *name = get_rel_name(relid);
	Oid			extension;

	for (int i = 0; name != NULL && i < (int) lengthof(guarded_tables); i++)
	{
		char	   *schema;

		if (strcmp(name, guarded_tables[i].name) != 0)
			continue;
		schema = get_namespace_name(get_rel_namespace(relid));
		if (schema == NULL || strcmp(schema, guarded_tables[i].schema) != 0)
			continue;
		extension = getExtensionOfObject(RelationRelationId, relid);
		if (OidIsValid(extension) && extension == get_extension_oid("leasehold", true))
			return &guarded_tables[i];
	}
	return NULL;
}

/*
 * Refuses the drop while providers may hold something that the table knows of.
 * The table can be dropped only with the extension, and is locked by now, so
 * the answer is still true at commit; when the extension itself is dropped, the
 * table is gone already.  Functions and other tables of ours may be gone, too.
 */
static void
guard_resources(const GuardedTable *table)
{
	int			ret;
	int64		count = 0;
	Oid			save_user;
	int			save_sec_context;

	if (setting_allow_drop)
		return;

	GetUserIdAndSecContext(&save_user, &save_sec_context);
	/* count every company's: row security must not hide any */
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID,
						   save_sec_context | SECURITY_LOCAL_USERID_CHANGE | SECURITY_RESTRICTED_OPERATION);
	SPI_connect();
	PushActiveSnapshot(GetLatestSnapshot());
	ret = SPI_execute(table->count_query, true, 0);
	if (ret == SPI_OK_SELECT && SPI_processed == 1)
	{
		bool		isnull;

		count = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	}
	PopActiveSnapshot();
	SPI_finish();
	SetUserIdAndSecContext(save_user, save_sec_context);

	if (count > 0)
		ereport(ERROR,
				(leasehold_error(LHE_DROP_GUARDED),
				 errmsg_plural(table->one, table->several, (unsigned long) count, (long long) count),
				 errhint("%s", table->hint)));
}
