/*
 * attachment.h
 *		CALLs that wait for a command, and what is to end with them.
 *
 * A session whose CALL waits holds a slot in shared memory.  If the CALL ends
 * other than by detach_call(), the slot is left to the workers.
 */
#ifndef LEASEHOLD_ATTACHMENT_H
#define LEASEHOLD_ATTACHMENT_H

#include "shared_state.h"

/* What a session has left: nil ids where there is nothing to end. */
typedef struct LeftAttachment
{
	int			slot;
	pg_uuid_t	company;
	pg_uuid_t	lease;
	int			generation;		/* of the lease */
	pg_uuid_t	command;
} LeftAttachment;

/* Called from _PG_init. */
extern void attachment_init(void);

/* Whether this session's CALL is attached to the lease or command. */
extern bool attachment_has(const pg_uuid_t *subject);

extern bool attachment_is_nil(const pg_uuid_t *id);

/*
 * What sessions of a database have left to one of its workers, most at a time:
 * those that come after the slot "from", which goes on.
 */
extern int	attachment_read_left(Oid database, int part, int *from, LeftAttachment *list, int most);

/* The worker has done its duty for what was left. */
extern void attachment_free(SharedWorker *worker, const LeftAttachment *done);

/* Whether a session of the database holds, or left, the command. */
extern bool attachment_exists(Oid database, const pg_uuid_t *company, const pg_uuid_t *command);

#endif							/* LEASEHOLD_ATTACHMENT_H */
