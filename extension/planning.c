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
 */
#include "postgres.h"
#include "compat.h"

#include "catalog/namespace.h"
#include "miscadmin.h"
#include "nodes/pathnodes.h"
#include "optimizer/plancat.h"
#include "utils/lsyscache.h"

#include "caller.h"
#include "planning.h"

#define LARGE_TUPLES	100000.0
#define LARGE_PAGES		2500

static const char *const growing_tables[] = {
	"agents", "calls", "environment_configs", "environments", "execution_workspaces",
	"idempotency_keys", "issues", "lease_metadata", "leases", "projects",
	"provider_resources", "routines", "run_tokens", "runs",
};

static get_relation_info_hook_type prev_get_relation_info = NULL;
static bool all_statements_are_own = false;

static void assume_large(PlannerInfo *root, Oid relid, bool inhparent, RelOptInfo *rel);
static bool is_growing_table(Oid relid);

void
planning_init(void)
{
	prev_get_relation_info = get_relation_info_hook;
	get_relation_info_hook = assume_large;
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
