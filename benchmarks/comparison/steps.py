"""The results that a run records."""

from __future__ import annotations

from dataclasses import dataclass, field

from comparison.costs import Cost
from comparison.machine import Machine
from comparison.measures import Measures


@dataclass(frozen=True)
class Place:
    """A part of a workload with a number of clients; it has its own rows in the tables."""

    model: str
    part: str
    clients: int


@dataclass(frozen=True)
class Step:
    """One part of a workload, in one round, on one server. If there are no measures, `error` is the reason. The cost is that of
    all parts of the workload together."""

    place: Place
    round: int
    server: str
    measures: Measures | None = None
    cost: Cost | None = None
    error: str = ""


@dataclass
class Report:
    """The content of the JSON file. `minutes` is the duration of the run."""

    machine: Machine
    rounds: int
    minutes: float = 0.0
    steps: list[Step] = field(default_factory=list)
