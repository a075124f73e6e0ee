/*
 * output_lines.h
 *		What a command writes, line by line, fit to be shown on a terminal.
 *
 * Without headers of the server.  The input is valid UTF-8 (see output_text.c).
 */
#ifndef LEASEHOLD_OUTPUT_LINES_H
#define LEASEHOLD_OUTPUT_LINES_H

#include <stdbool.h>
#include <stddef.h>

#define OUTPUT_LINE_MAX		8192	/* bytes; longer lines are broken */

/* One stream: the line that has not ended yet.  All zero at first. */
typedef struct OutputLines
{
	size_t		length;
	bool		after_return;	/* a line feed that comes next belongs to the end before */
	char		line[OUTPUT_LINE_MAX];
} OutputLines;

typedef void (*OutputLineSink) (const char *line, size_t length, void *arg);

/*
 * Takes data up to the end of a line, for which it calls sink, or all of it if
 * none ends there; returns how much it took.
 */
extern size_t output_lines_add(OutputLines *lines, const char *data, size_t length, OutputLineSink sink, void *arg);

/* The stream has ended: the last line, too, if it has no end of its own. */
extern void output_lines_end(OutputLines *lines, OutputLineSink sink, void *arg);

/*
 * Writes text to "to" so that a terminal shows it and obeys none of it: control
 * characters, but tabs, become \xHH.  "to" has room for four times the length, and
 * gets no zero at its end.  Returns how much it was.
 */
extern size_t output_visible(const char *text, size_t length, char *to);

#endif							/* LEASEHOLD_OUTPUT_LINES_H */
