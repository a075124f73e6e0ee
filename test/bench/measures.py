"""The measurements.  Each returns rows of the report; how each figure comes
about is told in docs/performance.md."""

import os
import statistics
import subprocess
import threading
import time
from dataclasses import dataclass, field

import psycopg2

from lab import Database, LatencyServer, Nginx, Server, cpu_seconds, memory_kb, say, wait_until

CONCURRENCY = 1000	# the default of leasehold.max_concurrent_calls


@dataclass
class Scale:
    """How much is measured."""
    repetitions: int
    calls: int
    seconds: int
    snapshot_s: int
    idle_s: int
    leases: int
    attempts: int


FULL = Scale(repetitions=3, calls=20000, seconds=10, snapshot_s=60, idle_s=60, leases=10000, attempts=200)
QUICK = Scale(repetitions=1, calls=3000, seconds=3, snapshot_s=5, idle_s=10, leases=2000, attempts=20)


@dataclass
class Row:
    """One line of the report.  bars: (what is demanded, whether it is met)."""
    what: str
    values: list
    unit: str
    yardstick: str = ""
    yard: list = field(default_factory=list)
    bars: list = field(default_factory=list)
    note: str = ""

    @property
    def value(self):
        return statistics.median(self.values)

    @property
    def ratio(self):
        """The median of the ratios of values that were measured one after the other."""
        return statistics.median([v / y for v, y in zip(self.values, self.yard)]) if self.yard else None

    def at_least(self, least):
        self.bars.append((f"≥ {least:,} {self.unit}".replace(",", " "), self.value >= least))
        return self

    def at_most(self, most):
        self.bars.append((f"≤ {most:,} {self.unit}".replace(",", " "), self.value <= most))
        return self

    def share(self, least):
        self.bars.append((f"≥ {least:.0%} of it", self.ratio >= least))
        return self


class Flow:
    """N leases through the worker alone: queued while it is paused, then timed
    by the events that it writes."""

    def __init__(self, database, environment="box"):
        self.database = database
        self.environment = environment
        self.environment_id = database.value("SELECT id FROM leasehold.environments WHERE key = %s", environment)
        self.cpu_us = []

    def acquire(self, count, others=()):
        """Calls a second until all are acquired; others are queued beside them."""
        db = self.database
        db.pause()
        for environment, other_count in others:
            db.request(environment, other_count)
        db.request(self.environment, count)
        return self._run("acquiring", "environment.lease_acquired", count)

    def release(self):
        db = self.database
        db.pause()
        leases = [row[0] for row in db.rows("SELECT id FROM leasehold.leases WHERE status = 'active'"
                                          " AND environment_id = %s", self.environment_id)]
        for begin in range(0, len(leases), 500):
            db.run("SELECT leasehold.release_lease(l) FROM unnest(%s::uuid[]) AS l", leases[begin:begin + 500])
        return self._run("releasing", "environment.lease_released", len(leases))

    def _run(self, status, action, count):
        db = self.database
        db.settle()
        pid = db.worker_pid()
        used = cpu_seconds(pid)
        begin = db.value("SELECT clock_timestamp()")
        db.resume()
        wait_until(lambda: not db.value("SELECT EXISTS (SELECT FROM leasehold.leases WHERE status = %s"
                                        " AND environment_id = %s)", status, self.environment_id),
                   f"{count} leases to stop {status}", pause=0.1)
        self.cpu_us.append((cpu_seconds(pid) - used) / count * 1e6)
        done, last = db.rows("SELECT count(*), max(occurred_at) FROM leasehold.audit_events WHERE action = %s"
                             " AND occurred_at > %s AND details ->> 'environmentId' = %s", action, begin,
                             str(self.environment_id))[0]
        if done != count:
            raise RuntimeError(f"{done} events of {count}: {action}")
        return count / (last - begin).total_seconds()


def body_size(database, nginx):
    """Bytes of the body of an acquire request."""
    database.request("sized", 1)
    wait_until(lambda: database.value("SELECT status = 'active' FROM leasehold.leases"), "the first lease", 30)
    return nginx.last_size()


def calls(lab, scale):
    nginx = Nginx(lab)
    acquire, release, yard, yard_us = [], [], [], []
    with Server(lab) as server, Database(server, {"box": nginx.url, "sized": nginx.sized_url}) as db:
        size = body_size(db, nginx)
        to_acquire, to_release = Flow(db), Flow(db)
        to_acquire.acquire(scale.calls // 10)
        to_release.release()
        to_acquire.cpu_us.clear()
        to_release.cpu_us.clear()
        for _ in range(scale.repetitions):
            rate, cpu = lab.yardstick(nginx, scale.calls * 3, CONCURRENCY, size)
            yard.append(rate)
            yard_us.append(cpu)
            acquire.append(to_acquire.acquire(scale.calls))
            release.append(to_release.release())
    unit, stick = "calls/s", "bare libcurl loop, calls/s"

    def costs(flow):
        return (f"worker {statistics.median(flow.cpu_us):.0f} µs of processor per call, "
                f"bare loop {statistics.median(yard_us):.0f} µs")
    return [
        Row("durable calls: acquire (claim, call, result, event)", acquire, unit, stick, yard,
            note=costs(to_acquire)).at_least(5000).share(0.25),
        Row("durable calls: release", release, unit, stick, yard, note=costs(to_release)).at_least(5000).share(0.25),
    ]


def snapshot(lab, scale):
    nginx = Nginx(lab)
    rates, without = [], []
    with Server(lab) as server, Database(server, {"box": nginx.url}) as db:
        flow = Flow(db)
        flow.acquire(scale.calls // 10)
        flow.release()
        old = server.open(db.name)
        old.autocommit = False
        old.set_session(isolation_level="REPEATABLE READ")
        with old.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM leasehold.leases")
        churn = db.pgbench("cycle", 64, seconds=scale.snapshot_s)
        for _ in range(scale.repetitions):
            rates.append(flow.acquire(scale.calls))
            flow.release()
        old.close()
        for _ in range(scale.repetitions):
            without.append(flow.acquire(scale.calls))
            flow.release()
    return [Row(f"durable calls beside a snapshot of {scale.snapshot_s} s and more", rates, "calls/s",
                "after its end, calls/s", without,
                note=f"{churn * scale.snapshot_s:,.0f} leases lived meanwhile".replace(",", " ")).share(0.7)]


def dead(lab, scale):
    nginx, silent = Nginx(lab), LatencyServer(lab, -1)
    alone, refused, hanging = [], [], []
    with Server(lab) as server, Database(server, {"box": nginx.url}) as db:
        # port 1: nobody listens there
        db.add_provider("refusing", "http://127.0.0.1:1/rpc", ready=False)
        db.add_provider("hanging", silent.url, ready=False)
        flow = Flow(db)
        flow.acquire(scale.calls // 10)
        flow.release()
        for _ in range(scale.repetitions):
            alone.append(flow.acquire(scale.calls))
            flow.release()
        for _ in range(scale.repetitions):
            refused.append(flow.acquire(scale.calls, [("refusing", scale.calls // 10)]))
            flow.release()
        for _ in range(scale.repetitions):
            hanging.append(flow.acquire(scale.calls, [("hanging", scale.calls // 10)]))
            flow.release()
    return [Row("durable calls beside a provider that refuses connections", refused, "calls/s",
                "without it, calls/s", alone).share(0.9),
            Row("durable calls beside a provider that never answers", hanging, "calls/s",
                "without it, calls/s", alone).share(0.9)]


def cycle(lab, scale):
    nginx = Nginx(lab)
    waited, unwaited = [], []
    with Server(lab) as server, Database(server, {"box": nginx.url}) as db:
        db.pgbench("cycle", 16, transactions=20)
        for _ in range(scale.repetitions):
            db.settle()
            waited.append(db.pgbench("cycle", 64, seconds=scale.seconds))
        for _ in range(scale.repetitions):
            db.settle()
            unwaited.append(cycle_without_waiting(db, scale.calls))
    return [Row("whole lease, 64 clients that wait for both ends", waited, "leases/s").at_least(2000),
            Row("whole lease, nobody waits", unwaited, "leases/s").at_least(2000)]


def cycle_without_waiting(db, count):
    """Eight clients request; another releases what is active."""
    problems = []

    def release():
        try:
            with db.server.connect(db.name, "bench_client") as connection, connection.cursor() as cursor:
                left, deadline = count, time.monotonic() + 120
                while left > 0 and time.monotonic() < deadline:
                    cursor.execute("SELECT count(leasehold.release_lease(a.lease_id)) FROM (SELECT lease_id"
                                   " FROM leasehold.active_leases WHERE status = 'active' LIMIT 500) AS a")
                    got = cursor.fetchone()[0]
                    left -= got
                    if got == 0:
                        time.sleep(0.005)
        except psycopg2.Error as error:
            problems.append(error)

    releaser = threading.Thread(target=release)
    begin = time.monotonic()
    releaser.start()
    db.pgbench("request", 8, transactions=count // 8)
    releaser.join()
    wait_until(lambda: not db.value("SELECT EXISTS (SELECT FROM leasehold.leases WHERE status IN"
                                    " ('acquiring', 'active', 'releasing'))"), "the last leases", pause=0.02)
    if problems:
        raise problems[0]
    return count / (time.monotonic() - begin)


def latency(lab, scale):
    slow = LatencyServer(lab, 200)
    rates = []
    with Server(lab) as server, Database(server, {"box": slow.url}) as db:
        flow = Flow(db)
        flow.acquire(scale.calls)
        flow.release()
        pid = db.worker_pid()
        before = memory_kb(pid)
        for _ in range(scale.repetitions):
            rates.append(flow.acquire(scale.calls))
            flow.release()
        growth = (memory_kb(pid) - before) / before
        same = db.worker_pid() == pid
    row = Row("calls to a provider that takes 200 ms, 1 000 in flight", rates, "calls/s",
              note=f"worker's own memory {before / 1024:.0f} MB, {growth:+.1%} after "
                   f"{2 * scale.repetitions * scale.calls:,} more calls".replace(",", " ")).at_least(3000)
    row.bars.append(("memory stays", same and growth < 0.05))
    return [row]


def start(lab, scale):
    provider = LatencyServer(lab, 0, log=True)
    to_provider, to_claim, after_commit = [], [], []
    with Server(lab) as server, Database(server, {"box": provider.url}) as db:
        company = db.value("SELECT id FROM leasehold.companies")
        connection = server.open(db.name, "bench_client")
        connection.autocommit = False
        with connection.cursor() as cursor:
            for attempt in range(scale.attempts + 10):
                time.sleep(0.03)		# the worker has gone idle again
                cursor.execute("SELECT leasehold.request_lease('box')")
                lease = cursor.fetchone()[0]
                before = time.time_ns() // 1000
                connection.commit()
                after = time.time_ns() // 1000
                key = f"{company}:{lease}:1:acquire"
                arrived = wait_until(lambda k=key: provider.arrivals().get(k), "the call", 10, 0.001)
                wait_until(lambda l=lease: db.value("SELECT status = 'active' FROM leasehold.leases WHERE id = %s", l),
                           "the lease", 10, 0.005)
                if attempt >= 10:
                    to_provider.append((arrived - before) / 1e3)
                    after_commit.append((arrived - after) / 1e3)
        connection.close()

        # an idle minute, looked at from another database, so that nobody else is in this one
        db.run("ALTER SYSTEM SET autovacuum = off")
        db.run("SELECT pg_reload_conf()")
        db.connection.close()
        time.sleep(12)		# by then the worker, too, has reported what it did before
        with server.connect("postgres") as other, other.cursor() as cursor:
            def transactions():
                cursor.execute("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = %s", (db.name,))
                return cursor.fetchone()[0]
            begin = transactions()
            time.sleep(scale.idle_s)
            idle = (transactions() - begin) * 60 / scale.idle_s
    percentile = statistics.quantiles(to_provider, n=100)[98] if len(to_provider) > 1 else to_provider[0]
    return [Row("idle worker: from before COMMIT until the provider has the request", [statistics.median(to_provider)], "ms",
                note=f"p99 {percentile:.2f} ms; from after COMMIT p50 {statistics.median(after_commit):.2f} ms").at_most(1),
            Row("idle worker: transactions a minute", [idle], "/min").at_most(1)]


def deadlines(lab, scale):
    nginx = Nginx(lab)
    expired, orphaned = [], []
    with Server(lab) as server, Database(server, {"box": nginx.url}) as db:
        for _ in range(scale.repetitions):
            Flow(db).acquire(scale.leases)
            expired.append(move(db, "expired", scale.leases, """
                WITH lease AS (UPDATE leasehold.leases SET expires_at = clock_timestamp() WHERE status = 'active'
                               RETURNING company_id, id)
                UPDATE leasehold_internal.calls AS c SET due_at = clock_timestamp() FROM lease AS l
                 WHERE c.company_id = l.company_id AND c.subject_id = l.id AND c.slot = 'timer'"""))
            for _ in range(scale.leases // 500):
                db.run("SELECT leasehold.request_lease('box', run_id => (leasehold.start_run()).started_run_id)"
                       " FROM generate_series(1, 500)")
            wait_until(lambda: not db.value("SELECT EXISTS (SELECT FROM leasehold.leases WHERE status = 'acquiring')"),
                       "leases of runs", pause=0.1)
            orphaned.append(move(db, "orphaned", scale.leases, """
                WITH run AS (UPDATE leasehold_internal.runs SET heartbeat_at = clock_timestamp() - heartbeat_timeout
                              WHERE status = 'running' RETURNING company_id, id)
                UPDATE leasehold_internal.calls AS c SET due_at = clock_timestamp() FROM run AS r
                 WHERE c.company_id = r.company_id AND c.subject_id = r.id AND c.slot = 'run_timer'"""))
    count = f"{scale.leases:,}".replace(",", " ")
    return [Row(f"{count} expired leases moved to release", expired, "s").at_most(1),
            Row(f"{count} leases of as many lost runs moved to release", orphaned, "s").at_most(1)]


def move(db, what, count, make_due):
    """Seconds from the commit that makes deadlines due until the last lease has moved."""
    db.pause()
    db.settle()
    db.run(make_due)
    begin = db.value("SELECT clock_timestamp()")
    wait_until(lambda: db.value("SELECT count(*) >= %s FROM leasehold.leases WHERE status = 'releasing'", count),
               f"{what} leases", pause=0.05)
    last = db.value("SELECT max(occurred_at) FROM leasehold.audit_events"
                    " WHERE action = 'environment.lease_release_requested' AND occurred_at > %s", begin)
    db.resume()
    wait_until(lambda: not db.value("SELECT EXISTS (SELECT FROM leasehold.leases WHERE status = 'releasing')"),
               "the releases", pause=0.1)
    return (last - begin).total_seconds()


def requests(lab, scale):
    nginx = Nginx(lab)
    paused, serving, bare = [], [], []
    with Server(lab) as server, Database(server, {"box": nginx.url}) as db:
        db.run("CREATE TABLE bare_row (id uuid PRIMARY KEY DEFAULT gen_random_uuid(),"
               " created_at timestamptz NOT NULL DEFAULT now(), body text NOT NULL)")
        db.run("GRANT INSERT ON bare_row TO bench_client")
        # the warnings that nobody serves would be measured, too
        db.run("ALTER ROLE bench_client SET client_min_messages = error")
        db.run("ALTER ROLE bench_client SET log_min_messages = error")
        for _ in range(scale.repetitions):
            bare.append(db.pgbench("bare_insert", 16, seconds=scale.seconds))
            db.pause()
            paused.append(db.pgbench("request", 16, seconds=scale.seconds))
            db.resume()
            drain(db)
            serving.append(db.pgbench("request", 16, seconds=scale.seconds))
            drain(db)
    stick = "bare insert of one row, rows/s"
    return [Row("lease request, 16 clients, worker paused", paused, "requests/s", stick, bare).at_least(8000).share(0.3),
            Row("lease request, 16 clients, worker serving", serving, "requests/s", stick, bare)]


def drain(db):
    """Ends everything, without the worker's speed being measured."""
    wait_until(lambda: not db.value("SELECT EXISTS (SELECT FROM leasehold.leases WHERE status = 'acquiring')"),
               "the leases", pause=0.2)
    Flow(db).release()
    db.settle()


def events(lab, scale):
    rates = []
    with Server(lab) as server, Database(server, {}) as db:
        company = db.value("SELECT id FROM leasehold.companies")
        db.run("ALTER ROLE bench_client SET role = leasehold_worker")
        db.run("GRANT leasehold_worker TO bench_client")
        for _ in range(scale.repetitions):
            rates.append(db.pgbench("event", 16, seconds=scale.seconds, company=company))
        db.run("ALTER ROLE bench_client RESET role")
        db.run("REVOKE leasehold_worker FROM bench_client")
    return [Row("activity insert, single statement, 16 clients", rates, "events/s").at_least(10000)]


def stop(lab, scale):
    silent = LatencyServer(lab, -1)
    rows = []
    shim = {"LD_PRELOAD": lab.program("hanging_resolver.so"), "HANGING_RESOLVER_S": "20"}
    with Server(lab, environment=shim) as server, Database(server, {}) as db:
        db.add_provider("hanging", silent.url, ready=False)
        db.add_provider("nameless", "https://hang.invalid/rpc", ready=False)
        times = {"cancel": [], "terminate": [], "worker exit": [], "DROP DATABASE": []}
        rounds = max(scale.attempts // 20, 3)
        quiet = [drop_elsewhere(server) for _ in range(rounds)]
        for attempt in range(rounds):
            db.request("hanging", 200)
            db.request("nameless", 20)
            wait_until(lambda: db.value("SELECT sum(in_flight) >= 100 FROM leasehold_internal.provider_states()"),
                       "calls that hang", 30)
            time.sleep(0.05 + 0.037 * attempt)
            times["cancel"].append(interrupt(db, "pg_cancel_backend"))
            times["terminate"].append(interrupt(db, "pg_terminate_backend"))
            times["DROP DATABASE"].append(drop_elsewhere(server))
            pid = db.worker_pid()
            begin = time.monotonic()
            db.run("SELECT pg_terminate_backend(%s)", pid)
            wait_until(lambda p=pid: not os.path.exists(f"/proc/{p}"), "the worker's end", 60, 0.0005)
            times["worker exit"].append((time.monotonic() - begin) * 1e3)
            wait_until(lambda p=pid: db.worker_pid() != p, "another worker", 60, 0.02)
        for what, values in times.items():
            yard = ("ms when nothing hangs", [max(quiet)]) if what == "DROP DATABASE" else ()
            rows.append(Row(f"{what} while calls and a name server hang: the slowest of {rounds}", [max(values)], "ms", *yard,
                            note=f"median {statistics.median(values):.0f} ms").at_most(100))
    return rows


def interrupt(db, function):
    """Milliseconds until a client that waits for a lease learns that it was interrupted."""
    lease = db.value("SELECT leasehold.request_lease('hanging')")
    waiter = db.server.open(db.name, "bench_client")
    ended = []

    def wait():
        try:
            with waiter.cursor() as cursor:
                cursor.execute("SELECT leasehold.wait_for_lease(%s, '30 seconds')", (lease,))
        except psycopg2.Error:
            pass
        ended.append(time.monotonic())

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.1)
    begin = time.monotonic()
    db.run(f"SELECT {function}(%s)", waiter.info.backend_pid)
    thread.join()
    waiter.close()
    return (ended[0] - begin) * 1e3


def drop_elsewhere(server):
    """Milliseconds that DROP DATABASE of another database takes, after a checkpoint."""
    with server.connect("postgres") as connection, connection.cursor() as cursor:
        cursor.execute("CREATE DATABASE elsewhere STRATEGY file_copy")
        cursor.execute("CHECKPOINT")
        begin = time.monotonic()
        cursor.execute("DROP DATABASE elsewhere")
        return (time.monotonic() - begin) * 1e3


def commands(lab, scale):
    nginx = Nginx(lab)
    megabytes = scale.seconds * 20
    sandboxes = lab.make_directory("sandboxes")
    os.chmod(sandboxes, 0o700)
    settings = {"leasehold.bubblewrap": "on", "leasehold.bubblewrap_directory": sandboxes,
                "leasehold.bubblewrap_data_filesystem": "on", "leasehold.max_output": f"{megabytes}MB"}
    bare, sandbox, http, piped, stored, crowd = [], [], [], [], [], []
    with Server(lab, settings) as server, Database(server, {"box": nginx.url}) as db:
        db.run("SELECT leasehold.allow_provider('acme', 'bubblewrap')")
        db.run("SELECT leasehold.create_environment('local', 'bubblewrap', '{\"processes\": 2000}', company => 'acme')")
        local, box = warm_lease(db, "local"), warm_lease(db, "box")
        for _ in range(scale.repetitions):
            bare.append(statistics.median(milliseconds(bare_sandbox, scale.attempts)))
            sandbox.append(statistics.median(milliseconds(lambda: command(db, local, "true"), scale.attempts)))
            http.append(statistics.median(milliseconds(lambda: command(db, box, "true"), scale.attempts)))
            piped.append(megabytes / (milliseconds(lambda: bare_pipe(megabytes), 1)[0] / 1e3))
            stored.append(megabytes / (milliseconds(lambda: command(db, local, f"head -c {megabytes}M /dev/zero"), 1)[0] / 1e3))
            crowd.append(milliseconds(lambda: many_commands(db, local, 200), 1)[0] / 1e3)
        db.run("SELECT leasehold.release_lease(l) FROM unnest(%s::uuid[]) AS l", [local, box])
        wait_until(lambda: db.value("SELECT bool_and(status = 'released') FROM leasehold.leases"), "the end of the leases")
    return [Row("command in a sandbox on this host, from start_command() until its end is known", sandbox, "ms",
                "bwrap alone, ms", bare),
            Row("the same with an HTTP provider", http, "ms"),
            Row(f"output of {megabytes} MB, stored", stored, "MB/s", "read from a pipe and dropped, MB/s", piped),
            Row("200 commands at once that take 1 s, until all have ended", crowd, "s")]


def warm_lease(db, environment):
    lease = db.value("SELECT leasehold.request_lease(%s)", environment)
    wait_until(lambda: db.value("SELECT status = 'active' FROM leasehold.leases WHERE id = %s", lease), "a lease", 30)
    return lease


def command(db, lease, script):
    """Runs one to its end."""
    started = db.value("SELECT leasehold.start_command(%s, shell => %s)", lease, script)
    while not db.value("SELECT done FROM leasehold.wait_for_command(%s, '60 seconds')", started):
        pass


def many_commands(db, lease, count):
    db.run("SELECT leasehold.start_command(%s, shell => 'sleep 1; echo done') FROM generate_series(1, %s)", lease, count)
    wait_until(lambda: not db.value("SELECT EXISTS (SELECT FROM leasehold.commands WHERE status <> 'finished')"), "the commands")
    bad = db.rows("SELECT outcome, failure_reason FROM leasehold.commands WHERE lease_id = %s AND outcome <> 'exited'", lease)
    if bad:
        raise RuntimeError(f"commands did not end well: {bad}")


def bare_sandbox():
    subprocess.run(["bwrap", "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "sh", "-c", "true"],
                   check=True)


def bare_pipe(megabytes):
    with subprocess.Popen(["head", "-c", f"{megabytes}M", "/dev/zero"], stdout=subprocess.PIPE) as process:
        while process.stdout.read1(65536):
            pass


def milliseconds(function, times):
    taken = []
    for _ in range(times):
        begin = time.monotonic()
        function()
        taken.append((time.monotonic() - begin) * 1e3)
    return taken


ALL = {function.__name__: function for function in
       (calls, snapshot, dead, cycle, latency, start, deadlines, requests, events, stop, commands)}


def run(lab, names, scale):
    rows = []
    for name in names:
        say(f"measuring: {name}")
        measured = ALL[name](lab, scale)
        for row in measured:
            say(f"  {row.what}: {row.value:.4g} {row.unit}" + (f", {row.ratio:.0%} of the yardstick" if row.yard else ""))
        rows += measured
    return rows
