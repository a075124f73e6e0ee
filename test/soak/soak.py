#!/usr/bin/env python3
"""Leases for a long time.

Several clients take leases through their whole lives, over and over, from the
HTTP double, which now and then loses answers, cuts connections and answers
nonsense.  Nothing is killed: the worker has to last.  What it holds is sampled
all the while, and must not grow once it is warm:

  memory        anonymous pages of the process, so without shared buffers: the
                least-squares slope over the last two thirds, times their length
  contexts      the same for PostgreSQL's own count of its memory contexts
  descriptors   the middle of the last third against that of the second; of
                sockets, pipes and the like alone, since the server keeps files
                of tables open up to a limit of its own
  dispatch      rows of the dispatch table: those of the leases of the moment

And no lease may be lost: at the end provider, rows and events are compared as
in test/chaos/chaos.py, whose parts are used.

Prints TAP, what it sees every ten seconds, and at last how many passed.
"""

import contextlib
import os
import re
import shutil
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "chaos"))
import chaos  # pylint: disable=wrong-import-position

MIB = 1 << 20
SAMPLE_S = 1
PROGRESS_S = 10
METHODS = ["acquire", "release", "destroy", "find"]


@dataclass
class Sample:
    """What the worker held at one moment."""

    at: float
    memory: int
    contexts: int
    descriptors: int
    files: int
    calls: int
    calls_bytes: int


class Client(chaos.Client):
    """Goes on until told to stop; the lease that it has is taken to its end."""

    def __init__(self, server, name, seed):
        super().__init__(server, name, 0, seed, "")
        self.stopping = threading.Event()

    def run(self):
        try:
            while not self.stopping.is_set():
                self.live(f"{self.label}-{len(self.ended)}")
        except Exception as error:  # pylint: disable=broad-except
            self.problem = f"{self.label}: {type(error).__name__}: {error}"


class Observer:
    """Looks at the worker from outside, and at the dispatch table."""

    def __init__(self, server):
        self.connection = server.connect()
        self.log = server.log
        self.log_read = 0
        self.contexts = 0
        self.pid = self.worker()
        self.samples = []

    def worker(self):
        pids = [pid for (pid,) in self.query(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'leasehold worker'")]
        return pids[0] if len(pids) == 1 else None

    def query(self, sql, *args):
        with self.connection.cursor() as cursor:
            cursor.execute(sql, args)
            return cursor.fetchall()

    def sample(self, at):
        with open(f"/proc/{self.pid}/smaps_rollup", encoding="ascii") as rollup:
            memory = int(re.search(r"^Anonymous:\s+(\d+) kB", rollup.read(), re.MULTILINE)[1]) * 1024
        ((calls, size),) = self.query("SELECT count(*), pg_total_relation_size('leasehold_internal.calls')"
                                      " FROM leasehold_internal.calls")
        self.read_contexts()
        self.query("SELECT pg_log_backend_memory_contexts(%s)", self.pid)
        files, others = self.descriptors()
        self.samples.append(Sample(at, memory, self.contexts, others, files, calls, size))

    def descriptors(self):
        """How many files are open, and how much else; one may be closed between list and look."""
        directory = f"/proc/{self.pid}/fd"
        targets = []
        for number in os.listdir(directory):
            with contextlib.suppress(FileNotFoundError):
                targets.append(os.readlink(os.path.join(directory, number)))
        files = sum(target.startswith("/") for target in targets)
        return files, len(targets) - files

    def read_contexts(self):
        """The last total in the server's log that it wrote since the last look."""
        with open(self.log, "rb") as log:
            log.seek(self.log_read)
            text = log.read()
        whole = text.rfind(b"\n") + 1
        self.log_read += whole
        if totals := re.findall(rb"Grand total: (\d+) bytes", text[:whole]):
            self.contexts = int(totals[-1])


def growth(points):
    """How much a least-squares line through (time, value) rises from the first to the last."""
    middle_x = statistics.fmean(x for x, _ in points)
    middle_y = statistics.fmean(y for _, y in points)
    spread = sum((x - middle_x) ** 2 for x, _ in points)
    slope = sum((x - middle_x) * (y - middle_y) for x, y in points) / spread
    return slope * (points[-1][0] - points[0][0])


def watch(tap, observer, clients, seconds):
    """Samples until the time is over."""
    begin = time.monotonic()
    next_progress = PROGRESS_S
    while (at := time.monotonic() - begin) < seconds:
        observer.sample(at)
        if at >= next_progress:
            next_progress += PROGRESS_S
            last = observer.samples[-1]
            tap.note(f"{at:4.0f} s: {sum(len(client.ended) for client in clients)} leases, "
                     f"memory {last.memory / MIB:.2f} MiB, contexts {last.contexts / MIB:.2f} MiB, "
                     f"{last.descriptors} descriptors and {last.files} files, dispatch table {last.calls} rows, {last.calls_bytes // 1024} kiB")
        time.sleep(SAMPLE_S)


def check_samples(tap, samples, args):
    warm = [sample for sample in samples if sample.at >= args.seconds / 3]
    halves = ([sample.descriptors for sample in warm if sample.at < args.seconds * 2 / 3],
              [sample.descriptors for sample in warm if sample.at >= args.seconds * 2 / 3])
    for what, name in (("memory", "memory"), ("contexts", "memory contexts")):
        grown = growth([(sample.at, getattr(sample, what)) for sample in warm]) / MIB
        highest = max(getattr(sample, what) for sample in samples) / MIB
        tap.note(f"{name}: {grown:+.2f} MiB in the last {warm[-1].at - warm[0].at:.0f} s, {highest:.2f} MiB at most")
        tap.ok(grown <= args.memory_bound, f"{name}: growth is at most {args.memory_bound:g} MiB")
    before, after = map(statistics.median, halves)
    tap.note(f"descriptors: {before:g}, then {after:g}, {max(sample.descriptors for sample in samples)} at most")
    tap.ok(after - before <= args.descriptor_bound, f"descriptors: growth is at most {args.descriptor_bound}")
    most = max(sample.calls for sample in samples)
    tap.note(f"dispatch table: {most} rows, {max(sample.calls_bytes for sample in samples) // 1024} kiB at most")
    # an operation and a deadline for each lease, with room for strays and what is not about leases
    tap.ok(most <= 4 * args.clients + 50, "the dispatch table holds no more than the leases of the moment", most)


def soak(tap, args):
    directory = tempfile.mkdtemp(prefix="soak-", dir=args.directory)
    double = chaos.Double(directory, "lookup", args.seed)
    server = chaos.Server(args.bin, directory,
                          chaos.SETTINGS | {"leasehold.token_directory": chaos.token_directory(directory, double)})
    clients = [Client(server, f"c{number}", args.seed) for number in range(args.clients)]
    try:
        server.start()
        chaos.prepare(server, double, {"p": args.faults, "kinds": chaos.FAULTS, "methods": METHODS})
        for client in clients:
            client.start()
        while not any(client.ended or client.problem for client in clients):
            time.sleep(0.1)
        observer = Observer(server)
        watch(tap, observer, clients, args.seconds)
        for client in clients:
            client.stopping.set()
        for client in clients:
            client.join(chaos.PATIENCE_S * 2)
        problems = [client.problem or client.label for client in clients if client.problem or client.is_alive()]
        tap.ok(not problems, "every client took its leases to their end", problems)
        interrupted = sum(client.interrupted for client in clients)
        tap.ok(not interrupted, "no statement of a client failed", interrupted)
        tap.ok(chaos.settle(server, tap), "nothing is under way for ever")
        tap.ok(observer.worker() == observer.pid, "one worker served from the beginning to the end", observer.worker())
        check_samples(tap, observer.samples, args)
        statuses = chaos.check_rows_and_events(server, tap, clients)
        state = double.state()
        chaos.note_counters(tap, state["counters"])
        chaos.check_nothing_left(tap, state, statuses)
        chaos.check_manners(tap, server, state["counters"], "soak")
    finally:
        server.stop()
        double.stop()
        if tap.failed:
            tap.note(f"kept for inspection: {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)


def main():
    parser = chaos.argument_parser(__doc__, clients=8, faults=0.03)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--memory-bound", type=float, default=8, help="MiB")
    parser.add_argument("--descriptor-bound", type=int, default=3)
    args = parser.parse_args()

    tap = chaos.Tap()
    tap.note(f"{args.seconds:g} s, {args.clients} clients, seed {args.seed}")
    soak(tap, args)
    status = tap.done()
    print(f"{tap.count - tap.failed} passed, {tap.failed} failed")
    return status


if __name__ == "__main__":
    sys.exit(main())
