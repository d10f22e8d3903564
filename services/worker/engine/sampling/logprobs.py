"""Log probabilities under the model's own distribution, before any stage of the chain."""

from __future__ import annotations

import math

import numpy as np

from services.worker.engine.sampling.candidates import Candidates

#: (token id, natural logarithm of its probability), the likeliest first, among equals the smaller id.
Ranking = tuple[tuple[int, float], ...]

_CHUNK = 16_384


def logprobs(candidates: Candidates, token: int, count: int) -> tuple[float, Ranking]:
    """Of `token`, and of the `count` likeliest; `candidates` are the whole vocabulary. Minus infinity for what has no
    probability."""
    norm = _log_sum_exp(candidates)
    if not math.isfinite(norm):  # a broken model's logits: nothing has a probability
        return -math.inf, ()
    own = float(candidates.logits[token]) - norm
    if count <= 0:
        return own, ()
    largest = candidates.largest(count)
    order = np.argsort(-largest.logits, kind="stable")
    return own, tuple((largest.id_at(int(index)), float(largest.logits[index]) - norm) for index in order)


def _log_sum_exp(candidates: Candidates) -> float:
    """In double precision, by chunks that stay in the processor's cache."""
    logits, peak = candidates.logits, float(candidates.peak)
    if not math.isfinite(peak):
        return peak
    weights = 0.0
    for start in range(0, len(logits), _CHUNK):
        shifted = np.subtract(logits[start : start + _CHUNK], peak, dtype=np.float64)
        weights += float(np.exp(shifted, out=shifted).sum())
    return peak + math.log(weights)
