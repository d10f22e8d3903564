"""The time of one request."""

from __future__ import annotations

import time
from datetime import UTC, datetime


class Stopwatch:
    """Starts when the request arrives. Wall time is read once and then runs with the monotonic clock, so it never steps."""

    def __init__(self) -> None:
        self._wall_ns = time.time_ns()
        self._start_ns = time.monotonic_ns()

    @property
    def started_at_s(self) -> int:
        """Seconds since the epoch."""
        return self._wall_ns // 1_000_000_000

    def elapsed_ns(self) -> int:
        """At least 1."""
        return max(1, time.monotonic_ns() - self._start_ns)

    def now(self) -> str:
        """UTC in RFC 3339 with six digits of a second, as in `2026-08-21T18:48:22.123456Z`."""
        seconds = (self._wall_ns + self.elapsed_ns()) / 1e9
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
