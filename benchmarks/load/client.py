"""HTTP over bare sockets that stay open. It detects when a response starts and ends, and its status, and parses nothing else."""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import Any, NamedTuple, cast

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_LAST_CHUNK = b"0\r\n\r\n"  # JSON contains no CR, so nothing else ends like this


class Outcome(NamedTuple):
    """Times in seconds of time.perf_counter(); `first_s` is the time of the first bytes. With `status` 0 the connection broke."""

    status: int
    sent_s: float
    first_s: float
    ended_s: float

    @property
    def latency_ms(self) -> float:
        return (self.ended_s - self.sent_s) * 1000

    @property
    def first_ms(self) -> float:
        return (self.first_s - self.sent_s) * 1000


def post(path: str, asked: dict[str, Any], **headers: str) -> bytes:
    """A complete request."""
    body = json.dumps(asked).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Client:
    """Opens as many connections as there are concurrent requests."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: list[_Connection] = []

    async def ask(self, request: bytes) -> Outcome:
        connection = await self._connection()
        outcome = await connection.ask(request)
        if connection.is_open:
            self._free.append(connection)
        return outcome

    def close(self) -> None:
        for connection in self._free:
            connection.close()

    async def _connection(self) -> _Connection:
        while self._free:
            if (connection := self._free.pop()).is_open:
                return connection
        _, connection = await asyncio.get_running_loop().create_connection(_Connection, "127.0.0.1", self._port)
        return connection


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.WriteTransport | None = None
        self._answered: asyncio.Future[Outcome] | None = None

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def ask(self, request: bytes) -> asyncio.Future[Outcome]:
        assert self._transport is not None
        self._answered = asyncio.get_running_loop().create_future()
        self._head = b""
        self._tail = b""
        self._left: int | None = None
        self._sent_s = self._first_s = time.perf_counter()
        self._transport.write(request)
        return self._answered

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        if not self._tail:
            if not self._head:
                self._first_s = time.perf_counter()
            self._head += data
            head, end, data = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            length = _LENGTH.search(head)
            self._left = int(length[1]) if length else None
            self._tail = end
        self._tail = (self._tail + data)[-len(_LAST_CHUNK) :]
        if self._left is None:
            ended = self._tail == _LAST_CHUNK
        else:
            self._left -= len(data)
            ended = self._left <= 0
        if ended:
            self._end(int(self._head[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(0)

    def _end(self, status: int) -> None:
        answered, self._answered = self._answered, None
        if answered is not None and not answered.done():
            answered.set_result(Outcome(status, self._sent_s, self._first_s, time.perf_counter()))
