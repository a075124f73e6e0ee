/*
 * launcher.h
 *		Keeps a worker in every database that has the extension.
 */
#ifndef LEASEHOLD_LAUNCHER_H
#define LEASEHOLD_LAUNCHER_H

/* Registers the launcher; called while the postmaster loads the library. */
extern void launcher_register(void);

#endif							/* LEASEHOLD_LAUNCHER_H */
