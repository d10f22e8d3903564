"""Chooses a node for a replica, and gives a reason for each node that was not chosen. Pure.

A node fits if it is ready, holds the model's file or can fetch it, and has enough free memory. Among the nodes that fit, those
with the fewest replicas of the same version come first, then the one with the least work per core (a fetch counts as work).
If no node has enough free memory, idle replicas that are not pinned are evicted, least recently used first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from services.weights.memory import gib

# Work on a node's cores, in arbitrary units: of a replica that is busy or will be soon, of an idle one, and of fetching a file.
ACTIVE_WORK, IDLE_WORK, FETCH_WORK = 2, 1, 4

#: The first thing that is missing on all nodes: a ready node; the model's file, or a source for it; disk space; memory.
Shortage = Literal["nodes", "file", "disk", "memory"]


@dataclass(frozen=True)
class NodeCapacity:
    """A node as placement sees it, for one version. Sizes in bytes.

    - `usable`: the most memory that all replicas together may take there.
    - `available`: the machine's free memory now; None on a node with accelerators, whose memory it does not cover.
    - `holds`: the model's file is there. `fetch_failed`: the version's last replica failed to fetch it there.
    """

    node: str
    ready: bool
    usable: int
    available: int | None
    disk_free: int
    holds: bool
    cores: int = 1
    fetch_failed: bool = False


@dataclass(frozen=True)
class PlacedReplica:
    """A live replica that has a node.

    - `settled`: the node's `available` already accounts for its memory.
    - `leaving`: it is draining, or will be.
    - `evictable`: it is idle and not pinned.
    - `active`: it is busy, or will be soon.
    - `version`: the version that it serves; empty if it has outdated settings and another replica will replace it.
    """

    replica: str
    node: str
    memory_bytes: int
    settled: bool
    leaving: bool
    evictable: bool
    unused_ms: int
    active: bool = True
    version: str = ""


@dataclass(frozen=True)
class PlacementRequest:
    """What a replica needs: memory, and disk for the file if the node must fetch it, in bytes. `fetchable`: the model has a
    source that any node can fetch it from."""

    memory_bytes: int
    file_bytes: int
    fetchable: bool
    version: str = ""


@dataclass(frozen=True)
class ChosenNode:
    node: str
    fetch: bool


@dataclass(frozen=True)
class Evict:
    """These replicas must be unloaded from the node first."""

    node: str
    replicas: tuple[str, ...]


@dataclass(frozen=True)
class Wait:
    """No node fits now."""


@dataclass(frozen=True)
class Placement:
    """`refusals` holds the reason for each node that was not chosen, by node."""

    outcome: ChosenNode | Evict | Wait
    refusals: dict[str, str] = field(default_factory=dict)

    @property
    def reason(self) -> str:
        """All refusals in one line, for the replica's reason."""
        return "; ".join(f"{node} {reason}" for node, reason in sorted(self.refusals.items())) or "no node has reported yet"


def free_bytes(capacity: NodeCapacity, placed: Sequence[PlacedReplica]) -> int:
    """The lower of two numbers: the memory that is not promised to any replica, and the machine's free memory less what
    replicas that are not settled will take."""
    here = [replica for replica in placed if replica.node == capacity.node]
    unpromised = capacity.usable - sum(replica.memory_bytes for replica in here)
    if capacity.available is None:
        return unpromised
    return min(unpromised, capacity.available - sum(replica.memory_bytes for replica in here if not replica.settled))


def place(request: PlacementRequest, capacities: Sequence[NodeCapacity], placed: Sequence[PlacedReplica]) -> Placement:
    free = {capacity.node: free_bytes(capacity, placed) for capacity in capacities}
    refusals = {
        capacity.node: reason for capacity in capacities if (reason := _refusal(request, capacity, free[capacity.node]))
    }
    ranks = {capacity.node: _rank(request, capacity, placed) for capacity in capacities}
    fit = sorted(
        (capacity for capacity in capacities if capacity.node not in refusals),
        key=lambda capacity: (ranks[capacity.node], -free[capacity.node], capacity.node),
    )
    if fit:
        chosen, *others = fit
        refusals |= {capacity.node: _second(capacity, ranks[chosen.node], ranks[capacity.node]) for capacity in others}
        return Placement(ChosenNode(chosen.node, fetch=not chosen.holds), refusals)
    tight = [capacity for capacity in capacities if _unfit(request, capacity) is None]
    return Placement(_make_room(request, tight, placed, free), refusals)


@dataclass(frozen=True, order=True)
class _Rank:
    """How good a node is for the replica; the lowest rank is the best."""

    fetch_failed: bool
    siblings: int
    work: float
    fetches: bool


def _rank(request: PlacementRequest, capacity: NodeCapacity, placed: Sequence[PlacedReplica]) -> _Rank:
    here = [replica for replica in placed if replica.node == capacity.node and not replica.leaving]
    siblings = sum(bool(request.version) and replica.version == request.version for replica in here)
    work = ACTIVE_WORK + sum(ACTIVE_WORK if replica.active else IDLE_WORK for replica in here)
    if not capacity.holds:
        work += FETCH_WORK
    return _Rank(capacity.fetch_failed and not capacity.holds, siblings, work / max(1, capacity.cores), not capacity.holds)


def shortage(request: PlacementRequest, capacities: Sequence[NodeCapacity]) -> Shortage:
    """What all nodes lack, for a request that no node fits."""
    ready = [capacity for capacity in capacities if capacity.ready]
    reachable = [capacity for capacity in ready if capacity.holds or request.fetchable]
    if not ready:
        return "nodes"
    if not reachable:
        return "file"
    if not any(capacity.holds or capacity.disk_free >= request.file_bytes for capacity in reachable):
        return "disk"
    return "memory"


def never(request: PlacementRequest, capacities: Sequence[NodeCapacity]) -> str | None:
    """Why no node could take it even if it were ready and empty; None if one could, or if no node is known."""
    reachable = [capacity for capacity in capacities if capacity.holds or request.fetchable]
    if capacities and not reachable:
        return "no node has its file"
    largest = max(reachable, key=lambda capacity: capacity.usable, default=None)
    if largest is None or largest.usable >= request.memory_bytes:
        return None
    return f"it needs {gib(request.memory_bytes)} of memory and the largest node, {largest.node}, has {gib(largest.usable)} for models"


def _unfit(request: PlacementRequest, capacity: NodeCapacity) -> str | None:
    """Why the node does not fit even if all its memory were free."""
    if not capacity.ready:
        return "is lost"
    if not capacity.holds and not request.fetchable:
        return "does not have the model's file and cannot fetch it, because its source is a path on another node or a URL with a query"
    if not capacity.holds and capacity.disk_free < request.file_bytes:
        return f"has {gib(capacity.disk_free)} of disk free, the model's file needs {gib(request.file_bytes)}"
    if capacity.usable < request.memory_bytes:
        return f"has {gib(capacity.usable)} of memory for models, {gib(request.memory_bytes)} are needed"
    return None


def _refusal(request: PlacementRequest, capacity: NodeCapacity, free: int) -> str | None:
    if reason := _unfit(request, capacity):
        return reason
    if free < request.memory_bytes:
        return f"has {gib(max(0, free))} of memory free, {gib(request.memory_bytes)} are needed"
    return None


def _second(capacity: NodeCapacity, best: _Rank, rank: _Rank) -> str:
    if rank.fetch_failed and not best.fetch_failed:
        return "failed to fetch the model's file"
    if rank.siblings > best.siblings:
        return f"already has {rank.siblings} of the model's replicas"
    if rank.fetches and not best.fetches:
        return "would have to fetch the model's file"
    if rank.work > best.work:
        return f"has a higher load on its {capacity.cores} cores than the chosen node"
    return "has no more free memory than the chosen node"


def _make_room(
    request: PlacementRequest, tight: Sequence[NodeCapacity], placed: Sequence[PlacedReplica], free: dict[str, int]
) -> Evict | Wait:
    """Evicts on the node that has to give up the fewest replicas. Waits if replicas that are leaving will free enough
    memory."""
    options: list[Evict] = []
    for capacity in tight:
        here = [replica for replica in placed if replica.node == capacity.node]
        promised = free[capacity.node] + sum(replica.memory_bytes for replica in here if replica.leaving)
        if promised >= request.memory_bytes:
            return Wait()
        if victims := _victims(request.memory_bytes - promised, here):
            options.append(Evict(capacity.node, victims))
    return min(options, key=lambda evict: (len(evict.replicas), evict.node), default=Wait())


def _victims(missing: int, here: Sequence[PlacedReplica]) -> tuple[str, ...]:
    """Idle replicas that free `missing` bytes, least recently used first; empty if even all of them do not free enough."""
    victims: list[str] = []
    idle = [replica for replica in here if replica.evictable and not replica.leaving]
    for replica in sorted(idle, key=lambda replica: (-replica.unused_ms, replica.replica)):
        victims.append(replica.replica)
        missing -= replica.memory_bytes
        if missing <= 0:
            return tuple(victims)
    return ()
