"""Priorities, admission terms, queue positions and wait estimates."""

from __future__ import annotations

import enum
import math

import msgspec

#: Bounds of the Retry-After value of a refused request, and its value if the drain rate is unknown, for example while a model loads.
MIN_RETRY_AFTER_S = 1
MAX_RETRY_AFTER_S = 60
DEFAULT_RETRY_AFTER_S = 10


class Priority(enum.StrEnum):
    """Priorities, most urgent first. Each is a band of the queue. Within a band, callers share by weight."""

    INTERACTIVE = "interactive"
    NORMAL = "normal"
    BATCH = "batch"

    @property
    def band(self) -> int:
        return _BANDS[self]

    def at_most(self, allowed: Priority) -> Priority:
        """The less urgent of this priority and `allowed`."""
        return max(self, allowed, key=_BANDS.__getitem__)


_BANDS = {priority: band for band, priority in enumerate(Priority)}


class Terms(msgspec.Struct, frozen=True):
    """The terms on which a request waits. `caller_limit`: how many requests of its caller may wait for the version, None: no limit.
    `timeout_ms`: the maximum time in the queue, None: no limit."""

    priority: Priority = Priority.NORMAL
    weight: float = 1.0
    caller_limit: int | None = None
    timeout_ms: int | None = None


class QueuePosition(msgspec.Struct, frozen=True):
    """A request's position in its queue, counted from 1; 0: an idle worker was woken for it. `wait_s` is estimated from the drain rate,
    None if the rate is unknown. Since callers take turns, later requests may still get ahead."""

    position: int
    wait_s: float | None


class VersionQueue(msgspec.Struct, frozen=True):
    """The queue of one version. `waiting` counts waiting requests by priority, `callers` by caller. `oldest_ms` is how long the oldest has
    waited. `per_second` is the drain rate: how many requests workers claim per second while requests wait, None if unknown."""

    version: str
    waiting: dict[Priority, int]
    oldest_ms: int
    per_second: float | None
    callers: dict[str, int]


def place(position: int, per_second: float | None) -> QueuePosition:
    if position == 0:
        return QueuePosition(0, 0.0)
    return QueuePosition(position, position / per_second if per_second else None)


def retry_after_s(ahead: int, per_second: float | None) -> int:
    """The expected time until `ahead` requests have left the queue, in whole seconds, between MIN_RETRY_AFTER_S and MAX_RETRY_AFTER_S."""
    if not per_second:
        return DEFAULT_RETRY_AFTER_S
    return math.ceil(min(max(ahead / per_second, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S))
