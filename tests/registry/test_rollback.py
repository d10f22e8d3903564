"""A tag keeps its last three versions and can be rolled back to them."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import create_engine, text

from services.protocol.names import ModelName
from services.protocol.queue import Queue
from services.protocol.routes import Routes
from tests.conditions import eventually
from tests.doubles.node import ScriptedNode, pulled_model
from tests.registry.conftest import Registry
from tests.registry.steps import ask, one, pull, serve, serving

NAME = ModelName.parse("m")


async def versions(registry: Registry) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await registry.get("models/versions", name="m"))["versions"]
    return found


async def rollback(registry: Registry, digest: str = "") -> dict[str, Any]:
    answer = await registry.http.post("/registry/v1/models/rollback", json={"model": "m", "digest": digest})
    assert answer.status_code == 200, answer.text
    done: dict[str, Any] = answer.json()
    return done


async def pull_each(registry: Registry, *sources: str) -> list[str]:
    digests = []
    for source in sources:
        await pull(registry, f"pypi:{source}", "m")
        digests.append(await registry.digest("m"))
    return digests


def blobs(source: str) -> set[str]:
    model = pulled_model("m", f"pypi:{source}")
    return {model.config.digest, model.layers[0].digest}


async def test_the_last_three_versions_are_kept_with_their_files(
    registry: Registry, node: ScriptedNode, clean_url: str
) -> None:
    first, second, third, fourth = await pull_each(registry, "one", "two", "three", "four")
    kept = await versions(registry)
    assert [version["digest"] for version in kept] == [fourth, third, second]
    assert [version["current"] for version in kept] == [True, False, False]
    assert {version["size"] for version in kept} == {5100}
    assert kept[1]["nodes"] == ["n1"]

    async def forgotten() -> bool:
        engine = create_engine(clean_url)
        with engine.begin() as connection:
            rows = connection.scalars(text("select digest from versions")).all()
        engine.dispose()
        return sorted(rows) == sorted([second, third, fourth])

    await eventually(forgotten)
    await eventually(lambda: set(node.blobs) == blobs("two") | blobs("three") | blobs("four"))
    assert first not in [name.rpartition("-")[2] for name in node.names]


async def test_a_rollback_moves_the_tag_and_its_deployment(registry: Registry, node: ScriptedNode, queue: Queue) -> None:
    first, second = await pull_each(registry, "one", "two")
    put = await registry.http.put("/registry/v1/deployments/m", json={"replicas": 1, "engine": {"slots": 2}})
    assert put.status_code == 200
    newer = await one(registry, "ready")
    assert newer["version"] == second

    assert await rollback(registry) == {"model": "m:latest", "digest": first, "previous": second}
    assert await registry.digest("m") == first

    async def older_serves() -> bool:
        return [row["version"] for row in await registry.replicas("ready")] == [first]

    await eventually(older_serves)
    stopped = await one(registry, "stopped")
    assert (stopped["id"], stopped["reason"]) == (newer["id"], "its name points to another version now")
    (deployed,) = [row for row in (await registry.get("deployments"))["deployments"] if row["replicas"]]
    assert (deployed["version"], deployed["overrides"]) == (first, {"slots": 2})
    # A second rollback returns to the newer version.
    assert (await rollback(registry))["digest"] == second
    await eventually(lambda: serving(registry, "m:latest"))
    assert [version["digest"] for version in await versions(registry)] == [second, first]


async def test_requests_for_the_old_version_are_still_served(registry: Registry, node: ScriptedNode, queue: Queue) -> None:
    (first,) = await pull_each(registry, "one")
    await ask(queue, first)
    replica = await one(registry, "ready")
    await pull_each(registry, "two")
    for _ in range(5):
        await node.publish()
        assert [row["id"] for row in await registry.replicas("ready")] == [replica["id"]]
    await serve(queue, first, replica["id"])
    assert (await one(registry, "stopped"))["reason"] == "its name points to another version now"


async def test_deleting_a_tag_deletes_its_history(registry: Registry, node: ScriptedNode, redis: Redis) -> None:
    await pull_each(registry, "one", "two", "one")
    assert (await registry.http.request("DELETE", "/registry/v1/models", json={"model": "m"})).status_code == 200
    await eventually(lambda: not node.names and not node.blobs)
    again = await registry.http.get("/registry/v1/models/versions", params={"name": "m"})
    assert (again.status_code, again.json()["code"]) == (404, "model_not_found")


async def test_a_version_kept_by_another_tag_stays(registry: Registry, node: ScriptedNode) -> None:
    await pull_each(registry, "one", "two")
    await pull(registry, "pypi:one", "m:stable")
    assert (await registry.http.request("DELETE", "/registry/v1/models", json={"model": "m"})).status_code == 200
    await eventually(lambda: set(node.blobs) == blobs("one"))
    assert await registry.digest("m:stable")


@pytest.mark.parametrize(
    ("digest", "status", "error"),
    [
        ("", 404, "model 'm:latest' has no earlier version"),
        ("abc", 404, "model 'm:latest' has no earlier version"),
    ],
)
async def test_a_rollback_without_an_older_version_is_refused(
    registry: Registry, node: ScriptedNode, digest: str, status: int, error: str
) -> None:
    await pull_each(registry, "one")
    answer = await registry.http.post("/registry/v1/models/rollback", json={"model": "m", "digest": digest})
    assert (answer.status_code, answer.json()["error"]) == (status, error)


async def test_a_rollback_to_a_digest(registry: Registry, node: ScriptedNode) -> None:
    first, second, _ = await pull_each(registry, "one", "two", "three")
    answer = await registry.http.post("/registry/v1/models/rollback", json={"model": "m", "digest": "zz"})
    assert answer.status_code == 404
    assert answer.json()["error"] == (f"model 'm:latest' has no earlier version 'zz'; there are {second[:12]}, {first[:12]}")
    assert (await rollback(registry, first[:8]))["digest"] == first


async def test_a_version_without_files_is_not_rolled_back_to(registry: Registry, node: ScriptedNode, redis: Redis) -> None:
    first, second = await pull_each(registry, "one", "two")
    for digest in blobs("one"):
        node.blobs.pop(digest)

    async def refused() -> bool:
        answer = await registry.http.post("/registry/v1/models/rollback", json={"model": "m"})
        if answer.status_code == 200:
            await rollback(registry, second)
        return answer.status_code == 409 and f"no node has version {first[:12]}" in answer.json()["error"]

    await eventually(refused, timeout_s=30)
    snapshot = await Routes(redis).load()
    assert snapshot is not None
    assert [tag.version for tag in snapshot.tags.values()] == [second]
