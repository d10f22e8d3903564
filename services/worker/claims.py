"""Claims requests while slots are free, starts them in the engine, and aborts those that are cancelled or lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
from typing import Any

from services.process.outage import Outage
from services.protocol.errors import ProtocolMismatch, Unavailable
from services.protocol.messages import Cancel, Claim, Crash, Event, Failed, Finished, FinishReason, Timings, Usage
from services.protocol.queue import ClaimResult, Queue
from services.protocol.records import Records
from services.worker.claimed_prefixes import ClaimedPrefixes
from services.worker.command_loop import Abort, CommandLoop, RoutedEvent
from services.worker.config import Settings
from services.worker.failures import request_failure
from services.worker.in_flight import InFlight
from services.worker.mode import Mode
from services.worker.outbox import Outbox
from services.worker.request_telemetry import Observer

log = logging.getLogger(__name__)

#: How often the worker checks that its claims are still its own.
CLAIM_CHECK_INTERVAL_S = 0.5

#: How long one blocking read of the inbox waits.
INBOX_TIMEOUT_S = 1.0

_NOTHING = ClaimResult([], None)


class Claims:
    def __init__(
        self,
        settings: Settings,
        queue: Queue,
        records: Records,
        outage: Outage,
        in_flight: InFlight,
        outbox: Outbox,
        observer: Observer,
        *,
        worker: str,
        mode: Mode,
        engine: CommandLoop[Any, Any],
    ) -> None:
        self._settings = settings
        self._queue = queue
        self._records = records
        self._outage = outage
        self._in_flight = in_flight
        self._outbox = outbox
        self._observer = observer
        self._worker = worker
        self._mode = mode
        self._engine = engine
        self._prefixes = ClaimedPrefixes()
        self._may_claim = asyncio.Event()
        self._stopped = False

    def stop(self) -> None:
        """Claims nothing more. Requests that were claimed are still started."""
        self._stopped = True
        self._may_claim.set()

    async def claim_requests(self) -> None:
        """Until `stop`. Between claims it waits for a Wake, for a free slot, or for the next report."""
        async with asyncio.TaskGroup() as starting:
            while not self._stopped:
                self._may_claim.clear()
                free = self._settings.engine.slots - len(self._in_flight)
                try:
                    result = await self._claim(free) if free > 0 else _NOTHING
                except Unavailable as error:
                    await self._outage.wait("claims", error)
                    continue
                for claim in result.claims:
                    self._in_flight.add(claim)
                    self._observer.claimed(claim)
                    starting.create_task(self._start(claim))
                if len(result.claims) < free or free <= 0:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(min(self._settings.report_s, result.again_s or math.inf)):
                            await self._may_claim.wait()

    async def read_inbox(self) -> None:
        """Until cancelled: wakes, and cancellations from gateways."""
        while True:
            try:
                control = await self._queue.next_control(self._worker, timeout_s=INBOX_TIMEOUT_S)
            except Unavailable as error:
                await self._outage.wait("inbox", error)
                continue
            self._outage.over("inbox")
            match control:
                case Cancel(request):
                    self.cancel(request)
                case Crash():
                    log.error("worker kills itself: an operator asked for a crash")
                    os.kill(os.getpid(), signal.SIGKILL)
                case None:
                    pass
                case _:
                    self.slot_freed()

    async def abort_lost(self) -> None:
        """Until cancelled: aborts what the worker no longer holds. While it was frozen or cut off, another worker has taken the
        request over, Redis has lost it, or its gateway is gone."""
        while True:
            await asyncio.sleep(CLAIM_CHECK_INTERVAL_S)
            working_on = self._in_flight.snapshot()
            if not working_on:
                continue
            try:
                held = await self._records.held(self._worker)
            except Unavailable:  # the other loops report the outage
                continue
            for claimed in working_on:
                request = claimed.claim.request.id
                if request not in held and not claimed.cancelled and self._in_flight.holds(claimed):
                    log.warning("claim lost: request=%s epoch=%d", request, claimed.claim.epoch)
                    self.cancel(request)

    def cancel(self, request: str) -> None:
        claimed = self._in_flight.get(request)
        if claimed is not None:
            claimed.cancelled = True
            self._engine.put(Abort(request))

    def slot_freed(self) -> None:
        """A slot is free, or the queue has work."""
        self._may_claim.set()

    async def _claim(self, capacity: int) -> ClaimResult:
        dropped = self._prefixes.dropped(self._in_flight.ids() | self._engine.cached_requests)
        result = await self._queue.claim(self._settings.version, self._worker, capacity=capacity, dropped=dropped)
        self._outage.over("claims")
        self._prefixes.forget(dropped)
        for claim in result.claims:
            self._prefixes.claimed(claim.request)
        for one in result.unreadable:
            log.error("request unreadable: request=%s error=%r", one.request, one.reason)
            failed = Failed(one.request, one.epoch, 0, ProtocolMismatch.code, "the worker could not read the request")
            self._outbox.put([RoutedEvent(one.gateway, failed)])
        return result

    async def _start(self, claim: Claim) -> None:
        request = claim.request
        try:
            # In a thread: tokenizing a long prompt takes a while. It only reads the vocabulary.
            begin = await asyncio.to_thread(self._mode.begin, claim)
        except Exception as reason:  # noqa: BLE001 - a bug in one request must not end the others
            error = request_failure(request.id, reason)
            self._answer(claim, Failed(request.id, claim.epoch, 0, error.code, error.message, error.field))
            return
        claimed = self._in_flight.get(request.id)
        if claimed is None or claimed.claim is not claim:  # it was lost, and perhaps claimed again
            return
        if claimed.cancelled:
            usage, timings = Usage(0, 0, 0), Timings(0, 0)
            self._answer(claim, Finished(request.id, claim.epoch, 0, (FinishReason.ABORT,), usage, timings))
        else:
            self._engine.put(begin)

    def _answer(self, claim: Claim, event: Event) -> None:
        self._outbox.put([RoutedEvent(claim.request.gateway, event)])
