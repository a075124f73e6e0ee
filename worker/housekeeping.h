/*
 * housekeeping.h
 *		Partitions, retention, and what else is the clock's.
 */
#ifndef LEASEHOLD_HOUSEKEEPING_H
#define LEASEHOLD_HOUSEKEEPING_H

/*
 * Does what there is to do now; what fails is logged and tried again the next
 * time.  Outside of any transaction, and only where installation_may_write();
 * it takes the memory of transaction_fresh_memory().
 */
extern void housekeeping_run(void);

#endif							/* LEASEHOLD_HOUSEKEEPING_H */
