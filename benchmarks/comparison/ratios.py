"""Ratios of two servers, taken within each round, and the goals for them. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

#: UNSURE: the rounds lie on both sides of the goal, so it is neither met nor missed.
MET, MISSED, UNSURE = "met", "missed", "within noise"


@dataclass(frozen=True)
class Goal:
    """For one part of a workload: the median ratio of `measure` must be at least, or at most, this value."""

    part: str
    measure: str
    at_least: float | None = None
    at_most: float | None = None

    def __str__(self) -> str:
        return f"≥ {self.at_least:.2f}" if self.at_least is not None else f"≤ {self.at_most:.2f}"


@dataclass(frozen=True)
class Ratio:
    """The ratio's median and range over the rounds."""

    median: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.lowest:.2f} to {self.highest:.2f})"

    def verdict(self, goal: Goal) -> str:
        """Met if the median meets the goal; within noise if only some round does."""
        if goal.at_least is not None:
            median_meets, best_meets = self.median >= goal.at_least, self.highest >= goal.at_least
        else:
            assert goal.at_most is not None
            median_meets, best_meets = self.median <= goal.at_most, self.lowest <= goal.at_most
        return MET if median_meets else UNSURE if best_meets else MISSED


def ratio(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Ratio | None:
    """The values are by round; only rounds with both values count. None if there are no such rounds."""
    ratios = [ours[number] / theirs[number] for number in sorted(ours.keys() & theirs.keys()) if theirs[number] > 0]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios)) if ratios else None
