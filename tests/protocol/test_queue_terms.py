"""On which terms requests wait: shares of the queue, priorities, deadlines, and what may be known of all that."""

from __future__ import annotations

import time

import pytest
from redis.asyncio import Redis

from services.protocol.errors import CallerLimited, QueueFull
from services.protocol.queue import Queue
from services.protocol.waiting import DEFAULT_RETRY_AFTER_S, Priority, QueuePosition, Terms, VersionQueue, retry_after_s
from tests.conditions import eventually
from tests.protocol.samples import OTHER_VERSION, VERSION, a_request, join

INTERACTIVE, NORMAL, BATCH = Priority
MANY = 10_000


@pytest.fixture
def queue(redis: Redis) -> Queue:
    return Queue(redis)


async def put(
    queue: Queue,
    *ids: str,
    caller: str = "alice",
    cost: float = 10,
    priority: Priority = NORMAL,
    caller_limit: int | None = None,
    timeout_ms: int | None = None,
) -> list[QueuePosition]:
    on = Terms(priority, caller_limit=caller_limit, timeout_ms=timeout_ms)
    return [await queue.enqueue(a_request(name, caller=caller), cost=cost, limit=MANY, terms=on) for name in ids]


async def take(queue: Queue, capacity: int = 1) -> list[str]:
    return [claim.request.id for claim in (await queue.claim(VERSION, "worker-1", capacity=capacity)).claims]


class TestShares:
    async def test_a_caller_with_its_share_is_refused_and_others_are_not(self, queue: Queue) -> None:
        await put(queue, "1", "2", caller_limit=2)
        with pytest.raises(CallerLimited):
            await put(queue, "3", caller_limit=2)
        await put(queue, "4", caller="bob", caller_limit=2)
        assert await queue.cancel("3") == "gone"

    async def test_a_caller_with_its_share_is_told_so_where_the_queue_is_full_too(self, queue: Queue) -> None:
        await put(queue, "1", "2")
        with pytest.raises(CallerLimited):
            await queue.enqueue(a_request(caller="alice"), cost=1, limit=2, terms=Terms(caller_limit=1))
        with pytest.raises(QueueFull):
            await queue.enqueue(a_request(caller="bob"), cost=1, limit=2, terms=Terms(caller_limit=1))

    async def test_only_what_waits_counts_in_any_band(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "1", "2", caller_limit=2)
        await take(queue)
        await put(queue, "3", caller_limit=2, priority=BATCH)
        with pytest.raises(CallerLimited):
            await put(queue, "4", caller_limit=2, priority=INTERACTIVE)
        await queue.cancel("2")
        await put(queue, "5", caller_limit=2)

    async def test_each_version_has_its_own(self, queue: Queue) -> None:
        await put(queue, "1", caller_limit=1)
        await queue.enqueue(a_request("2", version=OTHER_VERSION), cost=1, limit=MANY, terms=Terms(caller_limit=1))


class TestPriorities:
    async def test_the_most_urgent_goes_first(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "b1", "b2", priority=BATCH)
        await put(queue, "n1", priority=NORMAL)
        await put(queue, "i1", priority=INTERACTIVE, caller="bob")
        assert await take(queue, capacity=4) == ["i1", "n1", "b1", "b2"]

    async def test_callers_take_turns_within_each(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        for priority in (BATCH, INTERACTIVE):
            await put(queue, f"a1-{priority}", f"a2-{priority}", priority=priority, caller="alice")
            await put(queue, f"b1-{priority}", priority=priority, caller="bob")
        claimed = await take(queue, capacity=6)
        assert claimed == [f"{name}-{priority}" for priority in (INTERACTIVE, BATCH) for name in ("a1", "b1", "a2")]

    async def test_what_a_caller_has_used_in_one_is_not_held_against_it_in_another(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "a1", cost=1e6, priority=BATCH)
        await take(queue)
        await put(queue, "b1", "b2", caller="bob")
        await put(queue, "a2", caller="alice")
        assert set(await take(queue, capacity=2)) == {"a2", "b1"}

    async def test_a_requeued_request_keeps_its_own(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "i1", priority=INTERACTIVE)
        await take(queue)
        await put(queue, "i2", priority=INTERACTIVE)
        await queue.requeue("i1", 1)
        assert await take(queue) == ["i1"]


class TestAging:
    async def test_what_has_aged_gets_a_share_however_much_is_more_urgent(self, redis: Redis) -> None:
        queue = Queue(redis, aging_ms=0)
        await join(queue, "worker-1")
        await put(queue, *(f"b{number:02}" for number in range(20)), priority=BATCH, caller="bob")
        await put(queue, *(f"i{number:02}" for number in range(40)), priority=INTERACTIVE)
        claimed = await take(queue, capacity=20)
        assert [name[0] for name in claimed] == ["i", "i", "i", "i", "b"] * 4
        assert [name for name in claimed if name[0] == "b"] == ["b00", "b01", "b02", "b03"]

    async def test_both_lower_bands_get_theirs(self, redis: Redis) -> None:
        queue = Queue(redis, aging_ms=0)
        await join(queue, "worker-1")
        for priority in Priority:
            await put(queue, *(f"{priority}{number:02}" for number in range(40)), priority=priority)
        shares = [name[0] for name in await take(queue, capacity=36)]
        assert [shares.count(name) for name in "inb"] == [24, 6, 6]

    async def test_what_is_young_does_not(self, redis: Redis) -> None:
        queue = Queue(redis, aging_ms=60_000)
        await join(queue, "worker-1")
        await put(queue, "b1", priority=BATCH)
        await put(queue, *(f"i{number:02}" for number in range(20)), priority=INTERACTIVE)
        assert "b1" not in await take(queue, capacity=20)

    async def test_being_passed_over_does_not_add_up_while_nothing_waits(self, redis: Redis) -> None:
        queue = Queue(redis, aging_ms=0)
        await join(queue, "worker-1")
        await put(queue, *(f"i{number:02}" for number in range(20)), priority=INTERACTIVE)
        await take(queue, capacity=10)
        await put(queue, "b1", priority=BATCH)
        assert "b1" not in await take(queue, capacity=4)
        assert await take(queue) == ["b1"]


class TestDeadlines:
    async def test_nobody_claims_a_request_whose_deadline_is_over(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "late", timeout_ms=0)
        await put(queue, "in-time", timeout_ms=60_000)
        assert await take(queue, capacity=2) == ["in-time"]
        assert await queue.cancel("late") == "gone"

    async def test_it_costs_its_caller_nothing(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "late", timeout_ms=0, cost=1e6)
        await take(queue)
        await put(queue, "b1", "b2", caller="bob")
        await put(queue, "a1", caller="alice", caller_limit=1)
        assert set(await take(queue, capacity=2)) == {"a1", "b1"}

    async def test_it_leaves_when_its_gateway_says_so(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "1", timeout_ms=60_000)
        assert await queue.expire("1")
        assert await take(queue) == []
        assert await queue.cancel("1") == "gone"

    async def test_its_gateway_hears_that_it_was_dropped(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "late", timeout_ms=0)
        await take(queue)
        assert await queue.expire("late")

    async def test_one_that_has_begun_is_not_held_to_it(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "1", timeout_ms=300)
        begun = time.monotonic()
        await take(queue)
        assert not await queue.expire("1")
        await queue.requeue("1", 1)
        assert not await queue.expire("1"), "its client has seen a part of the answer"
        await eventually(lambda: time.monotonic() > begun + 0.35)
        assert await take(queue) == ["1"]


class TestPlaces:
    async def test_counts_what_goes_first_as_things_stand(self, queue: Queue) -> None:
        assert [place.position for place in await put(queue, "n1", "n2", "n3")] == [1, 2, 3]
        assert [place.position for place in await put(queue, "o1", caller="bob")] == [2]
        assert [place.position for place in await put(queue, "i1", priority=INTERACTIVE)] == [1]
        assert await queue.place("n3") == QueuePosition(5, None)
        await queue.cancel("i1")
        assert await queue.place("n3") == QueuePosition(4, None)

    async def test_is_0_where_a_worker_was_idle(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await take(queue)
        assert await put(queue, "1", "2") == [QueuePosition(0, 0), QueuePosition(2, None)]

    async def test_is_none_of_what_does_not_wait(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "1")
        await take(queue)
        assert await queue.place("1") is None
        assert await queue.place("never-heard-of") is None


class TestDrainRate:
    async def drain(self, queue: Queue) -> float:
        """Claims one request after the other until the rate is known, and says how many it was a second."""
        await join(queue, "worker-1")
        begun, claims = time.monotonic(), 0
        await put(queue, *(f"{number:04}" for number in range(1000)))

        async def known() -> bool:
            nonlocal claims
            claims += len(await take(queue))
            [depth] = await queue.depths()
            return depth.per_second is not None and claims > 30

        await eventually(known, timeout_s=10)
        return claims / (time.monotonic() - begun)

    async def test_is_measured_while_requests_wait(self, queue: Queue) -> None:
        measured = await self.drain(queue)
        [depth] = await queue.depths()
        assert depth.per_second == pytest.approx(measured, rel=0.5)
        place = await queue.place("0999")
        assert place
        assert place.wait_s == pytest.approx(place.position / measured, rel=0.5)

    async def test_a_refusal_says_when_the_queue_will_have_drained(self, queue: Queue) -> None:
        await self.drain(queue)
        [depth] = await queue.depths()
        waiting = sum(depth.waiting.values())
        expected = retry_after_s(waiting, depth.per_second)
        with pytest.raises(QueueFull) as full:
            await queue.enqueue(a_request(), cost=1, limit=waiting)
        assert full.value.retry_after_s == pytest.approx(expected, rel=0.2)
        await put(queue, "bobs", caller="bob")
        with pytest.raises(CallerLimited) as limited:
            await put(queue, "more", caller="bob", caller_limit=1)
        assert limited.value.retry_after_s is not None
        assert limited.value.retry_after_s < expected, "few go before what bob has waiting"

    async def test_who_would_hardly_be_served_in_time_is_refused_at_once(self, queue: Queue, redis: Redis) -> None:
        measured = await self.drain(queue)
        keys = set(await redis.keys("*"))
        [place] = await put(queue, "patient")
        wait_ms = round(1000 * place.position / measured)
        with pytest.raises(QueueFull) as full:
            await put(queue, "hurried", timeout_ms=wait_ms)
        assert full.value.retry_after_s == pytest.approx(wait_ms / 1000, abs=1.5)
        assert set(await redis.keys("*")) == keys | {b"corral:request:patient"}
        await put(queue, "in-time", timeout_ms=8 * wait_ms)
        await put(queue, "goes-first", timeout_ms=wait_ms, priority=INTERACTIVE)

    async def test_falls_while_nothing_leaves(self, queue: Queue) -> None:
        await self.drain(queue)
        [before] = await queue.depths()

        async def lower() -> bool:
            [now] = await queue.depths()
            assert now.per_second
            assert before.per_second
            return now.per_second < before.per_second * 0.8

        await eventually(lower, timeout_s=10)

    async def test_is_unknown_where_nobody_has_had_to_wait(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        for number in range(20):
            await put(queue, str(number))
            await take(queue)
        await put(queue, "waits")
        begun = time.monotonic()
        await eventually(lambda: time.monotonic() > begun + 0.6)
        [depth] = await queue.depths()
        assert depth.per_second is None, "free slots say nothing of how fast a queue drains"
        with pytest.raises(QueueFull) as full:
            await queue.enqueue(a_request(), cost=1, limit=0)
        assert full.value.retry_after_s == DEFAULT_RETRY_AFTER_S


class TestDepths:
    async def test_of_every_version_by_priority_and_caller(self, queue: Queue) -> None:
        await put(queue, "1", "2")
        await put(queue, "3", caller="bob", priority=BATCH)
        await queue.enqueue(a_request(version=OTHER_VERSION, caller="bob"), cost=1, limit=MANY)
        depths = {depth.version: depth for depth in await queue.depths()}
        assert depths[VERSION].waiting == {INTERACTIVE: 0, NORMAL: 2, BATCH: 1}
        assert depths[VERSION].callers == {"alice": 2, "bob": 1}
        assert depths[OTHER_VERSION].callers == {"bob": 1}

    async def test_of_one_caller(self, queue: Queue) -> None:
        await put(queue, "1", "2")
        [depth] = await queue.depths(caller="alice")
        assert depth.callers == {"alice": 2}
        [depth] = await queue.depths(caller="bob")
        assert (depth.callers, sum(depth.waiting.values())) == ({}, 2)

    async def test_tells_how_long_the_oldest_has_waited(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "1")

        async def waited() -> bool:
            [depth] = await queue.depths()
            return depth.oldest_ms >= 20

        await eventually(waited, timeout_s=5)
        await take(queue)
        assert await queue.depths() == [VersionQueue(VERSION, dict.fromkeys(Priority, 0), 0, None, {})]
