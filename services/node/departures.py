"""Ends the lease of a worker as soon as its process has ended, so that its requests need not wait until the lease expires."""

from __future__ import annotations

import asyncio
import logging
import math
import time

from services.node.runtime import Runtime
from services.protocol.errors import Unavailable
from services.protocol.queue import Queue
from services.protocol.reports import WorkerReport, WorkerState

#: How often the agent notes the workers' reports. It needs the last report even if the lease expires before the process ends.
WORKER_LIST_INTERVAL_S = 1.0

#: How often the processes are checked. The cluster should know of a killed worker within half a second.
PROCESS_CHECK_INTERVAL_S = 0.05

log = logging.getLogger(__name__)


class Departures:
    """Watches the processes of the node's workers. A worker that failed to load keeps its lease: its last report says why."""

    def __init__(self, node: str, *, runtime: Runtime, queue: Queue) -> None:
        self._node = node
        self._runtime = runtime
        self._queue = queue
        self._known: dict[str, WorkerReport] = {}
        self._listed_at = -math.inf

    async def watch(self) -> None:
        """Runs until cancelled."""
        running = gone = frozenset[str]()
        while True:
            await asyncio.sleep(PROCESS_CHECK_INTERVAL_S)
            before, running = running, await asyncio.to_thread(self._runtime.running)
            gone = (gone | before) - running
            try:
                if time.monotonic() > self._listed_at + WORKER_LIST_INTERVAL_S:
                    await self._list_workers(running | gone)
                if not gone:
                    continue
                await self._end_leases(gone)
            except Unavailable:  # tried again at the next check, unless the leases expire first
                continue
            gone = frozenset()

    async def _list_workers(self, replicas: frozenset[str]) -> None:
        found = {report.replica: report for report in await self._queue.workers() if report.node == self._node}
        known = {**self._known, **found}
        self._known = {replica: report for replica, report in known.items() if replica in replicas}
        self._listed_at = time.monotonic()

    async def _end_leases(self, replicas: frozenset[str]) -> None:
        ended = {process.replica: process for process in self._runtime.reports() if process.exit_code is not None}
        for process in (ended[replica] for replica in sorted(replicas & ended.keys())):
            log.warning(
                "worker ended: replica=%s exit_code=%d last_line=%r", process.replica, process.exit_code, process.last_line
            )
        crashed = {process.replica for process in ended.values() if process.crashed}
        await self._list_workers(replicas | self._known.keys())
        for report in [self._known.pop(replica) for replica in replicas & self._known.keys()]:
            if report.state is not WorkerState.FAILED:
                log.warning("worker ended without releasing its lease: replica=%s", report.replica)
                await self._queue.leave(report.worker, report.version, crashed=report.replica in crashed)
