"""Ends the lease of a worker whose process has ended: those who wait for it learn so at once instead of when the lease runs out."""

from __future__ import annotations

import asyncio
import logging

from services.node.runtime import Runtime
from services.protocol.errors import Unavailable
from services.protocol.queue import Queue
from services.protocol.reports import WorkerState

#: Between two looks at the processes. A killed worker is to be known of within half a second everywhere.
LOOK_S = 0.05

log = logging.getLogger(__name__)


class Departures:
    """A worker that could not load keeps its lease: its last report says why."""

    def __init__(self, node: str, *, runtime: Runtime, queue: Queue) -> None:
        self._node = node
        self._runtime = runtime
        self._queue = queue

    async def watch(self) -> None:
        """For ever."""
        running = gone = frozenset[str]()
        while True:
            await asyncio.sleep(LOOK_S)
            before, running = running, await asyncio.to_thread(self._runtime.running)
            gone = (gone | before) - running
            if not gone:
                continue
            try:
                await self._end_leases(gone)
            except Unavailable:  # then the leases end by themselves, or at the next look
                continue
            gone = frozenset()

    async def _end_leases(self, replicas: frozenset[str]) -> None:
        crashed = {process.replica for process in self._runtime.reports() if process.crashed}
        for report in await self._queue.workers():
            if report.node == self._node and report.replica in replicas and report.state is not WorkerState.FAILED:
                log.warning("the worker of replica %s ended without taking its leave", report.replica)
                await self._queue.leave(report.worker, report.version, crashed=report.replica in crashed)
