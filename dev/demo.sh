#!/bin/sh
# Leads through the main job on a private server: a sandbox on this host, and a
# command in it: `make demo`; `make demo-stop` stops it.  Where the machine does
# not let users make sandboxes, there is a provider that only pretends.
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

# sandboxes_possible: or why not.
sandboxes_possible() {
    as_server_user bwrap --unshare-all --unshare-user --disable-userns --ro-bind / / true
}

# allow_sandboxes: this server, which holds nothing but the demonstration, may have them.
allow_sandboxes() {
    as_server_user mkdir -p -m 700 "$WORK/sandboxes"
    "$SERVER" psql -X -q -c 'ALTER SYSTEM SET leasehold.bubblewrap = on' \
        -c 'ALTER SYSTEM SET leasehold.bubblewrap_data_filesystem = on' \
        -c "ALTER SYSTEM SET leasehold.bubblewrap_directory = '$WORK/sandboxes'" -c 'SELECT pg_reload_conf()' >/dev/null
}

lead_through() {
    "$SERVER" psql -X -q -v ON_ERROR_STOP=1 -d demo "$@" <"$TOP/dev/demo.sql"
}

start() {
    # shellcheck disable=SC2086 # a list of words
    need_packages python3 bubblewrap $BUILD_PACKAGES
    say "building, and starting a private server in $WORK"
    "$SERVER" start
    stop_provider
    make_database
    if why=$(sandboxes_possible 2>&1); then
        allow_sandboxes
        lead_through -v provider=bubblewrap -v url=
    else
        say "this machine does not let users make sandboxes: $why"
        say "starting a provider that only pretends instead (test/doubles/http_provider.py)"
        port=$(start_provider)
        lead_through -v provider=demo-box -v url="http://127.0.0.1:$port/rpc"
    fi
    cat <<END

The server goes on running. Try for yourself:

the agent's view            ${ELSEWHERE}dev/private-server.sh psql -d demo -U demo_agent
                            CALL leasehold.run('acme', 'sandbox', 'for i in 1 2 3; do echo \$i; sleep 1; done');
the administrator's         ${ELSEWHERE}dev/private-server.sh psql -d demo -U demo_admin
once more                   ${ELSEWHERE}make demo
stop it                     ${ELSEWHERE}make demo-stop
                            The data stays in $WORK; removing that directory removes everything.
END
}

# stop_sandboxes: those whose leases were not given back; they outlive the server.
stop_sandboxes() {
    as_server_user pkill -KILL -f "leasehold_sandbox hold $WORK/sandboxes/" || true
}

stop() {
    stop_provider
    stop_sandboxes
    [ ! -d "$WORK/data" ] || "$SERVER" stop
    say "stopped"
}

case "${1:-}" in
start) start ;;
stop) stop ;;
*) die "usage: $0 start|stop" ;;
esac
