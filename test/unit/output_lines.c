/*
 * Tests of extension/output_lines.c: lines end where they should, and nothing
 * that a terminal would obey is shown.
 */
#include <stdlib.h>

#include "../../extension/output_lines.c"

#include "tap.h"

static char shown[100000];
static OutputLines lines;

static void
is_text(const char *got, const char *wanted, const char *name)
{
	bool		same = strcmp(got, wanted) == 0;

	ok(same, "%s", name);
	if (!same)
		printf("# got    %.200s\n# wanted %.200s\n", got, wanted);
}

static void
sink(const char *line, size_t length, void *arg)
{
	size_t		at = strlen(shown);

	(void) arg;
	memcpy(shown + at, line, length);
	strcpy(shown + at + length, "|");
}

static void
add(const char *data)
{
	while (*data != '\0')
		data += output_lines_add(&lines, data, strlen(data), sink, NULL);
}

/* What is shown of these pieces, with "|" at each line's end. */
static const char *
of(const char *a, const char *b, const char *c)
{
	memset(&lines, 0, sizeof(lines));
	shown[0] = '\0';
	add(a);
	add(b);
	add(c);
	return shown;
}

static const char *
ended(const char *a)
{
	of(a, "", "");
	output_lines_end(&lines, sink, NULL);
	return shown;
}

static const char *
visible(const char *text)
{
	size_t		length = strlen(text);
	/* exactly the room that is promised to be enough: a sanitizer watches */
	char	   *to = malloc(length * 4);
	size_t		used = output_visible(text, length, to);

	memcpy(shown, to, used);
	shown[used] = '\0';
	free(to);
	return shown;
}

static void
test_ends(void)
{
	is_text(of("a\nb\n", "", ""), "a|b|", "a line feed ends a line");
	is_text(of("a", "b", "\n"), "ab|", "a line is held until its end");
	is_text(of("a", "", ""), "", "an unfinished one is not shown");
	is_text(ended("a"), "a|", "but when the stream ends");
	is_text(ended("a\n"), "a|", "and nothing more if it was finished");
	is_text(of("\n\n", "", ""), "||", "lines may be empty");
	is_text(of("a\r\nb\r\n", "", ""), "a|b|", "a return and a line feed are one end");
	is_text(of("a\r", "\nb", "\n"), "a|b|", "also in two pieces");
	is_text(of("1%\r2%\r", "3%\r", ""), "1%|2%|3%|", "a lone return is an end, at once");
	is_text(of("a\r", "b\n", "\n"), "a|b||", "a line feed that follows something else counts");
	is_text(of("a\r\r\n", "", ""), "a||", "two returns are two ends");
}

static void
test_long_lines(void)
{
	char		text[OUTPUT_LINE_MAX + 10];
	char		wanted[OUTPUT_LINE_MAX + 20];

	memset(text, 'x', sizeof(text));
	strcpy(text + OUTPUT_LINE_MAX, "\n");
	memset(wanted, 'x', sizeof(wanted));
	strcpy(wanted + OUTPUT_LINE_MAX, "|");
	is_text(of(text, "", ""), wanted, "a line of the largest length is whole");

	memset(text, 'x', sizeof(text));
	strcpy(text + OUTPUT_LINE_MAX, "yz\n");
	strcpy(wanted + OUTPUT_LINE_MAX, "|yz|");
	is_text(of(text, "", ""), wanted, "a longer one is broken");

	/* U+1D11E, four bytes, of which two fit */
	memcpy(text + OUTPUT_LINE_MAX - 2, "\xF0\x9D\x84\x9Ey\n", 7);
	strcpy(wanted + OUTPUT_LINE_MAX - 2, "|\xF0\x9D\x84\x9Ey|");
	is_text(of(text, "", ""), wanted, "not within a character");
	memcpy(text + OUTPUT_LINE_MAX - 4, "\xF0\x9D\x84\x9Ey\n", 7);
	strcpy(wanted + OUTPUT_LINE_MAX - 4, "\xF0\x9D\x84\x9E|y|");
	is_text(of(text, "", ""), wanted, "one that just fits stays");
}

static void
test_visible(void)
{
	is_text(visible("plain text, \"quoted\" \\ and all"), "plain text, \"quoted\" \\ and all", "text stays");
	is_text(visible("a\tb"), "a\tb", "a tab stays");
	is_text(visible("\x1b[31mred\x07"), "\\x1b[31mred\\x07", "escape sequences do nothing");
	is_text(visible("\x01\x08\x0b\x0c\x1f\x7f"), "\\x01\\x08\\x0b\\x0c\\x1f\\x7f", "nor do other control characters");
	is_text(visible("\xC2\x9B" "31m \xC2\x80 \xC2\x9F"), "\\x9b31m \\x80 \\x9f", "nor those of the second half");
	is_text(visible("\xC2\xA0 \xC3\x9B \xE2\x82\xAC"), "\xC2\xA0 \xC3\x9B \xE2\x82\xAC", "other characters stay");
}

int
main(void)
{
	test_ends();
	test_long_lines();
	test_visible();
	return tap_done();
}
