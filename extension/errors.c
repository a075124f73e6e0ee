/*
 * errors.c
 *		Raising the errors of errors.h, from C and from SQL.
 */
#include "postgres.h"
#include "compat.h"

#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/tuplestore.h"

#include "errors.h"

typedef struct ErrorRow
{
	const char *code;
	const char *sqlstate;
} ErrorRow;

#define ERROR_ROW(name, code, sqlstate) {code, sqlstate},
static const ErrorRow error_rows[] = {LEASEHOLD_ERRORS(ERROR_ROW)};
#undef ERROR_ROW

PG_FUNCTION_INFO_V1(leasehold_refuse);
PG_FUNCTION_INFO_V1(leasehold_error_codes);

static int	error_sqlstate(const ErrorRow *row);

int
leasehold_error(LeaseholdError error)
{
	const ErrorRow *row = &error_rows[error];

	errcode(error_sqlstate(row));
	errdetail_internal("{\"code\": \"%s\"}", row->code);
	return 0;
}

/*
 * refuse(code text, message text, hint text, detail jsonb)
 *		Raises the error named by code, for the functions written in SQL.
 *
 * The detail's members are added to the JSON in DETAIL.
 */
Datum
leasehold_refuse(PG_FUNCTION_ARGS)
{
	char	   *code = text_to_cstring(PG_GETARG_TEXT_PP(0));
	char	   *message = text_to_cstring(PG_GETARG_TEXT_PP(1));
	char	   *hint = PG_ARGISNULL(2) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(2));
	char	   *members = NULL;

	if (!PG_ARGISNULL(3))
	{
		Jsonb	   *detail = PG_GETARG_JSONB_P(3);

		if (JB_ROOT_IS_OBJECT(detail) && JB_ROOT_COUNT(detail) > 0)
		{
			members = JsonbToCString(NULL, &detail->root, VARSIZE(detail));
			members[0] = ',';	/* continue the object opened below */
		}
	}

	for (int i = 0; i < LHE_COUNT; i++)
	{
		if (strcmp(error_rows[i].code, code) == 0)
			ereport(ERROR,
					(errcode(error_sqlstate(&error_rows[i])),
					 errmsg_internal("%s", message),
					 errdetail_internal("{\"code\": \"%s\"%s", code,
										members ? members : "}"),
					 hint ? errhint("%s", hint) : 0));
	}
	elog(ERROR, "unknown error code \"%s\"", code);
	PG_RETURN_VOID();
}

/*
 * error_codes() returns setof (code text, sqlstate text)
 */
Datum
leasehold_error_codes(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < LHE_COUNT; i++)
	{
		Datum		values[2];
		bool		nulls[2] = {false, false};

		values[0] = CStringGetTextDatum(error_rows[i].code);
		values[1] = CStringGetTextDatum(error_rows[i].sqlstate);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

static int
error_sqlstate(const ErrorRow *row)
{
	const char *s = row->sqlstate;

	return MAKE_SQLSTATE(s[0], s[1], s[2], s[3], s[4]);
}
