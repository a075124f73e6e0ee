/*
 * plugin_url.c
 *		The check of plugins' URLs, for SQL.
 */
#include "postgres.h"
#include "compat.h"

#include "utils/builtins.h"

#include "address_policy.h"

PG_FUNCTION_INFO_V1(leasehold_url_problem);

/*
 * url_problem(url text) returns text: what is wrong with it, or NULL.
 */
Datum
leasehold_url_problem(PG_FUNCTION_ARGS)
{
	const char *problem = policy_url_problem(text_to_cstring(PG_GETARG_TEXT_PP(0)));

	if (problem == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(problem));
}
