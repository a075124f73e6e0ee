/*
 * installation.h
 *		Where this server is, for telling an installation from its copies, and
 *		what backends read of the installation's row.
 */
#ifndef LEASEHOLD_INSTALLATION_H
#define LEASEHOLD_INSTALLATION_H

extern void installation_init(void);

/*
 * Counts changes of leasehold_internal.installation that this process has
 * learned of.  Whoever keeps something derived from it compares.
 */
extern uint64 installation_change_count(void);

/* Counts as a change: a setting that says where we are may have changed. */
extern void installation_look_again(void);

/* Whether pause_worker() was called, and with which reason, "" for none. */
extern bool installation_is_paused(const char **reason);

#endif							/* LEASEHOLD_INSTALLATION_H */
