#!/bin/sh
# Leads through a first lease on a private server, with a provider that only
# pretends: `make demo`; `make demo-stop` stops both.
#
# usage: demo.sh start|stop
#
# What was done stays in the database `demo`, so it can be looked at and done
# again; it is made anew when the extension's SQL has changed.
set -eu
TOP=$(cd "$(dirname "$0")/.." && pwd)
. "$TOP/dev/lib.sh"
choose_work_dir
SERVER=$TOP/dev/private-server.sh
ELSEWHERE=${LEASEHOLD_WORK:+LEASEHOLD_WORK=$LEASEHOLD_WORK }	# what a command needs in front to find it all

# the provider's process, if it is there and still is what it was
provider_pid() {
    pid=$(as_server_user cat demo/provider.pid 2>/dev/null) || return 1
    grep -q http_provider.py "/proc/$pid/cmdline" 2>/dev/null || return 1
    echo "$pid"
}

stop_provider() {
    pid=$(provider_pid) || return 0
    as_server_user sh -c 'kill "$1"' sh "$pid"
    while provider_pid >/dev/null; do sleep 0.05; done
}

# start_provider: at a port of its own choice, which comes out.
start_provider() {
    as_server_user sh -eu -c '
        umask 077
        mkdir -p demo tokens
        [ -s demo/token ] || od -An -N24 -tx1 /dev/urandom | tr -d " \n" >demo/token
        rm -f demo/port
        setsid python3 -B src/test/doubles/http_provider.py --token-file demo/token \
            --state demo/sandboxes --log demo/requests.log --ready-file demo/port \
            >demo/provider.log 2>&1 </dev/null &
        echo $! >demo/provider.pid
        tries=0
        until [ -s demo/port ]; do
            tries=$((tries + 1))
            if [ $tries -gt 100 ] || ! kill -0 $!; then cat demo/provider.log >&2; exit 1; fi
            sleep 0.1
        done
        { echo "for: http://127.0.0.1:$(cat demo/port)" && cat demo/token; } >tokens/demo
        cat demo/port' || die "the provider did not start"
}

# make_database: unless it is there and was made with the same SQL.
make_database() {
    made_with=$(cat "$WORK"/src/extension/api/*.sql | cksum)
    if [ "$(as_server_user cat demo/made-with 2>/dev/null)" = "$made_with" ] &&
        [ "$("$SERVER" psql -X -A -t -c "SELECT count(*) FROM pg_database WHERE datname = 'demo'")" = 1 ]; then
        return 0
    fi
    say "making the database demo"
    "$SERVER" psql -X -q -v ON_ERROR_STOP=1 -c 'SET client_min_messages = warning' \
        -c 'SET leasehold.allow_drop = on' -c 'DROP DATABASE IF EXISTS demo WITH (FORCE)' -c 'CREATE DATABASE demo'
    as_server_user sh -c 'mkdir -p demo && rm -f demo/sandboxes && cat >demo/made-with' <<MADE
$made_with
MADE
}

start() {
    # shellcheck disable=SC2086 # a list of words
    need_packages python3 $BUILD_PACKAGES
    say "building, and starting a private server in $WORK"
    "$SERVER" start
    stop_provider
    make_database
    say "starting a provider of sandboxes that only pretends (test/doubles/http_provider.py)"
    port=$(start_provider)
    "$SERVER" psql -X -q -v ON_ERROR_STOP=1 -d demo -v url="http://127.0.0.1:$port/rpc" <"$TOP/dev/demo.sql"
    cat <<END

The server and the provider go on running. Try for yourself:

the agent's view            ${ELSEWHERE}dev/private-server.sh psql -d demo -U demo_agent
the administrator's         ${ELSEWHERE}dev/private-server.sh psql -d demo -U demo_admin
what the provider holds     curl http://127.0.0.1:$port/_admin/state
once more                   ${ELSEWHERE}make demo
stop both                   ${ELSEWHERE}make demo-stop
                            The data stays in $WORK; removing that directory removes everything.
END
}

stop() {
    stop_provider
    [ ! -d "$WORK/data" ] || "$SERVER" stop
    say "stopped"
}

case "${1:-}" in
start) start ;;
stop) stop ;;
*) die "usage: $0 start|stop" ;;
esac
