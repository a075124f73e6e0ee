/*
 * database_guard.h
 *		Hooks on commands that end or copy what workers serve.
 */
#ifndef LEASEHOLD_DATABASE_GUARD_H
#define LEASEHOLD_DATABASE_GUARD_H

extern void database_guard_init(void);

#endif							/* LEASEHOLD_DATABASE_GUARD_H */
