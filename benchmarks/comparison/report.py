"""The tables of a run in Markdown, which is also readable in a terminal."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from comparison.catalog import ARRIVAL, GOALS, INDEPENDENT, MEASURE_NAMES
from comparison.costs import QUIET_SHARE
from comparison.models import MODELS
from comparison.servers import CORRAL, LLAMA_SERVER
from comparison.steps import Report, Step
from comparison.table import Outcome, Row, gains, outcomes, tabulate, undisturbed

BEGIN, END = "<!-- engine.py: begin -->", "<!-- engine.py: end -->"


class NoMarkers(Exception):
    """The page has no markers for the tables."""


def render(report: Report) -> str:
    steps = undisturbed(report.steps)
    rows = tabulate(steps, ours=CORRAL, theirs=LLAMA_SERVER)
    parts = [_preface(report, steps), _goals(outcomes(rows, GOALS))]
    for model in dict.fromkeys(row.place.model for row in rows):
        parts.append(f"**{MODELS[model].title}**, medians over the rounds; memory is the most of any round")
        parts.append(_medians([row for row in rows if row.place.model == model]))
    parts += [*_together(rows), *_remarks(report, rows)]
    return "\n\n".join(parts) + "\n"


def replace(page: Path, text: str) -> None:
    """Writes the tables between the page's two markers. Raises NoMarkers."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise NoMarkers(f"{page} has no {BEGIN} followed by {END}")
    page.write_text(f"{before}{BEGIN}\n{text}{END}{after}")


def _preface(report: Report, steps: Sequence[Step]) -> str:
    costs = [step.cost for step in steps if step.cost]
    if not costs:
        return str(report.machine)
    shares = [cost.others_share for cost in costs]
    generator = sum(cost.generator_cpu_s for cost in costs) / sum(sum(cost.cpu_s.values()) for cost in costs)
    left_out = len({(step.place, step.round) for step in report.steps} - {(step.place, step.round) for step in steps})
    return (
        f"{report.machine}\n{report.rounds} rounds, {report.minutes:.0f} minutes. The load generator took {generator:.1%} of what "
        f"the servers took, everything else on the machine {statistics.median(shares):.0%} of its cores, at most {max(shares):.0%}; "
        f"{left_out} rounds in which that was more than {QUIET_SHARE:.0%} are left out."
    )


def _goals(results: Sequence[Outcome]) -> str:
    lines = [
        (
            result.place.model,
            result.place.part,
            str(result.place.clients),
            MEASURE_NAMES[result.goal.measure],
            str(result.ratio or ""),
            str(result.goal),
            result.verdict,
        )
        for result in results
    ]
    header = ("model", "workload", "clients", "measure", "Corral / llama-server: median (lowest to highest)", "goal", "")
    return _table(header, lines)


def _medians(rows: Iterable[Row]) -> str:
    header = (
        *("workload", "clients", "server", "tokens/s out", "tokens/s in", "first token, s: p50", "p99"),
        *("between tokens, ms: p50", "p99", "max", "prompt tokens cached", "memory, MiB"),
    )
    lines = []
    for row in rows:
        for server, measures in row.medians.items():
            known = measures.prompt_tokens > 0  # the packaged server streams no usage
            cached = f"{measures.cached_tokens / measures.prompt_tokens:.0%}" if known else ""
            seconds = (measures.ttft_p50_s, measures.ttft_p99_s)
            gaps = (measures.itl_p50_s, measures.itl_p99_s, measures.itl_max_s)
            lines.append(
                (
                    *(row.place.part, str(row.place.clients), server),
                    *(f"{measures.output_tokens_per_s:.1f}", f"{measures.prompt_tokens_per_s:.0f}" if known else ""),
                    *(f"{value:.2f}" for value in seconds),
                    *(f"{value * 1000:.0f}" for value in gaps),
                    *(cached, _memory(row, server)),
                )
            )
    return _table(header, lines)


def _memory(row: Row, server: str) -> str:
    worker = f" (worker {row.worker_memory_bytes / 2**20:.0f})" if server == CORRAL else ""
    return f"{row.memory_bytes[server] / 2**20:.0f}{worker}"


def _together(rows: Sequence[Row]) -> list[str]:
    """The gain of eight concurrent clients over one."""
    found = gains(rows, part=INDEPENDENT, alone=1, together=8)
    lines = [(model, server, f"{value:.2f}") for (model, server), value in found.items()]
    header = ("model", "server", "time for each token with 8 clients, as a part of that with 1")
    return [_table(header, lines)] if lines else []


def _remarks(report: Report, rows: Iterable[Row]) -> list[str]:
    """Remarks on what makes a comparison unfair or incomplete."""
    unequal = [
        f"- {row.place.model}, {row.place.part}, {row.place.clients} clients: the servers generated different numbers of tokens "
        f"({row.medians[CORRAL].output_tokens:.0f} and {row.medians[LLAMA_SERVER].output_tokens:.0f})."
        for row in rows
        if {CORRAL, LLAMA_SERVER} <= row.medians.keys() and row.place.part != ARRIVAL and _unequal(row)
    ]
    failed = [
        f"- {step.place.model}, {step.place.part}, {step.place.clients} clients, round {step.round + 1}, {step.server}: {step.error}"
        for step in report.steps
        if step.error
    ]
    return ["\n".join(unequal + failed)] if unequal or failed else []


def _unequal(row: Row) -> bool:
    ours, theirs = row.medians[CORRAL].output_tokens, row.medians[LLAMA_SERVER].output_tokens
    return abs(ours - theirs) > 0.01 * theirs


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    ruler = ["---"] * len(header)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ruler, *lines))
