/*
 * http_date.c
 *		Reads Retry-After, HTTP dates and RFC 3339 times.
 */
#include "http_date.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#define DAY_MS	INT64_C(86400000)

static bool parse_http_date(const char *value, int64_t now_seconds, int64_t *seconds);
static size_t form_length(const char *text, const char *form);
static int	full_year(int two_digits, int64_t now_seconds);
static bool parse_month(const char *name, int *month);
static bool valid_civil(int year, int month, int day, int hour, int minute, int second);
static int64_t civil_to_seconds(int year, int month, int day, int hour, int minute, int second);

bool
http_parse_retry_after(const char *value, int64_t now_seconds, int64_t *milliseconds)
{
	int64_t		seconds = 0;

	while (*value == ' ' || *value == '\t')
		value++;
	if (isdigit((unsigned char) *value))
	{
		while (isdigit((unsigned char) *value))
		{
			if (seconds <= DAY_MS / 1000)
				seconds = seconds * 10 + (*value - '0');
			value++;
		}
		while (*value == ' ' || *value == '\t')
			value++;
		if (*value != '\0')
			return false;
	}
	else
	{
		if (!parse_http_date(value, now_seconds, &seconds))
			return false;
		seconds -= now_seconds;
	}
	if (seconds < 0)
		seconds = 0;
	*milliseconds = seconds > DAY_MS / 1000 ? DAY_MS : seconds * 1000;
	return true;
}

/*
 * Sun, 06 Nov 1994 08:49:37 GMT; Sunday, 06-Nov-94 08:49:37 GMT;
 * Sun Nov  6 08:49:37 1994
 */
static bool
parse_http_date(const char *value, int64_t now_seconds, int64_t *seconds)
{
	const char *rest = value;
	char		name[4];
	int			year,
				month,
				day,
				hour,
				minute,
				second;
	size_t		used;

	while (isalpha((unsigned char) *rest))
		rest++;
	if ((used = form_length(rest, ", 00 aaa 0000 00:00:00 GMT")) > 0)
		sscanf(rest, ", %2d %3s %4d %2d:%2d:%2d", &day, name, &year, &hour, &minute, &second);
	else if ((used = form_length(rest, ", 00-aaa-00 00:00:00 GMT")) > 0)
	{
		sscanf(rest, ", %2d-%3[A-Za-z]-%2d %2d:%2d:%2d", &day, name, &year, &hour, &minute, &second);
		year = full_year(year, now_seconds);
	}
	else if ((used = form_length(rest, " aaa _0 00:00:00 0000")) > 0)
		sscanf(rest, " %3s %2d %2d:%2d:%2d %4d", name, &day, &hour, &minute, &second, &year);
	else
		return false;

	rest += used;
	while (*rest == ' ' || *rest == '\t')
		rest++;
	if (rest[0] != '\0' || !parse_month(name, &month) ||
		!valid_civil(year, month, day, hour, minute, second))
		return false;
	*seconds = civil_to_seconds(year, month, day, hour, minute, second);
	return true;
}

/*
 * The length of a form that a text begins with, or 0: "0" stands for a digit,
 * "a" for a letter, "_" for a digit or a space, all else for itself.  What fits
 * may be given to sscanf(), which by itself takes signs and spaces for numbers.
 */
static size_t
form_length(const char *text, const char *form)
{
	size_t		i;

	for (i = 0; form[i] != '\0'; i++)
	{
		unsigned char c = (unsigned char) text[i];

		if (form[i] == '0' ? !isdigit(c) :
			form[i] == 'a' ? !isalpha(c) :
			form[i] == '_' ? !isdigit(c) && c != ' ' :
			c != (unsigned char) form[i])
			return 0;
	}
	return i;
}

/* The last year with these digits that is not more than 50 years ahead. */
static int
full_year(int two_digits, int64_t now_seconds)
{
	int			latest = (int) (1970 + now_seconds / 31556952) + 50;

	return latest - (latest - two_digits) % 100;
}

static bool
parse_month(const char *name, int *month)
{
	static const char *const names[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
	"Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};

	for (int i = 0; i < 12; i++)
	{
		if (strcmp(names[i], name) == 0)
		{
			*month = i + 1;
			return true;
		}
	}
	return false;
}

bool
rfc3339_parse(const char *text, int64_t *microseconds)
{
	int			year,
				month,
				day,
				hour,
				minute,
				second;
	int64_t		micros = 0;
	int64_t		offset = 0;

	if (form_length(text, "0000-00-00") == 0 || (text[10] != 'T' && text[10] != 't' && text[10] != ' ') ||
		form_length(text + 11, "00:00:00") == 0)
		return false;
	sscanf(text, "%4d-%2d-%2d%*c%2d:%2d:%2d", &year, &month, &day, &hour, &minute, &second);
	if (year < 1970 || !valid_civil(year, month, day, hour, minute, second))
		return false;
	text += 19;
	if (*text == '.')
	{
		int64_t		unit = 100000;

		if (!isdigit((unsigned char) *++text))
			return false;
		for (; isdigit((unsigned char) *text); text++)
		{
			micros += (*text - '0') * unit;
			unit /= 10;
		}
	}
	if (*text == 'Z' || *text == 'z')
		text++;
	else if (*text == '+' || *text == '-')
	{
		int			sign = *text == '+' ? 1 : -1;
		int			zone_hour,
					zone_minute;

		if (form_length(text + 1, "00:00") == 0)
			return false;
		sscanf(text + 1, "%2d:%2d", &zone_hour, &zone_minute);
		if (zone_hour > 23 || zone_minute > 59)
			return false;
		offset = sign * (zone_hour * 3600 + zone_minute * 60);
		text += 6;
	}
	else
		return false;
	if (*text != '\0')
		return false;
	*microseconds = (civil_to_seconds(year, month, day, hour, minute, second) - offset) * 1000000 + micros;
	return true;
}

static bool
valid_civil(int year, int month, int day, int hour, int minute, int second)
{
	static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
	int			leap = month == 2 && ((year % 4 == 0 && year % 100 != 0) || year % 400 == 0);

	return month >= 1 && month <= 12 &&
		day >= 1 && day <= days[month - 1] + leap &&
		hour >= 0 && hour <= 23 && minute >= 0 && minute <= 59 && second >= 0 && second <= 60;
}

/* Seconds since 1970 of a valid date in UTC; counts days from March on. */
static int64_t
civil_to_seconds(int year, int month, int day, int hour, int minute, int second)
{
	int64_t		y = month <= 2 ? year - 1 : year;
	int64_t		m = month <= 2 ? month + 9 : month - 3;
	int64_t		days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1 - 719468;

	return days * 86400 + hour * 3600 + minute * 60 + second;
}
