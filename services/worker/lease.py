"""The worker's lease: each report of its state extends it."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import psutil

from services.process.outage import Outage
from services.protocol.errors import CorralError, Unavailable
from services.protocol.queue import Queue
from services.protocol.reports import WorkerReport, WorkerState
from services.worker.config import Settings
from services.worker.in_flight import InFlight
from services.worker.loading import Loaded

log = logging.getLogger(__name__)

#: A worker that could not load stays readable for this long, so that the registry learns why.
FAILED_LEASE_MS = 30_000


class Lease:
    """Only writer of the worker's state. `metrics_address` is the `host:port` of its metrics, empty if there are none.

    `load_progress` (0 to 1) is set by the engine thread while it loads.
    """

    def __init__(
        self, settings: Settings, queue: Queue, in_flight: InFlight, outage: Outage, *, worker: str, metrics_address: str
    ) -> None:
        self.load_progress = 0.0
        self._settings = settings
        self._queue = queue
        self._in_flight = in_flight
        self._outage = outage
        self._worker = worker
        self._metrics_address = metrics_address
        self._state = WorkerState.LOADING
        self._loaded: Loaded | None = None
        self._changed = asyncio.Event()
        self._held = asyncio.Event()

    def ready(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._enter(WorkerState.READY)

    def draining(self) -> None:
        self._enter(WorkerState.DRAINING)

    async def wait_until_held(self) -> None:
        """Without a lease the queue gives no requests to the worker and wakes nobody."""
        await self._held.wait()

    async def keep(self) -> None:
        """Reports every `report_s`, and at once after a change of state or an outage."""
        while True:
            self._changed.clear()
            try:
                await self._report(self._settings.lease_ms)
            except Unavailable as error:
                await self._outage.wait("lease", error)
                continue
            self._outage.over("lease")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.report_s):
                    await self._changed.wait()

    async def fail(self, error: CorralError) -> None:
        """The model could not be loaded. Raises Unavailable."""
        log.error("model not loaded: error=%r", error.message)
        self._enter(WorkerState.FAILED)
        await self._report(FAILED_LEASE_MS, error=error)

    async def leave(self, *, crashed: bool = False) -> None:
        """Ends the lease: the gateways take what the worker has not answered as lost."""
        try:
            await self._queue.leave(self._worker, self._settings.version, crashed=crashed)
        except Unavailable as error:
            log.warning("lease not released, it will expire: error=%r", error.message)

    def _enter(self, state: WorkerState) -> None:
        self._state = state
        self._changed.set()

    async def _report(self, lease_ms: int, *, error: CorralError | None = None) -> None:
        loaded = self._loaded
        report = WorkerReport(
            worker=self._worker,
            replica=self._settings.replica,
            version=self._settings.version,
            node=self._settings.node,
            state=self._state,
            slots=self._settings.engine.slots,
            running=len(self._in_flight),
            answered=self._in_flight.answered,
            context_tokens=loaded.mode.context_tokens if loaded else 0,
            memory_bytes=psutil.Process().memory_info().rss,
            device_memory_bytes=loaded.device_memory_bytes if loaded else 0,
            metrics=self._metrics_address,
            load_progress=1.0 if loaded else self.load_progress,
            error_code=error.code if error else "",
            error=error.message if error else "",
        )
        await self._queue.report(report, lease_ms=lease_ms)
        self._held.set()
        if self._settings.pulse:
            self._settings.pulse.touch()
