/*
 * sanitize.c
 *		Prepares a server that is not built with sanitizers for a library that
 *		is; loaded before everything else, with REPORTS as the path of reports.
 *
 * The options are here, not in the environment: one of the runtimes reads its
 * options at its first report, when the server has long written its processes'
 * titles over the environment.  Leaks are not looked for, as a backend leaves
 * its memory to the kernel.
 */
#include <stdlib.h>

const char *
__asan_default_options(void)
{
	return "verify_asan_link_order=0:detect_leaks=0:detect_stack_use_after_return=0:log_path=" REPORTS;
}

const char *
__ubsan_default_options(void)
{
	return "print_stacktrace=1:log_path=" REPORTS;
}

/*
 * The first allocation begins the sanitizer, which asks for a translation.  If
 * it were left to some library's bindtextdomain(), that would break the lock
 * that is held there, and the server would wait for it for ever.
 */
static void __attribute__((constructor))
begin(void)
{
	free(malloc(1));
}
