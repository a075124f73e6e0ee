/*
 * planning.c
 *		Has our own statements planned for tables that are large.
 *
 * Our statements find rows by key and are planned once per session, often while
 * the tables are empty or, as the dispatch table, nearly so.  For the planner a
 * full scan of an empty table is as good as any other way, and it keeps that
 * plan when the table has a hundred thousand rows a minute later.  So within
 * our functions, and in workers, the tables that grow are never taken for
 * smaller than they may become.  Statements of users are not touched.
 *
 * Nor does the planner learn from what it finds there how ids are spread: one
 * company may have nearly all rows, although there are none today, so that a
 * company narrows nothing down, and any other id nearly everything.
 */
#include "postgres.h"
#include "compat.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_statistic.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "nodes/pathnodes.h"
#include "optimizer/plancat.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/selfuncs.h"
#include "utils/uuid.h"

#include "caller.h"
#include "planning.h"

#define LARGE_TUPLES	100000.0
#define LARGE_PAGES		2500
/* how many different ids there are, as in pg_statistic.stadistinct */
#define DISTINCT_COMPANIES	1.0
#define DISTINCT_SUBJECTS	(-1.0)	/* as many as rows */
#define DISTINCT_OTHERS		(-0.1)

static const char *const growing_tables[] = {
	"agents", "calls", "environment_configs", "environments", "execution_workspaces",
	"idempotency_keys", "issues", "lease_metadata", "leases", "projects",
	"provider_resources", "routines", "run_tokens", "runs",
};

static get_relation_info_hook_type prev_get_relation_info = NULL;
static get_relation_stats_hook_type prev_get_relation_stats = NULL;
static bool all_statements_are_own = false;

static void assume_large(PlannerInfo *root, Oid relid, bool inhparent, RelOptInfo *rel);
static bool assume_spread(PlannerInfo *root, RangeTblEntry *rte, AttrNumber attnum, VariableStatData *vardata);
static float4 distinct_ids(const char *column);
static HeapTuple statistics_of_ids(Oid relid, AttrNumber attnum, float4 distinct);
static bool is_growing_table(Oid relid);

void
planning_init(void)
{
	prev_get_relation_info = get_relation_info_hook;
	get_relation_info_hook = assume_large;
	prev_get_relation_stats = get_relation_stats_hook;
	get_relation_stats_hook = assume_spread;
}

void
planning_assume_own_statements(void)
{
	all_statements_are_own = true;
}

static void
assume_large(PlannerInfo *root, Oid relid, bool inhparent, RelOptInfo *rel)
{
	ListCell   *lc;

	if (prev_get_relation_info)
		prev_get_relation_info(root, relid, inhparent, rel);

	if (!(all_statements_are_own || caller_is_within_gate()) ||
		rel->tuples >= LARGE_TUPLES || !is_growing_table(relid))
		return;

	rel->tuples = LARGE_TUPLES;
	rel->pages = Max(rel->pages, LARGE_PAGES);
	foreach(lc, rel->indexlist)
	{
		IndexOptInfo *index = lfirst_node(IndexOptInfo, lc);

		index->tuples = LARGE_TUPLES;
		index->pages = Max(index->pages, LARGE_PAGES / 4);
		index->tree_height = Max(index->tree_height, 2);
	}
}

static bool
assume_spread(PlannerInfo *root, RangeTblEntry *rte, AttrNumber attnum, VariableStatData *vardata)
{
	if ((all_statements_are_own || caller_is_within_gate()) && attnum > 0 &&
		rte->rtekind == RTE_RELATION && is_growing_table(rte->relid) &&
		get_atttype(rte->relid, attnum) == UUIDOID)
	{
		vardata->statsTuple = statistics_of_ids(rte->relid, attnum,
												distinct_ids(get_attname(rte->relid, attnum, false)));
		vardata->freefunc = heap_freetuple;
		vardata->acl_ok = true;
		return true;
	}
	return prev_get_relation_stats && prev_get_relation_stats(root, rte, attnum, vardata);
}

static float4
distinct_ids(const char *column)
{
	if (strcmp(column, "company_id") == 0)
		return DISTINCT_COMPANIES;
	if (strcmp(column, "id") == 0 || strcmp(column, "subject_id") == 0 || strcmp(column, "lease_id") == 0)
		return DISTINCT_SUBJECTS;
	return DISTINCT_OTHERS;
}

/* A row of pg_statistic that says no more than how many different ids there are. */
static HeapTuple
statistics_of_ids(Oid relid, AttrNumber attnum, float4 distinct)
{
	Relation	rel = table_open(StatisticRelationId, AccessShareLock);
	Datum		values[Natts_pg_statistic] = {0};
	bool		nulls[Natts_pg_statistic] = {false};
	HeapTuple	tuple;

	for (int slot = 0; slot < STATISTIC_NUM_SLOTS; slot++)
	{
		nulls[Anum_pg_statistic_stanumbers1 - 1 + slot] = true;
		nulls[Anum_pg_statistic_stavalues1 - 1 + slot] = true;
	}
	values[Anum_pg_statistic_starelid - 1] = ObjectIdGetDatum(relid);
	values[Anum_pg_statistic_staattnum - 1] = Int16GetDatum(attnum);
	values[Anum_pg_statistic_stawidth - 1] = Int32GetDatum(UUID_LEN);
	values[Anum_pg_statistic_stadistinct - 1] = Float4GetDatum(distinct);
	tuple = heap_form_tuple(RelationGetDescr(rel), values, nulls);
	table_close(rel, AccessShareLock);
	return tuple;
}

static bool
is_growing_table(Oid relid)
{
	Oid			schema = get_rel_namespace(relid);
	char	   *name;

	if (schema != get_namespace_oid("leasehold", true) &&
		schema != get_namespace_oid("leasehold_internal", true))
		return false;
	name = get_rel_name(relid);
	for (int i = 0; name != NULL && i < (int) lengthof(growing_tables); i++)
	{
		if (strcmp(name, growing_tables[i]) == 0)
			return true;
	}
	return false;
}
