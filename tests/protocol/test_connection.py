"""What a client of Redis gets from us besides the driver: long waits that are no failures, and failures of one kind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from services.protocol.connection import connect
from services.protocol.errors import Unavailable
from services.protocol.jobs import JobEvents
from services.protocol.queue import Queue
from services.protocol.replies import ReplyReader
from tests.conditions import eventually


@pytest.fixture
async def silent_url() -> AsyncIterator[str]:
    """A server that takes connections and commands and never answers."""
    writers: list[asyncio.StreamWriter] = []

    async def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        for writer in writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


async def test_a_wait_longer_than_the_sockets_time_out_is_no_failure(redis: Redis, redis_url: str) -> None:
    """The socket's time-out notices a Redis that hangs; one that has nothing to tell is well."""
    async with connect(f"{redis_url}?socket_timeout=1.5") as patient:
        assert await asyncio.gather(
            Queue(patient).next_control("worker-1", timeout_s=1.8),
            ReplyReader(patient, "gateway-1").read(timeout_s=1.8),
            JobEvents(patient).read(b"0-0", timeout_s=1.8),
        ) == [None, [], []]


async def test_a_redis_that_hangs_is_unavailable(silent_url: str) -> None:
    async with connect(f"{silent_url}?socket_timeout=0.1") as redis:
        with pytest.raises(Unavailable):
            await Queue(redis).demand()
        with pytest.raises(Unavailable):
            await Queue(redis).next_control("worker-1", timeout_s=5)


async def test_a_connection_that_broke_is_replaced(redis: Redis) -> None:
    queue = Queue(redis)
    await queue.demand()
    await redis.client_kill_filter(_type="normal", skipme=False)

    async def answers() -> bool:
        try:
            return await queue.demand() == []
        except Unavailable:
            return False

    await eventually(answers, timeout_s=5)
