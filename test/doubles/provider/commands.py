"""Commands: programs that are really run, each sandbox with a directory."""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable

from .wire import Json

WORKSPACE = "/workspace"
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
ORDER = "DOUBLE"  # a variable of the environment that is for the double
PATIENCE = 0.25  # between the polite signal and the other

libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """In the child: the double may be killed, and leaves nothing behind."""
    libc.prctl(1, signal.SIGKILL)


class Workspaces:
    """The directories of the sandboxes."""

    def __init__(self) -> None:
        self.directories: dict[str, str] = {}

    def of(self, provider_id: str) -> str:
        if provider_id not in self.directories:
            self.directories[provider_id] = tempfile.mkdtemp(prefix="double-")
        return self.directories[provider_id]

    def remove(self, provider_id: str) -> None:
        directory = self.directories.pop(provider_id, None)
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)

    def remove_all(self) -> None:
        for provider_id in list(self.directories):
            self.remove(provider_id)


class Command:
    """One program, from its start to its result."""

    def __init__(self, params: Json, directory: str,
                 emit: Callable[[str, bytes], None] | None) -> None:
        self.params = params
        self.directory = directory
        self.emit = emit
        self.output = {"stdout": bytearray(), "stderr": bytearray()}
        self.process: asyncio.subprocess.Process | None = None
        self.ended = asyncio.Event()
        self.killer: asyncio.Task[None] | None = None

    def cancel(self) -> None:
        if self.killer is None:
            self.killer = asyncio.get_running_loop().create_task(self.kill())

    async def kill(self) -> None:
        self.signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self.ended.wait(), PATIENCE)
        except TimeoutError:
            self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        if self.process is not None and not self.ended.is_set():
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                pass

    async def run(self) -> Json:
        limit = self.params.get("timeoutMs")
        try:
            await self.start()
        except OSError as problem:
            self.wrote("stderr", f"{problem.strerror}\n".encode())
            return self.result(127)
        try:
            code = await asyncio.wait_for(
                self.carry_out(), limit and limit / 1000)
        except TimeoutError:
            self.signal(signal.SIGKILL)
            self.wrote("stderr", f"timed out after {limit} ms\n".encode())
            return self.result(None, timed_out=True)
        finally:
            self.ended.set()
        if code < 0:
            return self.result(None, signal.Signals(-code).name)
        return self.result(code)

    async def start(self) -> None:
        params = self.params
        cwd = params.get("cwd", WORKSPACE)
        if cwd == WORKSPACE or cwd.startswith(WORKSPACE + "/"):
            cwd = self.directory + cwd.removeprefix(WORKSPACE)
        env = {"PATH": PATH} | params.get("env", {})
        env.pop(ORDER, None)
        self.process = await asyncio.create_subprocess_exec(
            params["command"], *params.get("args", ()), cwd=cwd, env=env,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True,
            preexec_fn=die_with_parent)

    async def carry_out(self) -> int:
        process = self.process
        assert process is not None
        await asyncio.gather(
            self.feed(process), self.read("stdout", process.stdout),
            self.read("stderr", process.stderr))
        return await process.wait()

    async def feed(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(self.params.get("stdin", "").encode())
            await process.stdin.drain()
            process.stdin.close()
        except (BrokenPipeError, ConnectionResetError):
            pass

    async def read(self, name: str,
                   pipe: asyncio.StreamReader | None) -> None:
        assert pipe is not None
        while data := await pipe.read(65536):
            self.wrote(name, data)

    def wrote(self, name: str, data: bytes) -> None:
        if self.emit is not None:
            self.emit(name, data)
        self.output[name] += data

    def result(self, code: int | None, signal_name: str | None = None,
               timed_out: bool = False) -> Json:
        return finished(code, signal_name, timed_out, **{
            name: data.decode("utf-8", "replace")
            for name, data in self.output.items()})


def finished(code: int | None, signal_name: str | None = None,
             timed_out: bool = False, stdout: str = "",
             stderr: str = "") -> Json:
    return {"exitCode": code, "signal": signal_name, "timedOut": timed_out,
            "stdout": stdout, "stderr": stderr}
