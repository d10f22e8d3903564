"""Processes that are paused for a while, as on a machine that swaps or is suspended, must notice afterwards that their lease
has expired. Several are paused at the same time, for different times."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest
import pytest_asyncio

from tests.conditions import eventually
from tests.faults.cluster import Cluster, frozen, running
from tests.faults.conftest import Results
from tests.faults.kinds import KINDS, RunningRequest
from tests.gateway.process import gateway

#: Below, at and above the leases of gateways (2 s) and workers (3 s), and as long as a gateway waits for Redis.
STALLS_S = (1, 3, 5, 10)


@pytest_asyncio.fixture(scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """Slow enough that answers are still running when a lease expires."""
    folder = tmp_path_factory.mktemp("cluster")
    environment = {
        "CORRAL_RUNNER": "fake",
        "CORRAL_FAKE_STEP_S": "0.1",
        "CORRAL_FAKE_TOKEN_S": "0.0004",
        "CORRAL_FAKE_SCRIPT": "recite",
    }
    async with running(folder, workers=len(STALLS_S) + 1, environment=environment) as cluster:
        yield cluster


async def stall(pid: int, seconds: float) -> None:
    with frozen(pid):
        await asyncio.sleep(seconds)  # the fault itself


async def started(asked: list[RunningRequest]) -> None:
    """Waits until each client has at least a part of its answer."""
    await eventually(lambda: all(one.answer.texts or one.answer.reasoning or one.task.done() for one in asked), timeout_s=30)


async def results_of(asked: list[RunningRequest]) -> Results:
    return {one.kind: (await asyncio.wait_for(one.task, 60)).result() for one in asked}


@asynccontextmanager
async def clients_of(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as http:
        yield http


async def test_answers_are_the_same_after_a_pause_of_gateways(cluster: Cluster, undisturbed: Results) -> None:
    """Their leases expire and workers drop their requests; then the gateways continue."""
    async with AsyncExitStack() as stack:
        stalls = []
        for seconds in STALLS_S:
            process, url = await stack.enter_async_context(gateway(cluster.redis_url))
            http = await stack.enter_async_context(clients_of(url))
            stalls.append((seconds, process.pid, [RunningRequest(http, kind) for kind in KINDS]))
        await started([one for *_, asked in stalls for one in asked if one.kind == "plain"])
        await asyncio.gather(*(stall(pid, seconds) for seconds, pid, _ in stalls))
        for seconds, _, asked in stalls:
            assert (seconds, await results_of(asked)) == (seconds, undisturbed)
        await eventually(cluster.is_clean)


async def test_answers_are_the_same_after_a_pause_of_workers(cluster: Cluster, undisturbed: Results) -> None:
    """Other workers take over their requests. Afterwards the paused workers drop these, and claim again with a new lease."""
    victims = (await cluster.serving(len(STALLS_S) + 1))[: len(STALLS_S)]
    async with clients_of(cluster.url) as http:
        rounds = [[RunningRequest(http, kind) for kind in KINDS] for _ in range(4)]
        await started([one for asked in rounds for one in asked if one.kind == "plain"])
        pids = [cluster.pid(victim.replica) for victim in victims]
        await asyncio.gather(*(stall(pid, seconds) for pid, seconds in zip(pids, STALLS_S, strict=True)))
        for asked in rounds:
            assert await results_of(asked) == undisturbed
    await eventually(cluster.is_clean)
    back = {report.worker for report in await cluster.serving(len(STALLS_S) + 1)}
    assert {victim.worker for victim in victims} <= back
    assert not await cluster.redis.keys("corral:crashed:*")


@pytest.mark.parametrize("seconds", [3, 10])
async def test_answers_are_the_same_after_a_pause_of_redis(cluster: Cluster, undisturbed: Results, seconds: int) -> None:
    """Every lease has expired when Redis continues."""
    async with clients_of(cluster.url) as http:
        asked = [RunningRequest(http, kind) for kind in KINDS]
        await started([one for one in asked if one.kind == "plain"])
        with cluster.redis_frozen():
            await asyncio.sleep(seconds)  # the fault itself
        assert await results_of(asked) == undisturbed
    await eventually(cluster.is_clean)
