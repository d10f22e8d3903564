"""64 clients of mixed kinds with three workers, one of which is killed every few seconds.

    python -m tests.faults.chaos [--minutes N] [--fake] [--clients N] [--every SECONDS]

Workers run SmolLM2, or scripted tokens with --fake. Every answer is checked: it ends once and without an error, and it has as many
tokens as its usage, none twice and none missing. With --fake it must equal the undisturbed answer, byte for byte. The exit code is 1
if any answer was wrong. The cost of a failover is estimated from the longest waits for a next piece: of the answers that were
running when a worker was killed, the slowest ones, as many as that worker had.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import smollm2
from tests.faults.cluster import SLOTS, Cluster, running
from tests.faults.kinds import KINDS, RunningRequest

#: With real weights: the slots of a worker (one thread each), the tokens of an answer, and the time between two kills. With
#: larger values a worker might not recompute its requests before it is killed too.
REAL_SLOTS = 4
REAL_TOKENS = 16
REAL_EVERY_S = 8.0
FAKE_EVERY_S = 5.0

#: The limit for everything that a client may have to wait for.
PATIENCE_S = 300.0

Results = dict[str, dict[str, Any]]


class Tally:
    """Counts over all answers. `faults` holds the errors; `lost` counts requests of killed workers, `gaps_s` has the longest
    wait of each answer that was running during a kill, `calm_s` that of the others."""

    def __init__(self) -> None:
        self.answers: Counter[str] = Counter()
        self.kills = 0
        self.lost = 0
        self.faults: list[str] = []
        self.gaps_s: list[float] = []
        self.calm_s: list[float] = []


async def client(
    cluster: Cluster, number: int, tally: Tally, tokens: int | None, expected: Results | None, until: float
) -> None:
    kinds = itertools.cycle(sorted(KINDS))
    for _ in range(number % len(KINDS)):
        next(kinds)
    async with patient(cluster) as http:
        while time.monotonic() < until:
            kind, kills = next(kinds), tally.kills
            asked = RunningRequest(http, kind, tokens=tokens)
            try:
                answer = await asked.task
            except httpx.HTTPError as error:
                tally.faults.append(f"{kind}: {type(error).__name__}")
                continue
            tally.answers[kind] += 1
            (tally.gaps_s if tally.kills > kills else tally.calm_s).append(asked.max_wait_s)
            result = answer.result()
            if fault := fault_of(result, expected and expected[kind]):
                tally.faults.append(f"{kind}: {fault}")


def fault_of(result: dict[str, Any], expected: dict[str, Any] | None) -> str:
    """What is wrong with the answer; empty if nothing is."""
    if result["error"]:
        return f"failed: {result['error']}"
    if result["ends"] != 1:
        return f"{result['ends']} ends"
    if expected is not None and result != expected:
        return f"not the undisturbed answer: {result} for {expected}"
    tokens = result["logprobs"].get("tokens")
    if tokens is not None and len(tokens) != result["tokens"][1]:
        return f"{len(tokens)} tokens arrived, {result['tokens'][1]} were counted"
    if tokens is not None and "�" not in "".join(tokens) and "".join(tokens) != result["texts"][0]:
        return f"the text is not its tokens: {result['texts'][0]!r}"
    return ""


async def killer(cluster: Cluster, tally: Tally, every_s: float, until: float) -> None:
    """Kills workers, but never the last one: a replacement must be ready first."""
    while time.monotonic() + every_s < until:
        await asyncio.sleep(every_s)
        await cluster.any_ready(2)
        victim = random.choice(await cluster.any_ready(2))
        tally.lost += int(await cluster.redis.scard(f"corral:claims:{victim.worker}"))
        os.kill(cluster.pid(victim.replica), signal.SIGKILL)
        tally.kills += 1
        cluster.top_up()


def patient(cluster: Cluster) -> httpx.AsyncClient:
    """A client whose requests may wait as long as necessary."""
    headers = {"X-Request-Timeout": str(PATIENCE_S)}
    return httpx.AsyncClient(base_url=cluster.url, timeout=PATIENCE_S, headers=headers, trust_env=False)


async def undisturbed(cluster: Cluster) -> Results:
    async with patient(cluster) as http:
        asked = [RunningRequest(http, kind) for kind in KINDS]
        return {one.kind: (await one.task).result() for one in asked}


async def soak(folder: Path, options: argparse.Namespace) -> Tally:
    fake = {"CORRAL_RUNNER": "fake", "CORRAL_FAKE_STEP_S": "0.02", "CORRAL_FAKE_SCRIPT": "recite"}
    model = Path() if options.fake else smollm2()
    environment = fake if options.fake else {"CORRAL_THREADS": "1"}
    slots, tokens, every_s = (SLOTS, None, FAKE_EVERY_S) if options.fake else (REAL_SLOTS, REAL_TOKENS, REAL_EVERY_S)
    tally = Tally()
    async with running(folder, model=model, slots=slots, environment=environment) as cluster:
        expected = await undisturbed(cluster) if options.fake else None
        until = time.monotonic() + options.minutes * 60
        clients = [client(cluster, number, tally, tokens, expected, until) for number in range(options.clients)]
        await asyncio.gather(killer(cluster, tally, options.every or every_s, until), *clients)
    return tally


def show(tally: Tally) -> None:
    print(
        f"{sum(tally.answers.values())} answers, {tally.kills} workers killed with {tally.lost} of them, {len(tally.faults)} faults"
    )
    for fault, count in Counter(tally.faults).most_common(10):
        print(f"  {count} x {fault[:400]}")
    disturbed = sorted(tally.gaps_s, reverse=True)[: tally.lost]
    for name, waits in (("where its worker was killed", disturbed), ("otherwise", tally.calm_s)):
        if len(waits) > 1:
            cuts = statistics.quantiles(waits, n=100)
            print(f"longest wait within an answer, {name}: p50 {cuts[49]:.2f} s, p99 {cuts[98]:.2f} s ({len(waits)})")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3, help="default: 3")
    parser.add_argument("--fake", action="store_true", help="scripted tokens instead of SmolLM2")
    parser.add_argument("--clients", type=int, default=64, help="default: 64")
    parser.add_argument("--every", type=float, help="seconds between two kills (default: 8, with --fake 5)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="corral-chaos-") as folder:
        tally = asyncio.run(soak(Path(folder), options))
    show(tally)
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
