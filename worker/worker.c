/*
 * worker.c
 *		A worker process: one database, or a part of it.
 *
 * The loop: a round with the database (round.c), then a wait in the event loop
 * without any transaction, snapshot or lock, until an answer comes, work is
 * committed, or the clock says so.  Answers that come while others are awaited
 * are stored with the next round; there is no barrier between calls.
 *
 * The process is connected as the bootstrap superuser, as any background
 * worker of a role that cannot log in must be, and becomes leasehold_worker
 * before it does anything.
 *
 * If it is asked to end it gives calls that are out back to the table, where
 * their outcome counts as unknown; if it dies, its successor finds them.
 */
#include "postgres.h"
#include "compat.h"

#include <sys/resource.h>

#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "storage/procsignal.h"
#include "tcop/tcopprot.h"
#include "utils/acl.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "clock_watch.h"
#include "command_output.h"
#include "event_loop.h"
#include "handover.h"
#include "housekeeping.h"
#include "http_client.h"
#include "installation.h"
#include "installation_check.h"
#include "left_calls.h"
#include "planning.h"
#include "plugins.h"
#include "queue.h"
#include "round.h"
#include "settings.h"
#include "transaction.h"
#include "worker.h"

#define SPARE_DESCRIPTORS	256
#define COMMAND_DESCRIPTORS 4	/* pipes of a process, and the process */

PGDLLEXPORT void leasehold_worker_main(Datum main_arg);

Worker		worker;

static void worker_terminate(SIGNAL_ARGS);
static void worker_connect(Oid database);
static bool worker_become_role(void);
static void worker_attach(Oid database, int part);
static void worker_detach(int code, Datum arg);
static void leave_database(uint32 announcements) pg_attribute_noreturn();
static void worker_set_capacity(void);
static void worker_loop(void) pg_attribute_noreturn();
static int64 worker_wait_ms(TimestampTz now, TimestampTz next);
static void worker_publish(void);
static bool answers_waiting(TimestampTz now, TimestampTz *next);

void
leasehold_worker_main(Datum main_arg)
{
	int			part;
	uint32		announcements;

	memcpy(&part, MyBgworkerEntry->bgw_extra, sizeof(part));
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, worker_terminate);
	pqsignal(SIGINT, StatementCancelHandler);	/* lock_timeout comes this way, too */
	BackgroundWorkerUnblockSignals();

	worker_connect(DatumGetObjectId(main_arg));
	worker.part = part;
	dlist_init(&worker.finished);
	dlist_init(&worker.out);
	worker_attach(DatumGetObjectId(main_arg), part);
	announcements = worker.database->announcements;
	if (!worker_become_role() || installation_check() == INSTALLATION_ABSENT)
		leave_database(announcements);
	if (!worker.database->wanted)
	{
		/* this database has the extension: the other parts are wanted, too */
		worker.database->wanted = true;
		shared_wake_launcher();
	}

	event_loop_init();
	http_client_init();
	queue_init();
	plugins_init();
	planning_assume_own_statements();
	worker_loop();
}

/*
 * A round that is under way ends at its next check for interrupts, as if
 * somebody had cancelled it; then calls that are out are given back.
 */
static void
worker_terminate(SIGNAL_ARGS)
{
	int			save_errno = errno;

	ShutdownRequestPending = true;
	InterruptPending = true;
	QueryCancelPending = true;
	SetLatch(MyLatch);
	errno = save_errno;
}

static void
worker_connect(Oid database)
{
	/* what a database or a role sets for its sessions is not meant for us */
	static const char *const overrides[][2] = {
		{"search_path", "pg_catalog, pg_temp"},
		{"application_name", "leasehold"},
		{"client_min_messages", "error"},
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_read_only", "off"},
		{"default_transaction_deferrable", "off"},
		{"statement_timeout", "0"},
		{"idle_in_transaction_session_timeout", "0"},
		/* users' locks must not hold us up: see api/40_dispatch.sql */
		{"lock_timeout", TRANSACTION_LOCK_TIMEOUT},
		{"deadlock_timeout", "1s"},
		/* a claim that is not on disk is no claim */
		{"synchronous_commit", "on"},
		{"session_replication_role", "origin"},
		{"row_security", "on"},
		{"timezone", "UTC"},
		{"datestyle", "ISO, MDY"},
		{"bytea_output", "hex"},

		/*
		 * what is due is read in the order of the index, whatever fits the
		 * filter
		 */
		{"enable_bitmapscan", "off"},
		{"jit", "off"},
		{"plan_cache_mode", "force_generic_plan"},
		{"max_parallel_workers_per_gather", "0"},
	};

	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);
	for (int i = 0; i < (int) lengthof(overrides); i++)
		SetConfigOption(overrides[i][0], overrides[i][1], PGC_SUSET, PGC_S_OVERRIDE);
}

/*
 * Before any SQL is run, and for good: what runs then cannot become the
 * superuser again.  False if the database has no extension.
 */
static bool
worker_become_role(void)
{
	Oid			role = InvalidOid;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (OidIsValid(get_extension_oid("leasehold", true)))
	{
		role = get_role_oid("leasehold_worker", false);
		SetSessionAuthorization(role, superuser_arg(role));
	}
	CommitTransactionCommand();
	if (OidIsValid(role))
		SetUserIdAndSecContext(role, SECURITY_LOCAL_USERID_CHANGE);
	return OidIsValid(role);
}

static void
worker_attach(Oid database, int part)
{
	int			other;

	worker.database = shared_find_database(database, true);
	if (worker.database == NULL)
		ereport(FATAL,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("leasehold has no room for database %u", database),
				 errhint("Raise leasehold.max_databases and restart the server.")));
	worker.shared = &worker.database->workers[part];
	worker_set_capacity();

	/* two that serve the same part would take each other's calls over */
	SpinLockAcquire(&worker.shared->mutex);
	while ((other = worker.shared->pid) != 0)
	{
		SpinLockRelease(&worker.shared->mutex);
		if (BackendPidGetProc(other) != NULL)
		{
			ereport(DEBUG1,
					(errmsg_internal("process %d serves part %d of this database still", other, part)));
			proc_exit(1);
		}
		SpinLockAcquire(&worker.shared->mutex);
		if (worker.shared->pid == other)
			worker.shared->pid = 0; /* it died without a word */
	}
	worker.shared->pid = MyProcPid;
	worker.shared->procno = MyProc->pgprocno;
	worker.shared->state = WORKER_ABSENT;
	worker.shared->dismissed = false;
	worker.shared->reason[0] = '\0';
	worker.shared->started_at = GetCurrentTimestamp();
	worker.shared->capacity = worker.capacity[LANE_CALLS];
	worker.shared->in_flight = worker.shared->commands = worker.shared->queued = 0;
	memset(worker.shared->providers, 0, sizeof(worker.shared->providers));
	SpinLockRelease(&worker.shared->mutex);
	before_shmem_exit(worker_detach, (Datum) 0);

	/* a backend that came first did not see us yet */
	if (shared_held_off(worker.database))
	{
		worker.shared->dismissed = true;
		proc_exit(1);
	}
}

static void
worker_detach(int code, Datum arg)
{
	bool		mine;

	SpinLockAcquire(&worker.shared->mutex);
	mine = worker.shared->pid == MyProcPid;
	if (mine)
	{
		worker.shared->pid = 0;
		worker.shared->procno = -1;
		worker.shared->state = WORKER_ABSENT;
		worker.shared->in_flight = worker.shared->commands = worker.shared->queued = 0;
	}
	SpinLockRelease(&worker.shared->mutex);
	if (mine)
		shared_wake_launcher();
}

/*
 * The database has no extension.  Ending without complaint tells the launcher
 * that it need not try again.
 */
static void
leave_database(uint32 announcements)
{
	shared_renounce_database(worker.database, announcements);
	proc_exit(0);
}

/*
 * Calls and commands that can be out: the settings, or what descriptors there
 * are.  The soft limit is raised to the hard one; what the server's own files
 * may take is left to them.
 */
static void
worker_set_capacity(void)
{
	struct rlimit limit;
	int64		descriptors = INT_MAX;
	int64		wanted;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0)
	{
		if (limit.rlim_cur < limit.rlim_max)
		{
			rlim_t		soft = limit.rlim_cur;

			limit.rlim_cur = limit.rlim_max;
			if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
				limit.rlim_cur = soft;
		}
		if (limit.rlim_cur != RLIM_INFINITY)
			descriptors = Min((int64) limit.rlim_cur, INT_MAX);
	}
	descriptors = Max(descriptors - max_files_per_process - SPARE_DESCRIPTORS, 20);
	wanted = setting_max_concurrent_calls + (int64) setting_max_concurrent_commands * COMMAND_DESCRIPTORS;
	worker.capacity[LANE_CALLS] = setting_max_concurrent_calls;
	worker.capacity[LANE_COMMANDS] = setting_max_concurrent_commands;
	if (descriptors >= wanted)
		return;
	worker.capacity[LANE_COMMANDS] = Min(setting_max_concurrent_commands, descriptors / 2 / COMMAND_DESCRIPTORS);
	worker.capacity[LANE_CALLS] = Min(setting_max_concurrent_calls,
									  descriptors - worker.capacity[LANE_COMMANDS] * COMMAND_DESCRIPTORS);
	ereport(LOG,
			(errmsg("leasehold: descriptors suffice for %d concurrent calls and %d concurrent commands only",
					worker.capacity[LANE_CALLS], worker.capacity[LANE_COMMANDS]),
			 errhint("Raise the server's limit of open files (ulimit -n, LimitNOFILE).")));
}

static void
worker_loop(void)
{
	InstallationState state = INSTALLATION_ABSENT;	/* not looked at yet */
	TimestampTz next_housekeeping = 0;
	TimestampTz next_check = 0;
	TimestampTz next = 0;
	ClockWatch	clock = {0, 0};

	for (;;)
	{
		TimestampTz now;
		int64		steady;
		TimestampTz answers_at;
		bool		woken;
		bool		check;
		int64		wait_ms;
		long		report_ms;

		if (ShutdownRequestPending)
		{
			QueryCancelPending = false;
			handover_give_back();
			if (shared_held_off(worker.database))
				handover_tell_left(state);
			worker.shared->dismissed = true;
			proc_exit(1);
		}
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			worker_set_capacity();
			plugins_forget();
			installation_look_again();
			next_check = next_housekeeping = 0;
		}

		/*
		 * the steady clock first: a pause in between looks like a jump
		 * forward
		 */
		steady = event_loop_clock();
		now = GetCurrentTimestamp();
		if (clock_was_set_back(&clock, now, steady))
		{
			ereport(LOG, (errmsg("leasehold: the clock was set back")));
			round_clock_set_back(now);
			next = next_check = next_housekeeping = 0;
		}

		if (now < round_not_before())
		{
			event_loop_wait((round_not_before() - now + 999) / 1000, PG_WAIT_EXTENSION);
			continue;
		}

		woken = pg_atomic_exchange_u32(&worker.shared->wake, 0) != 0;
		check = now >= next_check;
		if (woken || check || now >= next || answers_waiting(now, &answers_at))
		{
			InstallationState was = state;
			uint32		announcements;

			announcements = worker.database->announcements;
			state = installation_check();
			if (state == INSTALLATION_ABSENT)
				leave_database(announcements);
			if (installation_may_write(state) && !installation_may_write(was))
			{
				handover_take();
				left_calls_look_for_lost();
				check = true;
				next_housekeeping = 0;
			}
			if (installation_may_write(state) && now >= next_housekeeping)
			{
				housekeeping_run();
				next_housekeeping = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
																setting_housekeeping_interval * INT64CONST(1000));
				check = true;
			}
			queue_obey_resets(worker.shared);
			if (installation_may_write(state) && left_calls_waiting(now, &next))
				left_calls_end();
			next = round_run(state, check);
			if (installation_may_write(state) && left_calls_waiting(GetCurrentTimestamp(), &next))
				next = 0;
			if (check)
				next_check = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), setting_idle_check * INT64CONST(1000));
			worker_publish();
			now = GetCurrentTimestamp();
		}

		if (!answers_waiting(now, &answers_at) && (answers_at != 0 && answers_at < next))
			next = answers_at;
		/* outside of a round there is nothing to cancel */
		if (ShutdownRequestPending)
			continue;
		if (installation_may_write(state))
			next = Min(next, next_housekeeping);
		wait_ms = worker_wait_ms(now, Min(next, next_check));

		/*
		 * what the transactions did; of a busy moment the server wants it
		 * later
		 */
		report_ms = pgstat_report_stat(false);
		event_loop_wait(report_ms > 0 ? Min(wait_ms, report_ms) : wait_ms, PG_WAIT_EXTENSION);
	}
}

static int64
worker_wait_ms(TimestampTz now, TimestampTz next)
{
	TimestampTz answers_at;

	/*
	 * Work may have been announced since the flag was looked at, and the
	 * latch have been reset by a wait within the round.
	 */
	if (pg_atomic_read_u32(&worker.shared->wake) != 0 || answers_waiting(now, &answers_at))
		return 0;
	return next <= now ? 0 : Min((next - now + 999) / 1000, 60000);
}

/* Whether answers or output can be stored now; else when the earliest that must wait can. */
static bool
answers_waiting(TimestampTz now, TimestampTz *next)
{
	dlist_iter	iter;

	if (command_output_waiting(now, next))
		return true;
	dlist_foreach(iter, &worker.finished)
	{
		Call	   *call = dlist_container(Call, node, iter.cur);

		if (call->apply_after <= now && !command_output_left(call, true))
			return true;
		if (*next == 0 || call->apply_after < *next)
			*next = call->apply_after;
	}
	return false;
}

void
worker_call_finished(Call *call)
{
	TimestampTz now = GetCurrentTimestamp();

	Assert(call->outcome != OUTCOME_NONE);
	if (call->command != NULL)
		command_output_end(call);
	/* being told to wait is neither success nor failure */
	if (call->outcome != OUTCOME_THROTTLED && !call->not_asked && call->queue != NULL)
		queue_report(&call->key, call->provider_failed, call->transport_failed, now);
	queue_end(&call->key);
	dlist_delete(&call->node);
	dlist_push_tail(&worker.finished, &call->node);
	worker.finished_count++;
	worker.in_flight[call_lane(call)]--;
	call->apply_after = now;
}

static void
worker_publish(void)
{
	SpinLockAcquire(&worker.shared->mutex);
	worker.shared->epoch = worker.epoch;
	worker.shared->in_flight = worker.in_flight[LANE_CALLS];
	worker.shared->commands = worker.in_flight[LANE_COMMANDS];
	worker.shared->queued = queue_length();
	worker.shared->capacity = worker.capacity[LANE_CALLS];
	worker.shared->last_round_at = GetCurrentTimestamp();
	worker.shared->rounds++;
	SpinLockRelease(&worker.shared->mutex);
	queue_publish(worker.shared);
}
