"""Mirostat (Basu et al., "Mirostat: A Neural Text Decoding Algorithm that Directly Controls Perplexity", 2021)."""

from __future__ import annotations

import math

import numpy as np

from services.protocol.sampling import SamplingParams
from services.worker.engine.sampling.candidates import Candidates, Logits, total

#: From how many of the likeliest version 1 estimates the slope of the distribution; llama.cpp's own.
_SLOPE_TOKENS = 100


class Mirostat:
    """`llama_sampler_init_mirostat` and `_v2`: cuts the distribution so that the surprise of the tokens stays near `tau` bits.

    The one stage with a memory: `mu`, which follows from the surprise of every token that was drawn before, and that from
    logits which are not kept. A request that is resumed elsewhere starts with mu = 2 tau again, as at its first token.
    """

    def __init__(self, params: SamplingParams) -> None:
        self._version = params.mirostat
        self._tau = params.mirostat_tau
        self._eta = params.mirostat_eta
        self.mu = 2 * params.mirostat_tau

    def truncate(self, candidates: Candidates, num_vocab: int) -> Candidates:
        """`candidates` have the temperature in their logits already."""
        if self._version == 1:
            return candidates.largest(self._count(candidates, num_vocab))
        # Of at most mu bits; the likeliest always stays.
        floor = math.log(total(candidates.weights())) - self.mu * math.log(2)
        return candidates.at_least(candidates.peak + np.float32(min(floor, 0.0)))

    def observe(self, surprise: float) -> None:
        """A token of this surprise, among those that `truncate` left, is part of the text now."""
        self.mu -= self._eta * (surprise - self._tau)

    def _count(self, candidates: Candidates, num_vocab: int) -> int:
        """Formula 10 of the paper: how many tokens a Zipf distribution of the slope seen here needs for a surprise of mu."""
        slope = _zipf_slope(candidates)
        if slope <= 0:
            return len(candidates)
        epsilon = slope - 1
        spread = epsilon / -math.expm1(-epsilon * math.log(num_vocab)) if epsilon else 1 / math.log(num_vocab)
        log_count = (math.log(spread) + self.mu * math.log(2)) / slope
        return max(1, int(math.exp(min(log_count, math.log(len(candidates)) + 1))))


def surprise(weights: Logits, index: int) -> float:
    """In bits."""
    return -math.log2(weights[index] / total(weights))


def _zipf_slope(candidates: Candidates) -> float:
    """The least-squares slope of the log probabilities over the log ranks."""
    logits = np.sort(candidates.largest(_SLOPE_TOKENS).logits)[::-1].astype(np.float64)
    logits = logits[np.isfinite(logits)]
    ranks = np.log(np.arange(1, len(logits) + 1))
    falls, steps = -np.diff(logits), np.diff(ranks)
    return float((steps * falls).sum() / (steps * steps).sum()) if len(logits) > 1 else 0.0
