/*
 * service.c
 *		What backends can see of the workers: whether they serve, and figures.
 */
#include "postgres.h"
#include "compat.h"

#include "access/xlog.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "errors.h"
#include "installation.h"
#include "service.h"
#include "settings.h"
#include "shared_state.h"

PG_FUNCTION_INFO_V1(leasehold_warn_if_unserved);
PG_FUNCTION_INFO_V1(leasehold_worker_states);
PG_FUNCTION_INFO_V1(leasehold_provider_states);
PG_FUNCTION_INFO_V1(leasehold_request_breaker_reset);

static bool is_served(bool even_if_paused, char **reason, LeaseholdError *error);
static const char *reason_without_entry(void);
static WorkerState state_of_worker(SharedWorker *worker, char *said);
static bool died_without_a_word(int pid);
static void copy_worker(SharedWorker *to, SharedWorker *from);
static void put_count(Datum *value, uint64 count);

bool
service_is_available(char **reason, LeaseholdError *error)
{
	return is_served(false, reason, error);
}

bool
service_sees_to_ends(char **reason, LeaseholdError *error)
{
	return is_served(true, reason, error);
}

static bool
is_served(bool even_if_paused, char **reason, LeaseholdError *error)
{
	SharedDatabase *entry;
	const char *pause;

	*error = LHE_WORKER_UNAVAILABLE;
	if (shared_state == NULL)
	{
		*error = LHE_NOT_PRELOADED;
		*reason = pstrdup("leasehold is not in shared_preload_libraries");
		return false;
	}
	if (RecoveryInProgress())
	{
		*error = LHE_READ_ONLY;
		*reason = pstrdup("this server is a standby");
		return false;
	}
	entry = shared_find_database(MyDatabaseId, false);
	if (entry == NULL)
	{
		*reason = pstrdup(reason_without_entry());
		return false;
	}

	/*
	 * a pause holds from its commit on, whether or not a worker has seen it
	 * yet
	 */
	if (!even_if_paused && installation_is_paused(&pause))
	{
		*reason = pause[0] != '\0' ? psprintf("paused: %s", pause) : pstrdup("paused by an administrator");
		return false;
	}
	for (int w = 0; w < setting_workers; w++)
	{
		char		said[SHARED_REASON_SIZE];
		WorkerState state = state_of_worker(&entry->workers[w], said);

		if (state == WORKER_RUNNING || state == WORKER_PAUSED)
			continue;
		if (state == WORKER_HELD)
			*error = LHE_INSTALLATION_HELD;
		if (said[0] != '\0')
			*reason = pstrdup(said);
		else if (entry->complaint[0] != '\0')
			*reason = pstrdup(entry->complaint);
		else
			*reason = psprintf("the worker is %s", state == WORKER_ABSENT ? "not running yet" :
							   shared_worker_state_name(state));
		return false;
	}
	return true;
}

/* A worker's state, and what it says of it; every request asks, so nothing else is copied. */
static WorkerState
state_of_worker(SharedWorker *worker, char *said)
{
	WorkerState state;
	int			pid;

	SpinLockAcquire(&worker->mutex);
	state = worker->state;
	pid = worker->pid;
	if (state == WORKER_RUNNING || state == WORKER_PAUSED)
		said[0] = '\0';
	else
		memcpy(said, worker->reason, SHARED_REASON_SIZE);
	SpinLockRelease(&worker->mutex);
	return died_without_a_word(pid) ? WORKER_ABSENT : state;
}

static bool
died_without_a_word(int pid)
{
	return pid != 0 && BackendPidGetProc(pid) == NULL;
}

void
service_warn_if_unserved(void)
{
	static LocalTransactionId warned_in = InvalidLocalTransactionId;
	char	   *reason;
	LeaseholdError error;

	if (warned_in == MyProc->lxid || service_is_available(&reason, &error))
		return;
	warned_in = MyProc->lxid;
	ereport(WARNING,
			(leasehold_error(error),
			 errmsg("nothing is done at the provider for now: %s", reason),
			 errhint("The request is kept and carried out when the worker serves again; an administrator can call leasehold.doctor().")));
}

/*
 * warn_if_unserved()
 */
Datum
leasehold_warn_if_unserved(PG_FUNCTION_ARGS)
{
	service_warn_if_unserved();
	PG_RETURN_VOID();
}

/*
 * worker_states(): one row per worker that this database should have.
 */
Datum
leasehold_worker_states(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	SharedDatabase *entry = shared_find_database(MyDatabaseId, false);

	InitMaterializedSRF(fcinfo, 0);
	for (int w = 0; w < setting_workers; w++)
	{
		SharedWorker worker;
		Datum		values[15];
		bool		nulls[15] = {false};
		const char *reason;

		memset(&worker, 0, sizeof(worker));
		if (entry != NULL)
			copy_worker(&worker, &entry->workers[w]);
		reason = worker.reason;
		if (shared_state == NULL)
			reason = "leasehold is not in shared_preload_libraries";
		else if (entry == NULL)
			reason = reason_without_entry();
		else if (reason[0] == '\0')
			reason = entry->complaint;

		values[0] = Int32GetDatum(w);
		values[1] = Int32GetDatum(worker.pid);
		nulls[1] = worker.pid == 0;
		values[2] = CStringGetTextDatum(shared_worker_state_name(worker.state));
		values[3] = CStringGetTextDatum(reason);
		nulls[3] = reason[0] == '\0';
		values[4] = TimestampTzGetDatum(worker.started_at);
		nulls[4] = worker.started_at == 0;
		values[5] = TimestampTzGetDatum(worker.last_round_at);
		nulls[5] = worker.last_round_at == 0;
		values[6] = Int64GetDatum(worker.epoch);
		values[7] = Int32GetDatum(worker.in_flight);
		values[8] = Int32GetDatum(worker.queued);
		values[9] = Int32GetDatum(worker.capacity);
		put_count(&values[10], worker.rounds);
		put_count(&values[11], worker.started_calls);
		put_count(&values[12], worker.applied_calls);
		put_count(&values[13], worker.stale_answers);
		put_count(&values[14], worker.failed_batches);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/*
 * provider_states(): one row per worker and provider that it has called.
 */
Datum
leasehold_provider_states(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	SharedDatabase *entry = shared_find_database(MyDatabaseId, false);

	InitMaterializedSRF(fcinfo, 0);
	for (int w = 0; entry != NULL && w < setting_workers; w++)
	{
		SharedWorker worker;

		copy_worker(&worker, &entry->workers[w]);
		for (int p = 0; p < SHARED_MAX_PROVIDERS; p++)
		{
			SharedProvider *provider = &worker.providers[p];
			Datum		values[10];
			bool		nulls[10] = {false};

			if (provider->key[0] == '\0')
				continue;
			values[0] = Int32GetDatum(w);
			values[1] = CStringGetTextDatum(provider->key);
			values[2] = Int32GetDatum(provider->in_flight);
			values[3] = Int32GetDatum(provider->queued);
			values[4] = CStringGetTextDatum(shared_breaker_name(provider->breaker));
			values[5] = Int32GetDatum(provider->failures);
			values[6] = TimestampTzGetDatum(provider->retry_at);
			nulls[6] = provider->breaker == BREAKER_CLOSED;
			put_count(&values[7], provider->succeeded);
			put_count(&values[8], provider->failed);
			values[9] = Int32GetDatum(provider->held_back);
			tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
		}
	}
	return (Datum) 0;
}

/*
 * request_breaker_reset(provider text) returns bool: whether one was not closed.
 */
Datum
leasehold_request_breaker_reset(PG_FUNCTION_ARGS)
{
	char	   *key = text_to_cstring(PG_GETARG_TEXT_PP(0));
	SharedDatabase *entry = shared_find_database(MyDatabaseId, false);
	bool		found = false;

	for (int w = 0; entry != NULL && w < setting_workers; w++)
	{
		SharedWorker *worker = &entry->workers[w];

		SpinLockAcquire(&worker->mutex);
		for (int p = 0; p < SHARED_MAX_PROVIDERS; p++)
		{
			SharedProvider *provider = &worker->providers[p];

			if (strcmp(provider->key, key) == 0 &&
				(provider->breaker != BREAKER_CLOSED || provider->held_back > 0))
				provider->reset_breaker = found = true;
		}
		SpinLockRelease(&worker->mutex);
	}
	if (found)
		shared_wake_workers(entry);
	PG_RETURN_BOOL(found);
}

/* Why a database has no entry in shared memory, where there is some. */
static const char *
reason_without_entry(void)
{
	if (shared_is_full())
		return psprintf("workers are kept for %d databases at most, and that many have leasehold already (leasehold.max_databases)",
						shared_state->max_databases);
	return "no worker serves this database";
}

static void
copy_worker(SharedWorker *to, SharedWorker *from)
{
	SpinLockAcquire(&from->mutex);
	memcpy(to, from, sizeof(SharedWorker));
	SpinLockRelease(&from->mutex);

	if (died_without_a_word(to->pid))
	{
		to->pid = 0;
		to->state = WORKER_ABSENT;
	}
}

static void
put_count(Datum *value, uint64 count)
{
	*value = Int64GetDatum((int64) count);
}
