/*
 * output_text.c
 *		What a command wrote as text that can be shown.
 */
#include "postgres.h"
#include "compat.h"

#include "fmgr.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(leasehold_output_text);

#define REPLACEMENT		"\xEF\xBF\xBD"	/* U+FFFD */

/*
 * output_text(data bytea) returns text
 *		Every byte that is no part of a UTF-8 character, and every NUL, becomes a
 *		U+FFFD.  The database has that encoding: see 00_guard.sql.
 */
Datum
leasehold_output_text(PG_FUNCTION_ARGS)
{
	bytea	   *data = PG_GETARG_BYTEA_PP(0);
	const char *from = VARDATA_ANY(data);
	int			left = VARSIZE_ANY_EXHDR(data);
	StringInfoData out;

	initStringInfo(&out);
	while (left > 0)
	{
		int			valid = pg_encoding_verifymbstr(PG_UTF8, from, left);

		appendBinaryStringInfo(&out, from, valid);
		from += valid;
		left -= valid;
		if (left > 0)
		{
			appendStringInfoString(&out, REPLACEMENT);
			from++;
			left--;
		}
	}
	PG_RETURN_TEXT_P(cstring_to_text_with_len(out.data, out.len));
}
