"""A cancelled call to Redis ends as cancelled. Services depend on it when they stop."""

from __future__ import annotations

import asyncio

from redis.asyncio import Redis

from services.protocol.queue import Queue


async def test_cancellations_are_not_swallowed(redis: Redis) -> None:
    queue = Queue(redis)
    await queue.demand()
    ended_as_cancelled = 0
    for _ in range(200):
        call = asyncio.ensure_future(queue.demand())
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])
        ended_as_cancelled += call.cancelled()
    assert ended_as_cancelled == 200
    assert await queue.demand() == []
