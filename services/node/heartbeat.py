"""Reports this machine's state to the registry once a second, independent of its jobs, and watches for workers that end. A node
that stops reporting counts as lost."""

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
from services.process.loops import vital
from services.process.outage import Outage
from services.protocol.errors import Unavailable
from services.protocol.messages import new_id
from services.protocol.queue import Queue
from services.protocol.reports import Device, NodeReport, NodeReports

REPORT_INTERVAL_S = 1.0
#: How long a report is valid: five report intervals.
LEASE_MS = 5000

_DEVICES_RETRY_S = 30.0

log = logging.getLogger(__name__)


class Heartbeat:
    """Runs on the uplink's loop from `start` to `stop`.

    - `jobs`: returns the ids of the jobs in work.
    - `metrics_address`: the `host:port` of the agent's metrics, empty if they are not served.
    - `pulse`: a file that is touched after each report that Redis took, for the container's health check.
    """

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
        self._outage = Outage(log)
        self._ending = asyncio.Event()

    def start(self) -> None:
        self._pulse.parent.mkdir(parents=True, exist_ok=True)
        self._watching = self._uplink.spawn(vital("devices", self._watch_devices()))
        self._departures_task = self._uplink.spawn(vital("departures", self._departures.watch()))
        self._beating = self._uplink.spawn(vital("heartbeat", self._beat()))

    def stop(self, *, remove: bool) -> None:
        """Stops reporting. `remove`: also deletes the last report, so that the node is gone at once and not when it
        expires."""
        self._watching.cancel()
        self._departures_task.cancel()
        self._uplink.call(self._end, remove)

    async def _end(self, remove: bool) -> None:
        # Not cancelled: a report that is already on its way could arrive after the withdrawal and make the node appear again.
        self._ending.set()
        await asyncio.wrap_future(self._beating)
        if remove:
            with contextlib.suppress(Unavailable):
                await self._reports.remove(self._node)

    async def _watch_devices(self) -> None:
        """Queries the accelerators until there is an answer, which is kept for the agent's lifetime: each query takes device
        memory."""
        while (found := await asyncio.to_thread(self._runtime.devices)) is None:
            await asyncio.sleep(_DEVICES_RETRY_S)
        self._devices = found

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._ending.is_set():
            next_at = loop.time() + REPORT_INTERVAL_S
            await self._publish()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(next_at):
                    await self._ending.wait()

    async def _publish(self) -> None:
        report = await asyncio.to_thread(self._observe)
        try:
            await self._reports.publish(report, lease_ms=LEASE_MS)
        except Unavailable as error:
            self._outage.begin("reports", error)
        else:
            self._outage.over("reports")
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
