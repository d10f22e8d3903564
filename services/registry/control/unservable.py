"""Why waiting requests for a version cannot be served now. Pure.

Requests keep waiting for anything that resolves itself: a replica that is loading, a retry that is due, memory that a busy
model will free. They are refused at once if no node is ready, if every copy of the file is on lost nodes, or if no node has
room even when every model that may be unloaded is.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.registry.control.assign import capacities
from services.registry.control.cluster_state import ClusterState, ReplicaView, VersionView
from services.registry.control.placement import NodeCapacity
from services.registry.states import Origin, ReplicaState
from services.weights.memory import gib

#: How long a replica must have waited before a shortage of the machine's free memory counts. That number lags when a process
#: ends.
MEASURED_SHORTAGE_S = 10.0


def unservable(cluster: ClusterState, version: str) -> str | None:
    """None if a node can serve it now or soon, or if this leader has watched for less than `node_lost_after_s`."""
    if cluster.age_s(cluster.watching_since) < cluster.policy.node_lost_after_s:
        return None
    view = cluster.versions[version]
    found = capacities(cluster, view)
    ready = [capacity for capacity in found if capacity.ready]
    if not ready:
        return f"no node is ready: {_lost(cluster, found)}" if found else "no node has joined"
    reachable = [capacity for capacity in ready if capacity.holds or view.source]
    if not reachable:
        return _copies_lost(cluster, [capacity for capacity in found if capacity.holds])
    refusals = [_shortage(cluster, view, capacity) for capacity in reachable]
    return None if None in refusals else "; ".join(sorted(filter(None, refusals)))


def _copies_lost(cluster: ClusterState, holders: Sequence[NodeCapacity]) -> str | None:
    match holders:
        case []:
            return None  # placement.never covers this case
        case [_]:
            return f"its only copy is on node {_lost(cluster, holders)}"
        case _:
            return f"all its copies are on lost nodes: {_lost(cluster, holders)}"


def _lost(cluster: ClusterState, lost: Sequence[NodeCapacity]) -> str:
    seen = {capacity.node: cluster.nodes[capacity.node].last_seen_at for capacity in lost}
    return "; ".join(f"{node}, which has been lost since {at:%Y-%m-%d %H:%M:%S} UTC" for node, at in sorted(seen.items()))


def _shortage(cluster: ClusterState, version: VersionView, capacity: NodeCapacity) -> str | None:
    if not capacity.holds and capacity.disk_free < version.file_bytes:
        return f"{capacity.node} has {gib(capacity.disk_free)} of disk free, the model's file needs {gib(version.file_bytes)}"
    needed = gib(version.memory_bytes)
    promised, measured = _most_memory(cluster, version, capacity)
    if promised < version.memory_bytes:
        return f"{capacity.node} has {gib(max(0, promised))} of memory beside the models that stay loaded, {needed} are needed"
    if measured < version.memory_bytes and _has_waited(cluster, version.digest):
        return f"{capacity.node} has {gib(max(0, measured))} of memory even if all models are unloaded, {needed} are needed"
    return None


def _most_memory(cluster: ClusterState, version: VersionView, capacity: NodeCapacity) -> tuple[int, int]:
    """The bytes that the version could get on the node if every model that may be unloaded is: by reservations, and by the
    machine's free memory."""
    here = [replica for replica in cluster.replicas if replica.node == capacity.node and not replica.state.is_over]
    staying = [replica for replica in here if _stays(cluster, replica) and replica.version != version.digest]
    promised = capacity.usable - sum(replica.memory_bytes for replica in staying)
    if capacity.available is None:
        return promised, promised
    given_back = sum(replica.memory_bytes for replica in here if replica not in staying and _is_settled(replica))
    still_taken = sum(replica.memory_bytes for replica in staying if not _is_settled(replica))
    return promised, capacity.available + given_back - still_taken


def _stays(cluster: ClusterState, replica: ReplicaView) -> bool:
    return replica.state is not ReplicaState.DRAINING and cluster.deployment(replica).origin is Origin.PINNED


def _is_settled(replica: ReplicaView) -> bool:
    """Whether the machine's free memory already accounts for it."""
    return replica.state in (ReplicaState.READY, ReplicaState.DRAINING)


def _has_waited(cluster: ClusterState, version: str) -> bool:
    return any(
        replica.state is ReplicaState.PENDING and cluster.age_s(replica.state_changed_at) > MEASURED_SHORTAGE_S
        for replica in cluster.live(version)
    )
