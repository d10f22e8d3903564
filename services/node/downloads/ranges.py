"""Ranges of bytes in a file, half-open. A set of them is a tuple that is sorted, disjoint, and without two that touch. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Range(NamedTuple):
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


Ranges = tuple[Range, ...]


def union(ranges: Iterable[Range]) -> Ranges:
    """Merges ranges that overlap or touch, and drops empty ones."""
    merged: list[Range] = []
    for one in sorted(one for one in ranges if one.size > 0):
        if merged and one.start <= merged[-1].stop:
            merged[-1] = Range(merged[-1].start, max(merged[-1].stop, one.stop))
        else:
            merged.append(one)
    return tuple(merged)


def gaps(ranges: Ranges, size: int) -> Ranges:
    """The ranges of a file of `size` bytes that are not in `ranges`."""
    starts = [0, *(one.stop for one in ranges)]
    stops = [*(one.start for one in ranges), size]
    return tuple(Range(start, stop) for start, stop in zip(starts, stops, strict=True) if start < stop)


def total(ranges: Iterable[Range]) -> int:
    return sum(one.size for one in ranges)
