"""Workers that die, freeze or drain during every kind of answer: the client gets the same answer, only later."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable

import httpx
import psutil
import pytest

from tests.conditions import eventually
from tests.faults.cluster import EMBED, Cluster
from tests.faults.conftest import LEADER_TOKENS, Disturbance, Results, ask_everything

#: The leader's tokens at the time of the fault: none, one, half of them, all but one.
MOMENTS = (0, 1, LEADER_TOKENS // 2, LEADER_TOKENS - 1)


Event = Callable[[Disturbance], None]


def kill(disturbance: Disturbance) -> None:
    os.kill(disturbance.pid, signal.SIGKILL)


def drain(disturbance: Disturbance) -> None:
    os.kill(disturbance.pid, signal.SIGTERM)


def exhaust_memory(disturbance: Disturbance) -> None:
    """All further allocations of the worker fail."""
    psutil.Process(disturbance.pid).rlimit(psutil.RLIMIT_AS, (1 << 20, 1 << 20))


def exhaust_time(disturbance: Disturbance) -> None:
    """The kernel ends the worker with a signal."""
    psutil.Process(disturbance.pid).rlimit(psutil.RLIMIT_CPU, (1, 1))


def freeze(disturbance: Disturbance) -> None:
    os.kill(disturbance.pid, signal.SIGSTOP)


#: On a fast machine the answers may be complete before the worker reaches its limit, so it is killed: it must not end during
#: another test.
DOOMING = (exhaust_time, exhaust_memory)

CASES: list[tuple[Event, int]] = [(event, moment) for event in (kill, drain) for moment in MOMENTS]
CASES += [(freeze, 1), (freeze, LEADER_TOKENS // 2), (exhaust_time, 1), (exhaust_memory, 1)]


@pytest.mark.parametrize(("event", "moment"), CASES, ids=lambda value: getattr(value, "__name__", str(value)))
async def test_answers_are_the_same_after_a_fault(
    cluster: Cluster, http: httpx.AsyncClient, undisturbed: Results, event: Event, moment: int
) -> None:
    disturbance = await ask_everything(cluster, http)
    await disturbance.reached(moment)
    event(disturbance)
    try:
        assert await disturbance.results() == undisturbed
    finally:
        if psutil.pid_exists(disturbance.pid):
            os.kill(disturbance.pid, signal.SIGCONT)
            if event in DOOMING:
                os.kill(disturbance.pid, signal.SIGKILL)
    await http.aclose()
    await eventually(cluster.is_clean)


@pytest.mark.parametrize("moment", [1, LEADER_TOKENS // 2])
async def test_answers_are_the_same_if_a_worker_is_cut_off_from_redis(
    cluster: Cluster, http: httpx.AsyncClient, undisturbed: Results, moment: int
) -> None:
    """The worker keeps computing. When it is connected again, its late events are dropped and it serves other requests."""
    disturbance = await ask_everything(cluster, http)
    await disturbance.reached(moment)
    with cluster.wire.cut(disturbance.pid):
        assert await disturbance.results() == undisturbed
    await http.aclose()
    await eventually(cluster.is_clean)
    assert disturbance.victim.replica in {report.replica for report in await cluster.serving(3)}


async def test_a_killed_workers_requests_are_requeued_within_half_a_second(cluster: Cluster, http: httpx.AsyncClient) -> None:
    disturbance = await ask_everything(cluster, http)
    await disturbance.reached(2)
    kill(disturbance)
    killed_at = time.monotonic()

    async def taken_back() -> bool:
        return not await cluster.redis.exists(f"corral:claims:{disturbance.victim.worker}")

    await eventually(taken_back, timeout_s=3)
    assert time.monotonic() - killed_at < 0.5
    await disturbance.results()


@pytest.mark.parametrize(("number", "crashed"), [(signal.SIGABRT, True), (signal.SIGKILL, False)])
async def test_a_crash_is_distinguished_from_a_kill(
    cluster: Cluster, http: httpx.AsyncClient, number: signal.Signals, crashed: bool
) -> None:
    disturbance = await ask_everything(cluster, http)
    await disturbance.reached(1)
    os.kill(disturbance.pid, number)

    async def left() -> bool:
        return not await cluster.redis.exists(f"corral:worker:{disturbance.victim.worker}")

    await eventually(left)
    assert await cluster.redis.exists(f"corral:crashed:{disturbance.victim.worker}") == crashed
    await disturbance.results()


async def test_a_worker_that_continues_drops_the_requests_it_lost(cluster: Cluster, http: httpx.AsyncClient) -> None:
    disturbance = await ask_everything(cluster, http)
    await disturbance.reached(1)
    freeze(disturbance)
    await disturbance.results()
    os.kill(disturbance.pid, signal.SIGCONT)

    async def is_idle() -> bool:
        reports = {report.worker: report for report in await cluster.queue.workers()}
        return disturbance.victim.worker in reports and reports[disturbance.victim.worker].running == 0

    await eventually(is_idle, timeout_s=3)


async def test_vectors_are_the_same_after_a_fault(cluster: Cluster, http: httpx.AsyncClient) -> None:
    body = {"model": "vectors", "input": [f"the text number {number}, which is not short" for number in range(24)]}
    replica = await cluster.start_embedder()
    await cluster.serving(1, EMBED)
    expected = (await http.post("/v1/embeddings", json=body)).json()
    asked = [http.post("/v1/embeddings", json=body) for _ in range(3)]
    tasks = [asyncio.ensure_future(one) for one in asked]

    async def is_working() -> bool:
        return any(report.running for report in await cluster.queue.workers() if report.version == EMBED)

    await eventually(is_working)
    os.kill(cluster.pid(replica), signal.SIGKILL)
    second = await cluster.start_embedder()
    for task in tasks:
        answer = await task
        assert answer.status_code == 200, answer.text
        assert answer.json() == expected
    await http.aclose()
    await eventually(cluster.is_clean)
    cluster.runtime.stop(second)
