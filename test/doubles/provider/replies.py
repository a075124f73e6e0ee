"""Answers, honest and otherwise."""

from __future__ import annotations

import datetime
import email.utils
import json
import math
import time
from collections.abc import Iterator
from typing import Any

from .faults import Fault
from .rules import is_object
from .sandboxes import describe
from .wire import WORKER_ERROR, Call, HttpProblem, Json, Reply

REASONS = {200: "OK", 302: "Found", 400: "Bad Request", 401: "Unauthorized",
           404: "Not Found", 405: "Method Not Allowed",
           411: "Length Required", 413: "Content Too Large",
           415: "Unsupported Media Type", 429: "Too Many Requests",
           431: "Request Header Fields Too Large",
           500: "Internal Server Error", 502: "Bad Gateway",
           503: "Service Unavailable", 504: "Gateway Timeout"}


def http_head(status: int, framing: str, headers: str = "",
              content_type: str = "application/json") -> bytes:
    reason = REASONS.get(status, "Unspecified")
    return (f"HTTP/1.1 {status} {reason}\r\nContent-Type: {content_type}\r\n"
            f"{headers}{framing}\r\n\r\n").encode("latin-1")


def http_answer(status: int, body: bytes, headers: str = "",
                content_type: str = "application/json") -> bytes:
    return http_head(status, f"Content-Length: {len(body)}", headers,
                     content_type) + body


def json_answer(value: Any, status: int = 200, headers: str = "") -> bytes:
    return http_answer(status, json.dumps(value).encode(), headers)


def error_body(request_id: str | int | None, code: int, text: str) -> Json:
    return {"jsonrpc": "2.0", "id": request_id,
            "error": {"code": code, "message": text}}


def with_metadata(result: Any, **members: Any) -> Json:
    """The result, made an object if need be, with more in its metadata."""
    changed: Json = dict(result) if is_object(result) else {}
    changed["metadata"] = changed.get("metadata", {}) | members
    return changed


MALFORMED = {"array": ["unexpected"], "null": None, "string": "unexpected",
             "number": 42}
MALFORMED_OBJECT = {
    "ok": "yes", "supportedMethods": "all", "providerLeaseId": 42,
    "metadata": "text", "expiresAt": False, "leases": {}, "nextCursor": 7,
    "cwd": None, "exitCode": "zero", "timedOut": 0, "stdout": 1, "stderr": []}

# Stand-ins replaced by bytes that json.dumps would never produce.
DEEP_MARK = "@deep@"
RAW_MARK = "@raw@"
DEEP = b"[" * 10_000 + b"]" * 10_000


def tamper(fault: Fault, call: Call, answer: Json) -> bytes:
    """The body of an answer, spoiled in the way the fault says."""
    kind = fault.kind
    result: Any = answer.get("result")
    if kind == "wrong_id":
        answer["id"] = f"not-{call.id}"
    elif kind == "no_id":
        del answer["id"]
    elif kind == "both":
        answer["error"] = {"code": WORKER_ERROR, "message": "or did it fail?"}
    elif kind == "malformed":
        answer["result"] = MALFORMED.get(fault.argument, MALFORMED_OBJECT)
    elif kind == "deep":
        answer["result"] = with_metadata(result, deep=DEEP_MARK)
    elif kind == "nul":
        answer["result"] = with_metadata(result, note="before\0after")
    elif kind == "bad_utf8":
        answer["result"] = with_metadata(result, note=RAW_MARK)
    elif kind == "echo_secret":
        answer["result"] = with_metadata(result, config=call.config)
    elif kind == "duplicate_id" and call.other is not None:
        answer["result"] = describe(call.other)
    elif is_object(result) and kind == "empty_id":
        result["providerLeaseId"] = ""
    elif is_object(result) and kind == "expired":
        result["expiresAt"] = "the day after tomorrow"
    elif is_object(result) and kind == "early_expiry":
        moment = datetime.datetime.fromtimestamp(
            time.time() + int(fault.argument), datetime.timezone.utc)
        result["expiresAt"] = moment.isoformat().replace("+00:00", "Z")
    body = json.dumps(answer).encode()
    if kind == "deep":
        body = body.replace(b'"' + DEEP_MARK.encode() + b'"', DEEP)
    elif kind == "bad_utf8":
        body = body.replace(RAW_MARK.encode(), b"\xff\xfe\xc0")
    elif kind == "dup_keys":
        if is_object(result) and result:
            twin = json.dumps({next(iter(result)): "twin"}).encode()
            body = body.replace(b'"result": {',
                                b'"result": ' + twin[:-1] + b", ", 1)
        body = b'{"jsonrpc": "2.0", "id": "twin", ' + body[1:]
    return body


def huge_answer(answer: Json, mebibytes: int) -> Iterator[bytes]:
    """A valid answer with that much padding, never all in memory."""
    size = mebibytes * 1024 * 1024
    answer["result"] = with_metadata(answer.get("result"), padding=RAW_MARK)
    start, end = json.dumps(answer).encode().split(RAW_MARK.encode())
    length = len(start) + size + len(end)
    yield http_head(200, f"Content-Length: {length}") + start
    block = b"x" * (64 * 1024)
    for _ in range(size // len(block)):
        yield block
    yield end


def chunked_answer(body: bytes) -> list[bytes]:
    third = max(1, len(body) // 3)
    parts = [part for part in
             (body[:third], body[third:2 * third], body[2 * third:]) if part]
    return [http_head(200, "Transfer-Encoding: chunked"),
            *(b"%x\r\n%s\r\n" % (len(part), part) for part in parts),
            b"0\r\n\r\n"]


def status_answer(fault: Fault) -> bytes:
    status, _, wait = fault.argument.partition(":")
    headers = ""
    if wait == "date":
        moment = math.ceil(time.time() + 2)
        wait = email.utils.formatdate(moment, usegmt=True)
    if wait:
        headers = f"Retry-After: {wait}\r\n"
    return json_answer({"error": "as ordered"}, int(status), headers)


HTML = b"<!doctype html><title>Oops</title><h1>Something went wrong</h1>\n"
GARBAGE = b'\x00\x9f{"jsonrpc": "2.0", \xfe\xff this was never JSON'


def reply_with(fault: Fault | None, call: Call,
               answer: Json) -> Reply | None:
    """How to answer; None means never to."""
    if fault is None:
        return Reply((json_answer(answer),))
    kind = fault.kind
    if kind in ("hang", "hang_before"):
        return None
    if kind in ("cut", "lose_answer"):
        return Reply((), close=True)
    if kind == "status":
        return Reply((status_answer(fault),))
    if kind == "garbage":
        return Reply((http_answer(200, GARBAGE),))
    if kind == "html":
        return Reply((http_answer(
            200, HTML, content_type="text/html; charset=utf-8"),))
    if kind == "redirect":
        return Reply((http_answer(
            302, b"", f"Location: http://{call.host}/elsewhere\r\n"),))
    if kind == "huge":
        return Reply(huge_answer(answer, int(fault.argument or 64)))
    body = tamper(fault, call, answer)
    if kind == "chunked":
        return Reply(chunked_answer(body), gap=0.001)
    whole = http_answer(200, body)
    if kind == "cut_mid":
        return Reply((whole[:len(whole) - len(body) // 2 - 1],), close=True)
    if kind == "drip":
        return Reply((whole[i:i + 1] for i in range(len(whole))), gap=0.1)
    if kind == "delay":
        return Reply((whole,), before=int(fault.argument) / 1000)
    return Reply((whole,))


def refusal(problem: HttpProblem) -> Reply:
    headers = problem.headers
    if problem.close:
        headers += "Connection: close\r\n"
    body = {"error": str(problem)}
    return Reply((json_answer(body, problem.status, headers),),
                 close=problem.close)
