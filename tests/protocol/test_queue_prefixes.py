"""A request prefers the worker that holds the start of its prompt, but waits only briefly for it."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from services.protocol.messages import Wake
from services.protocol.prefixes import Prefix
from services.protocol.queue import Queue
from services.protocol.reports import WorkerState
from tests.conditions import eventually
from tests.protocol.samples import LEASE_MS, PARROT, PIRATE, VERSION, a_report, begins, join, put


@pytest.fixture
async def queue(redis: Redis) -> Queue:
    queue = Queue(redis)
    await join(queue, "w1", "w2")
    return queue


async def take(queue: Queue, worker: str, capacity: int = 1, dropped: tuple[Prefix, ...] = ()) -> list[str]:
    digests = [prefix.digest for prefix in dropped]
    return [claim.request.id for claim in (await queue.claim(VERSION, worker, capacity=capacity, dropped=digests)).claims]


async def serve(queue: Queue, worker: str, request: str, text: str = PIRATE) -> None:
    """The worker answers one request, and then holds its prompt."""
    await put(queue, request, text)
    assert await take(queue, worker) == [request]
    assert await queue.settle(request, 1, cost=10)


async def is_woken(queue: Queue, worker: str) -> bool:
    return isinstance(await queue.next_control(worker, timeout_s=0.001), Wake)


async def test_a_request_is_left_to_the_worker_that_holds_its_prefix(queue: Queue) -> None:
    await serve(queue, "w1", "first")
    await put(queue, "second", PIRATE + "Who are you?")
    passed_over = await queue.claim(VERSION, "w2", capacity=1)
    assert passed_over.claims == []
    assert passed_over.again_s is not None
    assert 0 < passed_over.again_s <= 0.1
    assert await take(queue, "w1") == ["second"]


async def test_other_requests_are_claimed_meanwhile(queue: Queue) -> None:
    await serve(queue, "w1", "first")
    await put(queue, "second")
    await put(queue, "other", PARROT)
    assert await take(queue, "w2", capacity=2) == ["other"]


async def test_a_request_waits_only_briefly_for_its_worker(queue: Queue) -> None:
    await serve(queue, "w1", "first")
    await put(queue, "second")

    async def taken() -> bool:
        return await take(queue, "w2") == ["second"]

    await eventually(taken, timeout_s=5)


async def test_the_idle_worker_that_holds_the_prefix_is_woken(queue: Queue) -> None:
    await serve(queue, "w1", "first")
    await serve(queue, "w2", "other", PARROT)
    for text, holder, another in ((PIRATE, "w1", "w2"), (PARROT, "w2", "w1")) * 3:
        assert await take(queue, "w1") == await take(queue, "w2") == []  # both are idle
        await put(queue, f"for {holder}", text)
        assert await is_woken(queue, holder)
        assert not await is_woken(queue, another)
        assert await take(queue, holder) == [f"for {holder}"]
        await queue.settle(f"for {holder}", 1, cost=10)


async def test_a_prefix_shared_by_all_requests_does_not_overload_one_worker(queue: Queue) -> None:
    short = PIRATE[:800]
    await serve(queue, "w1", "first", short)
    for number in range(24):
        await put(queue, f"{number}", short)
    taken = [len(await take(queue, worker, capacity=24)) for worker in ("w1", "w2", "w1")]
    assert sum(taken) == 24
    assert all(taken)


async def test_a_long_prefix_justifies_a_longer_queue(queue: Queue) -> None:
    await serve(queue, "w1", "first")
    for number in range(5):
        await put(queue, f"{number}")
    assert len(await take(queue, "w1", capacity=5)) == 5


async def test_a_dropped_prefix_no_longer_counts(queue: Queue) -> None:
    await serve(queue, "w1", "first")
    assert await take(queue, "w1", dropped=begins(PIRATE)) == []
    await put(queue, "second")
    assert await take(queue, "w2") == ["second"]


@pytest.mark.parametrize("how", ["leaves", "drains", "falls silent"])
async def test_a_worker_that_stopped_serving_is_not_waited_for(queue: Queue, how: str) -> None:
    await serve(queue, "w1", "first")
    if how == "leaves":
        await queue.leave("w1", VERSION)
    elif how == "drains":
        await queue.report(a_report("w1", state=WorkerState.DRAINING), lease_ms=LEASE_MS)
    else:
        await queue.report(a_report("w1"), lease_ms=1)

        async def silent() -> bool:
            return "w1" not in {report.worker for report in await queue.workers()}

        await eventually(silent, timeout_s=5)
    await put(queue, "second")
    assert await take(queue, "w2") == ["second"]


async def test_a_requeued_request_does_not_wait_for_another_worker(queue: Queue) -> None:
    await serve(queue, "w1", "first")
    await put(queue, "second")
    assert await take(queue, "w1") == ["second"]
    assert await queue.requeue("second", 1)
    assert await take(queue, "w2") == ["second"]


async def test_a_worker_that_left_leaves_no_keys(queue: Queue, redis: Redis) -> None:
    await serve(queue, "w1", "first")
    for worker in ("w1", "w2"):
        await queue.leave(worker, VERSION)
    assert not [key for key in await redis.keys("*") if b":held:" in key or b":serving:" in key]
