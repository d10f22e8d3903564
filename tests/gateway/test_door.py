"""Gateway processes that share the door's port: one replaces the other and no connection is refused."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest_asyncio

from services.protocol.routes import Routes
from tests.conditions import eventually
from tests.conftest import free_port
from tests.doubles.registry import TOKEN
from tests.doubles.worker import Answer, Worker
from tests.gateway.process import BODY, gateway, start

DOOR = Path(__file__).parents[2] / "ops" / "door" / "door.py"
KEY = "corral-" + "U" * 43


@pytest_asyncio.fixture
async def door(tmp_path: Path) -> AsyncIterator[tuple[Process, Path, str]]:
    """The door's process, its Unix socket, and the URL of its port."""
    path, port = tmp_path / "door", free_port()
    process = await asyncio.create_subprocess_exec(sys.executable, "-I", str(DOOR), str(path), str(port))
    await eventually(path.is_socket)
    yield process, path, f"http://127.0.0.1:{port}"
    if process.returncode is None:
        process.kill()
    await process.wait()


async def ask(url: str, worker: Worker) -> tuple[asyncio.Task[httpx.Response], Answer]:
    """Opens a connection and posts a chat, up to a worker's Started."""
    headers = {"Authorization": f"Bearer {KEY}"}

    async def post() -> httpx.Response:
        async with httpx.AsyncClient(base_url=url, timeout=20, headers=headers) as client:
            return await client.post("/api/chat", json=BODY)

    asked = asyncio.create_task(post())
    answer = await worker.take()
    await answer.started()
    return asked, answer


async def end(asked: asyncio.Task[httpx.Response], answer: Answer) -> None:
    await answer.frame("done")
    await answer.finished()
    assert '"done":true' in (await asked).text


async def test_a_gateway_replaces_another(
    redis_url: str, routes: Routes, worker: Worker, door: tuple[Process, Path, str]
) -> None:
    _, path, url = door
    async with gateway(redis_url, CORRAL_DOOR=str(path)) as (first, _):
        of_first = await ask(url, worker)
        async with gateway(redis_url, CORRAL_DOOR=str(path)):
            first.send_signal(signal.SIGUSR1)
            await end(*await ask(url, worker))
            assert first.returncode is None, "it has an answer to finish"
            await end(*of_first)
            assert await asyncio.wait_for(first.wait(), timeout=10) == 0
            await end(*await ask(url, worker))


async def test_requests_wait_for_the_next_gateway(
    redis_url: str, routes: Routes, worker: Worker, door: tuple[Process, Path, str]
) -> None:
    _, path, url = door
    async with gateway(redis_url, CORRAL_DOOR=str(path)) as (first, _):
        first.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(first.wait(), timeout=10) == 0
    asking = asyncio.create_task(ask(url, worker))
    async with gateway(redis_url, CORRAL_DOOR=str(path)):
        await end(*await asking)


async def test_requests_on_open_connections_are_answered_before_the_gateway_stops(
    redis_url: str, routes: Routes, worker: Worker, door: tuple[Process, Path, str]
) -> None:
    _, path, url = door
    async with gateway(redis_url, CORRAL_DOOR=str(path)) as (only, _), httpx.AsyncClient(base_url=url) as client:
        assert (await client.get("/healthz")).headers.get("connection") != "close"
        waiting, answer = await ask(url, worker)
        only.send_signal(signal.SIGTERM)
        # After it closes its listening socket, the gateway asks open connections to close.
        await eventually(lambda: _closing(only))
        answered = await client.get("/healthz")
        assert (answered.status_code, answered.headers["connection"]) == (200, "close")
        await end(waiting, answer)


def _closing(process: Process) -> bool:
    """True once the process has no listening socket."""
    sockets = {
        link.readlink().name for link in Path(f"/proc/{process.pid}/fd").iterdir() if link.readlink().name.startswith("socket:")
    }
    listening = {line.split()[9] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "0A"}
    return not any(f"socket:[{inode}]" in sockets for inode in listening)


async def test_a_gateway_without_its_door_stops(redis_url: str, routes: Routes, door: tuple[Process, Path, str]) -> None:
    process, path, _ = door
    async with gateway(redis_url, CORRAL_DOOR=str(path)) as (only, _):
        process.terminate()
        assert await process.wait() == 0
        assert await asyncio.wait_for(only.wait(), timeout=10) == 0


async def test_a_missing_door_is_an_error(tmp_path: Path) -> None:
    process = await start(
        CORRAL_HOST=f"127.0.0.1:{free_port()}", CORRAL_DOOR=str(tmp_path / "none"), CORRAL_REGISTRY_TOKEN=TOKEN
    )
    _, stderr = await process.communicate()
    assert process.returncode == 1
    assert stderr.decode().splitlines() == [
        f"corral gateway: the door at {tmp_path}/none does not answer: No such file or directory; start it, or unset CORRAL_DOOR"
    ]
