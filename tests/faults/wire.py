"""A TCP relay to Redis that can be cut for one process: no data passes, but both connections stay open."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager

import psutil

from tests.conftest import free_port


class Wire:
    """Forwards TCP connections on this machine to `port`."""

    def __init__(self, port: int) -> None:
        self.port = free_port()
        self._target = port
        self._whole: defaultdict[int, asyncio.Event] = defaultdict(_set)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)

    def close(self) -> None:
        self._server.close()

    @contextmanager
    def cut(self, pid: int) -> Iterator[None]:
        """Data sent meanwhile is delivered afterwards, as TCP would retransmit it."""
        self._whole[pid].clear()
        try:
            yield
        finally:
            self._whole[pid].set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            whole = self._whole[_owner(writer.get_extra_info("peername")[1])]
            try:
                onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", self._target)
            except OSError:
                return
            with closing(onward_writer):
                ways = (_pump(reader, onward_writer, whole), _pump(onward_reader, writer, whole))
                tasks = [asyncio.ensure_future(way) for way in ways]
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    task.cancel()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, whole: asyncio.Event) -> None:
    try:
        while data := await reader.read(1 << 16):
            await whole.wait()
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        return


def _set() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


def _owner(port: int) -> int:
    """The process at this end of a connection, or 0 if it is closed already."""
    return next((one.pid or 0 for one in psutil.net_connections("tcp") if one.laddr and one.laddr.port == port), 0)
