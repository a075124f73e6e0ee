/*
 * audit.h
 *		Writing audit events from C.
 */
#ifndef LEASEHOLD_AUDIT_H
#define LEASEHOLD_AUDIT_H

#include "nodes/execnodes.h"

typedef struct AuditEvent
{
	NullableDatum company_id;	/* uuid */
	NullableDatum action;		/* text, as the next two */
	NullableDatum entity_type;
	NullableDatum entity_id;
	NullableDatum details;		/* jsonb */
	NullableDatum agent_id;		/* uuid, as the next two */
	NullableDatum issue_id;
	NullableDatum run_id;
} AuditEvent;

/*
 * Adds an event to rows that are written together (row_insert.h); who did it,
 * and when, are the columns' defaults.
 */
extern void audit_insert(EState *estate, const AuditEvent *event);

#endif							/* LEASEHOLD_AUDIT_H */
