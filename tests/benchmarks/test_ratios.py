"""Ratios within rounds, and the verdict on a goal."""

from __future__ import annotations

import pytest

from comparison.ratios import MET, MISSED, UNSURE, Goal, Ratio, ratio


def test_ratios_are_computed_within_each_round() -> None:
    """In the second round the machine was half as fast for both servers."""
    assert ratio({0: 100.0, 1: 50.0, 2: 90.0}, {0: 50.0, 1: 25.0, 2: 60.0}) == Ratio(2.0, 1.5, 2.0)


def test_rounds_of_only_one_server_do_not_count() -> None:
    assert ratio({0: 8.0, 2: 6.0}, {0: 4.0, 1: 1.0}) == Ratio(2.0, 2.0, 2.0)
    assert ratio({0: 8.0}, {1: 4.0}) is None
    assert ratio({0: 8.0}, {0: 0.0}) is None


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (Ratio(1.0, 0.8, 1.1), MET),
        (Ratio(0.97, 0.9, 1.02), UNSURE),
        (Ratio(0.9, 0.8, 0.99), MISSED),
    ],
)
def test_verdicts_of_a_minimum(found: Ratio, verdict: str) -> None:
    assert found.verdict(Goal("part", "measure", at_least=1.0)) == verdict


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (Ratio(0.3, 0.2, 0.4), MET),
        (Ratio(0.31, 0.29, 0.4), UNSURE),
        (Ratio(0.5, 0.31, 0.6), MISSED),
    ],
)
def test_verdicts_of_a_maximum(found: Ratio, verdict: str) -> None:
    assert found.verdict(Goal("part", "measure", at_most=0.3)) == verdict
