#!/usr/bin/env python3
"""Tests of the HTTP provider double itself: ``python3 selftest.py``.

Each fault is provoked and each rule of validation is broken once, over a real
socket, with nothing but the standard library.
"""

from __future__ import annotations

import base64
import copy
import email.utils
import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
from typing import Any

Json = dict[str, Any]

PROGRAM = pathlib.Path(__file__).with_name("http_provider.py")
TOKEN = "a-token-for-tests"
INSTALLATION = "11111111-0000-7000-8000-000000000001"
COMPANY = "22222222-0000-7000-8000-000000000002"
ENVIRONMENT = "33333333-0000-7000-8000-000000000003"
LEASE = "44444444-0000-7000-8000-000000000004"
DROP = object()  # in a table of changes: the member is taken away


class Double:
    """A running double and the ways to talk to it."""

    def __init__(self, *arguments: str) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.ready = pathlib.Path(self.directory.name, "ready")
        self.process: subprocess.Popen[str]
        self.arguments = arguments
        self.start()

    def path(self, name: str) -> str:
        return os.path.join(self.directory.name, name)

    def start(self) -> None:
        self.ready.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), "--port", "0", "--token", TOKEN,
             "--ready-file", str(self.ready),
             *(a.replace("DIR", self.directory.name)
               for a in self.arguments)],
            stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.port = int(self.ready.read_text())
        assert line == f"listening on {self.port}\n", line

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        status = self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status

    def close(self) -> None:
        self.stop()
        self.directory.cleanup()

    def send(self, method: str, path: str, body: bytes | None = None,
             headers: dict[str, str] | None = None,
             ) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port,
                                                timeout=10)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response, response.read()
        finally:
            connection.close()

    def admin(self, method: str, path: str, order: Any = None) -> Any:
        body = None if order is None else json.dumps(order).encode()
        response, data = self.send(method, f"/_admin/{path}", body)
        answer = json.loads(data)
        if response.status != 200:
            raise AssertionError(f"{response.status} {answer}")
        return answer

    def state(self) -> Any:
        return self.admin("GET", "state")

    def counters(self) -> Any:
        return self.state()["counters"]

    def post(self, message: Any, **headers: str | None,
             ) -> tuple[http.client.HTTPResponse, bytes]:
        """Send one message; keyword headers replace or (None) drop one."""
        body = message if isinstance(message, bytes) \
            else json.dumps(message).encode()
        return self.send("POST", "/rpc", body, headers_for(message, headers))

    def rpc(self, message: Json) -> Json:
        response, body = self.post(message)
        assert response.status == 200, (response.status, body)
        answer: Json = json.loads(body)
        assert answer["jsonrpc"] == "2.0" and answer["id"] == message["id"]
        assert ("result" in answer) != ("error" in answer), answer
        return answer

    def result(self, method: str, **changes: Any) -> Any:
        answer = self.rpc(message(method, **changes))
        assert "result" in answer, answer
        return answer["result"]

    def error(self, sent: Json) -> int:
        answer = self.rpc(sent)
        assert "error" in answer, answer
        assert set(answer["error"]) == {"code", "message"}
        return int(answer["error"]["code"])

    def raw(self, data: bytes, timeout: float = 10) -> bytes:
        """Send bytes, return all that comes until the double hangs up."""
        with socket.create_connection(("127.0.0.1", self.port),
                                      timeout) as sock:
            sock.sendall(data)
            received = b""
            while part := sock.recv(65536):
                received += part
        return received


def headers_for(message: Any, changes: dict[str, str | None]) -> dict[
        str, str]:
    headers: dict[str, str | None] = {
        "Content-Type": "application/json",
        "Authorization": f"Bearer {TOKEN}"}
    if isinstance(message, dict):
        headers["Leasehold-Request-Id"] = str(message.get("id"))
        params = message.get("params")
        label = params.get("leasehold") if isinstance(params, dict) else None
        if isinstance(label, dict) and "idempotencyKey" in label:
            headers["Idempotency-Key"] = str(label["idempotencyKey"])
    headers |= {name.replace("_", "-"): value
                for name, value in changes.items()}
    return {name: value for name, value in headers.items()
            if value is not None}


def bytes_of(sent: Json, *extra: str) -> bytes:
    """The request as it goes over the wire."""
    body = json.dumps(sent).encode()
    lines = [f"{name}: {value}"
             for name, value in headers_for(sent, {}).items()]
    head = ["POST /rpc HTTP/1.1", "Host: x", *lines, *extra,
            f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(head).encode() + body


LABEL = {"installationId": INSTALLATION, "leaseId": LEASE, "generation": 1,
         "idempotencyKey": f"{LEASE}/1"}
BASE = {"driverKey": "double", "companyId": COMPANY,
        "environmentId": ENVIRONMENT, "issueId": None,
        "config": {"image": "debian:12", "apiKey": "s3cret"}}
MANIFEST = {
    "id": "test.double", "apiVersion": 1, "version": "1.0.0",
    "displayName": "Double", "description": "For tests", "author": "Tests",
    "categories": ["automation"],
    "capabilities": ["environment.drivers.register"],
    "entrypoints": {"worker": "worker.js"},
    "environmentDrivers": [{"driverKey": "double", "displayName": "Double",
                            "kind": "sandbox_provider", "configSchema": {}}]}
HELD = {"providerLeaseId": "sbx-999-none", "metadata": {}, "expiresAt": None}

PARAMS: dict[str, Json] = {
    "initialize": {"manifest": MANIFEST, "config": {}, "apiVersion": 1,
                   "instanceInfo": {"instanceId": INSTALLATION,
                                    "hostVersion": "1.0.0"}},
    "health": {},
    "shutdown": {},
    "environmentValidateConfig": {"driverKey": "double", "config": {"a": 1}},
    "environmentProbe": BASE,
    "environmentAcquireLease": BASE | {"runId": "run-1", "leasehold": LABEL},
    "environmentResumeLease": BASE | {
        "providerLeaseId": "sbx-999-none", "leaseMetadata": {},
        "leasehold": LABEL},
    "environmentReleaseLease": BASE | {
        "providerLeaseId": "sbx-999-none",
        "leasehold": LABEL | {"disposition": "delete"}},
    "environmentDestroyLease": BASE | {
        "providerLeaseId": "sbx-999-none",
        "leasehold": LABEL | {"disposition": "delete"}},
    "environmentRealizeWorkspace": BASE | {
        "lease": HELD, "workspace": {"localPath": "/home/me"},
        "leasehold": LABEL},
    "environmentExecute": BASE | {
        "lease": HELD, "command": "echo", "args": ["a", "b"],
        "leasehold": LABEL | {"commandId": "command-1"}},
    "environmentFindLease": BASE | {"leasehold": LABEL},
    "environmentListLeases": BASE | {
        "cursor": None, "leasehold": {"installationId": INSTALLATION}},
    "environmentCancelExecute": BASE | {
        "lease": HELD,
        "leasehold": LABEL | {"commandId": "command-1"}},
}
FULL_NAMES = {
    "acquire": "environmentAcquireLease", "resume": "environmentResumeLease",
    "release": "environmentReleaseLease", "destroy": "environmentDestroyLease",
    "find": "environmentFindLease", "list": "environmentListLeases",
    "execute": "environmentExecute", "realize": "environmentRealizeWorkspace",
    "cancel": "environmentCancelExecute", "probe": "environmentProbe",
    "validate": "environmentValidateConfig"}

next_id = iter(range(1, 1_000_000))


def message(method: str, **changes: Any) -> Json:
    """A correct request, then changed: a__b=1 sets params["a"]["b"]."""
    method = FULL_NAMES.get(method, method)
    params = copy.deepcopy(PARAMS[method])
    for path, value in changes.items():
        *parents, name = path.split("__")
        place = params
        for parent in parents:
            place = place[parent]
        if value is DROP:
            del place[name]
        else:
            place[name] = value
    return {"jsonrpc": "2.0", "id": f"r{next(next_id)}", "method": method,
            "params": params}


def faulty(fault: Any, method: str = "acquire", **changes: Any) -> Json:
    sent = message(method, **changes)
    sent["params"]["config"]["fault"] = {
        method if method in FULL_NAMES else "any": fault}
    return sent


class Exchange:
    """A request whose answer is not waited for yet."""

    def __init__(self, double: Double, sent: Json) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", double.port,
                                                     timeout=20)
        self.connection.request("POST", "/rpc", json.dumps(sent).encode(),
                                headers_for(sent, {}))

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def response(self) -> http.client.HTTPResponse:
        return self.connection.getresponse()

    def result(self) -> Any:
        return json.loads(self.response().read())["result"]


class WithDouble(unittest.TestCase):
    arguments: tuple[str, ...] = ()
    double: Double

    @classmethod
    def setUpClass(cls) -> None:
        cls.double = Double(*cls.arguments)

    @classmethod
    def tearDownClass(cls) -> None:
        cls.double.close()

    def setUp(self) -> None:
        self.double.admin("POST", "reset")

    def acquire(self, **changes: Any) -> str:
        lease = self.double.result("acquire", **changes)
        return str(lease["providerLeaseId"])

    def acquire_for(self, lease: str, generation: int = 1) -> str:
        return self.acquire(
            leasehold__leaseId=lease, leasehold__generation=generation,
            leasehold__idempotencyKey=f"{lease}/{generation}")

    def eventually(self, counter: str, value: int) -> None:
        give_up = time.monotonic() + 20
        while self.double.counters()[counter] != value:
            self.assertLess(time.monotonic(), give_up,
                            f"{counter} is not {value}")
            time.sleep(0.01)

    def live(self) -> int:
        return int(self.double.counters()["live"])

    def violations(self) -> int:
        return int(self.double.counters()["protocol_violations"])


class Lifecycle(WithDouble):
    """What an obedient provider does."""

    def test_initialize_announces_the_methods(self) -> None:
        result = self.double.result("initialize")
        self.assertEqual(set(result), {"ok", "supportedMethods"})
        self.assertIs(result["ok"], True)
        self.assertEqual(set(result["supportedMethods"]),
                         set(PARAMS) - {"initialize"})

    def test_health_and_shutdown(self) -> None:
        self.assertEqual(self.double.result("health"), {"status": "ok"})
        self.assertIsNone(self.double.result("shutdown"))

    def test_validate_and_probe(self) -> None:
        self.assertEqual(self.double.result("validate"),
                         {"ok": True, "normalizedConfig": {"a": 1}})
        self.assertEqual(
            self.double.result("validate", config={"reject": "no"}),
            {"ok": False, "errors": ["no"]})
        self.assertIs(self.double.result("probe")["ok"], True)

    def test_acquire_creates_and_records(self) -> None:
        lease = self.double.result("acquire", agentId="agent-1",
                                   issueId="issue-1")
        self.assertRegex(lease["providerLeaseId"], r"^sbx-\d+-[0-9a-f]{12}$")
        self.assertEqual(lease["metadata"], {
            "remoteCwd": "/workspace",
            "sandboxId": lease["providerLeaseId"]})
        state = self.double.state()
        [resource] = state["resources"]
        created = resource.pop("createdAt")
        self.assertRegex(created, r"^\d{4}-\d\d-\d\dT[\d:.]+Z$")
        self.assertEqual(resource, {
            "providerLeaseId": lease["providerLeaseId"], "leaseId": LEASE,
            "generation": 1, "installationId": INSTALLATION,
            "companyId": COMPANY, "environmentId": ENVIRONMENT,
            "agentId": "agent-1", "issueId": "issue-1", "runId": "run-1",
            "state": "running", "idempotencyKey": f"{LEASE}/1"})
        self.assertEqual(state["counters"]["protocol_violations"], 0)

    def test_acquire_keeps_a_requested_expiry(self) -> None:
        moment = "2031-01-01T00:00:00Z"
        lease = self.double.result("acquire", requestedExpiresAt=moment)
        self.assertEqual(lease["expiresAt"], moment)

    def test_acquire_is_idempotent_while_the_sandbox_lives(self) -> None:
        first = self.acquire()
        self.assertEqual(self.acquire(), first)
        counters = self.double.counters()
        self.assertEqual(counters["creates"], 1)
        self.assertEqual(counters["repeated_acquires"], 1)
        self.assertEqual(counters["acquires_per_key_max"], 2)
        self.double.result("destroy", providerLeaseId=first)
        self.assertNotEqual(self.acquire(), first)

    def test_release_deletes_parks_and_repeats(self) -> None:
        held = self.acquire()
        for disposition in ("keep", "stop"):
            self.assertIsNone(self.double.result(
                "release", providerLeaseId=held,
                leasehold__disposition=disposition))
            self.assertEqual(
                self.double.state()["resources"][0]["state"], "parked")
        self.assertEqual(self.live(), 1)
        resumed = self.double.result("resume", providerLeaseId=held,
                                     leasehold__generation=2)
        self.assertEqual(resumed["providerLeaseId"], held)
        [resource] = self.double.state()["resources"]
        self.assertEqual((resource["state"], resource["generation"]),
                         ("running", 2))
        for _ in range(2):
            self.assertIsNone(
                self.double.result("release", providerLeaseId=held))
        counters = self.double.counters()
        self.assertEqual((counters["live"], counters["removes"],
                          counters["already_gone"]), (0, 1, 1))

    def test_release_without_disposition_follows_reuse_lease(self) -> None:
        held = self.acquire()
        self.double.result("release", providerLeaseId=held,
                           config__reuseLease=True,
                           leasehold__disposition=DROP)
        self.assertEqual(self.double.counters()["parked"], 1)
        self.double.result("release", providerLeaseId=held,
                           leasehold__disposition=DROP)
        self.assertEqual(self.live(), 0)

    def test_destroy_always_deletes_and_repeats(self) -> None:
        held = self.acquire()
        for _ in range(2):
            self.assertIsNone(self.double.result(
                "destroy", providerLeaseId=held,
                leasehold__disposition="keep"))
        self.assertEqual(self.live(), 0)

    def test_a_null_provider_lease_id_is_a_no_op(self) -> None:
        self.acquire()
        for method in ("release", "destroy"):
            self.assertIsNone(
                self.double.result(method, providerLeaseId=None))
        self.assertEqual(self.live(), 1)

    def test_resume_of_a_missing_sandbox(self) -> None:
        self.assertEqual(self.double.result("resume"), {
            "providerLeaseId": None, "metadata": {"expired": True}})

    def test_a_sandbox_is_kept_from_strangers(self) -> None:
        held = self.acquire()
        for change in ({"companyId": "x"}, {"leasehold__leaseId": "x"},
                       {"leasehold__installationId": "x"}):
            self.assertEqual(self.double.error(message(
                "destroy", providerLeaseId=held, **change)), -32602)
        self.assertEqual(self.live(), 1)
        self.assertEqual(self.violations(), 3)

    def test_stale_generations_are_counted(self) -> None:
        held = self.acquire_for(LEASE, 3)
        self.double.result("release", providerLeaseId=held,
                           leasehold__generation=2)
        self.assertEqual(self.double.counters()["stale_generation_calls"], 1)

    def test_an_idempotency_key_belongs_to_one_lease(self) -> None:
        self.acquire()
        self.assertEqual(self.double.error(message(
            "acquire", leasehold__leaseId="another")), -32602)

    def test_find(self) -> None:
        self.assertEqual(self.double.result("find"),
                         {"providerLeaseId": None})
        held = self.acquire()
        found = self.double.result("find")
        self.assertEqual(found["providerLeaseId"], held)
        self.assertIsNone(self.double.result(
            "find", leasehold__generation=2)["providerLeaseId"])

    def test_list_pages(self) -> None:
        held = [self.acquire_for(f"lease-{i}") for i in range(5)]
        self.acquire_for("gone")
        self.double.admin("POST", "forget", {
            "providerLeaseId": self.double.state()[
                "resources"][-1]["providerLeaseId"]})
        self.acquire(leasehold__installationId="elsewhere",
                     leasehold__leaseId="e", leasehold__idempotencyKey="e")
        seen: list[Json] = []
        cursor, pages = None, 0
        while pages == 0 or cursor is not None:
            page = self.double.result("list", cursor=cursor,
                                      config__pageSize=2)
            self.assertEqual(set(page), {"leases", "nextCursor"})
            seen += page["leases"]
            cursor = page["nextCursor"]
            pages += 1
        self.assertEqual(pages, 3)
        self.assertEqual([lease["providerLeaseId"] for lease in seen], held)
        self.assertEqual(
            set(seen[0]),
            {"providerLeaseId", "leaseId", "companyId", "generation", "metadata"})
        self.assertEqual(self.double.error(
            message("list", cursor="not ours")), -32602)

    def test_realize_prefers_the_lease_then_remote_then_local(self) -> None:
        held = self.acquire()
        lease = {"providerLeaseId": held}
        workspace = {"localPath": "/l", "remotePath": "/r"}
        for have, there, wanted in (
                (lease | {"metadata": {"remoteCwd": "/m"}}, workspace, "/m"),
                (lease, workspace, "/r"), (lease, {"localPath": "/l"}, "/l"),
                (lease, {}, "/workspace")):
            self.assertEqual(self.double.result(
                "realize", lease=have, workspace=there)["cwd"], wanted)
        self.assertEqual(self.double.result(
            "realize", lease=lease, workspace=workspace,
            config={"workspace": "/w"})["cwd"], "/w")
        self.assertEqual(self.double.error(message("realize")), -32002)

    def test_execute(self) -> None:
        lease = {"providerLeaseId": self.acquire()}

        def run(script: str, **changes: Any) -> Any:
            return self.double.result(
                "execute", lease=lease, command="sh", args=["-c", script],
                **changes)

        self.assertEqual(self.double.result(
            "execute", lease=lease, command="echo", args=["a", "b c"]), {
                "exitCode": 0, "signal": None, "timedOut": False,
                "stdout": "a b c\n", "stderr": ""})
        self.assertEqual(run("exit 7")["exitCode"], 7)
        self.assertEqual(run("kill -9 $$")["signal"], "SIGKILL")
        self.assertEqual(run("cat", stdin="in")["stdout"], "in")
        self.assertEqual(run("pwd", cwd="/tmp")["stdout"], "/tmp\n")
        self.assertEqual(run("echo x >&2")["stderr"], "x\n")
        self.assertEqual(run("echo $A", env={"A": "1"})["stdout"], "1\n")
        self.assertEqual(run("env", env={"DOUBLE": "{}"})["stdout"].split(
            "\n")[0].split("=")[0], "PATH")
        self.assertEqual(self.double.result(
            "execute", lease=lease, command="no-such-thing")["exitCode"], 127)
        late = run("echo first; sleep 60", timeoutMs=200)
        self.assertEqual((late["exitCode"], late["timedOut"],
                          late["stdout"]), (None, True, "first\n"))
        self.assertEqual(self.violations(), 0)

    def test_a_sandbox_has_a_directory(self) -> None:
        lease = {"providerLeaseId": self.acquire()}
        where = self.double.result(
            "execute", lease=lease, command="sh",
            args=["-c", "mkdir below; pwd; echo kept >file"])["stdout"].strip()
        self.assertEqual(self.double.result(
            "execute", lease=lease, command="cat", args=["../file"],
            cwd="/workspace/below")["stdout"], "kept\n")
        self.double.result("release", **lease)
        self.assertFalse(os.path.exists(where))

    def test_commands_end_with_their_sandbox(self) -> None:
        held = self.acquire()
        with Exchange(self.double, message(
                "execute", lease={"providerLeaseId": held}, command="sleep",
                args=["60"])) as exchange:
            self.eventually("running", 1)
            self.double.result("release", providerLeaseId=held)
            self.assertEqual(exchange.result()["signal"], "SIGKILL")

    def test_executions_are_counted(self) -> None:
        lease = {"providerLeaseId": self.acquire()}
        for key, most in (("a", 1), ("b", 1), ("a", 2)):
            self.double.result("execute", lease=lease,
                               leasehold__idempotencyKey=key)
            self.assertEqual(
                self.double.counters()["executions_per_key_max"], most)
        self.assertEqual(self.double.counters()["executions"], 3)

    def test_execute_without_a_running_sandbox(self) -> None:
        gone = self.double.result("execute")
        self.assertEqual((gone["exitCode"], gone["timedOut"]), (1, False))
        self.assertIn("no such sandbox", gone["stderr"])
        none = self.double.result("execute", lease={"providerLeaseId": None})
        self.assertEqual(none["exitCode"], 1)
        held = self.acquire()
        self.double.result("release", providerLeaseId=held,
                           leasehold__disposition="stop")
        parked = self.double.result("execute", lease={"providerLeaseId": held})
        self.assertIn("parked", parked["stderr"])

    def test_cancel_ends_a_running_command(self) -> None:
        lease = {"providerLeaseId": self.acquire()}
        self.assertEqual(self.double.result("cancel", lease=lease), {})
        for script, number in (("sleep 60", "SIGTERM"),
                               ("trap '' TERM; sleep 60", "SIGKILL")):
            with Exchange(self.double, message(
                    "execute", lease=lease, command="sh",
                    args=["-c", "echo >ready; " + script])) as exchange:
                self.eventually("running", 1)
                while "ready" not in self.double.result(
                        "execute", lease=lease, command="ls", args=[],
                        leasehold__commandId="another")["stdout"]:
                    time.sleep(0.01)
                self.assertEqual(self.double.result("cancel", lease=lease), {})
                result = exchange.result()
            self.assertEqual((result["exitCode"], result["signal"]),
                             (None, number))
            self.eventually("running", 0)

    def test_a_cancel_may_be_pretended(self) -> None:
        lease = {"providerLeaseId": self.acquire()}
        with Exchange(self.double, message(
                "execute", lease=lease, command="sleep", args=["1"])) as exchange:
            self.eventually("running", 1)
            self.assertIsNone(self.double.rpc(
                faulty("pretend", "cancel", lease=lease))["result"])
            self.assertEqual(exchange.result()["exitCode"], 0)


class Streams(WithDouble):
    """Answers to execute that begin while the command runs."""

    def stream(self, script: str, order: Json, **changes: Any,
               ) -> tuple[http.client.HTTPResponse, list[Any]]:
        """The messages of a stream; what is no JSON comes as bytes."""
        sent = message("execute", lease={"providerLeaseId": self.acquire()},
                       command="sh", args=["-c", script],
                       env={"DOUBLE": json.dumps(order)}, **changes)
        with Exchange(self.double, sent) as exchange:
            response = exchange.response()
            try:
                body = response.read()
            except http.client.IncompleteRead as cut:
                body = cut.partial
        frames = body.split(b"\n")
        if order["format"] == "events":
            frames = [b"\n".join(
                line.removeprefix(b"data: ") for line in event.split(b"\r\n")
                if line.startswith(b"data: "))
                for event in body.split(b"\r\n\r\n")]
        return response, [self.read(frame) for frame in frames if frame]

    @staticmethod
    def read(frame: bytes) -> Any:
        try:
            return json.loads(frame)
        except ValueError:
            return frame

    @staticmethod
    def text(messages: list[Any], stream: str = "stdout") -> str:
        found = ""
        for one in messages:
            event = one.get("params", {}).get("event", {})
            if event.get("stream") == stream:
                found += event.get("text") or base64.b64decode(
                    event["dataBase64"]).decode()
        return found

    def test_formats(self) -> None:
        for form, kind in (("lines", "application/x-ndjson"),
                           ("events", "text/event-stream")):
            for more in ({}, {"chunk": 2}, {"split": 3},
                         {"encoding": "base64"}, {"notify": "command"}):
                with self.subTest(format=form, more=more):
                    response, messages = self.stream(
                        "echo out; echo err >&2; exit 4",
                        {"format": form, **more})
                    self.assertEqual(response.headers.get_content_type(), kind)
                    *before, last = messages
                    self.assertEqual(self.text(before), "out\n")
                    self.assertEqual(self.text(before, "stderr"), "err\n")
                    self.assertEqual(
                        {name: last["result"][name] for name in (
                            "exitCode", "stdout", "streamed")},
                        {"exitCode": 4, "stdout": "", "streamed": True})

    def test_notifications(self) -> None:
        for notify, run, channel in (
                ("channel", "run-1", "run-1"), ("channel", None, "command-1"),
                ("command", "run-1", "command-1")):
            _, messages = self.stream(
                "echo a", {"format": "lines", "notify": notify}, runId=run)
            self.assertEqual(messages[0], {
                "jsonrpc": "2.0", "method": "streams.emit", "params": {
                    "channel": f"env-exec-output:{channel}",
                    "companyId": COMPANY,
                    "event": {"stream": "stdout", "text": "a\n"}}})
        _, messages = self.stream("echo a",
                                  {"format": "lines", "notify": "log"})
        self.assertEqual(messages[0], {
            "jsonrpc": "2.0", "method": "execute.log",
            "params": {"stream": "stdout", "chunk": "a\n"}})

    def test_what_the_answer_holds(self) -> None:
        _, messages = self.stream("printf abcdef", {
            "format": "lines", "chunk": 2, "live": 2, "streamed": False})
        self.assertEqual(self.text(messages[:-1]), "abcd")
        self.assertEqual(messages[-1]["result"]["stdout"], "abcdef")
        self.assertNotIn("streamed", messages[-1]["result"])

    def test_output_comes_while_the_command_runs(self) -> None:
        sent = message("execute", lease={"providerLeaseId": self.acquire()},
                       command="sh", args=["-c", "echo first; sleep 60"],
                       config={"output": {"format": "lines"}})
        with Exchange(self.double, sent) as exchange:
            self.assertIn(b"first", exchange.response().readline())
            self.assertEqual(self.double.counters()["running"], 1)
        # whoever hangs up does not end it
        self.eventually("in_flight", 0)
        self.assertEqual(self.double.counters()["running"], 1)
        self.double.admin("POST", "reset")
        self.eventually("running", 0)

    def test_faults(self) -> None:
        for form in ("lines", "events"):
            def messages(fault: str, form: str = form) -> list[Any]:
                order = {"format": form, "fault": fault}
                return self.stream("echo mine", order)[1]

            with self.subTest(format=form):
                self.assertEqual(len(messages("cut_stream")), 1)
                self.assertEqual(len(messages("lose_answer")), 1)
                self.assertEqual(len(messages("no_answer")), 1)
                self.assertIsInstance(messages("cut_mid")[-1], bytes)
                self.assertIsInstance(messages("garbage_line")[0], bytes)
                late = messages("after_answer")
                self.assertIn("result", late[1])
                self.assertEqual(self.text(late[2:3]), "too late\n")
                foreign = messages("foreign_chunk")
                self.assertEqual(
                    [one["params"]["companyId"] for one in foreign[:2]],
                    ["00000000-0000-4000-8000-00000000dead", None])
                self.assertEqual(len(messages("malformed_chunk")), 13)
                huge = messages("huge_line:1")
                self.assertEqual(len(self.text(huge[:1])), 1024 * 1024)
                self.assertIn("error", messages("act_rpc_error:-32002")[-1])
                self.assertEqual(messages("malformed:null")[-1]["result"], None)
        self.assertEqual(self.violations(), 0)

    def test_a_stream_may_hang(self) -> None:
        sent = message("execute", lease={"providerLeaseId": self.acquire()},
                       command="echo", args=["a"], config={"output": {
                           "format": "lines", "fault": "hang_stream"}})
        with Exchange(self.double, sent) as exchange:
            response = exchange.response()
            self.assertIn(b"streams.emit", response.readline())
            self.eventually("running", 0)
            assert exchange.connection.sock is not None
            exchange.connection.sock.settimeout(0.3)
            self.assertRaises(TimeoutError, response.readline)

    def test_a_stream_may_be_noise(self) -> None:
        for form, noise in ("lines", b"{}\n"), ("events", b":\n"):
            with self.subTest(form=form):
                sent = message(
                    "execute", lease={"providerLeaseId": self.acquire()},
                    command="echo", args=["a"], config={"output": {
                        "format": form, "fault": "noise_stream"}})
                with Exchange(self.double, sent) as exchange:
                    response = exchange.response()
                    while response.readline() != noise:
                        pass
                    for _ in range(100000):
                        self.assertEqual(response.readline(), noise)

    def test_a_list_of_faults_is_for_the_tries_of_one_command(self) -> None:
        lease = {"providerLeaseId": self.acquire()}
        order = {"DOUBLE": json.dumps({"fault": ["status:429", None]})}
        for command in ("first", "second"):
            sent = message("execute", lease=lease, env=order,
                           leasehold__commandId=command)
            self.assertEqual([self.double.post(sent)[0].status
                              for _ in range(3)], [429, 200, 200])

    def test_orders_are_checked(self) -> None:
        lease = {"providerLeaseId": self.acquire()}
        for order in ({"format": "xml"}, {"chunk": 0}, {"surprise": 1}):
            self.assertEqual(self.double.error(message(
                "execute", lease=lease, config={"output": order})), -32602)
        self.assertEqual(self.double.error(message(
            "execute", lease=lease,
            config={"output": {"fault": "no-such"}})), -32602)

    def test_accept(self) -> None:
        everything = "application/json, application/x-ndjson, text/event-stream"
        for method, accept, fine in (
                ("probe", "application/json", True),
                ("probe", everything, False), ("probe", "text/html", False),
                ("execute", everything, True),
                ("execute", "application/json", False)):
            body = self.double.post(message(method), Accept=accept)[1]
            self.assertEqual("error" not in json.loads(body), fine,
                             (method, accept))


class Validation(WithDouble):
    """Every rule, broken once."""

    def refused(self, sent: Json, code: int = -32602) -> None:
        before = self.violations()
        self.assertEqual(self.double.error(sent), code)
        self.assertEqual(self.violations(), before + 1)

    def test_correct_requests_are_no_violation(self) -> None:
        for method in PARAMS:
            self.double.rpc(message(method))
        self.double.rpc(message("environmentProbe", leasehold={
            "installationId": INSTALLATION}))
        self.double.rpc({**message("environmentProbe"),
                         "paperclipInvocation": {
                             "id": "i", "scope": {"companyId": COMPANY}}})
        self.double.rpc({**message("acquire"), "id": 17})
        self.assertEqual(self.violations(), 0, self.double.counters())

    def test_each_required_member(self) -> None:
        for method, params in PARAMS.items():
            for name, value in params.items():
                if name in ("issueId", "cursor", "leaseMetadata", "args"):
                    continue
                with self.subTest(method=method, missing=name):
                    self.refused(message(method, **{name: DROP}))
                if name == "leasehold":
                    for inner in value:
                        if inner == "disposition" or (
                                inner == "commandId" and "Exec" in method
                                and "Cancel" not in method):
                            continue
                        with self.subTest(method=method, missing=inner):
                            self.refused(message(
                                method, **{f"leasehold__{inner}": DROP}))

    def test_each_type(self) -> None:
        wrong: dict[str, list[Any]] = {
            "driverKey": [None, "", "Upper", 1], "companyId": [None, "", 5],
            "environmentId": [None, ""], "issueId": ["", 3, {}],
            "config": [None, [], "x", {"provider": "fake"}, {"driver": "x"},
                       {"pluginId": "x"}, {"pluginKey": "x"},
                       {"providerMetadata": {}}, {"shellCommand": "x"},
                       {"sandboxProviderPlugin": "x"},
                       {"executionWorkspaceMode": "x"}],
            "leasehold": [None, [], {}],
            "leasehold__installationId": [None, "", 1],
            "leasehold__leaseId": [None, ""],
            "leasehold__generation": [None, -1, "1", 1.5, True],
            "leasehold__idempotencyKey": [None, ""],
            "leasehold__surprise": [1], "surprise": [1],
        }
        only: dict[str, dict[str, list[Any]]] = {
            "acquire": {
                "runId": [None, "", 7], "agentId": [None, "", 7],
                "workspaceMode": [None], "requestedCwd": [None],
                "executionWorkspaceId": [None], "adapterType": [None],
                "requestedExpiresAt": ["soon", "2031-01-01T00:00:00"],
                "executionWorkspaceSettings": ["x"],
                "leasehold__disposition": ["keep"]},
            "resume": {"providerLeaseId": [None, ""], "agentId": [None],
                       "leaseMetadata": [None, []], "runId": ["x"]},
            "release": {"providerLeaseId": ["", 3], "leaseMetadata": [None],
                        "cancelActiveWork": [None], "agentId": ["x"],
                        "leasehold__disposition": ["burn", None]},
            "destroy": {"providerLeaseId": [""]},
            "realize": {"lease": [None, {}], "workspace": [None],
                        "lease__expiresAt": ["soon"],
                        "lease__metadata": [None],
                        "lease__surprise": [1], "workspace__mode": [7],
                        "workspace__surprise": [1]},
            "execute": {"command": [None, "", []], "args": ["a", [1], None],
                        "cwd": [None], "stdin": [None], "timeoutMs": [0, "1"],
                        "env": [{"A": 1}, {"1A": "x"}, {"A-B": "x"}, []],
                        "runId": [5], "streamOutput": ["yes"],
                        "bypassSession": [1],
                        "leasehold__commandId": ["", None]},
            "find": {"leasehold__commandId": ["x"]},
            "cancel": {"lease": [None, {}], "leasehold__commandId": [DROP]},
        }
        for method, more in only.items():
            for path, values in (wrong | more).items():
                for value in values:
                    with self.subTest(method=method, path=path, value=value):
                        sent = message(method, **{path: value})
                        self.refused(sent)
        of_list: dict[str, list[Any]] = {
            "leasehold__installationId": [None, ""],
            "leasehold__leaseId": ["x"], "cursor": ["", 5]}
        for path, values in of_list.items():
            for value in values:
                with self.subTest(method="list", path=path, value=value):
                    self.refused(message("list", **{path: value}))
        self.refused(message("environmentProbe", issueId="an issue"))
        self.refused(message("environmentProbe", agentId="an agent"))
        self.refused(message("health", surprise=1))

    def test_initialize(self) -> None:
        for path, value in {
                "manifest__id": "Bad Id", "manifest__apiVersion": 2,
                "manifest__version": "one", "manifest__displayName": "",
                "manifest__categories": [], "manifest__capabilities": [],
                "manifest__entrypoints": {},
                "manifest__environmentDrivers": [],
                "manifest__author": DROP, "config": None,
                "instanceInfo": {}, "instanceInfo__surprise": 1,
                "instanceInfo__instanceId": None, "apiVersion": "1",
                "databaseNamespace": 3}.items():
            with self.subTest(path=path):
                self.refused(message("initialize", **{path: value}))
        twice = MANIFEST["environmentDrivers"] * 2  # type: ignore[operator]
        self.refused(message("initialize",
                             manifest__environmentDrivers=twice))
        self.double.result("initialize", manifest__ui={}, manifest__tools=[])

    def test_envelope(self) -> None:
        good = message("environmentProbe")
        changes: list[Json] = [
            {"jsonrpc": "1.0"}, {"jsonrpc": DROP}, {"id": None}, {"id": DROP},
            {"id": ""}, {"id": True}, {"id": [1]}, {"id": 1.5}, {"method": 5},
            {"method": DROP}, {"surprise": 1}]
        for change in changes:
            bad = {name: value for name, value in (good | change).items()
                   if value is not DROP}
            with self.subTest(change=change):
                response, body = self.double.post(bad)
                self.assertEqual(response.status, 200)
                answer = json.loads(body)
                self.assertEqual(answer["error"]["code"], -32600)
        changes = [
            {"params": DROP}, {"params": None}, {"params": []},
            {"paperclipInvocation": {"id": "i"}},
            {"paperclipInvocation": {
                "id": "i", "scope": {"companyId": "other"}}}]
        for change in changes:
            bad = {name: value for name, value in (good | change).items()
                   if value is not DROP}
            with self.subTest(change=change):
                self.refused(bad)

    def test_bodies_that_are_not_a_request(self) -> None:
        one = json.dumps(message("environmentProbe"))
        for body, code in (
                (b"", -32700), (b"{", -32700), (b"\xff", -32700),
                (b'{"a": NaN}', -32700), (b"[" * 100_000, -32700),
                (one.encode() + b"x", -32700),
                (b'{"id": 1, "id": 1}', -32600), (b"[]", -32600),
                (f"[{one}]".encode(), -32600), (b'"text"', -32600),
                (b"null", -32600)):
            with self.subTest(body=body[:20]):
                response, answer = self.double.post(body)
                self.assertEqual(response.status, 200)
                parsed = json.loads(answer)
                self.assertEqual(parsed["error"]["code"], code)
                self.assertIsNone(parsed["id"])
        self.assertEqual(self.violations(), 11)

    def test_unknown_and_unsupported_methods(self) -> None:
        for name, code in (("environmentTeleport", -32601),
                           ("rpc.discover", -32601),
                           ("environmentSyncIn", -32004),
                           ("environmentStartInteractiveSetup", -32004),
                           ("executeTool", -32004)):
            with self.subTest(method=name):
                self.refused({"jsonrpc": "2.0", "id": 1, "method": name,
                              "params": {}}, code)

    def test_http_rules(self) -> None:
        sent = message("environmentProbe")
        cases: list[tuple[int, dict[str, str | None]]] = [
            (401, {"Authorization": None}), (401, {"Authorization": "Bearer"}),
            (401, {"Authorization": "Bearer wrong"}),
            (401, {"Authorization": f"Basic {TOKEN}"}),
            (415, {"Content_Type": None}), (415, {"Content_Type": "text/xml"}),
            (415, {"Content_Type": "application/json; charset=latin1"}),
            (200, {"Content_Type": "Application/JSON; charset=UTF-8"})]
        for status, headers in cases:
            with self.subTest(headers=headers):
                response, _ = self.double.post(sent, **headers)
                self.assertEqual(response.status, status)
                if status == 401:
                    self.assertEqual(
                        response.headers["WWW-Authenticate"], "Bearer")
        response, _ = self.double.send("GET", "/rpc")
        self.assertEqual((response.status, response.headers["Allow"]),
                         (405, "POST"))
        response, _ = self.double.send("POST", "/elsewhere", b"{}",
                                       headers_for(sent, {}))
        self.assertEqual(response.status, 404)
        self.assertIn("POST /elsewhere with authorization",
                      self.double.counters()["violations"][-1])
        self.assertEqual(self.violations(), 9)

    def test_headers_repeat_the_body(self) -> None:
        sent = message("acquire")
        cases: list[dict[str, str | None]] = [
            {"Leasehold_Request_Id": None}, {"Leasehold_Request_Id": "other"},
            {"Idempotency_Key": None}, {"Idempotency_Key": "other"}]
        for headers in cases:
            with self.subTest(headers=headers):
                _, body = self.double.post(sent, **headers)
                self.assertEqual(json.loads(body)["error"]["code"], -32600)
        _, body = self.double.post(message("environmentProbe"),
                                   Idempotency_Key="x")
        self.assertEqual(json.loads(body)["error"]["code"], -32600)
        self.assertEqual((self.live(), self.violations()), (0, 5))

    def test_broken_http_is_refused_and_closed(self) -> None:
        for data, status in (
                (b"nonsense\r\n\r\n", 400),
                (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 400),
                (b"GET / HTTP/1.1\r\n\r\n", 400),
                (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
                (b"GET / HTTP/1.1\r\nHost: x\r\n bad\r\n\r\n", 400),
                (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
                 400),
                (b"POST / HTTP/1.1\r\nHost: x\r\n"
                 b"Transfer-Encoding: chunked\r\n\r\n", 411),
                (b"POST / HTTP/1.1\r\nHost: x\r\n"
                 b"Content-Length: 99999999999\r\n\r\n", 413),
                (b"x" * 70_000, 431)):
            with self.subTest(data=data[:50]):
                answer = self.double.raw(data)
                self.assertTrue(answer.startswith(b"HTTP/1.1 %d " % status))
                self.assertIn(b"Connection: close\r\n", answer)

    def test_only_the_last_twenty_texts_are_kept(self) -> None:
        for _ in range(25):
            self.double.post(b"[]")
        counters = self.double.counters()
        self.assertEqual(counters["protocol_violations"], 25)
        self.assertEqual(len(counters["violations"]), 20)


class Connections(WithDouble):
    """HTTP/1.1 as a client library expects it."""

    def test_keep_alive_and_close(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1",
                                                self.double.port, timeout=5)
        for _ in range(3):
            sent = message("environmentProbe")
            connection.request("POST", "/rpc", json.dumps(sent).encode(),
                               headers_for(sent, {}))
            response = connection.getresponse()
            response.read()
            self.assertFalse(response.will_close)
        connection.close()
        # one for the three requests, one for this question
        self.assertEqual(self.double.counters()["connections_total"], 2)
        answer = self.double.raw(bytes_of(
            message("environmentProbe"), "Connection: close"))
        self.assertIn(b'"result"', answer)

    def test_pipelined_requests_are_answered_in_order(self) -> None:
        slow, quick = faulty("delay:50", "probe"), message("acquire")
        answer = self.double.raw(
            bytes_of(slow) + bytes_of(quick, "Connection: close"))
        self.assertEqual(answer.count(b"HTTP/1.1 200"), 2)
        self.assertLess(answer.index(slow["id"].encode()),
                        answer.index(quick["id"].encode()))

    def test_a_request_in_small_pieces(self) -> None:
        data = bytes_of(message("environmentProbe"), "Connection: close")
        with socket.create_connection(("127.0.0.1", self.double.port),
                                      5) as sock:
            for i in range(0, len(data), 37):
                sock.sendall(data[i:i + 37])
                time.sleep(0.001)
            self.assertIn(b'"result"', sock.recv(65536))

    def test_expect_100_continue(self) -> None:
        data = bytes_of(message("environmentProbe"), "Expect: 100-continue")
        split = data.index(b"\r\n\r\n") + 4
        with socket.create_connection(("127.0.0.1", self.double.port),
                                      5) as sock:
            sock.sendall(data[:split])
            self.assertEqual(sock.recv(100), b"HTTP/1.1 100 Continue\r\n\r\n")
            sock.sendall(data[split:])
            self.assertTrue(sock.recv(65536).startswith(b"HTTP/1.1 200"))


class Faults(WithDouble):
    """Every fault does what its name says, and acts or does not."""

    def answer(self, fault: str, method: str = "acquire",
               **changes: Any) -> tuple[http.client.HTTPResponse, bytes]:
        return self.double.post(faulty(fault, method, **changes))

    def lost(self, fault: str, live: int) -> None:
        with self.assertRaises((http.client.RemoteDisconnected,
                                ConnectionResetError)):
            self.answer(fault)
        self.assertEqual(self.live(), live)
        self.assertEqual(self.double.counters()["faults"], {fault: 1})

    def silent(self, fault: str, live: int) -> None:
        sent = faulty(fault)
        connection = http.client.HTTPConnection("127.0.0.1",
                                                self.double.port, timeout=0.3)
        connection.request("POST", "/rpc", json.dumps(sent).encode(),
                           headers_for(sent, {}))
        with self.assertRaises(TimeoutError):
            connection.getresponse()
        self.assertEqual(self.double.counters()["in_flight"], 1)
        connection.close()
        self.assertEqual(self.live(), live)
        while self.double.counters()["in_flight"]:
            time.sleep(0.01)

    def test_lose_answer(self) -> None:
        self.lost("lose_answer", live=1)

    def test_cut(self) -> None:
        self.lost("cut", live=0)

    def test_act_cut(self) -> None:
        self.lost("act_cut", live=1)

    def test_hang(self) -> None:
        self.silent("hang", live=1)

    def test_hang_before(self) -> None:
        self.silent("hang_before", live=0)

    def test_cut_mid(self) -> None:
        with self.assertRaises(http.client.IncompleteRead):
            self.answer("cut_mid")
        self.assertEqual(self.live(), 1)

    def test_status(self) -> None:
        for fault, status in (("status:500", 500), ("status:503", 503),
                              ("status:429", 429), ("status:404", 404)):
            response, _ = self.answer(fault)
            self.assertEqual(response.status, status)
            self.assertNotIn("Retry-After", response.headers)
        response, _ = self.answer("status:429:2")
        self.assertEqual(response.headers["Retry-After"], "2")
        before = time.time()
        response, _ = self.answer("status:429:date")
        moment = email.utils.parsedate_to_datetime(
            response.headers["Retry-After"])
        assert moment is not None
        self.assertTrue(before + 2 <= moment.timestamp() <= time.time() + 3)
        self.assertEqual(self.live(), 0)
        response, _ = self.answer("act_status:504")
        self.assertEqual((response.status, self.live()), (504, 1))

    def test_garbage(self) -> None:
        response, body = self.answer("garbage")
        self.assertEqual((response.status, self.live()), (200, 0))
        with self.assertRaises(ValueError):
            json.loads(body)
        self.answer("act_garbage")
        self.assertEqual(self.live(), 1)

    def test_html(self) -> None:
        response, body = self.answer("html")
        self.assertTrue(
            response.headers["Content-Type"].startswith("text/html"))
        self.assertIn(b"<h1>", body)
        self.assertEqual((response.status, self.live()), (200, 0))

    def test_redirect(self) -> None:
        response, _ = self.answer("redirect")
        self.assertEqual(response.status, 302)
        self.assertEqual(response.headers["Location"],
                         f"http://127.0.0.1:{self.double.port}/elsewhere")
        self.assertEqual(self.live(), 0)

    def test_drip(self) -> None:
        sent = faulty("drip")
        data = bytes_of(sent)
        with socket.create_connection(("127.0.0.1", self.double.port),
                                      5) as sock:
            start = time.monotonic()
            sock.sendall(data)
            received = [sock.recv(100) for _ in range(4)]
            took = time.monotonic() - start
        self.assertEqual(b"".join(received), b"HTTP")
        self.assertEqual({len(piece) for piece in received}, {1})
        self.assertGreater(took, 0.25)
        self.assertEqual(self.live(), 1)

    def test_delay_acts_first(self) -> None:
        start = time.monotonic()
        self.assertIn("result", self.double.rpc(faulty("delay:100")))
        self.assertGreater(time.monotonic() - start, 0.09)

    def test_slow_act_acts_even_when_nobody_waits(self) -> None:
        sent = faulty("slow_act:200")
        connection = http.client.HTTPConnection("127.0.0.1",
                                                self.double.port, timeout=0.1)
        connection.request("POST", "/rpc", json.dumps(sent).encode(),
                           headers_for(sent, {}))
        with self.assertRaises(TimeoutError):
            connection.getresponse()
        connection.close()
        self.assertEqual(self.live(), 0)
        deadline = time.monotonic() + 5
        while self.live() == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        self.assertEqual(self.live(), 1)
        self.assertIn("result", self.double.rpc(faulty("slow_act:1")))

    def test_rpc_error(self) -> None:
        self.assertEqual(self.double.error(faulty("rpc_error:-32003")), -32003)
        self.assertEqual(self.live(), 0)
        self.assertEqual(self.double.error(faulty("act_rpc_error:-32002")),
                         -32002)
        self.assertEqual((self.live(), self.violations()), (1, 0))

    def test_echo_token(self) -> None:
        _, body = self.answer("echo_token")
        self.assertEqual(json.loads(body)["error"]["message"].count(TOKEN), 2)
        self.assertEqual(self.live(), 0)

    def test_wrong_id_no_id_and_both(self) -> None:
        sent = faulty("wrong_id")
        _, body = self.double.post(sent)
        self.assertNotEqual(json.loads(body)["id"], sent["id"])
        _, body = self.answer("no_id")
        self.assertNotIn("id", json.loads(body))
        _, body = self.answer("both")
        answer = json.loads(body)
        self.assertTrue("result" in answer and "error" in answer)
        self.assertEqual(self.live(), 1)

    def test_malformed(self) -> None:
        result = json.loads(self.answer("malformed")[1])["result"]
        self.assertEqual(result["providerLeaseId"], 42)
        for word, value in (("array", ["unexpected"]), ("null", None),
                            ("string", "unexpected"), ("number", 42)):
            _, body = self.answer(f"malformed:{word}")
            self.assertEqual(json.loads(body)["result"], value)

    def test_huge(self) -> None:
        response, body = self.answer("huge")
        self.assertGreater(len(body), 64 * 1024 * 1024)
        self.assertEqual(int(response.headers["Content-Length"]), len(body))
        lease = json.loads(body)["result"]
        self.assertEqual(len(lease["metadata"]["padding"]), 64 * 1024 * 1024)
        self.assertGreater(len(self.answer("huge:2", "release")[1]), 2 << 20)

    def test_deep(self) -> None:
        _, body = self.answer("deep")
        self.assertIn(b'"deep": ' + b"[" * 10_000 + b"]" * 10_000, body)

    def test_dup_keys(self) -> None:
        found: list[str] = []

        def members(pairs: list[tuple[str, Any]]) -> Json:
            names = [name for name, _ in pairs]
            found.extend(n for n in set(names) if names.count(n) > 1)
            return dict(pairs)

        sent = faulty("dup_keys")
        _, body = self.double.post(sent)
        answer = json.loads(body, object_pairs_hook=members)
        self.assertEqual(set(found), {"jsonrpc", "id", "providerLeaseId"})
        self.assertEqual(answer["id"], sent["id"])
        _, body = self.answer("dup_keys", "release")
        self.assertIsNone(json.loads(body)["result"])

    def test_duplicate_id(self) -> None:
        _, body = self.answer("duplicate_id")
        own = json.loads(body)["result"]["providerLeaseId"]
        self.assertEqual(self.live(), 1)  # nothing to duplicate: it acts
        label = LABEL | {"leaseId": "another", "idempotencyKey": "another"}
        _, body = self.answer("duplicate_id", leasehold=label)
        self.assertEqual(json.loads(body)["result"]["providerLeaseId"], own)
        self.assertEqual(self.live(), 1)
        _, body = self.answer("act_duplicate_id", leasehold=label)
        self.assertEqual(json.loads(body)["result"]["providerLeaseId"], own)
        self.assertEqual(self.live(), 2)

    def test_empty_id_and_nul(self) -> None:
        _, body = self.answer("empty_id")
        self.assertEqual(json.loads(body)["result"]["providerLeaseId"], "")
        _, body = self.answer("nul")
        self.assertIn(b"\\u0000", body)
        self.assertEqual(self.live(), 1)

    def test_bad_utf8(self) -> None:
        _, body = self.answer("bad_utf8")
        with self.assertRaises(UnicodeDecodeError):
            body.decode()

    def test_echo_secret(self) -> None:
        _, body = self.answer("echo_secret")
        config = json.loads(body)["result"]["metadata"]["config"]
        self.assertEqual(config["apiKey"], "s3cret")

    def test_chunked(self) -> None:
        response, body = self.answer("chunked")
        self.assertEqual(response.headers["Transfer-Encoding"], "chunked")
        self.assertIn("result", json.loads(body))

    def test_expired_and_early_expiry(self) -> None:
        _, body = self.answer("expired")
        self.assertEqual(json.loads(body)["result"]["expiresAt"],
                         "the day after tomorrow")
        _, body = self.answer("early_expiry:60")
        moment = json.loads(body)["result"]["expiresAt"]
        self.assertRegex(moment, r"^\d{4}-.*Z$")

    def test_every_fault_on_every_method_leaves_the_double_well(self) -> None:
        """No combination may break the server."""
        kinds = ("lose_answer cut cut_mid status:500 garbage html redirect "
                 "delay:1 slow_act:1 rpc_error:-32000 act_rpc_error:-32000 "
                 "wrong_id no_id both malformed huge:1 deep dup_keys "
                 "duplicate_id empty_id nul bad_utf8 echo_secret echo_token "
                 "chunked expired early_expiry:1 act_status:500 act_html act_garbage "
                 "act_redirect act_duplicate_id pretend act_pretend no_answer "
                 "cut_stream after_answer foreign_chunk").split()
        self.acquire_for("bystander")
        for method in PARAMS:
            for kind in kinds:
                sent = message(method)
                sent["params"].setdefault("config", {})
                if method in ("health", "shutdown"):
                    del sent["params"]["config"]
                    self.double.admin("POST", "faults",
                                      {"any": kind, "times": 1})
                else:
                    sent["params"]["config"]["fault"] = {"any": kind}
                with self.subTest(method=method, fault=kind):
                    try:
                        self.double.post(sent)
                    except (http.client.HTTPException, ConnectionError):
                        pass
        counters = self.double.counters()
        self.assertEqual(counters["protocol_violations"], 0, counters)
        self.assertEqual(counters["in_flight"], 0)
        self.assertEqual(sum(counters["faults"].values()),
                         len(kinds) * len(PARAMS))


class ChoosingFaults(WithDouble):
    """By the request, by chance, and from outside."""

    def codes(self, count: int, config: Json, method: str = "find",
              lease: str = LEASE) -> list[int | None]:
        found: list[int | None] = []
        for _ in range(count):
            sent = message(method, leasehold__leaseId=lease)
            sent["params"]["config"] = copy.deepcopy(config)
            answer = self.double.rpc(sent)
            found.append(answer.get("error", {}).get("code"))
        return found

    def test_a_single_fault_is_for_every_call(self) -> None:
        self.assertEqual(
            self.codes(3, {"fault": {"find": "rpc_error:1"}}), [1, 1, 1])

    def test_a_list_is_used_up_per_lease(self) -> None:
        config = {"fault": {"find": ["rpc_error:1", None, "rpc_error:2"]}}
        self.assertEqual(self.codes(5, config), [1, None, 2, None, None])
        self.assertEqual(self.codes(2, config, lease="another"), [1, None])

    def test_any_is_for_methods_not_named(self) -> None:
        config = {"fault": {"any": ["rpc_error:1", "rpc_error:2"],
                            "list": "rpc_error:3"}}
        self.assertEqual(self.codes(1, config), [1])
        self.assertEqual(self.codes(1, config, "release"), [2])
        self.assertEqual(self.codes(1, config, "resume"), [None])

    def test_orders_that_make_no_sense_are_refused(self) -> None:
        for fault in ("explode", "status", "status:99", "delay:soon", "cut:1",
                      "act_hang", "act_", 7, {"a": 1}):
            with self.subTest(fault=fault):
                self.assertEqual(self.codes(1, {"fault": {"find": fault}}),
                                 [-32602])
        configs: list[Json] = [
            {"fault": {"teleport": "cut"}}, {"fault": "cut"}, {"fault": 3},
            {"chaos": {"p": 1}}, {"chaos": {"p": 1, "kinds": []}},
            {"chaos": {"p": 1, "kinds": ["explode"]}}, {"chaos": 3}]
        for config in configs:
            with self.subTest(config=config):
                self.assertEqual(self.codes(1, config), [-32602])

    def test_chaos_is_repeatable(self) -> None:
        config = {"chaos": {"p": 0.5, "kinds": ["rpc_error:1",
                                                "rpc_error:2"]}}
        first = self.codes(40, config)
        self.assertEqual({1, 2, None}, set(first))
        self.assertNotEqual(self.codes(40, config, lease="another"), first)
        self.double.admin("POST", "reset")
        self.assertEqual(self.codes(40, config), first)
        other = Double("--seed", "5")
        try:
            mine = ChoosingFaults.double
            ChoosingFaults.double = other
            self.assertNotEqual(self.codes(40, config), first)
        finally:
            ChoosingFaults.double = mine
            other.close()

    def test_chaos_of_probability_zero_and_one(self) -> None:
        kinds = ["rpc_error:1"]
        self.assertEqual(self.codes(
            3, {"chaos": {"p": 0, "kinds": kinds}}), [None] * 3)
        self.assertEqual(self.codes(
            3, {"chaos": {"p": 1, "kinds": kinds}}), [1] * 3)
        self.assertEqual(self.codes(
            1, {"chaos": {"p": 1, "kinds": kinds, "methods": ["list"]}}),
            [None])

    def test_forced_from_outside(self) -> None:
        self.double.admin("POST", "faults", {"find": "rpc_error:1",
                                             "times": 2})
        self.assertEqual(self.codes(3, {}), [1, 1, None])
        self.double.admin("POST", "faults", {"any": ["rpc_error:2", None,
                                                     "rpc_error:3"]})
        self.assertEqual(self.codes(4, {}), [2, None, 3, None])
        self.double.admin("POST", "faults", {"find": "rpc_error:4"})
        self.assertEqual(self.codes(3, {}), [4, 4, 4])
        self.double.admin("POST", "faults", {"find": None})
        self.assertEqual(self.codes(1, {}), [None])

    def test_forced_orders_are_checked(self) -> None:
        for order in ({"find": "explode"}, {"teleport": "cut"},
                      {"find": "cut", "times": -1}, {"find": 3}, []):
            response, _ = self.double.send(
                "POST", "/_admin/faults", json.dumps(order).encode())
            self.assertEqual(response.status, 400, order)


class Admin(WithDouble):
    def test_create_and_forget(self) -> None:
        orphan = self.double.admin("POST", "create", {
            "leaseId": LEASE, "generation": 4, "companyId": COMPANY,
            "installationId": INSTALLATION, "environmentId": ENVIRONMENT})
        self.assertEqual(self.double.result(
            "find", leasehold__generation=4)["providerLeaseId"],
            orphan["providerLeaseId"])
        self.double.admin("POST", "forget",
                          {"providerLeaseId": orphan["providerLeaseId"]})
        self.assertIsNone(self.double.result(
            "find", leasehold__generation=4)["providerLeaseId"])
        for path, order, status in (
                ("forget", {"providerLeaseId": "sbx-1-gone"}, 404),
                ("forget", {}, 404), ("create", {"leaseId": "x"}, 400),
                ("teleport", {}, 404)):
            response, _ = self.double.send("POST", f"/_admin/{path}",
                                           json.dumps(order).encode())
            self.assertEqual(response.status, status, path)
        self.assertEqual(self.violations(), 0)

    def test_requests(self) -> None:
        self.acquire_for("one")
        self.acquire_for("two")
        self.double.result("find")
        everything = self.double.admin("GET", "requests")
        self.assertEqual(len(everything), 3)
        self.assertEqual(everything[0]["params"]["config"]["apiKey"],
                         "s3cret")
        self.assertEqual([r["outcome"] for r in everything],
                         ["created", "created", "missing"])
        for query in ("method=acquire&leaseId=two",
                      "method=environmentAcquireLease&leaseId=two"):
            [only] = self.double.admin("GET", f"requests?{query}")
            self.assertEqual(only["leaseId"], "two")
            self.assertEqual(only["generation"], 1)

    def test_reset(self) -> None:
        self.acquire()
        self.double.post(b"[]")
        self.double.admin("POST", "faults", {"any": "cut"})
        self.double.admin("POST", "reset", {"resources": "keep"})
        counters = self.double.counters()
        self.assertEqual((counters["live"], counters["creates"],
                          counters["protocol_violations"]), (1, 0, 0))
        self.double.admin("POST", "reset")
        state = self.double.state()
        self.assertEqual(state["resources"], [])
        self.assertEqual(state["counters"]["methods"], {})
        self.assertEqual(self.double.admin("GET", "requests"), [])

    def test_counters(self) -> None:
        self.acquire()
        self.double.rpc(faulty("rpc_error:-32000", "find"))
        with self.assertRaises(http.client.RemoteDisconnected):
            self.double.post(faulty("cut"))
        counters = self.double.counters()
        self.assertEqual(counters["methods"], {
            "environmentAcquireLease": 2, "environmentFindLease": 1})
        self.assertEqual(counters["faults"], {"rpc_error:-32000": 1, "cut": 1})
        self.assertEqual(counters["acquires_per_key_max"], 1)
        self.assertEqual(counters["acquire_requests_per_key_max"], 2)
        self.assertEqual(counters["duplicate_live_max"], 1)
        self.assertEqual(counters["in_flight_max"], 1)


class Plain(WithDouble):
    """The variant that stands for a plugin written without us in mind."""

    arguments = ("--variant", "plain")

    def test_the_lookups_are_neither_announced_nor_known(self) -> None:
        announced = self.double.result("initialize")["supportedMethods"]
        for method in ("find", "list", "cancel"):
            self.assertNotIn(FULL_NAMES[method], announced)
            self.assertEqual(self.double.error(message(method)), -32601)
        self.assertEqual(self.violations(), 3)

    def test_a_repeated_acquire_creates_twice(self) -> None:
        self.assertNotEqual(self.acquire(), self.acquire())
        counters = self.double.counters()
        self.assertEqual((counters["creates"], counters["live"],
                          counters["duplicate_live_max"],
                          counters["acquires_per_key_max"]), (2, 2, 2, 2))


class NotIdempotent(WithDouble):
    arguments = ("--idempotent", "no")

    def test_a_repeated_acquire_creates_twice_and_find_helps(self) -> None:
        first, second = self.acquire(), self.acquire()
        self.assertNotEqual(first, second)
        self.assertEqual(self.double.result("find")["providerLeaseId"], first)
        self.double.result("destroy", providerLeaseId=first)
        self.assertEqual(self.double.result("find")["providerLeaseId"], second)


class Process(unittest.TestCase):
    """Start, stop, sudden death."""

    def test_sandboxes_outlive_a_kill(self) -> None:
        double = Double("--state", "DIR/state")
        try:
            ids = []
            for lease in "abc":
                ids.append(double.result(
                    "acquire", leasehold__leaseId=lease,
                    leasehold__idempotencyKey=lease)["providerLeaseId"])
            double.result("acquire", leasehold__leaseId="a",
                          leasehold__idempotencyKey="a")
            double.result("destroy", providerLeaseId=ids[1],
                          leasehold__leaseId="b")
            double.result("release", providerLeaseId=ids[2],
                          leasehold__leaseId="c",
                          leasehold__disposition="stop")
            before = double.state()
            self.assertEqual(double.stop(signal.SIGKILL), -signal.SIGKILL)
            with open(double.path("state"), "ab") as file:
                file.write(b'{"op": "create", "resou')  # died while writing
            double.start()
            after = double.state()
            self.assertEqual(after["resources"], before["resources"])
            self.assertEqual(len(after["resources"]), 2)
            for name in ("creates", "removes", "live", "parked",
                         "acquires_per_key_max", "repeated_acquires"):
                self.assertEqual(after["counters"][name],
                                 before["counters"][name], name)
            again = double.result("acquire", leasehold__leaseId="a",
                                  leasehold__idempotencyKey="a")
            self.assertEqual(again["providerLeaseId"], ids[0])
            fresh = double.result("acquire")["providerLeaseId"]
            self.assertEqual(fresh.split("-")[1], "4")
            double.admin("POST", "reset")
            double.stop(signal.SIGKILL)
            double.start()
            self.assertEqual(double.state()["resources"], [])
        finally:
            double.close()

    def test_log(self) -> None:
        double = Double("--log", "DIR/log")
        try:
            double.result("acquire")
            with self.assertRaises(http.client.RemoteDisconnected):
                double.post(faulty("lose_answer", "find"))
            double.post(b"[]")
            with open(double.path("log"), encoding="utf-8") as file:
                text = file.read()
        finally:
            double.close()
        self.assertNotIn("s3cret", text)
        lines = [json.loads(line) for line in text.splitlines()]
        self.assertEqual(
            [(line["method"], line["leaseId"], line["generation"],
              line["fault"], line["outcome"]) for line in lines],
            [("environmentAcquireLease", LEASE, 1, None, "created"),
             ("environmentFindLease", LEASE, 1, "lose_answer", "found"),
             (None, None, None, None, "refused -32600")])

    def test_a_clean_stop_with_work_in_flight(self) -> None:
        double = Double()
        sent = faulty("hang")
        connection = http.client.HTTPConnection("127.0.0.1", double.port,
                                                timeout=5)
        connection.request("POST", "/rpc", json.dumps(sent).encode(),
                           headers_for(sent, {}))
        while double.counters()["in_flight"] == 0:
            time.sleep(0.01)
        self.assertEqual(double.stop(), 0)
        connection.close()
        double.directory.cleanup()

    def test_the_token_may_come_from_a_file(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            secret = pathlib.Path(directory, "token")
            ready = pathlib.Path(directory, "ready")
            secret.write_text("from-a-file\n")
            process = subprocess.Popen(
                [sys.executable, str(PROGRAM), "--token-file", str(secret),
                 "--ready-file", str(ready)],
                stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            port = int(process.stdout.readline().split()[-1])
            self.assertEqual(ready.read_text(), f"{port}\n")
            sent = message("environmentProbe")
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request(
                "POST", "/rpc", json.dumps(sent).encode(),
                headers_for(sent, {"Authorization": "Bearer from-a-file"}))
            self.assertEqual(connection.getresponse().status, 200)
            connection.close()
            process.terminate()
            self.assertEqual(process.wait(10), 0)
            process.stdout.close()


if __name__ == "__main__":
    unittest.main()
