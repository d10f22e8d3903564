"""A gateway as a process."""

from __future__ import annotations

import os
import socket
import sys
from asyncio import create_subprocess_exec
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.conditions import eventually
from tests.conftest import free_port
from tests.doubles.registry import TOKEN
from tests.gateway.conftest import ready

BODY = {"model": "smollm2:135m", "messages": [{"role": "user", "content": "Hi"}]}


async def start(**settings: str) -> Process:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return await create_subprocess_exec(sys.executable, "-m", "services.gateway", env=kept | settings, stderr=PIPE)


@asynccontextmanager
async def gateway(redis_url: str, **settings: str) -> AsyncIterator[tuple[Process, str]]:
    host = f"127.0.0.1:{free_port()}"
    process = await start(CORRAL_HOST=host, CORRAL_REDIS_URL=redis_url, CORRAL_REGISTRY_TOKEN=TOKEN, **settings)
    try:
        await eventually(lambda: listens(host), timeout_s=20)
        await ready(f"http://{host}")
        yield process, f"http://{host}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def listens(host: str) -> bool:
    name, _, port = host.partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((name, int(port))) == 0
