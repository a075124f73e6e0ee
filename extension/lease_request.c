/*
 * lease_request.c
 *		What a request for a lease leaves behind: the lease, its call and its
 *		event, written together; and what must be known of the environment.
 *
 * Requests are the most frequent thing that clients do here, and what they ask
 * of the database is the same from one to the next.  So the three rows are
 * inserted without a statement, and what is known of an environment is kept in
 * the process until one of the tables changes that say it.  Their statement
 * triggers send the invalidation; as with catalogs, a committed change is seen
 * by whoever begins after it.
 */
#include "postgres.h"
#include "compat.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgrprotos.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/uuid.h"

#include "audit.h"
#include "errors.h"
#include "row_insert.h"
#include "service.h"
#include "shards.h"

PG_FUNCTION_INFO_V1(leasehold_write_lease_request);
PG_FUNCTION_INFO_V1(leasehold_environment_facts);

#define MAX_FACTS		1000	/* environments; then all are forgotten */
#define MAX_KEY_SIZE	64

/* in the order of the arguments of write_lease_request() */
static const char *const lease_columns[] = {
	"company_id", "id", "environment_id", "config_version", "provider", "provider_version", "adapter_type", "policy",
	"agent_id", "issue_id", "run_id", "execution_workspace_id", "ttl", "idle_timeout", "fail_on_limit", "acquire_by",
};
static const char *const call_columns[] = {
	"company_id", "subject_id", "slot", "operation", "provider", "shard",
};
enum
{
	ARG_COMPANY = 0, ARG_ID = 1, ARG_PROVIDER = 4, ARG_AGENT = 8, ARG_ISSUE = 9, ARG_RUN = 10,
	ARG_DETAILS = lengthof(lease_columns)
};

static RowTarget leases = {"leasehold", "leases", lengthof(lease_columns), lease_columns};
static RowTarget calls = {"leasehold_internal", "calls", lengthof(call_columns), call_columns};

/* the tables that the view environment_facts reads */
static const char *const fact_tables[][2] = {
	{"leasehold_internal", "environments"},
	{"leasehold_internal", "environment_configs"},
	{"leasehold", "companies"},
	{"leasehold", "providers"},
	{"leasehold", "plugins"},
	{"leasehold", "provider_access"},
};

typedef struct FactsKey
{
	pg_uuid_t	company;
	char		environment[MAX_KEY_SIZE];
} FactsKey;

typedef struct Facts
{
	FactsKey	key;
	Datum		row;			/* of the type environment_facts */
} Facts;

static HTAB *facts_cache = NULL;
static MemoryContext facts_context = NULL;
static bool facts_valid = false;
static uint64 facts_changes = 0;
static Oid	fact_relids[lengthof(fact_tables)];

static void refuse_or_rethrow(MemoryContext context) pg_attribute_noreturn();
static NullableDatum text_value(const char *text);
static NullableDatum short_value(int16 number);
static bool facts_key(FactsKey *key, pg_uuid_t *company, text * environment);
static void facts_reset(void);
static Datum facts_read(Datum company, Datum environment, MemoryContext context, bool *isnull);
static void facts_invalidate(Datum arg, Oid relid);

/*
 * write_lease_request(...): see lease_columns; the last argument is the event's
 * details.
 */
Datum
leasehold_write_lease_request(PG_FUNCTION_ARGS)
{
	const NullableDatum *args = fcinfo->args;
	MemoryContext context = CurrentMemoryContext;
	EState	   *estate = row_insert_begin();
	uint32		hash = DatumGetUInt32(DirectFunctionCall1(uuid_hash, args[ARG_COMPANY].value));
	NullableDatum call[] = {
		args[ARG_COMPANY], args[ARG_ID], text_value("op"), text_value("acquire"), args[ARG_PROVIDER],
		short_value(hash % SHARDS),
	};
	AuditEvent	event = {
		.company_id = args[ARG_COMPANY],
		.action = text_value("environment.lease_requested"),
		.entity_type = text_value("environment_lease"),
		.entity_id = text_value(DatumGetCString(DirectFunctionCall1(uuid_out, args[ARG_ID].value))),
		.details = args[ARG_DETAILS],
		.agent_id = args[ARG_AGENT],
		.issue_id = args[ARG_ISSUE],
		.run_id = args[ARG_RUN],
	};

	PG_TRY();
	{
		row_insert(estate, &leases, args);
		row_insert(estate, &calls, call);
		audit_insert(estate, &event);
		row_insert_end(estate);
	}
	PG_CATCH();
	{
		refuse_or_rethrow(context);
	}
	PG_END_TRY();
	service_warn_if_unserved();
	PG_RETURN_DATUM(args[ARG_ID].value);
}

/*
 * Somebody else was faster, with the lease's id or the environment's deletion:
 * that is known only now, and is told as it would have been before.
 */
static void
refuse_or_rethrow(MemoryContext context)
{
	ErrorData  *error;

	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	if (error->sqlerrcode == ERRCODE_UNIQUE_VIOLATION && error->constraint_name != NULL &&
		strcmp(error->constraint_name, "leases_pkey") == 0)
	{
		FlushErrorState();
		ereport(ERROR,
				(leasehold_error(LHE_ALREADY_EXISTS),
				 errmsg("a lease of this id already exists")));
	}
	if (error->sqlerrcode == ERRCODE_FOREIGN_KEY_VIOLATION && error->constraint_name != NULL &&
		strcmp(error->constraint_name, "leases_environment") == 0)
	{
		FlushErrorState();
		ereport(ERROR,
				(leasehold_error(LHE_ENVIRONMENT_NOT_FOUND),
				 errmsg("the environment was deleted meanwhile")));
	}
	PG_RE_THROW();
}

static NullableDatum
text_value(const char *text)
{
	NullableDatum value = {.value = CStringGetTextDatum(text)};

	return value;
}

static NullableDatum
short_value(int16 number)
{
	NullableDatum value = {.value = Int16GetDatum(number)};

	return value;
}

/*
 * environment_facts(company_id uuid, environment text) returns the row of the
 * view of that name, or NULL if there is no such environment.
 */
Datum
leasehold_environment_facts(PG_FUNCTION_ARGS)
{
	FactsKey	key;
	Facts	   *facts;
	Datum		row;
	bool		isnull;
	uint64		changes;

	AcceptInvalidationMessages();
	if (!facts_key(&key, PG_GETARG_UUID_P(0), PG_GETARG_TEXT_PP(1)))
		PG_RETURN_NULL();
	if (!facts_valid || hash_get_num_entries(facts_cache) >= MAX_FACTS)
		facts_reset();
	facts = hash_search(facts_cache, &key, HASH_FIND, NULL);
	if (facts != NULL)
		PG_RETURN_DATUM(facts->row);

	changes = facts_changes;
	row = facts_read(PG_GETARG_DATUM(0), PG_GETARG_DATUM(1), CurrentMemoryContext, &isnull);
	if (isnull)
		PG_RETURN_NULL();

	/* what an old snapshot saw, or what has changed meanwhile, is not kept */
	if (changes == facts_changes && facts_valid && !IsolationUsesXactSnapshot())
	{
		MemoryContext old = MemoryContextSwitchTo(facts_context);
		Datum		copy = datumCopy(row, false, -1);

		MemoryContextSwitchTo(old);
		facts = hash_search(facts_cache, &key, HASH_ENTER, NULL);
		facts->row = copy;
	}
	PG_RETURN_DATUM(row);
}

/* False if the text is too long for a key, so that there is no such environment. */
static bool
facts_key(FactsKey *key, pg_uuid_t *company, text * environment)
{
	if (VARSIZE_ANY_EXHDR(environment) >= MAX_KEY_SIZE)
		return false;
	memset(key, 0, sizeof(FactsKey));
	key->company = *company;
	memcpy(key->environment, VARDATA_ANY(environment), VARSIZE_ANY_EXHDR(environment));
	return true;
}

static void
facts_reset(void)
{
	HASHCTL		ctl = {.keysize = sizeof(FactsKey),.entrysize = sizeof(Facts)};

	if (facts_context == NULL)
	{
		facts_context = AllocSetContextCreate(CacheMemoryContext, "leasehold environment facts",
											  ALLOCSET_DEFAULT_SIZES);
		CacheRegisterRelcacheCallback(facts_invalidate, (Datum) 0);
	}
	MemoryContextReset(facts_context);
	facts_cache = NULL;
	facts_valid = false;
	for (size_t i = 0; i < lengthof(fact_tables); i++)
		fact_relids[i] = get_relname_relid(fact_tables[i][1], get_namespace_oid(fact_tables[i][0], false));

	ctl.hcxt = facts_context;
	facts_cache = hash_create("leasehold environment facts", 64, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	facts_valid = true;
}

static Datum
facts_read(Datum company, Datum environment, MemoryContext context, bool *isnull)
{
	Oid			types[] = {UUIDOID, TEXTOID};
	Datum		values[] = {company, environment};
	Datum		row = (Datum) 0;

	SPI_connect();
	if (SPI_execute_with_args("SELECT f FROM leasehold_internal.environment_facts AS f"
							  " WHERE f.company_id = $1 AND f.key = $2",
							  2, types, values, NULL, false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read the environment");
	*isnull = SPI_processed == 0;
	if (!*isnull)
	{
		MemoryContext old = MemoryContextSwitchTo(context);

		row = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, isnull);
		row = datumCopy(row, false, -1);
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
	return row;
}

static void
facts_invalidate(Datum arg, Oid relid)
{
	for (size_t i = 0; i < lengthof(fact_tables); i++)
	{
		if (relid == InvalidOid || relid == fact_relids[i])
		{
			facts_valid = false;
			facts_changes++;
			return;
		}
	}
}
