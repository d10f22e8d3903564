"""What all steps of a run say together: for each part of a workload the medians of each server, the ratios, and which goals are
met. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

from comparison.measures import Measures
from comparison.ratios import Goal, Ratio, ratio
from comparison.steps import Place, Step

#: Those measures whose ratio says something.
COMPARED = (
    "output_tokens_per_s",
    "prompt_tokens_per_s",
    "ttft_p50_s",
    "ttft_p99_s",
    "itl_p50_s",
    "itl_p99_s",
    "itl_max_s",
)


@dataclass(frozen=True)
class Row:
    """By server the `medians` over the rounds and the most memory, `worker_memory_bytes` being that of Corral's worker alone; by
    measure the `ratios` of ours to theirs."""

    place: Place
    medians: Mapping[str, Measures]
    memory_bytes: Mapping[str, int]
    worker_memory_bytes: int
    ratios: Mapping[str, Ratio]


@dataclass(frozen=True)
class Outcome:
    """`ratio` is None where a server gave no measures."""

    place: Place
    goal: Goal
    ratio: Ratio | None

    @property
    def verdict(self) -> str:
        return self.ratio.verdict(self.goal) if self.ratio else "not measured"


def tabulate(steps: Sequence[Step], *, ours: str, theirs: str) -> list[Row]:
    """In the order in which the places were first measured."""
    places = dict.fromkeys(step.place for step in steps if step.measures)
    return [_row(place, [step for step in steps if step.place == place], ours, theirs) for place in places]


def outcomes(rows: Iterable[Row], goals: Sequence[Goal]) -> list[Outcome]:
    """In the order of the rows."""
    return [
        Outcome(row.place, goal, row.ratios.get(goal.measure)) for row in rows for goal in goals if goal.part == row.place.part
    ]


def gains(steps: Sequence[Step], *, part: str, alone: int, together: int) -> dict[tuple[str, str], Ratio]:
    """By model and server: the time for each token with `together` clients, as a part of that with `alone`."""
    found = {}
    for model, server in dict.fromkeys((step.place.model, step.server) for step in steps if step.place.part == part):
        one = _by_round(steps, Place(model, part, alone), server, "output_tokens_per_s")
        many = _by_round(steps, Place(model, part, together), server, "output_tokens_per_s")
        if gain := ratio(one, many):
            found[model, server] = gain
    return found


def _row(place: Place, steps: Sequence[Step], ours: str, theirs: str) -> Row:
    by_server: dict[str, list[Measures]] = {}
    memory: dict[str, int] = {}
    for step in steps:
        if step.measures and step.cost:
            by_server.setdefault(step.server, []).append(step.measures)
            memory[step.server] = max(memory.get(step.server, 0), step.cost.memory_bytes)
    ratios = {name: ratio(_by_round(steps, place, ours, name), _by_round(steps, place, theirs, name)) for name in COMPARED}
    return Row(
        place,
        {server: _median(measures) for server, measures in by_server.items()},
        memory,
        max((step.cost.worker_memory_bytes for step in steps if step.cost), default=0),
        {name: value for name, value in ratios.items() if value},
    )


def _by_round(steps: Iterable[Step], place: Place, server: str, measure: str) -> dict[int, float]:
    return {
        step.round: getattr(step.measures, measure)
        for step in steps
        if step.measures and step.place == place and step.server == server
    }


def _median(measures: Sequence[Measures]) -> Measures:
    return Measures(*(statistics.median(getattr(one, field.name) for one in measures) for field in fields(Measures)))
