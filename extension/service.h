/*
 * service.h
 *		Whether a worker serves this database.
 */
#ifndef LEASEHOLD_SERVICE_H
#define LEASEHOLD_SERVICE_H

#include "errors.h"

/*
 * Whether calls are made for this database.  If not, tells why: a palloc'd
 * text, and the error that somebody who waits should get.
 */
extern bool service_is_available(char **reason, LeaseholdError *error);

/*
 * The same for what a provider has begun: its end is seen even while the worker
 * is paused.
 */
extern bool service_sees_to_ends(char **reason, LeaseholdError *error);

/*
 * What was asked for is kept, but who asked should know that nobody does it
 * now: a WARNING, once in a transaction.
 */
extern void service_warn_if_unserved(void);

#endif							/* LEASEHOLD_SERVICE_H */
