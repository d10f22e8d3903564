"""How the queue divides the cluster between callers, measured in the real cost of their requests."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest
from redis.asyncio import Redis

from services.protocol.queue import Queue
from services.protocol.waiting import Terms
from tests.protocol.samples import VERSION, a_request, join

WORKER = "worker-1"
SLOTS = 4


class Load:
    """Callers that each keep a number of requests outstanding, and a worker with SLOTS slots that finishes them in random
    order."""

    def __init__(self, queue: Queue, outstanding: dict[str, int], *, seed: int = 0) -> None:
        self.queue = queue
        self.outstanding = outstanding
        self.weights = dict.fromkeys(outstanding, 1.0)
        self.estimate: Callable[[str], float] = lambda caller: self.random.uniform(10, 1000)
        self.actual: Callable[[str, float], float] = lambda caller, estimate: estimate * self.random.uniform(0.1, 1.2)
        self.random = random.Random(seed)
        self.served: Counter[str] = Counter()
        self._running: dict[str, tuple[str, int]] = {}
        self._estimates: dict[str, float] = {}
        self._made = 0

    async def _enqueue(self, caller: str) -> None:
        self._made += 1
        request = a_request(f"{self._made:08}", caller=caller)
        self._estimates[request.id] = self.estimate(caller)
        terms = Terms(weight=self.weights[caller])
        await self.queue.enqueue(request, cost=self._estimates[request.id], limit=100_000, terms=terms)

    async def start(self) -> None:
        await join(self.queue, WORKER)
        for caller, count in self.outstanding.items():
            for _ in range(count):
                await self._enqueue(caller)

    async def run(self, requests: int) -> None:
        """Runs until this many requests have been served."""
        for _ in range(requests):
            for claim in (await self.queue.claim(VERSION, WORKER, capacity=SLOTS - len(self._running))).claims:
                self._running[claim.request.id] = (claim.request.caller, claim.epoch)
            request = self.random.choice(list(self._running))
            caller, epoch = self._running.pop(request)
            actual = self.actual(caller, self._estimates.pop(request))
            assert await self.queue.settle(request, epoch, cost=actual)
            self.served[caller] += round(actual)
            await self._enqueue(caller)


def jain(shares: list[float]) -> float:
    """1 if all shares are equal; 1/n if one caller has everything (Jain, Chiu, Hawe, 1984)."""
    return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))


@pytest.fixture
def queue(redis: Redis) -> Queue:
    return Queue(redis)


async def test_callers_get_equal_shares_whatever_their_number_of_requests(queue: Queue) -> None:
    load = Load(queue, {"flood": 200} | {f"caller-{number}": 3 for number in range(7)})
    await load.start()
    await load.run(600)
    assert jain([load.served[caller] for caller in load.outstanding]) > 0.95


async def test_shares_are_proportional_to_the_weights(queue: Queue) -> None:
    load = Load(queue, {"light": 20, "heavy": 20})
    load.weights = {"light": 1, "heavy": 3}
    await load.start()
    await load.run(400)
    assert load.served["heavy"] / load.served["light"] == pytest.approx(3, rel=0.2)


async def test_overestimates_are_refunded(queue: Queue) -> None:
    """Equal answers, but one caller sets max_tokens forty times too high. It is served less until its first requests are
    settled."""
    load = Load(queue, {"exact": SLOTS, "generous": SLOTS})
    load.estimate = lambda caller: 100 if caller == "exact" else 4000
    load.actual = lambda caller, estimate: 100
    await load.start()
    await load.run(400)
    load.served.clear()
    await load.run(400)
    assert jain(list(load.served.values())) > 0.95


async def test_a_flood_does_not_delay_another_caller(queue: Queue) -> None:
    load = Load(queue, {"flood": 500})
    await load.start()
    await load.run(50)
    await queue.enqueue(a_request("newcomer", caller="newcomer"), cost=500, limit=100_000)
    claimed = [claim.request.id for claim in (await queue.claim(VERSION, WORKER, capacity=2)).claims]
    assert "newcomer" in claimed


async def test_an_idle_caller_does_not_accumulate_credit(queue: Queue) -> None:
    load = Load(queue, {"steady": 10, "back-from-holiday": 1})
    await load.start()
    load.outstanding.pop("back-from-holiday")
    await load.run(200)
    load.served.clear()
    for number in range(200):
        await queue.enqueue(a_request(f"x{number:08}", caller="back-from-holiday"), cost=500, limit=100_000)
        load._estimates[f"x{number:08}"] = 500
    await load.run(100)
    assert load.served["steady"] / load.served.total() > 0.4
