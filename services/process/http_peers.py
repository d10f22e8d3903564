"""Counts and limits an HTTP server's open connections, in total and per peer."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable
from typing import Protocol

import msgspec

from services.protocol.errors import CorralError, Unavailable

#: How many connections above the limit get an error response. Further ones are reset.
MAX_REFUSED = 64
#: Longest time between two checks of all connections for timeouts.
SWEEP_INTERVAL_S = 1.0

_MAPPED_IPV4 = bytes(10) + b"\xff\xff"


class Bounds(msgspec.Struct, frozen=True):
    """A server's limits on its peers.

    `header_bytes` limits the header of one request, `headers_bytes` the sum of all incomplete headers. A header must be complete
    within `header_s`. A connection whose peer reads nothing for `unread_s` is aborted. After a response that closes a connection,
    incoming data is dropped for `linger_s` before the socket is closed.
    """

    connections: int = 4096
    connections_per_peer: int = 2048
    header_bytes: int = 64 * 1024
    headers_bytes: int = 16 * 1024**2
    header_s: float = 15.0
    unread_s: float = 60.0
    linger_s: float = 2.0


class Connection(Protocol):
    @property
    def peer(self) -> str:
        """The peer's address, empty if it has none."""

    def end_if_overdue(self, now: float) -> None: ...


class Peers:
    """The open connections of one server. `on_refusal` is called with each error that a connection sends without calling the application."""

    def __init__(self, bounds: Bounds, *, on_refusal: Callable[[CorralError], None] = lambda error: None) -> None:
        self.bounds = bounds
        self.on_refusal = on_refusal
        self._open: set[Connection] = set()
        self._by_peer: Counter[str] = Counter()
        self._headers: dict[Connection, int] = {}
        self._headers_bytes = 0
        self._sweeping = False

    def enter(self, connection: Connection) -> CorralError | None:
        """Adds a connection. Returns an error if there are too many, and the connection must then close."""
        peer = network_of(connection.peer)
        self._open.add(connection)
        self._by_peer[peer] += 1
        if not self._sweeping:
            self._sweep_later()
        if len(self._open) > self.bounds.connections:
            return Unavailable(f"the server has {self.bounds.connections} open connections, which is its limit")
        if self._by_peer[peer] > self.bounds.connections_per_peer:
            return Unavailable(f"your address has {self.bounds.connections_per_peer} open connections, which is the limit")
        return None

    def leave(self, connection: Connection) -> None:
        peer = network_of(connection.peer)
        self.hold_header(connection, 0)
        self._open.discard(connection)
        self._by_peer[peer] -= 1
        if not self._by_peer[peer]:
            del self._by_peer[peer]

    @property
    def is_crowded(self) -> bool:
        """True if there are too many connections even to send each an error response."""
        return len(self._open) > self.bounds.connections + MAX_REFUSED

    def hold_header(self, connection: Connection, size: int) -> CorralError | None:
        """Sets how many bytes of an incomplete header the connection buffers. Returns an error if all connections together buffer too
        many, and the connection must then close."""
        if size or connection in self._headers:
            self._headers_bytes += size - self._headers.pop(connection, 0)
        if size:
            self._headers[connection] = size
        if size and self._headers_bytes > self.bounds.headers_bytes:
            return Unavailable("the server has too many connections with incomplete request headers")
        return None

    def _sweep(self) -> None:
        now = asyncio.get_running_loop().time()
        for connection in list(self._open):
            connection.end_if_overdue(now)
        self._sweep_later()

    def _sweep_later(self) -> None:
        self._sweeping = bool(self._open)
        if self._sweeping:
            interval_s = min(SWEEP_INTERVAL_S, self.bounds.header_s / 4, self.bounds.unread_s / 4)
            asyncio.get_running_loop().call_later(interval_s, self._sweep)


def network_of(address: str) -> str:
    """The peer that an address counts towards: the IPv4 address itself, or the IPv6 address's /64 network, since one machine usually
    has a whole /64."""
    if ":" not in address:
        return address
    try:
        packed = socket.inet_pton(socket.AF_INET6, address)
    except OSError:
        return address
    if packed.startswith(_MAPPED_IPV4):
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return socket.inet_ntop(socket.AF_INET6, packed[:8] + bytes(8))
