from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.protocol.sampling import SamplingParams, StopConditions
from services.worker.engine.sampling import Sampler, Stages
from services.worker.engine.sampling.candidates import Candidates
from services.worker.engine.sampling.logprobs import logprobs
from tests.worker.engine.sampling.rows import logits, rows


@given(rows, st.integers(0, 20), st.data())
def test_logprobs_are_the_logarithms_of_the_softmax(row: NDArray[np.float32], count: int, data: st.DataObject) -> None:
    token = data.draw(st.integers(0, len(row) - 1))
    own, top = logprobs(Candidates(row), token, count)
    norm = math.log(math.fsum(np.exp(row.astype(np.float64))))
    assert own == pytest.approx(float(row[token]) - norm, abs=1e-12)
    order = np.argsort(-row, kind="stable")[:count].tolist()
    assert [token for token, _ in top] == order
    assert [value for _, value in top] == pytest.approx([float(row[token]) - norm for token in order], abs=1e-12)


def test_logprobs_are_the_models_before_sampling_parameters() -> None:
    row = logits(size=300)
    best = int(row.argmax())
    params = SamplingParams(temperature=0.2, top_k=3, logit_bias=((best, -100.0),), repeat_penalty=1.5, min_p=0.5, seed=1)
    sampler = Sampler(Stages(params, lambda _: b""), StopConditions(), end_tokens=frozenset(), top_logprobs=5)
    sampled = sampler.sample(row, [1, 2, 3], 3)
    own, top = logprobs(Candidates(row), sampled.token, 5)
    assert (sampled.logprob, sampled.top) == (own, top)
    assert top[0][0] == best != sampled.token


def test_a_token_with_logit_minus_infinity_has_logprob_minus_infinity() -> None:
    assert logprobs(Candidates(np.array([0.0, -np.inf], np.float32)), 1, 2) == (-math.inf, ((0, 0.0), (1, -math.inf)))


def test_no_logprobs_unless_requested() -> None:
    sampled = Sampler(
        Stages(SamplingParams(), lambda _: b""), StopConditions(), end_tokens=frozenset(), top_logprobs=None
    ).sample(logits(), [], 0)
    assert sampled.logprob is None
    assert sampled.top == ()
