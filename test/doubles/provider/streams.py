"""Answers to environmentExecute that begin while the command runs.

The response is a stream of JSON-RPC messages: notifications with output, then
the answer.  How they look, a request says by its order: see README.md.
"""

from __future__ import annotations

import asyncio
import base64
import codecs
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from .faults import Fault
from .replies import http_head, tamper
from .rules import Rule, check_members, is_integer, optional
from .wire import Call, Json, Reply

CONTENT_TYPES = {"lines": "application/x-ndjson",
                 "events": "text/event-stream; charset=utf-8"}
POSITIVE = Rule("a positive integer", lambda v: is_integer(v) and v > 0)
ORDER = {
    "format": optional(Rule("whole, lines or events", lambda v: v in (
        "whole", "lines", "events"))),
    "notify": optional(Rule("channel, command or log", lambda v: v in (
        "channel", "command", "log"))),
    "encoding": optional(Rule("text or base64",
                              lambda v: v in ("text", "base64"))),
    "streamed": optional(Rule("true or false", lambda v: type(v) is bool)),
    "chunk": optional(POSITIVE),
    "live": optional(POSITIVE),
    "split": optional(POSITIVE),
    "fault": optional(Rule("a fault, or a list of faults", lambda v: True)),
}


def read_order(params: Json) -> Json:
    """What the configuration and the command's environment ask for."""
    order: Json = dict(params.get("config", {}).get("output", {}))
    order |= json.loads(params.get("env", {}).get("DOUBLE", "{}"))
    check_members(order, ORDER, "order")
    return order


def wants_stream(call: Call) -> bool:
    return (call.short == "execute"
            and call.order.get("format", "whole") != "whole"
            and (call.fault is None or call.fault.acts))


class Stream:
    """One such answer."""

    def __init__(self, call: Call, answer: Callable[[Any], Json],
                 background: Callable[..., asyncio.Task[Any]]) -> None:
        self.call = call
        self.background = background
        self.decoders: dict[str, codecs.IncrementalDecoder] = {}
        call.record["streamed"] = 0  # bytes of the body
        self.order = call.order
        self.fault: Fault | None = call.fault
        self.answer = answer  # makes it of the result
        self.output: asyncio.Queue[tuple[str, bytes] | None] = asyncio.Queue()
        call.emit = lambda name, data: self.output.put_nowait((name, data))

    def reply(self, result: Any) -> Reply:
        """result: what the provider does, or its work."""
        work = self.background(self.whole(result))
        return Reply(self.pieces(work), close=self.is_cut())

    async def whole(self, result: Any) -> Any:
        if asyncio.iscoroutine(result):
            result = await result
        self.output.put_nowait(None)
        return result

    def is_fault(self, *kinds: str) -> bool:
        return self.fault is not None and self.fault.kind in kinds

    def is_cut(self) -> bool:
        return self.is_fault("cut", "lose_answer", "cut_mid", "cut_stream")

    async def pieces(self, work: asyncio.Task[Any]) -> AsyncIterator[bytes]:
        yield http_head(200, "Transfer-Encoding: chunked", "",
                        CONTENT_TYPES[self.order["format"]])
        async for frame in self.frames(work):
            size = self.order.get("split", len(frame) or 1)
            for start in range(0, len(frame), size):
                part = frame[start:start + size]
                yield b"%x\r\n%s\r\n" % (len(part), part)
                self.call.record["streamed"] += len(part)
                if size < len(frame):
                    await asyncio.sleep(0.001)
        if not self.is_cut():
            yield b"0\r\n\r\n"

    async def frames(self, work: asyncio.Task[Any]) -> AsyncIterator[bytes]:
        count = 0
        async for name, data in self.chunks():
            count += 1
            if count > self.order.get("live", count):
                continue
            for frame in self.spoiled_chunks(name):
                yield frame
            yield self.frame(self.notification(name, data))
            if self.is_fault("cut_stream"):
                return
            if self.is_fault("hang_stream"):
                await asyncio.Event().wait()
            while self.is_fault("noise_stream"):
                yield self.noise()
        answer = self.answer(await work)
        if self.is_fault("delay"):
            await asyncio.sleep(int(self.fault.argument) / 1000)
        if self.is_fault("hang"):
            await asyncio.Event().wait()
        if self.is_fault("cut", "lose_answer", "no_answer"):
            return
        yield self.last_frame(answer)
        if self.is_fault("after_answer"):
            yield self.frame(self.notification("stdout", b"too late\n"))
            yield self.frame(json.dumps(answer | {"result": None}).encode())

    async def chunks(self) -> AsyncIterator[tuple[str, bytes]]:
        """The output, in pieces of the size that is wanted."""
        while (item := await self.output.get()) is not None:
            name, data = item
            size = self.order.get("chunk", len(data))
            for start in range(0, len(data), size):
                yield name, data[start:start + size]

    def last_frame(self, answer: Json) -> bytes:
        result = answer.get("result")
        if type(result) is dict and self.order.get("streamed", True):
            result |= {"streamed": True, "stdout": "", "stderr": ""}
        body = json.dumps(answer).encode()
        if self.fault is not None:
            body = tamper(self.fault, self.call, answer)
        frame = self.frame(body)
        return frame[:len(frame) // 2] if self.is_fault("cut_mid") else frame

    def frame(self, body: bytes) -> bytes:
        if self.order["format"] == "lines":
            return body + b"\n"
        lines = body.replace(b'"2.0", ', b'"2.0",\n', 1).split(b"\n")
        return (b": a comment\r\nevent: message\r\nid: 1\r\n"
                + b"".join(b"data: " + line + b"\r\n" for line in lines)
                + b"\r\n")

    def noise(self) -> bytes:
        """Much that says nothing: comments, or lines that are no messages."""
        line = b":\n" if self.order["format"] == "events" else b"{}\n"
        return line * 30000

    def notification(self, name: str, data: bytes, **changes: Any) -> bytes:
        call = self.call
        if self.order.get("encoding") == "base64":
            text = {"dataBase64": base64.b64encode(data).decode()}
        else:
            text = {"text": self.decoder(name).decode(data)}
        way = self.order.get("notify", "channel")
        if way == "log":
            method = "execute.log"
            params = {"stream": name, "chunk": text.get("text")}
        else:
            method = "streams.emit"
            owner = call.params.get("runId") if way == "channel" else None
            params = {
                "channel": "env-exec-output:"
                           f"{owner or call.label['commandId']}",
                "companyId": call.params["companyId"],
                "event": {"stream": name, **text}}
        return json.dumps({"jsonrpc": "2.0", "method": method,
                           "params": params | changes}).encode()

    def decoder(self, name: str) -> codecs.IncrementalDecoder:
        if name not in self.decoders:
            self.decoders[name] = \
                codecs.getincrementaldecoder("utf-8")("replace")
        return self.decoders[name]

    def spoiled_chunks(self, name: str) -> list[bytes]:
        """What a fault puts before each piece of output."""
        other = "00000000-0000-4000-8000-00000000dead"

        def spoiled(**changes: Any) -> bytes:
            return self.frame(self.notification(name, b"", **changes))

        def said(event: Any) -> bytes:
            return spoiled(event=event)

        if self.is_fault("garbage_line"):
            return [self.frame(b'{"never": JSON \xff\xfe'),
                    self.frame(b"null"), self.frame(b"[]"),
                    self.frame(b'{"jsonrpc": "2.0", "id": "other",'
                               b' "result": {"exitCode": 99}}'),
                    self.frame(b'{"jsonrpc": "2.0", "method": "log",'
                               b' "params": {"message": "hello"}}')]
        if self.is_fault("foreign_chunk"):
            event = {"stream": name, "text": "somebody else's\n"}
            return [spoiled(companyId=other, event=event),
                    spoiled(companyId=None, event=event),
                    spoiled(channel=f"env-exec-output:{other}", event=event),
                    spoiled(channel="progress", event=event)]
        if self.is_fault("malformed_chunk"):
            return [said(event) for event in (
                None, [], "text", {}, {"stream": name}, {"text": "nobody's\n"},
                {"stream": "stdin", "text": "no such stream\n"},
                {"stream": name, "text": 7},
                {"stream": name, "text": None},
                {"stream": name, "dataBase64": "not base64!"},
                {"stream": name, "text": "two", "dataBase64": "dHdv"})]
        if self.is_fault("huge_line"):
            size = int(self.fault.argument or 64) * 1024 * 1024
            return [said({"stream": name, "text": "x" * size})]
        return []
