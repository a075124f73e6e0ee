/*
 * tap.h
 *		What the programs in this directory print: TAP.
 */
#ifndef LEASEHOLD_TAP_H
#define LEASEHOLD_TAP_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>

static int	tap_count;
static int	tap_failures;

/* One result, with its name as for printf. */
__attribute__((format(printf, 2, 3)))
static void
ok(bool passed, const char *format,...)
{
	va_list		arguments;

	printf("%s %d - ", passed ? "ok" : "not ok", ++tap_count);
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf("\n");
	tap_failures += !passed;
}

/* The last line; main() returns what it returns. */
static int
tap_done(void)
{
	printf("1..%d\n", tap_count);
	return tap_failures > 0;
}

#endif							/* LEASEHOLD_TAP_H */
