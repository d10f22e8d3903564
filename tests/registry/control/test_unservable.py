"""The reasons that requests fail with if they cannot be served, and when they wait instead."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from services.protocol.queue import Queue
from services.protocol.replies import ReplyReader
from services.registry.control.cluster_state import ClusterState
from services.registry.control.unservable import unservable
from services.registry.states import NodeState, Origin, ReplicaState
from tests.conditions import eventually
from tests.doubles.node import ScriptedNode
from tests.registry.conftest import Registry
from tests.registry.control.cluster_states import BLOB, GIB, NOW, VERSION, ago, cluster, deployment, node, replica, version
from tests.registry.steps import ask, failure, pull, serving

LOST = node("b", state=NodeState.LOST, reporting=False, last_seen_at=ago(60))
EMPTY = node("a", blobs=frozenset())
OTHER = "c" * 64
#: Another version's model that stays loaded and leaves half a GiB.
PINNED = {
    "versions": {VERSION: version(), OTHER: version(digest=OTHER, name="other:latest")},
    "deployments": (deployment(id=2, version=OTHER, origin=Origin.PINNED),),
    "replicas": (replica(ReplicaState.READY, id="r2", deployment=2, version=OTHER, memory_estimated=7 * GIB),),
}
BUSY = {**PINNED, "deployments": (deployment(id=2, version=OTHER),)}
PENDING = replica(ReplicaState.PENDING, id="r3", state_changed_at=ago(11))
YOUNG = replica(ReplicaState.PENDING, id="r3", state_changed_at=ago(1))
FULL = {"n1": node(memory_available=GIB // 2)}


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (cluster(), None),
        (cluster(nodes={}), "no node has joined"),
        (cluster(nodes={"b": LOST}), "no node is ready: b, which has been lost since 2026-11-22 11:59:00 UTC"),
        (
            cluster(nodes={"a": EMPTY, "b": LOST}),
            "its only copy is on node b, which has been lost since 2026-11-22 11:59:00 UTC",
        ),
        (cluster(nodes={"b": LOST}, watching_since=NOW), None),
        (cluster(nodes={"a": EMPTY, "b": LOST}, versions={VERSION: version(source="pypi:m")}), None),
        (
            cluster(nodes={"a": node("a", blobs=frozenset(), disk_free=0)}, versions={VERSION: version(source="pypi:m")}),
            "a has 0.0 GiB of disk free, the model's file needs 1.0 GiB",
        ),
        (cluster(**PINNED), "n1 has 0.5 GiB of memory beside the models that stay loaded, 1.0 GiB are needed"),
        (cluster(**BUSY), None),
        (
            cluster(nodes=FULL, deployments=(deployment(),), replicas=(PENDING,)),
            "n1 has 0.5 GiB of memory even if all models are unloaded, 1.0 GiB are needed",
        ),
        (cluster(nodes=FULL, deployments=(deployment(),), replicas=(YOUNG,)), None),
        (cluster(nodes={"n1": node(blobs=frozenset({BLOB}), device_memory=GIB)}), None),
    ],
    ids=[
        "served by a node",
        "no node",
        "all nodes lost",
        "only copy lost",
        "nodes may still come",
        "may be fetched",
        "no disk",
        "pinned models fill it",
        "busy models give it back",
        "other programs fill it",
        "its numbers may lag",
        "accelerators",
    ],
)
def test_unservable_requests_get_a_reason(seen: ClusterState, reason: str | None) -> None:
    assert unservable(seen, VERSION) == reason


async def test_requests_for_a_model_on_a_lost_node_fail_until_it_is_back(
    registry: Registry, node: ScriptedNode, queue: Queue, replies: ReplyReader, redis: Redis
) -> None:
    await pull(registry, "/models/m.gguf", "m")
    async with ScriptedNode("n2", redis):
        digest = await registry.digest("m")
        # One request waits when the node is lost, another arrives later.
        node.on_start = "loading"
        await ask(queue, digest)
        await eventually(lambda: registry.replicas("starting"))
        await node.vanish()
        for _ in range(2):
            refused = await failure(replies)
            assert refused.code == "unavailable"
            assert refused.message.startswith(
                "model 'm:latest' could not be loaded: its only copy is on node n1, which has been lost"
            )
            await ask(queue, digest)
        await failure(replies)
        node.on_start = "ready"
        node.processes.clear()
        node.resume()

        async def served_again() -> bool:
            await ask(queue, digest)
            return await serving(registry, "m:latest")

        await eventually(served_again, timeout_s=20)
