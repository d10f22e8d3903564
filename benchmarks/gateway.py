"""The latency that the gateway adds to a request, and how many tokens it relays.

    python benchmarks/gateway.py [--json FILE] [--seconds N]

Starts a Valkey and a gateway process. A scripted worker answers at once. First, requests are sent one after the other, and compared with
the same round trip through the queue and a reply stream without a gateway (`floor`). Then 500 requests per second arrive at random
times. Then 64 streams run at a time, with one frame per stream in each step, as fast as the gateway reads them. The clients are bare
sockets in another process, because an HTTP library would cost more than the gateway. Takes about a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import uvloop
from redis.asyncio import Redis

from load import litellm
from load.arrivals import Stretch, arrive, keep_busy, latencies
from load.client import Client, Outcome, post
from load.platform import ROUTES, VERSION, Cpu, Others, gateway, listening, url_of, valkey
from services.protocol.connection import connect
from services.protocol.gateways import Gateways
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
from services.protocol.replies import TRIM_ENTRIES, ReplyReader, ReplyWriter
from services.protocol.reports import WorkerReport, WorkerState
from services.protocol.routes import Routes

WORKER = "worker-1"
REQUESTS = 500
WARM_UP = 50
RATE = 500
STREAMS = 64
PATHS = ("/api/chat", "/v1/chat/completions")
TOKENS = 500
START_S = 60
#: How far the worker runs ahead of the reader, in steps in the reply stream: more than a reader leaves untrimmed, but too few
#: to be lost.
STEPS_AHEAD = 3 * TRIM_ENTRIES

Table = dict[str, dict[str, float]]


class ScriptedWorker:
    """Sends `tokens` frames for every request, one per request in each step. The first step starts the answers and the last one
    ends them, as a real worker does."""

    def __init__(self, redis: Redis, tokens: int) -> None:
        self._redis = redis
        self._queue = Queue(redis)
        self._writer = ReplyWriter(redis)
        self._tokens = tokens

    async def run(self) -> None:
        await self._queue.report(WorkerReport(WORKER, "r", VERSION, "n", WorkerState.READY, slots=STREAMS), lease_ms=600_000)
        while True:
            claims = (await self._queue.claim(VERSION, WORKER, capacity=STREAMS)).claims
            if claims:
                await self._answer(claims)
            else:
                await self._queue.next_control(WORKER, timeout_s=1)

    async def _answer(self, claims: list[Claim]) -> None:
        gateway = claims[0].request.gateway
        for step in range(1, self._tokens + 1):
            events = tuple(event for claim in claims for event in self._events(claim, step))
            await self._writer.publish({gateway: StepReply(WORKER, events)})
            while step % 50 == 0 and await self._redis.xlen(f"corral:replies:{gateway}") > STEPS_AHEAD:
                await asyncio.sleep(0.001)

    def _events(self, claim: Claim, step: int) -> list[Event]:
        request, epoch = claim.request.id, claim.epoch
        events: list[Event] = [Frame(request, epoch, step, (step,), " word")]
        if step == 1:
            events.insert(0, Started(request, epoch, 0, 10, 0))
        if step == self._tokens:
            usage = Usage(10, 0, self._tokens)
            events.append(Finished(request, epoch, step + 1, (FinishReason.STOP,), usage, Timings(1, 1)))
        return events


def work(url: str, tokens: int) -> None:
    uvloop.run(ScriptedWorker(connect(url), tokens).run())


def body_of(path: str, *, stream: bool) -> bytes:
    story = [{"role": "user", "content": "Tell me a story about a horse."}]
    return post(path, {"model": "m", "messages": story, "stream": stream})


async def one_by_one(call: Callable[[], Awaitable[object]]) -> dict[str, float]:
    samples = []
    for _ in range(REQUESTS):
        started = time.perf_counter()
        await call()
        samples.append((time.perf_counter() - started) * 1000)
    return latencies(samples)


async def floor(url: str) -> dict[str, float]:
    """The same without HTTP: enqueue, wait for the last event, settle."""
    redis = connect(url)
    queue, reader = Queue(redis), ReplyReader(redis, "floor")
    await Gateways(redis).renew("floor", lease_ms=600_000, stream_ms=600_000)

    async def once() -> None:
        request = GenerateRequest(new_id(), VERSION, "floor", "c", TextPrompt("x"))
        await queue.enqueue(request, cost=1, limit=9)
        while True:
            for reply in await reader.read(timeout_s=1):
                if isinstance(reply.events[-1], Finished):
                    await queue.settle(request.id, reply.events[-1].epoch, cost=1)
                    return

    for _ in range(WARM_UP):
        await once()
    table = await one_by_one(once)
    await reader.close()
    await redis.aclose()
    return table


async def latency(port: int, path: str, cpu: Cpu, *, seconds: float) -> dict[str, float]:
    client, request = Client(port), body_of(path, stream=False)

    async def ask() -> Outcome:
        outcome = await client.ask(request)
        assert outcome.status == 200, outcome
        return outcome

    for _ in range(WARM_UP):
        await ask()
    cpu.since_last_s()
    alone = await one_by_one(ask)
    table = alone | {"cpu_ms": cpu.since_last_s() * 1000 / REQUESTS}
    await arrive(ask, Stretch(RATE, 1))
    cpu.since_last_s()
    others = Others()
    [outcomes] = await arrive(ask, Stretch(RATE, seconds))
    table[f"cpu_ms_at_{RATE}"] = cpu.since_last_s() * 1000 / len(outcomes)
    table["others_percent"] = 100 * others.share()
    at_rate = latencies([outcome.latency_ms for outcome in outcomes])
    table["most_per_s"] = len(await keep_busy(ask, clients=16, seconds=5)) / 5
    client.close()
    return table | {f"{name}_at_{RATE}": value for name, value in at_rate.items()}


async def throughput(port: int, path: str, cpu: Cpu) -> dict[str, float]:
    client, request = Client(port), body_of(path, stream=True)
    cpu.since_last_s()
    started = time.perf_counter()
    await asyncio.gather(*(client.ask(request) for _ in range(STREAMS)))
    seconds = time.perf_counter() - started
    client.close()
    tokens = STREAMS * TOKENS
    return {"relayed_tokens_s": tokens / seconds, "cpu_us_token": cpu.since_last_s() * 1e6 / tokens}


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


async def measure(url: str, *, seconds: float) -> Table:
    redis = connect(url)
    await Routes(redis).publish(ROUTES)
    table: Table = {}
    with gateway(url) as (port, pid):
        await listening(port)
        cpu = Cpu(pid)
        async with worker(redis, url, 1):
            table["floor"] = await floor(url)
            for path in PATHS:
                table[path] = await latency(port, path, cpu, seconds=seconds)
        async with worker(redis, url, TOKENS):
            for path in PATHS:
                table[path] |= await throughput(port, path, cpu)
    await redis.aclose()
    return table


async def measure_litellm(*, seconds: float) -> Table:
    """Its throughput is far below the rate at which the gateway is measured, so the throughput is left out."""
    path = "/v1/chat/completions"
    figures: dict[str, float] = {}
    with litellm.proxy(1) as (port, pid):
        await answering(port, path)
        client, request, cpu = Client(port), body_of(path, stream=False), Cpu(pid)
        for _ in range(WARM_UP):
            await client.ask(request)
        cpu.since_last_s()
        figures |= await one_by_one(lambda: client.ask(request))
        figures["cpu_ms"] = cpu.since_last_s() * 1000 / REQUESTS
        figures["most_per_s"] = len(await keep_busy(lambda: client.ask(request), clients=16, seconds=seconds)) / seconds
        client.close()
    with litellm.proxy(TOKENS) as (port, pid):
        await answering(port, path)
        figures |= await throughput(port, path, Cpu(pid))
    return {"LiteLLM": figures}


async def answering(port: int, path: str) -> None:
    """Waits until it answers."""
    client = Client(port)
    async with asyncio.timeout(START_S):
        while True:
            with contextlib.suppress(OSError):
                if (await client.ask(body_of(path, stream=False))).status == 200:
                    client.close()
                    return
            await asyncio.sleep(0.5)


def show(table: Table) -> None:
    for name, figures in table.items():
        print(name)
        for figure, value in figures.items():
            print(f"    {figure:20} {value:12,.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--seconds", type=float, default=10, help=f"duration of {RATE} requests per second, for each path (10)")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument(
        "--litellm", action="store_true", help="also measure LiteLLM's proxy, installed with pip; takes some minutes more"
    )
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker[0], int(arguments.worker[1]))
        return
    with valkey() as server:
        table = uvloop.run(measure(url_of(server), seconds=arguments.seconds))
    show(table)
    if arguments.litellm:
        litellm.fetch()
        theirs = uvloop.run(measure_litellm(seconds=arguments.seconds))
        show(theirs)
        table |= theirs
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
