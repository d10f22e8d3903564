"""Slow and disconnecting clients, and killed gateways."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from typing import Any

import httpx

from tests.conditions import eventually
from tests.faults.cluster import Cluster
from tests.faults.conftest import Results, ask_everything, waiting
from tests.faults.kinds import KINDS, RunningRequest

ENDLESS = {"model": "fake", "prompt": "On and on", "raw": True, "options": {"temperature": 0, "num_predict": 900}}
LONG = {**ENDLESS, "prompt": "x" * 900}


async def test_slow_clients_get_the_same_answers(cluster: Cluster, http: httpx.AsyncClient, undisturbed: Results) -> None:
    disturbance = await ask_everything(cluster, http, pace_s=0.05)
    assert await disturbance.results() == undisturbed
    await http.aclose()
    await eventually(cluster.is_clean)


async def connected(cluster: Cluster, body: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Opens a connection and sends the request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(cluster.url.rpartition(":")[2]))
    content = json.dumps(body).encode()
    head = f"POST /api/generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(content)}\r\n\r\n"
    writer.write(head.encode() + content)
    await writer.drain()
    return reader, writer


async def test_a_half_closed_connection_counts_as_disconnected(cluster: Cluster) -> None:
    """As with Ollama: the gateway cannot distinguish the two cases."""
    reader, writer = await connected(cluster, ENDLESS)
    await reader.readuntil(b"}\n")
    writer.write_eof()
    await asyncio.wait_for(reader.read(), timeout=5)
    writer.close()
    await eventually(cluster.is_clean)


async def test_a_client_that_disconnects_during_its_prefill_is_cancelled(cluster: Cluster) -> None:
    _, writer = await connected(cluster, LONG)
    await eventually(lambda: _is_claimed(cluster))
    writer.transport.abort()
    await eventually(cluster.is_clean, timeout_s=3)


async def _is_claimed(cluster: Cluster) -> bool:
    return bool(await cluster.redis.keys("corral:claims:*"))


async def test_work_of_a_killed_gateway_is_aborted(cluster: Cluster, http: httpx.AsyncClient, undisturbed: Results) -> None:
    """Its connections end, its running requests end at the workers after the gateway's lease, and its waiting requests are
    removed."""
    cluster.top_up()
    workers = await cluster.serving(3)
    total = sum(worker.slots for worker in workers) + 5
    streams = [asyncio.create_task(_last_line(cluster)) for _ in range(total)]
    await eventually(lambda: waiting(cluster, 5))
    await cluster.stop_gateway(signal.SIGKILL)
    killed_at = time.monotonic()
    for stream in streams:
        assert not (await stream).endswith(b'"done":true}')

    async def is_idle() -> bool:
        assert not await cluster.redis.keys("corral:request:*")
        return all(report.running == 0 for report in await cluster.queue.workers())

    await eventually(is_idle)
    assert time.monotonic() - killed_at < 3.3, "the limit, and a report"
    await cluster.start_gateway()
    again = [RunningRequest(http, kind) for kind in KINDS]
    assert {one.kind: (await one.task).result() for one in again} == undisturbed
    await http.aclose()
    await eventually(cluster.is_clean)


async def _last_line(cluster: Cluster) -> bytes:
    reader, writer = await connected(cluster, ENDLESS)
    last = b""
    try:
        while piece := await reader.read(65536):
            last = piece
    except ConnectionError:
        return last
    finally:
        writer.close()
    return last
