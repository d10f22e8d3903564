"""Metrics that one event loop writes and the scrape thread reads, without prometheus-client's locks.

In a busy gateway, those locks would cost more than all the rest of the counting. A scrape may see a request in one number and
not yet in another.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from itertools import accumulate

from services.protocol.waiting import Priority

#: Upper bounds of the histogram buckets for all durations, in seconds.
BOUNDS_S = (
    *(0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)
#: How a request can end, and its phase if the client disconnects.
OUTCOMES = ("answered", "failed", "expired", "rejected", "refused", "cancelled")
PHASES = ("waiting", "running")

_LABELS = (*(str(bound) for bound in BOUNDS_S), "+Inf")


class Distribution:
    """A histogram of durations."""

    __slots__ = ("_counts", "sum_s")

    def __init__(self) -> None:
        self._counts = [0] * len(_LABELS)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Pairs of a bucket's upper bound and the number of durations up to it."""
        return [(label, float(count)) for label, count in zip(_LABELS, accumulate(self._counts), strict=True)]


class ModelTally:
    """Metrics of all requests for one model."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.queue_wait: defaultdict[Priority, Distribution] = defaultdict(Distribution)
        self.first_token = Distribution()
        self.inter_token = Distribution()
        self.duration = Distribution()
        self.prefill = Distribution()
        self.decode = Distribution()
        self.cancelled = dict.fromkeys(PHASES, 0)


class TeamTally:
    """Metrics of one team's requests for one model."""

    def __init__(self) -> None:
        self.ended = dict.fromkeys(OUTCOMES, 0)
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.completion_tokens = 0
