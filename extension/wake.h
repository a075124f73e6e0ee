/*
 * wake.h
 *		Waking workers when a transaction that made work for them commits.
 */
#ifndef LEASEHOLD_WAKE_H
#define LEASEHOLD_WAKE_H

/*
 * Workers read the dispatch table from this long before their last look on; a
 * transaction that takes longer between writing work and committing it says so.
 */
#define WAKE_LATE_US	10000

extern void wake_init(void);

/* At commit of the current transaction, wake this database's workers. */
extern void wake_workers_at_commit(void);

/* At commit, have the launcher look at the databases again. */
extern void wake_launcher_at_commit(void);

#endif							/* LEASEHOLD_WAKE_H */
