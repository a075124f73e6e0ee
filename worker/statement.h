/*
 * statement.h
 *		A worker's statements: plans that are kept, and parameters for them.
 *
 * Everything here is called within a transaction that is connected to SPI
 * (transaction_run()).  Datums are allocated in the current memory context, or
 * point to what they were made of.
 */
#ifndef LEASEHOLD_STATEMENT_H
#define LEASEHOLD_STATEMENT_H

#include "executor/spi.h"

#include "queue.h"

/*
 * The plan of a query, which is prepared once and kept for good in *plan, NULL
 * before.  Raises an error if it cannot be prepared; *plan is still NULL then.
 */
extern SPIPlanPtr statement_prepared(SPIPlanPtr *plan, const char *query, int count, const Oid *types);

/* Arrays of the parts of keys, in their order. */
extern Datum statement_companies(const QueueKey *keys, int count);
extern Datum statement_subjects(const QueueKey *keys, int count);
extern Datum statement_slots(const QueueKey *keys, int count);

/* A call's slot in the dispatch table; a constant. */
extern const char *statement_slot(const QueueKey *key);

/* False if it is not that of a call, but of a deadline. */
extern bool statement_parse_slot(const char *name, QueueSlot *slot);

/*
 * After a statement that returned (company, subject, what became of it, …): notes
 * the first letter of that in applied, for the keys' places in the index.
 */
extern void statement_note_applied(char *applied, const int *index, const QueueKey *keys, int count);

/* The shards that fall to this worker. */
extern Datum statement_my_shards(void);

/* NULL becomes a null. */
extern Datum statement_text(const char *text, bool *isnull);
extern Datum statement_texts(char **texts, int count);

#endif							/* LEASEHOLD_STATEMENT_H */
