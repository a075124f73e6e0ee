/*
 * attachment.c
 *		Attaches a CALL to the lease and the command that it waits for.
 *
 * A procedure commits between its steps, so what it began is there for good, and
 * would go on if nobody saw to it when the CALL is cancelled, fails, or loses its
 * client.  So the session notes in shared memory what is to end with it.  It
 * takes that back when all is done; if its transaction is aborted before, or the
 * session ends, the note is left to the workers, which do the rest.  Nothing
 * that happens then can fail: no memory is needed, and no lock but a spinlock.
 *
 * A procedure that is called by one that is attached shares its attachment: what
 * it attaches comes to it, but for its command, and only the outermost detaches
 * all.  Commits leave an attachment alone.  Only one that is undone by no error is
 * lost: that of a server that crashes.  For this case a queued command carries a
 * mark in the dispatch table, too; see worker/left_calls.c.
 */
#include "postgres.h"
#include "compat.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

#include "attachment.h"
#include "errors.h"
#include "service.h"
#include "settings.h"
#include "shards.h"
#include "shared_state.h"

PG_FUNCTION_INFO_V1(leasehold_attach_call);
PG_FUNCTION_INFO_V1(leasehold_detach_call);
PG_FUNCTION_INFO_V1(leasehold_attached_calls);

/* Of those that were left: more of one company are not piled up, since all companies share the slots. */
#define LEFT_OF_COMPANY_MIN 10
#define LEFT_OF_COMPANY_MAX Max(LEFT_OF_COMPANY_MIN, shared_state->max_attachments / 4)

static SharedAttachment *mine = NULL;	/* what this session holds */
static SharedDatabase *my_database = NULL;
static TimestampTz begun_in = 0;	/* the statement in which it began */
static int	inner = 0;			/* procedures that began within it */

static void require_procedure(void);
static void require_service(void);
static void hold(FunctionCallInfo fcinfo, const pg_uuid_t *company, int generation);
static void require_same(FunctionCallInfo fcinfo, const pg_uuid_t *company);
static void take_slot(const pg_uuid_t *company);
static void require_few_left(const pg_uuid_t *company);
static void leave(void);
static void give_up_slot(bool to_worker);
static void let_go(const pg_uuid_t *lease, const pg_uuid_t *command);
static void check_subjects(FunctionCallInfo fcinfo, pg_uuid_t *company, int *generation);
static void unmark(const pg_uuid_t *company, const pg_uuid_t *command);
static void xact_callback(XactEvent event, void *arg);
static void exit_callback(int code, Datum arg);

void
attachment_init(void)
{
	RegisterXactCallback(xact_callback, NULL);
}

/*
 * attach_call(lease_id, command_id, company)
 *		Without an id it begins: what an earlier CALL forgot to detach is left.
 */
Datum
leasehold_attach_call(PG_FUNCTION_ARGS)
{
	bool		begins = PG_ARGISNULL(0) && PG_ARGISNULL(1);
	pg_uuid_t	company;
	int			generation;

	require_procedure();
	require_service();
	if (mine != NULL && begun_in != GetCurrentStatementStartTimestamp())
		leave();
	check_subjects(fcinfo, &company, &generation);
	if (mine == NULL)
	{
		take_slot(&company);
		begun_in = GetCurrentStatementStartTimestamp();
	}
	else if (begins)
		inner++;
	if (!begins)
		hold(fcinfo, &company, generation);
	PG_RETURN_VOID();
}

static void
hold(FunctionCallInfo fcinfo, const pg_uuid_t *company, int generation)
{
	require_same(fcinfo, company);
	SpinLockAcquire(&mine->mutex);
	mine->company = *company;
	mine->part = DatumGetUInt32(DirectFunctionCall1(uuid_hash, UUIDPGetDatum(company))) % SHARDS % setting_workers;
	if (!PG_ARGISNULL(0))
	{
		mine->lease = *PG_GETARG_UUID_P(0);
		mine->generation = generation;
	}
	if (!PG_ARGISNULL(1))
		mine->command = *PG_GETARG_UUID_P(1);
	SpinLockRelease(&mine->mutex);
}

/* One company, and one lease, at a time. */
static void
require_same(FunctionCallInfo fcinfo, const pg_uuid_t *company)
{
	bool		holds_lease = !attachment_is_nil(&mine->lease);
	bool		other_lease = holds_lease && !PG_ARGISNULL(0) && memcmp(&mine->lease, PG_GETARG_UUID_P(0), UUID_LEN) != 0;
	bool		other_company = (holds_lease || !attachment_is_nil(&mine->command)) &&
	memcmp(&mine->company, company, UUID_LEN) != 0;

	if (other_company || (other_lease && inner > 0))
		ereport(ERROR,
				(leasehold_error(LHE_WRONG_STATE),
				 errmsg("this CALL is attached to %s already", other_company ? "what is another company's" : "another lease"),
				 errhint("The procedure can end that with detach_call() before it calls another.")));
}

/*
 * detach_call(lease_id, command_id): the CALL has seen the end, of these or of
 * all that it began.
 */
Datum
leasehold_detach_call(PG_FUNCTION_ARGS)
{
	pg_uuid_t	company;
	pg_uuid_t	command;

	for (int i = 0; i < 2; i++)
	{
		if (!PG_ARGISNULL(i) && !attachment_has(PG_GETARG_UUID_P(i)))
			ereport(ERROR,
					(leasehold_error(i == 0 ? LHE_LEASE_NOT_FOUND : LHE_COMMAND_NOT_FOUND),
					 errmsg("this CALL is not attached to %s %s", i == 0 ? "lease" : "command",
							DatumGetCString(DirectFunctionCall1(uuid_out, PG_GETARG_DATUM(i))))));
	}
	if (mine == NULL)
		PG_RETURN_VOID();
	company = mine->company;
	command = mine->command;
	if (!PG_ARGISNULL(0) || !PG_ARGISNULL(1))
		let_go(PG_ARGISNULL(0) ? NULL : PG_GETARG_UUID_P(0), PG_ARGISNULL(1) ? NULL : PG_GETARG_UUID_P(1));
	else if (inner > 0)
	{
		inner--;
		let_go(NULL, &command);
	}
	else
		give_up_slot(false);
	if (!attachment_is_nil(&command) && (mine == NULL || attachment_is_nil(&mine->command)))
		unmark(&company, &command);
	PG_RETURN_VOID();
}

/* Those that are held. */
static void
let_go(const pg_uuid_t *lease, const pg_uuid_t *command)
{
	SpinLockAcquire(&mine->mutex);
	if (lease != NULL && memcmp(&mine->lease, lease, UUID_LEN) == 0)
		memset(&mine->lease, 0, sizeof(pg_uuid_t));
	if (command != NULL && memcmp(&mine->command, command, UUID_LEN) == 0)
		memset(&mine->command, 0, sizeof(pg_uuid_t));
	SpinLockRelease(&mine->mutex);
}

/*
 * A procedure that cannot commit would find out after it had written something.
 * This is called from it without anything in between, so SPI's opinion is that
 * of the procedure.
 */
static void
require_procedure(void)
{
	if (SPI_inside_nonatomic_context() && (MyXactFlags & XACT_FLAGS_PIPELINING) == 0)
		return;
	if ((IsTransactionBlock() && !IsSubTransaction()) || (MyXactFlags & XACT_FLAGS_PIPELINING) != 0)
		ereport(ERROR,
				(leasehold_error(LHE_TRANSACTION_BLOCK),
				 errmsg("a procedure that waits cannot be called in a transaction block"),
				 errhint("It commits between its steps: CALL it as a statement of its own, with autocommit on.")));
	ereport(ERROR,
			(leasehold_error(LHE_TRANSACTION_BLOCK),
			 errmsg("a procedure that waits cannot be called from a function, or where exceptions are caught"),
			 errhint("It commits between its steps: CALL it as a statement of its own, or from a procedure or DO block that may commit.")));
}

/* Before anything is written for nothing. */
static void
require_service(void)
{
	char	   *reason;
	LeaseholdError error;

	if (mine == NULL && !service_is_available(&reason, &error))
		ereport(ERROR,
				(leasehold_error(error),
				 errmsg("nothing would be done at the provider now: %s", reason),
				 errhint("An administrator can call leasehold.doctor().")));
}

static void
take_slot(const pg_uuid_t *company)
{
	static bool at_exit = false;

	require_few_left(company);

	if (!at_exit)
	{
		before_shmem_exit(exit_callback, (Datum) 0);
		at_exit = true;
	}
	my_database = shared_find_database(MyDatabaseId, true);
	for (int i = 0; my_database != NULL && i < shared_state->max_attachments && mine == NULL; i++)
	{
		SharedAttachment *slot = &shared_attachments[i];

		SpinLockAcquire(&slot->mutex);
		if (slot->state == ATTACHMENT_FREE)
		{
			slot->state = ATTACHMENT_HELD;
			slot->database = MyDatabaseId;
			slot->pid = MyProcPid;
			slot->company = *company;
			memset(&slot->lease, 0, sizeof(pg_uuid_t));
			memset(&slot->command, 0, sizeof(pg_uuid_t));
			mine = slot;
		}
		SpinLockRelease(&slot->mutex);
	}
	if (mine == NULL)
		ereport(ERROR,
				(leasehold_error(LHE_QUOTA_EXCEEDED),
				 errmsg("too many sessions wait for their commands already"),
				 errhint("Try again later, or raise leasehold.max_attached_calls (now %d) and restart the server.",
						 shared_state->max_attachments)));
}

static void
require_few_left(const pg_uuid_t *company)
{
	int			left = 0;

	for (int i = 0; i < shared_state->max_attachments; i++)
	{
		SharedAttachment *slot = &shared_attachments[i];

		SpinLockAcquire(&slot->mutex);
		if (slot->state == ATTACHMENT_LEFT && slot->database == MyDatabaseId &&
			memcmp(&slot->company, company, UUID_LEN) == 0)
			left++;
		SpinLockRelease(&slot->mutex);
	}
	if (left >= LEFT_OF_COMPANY_MAX)
		ereport(ERROR,
				(leasehold_error(LHE_QUOTA_EXCEEDED),
				 errmsg("what %d earlier CALLs of this company left behind has not been ended yet", left),
				 errhint("Somebody may have their leases locked: see pg_stat_activity for transactions that stay open.")));
}

/* Leaves what this session holds to the workers. */
static void
leave(void)
{
	bool		to_worker;

	/* only this session changes what it holds */
	to_worker = !(attachment_is_nil(&mine->lease) && attachment_is_nil(&mine->command)) &&
		my_database->oid == MyDatabaseId;
	give_up_slot(to_worker);
	if (to_worker)
		shared_wake_workers(my_database);
}

static void
give_up_slot(bool to_worker)
{
	/* the worker may be about to free others */
	if (to_worker)
		pg_atomic_fetch_add_u32(&my_database->workers[mine->part].left_calls, 1);
	SpinLockAcquire(&mine->mutex);
	mine->state = to_worker ? ATTACHMENT_LEFT : ATTACHMENT_FREE;
	SpinLockRelease(&mine->mutex);
	mine = NULL;
	inner = 0;
}

/* The company, if it is the caller's and has these, and the lease's generation; marks the command. */
static void
check_subjects(FunctionCallInfo fcinfo, pg_uuid_t *company, int *generation)
{
	Datum		args[3];
	char		nulls[3];
	bool		isnull;

	for (int i = 0; i < 3; i++)
	{
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
		args[i] = PG_ARGISNULL(i) ? (Datum) 0 : PG_GETARG_DATUM(i);
	}
	SPI_connect();
	if (SPI_execute_with_args("SELECT * FROM leasehold_internal.check_attachment($1, $2, $3)", 3,
							  (Oid[]) {UUIDOID, UUIDOID, TEXTOID}, args, nulls, false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not check what is to be attached");
	*company = *DatumGetUUIDP(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	*generation = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull));
	SPI_finish();
}

/* Its end is nobody's business any more, if the server crashes either. */
static void
unmark(const pg_uuid_t *company, const pg_uuid_t *command)
{
	Datum		args[] = {UUIDPGetDatum(company), UUIDPGetDatum(command)};

	SPI_connect();
	if (SPI_execute_with_args("SELECT leasehold_internal.unmark_attached($1, $2)", 2, (Oid[]) {UUIDOID, UUIDOID}, args, NULL, false, 1) !=
		SPI_OK_SELECT)
		elog(ERROR, "could not take the mark from a command");
	SPI_finish();
}

static void
xact_callback(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_ABORT && mine != NULL)
		leave();
}

/* The end of the session aborts its transaction, too; but it may be in none. */
static void
exit_callback(int code, Datum arg)
{
	if (mine != NULL)
		leave();
}

bool
attachment_has(const pg_uuid_t *subject)
{
	return mine != NULL && (memcmp(&mine->command, subject, UUID_LEN) == 0 || memcmp(&mine->lease, subject, UUID_LEN) == 0);
}

bool
attachment_is_nil(const pg_uuid_t *id)
{
	static const pg_uuid_t nil = {{0}};

	return memcmp(id, &nil, UUID_LEN) == 0;
}

int
attachment_read_left(Oid database, int part, int *from, LeftAttachment *list, int most)
{
	int			count = 0;

	for (int looked = 0; looked < shared_state->max_attachments && count < most; looked++)
	{
		SharedAttachment *slot = &shared_attachments[*from];

		SpinLockAcquire(&slot->mutex);
		if (slot->state == ATTACHMENT_LEFT && slot->database == database && slot->part == part)
		{
			list[count].slot = *from;
			list[count].company = slot->company;
			list[count].lease = slot->lease;
			list[count].generation = slot->generation;
			list[count].command = slot->command;
			count++;
		}
		SpinLockRelease(&slot->mutex);
		*from = (*from + 1) % shared_state->max_attachments;
	}
	return count;
}

void
attachment_free(SharedWorker *worker, const LeftAttachment *done)
{
	SharedAttachment *slot = &shared_attachments[done->slot];
	bool		is_it;

	SpinLockAcquire(&slot->mutex);
	/* the slots of a database that has gone are freed by others */
	is_it = slot->state == ATTACHMENT_LEFT && memcmp(&slot->lease, &done->lease, UUID_LEN) == 0 &&
		memcmp(&slot->command, &done->command, UUID_LEN) == 0;
	if (is_it)
		slot->state = ATTACHMENT_FREE;
	SpinLockRelease(&slot->mutex);
	if (is_it)
		pg_atomic_fetch_sub_u32(&worker->left_calls, 1);
}

bool
attachment_exists(Oid database, const pg_uuid_t *company, const pg_uuid_t *command)
{
	bool		found = false;

	for (int i = 0; i < shared_state->max_attachments && !found; i++)
	{
		SharedAttachment *slot = &shared_attachments[i];

		SpinLockAcquire(&slot->mutex);
		found = slot->state != ATTACHMENT_FREE && slot->database == database &&
			memcmp(&slot->company, company, UUID_LEN) == 0 && memcmp(&slot->command, command, UUID_LEN) == 0;
		SpinLockRelease(&slot->mutex);
	}
	return found;
}

/*
 * attached_calls(): one row per slot of this database that is in use.
 */
Datum
leasehold_attached_calls(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; shared_state != NULL && i < shared_state->max_attachments; i++)
	{
		SharedAttachment slot;
		Datum		values[5];
		bool		nulls[5] = {false};

		SpinLockAcquire(&shared_attachments[i].mutex);
		memcpy(&slot, &shared_attachments[i], sizeof(slot));
		SpinLockRelease(&shared_attachments[i].mutex);
		if (slot.state == ATTACHMENT_FREE || slot.database != MyDatabaseId)
			continue;
		values[0] = Int32GetDatum(slot.pid);
		values[1] = CStringGetTextDatum(slot.state == ATTACHMENT_HELD ? "held" : "left");
		values[2] = UUIDPGetDatum(&slot.company);
		values[3] = UUIDPGetDatum(&slot.lease);
		nulls[3] = attachment_is_nil(&slot.lease);
		values[4] = UUIDPGetDatum(&slot.command);
		nulls[4] = attachment_is_nil(&slot.command);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
