/*
 * statement.c
 *		A worker's statements: plans that are kept, and parameters for them.
 */
#include "postgres.h"
#include "compat.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/uuid.h"

#include "settings.h"
#include "shards.h"
#include "statement.h"
#include "worker.h"

static const char *const slots[] = {
	[SLOT_OP] = "op",
	[SLOT_SWEEP] = "sweep",
	[SLOT_COMMAND] = "command",
	[SLOT_CANCEL] = "cancel",
};

static Datum uuids(const pg_uuid_t *ids, int count);

SPIPlanPtr
statement_prepared(SPIPlanPtr *plan, const char *query, int count, const Oid *types)
{
	if (*plan == NULL)
	{
		SPIPlanPtr	new_plan = SPI_prepare(query, count, (Oid *) types);

		if (new_plan == NULL || SPI_keepplan(new_plan) != 0)
			elog(ERROR, "could not prepare: %s", query);
		*plan = new_plan;
	}
	return *plan;
}

Datum
statement_companies(const QueueKey *keys, int count)
{
	pg_uuid_t  *ids = palloc(count * sizeof(pg_uuid_t));

	for (int i = 0; i < count; i++)
		ids[i] = keys[i].company;
	return uuids(ids, count);
}

Datum
statement_subjects(const QueueKey *keys, int count)
{
	pg_uuid_t  *ids = palloc(count * sizeof(pg_uuid_t));

	for (int i = 0; i < count; i++)
		ids[i] = keys[i].subject;
	return uuids(ids, count);
}

static Datum
uuids(const pg_uuid_t *ids, int count)
{
	Datum	   *datums = palloc(count * sizeof(Datum));

	for (int i = 0; i < count; i++)
		datums[i] = UUIDPGetDatum(&ids[i]);
	return PointerGetDatum(construct_array(datums, count, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR));
}

Datum
statement_slots(const QueueKey *keys, int count)
{
	char	  **names = palloc(count * sizeof(char *));

	for (int i = 0; i < count; i++)
		names[i] = (char *) statement_slot(&keys[i]);
	return statement_texts(names, count);
}

const char *
statement_slot(const QueueKey *key)
{
	return slots[key->slot];
}

bool
statement_parse_slot(const char *name, QueueSlot *slot)
{
	for (int i = 0; i < (int) lengthof(slots); i++)
	{
		if (strcmp(slots[i], name) == 0)
		{
			*slot = i;
			return true;
		}
	}
	return false;
}

void
statement_note_applied(char *applied, const int *index, const QueueKey *keys, int count)
{
	for (uint64 r = 0; r < SPI_processed; r++)
	{
		HeapTuple	row = SPI_tuptable->vals[r];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;
		pg_uuid_t  *company = DatumGetUUIDP(SPI_getbinval(row, desc, 1, &isnull));
		pg_uuid_t  *subject = DatumGetUUIDP(SPI_getbinval(row, desc, 2, &isnull));
		char	   *what = SPI_getvalue(row, desc, 3);

		for (int i = 0; i < count; i++)
		{
			/* rows come back in the order of the arrays, as a rule */
			int			at = (int) ((r + i) % count);

			if (memcmp(&keys[at].subject, subject, UUID_LEN) == 0 &&
				memcmp(&keys[at].company, company, UUID_LEN) == 0)
			{
				applied[index[at]] = what[0];
				break;
			}
		}
	}
}

Datum
statement_my_shards(void)
{
	Datum		shards[SHARDS];
	int			count = 0;

	for (int s = 0; s < SHARDS; s++)
	{
		if (s % setting_workers == worker.part)
			shards[count++] = Int16GetDatum(s);
	}
	return PointerGetDatum(construct_array(shards, count, INT2OID, 2, true, TYPALIGN_SHORT));
}

Datum
statement_text(const char *text, bool *isnull)
{
	*isnull = text == NULL;
	return text ? CStringGetTextDatum(text) : (Datum) 0;
}

Datum
statement_texts(char **texts, int count)
{
	Datum	   *datums = palloc(Max(count, 1) * sizeof(Datum));
	bool	   *nulls = palloc(Max(count, 1) * sizeof(bool));
	int			dims[1] = {count};
	int			lower[1] = {1};

	if (count == 0)
		return PointerGetDatum(construct_empty_array(TEXTOID));
	for (int i = 0; i < count; i++)
		datums[i] = statement_text(texts[i], &nulls[i]);
	return PointerGetDatum(construct_md_array(datums, nulls, 1, dims, lower, TEXTOID, -1, false, TYPALIGN_INT));
}
