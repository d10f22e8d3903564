"""Deployments: from the API to the Start job, and the replacement of replicas with other settings."""

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
from tests.doubles.node import ScriptedNode, pulled_model
from tests.registry.conftest import Registry, running_registry
from tests.registry.steps import TINY, ask, failure, none_live, one, pull, serve

ADAPTER = "sha256:" + "a" * 64


async def put(registry: Registry, model: str, **body: Any) -> dict[str, Any]:
    answer = await registry.http.put(f"/registry/v1/deployments/{model}", json=body)
    assert answer.status_code == 200, answer.text
    described: dict[str, Any] = answer.json()
    return described


async def listed(registry: Registry) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (await registry.get("deployments"))["deployments"]
    return rows


async def test_a_deployed_model_is_loaded_with_its_settings_and_stays_loaded(
    registry: Registry, node: ScriptedNode, queue: Queue, settings: Settings, tiny: str
) -> None:
    described = await put(registry, "tiny", engine={"slots": 3, "kv_type_k": "q8_0", "lora": [[ADAPTER, 0.5]]})
    assert (described["model"], described["version"], described["replicas"]) == ("tiny:latest", tiny, 1)
    assert (described["engine"]["slots"], described["engine"]["context_tokens"]) == (3, settings.engine.context_tokens)
    await one(registry, "ready")
    (start,) = node.jobs(Start)
    assert start.engine == EngineSettings(slots=3, context_tokens=16, batch_tokens=1, kv_type_k="q8_0", lora=((ADAPTER, 0.5),))
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

    answering: list[int] = []

    async def replaced() -> bool:
        ready = [row["id"] for row in await registry.replicas("ready")]
        answering.append(len(ready))
        return first["id"] not in ready

    await eventually(replaced)
    assert 0 not in answering, "the old replica answers until the new one is ready"
    await one(registry, "ready")
    await one(registry, "stopped")
    before, after = node.jobs(Start)
    assert (before.engine.slots, after.engine.slots, after.engine.kv_tokens) == (2, 1, 512)
    assert [stop.replica for stop in node.jobs(Stop)] == [first["id"]]
    assert (await one(registry, "stopped"))["reason"] == "its settings have changed"


async def test_new_platform_settings_replace_replicas_after_a_restart(
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


async def test_settings_apply_to_a_model_loaded_on_demand(
    registry: Registry, node: ScriptedNode, queue: Queue, tiny: str
) -> None:
    await put(registry, "tiny", engine={"slots": 5}, replicas=0)
    assert await none_live(registry)
    await ask(queue, tiny, keep_alive_ms=0)
    replica = await one(registry, "ready")
    assert node.jobs(Start)[0].engine.slots == 5
    await serve(queue, tiny, replica["id"])
    await one(registry, "stopped")


async def test_a_reset_deployment_is_removed_when_it_is_idle(
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
        ({"engine": {"slotz": 3}}, "engine.slotz is not an engine setting; the settings are slots, context_tokens, "),
        ({"engine": {"slots": 0}}, "engine.slots: Expected `int` >= 1"),
        ({"engine": {"threads": 1_000_000_000}}, "engine.threads: Expected `int` <= 512"),
        ({"engine": {"context_tokens": 10**30}}, "engine.context_tokens: Expected `int` <= 2147483647"),
        ({"engine": {"lora": [["etc/shadow", 1]]}}, "engine.lora[0][0]: Expected `str` matching regex"),
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
async def test_invalid_settings_are_refused_by_name(registry: Registry, body: dict[str, Any], message: str) -> None:
    answer = await registry.http.put("/registry/v1/deployments/tiny", json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert answer.json()["error"].startswith(message)


async def test_a_deployment_shows_why_it_does_not_serve(registry: Registry, node: ScriptedNode, tiny: str) -> None:
    node.on_start = "exit"
    assert (await put(registry, "tiny", replicas=1))["reason"] == ""

    async def reason() -> bool:
        (row,) = await listed(registry)
        return bool(row["reason"] == "exited with code 3: the model could not be loaded")

    await eventually(reason)
    failed = (await registry.replicas("failed"))[0]
    assert failed["retry_at"] > failed["state_changed_at"]
    node.on_start = "ready"
    await one(registry, "ready")
    assert [row["reason"] for row in await listed(registry)] == [""]


async def test_a_context_beyond_the_trained_one_is_refused(registry: Registry, node: ScriptedNode, tiny: str) -> None:
    for engine, status in (
        ({"context_tokens": 2049}, 400),
        ({"context_tokens": 99_999_999}, 400),
        ({"context_tokens": 4096, "rope_freq_scale": 0.5}, 200),
        ({"context_tokens": 2048}, 200),
    ):
        answer = await registry.http.put("/registry/v1/deployments/tiny", json={"engine": engine, "replicas": 0})
        assert answer.status_code == status, answer.text
        if status == 400:
            asked = engine["context_tokens"]
            message = f"engine.context_tokens: {asked:,} is more than the 2,048 tokens that the model was trained for"
            assert answer.json()["error"] == message


async def test_an_unknown_model_is_refused(registry: Registry) -> None:
    answer = await registry.http.put("/registry/v1/deployments/hf.co/org/repo:q4", json={})
    assert (answer.status_code, answer.json()["code"]) == (404, "model_not_found")


async def test_a_moved_name_keeps_its_settings(registry: Registry, node: ScriptedNode, tiny: str) -> None:
    await put(registry, "tiny", engine={"slots": 4})
    await one(registry, "ready")
    await pull(registry, "pypi:tiny-two", "tiny")
    version = await registry.digest("tiny")
    assert version != tiny

    async def moved() -> bool:
        return [(row["version"], row["ready"], row["engine"]["slots"]) for row in await listed(registry)] == [(version, 1, 4)]

    await eventually(moved)
    assert node.jobs(Start)[-1].model == pulled_model("tiny", "pypi:tiny-two").layers[0].digest


async def test_settings_that_need_too_much_memory_fail_the_request(
    registry: Registry, node: ScriptedNode, queue: Queue, replies: Any, tiny: str
) -> None:
    # The KV cache of a billion tokens takes more memory than the node has.
    await put(registry, "tiny", engine={"slots": 256, "kv_tokens": 1_000_000_000, "kv_type_k": "f32"}, replicas=0)
    await ask(queue, tiny)
    failed = await failure(replies)
    assert failed.code == "model_load_failed"
    assert "it needs " in failed.message
    assert node.jobs(Start) == []


async def test_a_replica_shows_its_load_progress_and_its_device_memory(
    registry: Registry, node: ScriptedNode, redis: Redis, tiny: str
) -> None:
    node.on_start = "loading"
    await put(registry, "tiny")
    replica = await one(registry, "starting")
    await eventually(lambda: node.processes)
    process = node.processes[replica["id"]]
    process.worker = node.worker(process.start, WorkerState.LOADING, load_progress=0.25)

    async def quarter() -> bool:
        return bool((await one(registry, "starting"))["load_progress"] == 0.25)

    await eventually(quarter)
    process.worker = node.worker(process.start, WorkerState.READY, memory_bytes=100, device_memory_bytes=900)
    ready = await one(registry, "ready")
    assert (ready["memory_bytes"], ready["device_memory_bytes"]) == (1000, 900)

    async def published() -> bool:
        snapshot = await Routes(redis).load()
        return snapshot is not None and [(one.device_memory_bytes, one.pinned) for one in snapshot.replicas] == [(900, True)]

    await eventually(published)


@pytest.mark.parametrize(("broken", "reason"), [("exit", "exited with code 3"), ("refuse", ""), ("broken", "")])
async def test_settings_that_fail_are_reverted(
    registry: Registry, node: ScriptedNode, tiny: str, broken: str, reason: str
) -> None:
    await put(registry, "tiny", engine={"slots": 2})
    first = await one(registry, "ready")
    node.on_start = broken
    assert (await put(registry, "tiny", engine={"slots": 3}, replicas=2))["on_trial"]
    row = await _reverted(registry)
    assert (row["overrides"], row["replicas"], row["ready"], row["updated"]) == ({"slots": 2}, 1, 1, 1)
    assert reason in row["reason"]
    assert [row["id"] for row in await registry.replicas("ready")] == [first["id"]]
    assert first["id"] not in [stop.replica for stop in node.jobs(Stop)]

    node.on_start = "ready"
    await put(registry, "tiny", engine={"slots": 3})

    async def kept() -> bool:
        (row,) = await listed(registry)
        return (row["overrides"], row["updated"], row["on_trial"], row["reason"]) == ({"slots": 3}, 1, False, "")

    await eventually(kept, what="the same settings are tried again, and kept")


async def test_settings_that_need_too_much_memory_are_reverted(registry: Registry, node: ScriptedNode, tiny: str) -> None:
    await put(registry, "tiny", engine={"slots": 2})
    first = await one(registry, "ready")
    await put(registry, "tiny", engine={"slots": 256, "kv_tokens": 1_000_000_000, "kv_type_k": "f32"})
    row = await _reverted(registry)
    assert (row["overrides"], row["reason"].split(" of memory")[0].split(" needs ")[0]) == ({"slots": 2}, "it")
    assert [row["id"] for row in await registry.replicas("ready")] == [first["id"]]


async def test_without_memory_for_both_the_old_replica_stops_first_and_its_settings_return(
    registry: Registry, node: ScriptedNode, tiny: str
) -> None:
    await put(registry, "tiny", engine={"slots": 2})
    first = await one(registry, "ready")
    node.memory = node.jobs(Start)[0].memory_bytes * 3 // 2
    node.on_start = "exit"

    async def narrow() -> bool:
        (seen,) = (await registry.get("nodes"))["nodes"]
        return bool(seen["memory_total"] == node.memory)

    await eventually(narrow)
    await put(registry, "tiny", engine={"slots": 3})
    row = await _reverted(registry, timeout_s=40)
    assert row["overrides"] == {"slots": 2}
    assert [stop.replica for stop in node.jobs(Stop)] == [first["id"]]
    node.on_start = "ready"
    await one(registry, "ready")
    assert [start.engine.slots for start in node.jobs(Start)][-1] == 2


async def _reverted(registry: Registry, *, timeout_s: float = 10) -> dict[str, Any]:
    async def found() -> dict[str, Any] | None:
        (row,) = await listed(registry)
        return row if "the previous settings were put back" in row["reason"] else None

    row: dict[str, Any] = await eventually(found, timeout_s=timeout_s, what="the previous settings")
    return row
