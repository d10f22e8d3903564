"""The cost of metrics: the same load with and without them.

    python benchmarks/metrics.py [--json FILE] [--rounds N]

Starts everything twice: once with metrics that are scraped every five seconds, and once without. A round is two short windows of load,
one on each, in alternating order. There are three loads, each run for all rounds: 16 clients that wait for each answer; 64 streams with
one token per frame, as fast as the gateway relays them (as in benchmarks/gateway.py); and 16 clients of a real worker whose scripted
model takes 2 ms per step. A round takes 15 seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import runpy
import sys
import tempfile
import urllib.request
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import uvloop
from redis.asyncio import Redis

from comparison.processes import child, free_port
from gateway import TOKENS as RELAYED_TOKENS
from gateway import body_of, throughput
from gateway import worker as scripted_worker
from load.arrivals import keep_busy
from load.client import Client, post
from load.platform import ROUTES, VERSION, Cpu, Others, listening, url_of, valkey
from services.gateway.requests.telemetry import Observation
from services.gateway.requests.telemetry import Observer as GatewayObserver
from services.protocol.connection import connect
from services.protocol.routes import Routes
from services.worker.metrics import Metrics as WorkerMetrics
from services.worker.request_telemetry import Observer as WorkerObserver

PATH = "/v1/chat/completions"
CLIENTS = 16
WINDOW_S = 2.0
STEP_S = 0.002
TOKENS = 64
SCRAPE_S = 5.0
#: For each figure, whether more is better.
MORE_IS_BETTER = {
    "requests/s": True,
    "gateway's ms of processor per request": False,
    "relayed tokens/s": True,
    "gateway's µs of processor per token": False,
    "tokens/s of a worker": True,
    "worker's µs of processor per token": False,
}

Figures = dict[str, float]


class Uncounted:
    """Replaces an Observation: has the same methods, which do nothing."""

    traceparent = ""

    def nothing(self, *_: object, **__: object) -> None:
        """Implements all methods."""

    admitted = refused = delivered = answered = failed = cancelled = nothing


def run_without(module: str) -> None:
    """Runs a service in this process without counting anything."""
    uncounted = Uncounted()
    assert {name for name in vars(Observation) if not name.startswith("_")} <= set(dir(uncounted))
    for owner, name in ((WorkerObserver, "claimed"), (WorkerObserver, "ended"), (WorkerMetrics, "stepped")):
        setattr(owner, name, uncounted.nothing)
    setattr(GatewayObserver, "begin", lambda *_, **__: uncounted)  # noqa: B010 mypy knows better than to assign to a method
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


@contextlib.contextmanager
def service(module: str, settings: dict[str, str], *, counts: bool) -> Iterator[tuple[int, int]]:
    """Yields its process id and the port of its metrics, or 0 without metrics."""
    command = [sys.executable, "-m", module] if counts else [sys.executable, __file__, "--without", module]
    port = free_port() if counts else 0
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with child(command, log=log, environment=settings | {"CORRAL_METRICS_PORT": str(port)}) as process:
            yield process.pid, port
            if process.poll() is not None:
                raise RuntimeError(f"{module} ended early: {log.read_text()[-2000:]}")


@contextlib.asynccontextmanager
async def scraped(*ports: int) -> AsyncIterator[None]:
    """Scrapes like Prometheus."""

    def read(port: int) -> None:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read()

    async def scrape() -> None:
        while True:
            for port in filter(None, ports):
                await asyncio.to_thread(read, port)
            await asyncio.sleep(SCRAPE_S)

    task = asyncio.create_task(scrape())
    try:
        yield
    finally:
        task.cancel()


@dataclass(frozen=True)
class Side:
    """A separate platform with a separate database. `cpu` measures the process of interest."""

    port: int
    cpu: Cpu


@contextlib.asynccontextmanager
async def gateway_side(url: str, tokens: int, *, counts: bool) -> AsyncIterator[Side]:
    """A gateway with scripted answers of this many tokens."""
    port = free_port()
    async with routed(url) as redis:
        with service("services.gateway", _gateway_settings(url, port), counts=counts) as (pid, metrics):
            await listening(port)
            async with scraped(metrics), scripted_worker(redis, url, tokens):
                yield Side(port, Cpu(pid))


@contextlib.asynccontextmanager
async def worker_side(url: str, *, counts: bool) -> AsyncIterator[Side]:
    """A gateway with a worker that runs a scripted model."""
    port = free_port()
    settings = {
        "CORRAL_REDIS_URL": url,
        "CORRAL_NODE": "node-1",
        "CORRAL_REPLICA": "replica-1",
        "CORRAL_VERSION": VERSION,
        "CORRAL_RUNNER": "fake",
        "CORRAL_SLOTS": str(CLIENTS),
        "CORRAL_FAKE_STEP_S": str(STEP_S),
        "CORRAL_ORPHAN_S": "3600",
    }
    async with routed(url):
        with (
            service("services.gateway", _gateway_settings(url, port), counts=counts) as (_, gateway_metrics),
            service("services.worker", settings, counts=counts) as (pid, worker_metrics),
        ):
            await listening(port)
            async with scraped(gateway_metrics, worker_metrics):
                yield Side(port, Cpu(pid))


@contextlib.asynccontextmanager
async def routed(url: str) -> AsyncIterator[Redis]:
    redis = connect(url)
    await Routes(redis).publish(ROUTES)
    try:
        yield redis
    finally:
        await redis.aclose()


async def requests(side: Side) -> Figures:
    answered, used_s = await _asked(side, body_of(PATH, stream=False))
    return {"requests/s": answered / WINDOW_S, "gateway's ms of processor per request": used_s * 1000 / answered}


async def relay(side: Side) -> Figures:
    relayed = await throughput(side.port, PATH, side.cpu)
    return {
        "relayed tokens/s": relayed["relayed_tokens_s"],
        "gateway's µs of processor per token": relayed["cpu_us_token"],
    }


async def generate(side: Side) -> Figures:
    story = {"model": "m", "messages": [{"role": "user", "content": "Tell me a story."}], "stream": True, "max_tokens": TOKENS}
    answered, used_s = await _asked(side, post(PATH, story))
    tokens = answered * TOKENS
    return {"tokens/s of a worker": tokens / WINDOW_S, "worker's µs of processor per token": used_s * 1e6 / tokens}


async def _asked(side: Side, request: bytes) -> tuple[int, float]:
    """The answers of one window, and the processor seconds."""
    client = Client(side.port)
    side.cpu.since_last_s()
    answered = len(await keep_busy(lambda: client.ask(request), clients=CLIENTS, seconds=WINDOW_S))
    used_s = side.cpu.since_last_s()
    client.close()
    return answered, used_s


def _gateway_settings(url: str, port: int) -> dict[str, str]:
    return {
        "CORRAL_HOST": f"127.0.0.1:{port}",
        "CORRAL_REDIS_URL": url,
        "CORRAL_REGISTRY_TOKEN": "not-used-in-this-benchmark",
        "CORRAL_LOG_LEVEL": "warning",
    }


async def measure(counted: str, uncounted: str, *, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """For each figure, the values with and without metrics in each round."""
    loads: list[tuple[Callable[..., AbstractAsyncContextManager[Side]], Callable[[Side], Awaitable[Figures]]]] = [
        (lambda url, counts: gateway_side(url, 1, counts=counts), requests),
        (lambda url, counts: gateway_side(url, RELAYED_TOKENS, counts=counts), relay),
        (lambda url, counts: worker_side(url, counts=counts), generate),
    ]
    found: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for side, window in loads:
        async with side(counted, True) as with_metrics, side(uncounted, False) as without:
            for both in (with_metrics, without):
                await window(both)
            for number in range(rounds):
                order = (with_metrics, without) if number % 2 else (without, with_metrics)
                got = {id(one): await window(one) for one in order}
                for name, figure in got[id(with_metrics)].items():
                    found[name].append((figure, got[id(without)][name]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of each load (20)")
    parser.add_argument("--without", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.without:
        run_without(arguments.without)
        return
    others = Others()
    with valkey() as counted, valkey() as uncounted:
        found = uvloop.run(measure(url_of(counted), url_of(uncounted), rounds=arguments.rounds))
    print(f"{'':40} {'with':>12} {'without':>12}   cost: median (quartiles)")
    for name, pairs in found.items():
        costs = [100 * _cost(name, *pair) for pair in pairs]
        low, middle, high = quantiles(costs, n=4)
        counts, counts_not = (median(side) for side in zip(*pairs, strict=True))
        print(f"{name:40} {counts:12,.2f} {counts_not:12,.2f}   {middle:+.1f} % ({low:+.1f} to {high:+.1f})")
    print(f"other processes took {100 * others.share():.0f} % of the machine")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


def _cost(name: str, counted: float, uncounted: float) -> float:
    """How much worse the figure is with metrics, as a share of the value without."""
    difference = (counted - uncounted) / uncounted
    return -difference if MORE_IS_BETTER[name] else difference


if __name__ == "__main__":
    main()
