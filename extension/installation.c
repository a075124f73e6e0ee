/*
 * installation.c
 *		The facts of this server that the installation's stamp is compared with,
 *		the installation's epoch, and whether it is paused or drained.
 */
#include "postgres.h"
#include "compat.h"

#include <sys/stat.h>
#include <unistd.h>

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_control.h"
#include "commands/trigger.h"
#include "common/controldata_utils.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "installation.h"
#include "settings.h"
#include "wake.h"

PG_FUNCTION_INFO_V1(leasehold_here);
PG_FUNCTION_INFO_V1(leasehold_current_epoch);
PG_FUNCTION_INFO_V1(leasehold_is_draining);
PG_FUNCTION_INFO_V1(leasehold_relation_changed);

/* what was read of the installation's row */
static bool row_known = false;
static int64 epoch;
static bool paused;
static bool draining;
static char paused_reason[256];

static Oid	installation_relid = InvalidOid;
static Oid	hosts_relid = InvalidOid;
static uint64 change_count = 0;

static void read_row(void);
static Datum column(HeapTuple tuple, Relation rel, const char *name, bool *isnull);
static void invalidate_row(Datum arg, Oid relid);

void
installation_init(void)
{
	CacheRegisterRelcacheCallback(invalidate_row, (Datum) 0);
}

uint64
installation_change_count(void)
{
	return change_count;
}

void
installation_look_again(void)
{
	change_count++;
}

/*
 * here(): database_oid, system_identifier, host, data_directory,
 * directory_inode, timeline
 */
Datum
leasehold_here(PG_FUNCTION_ARGS)
{
	TupleDesc	desc;
	Datum		values[6];
	bool		nulls[6] = {false};
	char		host[256];
	char		system_identifier[32];
	char	   *resolved;
	char	   *directory;
	struct stat st;
	ControlFileData *control;
	bool		crc_ok;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");

	if (setting_host_identity != NULL && setting_host_identity[0] != '\0')
		strlcpy(host, setting_host_identity, sizeof(host));
	else if (gethostname(host, sizeof(host)) != 0)
		ereport(ERROR,
				(errcode_for_file_access(), errmsg("could not get the host name: %m")));
	host[sizeof(host) - 1] = '\0';

	resolved = realpath(DataDir, NULL);
	if (resolved == NULL)
		ereport(ERROR,
				(errcode_for_file_access(), errmsg("could not resolve the path \"%s\": %m", DataDir)));
	directory = pstrdup(resolved);
	free(resolved);
	if (stat(directory, &st) != 0)
		ereport(ERROR,
				(errcode_for_file_access(), errmsg("could not stat directory \"%s\": %m", directory)));

	control = get_controlfile(DataDir, &crc_ok);
	snprintf(system_identifier, sizeof(system_identifier), UINT64_FORMAT, GetSystemIdentifier());

	values[0] = ObjectIdGetDatum(MyDatabaseId);
	values[1] = CStringGetTextDatum(system_identifier);
	values[2] = CStringGetTextDatum(host);
	values[3] = CStringGetTextDatum(directory);
	values[4] = Int64GetDatum((int64) st.st_ino);
	values[5] = Int32GetDatum((int32) (RecoveryInProgress() ? control->checkPointCopy.ThisTimeLineID
									   : GetWALInsertionTimeLine()));
	pfree(control);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/*
 * current_epoch(): the installation's epoch, 0 before there is a stamp; cached,
 * since every audit event asks for it.
 */
Datum
leasehold_current_epoch(PG_FUNCTION_ARGS)
{
	if (!row_known)
		read_row();
	PG_RETURN_INT64(epoch);
}

/*
 * is_draining(): whether drain_installation() was called; cached, since every
 * request asks.
 */
Datum
leasehold_is_draining(PG_FUNCTION_ARGS)
{
	AcceptInvalidationMessages();
	if (!row_known)
		read_row();
	PG_RETURN_BOOL(draining);
}

bool
installation_is_paused(const char **reason)
{
	AcceptInvalidationMessages();
	if (!row_known)
		read_row();
	*reason = paused_reason;
	return paused;
}

/* Reads the table directly: it is asked for in column defaults, as anybody. */
static void
read_row(void)
{
	Relation	rel;
	SysScanDesc scan;
	HeapTuple	tuple;
	uint64		changes;

	installation_relid = get_relname_relid("installation", get_namespace_oid("leasehold_internal", false));
	hosts_relid = get_relname_relid("allowed_hosts", get_namespace_oid("leasehold_internal", false));
	rel = table_open(installation_relid, AccessShareLock);
	epoch = 0;
	paused = draining = false;
	paused_reason[0] = '\0';
	changes = change_count;
	scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		bool		isnull;
		Datum		reason;

		epoch = Max(epoch, DatumGetInt64(column(tuple, rel, "epoch", &isnull)));
		draining |= DatumGetBool(column(tuple, rel, "draining", &isnull));
		if (!DatumGetBool(column(tuple, rel, "paused", &isnull)))
			continue;
		paused = true;
		reason = column(tuple, rel, "paused_reason", &isnull);
		if (!isnull)
			strlcpy(paused_reason, TextDatumGetCString(reason), sizeof(paused_reason));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	/* an invalidation that arrived meanwhile wins, as does an error */
	row_known = change_count == changes;
}

static Datum
column(HeapTuple tuple, Relation rel, const char *name, bool *isnull)
{
	return heap_getattr(tuple, get_attnum(RelationGetRelid(rel), name), RelationGetDescr(rel), isnull);
}

/*
 * Statement trigger: has every process that caches something made of this
 * table read it again, workers at once.
 */
Datum
leasehold_relation_changed(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		elog(ERROR, "leasehold_relation_changed: not called as a trigger");
	CacheInvalidateRelcache(((TriggerData *) fcinfo->context)->tg_relation);
	wake_workers_at_commit();
	return PointerGetDatum(NULL);
}

static void
invalidate_row(Datum arg, Oid relid)
{
	if (relid == InvalidOid || relid == installation_relid || relid == hosts_relid)
	{
		row_known = false;
		change_count++;
	}
}
