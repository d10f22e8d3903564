"""One cluster for the module's disturbances, and what every kind of request says undisturbed."""

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
from tests.faults.kinds import KINDS, Asked

#: Tokens of the request whose progress says when to disturb.
LEADER = "plain"
LEADER_TOKENS = 24

Said = dict[str, dict[str, Any]]


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
async def undisturbed(cluster: Cluster) -> Said:
    async with client_of(cluster) as http:
        asked = [Asked(http, kind) for kind in KINDS]
        said = {one.kind: (await one.task).said() for one in asked}
    for kind, one in said.items():
        assert one["error"] is None, (kind, one)
        assert one["ends"] == 1, (kind, one)
    return said


@pytest_asyncio.fixture
async def http(cluster: Cluster) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(cluster) as client:
        yield client


def client_of(cluster: Cluster) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=cluster.url, timeout=60, trust_env=False)


class Disturbance:
    """Every kind of request at once, all of them on one worker: the `victim`."""

    def __init__(self, asked: list[Asked], victim: WorkerReport, pid: int) -> None:
        self.asked = asked
        self.victim = victim
        self.pid = pid
        self._leader = next((one for one in asked if one.kind == LEADER), asked[0])

    async def reached(self, tokens: int) -> None:
        """Returns when the leader's client has at least so many."""
        if tokens:
            await eventually(lambda: len(self._leader.answer.texts[0]) >= tokens or self._leader.task.done())

    async def said(self) -> Said:
        return {one.kind: (await asyncio.wait_for(one.task, 30)).said() for one in self.asked}


async def ask_everything(cluster: Cluster, http: httpx.AsyncClient, **more: Any) -> Disturbance:
    """While no worker takes any, then the victim alone."""
    cluster.top_up()
    victim = (await cluster.serving(2))[0]
    pid = cluster.pid(victim.replica)
    others = [cluster.pid(replica) for replica in cluster.runtime.running() - {victim.replica}]
    with frozen(*others):
        with frozen(pid):
            asked = [Asked(http, kind, **more) for kind in KINDS]
            await eventually(lambda: waiting(cluster, len(KINDS)), timeout_s=20)
        # Not by its claims: a short request may have ended before the last one is claimed.
        await eventually(lambda: waiting(cluster, 0), timeout_s=20)
    return Disturbance(asked, victim, pid)


async def waiting(cluster: Cluster, count: int) -> bool:
    return {demand.version: demand.waiting for demand in await cluster.queue.demand()}.get(VERSION) == count
