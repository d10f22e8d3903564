"""HTTP servers on free loopback ports, in the event loop of the tests."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from services.gateway.connection import Connection
from services.process.http_peers import Bounds, Peers
from tests.conditions import eventually


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.stopping = asyncio.Event()

    async def main_loop(self) -> None:
        """Stops at once: uvicorn's main loop would check only every 0.1 s."""
        await self.stopping.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves the signal handlers to pytest."""
        yield


@asynccontextmanager
async def serving(
    app: Any, *, shutdown_s: int = 5, listener: socket.socket | None = None, bounds: Bounds | None = None
) -> AsyncIterator[str]:
    """Yields the base URL."""
    listener = listener or socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    protocol: Any = functools.partial(Connection, peers=Peers(bounds or Bounds()))
    config = uvicorn.Config(
        app, http=protocol, access_log=False, log_config=None, timeout_graceful_shutdown=shutdown_s, ws="none"
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    await eventually(lambda: server.started or task.done())
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stopping.set()
        await task
