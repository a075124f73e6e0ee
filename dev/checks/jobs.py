"""Jobs, what comes out of them, and the programs that they run."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import processes

JOB_LIMIT = 900  # seconds; a test that takes longer hangs


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
    """A running program in a process group of its own, and its output.

    One that is kept may not leave anything running: see processes.py.
    """

    running: set[Program] = set()
    stopping = False

    def __init__(self, command: list[str | pathlib.Path], log: pathlib.Path,
                 environment: dict[str, str], directory: pathlib.Path,
                 limit: float = JOB_LIMIT, kept: bool = False) -> None:
        if kept:
            command = [sys.executable, processes.__file__, *command]
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
            self.process.wait(10)
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
        ended_by = code - 128 if code > 128 else -code
        if ended_by in signal.valid_signals():
            return f"ended by {signal.Signals(ended_by).name}"
        if code == processes.LEFT_RUNNING:
            return "left something running"
        return f"exit code {code}" if code != 0 else None


def run(command: list[str | pathlib.Path], log: pathlib.Path,
        environment: dict[str, str], directory: pathlib.Path,
        limit: float = JOB_LIMIT, kept: bool = False) -> tuple[list[str], str | None]:
    """What it printed, and how it failed."""
    program = Program(command, log, environment, directory, limit, kept)
    return list(program.lines()), program.status


def since(begin: float) -> float:
    return time.monotonic() - begin


def stop_programs() -> None:
    Program.stopping = True
    for program in list(Program.running):
        program.kill()
