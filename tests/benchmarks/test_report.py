"""From the steps of a run to its tables."""

from __future__ import annotations

from dataclasses import astuple, replace
from pathlib import Path

import msgspec
import pytest

from comparison import report as reports
from comparison.catalog import BURST, GOALS, INDEPENDENT
from comparison.costs import Cost
from comparison.machine import Machine
from comparison.measures import Measures
from comparison.ratios import MET, MISSED
from comparison.servers import CORRAL, LLAMA_SERVER, PACKAGED
from comparison.steps import Place, Report, Step
from comparison.table import gains, outcomes, tabulate, undisturbed

MODEL = "smollm2-135m"
MEASURES = Measures(8, 800, 0, 512, 100.0, 300.0, 1.0, 2.0, 0.04, 0.08, 0.1, 5.0)
COST = Cost({"python": 9.0}, 0.1, 0.045, 0.02, 300 * 2**20, 250 * 2**20)
MACHINE = Machine("a processor", 2, 24.0, "a system", "3.11", "abc", {"xllamacpp": "1 (AVX2)"}, "2026-01-01", 0.1)


def step(
    server: str,
    number: int,
    rate: float,
    *,
    ttft_s: float = 1.0,
    part: str = INDEPENDENT,
    clients: int = 8,
    memory_bytes: int = 300 * 2**20,
) -> Step:
    measures = replace(MEASURES, output_tokens_per_s=rate, ttft_p50_s=ttft_s)
    return Step(Place(MODEL, part, clients), number, server, measures, replace(COST, memory_bytes=memory_bytes))


STEPS = [
    step(CORRAL, 0, 120.0, memory_bytes=700 * 2**20),
    step(LLAMA_SERVER, 0, 100.0),
    step(LLAMA_SERVER, 1, 50.0),
    step(CORRAL, 1, 55.0, memory_bytes=720 * 2**20),
]


def test_a_row_has_medians_and_ratios_over_the_rounds() -> None:
    (row,) = tabulate(STEPS, ours=CORRAL, theirs=LLAMA_SERVER)
    assert row.place == Place(MODEL, INDEPENDENT, 8)
    assert row.medians[CORRAL].output_tokens_per_s == 87.5
    assert row.memory_bytes == {CORRAL: 720 * 2**20, LLAMA_SERVER: 300 * 2**20}
    assert astuple(row.ratios["output_tokens_per_s"]) == pytest.approx((1.15, 1.1, 1.2))


def test_each_part_has_outcomes_for_its_goals() -> None:
    burst = [step(CORRAL, 0, 30.0, part=BURST, ttft_s=2.0), step(LLAMA_SERVER, 0, 10.0, part=BURST, ttft_s=4.0)]
    found = outcomes(tabulate([*STEPS, *burst], ours=CORRAL, theirs=LLAMA_SERVER), GOALS)
    verdicts = [(outcome.place.part, outcome.goal.measure, outcome.verdict) for outcome in found]
    assert verdicts == [
        (INDEPENDENT, "output_tokens_per_s", MET),
        (BURST, "ttft_p50_s", MISSED),
        (BURST, "output_tokens_per_s", MET),
    ]


def test_a_goal_without_a_measurement_is_not_measured() -> None:
    failed = Step(Place(MODEL, INDEPENDENT, 8), 0, CORRAL, error="TimeoutError: ")
    (outcome,) = outcomes(tabulate([failed, STEPS[1]], ours=CORRAL, theirs=LLAMA_SERVER), GOALS)
    assert outcome.verdict == "not measured"


def test_gains_of_eight_clients_over_one() -> None:
    steps = [*STEPS, step(CORRAL, 0, 60.0, clients=1), step(CORRAL, 1, 40.0, clients=1), step(PACKAGED, 0, 40.0, clients=1)]
    rows = tabulate(steps, ours=CORRAL, theirs=LLAMA_SERVER)
    assert gains(rows, part=INDEPENDENT, alone=1, together=8) == {(MODEL, CORRAL): pytest.approx(50.0 / 87.5)}


def busy(disturbed: Step) -> Step:
    return replace(disturbed, cost=replace(COST, others_share=0.3))


def test_a_disturbed_round_does_not_count() -> None:
    assert undisturbed([STEPS[0], STEPS[1], busy(STEPS[2]), STEPS[3]]) == STEPS[:2]
    text = reports.render(Report(MACHINE, 1, 3.0, [STEPS[0], STEPS[1], busy(STEPS[2]), STEPS[3]]))
    assert "| 1.20 (1.20 to 1.20) |" in text
    assert "1 rounds in which that was more than 10% are left out" in text


def test_if_every_round_was_disturbed_all_of_them_count() -> None:
    steps = [STEPS[0], busy(STEPS[1]), busy(STEPS[2]), STEPS[3]]
    assert undisturbed(steps) == steps


def test_the_json_holds_everything_for_the_tables() -> None:
    report = Report(MACHINE, 2, 3.0, STEPS)
    again = msgspec.json.decode(msgspec.json.encode(report), type=Report)
    assert again == report
    text = reports.render(again)
    assert "took 0.5% of what the servers took, everything else on the machine 2% of its cores, at most 2%; 0 rounds" in text
    assert "| smollm2-135m | independent prompts | 8 | tokens/s out | 1.15 (1.10 to 1.20) | ≥ 1.00 | met |" in text
    assert "| independent prompts | 8 | corral | 87.5 | 300 | 1.00 | 2.00 | 40 | 80 | 100 | 0% | 720 (worker 250) |" in text


def test_an_unfair_comparison_has_a_remark() -> None:
    fewer = replace(STEPS[0], measures=replace(MEASURES, output_tokens=400))
    failed = Step(Place(MODEL, BURST, 8), 1, LLAMA_SERVER, error="TimeoutError: ")
    text = reports.render(Report(MACHINE, 2, 3.0, [fewer, STEPS[1], failed]))
    assert "8 clients: the servers generated different numbers of tokens (400 and 512)" in text
    assert "burst, 8 clients, round 2, llama-server: TimeoutError" in text


def test_only_the_tables_of_a_page_are_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{reports.BEGIN}\nold\n{reports.END}\nafter\n")
    reports.replace(page, "new\n")
    assert page.read_text() == f"before\n{reports.BEGIN}\nnew\n{reports.END}\nafter\n"


@pytest.mark.parametrize("text", ["", reports.BEGIN, f"{reports.END} {reports.BEGIN}"])
def test_a_page_without_markers_is_not_changed(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(reports.NoMarkers):
        reports.replace(page, "new\n")
    assert page.read_text() == text
