"""The routes snapshot on its way from the registry to the gateways."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from services.protocol.connection import connect
from services.protocol.errors import ProtocolMismatch, Unavailable
from services.protocol.routes import Caller, ReplicaRoute, Routes, RoutesSnapshot, TagRoute, VersionRoute, key_hash
from services.protocol.wire import encode

#: So long that an earlier snapshot must have come through the signal.
NO_POLL_S = 600.0


def a_snapshot(revision: int = 1) -> RoutesSnapshot:
    return RoutesSnapshot(revision=revision, keep_alive_s=300, tags={}, versions={}, replicas=(), callers={})


@pytest.fixture
def routes(redis: Redis) -> Routes:
    return Routes(redis)


class Follower:
    """A gateway that follows the snapshots from `start` on."""

    def __init__(self, routes: Routes, *, poll_s: float) -> None:
        self._snapshots = routes.snapshots(poll_s=poll_s)
        self._next: asyncio.Task[RoutesSnapshot] | None = None

    async def next(self, *, timeout_s: float = 5) -> RoutesSnapshot:
        self.start()
        assert self._next
        async with asyncio.timeout(timeout_s):
            snapshot = await self._next
        self._next = None
        return snapshot

    def start(self) -> None:
        """Starts to wait for the next snapshot."""
        self._next = self._next or asyncio.ensure_future(anext(self._snapshots))

    async def stop(self) -> None:
        if self._next:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)
        await self._snapshots.aclose()


@pytest.fixture
async def follower(routes: Routes) -> AsyncIterator[Follower]:
    follower = Follower(routes, poll_s=NO_POLL_S)
    yield follower
    await follower.stop()


async def subscribed(redis: Redis) -> None:
    async with asyncio.timeout(5):
        while not dict(await redis.pubsub_numsub("corral:routes:changed"))[b"corral:routes:changed"]:
            await asyncio.sleep(0.005)


async def test_a_snapshot_is_read_unchanged(routes: Routes) -> None:
    snapshot = RoutesSnapshot(
        revision=7,
        keep_alive_s=-1,
        tags={"registry.ollama.ai/library/smollm2:135m": TagRoute("smollm2:135m", "a" * 64, 1.5)},
        versions={
            "a" * 64: VersionRoute(
                digest="a" * 64,
                size=100,
                family="llama",
                parameter_size="134.52M",
                quantization="Q4_1",
                trained_context=8192,
                embedding_length=576,
                capabilities=("completion", "chat"),
                parameters={"temperature": 0.5, "stop": ["<|im_end|>"]},
                system="You are.",
            )
        },
        replicas=(ReplicaRoute("r1", "a" * 64, "n1", "ready", 1, 2, 3, 4),),
        callers={key_hash("corral-secret"): Caller("c1", "alice", "research", False)},
    )
    await routes.publish(snapshot)
    assert await routes.load() == snapshot


async def test_there_is_no_snapshot_before_the_registry_publishes(routes: Routes) -> None:
    assert await routes.load() is None


async def test_a_gateway_starts_with_the_current_snapshot(routes: Routes, follower: Follower) -> None:
    await routes.publish(a_snapshot(3))
    assert await follower.next() == a_snapshot(3)


async def test_a_gateway_started_first_gets_the_first_snapshot(redis: Redis, routes: Routes, follower: Follower) -> None:
    follower.start()
    await subscribed(redis)
    await routes.publish(a_snapshot())
    assert await follower.next() == a_snapshot()


async def test_a_signal_delivers_a_new_snapshot(redis: Redis, routes: Routes, follower: Follower) -> None:
    await routes.publish(a_snapshot(1))
    await follower.next()
    for revision in range(2, 10):
        follower.start()
        await subscribed(redis)
        published = time.monotonic()
        await routes.publish(a_snapshot(revision))
        assert (await follower.next()).revision == revision
        assert time.monotonic() - published < 1


async def test_the_latest_of_several_snapshots_is_read(routes: Routes, follower: Follower) -> None:
    """Others are published while the gateway works on one."""
    await routes.publish(a_snapshot(1))
    await follower.next()
    await routes.publish(a_snapshot(2))
    await routes.publish(a_snapshot(3))
    assert (await follower.next()).revision == 3


async def test_polling_finds_a_snapshot_whose_signal_was_lost(redis: Redis, routes: Routes) -> None:
    follower = Follower(routes, poll_s=0.05)
    await routes.publish(a_snapshot(1))
    await follower.next()
    await redis.set("corral:routes", encode(a_snapshot(2)))
    assert (await follower.next()).revision == 2
    await follower.stop()


async def test_the_same_revision_is_not_repeated(redis: Redis, routes: Routes, follower: Follower) -> None:
    await routes.publish(a_snapshot(1))
    await follower.next()
    follower.start()
    await subscribed(redis)
    await routes.publish(a_snapshot(1))
    with pytest.raises(TimeoutError):
        await follower.next(timeout_s=0.1)


async def test_an_older_revision_is_applied(routes: Routes, follower: Follower) -> None:
    """Redis was restored from a backup, so the older snapshot is current."""
    await routes.publish(a_snapshot(5))
    await follower.next()
    await routes.publish(a_snapshot(4))
    assert (await follower.next()).revision == 4


async def test_a_gateway_keeps_its_snapshot_when_redis_loses_its_data(redis: Redis, routes: Routes) -> None:
    follower = Follower(routes, poll_s=0.02)
    await routes.publish(a_snapshot(1))
    await follower.next()
    await redis.flushdb()
    with pytest.raises(TimeoutError):
        await follower.next(timeout_s=0.1)
    await follower.stop()


async def test_an_undecodable_snapshot_is_refused(redis: Redis, routes: Routes) -> None:
    await redis.set("corral:routes", b"\x63whatever")
    with pytest.raises(ProtocolMismatch):
        await routes.load()


async def test_routes_are_unavailable_without_redis(unused_tcp_port: int) -> None:
    async with connect(f"redis://127.0.0.1:{unused_tcp_port}/0") as redis:
        routes = Routes(redis)
        for call in (routes.publish(a_snapshot()), routes.load(), anext(routes.snapshots(poll_s=1))):
            with pytest.raises(Unavailable):
                await call


def test_the_hash_of_a_key_does_not_contain_the_key() -> None:
    assert key_hash("corral-secret") == key_hash("corral-secret")
    assert key_hash("corral-secret") != key_hash("corral-secreT")
    assert "secret" not in key_hash("corral-secret")
