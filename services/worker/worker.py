"""The worker process: claim → engine loop → publish, and the reports that keep its lease.

Two threads. The asyncio loop talks to Redis and owns `_in_flight` and `_state`; the engine thread owns everything below
its Loop. They meet at two queues: commands in, events out.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import psutil
from redis.asyncio import Redis

from services.protocol.errors import CorralError, Unavailable
from services.protocol.gateways import Gateways
from services.protocol.messages import (
    Cancel,
    Claim,
    Crash,
    Event,
    Failed,
    Finished,
    FinishReason,
    StepReply,
    Timings,
    Usage,
    new_id,
)
from services.protocol.queue import Queue, Taken
from services.protocol.records import Records
from services.protocol.replies import ReplyWriter
from services.protocol.reports import NodeReports, WorkerReport, WorkerState
from services.protocol.telemetry import Telemetry
from services.worker.config import Settings
from services.worker.engine.runner import LoadCancelled, OnProgress
from services.worker.holdings import Holdings
from services.worker.loading import Loaded
from services.worker.loop import Abort, Addressed, HandOver, Quit
from services.worker.metrics import Metrics
from services.worker.mode import Loop, Mode
from services.worker.observation import Observer

log = logging.getLogger(__name__)

#: A worker that could not load stays readable for this long, so that the registry learns why.
FAILED_LEASE_MS = 30_000

#: How long to wait before asking a Redis again that did not answer.
RETRY_S = 0.25

#: How often the worker looks whether what it works on is still its own.
REVIEW_S = 0.5


_NOTHING = Taken([], None)


@dataclass
class InFlight:
    """A claimed request. `cancelled`: nobody wants it from this worker any more, even where its prompt is not ready yet."""

    claim: Claim
    cancelled: bool = False


class Worker:
    """`load` loads the model, in the engine thread (see services.worker.loading)."""

    def __init__(
        self,
        settings: Settings,
        redis: Redis,
        load: Callable[[Settings, OnProgress], Loaded],
        *,
        metrics: Metrics,
        telemetry: Telemetry,
    ) -> None:
        self.id = new_id()
        self._settings = settings
        self._metrics = metrics
        self._metrics_address = telemetry.address
        self._observer = Observer(metrics, telemetry.tracer, worker=self.id, replica=settings.replica)
        self._load = load
        self._queue = Queue(redis)
        self._records = Records(redis)
        self._gateways = Gateways(redis, self._queue)
        self._replies = ReplyWriter(redis)
        self._nodes = NodeReports(redis)
        self._state = WorkerState.LOADING
        self._failure: CorralError | None = None
        self._load_progress = 0.0  # written by the engine thread while it loads
        self._loaded: Loaded | None = None
        self._in_flight: dict[str, InFlight] = {}
        self._holdings = Holdings()
        self._outbox: asyncio.Queue[list[Addressed]] = asyncio.Queue()
        self._may_claim = asyncio.Event()
        self._state_changed = asyncio.Event()
        self._has_lease = asyncio.Event()
        self._draining = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def drain(self) -> None:
        """Claim nothing new and give back what runs; `run` returns once that is done, or after `drain_s`."""
        log.info("draining %d requests", len(self._in_flight))
        self._draining.set()

    async def run(self) -> int:
        """The process's exit code: 0 after a drain, 3 where the model does not load, 4 where the engine died."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine") as engine_thread:
            async with asyncio.TaskGroup() as tasks:
                reports = tasks.create_task(self._report())
                begun = time.monotonic()
                try:
                    self._loaded = await loop.run_in_executor(engine_thread, self._load, self._settings, self._note_progress)
                except LoadCancelled:
                    reports.cancel()
                    await self._leave()
                    return 0
                except CorralError as error:
                    reports.cancel()
                    await self._fail(error)
                    return 3
                self._metrics.loaded(seconds=time.monotonic() - begun, device_memory_bytes=self._loaded.device_memory_bytes)
                return await self._serve(self._loaded.mode, engine_thread, reports)

    def _note_progress(self, fraction: float) -> bool:
        """Whether to go on loading."""
        self._load_progress = fraction
        return not self._draining.is_set()

    async def _serve(self, mode: Mode, thread: ThreadPoolExecutor, reports: asyncio.Task[None]) -> int:
        loop = asyncio.get_running_loop()

        def emit(events: list[Addressed]) -> None:
            loop.call_soon_threadsafe(self._outbox.put_nowait, events)

        engine = mode.loop(emit, self._metrics)
        self._metrics.show(requests=lambda: len(self._in_flight), occupancy=engine.occupancy)
        self._enter(WorkerState.READY)
        engine_run = loop.run_in_executor(thread, engine.run)
        try:
            async with asyncio.TaskGroup() as tasks:
                publishing = tasks.create_task(self._publish(engine))
                serving = [
                    tasks.create_task(self._claim(engine, mode)),
                    tasks.create_task(self._listen(engine)),
                    tasks.create_task(self._watch_node()),
                    tasks.create_task(self._review(engine)),
                    tasks.create_task(self._gateways.watch()),
                ]
                drained = tasks.create_task(self._drained(engine))
                await asyncio.wait([engine_run, drained], return_when=asyncio.FIRST_COMPLETED)
                # Nothing new from here on; then the engine, so that its last events are out before the publisher stops; the
                # lease goes last, because its end tells the gateways that whatever is unanswered is lost.
                for task in [drained, *serving]:
                    task.cancel()
                engine.put(Quit())
                code = await _exit_code(engine_run)
                await self._flush(publishing)
                reports.cancel()
                await self._leave(crashed=code != 0)
            return code
        finally:
            engine.put(Quit())  # whatever went wrong above, the thread must not keep the process alive

    async def _drained(self, engine: Loop) -> None:
        await self._draining.wait()
        self._enter(WorkerState.DRAINING)
        engine.put(HandOver())
        try:
            async with asyncio.timeout(self._settings.drain_s):
                await self._idle.wait()
        except TimeoutError:
            log.warning("%d requests did not end within %s s", len(self._in_flight), self._settings.drain_s)

    async def _flush(self, publishing: asyncio.Task[None]) -> None:
        try:
            async with asyncio.timeout(5):
                await self._outbox.join()
        except TimeoutError:
            log.warning("Redis did not take the last events")
        publishing.cancel()

    async def _leave(self, *, crashed: bool = False) -> None:
        try:
            await self._queue.leave(self.id, self._settings.version, crashed=crashed)
        except Unavailable as error:
            log.warning("%s; the lease ends by itself", error)

    async def _claim(self, engine: Loop, mode: Mode) -> None:
        """Takes requests while slots are free; otherwise waits for a Wake, for a slot, or until the next report."""
        await self._has_lease.wait()  # without one the queue gives nothing and wakes nobody
        async with asyncio.TaskGroup() as beginning:
            while not self._draining.is_set():
                self._may_claim.clear()
                free = self._settings.slots - len(self._in_flight)
                taken = await self._try_claim(engine, free) if free > 0 else _NOTHING
                for claim in taken.claims:
                    self._in_flight[claim.request.id] = InFlight(claim)
                    self._idle.clear()
                    self._observer.claimed(claim)
                    beginning.create_task(self._begin(engine, mode, claim))
                if len(taken.claims) < free or free <= 0:
                    await _wait(self._may_claim, timeout_s=min(self._settings.report_s, taken.again_s or math.inf))

    async def _try_claim(self, engine: Loop, capacity: int) -> Taken:
        dropped = self._holdings.dropped(self._in_flight.keys() | engine.holders)
        try:
            taken = await self._queue.claim(self._settings.version, self.id, capacity=capacity, dropped=dropped)
        except Unavailable as error:
            log.warning("%s; claiming again soon", error)
            return Taken([], RETRY_S)
        self._holdings.forget(dropped)
        for claim in taken.claims:
            self._holdings.claimed(claim.request)
        return taken

    async def _begin(self, engine: Loop, mode: Mode, claim: Claim) -> None:
        request = claim.request
        try:
            # Tokenizing a long prompt takes a while and only reads the vocabulary.
            begin = await asyncio.to_thread(mode.begin, claim)
        except CorralError as error:
            self._answer(claim, Failed(request.id, claim.epoch, 0, error.code, error.message))
            return
        in_flight = self._in_flight[request.id]
        if in_flight.claim is not claim:  # it was lost and claimed again meanwhile
            return
        if in_flight.cancelled:
            usage, timings = Usage(0, 0, 0), Timings(0, 0)
            self._answer(claim, Finished(request.id, claim.epoch, 0, (FinishReason.ABORT,), usage, timings))
        else:
            engine.put(begin)

    def _answer(self, claim: Claim, event: Event) -> None:
        self._outbox.put_nowait([Addressed(claim.request.gateway, event)])

    async def _listen(self, engine: Loop) -> None:
        """Wakes and cancellations from the inbox."""
        while True:
            try:
                control = await self._queue.next_control(self.id, timeout_s=1.0)
            except Unavailable:
                await asyncio.sleep(RETRY_S)
                continue
            if isinstance(control, Cancel):
                self._cancel(engine, control.request)
            elif isinstance(control, Crash):
                log.error("killing myself, as an operator wants")
                os.kill(os.getpid(), signal.SIGKILL)
            elif control is not None:
                self._may_claim.set()

    def _cancel(self, engine: Loop, request: str) -> None:
        in_flight = self._in_flight.get(request)
        if in_flight is not None:
            in_flight.cancelled = True
            engine.put(Abort(request))

    async def _review(self, engine: Loop) -> None:
        """Aborts what this worker holds no longer: while it was frozen or cut off another one has taken it over, Redis has lost it, or
        its gateway is gone."""
        while True:
            await asyncio.sleep(REVIEW_S)
            working_on = dict(self._in_flight)
            if not working_on:
                continue
            try:
                held = await self._records.held(self.id)
            except Unavailable:
                continue
            for request, in_flight in working_on.items():
                if request not in held and not in_flight.cancelled and self._in_flight.get(request) is in_flight:
                    log.warning("request %s: its claim %d is lost", request, in_flight.claim.epoch)
                    self._cancel(engine, request)

    async def _publish(self, engine: Loop) -> None:
        """One entry per gateway for each engine step; for several, where Redis is slower than the engine."""
        while True:
            batches = [await self._outbox.get()]
            while not self._outbox.empty():
                batches.append(self._outbox.get_nowait())
            replies: defaultdict[str, list[Event]] = defaultdict(list)
            for addressed in (event for batch in batches for event in batch):
                replies[addressed.gateway].append(addressed.event)
                if addressed.is_terminal:
                    self._observer.ended(addressed.event)
                    self._end(addressed.event)
            gone = await self._send({gateway: StepReply(self.id, tuple(events)) for gateway, events in replies.items()})
            for request, in_flight in list(self._in_flight.items()):
                if in_flight.claim.request.gateway in gone:
                    self._cancel(engine, request)
            for _ in batches:
                self._outbox.task_done()

    def _end(self, event: Event) -> None:
        """A request that this worker has lost and claimed again is still in flight when its first claim ends."""
        in_flight = self._in_flight.get(event.request)
        if in_flight is not None and in_flight.claim.epoch == event.epoch:
            del self._in_flight[event.request]
        self._may_claim.set()
        if not self._in_flight:
            self._idle.set()

    async def _send(self, replies: dict[str, StepReply]) -> set[str]:
        """Until Redis takes them: a frame that is dropped would be an answer with a hole."""
        while True:
            try:
                return await self._replies.publish(replies)
            except Unavailable as error:
                log.warning("%s; publishing again soon", error)
                await asyncio.sleep(RETRY_S)

    def _enter(self, state: WorkerState) -> None:
        self._state = state
        self._state_changed.set()

    async def _report(self) -> None:
        """Every `report_s`, and at once when the state has changed, or when Redis answers again: its lease may have ended."""
        while True:
            self._state_changed.clear()
            wait_s = self._settings.report_s
            try:
                await self._publish_report()
            except Unavailable as error:
                log.warning("%s; reporting again soon", error)
                wait_s = RETRY_S
            await _wait(self._state_changed, timeout_s=wait_s)

    async def _publish_report(self, *, lease_ms: int | None = None) -> None:
        loaded, failure = self._loaded, self._failure
        report = WorkerReport(
            worker=self.id,
            replica=self._settings.replica,
            version=self._settings.version,
            node=self._settings.node,
            state=self._state,
            slots=self._settings.slots,
            running=len(self._in_flight),
            context_tokens=loaded.mode.context_tokens if loaded else 0,
            memory_bytes=psutil.Process().memory_info().rss,
            device_memory_bytes=loaded.device_memory_bytes if loaded else 0,
            metrics=self._metrics_address,
            load_progress=1.0 if loaded else self._load_progress,
            error_code=failure.code if failure else "",
            error=failure.message if failure else "",
        )
        await self._queue.report(report, lease_ms=lease_ms or self._settings.lease_ms)
        self._has_lease.set()
        if self._settings.pulse:
            self._settings.pulse.touch()

    async def _fail(self, failure: CorralError) -> None:
        log.error("%s", failure)
        self._state, self._failure = WorkerState.FAILED, failure
        await self._publish_report(lease_ms=FAILED_LEASE_MS)

    async def _watch_node(self) -> None:
        """A worker whose node has gone silent has been replaced elsewhere, and nobody is left to stop it."""
        seen = time.monotonic()
        while True:
            if time.monotonic() - seen > self._settings.orphan_s:
                log.error("node %s has been silent for %s s", self._settings.node, self._settings.orphan_s)
                self.drain()
                return
            await asyncio.sleep(min(5.0, self._settings.orphan_s / 4))
            try:
                if await self._nodes.is_alive(self._settings.node):
                    seen = time.monotonic()
            except Unavailable:
                continue


async def _exit_code(engine_run: asyncio.Future[None]) -> int:
    try:
        await engine_run
    except Exception:
        log.exception("the engine died")
        return 4
    return 0


async def _wait(event: asyncio.Event, *, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
