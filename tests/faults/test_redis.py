"""Redis pauses or restarts, with or without its data: every answer continues."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from tests.conditions import eventually
from tests.faults.cluster import Cluster
from tests.faults.conftest import LEADER_TOKENS, Results, ask_everything

MOMENTS = (1, LEADER_TOKENS // 2)


@pytest.mark.parametrize("moment", MOMENTS)
async def test_answers_are_the_same_after_a_pause_of_redis(
    cluster: Cluster, http: httpx.AsyncClient, undisturbed: Results, moment: int
) -> None:
    disturbance = await ask_everything(cluster, http)
    await disturbance.reached(moment)
    with cluster.redis_frozen():
        await asyncio.sleep(5)  # the fault itself
    assert await disturbance.results() == undisturbed
    await http.aclose()
    await eventually(cluster.is_clean)


@pytest.mark.parametrize("moment", MOMENTS)
async def test_answers_are_the_same_after_a_restart_with_data(
    cluster: Cluster, http: httpx.AsyncClient, undisturbed: Results, moment: int
) -> None:
    disturbance = await ask_everything(cluster, http)
    await disturbance.reached(moment)
    await cluster.restart_redis(data=True)
    assert await disturbance.results() == undisturbed
    await http.aclose()
    await eventually(cluster.is_clean)


async def test_answers_are_the_same_after_a_restart_without_data(
    cluster: Cluster, http: httpx.AsyncClient, undisturbed: Results
) -> None:
    disturbance = await ask_everything(cluster, http)
    await disturbance.reached(2)
    await cluster.restart_redis(data=False)
    assert await disturbance.results() == undisturbed
    again = await ask_everything(cluster, http)
    assert await again.results() == undisturbed
    await http.aclose()
    await eventually(cluster.is_clean)
