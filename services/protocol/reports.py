"""Status reports of workers and node agents. Each report holds the complete state, so a lost one does no harm.

A WorkerReport is stored with the worker's lease (services.protocol.queue), a NodeReport under its own key. Both expire, so a machine
that stops reporting disappears.
"""

from __future__ import annotations

import enum
import signal
from typing import Annotated, cast

import msgspec
from msgspec import Meta
from redis.asyncio import Redis

from services.protocol.connection import redis_answers, write_allowing_oom
from services.protocol.wire import Decoder, encode

# The limits of the database columns that store these values. A report outside them is skipped, and its sender counts as silent.
Name = Annotated[str, Meta(max_length=255, pattern=r"\A[^\x00-\x1f\x7f]*\Z")]
Size = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
BlobDigest = Annotated[str, Meta(pattern=r"\Asha256:[0-9a-f]{64}\Z")]
#: The registry stores only the beginning.
Explanation = Annotated[str, Meta(max_length=2**20)]


class WorkerState(enum.StrEnum):
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class WorkerReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """The state of one worker process.

    - `running`: requests that the worker has claimed and not yet finished. `answered`: requests that it has finished.
    - `context_tokens`: the context of one slot.
    - `memory_bytes`: the process's resident memory. `device_memory_bytes`: the accelerator memory that loading the model took.
    - `load_progress`: how much of the model is loaded, from 0 to 1.
    - `metrics`: the `host:port` at which the worker serves its metrics, empty if it serves none.
    - `error_code` and `error`: why the model did not load (state FAILED); `error_code` is the code of a class in
      services.protocol.errors.
    """

    worker: Name
    replica: Name
    version: Name
    node: Name
    state: WorkerState
    slots: Count = 0
    running: Count = 0
    answered: Size = 0
    context_tokens: Count = 0
    memory_bytes: Size = 0
    device_memory_bytes: Size = 0
    load_progress: float = 0.0
    metrics: Name = ""
    error_code: Name = ""
    error: Explanation = ""


class Device(msgspec.Struct, frozen=True):
    """An accelerator of a node."""

    kind: Name
    name: Name
    memory_bytes: Size


#: The exit code of a process that ended while no agent was running to see its real one.
UNKNOWN_EXIT = 255
#: Exit codes of a process that was asked to end, or whose real exit code is unknown.
STOPPED_EXIT_CODES = frozenset({0, -signal.SIGTERM, -signal.SIGINT, UNKNOWN_EXIT})
#: SIGKILL can come from an operator or from the out-of-memory killer, so by itself it is not a crash.
_NOT_CRASHED_EXIT_CODES = STOPPED_EXIT_CODES | {-signal.SIGKILL}


class ProcessReport(msgspec.Struct, frozen=True):
    """The worker process or container of one replica. `exit_code` is None while it runs, and negative if a signal ended it. If the node
    knows the cause, `reason` describes it and `error_code` is the code of a class in services.protocol.errors."""

    replica: Name
    pid: int
    exit_code: int | None
    last_line: Explanation
    reason: Explanation = ""
    error_code: Name = ""

    @property
    def crashed(self) -> bool:
        """True if the process ended because of a fault in it: with an error exit code, by a signal such as SIGSEGV or SIGABRT, or if the
        node reports an `error_code`."""
        return self.exit_code is not None and (self.exit_code not in _NOT_CRASHED_EXIT_CODES or bool(self.error_code))


class BlobReport(msgspec.Struct, frozen=True):
    """A verified blob in the node's store."""

    digest: BlobDigest
    size: Size


class NodeReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """The state of one node. Sizes are in bytes. `jobs` holds the ids of the jobs that the agent is working on. `metrics` is as in
    WorkerReport."""

    node: Annotated[Name, Meta(min_length=1)]
    agent: Name
    cpus: Count
    memory_total: Size
    memory_available: Size
    disk_total: Size
    disk_free: Size
    devices: tuple[Device, ...]
    processes: tuple[ProcessReport, ...]
    blobs: tuple[BlobReport, ...]
    jobs: tuple[Name, ...]
    metrics: Name = ""


_decode = Decoder(NodeReport)


class NodeReports:
    """The reports of all nodes. Node agents publish, the registry reads. Raises Unavailable if Redis does not answer."""

    def __init__(self, redis: Redis, *, namespace: str = "corral") -> None:
        self._redis = redis
        self._namespace = namespace

    async def publish(self, report: NodeReport, *, lease_ms: int) -> None:
        async with redis_answers():
            await write_allowing_oom(
                self._redis, "SET", f"{self._namespace}:node:{report.node}", encode(report), "PX", lease_ms
            )

    async def remove(self, node: str) -> None:
        """Removes the report at once, for an agent that shuts down cleanly."""
        async with redis_answers():
            await self._redis.delete(f"{self._namespace}:node:{node}")

    async def is_alive(self, node: str) -> bool:
        async with redis_answers():
            return bool(await self._redis.exists(f"{self._namespace}:node:{node}"))

    async def read(self) -> list[NodeReport]:
        async with redis_answers():
            keys = [key async for key in self._redis.scan_iter(match=f"{self._namespace}:node:*", count=1000)]
            values = cast("list[bytes | None]", await self._redis.mget(keys)) if keys else []
        reports = (_decode.known(data) for data in values if data)
        return [report for report in reports if report]
