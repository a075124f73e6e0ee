/*
 * ids.h
 *		Time-ordered identifiers.
 */
#ifndef LEASEHOLD_IDS_H
#define LEASEHOLD_IDS_H

#include "utils/uuid.h"

/*
 * Puts a new UUID of version 7 there, greater than any that this process made
 * before.  Raises an error only when the system has no random bytes.
 */
extern void ids_make(pg_uuid_t *id);

#endif							/* LEASEHOLD_IDS_H */
