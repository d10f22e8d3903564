"""Assigns pending replicas to nodes: turns a ClusterState into the input of placement.py, and its answers into decisions. Pure.

Replicas are placed one at a time, oldest first. Memory promised to one is no longer free for the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from services.registry.control.cluster_state import ClusterState, DeploymentView, NodeView, ReplicaView, VersionView
from services.registry.control.decisions import Decision, ExplainReplica, FetchModel, StartReplica, UnwantDeployment
from services.registry.control.placement import (
    ChosenNode,
    Evict,
    NodeCapacity,
    PlacedReplica,
    PlacementRequest,
    Shortage,
    Wait,
    never,
    place,
    shortage,
)
from services.registry.states import NodeState, Origin, ReplicaState


def assign_pending(cluster: ClusterState) -> Iterator[Decision]:
    placed = [resident for replica in cluster.replicas if (resident := _placed_replica(cluster, replica))]
    deployments = {deployment.id: deployment for deployment in cluster.deployments}
    pending = [replica for replica in cluster.replicas if replica.state is ReplicaState.PENDING]
    for replica in sorted(pending, key=lambda replica: replica.id):
        deployment, version = deployments[replica.deployment], cluster.versions[replica.version]
        asked_for = deployment.origin is Origin.PINNED or cluster.waiting(version.digest)
        if not deployment.replicas_wanted or not version.is_named or not asked_for:
            continue
        if fault := version.fault or deployment.fault:
            yield from _explain(replica, fault, "file")
            continue
        request, found = _placement_request(version, deployment.memory_bytes), capacities(cluster, version)
        placement = place(request, found, placed)
        match placement.outcome:
            case ChosenNode(node, fetch):
                placed.append(_assigned(replica, node, deployment.memory_bytes))
                yield _assignment(replica, version, node, deployment, fetch=fetch)
            case Evict(node, victims):
                yield from _evictions(cluster, version, victims)
                placed = [_leaving(resident) if resident.replica in victims else resident for resident in placed]
                reason = f"{placement.reason}; unloading an idle model on {node}"
                yield from _explain(replica, reason, shortage(request, found))
            case Wait():
                yield from _explain(replica, placement.reason, shortage(request, found))


def fits_as_replacement(cluster: ClusterState, outdated: ReplicaView) -> bool:
    """Whether another replica of its deployment fits on some node only after this one has stopped."""
    deployment, version = cluster.deployment(outdated), cluster.versions[outdated.version]
    request, found = _placement_request(version, deployment.memory_bytes), capacities(cluster, version)
    placed = [resident for replica in cluster.replicas if (resident := _placed_replica(cluster, replica))]
    others = [resident for resident in placed if resident.replica != outdated.id]
    without = [_given_back(capacity, outdated) if capacity.node == outdated.node else capacity for capacity in found]
    now, then = place(request, found, placed).outcome, place(request, without, others).outcome
    return isinstance(now, Wait) and not isinstance(then, Wait)


def _given_back(capacity: NodeCapacity, replica: ReplicaView) -> NodeCapacity:
    return replace(capacity, available=None if capacity.available is None else capacity.available + replica.memory_bytes)


def never_placed(cluster: ClusterState, version: str) -> str | None:
    """Why no known node can serve the version with its current settings, however much memory is freed; None if one can."""
    view = cluster.versions[version]
    if view.fault:
        return view.fault
    return never(_placement_request(view, view.memory_bytes), capacities(cluster, view))


def capacities(cluster: ClusterState, version: VersionView) -> list[NodeCapacity]:
    return [_capacity(cluster, node, version) for node in cluster.nodes.values()]


def _capacity(cluster: ClusterState, node: NodeView, version: VersionView) -> NodeCapacity:
    """Device memory adds to `usable`. On a node with accelerators the machine's free memory is ignored: it does not cover
    them."""
    return NodeCapacity(
        node=node.name,
        ready=node.state is NodeState.READY,
        usable=max(0, node.memory_total + node.device_memory - cluster.policy.memory_reserve_bytes),
        available=None if node.device_memory else node.memory_available,
        disk_free=node.disk_free,
        holds=version.model_blob in node.blobs,
        cores=node.cpus,
        fetch_failed=_fetch_failed(cluster, node, version),
    )


def _fetch_failed(cluster: ClusterState, node: NodeView, version: VersionView) -> bool:
    """Whether the version's last ended replica failed on this node, and the node still has no copy of the file."""
    return version.model_blob not in node.blobs and any(
        replica.version == version.digest and replica.node == node.name and replica.state is ReplicaState.FAILED
        for replica in cluster.replicas
    )


def _placement_request(version: VersionView, memory_bytes: int) -> PlacementRequest:
    return PlacementRequest(memory_bytes, version.file_bytes, fetchable=bool(version.source), version=version.digest)


def _placed_replica(cluster: ClusterState, replica: ReplicaView) -> PlacedReplica | None:
    if replica.node is None or replica.state.is_over:
        return None
    deployment = next((deployment for deployment in cluster.deployments if deployment.id == replica.deployment), None)
    pinned = deployment is not None and deployment.origin is Origin.PINNED
    stays = deployment is None or replica.runs_as(deployment)
    return PlacedReplica(
        replica=replica.id,
        node=replica.node,
        memory_bytes=replica.memory_bytes,
        settled=replica.state in (ReplicaState.READY, ReplicaState.DRAINING),
        leaving=replica.state is ReplicaState.DRAINING,
        evictable=not pinned and cluster.is_idle(replica),
        unused_ms=cluster.unused_ms(replica),
        active=not cluster.is_idle(replica),
        version=replica.version if stays else "",
    )


def _assigned(replica: ReplicaView, node: str, memory_bytes: int) -> PlacedReplica:
    """The replica as the next ones in the same turn see it."""
    return PlacedReplica(
        *(replica.id, node, memory_bytes),
        settled=False,
        leaving=False,
        evictable=False,
        unused_ms=0,
        active=True,
        version=replica.version,
    )


def _leaving(resident: PlacedReplica) -> PlacedReplica:
    return replace(resident, leaving=True, evictable=False)


def _assignment(replica: ReplicaView, version: VersionView, node: str, deployment: DeploymentView, *, fetch: bool) -> Decision:
    memory_bytes = deployment.memory_bytes
    if fetch:
        return FetchModel(replica.id, replica.state, version.digest, node, memory_bytes, version.source, version.pull_name)
    return StartReplica(*(replica.id, replica.state, version.digest, node, version.model_blob, memory_bytes, deployment.engine))


def _evictions(cluster: ClusterState, version: VersionView, victims: tuple[str, ...]) -> Iterator[Decision]:
    for replica in cluster.replicas:
        if replica.id in victims:
            yield UnwantDeployment(
                replica.deployment, replica.version, f"unloaded to make room for {version.shown}", unused=True
            )


def _explain(replica: ReplicaView, reason: str, short_of: Shortage) -> Iterator[Decision]:
    if replica.reason != reason:
        yield ExplainReplica(replica.id, replica.state, reason, short_of)
