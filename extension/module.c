/*
 * module.c
 *		Library start-up: in the postmaster when preloaded, else in the session
 *		that first calls a function.
 */
#include "postgres.h"
#include "compat.h"

#include "miscadmin.h"

#include "attachment.h"
#include "caller.h"
#include "database_guard.h"
#include "installation.h"
#include "launcher.h"
#include "planning.h"
#include "settings.h"
#include "shared_state.h"
#include "wake.h"

PG_MODULE_MAGIC;

PGDLLEXPORT void _PG_init(void);

void
_PG_init(void)
{
	settings_define();
	caller_init();
	installation_init();
	wake_init();
	attachment_init();
	database_guard_init();
	planning_init();

	/* pg_upgrade starts servers that must not reach out to providers */
	if (process_shared_preload_libraries_in_progress && !IsBinaryUpgrade)
	{
		shared_state_init();
		launcher_register();
	}
}
