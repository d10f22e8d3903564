"""What metrics cost: the same load with and without them.

    python benchmarks/metrics.py [--json FILE] [--rounds N]

Starts a Valkey, and in each round a gateway that counts and is scraped every five seconds, and one in which nothing is counted; the one
that goes first changes from round to round. Through each: 16 clients that each wait for their answer, and 64
streams with one token in each frame, as fast as the gateway relays them (as benchmarks/gateway.py does it). Then the same with a
real worker whose scripted model takes 2 ms for a step, and 16 clients. A round takes about a minute.
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
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from statistics import median

import uvloop

from comparison.processes import child, free_port
from gateway import TOKENS as RELAYED_TOKENS
from gateway import WARM_UP, body_of, throughput
from gateway import worker as scripted_worker
from load.arrivals import keep_busy
from load.client import Client, post
from load.platform import ROUTES, VERSION, Cpu, Others, listening, url_of, valkey
from services.gateway.observation import Observation
from services.gateway.observation import Observer as GatewayObserver
from services.protocol.connection import connect
from services.protocol.routes import Routes
from services.worker.metrics import Metrics as WorkerMetrics
from services.worker.observation import Observer as WorkerObserver

PATH = "/v1/chat/completions"
CLIENTS = 16
SECONDS = 5.0
STEP_S = 0.002
TOKENS = 64
SCRAPE_S = 5.0
#: Of each figure, whether more is better.
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
    """Stands in for an Observation: is told the same and does nothing."""

    traceparent = ""

    def nothing(self, *_: object, **__: object) -> None:
        """All of the same."""

    admitted = refused = handed_on = answered = failed = cancelled = nothing


def run_without(module: str) -> None:
    """A service in this process, in which nothing is counted."""
    uncounted = Uncounted()
    assert {name for name in vars(Observation) if not name.startswith("_")} <= set(dir(uncounted))
    for owner, name in ((WorkerObserver, "claimed"), (WorkerObserver, "ended"), (WorkerMetrics, "stepped")):
        setattr(owner, name, uncounted.nothing)
    setattr(GatewayObserver, "begin", lambda *_, **__: uncounted)  # noqa: B010 mypy knows better than to assign to a method
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


@contextlib.contextmanager
def service(module: str, settings: dict[str, str], *, counts: bool) -> Iterator[tuple[int, int]]:
    """Its process id and the port of its metrics, 0 where there is none."""
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
    """As a Prometheus would."""

    async def scrape() -> None:
        while True:
            for port in filter(None, ports):
                await asyncio.to_thread(lambda port=port: urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read())
            await asyncio.sleep(SCRAPE_S)

    task = asyncio.create_task(scrape())
    try:
        yield
    finally:
        task.cancel()


async def through_a_gateway(url: str, *, counts: bool) -> Figures:
    port = free_port()
    redis = connect(url)
    settings = _gateway_settings(url, port)
    with service("services.gateway", settings, counts=counts) as (pid, metrics):
        await listening(port)
        cpu = Cpu(pid)
        async with scraped(metrics):
            async with scripted_worker(redis, url, 1):
                figures = await _requests(port, cpu)
            async with scripted_worker(redis, url, RELAYED_TOKENS):
                relayed = await throughput(port, PATH, cpu)
    await redis.aclose()
    relay = {
        "relayed tokens/s": relayed["relayed_tokens_s"],
        "gateway's µs of processor per token": relayed["cpu_us_token"],
    }
    return figures | relay


async def _requests(port: int, cpu: Cpu) -> Figures:
    client, request = Client(port), body_of(PATH, stream=False)
    for _ in range(WARM_UP):
        await client.ask(request)
    cpu.since_last_s()
    answered = len(await keep_busy(lambda: client.ask(request), clients=CLIENTS, seconds=SECONDS))
    figures = {"requests/s": answered / SECONDS, "gateway's ms of processor per request": cpu.since_last_s() * 1000 / answered}
    client.close()
    return figures


async def through_a_worker(url: str, *, counts: bool) -> Figures:
    port = free_port()
    worker_settings = {
        "CORRAL_REDIS_URL": url,
        "CORRAL_NODE": "node-1",
        "CORRAL_REPLICA": "replica-1",
        "CORRAL_VERSION": VERSION,
        "CORRAL_RUNNER": "fake",
        "CORRAL_SLOTS": str(CLIENTS),
        "CORRAL_FAKE_STEP_S": str(STEP_S),
        "CORRAL_ORPHAN_S": "3600",
    }
    story = {"model": "m", "messages": [{"role": "user", "content": "Tell me a story."}], "stream": True, "max_tokens": TOKENS}
    request = post(PATH, story)
    with (
        service("services.gateway", _gateway_settings(url, port), counts=counts) as (_, gateway_metrics),
        service("services.worker", worker_settings, counts=counts) as (pid, worker_metrics),
    ):
        await listening(port)
        client, cpu = Client(port), Cpu(pid)
        assert (await client.ask(request)).status == 200
        async with scraped(gateway_metrics, worker_metrics):
            cpu.since_last_s()
            answered = len(await keep_busy(lambda: client.ask(request), clients=CLIENTS, seconds=2 * SECONDS))
            used_s = cpu.since_last_s()
        client.close()
    tokens = answered * TOKENS
    return {"tokens/s of a worker": tokens / (2 * SECONDS), "worker's µs of processor per token": used_s * 1e6 / tokens}


def _gateway_settings(url: str, port: int) -> dict[str, str]:
    return {
        "CORRAL_HOST": f"127.0.0.1:{port}",
        "CORRAL_REDIS_URL": url,
        "CORRAL_REGISTRY_TOKEN": "not-used-in-this-benchmark",
        "CORRAL_LOG_LEVEL": "warning",
    }


async def measure(url: str, *, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Of each figure: with metrics and without, in each round."""
    redis = connect(url)
    await Routes(redis).publish(ROUTES)
    await redis.aclose()
    found: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for number in range(rounds):
        got: dict[bool, Figures] = {}
        for counts in (number % 2 == 0, number % 2 == 1):
            got[counts] = await through_a_gateway(url, counts=counts) | await through_a_worker(url, counts=counts)
        for name in got[True]:
            found[name].append((got[True][name], got[False][name]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--rounds", type=int, default=6, help="of both (6)")
    parser.add_argument("--without", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.without:
        run_without(arguments.without)
        return
    others = Others()
    with valkey() as server:
        found = uvloop.run(measure(url_of(server), rounds=arguments.rounds))
    print(f"{'':40} {'with':>12} {'without':>12}   cost: median (lowest to highest)")
    for name, pairs in found.items():
        costs = sorted(100 * (_cost(name, *pair)) for pair in pairs)
        counted, uncounted = (median(side) for side in zip(*pairs, strict=True))
        print(f"{name:40} {counted:12,.2f} {uncounted:12,.2f}   {median(costs):+.1f} % ({costs[0]:+.1f} to {costs[-1]:+.1f})")
    print(f"other processes took {100 * others.share():.0f} % of the machine")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


def _cost(name: str, counted: float, uncounted: float) -> float:
    """By how much it is worse with metrics, as a part of what it is without."""
    difference = (counted - uncounted) / uncounted
    return -difference if MORE_IS_BETTER[name] else difference


if __name__ == "__main__":
    main()
