"""Real worker processes and a scripted gateway."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from services.protocol.gateways import Gateways
from tests.doubles.gateway import VERSION, ScriptedGateway

StartWorker = Callable[..., Awaitable[asyncio.subprocess.Process]]


@pytest_asyncio.fixture
async def gateway(redis: Redis) -> ScriptedGateway:
    gateway = ScriptedGateway(redis)
    await Gateways(redis).renew("gateway", lease_ms=600_000, stream_ms=600_000)
    return gateway


@pytest.fixture
async def start_worker(redis_url: str) -> AsyncIterator[StartWorker]:
    """Starts `python -m services.worker` with the keywords as settings. The processes end with the test."""
    started: list[asyncio.subprocess.Process] = []

    async def start(**settings: object) -> asyncio.subprocess.Process:
        environment = {
            "CORRAL_REDIS_URL": redis_url,
            "CORRAL_NODE": "here",
            "CORRAL_REPLICA": "replica-1",
            "CORRAL_VERSION": VERSION,
            "CORRAL_RUNNER": "fake",
            **{f"CORRAL_{name.upper()}": str(value) for name, value in settings.items()},
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.worker", env={**os.environ, **environment}, stderr=asyncio.subprocess.PIPE
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
        await process.communicate()
