"""Pending replicas and the world in, assignments out: fills placement.py's values. Pure.

Replicas are placed one after the other, the oldest first, each seeing the memory that was promised to those before it.
"""

from __future__ import annotations

from collections.abc import Iterator

from services.registry.decisions import Decision, ExplainReplica, FetchModel, StartReplica, UnwantDeployment
from services.registry.placement import Evict, Place, Resident, Room, Shortage, Wait, Want, never, place, shortage
from services.registry.states import NodeState, Origin, ReplicaState
from services.registry.world import DeploymentView, NodeView, ReplicaView, VersionView, World


def assign_pending(world: World) -> Iterator[Decision]:
    residents = [resident for replica in world.replicas if (resident := _resident(world, replica))]
    deployments = {deployment.id: deployment for deployment in world.deployments}
    pending = [replica for replica in world.replicas if replica.state is ReplicaState.PENDING]
    for replica in sorted(pending, key=lambda replica: replica.id):
        deployment, version = deployments[replica.deployment], world.versions[replica.version]
        asked_for = deployment.origin is Origin.PINNED or world.waiting(version.digest)
        if not deployment.replicas_wanted or not version.wanted or not asked_for:
            continue
        want, found = _want(version, deployment.memory_bytes), rooms(world, version)
        placement = place(want, found, residents)
        match placement.outcome:
            case Place(node, fetch):
                residents.append(Resident(replica.id, node, deployment.memory_bytes, False, False, False, 0))
                yield _assignment(replica, version, node, deployment, fetch=fetch)
            case Evict(node, victims):
                yield from _evictions(world, version, victims)
                residents = [_leaving(resident) if resident.replica in victims else resident for resident in residents]
                reason = f"{placement.reason}; an idle model on {node} makes room"
                yield from _explain(replica, reason, shortage(want, found))
            case Wait():
                yield from _explain(replica, placement.reason, shortage(want, found))


def never_placed(world: World, version: str) -> str | None:
    """Why no node can ever serve the version under the present settings."""
    view = world.versions[version]
    return never(_want(view, view.memory_bytes), rooms(world, view))


def rooms(world: World, version: VersionView) -> list[Room]:
    return [_room(world, node, version) for node in world.nodes.values()]


def _room(world: World, node: NodeView, version: VersionView) -> Room:
    """Accelerators add to what replicas may take; the machine's own free memory then says nothing about them."""
    return Room(
        node=node.name,
        ready=node.state is NodeState.READY,
        usable=max(0, node.memory_total + node.device_memory - world.policy.memory_reserve_bytes),
        available=None if node.device_memory else node.memory_available,
        disk_free=node.disk_free,
        holds=version.model_blob in node.blobs,
    )


def _want(version: VersionView, memory_bytes: int) -> Want:
    return Want(memory_bytes, version.file_bytes, fetchable=bool(version.source))


def _resident(world: World, replica: ReplicaView) -> Resident | None:
    if replica.node is None or replica.state.is_over:
        return None
    pinned = any(deployment.id == replica.deployment and deployment.origin is Origin.PINNED for deployment in world.deployments)
    return Resident(
        replica=replica.id,
        node=replica.node,
        memory_bytes=replica.memory_bytes,
        settled=replica.state in (ReplicaState.READY, ReplicaState.DRAINING),
        leaving=replica.state is ReplicaState.DRAINING,
        evictable=not pinned and world.is_idle(replica),
        unused_ms=world.unused_ms(replica),
    )


def _leaving(resident: Resident) -> Resident:
    return Resident(resident.replica, resident.node, resident.memory_bytes, resident.settled, True, False, resident.unused_ms)


def _assignment(replica: ReplicaView, version: VersionView, node: str, deployment: DeploymentView, *, fetch: bool) -> Decision:
    memory_bytes = deployment.memory_bytes
    if fetch:
        return FetchModel(replica.id, replica.state, version.digest, node, memory_bytes, version.source, version.pull_name)
    return StartReplica(*(replica.id, replica.state, version.digest, node, version.model_blob, memory_bytes, deployment.engine))


def _evictions(world: World, version: VersionView, victims: tuple[str, ...]) -> Iterator[Decision]:
    for replica in world.replicas:
        if replica.id in victims:
            yield UnwantDeployment(replica.deployment, replica.version, f"made room for {version.shown}", unused=True)


def _explain(replica: ReplicaView, reason: str, short_of: Shortage) -> Iterator[Decision]:
    if replica.reason != reason:
        yield ExplainReplica(replica.id, replica.state, reason, short_of)
