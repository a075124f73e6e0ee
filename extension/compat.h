/*
 * compat.h
 *		The only file that looks at the server's version.
 *
 * Include it right after postgres.h.
 */
#ifndef LEASEHOLD_COMPAT_H
#define LEASEHOLD_COMPAT_H

#include "fmgr.h"

#if PG_VERSION_NUM < 150000 || PG_VERSION_NUM >= 160000
#error "Leasehold is built and tested with PostgreSQL 15 only"
#endif

/*
 * The library hides its symbols; what the server looks up by name must not
 * be.  PostgreSQL 16 defines PGDLLEXPORT this way by itself.
 */
#if PG_VERSION_NUM < 160000
#undef PGDLLEXPORT
#define PGDLLEXPORT __attribute__((visibility("default")))
#undef PG_FUNCTION_INFO_V1
#define PG_FUNCTION_INFO_V1(funcname) \
extern PGDLLEXPORT Datum funcname(PG_FUNCTION_ARGS); \
extern PGDLLEXPORT const Pg_finfo_record * CppConcat(pg_finfo_,funcname)(void); \
const Pg_finfo_record * \
CppConcat(pg_finfo_,funcname) (void) \
{ \
	static const Pg_finfo_record my_finfo = { 1 }; \
	return &my_finfo; \
} \
extern int no_such_variable
#endif

/* libpq/libpq.h would need the headers of every library the server was built with */
struct WaitEventSet;
extern bool pq_check_connection(void);
extern PGDLLIMPORT struct WaitEventSet *FeBeWaitSet;
#define FeBeWaitSetSocketPos 0
#define FeBeWaitSetNEvents 3

#endif							/* LEASEHOLD_COMPAT_H */
