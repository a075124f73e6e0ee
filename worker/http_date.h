/*
 * http_date.h
 *		Times as they come over the wire.  Plain C: no server headers.
 */
#ifndef LEASEHOLD_HTTP_DATE_H
#define LEASEHOLD_HTTP_DATE_H

#include <stdbool.h>
#include <stdint.h>

/*
 * Retry-After (RFC 9110, section 10.2.3): a number of seconds, or an HTTP date
 * (IMF-fixdate, or the two obsolete forms).  Gives milliseconds from now, 0 for
 * the past, at most a day; false if it is neither.
 */
extern bool http_parse_retry_after(const char *value, int64_t now_seconds, int64_t *milliseconds);

/*
 * A time in the form of RFC 3339 ("2026-01-31T10:00:00.5Z", "…+02:00").  Gives
 * microseconds since 1970; false if it is anything else, or before 1970: the
 * zero value of a client's library is no time.
 */
extern bool rfc3339_parse(const char *text, int64_t *microseconds);

#endif							/* LEASEHOLD_HTTP_DATE_H */
