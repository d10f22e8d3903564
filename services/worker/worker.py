"""The worker process: load the model, serve, drain, leave.

Two threads. The asyncio loop talks to Redis; the engine thread owns the model and everything below the CommandLoop. They meet at two
queues: commands to the engine, events from it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from redis.asyncio import Redis

from services.process.loops import vital
from services.process.outage import Outage
from services.protocol.errors import CorralError, Unavailable
from services.protocol.gateways import Gateways
from services.protocol.messages import new_id
from services.protocol.queue import Queue
from services.protocol.records import Records
from services.protocol.replies import ReplyWriter
from services.protocol.reports import NodeReports
from services.telemetry.telemetry import Telemetry
from services.worker.claims import Claims
from services.worker.command_loop import CommandLoop, HandOver, Quit
from services.worker.config import Settings
from services.worker.engine.runner import LoadCancelled, OnProgress
from services.worker.in_flight import InFlight
from services.worker.lease import Lease
from services.worker.loading import Loaded
from services.worker.metrics import Metrics
from services.worker.outbox import Outbox
from services.worker.publisher import Publisher
from services.worker.request_telemetry import Observer

log = logging.getLogger(__name__)

#: After an outage of Redis, gateways give workers a second to renew their leases (gateway/requests/inflight.py).
MAX_RETRY_INTERVAL_S = 0.25

EXIT_DRAINED = 0
EXIT_NOT_LOADED = 3
EXIT_ENGINE_DIED = 4


class Worker:
    """`load` loads the model; it runs in the engine thread (see services.worker.loading)."""

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
        self._load = load
        self._observer = Observer(metrics, telemetry.tracer, worker=self.id, replica=settings.replica)
        self._queue = Queue(redis)
        self._records = Records(redis)
        self._gateways = Gateways(redis)
        self._replies = ReplyWriter(redis)
        self._nodes = NodeReports(redis)
        self._outage = Outage(log, max_wait_s=MAX_RETRY_INTERVAL_S)
        self._in_flight = InFlight()
        self._outbox = Outbox(interval_s=settings.frame_interval_s)
        self._lease = Lease(
            *(settings, self._queue, self._in_flight, self._outage), worker=self.id, metrics_address=telemetry.address
        )
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """Claims nothing new and hands over what runs. `run` returns when that is done, or after `drain_s`."""
        log.info("draining: requests=%d", len(self._in_flight))
        self._draining.set()

    async def run(self) -> int:
        """Returns the process's exit code: EXIT_DRAINED, EXIT_NOT_LOADED or EXIT_ENGINE_DIED."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine") as engine_thread:
            async with asyncio.TaskGroup() as tasks:
                reports = tasks.create_task(vital("reports", self._lease.keep()))
                started = time.monotonic()
                try:
                    loaded = await loop.run_in_executor(engine_thread, self._load, self._settings, self._on_progress)
                except LoadCancelled:
                    reports.cancel()
                    await self._lease.leave()
                    return EXIT_DRAINED
                except CorralError as error:
                    reports.cancel()
                    await self._lease.fail(error)
                    return EXIT_NOT_LOADED
                self._metrics.loaded(seconds=time.monotonic() - started, device_memory_bytes=loaded.device_memory_bytes)
                try:
                    return await self._serve(loaded, engine_thread, reports)
                finally:
                    loaded.mode.close()

    def _on_progress(self, fraction: float) -> bool:
        """Called by the engine thread. Whether to continue loading."""
        self._lease.load_progress = fraction
        return not self._draining.is_set()

    async def _serve(self, loaded: Loaded, engine_thread: ThreadPoolExecutor, reports: asyncio.Task[None]) -> int:
        engine = loaded.mode.loop(self._outbox.put, self._metrics)
        self._metrics.set_sources(requests=lambda: len(self._in_flight), occupancy=engine.occupancy, threads=engine.threads)
        claims = Claims(
            *(self._settings, self._queue, self._records, self._outage, self._in_flight, self._outbox, self._observer),
            worker=self.id,
            mode=loaded.mode,
            engine=engine,
        )
        publisher = Publisher(
            *(self._replies, self._outage, self._in_flight, self._outbox, self._observer, claims), worker=self.id
        )
        self._lease.ready(loaded)
        engine_run = asyncio.get_running_loop().run_in_executor(engine_thread, engine.run)
        try:
            async with asyncio.TaskGroup() as tasks:
                publishing = tasks.create_task(vital("publishing", publisher.publish()))
                serving = [
                    tasks.create_task(vital("claims", self._claim(claims))),
                    tasks.create_task(vital("inbox", claims.read_inbox())),
                    tasks.create_task(vital("lost claims", claims.abort_lost())),
                    tasks.create_task(vital("node watch", self._watch_node())),
                    tasks.create_task(vital("lost gateways", self._gateways.watch())),
                ]
                drained = tasks.create_task(self._drained(engine, claims))
                await asyncio.wait([engine_run, drained], return_when=asyncio.FIRST_COMPLETED)
                # Nothing new from here on; then the engine, so that its last events are out before the publisher stops. The
                # lease goes last: when it ends, gateways take whatever is unanswered as lost.
                for task in [drained, *serving]:
                    task.cancel()
                engine.put(Quit())
                code = await _exit_code(engine_run)
                await publisher.flush()
                publishing.cancel()
                reports.cancel()
                await self._lease.leave(crashed=code != EXIT_DRAINED)
            return code
        finally:
            engine.put(Quit())  # whatever went wrong above, the thread must not keep the process alive

    async def _claim(self, claims: Claims) -> None:
        await self._lease.wait_until_held()
        await claims.claim_requests()

    async def _drained(self, engine: CommandLoop[Any, Any], claims: Claims) -> None:
        await self._draining.wait()
        self._lease.draining()
        claims.stop()
        engine.put(HandOver())
        try:
            async with asyncio.timeout(self._settings.drain_s):
                await self._in_flight.wait_until_empty()
        except TimeoutError:
            log.warning("drain timed out: requests=%d timeout_s=%g", len(self._in_flight), self._settings.drain_s)

    async def _watch_node(self) -> None:
        """Drains when the node has been silent for `orphan_s`: by then the worker was replaced elsewhere, and no agent can stop it."""
        seen = time.monotonic()
        while True:
            await asyncio.sleep(min(5.0, self._settings.orphan_s / 4))
            try:
                if await self._nodes.is_alive(self._settings.node):
                    seen = time.monotonic()
                    continue
            except Unavailable:  # the other loops report the outage
                pass
            if time.monotonic() - seen > self._settings.orphan_s:
                log.error("node silent: node=%s orphan_s=%g", self._settings.node, self._settings.orphan_s)
                self.drain()
                return


async def _exit_code(engine_run: asyncio.Future[None]) -> int:
    try:
        await engine_run
    except Exception:
        log.exception("engine failed, the worker exits")
        return EXIT_ENGINE_DIED
    return EXIT_DRAINED
