"""A TCP relay in front of Redis that can lose a reply: the command is executed, but its reply does not arrive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit


class Relay:
    """`url` is the relay's address. While `lose_answers` is set, each connection is closed when Redis replies on it."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname, parts.port)
        self.lose_answers = False
        self.url = ""

    async def _forward(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, answers: bool) -> None:
        while data := await source.read(65536):
            if answers and self.lose_answers:
                return
            target.write(data)
            await target.drain()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        redis_reader, redis_writer = await asyncio.open_connection(*self._upstream)
        ways = [
            asyncio.create_task(self._forward(reader, redis_writer, answers=False)),
            asyncio.create_task(self._forward(redis_reader, writer, answers=True)),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        for end in (writer, redis_writer):
            end.close()
        await asyncio.gather(writer.wait_closed(), redis_writer.wait_closed(), return_exceptions=True)


@asynccontextmanager
async def relay_to(upstream: str) -> AsyncIterator[Relay]:
    relay = Relay(upstream)
    async with await asyncio.start_server(relay._connected, "127.0.0.1", 0) as server:
        relay.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        yield relay
