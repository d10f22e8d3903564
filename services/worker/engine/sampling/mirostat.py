"""Mirostat (Basu et al., "Mirostat: A Neural Text Decoding Algorithm that Directly Controls Perplexity", 2021)."""

from __future__ import annotations

import math

import numpy as np

from services.protocol.sampling import SamplingParams
from services.worker.engine.sampling.candidates import Candidates, Logits, total

#: From how many of the likeliest tokens version 1 estimates the slope of the distribution; llama.cpp's value.
_SLOPE_TOKENS = 100


class Mirostat:
    """`llama_sampler_init_mirostat` and `_v2`: truncates the distribution so that a token's surprise stays near `tau` bits.

    `mu` depends on the surprise of every token drawn so far, and so on logits that are not kept. A request that another worker
    resumes therefore starts with mu = 2 tau again, as at its first token.
    """

    def __init__(self, params: SamplingParams) -> None:
        self._version = params.mirostat
        self._tau = params.mirostat_tau
        self._eta = params.mirostat_eta
        self.mu = 2 * params.mirostat_tau

    def truncate(self, candidates: Candidates, num_vocab: int) -> Candidates:
        """The candidates to draw from. The logits must already be divided by the temperature."""
        if self._version == 1:
            return candidates.largest(self._count(candidates, num_vocab))
        # Keeps tokens of at most mu bits of surprise, and always the likeliest.
        floor = math.log(total(candidates.weights())) - self.mu * math.log(2)
        return candidates.at_least(candidates.peak + np.float32(min(floor, 0.0)))

    def observe(self, surprise: float) -> None:
        """Updates `mu` after a token is added to the text. `surprise` is its surprise, in bits, after truncation."""
        self.mu -= self._eta * (surprise - self._tau)

    def _count(self, candidates: Candidates, num_vocab: int) -> int:
        """Formula 10 of the paper: how many tokens give a surprise of mu, for a Zipf distribution with the estimated slope."""
        slope = _zipf_slope(candidates)
        if slope <= 0:
            return len(candidates)
        epsilon = slope - 1
        spread = epsilon / -math.expm1(-epsilon * math.log(num_vocab)) if epsilon else 1 / math.log(num_vocab)
        log_count = (math.log(spread) + self.mu * math.log(2)) / slope
        return max(1, int(math.exp(min(log_count, math.log(len(candidates)) + 1))))


def surprise(weights: Logits, index: int) -> float:
    """The surprise of the token at `index`, in bits."""
    return -math.log2(weights[index] / total(weights))


def _zipf_slope(candidates: Candidates) -> float:
    """The least-squares slope of log probability over log rank, as a positive number."""
    logits = np.sort(candidates.largest(_SLOPE_TOKENS).logits)[::-1].astype(np.float64)
    logits = logits[np.isfinite(logits)]
    ranks = np.log(np.arange(1, len(logits) + 1))
    falls, steps = -np.diff(logits), np.diff(ranks)
    return float((steps * falls).sum() / (steps * steps).sum()) if len(logits) > 1 else 0.0
