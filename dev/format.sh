#!/bin/sh
# Formats the C code in place, as `make lint` wants it.
set -eu
TOP=$(cd "$(dirname "$0")/.." && pwd)
. "$TOP/dev/lib.sh"
choose_work_dir
# shellcheck disable=SC2086 # a list of words
need_packages $BUILD_PACKAGES python3 pg-bsd-indent
install_private
cd "$TOP"
PYTHONDONTWRITEBYTECODE=1 python3 dev/checks/indent.py "$WORK/src/leasehold.so" \
    extension/*.[ch] worker/*.[ch] worker/providers/*.[ch]
