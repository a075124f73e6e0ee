/*
 * row_insert.h
 *		Inserting single rows without a statement.
 *
 * A request writes three rows.  For a statement with one row the server spends
 * several times as long on building and taking down its executor as on the
 * rows; this does what an INSERT of given values does, and no more: defaults,
 * triggers, NOT NULL and CHECK constraints, partitions, indexes, foreign keys.
 *
 * Not done is what an INSERT does for its user: privileges and row security are
 * not looked at (our functions have answered for the company), and values are
 * taken as they are, so whoever gives a value for a domain vouches for it.
 */
#ifndef LEASEHOLD_ROW_INSERT_H
#define LEASEHOLD_ROW_INSERT_H

#include "nodes/execnodes.h"

/*
 * A table and the columns that get values; the others get their defaults.  One
 * static variable per use; what was found out about the table is kept in it.
 */
typedef struct RowTarget
{
	const char *schema;
	const char *table;
	int			column_count;
	const char *const *columns;
	/* its own matters */
	struct RowPlan *plan;
	struct RowTarget *next;
	bool		known;
} RowTarget;

/*
 * Rows that are written together: their AFTER triggers and foreign keys run at
 * the end, as with one statement.
 *
 * row_insert() takes one value per column of the target.  A row that may not be
 * written raises the error that an INSERT would.  The caller holds no locks on
 * the tables, and is in a transaction with an active snapshot; what was written
 * is visible to the next command.
 */
extern EState *row_insert_begin(void);
extern void row_insert(EState *estate, RowTarget *target, const NullableDatum *values);
extern void row_insert_end(EState *estate);

#endif							/* LEASEHOLD_ROW_INSERT_H */
