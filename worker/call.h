/*
 * call.h
 *		One claimed call: what is to be done at a provider, and what came of it.
 */
#ifndef LEASEHOLD_CALL_H
#define LEASEHOLD_CALL_H

#include "lib/ilist.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "queue.h"

/* a command that is carried out: see command.h */
typedef struct Command Command;

typedef enum CallMethod
{
	METHOD_INITIALIZE,
	METHOD_ACQUIRE,
	METHOD_RESUME,
	METHOD_REALIZE,
	METHOD_RELEASE,
	METHOD_DESTROY,
	METHOD_FIND,
	METHOD_LIST,
	METHOD_EXECUTE,
	METHOD_CANCEL
} CallMethod;

/*
 * What is known of a call's effect; see extension/api/41_completion.sql.
 */
typedef enum CallOutcome
{
	OUTCOME_NONE,				/* still out */
	OUTCOME_OK,
	OUTCOME_GONE,
	OUTCOME_RETRY,
	OUTCOME_THROTTLED,
	OUTCOME_FAILED,
	OUTCOME_UNKNOWN
} CallOutcome;

#define call_lane(call)		((call)->key.slot == SLOT_COMMAND ? LANE_COMMANDS : LANE_CALLS)

#define CALL_CODE_SIZE		64
#define CALL_MESSAGE_SIZE	241 /* long enough to help, short enough for a log */

/*
 * Lives in a memory context of its own, with all that belongs to it, from the
 * claim until its outcome is stored.
 */
typedef struct Call
{
	dlist_node	node;			/* in the worker's list of calls that are out, or finished */
	MemoryContext context;
	QueueShare *queue;			/* whose place it takes */

	/* what to do */
	QueueKey	key;
	int			generation;
	char	   *operation;		/* of the dispatch table */
	char	   *provider;
	char	   *plugin;			/* NULL: built in */
	CallMethod	method;
	const char *method_name;	/* on the wire */
	int			attempt;
	int64		timeout_ms;
	char	   *idempotency_key;	/* or NULL */
	char	   *params;			/* JSON text */
	size_t		params_length;

	/* what came of it */
	CallOutcome outcome;
	char		code[CALL_CODE_SIZE];
	char		message[CALL_MESSAGE_SIZE];
	int64		retry_after_ms;
	char	   *provider_lease_id;	/* NULL if none */
	char	   *metadata;		/* JSON text of an object, or NULL */
	bool		has_expiry;
	TimestampTz expires_at;
	char	   *listed;			/* METHOD_LIST: JSON text of an array */
	char	   *next_cursor;
	char	  **supported_methods;	/* METHOD_INITIALIZE */
	int			supported_method_count;

	Command    *command;		/* SLOT_COMMAND: what it writes and how it ends; else NULL */

	bool		not_asked;		/* the outcome says nothing about the provider */
	bool		provider_failed;	/* counts for a circuit breaker */
	bool		transport_failed;	/* it never came to the provider: counts for the provider's own */
	void	   *transport;		/* the provider's own state while it is out */
	TimestampTz apply_after;	/* the lease was locked: hand in again then */
	int			times_locked;
} Call;

extern bool call_parse_method(const char *name, CallMethod *method);
extern const char *call_outcome_name(CallOutcome outcome);

/* An id as text, in the current memory context. */
extern char *call_id_text(const pg_uuid_t *id);

/* Sets the outcome with a code and a message, which is cut to fit. */
extern void call_set_outcome(Call *call, CallOutcome outcome, const char *code,
							 const char *format,...) pg_attribute_printf(4, 5);

#endif							/* LEASEHOLD_CALL_H */
