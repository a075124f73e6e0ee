#!/bin/sh
# Takes leases through their lives for a long time and looks whether the worker
# grows or a lease is lost: `make soak`.  test/soak/soak.py tells how.
#
# SOAK_MINUTES is how long (10).  Two thirds of it are judged: the first third
# is for warming up.
set -eu
TOP=$(cd "$(dirname "$0")/.." && pwd)
. "$TOP/dev/lib.sh"
choose_work_dir
MINUTES=${SOAK_MINUTES:-10}
case $MINUTES in
'' | *[!0-9]* | 0*) die "SOAK_MINUTES is a number of minutes, not $MINUTES" ;;
esac

# shellcheck disable=SC2086 # a list of words
need_packages $BUILD_PACKAGES python3 python3-psycopg2

say "building in $WORK/src"
install_private

say "soaking for $MINUTES minutes as the user $(server_user)"
as_server_user env PYTHONDONTWRITEBYTECODE=1 /usr/bin/python3 src/test/soak/soak.py \
    --bin "$BIN" --directory "$WORK" --seconds $((MINUTES * 60))
