#!/usr/bin/env python3
"""Commands under fire.

Several clients run commands in sandboxes on this host, follow their output and
now and then cancel them, while the worker and the whole server are killed with
SIGKILL again and again.  Each command notes its number in a file of the lease's
workspace, and what it writes is numbered.  Afterwards:

  no command ran twice, and one that is said to have exited ran once
  no piece of output that a client saw is missing or different, none is there
  twice, and they are numbered without gaps
  no process, workspace or directory of a sandbox is left
  every command has one event for its request and one for its end

Prints TAP.  Everything random comes from --seed, which is printed; the moments
of the kills depend on the machine, so a seed repeats the plan, not the run.
"""

import collections
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

import psycopg2

from chaos import PATIENCE_S, SETTINGS, Client, Killer, Server, Tap, argument_parser, settle

SCRIPT = "echo {number} >>ran; for i in 1 2 3 4 5 6 7 8; do echo {number} $i; sleep 0.0{pause}; done"
LINES = "".join(f"{{number}} {i}\n" for i in range(1, 9))


class CommandClient(Client):
    """Takes its leases, and in each some commands, one after the other through their lives."""

    def __init__(self, server, name, leases, commands, seed):
        super().__init__(server, name, leases, seed, "")
        self.commands = commands
        self.seen = collections.defaultdict(dict)	# command: seq: data
        self.outcomes = {}				# command: (number, outcome)
        self.ran = collections.Counter()	# number: how often, as the workspace says

    def again(self, sql, *args):
        """Repeated until the server is there to answer."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            try:
                return self.query(sql, *args)
            except psycopg2.Error as error:
                self.interrupted += 1
                self.connection = None
                code = error.pgcode or ""
                if code and not code.startswith(("57", "08")) and code not in ("PT503", "25P03"):
                    raise
                time.sleep(0.05 + self.random.random() / 10)
        raise RuntimeError(f"no answer in {PATIENCE_S} s: {sql}")

    def live(self, key):
        lease = self.again("SELECT leasehold.request_lease('local', idempotency_key => %s, acquire_timeout => '10 minutes')", key)[0]
        status = self.until("SELECT done, status FROM leasehold.wait_for_lease(%s, '2 seconds')", lease)
        if status != "active":
            raise RuntimeError(f"lease {lease} is {status}")
        for number in range(self.commands):
            self.command(lease, f"{key}-{number}")
        self.count_runs(lease, key)
        self.again("SELECT leasehold.release_lease(%s)", lease)
        self.ended[key] = (lease, self.until("SELECT done, status FROM leasehold.wait_for_lease(%s, '2 seconds')", lease))

    def until(self, sql, *args):
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            done, state = self.again(sql, *args)
            if done:
                return state
        raise RuntimeError(f"never done: {sql} {args}")

    def command(self, lease, number):
        script = SCRIPT.format(number=number, pause=self.random.randrange(1, 9))
        command = self.again("SELECT leasehold.start_command(%s, shell => %s, idempotency_key => %s)", lease, script, number)[0]
        cancel = self.random.random() < 0.1
        read = 0
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            piece = self.again("SELECT seq, data FROM leasehold.read_output(%s, %s, '1 second') LIMIT 1", command, read)
            if piece is not None:
                read = piece[0]
                self.seen[command][read] = bytes(piece[1])
                if cancel:
                    self.again("SELECT leasehold.cancel_command(%s)", command)
                continue
            done, outcome = self.again("SELECT done, outcome FROM leasehold.wait_for_command(%s, '0 seconds')", command)
            if done:
                self.outcomes[command] = (number, outcome)
                return
        raise RuntimeError(f"command {command} does not end")

    def count_runs(self, lease, key):
        """What the workspace tells; asked for until an answer comes through."""
        for attempt in range(100):
            command = self.again("SELECT leasehold.start_command(%s, shell => 'cat ran', idempotency_key => %s)", lease,
                                 f"{key}-count-{attempt}")[0]
            if self.until("SELECT done, outcome FROM leasehold.wait_for_command(%s, '2 seconds')", command) == "exited":
                text = self.again("SELECT string_agg(convert_from(data, 'UTF8'), '' ORDER BY seq) FROM leasehold.command_output"
                                  " WHERE command_id = %s AND stream = 'stdout'", command)[0]
                self.ran.update((text or "").split())
                return
        raise RuntimeError(f"lease {lease}: its workspace cannot be read")


def prepare(server):
    server.run("createdb", "-h", server.sockets, "-p", "54899", "-U", "postgres", "chaos")
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("CREATE EXTENSION leasehold")
        cursor.execute("CREATE ROLE chaos_client LOGIN IN ROLE leasehold_app")
        cursor.execute("SELECT leasehold.create_company('acme')")
        cursor.execute("SELECT leasehold.grant_company('acme', 'chaos_client', 'manager')")
        cursor.execute("SELECT leasehold.allow_provider('acme', 'bubblewrap')")
        cursor.execute("SELECT leasehold.grant_company('acme', 'postgres', 'manager')")
        cursor.execute("SELECT leasehold.create_environment('local', 'bubblewrap', '{\"workspaceMb\": 10}', company => 'acme')")


def check_runs(tap, clients):
    ran = sum((client.ran for client in clients), collections.Counter())
    outcomes = [outcome for client in clients for outcome in client.outcomes.values()]
    tap.note(f"outcomes: {dict(collections.Counter(outcome for _, outcome in outcomes))}")
    twice = {number: count for number, count in ran.items() if count > 1}
    tap.ok(not twice, "no command ran twice", twice)
    not_once = [number for number, outcome in outcomes if outcome == "exited" and ran[number] != 1]
    tap.ok(not not_once, "one that exited ran once", not_once)
    not_never = [number for number, outcome in outcomes if outcome == "failed" and ran[number] != 0]
    tap.ok(not not_never, "one that failed did not run", not_never)
    tap.ok({outcome for _, outcome in outcomes} <= {"exited", "cancelled", "lost", "unknown"}, "no outcome is another one", outcomes)


def check_output(tap, server, clients):
    stored = collections.defaultdict(dict)
    for command, seq, data in server.rows("SELECT command_id::text, seq, data FROM leasehold.command_output"):
        stored[command][seq] = bytes(data)
    seen = {(command, seq): data for client in clients for command, pieces in client.seen.items() for seq, data in pieces.items()}
    changed = [key for key, data in seen.items() if stored[key[0]].get(key[1]) != data]
    tap.ok(not changed, f"no output that was seen is missing or different ({len(seen)} pieces)", changed[:5])
    gaps = [command for command, pieces in stored.items() if sorted(pieces) != list(range(1, len(pieces) + 1))]
    tap.ok(not gaps, "output is numbered without gaps", gaps[:5])
    wrong = []
    for client in clients:
        for command, (number, outcome) in client.outcomes.items():
            text = b"".join(stored[command][seq] for seq in sorted(stored[command])).decode()
            whole = LINES.format(number=number)
            if not whole.startswith(text) or outcome == "exited" and text != whole:
                wrong.append((command, outcome, text))
    tap.ok(not wrong, "output is whole, or the beginning of it", wrong[:3])


def check_nothing_left(tap, sandboxes):
    deadline = time.monotonic() + 30
    left = None
    while time.monotonic() < deadline:
        left = [os.path.join(path, name) for path, names, _ in os.walk(sandboxes) for name in names if "." in name]
        left += subprocess.run(["pgrep", "-af", f"{sandboxes}|^/.leasehold init"], capture_output=True, text=True,
                               check=False).stdout.splitlines()
        if not left:
            break
        time.sleep(0.2)
    tap.ok(not left, "no process and no directory is left", "\n".join(left))


def check_events(tap, server):
    wrong = server.rows("""
        SELECT c.id, c.outcome, e.* FROM leasehold.commands AS c
        LEFT JOIN (SELECT a.entity_id, count(*) FILTER (WHERE a.action = 'environment.command_requested') AS requested,
                          count(*) FILTER (WHERE a.action = 'environment.command_finished') AS finished
                     FROM leasehold.audit_events AS a WHERE a.entity_type = 'command' GROUP BY 1) AS e
          ON e.entity_id = c.id::text
        WHERE c.status <> 'finished' OR e.requested IS DISTINCT FROM 1 OR e.finished <> 1""")
    tap.ok(not wrong, "every command has ended, with an event for its request and one for its end", wrong[:10])
    with open(server.log, encoding="utf8", errors="replace") as log:
        bad = [line for line in log if re.search(r"deadlock detected|PANIC|TRAP:|signal 11|could not apply", line)]
    tap.ok(not bad, "no deadlock and no crash of its own in the log", "".join(bad[:5]))


def play(tap, args):
    directory = tempfile.mkdtemp(prefix="chaos-", dir=args.directory)
    sandboxes = os.path.join(directory, "sandboxes")
    os.mkdir(sandboxes, 0o700)
    server = Server(args.bin, directory, SETTINGS | {
        "leasehold.bubblewrap": "on", "leasehold.bubblewrap_directory": sandboxes, "leasehold.bubblewrap_data_filesystem": "on",
        "leasehold.bubblewrap_free_memory": "64MB"})
    clients = [CommandClient(server, f"c{number}", args.leases, args.commands, args.seed) for number in range(args.clients)]
    killer = Killer(server, args.seed, args.kills)
    try:
        server.start()
        prepare(server)
        for client in clients:
            client.start()
        killer.start()
        for client in clients:
            client.join(PATIENCE_S * 2)
        killer.join(PATIENCE_S)
        killer.finished.set()
        tap.note(f"killed: {killer.done}; clients were interrupted {sum(c.interrupted for c in clients)} times")
        tap.ok(killer.problem is None and sum(killer.done.values()) >= args.kills, f"killed {args.kills} times", killer.problem)
        problems = [client.problem for client in clients if client.problem or client.is_alive()]
        tap.ok(not problems, f"every client took {args.leases} leases with {args.commands} commands each to their end", problems)
        tap.ok(settle(server, tap), "nothing is under way for ever")
        check_runs(tap, clients)
        check_output(tap, server, clients)
        check_events(tap, server)
        check_nothing_left(tap, sandboxes)
    finally:
        killer.finished.set()
        server.stop()
        if tap.failed:
            tap.note(f"kept for inspection: {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)


def main():
    parser = argument_parser(__doc__, clients=4, faults=0)
    parser.add_argument("--leases", type=int, default=3, help="of each client")
    parser.add_argument("--commands", type=int, default=15, help="in each lease")
    parser.add_argument("--kills", type=int, default=20)
    args = parser.parse_args()
    possible = subprocess.run(["bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--ro-bind", "/", "/", "true"],
                              capture_output=True, text=True, check=False)
    if possible.returncode != 0:
        print(f"1..0 # SKIP this machine does not let users make sandboxes: {possible.stderr.strip()}")
        return 0
    tap = Tap()
    tap.note(f"repeat the plan with --seed {args.seed}")
    play(tap, args)
    return tap.done()


if __name__ == "__main__":
    sys.exit(main())
