"""Rows of logits for the tests of sampling."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray


def logits(seed: int = 0, size: int = 5000, scale: float = 3.0, step: float = 0.0) -> NDArray[np.float32]:
    """Normally distributed; with a `step` rounded to its multiples, so that many values are equal."""
    row = np.random.default_rng(seed).normal(scale=scale, size=size)
    return (np.round(row / step) * step if step else row).astype(np.float32)


#: Peaked, ordinary and flat rows, with fewer and with more tokens than are sorted at once, with and without equal values.
rows = st.builds(
    logits,
    seed=st.integers(0, 2**32),
    size=st.one_of(st.integers(1, 40), st.integers(1, 12_000)),
    scale=st.sampled_from([0.001, 0.5, 3.0, 8.0]),
    step=st.sampled_from([0.0, 0.0, 0.25]),
)


def probabilities(row: NDArray[np.float32]) -> NDArray[np.float64]:
    weights = np.exp(row.astype(np.float64) - row.max())
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


def chi_square(drawn: list[int], expected: dict[int, float]) -> bool:
    """True if the draws fit the `expected` probabilities: Pearson's statistic is within four standard deviations. Tokens
    expected fewer than five times are counted together."""
    assert set(drawn) <= set(expected)
    observed = np.bincount(drawn, minlength=max(expected) + 1)
    pairs = [(observed[token], probability * len(drawn)) for token, probability in expected.items()]
    common = [pair for pair in pairs if pair[1] >= 5]
    rare = [pair for pair in pairs if pair[1] < 5]
    if sum(e for _, e in rare) >= 5:
        common.append((sum(o for o, _ in rare), sum(e for _, e in rare)))
    statistic = sum((o - e) ** 2 / e for o, e in common)
    freedom = len(common) - 1
    return bool(statistic <= freedom + 4 * np.sqrt(2 * freedom))
