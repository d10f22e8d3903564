"""Processes that stand still for a while, as on a machine that swaps or is suspended, and then go on: whoever held a lease must notice
that it has lost it. Several stall at the same time, each for its own time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest
import pytest_asyncio

from tests.conditions import eventually
from tests.faults.cluster import Cluster, frozen, running
from tests.faults.conftest import Said
from tests.faults.kinds import KINDS, Asked
from tests.gateway.process import gateway

#: Below, at and above the leases of gateways (2 s) and workers (3 s), and as long as a gateway waits for Redis.
STALLS_S = (1, 3, 5, 10)


@pytest_asyncio.fixture(scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """So slow that answers are still under way when a lease ends."""
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


async def begun(asked: list[Asked]) -> None:
    """Each client has a part of its answer, or all of it."""
    await eventually(lambda: all(one.answer.texts or one.answer.reasoning or one.task.done() for one in asked), timeout_s=30)


async def said_of(asked: list[Asked]) -> Said:
    return {one.kind: (await asyncio.wait_for(one.task, 60)).said() for one in asked}


@asynccontextmanager
async def clients_of(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as http:
        yield http


async def test_gateways_that_stall(cluster: Cluster, undisturbed: Said) -> None:
    """Their leases end, and workers clean up after them; then they are back."""
    async with AsyncExitStack() as stack:
        stalls = []
        for seconds in STALLS_S:
            process, url = await stack.enter_async_context(gateway(cluster.redis_url))
            http = await stack.enter_async_context(clients_of(url))
            stalls.append((seconds, process.pid, [Asked(http, kind) for kind in KINDS]))
        await begun([one for *_, asked in stalls for one in asked if one.kind == "plain"])
        await asyncio.gather(*(stall(pid, seconds) for seconds, pid, _ in stalls))
        for seconds, _, asked in stalls:
            assert (seconds, await said_of(asked)) == (seconds, undisturbed)
        await eventually(cluster.is_clean)


async def test_workers_that_stall(cluster: Cluster, undisturbed: Said) -> None:
    """What they had is taken over; back again, they drop it, and claim again under a new lease."""
    victims = (await cluster.serving(len(STALLS_S) + 1))[: len(STALLS_S)]
    async with clients_of(cluster.url) as http:
        rounds = [[Asked(http, kind) for kind in KINDS] for _ in range(4)]
        await begun([one for asked in rounds for one in asked if one.kind == "plain"])
        pids = [cluster.pid(victim.replica) for victim in victims]
        await asyncio.gather(*(stall(pid, seconds) for pid, seconds in zip(pids, STALLS_S, strict=True)))
        for asked in rounds:
            assert await said_of(asked) == undisturbed
    await eventually(cluster.is_clean)
    back = {report.worker for report in await cluster.serving(len(STALLS_S) + 1)}
    assert {victim.worker for victim in victims} <= back
    assert not await cluster.redis.keys("corral:crashed:*")


@pytest.mark.parametrize("seconds", [3, 10])
async def test_a_redis_that_stalls(cluster: Cluster, undisturbed: Said, seconds: int) -> None:
    """Every lease has ended when it goes on."""
    async with clients_of(cluster.url) as http:
        asked = [Asked(http, kind) for kind in KINDS]
        await begun([one for one in asked if one.kind == "plain"])
        with cluster.redis_frozen():
            await asyncio.sleep(seconds)  # the fault itself
        assert await said_of(asked) == undisturbed
    await eventually(cluster.is_clean)
