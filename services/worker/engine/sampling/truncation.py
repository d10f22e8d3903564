"""The stages that cut off what is unlikely: top-k, typical-p, top-p, min-p. Pure; a stage that is off returns what it got."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from services.worker.engine.sampling.candidates import Candidates, Ids, Logits, total

#: Up to so many candidates are ranked by sorting, more by a histogram first.
_SORTED = 4096


def top_k(candidates: Candidates, k: int) -> Candidates:
    """`llama_sampler_init_top_k`: the k likeliest; 0 is off."""
    return candidates.largest(k) if k > 0 else candidates


def typical(candidates: Candidates, p: float) -> Candidates:
    """`llama_sampler_init_typical` (Meister et al., "Locally Typical Sampling", 2022): those whose surprise is nearest to the
    entropy, until together they are more than `p`; 1 is off."""
    if p >= 1:
        return candidates
    weights = candidates.weights()
    whole = total(weights)
    # Surprise and entropy, both less that of the likeliest. What cannot be drawn is infinitely surprising, and weighs nothing.
    surprise = np.minimum(candidates.peak - candidates.logits, np.float32(1e4))
    entropy = np.float32(total(weights * surprise) / whole)
    surprise -= entropy
    return candidates.at(_first(np.abs(surprise, out=surprise), weights, p * whole, side="right"))


def top_p(candidates: Candidates, p: float) -> Candidates:
    """`llama_sampler_init_top_p`: the likeliest that together reach `p`; 1 is off."""
    if p >= 1:
        return candidates
    weights = candidates.weights()
    whole = total(weights)
    # All that weigh less than this weigh less than 1 - p together, so the nucleus has none of them.
    least = (1 - p) * whole / len(candidates)
    head = candidates.indices_from(candidates.peak + np.float32(math.log(least) - 1e-3))
    kept = candidates.at(head)
    return kept.at(_first(candidates.peak - kept.logits, weights.take(head), p * whole, side="left"))


def min_p(candidates: Candidates, p: float) -> Candidates:
    """`llama_sampler_init_min_p`: those at least `p` times as likely as the likeliest; 0 is off."""
    if p <= 0:
        return candidates
    return candidates.at(candidates.indices_from(candidates.peak + np.float32(math.log(p))))


def _first(keys: Logits, weights: Logits, target: float, *, side: Literal["left", "right"]) -> Ids:
    """The indices, ascending, of the smallest `keys` (none negative) that together weigh `target` (`side` right: more than that);
    among equal keys the smaller indices."""
    if len(keys) <= _SORTED:
        return _first_by_sorting(keys, weights, target, side)
    # The bits of a float that is not negative are an integer in the same order; its upper half makes 32,641 bins at most.
    # Adding zero makes of minus zero a zero.
    bins = (keys + np.float32(0)).view(np.int32) >> 16
    sums = np.cumsum(np.bincount(bins, weights=weights))
    border = min(int(np.searchsorted(sums, target, side=side)), len(sums) - 1)
    inside = bins < border
    edge = np.flatnonzero(bins == border)
    before = sums[border - 1] if border else 0.0
    inside[edge.take(_first_by_sorting(keys.take(edge), weights.take(edge), target - before, side))] = True
    return np.flatnonzero(inside)


def _first_by_sorting(keys: Logits, weights: Logits, target: float, side: Literal["left", "right"]) -> Ids:
    order = np.argsort(keys, kind="stable")
    count = int(np.searchsorted(np.cumsum(weights.take(order), dtype=np.float64), target, side=side)) + 1
    return np.sort(order[:count])
