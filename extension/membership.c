/*
 * membership.c
 *		A per-backend cache of leasehold.company_members.
 *
 * Row security asks for the caller's companies at every statement, so the
 * answer must be cheap: the whole table is read once, and again after a change
 * of it, of a role, or of a role's grants.  A statement trigger on the table
 * sends the invalidation; committed changes of others arrive, as for catalogs,
 * when a transaction takes its first lock.
 *
 * A membership counts only while its role is the one it was granted to: the
 * row keeps the role's oid and name and the cluster's system identifier, and
 * all three must still agree.  A role that was dropped and created again, or a
 * dump restored into another cluster, gives nobody access by accident of a
 * name; repair_members() is the deliberate act.
 *
 * The table is read directly, not through SPI: the reader runs inside row
 * security policies, its own table's included.
 */
#include "postgres.h"
#include "compat.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_collation.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "membership.h"

typedef struct MemberRow
{
	Oid			role;
	bool		pending;		/* not accepted: gives nothing */
	Membership	membership;
} MemberRow;

static MemoryContext cache_context = NULL;	/* NULL: never loaded */
static bool cache_valid = false;
static uint64 cache_changes = 0;	/* counts what made the cache invalid */
static MemberRow *cache_rows;
static int	cache_row_count;
static HTAB *cache_lists;		/* MembershipList by role */
static Oid	members_relid = InvalidOid;

static void membership_load(void);
static void membership_build_list(MembershipList *list);
static bool row_role_is_same(Oid role, const char *name);
static Oid	table_oid(const char *name);
static AttrNumber column_number(Relation rel, const char *name);
static Datum attribute(HeapTuple tuple, AttrNumber number, TupleDesc desc);
static void invalidate_by_relation(Datum arg, Oid relid);
static void invalidate_by_syscache(Datum arg, int cacheid, uint32 hashvalue);

const MembershipList *
membership_of_role(Oid role)
{
	MembershipList *list;
	bool		found;

	/*
	 * a transaction that holds its locks already would not learn of a
	 * revocation
	 */
	AcceptInvalidationMessages();
	if (!cache_valid)
		membership_load();

	list = hash_search(cache_lists, &role, HASH_ENTER, &found);
	if (!found)
	{
		/* an error below must not leave a half-made entry behind */
		list->count = -1;
		list->items = NULL;
	}
	if (list->count < 0)
		membership_build_list(list);
	return list;
}

const Membership *
membership_find(const MembershipList *list, const pg_uuid_t *company)
{
	for (int i = 0; i < list->count; i++)
	{
		if (memcmp(&list->items[i].company, company, UUID_LEN) == 0)
			return &list->items[i];
	}
	return NULL;
}

bool
membership_is_own(Oid role, const pg_uuid_t *company)
{
	(void) membership_of_role(role);	/* has the rows read */
	for (int i = 0; i < cache_row_count; i++)
	{
		if (cache_rows[i].role == role &&
			memcmp(&cache_rows[i].membership.company, company, UUID_LEN) == 0)
			return true;
	}
	return false;
}

/*
 * Reads the table.  Rows whose role is gone or is another one now are left
 * out.
 */
static void
membership_load(void)
{
	static bool callbacks_registered = false;
	Relation	rel;
	SysScanDesc scan;
	HeapTuple	tuple;
	AttrNumber	a_company,
				a_role_oid,
				a_role_name,
				a_level,
				a_asserts,
				a_pending,
				a_system;
	char		system_identifier[32];
	int			allocated = 64;
	uint64		changes = cache_changes;
	HASHCTL		ctl;

	if (!callbacks_registered)
	{
		CacheRegisterRelcacheCallback(invalidate_by_relation, (Datum) 0);
		CacheRegisterSyscacheCallback(AUTHOID, invalidate_by_syscache, (Datum) 0);
		CacheRegisterSyscacheCallback(AUTHMEMROLEMEM, invalidate_by_syscache, (Datum) 0);
		callbacks_registered = true;
	}
	if (cache_context == NULL)
		cache_context = AllocSetContextCreate(CacheMemoryContext, "leasehold memberships",
											  ALLOCSET_DEFAULT_SIZES);
	else
		MemoryContextReset(cache_context);

	members_relid = table_oid("company_members");
	snprintf(system_identifier, sizeof(system_identifier), UINT64_FORMAT,
			 GetSystemIdentifier());

	cache_rows = MemoryContextAlloc(cache_context, allocated * sizeof(MemberRow));
	cache_row_count = 0;
	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(MembershipList);
	ctl.hcxt = cache_context;
	cache_lists = hash_create("leasehold memberships by role", 32, &ctl,
							  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);

	rel = table_open(members_relid, AccessShareLock);
	a_company = column_number(rel, "company_id");
	a_role_oid = column_number(rel, "role_oid");
	a_role_name = column_number(rel, "role_name");
	a_level = column_number(rel, "level");
	a_asserts = column_number(rel, "asserts_actor");
	a_pending = column_number(rel, "pending");
	a_system = column_number(rel, "system_identifier");

	scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		TupleDesc	desc = RelationGetDescr(rel);
		MemberRow	row;
		char	   *system;

		row.role = DatumGetObjectId(attribute(tuple, a_role_oid, desc));
		system = TextDatumGetCString(attribute(tuple, a_system, desc));
		if (strcmp(system, system_identifier) != 0 ||
			!row_role_is_same(row.role,
							  NameStr(*DatumGetName(attribute(tuple, a_role_name, desc)))))
			continue;

		row.pending = DatumGetBool(attribute(tuple, a_pending, desc));
		row.membership.company = *DatumGetUUIDP(attribute(tuple, a_company, desc));
		row.membership.level =
			membership_parse_level(TextDatumGetCString(attribute(tuple, a_level, desc)));
		row.membership.asserts_actor = DatumGetBool(attribute(tuple, a_asserts, desc));

		if (cache_row_count == allocated)
		{
			allocated *= 2;
			cache_rows = repalloc(cache_rows, allocated * sizeof(MemberRow));
		}
		cache_rows[cache_row_count++] = row;
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);

	/* an invalidation that arrived meanwhile wins, as does an error */
	cache_valid = cache_changes == changes;
}

static void
membership_build_list(MembershipList *list)
{
	Membership *items = MemoryContextAlloc(cache_context,
										   Max(cache_row_count, 1) * sizeof(Membership));
	int			count = 0;
	Oid			last_role = InvalidOid;
	bool		last_applies = false;
	Oid			admin_role = get_role_oid("leasehold_admin", true);

	list->admin = OidIsValid(admin_role) && has_privs_of_role(list->role, admin_role);

	for (int i = 0; i < cache_row_count; i++)
	{
		MemberRow  *row = &cache_rows[i];
		int			j;

		if (row->pending)
			continue;
		if (row->role != last_role)
		{
			last_role = row->role;
			last_applies = has_privs_of_role(list->role, row->role);
		}
		if (!last_applies)
			continue;

		for (j = 0; j < count; j++)
		{
			if (memcmp(&items[j].company, &row->membership.company, UUID_LEN) == 0)
				break;
		}
		if (j == count)
			items[count++] = row->membership;
		else
		{
			items[j].level = Max(items[j].level, row->membership.level);
			items[j].asserts_actor |= row->membership.asserts_actor;
		}
	}
	list->items = items;
	list->count = count;
}

static bool
row_role_is_same(Oid role, const char *name)
{
	HeapTuple	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(role));
	bool		same = false;

	if (HeapTupleIsValid(tuple))
	{
		same = strcmp(NameStr(((Form_pg_authid) GETSTRUCT(tuple))->rolname), name) == 0;
		ReleaseSysCache(tuple);
	}
	return same;
}

bool
membership_company_by_key(const char *key, pg_uuid_t *company)
{
	Relation	rel = table_open(table_oid("companies"), AccessShareLock);
	Oid			index = get_relname_relid("companies_key_key", RelationGetNamespace(rel));
	ScanKeyData skey;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		found = false;

	ScanKeyInit(&skey, column_number(rel, "key"), BTEqualStrategyNumber, F_TEXTEQ,
				CStringGetTextDatum(key));
	skey.sk_collation = C_COLLATION_OID;
	scan = systable_beginscan(rel, index, true, NULL, 1, &skey);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		*company = *DatumGetUUIDP(attribute(tuple, column_number(rel, "id"), RelationGetDescr(rel)));
		found = true;
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return found;
}

Datum *
membership_all_companies(int *count)
{
	Relation	rel = table_open(table_oid("companies"), AccessShareLock);
	AttrNumber	a_id = column_number(rel, "id");
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	HeapTuple	tuple;
	int			allocated = 64;
	Datum	   *ids = palloc(allocated * sizeof(Datum));

	ids[0] = UUIDPGetDatum((pg_uuid_t *) palloc0(sizeof(pg_uuid_t)));
	*count = 1;
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		pg_uuid_t  *id = palloc(sizeof(pg_uuid_t));

		*id = *DatumGetUUIDP(attribute(tuple, a_id, RelationGetDescr(rel)));
		if (*count == allocated)
		{
			allocated *= 2;
			ids = repalloc(ids, allocated * sizeof(Datum));
		}
		ids[(*count)++] = UUIDPGetDatum(id);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return ids;
}

MemberLevel
membership_parse_level(const char *text)
{
	if (strcmp(text, "viewer") == 0)
		return LEVEL_VIEWER;
	if (strcmp(text, "user") == 0)
		return LEVEL_USER;
	if (strcmp(text, "manager") == 0)
		return LEVEL_MANAGER;
	return LEVEL_NONE;
}

static Oid
table_oid(const char *name)
{
	Oid			relid = get_relname_relid(name, get_namespace_oid("leasehold", false));

	if (!OidIsValid(relid))
		elog(ERROR, "table leasehold.%s does not exist", name);
	return relid;
}

static AttrNumber
column_number(Relation rel, const char *name)
{
	AttrNumber	attno = get_attnum(RelationGetRelid(rel), name);

	if (attno == InvalidAttrNumber)
		elog(ERROR, "column %s of table %s does not exist", name, RelationGetRelationName(rel));
	return attno;
}

/* The columns that are read here are never null. */
static Datum
attribute(HeapTuple tuple, AttrNumber number, TupleDesc desc)
{
	bool		isnull;
	Datum		value = heap_getattr(tuple, number, desc, &isnull);

	if (isnull)
		elog(ERROR, "unexpected null in column %d", number);
	return value;
}

static void
invalidate_by_relation(Datum arg, Oid relid)
{
	if (relid == InvalidOid || relid == members_relid)
		invalidate_by_syscache(arg, 0, 0);
}

static void
invalidate_by_syscache(Datum arg, int cacheid, uint32 hashvalue)
{
	cache_valid = false;
	cache_changes++;
}
