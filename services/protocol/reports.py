"""What workers and node agents observe of themselves, as whole states, once a second. The registry alone turns it into rows.

A WorkerReport lives in Redis beside the worker's lease (services.protocol.queue), a NodeReport under its own key with the
same kind of lease: a machine that stops reporting disappears by itself.
"""

from __future__ import annotations

import enum
import signal
from typing import cast

import msgspec
from redis.asyncio import Redis

from services.protocol.connection import redis_answers
from services.protocol.wire import Decoder, encode


class WorkerState(enum.StrEnum):
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class WorkerReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """`memory_bytes` is the process's resident memory, `device_memory_bytes` what loading took of accelerators' own,
    `context_tokens` what one slot holds, `load_progress` how much of the model is loaded (0 to 1), `metrics` the
    `host:port` at which the worker serves its metrics, empty where it serves none. `error_code` and `error` say
    why the model did not load (state FAILED); `error_code` names a class of services.protocol.errors."""

    worker: str
    replica: str
    version: str
    node: str
    state: WorkerState
    slots: int = 0
    running: int = 0
    context_tokens: int = 0
    memory_bytes: int = 0
    device_memory_bytes: int = 0
    load_progress: float = 0.0
    metrics: str = ""
    error_code: str = ""
    error: str = ""


class Device(msgspec.Struct, frozen=True):
    """An accelerator."""

    kind: str
    name: str
    memory_bytes: int


#: Of a process that ended while no agent was there to see how.
UNKNOWN_EXIT = 255
#: Exit codes of a process that was told to end, was killed, or was not seen ending.
_NO_FAULT = (0, -signal.SIGTERM, -signal.SIGINT, -signal.SIGKILL, UNKNOWN_EXIT)


class ProcessReport(msgspec.Struct, frozen=True):
    """The worker process (or container) of one replica. `exit_code` is None while it runs; negative: the signal. Where the node
    knows more than that, `reason` says why it ended and `error_code` names a class of services.protocol.errors."""

    replica: str
    pid: int
    exit_code: int | None
    last_line: str
    reason: str = ""
    error_code: str = ""

    @property
    def crashed(self) -> bool:
        """It ended by its own fault: of a signal like SIGSEGV or SIGABRT, or with an error. Anybody may have killed one that was killed,
        unless its node knows better."""
        return self.exit_code is not None and (self.exit_code not in _NO_FAULT or bool(self.error_code))


class BlobReport(msgspec.Struct, frozen=True):
    """A verified blob in the node's store."""

    digest: str
    size: int


class NodeReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """Sizes in bytes. `jobs` are the ids of the jobs that the agent is working on, `metrics` is as in WorkerReport."""

    node: str
    agent: str
    cpus: int
    memory_total: int
    memory_available: int
    disk_total: int
    disk_free: int
    devices: tuple[Device, ...]
    processes: tuple[ProcessReport, ...]
    blobs: tuple[BlobReport, ...]
    jobs: tuple[str, ...]
    metrics: str = ""


_decode = Decoder(NodeReport)


class NodeReports:
    """Node agents publish, the registry reads. Raises Unavailable when Redis does not answer."""

    def __init__(self, redis: Redis, *, prefix: str = "corral") -> None:
        self._redis = redis
        self._prefix = prefix

    async def publish(self, report: NodeReport, *, lease_ms: int) -> None:
        async with redis_answers():
            await self._redis.set(f"{self._prefix}:node:{report.node}", encode(report), px=lease_ms)

    async def withdraw(self, node: str) -> None:
        """The agent stops in order: the node is gone now, not after its lease."""
        async with redis_answers():
            await self._redis.delete(f"{self._prefix}:node:{node}")

    async def is_alive(self, node: str) -> bool:
        async with redis_answers():
            return bool(await self._redis.exists(f"{self._prefix}:node:{node}"))

    async def read(self) -> list[NodeReport]:
        async with redis_answers():
            keys = [key async for key in self._redis.scan_iter(match=f"{self._prefix}:node:*", count=1000)]
            values = cast("list[bytes | None]", await self._redis.mget(keys)) if keys else []
        reports = (_decode.known(data) for data in values if data)
        return [report for report in reports if report]
