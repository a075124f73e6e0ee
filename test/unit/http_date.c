/*
 * http_date.c
 *		Times from the wire, against RFC 9110 (5.6.7, 10.2.3) and RFC 3339 (5.6).
 */
#include "../../worker/http_date.c"

#include "tap.h"

#define DAY		INT64_C(86400000)
#define NOW		INT64_C(784111777)	/* Sun, 06 Nov 1994 08:49:37 GMT */
#define NOW2026	INT64_C(1767225600) /* 2026-01-01T00:00:00Z */

static void
waits(const char *value, int64_t now, int64_t expected)
{
	int64_t		found = -1;
	bool		read = http_parse_retry_after(value, now, &found);

	ok(read && found == expected, "Retry-After \"%s\" is %lld ms", value, (long long) expected);
}

static void
no_wait(const char *value)
{
	int64_t		found;

	ok(!http_parse_retry_after(value, NOW, &found), "Retry-After \"%s\" is refused", value);
}

static void
is_time(const char *text, int64_t expected)
{
	int64_t		found = -1;
	bool		read = rfc3339_parse(text, &found);

	ok(read && found == expected, "\"%s\" is %lld", text, (long long) expected);
}

static void
no_time(const char *text)
{
	int64_t		found;

	ok(!rfc3339_parse(text, &found), "\"%s\" is no time", text);
}

static void
test_seconds(void)
{
	waits("0", NOW, 0);
	waits("1", NOW, 1000);
	waits("120", NOW, 120000);
	waits("007", NOW, 7000);
	waits(" \t5 \t", NOW, 5000);
	waits("86399", NOW, DAY - 1000);
	waits("86400", NOW, DAY);
	waits("86401", NOW, DAY);
	waits("2147483648", NOW, DAY);
	waits("9223372036854775808", NOW, DAY);
	waits("18446744073709551616", NOW, DAY);
	waits("99999999999999999999999999999999999999999999999999", NOW, DAY);

	no_wait("");
	no_wait(" ");
	no_wait("-1");
	no_wait("+1");
	no_wait("1.5");
	no_wait("1e3");
	no_wait("0x10");
	no_wait("5s");
	no_wait("1 2");
	no_wait("1, 2");
	no_wait("\xd9\xa1");
	no_wait("soon");
}

static void
test_http_dates(void)
{
	/* the three forms of one moment */
	waits("Sun, 06 Nov 1994 08:49:37 GMT", NOW - 10, 10000);
	waits("Sunday, 06-Nov-94 08:49:37 GMT", NOW - 10, 10000);
	waits("Sun Nov  6 08:49:37 1994", NOW - 10, 10000);
	waits("Wed Nov 16 08:49:37 1994", NOW, DAY);
	waits(" Sun, 06 Nov 1994 08:49:37 GMT", NOW - 10, 10000);
	waits("Sun, 06 Nov 1994 08:49:37 GMT ", NOW - 10, 10000);

	/* the past, now, and far away */
	waits("Sun, 06 Nov 1994 08:49:37 GMT", NOW, 0);
	waits("Sun, 06 Nov 1994 08:49:37 GMT", NOW + 1, 0);
	waits("Thu, 01 Jan 1970 00:00:00 GMT", NOW, 0);
	waits("Wed, 31 Dec 1969 23:59:59 GMT", NOW, 0);
	waits("Mon, 01 Jan 0001 00:00:00 GMT", NOW, 0);
	waits("Mon, 07 Nov 1994 08:49:36 GMT", NOW, DAY - 1000);
	waits("Mon, 07 Nov 1994 08:49:38 GMT", NOW, DAY);
	waits("Fri, 31 Dec 9999 23:59:59 GMT", NOW, DAY);

	/* leap days and leap seconds */
	waits("Thu, 29 Feb 2024 00:00:05 GMT", 1709164800, 5000);
	waits("Tue, 29 Feb 2000 00:00:05 GMT", 951782400, 5000);
	waits("Sat, 31 Dec 2016 23:59:60 GMT", 1483228790, 10000);
	no_wait("Wed, 29 Feb 2023 00:00:00 GMT");
	no_wait("Thu, 29 Feb 1900 00:00:00 GMT");

	/* two digits of a year: more than 50 years ahead is the past */
	waits("Thursday, 01-Jan-26 00:00:07 GMT", NOW2026, 7000);
	waits("Friday, 31-Dec-75 00:00:00 GMT", NOW2026, DAY);
	waits("Wednesday, 01-Jan-70 00:00:00 GMT", NOW2026, DAY);
	waits("Saturday, 01-Jan-77 00:00:00 GMT", NOW2026, 0);
	waits("Friday, 31-Dec-99 23:59:59 GMT", NOW2026, 0);
	waits("Friday, 01-Jan-00 00:00:05 GMT", INT64_C(4102444800), 5000); /* 2100 */

	/* not quite dates */
	no_wait("Sun, 06 Nov 1994 08:49:37");
	no_wait("Sun, 06 Nov 1994 08:49:37 UTC");
	no_wait("Sun, 06 Nov 1994 08:49:37 +0000");
	no_wait("Sun, 06 Nov 1994 08:49:37 GMT+1");
	no_wait("Sun, 06 Nov 1994 08:49:37 GMT, 5");
	no_wait("Sun, 6 Nov 1994 08:49:37 GMT");
	no_wait("Sun, +6 Nov 1994 08:49:37 GMT");
	no_wait("Sun, 06 Nov 1994 8:49:37 GMT");
	no_wait("Sun, 06 Nov 1994 08:49 GMT");
	no_wait("Sun, 06 Nov 94 08:49:37 GMT");
	no_wait("Sun, 06 Nov 19940 08:49:37 GMT");
	no_wait("Sun, 06 Nov -994 08:49:37 GMT");
	no_wait("06 Nov 1994 08:49:37 GMT");
	no_wait("Sun, 06 nov 1994 08:49:37 GMT");
	no_wait("Sun, 06 Nox 1994 08:49:37 GMT");
	no_wait("Sun, 00 Nov 1994 08:49:37 GMT");
	no_wait("Sun, 31 Nov 1994 08:49:37 GMT");
	no_wait("Sun, 32 Dec 1994 08:49:37 GMT");
	no_wait("Sun, 06 Nov 1994 24:00:00 GMT");
	no_wait("Sun, 06 Nov 1994 08:60:00 GMT");
	no_wait("Sun, 06 Nov 1994 08:49:61 GMT");
	no_wait("Sunday, 06-Nov-1994 08:49:37 GMT");
	no_wait("Sun Nov  6 08:49:37 1994 GMT");
	no_wait("Sun Nov 06 08:49:37");
	no_wait("2026-01-01T00:00:00Z");
	no_wait("Sun,");
	no_wait("Sun, %n%n%s");
}

static void
test_rfc3339(void)
{
	is_time("1970-01-01T00:00:00Z", 0);
	is_time("1985-04-12T23:20:50.52Z", INT64_C(482196050520000));
	is_time("1996-12-19T16:39:57-08:00", INT64_C(851042397000000));
	is_time("1990-12-31T23:59:60Z", INT64_C(662688000000000));
	is_time("1990-12-31T15:59:60-08:00", INT64_C(662688000000000));
	is_time("2026-01-01T02:30:00+02:30", NOW2026 * 1000000);
	is_time("2026-01-01T00:00:00-00:00", NOW2026 * 1000000);
	is_time("2026-01-01t00:00:00z", NOW2026 * 1000000);
	is_time("2026-01-01 00:00:00Z", NOW2026 * 1000000);
	is_time("2024-02-29T00:00:00Z", INT64_C(1709164800000000));
	is_time("9999-12-31T23:59:59.999999Z", INT64_C(253402300799999999));
	is_time("9999-12-31T23:59:59-23:59", INT64_C(253402387139000000));
	is_time("2026-01-01T00:00:00.1Z", NOW2026 * 1000000 + 100000);
	is_time("2026-01-01T00:00:00.000001Z", NOW2026 * 1000000 + 1);
	is_time("2026-01-01T00:00:00.0000009999999999999999999999999999Z", NOW2026 * 1000000);
	is_time("2026-01-01T00:00:00.123456999Z", NOW2026 * 1000000 + 123456);

	no_time("");
	no_time("now");
	no_time("0");
	no_time("1767225600");
	no_time("2026-01-01");
	no_time("2026-01-01T00:00Z");
	no_time("2026-01-01T00:00:00");
	no_time("2026-01-01T00:00:00 Z");
	no_time(" 2026-01-01T00:00:00Z");
	no_time("2026-01-01T00:00:00Z ");
	no_time("2026-01-01T00:00:00Zulu");
	no_time("2026-01-01T00:00:00.Z");
	no_time("2026-01-01T00:00:00,5Z");
	no_time("2026-01-01T00:00:00.-5Z");
	no_time("2026-01-01T00:00:00+0200");
	no_time("2026-01-01T00:00:00+02");
	no_time("2026-01-01T00:00:00+2:00");
	no_time("2026-01-01T00:00:00+ 2:00");
	no_time("2026-01-01T00:00:00+-2:00");
	no_time("2026-01-01T00:00:00+24:00");
	no_time("2026-01-01T00:00:00+00:60");
	no_time("2026-01-01T00:00:00+00:00:00");
	no_time("2026-1-1T00:00:00Z");
	no_time("2026-+1-01T00:00:00Z");
	no_time("2026- 1-01T00:00:00Z");
	no_time("2026-01--1T00:00:00Z");
	no_time("2026-01-01T 0:00:00Z");
	no_time("2026-01-01T00:+0:00Z");
	no_time("2026-01-01X00:00:00Z");
	no_time("2026-00-01T00:00:00Z");
	no_time("2026-13-01T00:00:00Z");
	no_time("2026-01-00T00:00:00Z");
	no_time("2026-01-32T00:00:00Z");
	no_time("2026-04-31T00:00:00Z");
	no_time("2026-02-29T00:00:00Z");
	no_time("2100-02-29T00:00:00Z");
	no_time("2026-01-01T24:00:00Z");
	no_time("2026-01-01T00:60:00Z");
	no_time("2026-01-01T00:00:61Z");
	no_time("+2026-01-01T00:00:00Z");
	no_time("-2026-01-01T00:00:00Z");
	no_time("12026-01-01T00:00:00Z");
	no_time("20260101T000000Z");
	no_time("2026-01-01T00:00:00\xd9\xa1Z");
}

/* The zero value of a common client library must not end a lease at once. */
static void
test_before_1970(void)
{
	no_time("0000-00-00T00:00:00Z");
	no_time("0001-01-01T00:00:00Z");
	no_time("1937-01-01T12:00:27.87+00:20");
	no_time("1969-12-31T23:59:59Z");
}

int
main(void)
{
	test_seconds();
	test_http_dates();
	test_rfc3339();
	test_before_1970();
	return tap_done();
}
