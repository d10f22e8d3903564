"""A cluster per module, and the undisturbed answer to every kind of request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from services.protocol.reports import WorkerReport
from tests.conditions import eventually
from tests.faults.cluster import VERSION, Cluster, frozen, running
from tests.faults.kinds import KINDS, RunningRequest

#: The request whose progress determines when the fault happens, and its tokens.
LEADER = "plain"
LEADER_TOKENS = 24

Results = dict[str, dict[str, Any]]


@pytest_asyncio.fixture(scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    environment = {
        "CORRAL_RUNNER": "fake",
        "CORRAL_FAKE_STEP_S": "0.02",
        "CORRAL_FAKE_TOKEN_S": "0.0004",
        "CORRAL_FAKE_SCRIPT": "recite",
    }
    async with running(folder, environment=environment) as cluster:
        yield cluster


@pytest_asyncio.fixture(scope="module")
async def undisturbed(cluster: Cluster) -> Results:
    async with client_of(cluster) as http:
        asked = [RunningRequest(http, kind) for kind in KINDS]
        results = {one.kind: (await one.task).result() for one in asked}
    for kind, one in results.items():
        assert one["error"] is None, (kind, one)
        assert one["ends"] == 1, (kind, one)
    return results


@pytest_asyncio.fixture
async def http(cluster: Cluster) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(cluster) as client:
        yield client


def client_of(cluster: Cluster) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=cluster.url, timeout=60, trust_env=False)


class Disturbance:
    """Every kind of request at once, all of them on one worker: the `victim`."""

    def __init__(self, asked: list[RunningRequest], victim: WorkerReport, pid: int) -> None:
        self.asked = asked
        self.victim = victim
        self.pid = pid
        self._leader = next((one for one in asked if one.kind == LEADER), asked[0])

    async def reached(self, tokens: int) -> None:
        """Returns as soon as the leader's client has at least this many tokens."""
        if tokens:
            await eventually(lambda: len(self._leader.answer.texts[0]) >= tokens or self._leader.task.done())

    async def results(self) -> Results:
        return {one.kind: (await asyncio.wait_for(one.task, 30)).result() for one in self.asked}


async def ask_everything(cluster: Cluster, http: httpx.AsyncClient, **more: Any) -> Disturbance:
    """Sends every kind of request while all workers are frozen, then lets only the victim claim them."""
    cluster.top_up()
    victim = (await cluster.serving(2))[0]
    pid = cluster.pid(victim.replica)
    others = [cluster.pid(replica) for replica in cluster.runtime.running() - {victim.replica}]
    with frozen(*others):
        with frozen(pid):
            asked = [RunningRequest(http, kind, **more) for kind in KINDS]
            await eventually(lambda: waiting(cluster, len(KINDS)), timeout_s=20)
        # Do not wait for the claims: a short request may have ended before the last one is claimed.
        await eventually(lambda: waiting(cluster, 0), timeout_s=20)
    return Disturbance(asked, victim, pid)


async def waiting(cluster: Cluster, count: int) -> bool:
    return {demand.version: demand.waiting for demand in await cluster.queue.demand()}.get(VERSION) == count
