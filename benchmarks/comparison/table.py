"""Combines the steps of a run: for each part of a workload the medians per server, the ratios, and the goals met. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

from comparison.measures import Measures
from comparison.ratios import Goal, Ratio, ratio
from comparison.steps import Place, Step

#: The measures whose ratios are meaningful.
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
    """By server: the `medians` over the rounds and the peak memory, with `worker_memory_bytes` for Corral's worker. By measure:
    the `ratios` of ours to theirs."""

    place: Place
    medians: Mapping[str, Measures]
    memory_bytes: Mapping[str, int]
    worker_memory_bytes: int
    ratios: Mapping[str, Ratio]


@dataclass(frozen=True)
class Outcome:
    """`ratio` is None if a server has no measures."""

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


def undisturbed(steps: Sequence[Step]) -> list[Step]:
    """The steps without disturbed rounds; with them if a place has no others."""
    disturbed = {(step.place, step.round) for step in steps if step.cost and not step.cost.was_quiet}
    places = {step.place for step in steps if step.measures and (step.place, step.round) not in disturbed}
    return [step for step in steps if step.place not in places or (step.place, step.round) not in disturbed]


def gains(rows: Sequence[Row], *, part: str, alone: int, together: int) -> dict[tuple[str, str], float]:
    """By model and server: the median time per token with `together` clients, relative to that with `alone`."""
    rates = {
        (row.place.model, server, row.place.clients): measures.output_tokens_per_s
        for row in rows
        if row.place.part == part
        for server, measures in row.medians.items()
    }
    return {
        (model, server): rates[model, server, alone] / rate
        for (model, server, clients), rate in rates.items()
        if clients == together and (model, server, alone) in rates
    }


def _row(place: Place, steps: Sequence[Step], ours: str, theirs: str) -> Row:
    by_server: dict[str, list[Measures]] = {}
    memory: dict[str, int] = {}
    for step in steps:
        if step.measures and step.cost:
            by_server.setdefault(step.server, []).append(step.measures)
            memory[step.server] = max(memory.get(step.server, 0), step.cost.memory_bytes)
    ratios = {name: ratio(_by_round(steps, ours, name), _by_round(steps, theirs, name)) for name in COMPARED}
    return Row(
        place,
        {server: _median(measures) for server, measures in by_server.items()},
        memory,
        max((step.cost.worker_memory_bytes for step in steps if step.cost), default=0),
        {name: value for name, value in ratios.items() if value},
    )


def _by_round(steps: Iterable[Step], server: str, measure: str) -> dict[int, float]:
    return {step.round: getattr(step.measures, measure) for step in steps if step.measures and step.server == server}


def _median(measures: Sequence[Measures]) -> Measures:
    return Measures(*(statistics.median(getattr(one, field.name) for one in measures) for field in fields(Measures)))
