"""HTTP/1.1 on a socket, no more of it than the double needs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable

from .replies import refusal
from .server import Server
from .wire import HttpProblem, Reply, Request

MAX_HEAD = 64 * 1024
MAX_BODY = 64 * 1024 * 1024


async def in_time(pieces: Iterable[bytes] | AsyncIterable[bytes],
                  ) -> AsyncIterator[bytes]:
    if isinstance(pieces, AsyncIterable):
        async for piece in pieces:
            yield piece
    else:
        for piece in pieces:
            yield piece


class Connection(asyncio.Protocol):
    """One client.  Requests on a connection are answered one at a time."""

    transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self.server = server
        self.buffer = bytearray()
        self.busy = False      # a request is being answered
        self.counted = False   # and it is in the server's in_flight
        self.pumping = False
        self.closing = False
        self.last = False
        self.continued = False
        self.writable = asyncio.Event()
        self.writable.set()

    # -- asyncio's calls ----------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.server.connections.add(self)
        self.server.connections_total += 1

    def connection_lost(self, problem: Exception | None) -> None:
        self.closing = True
        self.end()
        self.writable.set()
        self.server.connections.discard(self)

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if not self.busy and not self.pumping:
            self.pump()

    def begin(self) -> None:
        """Count the request as in flight until it is answered or lost."""
        self.counted = True
        self.server.in_flight += 1
        self.server.in_flight_max = max(self.server.in_flight_max,
                                        self.server.in_flight)

    def end(self) -> None:
        self.busy = False
        if self.counted:
            self.counted = False
            self.server.in_flight -= 1

    # -- reading ------------------------------------------------------------

    def pump(self) -> None:
        """Handle every whole request that has arrived."""
        self.pumping = True
        while not self.busy and not self.closing:
            try:
                request = self.next_request()
            except HttpProblem as problem:
                self.server.violation(f"HTTP {problem.status}: {problem}")
                self.busy = True
                self.reply(refusal(problem))
                break
            if request is None:
                break
            self.busy = True
            self.server.handle(request, self)
        self.pumping = False

    def next_request(self) -> Request | None:
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self.buffer) > MAX_HEAD:
                raise HttpProblem(431, "the head is too long", close=True)
            return None
        first, *lines = self.buffer[:end].decode("latin-1").split("\r\n")
        try:
            method, target, version = first.split(" ")
        except ValueError:
            raise HttpProblem(400, "bad request line", close=True) from None
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            name = name.lower()
            if not colon or name in headers or name != name.strip():
                raise HttpProblem(400, f"bad or repeated header: {name}",
                                  close=True)
            headers[name] = value.strip()
        if version not in ("HTTP/1.1", "HTTP/1.0") or "host" not in headers:
            raise HttpProblem(400, "bad version or no Host", close=True)
        if "transfer-encoding" in headers:
            raise HttpProblem(411, "a request needs Content-Length",
                              close=True)
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            raise HttpProblem(400, "bad Content-Length", close=True)
        if int(length) > MAX_BODY:
            raise HttpProblem(413, "the body is too long", close=True)
        start = end + 4
        stop = start + int(length)
        if len(self.buffer) < stop:
            if "expect" in headers and not self.continued:
                self.continued = True
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return None
        self.continued = False
        self.last = (headers.get("connection", "").lower() == "close"
                     or version == "HTTP/1.0")
        body = bytes(self.buffer[start:stop])
        del self.buffer[:stop]
        path, _, query = target.partition("?")
        return Request(method, path, query, headers, body)

    # -- writing ------------------------------------------------------------

    def reply(self, reply: Reply | None) -> None:
        """Send a reply; None leaves the client waiting for ever."""
        if reply is None or self.closing:
            return
        if reply.before or reply.gap or type(reply.pieces) is not tuple:
            self.server.background(self.send_slowly(reply))
            return
        for piece in reply.pieces:
            self.transport.write(piece)
        self.replied(reply)

    async def send_slowly(self, reply: Reply) -> None:
        await asyncio.sleep(reply.before)
        async for piece in in_time(reply.pieces):
            await self.writable.wait()
            if self.closing:
                return
            self.transport.write(piece)
            if reply.gap:
                await asyncio.sleep(reply.gap)
        if not self.closing:
            self.replied(reply)

    def replied(self, reply: Reply) -> None:
        if reply.close or self.last:
            self.closing = True
            self.transport.close()
        self.end()
        if not self.pumping and self.buffer:
            self.pump()
