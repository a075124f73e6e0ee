/*
 * housekeeping.c
 *		Partitions, retention, and what else is the clock's.
 *
 * Each duty is done by itself, a batch in a transaction, so that none keeps the
 * others, or a round, from being done.
 */
#include "postgres.h"
#include "compat.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "postmaster/interrupt.h"
#include "utils/builtins.h"

#include "housekeeping.h"
#include "settings.h"
#include "statement.h"
#include "transaction.h"

#define DUTY_BATCHES		20

typedef struct Duty
{
	const char *name;
	bool		more;			/* is likely to be left */
} Duty;

static bool do_duty(Duty *duty, bool failed_before);
static void duty_work(void *arg);

void
housekeeping_run(void)
{
	static const char *const duties[] = {
		"partitions", "idempotency_keys", "leases", "output", "places", "takeover", "rebuild", "reconcile"
	};
	static bool failed[lengthof(duties)];

	transaction_fresh_memory();
	for (int i = 0; i < (int) lengthof(duties); i++)
	{
		Duty		duty = {.name = duties[i],.more = true};

		failed[i] = !do_duty(&duty, failed[i]);
	}
}

/* One that goes on failing for a reason that passes is reported once. */
static bool
do_duty(Duty *duty, bool failed_before)
{
	for (int batches = 0; duty->more && batches < DUTY_BATCHES && !ShutdownRequestPending; batches++)
	{
		bool		ok = failed_before ? transaction_run_again("housekeeping", duty_work, duty)
		: transaction_run("housekeeping", duty_work, duty);

		if (!ok)
			return false;
	}
	return true;
}

static void
duty_work(void *arg)
{
	Duty	   *duty = arg;
	Datum		args[5];
	bool		isnull;

	args[0] = CStringGetTextDatum(duty->name);
	args[1] = statement_my_shards();
	args[2] = Int32GetDatum(setting_lease_retention);
	args[3] = Int32GetDatum(setting_audit_retention);
	args[4] = Int32GetDatum(setting_reconcile_interval);
	if (SPI_execute_with_args("SELECT leasehold_internal.housekeep($1, $2, $3, $4, $5)", 5,
							  (Oid[]) {TEXTOID, INT2ARRAYOID, INT4OID, INT4OID, INT4OID}, args, NULL, false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not keep house");
	duty->more = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
}
