"""A claim reports how many bytes of the prompt the queue expects in the worker's cache; a metric compares this with the real
cache."""

from __future__ import annotations

from redis.asyncio import Redis

from services.protocol.queue import Queue
from tests.protocol.samples import PARROT, PIRATE, VERSION, begins, join, put


async def held(queue: Queue, *, dropped: tuple[bytes, ...] = ()) -> int:
    [claim] = (await queue.claim(VERSION, "w1", capacity=1, dropped=dropped)).claims
    await queue.settle(claim.request.id, claim.epoch, cost=10)
    return claim.held_bytes


async def test_a_claim_reports_what_the_worker_held_before(redis: Redis) -> None:
    queue = Queue(redis)
    await join(queue, "w1")
    await put(queue, "first")
    assert await held(queue) == 0
    await put(queue, "second", PIRATE + "Who are you?")
    assert await held(queue) == begins(PIRATE)[-1].length
    await put(queue, "third", PARROT)
    assert await held(queue) == 0
    await put(queue, "fourth")
    assert await held(queue, dropped=tuple(prefix.digest for prefix in begins(PIRATE + "Who are you?"))) == 0
