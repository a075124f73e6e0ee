/*
 * audit.c
 *		Writing audit events: one by one, for changes that are not made by one
 *		statement with their events.
 */
#include "postgres.h"
#include "compat.h"

#include "audit.h"
#include "row_insert.h"

PG_FUNCTION_INFO_V1(leasehold_record);

/* in the order of AuditEvent, and of record()'s arguments */
static const char *const event_columns[] = {
	"company_id", "action", "entity_type", "entity_id", "details", "agent_id", "issue_id", "run_id",
};

StaticAssertDecl(sizeof(AuditEvent) == lengthof(event_columns) * sizeof(NullableDatum),
				 "one member per column");

static RowTarget events = {"leasehold", "audit_events", lengthof(event_columns), event_columns};

void
audit_insert(EState *estate, const AuditEvent *event)
{
	row_insert(estate, &events, (const NullableDatum *) event);
}

/*
 * record(company_id uuid, action text, entity_type text, entity_id text,
 *		  details jsonb, agent_id uuid, issue_id uuid, run_id uuid)
 */
Datum
leasehold_record(PG_FUNCTION_ARGS)
{
	EState	   *estate = row_insert_begin();

	row_insert(estate, &events, fcinfo->args);
	row_insert_end(estate);
	PG_RETURN_VOID();
}
