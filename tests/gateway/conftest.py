"""A gateway on the shared Valkey, with two models in its routes and a stand-in for the registry."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from services.gateway.app import create_app
from services.gateway.config import Settings
from services.protocol.connection import connect
from services.protocol.routes import Caller, ReplicaRoute, Routes, RoutesSnapshot, TagRoute, VersionRoute, key_hash
from tests.conditions import eventually
from tests.doubles.registry import TOKEN, StandInRegistry
from tests.doubles.worker import Worker, echoing, working
from tests.gateway.servers import serving

CHAT = "a" * 64
BASE = "b" * 64
ADMIN_KEY = "corral-" + "A" * 43
USER_KEY = "corral-" + "U" * 43


def version_route(digest: str, *, chats: bool, **changes: Any) -> VersionRoute:
    values: dict[str, Any] = {
        "digest": digest,
        "size": 105_000_000,
        "family": "llama",
        "parameter_size": "134.52M",
        "quantization": "Q4_1",
        "trained_context": 8192,
        "embedding_length": 576,
        "capabilities": ("completion", "chat") if chats else ("completion",),
        "parameters": {},
    }
    return VersionRoute(**values | changes)


def routes_snapshot(revision: int = 1, **changes: Any) -> RoutesSnapshot:
    values: dict[str, Any] = {
        "revision": revision,
        "keep_alive_s": 300.0,
        "tags": {
            "registry.ollama.ai/library/smollm2:135m": TagRoute("smollm2:135m", CHAT, 1_790_000_000.5),
            "registry.ollama.ai/library/gemma3:latest": TagRoute("gemma3:latest", BASE, 1_780_000_000.0),
        },
        "versions": {CHAT: version_route(CHAT, chats=True), BASE: version_route(BASE, chats=False)},
        "replicas": (ReplicaRoute("r1", CHAT, "node1", "ready", 200_000_000, 0, 4096, 8),),
        "callers": {
            key_hash(ADMIN_KEY): Caller("k1", "ada", "team", admin=True),
            key_hash(USER_KEY): Caller("k2", "bob", "team", admin=False),
        },
    }
    return RoutesSnapshot(**values | changes)


@pytest_asyncio.fixture
async def routes(redis: Redis) -> Routes:
    """The snapshot is already published."""
    routes = Routes(redis)
    await routes.publish(routes_snapshot())
    return routes


@pytest_asyncio.fixture(scope="session")
async def registry_server() -> AsyncIterator[StandInRegistry]:
    stand_in = StandInRegistry()
    async with serving(stand_in.app) as url:
        stand_in.url = url
        yield stand_in


@pytest.fixture
def registry(registry_server: StandInRegistry) -> StandInRegistry:
    """The stand-in, without the requests of earlier tests."""
    registry_server.forget()
    return registry_server


@pytest.fixture
def settings(redis_url: str, registry: StandInRegistry) -> Settings:
    return settings_for(redis_url, registry)


def settings_for(redis_url: str, registry: StandInRegistry) -> Settings:
    return Settings(host="127.0.0.1:0", redis_url=redis_url, registry_url=registry.url, registry_token=TOKEN)


@pytest_asyncio.fixture(scope="session")
async def shared_url(redis_url: str, registry_server: StandInRegistry) -> AsyncIterator[str]:
    """The URL of a gateway that read-only tests share; it has a separate Redis database."""
    own_database = redis_url.removesuffix("/0") + "/1"
    redis = connect(own_database)
    await Routes(redis).publish(routes_snapshot())
    await redis.aclose()
    async with serving(create_app(settings_for(own_database, registry_server))) as url:
        await ready(url)
        yield url


@pytest_asyncio.fixture
async def shared_http(shared_url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=shared_url, timeout=20) as client:
        yield client


@pytest_asyncio.fixture
async def url(settings: Settings, routes: Routes) -> AsyncIterator[str]:
    """The URL of a gateway that is ready."""
    async with serving(create_app(settings)) as url:
        await ready(url)
        yield url


async def ready(url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as client:

        async def is_ready() -> bool:
            return (await client.get("/readyz")).status_code == 200

        await eventually(is_ready)


@pytest_asyncio.fixture
async def http(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, timeout=20) as client:
        yield client


@pytest_asyncio.fixture
async def worker(redis: Redis) -> AsyncIterator[Worker]:
    """A worker of the chat model; the test sends its events."""
    async with working(redis, CHAT) as worker:
        yield worker


@pytest_asyncio.fixture
async def echo(redis: Redis) -> AsyncIterator[None]:
    """Both models answer `Hello world`."""
    async with echoing(redis, CHAT), echoing(redis, BASE):
        yield
