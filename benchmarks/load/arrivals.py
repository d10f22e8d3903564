"""Requests as independent callers send them: at random times, whether or not earlier ones have been answered."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence

from comparison.measures import percentile
from load.client import Outcome


async def arrive(ask: Callable[[], Awaitable[Outcome]], *, per_second: float, seconds: float) -> list[Outcome]:
    """A Poisson process, the same in every run. Returns when the last request is answered."""
    chance = random.Random(4)
    begun, due_s = time.perf_counter(), 0.0
    asked = []
    while (due_s := due_s + chance.expovariate(per_second)) < seconds:
        if (wait_s := begun + due_s - time.perf_counter()) > 0:
            await asyncio.sleep(wait_s)
        asked.append(asyncio.ensure_future(ask()))
    return await asyncio.gather(*asked)


async def keep_busy(ask: Callable[[], Awaitable[Outcome]], *, clients: int, seconds: float) -> list[Outcome]:
    """Each client sends its next request when it has its answer."""
    outcomes: list[Outcome] = []
    until = time.perf_counter() + seconds

    async def one() -> None:
        while time.perf_counter() < until:
            outcomes.append(await ask())

    await asyncio.gather(*(one() for _ in range(clients)))
    return outcomes


def latencies(milliseconds: Sequence[float]) -> dict[str, float]:
    return {"p50_ms": percentile(milliseconds, 50), "p99_ms": percentile(milliseconds, 99)}
