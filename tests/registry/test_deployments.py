"""Settings that admins give to models, from the API to the Start job and to the replicas that run with others."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from services.protocol.engine import EngineSettings
from services.protocol.jobs import Start, Stop
from services.protocol.queue import Queue
from services.protocol.reports import WorkerState
from services.protocol.routes import Routes
from services.registry.config import Settings
from tests.conditions import eventually
from tests.registry.conftest import Registry, running_registry
from tests.registry.scripted_node import ScriptedNode, pulled_model
from tests.registry.test_loop import TINY, ask, failure, none_live, one, pull, replies, serve, tiny

__all__ = ["replies", "tiny"]  # fixtures


async def put(registry: Registry, model: str, **body: Any) -> dict[str, Any]:
    answer = await registry.http.put(f"/registry/v1/deployments/{model}", json=body)
    assert answer.status_code == 200, answer.text
    described: dict[str, Any] = answer.json()
    return described


async def listed(registry: Registry) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (await registry.get("deployments"))["deployments"]
    return rows


async def test_a_deployed_model_is_loaded_with_its_settings_and_stays(
    registry: Registry, node: ScriptedNode, queue: Queue, settings: Settings, tiny: str
) -> None:
    described = await put(registry, "tiny", engine={"slots": 3, "kv_type_k": "q8_0", "lora": [["sha256:abc", 0.5]]})
    assert (described["model"], described["version"], described["replicas"]) == ("tiny:latest", tiny, 1)
    assert (described["engine"]["slots"], described["engine"]["context_tokens"]) == (3, settings.context_tokens)
    await one(registry, "ready")
    (start,) = node.jobs(Start)
    assert start.engine == EngineSettings(
        slots=3, context_tokens=16, batch_tokens=1, kv_type_k="q8_0", lora=(("sha256:abc", 0.5),)
    )
    assert start.memory_bytes > 160 * 1024**2, "what placement reserved goes with it"
    await queue.touch(tiny, keep_alive_ms=0)
    (deployment,) = await listed(registry)
    assert (deployment["origin"], deployment["ready"], deployment["overrides"]["slots"]) == ("pinned", 1, 3)


async def test_replicas_with_other_settings_are_replaced(registry: Registry, node: ScriptedNode, tiny: str) -> None:
    await put(registry, "tiny", engine={"slots": 2})
    first = await one(registry, "ready")
    await put(registry, "tiny", engine={"slots": 2})
    assert node.jobs(Stop) == []

    await put(registry, "tiny", engine={"kv_tokens": 512})

    async def replaced() -> bool:
        return [row["id"] for row in await registry.replicas("ready")] not in ([], [first["id"]])

    await eventually(replaced)
    before, after = node.jobs(Start)
    assert (before.engine.slots, after.engine.slots, after.engine.kv_tokens) == (2, 1, 512)
    assert [stop.replica for stop in node.jobs(Stop)] == [first["id"]]
    assert (await one(registry, "stopped"))["reason"] == "its settings have changed"


async def test_a_platform_that_starts_again_with_other_settings_replaces_its_replicas(
    redis: Redis, settings: Settings, node: ScriptedNode, queue: Queue
) -> None:
    async with running_registry(settings) as registry:
        await pull(registry, TINY)
        tiny = await registry.digest("tiny")
        await ask(queue, tiny, keep_alive_ms=-1)
        await one(registry, "ready")
    wider = settings.model_copy(update={"context_tokens": 64})
    async with running_registry(wider) as registry:
        await eventually(lambda: len(node.jobs(Start)) == 2)
    assert [start.engine.context_tokens for start in node.jobs(Start)] == [16, 64]


async def test_settings_of_a_model_that_is_loaded_on_demand(
    registry: Registry, node: ScriptedNode, queue: Queue, tiny: str
) -> None:
    await put(registry, "tiny", engine={"slots": 5}, replicas=0)
    assert await none_live(registry)
    await ask(queue, tiny, keep_alive_ms=0)
    replica = await one(registry, "ready")
    assert node.jobs(Start)[0].engine.slots == 5
    await serve(queue, tiny, replica["id"])
    await one(registry, "stopped")


async def test_a_deployment_that_is_reset_goes_when_it_is_idle(
    registry: Registry, node: ScriptedNode, queue: Queue, tiny: str
) -> None:
    await put(registry, "tiny", engine={"slots": 5}, replicas=2)

    async def both() -> bool:
        return len(await registry.replicas("ready")) == 2

    await eventually(both)
    await queue.touch(tiny, keep_alive_ms=0)
    answer = await registry.http.delete("/registry/v1/deployments/tiny")
    assert (answer.status_code, answer.json()["overrides"]) == (200, {})
    await eventually(lambda: none_live(registry))

    async def forgotten() -> bool:
        return await listed(registry) == []

    await eventually(forgotten)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"engine": {"slotz": 3}}, "engine.slotz is no engine setting; there are slots, context_tokens, "),
        ({"engine": {"slots": 0}}, "engine.slots: Expected `int` >= 1"),
        ({"engine": {"slots": "many"}}, "engine.slots: Expected `int`, got `str`"),
        ({"engine": {"kv_type_k": "q2_k"}}, "engine.kv_type_k: Invalid enum value 'q2_k'"),
        ({"engine": {"tensor_split": [1, "x"]}}, "engine.tensor_split[1]: Expected `float`, got `str`"),
        ({"engine": {"lora": [["file"]]}}, "engine.lora[0]: Expected `array` of length 2, got 1"),
        (
            {"engine": {"kv_type_v": "q8_0", "flash_attention": "off"}},
            "engine: kv_type_v q8_0 needs flash attention, which flash_attention turns off",
        ),
        ({"replicas": -1}, "replicas: Input should be greater than or equal to 0"),
        ({"slots": 3}, "slots: Extra inputs are not permitted"),
    ],
)
async def test_what_is_wrong_is_refused_by_name(registry: Registry, body: dict[str, Any], message: str) -> None:
    answer = await registry.http.put("/registry/v1/deployments/tiny", json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert answer.json()["error"].startswith(message)


async def test_a_model_that_is_not_there(registry: Registry) -> None:
    answer = await registry.http.put("/registry/v1/deployments/hf.co/org/repo:q4", json={})
    assert (answer.status_code, answer.json()["code"]) == (404, "model_not_found")


async def test_a_name_that_moves_to_another_version_takes_its_settings_along(
    registry: Registry, node: ScriptedNode, tiny: str
) -> None:
    await put(registry, "tiny", engine={"slots": 4})
    await one(registry, "ready")
    await pull(registry, "pypi:tiny-two", "tiny")
    version = await registry.digest("tiny")
    assert version != tiny

    async def moved() -> bool:
        return [(row["version"], row["ready"], row["engine"]["slots"]) for row in await listed(registry)] == [(version, 1, 4)]

    await eventually(moved)
    assert node.jobs(Start)[-1].model == pulled_model("tiny", "pypi:tiny-two").layers[0].digest


async def test_more_memory_than_any_node_has_is_said(
    registry: Registry, node: ScriptedNode, queue: Queue, replies: Any, tiny: str
) -> None:
    # 128 bytes a token: one layer, eight elements of keys and of values, four bytes each.
    await put(registry, "tiny", engine={"slots": 256, "kv_tokens": 1_000_000_000, "kv_type_k": "f32"}, replicas=0)
    await ask(queue, tiny)
    failed = await failure(replies)
    assert failed.code == "model_load_failed"
    assert "it needs " in failed.message
    assert node.jobs(Start) == []


async def test_a_replica_shows_how_far_it_has_loaded_and_what_it_took_of_the_accelerator(
    registry: Registry, node: ScriptedNode, redis: Redis, tiny: str
) -> None:
    node.on_start = "loading"
    await put(registry, "tiny")
    replica = await one(registry, "starting")
    await eventually(lambda: node.processes)
    process = node.processes[replica["id"]]
    process.worker = node.worker(process.start, WorkerState.LOADING, load_progress=0.25)

    async def quarter() -> bool:
        return (await one(registry, "starting"))["load_progress"] == 0.25

    await eventually(quarter)
    process.worker = node.worker(process.start, WorkerState.READY, memory_bytes=100, device_memory_bytes=900)
    ready = await one(registry, "ready")
    assert (ready["memory_bytes"], ready["device_memory_bytes"]) == (1000, 900)

    async def published() -> bool:
        snapshot = await Routes(redis).load()
        return snapshot is not None and [(one.device_memory_bytes, one.pinned) for one in snapshot.replicas] == [(900, True)]

    await eventually(published)
