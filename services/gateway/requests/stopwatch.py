"""Timing of one request."""

from __future__ import annotations

import time
from datetime import UTC, datetime


class Stopwatch:
    """Starts when it is created. The wall clock is read once and then advanced by the monotonic clock, so timestamps never
    jump."""

    def __init__(self) -> None:
        self._wall_ns = time.time_ns()
        self._start_ns = time.monotonic_ns()
        self._second = -1
        self._formatted = ""

    @property
    def started_at_s(self) -> int:
        """Start time, in seconds since the epoch."""
        return self._wall_ns // 1_000_000_000

    def elapsed_ns(self) -> int:
        """Time since the start; at least 1."""
        return max(1, time.monotonic_ns() - self._start_ns)

    def now(self) -> str:
        """The current time in UTC, as RFC 3339 with microseconds: `2026-08-21T18:48:22.123456Z`."""
        second, nanoseconds = divmod(self._wall_ns + self.elapsed_ns(), 1_000_000_000)
        if second != self._second:  # a stream calls this for every token, and strftime would be most of a line's cost
            self._second = second
            self._formatted = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return f"{self._formatted}.{nanoseconds // 1000:06d}Z"
