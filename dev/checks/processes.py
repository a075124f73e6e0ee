"""Keeps what a program starts together: python3 processes.py COMMAND...

Runs the command, adopts and waits for what outlives its parent, and when the
command has ended, ends what is still running, says what that was, and fails.
The status is the command's, 128 and the number of the signal that ended it, or
LEFT_RUNNING.

Waiting matters: a killed postmaster that nobody waits for looks alive to
whoever wants to start it again.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import signal
import subprocess
import sys
import time

LEFT_RUNNING = 120
PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_descendants() -> list[str]:
    """Ends every descendant that is still there; returns their command lines."""
    found = {pid: command_line(pid) for pid in descendants(os.getpid())}
    found = {pid: line for pid, line in found.items() if line}
    for pid, line in found.items():
        # a postmaster ends its children and removes its shared memory
        send(pid, signal.SIGQUIT if "postgres" in line else signal.SIGTERM)
    deadline = time.monotonic() + 5
    while any(command_line(pid) for pid in found) and time.monotonic() < deadline:
        time.sleep(0.02)
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


def keep(command: list[str]) -> int:
    adopt_orphans()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        child = subprocess.Popen(command)
        pid = status = 0
        while pid != child.pid:
            pid, status = os.wait()
    except KeyboardInterrupt:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_descendants()
        return 128 + signal.SIGTERM
    left = end_descendants()
    for line in left:
        print(f"left running: {line}", flush=True)
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code or (LEFT_RUNNING if left else 0)


if __name__ == "__main__":
    os._exit(keep(sys.argv[1:]))
