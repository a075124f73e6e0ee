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

#endif							/* LEASEHOLD_SERVICE_H */
