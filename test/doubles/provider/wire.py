"""The few types that every part of the double shares."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .faults import Fault

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
WORKER_ERROR = -32002
METHOD_NOT_IMPLEMENTED = -32004

Json = dict[str, Any]


class HttpProblem(Exception):
    """The request is refused before it is JSON-RPC at all."""

    def __init__(self, status: int, text: str, headers: str = "",
                 close: bool = False) -> None:
        super().__init__(text)
        self.status = status
        self.headers = headers
        self.close = close


class RpcProblem(Exception):
    """The answer is a JSON-RPC error; ``code`` says which."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(slots=True)
class Request:
    """One HTTP request."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Call:
    """One accepted JSON-RPC request."""

    id: str | int
    method: str
    short: str
    params: Json
    label: Json
    config: Json
    record: Json
    host: str
    order: Json = field(default_factory=dict)  # how to execute a command
    fault: Fault | None = None
    other: str | None = None  # a sandbox of another lease, for duplicate_id
    emit: Callable[[str, bytes], None] | None = None  # a command's output

    @property
    def scope(self) -> str:
        """What lists of faults are counted by: the lease, if there is one."""
        return (self.label.get("leaseId")
                or self.params.get("environmentId") or "")


@dataclass(slots=True)
class Reply:
    """Bytes to send: perhaps late, perhaps slowly, perhaps the last ones."""

    pieces: Iterable[bytes] | AsyncIterable[bytes]
    before: float = 0
    gap: float = 0
    close: bool = False
