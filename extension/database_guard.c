/*
 * database_guard.c
 *		Stands aside for commands that need a database alone, and guards DROP
 *		EXTENSION.
 *
 * DROP DATABASE, CREATE DATABASE ... TEMPLATE, ALTER DATABASE ... RENAME and
 * ... SET TABLESPACE fail while anybody is connected, our workers included.
 * Before such a command its database's workers are stopped and held off, and
 * when it has ended, however it ended, they may come back.  The launcher
 * forgives a hold whose backend has died.
 *
 * Dropping the extension while resources are live or unknown would leave them
 * running and billed with nobody who knows, so it is refused unless
 * leasehold.allow_drop is on.  An event trigger sees to it that this library
 * is loaded when a drop begins.
 */
#include "postgres.h"
#include "compat.h"

#include "catalog/objectaccess.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_extension.h"
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
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "database_guard.h"
#include "errors.h"
#include "settings.h"
#include "shared_state.h"

PG_FUNCTION_INFO_V1(leasehold_guard_drop);

#define STAND_ASIDE_LIMIT_MS	5000

static ProcessUtility_hook_type prev_process_utility = NULL;
static object_access_hook_type prev_object_access = NULL;

static void guard_process_utility(PlannedStmt *pstmt, const char *queryString,
								  bool readOnlyTree, ProcessUtilityContext context,
								  ParamListInfo params, QueryEnvironment *queryEnv,
								  DestReceiver *dest, QueryCompletion *qc);
static void guard_object_access(ObjectAccessType access, Oid classId, Oid objectId,
								int subId, void *arg);
static const char *database_needed_alone(Node *statement);
static SharedDatabase *stand_aside(const char *database);
static bool workers_gone(SharedDatabase *entry, bool terminate);
static void come_back(SharedDatabase *entry);
static void come_back_on_exit(int code, Datum arg);
static void guard_drop_extension(void);

void
database_guard_init(void)
{
	prev_object_access = object_access_hook;
	object_access_hook = guard_object_access;
	if (process_shared_preload_libraries_in_progress)
	{
		prev_process_utility = ProcessUtility_hook;
		ProcessUtility_hook = guard_process_utility;
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
	SharedDatabase *entry = database ? stand_aside(database) : NULL;
	ProcessUtility_hook_type next = prev_process_utility ? prev_process_utility : standard_ProcessUtility;

	if (entry == NULL)
	{
		next(pstmt, queryString, readOnlyTree, context, params, queryEnv, dest, qc);
		if (IsA(pstmt->utilityStmt, CreatedbStmt))
			shared_wake_launcher();
		return;
	}

	PG_ENSURE_ERROR_CLEANUP(come_back_on_exit, PointerGetDatum(entry));
	{
		next(pstmt, queryString, readOnlyTree, context, params, queryEnv, dest, qc);
	}
	PG_END_ENSURE_ERROR_CLEANUP(come_back_on_exit, PointerGetDatum(entry));
	come_back(entry);
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
 * Holds the database's workers off and waits until they are gone.  Returns
 * NULL when there is nothing to hold off.  If they do not go in time the
 * command is run anyway: the server then says who is connected.
 */
static SharedDatabase *
stand_aside(const char *database)
{
	Oid			oid = get_database_oid(database, true);
	SharedDatabase *entry = OidIsValid(oid) ? shared_find_database(oid, false) : NULL;
	TimestampTz give_up;

	if (entry == NULL)
		return NULL;

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	entry->held_off_by = MyProcPid;
	LWLockRelease(shared_state->lock);

	PG_ENSURE_ERROR_CLEANUP(come_back_on_exit, PointerGetDatum(entry));
	{
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
	}
	PG_END_ENSURE_ERROR_CLEANUP(come_back_on_exit, PointerGetDatum(entry));
	return entry;
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

static void
come_back(SharedDatabase *entry)
{
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	if (entry->held_off_by == MyProcPid)
		entry->held_off_by = 0;
	LWLockRelease(shared_state->lock);
	shared_wake_launcher();
}

static void
come_back_on_exit(int code, Datum arg)
{
	come_back((SharedDatabase *) DatumGetPointer(arg));
}

static void
guard_object_access(ObjectAccessType access, Oid classId, Oid objectId, int subId, void *arg)
{
	if (prev_object_access)
		prev_object_access(access, classId, objectId, subId, arg);

	if (access == OAT_DROP && classId == ExtensionRelationId &&
		objectId == get_extension_oid("leasehold", true))
		guard_drop_extension();
}

/*
 * Refuses the drop while leases may have a resource.  The leases are locked
 * against new ones first, so that the answer is still true at commit.
 */
static void
guard_drop_extension(void)
{
	int			ret;
	int64		count = 0;
	Oid			save_user;
	int			save_sec_context;

	if (setting_allow_drop)
		return;

	GetUserIdAndSecContext(&save_user, &save_sec_context);
	/* count every company's leases: row security must not hide any */
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID,
						   save_sec_context | SECURITY_LOCAL_USERID_CHANGE | SECURITY_RESTRICTED_OPERATION);
	SPI_connect();
	PushActiveSnapshot(GetLatestSnapshot());
	ret = SPI_execute("LOCK TABLE leasehold.leases IN SHARE ROW EXCLUSIVE MODE", false, 0);
	if (ret == SPI_OK_UTILITY)
	{
		PopActiveSnapshot();
		PushActiveSnapshot(GetLatestSnapshot());
		ret = SPI_execute("SELECT pg_catalog.count(*) FROM leasehold.leases"
						  " WHERE leasehold_internal.may_have_resource(status)", true, 0);
		if (ret == SPI_OK_SELECT && SPI_processed == 1)
		{
			bool		isnull;

			count = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
												SPI_tuptable->tupdesc, 1, &isnull));
		}
	}
	PopActiveSnapshot();
	SPI_finish();
	SetUserIdAndSecContext(save_user, save_sec_context);

	if (count > 0)
		ereport(ERROR,
				(leasehold_error(LHE_DROP_GUARDED),
				 errmsg_plural("cannot drop extension leasehold while %lld lease may have a remote resource",
							   "cannot drop extension leasehold while %lld leases may have a remote resource",
							   (unsigned long) count, (long long) count),
				 errhint("Call leasehold.drain_installation() and wait for the leases to end, or set leasehold.allow_drop to abandon the resources.")));
}
