"""From a request to a reply: acceptance, faults, bookkeeping, admin."""

from __future__ import annotations

import asyncio
import collections
import functools
import hmac
import json
import os
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from .faults import FaultPlan
from .replies import error_body, json_answer, refusal, reply_with
from .rules import (
    ENVELOPE, GENERATION, INVOCATION, METHODS, TEXT, UNSUPPORTED_METHODS,
    check, check_members, is_integer, is_object, is_text, parse_json)
from .sandboxes import Provider, describe
from .streams import Stream, read_order, wants_stream
from .wire import (
    INVALID_PARAMS, INVALID_REQUEST, METHOD_NOT_FOUND, METHOD_NOT_IMPLEMENTED,
    WORKER_ERROR, Call, HttpProblem, Json, Reply, Request, RpcProblem)

if TYPE_CHECKING:
    from .connection import Connection

KEPT_REQUESTS = 10_000
KEPT_VIOLATIONS = 20


class Server:
    """Everything the connections share."""

    def __init__(self, provider: Provider, faults: FaultPlan, token: str,
                 log_path: str | None) -> None:
        self.provider = provider
        self.faults = faults
        self.token = token
        self.expected = f"Bearer {token}".encode()
        self.log = None
        if log_path is not None:
            self.log = os.open(
                log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[Any]] = set()
        self.in_flight = 0
        self.admin_routes: dict[tuple[str, str],
                                Callable[[Request], Any]] = {
            ("GET", "/_admin/state"): self.admin_state,
            ("GET", "/_admin/requests"): self.admin_requests,
            ("POST", "/_admin/faults"): self.admin_faults,
            ("POST", "/_admin/reset"): self.admin_reset,
            ("POST", "/_admin/forget"): self.admin_forget,
            ("POST", "/_admin/create"): self.admin_create,
        }
        self.reset()

    def reset(self) -> None:
        self.requests: collections.deque[Json] = collections.deque(
            maxlen=KEPT_REQUESTS)
        self.by_method: collections.Counter[str] = collections.Counter()
        self.by_fault: collections.Counter[str] = collections.Counter()
        self.acquire_requests: collections.Counter[str] = \
            collections.Counter()
        self.violation_count = 0
        self.violations: collections.deque[str] = collections.deque(
            maxlen=KEPT_VIOLATIONS)
        self.in_flight_max = self.in_flight
        self.connections_total = 0

    def background(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start work that nobody waits for; asyncio alone might forget it."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def violation(self, text: str) -> None:
        self.violation_count += 1
        self.violations.append(text)

    # -- JSON-RPC -----------------------------------------------------------

    def handle(self, request: Request, connection: Connection) -> None:
        """Answer one request, now or later, through ``connection``."""
        if request.path.startswith("/_admin/"):
            connection.reply(Reply((self.admin(request),)))
            return
        connection.begin()
        record: Json = {
            "time": time.time(), "id": None, "method": None, "leaseId": None,
            "generation": None, "fault": None, "outcome": None, "params": None}
        self.requests.append(record)
        try:
            self.check_http(request)
            call = self.accept(request, record)
            fault = call.fault = self.faults.choose(call)
        except HttpProblem as problem:
            self.violation(f"HTTP {problem.status}: {problem}")
            self.settle(record, f"http {problem.status}")
            connection.reply(refusal(problem))
            return
        except RpcProblem as problem:
            self.refuse(record, problem)
            connection.reply(Reply((json_answer(
                error_body(record["id"], problem.code, str(problem))),)))
            return
        if fault is not None:
            self.by_fault[fault.text] += 1
            record["fault"] = fault.text
            if fault.kind == "slow_act":
                asyncio.get_running_loop().call_later(
                    int(fault.argument) / 1000, self.act, call, connection)
                return
        self.act(call, connection)

    def check_http(self, request: Request) -> None:
        headers = request.headers
        if request.path not in ("/", "/rpc"):
            carried = "with" if "authorization" in headers else "without"
            raise HttpProblem(404, f"{request.method} {request.path} "
                                   f"{carried} authorization")
        if request.method != "POST":
            raise HttpProblem(405, f"{request.method} instead of POST",
                              "Allow: POST\r\n")
        given = headers.get("authorization", "").encode("latin-1")
        if not hmac.compare_digest(given, self.expected):
            raise HttpProblem(401, "missing or wrong bearer token",
                              "WWW-Authenticate: Bearer\r\n")
        kind, _, extra = headers.get("content-type", "").partition(";")
        if (kind.strip().lower() != "application/json"
                or extra.strip().lower() not in ("", "charset=utf-8")):
            raise HttpProblem(415, "the content type is not application/json")

    def accept(self, request: Request, record: Json) -> Call:
        """Check the message, noting in the record what is known of it."""
        message = parse_json(request.body)
        if type(message) is not dict:
            raise RpcProblem(INVALID_REQUEST, "a request is one object"
                             if type(message) is not list
                             else "batches are not accepted")
        request_id: Any = message.get("id")
        if not (is_text(request_id) or is_integer(request_id)):
            raise RpcProblem(INVALID_REQUEST,
                             "id must be a non-empty string or an integer")
        record["id"] = request_id
        if message.get("jsonrpc") != "2.0":
            raise RpcProblem(INVALID_REQUEST, 'jsonrpc must be "2.0"')
        name: Any = message.get("method")
        if not is_text(name):
            raise RpcProblem(INVALID_REQUEST, "method must be a string")
        record["method"] = name
        self.by_method[name] += 1
        if len(message) != 4 or not ENVELOPE.issuperset(message):
            self.check_envelope(message)
        if name not in self.provider.handlers:
            if name in UNSUPPORTED_METHODS:
                raise RpcProblem(METHOD_NOT_IMPLEMENTED,
                                 f"{name} is not implemented by this plugin")
            raise RpcProblem(METHOD_NOT_FOUND, f"unknown method: {name}")
        params = message["params"]
        if type(params) is not dict:
            raise RpcProblem(INVALID_PARAMS, "params must be an object")
        record["params"] = params
        label = params.get("leasehold")
        if type(label) is not dict:
            label = {}
        record["leaseId"] = label.get("leaseId")
        record["generation"] = label.get("generation")
        method = METHODS[name]
        check_members(params, method.rules, "params")
        self.check_accept(request.headers, method.short)
        self.check_echoes(request.headers, request_id, label)
        if method.short == "acquire":
            self.acquire_requests[label["idempotencyKey"]] += 1
        call = Call(request_id, name, method.short, params, label,
                    params.get("config", {}), record,
                    request.headers["host"])
        if method.short == "execute":
            call.order = read_order(params)
        return call

    @staticmethod
    def check_envelope(message: Json) -> None:
        """The rarer members of a message, and those it must not have."""
        for name in message:
            if name not in ENVELOPE and name != "paperclipInvocation":
                raise RpcProblem(INVALID_REQUEST, f"{name} is not known")
        if "params" not in message:
            raise RpcProblem(INVALID_PARAMS, "params is missing")
        invocation = message["paperclipInvocation"]
        check(invocation, INVOCATION, "paperclipInvocation")
        company = invocation["scope"].get("companyId")
        params = message["params"]
        if is_object(params) and params.get("companyId", company) != company:
            raise RpcProblem(INVALID_PARAMS, "paperclipInvocation.scope is "
                             "of another company than params")

    @staticmethod
    def check_accept(headers: dict[str, str], method: str) -> None:
        """A client that can take a stream says so; one that cannot, not."""
        accepted = {kind.partition(";")[0].strip()
                    for kind in headers.get("accept", "*/*").split(",")}
        wanted = {"application/json"}
        if method == "execute":
            wanted |= {"application/x-ndjson", "text/event-stream"}
        if accepted not in (wanted, {"*/*"}):
            raise RpcProblem(INVALID_REQUEST, "the header Accept must name "
                             + ", ".join(sorted(wanted)))

    @staticmethod
    def check_echoes(headers: dict[str, str], request_id: str | int,
                     label: Json) -> None:
        """The headers that repeat what the body says."""
        if headers.get("leasehold-request-id") != str(request_id):
            raise RpcProblem(INVALID_REQUEST, "the header Leasehold-Request-Id"
                             " must repeat the id of the request")
        if headers.get("idempotency-key") != label.get("idempotencyKey"):
            raise RpcProblem(INVALID_REQUEST, "the header Idempotency-Key must"
                             " repeat params.leasehold.idempotencyKey")

    def act(self, call: Call, connection: Connection) -> None:
        """Do what was asked unless the fault forbids it, then answer."""
        fault = call.fault
        acts = fault is None or fault.acts
        stream = None
        if wants_stream(call):
            stream = Stream(call, functools.partial(self.answer, call),
                            self.background)
        if fault is not None and fault.kind == "duplicate_id":
            call.other = self.provider.other_live(call.label.get("leaseId"))
            acts = acts or call.other is None
        result: Any = None
        if acts:
            try:
                result = self.provider.perform(call)
            except RpcProblem as problem:
                result = problem
        else:
            call.record["outcome"] = "not acted"
        if stream is not None:
            connection.reply(stream.reply(result))
        elif asyncio.iscoroutine(result):
            self.background(self.finish_later(call, connection, result))
        else:
            self.finish(call, connection, result)

    async def finish_later(self, call: Call, connection: Connection,
                           work: Coroutine[Any, Any, Any]) -> None:
        self.finish(call, connection, await work)

    def finish(self, call: Call, connection: Connection, result: Any) -> None:
        connection.reply(reply_with(call.fault, call,
                                    self.answer(call, result)))

    def answer(self, call: Call, result: Any) -> Json:
        fault = call.fault
        if isinstance(result, RpcProblem):
            if result.code == INVALID_PARAMS:
                self.refuse(call.record, result)
            else:
                self.settle(call.record, f"error {result.code}")
            answer = error_body(call.id, result.code, str(result))
        else:
            self.settle(call.record, call.record["outcome"] or "done")
            answer = {"jsonrpc": "2.0", "id": call.id, "result": result}
        if fault is not None and fault.kind == "rpc_error":
            answer = error_body(call.id, int(fault.argument), "as ordered")
        elif fault is not None and fault.kind == "echo_token":
            answer = error_body(call.id, WORKER_ERROR,
                                f"may {self.token} do this? {self.token}")
        return answer

    def refuse(self, record: Json, problem: RpcProblem) -> None:
        about = record["method"] or "request"
        self.violation(f"{about}: {problem.code} {problem}")
        self.settle(record, f"refused {problem.code}")

    def settle(self, record: Json, outcome: str) -> None:
        record["outcome"] = outcome
        if self.log is not None:
            line = {name: value for name, value in record.items()
                    if name != "params"}
            os.write(self.log, json.dumps(line).encode() + b"\n")

    # -- admin --------------------------------------------------------------

    def admin(self, request: Request) -> bytes:
        route = self.admin_routes.get((request.method, request.path))
        if route is None:
            return json_answer({"error": "no such admin endpoint"}, 404)
        try:
            return json_answer(route(request))
        except LookupError as problem:
            return json_answer({"error": f"unknown: {problem}"}, 404)
        except (ValueError, RpcProblem) as problem:
            return json_answer({"error": str(problem)}, 400)

    @staticmethod
    def order(request: Request) -> Json:
        order = parse_json(request.body or b"{}")
        if type(order) is not dict:
            raise ValueError("an order is one object")
        return order

    def admin_state(self, request: Request) -> Json:
        provider = self.provider
        states = collections.Counter(
            r["state"] for r in provider.resources.values())
        return {
            "resources": list(provider.resources.values()),
            "counters": {
                "methods": self.by_method,
                "faults": self.by_fault,
                "creates": provider.creates,
                "removes": provider.removes,
                "live": len(provider.resources),
                "parked": states["parked"],
                "acquires_per_key_max": provider.acquires_max,
                "acquire_requests_per_key_max":
                    max(self.acquire_requests.values(), default=0),
                "repeated_acquires": provider.repeated_acquires,
                "duplicate_live_max": provider.duplicate_live_max,
                "already_gone": provider.already_gone,
                "stale_generation_calls": provider.stale_generation_calls,
                "executions": sum(provider.executions.values()),
                "executions_per_key_max":
                    max(provider.executions.values(), default=0),
                "running": len(provider.running),
                "connections": len(self.connections),
                "connections_total": self.connections_total,
                "in_flight": self.in_flight,
                "in_flight_max": self.in_flight_max,
                "protocol_violations": self.violation_count,
                "violations": list(self.violations),
            },
        }

    def admin_requests(self, request: Request) -> list[Json]:
        wanted = {name: values[0]
                  for name, values in parse_qs(request.query).items()}
        for full, method in METHODS.items():
            if wanted.get("method") == method.short:
                wanted["method"] = full
        return [record for record in self.requests
                if all(str(record.get(name)) == value
                       for name, value in wanted.items())]

    def admin_faults(self, request: Request) -> Json:
        self.faults.force(self.order(request))
        return {"forced": sorted(self.faults.forced)}

    def admin_reset(self, request: Request) -> Json:
        keep = self.order(request).get("resources") == "keep"
        self.provider.reset(keep_resources=keep)
        self.faults.reset()
        self.reset()
        return {"live": len(self.provider.resources)}

    def admin_forget(self, request: Request) -> Json:
        provider_id = self.order(request).get("providerLeaseId")
        if provider_id not in self.provider.resources:
            raise LookupError(provider_id)
        self.provider.remove(provider_id)
        return {"live": len(self.provider.resources)}

    def admin_create(self, request: Request) -> Json:
        order = self.order(request)
        check_members(order, {
            "leaseId": TEXT, "generation": GENERATION, "installationId": TEXT,
            "companyId": TEXT, "environmentId": TEXT}, "order")
        return describe(
            self.provider.create(order, None)["providerLeaseId"])
