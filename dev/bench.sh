#!/bin/sh
# Measures the extension against its yardsticks, on this machine, in one run,
# and prints the table: `make bench`.  docs/performance.md tells how.
#
# T chooses some of the measurements, as in T="calls cycle" (all: half an hour):
#
#   calls snapshot dead cycle latency start deadlines requests events stop
#
# QUICK=1 measures little and once, to see that everything runs.  RECORD=1 puts
# the table into docs/performance.md; it takes all measurements, in full.
#
# Everything runs on 127.0.0.1 with a server of its own and is stopped at the
# end.  For figures that can be compared, nothing else should run.
set -eu
TOP=$(cd "$(dirname "$0")/.." && pwd)
. "$TOP/dev/lib.sh"
choose_work_dir
PAGE=$TOP/docs/performance.md
[ -z "${RECORD:-}" ] || [ -z "${T:-}${QUICK:-}" ] || die "RECORD takes all measurements, in full"

# shellcheck disable=SC2086 # a list of words
need_packages $BUILD_PACKAGES postgresql-contrib nginx-light bubblewrap python3 python3-psycopg2

say "building in $WORK/src"
install_private

say "measuring as the user $(server_user)${T:+: $T}"
# shellcheck disable=SC2086 # a list of words
as_server_user env PYTHONDONTWRITEBYTECODE=1 PATH="$PATH:/usr/sbin" /usr/bin/python3 src/test/bench \
    --bin "$BIN" --directory "$WORK" --port "${LEASEHOLD_PORT:-54817}" --output "$WORK/bench.md" ${QUICK:+--quick} ${T:-}

if [ -n "${RECORD:-}" ]; then
    PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$TOP/test/bench /usr/bin/python3 -c '
import sys, report
report.record(sys.argv[1], open(sys.argv[2], encoding="utf8").read())' "$PAGE" "$WORK/bench.md"
    say "recorded in docs/performance.md"
fi
