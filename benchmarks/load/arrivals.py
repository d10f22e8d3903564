"""Requests as independent callers send them: at random times, whether or not earlier ones have been answered."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from comparison.measures import percentile
from load.client import Outcome


class Stretch(NamedTuple):
    """A request rate for a time."""

    per_second: float
    seconds: float


async def arrive(ask: Callable[[], Awaitable[Outcome]], *stretches: Stretch) -> list[list[Outcome]]:
    """A Poisson process for each stretch, the same in every run and for equal rates; one follows the other immediately. Returns
    the outcomes of each stretch after the last request is answered."""
    due_s, end_s = time.perf_counter(), time.perf_counter()
    asked: list[list[asyncio.Future[Outcome]]] = []
    for stretch in stretches:
        asked.append([])
        chance = random.Random(4)
        due_s, end_s = end_s, end_s + stretch.seconds
        while (due_s := due_s + chance.expovariate(stretch.per_second)) < end_s:
            if (wait_s := due_s - time.perf_counter()) > 0:
                await asyncio.sleep(wait_s)
            asked[-1].append(asyncio.ensure_future(ask()))
    return [await asyncio.gather(*some) for some in asked]


async def keep_busy(ask: Callable[[], Awaitable[Outcome]], *, clients: int, seconds: float) -> list[Outcome]:
    """Each client sends its next request when it has its answer. Returns the outcomes of the requests that ended in time."""
    outcomes: list[Outcome] = []
    until = time.perf_counter() + seconds

    async def one() -> None:
        while (outcome := await ask()).ended_s < until:
            outcomes.append(outcome)

    await asyncio.gather(*(one() for _ in range(clients)))
    return outcomes


def latencies(milliseconds: Sequence[float]) -> dict[str, float]:
    return {"p50_ms": percentile(milliseconds, 50), "p99_ms": percentile(milliseconds, 99)}
