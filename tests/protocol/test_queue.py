"""The queue's promises to gateways, workers and the registry."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from services.protocol.connection import connect
from services.protocol.errors import QueueFull, Unavailable
from services.protocol.messages import Cancel, Wake
from services.protocol.queue import LostRequest, Queue, RefusedRequest
from services.protocol.reports import WorkerState
from tests.conditions import eventually
from tests.protocol.relay import relay_to
from tests.protocol.samples import LEASE_MS, OTHER_VERSION, VERSION, a_report, a_request, join


@pytest.fixture
def queue(redis: Redis) -> Queue:
    return Queue(redis)


async def put(queue: Queue, *ids: str, cost: float = 10, **fields: str) -> None:
    for request_id in ids:
        await queue.enqueue(a_request(request_id, **fields), cost=cost, limit=1000)


async def take(queue: Queue, capacity: int = 1, worker: str = "worker-1") -> list[str]:
    return [claim.request.id for claim in (await queue.claim(VERSION, worker, capacity=capacity)).claims]


async def waiting(queue: Queue, version: str = VERSION) -> int:
    return sum(demand.waiting for demand in await queue.demand() if demand.version == version)


async def end_lease(queue: Queue, worker: str) -> None:
    """Lets the worker's lease expire."""
    await queue.report(a_report(worker), lease_ms=1)

    async def silent() -> bool:
        return worker not in {report.worker for report in await queue.workers()}

    await eventually(silent, timeout_s=5)


class TestAdmission:
    async def test_returns_the_position_of_the_request(self, queue: Queue) -> None:
        assert (await queue.enqueue(a_request(), cost=10, limit=5)).position == 1
        assert (await queue.enqueue(a_request(), cost=10, limit=5)).position == 2

    async def test_a_full_queue_refuses_and_stores_nothing(self, queue: Queue, redis: Redis) -> None:
        await queue.enqueue(a_request("first"), cost=10, limit=1)
        before = set(await redis.keys("*"))
        with pytest.raises(QueueFull, match="too many requests are waiting"):
            await queue.enqueue(a_request("second"), cost=10, limit=1)
        assert set(await redis.keys("*")) <= before
        assert await queue.cancel("second") == "gone"

    async def test_only_waiting_requests_of_the_same_version_count(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await queue.enqueue(a_request("claimed"), cost=10, limit=1)
        await take(queue)
        assert (await queue.enqueue(a_request("waiting"), cost=10, limit=1)).position == 1
        assert (await queue.enqueue(a_request("other", version=OTHER_VERSION), cost=10, limit=1)).position == 1


class TestClaim:
    async def test_returns_the_request_unchanged(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        request = a_request(text="naïve 🐎")
        await queue.enqueue(request, cost=10, limit=10)
        [claim] = (await queue.claim(VERSION, "worker-1", capacity=1)).claims
        assert (claim.request, claim.epoch) == (request, 1)

    async def test_returns_at_most_capacity_requests(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "1", "2", "3")
        assert await take(queue, capacity=2) == ["1", "2"]
        assert await take(queue, capacity=2) == ["3"]
        assert await take(queue, capacity=2) == []

    async def test_returns_only_requests_of_the_workers_version(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "other", version=OTHER_VERSION)
        assert await take(queue) == []

    async def test_a_caller_is_served_in_order_and_callers_take_turns(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "a1", "a2", "a3", caller="alice")
        await put(queue, "b1", "b2", "b3", caller="bob")
        assert await take(queue, capacity=6) == ["a1", "b1", "a2", "b2", "a3", "b3"]

    async def test_a_caller_is_served_in_order_if_earlier_requests_cost_less_than_estimated(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "z", "y", "x", "w", cost=4000)
        await take(queue, capacity=2)
        await queue.settle("z", 1, cost=10)
        await queue.settle("y", 1, cost=10)
        await put(queue, "v", "u", cost=4000)
        assert await take(queue, capacity=4) == ["x", "w", "v", "u"]

    async def test_a_caller_is_served_in_order_if_earlier_requests_are_cancelled(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "z", "y", "x", cost=1e9)
        await queue.cancel("z")
        await queue.cancel("y")
        await put(queue, "w", "v")
        assert await take(queue, capacity=3) == ["x", "w", "v"]

    async def test_a_worker_without_a_lease_gets_no_requests(self, queue: Queue) -> None:
        """If it died with a claim, the claim would never count as lost."""
        await put(queue, "1")
        assert await take(queue) == []
        await join(queue, "worker-1")
        assert await take(queue) == ["1"]

    async def test_a_claim_whose_reply_was_lost_is_returned_again(self, queue: Queue, redis_url: str) -> None:
        """The worker still reports, so its lease would never expire and the requests would hang."""
        await join(queue, "worker-1")
        await put(queue, "1", "2", "3")
        async with relay_to(redis_url) as relay, connect(relay.url) as redis:
            distant = Queue(redis)
            assert await take(distant) == ["1"]
            relay.lose_answers = True
            with pytest.raises(Unavailable):
                await take(distant)
            relay.lose_answers = False
            again = (await distant.claim(VERSION, "worker-1", capacity=1)).claims
            assert [(claim.request.id, claim.epoch) for claim in again] == [("2", 1)]
            assert await take(distant) == ["3"]


class TestWake:
    async def test_a_request_wakes_an_idle_worker(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await take(queue)
        blocked = asyncio.create_task(queue.next_control("worker-1", timeout_s=5))
        await put(queue, "1")
        assert await asyncio.wait_for(blocked, 1) == Wake()

    async def test_several_requests_for_one_idle_worker_are_all_served(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await take(queue)
        await asyncio.gather(*(put(queue, f"{number:02}") for number in range(20)))
        assert await queue.next_control("worker-1", timeout_s=5) == Wake()
        served = []
        while claimed := await take(queue, capacity=3):
            served += claimed
        assert sorted(served) == [f"{number:02}" for number in range(20)]

    async def test_each_request_wakes_one_worker(self, queue: Queue) -> None:
        workers = [f"worker-{number}" for number in range(4)]
        await join(queue, *workers)
        for worker in workers:
            await take(queue, worker=worker)
        await put(queue, "1", "2")
        woken = Counter([await queue.next_control(worker, timeout_s=0.01) for worker in workers])
        assert woken == {Wake(): 2, None: 2}

    async def test_a_worker_that_got_its_full_capacity_is_not_woken(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "1")
        await take(queue)
        await put(queue, "2")
        assert await queue.next_control("worker-1", timeout_s=0.01) is None

    async def test_a_worker_that_is_busy_again_is_not_woken(self, queue: Queue) -> None:
        workers = {"worker-1", "worker-2"}
        await join(queue, *workers)
        for worker in workers:
            await take(queue, worker=worker)
        await put(queue, "1")
        [woken] = [worker for worker in workers if await queue.next_control(worker, timeout_s=0.01)]
        [other] = workers - {woken}
        assert await take(queue, worker=other) == ["1"]
        await put(queue, "2")
        assert await queue.next_control(other, timeout_s=0.01) is None

    async def test_a_dead_worker_is_skipped(self, queue: Queue) -> None:
        for _ in range(8):  # the worker to wake is chosen at random
            await join(queue, "alive", "dead", "left")
            for worker in ("alive", "dead", "left"):
                await take(queue, worker=worker)
            await end_lease(queue, "dead")
            await queue.leave("left", VERSION)
            await put(queue, "1")
            assert await queue.next_control("alive", timeout_s=5) == Wake()
            assert await take(queue, worker="alive") == ["1"]
            await queue.settle("1", 1, cost=10)

    async def test_a_request_survives_the_worker_that_was_woken_for_it(self, queue: Queue) -> None:
        workers = {"worker-1", "worker-2"}
        await join(queue, *workers)
        for worker in workers:
            await take(queue, worker=worker)
        await put(queue, "1")
        [woken] = [worker for worker in workers if await queue.next_control(worker, timeout_s=0.01)]
        await queue.leave(woken, VERSION)
        [other] = workers - {woken}
        await join(queue, other)
        assert await queue.next_control(other, timeout_s=5) == Wake()

    async def test_a_worker_skipped_during_a_stall_is_woken_at_its_next_report(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await take(queue)
        await end_lease(queue, "worker-1")
        await put(queue, "1")
        await join(queue, "worker-1")
        assert await queue.next_control("worker-1", timeout_s=5) == Wake()
        assert await take(queue) == ["1"]

    @pytest.mark.parametrize(
        "busy",
        [
            a_report(running=8, slots=8),
            a_report(state=WorkerState.LOADING),
            a_report(state=WorkerState.DRAINING),
            a_report(state=WorkerState.FAILED),
        ],
        ids=["full", "loading", "draining", "failed"],
    )
    async def test_a_report_does_not_wake_a_worker_that_cannot_claim(self, queue: Queue, busy: Any) -> None:
        await put(queue, "1")
        await queue.report(busy, lease_ms=LEASE_MS)
        assert await queue.next_control("worker-1", timeout_s=0.01) is None

    async def test_unread_wakes_do_not_accumulate(self, queue: Queue) -> None:
        await put(queue, "1")
        for _ in range(3):
            await queue.report(a_report(), lease_ms=LEASE_MS)
        assert await queue.next_control("worker-1", timeout_s=0.01) == Wake()
        assert await queue.next_control("worker-1", timeout_s=0.01) is None


class TestCancel:
    async def test_removes_a_waiting_request(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "1", "2")
        assert await queue.cancel("1") == "waiting"
        assert await take(queue, capacity=2) == ["2"]
        assert await queue.cancel("1") == "gone"

    async def test_a_cancelled_waiting_request_costs_its_caller_nothing(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "blocker", caller="carol")
        await put(queue, "1", cost=5000, caller="alice")
        await queue.cancel("1")
        await put(queue, "2", caller="alice")
        await put(queue, "3", caller="bob")
        await put(queue, "4", caller="bob")
        assert await take(queue, capacity=3) == ["2", "3", "blocker"]

    async def test_the_worker_of_a_claimed_request_gets_a_cancel(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "1")
        await take(queue)
        blocked = asyncio.create_task(queue.next_control("worker-1", timeout_s=5))
        assert await queue.cancel("1") == "claimed"
        assert await asyncio.wait_for(blocked, 1) == Cancel("1")
        assert await queue.settle("1", 1, cost=3)
        assert await queue.cancel("1") == "gone"

    async def test_an_unknown_request_is_gone(self, queue: Queue) -> None:
        assert await queue.cancel("never-heard-of") == "gone"

    async def test_a_requeued_request_is_waiting_again(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "1")
        await take(queue)
        await queue.requeue("1", 1)
        assert await queue.cancel("1") == "waiting"

    async def test_a_message_to_a_dead_worker_expires(self, queue: Queue, redis: Redis) -> None:
        await join(queue, "worker-1")
        await put(queue, "1")
        await take(queue)
        await queue.leave("worker-1", VERSION)
        assert await queue.cancel("1") == "claimed"
        assert await redis.ttl("corral:inbox:worker-1") > 0


class TestSettle:
    async def test_ends_the_request_once(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "1")
        await take(queue)
        assert await queue.settle("1", 1, cost=10)
        assert not await queue.settle("1", 1, cost=10)

    async def test_a_superseded_claim_changes_nothing(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "1")
        await take(queue)
        await queue.requeue("1", 1)
        assert not await queue.settle("1", 1, cost=10)
        [claim] = (await queue.claim(VERSION, "worker-1", capacity=1)).claims
        assert claim.epoch == 3
        assert await queue.settle("1", 3, cost=10)

    async def test_a_waiting_request_can_be_settled(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "1")
        assert await queue.settle("1", 0, cost=0)
        assert await take(queue) == []

    async def test_refunds_an_overestimate(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "a1", cost=1000, caller="alice")
        await put(queue, "b1", "b2", "b3", cost=100, caller="bob")
        await take(queue, capacity=2)
        await queue.settle("a1", 1, cost=150)
        await put(queue, "a2", caller="alice")
        assert await take(queue, capacity=3) == ["b2", "a2", "b3"]

    async def test_charges_an_underestimate(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "a1", cost=10, caller="alice")
        await put(queue, "b1", "b2", "b3", cost=100, caller="bob")
        await take(queue, capacity=2)
        await queue.settle("a1", 1, cost=150)
        await put(queue, "a2", caller="alice")
        assert await take(queue, capacity=3) == ["b2", "a2", "b3"]


class TestRequeue:
    async def test_keeps_the_position_with_the_next_epoch(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "1", "2", "3")
        await take(queue, capacity=2)
        await put(queue, "4", caller="bob")
        assert await queue.requeue("2", 1)
        assert await queue.requeue("1", 1)
        claims = (await queue.claim(VERSION, "worker-1", capacity=4)).claims
        assert [(claim.request.id, claim.epoch) for claim in claims] == [("1", 3), ("2", 3), ("4", 1), ("3", 1)]

    async def test_only_the_current_claim_can_be_requeued(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "1")
        assert not await queue.requeue("1", 0)
        await take(queue)
        assert await queue.requeue("1", 1)
        assert not await queue.requeue("1", 1)
        assert not await queue.requeue("1", 2)
        assert await waiting(queue) == 1
        assert not await queue.requeue("never-heard-of", 1)

    async def test_ignores_the_limit_of_the_queue(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await queue.enqueue(a_request("1"), cost=10, limit=1)
        await take(queue)
        await queue.enqueue(a_request("2"), cost=10, limit=1)
        assert await queue.requeue("1", 1)
        assert await waiting(queue) == 2

    async def test_wakes_an_idle_worker(self, queue: Queue) -> None:
        await join(queue, "worker-1", "worker-2")
        await put(queue, "1")
        await take(queue)
        await take(queue, worker="worker-2")
        await queue.requeue("1", 1)
        assert await queue.next_control("worker-2", timeout_s=5) == Wake()


class TestLost:
    async def test_a_claim_is_lost_when_the_lease_expires(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "1")
        await take(queue)
        assert await queue.lost("gateway-1") == []
        await end_lease(queue, "worker-1")
        assert await queue.lost("gateway-1") == [LostRequest("1", 1, "worker-1", crashed=False)]

    async def test_a_claim_is_lost_at_once_when_the_worker_leaves(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "1")
        await take(queue)
        await queue.leave("worker-1", VERSION)
        assert await queue.lost("gateway-1") == [LostRequest("1", 1, "worker-1", crashed=False)]
        assert await queue.workers() == []

    async def test_the_last_report_of_a_worker_that_left_stays_readable(self, queue: Queue, redis: Redis) -> None:
        await join(queue, "worker-1", "worker-2")
        await queue.leave("worker-1", VERSION)
        assert [report.worker for report in await queue.departed()] == ["worker-1"]
        await queue.leave("worker-1", VERSION)
        assert [report.worker for report in await queue.departed()] == ["worker-1"]
        assert all([0 < await redis.pttl(key) <= 60_000 for key in await redis.keys("*:departed*")])

    async def test_each_gateway_gets_its_own_lost_requests(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "1", gateway="gateway-1")
        await put(queue, "2", gateway="gateway-2")
        await take(queue, capacity=2)
        await queue.leave("worker-1", VERSION)
        assert [lost.request for lost in await queue.lost("gateway-1")] == ["1"]
        assert [lost.request for lost in await queue.lost("gateway-2")] == ["2"]
        assert await queue.lost("gateway-3") == []

    async def test_until_it_is_requeued_or_settled(self, queue: Queue) -> None:
        await join(queue, "worker-1", "worker-2")
        await put(queue, "1", "2", "3")
        await take(queue, capacity=3)
        await queue.leave("worker-1", VERSION)
        assert len(await queue.lost("gateway-1")) == 3
        assert len(await queue.lost("gateway-1")) == 3
        await queue.requeue("1", 1)
        await queue.settle("2", 1, cost=10)
        assert [lost.request for lost in await queue.lost("gateway-1")] == ["3"]
        assert await take(queue, worker="worker-2") == ["1"]
        assert [lost.request for lost in await queue.lost("gateway-1")] == ["3"]

    async def test_not_if_the_worker_reports_again_in_time(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "1")
        await take(queue)
        await end_lease(queue, "worker-1")
        await join(queue, "worker-1")
        assert await queue.lost("gateway-1") == []

    async def test_a_claim_made_after_a_stall(self, queue: Queue) -> None:
        """The stall removed the worker from the list; its later claims must still count as lost."""
        await join(queue, "worker-1")
        await put(queue, "1")
        await end_lease(queue, "worker-1")
        assert await queue.lost("gateway-1") == []
        claimed = await take(queue)
        assert [lost.request for lost in await queue.lost("gateway-1")] == claimed


class TestReports:
    async def test_only_of_workers_with_a_lease(self, queue: Queue) -> None:
        await join(queue, "worker-1", "worker-2", "worker-3")
        await end_lease(queue, "worker-1")
        await queue.leave("worker-2", VERSION)
        assert await queue.workers() == [a_report("worker-3")]

    async def test_the_latest_report_counts(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        newest = a_report(state=WorkerState.DRAINING, running=3)
        await queue.report(newest, lease_ms=LEASE_MS)
        assert await queue.workers() == [newest]

    async def test_an_undecodable_report_is_skipped(self, queue: Queue, redis: Redis) -> None:
        await join(queue, "worker-1", "worker-2")
        await redis.set("corral:worker:worker-1", b"\x63of another release", keepttl=True)
        assert await queue.workers() == [a_report("worker-2")]


class TestDemand:
    async def test_keeps_the_name_of_the_latest_request_that_gave_one(self, queue: Queue) -> None:
        for id, name in (("1", "m:latest"), ("2", "other:latest"), ("3", "")):
            await queue.enqueue(a_request(id), cost=1, limit=9, name=name)
        assert [demand.name for demand in await queue.demand()] == ["other:latest"]
        await queue.refuse(VERSION)
        await queue.forget(VERSION)
        await queue.touch(VERSION, keep_alive_ms=None)
        assert [demand.name for demand in await queue.demand()] == [""]

    async def test_counts_waiting_requests_and_keeps_keep_alive(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        assert await queue.demand() == []
        await put(queue, "1", "2")
        await queue.enqueue(a_request("3", version=OTHER_VERSION), cost=1, limit=9, keep_alive_ms=-1)
        await take(queue)
        demands = {demand.version: demand for demand in await queue.demand()}
        assert {name: (demand.waiting, demand.keep_alive_ms) for name, demand in demands.items()} == {
            VERSION: (1, None),
            OTHER_VERSION: (1, -1),
        }
        assert all(0 <= demand.unused_ms < 10_000 for demand in demands.values())

    async def test_every_use_resets_the_unused_time(self, queue: Queue) -> None:
        await join(queue, "worker-1")

        async def unused_ms() -> int:
            [demand] = await queue.demand()
            return demand.unused_ms

        async def unused_for_a_while() -> bool:
            return await unused_ms() >= 30

        uses: list[Callable[[], Awaitable[object]]] = [
            lambda: put(queue, "1"),
            lambda: queue.touch(VERSION, keep_alive_ms=None),
            lambda: queue.settle("1", 1, cost=10),
        ]
        for number, use in enumerate(uses):
            await use()
            assert await unused_ms() < 30, f"use {number}"
            await take(queue)
            await eventually(unused_for_a_while, timeout_s=5)

    async def test_a_use_without_keep_alive_keeps_the_earlier_value(self, queue: Queue) -> None:
        await queue.touch(VERSION, keep_alive_ms=0)
        await queue.touch(VERSION, keep_alive_ms=None)
        [demand] = await queue.demand()
        assert (demand.waiting, demand.keep_alive_ms) == (0, 0)

    async def test_can_be_forgotten_unless_requests_wait(self, queue: Queue) -> None:
        await queue.touch(VERSION, keep_alive_ms=5000)
        await put(queue, "1")
        assert not await queue.forget(VERSION)
        await queue.cancel("1")
        assert await queue.forget(VERSION)
        assert await queue.demand() == []
        await queue.touch(VERSION, keep_alive_ms=None)
        assert [demand.keep_alive_ms for demand in await queue.demand()] == [None]

    async def test_signals_if_no_worker_is_idle(self, queue: Queue) -> None:
        async with queue.signals() as signals:
            assert not await signals.wait(timeout_s=0.01)
            await put(queue, "1")
            assert await signals.wait(timeout_s=1)
            await queue.touch(VERSION, keep_alive_ms=0)
            assert await signals.wait(timeout_s=1)

    async def test_does_not_signal_if_an_idle_worker_is_woken(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await take(queue)
        async with queue.signals() as signals:
            await put(queue, "1")
            assert not await signals.wait(timeout_s=0.01)


class TestRefuse:
    async def test_removes_every_waiting_request_of_the_version(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "claimed")
        await take(queue)
        await put(queue, "1", gateway="gateway-1")
        await put(queue, "2", gateway="gateway-2", caller="bob")
        await put(queue, "other", version=OTHER_VERSION)
        assert set(await queue.refuse(VERSION)) == {RefusedRequest("1", 0, "gateway-1"), RefusedRequest("2", 0, "gateway-2")}
        assert await queue.refuse(VERSION) == []
        assert await take(queue) == []
        assert await queue.cancel("1") == "gone"
        assert await queue.settle("claimed", 1, cost=10)
        assert await waiting(queue, OTHER_VERSION) == 1

    async def test_returns_the_epoch_of_a_requeued_request(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, "1")
        await take(queue)
        await queue.requeue("1", 1)
        assert await queue.refuse(VERSION) == [RefusedRequest("1", 2, "gateway-1")]

    async def test_costs_the_callers_nothing(self, queue: Queue) -> None:
        await join(queue, "worker-1")
        await put(queue, *(f"refused-{number}" for number in range(50)), cost=4000, caller="alice")
        await queue.refuse(VERSION)
        await put(queue, "b1", "b2", cost=4000, caller="bob")
        await put(queue, "a1", "a2", cost=4000, caller="alice")
        assert set(await take(queue, capacity=2)) == {"a1", "b1"}


class TestWithoutRedis:
    @pytest.mark.parametrize(
        "call",
        [
            lambda queue: queue.enqueue(a_request(), cost=1, limit=1),
            lambda queue: queue.claim(VERSION, "worker-1", capacity=1),
            lambda queue: queue.settle("1", 1, cost=1),
            lambda queue: queue.cancel("1"),
            lambda queue: queue.expire("1"),
            lambda queue: queue.place("1"),
            lambda queue: queue.depths(),
            lambda queue: queue.requeue("1", 1),
            lambda queue: queue.report(a_report(), lease_ms=1000),
            lambda queue: queue.leave("worker-1", VERSION),
            lambda queue: queue.lost("gateway-1"),
            lambda queue: queue.workers(),
            lambda queue: queue.touch(VERSION, keep_alive_ms=None),
            lambda queue: queue.demand(),
            lambda queue: queue.forget(VERSION),
            lambda queue: queue.refuse(VERSION),
            lambda queue: queue.next_control("worker-1", timeout_s=1),
            lambda queue: queue.signals().__aenter__(),
        ],
        ids=[
            "enqueue",
            "claim",
            "settle",
            "cancel",
            "expire",
            "place",
            "depths",
            "requeue",
            "report",
            "leave",
            "lost",
            "workers",
            "touch",
            "demand",
            "forget",
            "refuse",
            "control",
            "signals",
        ],
    )
    async def test_every_method_is_unavailable_and_the_password_is_not_shown(
        self, call: Callable[[Queue], Awaitable[object]], unused_tcp_port: int
    ) -> None:
        async with connect(f"redis://:sesame@127.0.0.1:{unused_tcp_port}/0") as redis:
            with pytest.raises(Unavailable) as caught:
                await call(Queue(redis))
        assert "sesame" not in str(caught.value)

    async def test_continues_after_redis_lost_its_data(self, queue: Queue, redis: Redis) -> None:
        await join(queue, "worker-1")
        await put(queue, "1")
        await redis.flushdb()
        await redis.script_flush()
        await join(queue, "worker-1")
        await put(queue, "2")
        assert await take(queue) == ["2"]

    async def test_a_timeout_of_0_does_not_wait(self, queue: Queue) -> None:
        assert await asyncio.wait_for(queue.next_control("worker-1", timeout_s=0), 1) is None
