"""Says once a second how this machine is, whatever its jobs are doing, and at once which workers have ended. A machine that falls
silent counts as lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from services.node.departures import Departures
from services.node.runtime import Runtime
from services.node.store import Store
from services.node.uplink import Uplink
from services.protocol.errors import Unavailable
from services.protocol.messages import new_id
from services.protocol.queue import Queue
from services.protocol.reports import Device, NodeReport, NodeReports

REPORT_S = 1.0
#: A node is lost when five reports in a row are.
LEASE_MS = 5000

_DEVICES_RETRY_S = 30.0

log = logging.getLogger(__name__)


class Heartbeat:
    """Runs on the uplink's loop from `start` to `stop`. `jobs` gives the ids of the jobs in work, `metrics_address` is the
    `host:port` of the agent's own, empty where they are not served. `pulse` is a file whose time is that of the last report that
    Redis took, for the health check of a container."""

    def __init__(
        self,
        node: str,
        *,
        store: Store,
        runtime: Runtime,
        jobs: Callable[[], tuple[str, ...]],
        uplink: Uplink,
        metrics_address: str,
        pulse: Path,
    ) -> None:
        self._node = node
        self._agent = new_id()
        self._store = store
        self._runtime = runtime
        self._jobs = jobs
        self._uplink = uplink
        self._metrics_address = metrics_address
        self._reports = NodeReports(uplink.redis)
        self._departures = Departures(node, runtime=runtime, queue=Queue(uplink.redis))
        self._devices: tuple[Device, ...] = ()
        self._pulse = pulse
        self._silent = False
        self._ending = asyncio.Event()

    def start(self) -> None:
        self._pulse.parent.mkdir(parents=True, exist_ok=True)
        self._watching = self._uplink.spawn(self._watch_devices())
        self._parting = self._uplink.spawn(self._departures.watch())
        self._beating = self._uplink.spawn(self._beat())

    def stop(self, *, withdraw: bool) -> None:
        """Ends the reports. `withdraw`: takes the last one back, as the node is gone now and not after its lease."""
        self._watching.cancel()
        self._parting.cancel()
        self._uplink.call(self._end, withdraw)

    async def _end(self, withdraw: bool) -> None:
        # Not by cancelling: a report that is already on its way could arrive after the withdrawal and bring the node back.
        self._ending.set()
        await asyncio.wrap_future(self._beating)
        if withdraw:
            with contextlib.suppress(Unavailable):
                await self._reports.withdraw(self._node)

    async def _watch_devices(self) -> None:
        """Asks until there is an answer. It holds while the agent runs: asking takes memory of the device each time."""
        while (found := await asyncio.to_thread(self._runtime.devices)) is None:
            await asyncio.sleep(_DEVICES_RETRY_S)
        self._devices = found

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._ending.is_set():
            next_at = loop.time() + REPORT_S
            try:
                await self._publish()
            except Exception:  # without reports this node would count as lost; the next one may go through
                log.exception("the node's report failed")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(next_at):
                    await self._ending.wait()

    async def _publish(self) -> None:
        report = await asyncio.to_thread(self._observe)
        try:
            await self._reports.publish(report, lease_ms=LEASE_MS)
        except Unavailable as error:
            if not self._silent:
                log.warning("no reports: %s", error.message)
            self._silent = True
        else:
            if self._silent:
                log.info("reports again")
            self._silent = False
            self._pulse.touch()

    def _observe(self) -> NodeReport:
        memory = self._runtime.memory()
        disk = shutil.disk_usage(self._store.root)
        return NodeReport(
            node=self._node,
            agent=self._agent,
            cpus=self._runtime.cpus(),
            memory_total=memory.total,
            memory_available=memory.available,
            disk_total=disk.total,
            disk_free=disk.free,
            devices=self._devices,
            processes=self._runtime.reports(),
            blobs=self._store.blobs(),
            jobs=self._jobs(),
            metrics=self._metrics_address,
        )
