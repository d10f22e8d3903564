"""A limit on the bytes per second of all downloads of a node together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class RateLimit:
    """Thread-safe. A rate of 0 is no limit."""

    def __init__(self, bytes_per_s: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = 0.0

    def delay_s(self, count: int) -> float:
        """Counts bytes that were received. Returns how long to wait before receiving more."""
        if not self._bytes_per_s:
            return 0.0
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now) + count / self._bytes_per_s
            return self._free_at - now
