/*
 * installation_check.h
 *		Whether a worker may serve what it finds in its database.
 */
#ifndef LEASEHOLD_INSTALLATION_CHECK_H
#define LEASEHOLD_INSTALLATION_CHECK_H

typedef enum InstallationState
{
	INSTALLATION_SERVED,
	INSTALLATION_PAUSED,		/* answers and deadlines only */
	INSTALLATION_HELD,			/* this is a copy: nothing at all */
	INSTALLATION_EMPTY,			/* none yet, or one that is being restored: the same */
	INSTALLATION_UNSUPPORTED,	/* SQL objects of another version */
	INSTALLATION_ABSENT			/* no extension */
} InstallationState;

/*
 * Looks whether the extension is here and may be served; sets the shared
 * state.  Cheap if nothing changed; if it cannot be read, the answer is the one
 * before, at first HELD.  Outside of any transaction, which it begins by itself;
 * it takes the memory of transaction_fresh_memory().
 */
extern InstallationState installation_check(void);

/* Whether this is our installation, whose rows we may change. */
extern bool installation_may_write(InstallationState state);

#endif							/* LEASEHOLD_INSTALLATION_CHECK_H */
