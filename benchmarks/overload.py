"""What happens to requests if ten times as many arrive as can be served.

    python benchmarks/overload.py [--json FILE] [--seconds N]

Starts a Valkey, a gateway and a real worker with a scripted model, whose steps take a fixed time. First its capacity is measured. Then
requests arrive at random times: 80 % of the capacity for comparison, ten times the capacity for `--seconds` (60), and immediately 80 %
again. Every request is a streamed chat that must start within 0.4 s. Takes two minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import psutil
import uvloop
from redis.asyncio import Redis

from comparison.measures import percentile
from load.arrivals import Stretch, arrive, keep_busy
from load.client import Client, Outcome, post
from load.platform import ROUTES, claiming, fake_worker, gateway, listening, url_of, valkey
from services.protocol.connection import connect
from services.protocol.routes import Routes

SLOTS = 16
STEP_S = 0.01
TOKEN_S = 0.0001
ANSWER_TOKENS = (16, 48)
TIMEOUT_S = 0.4
BUSY_S = 8.0
NORMAL_S = 20.0
NORMAL_LOAD = 0.8
OVERLOAD = 10
RECOVERY_S = 10.0

REFUSED = (429, 503, 504)

Figures = dict[str, float]


class Memory:
    """The resident bytes of the gateway and of Valkey, twice a second."""

    def __init__(self, pid: int, redis: Redis) -> None:
        self.samples: list[tuple[int, int]] = []
        self._gateway = psutil.Process(pid)
        self._redis = redis

    async def watch(self) -> None:
        while True:
            valkey = (await self._redis.info("memory"))["used_memory_rss"]
            self.samples.append((self._gateway.memory_info().rss, valkey))
            await asyncio.sleep(0.5)

    def figures(self) -> Figures:
        """In MiB: at the start, at most, and at the end."""
        figures: Figures = {}
        for name, samples in zip(("gateway", "valkey"), zip(*self.samples, strict=True), strict=True):
            figures |= {
                f"{name}_{when}_mib": of(samples) / 2**20
                for when, of in (("first", lambda s: s[0]), ("most", max), ("last", lambda s: s[-1]))
            }
        return figures


def requests(**headers: str) -> Iterator[bytes]:
    """Chats with answers of random length: with equal lengths, answers that start together would end together."""
    story = [{"role": "user", "content": "Tell me a story about a horse."}]
    chance = random.Random(4)
    while True:
        asked = {"model": "m", "messages": story, "max_tokens": chance.randint(*ANSWER_TOKENS), "stream": True}
        yield post("/v1/chat/completions", asked, **headers)


def summary(outcomes: Sequence[Outcome], seconds: float) -> Figures:
    """Rates per second, times in milliseconds; `first` is the time to the first token. `late` counts refusals after a wait,
    with a 504."""
    accepted = [outcome for outcome in outcomes if outcome.status == 200]
    refused = [outcome for outcome in outcomes if outcome.status in REFUSED]
    figures = {
        "sent_s": len(outcomes) / seconds,
        "accepted_s": len(accepted) / seconds,
        "refused_s": len(refused) / seconds,
        "late": float(sum(outcome.status == 504 for outcome in refused)),
        "failed": float(len(outcomes) - len(accepted) - len(refused)),
    }
    for name, times in (
        ("whole", [outcome.latency_ms for outcome in accepted]),
        ("first", [outcome.first_ms for outcome in accepted]),
        ("refusal", [outcome.latency_ms for outcome in refused]),
    ):
        if times:
            figures |= {f"{name}_p50_ms": percentile(times, 50), f"{name}_p99_ms": percentile(times, 99)}
    return figures


def recovered_after_s(after: Sequence[Outcome], before: Sequence[Outcome], normal_ms: float) -> int:
    """The end of the last second in which more requests were refused or took longer than normal than in the same second of
    `before`, which had the same arrivals: even at 80 % of the capacity this happens to some, in the densest moments."""
    worse = abnormal_by_second(after, normal_ms) - abnormal_by_second(before, normal_ms)
    return max(worse, default=-1) + 1


def abnormal_by_second(outcomes: Sequence[Outcome], normal_ms: float) -> Counter[int]:
    abnormal = [outcome.sent_s for outcome in outcomes if outcome.status != 200 or outcome.latency_ms > normal_ms]
    return Counter(int(sent_s - outcomes[0].sent_s) for sent_s in abnormal)


async def measure(url: str, port: int, pid: int, *, seconds: float) -> dict[str, Figures]:
    async with connect(url) as redis:
        await Routes(redis).publish(ROUTES)
        await listening(port)
        await claiming(redis)
        client = Client(port)
        patient, hurried = requests(), requests(X_Request_Timeout=str(TIMEOUT_S))
        await keep_busy(lambda: client.ask(next(patient)), clients=2 * SLOTS, seconds=2)
        capacity = len(await keep_busy(lambda: client.ask(next(patient)), clients=2 * SLOTS, seconds=BUSY_S)) / BUSY_S
        normal = Stretch(NORMAL_LOAD * capacity, NORMAL_S)
        [before] = await arrive(lambda: client.ask(next(hurried)), normal)
        memory = Memory(pid, redis)
        watching = asyncio.create_task(memory.watch())
        over, after = await arrive(
            lambda: client.ask(next(hurried)), Stretch(OVERLOAD * capacity, seconds), normal._replace(seconds=RECOVERY_S)
        )
        await asyncio.sleep(1)
        watching.cancel()
        client.close()
        table = {
            "capacity": {"per_second": capacity},
            "80 %": summary(before, NORMAL_S),
            "overload": summary(over, seconds),
            "after": summary(after, RECOVERY_S),
            "memory": memory.figures(),
        }
        table["after"]["recovered_s"] = float(recovered_after_s(after, before, 1.5 * table["80 %"]["whole_p99_ms"]))
        table["memory"]["keys_left"] = float(len([key async for key in redis.scan_iter("corral:request:*")]))
        return table


def goals(table: dict[str, Figures]) -> list[tuple[str, bool]]:
    normal, over, memory = table["80 %"], table["overload"], table["memory"]
    ratio = over["whole_p99_ms"] / normal["whole_p99_ms"]
    growth = {name: memory[f"{name}_most_mib"] / memory[f"{name}_first_mib"] for name in ("gateway", "valkey")}
    return [
        (f"accepted requests keep their latency: p99 {ratio:.2f} x that at 80 % (at most 1.5)", ratio <= 1.5),
        (f"refusals take {over['refusal_p99_ms']:.1f} ms at p99 (at most 50)", over["refusal_p99_ms"] <= 50),
        (f"memory grows {growth['gateway']:.2f} x and {growth['valkey']:.2f} x (at most 1.5)", max(growth.values()) <= 1.5),
        (f"normal again {table['after']['recovered_s']:.0f} s after (at most 1)", table["after"]["recovered_s"] <= 1),
        (f"{over['failed']:.0f} failed, {memory['keys_left']:.0f} keys left", over["failed"] + memory["keys_left"] == 0),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    parser.add_argument("--seconds", type=float, default=60, help="duration of the overload (60)")
    options = parser.parse_args()
    started = time.perf_counter()
    with ExitStack() as parts:
        url = url_of(parts.enter_context(valkey()))
        port, pid = parts.enter_context(gateway(url))
        parts.enter_context(fake_worker(url, slots=SLOTS, step_s=STEP_S, token_s=TOKEN_S))
        table = uvloop.run(asyncio.wait_for(measure(url, port, pid, seconds=options.seconds), 600))
    for name, figures in table.items():
        print(name)
        for figure, value in figures.items():
            print(f"    {figure:20} {value:12,.2f}")
    for text, met in goals(table):
        print(f"{'met   ' if met else 'MISSED'} {text}")
    print(f"{time.perf_counter() - started:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
