"""Runs the suites that dev/check.sh describes: python3 checks WORK [SELECTION].

Prints a line for each file of tests, what went wrong, and at last the counts.
"""

from __future__ import annotations

import concurrent.futures
import fnmatch
import os
import pathlib
import shutil
import signal
import sys
import threading
import time

import docs
import lint
import suites
from jobs import Job, Outcome, Place, stop_programs
from processes import adopt_orphans, end_descendants

SLOTS = 2
UNSANITIZED = ("doubles", "lint")  # these run no code that could have been built so
SHOWN_LINES = 80


class Report:
    """Prints outcomes as they come and counts them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.passed = self.failed = self.skipped = 0

    def add(self, suite: str, outcome: Outcome) -> None:
        with self.lock:
            self.passed += outcome.passed
            self.failed += outcome.failed
            self.skipped += outcome.skipped
            word = "FAILED" if outcome.failed else "ok" if outcome.passed else "skipped"
            counts = [f"{count} {what}" for count, what in (
                (outcome.passed, "passed"), (outcome.failed, "failed"),
                (outcome.skipped, "skipped")) if count]
            took = "" if outcome.seconds is None else f"{outcome.seconds:7.1f} s"
            print(f"{word:7} {suite + ': ' + outcome.name:54} {took:9}  {', '.join(counts)}")
            detail = outcome.detail
            if len(detail) > SHOWN_LINES:
                left_out = len(detail) - SHOWN_LINES
                detail = detail[:SHOWN_LINES // 2] + [f"... {left_out} lines left out ..."] + detail[-SHOWN_LINES // 2:]
            for line in detail:
                print(f"        {line}")
            sys.stdout.flush()

    def last_line(self) -> str:
        line = f"{self.passed} passed, {self.failed} failed"
        return line + (f", {self.skipped} skipped" if self.skipped else "")


def chosen(files: list[str], patterns: list[str]) -> list[str]:
    """Those that a pattern names by the end of their path, or by its beginning."""
    return [file for file in files
            if any(fnmatch.fnmatch("/" + file, f"*/{pattern}")
                   or fnmatch.fnmatch("/" + file, f"*/{pattern}.*") for pattern in patterns)]


def choose(place: Place, selection: list[str]) -> list[Job]:
    """The jobs of the suites, or parts of suites, that were asked for."""
    available = suites.ALL | {"docs": docs.SUITE, "lint": lint.SUITE}
    if place.sanitized:
        available = {name: suite for name, suite in available.items() if name not in UNSANITIZED}
    files = {name: suite.files(place) for name, suite in available.items()}
    patterns = [word for word in selection if word not in available]
    for pattern in patterns:
        if not any(chosen(some, [pattern]) for some in files.values()):
            sys.exit(f"error: no suite and no file of tests is called {pattern}")
    jobs: list[Job] = []
    for name, suite in available.items():
        wanted = files[name] if name in selection or not selection else chosen(files[name], patterns)
        if wanted:
            jobs += suite.jobs(place, wanted)
    return jobs


def work(job: Job, report: Report) -> None:
    begin = time.monotonic()
    count = 0
    try:
        for outcome in job.run():
            report.add(job.suite, outcome)
            count += outcome.passed + outcome.failed + outcome.skipped
        if count == 0:
            raise RuntimeError("nothing was tested")
    except Exception as problem:  # pylint: disable=broad-except
        report.add(job.suite, Outcome(job.name, failed=1, seconds=time.monotonic() - begin,
                                      detail=[f"{type(problem).__name__}: {problem}"]))


def look_at_reports(place: Place, report: Report) -> None:
    """Whatever a sanitizer said, whichever test provoked it."""
    directory = place.work / "reports"
    for file in sorted(directory.iterdir()):
        text = file.read_text(errors="replace").partition("Shadow bytes around")[0]
        report.add("sanitize", Outcome(file.name, failed=1, detail=text.splitlines() + [f"see {file}"]))
    if not any(directory.iterdir()):
        report.add("sanitize", Outcome("no report", passed=1))


def main() -> int:
    work_directory = pathlib.Path(sys.argv[1])
    place = Place(work_directory, pathlib.Path(os.environ["BIN"]), bool(os.environ.get("SANITIZE")))
    selection = (sys.argv[2] if len(sys.argv) > 2 else "").split()
    jobs = choose(place, selection)
    report = Report()

    adopt_orphans()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    shutil.rmtree(place.output, ignore_errors=True)
    place.output.mkdir()
    if place.sanitized:
        shutil.rmtree(place.work / "reports", ignore_errors=True)
        (place.work / "reports").mkdir()

    pool = concurrent.futures.ThreadPoolExecutor(SLOTS)
    interrupted = False
    try:
        list(pool.map(lambda job: work(job, report), jobs))
    except KeyboardInterrupt:
        interrupted = True
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if interrupted:
        print("interrupted", file=sys.stderr)
        pool.shutdown(wait=False, cancel_futures=True)
        stop_programs()
    pool.shutdown()
    left = end_descendants()
    if left and not interrupted:
        report.add("cleanup", Outcome("left running", failed=1, detail=left))
    if place.sanitized:
        look_at_reports(place, report)
    print(report.last_line())
    return 1 if report.failed or interrupted or not report.passed else 0


if __name__ == "__main__":
    sys.exit(main())
