"""However often workers die and clients disconnect, each request is counted once and no descriptor is leaked."""

from __future__ import annotations

import os
import signal
from collections import Counter

import psutil

from services.protocol.reports import WorkerReport
from tests.conditions import eventually
from tests.faults.cluster import Cluster
from tests.faults.conftest import Results, ask_everything, client_of
from tests.faults.kinds import KINDS, RunningRequest
from tests.scraping import scrape

ROUNDS = 5

#: One in this many clients disconnects.
LEAVING = 4


async def test_each_request_is_counted_once_and_the_gateway_leaks_no_descriptor(cluster: Cluster, undisturbed: Results) -> None:
    before, descriptors = await outcomes(cluster), []
    for _ in range(ROUNDS):
        async with client_of(cluster) as http:
            disturbance = await ask_everything(cluster, http)
            await disturbance.reached(1)
            stay = leave(disturbance.asked)
            os.kill(disturbance.pid, signal.SIGKILL)
            assert {one.kind: (await one.task).result() for one in stay} == {one.kind: undisturbed[one.kind] for one in stay}
        await eventually(cluster.is_clean)
        assert cluster.gateway is not None
        descriptors.append(psutil.Process(cluster.gateway.pid).num_fds())
    left = len(range(0, len(KINDS), LEAVING))
    assert await outcomes(cluster) - before == {"answered": ROUNDS * (len(KINDS) - left), "cancelled": ROUNDS * left}
    assert is_steady(descriptors), descriptors


async def test_a_worker_leaks_no_descriptor(cluster: Cluster) -> None:
    cluster.top_up()
    worker: WorkerReport = (await cluster.serving(3))[0]
    process, descriptors = psutil.Process(cluster.pid(worker.replica)), []
    for _ in range(ROUNDS):
        async with client_of(cluster) as http:
            asked = [RunningRequest(http, kind) for _ in range(3) for kind in KINDS]
            await eventually(lambda: any(one.answer.texts for one in asked))  # noqa: B023 it is over before the next round
            for one in leave(asked):
                await one.task
        await eventually(cluster.is_clean)
        descriptors.append(process.num_fds())
    assert is_steady(descriptors), descriptors


def is_steady(descriptors: list[int]) -> bool:
    """True if the number does not reach a new maximum again and again. The connection pool may grow, and a child process may start."""
    maxima = sum(count > max(descriptors[:place]) for place, count in enumerate(descriptors) if place)
    return maxima < ROUNDS - 2


def leave(asked: list[RunningRequest]) -> list[RunningRequest]:
    """Cancels some of the requests; returns the others."""
    for one in asked[::LEAVING]:
        one.task.cancel()
    return [one for index, one in enumerate(asked) if index % LEAVING]


async def outcomes(cluster: Cluster) -> Counter[str]:
    """The gateway's requests so far, by outcome."""
    rows = (await scrape(cluster.metrics)).rows("corral_requests_total", "outcome")
    return Counter({outcome: int(count) for outcome, count in rows.items()})
