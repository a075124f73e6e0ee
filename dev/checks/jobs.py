"""Jobs, what comes out of them, and the programs that they run.

Everything that a job starts is a descendant of this process, which adopts what
outlives its parent, so that nothing can be left running unseen.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

JOB_LIMIT = 900  # seconds; a test that takes longer hangs
PR_SET_CHILD_SUBREAPER = 36


@dataclass
class Outcome:
    """What became of one file of tests, or of one check of the sources."""

    name: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float | None = None
    detail: list[str] = field(default_factory=list)  # why it failed or was skipped


@dataclass
class Job:
    """Work that one of the two slots does; yields outcomes as they come."""

    suite: str
    name: str
    run: Callable[[], Iterator[Outcome]]


@dataclass
class Place:
    """Where things are."""

    work: pathlib.Path
    bin: pathlib.Path
    sanitized: bool

    @property
    def source(self) -> pathlib.Path:
        return self.work / "src"

    @property
    def output(self) -> pathlib.Path:
        return self.work / "check"

    def files(self, pattern: str) -> list[str]:
        return sorted(str(path.relative_to(self.source))
                      for path in self.source.glob(pattern))

    def environment(self, **more: str) -> dict[str, str]:
        """Without what could lead a test to some other server."""
        kept = {name: value for name, value in os.environ.items()
                if not name.startswith(("PG", "LC_", "MAKE", "PERL"))}
        return kept | {
            "PATH": f"{self.bin}:{os.environ['PATH']}", "LANG": "C.UTF-8",
            "TMPDIR": "/tmp", **more}


class Program:
    """A running program in a process group of its own, and its output."""

    running: set[Program] = set()
    stopping = False

    def __init__(self, command: list[str | pathlib.Path], log: pathlib.Path,
                 environment: dict[str, str], directory: pathlib.Path,
                 limit: float = JOB_LIMIT) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        self.timed_out = False
        self.process = subprocess.Popen(
            [str(word) for word in command], cwd=directory, env=environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace",
            start_new_session=True)
        Program.running.add(self)
        if Program.stopping:
            self.kill()
        self.timer = threading.Timer(limit, self.on_limit)
        self.timer.daemon = True
        self.timer.start()

    def on_limit(self) -> None:
        self.timed_out = True
        self.kill()

    def kill(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait(5)
        except ProcessLookupError:
            pass
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)

    def lines(self) -> Iterator[str]:
        """Each line as it comes; all of them are in the log as well."""
        assert self.process.stdout is not None
        with open(self.log, "w", encoding="utf-8") as log:
            for line in self.process.stdout:
                log.write(line)
                yield line.rstrip("\n")
        self.process.wait()
        self.timer.cancel()
        Program.running.discard(self)

    @property
    def status(self) -> str | None:
        """How it failed, or None."""
        if self.timed_out:
            return "took too long and was ended"
        code = self.process.returncode
        if code < 0:
            return f"ended by {signal.Signals(-code).name}"
        return f"exit code {code}" if code != 0 else None


def run(command: list[str | pathlib.Path], log: pathlib.Path,
        environment: dict[str, str], directory: pathlib.Path,
        limit: float = JOB_LIMIT) -> tuple[list[str], str | None]:
    """What it printed, and how it failed."""
    program = Program(command, log, environment, directory, limit)
    return list(program.lines()), program.status


def since(begin: float) -> float:
    return time.monotonic() - begin


def adopt_orphans() -> None:
    """A killed postmaster that is not waited for looks alive to whoever wants to start it again."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    threading.Thread(target=reap_adopted, daemon=True).start()


def reap_adopted() -> None:
    """Waits for adopted children that have ended; our own are of this session, or programs."""
    while True:
        time.sleep(0.05)
        own = {program.process.pid for program in list(Program.running)}
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) in own:
                continue
            try:
                stat = pathlib.Path("/proc", entry, "stat").read_text()
                state, parent, _, session = stat.rpartition(")")[2].split()[:4]
                if state == "Z" and int(parent) == os.getpid() and int(session) != os.getsid(0):
                    os.waitpid(int(entry), os.WNOHANG)
            except (OSError, ChildProcessError):
                continue


def stop_programs() -> None:
    Program.stopping = True
    for program in list(Program.running):
        program.kill()


def end_leftovers() -> list[str]:
    """Ends every descendant that is still there; returns their command lines."""
    found = {pid: command_line(pid) for pid in descendants(os.getpid())}
    found = {pid: line for pid, line in found.items() if line}
    for pid, line in found.items():
        # a postmaster ends its children and removes its shared memory
        send(pid, signal.SIGQUIT if "postgres" in line else signal.SIGTERM)
    deadline = time.monotonic() + 5
    while any(command_line(pid) for pid in found) and time.monotonic() < deadline:
        time.sleep(0.05)
        reap()
    for pid in found:
        send(pid, signal.SIGKILL)
    reap()
    return sorted(set(found.values()))


def descendants(ancestor: int) -> list[int]:
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = pathlib.Path("/proc", entry, "stat").read_text()
            except OSError:
                continue
            parents[int(entry)] = int(stat.rpartition(")")[2].split()[1])
    found = [ancestor]
    for pid in found:
        found.extend(child for child, parent in parents.items() if parent == pid)
    return found[1:]


def command_line(pid: int) -> str:
    """Empty for what is gone or a zombie."""
    try:
        words = pathlib.Path("/proc", str(pid), "cmdline").read_bytes()
    except OSError:
        return ""
    return words.replace(b"\0", b" ").decode(errors="replace").strip()


def send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0] != 0:
            pass
    except ChildProcessError:
        pass
