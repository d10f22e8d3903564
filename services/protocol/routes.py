"""The routes snapshot: everything that a gateway needs to serve inference without the registry.

Keys: `<namespace>:routes` holds the snapshot, `<namespace>:routes:changed` is a channel that announces a new one. The registry writes the
snapshot. Gateways read it when they start, after each announcement, and at intervals in case an announcement was lost.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator
from typing import Any, cast

import msgspec
from redis.asyncio import Redis

from services.protocol.connection import redis_answers, wait_for_answer, write_allowing_oom
from services.protocol.waiting import Priority
from services.protocol.wire import Decoder, encode

#: The prefix of every API key. It makes leaked keys easy to find, and keeps other strings from being taken for keys.
KEY_PREFIX = "corral-"


class Caller(msgspec.Struct, frozen=True):
    """The owner of an API key.

    `id` identifies the caller in queues and usage. `weight` is its share of a busy model relative to other callers. `priority` is the
    most urgent priority that it may use. `max_waiting` limits its waiting requests for one version; None: the gateway's limit applies.
    """

    id: str
    name: str
    team: str
    admin: bool
    weight: float = 1.0
    priority: Priority = Priority.INTERACTIVE
    max_waiting: int | None = None


#: The caller of requests without a key. They are allowed if the gateway listens on a loopback address, or with CORRAL_AUTH=off.
LOCAL_CALLER = Caller(id="local", name="local", team="", admin=True)


class VersionRoute(msgspec.Struct, frozen=True):
    """A model version as callers see it.

    - `digest`: the manifest's SHA-256 (64 hex digits). `size`: the sum of its blobs in bytes.
    - `capabilities`: `completion`, `chat`, `embedding`, `rerank` ... (services.registry.database.details).
    - `parameters`: the model's own defaults, under Ollama's option names.
    - `fixed_context`: the context in tokens that the deployment fixes; 0: requests may ask for up to `trained_context`.
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
    fixed_context: int = 0


class TagRoute(msgspec.Struct, frozen=True):
    """A tag and its version. `name` is in display form, `modified_at` in seconds since the epoch."""

    name: str
    version: str
    modified_at: float


class ReplicaRoute(msgspec.Struct, frozen=True):
    """A replica that is placed on a node.

    `state` is one of services.registry.states.ReplicaState. `memory_bytes` is measured, or estimated until the model is loaded.
    `pinned`: the replica stays loaded when it is idle.
    """

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
    """The snapshot. `tags` are keyed by `ModelName.key`, `versions` by digest, `callers` by `key_hash` of their API key. `keep_alive_s` is
    the platform's default, negative for "forever". `fault` describes why the registry's control loop fails, empty while it works."""

    revision: int
    keep_alive_s: float
    tags: dict[str, TagRoute]
    versions: dict[str, VersionRoute]
    replicas: tuple[ReplicaRoute, ...]
    callers: dict[str, Caller]
    fault: str = ""


def key_hash(secret: str) -> str:
    """The hash under which an API key is stored. Keys have 256 random bits, so a plain SHA-256 cannot be reversed by guessing."""
    return hashlib.sha256(secret.encode()).hexdigest()


_decode = Decoder(RoutesSnapshot)


class Routes:
    """The routes snapshot in Redis. Raises Unavailable if Redis does not answer."""

    def __init__(self, redis: Redis, *, namespace: str = "corral") -> None:
        self._redis = redis
        self._key = f"{namespace}:routes"
        self._channel = f"{namespace}:routes:changed"

    async def publish(self, snapshot: RoutesSnapshot) -> None:
        async with redis_answers():
            await write_allowing_oom(self._redis, "SET", self._key, encode(snapshot))
            await self._redis.publish(self._channel, str(snapshot.revision))

    async def load(self) -> RoutesSnapshot | None:
        """The current snapshot; None if the registry has not published one yet."""
        async with redis_answers():
            data = cast("bytes | None", await self._redis.get(self._key))
        return _decode(data) if data else None

    async def snapshots(self, *, poll_s: float) -> AsyncGenerator[RoutesSnapshot]:
        """Yields the current snapshot, then each new one: when it is announced, or after at most `poll_s` if the announcement was lost."""
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
