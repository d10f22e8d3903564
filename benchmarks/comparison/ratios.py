"""Ratios of two servers, taken within each round, and what is wanted of them. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

#: Ratios of runs whose rounds spread across the goal say neither that it is met nor that it is missed.
MET, MISSED, UNSURE = "met", "missed", "within noise"


@dataclass(frozen=True)
class Goal:
    """Of one part of a workload: its `measure`'s median ratio is to be at least, or at most, so much."""

    part: str
    measure: str
    at_least: float | None = None
    at_most: float | None = None

    def __str__(self) -> str:
        return f"≥ {self.at_least:.2f}" if self.at_least is not None else f"≤ {self.at_most:.2f}"


@dataclass(frozen=True)
class Ratio:
    """Over the rounds."""

    median: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.lowest:.2f} to {self.highest:.2f})"

    def verdict(self, goal: Goal) -> str:
        """Met where the median meets it; within noise where it does not, but a round did."""
        if goal.at_least is not None:
            median_meets, best_meets = self.median >= goal.at_least, self.highest >= goal.at_least
        else:
            assert goal.at_most is not None
            median_meets, best_meets = self.median <= goal.at_most, self.lowest <= goal.at_most
        return MET if median_meets else UNSURE if best_meets else MISSED


def ratio(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Ratio | None:
    """Values by the number of the round; only those rounds count in which both have one. None where there is none."""
    ratios = [ours[number] / theirs[number] for number in sorted(ours.keys() & theirs.keys()) if theirs[number] > 0]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios)) if ratios else None
