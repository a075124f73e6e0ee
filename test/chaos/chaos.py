#!/usr/bin/env python3
"""Leases under fire.

Several clients acquire, use and release leases from an HTTP provider that
loses answers, cuts connections, answers nonsense or nothing, while the worker
and the whole server are killed with SIGKILL again and again.  Afterwards the
provider's live resources, the rows of the leases and their events are
compared:

  look-up variant   no resource without its row, no row without its resource,
                    nothing acquired twice, no event missing
  plain variant     no request sent twice, and every resource that is left is
                    accounted for by an irrevocable lease

Prints TAP.  Everything random comes from --seed, which is printed; the moments
of the kills depend on the machine, so a seed repeats the plan, not the run.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import psycopg2

HERE = os.path.dirname(os.path.abspath(__file__))
DOUBLE = os.path.join(HERE, "..", "doubles", "http_provider.py")
FAULTS = ["lose_answer", "cut", "cut_mid", "status:500", "status:503", "status:429:1",
          "garbage", "html", "redirect", "hang", "hang_before", "drip", "delay:50",
          "act_status:504", "rpc_error:-32000", "wrong_id"]
PATIENCE_S = 240
SETTINGS = {
    "leasehold.rpc_timeout": "1s", "leasehold.retry_base": "20ms", "leasehold.retry_max": "500ms",
    "leasehold.breaker_cooldown": "50ms", "leasehold.acquire_attempts": "100", "leasehold.cleanup_attempts": "100",
    "leasehold.crash_limit": "50", "leasehold.reconcile_interval": "2s", "leasehold.housekeeping_interval": "2s",
    "leasehold.idle_check": "1s"}

MANIFEST = {
    "id": "double", "apiVersion": 1, "version": "1.0.0", "displayName": "Double",
    "description": "stands in for a provider", "author": "test", "categories": ["automation"],
    "capabilities": ["environment.drivers.register"], "entrypoints": {"worker": "worker.js"},
    "environmentDrivers": [{"driverKey": "double", "kind": "sandbox_provider", "displayName": "Double",
                            "configSchema": {"type": "object"}}],
}


class Tap:
    """Counts and prints results."""

    def __init__(self):
        self.count = 0
        self.failed = 0

    def ok(self, passed, name, detail=""):
        self.count += 1
        print(f"{'ok' if passed else 'not ok'} {self.count} - {name}", flush=True)
        if not passed:
            self.failed += 1
            for line in str(detail).splitlines():
                print(f"# {line}", flush=True)

    def note(self, text):
        print(f"# {text}", flush=True)

    def done(self):
        print(f"1..{self.count}", flush=True)
        return 1 if self.failed else 0


class Server:
    """A private cluster that can be killed."""

    def __init__(self, bin_dir, directory, settings):
        self.bin = bin_dir
        self.process = None
        self.data = os.path.join(directory, "data")
        self.sockets = tempfile.mkdtemp(prefix="lh")
        self.log = os.path.join(directory, "server.log")
        self.run("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8")
        with open(os.path.join(self.data, "postgresql.conf"), "a", encoding="utf8") as conf:
            conf.write("listen_addresses = ''\nport = 54899\nmax_connections = 60\n"
                       f"unix_socket_directories = '{self.sockets}'\n"
                       "shared_preload_libraries = 'leasehold'\n"
                       "restart_after_crash = on\nlog_min_messages = log\n")
            for name, value in settings.items():
                conf.write(f"{name} = '{value}'\n")

    def run(self, program, *args):
        result = subprocess.run([os.path.join(self.bin, program), *args], capture_output=True, text=True)
        if result.returncode != 0:
            raise RuntimeError(f"{program}: {result.stdout}{result.stderr}")
        return result.stdout

    def start(self):
        """The postmaster is our own child: a killed one must be waited for, or it seems to be there still."""
        # a process that was about to end recovery looks for the killed checkpointer for a minute
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with open(self.log, "ab") as log:
                # pylint: disable=consider-using-with
                self.process = subprocess.Popen([os.path.join(self.bin, "postgres"), "-D", self.data],
                                                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            # children of a killed postmaster may still be on their way out: then it ends, and is tried again
            while self.process.poll() is None and time.monotonic() < deadline:
                if self.is_ready():
                    return
                time.sleep(0.05)
            time.sleep(0.1)
        raise RuntimeError("the server did not start")

    def is_ready(self):
        return subprocess.run([os.path.join(self.bin, "pg_isready"), "-q", "-h", self.sockets, "-p", "54899"],
                              check=False).returncode == 0

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.sockets, ignore_errors=True)

    def connect(self, user="postgres", options=""):
        connection = psycopg2.connect(host=self.sockets, port=54899, user=user, dbname="chaos",
                                      options=options, connect_timeout=5)
        connection.autocommit = True
        return connection

    def rows(self, sql):
        """For the reckoning: the last kill may just have been, and take the connection with it."""
        deadline = time.monotonic() + 120
        while True:
            try:
                with self.connect() as connection, connection.cursor() as cursor:
                    cursor.execute(sql)
                    return cursor.fetchall()
            except (psycopg2.OperationalError, psycopg2.InterfaceError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def kill_postmaster(self):
        self.process.kill()
        self.process.wait()

    def kill_worker(self):
        try:
            with self.connect() as connection, connection.cursor() as cursor:
                cursor.execute("SELECT pid FROM pg_stat_activity WHERE backend_type = 'leasehold worker'")
                for (pid,) in cursor.fetchall():
                    os.kill(pid, signal.SIGKILL)
                    return True
        except (psycopg2.Error, ProcessLookupError):
            pass
        return False


class Double:
    """The provider."""

    def __init__(self, directory, variant, seed):
        self.ready = os.path.join(directory, "double.port")
        # pylint: disable=consider-using-with
        self.process = subprocess.Popen(
            [sys.executable, DOUBLE, "--port", "0", "--token", "chaos", "--variant", variant, "--seed", str(seed),
             "--ready-file", self.ready], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while not os.path.exists(self.ready):
            if time.monotonic() > deadline:
                raise RuntimeError("the double did not start")
            time.sleep(0.02)
        with open(self.ready, encoding="utf8") as f:
            self.port = int(f.read())

    def state(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/_admin/state", timeout=30) as answer:
            return json.load(answer)

    def requests(self, method):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/_admin/requests?method={method}",
                                    timeout=30) as answer:
            return json.load(answer)

    def stop(self):
        self.process.terminate()
        self.process.wait(10)


class Client(threading.Thread):
    """Takes its leases one after the other through their lives."""

    def __init__(self, server, name, leases, seed, options):
        super().__init__(daemon=True)
        self.server = server
        self.label = name
        self.leases = leases
        self.random = random.Random(f"{seed}-{name}")
        self.options = options
        self.connection = None
        self.ended = {}
        self.problem = None
        self.interrupted = 0

    def run(self):
        try:
            for number in range(self.leases):
                self.live(f"{self.label}-{number}")
        except Exception as error:  # pylint: disable=broad-except
            self.problem = f"{self.label}: {type(error).__name__}: {error}"

    def query(self, sql, *args):
        if self.connection is None:
            self.connection = self.server.connect(user="chaos_client", options=self.options)
        with self.connection.cursor() as cursor:
            cursor.execute(sql, args)
            return cursor.fetchone()

    def live(self, key):
        """One lease; begun again from its idempotency key whenever the server dies."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            try:
                lease = self.query("SELECT leasehold.request_lease('box', idempotency_key => %s, ttl => '10 minutes',"
                                   " acquire_timeout => '10 minutes')", key)[0]
                status = self.wait(lease, deadline)
                if status == "active":
                    if self.random.random() < 0.5:
                        self.query("SELECT leasehold.renew_lease(%s)", lease)
                    self.query("SELECT leasehold.release_lease(%s)", lease)
                    status = self.wait(lease, deadline)
                self.ended[key] = (lease, status)
                return
            except psycopg2.Error as error:
                self.interrupted += 1
                if self.connection is not None and self.connection.closed:
                    self.connection = None
                code = error.pgcode or ""
                # gone with the server: connection lost, not up yet, or a row that was not on disk
                if code and not (code.startswith(("57", "08")) or code in ("PT404", "PT503", "PT409", "25P03")):
                    raise
                self.connection = None
                time.sleep(0.05 + self.random.random() / 10)
        raise RuntimeError(f"{key} did not end in {PATIENCE_S} s")

    def wait(self, lease, deadline):
        while time.monotonic() < deadline:
            status, done = self.query("SELECT status, done FROM leasehold.wait_for_lease(%s, '2 seconds')", lease)
            if done:
                return status
        raise RuntimeError(f"lease {lease} stays {status}")


class Killer(threading.Thread):
    """Kills until told to stop."""

    def __init__(self, server, seed, kills):
        super().__init__(daemon=True)
        self.server = server
        self.random = random.Random(f"{seed}-killer")
        self.kills = kills
        self.done = {"worker": 0, "server": 0}
        self.finished = threading.Event()
        self.problem = None

    def run(self):
        try:
            while sum(self.done.values()) < self.kills and not self.finished.is_set():
                time.sleep(0.2 + self.random.random() * 1.5)
                if self.random.random() < 0.6:
                    if self.server.kill_worker():
                        self.done["worker"] += 1
                else:
                    self.server.kill_postmaster()
                    self.server.start()
                    self.done["server"] += 1
        except Exception as error:  # pylint: disable=broad-except
            self.problem = f"{type(error).__name__}: {error}"


def prepare(server, double, chaos):
    server.run("createdb", "-h", server.sockets, "-p", "54899", "-U", "postgres", "chaos")
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("CREATE EXTENSION leasehold")
        cursor.execute("CREATE ROLE chaos_client LOGIN IN ROLE leasehold_app")
        cursor.execute("SELECT leasehold.create_company('acme')")
        cursor.execute("SELECT leasehold.grant_company('acme', 'chaos_client', 'user')")
        cursor.execute("SELECT leasehold.grant_company('acme', 'postgres', 'manager')")
        cursor.execute("SELECT leasehold.register_plugin(%s, %s, ARRAY['127.0.0.0/8'])",
                       (json.dumps(MANIFEST),
                        json.dumps({"type": "http", "url": f"http://127.0.0.1:{double.port}/rpc",
                                    "token_file": "double"})))
        cursor.execute("SELECT leasehold.create_environment('box', 'double', %s, company => 'acme')",
                       (json.dumps({"chaos": chaos}),))


def settle(server, tap):
    """Waits until nothing is under way any more."""
    deadline = time.monotonic() + PATIENCE_S
    pending = None
    while time.monotonic() < deadline:
        pending = server.rows("SELECT status, count(*) FROM leasehold.leases WHERE status NOT IN"
              " ('released', 'expired', 'failed', 'irrevocable') GROUP BY 1")
        strays = server.rows("SELECT count(*) FROM leasehold_internal.calls WHERE operation = 'destroy_stray'")[0][0]
        if not pending and not strays:
            return True
        time.sleep(0.3)
    tap.note(f"still under way: {pending}")
    return False


def check_rows_and_events(server, tap, clients):
    statuses = dict(server.rows("SELECT status, count(*) FROM leasehold.leases GROUP BY 1"))
    tap.note(f"leases: {statuses}")
    known = {lease for client in clients for lease, _ in client.ended.values()}
    missing = known - {row[0] for row in server.rows("SELECT id::text FROM leasehold.leases")}
    tap.ok(not missing, "every lease that a client saw end is there", missing)

    # exactly one event of each kind that the row speaks of
    wrong = server.rows("""
        SELECT l.id, l.status, e.* FROM leasehold.leases AS l
        LEFT JOIN (SELECT a.company_id, a.entity_id,
                          count(*) FILTER (WHERE a.action = 'environment.lease_requested') AS requested,
                          count(*) FILTER (WHERE a.action = 'environment.lease_acquired') AS acquired,
                          count(*) FILTER (WHERE a.action IN ('environment.lease_released',
                                           'environment.lease_failed')) AS ended,
                          count(*) FILTER (WHERE a.action = 'environment.lease_irrevocable') AS given_up
                     FROM leasehold.audit_events AS a GROUP BY 1, 2) AS e
          ON e.company_id = l.company_id AND e.entity_id = l.id::text
        WHERE e.requested IS DISTINCT FROM 1
           OR e.acquired <> (l.acquired_at IS NOT NULL)::int
           OR e.ended <> (l.status IN ('released', 'expired', 'failed'))::int
           OR e.given_up < (l.status = 'irrevocable')::int""")
    tap.ok(not wrong, "no event is missing and none is there twice", wrong[:10])
    return statuses


def check_nothing_left(tap, state, statuses):
    """For a provider that can be asked, and its counters."""
    left = {resource["leaseId"]: resource["providerLeaseId"] for resource in state["resources"]}
    tap.ok(not left, "lookup: no resource without its row", left)
    tap.ok(statuses.get("irrevocable", 0) == 0, "lookup: no lease is given up", statuses)
    tap.ok(state["counters"]["duplicate_live_max"] <= 1, "lookup: nothing was acquired twice", state["counters"])


def check_manners(tap, server, counters, variant):
    """What holds however it went: the protocol, and the server's log."""
    tap.ok(counters["protocol_violations"] == 0, f"{variant}: the protocol was kept",
           counters["violations"])
    with open(server.log, encoding="utf8", errors="replace") as log:
        bad = [line for line in log
               if re.search(r"deadlock detected|PANIC|TRAP:|signal 11|could not apply", line)]
    tap.ok(not bad, f"{variant}: no deadlock and no crash of its own in the log", "".join(bad[:5]))


def note_counters(tap, counters):
    tap.note("double: " + json.dumps({k: v for k, v in counters.items() if k not in ("methods", "violations")}))


def token_directory(directory, double):
    tokens = os.path.join(directory, "tokens")
    os.mkdir(tokens)
    with open(os.path.join(tokens, "double"), "w", encoding="utf8") as f:
        f.write(f"for: http://127.0.0.1:{double.port}\nchaos\n")
    os.chmod(os.path.join(tokens, "double"), 0o600)
    return tokens


def sent_again(double):
    """Acquire requests that followed one of the same lease whose outcome the client could not know."""
    known = ("status:429", "redirect", "delay")
    unknown, again = set(), []
    for request in double.requests("acquire"):
        if request["leaseId"] in unknown:
            again.append(request)
        if request["fault"] and not request["fault"].startswith(known):
            unknown.add(request["leaseId"])
    return again


def play(tap, args, variant, synchronous_commit, leases, kills):
    tap.note(f"{variant}: seed {args.seed}, {leases} leases, {args.clients} clients, {kills} kills, "
             f"clients' synchronous_commit = {synchronous_commit}")
    directory = tempfile.mkdtemp(prefix="chaos-", dir=args.directory)
    double = Double(directory, variant, args.seed)
    server = Server(args.bin, directory, SETTINGS | {"leasehold.token_directory": token_directory(directory, double)})
    per_client = leases // args.clients
    clients = [Client(server, f"c{number}", per_client, args.seed, f"-c synchronous_commit={synchronous_commit}")
               for number in range(args.clients)]
    killer = Killer(server, args.seed, kills)
    started = time.monotonic()
    try:
        server.start()
        prepare(server, double, {"p": args.faults, "kinds": FAULTS, "methods": ["acquire", "release", "destroy", "find"]})
        for client in clients:
            client.start()
        killer.start()
        for client in clients:
            client.join(PATIENCE_S * 2)
        # the rest of the kills come while what is left is cleaned up
        killer.join(PATIENCE_S)
        killer.finished.set()
        tap.note(f"killed: {killer.done}; clients were interrupted {sum(c.interrupted for c in clients)} times; "
                 f"{time.monotonic() - started:.0f} s")
        tap.ok(killer.problem is None and sum(killer.done.values()) >= kills,
               f"{variant}: killed {kills} times", killer.problem)
        problems = [client.problem for client in clients if client.problem or client.is_alive()]
        tap.ok(not problems, f"{variant}: every client took its {per_client} leases to their end", problems)
        tap.ok(settle(server, tap), f"{variant}: nothing is under way for ever")
        statuses = check_rows_and_events(server, tap, clients)

        state = double.state()
        counters = state["counters"]
        note_counters(tap, counters)
        if variant == "lookup":
            check_nothing_left(tap, state, statuses)
        else:
            left = {resource["leaseId"] for resource in state["resources"]}
            irrevocable = {row[0] for row in server.rows("SELECT id::text FROM leasehold.leases WHERE status = 'irrevocable'")}
            tap.ok(left <= irrevocable, "plain: no resource is unaccounted for", left - irrevocable)
            again = sent_again(double)
            tap.ok(not again, "plain: no request with an unknown outcome was sent again", again)
            tap.ok(counters["acquires_per_key_max"] <= 1, "plain: no request was carried out twice", counters)
            tap.ok(counters["duplicate_live_max"] <= 1, "plain: nothing was acquired twice", counters)
        check_manners(tap, server, counters, variant)
    finally:
        killer.finished.set()
        server.stop()
        double.stop()
        if tap.failed:
            tap.note(f"kept for inspection: {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)


def argument_parser(description, clients, faults):
    """What every such run can be told."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default=os.environ.get("BIN"), help="directory of the server's programs")
    parser.add_argument("--directory", default=tempfile.gettempdir(), help="where to work")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--clients", type=int, default=clients)
    parser.add_argument("--faults", type=float, default=faults, help="share of provider calls that go wrong")
    return parser


def main():
    parser = argument_parser(__doc__, clients=10, faults=0.12)
    parser.add_argument("--leases", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--variant", choices=["lookup", "async", "plain", "all"], default="all")
    args = parser.parse_args()

    tap = Tap()
    tap.note(f"repeat the plan with --seed {args.seed}")
    if args.variant in ("lookup", "all"):
        play(tap, args, "lookup", "on", args.leases, args.kills)
    if args.variant in ("async", "all"):
        play(tap, args, "lookup", "off", args.leases, args.kills)
    if args.variant in ("plain", "all"):
        play(tap, args, "plain", "on", args.leases, args.kills)
    return tap.done()


if __name__ == "__main__":
    sys.exit(main())
