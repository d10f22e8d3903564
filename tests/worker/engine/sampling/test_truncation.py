"""Each stage compared with llama.cpp's, which sums in single precision, so a set may end slightly earlier or later."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_cpp import llama_cpp
from numpy.typing import NDArray

from services.worker.engine.sampling.candidates import Candidates
from services.worker.engine.sampling.truncation import min_p, top_k, top_p, typical
from tests.worker.engine.sampling.reference import Reference
from tests.worker.engine.sampling.rows import logits, probabilities, rows

Row = NDArray[np.float32]

SLACK = 3e-4  # rounding error of the sum of ten thousand probabilities in single precision


def kept(row: Row, candidates: Candidates) -> list[int]:
    """The ids that can still be drawn, ascending. Asserts that their logits are unchanged."""
    ids = np.arange(len(row)) if candidates.ids is None else candidates.ids
    assert (np.diff(ids) > 0).all()
    possible = candidates.logits > -np.inf
    assert (row[ids[possible]] == candidates.logits[possible]).all()
    drawable: list[int] = ids[possible].tolist()
    return drawable


def likeliest(row: Row, count: int) -> list[int]:
    """The ids of the largest logits, ascending; of equal logits the smaller ids."""
    return sorted(np.argsort(-row, kind="stable")[:count].tolist())


@given(rows, st.integers(0, 15_000))
def test_top_k_keeps_the_same_tokens_as_llama_cpp(row: Row, k: int) -> None:
    ours, reference = top_k(Candidates(row), k), Reference(llama_cpp.llama_sampler_init_top_k(k)).apply(row)
    assert kept(row, ours) == likeliest(row, len(reference.ids))


@given(rows, st.floats(0, 1, width=32))
def test_min_p_keeps_the_same_tokens_as_llama_cpp(row: Row, p: float) -> None:
    ours, reference = min_p(Candidates(row), p), Reference(llama_cpp.llama_sampler_init_min_p(p, 0)).apply(row)
    assert kept(row, ours) == likeliest(row, len(reference.ids))


@given(rows, st.one_of(st.floats(0, 1), st.floats(0.8, 1)))
def test_top_p_keeps_the_same_tokens_as_llama_cpp(row: Row, p: float) -> None:
    ours, reference = top_p(Candidates(row), p), Reference(llama_cpp.llama_sampler_init_top_p(p, 0)).apply(row)
    assert kept(row, ours) == likeliest(row, len(kept(row, ours)))
    if p <= 1 - SLACK:
        fewest, most = (len(kept(row, top_p(Candidates(row), max(0.0, p + slack)))) for slack in (-SLACK, SLACK))
        assert fewest <= len(reference.ids) <= most


def typical_scores(row: Row) -> NDArray[np.float64]:
    surprise = -np.log(probabilities(row))
    scores: NDArray[np.float64] = np.abs(surprise - (probabilities(row) * surprise).sum())
    return scores


@given(rows, st.one_of(st.floats(0, 1), st.floats(0.8, 1)))
def test_typical_p_keeps_the_same_tokens_as_llama_cpp(row: Row, p: float) -> None:
    reference = Reference(llama_cpp.llama_sampler_init_typical(p, 0)).apply(row)
    assert set(kept(row, typical(Candidates(row), p))) <= set(range(len(row)))
    if p <= 1 - SLACK:
        fewest, most = (set(kept(row, typical(Candidates(row), max(0.0, p + slack)))) for slack in (-SLACK, SLACK))
        # Tokens at the same distance from the entropy, or nearly, may be taken in any order.
        scores = typical_scores(row)
        assert_nearly_contains(set(reference.ids.tolist()), fewest, scores)
        assert_nearly_contains(most, set(reference.ids.tolist()), scores)


def assert_nearly_contains(large: set[int], small: set[int], scores: NDArray[np.float64]) -> None:
    last = max(scores[list(large)])
    assert all(scores[missing] > last - 1e-3 for missing in small - large)


@pytest.mark.parametrize(("p", "count"), [(0.0, 1), (0.5, 2), (0.51, 3), (0.99, 4), (1.0, 4)])
def test_top_p_ends_when_the_sum_reaches_it(p: float, count: int) -> None:
    row = np.zeros(4, np.float32)
    assert kept(row, top_p(Candidates(row), p)) == list(range(count))


@pytest.mark.parametrize(("p", "count"), [(0.0, 1), (0.5, 3), (0.51, 3), (1.0, 4)])
def test_typical_p_ends_when_the_sum_exceeds_it(p: float, count: int) -> None:
    row = np.zeros(4, np.float32)
    assert kept(row, typical(Candidates(row), p)) == list(range(count))


@given(rows, st.integers(1, 12_000))
def test_of_equal_logits_the_smaller_ids_stay(row: Row, k: int) -> None:
    assert kept(row, top_k(Candidates(row), k)) == likeliest(row, k)


@pytest.mark.parametrize("size", [5000, 262_144])
@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_top_p_keeps_the_start_of_the_sorted_vocabulary(size: int, scale: float) -> None:
    row = logits(size=size, scale=scale)
    shares = probabilities(row)
    reached = np.cumsum(np.sort(shares)[::-1])
    for p in (0.1, 0.9, 0.999):
        ours = kept(row, top_p(Candidates(row), p))
        assert ours == likeliest(row, len(ours))
        assert reached[len(ours) - 1] == pytest.approx(p, abs=max(shares.max(), 1e-6))


@pytest.mark.parametrize("stage", [lambda c: top_p(c, 0.99), lambda c: typical(c, 0.99), lambda c: min_p(c, 1e-30)])
@pytest.mark.parametrize("size", [10, 9000])
def test_impossible_tokens_do_not_affect_any_stage(stage: Callable[[Candidates], Candidates], size: int) -> None:
    row = logits(size=size)
    half = np.where(np.arange(size) % 2 == 0, -np.inf, row).astype(np.float32)
    alone = [2 * token + 1 for token in kept(row[1::2], stage(Candidates(row[1::2].copy())))]
    assert kept(half, stage(Candidates(half))) == alone


def test_a_stage_that_is_off_returns_its_input() -> None:
    candidates = Candidates(logits())
    assert min_p(top_p(typical(top_k(candidates, 0), 1.0), 1.0), 0.0) is candidates
