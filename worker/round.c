/*
 * round.c
 *		A worker's dealings with the database.
 *
 * A round does everything that there is to do in one transaction, so that
 * storing a hundred answers and claiming a hundred calls costs one flush.  If
 * it fails, the pieces are done one by one, and the one that cannot be done is
 * put aside with its error; the others lose nothing.
 *
 * Reading what is due: the table is read from a little before the last look on.
 * Transactions that took longer between writing work and committing say how far
 * back to look (wake.c), and now and then everything is looked at.
 */
#include "postgres.h"
#include "compat.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/condition_variable.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "event_loop.h"
#include "installation.h"
#include "plugins.h"
#include "providers/provider.h"
#include "queue.h"
#include "round.h"
#include "settings.h"
#include "shards.h"
#include "worker.h"

#define SUPPORTED_VERSION	LEASEHOLD_VERSION	/* of the SQL objects */
#define LOOK_BACK_US		20000	/* more than WAKE_LATE_US */
#define DUE_BATCH			1000
#define DUE_BATCH_MAX		50000
#define OVERDUE_BATCH		10000
#define ANSWER_BATCH		500
#define CLAIM_BATCH			500
#define RECOVER_PAUSE_MS	100
#define LOCKED_PAUSE_MS		50
#define LOCKED_PAUSE_DOUBLINGS 5
#define FAILED_PAUSE_MS		100
#define TROUBLE_PAUSE_MAX_MS 5000
#define TROUBLE_PAUSE_MS	1000	/* of what met with an error that passes */
#define POSTPONED_MS		60000	/* of what cannot be done */
#define TROUBLES_IN_ROW		3	/* then the rest has to wait, too; locks do not count */
#define LOCKS_PATIENTLY		3	/* then the rest of a round waits for none */
#define LOCK_TIMEOUT		"80ms"
#define LOCK_TIMEOUT_SHORT	"5ms"
#define DUTY_BATCHES		20
#define STORE_TRIES			5
#define GIVE_BACK_TRIES		10
#define REPORT_AGAIN_MS		60000

typedef void (*RoundWork) (void *arg);

/* What one round does, and what it finds out. */
typedef struct Round
{
	RoundState	state;
	Call	  **answers;
	int			answer_count;
	char	   *applied;		/* per answer: 'a'pplied, 'l'ocked, 's'tale */
	TimestampTz since;
	TimestampTz begun_at;
	int			due_limit;
	int			overdue_limit;	/* 0: not looked for */
	bool		more_due;
	TimestampTz last_due;
	int			added;
	QueueKey   *timers;
	int			timer_count;
	QueueKey   *taken;
	QueueShare **takers;
	TimestampTz *taken_due;
	int			taken_count;
	Call	  **claimed;
	int			claimed_count;
	pg_uuid_t  *woken;			/* subjects whose waiters are to be told */
	int			woken_count;
	TimestampTz next_due;
} Round;

/* One of housekeeping. */
typedef struct Duty
{
	const char *name;
	bool		more;			/* is likely to be left */
} Duty;

static TimestampTz watermark = DT_NOBEGIN;	/* everything due before was read */
static MemoryContext round_context = NULL;
static uint64 installation_seen = PG_UINT64_MAX;
static RoundState installation_state = ROUND_HELD;
static int	trouble = 0;		/* SQLSTATE of the latest transaction that failed */
static TimestampTz trouble_until = 0;	/* no rounds before */
static int	trouble_pause_ms = 0;
static bool trouble_is_known = false;	/* it was reported the last time */
static int	locks_met = 0;		/* by the pieces of a failed round */

static bool in_transaction(const char *what, RoundWork work, void *arg);
static void note_trouble(void);
static bool trouble_passes(void);
static bool trouble_is_general(void);
static bool troubled(int *in_row);
static void forget_locks(void);
static void set_shared_state(WorkerState state, const char *reason);

static void check_work(void *arg);
static void read_installation(void);
static void recover_work(void *arg);
static void housekeep_work(void *arg);
static void store_finished(void);
static void give_back_work(void *arg);

static TimestampTz pause_after_trouble(bool nothing_works);
static void collect_answers(Round *round);
static void whole_round_work(void *arg);
static void apply_answers(Round *round);
static void apply_lease_answers(Round *round, Call **calls, int *index, int count);
static void apply_stray_answers(Call **calls, int count);
static char apply_initialize_answer(Call *call);
static char apply_reconcile_answer(Call *call);
static void settle_answers(Round *round);
static TimestampTz forget_call(Call *call);
static TimestampTz forget_key(const QueueKey *key);
static bool apply_one_by_one(Round *round);
static void set_answer_aside(void *arg);

static void read_due(Round *round);
static void read_overdue(Round *round);
static bool fire_deadlines(Round *round);
static void fire_work(void *arg);
static void postpone_deadline_work(void *arg);
static void postpone(const QueueKey *key, bool deadline);
static void claim_calls(Round *round);
static Call *make_call(HeapTuple row, TupleDesc desc, Round *round);
static QueueShare *find_taker(Round *round, const QueueKey *key);
static void start_claimed(Round *round);
static void untake(Round *round);
static bool claim_one_by_one(Round *round);
static void claim_work(void *arg);
static void postpone_call_work(void *arg);
static void tell_waiters(Round *round);

static SPIPlanPtr prepared(SPIPlanPtr *plan, const char *query, int count, const Oid *types);
static Datum uuid_array(const pg_uuid_t *ids, int count);
static Datum companies_of(const QueueKey *keys, int count);
static Datum subjects_of(const QueueKey *keys, int count);
static Datum slots_of(const QueueKey *keys, int count);
static const char *slot_of(const QueueKey *key);
static Datum my_shards(void);
static Datum text_or_null(const char *text, bool *isnull);
static Datum text_array(char **texts, int count);

/*
 * Runs work in a transaction of its own.  An error is logged with what was
 * tried, and undone; false then.
 */
static bool
in_transaction(const char *what, RoundWork work, void *arg)
{
	volatile bool ok = false;
	MemoryContext context = round_context;

	SetCurrentStatementStartTimestamp();
	pgstat_report_activity(STATE_RUNNING, what);
	PG_TRY();
	{
		StartTransactionCommand();
		SPI_connect();
		PushActiveSnapshot(GetTransactionSnapshot());
		work(arg);
		PopActiveSnapshot();
		SPI_finish();
		CommitTransactionCommand();
		ok = true;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		/* the process is told to end: that is no failure of the work */
		note_trouble();
		FlushErrorState();
		AbortCurrentTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	pgstat_report_stat(false);
	pgstat_report_activity(STATE_IDLE, NULL);
	return ok;
}

/*
 * Keeps the code of the error that is being handled, and reports it, unless it
 * is one that passes and was reported a moment ago.
 */
static void
note_trouble(void)
{
	static int	reported = 0;
	static TimestampTz reported_at = 0;
	TimestampTz now = GetCurrentTimestamp();

	trouble = geterrcode();
	if (trouble_passes() &&
		(trouble_is_known ||
		 (trouble == reported && now >= reported_at && now < TimestampTzPlusMilliseconds(reported_at, REPORT_AGAIN_MS))))
		return;
	reported = trouble;
	reported_at = now;
	EmitErrorReport();
}

/*
 * Whether the latest failure will pass by itself and says nothing about what
 * was tried: somebody's lock, a lack of memory or disk, a cancel.
 */
static bool
trouble_passes(void)
{
	return trouble == ERRCODE_LOCK_NOT_AVAILABLE || trouble_is_general() ||
		ERRCODE_TO_CATEGORY(trouble) == MAKE_SQLSTATE('4', '0', '0', '0', '0'); /* deadlock */
}

/* Whether the latest failure is likely to befall whatever is tried. */
static bool
trouble_is_general(void)
{
	switch (ERRCODE_TO_CATEGORY(trouble))
	{
		case MAKE_SQLSTATE('5', '3', '0', '0', '0'):	/* resources */
		case MAKE_SQLSTATE('5', '7', '0', '0', '0'):	/* intervention */
		case MAKE_SQLSTATE('5', '8', '0', '0', '0'):	/* the system */
			return true;
		default:
			return false;
	}
}

/*
 * After a piece of a failed round that failed: counts what would befall the
 * others, too.  Locks do not count; but who has met several does not wait long
 * for the next ones.  Returns trouble_passes().
 */
static bool
troubled(int *in_row)
{
	*in_row = trouble_is_general() ? *in_row + 1 : 0;
	if (trouble == ERRCODE_LOCK_NOT_AVAILABLE && ++locks_met == LOCKS_PATIENTLY)
		SetConfigOption("lock_timeout", LOCK_TIMEOUT_SHORT, PGC_SUSET, PGC_S_OVERRIDE);
	return trouble_passes();
}

static void
forget_locks(void)
{
	if (locks_met >= LOCKS_PATIENTLY)
		SetConfigOption("lock_timeout", LOCK_TIMEOUT, PGC_SUSET, PGC_S_OVERRIDE);
	locks_met = 0;
}

RoundState
round_check(void)
{
	RoundState	state = installation_state;

	if (round_context == NULL)
		round_context = AllocSetContextCreate(TopMemoryContext, "leasehold round", ALLOCSET_DEFAULT_SIZES);
	MemoryContextReset(round_context);
	MemoryContextSwitchTo(round_context);

	/* beginning a transaction takes in what others changed */
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	CommitTransactionCommand();
	MemoryContextSwitchTo(round_context);
	if (installation_seen == installation_change_count() && installation_state != ROUND_NO_EXTENSION &&
		installation_state != ROUND_EMPTY && installation_state != ROUND_UNSUPPORTED)
		return installation_state;

	/*
	 * nobody must take over what is out because of somebody's lock: until the
	 * next look all is as it was
	 */
	if (!in_transaction("looking at the installation", check_work, &state) &&
		installation_seen == PG_UINT64_MAX)
		set_shared_state(WORKER_ABSENT, "the state of the installation could not be read; see the server log");
	return state;
}

static void
check_work(void *arg)
{
	RoundState *state = arg;
	uint64		seen = installation_change_count();
	Oid			extension = get_extension_oid("leasehold", true);

	if (!OidIsValid(extension))
		*state = installation_state = ROUND_NO_EXTENSION;
	else
	{
		char	   *version;

		if (SPI_execute("SELECT e.extversion FROM pg_catalog.pg_extension AS e WHERE e.extname = 'leasehold'",
						true, 1) != SPI_OK_SELECT || SPI_processed != 1)
			elog(ERROR, "could not read the version of the extension");
		version = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
		if (strcmp(version, SUPPORTED_VERSION) != 0)
		{
			installation_state = ROUND_UNSUPPORTED;
			set_shared_state(WORKER_UNSUPPORTED, psprintf("the SQL objects are of version %s, the library serves %s",
														  version, SUPPORTED_VERSION));
		}
		else
			read_installation();
		*state = installation_state;
	}
	installation_seen = seen;
}

static void
read_installation(void)
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
		if (installation_state != ROUND_HELD || installation_seen == PG_UINT64_MAX)
			ereport(LOG,
					(errmsg("leasehold: the installation is held: %s", hold),
					 errhint("Call leasehold.takeover_installation() if this replaces the original, or leasehold.fork_installation() if it is a copy.")));
		installation_state = ROUND_HELD;
		set_shared_state(WORKER_HELD, hold);
	}
	else if (DatumGetBool(SPI_getbinval(row, desc, 2, &isnull)))
	{
		char	   *reason = SPI_getvalue(row, desc, 3);

		installation_state = ROUND_PAUSED;
		set_shared_state(WORKER_PAUSED, reason ? psprintf("paused: %s", reason) : "paused by an administrator");
	}
	else
	{
		/*
		 * a restore brings leases before their installation: nothing may be
		 * done with them
		 */
		installation_state = DatumGetBool(SPI_getbinval(row, desc, 4, &isnull)) ? ROUND_SERVING : ROUND_EMPTY;
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

void
round_recover(void)
{
	queue_clear();
	watermark = DT_NOBEGIN;
	while (!in_transaction("taking over", recover_work, NULL))
	{
		/* nothing can be served before this; a lock may be in the way */
		event_loop_wait(RECOVER_PAUSE_MS, PG_WAIT_EXTENSION);
		if (ShutdownRequestPending)
			return;
	}
}

static void
recover_work(void *arg)
{
	Datum		args[4];
	bool		isnull;

	if (SPI_execute("SELECT pg_catalog.nextval('leasehold_internal.worker_epoch')", false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not get an epoch");
	worker.epoch = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));

	args[0] = Int64GetDatum(worker.epoch);
	args[1] = my_shards();
	args[2] = Int32GetDatum(setting_crash_limit);
	args[3] = BoolGetDatum(true);
	if (SPI_execute_with_args("SELECT leasehold_internal.recover_calls($1, $2, $3, $4)", 4,
							  (Oid[]) {INT8OID, INT2ARRAYOID, INT4OID, BOOLOID}, args, NULL, false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not take over calls");
}

/*
 * Each duty by itself.  One that goes on failing for a reason that passes is
 * reported once.
 */
void
round_housekeep(void)
{
	static const char *const duties[] = {
		"partitions", "idempotency_keys", "leases", "places", "takeover", "rebuild", "reconcile"
	};
	static bool failed[lengthof(duties)];

	MemoryContextReset(round_context);
	for (int i = 0; i < (int) lengthof(duties); i++)
	{
		Duty		duty = {.name = duties[i],.more = true};

		trouble_is_known = failed[i];
		failed[i] = false;
		for (int batches = 0; duty.more && !failed[i] && batches < DUTY_BATCHES && !ShutdownRequestPending; batches++)
			failed[i] = !in_transaction("housekeeping", housekeep_work, &duty);
		trouble_is_known = false;
	}
}

static void
housekeep_work(void *arg)
{
	Duty	   *duty = arg;
	Datum		args[5];
	bool		isnull;

	args[0] = CStringGetTextDatum(duty->name);
	args[1] = my_shards();
	args[2] = Int32GetDatum(setting_lease_retention);
	args[3] = Int32GetDatum(setting_audit_retention);
	args[4] = Int32GetDatum(setting_reconcile_interval);
	if (SPI_execute_with_args("SELECT leasehold_internal.housekeep($1, $2, $3, $4, $5)", 5,
							  (Oid[]) {TEXTOID, INT2ARRAYOID, INT4OID, INT4OID, INT4OID}, args, NULL, false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not keep house");
	duty->more = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
}

void
round_give_back(void)
{
	dlist_mutable_iter iter;

	MemoryContextReset(round_context);
	/* what was not sent yet is known to have had no effect */
	dlist_foreach_modify(iter, &worker.out)
	{
		Call	   *call = dlist_container(Call, node, iter.cur);

		if (provider_withdraw(call))
		{
			call_set_outcome(call, OUTCOME_RETRY, "worker_ended", "the worker ended before it could send the request");
			worker_call_finished(call);
		}
	}
	/* answers that are here are stored; what is still out is not waited for */
	store_finished();
	for (int tries = 0; tries < GIVE_BACK_TRIES && (!dlist_is_empty(&worker.out) || worker.finished_count > 0); tries++)
	{
		if (in_transaction("giving calls back", give_back_work, NULL))
			break;
	}
	dlist_foreach_modify(iter, &worker.out)
		(void) forget_call(dlist_container(Call, node, iter.cur));
}

/*
 * Stores answers without regard to when they should be tried again.  A round
 * may be interrupted by whoever tells us to end once more.
 */
static void
store_finished(void)
{
	int			tries = 0;

	while (worker.finished_count > 0 && tries < STORE_TRIES)
	{
		int			left = worker.finished_count;
		dlist_iter	iter;

		dlist_foreach(iter, &worker.finished)
			dlist_container(Call, node, iter.cur)->apply_after = 0;
		QueryCancelPending = false;
		(void) round_run(ROUND_PAUSED, false);
		if (worker.finished_count == left)
			tries++;
	}
}

static void
give_back_work(void *arg)
{
	Datum		args[4];

	args[0] = Int64GetDatum(-1);
	args[1] = my_shards();
	args[2] = Int32GetDatum(setting_crash_limit);
	args[3] = BoolGetDatum(false);
	if (SPI_execute_with_args("SELECT leasehold_internal.recover_calls($1, $2, $3, $4)", 4,
							  (Oid[]) {INT8OID, INT2ARRAYOID, INT4OID, BOOLOID}, args, NULL, false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not give calls back");
}

TimestampTz
round_run(RoundState state, bool look_everywhere)
{
	static int	due_limit = DUE_BATCH;
	Round		round;
	uint64		late;
	TimestampTz overflow;
	TimestampTz next = DT_NOEND;

	MemoryContextReset(round_context);
	MemoryContextSwitchTo(round_context);
	memset(&round, 0, sizeof(round));
	round.state = state;
	round.begun_at = GetCurrentTimestamp();
	round.next_due = DT_NOEND;
	round.due_limit = due_limit;
	round.overdue_limit = look_everywhere ? OVERDUE_BATCH : 0;
	collect_answers(&round);

	late = pg_atomic_exchange_u64(&worker.shared->late_since, PG_UINT64_MAX);
	if (late != PG_UINT64_MAX)
		watermark = Min(watermark, (TimestampTz) late);
	overflow = queue_overflow();
	if (overflow != 0)
		watermark = Min(watermark, overflow - 1);
	round.since = look_everywhere ? DT_NOBEGIN : watermark;

	if (in_transaction("applying answers and claiming calls", whole_round_work, &round))
	{
		worker.shared->applied_calls += round.answer_count;
		if (round.state == ROUND_SERVING || round.state == ROUND_PAUSED)
		{
			watermark = round.more_due ? round.last_due - 1 : round.begun_at - LOOK_BACK_US;

			/*
			 * all that fits into a batch is of one moment: the rest of it is
			 * left to a look everywhere
			 */
			if (round.more_due && round.added == 0 && due_limit >= DUE_BATCH_MAX && watermark <= round.since)
				watermark = round.last_due;
			/* a full batch with nothing new: look further the next time */
			due_limit = round.more_due && round.added == 0 ? Min(due_limit * 4, DUE_BATCH_MAX) : DUE_BATCH;
		}
		settle_answers(&round);
		untake(&round);
		start_claimed(&round);
	}
	else
	{
		bool		passes;
		bool		any;

		worker.shared->failed_batches++;
		round.woken_count = 0;	/* the pieces tell of themselves */
		for (int i = 0; i < round.claimed_count; i++)
			MemoryContextDelete(round.claimed[i]->context);
		round.claimed_count = 0;
		passes = trouble_is_general();
		any = apply_one_by_one(&round);
		any |= fire_deadlines(&round);
		any |= claim_one_by_one(&round);
		forget_locks();
		tell_waiters(&round);
		return pause_after_trouble(passes && !any);
	}
	trouble_pause_ms = 0;
	tell_waiters(&round);

	/* when to come again without being woken */
	next = round.next_due;
	if (round.more_due)
		next = 0;
	if (state == ROUND_SERVING && worker.in_flight < worker.capacity)
	{
		TimestampTz breaker;

		if (queue_has_turn(GetCurrentTimestamp(), &breaker))
			next = 0;
		else if (breaker != 0)
			next = Min(next, breaker);
	}
	return next;
}

/*
 * After a failed round: when to try again.  If nothing at all could be done,
 * ever later, and answers that are here or come have to wait until then.
 */
static TimestampTz
pause_after_trouble(bool nothing_works)
{
	TimestampTz now = GetCurrentTimestamp();

	if (!nothing_works)
	{
		trouble_pause_ms = 0;
		return TimestampTzPlusMilliseconds(now, FAILED_PAUSE_MS);
	}
	trouble_pause_ms = Min(Max(trouble_pause_ms * 2, FAILED_PAUSE_MS), TROUBLE_PAUSE_MAX_MS);
	trouble_until = TimestampTzPlusMilliseconds(now, trouble_pause_ms);
	return trouble_until;
}

TimestampTz
round_not_before(void)
{
	return trouble_until;
}

void
round_clock_set_back(TimestampTz now)
{
	dlist_iter	iter;

	/* what is new is due before what was read last */
	watermark = DT_NOBEGIN;
	trouble_until = 0;
	dlist_foreach(iter, &worker.finished)
		dlist_container(Call, node, iter.cur)->apply_after = 0;
	queue_clock_set_back(now);
}

static void
collect_answers(Round *round)
{
	dlist_iter	iter;
	TimestampTz now = round->begun_at;

	round->answers = palloc(ANSWER_BATCH * sizeof(Call *));
	round->applied = palloc0(ANSWER_BATCH);
	dlist_foreach(iter, &worker.finished)
	{
		Call	   *call = dlist_container(Call, node, iter.cur);

		if (call->apply_after > now)
			continue;
		round->answers[round->answer_count++] = call;
		if (round->answer_count == ANSWER_BATCH)
			break;
	}
	round->woken = palloc((ANSWER_BATCH + round->due_limit + round->overdue_limit) * sizeof(pg_uuid_t));
	round->timers = palloc((round->due_limit + round->overdue_limit) * sizeof(QueueKey));
	round->taken = palloc(CLAIM_BATCH * sizeof(QueueKey));
	round->takers = palloc(CLAIM_BATCH * sizeof(QueueShare *));
	round->taken_due = palloc(CLAIM_BATCH * sizeof(TimestampTz));
	round->claimed = palloc(CLAIM_BATCH * sizeof(Call *));
}

static void
whole_round_work(void *arg)
{
	Round	   *round = arg;

	if (round->state == ROUND_UNSUPPORTED)
		return;
	plugins_refresh();
	if (round->answer_count > 0)
		apply_answers(round);
	if (round->state != ROUND_SERVING && round->state != ROUND_PAUSED)
		return;

	read_due(round);
	if (round->overdue_limit > 0)
		read_overdue(round);
	if (round->timer_count > 0)
		fire_work(round);
	if (round->state == ROUND_SERVING && worker.in_flight < worker.capacity)
	{
		/*
		 * a limit that was set before a call was queued, which may be since
		 * the round began, holds for it
		 */
		plugins_refresh();
		round->taken_count = queue_take(round->taken, round->takers, round->taken_due,
										Min(CLAIM_BATCH, worker.capacity - worker.in_flight), round->begun_at);
		if (round->taken_count > 0)
			claim_calls(round);
	}

	if (!round->more_due)
	{
		static SPIPlanPtr plan = NULL;
		Datum		args[3];
		bool		isnull;
		Datum		next;

		args[0] = Int32GetDatum(worker.part);
		args[1] = Int32GetDatum(setting_workers);
		args[2] = TimestampTzGetDatum(round->begun_at);
		if (SPI_execute_plan(prepared(&plan, "SELECT leasehold_internal.next_due($1, $2, $3)", 3,
									  (Oid[]) {INT4OID, INT4OID, TIMESTAMPTZOID}), args, NULL, false, 1) != SPI_OK_SELECT)
			elog(ERROR, "could not find out when the next call is due");
		next = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
		if (!isnull)
			round->next_due = DatumGetTimestampTz(next);
	}
}

/* Answers */

static void
apply_answers(Round *round)
{
	Call	  **leases = palloc(round->answer_count * sizeof(Call *));
	int		   *index = palloc(round->answer_count * sizeof(int));
	Call	  **strays = palloc(round->answer_count * sizeof(Call *));
	int			lease_count = 0;
	int			stray_count = 0;

	for (int i = 0; i < round->answer_count; i++)
	{
		Call	   *call = round->answers[i];

		round->applied[i] = 'a';
		if (strcmp(call->operation, "destroy_stray") == 0)
			strays[stray_count++] = call;
		else if (strcmp(call->operation, "initialize") == 0)
			round->applied[i] = apply_initialize_answer(call);
		else if (strcmp(call->operation, "reconcile") == 0)
			round->applied[i] = apply_reconcile_answer(call);
		else
		{
			index[lease_count] = i;
			leases[lease_count++] = call;
		}
	}
	if (lease_count > 0)
		apply_lease_answers(round, leases, index, lease_count);
	if (stray_count > 0)
		apply_stray_answers(strays, stray_count);
}

static void
apply_lease_answers(Round *round, Call **calls, int *index, int count)
{
	static SPIPlanPtr plan = NULL;
	static SPIPlanPtr places_plan = NULL;
	static const Oid types[] = {INT8OID, UUIDARRAYOID, UUIDARRAYOID, INT4ARRAYOID, TEXTARRAYOID, TEXTARRAYOID,
		TEXTARRAYOID, TIMESTAMPTZARRAYOID, TEXTARRAYOID, TEXTARRAYOID, INT8ARRAYOID,
	INT4OID, INT4OID, INT4OID, INT4OID};
	QueueKey   *keys = palloc(count * sizeof(QueueKey));
	Datum	   *generations = palloc(count * sizeof(Datum));
	Datum	   *expirations = palloc(count * sizeof(Datum));
	Datum	   *retries = palloc(count * sizeof(Datum));
	bool	   *no_expiry = palloc(count * sizeof(bool));
	char	  **outcomes = palloc(count * sizeof(char *));
	char	  **ids = palloc(count * sizeof(char *));
	char	  **metadata = palloc(count * sizeof(char *));
	char	  **codes = palloc(count * sizeof(char *));
	char	  **messages = palloc(count * sizeof(char *));
	int			dims[1] = {count};
	int			lower[1] = {1};
	Datum		args[15];
	bool		any_ended = false;

	for (int i = 0; i < count; i++)
	{
		Call	   *call = calls[i];

		keys[i] = call->key;
		generations[i] = Int32GetDatum(call->generation);
		outcomes[i] = (char *) call_outcome_name(call->outcome);
		ids[i] = call->provider_lease_id;
		metadata[i] = call->metadata;
		expirations[i] = TimestampTzGetDatum(call->expires_at);
		no_expiry[i] = !call->has_expiry;
		codes[i] = call->code[0] ? call->code : NULL;
		messages[i] = call->message[0] ? call->message : NULL;
		retries[i] = Int64GetDatum(call->retry_after_ms);
	}
	args[0] = Int64GetDatum(worker.epoch);
	args[1] = companies_of(keys, count);
	args[2] = subjects_of(keys, count);
	args[3] = PointerGetDatum(construct_array(generations, count, INT4OID, 4, true, TYPALIGN_INT));
	args[4] = text_array(outcomes, count);
	args[5] = text_array(ids, count);
	args[6] = text_array(metadata, count);
	args[7] = PointerGetDatum(construct_md_array(expirations, no_expiry, 1, dims, lower,
												 TIMESTAMPTZOID, 8, true, TYPALIGN_DOUBLE));
	args[8] = text_array(codes, count);
	args[9] = text_array(messages, count);
	args[10] = PointerGetDatum(construct_array(retries, count, INT8OID, 8, true, TYPALIGN_DOUBLE));
	args[11] = Int32GetDatum(setting_retry_base);
	args[12] = Int32GetDatum(setting_retry_max);
	args[13] = Int32GetDatum(setting_acquire_attempts);
	args[14] = Int32GetDatum(setting_cleanup_attempts);

	if (SPI_execute_plan(prepared(&plan, "SELECT * FROM leasehold_internal.complete_calls"
								  "($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
								  lengthof(types), types), args, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not apply answers");

	for (uint64 r = 0; r < SPI_processed; r++)
	{
		HeapTuple	row = SPI_tuptable->vals[r];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;
		pg_uuid_t  *company = DatumGetUUIDP(SPI_getbinval(row, desc, 1, &isnull));
		pg_uuid_t  *subject = DatumGetUUIDP(SPI_getbinval(row, desc, 2, &isnull));
		char	   *applied = SPI_getvalue(row, desc, 3);

		if (DatumGetBool(SPI_getbinval(row, desc, 4, &isnull)))
			any_ended = true;
		for (int i = 0; i < count; i++)
		{
			/* rows come back in the order of the arrays, as a rule */
			int			at = (int) ((r + i) % count);

			if (memcmp(&keys[at].subject, subject, UUID_LEN) == 0 &&
				memcmp(&keys[at].company, company, UUID_LEN) == 0)
			{
				round->applied[index[at]] = applied[0];
				break;
			}
		}
	}
	/* asked anew: the first limit may have been set a moment ago */
	if (any_ended &&
		SPI_execute_plan(prepared(&places_plan, "SELECT leasehold_internal.give_places(false)"
								  " WHERE EXISTS (SELECT FROM leasehold.limits)", 0, NULL),
						 NULL, NULL, false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not let requests go on");
}

static void
apply_stray_answers(Call **calls, int count)
{
	QueueKey   *keys = palloc(count * sizeof(QueueKey));
	char	  **outcomes = palloc(count * sizeof(char *));
	char	  **messages = palloc(count * sizeof(char *));
	Datum	   *retries = palloc(count * sizeof(Datum));
	Datum		args[9];

	for (int i = 0; i < count; i++)
	{
		keys[i] = calls[i]->key;
		outcomes[i] = (char *) call_outcome_name(calls[i]->outcome);
		messages[i] = calls[i]->message;
		retries[i] = Int64GetDatum(calls[i]->retry_after_ms);
	}
	args[0] = Int64GetDatum(worker.epoch);
	args[1] = companies_of(keys, count);
	args[2] = subjects_of(keys, count);
	args[3] = text_array(outcomes, count);
	args[4] = text_array(messages, count);
	args[5] = PointerGetDatum(construct_array(retries, count, INT8OID, 8, true, TYPALIGN_DOUBLE));
	args[6] = Int32GetDatum(setting_retry_base);
	args[7] = Int32GetDatum(setting_retry_max);
	args[8] = Int32GetDatum(setting_cleanup_attempts);
	if (SPI_execute_with_args("SELECT leasehold_internal.complete_strays($1, $2, $3, $4, $5, $6, $7, $8, $9)", 9,
							  (Oid[]) {INT8OID, UUIDARRAYOID, UUIDARRAYOID, TEXTARRAYOID, TEXTARRAYOID, INT8ARRAYOID,
									   INT4OID, INT4OID, INT4OID}, args, NULL, false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not apply answers about strays");
}

/* Returns the first letter of what became of it. */
static char
apply_initialize_answer(Call *call)
{
	Datum		args[9];

	args[0] = Int64GetDatum(worker.epoch);
	args[1] = UUIDPGetDatum(&call->key.subject);
	args[2] = Int32GetDatum(call->generation);
	args[3] = CStringGetTextDatum(call_outcome_name(call->outcome));
	args[4] = text_array(call->supported_methods, call->supported_method_count);
	args[5] = CStringGetTextDatum(call->message);
	args[6] = Int64GetDatum(call->retry_after_ms);
	args[7] = Int32GetDatum(setting_retry_base);
	args[8] = Int32GetDatum(setting_retry_max);
	if (SPI_execute_with_args("SELECT leasehold_internal.complete_initialize($1, $2, $3, $4, $5, $6, $7, $8, $9)", 9,
							  (Oid[]) {INT8OID, UUIDOID, INT4OID, TEXTOID, TEXTARRAYOID, TEXTOID, INT8OID, INT4OID, INT4OID},
							  args, NULL, false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not apply the answer of a plugin");
	return SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1)[0];
}

/* The same. */
static char
apply_reconcile_answer(Call *call)
{
	Datum		args[9];
	char		nulls[9] = {' ', ' ', ' ', ' ', ' ', ' ', ' ', ' ', ' '};
	Interval	pause;
	bool		isnull;

	memset(&pause, 0, sizeof(pause));
	pause.time = setting_reconcile_interval * USECS_PER_SEC;
	args[0] = Int64GetDatum(worker.epoch);
	args[1] = UUIDPGetDatum(&call->key.company);
	args[2] = UUIDPGetDatum(&call->key.subject);
	args[3] = CStringGetTextDatum(call_outcome_name(call->outcome));
	args[4] = text_or_null(call->listed, &isnull);
	nulls[4] = isnull ? 'n' : ' ';
	args[5] = text_or_null(call->next_cursor, &isnull);
	nulls[5] = isnull ? 'n' : ' ';
	args[6] = CStringGetTextDatum(call->message);
	args[7] = Int64GetDatum(call->retry_after_ms);
	args[8] = IntervalPGetDatum(&pause);
	if (SPI_execute_with_args("SELECT leasehold_internal.complete_reconcile($1, $2, $3, $4, $5, $6, $7, $8, $9)", 9,
							  (Oid[]) {INT8OID, UUIDOID, UUIDOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, INT8OID, INTERVALOID},
							  args, nulls, false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not apply a provider's list");
	(void) SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	return isnull ? 'l' : 'a';
}

/* After the commit: what was applied or ignored is over. */
static void
settle_answers(Round *round)
{
	for (int i = 0; i < round->answer_count; i++)
	{
		Call	   *call = round->answers[i];
		TimestampTz again;

		if (call == NULL)
			continue;
		if (round->applied[i] == 'l')
		{
			call->apply_after = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
															LOCKED_PAUSE_MS << Min(call->times_locked, LOCKED_PAUSE_DOUBLINGS));
			call->times_locked++;
			continue;
		}
		if (round->applied[i] == 's')
			worker.shared->stale_answers++;
		else
			round->woken[round->woken_count++] = call->key.subject;
		worker.finished_count--;
		again = forget_call(call);
		round->next_due = Min(round->next_due, again);
	}
	round->answer_count = 0;
}

/* Returns when there is something to be read on account of it, or DT_NOEND. */
static TimestampTz
forget_call(Call *call)
{
	TimestampTz again = DT_NOEND;

	dlist_delete(&call->node);
	if (call->queue != NULL)
		again = forget_key(&call->key);
	MemoryContextDelete(call->context);
	return again;
}

/* The same. */
static TimestampTz
forget_key(const QueueKey *key)
{
	TimestampTz again = queue_forget(key);

	if (again == 0)
		return DT_NOEND;
	watermark = Min(watermark, again - 1);
	return again;
}

/*
 * The batch failed: each answer by itself, so that the one that cannot be
 * stored is found.
 */
static bool
apply_one_by_one(Round *round)
{
	Call	  **answers = round->answers;
	int			count = round->answer_count;
	Round		single = *round;
	int			troubles = 0;
	bool		any = false;

	for (int i = 0; i < count; i++)
	{
		char		applied = 'a';

		if (ShutdownRequestPending || troubles >= TROUBLES_IN_ROW)
		{
			answers[i]->apply_after = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LOCKED_PAUSE_MS);
			continue;
		}
		single.answers = &answers[i];
		single.answer_count = 1;
		single.applied = &applied;
		if (in_transaction("applying one answer", (RoundWork) apply_answers, &single))
		{
			settle_answers(&single);
			troubles = 0;
			any = true;
		}
		else if (!troubled(&troubles) && in_transaction("setting an answer aside", set_answer_aside, answers[i]))
		{
			applied = 'a';
			single.answer_count = 1;
			settle_answers(&single);
			any = true;
		}
		else
			answers[i]->apply_after = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), TROUBLE_PAUSE_MS);
	}
	round->woken_count = single.woken_count;
	round->answer_count = 0;
	return any;
}

/*
 * An answer that cannot be stored counts as unknown; a call that this happens
 * to again and again is quarantined.
 */
static void
set_answer_aside(void *arg)
{
	Call	   *call = arg;
	Datum		args[6];

	args[0] = Int64GetDatum(worker.epoch);
	args[1] = UUIDPGetDatum(&call->key.company);
	args[2] = UUIDPGetDatum(&call->key.subject);
	args[3] = CStringGetTextDatum(slot_of(&call->key));
	args[4] = Int32GetDatum(setting_crash_limit);
	args[5] = Int32GetDatum(setting_retry_base);
	if (SPI_execute_with_args("SELECT leasehold_internal.set_answer_aside($1, $2, $3, $4, $5, $6)", 6,
							  (Oid[]) {INT8OID, UUIDOID, UUIDOID, TEXTOID, INT4OID, INT4OID}, args, NULL, false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not set an answer aside");
}

/* Due calls */

static void
read_due(Round *round)
{
	static SPIPlanPtr plan = NULL;
	Datum		args[5];

	args[0] = Int32GetDatum(worker.part);
	args[1] = Int32GetDatum(setting_workers);
	args[2] = TimestampTzGetDatum(round->since);
	args[3] = TimestampTzGetDatum(round->begun_at);
	args[4] = Int32GetDatum(round->due_limit);
	if (SPI_execute_plan(prepared(&plan, "SELECT * FROM leasehold_internal.due_calls($1, $2, $3, $4, $5)", 5,
								  (Oid[]) {INT4OID, INT4OID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT4OID}), args, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read what is due");

	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;
		QueueKey	key;
		char	   *slot = SPI_getvalue(row, desc, 3);

		key.company = *DatumGetUUIDP(SPI_getbinval(row, desc, 1, &isnull));
		key.subject = *DatumGetUUIDP(SPI_getbinval(row, desc, 2, &isnull));
		key.sweep = strcmp(slot, "sweep") == 0;
		round->last_due = DatumGetTimestampTz(SPI_getbinval(row, desc, 5, &isnull));
		if (!key.sweep && strcmp(slot, "op") != 0)
		{
			round->timers[round->timer_count++] = key;
			round->added++;
		}
		else if (queue_add(&key, SPI_getvalue(row, desc, 4), round->last_due, round->begun_at))
			round->added++;
	}
	round->more_due = SPI_processed >= (uint64) round->due_limit;
}

/*
 * Requests that have run out of time without being claimed end with the
 * deadlines.
 */
static void
read_overdue(Round *round)
{
	static SPIPlanPtr plan = NULL;
	Datum		args[3];

	args[0] = Int32GetDatum(worker.part);
	args[1] = Int32GetDatum(setting_workers);
	args[2] = Int32GetDatum(round->overdue_limit);
	if (SPI_execute_plan(prepared(&plan, "SELECT * FROM leasehold_internal.overdue_requests($1, $2, $3)", 3,
								  (Oid[]) {INT4OID, INT4OID, INT4OID}), args, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read what is overdue");

	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;
		QueueKey   *key = &round->timers[round->timer_count++];

		key->company = *DatumGetUUIDP(SPI_getbinval(row, desc, 1, &isnull));
		key->subject = *DatumGetUUIDP(SPI_getbinval(row, desc, 2, &isnull));
		key->sweep = false;
	}
}

static void
fire_work(void *arg)
{
	static SPIPlanPtr plan = NULL;
	Round	   *round = arg;
	Datum		args[2];

	args[0] = companies_of(round->timers, round->timer_count);
	args[1] = subjects_of(round->timers, round->timer_count);
	if (SPI_execute_plan(prepared(&plan, "SELECT * FROM leasehold_internal.fire_deadlines($1, $2)", 2,
								  (Oid[]) {UUIDARRAYOID, UUIDARRAYOID}), args, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not fire deadlines");
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;

		round->woken[round->woken_count++] =
			*DatumGetUUIDP(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2, &isnull));
	}
}

/* After a failed round: each deadline by itself. */
static bool
fire_deadlines(Round *round)
{
	QueueKey   *timers = round->timers;
	int			count = round->timer_count;
	int			troubles = 0;
	bool		any = false;

	for (int i = 0; i < count; i++)
	{
		round->timers = &timers[i];
		round->timer_count = 1;
		if (in_transaction("firing one deadline", fire_work, round))
		{
			troubles = 0;
			any = true;
		}
		else
		{
			(void) troubled(&troubles);
			any |= in_transaction("postponing a deadline", postpone_deadline_work, &timers[i]);
		}
		if (ShutdownRequestPending || troubles >= TROUBLES_IN_ROW)
			break;
	}
	round->timers = timers;
	round->timer_count = count;
	return any;
}

static void
postpone_deadline_work(void *arg)
{
	postpone(arg, true);
}

/* Has it come again: soon, if what was in the way will pass. */
static void
postpone(const QueueKey *key, bool deadline)
{
	Datum		args[4];
	Interval	pause;
	char		nulls[] = {' ', ' ', deadline ? 'n' : ' ', ' '};

	memset(&pause, 0, sizeof(pause));
	pause.time = (trouble_passes() ? TROUBLE_PAUSE_MS : POSTPONED_MS) * INT64CONST(1000);
	args[0] = UUIDPGetDatum(&key->company);
	args[1] = UUIDPGetDatum(&key->subject);
	args[2] = CStringGetTextDatum(slot_of(key));
	args[3] = IntervalPGetDatum(&pause);
	if (SPI_execute_with_args("SELECT leasehold_internal.postpone_call($1, $2, $3, $4)", 4,
							  (Oid[]) {UUIDOID, UUIDOID, TEXTOID, INTERVALOID}, args, nulls, false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not postpone a call");
}

/* Claims */

static void
claim_calls(Round *round)
{
	static SPIPlanPtr plan = NULL;
	Datum		args[5];

	args[0] = Int64GetDatum(worker.epoch);
	args[1] = companies_of(round->taken, round->taken_count);
	args[2] = subjects_of(round->taken, round->taken_count);
	args[3] = slots_of(round->taken, round->taken_count);
	args[4] = Int32GetDatum(setting_rpc_timeout);
	if (SPI_execute_plan(prepared(&plan, "SELECT * FROM leasehold_internal.claim_calls($1, $2, $3, $4, $5)", 5,
								  (Oid[]) {INT8OID, UUIDARRAYOID, UUIDARRAYOID, TEXTARRAYOID, INT4OID}), args, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not claim calls");
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		Call	   *call = make_call(row, desc, round);
		bool		isnull;
		Datum		plugin_row = SPI_getbinval(row, desc, 15, &isnull);

		round->claimed[round->claimed_count++] = call;

		/*
		 * initialize is about a change that may be later than the claim's
		 * snapshot
		 */
		if (!isnull && (call->method == METHOD_INITIALIZE ||
						!plugin_is_current(call->plugin, DatumGetTransactionId(plugin_row))))
			plugins_forget();
	}
	plugins_refresh();
}

static Call *
make_call(HeapTuple row, TupleDesc desc, Round *round)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "leasehold call", ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	Call	   *call = palloc0(sizeof(Call));
	char	   *verdict;
	char	   *method;
	bool		isnull;

	call->context = context;
	call->operation = SPI_getvalue(row, desc, 4);
	call->key.company = *DatumGetUUIDP(SPI_getbinval(row, desc, 1, &isnull));
	call->key.subject = *DatumGetUUIDP(SPI_getbinval(row, desc, 2, &isnull));
	call->key.sweep = strcmp(call->operation, "reconcile") == 0;
	call->queue = find_taker(round, &call->key);
	call->generation = DatumGetInt32(SPI_getbinval(row, desc, 3, &isnull));
	verdict = SPI_getvalue(row, desc, 5);
	call->plugin = SPI_getvalue(row, desc, 8);
	call->provider = SPI_getvalue(row, desc, 9);
	method = SPI_getvalue(row, desc, 10);
	call->attempt = DatumGetInt32(SPI_getbinval(row, desc, 11, &isnull));
	call->timeout_ms = DatumGetInt64(SPI_getbinval(row, desc, 12, &isnull));
	if (isnull)
		call->timeout_ms = setting_rpc_timeout;
	call->idempotency_key = SPI_getvalue(row, desc, 13);
	call->params = SPI_getvalue(row, desc, 14);
	call->method_name = method;
	if (!call_parse_method(method, &call->method))
		elog(ERROR, "unknown method \"%s\"", method);

	/* reached without a call */
	if (verdict != NULL)
	{
		char	   *code = SPI_getvalue(row, desc, 6);
		char	   *message = SPI_getvalue(row, desc, 7);

		call_set_outcome(call, strcmp(verdict, "unknown") == 0 ? OUTCOME_UNKNOWN : OUTCOME_FAILED,
						 code, "%s", message ? message : "");
	}
	else if (call->params == NULL)
		call_set_outcome(call, OUTCOME_FAILED, "subject_gone", "what the call is about is gone");
	MemoryContextSwitchTo(old);
	return call;
}

static QueueShare *
find_taker(Round *round, const QueueKey *key)
{
	for (int i = 0; i < round->taken_count; i++)
	{
		if (memcmp(&round->taken[i], key, sizeof(QueueKey)) == 0)
		{
			QueueShare *taker = round->takers[i];

			round->takers[i] = NULL;	/* now the call's */
			return taker;
		}
	}
	return NULL;
}

/*
 * After the commit.  A call that ends while it is started is among the
 * finished ones then.
 */
static void
start_claimed(Round *round)
{
	for (int i = 0; i < round->claimed_count; i++)
	{
		Call	   *call = round->claimed[i];

		dlist_push_tail(&worker.out, &call->node);
		worker.in_flight++;
		worker.shared->started_calls++;
		if (call->outcome != OUTCOME_NONE)
		{
			QueueShare *queue = call->queue;

			/* a verdict says nothing about the provider */
			call->queue = NULL;
			worker_call_finished(call);
			call->queue = queue;
		}
		else
			provider_start(call);
	}
}

/*
 * Calls whose turn it was, but which were not to be had: gone, or locked by
 * somebody.  They are read again after a while.
 */
static void
untake(Round *round)
{
	for (int i = 0; i < round->taken_count; i++)
	{
		if (round->takers[i] == NULL)
			continue;
		(void) forget_key(&round->taken[i]);
		watermark = Min(watermark, round->taken_due[i] - 1);
		round->next_due = Min(round->next_due, TimestampTzPlusMilliseconds(round->begun_at, LOCKED_PAUSE_MS));
	}
}

/* After a failed round: each claim by itself. */
static bool
claim_one_by_one(Round *round)
{
	Round		single = *round;
	int			troubles = 0;
	bool		any = false;

	for (int i = 0; i < round->taken_count; i++)
	{
		bool		ok = false;

		/* make_call() took it, perhaps, before the transaction failed */
		if (round->takers[i] == NULL)
			round->takers[i] = queue_taker_of(&round->taken[i]);
		if (round->takers[i] == NULL)
			continue;
		single.taken = &round->taken[i];
		single.takers = &round->takers[i];
		single.taken_due = &round->taken_due[i];
		single.taken_count = 1;
		single.claimed_count = 0;
		if (!ShutdownRequestPending && troubles < TROUBLES_IN_ROW)
		{
			ok = in_transaction("claiming one call", claim_work, &single);
			if (ok)
				troubles = 0;
			else
				(void) troubled(&troubles);
			any |= ok;
		}
		if (!ok)
		{
			for (int c = 0; c < single.claimed_count; c++)
				MemoryContextDelete(single.claimed[c]->context);
			single.claimed_count = 0;
			if (round->takers[i] == NULL)
				round->takers[i] = queue_taker_of(&round->taken[i]);
			if (!ShutdownRequestPending && troubles < TROUBLES_IN_ROW)
				any |= in_transaction("postponing a call", postpone_call_work, &round->taken[i]);
		}
		untake(&single);
		start_claimed(&single);
	}
	round->taken_count = 0;
	return any;
}

static void
claim_work(void *arg)
{
	claim_calls(arg);
}

static void
postpone_call_work(void *arg)
{
	postpone(arg, false);
}

static void
tell_waiters(Round *round)
{
	for (int i = 0; i < round->woken_count; i++)
		ConditionVariableBroadcast(shared_waiters_of(worker.database, &round->woken[i]));
}

/* Parameters */

static SPIPlanPtr
prepared(SPIPlanPtr *plan, const char *query, int count, const Oid *types)
{
	if (*plan == NULL)
	{
		SPIPlanPtr	new_plan = SPI_prepare(query, count, (Oid *) types);

		if (new_plan == NULL || SPI_keepplan(new_plan) != 0)
			elog(ERROR, "could not prepare: %s", query);
		*plan = new_plan;
	}
	return *plan;
}

static Datum
uuid_array(const pg_uuid_t *ids, int count)
{
	Datum	   *datums = palloc(count * sizeof(Datum));

	for (int i = 0; i < count; i++)
		datums[i] = UUIDPGetDatum(&ids[i]);
	return PointerGetDatum(construct_array(datums, count, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR));
}

static Datum
companies_of(const QueueKey *keys, int count)
{
	pg_uuid_t  *ids = palloc(count * sizeof(pg_uuid_t));

	for (int i = 0; i < count; i++)
		ids[i] = keys[i].company;
	return uuid_array(ids, count);
}

static Datum
subjects_of(const QueueKey *keys, int count)
{
	pg_uuid_t  *ids = palloc(count * sizeof(pg_uuid_t));

	for (int i = 0; i < count; i++)
		ids[i] = keys[i].subject;
	return uuid_array(ids, count);
}

static Datum
slots_of(const QueueKey *keys, int count)
{
	char	  **slots = palloc(count * sizeof(char *));

	for (int i = 0; i < count; i++)
		slots[i] = (char *) slot_of(&keys[i]);
	return text_array(slots, count);
}

/* A call's slot in the dispatch table. */
static const char *
slot_of(const QueueKey *key)
{
	return key->sweep ? "sweep" : "op";
}

/* The shards that fall to this worker. */
static Datum
my_shards(void)
{
	Datum		shards[SHARDS];
	int			count = 0;

	for (int s = 0; s < SHARDS; s++)
	{
		if (s % setting_workers == worker.part)
			shards[count++] = Int16GetDatum(s);
	}
	return PointerGetDatum(construct_array(shards, count, INT2OID, 2, true, TYPALIGN_SHORT));
}

static Datum
text_or_null(const char *text, bool *isnull)
{
	*isnull = text == NULL;
	return text ? CStringGetTextDatum(text) : (Datum) 0;
}

static Datum
text_array(char **texts, int count)
{
	Datum	   *datums = palloc(Max(count, 1) * sizeof(Datum));
	bool	   *nulls = palloc(Max(count, 1) * sizeof(bool));
	int			dims[1] = {count};
	int			lower[1] = {1};

	if (count == 0)
		return PointerGetDatum(construct_empty_array(TEXTOID));
	for (int i = 0; i < count; i++)
		datums[i] = text_or_null(texts[i], &nulls[i]);
	return PointerGetDatum(construct_md_array(datums, nulls, 1, dims, lower, TEXTOID, -1, false, TYPALIGN_INT));
}
