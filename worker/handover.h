/*
 * handover.h
 *		From one worker process to the next: taking calls over, and giving them back.
 */
#ifndef LEASEHOLD_HANDOVER_H
#define LEASEHOLD_HANDOVER_H

#include "installation_check.h"

/*
 * Takes over what an earlier worker left, sets worker.epoch, and has the next
 * round read everything.  Before the first round that may write; outside of any
 * transaction.  Tries until it succeeds or the process is asked to end; what
 * fails is logged.
 */
extern void handover_take(void);

/*
 * Stores the answers that are here and gives calls that are out back to the
 * table, since this process ends: afterwards none is in the worker's list of
 * calls that are out.  What cannot be stored is left to the successor.  Outside
 * of any transaction.
 */
extern void handover_give_back(void);

/*
 * Tells whoever needs the database alone how many resources providers hold, or
 * may hold, for it: none if the installation is a copy's.  Last of all, outside
 * of any transaction.  If it cannot be found out, it stays unknown.
 */
extern void handover_tell_left(InstallationState state);

#endif							/* LEASEHOLD_HANDOVER_H */
