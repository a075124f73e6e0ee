/*
 * output_lines.c
 *		What a command writes, line by line, fit to be shown on a terminal.
 *
 * A line ends with a line feed, a carriage return, or both.  A lone return is
 * what progress bars are drawn with: each drawing is shown as a line.
 */
#include "output_lines.h"

#include <string.h>

static void end_line(OutputLines *lines, OutputLineSink sink, void *arg);
static void break_line(OutputLines *lines, bool within_character, OutputLineSink sink, void *arg);
static bool is_continuation(char c);

size_t
output_lines_add(OutputLines *lines, const char *data, size_t length, OutputLineSink sink, void *arg)
{
	for (size_t i = 0; i < length; i++)
	{
		char		c = data[i];
		bool		after_return = lines->after_return;

		lines->after_return = c == '\r';
		if (c == '\n' && after_return)
			continue;
		if (c == '\n' || c == '\r')
		{
			end_line(lines, sink, arg);
			return i + 1;
		}
		if (lines->length == OUTPUT_LINE_MAX)
		{
			break_line(lines, is_continuation(c), sink, arg);
			lines->line[lines->length++] = c;
			return i + 1;
		}
		lines->line[lines->length++] = c;
	}
	return length;
}

void
output_lines_end(OutputLines *lines, OutputLineSink sink, void *arg)
{
	if (lines->length > 0)
		end_line(lines, sink, arg);
}

static void
end_line(OutputLines *lines, OutputLineSink sink, void *arg)
{
	size_t		length = lines->length;

	lines->length = 0;
	sink(lines->line, length, arg);
}

/* The character that is to be continued goes to the next line. */
static void
break_line(OutputLines *lines, bool within_character, OutputLineSink sink, void *arg)
{
	size_t		end = lines->length;
	size_t		rest;
	char		begun[4];

	if (within_character)
	{
		while (is_continuation(lines->line[end - 1]))
			end--;
		end--;
	}
	rest = lines->length - end;
	memcpy(begun, lines->line + end, rest);
	lines->length = end;
	end_line(lines, sink, arg);
	memcpy(lines->line, begun, rest);
	lines->length = rest;
}

static bool
is_continuation(char c)
{
	return ((unsigned char) c & 0xC0) == 0x80;
}

size_t
output_visible(const char *text, size_t length, char *to)
{
	static const char digits[] = "0123456789abcdef";
	char	   *begin = to;

	for (size_t i = 0; i < length; i++)
	{
		unsigned char c = (unsigned char) text[i];

		/* the second half of the control characters, as UTF-8 has them */
		if (c == 0xC2 && i + 1 < length && (unsigned char) text[i + 1] < 0xA0)
			c = (unsigned char) text[++i];
		else if (c == '\t' || (c >= 0x20 && c != 0x7F))
		{
			*to++ = (char) c;
			continue;
		}
		*to++ = '\\';
		*to++ = 'x';
		*to++ = digits[c >> 4];
		*to++ = digits[c & 15];
	}
	return (size_t) (to - begin);
}
