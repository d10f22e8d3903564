"""Random interleavings of all queue operations of gateways, workers and the registry, compared with a model in Python."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import pytest
import redis
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.errors import FlakyStrategyDefinition
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from services.protocol.connection import connect
from services.protocol.errors import QueueFull
from services.protocol.prefixes import Prefix, prefixes
from services.protocol.queue import LostRequest, Queue, RefusedRequest
from services.protocol.waiting import Priority, Terms
from tests.keys import key_names
from tests.protocol.samples import LEASE_MS, a_report, a_request

VERSIONS = {"v1": ["w1", "w2"], "v2": ["w3"]}
WORKERS = {worker: version for version, workers in VERSIONS.items() for worker in workers}
QUEUES = [(version, priority.band) for version in VERSIONS for priority in Priority]
GATEWAYS = ["g1", "g2"]
CALLERS = ["alice", "bob", "carol"]
BEGINS = [(), *(prefixes(a_request(text=text * 4000)) for text in "ab")]

T = TypeVar("T")

versions = st.sampled_from(list(VERSIONS))
workers = st.sampled_from(list(WORKERS))
costs = st.floats(min_value=0.01, max_value=10_000)
terms = st.builds(
    Terms,
    priority=st.sampled_from(Priority),
    weight=st.sampled_from([0.5, 1.0, 4.0]),
    timeout_ms=st.sampled_from([None, None, 3_600_000, 0]),
)
arrivals = st.lists(
    st.tuples(versions, st.sampled_from(CALLERS), st.sampled_from(GATEWAYS), costs, terms, st.sampled_from(BEGINS)),
    min_size=1,
    max_size=4,
)


@dataclass
class Entry:
    """A request that has not ended. `worker` is None while it waits; if it is `overdue`, no worker will get it."""

    number: int
    version: str
    caller: str
    gateway: str
    priority: Priority = Priority.NORMAL
    begins: tuple[Prefix, ...] = ()
    overdue: bool = False
    epoch: int = 0
    worker: str | None = None

    @property
    def id(self) -> str:
        return f"{self.number:06}"

    def is_like(self, other: Entry) -> bool:
        """True if the queue skips both in the same cases."""
        return (self.caller, self.priority, self.begins) == (other.caller, other.priority, other.begins)


#: A claim skips a request for some milliseconds. On a busy machine these may pass between a run and its replay, which
#: Hypothesis reports as flaky; an assertion of the machine fails at once.
ATTEMPTS = 5


class QueueMachine(RuleBasedStateMachine):
    redis_url: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.redis = connect(self.redis_url)
        self.observer = redis.Redis.from_url(self.redis_url)
        self.queue = Queue(self.redis, namespace="t", aging_ms=10**9)
        self.alive: dict[str, Entry] = {}
        self.leased: set[str] = set()
        self.handed_out: set[tuple[str, int]] = set()
        self.admitted = 0

    def do(self, call: Awaitable[T]) -> T:
        return self.loop.run_until_complete(call)

    def waiting(self, version: str) -> list[Entry]:
        return [entry for entry in self.alive.values() if entry.version == version and entry.worker is None]

    def in_time(self, version: str) -> list[Entry]:
        return [entry for entry in self.waiting(version) if not entry.overdue]

    def claimed(self) -> list[Entry]:
        return [entry for entry in self.alive.values() if entry.worker]

    @initialize(data=st.data())
    def start(self, data: st.DataObject) -> None:
        self.do(self.redis.flushdb())
        for worker in WORKERS:
            self.report(worker)
        self.arrive(data)

    # One weighted rule instead of one rule per operation: Hypothesis leaves most rules out of most runs, and claims need
    # several.
    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        actions = (
            [self.arrive] * 3
            + [self.claim] * 5
            + [self.change_a_worker] * 4
            + [self.find_lost] * 2
            + [self.refuse, self.forget]
        )
        if self.claimed():
            actions += [self.continue_with_a_claim] * 5
        if any(map(self.waiting, VERSIONS)):
            actions += [self.end_a_waiting_request]
        data.draw(st.sampled_from(actions))(data)

    def arrive(self, data: st.DataObject) -> None:
        for version, caller, gateway, cost, on, begins in data.draw(arrivals):
            self.admitted += 1
            entry = Entry(self.admitted, version, caller, gateway, on.priority, begins, overdue=on.timeout_ms == 0)
            request = a_request(entry.id, version=version, caller=caller, gateway=gateway)
            try:
                place = self.do(self.queue.enqueue(request, cost=cost, limit=1000, terms=on, begins=begins))
            except QueueFull:
                assert entry.overdue, "refused, though there is time"
                continue
            self.alive[entry.id] = entry
            assert 0 <= place.position <= len(self.waiting(version))

    def claim(self, data: st.DataObject) -> None:
        worker, capacity = data.draw(workers), data.draw(st.sampled_from([1, 1, 2, 3, 0]))
        version = WORKERS[worker]
        expected = min(capacity, len(self.in_time(version))) if worker in self.leased else 0
        dropped = data.draw(st.sampled_from([[], [], [prefix.digest for prefix in BEGINS[1]]]))
        taken = self.do(self.queue.claim(version, worker, capacity=capacity, dropped=dropped))
        assert len(taken.claims) <= expected
        assert len(taken.claims) == expected or taken.again_s is not None, "left without a reason"
        for claim in taken.claims:
            entry = self.alive[claim.request.id]
            assert entry.worker is None, "claimed while claimed"
            others = self.in_time(version)
            assert entry.priority.band == min(other.priority.band for other in others), "overtook a more urgent one"
            own = [other for other in others if other.is_like(entry)]
            assert entry == min(own, key=lambda other: other.number), "overtook an earlier request of its caller"
            assert claim.epoch == entry.epoch + 1
            assert (entry.id, claim.epoch) not in self.handed_out, "claimed twice under one epoch"
            self.handed_out.add((entry.id, claim.epoch))
            entry.epoch, entry.worker = claim.epoch, worker
        self.drop_overdue(version)

    def drop_overdue(self, version: str) -> None:
        """A claim drops the overdue requests that it meets; their gateway finds that they are gone."""
        for entry in self.waiting(version):
            if not self.do(self.redis.exists(f"t:request:{entry.id}")):
                assert entry.overdue, "a request was dropped in time"
                assert self.do(self.queue.expire(entry.id))
                del self.alive[entry.id]

    def continue_with_a_claim(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.claimed()))
        assert not self.do(self.queue.expire(entry.id)), "a claimed request does not expire"
        action = data.draw(st.sampled_from(["settle", "requeue", "cancel"]))
        if action == "settle":
            self.settle(entry, data.draw(costs))
        elif action == "requeue":
            self.requeue(entry)
        else:
            assert self.do(self.queue.cancel(entry.id)) == "claimed"

    def end_a_waiting_request(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from([entry for version in VERSIONS for entry in self.waiting(version)]))
        action = data.draw(st.sampled_from(["settle", "cancel", "expire"]))
        if action == "settle":
            self.settle(entry, data.draw(costs))
        elif action == "expire" and entry.epoch == 0:
            assert self.do(self.queue.expire(entry.id))
            del self.alive[entry.id]
        else:
            assert self.do(self.queue.cancel(entry.id)) == "waiting"
            del self.alive[entry.id]
        assert self.do(self.queue.cancel(entry.id)) == "gone"

    def settle(self, entry: Entry, cost: float) -> None:
        assert not self.do(self.queue.settle(entry.id, entry.epoch - 1, cost=cost))
        assert not self.do(self.queue.settle(entry.id, entry.epoch + 1, cost=cost))
        assert self.do(self.queue.settle(entry.id, entry.epoch, cost=cost))
        del self.alive[entry.id]
        assert not self.do(self.queue.settle(entry.id, entry.epoch, cost=cost))

    def requeue(self, entry: Entry) -> None:
        assert not self.do(self.queue.requeue(entry.id, entry.epoch - 1))
        assert self.do(self.queue.requeue(entry.id, entry.epoch))
        entry.epoch, entry.worker = entry.epoch + 1, None
        assert not self.do(self.queue.requeue(entry.id, entry.epoch))

    def change_a_worker(self, data: st.DataObject) -> None:
        busy = [entry.worker for entry in self.claimed() if entry.worker]
        worker = data.draw(workers | st.sampled_from(busy) if busy else workers)
        action = data.draw(st.sampled_from(["report", "report", "read", "leave", "fall silent"]))
        if action == "report":
            self.report(worker)
        elif action == "read":
            self.do(self.queue.next_control(worker, timeout_s=0.001))
        elif action == "leave":
            self.do(self.queue.leave(worker, WORKERS[worker]))
            self.leased.discard(worker)
        elif worker in self.leased:
            self.fall_silent(worker)
        if data.draw(st.booleans()):
            self.find_lost(data)

    def report(self, worker: str) -> None:
        self.do(self.queue.report(a_report(worker, version=WORKERS[worker]), lease_ms=LEASE_MS))
        self.leased.add(worker)
        if self.waiting(WORKERS[worker]):
            assert self.do(self.redis.llen(f"t:inbox:{worker}")), "requests wait, and a worker with free slots is not woken"

    def fall_silent(self, worker: str) -> None:
        self.do(self.queue.report(a_report(worker, version=WORKERS[worker]), lease_ms=1))
        deadline = time.monotonic() + 5
        while self.do(self.redis.exists(f"t:worker:{worker}")):
            assert time.monotonic() < deadline
        self.leased.discard(worker)

    def find_lost(self, data: st.DataObject) -> None:
        gateway = data.draw(st.sampled_from(GATEWAYS))
        lost = self.do(self.queue.lost(gateway))
        assert len(lost) == len(set(lost))
        assert set(lost) == {
            LostRequest(entry.id, entry.epoch, entry.worker, crashed=False)
            for entry in self.alive.values()
            if entry.worker and entry.worker not in self.leased and entry.gateway == gateway
        }

    def refuse(self, data: st.DataObject) -> None:
        version = data.draw(versions)
        refused = self.do(self.queue.refuse(version))
        assert len(refused) == len(set(refused))
        assert set(refused) == {RefusedRequest(entry.id, entry.epoch, entry.gateway) for entry in self.waiting(version)}
        for request in refused:
            del self.alive[request.request]

    def forget(self, data: st.DataObject) -> None:
        version = data.draw(versions)
        assert self.do(self.queue.forget(version)) == (not self.waiting(version))

    @invariant()
    def every_request_is_in_one_place_and_every_other_key_expires(self) -> None:
        places, keys, lasting = self.read_redis()
        assert places == {entry.id: entry.worker for entry in self.alive.values()}
        assert {key for key in keys if key.startswith("t:waiting:")} == {
            f"t:waiting:{entry.version}:{entry.priority.band}:{entry.caller}"
            for entry in self.alive.values()
            if entry.worker is None
        }
        for depth in self.do(self.queue.depths()):
            waiting = self.waiting(depth.version)
            assert depth.waiting == {priority: [entry.priority for entry in waiting].count(priority) for priority in Priority}
            assert depth.callers == Counter(entry.caller for entry in waiting)
        assert lasting <= {"t:workers", "t:demand", *(f"t:demand:{version}" for version in VERSIONS)}

    def read_redis(self) -> tuple[dict[str, str | None], list[str], set[str]]:
        """Where Redis has each request (None if it waits), all keys, and the keys without an expiry."""
        keys = self.do(key_names(self.redis))
        with self.observer.pipeline() as pipe:
            for version, band in QUEUES:
                pipe.zrange(f"t:queue:{version}:{band}", 0, -1)
            for worker in WORKERS:
                pipe.smembers(f"t:claims:{worker}")
            for key in keys:
                pipe.ttl(key)
            answers = iter(pipe.execute())
        found: list[tuple[str, str | None]] = []
        for place in [*(None for _ in QUEUES), *WORKERS]:
            found += [(member.decode(), place) for member in next(answers)]
        assert len(found) == len(dict(found)), f"in two places: {found}"
        assert {key.removeprefix("t:request:") for key in keys if key.startswith("t:request:")} == set(dict(found))
        return dict(found), keys, {key for key, ttl in zip(keys, answers, strict=True) if ttl == -1}

    def teardown(self) -> None:
        try:
            self.do(self.end_everything())
        finally:
            self.do(self.redis.aclose())
            self.observer.close()
            self.loop.close()

    async def end_everything(self) -> None:
        for entry in self.alive.values():
            if entry.worker is None:
                assert await self.queue.cancel(entry.id) == "waiting"
            else:
                assert await self.queue.settle(entry.id, entry.epoch, cost=1)
        for worker, version in WORKERS.items():
            await self.queue.leave(worker, version)
        for gateway in GATEWAYS:
            assert await self.queue.lost(gateway) == []
        for version in VERSIONS:
            assert await self.queue.forget(version)
        left = set(await key_names(self.redis))
        lasting = {f"t:{kind}:{version}" for kind in ("vtime", "drain", "passed") for version in VERSIONS}
        departed = {"t:departed", *(f"t:departed:{worker}" for worker in WORKERS)}
        assert left <= {"t:room"} | lasting | departed | {f"t:finish:{version}:{band}" for version, band in QUEUES}


def test_every_interleaving_keeps_every_request(redis_url: str) -> None:
    QueueMachine.redis_url = redis_url
    # Shrinking takes minutes with a real server; add Phase.shrink to get the smallest case of a failure.
    effort = settings(max_examples=40, stateful_step_count=50, deadline=None, database=None, phases=[Phase.generate])
    for _ in range(ATTEMPTS):
        with contextlib.suppress(FlakyStrategyDefinition):
            run_state_machine_as_test(QueueMachine, settings=effort)
            return
    pytest.fail(f"the clock changed what was claimed in {ATTEMPTS} runs")
