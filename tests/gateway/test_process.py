"""`python -m services.gateway`: start, refusals to start, and shutdown."""

from __future__ import annotations

import asyncio
import signal
import socket

import httpx
from redis.asyncio import Redis

from services.protocol.routes import Routes
from tests.conditions import eventually
from tests.doubles.registry import TOKEN
from tests.doubles.worker import Worker
from tests.gateway.process import BODY, gateway, listens, start


async def test_running_answers_finish_before_it_stops(redis_url: str, routes: Routes, worker: Worker, redis: Redis) -> None:
    async with gateway(redis_url) as (process, url), httpx.AsyncClient(base_url=url, timeout=20) as client:
        asked = asyncio.create_task(client.post("/api/chat", json=BODY))
        answer = await worker.take()
        await answer.started()
        await answer.frame("Hel")
        process.send_signal(signal.SIGTERM)
        await eventually(lambda: not listens(url.removeprefix("http://")))
        await answer.frame("lo")
        await answer.finished()
        response = await asked
        assert '"done":true' in response.text
        assert await asyncio.wait_for(process.wait(), timeout=10) == 0
        assert not await redis.exists(f"corral:request:{answer.request.id}")
        assert not await redis.keys("corral:replies:*")


async def test_answers_that_take_too_long_are_cancelled_at_shutdown(
    redis_url: str, routes: Routes, worker: Worker, redis: Redis
) -> None:
    async with gateway(redis_url, CORRAL_SHUTDOWN_S="1") as (process, url), httpx.AsyncClient(base_url=url) as client:
        asked = asyncio.create_task(client.post("/api/chat", json=BODY | {"stream": False}, timeout=20))
        answer = await worker.take()
        await answer.started()
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), timeout=10) == 0
        refused = await asked
        assert refused.status_code == 503
        assert refused.json() == {"error": "the gateway was stopped before the answer was complete"}
        await eventually(lambda: worker.cancelled == [answer.request.id])
        assert not await redis.exists(f"corral:request:{answer.request.id}")


async def test_a_port_in_use_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        process = await start(CORRAL_HOST=host, CORRAL_REGISTRY_TOKEN=TOKEN)
        _, stderr = await process.communicate()
    assert process.returncode == 1
    assert stderr.decode().splitlines() == [
        f"corral gateway: cannot listen on {host}: Address already in use; stop the program that uses it, or set CORRAL_HOST"
    ]


async def test_wrong_settings_are_one_line() -> None:
    process = await start(CORRAL_HOST="127.0.0.1:http", CORRAL_MAX_QUEUE="0")
    _, stderr = await process.communicate()
    assert process.returncode == 2
    [line] = stderr.decode().splitlines()
    assert line.startswith("corral gateway: ")
    for name in ("CORRAL_HOST", "CORRAL_MAX_QUEUE", "CORRAL_REGISTRY_TOKEN"):
        assert name in line
