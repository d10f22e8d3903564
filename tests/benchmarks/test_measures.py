"""Throughput, time to the first token and time between tokens."""

from __future__ import annotations

import pytest

from comparison.measures import Answer, measure, measure_arrival, percentile


def answer(sent_s: float, *token_times: float, prompt: int = 10, cached: int = 0) -> Answer:
    return Answer(sent_s, token_times, "text", prompt, cached, len(token_times))


def test_rates_cover_the_time_of_all_answers() -> None:
    measures = measure([answer(0.0, 1.0, 2.0), answer(1.0, 2.0, 5.0, cached=8)])
    assert (measures.requests, measures.prompt_tokens, measures.cached_tokens, measures.output_tokens) == (2, 20, 8, 4)
    assert measures.wall_s == 5.0
    assert measures.output_tokens_per_s == pytest.approx(4 / 5)
    assert measures.prompt_tokens_per_s == pytest.approx(20 / 2), "the last first token came at 2 s"


def test_times_between_tokens_are_within_answers() -> None:
    measures = measure([answer(0.0, 1.0, 1.1, 1.3), answer(0.0, 9.0, 9.4)])
    assert measures.itl_p50_s == pytest.approx(0.2)
    assert measures.itl_max_s == pytest.approx(0.4)
    assert measures.ttft_p50_s == 5.0
    assert measures.ttft_p99_s == pytest.approx(8.92)


def test_a_single_token_gives_a_time_between_tokens_of_zero() -> None:
    assert measure([answer(0.0, 1.0)]).itl_max_s == 0.0


def test_an_arrival_is_measured_until_its_first_token() -> None:
    running = answer(0.0, 1.0, 9.0, 9.9, 12.0, 12.5, 16.0, 30.0)
    measures = measure_arrival([running], answer(10.0, 15.0, 40.0, prompt=4000))
    assert measures.itl_max_s == pytest.approx(3.5), "from 12.5 to 16, within which the first token came"
    assert measures.itl_p50_s == pytest.approx(2.1), "of 2.1, 0.5 and 3.5"
    assert measures.output_tokens == 2
    assert measures.output_tokens_per_s == pytest.approx(2 / 5)
    assert measures.prompt_tokens_per_s == pytest.approx(4000 / 5)
    assert measures.ttft_p50_s == measures.ttft_p99_s == 5.0


@pytest.mark.parametrize(("percent", "value"), [(0, 1.0), (50, 3.0), (75, 6.0), (99, 8.88), (100, 9.0)])
def test_percentiles_are_interpolated(percent: float, value: float) -> None:
    assert percentile([9.0, 1.0, 3.0], percent) == pytest.approx(value)
    assert percentile([7.0], percent) == 7.0
