/*
 * row_insert.c
 *		Inserting single rows without a statement: see row_insert.h.
 *
 * The steps are those of the server's own writers of single rows, as the ones
 * that apply logical replication.  What depends only on a table's definition
 * (numbers of columns, planned defaults, names of partitions' columns) is kept
 * in the process until the table changes.
 */
#include "postgres.h"
#include "compat.h"

#include "access/table.h"
#include "access/tableam.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "optimizer/optimizer.h"
#include "partitioning/partbounds.h"
#include "partitioning/partdesc.h"
#include "rewrite/rewriteHandler.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/partcache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "row_insert.h"

/* What is known of a target's table, and of the partition written to last. */
typedef struct RowPlan
{
	MemoryContext context;		/* holds all of this */
	bool		valid;
	Oid			relid;
	int			natts;			/* of the table */
	AttrNumber *column_numbers; /* of the target's columns */
	Expr	  **defaults;		/* by column of the table; NULL for none */
	Oid			leaf;			/* relid, or a partition */
	AttrNumber *leaf_numbers;	/* by column of the table; 0 if it was dropped */
} RowPlan;

static RowTarget *targets = NULL;	/* those that have been used */

static RowPlan *plan_of_target(RowTarget *target);
static RowPlan *plan_make(RowTarget *target);
static void plan_leaf(RowPlan *plan, Relation rel, Relation leaf);
static void fill_row(EState *estate, RowTarget *target, const NullableDatum *values, Datum *row, bool *nulls);
static Relation open_leaf(Relation rel, const Datum *row, const bool *nulls);
static Oid	leaf_of_row(Relation rel, const Datum *row, const bool *nulls);
static TupleTableSlot *make_slot(EState *estate, RowPlan *plan, Relation leaf, const Datum *row, const bool *nulls);
static ResultRelInfo *open_result(EState *estate, Relation rel);
static void insert_slot(EState *estate, ResultRelInfo *result, TupleTableSlot *slot);
static void definition_changed(Datum arg, Oid relid);

EState *
row_insert_begin(void)
{
	EState	   *estate;

	PreventCommandIfReadOnly("INSERT");
	estate = CreateExecutorState();
	estate->es_output_cid = GetCurrentCommandId(true);
	AfterTriggerBeginQuery();
	return estate;
}

void
row_insert(EState *estate, RowTarget *target, const NullableDatum *values)
{
	MemoryContext old = MemoryContextSwitchTo(estate->es_query_cxt);
	Relation	rel = table_open(plan_of_target(target)->relid, RowExclusiveLock);
	ResultRelInfo *root = open_result(estate, rel);
	ResultRelInfo *result = root;
	RowPlan    *plan;
	Datum	   *row;
	bool	   *nulls;

	ExecBSInsertTriggers(estate, root);

	/* not before: the lock, or a trigger, may have brought a change */
	plan = plan_of_target(target);
	row = palloc(plan->natts * sizeof(Datum));
	nulls = palloc(plan->natts * sizeof(bool));
	fill_row(estate, target, values, row, nulls);
	if (rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE)
		result = open_result(estate, open_leaf(rel, row, nulls));
	if (plan->leaf != RelationGetRelid(result->ri_RelationDesc))
		plan_leaf(plan, rel, result->ri_RelationDesc);

	/* the plan is not used from here on: another trigger may be next */
	insert_slot(estate, result, make_slot(estate, plan, result->ri_RelationDesc, row, nulls));

	ExecASInsertTriggers(estate, root, NULL);
	MemoryContextSwitchTo(old);
}

void
row_insert_end(EState *estate)
{
	ListCell   *cell;

	AfterTriggerEndQuery(estate);
	ExecResetTupleTable(estate->es_tupleTable, false);
	ExecCloseResultRelations(estate);
	foreach(cell, estate->es_opened_result_relations)
		table_close(((ResultRelInfo *) lfirst(cell))->ri_RelationDesc, NoLock);
	FreeExecutorState(estate);
}

/*
 * The target's plan; made, or made again if the table has changed.
 */
static RowPlan *
plan_of_target(RowTarget *target)
{
	static bool callback_registered = false;

	if (target->plan != NULL && target->plan->valid)
		return target->plan;

	if (!callback_registered)
	{
		CacheRegisterRelcacheCallback(definition_changed, (Datum) 0);
		callback_registered = true;
	}
	if (!target->known)
	{
		target->known = true;
		target->next = targets;
		targets = target;
	}
	if (target->plan != NULL)
	{
		MemoryContext context = target->plan->context;

		target->plan = NULL;
		MemoryContextDelete(context);
	}
	target->plan = plan_make(target);
	return target->plan;
}

static RowPlan *
plan_make(RowTarget *target)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "leasehold row plan",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	RowPlan    *plan = palloc0(sizeof(RowPlan));
	Oid			relid = get_relname_relid(target->table, get_namespace_oid(target->schema, false));
	Relation	rel = table_open(relid, RowExclusiveLock);

	plan->context = context;
	plan->relid = relid;
	plan->natts = RelationGetNumberOfAttributes(rel);

	plan->column_numbers = palloc(target->column_count * sizeof(AttrNumber));
	for (int i = 0; i < target->column_count; i++)
	{
		plan->column_numbers[i] = get_attnum(relid, target->columns[i]);
		if (plan->column_numbers[i] == InvalidAttrNumber)
			elog(ERROR, "column %s of table %s does not exist", target->columns[i], target->table);
	}

	plan->defaults = palloc0(plan->natts * sizeof(Expr *));
	for (int i = 0; i < plan->natts; i++)
	{
		if (!TupleDescAttr(RelationGetDescr(rel), i)->attisdropped)
			plan->defaults[i] = expression_planner((Expr *) build_column_default(rel, i + 1));
	}
	plan->leaf_numbers = palloc(plan->natts * sizeof(AttrNumber));
	plan_leaf(plan, rel, rel);

	/* the lock keeps the definition as it is until here */
	plan->valid = true;
	table_close(rel, NoLock);
	MemoryContextSwitchTo(old);
	MemoryContextSetParent(context, CacheMemoryContext);
	return plan;
}

/*
 * Notes which column of the partition, or of the table itself, is which: one
 * that was made, or restored, after others were dropped numbers them otherwise.
 */
static void
plan_leaf(RowPlan *plan, Relation rel, Relation leaf)
{
	for (int i = 0; i < plan->natts; i++)
	{
		Form_pg_attribute column = TupleDescAttr(RelationGetDescr(rel), i);

		plan->leaf_numbers[i] = column->attisdropped ? InvalidAttrNumber :
			get_attnum(RelationGetRelid(leaf), NameStr(column->attname));
	}
	plan->leaf = RelationGetRelid(leaf);
}

static void
fill_row(EState *estate, RowTarget *target, const NullableDatum *values, Datum *row, bool *nulls)
{
	RowPlan    *plan = target->plan;
	bool	   *given = palloc0(plan->natts * sizeof(bool));

	for (int i = 0; i < target->column_count; i++)
	{
		int			column = plan->column_numbers[i] - 1;

		row[column] = values[i].value;
		nulls[column] = values[i].isnull;
		given[column] = true;
	}
	for (int i = 0; i < plan->natts; i++)
	{
		Expr	   *expr = plan->defaults[i];

		if (given[i])
			continue;
		if (expr == NULL)
			nulls[i] = true;
		else if (IsA(expr, Const))
		{
			row[i] = ((Const *) expr)->constvalue;
			nulls[i] = ((Const *) expr)->constisnull;
		}
		else
			row[i] = ExecEvalExpr(ExecInitExpr(expr, NULL), GetPerTupleExprContext(estate), &nulls[i]);
	}
}

/*
 * Opens the partition that the row belongs to.  The lock on it may have had to
 * wait for one that makes another partition.
 */
static Relation
open_leaf(Relation rel, const Datum *row, const bool *nulls)
{
	for (;;)
	{
		Oid			relid = leaf_of_row(rel, row, nulls);
		Relation	leaf = table_open(relid, RowExclusiveLock);

		if (leaf_of_row(rel, row, nulls) == relid)
			return leaf;
		table_close(leaf, NoLock);
	}
}

static Oid
leaf_of_row(Relation rel, const Datum *row, const bool *nulls)
{
	PartitionKey key = RelationGetPartitionKey(rel);
	PartitionDesc desc = RelationGetPartitionDesc(rel, true);
	int			column = key->partattrs[0] - 1;
	int			partition = -1;

	if (key->strategy != PARTITION_STRATEGY_RANGE || key->partnatts != 1 || column < 0)
		elog(ERROR, "table %s is not partitioned by ranges of one column", RelationGetRelationName(rel));
	if (desc->nparts > 0 && !nulls[column])
	{
		Datum		value = row[column];
		bool		equal;
		int			bound = partition_range_datum_bsearch(key->partsupfunc, key->partcollation,
														  desc->boundinfo, 1, &value, &equal);

		partition = desc->boundinfo->indexes[bound + 1];
	}
	if (partition < 0 && desc->nparts > 0)
		partition = desc->boundinfo->default_index;
	if (partition < 0 || !desc->is_leaf[partition])
		ereport(ERROR,
				(errcode(ERRCODE_CHECK_VIOLATION),
				 errmsg("no partition of relation \"%s\" found for row", RelationGetRelationName(rel))));
	return desc->oids[partition];
}

static TupleTableSlot *
make_slot(EState *estate, RowPlan *plan, Relation leaf, const Datum *row, const bool *nulls)
{
	TupleTableSlot *slot = table_slot_create(leaf, &estate->es_tupleTable);

	ExecClearTuple(slot);
	memset(slot->tts_isnull, true, slot->tts_tupleDescriptor->natts * sizeof(bool));
	for (int i = 0; i < plan->natts; i++)
	{
		int			column = plan->leaf_numbers[i] - 1;

		if (column < 0)
			continue;
		slot->tts_values[column] = row[i];
		slot->tts_isnull[column] = nulls[i];
	}
	return ExecStoreVirtualTuple(slot);
}

static ResultRelInfo *
open_result(EState *estate, Relation rel)
{
	ResultRelInfo *result = makeNode(ResultRelInfo);

	InitResultRelInfo(result, rel, 0, NULL, 0);
	estate->es_opened_result_relations = lappend(estate->es_opened_result_relations, result);
	return result;
}

static void
insert_slot(EState *estate, ResultRelInfo *result, TupleTableSlot *slot)
{
	Relation	rel = result->ri_RelationDesc;
	List	   *recheck = NIL;

	ExecOpenIndices(result, false);
	if (result->ri_TrigDesc != NULL && result->ri_TrigDesc->trig_insert_before_row &&
		!ExecBRInsertTriggers(estate, result, slot))
		return;
	if (rel->rd_att->constr != NULL)
		ExecConstraints(result, slot, estate);
	table_tuple_insert(rel, slot, estate->es_output_cid, 0, NULL);
	if (result->ri_NumIndices > 0)
		recheck = ExecInsertIndexTuples(result, slot, estate, false, false, NULL, NIL);
	ExecARInsertTriggers(estate, result, slot, recheck, NULL);
	list_free(recheck);
}

static void
definition_changed(Datum arg, Oid relid)
{
	for (RowTarget *target = targets; target != NULL; target = target->next)
	{
		RowPlan    *plan = target->plan;

		if (plan != NULL && (relid == InvalidOid || relid == plan->relid || relid == plan->leaf))
			plan->valid = false;
	}
}
