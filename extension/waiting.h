/*
 * waiting.h
 *		Waiting for a lease, a command or its output.
 */
#ifndef LEASEHOLD_WAITING_H
#define LEASEHOLD_WAITING_H

#include "executor/spi.h"
#include "utils/timestamp.h"

#define WAIT_MAX_ARGS		3
#define WAIT_DEFAULT_MS		5000

/*
 * What is waited for.  The query returns company_id, what the waiting function
 * returns if it returns that, whether to wait no longer in the column "done",
 * and last who wrote it.  Its first argument is the subject's id.
 */
typedef struct WaitSubject
{
	const char *name;			/* for errors */
	const char *query;
	int			arg_count;
	Oid			types[WAIT_MAX_ARGS];
	SPIPlanPtr	plan;
} WaitSubject;

/* A query's arguments. */
typedef struct WaitArgs
{
	Datum		values[WAIT_MAX_ARGS];
	char		nulls[WAIT_MAX_ARGS];
} WaitArgs;

typedef struct WaitState
{
	Datum	   *values;			/* the columns between the first and the last */
	bool	   *nulls;
	bool		done;
	bool		under_way;		/* a command that runs already */
	bool		own_change;		/* written by the waiter's own transaction */
} WaitState;

extern WaitSubject wait_lease;
extern WaitSubject wait_command;
extern WaitSubject wait_output; /* of a command, after a piece */

/* Takes count arguments of the function; which of them is in places. */
extern void wait_args(FunctionCallInfo fcinfo, WaitArgs *args, int count, const int *places);

/* The argument that says how long to wait. */
extern int64 wait_milliseconds(FunctionCallInfo fcinfo, int arg, int64 default_ms);

/*
 * Returns with the state, in the current memory context, when it is done or the
 * time is over.  Raises an error if there is nothing to wait for: if no worker
 * serves, at once, or with unserved_since, which the caller keeps for the next
 * call, only when it has been so for some seconds.
 */
extern void wait_for(WaitSubject *subject, const WaitArgs *args, int64 timeout_ms, TimestampTz *unserved_since,
					 WaitState *state);

/* The state as it is now. */
extern void wait_read_state(WaitSubject *subject, const WaitArgs *args, WaitState *state);

/* What the function returns of it. */
extern Datum wait_record(FunctionCallInfo fcinfo, const WaitState *state);

/* Calls take for each piece of output after the one in args, in a connection to SPI; how many. */
extern uint64 wait_read_output(const WaitArgs *args, void (*take) (HeapTuple row, TupleDesc desc, void *arg), void *arg);

#endif							/* LEASEHOLD_WAITING_H */
