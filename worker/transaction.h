/*
 * transaction.h
 *		One piece of a worker's work in one transaction, and what its failure says.
 */
#ifndef LEASEHOLD_TRANSACTION_H
#define LEASEHOLD_TRANSACTION_H

#define TRANSACTION_LOCK_TIMEOUT "80ms" /* unless several locks were met in a round */
#define LOCKED_PAUSE_MS		50	/* of what somebody has locked */
#define TROUBLE_PAUSE_MS	1000	/* of what met with an error that passes */

/*
 * Runs within a transaction with a snapshot, connected to SPI: what it
 * allocates is gone afterwards.  It fails by raising an error, at the commit
 * still, and must not rely on memory that it changed being as it was then.
 */
typedef void (*TransactionWork) (void *arg);

/*
 * Empties the memory that lasts from one transaction to the next, and switches
 * to it: for what a round, a check or a duty has to remember that long.  Outside
 * of any transaction, and before the first transaction_run().
 */
extern void transaction_fresh_memory(void);

/*
 * Runs work in a transaction of its own.  An error is logged, and all is undone;
 * false then, and the functions below tell of it.  Returns in the memory of
 * transaction_fresh_memory().  What is being done, as pg_stat_activity shows it,
 * must be a constant.
 */
extern bool transaction_run(const char *what, TransactionWork work, void *arg);

/* The same; but an error that passes was reported before, and is not again. */
extern bool transaction_run_again(const char *what, TransactionWork work, void *arg);

/*
 * Whether the latest failure will pass by itself and says nothing about what
 * was tried: somebody's lock, a lack of memory or disk, a cancel.
 */
extern bool transaction_trouble_passes(void);

/* Whether the latest failure is likely to befall whatever is tried. */
extern bool transaction_trouble_is_general(void);

/*
 * After a piece of a failed round that failed: counts in *in_row what would
 * befall the others, too; the caller sets it to 0 after one that went well.
 * Locks do not count; but who has met several does not wait long for the next
 * ones, until transaction_forget_locks().  Returns whether the trouble passes.
 */
extern bool transaction_troubled(int *in_row);

/* Whether the other pieces have to wait: too many troubles in a row, or the process ends. */
extern bool transaction_gives_up(int in_row);

/* After the last piece of a failed round: locks are waited for as before. */
extern void transaction_forget_locks(void);

#endif							/* LEASEHOLD_TRANSACTION_H */
