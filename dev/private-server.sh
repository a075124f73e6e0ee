#!/bin/sh
# Starts, stops or enters a private server with the extension, in the work
# directory: what `make demo` and people who work on Leasehold use.
#
# usage: private-server.sh start|stop|psql [ARGUMENT...]
set -eu
TOP=$(cd "$(dirname "$0")/.." && pwd)
. "$TOP/dev/lib.sh"
choose_work_dir
DATA=$WORK/data
SOCKET_DIR=$WORK
PORT=${LEASEHOLD_PORT:-54815}

start() {
    install_private
    if [ ! -d "$DATA" ]; then
        say "making a database cluster in $DATA"
        as_server_user "$BIN/initdb" -D "$DATA" -U postgres -A trust -E UTF8 --locale=C.UTF-8 >"$WORK/initdb.log" ||
            { cat "$WORK/initdb.log" >&2; die "initdb failed"; }
        as_server_user sh -c "cat >>'$DATA/postgresql.conf'" <<CONF
listen_addresses = ''
unix_socket_directories = '$SOCKET_DIR'
port = $PORT
shared_preload_libraries = 'leasehold'
leasehold.token_directory = '$WORK/tokens'
CONF
    fi
    as_server_user "$BIN/pg_ctl" -D "$DATA" -l "$WORK/server.log" -w start >/dev/null ||
        { tail -20 "$WORK/server.log" >&2; die "the server did not start"; }
}

case "${1:-}" in
start) start ;;
stop) as_server_user "$BIN/pg_ctl" -D "$DATA" -m fast -w stop >/dev/null ;;
psql) shift; as_server_user "$BIN/psql" -h "$SOCKET_DIR" -p "$PORT" -U postgres "$@" ;;
*) die "usage: $0 start|stop|psql [ARGUMENT...]" ;;
esac
