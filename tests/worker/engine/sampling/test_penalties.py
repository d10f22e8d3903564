from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_cpp import llama_cpp

from services.protocol.sampling import SamplingParams
from services.worker.engine.sampling.bias import LogitBias
from services.worker.engine.sampling.penalties import Penalties
from tests.worker.engine.sampling.reference import Reference
from tests.worker.engine.sampling.rows import logits

TOKENS = st.lists(st.integers(0, 30), max_size=80)


@given(
    st.integers(0, 1000),
    TOKENS,
    st.integers(1, 100),
    st.floats(0.5, 3, width=32),
    st.floats(-2, 2, width=32),
    st.floats(-2, 2, width=32),
)
def test_penalties_match_llama_cpps(
    seed: int, tokens: list[int], last_n: int, repeat: float, frequency: float, presence: float
) -> None:
    row = logits(seed, size=31)
    reference = Reference(llama_cpp.llama_sampler_init_penalties(31, last_n, repeat, frequency, presence))
    reference.accept(tokens)
    expected = reference.apply(row).logits
    Penalties(
        SamplingParams(repeat_penalty=repeat, frequency_penalty=frequency, presence_penalty=presence, repeat_last_n=last_n)
    ).apply(row, tokens)
    np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-5)


@given(st.lists(st.tuples(st.integers(0, 30), st.floats(-100, 100, width=32)), max_size=40))
def test_biases_match_llama_cpps(biases: list[tuple[int, float]]) -> None:
    row = logits(size=31)
    array = (llama_cpp.llama_logit_bias * len(biases))(*[llama_cpp.llama_logit_bias(*bias) for bias in biases])
    expected = Reference(llama_cpp.llama_sampler_init_logit_bias(31, len(biases), array)).apply(row).logits
    LogitBias(biases).apply(row)
    np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("token", [-1, 31, 2**31])
def test_a_bias_outside_the_vocabulary_changes_nothing(token: int) -> None:
    row = logits(size=31)
    LogitBias([(token, 5.0)]).apply(row)
    assert (row == logits(size=31)).all()
