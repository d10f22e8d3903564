"""How requests wait: on which terms they are let in, where they stand in the queue, and for how long."""

from __future__ import annotations

import enum
import math

import msgspec

#: What a refused client is told at least and at most, and where nobody knows how fast the queue drains: while a model loads, say.
MIN_RETRY_S = 1
MAX_RETRY_S = 300
UNKNOWN_RETRY_S = 10


class Priority(enum.StrEnum):
    """The most urgent first. Each is a band of the queue; within one, callers share by their weights."""

    INTERACTIVE = "interactive"
    NORMAL = "normal"
    BATCH = "batch"

    @property
    def band(self) -> int:
        return _BANDS[self]

    def at_most(self, allowed: Priority) -> Priority:
        """This one, or `allowed` where this is more urgent."""
        return max(self, allowed, key=_BANDS.__getitem__)


_BANDS = {priority: band for band, priority in enumerate(Priority)}


class Terms(msgspec.Struct, frozen=True):
    """On which a request waits. `caller_limit`: how many of its caller's may wait for the version, None: any number.
    `timeout_ms`: it is not begun with after so long, None: it waits for ever."""

    priority: Priority = Priority.NORMAL
    weight: float = 1.0
    caller_limit: int | None = None
    timeout_ms: int | None = None


class Place(msgspec.Struct, frozen=True):
    """Where a request stands. `position` counts from 1; 0: a worker was idle and takes it now. `wait_s` is an estimate by how fast the
    queue drains, None where that is not known. Others may come in before it: callers take turns."""

    position: int
    wait_s: float | None


class VersionQueue(msgspec.Struct, frozen=True):
    """What waits for a version. `waiting` is by priority, `callers` by caller, `per_second` the requests that leave for a worker while
    others wait, None where not measured."""

    version: str
    waiting: dict[Priority, int]
    oldest_ms: int
    per_second: float | None
    callers: dict[str, int]


def place(position: int, per_second: float | None) -> Place:
    if position == 0:
        return Place(0, 0.0)
    return Place(position, position / per_second if per_second else None)


def retry_after_s(ahead: int, per_second: float | None) -> int:
    """Whole seconds until so many requests will have left the queue, at the rate at which it drains now."""
    if not per_second:
        return UNKNOWN_RETRY_S
    return math.ceil(min(max(ahead / per_second, MIN_RETRY_S), MAX_RETRY_S))
