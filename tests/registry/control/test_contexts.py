"""Ollama's `num_ctx`: requests for a longer context than their model is loaded with."""

from __future__ import annotations

from typing import Any

import pytest

from services.protocol.engine import EngineSettings
from services.protocol.jobs import Start
from services.protocol.queue import Queue
from services.protocol.reports import WorkerState
from services.registry.config import Settings
from services.registry.control.cluster_state import ClusterState
from services.registry.control.contexts import is_fixed, widened
from services.registry.control.decisions import CreateReplica, Decision, DrainReplica, WidenContext
from services.registry.control.reconcile import reconcile
from services.registry.states import Origin, ReplicaState
from tests.conditions import eventually
from tests.doubles.node import ScriptedNode
from tests.registry.conftest import RunRegistry
from tests.registry.control.cluster_states import GIB, cluster, demand, deployment, replica, serving, with_demand, worker
from tests.registry.steps import TINY, ask, one, pull, serve

R = ReplicaState
WIDER = EngineSettings(context_tokens=65_536, kv_tokens=65_536)


def test_a_longer_context_gets_more_cells_and_keeps_the_number_of_slots() -> None:
    assert widened(EngineSettings(), 131_072, 65_536) == WIDER
    assert widened(EngineSettings(context_tokens=2048), 8192, 4096) == EngineSettings(context_tokens=4096, kv_tokens=16_384)
    streams = EngineSettings(kv_unified=False)
    assert widened(streams, 8192, 8192) == EngineSettings(kv_unified=False, context_tokens=8192)


@pytest.mark.parametrize(("trained", "asked"), [(8192, 0), (8192, 100), (8192, 8192), (8192, 10**9), (131_072, 32_768)])
def test_settings_stay_if_the_context_is_already_long_enough(trained: int, asked: int) -> None:
    assert widened(EngineSettings(), trained, asked) is None


def test_a_context_chosen_by_an_administrator_is_fixed() -> None:
    assert is_fixed(Origin.PINNED, {})
    assert is_fixed(Origin.ON_DEMAND, {"context_tokens": 4096})
    assert not is_fixed(Origin.ON_DEMAND, {"slots": 2})


def wide(**changes: Any) -> ClusterState:
    return serving(deployments=(deployment(widened=WIDER, widened_bytes=2 * GIB),), **changes)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (wide(), [WidenContext(1, WIDER)]),
        (wide(workers={"r1": worker(running=1)}), []),
        (wide(demand=with_demand(demand(waiting=1))), []),
        (serving(deployments=(deployment(widened=WIDER, widened_bytes=8 * GIB),)), []),
        (
            cluster(deployments=(deployment(widened=WIDER, widened_bytes=GIB),), demand=with_demand(demand(waiting=1))),
            [WidenContext(1, WIDER), CreateReplica(1, attempts=1)],
        ),
        (
            serving(deployments=(deployment(engine=WIDER),), replicas=(replica(R.READY, engine=EngineSettings()),)),
            [DrainReplica("r1", R.READY, "n1", "its settings have changed")],
        ),
    ],
    ids=["idle", "busy", "requests wait", "too large for every node", "not loaded yet", "then the replica is replaced"],
)
def test_the_context_is_widened_only_if_no_answer_is_running(seen: ClusterState, expected: list[Decision]) -> None:
    assert list(reconcile(seen)) == expected


async def test_an_idle_model_is_reloaded_and_a_busy_one_is_not(
    settings: Settings, run_registry: RunRegistry, node: ScriptedNode, queue: Queue
) -> None:
    async with run_registry(settings.model_copy(update={"context_tokens": 512})) as registry:
        await pull(registry, TINY)
        version = await registry.digest("tiny")
        await ask(queue, version, keep_alive_ms=-1)
        first = (await one(registry, "ready"))["id"]
        process = node.processes[first]
        process.worker = node.worker(process.start, WorkerState.READY, running=1)
        await node.publish()
        await serve(queue, version, first)
        await queue.request_context(version, 1024)
        await pull(registry, "pypi:other")
        assert (await one(registry, "ready"))["id"] == first

        process.worker = node.worker(process.start, WorkerState.READY)
        await node.publish()
        assert (await one(registry, "stopped"))["reason"] == "its settings have changed"
        await ask(
            queue, version, keep_alive_ms=0, context_tokens=1024
        )  # again, as gateways do: the demand may have been forgotten by now
        second = await one(registry, "ready")
        assert [start.engine.context_tokens for start in node.jobs(Start)] == [512, 1024]

        await serve(queue, version, second["id"])
        await eventually(lambda: _all_stopped(node))
        await ask(queue, version)
        await one(registry, "ready")
        assert [start.engine.context_tokens for start in node.jobs(Start)] == [512, 1024, 512]


async def _all_stopped(node: ScriptedNode) -> bool:
    return not node.running


async def test_a_model_that_is_not_loaded_is_loaded_with_the_requested_context(
    settings: Settings, run_registry: RunRegistry, node: ScriptedNode, queue: Queue
) -> None:
    async with run_registry(settings.model_copy(update={"context_tokens": 512})) as registry:
        await pull(registry, TINY)
        await ask(queue, await registry.digest("tiny"), context_tokens=1024)
        await one(registry, "ready")
        assert [start.engine.context_tokens for start in node.jobs(Start)] == [1024]
