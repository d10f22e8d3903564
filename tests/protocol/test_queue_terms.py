"""The terms of waiting requests: shares of the queue, priorities, deadlines, positions and estimates."""

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
    async def test_a_caller_over_its_share_is_refused_and_others_are_not(self, queue: Queue) -> None:
        await put(queue, "1", "2", caller_limit=2)
        with pytest.raises(CallerLimited):
            await put(queue, "3", caller_limit=2)
        await put(queue, "4", caller="bob", caller_limit=2)
        assert await queue.cancel("3") == "gone"

    async def test_a_caller_over_its_share_gets_that_error_even_if_the_queue_is_full(self, queue: Queue) -> None:
        await put(queue, "1", "2")
        with pytest.raises(CallerLimited):
            await queue.enqueue(a_request(caller="alice"), cost=1, limit=2, terms=Terms(caller_limit=1))
        with pytest.raises(QueueFull):
            await queue.enqueue(a_request(caller="bob"), cost=1, limit=2, terms=Terms(caller_limit=1))

    async def test_only_waiting_requests_count_over_all_priorities(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "1", "2", caller_limit=2)
        await take(queue)
        await put(queue, "3", caller_limit=2, priority=BATCH)
        with pytest.raises(CallerLimited):
            await put(queue, "4", caller_limit=2, priority=INTERACTIVE)
        await queue.cancel("2")
        await put(queue, "5", caller_limit=2)

    async def test_each_version_has_a_separate_share(self, queue: Queue) -> None:
        await put(queue, "1", caller_limit=1)
        await queue.enqueue(a_request("2", version=OTHER_VERSION), cost=1, limit=MANY, terms=Terms(caller_limit=1))


class TestPriorities:
    async def test_the_most_urgent_request_goes_first(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "b1", "b2", priority=BATCH)
        await put(queue, "n1", priority=NORMAL)
        await put(queue, "i1", priority=INTERACTIVE, caller="bob")
        assert await take(queue, capacity=4) == ["i1", "n1", "b1", "b2"]

    async def test_callers_take_turns_within_a_priority(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        for priority in (BATCH, INTERACTIVE):
            await put(queue, f"a1-{priority}", f"a2-{priority}", priority=priority, caller="alice")
            await put(queue, f"b1-{priority}", priority=priority, caller="bob")
        claimed = await take(queue, capacity=6)
        assert claimed == [f"{name}-{priority}" for priority in (INTERACTIVE, BATCH) for name in ("a1", "b1", "a2")]

    async def test_use_of_one_priority_does_not_count_in_another(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "a1", cost=1e6, priority=BATCH)
        await take(queue)
        await put(queue, "b1", "b2", caller="bob")
        await put(queue, "a2", caller="alice")
        assert set(await take(queue, capacity=2)) == {"a2", "b1"}

    async def test_a_requeued_request_keeps_its_priority(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "i1", priority=INTERACTIVE)
        await take(queue)
        await put(queue, "i2", priority=INTERACTIVE)
        await queue.requeue("i1", 1)
        assert await take(queue) == ["i1"]


class TestAging:
    async def test_aged_requests_get_a_share_despite_more_urgent_ones(self, redis: Redis) -> None:
        queue = Queue(redis, aging_ms=0)
        await join(queue, "worker-1")
        await put(queue, *(f"b{number:02}" for number in range(20)), priority=BATCH, caller="bob")
        await put(queue, *(f"i{number:02}" for number in range(40)), priority=INTERACTIVE)
        claimed = await take(queue, capacity=20)
        assert [name[0] for name in claimed] == ["i", "i", "i", "i", "b"] * 4
        assert [name for name in claimed if name[0] == "b"] == ["b00", "b01", "b02", "b03"]

    async def test_both_lower_priorities_get_a_share(self, redis: Redis) -> None:
        queue = Queue(redis, aging_ms=0)
        await join(queue, "worker-1")
        for priority in Priority:
            await put(queue, *(f"{priority}{number:02}" for number in range(40)), priority=priority)
        shares = [name[0] for name in await take(queue, capacity=36)]
        assert [shares.count(name) for name in "inb"] == [24, 6, 6]

    async def test_recent_requests_get_no_share(self, redis: Redis) -> None:
        queue = Queue(redis, aging_ms=60_000)
        await join(queue, "worker-1")
        await put(queue, "b1", priority=BATCH)
        await put(queue, *(f"i{number:02}" for number in range(20)), priority=INTERACTIVE)
        assert "b1" not in await take(queue, capacity=20)

    async def test_credit_does_not_accumulate_while_nothing_waits(self, redis: Redis) -> None:
        queue = Queue(redis, aging_ms=0)
        await join(queue, "worker-1")
        await put(queue, *(f"i{number:02}" for number in range(20)), priority=INTERACTIVE)
        await take(queue, capacity=10)
        await put(queue, "b1", priority=BATCH)
        assert "b1" not in await take(queue, capacity=4)
        assert await take(queue) == ["b1"]


class TestDeadlines:
    async def test_an_overdue_request_is_not_claimed(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "late", timeout_ms=0)
        await put(queue, "in-time", timeout_ms=60_000)
        assert await take(queue, capacity=2) == ["in-time"]
        assert await queue.cancel("late") == "gone"

    async def test_an_overdue_request_costs_its_caller_nothing(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "late", timeout_ms=0, cost=1e6)
        await take(queue)
        await put(queue, "b1", "b2", caller="bob")
        await put(queue, "a1", caller="alice", caller_limit=1)
        assert set(await take(queue, capacity=2)) == {"a1", "b1"}

    async def test_expire_removes_the_request(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "1", timeout_ms=60_000)
        assert await queue.expire("1")
        assert await take(queue) == []
        assert await queue.cancel("1") == "gone"

    async def test_expire_reports_a_request_that_a_claim_dropped(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "late", timeout_ms=0)
        await take(queue)
        assert await queue.expire("late")

    async def test_a_claimed_request_has_no_deadline(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "1", timeout_ms=300)
        started_at = time.monotonic()
        await take(queue)
        assert not await queue.expire("1")
        await queue.requeue("1", 1)
        assert not await queue.expire("1"), "its client has seen a part of the answer"
        await eventually(lambda: time.monotonic() > started_at + 0.35)
        assert await take(queue) == ["1"]


class TestPlaces:
    async def test_counts_the_requests_ahead(self, queue: Queue) -> None:
        assert [place.position for place in await put(queue, "n1", "n2", "n3")] == [1, 2, 3]
        assert [place.position for place in await put(queue, "o1", caller="bob")] == [2]
        assert [place.position for place in await put(queue, "i1", priority=INTERACTIVE)] == [1]
        assert await queue.place("n3") == QueuePosition(5, None)
        await queue.cancel("i1")
        assert await queue.place("n3") == QueuePosition(4, None)

    async def test_is_0_if_a_worker_was_idle(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await take(queue)
        assert await put(queue, "1", "2") == [QueuePosition(0, 0), QueuePosition(2, None)]

    async def test_is_none_for_a_request_that_does_not_wait(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "1")
        await take(queue)
        assert await queue.place("1") is None
        assert await queue.place("never-heard-of") is None


class TestDrainRate:
    async def drain(self, queue: Queue) -> tuple[float, float]:
        """Claims requests one after the other until the rate is known. Returns the least and the most that may have been claimed
        per second while requests waited."""
        await join(queue, "worker-1")
        started_at, claims = time.monotonic(), 0
        await put(queue, *(f"{number:04}" for number in range(1000)))
        queued_at = time.monotonic()

        async def known() -> bool:
            nonlocal claims
            claims += len(await take(queue))
            return await self.rate(queue) is not None and claims > 30

        await eventually(known, timeout_s=30)
        ended_at = time.monotonic()
        return claims / (ended_at - started_at), claims / (ended_at - queued_at)

    async def rate(self, queue: Queue) -> float | None:
        [depth] = await queue.depths()
        return depth.per_second

    async def waits_s(self, queue: Queue, position: int) -> float:
        """How long a request in this position waits at the current rate. It grows while nothing is claimed."""
        rate = await self.rate(queue)
        assert rate
        return position / rate

    async def test_is_measured_while_requests_wait(self, queue: Queue) -> None:
        least, most = await self.drain(queue)
        rate = await self.rate(queue)
        assert rate is not None
        assert 0.5 * least < rate < 1.5 * most
        place = await queue.place("0999")
        assert place
        assert place.wait_s is not None
        assert place.position / rate - 0.01 <= place.wait_s <= await self.waits_s(queue, place.position) + 0.01

    async def test_a_refusal_estimates_when_there_will_be_room(self, queue: Queue) -> None:
        await self.drain(queue)
        [depth] = await queue.depths()
        waiting = sum(depth.waiting.values())
        with pytest.raises(QueueFull) as full:
            await queue.enqueue(a_request(), cost=1, limit=waiting)
        expected = retry_after_s(waiting, depth.per_second)
        assert full.value.retry_after_s is not None
        assert expected <= full.value.retry_after_s <= retry_after_s(waiting, await self.rate(queue))
        await put(queue, "bobs", caller="bob")
        with pytest.raises(CallerLimited) as limited:
            await put(queue, "more", caller="bob", caller_limit=1)
        assert limited.value.retry_after_s is not None
        assert limited.value.retry_after_s < full.value.retry_after_s, "few go before what bob has waiting"

    async def test_a_request_that_cannot_start_in_time_is_refused_at_once(self, queue: Queue, redis: Redis) -> None:
        await self.drain(queue)
        keys = set(await redis.keys("*"))
        [place] = await put(queue, "patient")
        least_s = await self.waits_s(queue, place.position)
        with pytest.raises(QueueFull) as full:
            await put(queue, "hurried", timeout_ms=round(1000 * least_s))
        assert full.value.retry_after_s is not None
        assert least_s - 1.5 <= full.value.retry_after_s <= await self.waits_s(queue, place.position) + 1.5
        assert set(await redis.keys("*")) - {b"corral:room"} == keys - {b"corral:room"} | {b"corral:request:patient"}
        await put(queue, "in-time", timeout_ms=round(8000 * await self.waits_s(queue, place.position)))
        await put(queue, "goes-first", timeout_ms=round(1000 * least_s), priority=INTERACTIVE)

    async def test_falls_while_nothing_is_claimed(self, queue: Queue) -> None:
        await self.drain(queue)
        [before] = await queue.depths()

        async def lower() -> bool:
            [now] = await queue.depths()
            assert now.per_second
            assert before.per_second
            return now.per_second < before.per_second * 0.8

        await eventually(lower, timeout_s=10)

    async def test_is_unknown_if_no_request_had_to_wait(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        for number in range(20):
            await put(queue, str(number))
            await take(queue)
        await put(queue, "waits")
        started_at = time.monotonic()
        await eventually(lambda: time.monotonic() > started_at + 0.6)
        [depth] = await queue.depths()
        assert depth.per_second is None, "free slots say nothing of how fast a queue drains"
        with pytest.raises(QueueFull) as full:
            await queue.enqueue(a_request(), cost=1, limit=0)
        assert full.value.retry_after_s == DEFAULT_RETRY_AFTER_S


class TestDepths:
    async def test_per_version_by_priority_and_caller(self, queue: Queue) -> None:
        await put(queue, "1", "2")
        await put(queue, "3", caller="bob", priority=BATCH)
        await queue.enqueue(a_request(version=OTHER_VERSION, caller="bob"), cost=1, limit=MANY)
        depths = {depth.version: depth for depth in await queue.depths()}
        assert depths[VERSION].waiting == {INTERACTIVE: 0, NORMAL: 2, BATCH: 1}
        assert depths[VERSION].callers == {"alice": 2, "bob": 1}
        assert depths[OTHER_VERSION].callers == {"bob": 1}

    async def test_for_one_caller(self, queue: Queue) -> None:
        await put(queue, "1", "2")
        [depth] = await queue.depths(caller="alice")
        assert depth.callers == {"alice": 2}
        [depth] = await queue.depths(caller="bob")
        assert (depth.callers, sum(depth.waiting.values())) == ({}, 2)

    async def test_gives_the_age_of_the_oldest_request(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "1")

        async def waited() -> bool:
            [depth] = await queue.depths()
            return depth.oldest_ms >= 20

        await eventually(waited, timeout_s=5)
        await take(queue)
        assert await queue.depths() == [VersionQueue(VERSION, dict.fromkeys(Priority, 0), 0, None, {})]
