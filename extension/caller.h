/*
 * caller.h
 *		Who called, and for which company.
 */
#ifndef LEASEHOLD_CALLER_H
#define LEASEHOLD_CALLER_H

#include "utils/uuid.h"

/*
 * The role on whose behalf the current code runs: inside a public function
 * the role that was current when it was called, elsewhere the current role.
 */
extern Oid	caller_role(void);

/* Whether the current code is an implementation that the gate called. */
extern bool caller_is_within_gate(void);

extern void caller_init(void);

#endif							/* LEASEHOLD_CALLER_H */
