"""Ollama's `num_ctx`: its limits, and how a request waits for a replica with a longer context."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from services.protocol.queue import Demand
from services.protocol.routes import ReplicaRoute, Routes
from tests.conditions import eventually
from tests.doubles.worker import Worker
from tests.gateway.conftest import BASE, CHAT, routes_snapshot, version_route

TRAINED = 8192
HI = [{"role": "user", "content": "Hi"}]


def replica(state: str = "ready", context_tokens: int = 4096) -> ReplicaRoute:
    return ReplicaRoute("r1", CHAT, "node1", state, 200, 0, context_tokens, 8)


async def demand(worker: Worker) -> Demand | None:
    return next((demand for demand in await worker.queue.demand() if demand.version == CHAT), None)


async def is_wanted(worker: Worker, tokens: int) -> bool:
    wanted = await demand(worker)
    return wanted is not None and wanted.context_tokens == tokens


@pytest_asyncio.fixture
async def asked(http: httpx.AsyncClient, worker: Worker) -> AsyncIterator[asyncio.Task[httpx.Response]]:
    """A pending request for the whole trained context."""
    body = {"model": "smollm2:135m", "messages": HI, "stream": False, "options": {"num_ctx": 65_536}}
    task = asyncio.create_task(http.post("/api/chat", json=body))
    yield task
    task.cancel()


async def test_a_request_waits_until_the_idle_replica_is_replaced(
    asked: asyncio.Task[httpx.Response], routes: Routes, worker: Worker
) -> None:
    await eventually(lambda: is_wanted(worker, TRAINED))
    await routes.publish(routes_snapshot(2, replicas=(replica("draining"),)))
    wanted = await demand(worker)
    assert wanted is not None
    assert wanted.waiting == 0
    await routes.publish(routes_snapshot(3, replicas=(replica(context_tokens=TRAINED),)))
    await (await worker.take()).whole("Hello")
    assert (await asked).json()["message"]["content"] == "Hello"


async def test_a_busy_replica_serves_the_request_with_its_context(asked: asyncio.Task[httpx.Response], worker: Worker) -> None:
    await worker.report(running=1)
    await (await worker.take()).whole("Hello")
    assert (await asked).status_code == 200
    assert await is_wanted(worker, TRAINED)


async def test_the_next_request_does_not_wait_if_the_replica_was_not_replaced(
    asked: asyncio.Task[httpx.Response], http: httpx.AsyncClient, worker: Worker
) -> None:
    await (await worker.take()).whole("Hello")
    assert (await asked).status_code == 200
    body = {"model": "smollm2:135m", "prompt": "Hi", "stream": False, "options": {"num_ctx": 65_536}}
    again = asyncio.create_task(http.post("/api/generate", json=body))
    async with asyncio.timeout(1.5):
        answer = await worker.take()
    await answer.whole("Hello")
    assert (await again).status_code == 200


@pytest.mark.parametrize("num_ctx", [16, 4096, 0, -1])
async def test_a_request_that_fits_the_context_does_not_wait(http: httpx.AsyncClient, worker: Worker, num_ctx: int) -> None:
    body = {"model": "smollm2:135m", "messages": HI, "stream": False, "options": {"num_ctx": num_ctx}}
    asked = asyncio.create_task(http.post("/api/chat", json=body))
    await (await worker.take()).whole("Hello")
    assert (await asked).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [("/api/chat", {"messages": HI}), ("/api/chat", {}), ("/api/generate", {"prompt": "Hi"}), ("/api/generate", {})],
)
async def test_a_deployment_with_a_fixed_context_refuses_more(
    http: httpx.AsyncClient, routes: Routes, path: str, body: dict[str, Any]
) -> None:
    versions = {CHAT: version_route(CHAT, chats=True, fixed_context=4096), BASE: version_route(BASE, chats=False)}
    await routes.publish(routes_snapshot(2, versions=versions))

    async def refused() -> bool:
        asked = {"model": "smollm2:135m", "options": {"num_ctx": 9000}, **body}
        try:
            response = await http.post(path, json=asked, timeout=2)
        except (
            httpx.ReadTimeout
        ):  # the gateway still uses the old routes, so the request waits for a worker that does not exist
            return False
        return response.status_code == 400 and response.json()["error"] == (
            "options.num_ctx: 9000 is more than the 4096 tokens of context that this model is deployed with "
            "(corral deploy MODEL --context TOKENS)"
        )

    await eventually(refused)
