/*
 * lease_states.c
 *		The life cycle of a lease: the table of allowed changes, and the trigger
 *		that allows no others.
 *
 * The table is here once; leasehold.lease_transitions() shows it, and the
 * documentation and the tests are compared with it.  A plain INSERT is accepted
 * in any state, so that a restore brings back what was there.
 */
#include "postgres.h"
#include "compat.h"

#include "access/htup_details.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/uuid.h"

#include "errors.h"

PG_FUNCTION_INFO_V1(leasehold_lease_transitions);
PG_FUNCTION_INFO_V1(leasehold_check_lease_change);

typedef struct Transition
{
	const char *from;
	const char *to;
	const char *reason;
} Transition;

static const Transition transitions[] = {
	{"acquiring", "active", "the provider gave a resource"},
	{"acquiring", "failed", "the provider gave none, or not in time"},
	{"acquiring", "releasing", "given back while a call was out"},
	{"acquiring", "released", "given back before any call"},
	{"acquiring", "expired", "ended before any call"},
	{"acquiring", "irrevocable", "nobody can tell whether the provider made a resource"},
	{"acquiring", "forgotten", "fork_installation()"},
	{"active", "releasing", "given back, expired, idle, or its run ended"},
	{"active", "forgotten", "fork_installation()"},
	{"releasing", "released", "the provider removed the resource"},
	{"releasing", "retained", "the provider parked the resource"},
	{"releasing", "expired", "the provider removed the resource of an expired lease"},
	{"releasing", "failed", "the provider removed the resource of a failed run's lease"},
	{"releasing", "pending_cleanup", "the provider could not remove it yet"},
	{"releasing", "irrevocable", "the provider will not remove it"},
	{"releasing", "forgotten", "fork_installation()"},
	{"retained", "resuming", "taken into use again"},
	{"retained", "releasing", "to be removed"},
	{"retained", "forgotten", "fork_installation()"},
	{"resuming", "active", "the provider resumed the resource"},
	{"resuming", "acquiring", "the parked resource is of no use: a new one is asked for"},
	{"resuming", "releasing", "given back while the call was out"},
	{"resuming", "retained", "there is no place for it under a limit, and the request did not want to wait"},
	{"resuming", "forgotten", "fork_installation()"},
	{"pending_cleanup", "released", "a later try removed the resource"},
	{"pending_cleanup", "retained", "a later try parked the resource"},
	{"pending_cleanup", "expired", "a later try removed the resource of an expired lease"},
	{"pending_cleanup", "failed", "a later try removed the resource of a failed run's lease"},
	{"pending_cleanup", "irrevocable", "too many tries"},
	{"pending_cleanup", "forgotten", "fork_installation()"},
	{"irrevocable", "pending_cleanup", "retry_lease()"},
	{"irrevocable", "written_off", "write_off_lease()"},
	{"irrevocable", "forgotten", "fork_installation()"},
};

static char *column_text(HeapTuple tuple, TupleDesc desc, const char *name);
static bool same_uuid(HeapTuple a, HeapTuple b, TupleDesc desc, const char *name);

/*
 * lease_transitions() returns setof (from_status, to_status, reason)
 */
Datum
leasehold_lease_transitions(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < (int) lengthof(transitions); i++)
	{
		Datum		values[3];
		bool		nulls[3] = {false};

		values[0] = CStringGetTextDatum(transitions[i].from);
		values[1] = CStringGetTextDatum(transitions[i].to);
		values[2] = CStringGetTextDatum(transitions[i].reason);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/*
 * Row trigger before updates of leasehold.leases that name these columns.
 */
Datum
leasehold_check_lease_change(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	TupleDesc	desc;
	HeapTuple	old_row;
	HeapTuple	new_row;
	char	   *from;
	char	   *to;
	bool		isnull;
	int32		old_generation;
	int32		new_generation;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
		elog(ERROR, "leasehold_check_lease_change: not called by an update");
	desc = RelationGetDescr(trigger->tg_relation);
	old_row = trigger->tg_trigtuple;
	new_row = trigger->tg_newtuple;

	if (!same_uuid(old_row, new_row, desc, "company_id") || !same_uuid(old_row, new_row, desc, "id"))
		ereport(ERROR,
				(leasehold_error(LHE_ILLEGAL_TRANSITION),
				 errmsg("a lease cannot become another one")));

	old_generation = DatumGetInt32(SPI_getbinval(old_row, desc, SPI_fnumber(desc, "generation"), &isnull));
	new_generation = DatumGetInt32(SPI_getbinval(new_row, desc, SPI_fnumber(desc, "generation"), &isnull));
	if (new_generation < old_generation)
		ereport(ERROR,
				(leasehold_error(LHE_ILLEGAL_TRANSITION),
				 errmsg("the generation of a lease cannot go back")));

	from = column_text(old_row, desc, "status");
	to = column_text(new_row, desc, "status");
	if (strcmp(from, to) == 0)
		return PointerGetDatum(new_row);
	for (int i = 0; i < (int) lengthof(transitions); i++)
	{
		if (strcmp(transitions[i].from, from) == 0 && strcmp(transitions[i].to, to) == 0)
			return PointerGetDatum(new_row);
	}
	ereport(ERROR,
			(leasehold_error(LHE_ILLEGAL_TRANSITION),
			 errmsg("a lease that is %s cannot become %s", from, to),
			 errhint("See leasehold.lease_transitions().")));
}

static char *
column_text(HeapTuple tuple, TupleDesc desc, const char *name)
{
	bool		isnull;

	return TextDatumGetCString(SPI_getbinval(tuple, desc, SPI_fnumber(desc, name), &isnull));
}

static bool
same_uuid(HeapTuple a, HeapTuple b, TupleDesc desc, const char *name)
{
	int			column = SPI_fnumber(desc, name);
	bool		isnull;

	return memcmp(DatumGetUUIDP(SPI_getbinval(a, desc, column, &isnull)),
				  DatumGetUUIDP(SPI_getbinval(b, desc, column, &isnull)), UUID_LEN) == 0;
}
