from __future__ import annotations

import asyncio
import signal
from typing import Any, cast

from redis.asyncio import Redis

from services.node.departures import WORKER_LIST_INTERVAL_S, Departures
from services.node.runtime import Runtime
from services.protocol.queue import Queue
from services.protocol.reports import ProcessReport, WorkerReport, WorkerState
from tests.conditions import eventually


class OneProcess:
    """The runtime of an agent with one process."""

    def __init__(self) -> None:
        self.exit_code: int | None = None

    def running(self) -> frozenset[str]:
        return frozenset({"replica"}) if self.exit_code is None else frozenset()

    def reports(self) -> list[ProcessReport]:
        return [ProcessReport("replica", 1, self.exit_code, "")]


async def test_a_crash_is_recorded_even_after_the_lease_expired(redis: Redis) -> None:
    process, queue = OneProcess(), Queue(redis)
    report = WorkerReport("worker", "replica", "f" * 64, "here", WorkerState.READY)
    await queue.report(report, lease_ms=int(4000 * WORKER_LIST_INTERVAL_S))
    departures = Departures("here", runtime=cast(Runtime, process), queue=queue)
    watching = asyncio.create_task(departures.watch())

    async def lease_ended() -> bool:
        return not await queue.workers()

    async def crashed() -> Any:
        return await queue.crashed(["worker", "another"])

    await eventually(lease_ended, timeout_s=30)
    assert not await crashed()
    process.exit_code = -signal.SIGABRT
    await eventually(crashed, timeout_s=30)
    assert await crashed() == {"worker"}
    watching.cancel()
