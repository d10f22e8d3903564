from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_cpp import llama_cpp
from numpy.typing import NDArray

from services.protocol.sampling import SamplingParams
from services.worker.engine.sampling.candidates import Candidates
from services.worker.engine.sampling.mirostat import Mirostat
from tests.worker.engine.factories import make_sampler
from tests.worker.engine.sampling.reference import Reference
from tests.worker.engine.sampling.rows import logits


@given(
    version=st.sampled_from([1, 2]),
    seed=st.integers(0, 10_000),
    size=st.integers(2, 3000),
    tau=st.floats(0.5, 9, width=32),
    eta=st.floats(0.0, 1.0, width=32),
    scale=st.sampled_from([1.0, 3.0, 6.0]),
)
def test_mirostat_keeps_the_same_tokens_as_llama_cpp(
    version: Literal[1, 2], seed: int, size: int, tau: float, eta: float, scale: float
) -> None:
    """The kept tokens depend on mu. Both accept the token that llama.cpp drew."""
    ours = Mirostat(SamplingParams(mirostat=version, mirostat_tau=tau, mirostat_eta=eta))
    theirs = Reference(
        llama_cpp.llama_sampler_init_mirostat(size, seed, tau, eta, 100)
        if version == 1
        else llama_cpp.llama_sampler_init_mirostat_v2(seed, tau, eta)
    )
    for step in range(12):
        row = logits(seed + step, size=size, scale=scale)
        truncated = ours.truncate(Candidates(row), size).logits
        kept = truncated[truncated > -np.inf]
        if version == 1 and len(kept) == size:
            return  # an infinite count becomes 1 in llama.cpp
        theirs.apply(row)
        assert len(kept) == pytest.approx(len(theirs.ids), rel=2e-3, abs=1)
        assert np.sort(kept)[::-1].tolist() == np.sort(row)[::-1][: len(kept)].tolist()
        ours.observe(-math.log2(theirs.probabilities[theirs.selected]))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("row", [np.zeros(50, np.float32), np.array([1, 1, -np.inf], np.float32), np.array([2], np.float32)])
@pytest.mark.parametrize("mu", [-500.0, 0.0, 5.0, 1e9])
def test_any_mu_keeps_at_least_one_token(version: Literal[1, 2], row: NDArray[np.float32], mu: float) -> None:
    mirostat = Mirostat(SamplingParams(mirostat=version))
    mirostat.mu = mu
    assert mirostat.truncate(Candidates(row), len(row)).likeliest() is not None


@pytest.mark.parametrize("version", [1, 2])
def test_only_accepted_tokens_change_mu(version: Literal[1, 2]) -> None:
    row = logits(size=2000, scale=2.0)
    sampler = make_sampler(SamplingParams(mirostat=version, mirostat_tau=6.0, mirostat_eta=0.1, seed=1))

    def some_draws() -> list[int]:
        return [sampler.sample(row, [0] * position, 0).token for position in range(200)]

    first = some_draws()
    assert some_draws() == first
    for position in range(300):
        sampler.accept(sampler.sample(row, [0] * position, 0).token)
    assert len(set(some_draws())) < 0.7 * len(set(first))


def test_tokens_drawn_elsewhere_do_not_change_mu() -> None:
    row = logits(size=2000, scale=1.0)
    params = SamplingParams(mirostat=2, mirostat_tau=6.0, mirostat_eta=1.0, seed=1)
    replayed, fresh = make_sampler(params), make_sampler(params)
    for position in range(50):
        other = replayed.sample(row, [0] * position, 0).token + 1
        replayed.accept(other)
        replayed.accept(other - 1)
    assert [replayed.sample(row, [0] * n, 0) for n in range(20)] == [fresh.sample(row, [0] * n, 0) for n in range(20)]
