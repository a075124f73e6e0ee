/*
 * settings.c
 *		Defines the server settings.
 *
 * Contexts: POSTMASTER for what sizes shared memory, SIGHUP for what workers
 * obey, SUSET for policy that a superuser may relax for one session.  Every
 * duration and size carries its unit.  Secrets are never settings.
 */
#include "postgres.h"
#include "compat.h"

#include <limits.h>

#include "miscadmin.h"
#include "utils/guc.h"

#include "settings.h"

int			setting_workers = 1;
int			setting_max_databases = 16;
int			setting_max_attached_calls = 500;
int			setting_max_concurrent_calls = 1000;
int			setting_max_concurrent_commands = 200;
int			setting_max_output = 16384;
int			setting_output_retention = 14;
int			setting_provider_concurrency = 1000;
int			setting_rpc_timeout = 30000;
int			setting_connect_timeout = 10000;
int			setting_max_response_size = 1024;
int			setting_retry_base = 1000;
int			setting_retry_max = 300000;
int			setting_bubblewrap_max_memory = 8192;
int			setting_bubblewrap_max_processes = 1024;
int			setting_acquire_attempts = 5;
int			setting_cleanup_attempts = 8;
int			setting_crash_limit = 3;
int			setting_breaker_threshold = 5;
int			setting_breaker_cooldown = 5000;
int			setting_idle_check = 60;
int			setting_housekeeping_interval = 300;
int			setting_reconcile_interval = 600;
int			setting_lease_retention = 90;
int			setting_audit_retention = 400;
char	   *setting_token_directory = NULL;
char	   *setting_ca_file = NULL;
char	   *setting_host_identity = NULL;
bool		setting_bubblewrap = false;
char	   *setting_bubblewrap_program = NULL;
char	   *setting_bubblewrap_directory = NULL;
bool		setting_bubblewrap_data_filesystem = false;
char	   *setting_bubblewrap_read_only = NULL;
int			setting_bubblewrap_free_memory = 512;
bool		setting_allow_fake_provider = false;
bool		setting_allow_drop = false;

typedef struct IntSetting
{
	const char *name;
	const char *what;
	int		   *value;
	int			least;
	int			most;
	GucContext	context;
	int			unit;
} IntSetting;

static const IntSetting int_settings[] = {
	{"leasehold.acquire_attempts", "Tries to get a resource from its provider before the lease fails.",
	&setting_acquire_attempts, 1, 100, PGC_SIGHUP, 0},
	{"leasehold.audit_retention", "Days that audit events are kept.",
	&setting_audit_retention, 1, 36500, PGC_SIGHUP, 0},
	{"leasehold.breaker_cooldown", "First pause of a provider whose circuit breaker opened; doubled at each further failure.",
	&setting_breaker_cooldown, 10, 3600000, PGC_SIGHUP, GUC_UNIT_MS},
	{"leasehold.breaker_threshold", "Consecutive failures that open a provider's circuit breaker.",
	&setting_breaker_threshold, 1, 10000, PGC_SIGHUP, 0},
	{"leasehold.bubblewrap_free_memory", "Memory that must stay available when a sandbox's workspace is made.",
	&setting_bubblewrap_free_memory, 0, 1048576, PGC_SIGHUP, GUC_UNIT_MB},
	{"leasehold.bubblewrap_max_memory", "Memory that a process in a sandbox can have at most, whatever its environment allows.",
	&setting_bubblewrap_max_memory, 16, 1048576, PGC_SIGHUP, GUC_UNIT_MB},
	{"leasehold.bubblewrap_max_processes", "Processes that a sandbox can have at most, whatever its environment allows.",
	&setting_bubblewrap_max_processes, 4, 1048576, PGC_SIGHUP, 0},
	{"leasehold.cleanup_attempts", "Tries to remove a resource before its lease is irrevocable.",
	&setting_cleanup_attempts, 1, 100, PGC_SIGHUP, 0},
	{"leasehold.connect_timeout", "Time limit for connecting to a provider, name resolution included.",
	&setting_connect_timeout, 1, 600000, PGC_SIGHUP, GUC_UNIT_MS},
	{"leasehold.crash_limit", "Crashes with the same call in flight that quarantine it.",
	&setting_crash_limit, 1, 100, PGC_SIGHUP, 0},
	{"leasehold.housekeeping_interval", "Time between rounds of housekeeping (partitions, retention).",
	&setting_housekeeping_interval, 1, 86400, PGC_SIGHUP, GUC_UNIT_S},
	{"leasehold.idle_check", "Time after which an idle worker looks for work that nobody announced.",
	&setting_idle_check, 1, 3600, PGC_SIGHUP, GUC_UNIT_S},
	{"leasehold.lease_retention", "Days that ended leases are kept.",
	&setting_lease_retention, 1, 36500, PGC_SIGHUP, 0},
	{"leasehold.max_attached_calls", "Sessions of this server that can wait in a CALL for their command or lease.",
	&setting_max_attached_calls, 1, 100000, PGC_POSTMASTER, 0},
	{"leasehold.max_concurrent_calls", "Provider calls that one worker has in flight at most.",
	&setting_max_concurrent_calls, 1, 20000, PGC_SIGHUP, 0},
	{"leasehold.max_concurrent_commands", "Commands that one worker has carried out at a time at most.",
	&setting_max_concurrent_commands, 1, 10000, PGC_SIGHUP, 0},
	{"leasehold.max_databases", "Databases of this server that can have Leasehold.",
	&setting_max_databases, 1, 1000, PGC_POSTMASTER, 0},
	{"leasehold.max_response_size", "Largest answer that is accepted from a provider.",
	&setting_max_response_size, 1, 65536, PGC_SIGHUP, GUC_UNIT_KB},
	{"leasehold.max_output", "Output that is kept of a command at most; the limit output_bytes can make it less.",
	&setting_max_output, 1, 1048576, PGC_SIGHUP, GUC_UNIT_KB},
	{"leasehold.output_retention", "Days that the output of commands is kept.",
	&setting_output_retention, 1, 36500, PGC_SIGHUP, 0},
	{"leasehold.provider_concurrency", "Calls that one worker has in flight to the same provider at most.",
	&setting_provider_concurrency, 1, 20000, PGC_SIGHUP, 0},
	{"leasehold.reconcile_interval", "Time between sweeps that compare providers' resources with the leases; 0 turns them off.",
	&setting_reconcile_interval, 0, 604800, PGC_SIGHUP, GUC_UNIT_S},
	{"leasehold.retry_base", "Pause before the first retry of a failed call; doubled at each further one, with jitter.",
	&setting_retry_base, 1, 3600000, PGC_SIGHUP, GUC_UNIT_MS},
	{"leasehold.retry_max", "Longest pause between retries.",
	&setting_retry_max, 1, 86400000, PGC_SIGHUP, GUC_UNIT_MS},
	{"leasehold.rpc_timeout", "Time limit of a provider call whose environment sets none.",
	&setting_rpc_timeout, 1, 86400000, PGC_SIGHUP, GUC_UNIT_MS},
	{"leasehold.workers", "Workers per database, which split its work between them.",
	&setting_workers, 1, 8, PGC_POSTMASTER, 0},
};

static bool check_host_identity(char **newval, void **extra, GucSource source);

/*
 * Called once, from _PG_init.  Settings of the POSTMASTER context can be
 * defined only while the postmaster loads the library; a session that loads
 * it later (no preload) sees the defaults of the others.
 */
void
settings_define(void)
{
	for (int i = 0; i < (int) lengthof(int_settings); i++)
	{
		const IntSetting *s = &int_settings[i];

		if (s->context == PGC_POSTMASTER && !process_shared_preload_libraries_in_progress)
			continue;
		DefineCustomIntVariable(s->name, s->what, NULL, s->value, *s->value,
								s->least, s->most, s->context, s->unit,
								NULL, NULL, NULL);
	}

	DefineCustomBoolVariable("leasehold.allow_drop",
							 "Allows DROP EXTENSION and DROP DATABASE while remote resources may still exist.",
							 NULL, &setting_allow_drop, false, PGC_SUSET, 0,
							 NULL, NULL, NULL);
	DefineCustomBoolVariable("leasehold.allow_fake_provider",
							 "Allows environments to use the built-in provider for tests.",
							 NULL, &setting_allow_fake_provider, false, PGC_SIGHUP, 0,
							 NULL, NULL, NULL);
	DefineCustomBoolVariable("leasehold.bubblewrap",
							 "Allows sandboxes on this host, for the companies that are given the provider.",
							 NULL, &setting_bubblewrap, false, PGC_SIGHUP, 0,
							 NULL, NULL, NULL);
	DefineCustomBoolVariable("leasehold.bubblewrap_data_filesystem",
							 "Allows leasehold.bubblewrap_directory on the file system of the data directory.",
							 NULL, &setting_bubblewrap_data_filesystem, false, PGC_SIGHUP, 0,
							 NULL, NULL, NULL);
	DefineCustomStringVariable("leasehold.bubblewrap_directory",
							   "Directory for the mount points of sandboxes' workspaces.",
							   NULL,
							   &setting_bubblewrap_directory, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY,
							   NULL, NULL, NULL);
	DefineCustomStringVariable("leasehold.bubblewrap_program",
							   "The program bubblewrap.",
							   NULL,
							   &setting_bubblewrap_program, "/usr/bin/bwrap", PGC_SIGHUP, GUC_SUPERUSER_ONLY,
							   NULL, NULL, NULL);
	DefineCustomStringVariable("leasehold.bubblewrap_read_only",
							   "More paths of this host that sandboxes may read, separated by colons.",
							   NULL,
							   &setting_bubblewrap_read_only, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY,
							   NULL, NULL, NULL);
	DefineCustomStringVariable("leasehold.ca_file",
							   "File with the certificate authorities that providers' certificates are checked against.",
							   "Empty for the system's own.",
							   &setting_ca_file, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY,
							   NULL, NULL, NULL);
	DefineCustomStringVariable("leasehold.host_identity",
							   "Name by which this host is recognised after a restart.",
							   "Empty for the host name.",
							   &setting_host_identity, "", PGC_SIGHUP, 0,
							   check_host_identity, NULL, NULL);
	DefineCustomStringVariable("leasehold.token_directory",
							   "Directory of the files that hold providers' bearer tokens.",
							   NULL,
							   &setting_token_directory, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY,
							   NULL, NULL, NULL);

	MarkGUCPrefixReserved("leasehold");
}

static bool
check_host_identity(char **newval, void **extra, GucSource source)
{
	if (*newval && strlen(*newval) > 200)
	{
		GUC_check_errdetail("The name can have at most 200 bytes.");
		return false;
	}
	return true;
}
