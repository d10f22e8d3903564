from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from services.protocol.sampling import SamplingParams
from services.worker.engine.sampling.candidates import Candidates
from services.worker.engine.sampling.draw import keyed_uniform
from tests.worker.engine.factories import make_sampler

VOCABULARY = 5000


def logits(seed: int = 0, size: int = VOCABULARY) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(scale=3, size=size).astype(np.float32)


def draws(params: SamplingParams, row: NDArray[np.float32], count: int = 300, tokens: tuple[int, ...] = ()) -> list[int]:
    sampler = make_sampler(params)
    text = [*tokens, *[0] * count]
    return [sampler.sample(row, text[: len(tokens) + n], len(tokens)).token for n in range(count)]


def test_temperature_zero_takes_the_likeliest() -> None:
    row = logits()
    assert set(draws(SamplingParams(temperature=0), row, 5)) == {int(row.argmax())}


def test_the_same_seed_and_position_draw_the_same_token_whatever_was_drawn_before() -> None:
    row = logits()
    params = SamplingParams(seed=42)
    assert draws(params, row, 50) == [make_sampler(params).sample(row, [0] * n, 0).token for n in range(50)]


def test_without_a_seed_two_requests_draw_differently() -> None:
    row = np.zeros(VOCABULARY, dtype=np.float32)
    assert draws(SamplingParams(), row, 20) != draws(SamplingParams(), row, 20)


@pytest.mark.parametrize("top_k", [1, 2, 40, 4999, 5000, 9000])
def test_top_k_draws_among_the_k_largest(top_k: int) -> None:
    row = logits()
    allowed = set(np.argsort(-row, kind="stable")[:top_k].tolist())
    assert set(draws(SamplingParams(top_k=top_k, seed=1, temperature=2.0), row)) <= allowed


@pytest.mark.parametrize("top_k", [0, 50])
@pytest.mark.parametrize("top_p", [0.0, 0.1, 0.9, 0.9999])
def test_top_p_draws_within_the_smallest_set_that_reaches_it(top_p: float, top_k: int) -> None:
    row = logits(3)
    order = np.argsort(-row, kind="stable")[: top_k or None]
    probabilities = np.exp(row[order] - row.max()).astype(np.float64)
    cumulative = np.cumsum(probabilities / probabilities.sum())
    nucleus = set(order[: int(np.searchsorted(cumulative, top_p)) + 1].tolist())
    assert set(draws(SamplingParams(top_p=top_p, top_k=top_k, seed=1), row)) <= nucleus


def test_a_flat_distribution_needs_more_than_the_head_for_top_p() -> None:
    row = np.zeros(VOCABULARY, dtype=np.float32)
    drawn = draws(SamplingParams(top_p=0.9, seed=1), row, 2000)
    assert max(drawn) > 4000
    assert max(drawn) < 4501


def test_min_p_drops_what_is_much_less_likely_than_the_best() -> None:
    row = np.array([5.0, 4.9, 1.0, -3.0], dtype=np.float32)
    assert set(draws(SamplingParams(min_p=0.5, seed=1), row)) == {0, 1}


def test_typical_p_prefers_the_expected_surprise_to_the_likeliest() -> None:
    probabilities = np.array([0.4] + [0.06] * 10, dtype=np.float32)
    assert 0 not in draws(SamplingParams(typical_p=0.2, seed=1), np.log(probabilities))


@pytest.mark.parametrize(
    ("params", "winner"),
    [
        (SamplingParams(temperature=0, repeat_penalty=2.0), 1),
        (SamplingParams(temperature=0, frequency_penalty=1.5), 1),
        (SamplingParams(temperature=0, presence_penalty=1.5), 1),
        (SamplingParams(temperature=0, repeat_penalty=2.0, repeat_last_n=1), 0),
        (SamplingParams(temperature=0, repeat_penalty=2.0, repeat_last_n=0), 0),
        (SamplingParams(temperature=0, repeat_penalty=2.0, repeat_last_n=-1), 1),
    ],
)
def test_penalties_count_the_tokens_of_their_window(params: SamplingParams, winner: int) -> None:
    row = np.array([3.0, 2.0, 1.0, 0.5], dtype=np.float32)
    assert make_sampler(params).sample(row, [0, 3], 2).token == winner
    assert row.tolist() == [3.0, 2.0, 1.0, 0.5]


def test_a_penalty_makes_negative_logits_more_negative() -> None:
    row = np.array([-1.0, -1.5], dtype=np.float32)
    assert make_sampler(SamplingParams(temperature=0, repeat_penalty=2.0)).sample(row, [0], 1).token == 1


def test_draws_follow_the_distribution() -> None:
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    drawn = draws(SamplingParams(seed=7), np.log(probabilities).astype(np.float32), 20_000)
    assert np.allclose(np.bincount(drawn) / len(drawn), probabilities, atol=0.015)


def test_keyed_uniform_is_uniform_and_differs_by_seed_and_by_position() -> None:
    values = np.array([keyed_uniform(seed, position) for seed in range(100) for position in range(100)])
    assert len(np.unique(values)) == len(values)
    assert values.min() >= 0
    assert values.max() < 1
    assert np.allclose(np.histogram(values, bins=10, range=(0, 1))[0] / len(values), 0.1, atol=0.015)


@given(
    hnp.arrays(np.float32, st.integers(1, 3000), elements=st.floats(-50, 50, width=32)),
    st.integers(1, 60),
)
def test_largest_is_the_head_of_a_full_sort(row: NDArray[np.float32], k: int) -> None:
    k = min(k, len(row))
    largest = Candidates(row).largest(k)
    assert largest.ids is None or largest.ids.tolist() == sorted(np.argsort(-row, kind="stable")[:k].tolist())


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(
    hnp.arrays(np.float32, st.integers(1, 1200), elements=st.floats(-100, 100, width=32)),
    st.builds(
        SamplingParams,
        temperature=finite,
        top_k=st.integers(-(2**31), 2**31),
        top_p=finite,
        min_p=finite,
        typical_p=finite,
        repeat_penalty=finite,
        repeat_last_n=st.integers(-5, 2**31),
        frequency_penalty=finite,
        presence_penalty=finite,
        seed=st.one_of(st.none(), st.integers()),
    ),
)
def test_whatever_is_asked_for_a_token_of_the_vocabulary_is_drawn(row: NDArray[np.float32], params: SamplingParams) -> None:
    token = make_sampler(params).sample(row, [0, len(row) - 1, 0], 0).token
    assert 0 <= token < len(row)
