#!/bin/sh
# Starts, stops or enters a private server with the extension, in the work
# directory: what `make demo` and people who work on Leasehold use.
#
# usage: private-server.sh start|stop|psql [ARGUMENT...]
#
# start builds first, and restarts a running server only if the library changed.
set -eu
TOP=$(cd "$(dirname "$0")/.." && pwd)
. "$TOP/dev/lib.sh"
choose_work_dir
DATA=$WORK/data
PORT=${LEASEHOLD_PORT:-54815}

control() { as_server_user "$BIN/pg_ctl" -D "$DATA" -s "$@"; }
running() { [ -x "$BIN/pg_ctl" ] && control status >/dev/null 2>&1; }

# make_cluster: with what a server that serves must have, and no more.
make_cluster() {
    say "making a database cluster in $DATA"
    as_server_user sh -eu -c '
        rm -rf data.new
        "$1/initdb" -D data.new -U postgres -A trust -E UTF8 --locale=C.UTF-8 >initdb.log 2>&1 ||
            { cat initdb.log >&2; exit 1; }
        cat >>data.new/postgresql.conf
        mkdir -p -m 700 tokens
        mv data.new data' sh "$BIN" <<CONF || die "initdb failed"
listen_addresses = ''
unix_socket_directories = '$SOCKET_DIR'
shared_preload_libraries = 'leasehold'
leasehold.token_directory = '$WORK/tokens'
CONF
}

start() {
    # shellcheck disable=SC2086 # a list of words
    need_packages $BUILD_PACKAGES
    install_private
    as_server_user sh -c 'mkdir -m 700 "$1" 2>/dev/null || [ -O "$1" ]' sh "$SOCKET_DIR" ||
        die "$SOCKET_DIR is somebody else's"
    [ -d "$DATA" ] || make_cluster
    library=$(cksum <"$WORK/pg$SYSTEM_PG/lib/leasehold.so")
    if running; then
        [ "$(as_server_user cat library-in-use 2>/dev/null)" != "$library" ] || return 0
        say "restarting the server, as the library has changed"
        control -m fast -w stop
    fi
    control -l "$WORK/server.log" -o "-p $PORT" -w start >/dev/null ||
        { as_server_user tail -20 server.log >&2; die "the server did not start"; }
    printf '%s\n' "$library" | as_server_user sh -c 'cat >library-in-use'
}

case "${1:-}" in
start) start ;;
stop)
    if running; then control -m fast -w stop; fi
    [ "$SOCKET_DIR" = "$WORK" ] || as_server_user rm -rf "$SOCKET_DIR"
    ;;
psql) shift; become_server_user "$BIN/psql" -h "$SOCKET_DIR" -p "$PORT" -U postgres "$@" ;;
*) die "usage: $0 start|stop|psql [ARGUMENT...]" ;;
esac
