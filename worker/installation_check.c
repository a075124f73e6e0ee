/*
 * installation_check.c
 *		Whether a worker may serve what it finds in its database.
 *
 * A worker writes to an installation only after it has seen that it is the
 * original, of the version that this library serves, and here as a whole.  The
 * state is kept until a change is heard of; only where there is nothing of ours
 * to hear from, it is read every time.
 */
#include "postgres.h"
#include "compat.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "commands/extension.h"
#include "executor/spi.h"

#include "installation.h"
#include "installation_check.h"
#include "transaction.h"
#include "worker.h"

#define SUPPORTED_VERSION	LEASEHOLD_VERSION	/* of the SQL objects */

static uint64 changes_seen = PG_UINT64_MAX;
static InstallationState known_state = INSTALLATION_HELD;

static bool is_up_to_date(void);
static void check_work(void *arg);
static void read_state(void);
static void set_shared_state(WorkerState state, const char *reason);

InstallationState
installation_check(void)
{
	InstallationState state = known_state;
	MemoryContext context;

	transaction_fresh_memory();
	context = CurrentMemoryContext;

	/* beginning a transaction takes in what others changed */
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	if (is_up_to_date())
		return known_state;

	/*
	 * nobody must take over what is out because of somebody's lock: until the
	 * next look all is as it was
	 */
	if (!transaction_run("looking at the installation", check_work, &state) &&
		changes_seen == PG_UINT64_MAX)
		set_shared_state(WORKER_ABSENT, "the state of the installation could not be read; see the server log");
	return state;
}

static bool
is_up_to_date(void)
{
	return changes_seen == installation_change_count() && known_state != INSTALLATION_ABSENT &&
		known_state != INSTALLATION_EMPTY && known_state != INSTALLATION_UNSUPPORTED;
}

static void
check_work(void *arg)
{
	InstallationState *state = arg;
	uint64		seen = installation_change_count();
	Oid			extension = get_extension_oid("leasehold", true);

	if (!OidIsValid(extension))
		*state = known_state = INSTALLATION_ABSENT;
	else
	{
		char	   *version;

		if (SPI_execute("SELECT e.extversion FROM pg_catalog.pg_extension AS e WHERE e.extname = 'leasehold'",
						true, 1) != SPI_OK_SELECT || SPI_processed != 1)
			elog(ERROR, "could not read the version of the extension");
		version = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
		if (strcmp(version, SUPPORTED_VERSION) != 0)
		{
			known_state = INSTALLATION_UNSUPPORTED;
			set_shared_state(WORKER_UNSUPPORTED, psprintf("the SQL objects are of version %s, the library serves %s",
														  version, SUPPORTED_VERSION));
		}
		else
			read_state();
		*state = known_state;
	}
	changes_seen = seen;
}

static void
read_state(void)
{
	HeapTuple	row;
	TupleDesc	desc;
	char	   *hold;
	bool		isnull;

	if (SPI_execute("SELECT leasehold_internal.hold_reason(),"
					" COALESCE((SELECT i.paused FROM leasehold_internal.installation AS i LIMIT 1), false),"
					" (SELECT i.paused_reason FROM leasehold_internal.installation AS i LIMIT 1),"
					" EXISTS (SELECT FROM leasehold_internal.installation),"
	/* asking for the epoch is what makes us hear of changes */
					" leasehold_internal.current_epoch()",
					true, 1) != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "could not read the installation");
	row = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	hold = SPI_getvalue(row, desc, 1);
	if (hold != NULL)
	{
		if (known_state != INSTALLATION_HELD || changes_seen == PG_UINT64_MAX)
			ereport(LOG,
					(errmsg("leasehold: the installation is held: %s", hold),
					 errhint("Call leasehold.takeover_installation() if this replaces the original, or leasehold.fork_installation() if it is a copy.")));
		known_state = INSTALLATION_HELD;
		set_shared_state(WORKER_HELD, hold);
	}
	else if (DatumGetBool(SPI_getbinval(row, desc, 2, &isnull)))
	{
		char	   *reason = SPI_getvalue(row, desc, 3);

		known_state = INSTALLATION_PAUSED;
		set_shared_state(WORKER_PAUSED, reason ? psprintf("paused: %s", reason) : "paused by an administrator");
	}
	else
	{
		/*
		 * a restore brings leases before their installation: nothing may be
		 * done with them
		 */
		known_state = DatumGetBool(SPI_getbinval(row, desc, 4, &isnull)) ? INSTALLATION_SERVED : INSTALLATION_EMPTY;
		set_shared_state(WORKER_RUNNING, NULL);
	}
}

static void
set_shared_state(WorkerState state, const char *reason)
{
	SpinLockAcquire(&worker.shared->mutex);
	worker.shared->state = state;
	strlcpy(worker.shared->reason, reason ? reason : "", sizeof(worker.shared->reason));
	SpinLockRelease(&worker.shared->mutex);
}

bool
installation_may_write(InstallationState state)
{
	return state == INSTALLATION_SERVED || state == INSTALLATION_PAUSED;
}
