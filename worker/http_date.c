/*
 * http_date.c
 *		Reads Retry-After, HTTP dates and RFC 3339 times.
 */
#include "http_date.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#define DAY_MS	INT64_C(86400000)

static bool parse_http_date(const char *value, int64_t *seconds);
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
		if (!parse_http_date(value, &seconds))
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
parse_http_date(const char *value, int64_t *seconds)
{
	char		name[16];
	char		zone[4];
	int			year,
				month,
				day,
				hour,
				minute,
				second;
	int			used = 0;

	if (sscanf(value, "%*3[A-Za-z], %2d %3[A-Za-z] %4d %2d:%2d:%2d %3[A-Z]%n",
			   &day, name, &year, &hour, &minute, &second, zone, &used) == 7 && used > 0)
	{
		if (strcmp(zone, "GMT") != 0)
			return false;
	}
	else if ((used = 0,
			  sscanf(value, "%*9[A-Za-z], %2d-%3[A-Za-z]-%2d %2d:%2d:%2d %3[A-Z]%n",
					 &day, name, &year, &hour, &minute, &second, zone, &used)) == 7 && used > 0)
	{
		if (strcmp(zone, "GMT") != 0)
			return false;
		year += year < 70 ? 2000 : 1900;
	}
	else if ((used = 0,
			  sscanf(value, "%*3[A-Za-z] %3[A-Za-z] %2d %2d:%2d:%2d %4d%n",
					 name, &day, &hour, &minute, &second, &year, &used)) == 6 && used > 0)
		;
	else
		return false;

	if (value[used] != '\0' || !parse_month(name, &month) ||
		!valid_civil(year, month, day, hour, minute, second))
		return false;
	*seconds = civil_to_seconds(year, month, day, hour, minute, second);
	return true;
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
	int			used = 0;
	int64_t		micros = 0;
	int64_t		offset = 0;

	if (sscanf(text, "%4d-%2d-%2d%*1[Tt ]%2d:%2d:%2d%n",
			   &year, &month, &day, &hour, &minute, &second, &used) != 6 || used != 19 ||
		!valid_civil(year, month, day, hour, minute, second))
		return false;
	text += used;
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

		used = 0;
		if (sscanf(text + 1, "%2d:%2d%n", &zone_hour, &zone_minute, &used) != 2 || used != 5 ||
			zone_hour < 0 || zone_hour > 23 || zone_minute < 0 || zone_minute > 59)
			return false;
		offset = sign * (zone_hour * 3600 + zone_minute * 60);
		text += 1 + used;
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

	return year >= 1970 && year <= 9999 && month >= 1 && month <= 12 &&
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
