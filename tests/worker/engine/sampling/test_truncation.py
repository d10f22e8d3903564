"""Each stage against llama.cpp's own. Its sums are in single precision, so a set may end a little earlier or later."""

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

SLACK = 3e-4  # the sum of ten thousand probabilities in single precision


def ids(candidates: Candidates) -> set[int]:
    return {candidates.id_at(index) for index in range(len(candidates))}


def descending(candidates: Candidates) -> list[float]:
    return np.sort(candidates.logits)[::-1].tolist()


def are_consistent(row: Row, candidates: Candidates) -> bool:
    """Each logit is still that of its id, and the ids ascend."""
    kept = np.arange(len(row)) if candidates.ids is None else candidates.ids
    return bool((row[kept] == candidates.logits).all() and (np.diff(kept) > 0).all())


@given(rows, st.integers(0, 15_000))
def test_top_k_keeps_what_llama_cpp_keeps(row: Row, k: int) -> None:
    ours, reference = top_k(Candidates(row), k), Reference(llama_cpp.llama_sampler_init_top_k(k)).apply(row)
    assert descending(ours) == np.sort(reference.logits)[::-1].tolist()
    assert are_consistent(row, ours)


@given(rows, st.floats(0, 1, width=32))
def test_min_p_keeps_what_llama_cpp_keeps(row: Row, p: float) -> None:
    ours, reference = min_p(Candidates(row), p), Reference(llama_cpp.llama_sampler_init_min_p(p, 0)).apply(row)
    assert descending(ours) == np.sort(reference.logits)[::-1].tolist()
    assert are_consistent(row, ours)


@given(rows, st.one_of(st.floats(0, 1), st.floats(0.8, 1)))
def test_top_p_keeps_what_llama_cpp_keeps(row: Row, p: float) -> None:
    ours, reference = top_p(Candidates(row), p), Reference(llama_cpp.llama_sampler_init_top_p(p, 0)).apply(row)
    assert are_consistent(row, ours)
    assert descending(ours) == np.sort(row)[::-1][: len(ours)].tolist()
    if p <= 1 - SLACK:
        fewest, most = (len(top_p(Candidates(row), max(0.0, p + slack))) for slack in (-SLACK, SLACK))
        assert fewest <= len(reference.ids) <= most


def typical_scores(row: Row) -> NDArray[np.float64]:
    surprise = -np.log(probabilities(row))
    return np.abs(surprise - (probabilities(row) * surprise).sum())


@given(rows, st.one_of(st.floats(0, 1), st.floats(0.8, 1)))
def test_typical_p_keeps_what_llama_cpp_keeps(row: Row, p: float) -> None:
    ours, reference = typical(Candidates(row), p), Reference(llama_cpp.llama_sampler_init_typical(p, 0)).apply(row)
    assert are_consistent(row, ours)
    if p <= 1 - SLACK:
        fewest, most = (ids(typical(Candidates(row), max(0.0, p + slack))) for slack in (-SLACK, SLACK))
        # Equal distances from the entropy, or nearly so, may be taken in any order.
        scores = typical_scores(row)
        assert_nearly_contains(set(reference.ids.tolist()), fewest, scores)
        assert_nearly_contains(most, set(reference.ids.tolist()), scores)


def assert_nearly_contains(large: set[int], small: set[int], scores: NDArray[np.float64]) -> None:
    last = max(scores[list(large)])
    assert all(scores[missing] > last - 1e-3 for missing in small - large)


@pytest.mark.parametrize(("p", "kept"), [(0.0, 1), (0.5, 2), (0.51, 3), (0.99, 4), (1.0, 4)])
def test_top_p_ends_where_the_sum_reaches_it(p: float, kept: int) -> None:
    assert ids(top_p(Candidates(np.zeros(4, np.float32)), p)) == set(range(kept))


@pytest.mark.parametrize(("p", "kept"), [(0.0, 1), (0.5, 3), (0.51, 3), (1.0, 4)])
def test_typical_p_ends_where_the_sum_passes_it(p: float, kept: int) -> None:
    assert ids(typical(Candidates(np.zeros(4, np.float32)), p)) == set(range(kept))


@given(rows, st.integers(1, 12_000))
def test_among_equals_the_smaller_ids_stay(row: Row, k: int) -> None:
    assert ids(top_k(Candidates(row), k)) == set(np.argsort(-row, kind="stable")[:k].tolist())


@pytest.mark.parametrize("size", [5000, 262_144])
@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_top_p_of_a_whole_vocabulary_is_the_head_of_a_sort(size: int, scale: float) -> None:
    row = logits(size=size, scale=scale)
    order = np.argsort(-row, kind="stable")
    reached = np.cumsum(probabilities(row)[order])
    for p in (0.1, 0.9, 0.999):
        ours = top_p(Candidates(row), p)
        assert ids(ours) == set(order[: len(ours)].tolist())
        assert reached[len(ours) - 1] == pytest.approx(p, abs=max(probabilities(row).max(), 1e-6))


@pytest.mark.parametrize("stage", [lambda c: top_p(c, 0.99), lambda c: typical(c, 0.99), lambda c: min_p(c, 1e-30)])
@pytest.mark.parametrize("size", [10, 9000])
def test_what_cannot_be_drawn_is_cut_off(stage: Callable[[Candidates], Candidates], size: int) -> None:
    row = logits(size=size)
    row[::2] = -np.inf
    assert not any(token % 2 == 0 for token in ids(stage(Candidates(row))))


def test_stages_that_are_off_return_what_they_got() -> None:
    candidates = Candidates(logits())
    assert min_p(top_p(typical(top_k(candidates, 0), 1.0), 1.0), 0.0) is candidates
