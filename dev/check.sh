#!/bin/sh
# Builds the extension and runs its tests: `make check`.
#
# T chooses some of them: names of suites, and files or patterns of files, as in
# T="regress t/003* sql/leases.sql".  The suites:
#
#   unit       test/unit/*.c           C files that are tested without a server
#   doubles    test/doubles/           the stand-ins for providers are what they should be
#   regress    sql/, expected/         pg_regress
#   isolation  test/isolation/         races, with pg_isolation_regress
#   pgtap      test/pgtap/*.sql
#   tap        test/t/*.pl             crashes, restarts, dumps, upgrades
#   chaos      test/chaos/chaos.py     leases while worker and server are killed
#   soak       test/soak/soak.py       the worker does not grow; a short form of `make soak`
#   docs       README.md, docs/*.md    their examples, and whether they say what the catalog says
#   lint       all sources             warnings, static analysis, format, exported symbols
#
# With SANITIZE=address,undefined everything that runs a server runs with a
# library that is built so, and any report is a failure.
#
# What the tests leave for a look is in WORK/check: results, diffs, server logs.
set -eu
TOP=$(cd "$(dirname "$0")/.." && pwd)
. "$TOP/dev/lib.sh"
choose_work_dir
[ -z "${SANITIZE:-}" ] || variant sanitize

# shellcheck disable=SC2086 # lists of words
need_packages $BUILD_PACKAGES python3 python3-psycopg2 libipc-run-perl bubblewrap pgbouncer postgresql-$PG_MAJOR-pgtap libtap-parser-sourcehandler-pgtap-perl
if [ -z "${SANITIZE:-}" ]; then need_packages clang-tidy cppcheck pg-bsd-indent shellcheck; fi

say "building in $WORK/src"
install_private

say "testing as the user $(server_user), two jobs at a time${T:+: $T}"
cd "$WORK"
become_server_user env PYTHONDONTWRITEBYTECODE=1 SANITIZE="${SANITIZE:-}" python3 "$WORK/src/dev/checks" "$WORK" "${T:-}"
