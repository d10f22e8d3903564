"""If the disk of Redis's append-only file is full, callers and /readyz get an error; requests in flight continue afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest_asyncio

from services.protocol.connection import connect
from services.protocol.routes import Routes
from tests.conditions import eventually
from tests.doubles.worker import Worker, working
from tests.gateway.conftest import CHAT, routes_snapshot
from tests.gateway.process import gateway
from tests.valkey import DiskValkey, disk_valkey

FULL = "the queue's disk is full"
BODY = {"model": "smollm2:135m", "messages": [{"role": "user", "content": "Hi"}], "stream": False}


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[DiskValkey]:
    async with disk_valkey(tmp_path) as server, connect(server.url) as redis:
        await Routes(redis).publish(routes_snapshot())
        yield server


@pytest_asyncio.fixture
async def worker(server: DiskValkey) -> AsyncIterator[Worker]:
    async with connect(server.url) as redis, working(redis, CHAT) as worker:
        yield worker


async def test_a_full_disk_refuses_new_requests_and_keeps_those_in_flight(server: DiskValkey, worker: Worker) -> None:
    async with gateway(server.url) as (_, url), httpx.AsyncClient(base_url=url, timeout=30) as http:
        in_flight = asyncio.ensure_future(http.post("/api/chat", json=BODY))
        answer = await worker.take()
        await answer.started()
        await answer.frame("be")
        async with server.full_disk():
            await eventually(lambda: is_ready(http, 503), timeout_s=20)
            health = (await http.get("/readyz")).json()
            assert (health["missing"], health["reason"]) == (["redis"], FULL)
            for path in ("/api/chat", "/v1/chat/completions"):
                refused = await http.post(path, json=BODY)
                assert refused.status_code == 503
                assert FULL in refused.text
        await eventually(lambda: is_ready(http, 200), timeout_s=20)
        await answer.frame("fore")
        await answer.finished()
        assert (await in_flight).json()["message"]["content"] == "before"


async def is_ready(http: httpx.AsyncClient, status: int) -> bool:
    return (await http.get("/readyz")).status_code == status
