/*
 * settings.h
 *		The server settings of Leasehold (see docs/operations.md).
 */
#ifndef LEASEHOLD_SETTINGS_H
#define LEASEHOLD_SETTINGS_H

/* fixed at server start: they size shared memory */
extern int	setting_workers;
extern int	setting_max_databases;
extern int	setting_max_attached_calls;

/* read by workers, changed by reload */
extern int	setting_max_concurrent_calls;
extern int	setting_max_concurrent_commands;
extern int	setting_max_output;
extern int	setting_output_retention;
extern int	setting_provider_concurrency;
extern int	setting_rpc_timeout;
extern int	setting_connect_timeout;
extern int	setting_max_response_size;
extern int	setting_retry_base;
extern int	setting_retry_max;
extern int	setting_acquire_attempts;
extern int	setting_cleanup_attempts;
extern int	setting_crash_limit;
extern int	setting_breaker_threshold;
extern int	setting_breaker_cooldown;
extern int	setting_idle_check;
extern int	setting_housekeeping_interval;
extern int	setting_reconcile_interval;
extern int	setting_lease_retention;
extern int	setting_audit_retention;
extern char *setting_token_directory;
extern char *setting_ca_file;
extern char *setting_host_identity;

/* sandboxes on this host */
extern bool setting_bubblewrap;
extern char *setting_bubblewrap_program;
extern char *setting_bubblewrap_directory;
extern bool setting_bubblewrap_data_filesystem;
extern char *setting_bubblewrap_read_only;
extern int	setting_bubblewrap_free_memory;
extern int	setting_bubblewrap_max_memory;
extern int	setting_bubblewrap_max_processes;

/* policy */
extern bool setting_allow_fake_provider;
extern bool setting_allow_drop;

extern void settings_define(void);

#endif							/* LEASEHOLD_SETTINGS_H */
