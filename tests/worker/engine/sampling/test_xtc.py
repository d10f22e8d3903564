from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_cpp import llama_cpp
from numpy.typing import NDArray

from services.worker.engine.sampling.candidates import Candidates
from services.worker.engine.sampling.xtc import exclude_top_choices
from tests.worker.engine.sampling.reference import Reference, uniform_of_seed
from tests.worker.engine.sampling.rows import probabilities, rows


@given(rows, st.floats(0.001, 0.7), st.floats(0.01, 1), st.integers(0, 2**32 - 2))
def test_xtc_excludes_the_same_tokens_as_llama_cpp(
    row: NDArray[np.float32], threshold: float, probability: float, seed: int
) -> None:
    if abs(probabilities(row) - threshold).min() < 1e-6:
        return  # a probability at the threshold may fall on either side
    reference = Reference(llama_cpp.llama_sampler_init_xtc(probability, threshold, 0, seed)).apply(row)
    applied = uniform_of_seed(seed) <= np.float32(probability)
    ours = exclude_top_choices(Candidates(row), threshold) if applied else Candidates(row)
    kept = {int(index): value for index, value in enumerate(ours.logits) if value > -np.inf}
    assert sorted(kept.values()) == sorted(reference.logits.tolist())
    if len(set(row.tolist())) == len(row):
        assert set(kept) == set(reference.ids.tolist())


@pytest.mark.parametrize("threshold", [0.0, 1e-30])
def test_at_least_one_possible_token_stays(threshold: float) -> None:
    row = np.array([3.0, 2.0, -np.inf, 1.0], np.float32)
    assert exclude_top_choices(Candidates(row), threshold).likeliest() == 3
