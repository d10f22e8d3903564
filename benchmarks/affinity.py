"""Whether requests with the same start of a prompt reach the replica that holds it, and how long they wait for it.

    python benchmarks/affinity.py [--json FILE] [--seconds N] [--rates 4,8,16]

Four real workers run a scripted model: a step takes 20 ms plus 0.15 ms per token, so a system prompt of 4,000 tokens takes 0.6 s and an
answer of 48 tokens about a second. 200 users share 20 system prompts and ask at random times, a Poisson process that is the same in both
runs of a rate. In one run the queue knows the prefixes of the prompts. In the other it does not: then any free slot takes the oldest
request, and no queue per replica can do better than that. Each run starts with empty caches. Takes five minutes.

*Hits* are the cached tokens of system prompts, as a share of what an endless cache shared by all replicas would give (all but the first
use of each). *Wait* is the time until a worker starts the request, *first* the time until its first token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from redis.asyncio import Redis

from comparison.measures import percentile
from load.platform import VERSION, claiming, fake_worker, url_of, valkey
from services.protocol.connection import connect
from services.protocol.gateways import Gateways
from services.protocol.messages import Event, Finished, Frame, GenerateRequest, Started, new_id
from services.protocol.prefixes import prefixes
from services.protocol.prompts import TextPrompt
from services.protocol.queue import Queue
from services.protocol.replies import ReplyReader
from services.protocol.sampling import SamplingParams, StopConditions

REPLICAS = 4
SLOTS = 8
STEP_S = 0.02
TOKEN_S = 0.00015
USERS = 200
SYSTEM_PROMPTS = 20
SYSTEM_TOKENS = 4000
QUESTION_TOKENS = 200
ANSWER_TOKENS = 48
CONTEXT_TOKENS = 5000
RATES = (4.0, 8.0, 16.0)
SECONDS = 40.0
GATEWAY = "benchmark"

Figures = dict[str, float]


@dataclass
class UserRequest:
    system: int
    at_s: float
    started_s: float = 0.0
    first_s: float = 0.0
    cached_tokens: int = 0
    worker: str = ""
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Users:
    """A gateway that sends requests and reads replies. With `knowing`, it gives the queue the prefixes of its prompts."""

    def __init__(self, redis: Redis, *, knowing: bool) -> None:
        self.asked: dict[str, UserRequest] = {}
        self._queue = Queue(redis)
        self._reader = ReplyReader(redis, GATEWAY)
        self._gateways = Gateways(redis)
        self._knowing = knowing
        self._chance = random.Random(7)
        self._systems = [self._text(SYSTEM_TOKENS) for _ in range(SYSTEM_PROMPTS)]

    def _text(self, length: int) -> str:
        return "".join(self._chance.choices("abcdefghijklmnopqrstuvwxyz ", k=length))

    async def ask(self) -> None:
        system = self._chance.randrange(USERS) % SYSTEM_PROMPTS
        request = GenerateRequest(
            id=new_id(),
            version=VERSION,
            gateway=GATEWAY,
            caller="everybody",
            prompt=TextPrompt(self._systems[system] + self._text(QUESTION_TOKENS)),
            sampling=SamplingParams(temperature=0),
            stopping=StopConditions(ANSWER_TOKENS),
        )
        asked = self.asked[request.id] = UserRequest(system, time.perf_counter())
        begins = prefixes(request) if self._knowing else ()
        await self._queue.enqueue(request, cost=SYSTEM_TOKENS, limit=100_000, begins=begins)
        await asked.done.wait()

    async def listen(self) -> None:
        await self._gateways.renew(GATEWAY, lease_ms=3_600_000, stream_ms=3_600_000)
        while True:
            for reply in await self._reader.read(timeout_s=1):
                for event in reply.events:
                    await self._note(event, reply.worker)

    async def _note(self, event: Event, worker: str) -> None:
        asked, now_s = self.asked[event.request], time.perf_counter()
        if isinstance(event, Started):
            asked.started_s, asked.cached_tokens, asked.worker = now_s, event.cached_tokens, worker
        elif isinstance(event, Frame):
            asked.first_s = asked.first_s or now_s
        else:
            assert isinstance(event, Finished), event
            await self._queue.settle(event.request, event.epoch, cost=event.usage.prompt_tokens)
            asked.done.set()


async def run(url: str, *, rate: float, seconds: float, knowing: bool) -> Figures:
    async with connect(url) as redis:
        users = Users(redis, knowing=knowing)
        await claiming(redis, workers=REPLICAS)
        listening = asyncio.create_task(users.listen())
        chance, due_s, asking = random.Random(4), time.perf_counter(), []
        end_s = due_s + seconds
        while (due_s := due_s + chance.expovariate(rate)) < end_s:
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            asking.append(asyncio.ensure_future(users.ask()))
        await asyncio.gather(*asking)
        listening.cancel()
        return figures(list(users.asked.values()))


def figures(asked: list[UserRequest]) -> Figures:
    """Times in milliseconds. `busiest` is the share of all requests that went to the replica with the most."""
    ideal = SYSTEM_TOKENS * (len(asked) - len({one.system for one in asked}))
    waits = [(one.started_s - one.at_s) * 1000 for one in asked]
    firsts = [(one.first_s - one.at_s) * 1000 for one in asked]
    return {
        "requests": float(len(asked)),
        "hits": sum(min(one.cached_tokens, SYSTEM_TOKENS) for one in asked) / ideal,
        "busiest": max(Counter(one.worker for one in asked).values()) / len(asked),
        "wait_p50_ms": percentile(waits, 50),
        "wait_p99_ms": percentile(waits, 99),
        "first_p50_ms": percentile(firsts, 50),
        "first_p99_ms": percentile(firsts, 99),
    }


def measure(*, rate: float, seconds: float, knowing: bool) -> Figures:
    with ExitStack() as stack:
        url = url_of(stack.enter_context(valkey()))
        for replica in range(REPLICAS):
            worker = fake_worker(
                url, replica=f"replica-{replica}", slots=SLOTS, step_s=STEP_S, token_s=TOKEN_S, context_tokens=CONTEXT_TOKENS
            )
            stack.enter_context(worker)
        return asyncio.run(run(url, rate=rate, seconds=seconds, knowing=knowing))


def table(results: dict[float, tuple[Figures, Figures]]) -> str:
    lines = [
        "| requests/s | queue | hits, of the ideal | busiest replica | wait, ms: p50 | p99 | first token, ms: p50 | p99 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for rate, pair in results.items():
        for name, found in zip(("prefixes", "oldest first"), pair, strict=True):
            times = " | ".join(f"{found[key]:.0f}" for key in ("wait_p50_ms", "wait_p99_ms", "first_p50_ms", "first_p99_ms"))
            lines.append(f"| {rate:g} | {name} | {found['hits']:.2f} | {found['busiest']:.0%} | {times} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="duration of each run")
    parser.add_argument("--rates", default=",".join(map(str, RATES)), help="requests per second")
    options = parser.parse_args()
    results = {}
    for rate in map(float, options.rates.split(",")):
        both = [measure(rate=rate, seconds=options.seconds, knowing=knowing) for knowing in (True, False)]
        results[rate] = both[0], both[1]
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps({str(rate): list(both) for rate, both in results.items()}, indent=2))


if __name__ == "__main__":
    main()
