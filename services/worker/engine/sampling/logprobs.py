"""Log probabilities under the model's distribution, before any stage of the chain."""

from __future__ import annotations

import math

import numpy as np

from services.worker.engine.sampling.candidates import Candidates

#: (token id, natural log of its probability), likeliest first; on a tie, the smaller id first.
Ranking = tuple[tuple[int, float], ...]

_CHUNK = 16_384


def logprobs(candidates: Candidates, token: int, count: int) -> tuple[float, Ranking]:
    """The log probability of `token`, and those of the `count` likeliest tokens. `candidates` must be the whole vocabulary.

    A token with no probability has minus infinity.
    """
    norm = _log_sum_exp(candidates)
    if not math.isfinite(norm):  # a broken model's logits: no token has a probability
        return -math.inf, ()
    own = float(candidates.logits[token]) - norm
    if count <= 0:
        return own, ()
    largest = candidates.largest(count)
    order = np.argsort(-largest.logits, kind="stable")
    return own, tuple((largest.id_at(int(index)), float(largest.logits[index]) - norm) for index in order)


def _log_sum_exp(candidates: Candidates) -> float:
    """The log of the sum of exp(logits), in double precision. Works in chunks that fit the CPU cache."""
    logits, peak = candidates.logits, float(candidates.peak)
    if not math.isfinite(peak):
        return peak
    weights = 0.0
    for start in range(0, len(logits), _CHUNK):
        shifted = np.subtract(logits[start : start + _CHUNK], peak, dtype=np.float64)
        weights += float(np.exp(shifted, out=shifted).sum())
    return peak + math.log(weights)
