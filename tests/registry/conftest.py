"""A real database with the real migrations, and the registry's app with its background loops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
import pytest_asyncio
from alembic import command
from alembic.config import Config
from fastapi import FastAPI
from redis.asyncio import Redis
from sqlalchemy import create_engine, make_url, text

from services.protocol.gateways import Gateways
from services.protocol.queue import Queue
from services.protocol.replies import ReplyReader
from services.registry.app import create_app
from services.registry.config import Settings
from services.registry.database.database import Base, Database
from tests.doubles.node import ScriptedNode
from tests.registry.steps import TINY, pull

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-for-the-tests"


def alembic_config(url: str) -> Config:
    config = Config(ROOT / "alembic.ini")
    config.set_main_option("script_location", str(ROOT / "migrations"))
    config.attributes["url"] = url
    return config


def create_database(postgres_url: str, name: str) -> str:
    engine = create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"create database {name}"))
    engine.dispose()
    return make_url(postgres_url).set(database=name).render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def migrated_url(postgres_url: str) -> str:
    url = create_database(postgres_url, "registry_tests")
    command.upgrade(alembic_config(url), "head")
    return url


@pytest.fixture
def clean_url(migrated_url: str) -> str:
    """The migrated database, without rows."""
    engine = create_engine(migrated_url)
    tables = ", ".join(table.name for table in Base.metadata.sorted_tables)
    with engine.begin() as connection:
        connection.execute(text(f"truncate {tables} restart identity cascade"))
    engine.dispose()
    return migrated_url


@pytest_asyncio.fixture
async def database(clean_url: str) -> AsyncIterator[Database]:
    database = Database(clean_url)
    yield database
    await database.close()


@pytest.fixture
def settings(clean_url: str, redis_url: str) -> Settings:
    return Settings(
        database_url=clean_url,
        redis_url=redis_url,
        registry_token=TOKEN,
        node_lost_after_s=1.0,
        job_resend_after_s=0.5,
        memory_reserve_bytes=0,
        slots=1,
        context_tokens=16,
        batch_tokens=1,
    )


class Registry:
    """A running registry, seen through its API."""

    def __init__(self, app: FastAPI) -> None:
        transport = httpx.ASGITransport(app=app)
        self.http = httpx.AsyncClient(
            transport=transport, base_url="http://registry", headers={"authorization": f"Bearer {TOKEN}"}
        )

    async def get(self, path: str, **params: Any) -> Any:
        answer = await self.http.get(f"/registry/v1/{path}", params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def pull(self, model: str, named: str | None = None) -> list[dict[str, Any]]:
        async with asyncio.timeout(15):
            answer = await self.http.post("/registry/v1/pull", json={"model": model, "as": named})
        assert answer.status_code == 200, answer.text
        return [httpx.Response(200, content=line).json() for line in answer.text.splitlines()]

    async def replicas(self, *states: str) -> list[dict[str, Any]]:
        """The replicas in these states, or all."""
        rows: list[dict[str, Any]] = (await self.get("replicas"))["replicas"]
        return [row for row in rows if not states or row["state"] in states]

    async def digest(self, name: str) -> str:
        digest: str = (await self.get("models/show", name=name))["digest"]
        return digest


class RunRegistry(Protocol):
    def __call__(self, settings: Settings) -> AbstractAsyncContextManager[Registry]: ...


@asynccontextmanager
async def running_registry(settings: Settings) -> AsyncIterator[Registry]:
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        registry = Registry(app)
        yield registry
        await registry.http.aclose()


@pytest.fixture
def run_registry() -> RunRegistry:
    """For tests that stop the registry and start it again."""
    return running_registry


@pytest_asyncio.fixture
async def registry(settings: Settings, redis: Redis) -> AsyncIterator[Registry]:
    async with running_registry(settings) as running:
        yield running


@pytest_asyncio.fixture
async def node(redis: Redis) -> AsyncIterator[ScriptedNode]:
    async with ScriptedNode("n1", redis) as running:
        yield running


@pytest_asyncio.fixture
async def tiny(registry: Registry, node: ScriptedNode) -> str:
    """The version of a pulled model."""
    await pull(registry, TINY)
    return await registry.digest("tiny")


@pytest.fixture
def queue(redis: Redis) -> Queue:
    return Queue(redis)


@pytest_asyncio.fixture
async def replies(redis: Redis) -> AsyncIterator[ReplyReader]:
    reader = ReplyReader(redis, "g")
    await Gateways(redis).renew("g", lease_ms=60_000)
    yield reader
