"""Which node a replica goes to, and for each other one why not. Pure: nodes and wants in, an assignment or reasons out.

A node is fit when it is ready, holds the model's file or may fetch it, and has the memory free. Of the fit ones those that
hold the file come first, then the least loaded. Where memory is short, idle replicas that nobody pinned make room, the
least recently used first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from services.protocol.memory import gib

#: What is needed and no node has, the first that is missing: a node that is ready; the model's file, or where to fetch it; disk for it; memory.
Shortage = Literal["nodes", "file", "disk", "memory"]


@dataclass(frozen=True)
class Room:
    """A node as placement sees it. Bytes; `usable` is all that replicas may ever take there, `available` what the machine
    says is free now (None where that does not count, as with accelerators). `holds` says whether the model's file is there."""

    node: str
    ready: bool
    usable: int
    available: int | None
    disk_free: int
    holds: bool


@dataclass(frozen=True)
class Resident:
    """A live replica. `settled`: what it takes shows in the node's own numbers; `leaving`: it will be gone soon; `evictable`:
    it is idle and nobody pinned it."""

    replica: str
    node: str
    memory_bytes: int
    settled: bool
    leaving: bool
    evictable: bool
    unused_ms: int


@dataclass(frozen=True)
class Want:
    """Bytes of memory, and of the file where the node must fetch it first."""

    memory_bytes: int
    file_bytes: int
    fetchable: bool


@dataclass(frozen=True)
class Place:
    node: str
    fetch: bool


@dataclass(frozen=True)
class Evict:
    """These replicas of one node must go first."""

    node: str
    replicas: tuple[str, ...]


@dataclass(frozen=True)
class Wait:
    """No node now."""


@dataclass(frozen=True)
class Placement:
    """`refusals` says for each node that was not chosen why."""

    outcome: Place | Evict | Wait
    refusals: dict[str, str] = field(default_factory=dict)

    @property
    def reason(self) -> str:
        """In one line, for whoever waits."""
        return "; ".join(f"{node} {reason}" for node, reason in sorted(self.refusals.items())) or "no node has reported yet"


def free_bytes(room: Room, residents: Sequence[Resident]) -> int:
    """What is promised to nobody, and really free."""
    here = [resident for resident in residents if resident.node == room.node]
    unpromised = room.usable - sum(resident.memory_bytes for resident in here)
    if room.available is None:
        return unpromised
    return min(unpromised, room.available - sum(resident.memory_bytes for resident in here if not resident.settled))


def place(want: Want, rooms: Sequence[Room], residents: Sequence[Resident]) -> Placement:
    free = {room.node: free_bytes(room, residents) for room in rooms}
    refusals = {room.node: reason for room in rooms if (reason := _refusal(want, room, free[room.node]))}
    fit = sorted(
        (room for room in rooms if room.node not in refusals), key=lambda room: (not room.holds, -free[room.node], room.node)
    )
    if fit:
        chosen, *others = fit
        refusals |= {room.node: _second(chosen, room) for room in others}
        return Placement(Place(chosen.node, fetch=not chosen.holds), refusals)
    tight = [room for room in rooms if _unfit(want, room) is None]
    return Placement(_make_room(want, tight, residents, free), refusals)


def shortage(want: Want, rooms: Sequence[Room]) -> Shortage:
    """Of a want that found no place."""
    ready = [room for room in rooms if room.ready]
    reachable = [room for room in ready if room.holds or want.fetchable]
    if not ready:
        return "nodes"
    if not reachable:
        return "file"
    if not any(room.holds or room.disk_free >= want.file_bytes for room in reachable):
        return "disk"
    return "memory"


def never(want: Want, rooms: Sequence[Room]) -> str | None:
    """Why no node that there is can ever take this, lost ones included; None where one could, or none has reported."""
    reachable = [room for room in rooms if room.holds or want.fetchable]
    if rooms and not reachable:
        return "its file is on no node"
    largest = max(reachable, key=lambda room: room.usable, default=None)
    if largest is None or largest.usable >= want.memory_bytes:
        return None
    return f"it needs {gib(want.memory_bytes)} of memory and the largest node, {largest.node}, has {gib(largest.usable)} for models"


def _unfit(want: Want, room: Room) -> str | None:
    """Why waiting for memory would not help."""
    if not room.ready:
        return "is lost"
    if not room.holds and not want.fetchable:
        return "does not hold the model's file"
    if not room.holds and room.disk_free < want.file_bytes:
        return f"has {gib(room.disk_free)} of disk free, the model's file takes {gib(want.file_bytes)}"
    if room.usable < want.memory_bytes:
        return f"has {gib(room.usable)} of memory for models, {gib(want.memory_bytes)} are needed"
    return None


def _refusal(want: Want, room: Room, free: int) -> str | None:
    if reason := _unfit(want, room):
        return reason
    if free < want.memory_bytes:
        return f"has {gib(max(0, free))} of memory free, {gib(want.memory_bytes)} are needed"
    return None


def _second(chosen: Room, room: Room) -> str:
    return "would have to fetch the model's file" if chosen.holds and not room.holds else "is more loaded than the chosen one"


def _make_room(want: Want, tight: Sequence[Room], residents: Sequence[Resident], free: dict[str, int]) -> Evict | Wait:
    """The node where the fewest have to go. Where enough memory is being given up already, nobody else has to."""
    options: list[Evict] = []
    for room in tight:
        here = [resident for resident in residents if resident.node == room.node]
        promised = free[room.node] + sum(resident.memory_bytes for resident in here if resident.leaving)
        if promised >= want.memory_bytes:
            return Wait()
        if victims := _victims(want.memory_bytes - promised, here):
            options.append(Evict(room.node, victims))
    return min(options, key=lambda evict: (len(evict.replicas), evict.node), default=Wait())


def _victims(missing: int, here: Sequence[Resident]) -> tuple[str, ...]:
    """The least recently used first, and no more than needed; none where all of them together are too few."""
    victims: list[str] = []
    idle = [resident for resident in here if resident.evictable and not resident.leaving]
    for resident in sorted(idle, key=lambda resident: (-resident.unused_ms, resident.replica)):
        victims.append(resident.replica)
        missing -= resident.memory_bytes
        if missing <= 0:
            return tuple(victims)
    return ()
