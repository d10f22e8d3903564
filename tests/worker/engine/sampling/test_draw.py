from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from services.worker.engine.sampling.draw import drawn, keyed_uniform
from tests.worker.engine.sampling.rows import chi_square, logits, probabilities


@pytest.mark.parametrize("size", [4, 700, 3000])
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_draws_follow_the_weights(size: int, scale: float) -> None:
    row = logits(size=size, scale=scale)
    weights = np.exp(row - row.max())
    indices = [drawn(weights, keyed_uniform(7, position)) for position in range(20_000)]
    assert chi_square(indices, dict(enumerate(probabilities(row).tolist())))


@given(
    hnp.arrays(np.float32, st.integers(1, 1500), elements=st.sampled_from([0.0, 0.0, 1e-30, 0.5, 1.0])).filter(np.any),
    st.floats(0, 1, exclude_max=True),
)
def test_zero_weights_are_never_drawn(weights: NDArray[np.float32], uniform: float) -> None:
    assert weights[drawn(weights, uniform)] > 0


def test_keyed_uniform_is_uniform_and_differs_by_seed_position_and_purpose() -> None:
    keys = [(seed, position) for seed in range(100) for position in range(100)]
    values = np.array([keyed_uniform(*key, purpose) for key in keys for purpose in (b"", b"xtc")])
    assert len(np.unique(values)) == len(values)
    assert values.min() >= 0
    assert values.max() < 1
    assert chi_square((values * 100).astype(int).tolist(), dict.fromkeys(range(100), 0.01))
