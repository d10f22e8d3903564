"""What a run writes down."""

from __future__ import annotations

from dataclasses import dataclass, field

from comparison.costs import Cost
from comparison.machine import Machine
from comparison.measures import Measures


@dataclass(frozen=True)
class Place:
    """What has a row of its own in the tables: a part of a workload."""

    model: str
    part: str
    clients: int


@dataclass(frozen=True)
class Step:
    """One part of a workload, in one round, on one server; `error` says why there are no measures. The cost is that of all parts
    of the workload together."""

    place: Place
    round: int
    server: str
    measures: Measures | None = None
    cost: Cost | None = None
    error: str = ""


@dataclass
class Report:
    """The JSON file. `minutes` is how long the run took."""

    machine: Machine
    rounds: int
    minutes: float = 0.0
    steps: list[Step] = field(default_factory=list)
