"""Redis stands still, or restarts, with its data or without: every answer goes on."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from tests.conditions import eventually
from tests.faults.cluster import Cluster
from tests.faults.conftest import LEADER_TOKENS, Said, ask_everything

MOMENTS = (1, LEADER_TOKENS // 2)


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_pause_of_five_seconds(cluster: Cluster, http: httpx.AsyncClient, undisturbed: Said, moment: int) -> None:
    disturbance = await ask_everything(cluster, http)
    await disturbance.reached(moment)
    with cluster.redis_frozen():
        await asyncio.sleep(5)  # the fault itself
    assert await disturbance.said() == undisturbed
    await http.aclose()
    await eventually(cluster.is_clean)


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_restart_with_its_data(cluster: Cluster, http: httpx.AsyncClient, undisturbed: Said, moment: int) -> None:
    disturbance = await ask_everything(cluster, http)
    await disturbance.reached(moment)
    await cluster.restart_redis(data=True)
    assert await disturbance.said() == undisturbed
    await http.aclose()
    await eventually(cluster.is_clean)


async def test_a_restart_without_its_data(cluster: Cluster, http: httpx.AsyncClient, undisturbed: Said) -> None:
    disturbance = await ask_everything(cluster, http)
    await disturbance.reached(2)
    await cluster.restart_redis(data=False)
    assert await disturbance.said() == undisturbed
    again = await ask_everything(cluster, http)
    assert await again.said() == undisturbed
    await http.aclose()
    await eventually(cluster.is_clean)
