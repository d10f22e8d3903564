"""The routes snapshot: all that a gateway needs to serve inference without the registry.

Keys: `<prefix>:routes` holds the snapshot, `<prefix>:routes:changed` is the channel that says so. The registry is the only
writer; gateways read at their start, on the signal, and every now and then in case a signal was lost.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Any, cast

import msgspec
from redis.asyncio import Redis

from services.protocol.connection import redis_answers, wait_for_answer
from services.protocol.waiting import Priority
from services.protocol.wire import Decoder, encode

#: What every API key of ours begins with, so that leaked ones are found and other texts are not taken for one.
KEY_PREFIX = "corral-"


class Caller(msgspec.Struct, frozen=True):
    """Whom a key identifies. `id` names the caller in queues and usage. `weight`: its share of a busy model next to others',
    `priority` the most urgent that it may ask for, `max_waiting` how many of its requests may wait for one version, None: the
    gateway's own limit."""

    id: str
    name: str
    team: str
    admin: bool
    weight: float = 1.0
    priority: Priority = Priority.INTERACTIVE
    max_waiting: int | None = None


#: Who calls without a key on a loopback address, or anywhere under CORRAL_AUTH=off.
LOCAL_CALLER = Caller(id="local", name="local", team="", admin=True)


class VersionRoute(msgspec.Struct, frozen=True):
    """A version as callers see it.

    `digest` is the manifest's sha256 (64 hex digits), `size` the sum of its blobs in bytes, `parameters` the model's own
    defaults (Ollama's option names), `capabilities` among completion, chat, embedding, rerank ... (services.registry.details).
    """

    digest: str
    size: int
    family: str
    parameter_size: str
    quantization: str
    trained_context: int
    embedding_length: int
    capabilities: tuple[str, ...]
    parameters: dict[str, Any]
    system: str = ""


class TagRoute(msgspec.Struct, frozen=True):
    """`name` in its display form, `modified_at` in seconds since the epoch."""

    name: str
    version: str
    modified_at: float


class ReplicaRoute(msgspec.Struct, frozen=True):
    """A replica that exists; `memory_bytes` as measured, or as estimated while it loads, on accelerators too. `state` as in
    registry.replicas. `pinned`: it stays, whether it is used or not."""

    id: str
    version: str
    node: str
    state: str
    memory_bytes: int
    device_memory_bytes: int
    context_tokens: int
    slots: int
    pinned: bool = False


class RoutesSnapshot(msgspec.Struct, frozen=True):
    """`tags` by ModelName.key, `versions` by digest, `callers` by the hash of their key (see key_hash). `keep_alive_s` is the
    platform's default, negative for ever."""

    revision: int
    keep_alive_s: float
    tags: dict[str, TagRoute]
    versions: dict[str, VersionRoute]
    replicas: tuple[ReplicaRoute, ...]
    callers: dict[str, Caller]


def key_hash(secret: str) -> str:
    """What is stored of an API key. Keys hold 256 random bits, so a plain SHA-256 cannot be searched backwards."""
    return hashlib.sha256(secret.encode()).hexdigest()


_decode = Decoder(RoutesSnapshot)


class Routes:
    """Raises Unavailable when Redis does not answer."""

    def __init__(self, redis: Redis, *, prefix: str = "corral") -> None:
        self._redis = redis
        self._key = f"{prefix}:routes"
        self._channel = f"{prefix}:routes:changed"

    async def publish(self, snapshot: RoutesSnapshot) -> None:
        async with redis_answers(), self._redis.pipeline() as pipe:
            pipe.set(self._key, encode(snapshot))
            pipe.publish(self._channel, str(snapshot.revision))
            await pipe.execute()

    async def load(self) -> RoutesSnapshot | None:
        """None before the registry has published for the first time."""
        async with redis_answers():
            data = cast("bytes | None", await self._redis.get(self._key))
        return _decode(data) if data else None

    async def snapshots(self, *, poll_s: float) -> AsyncIterator[RoutesSnapshot]:
        """The snapshot now, then each new one: on the signal, or after `poll_s` at the latest where a signal was lost."""
        revision = -1
        async with self._redis.pubsub() as pubsub:
            async with redis_answers():
                await pubsub.subscribe(self._channel)
            while True:
                snapshot = await self.load()
                if snapshot and snapshot.revision != revision:
                    revision = snapshot.revision
                    yield snapshot
                await wait_for_answer(lambda wait_s: pubsub.get_message(timeout=wait_s), timeout_s=poll_s)
