"""The stages that remove unlikely tokens: top-k, typical-p, top-p, min-p. Pure. A stage that is off returns its input."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from services.worker.engine.sampling.candidates import Candidates, Ids, Logits, total

#: Up to this many candidates are ranked by sorting. More are divided into bins first, and only one bin is sorted.
_SORTED = 4096

_BINS = 16_384
_FAR = 40.0  # this far below the largest logit, a probability is below 1e-17
_CHUNK = 32_768


def top_k(candidates: Candidates, k: int) -> Candidates:
    """`llama_sampler_init_top_k`: the k likeliest; 0 is off."""
    return candidates.largest(k) if k > 0 else candidates


def typical(candidates: Candidates, p: float) -> Candidates:
    """`llama_sampler_init_typical` (Meister et al., "Locally Typical Sampling", 2022): the tokens whose surprise is nearest to
    the entropy, until their probabilities add up to more than `p`; 1 is off."""
    if p >= 1:
        return candidates
    weights = candidates.weights()
    whole = total(weights)
    # Surprise and entropy, both minus the surprise of the likeliest token. The cap avoids infinite surprise times zero weight.
    surprise = np.minimum(candidates.peak - candidates.logits, np.float32(1e4))
    entropy = np.float32(total(weights * surprise) / whole)
    surprise -= entropy
    return candidates.where(_first(np.abs(surprise, out=surprise), weights, p * whole, side="right"))


def top_p(candidates: Candidates, p: float) -> Candidates:
    """`llama_sampler_init_top_p`: the likeliest tokens whose probabilities add up to `p`; 1 is off."""
    if p >= 1:
        return candidates
    weights = candidates.weights()
    whole = total(weights)
    # All weights below this add up to less than 1 - p of the total, so the nucleus contains none of them.
    heavy = weights >= np.float32((1 - p) * whole / len(candidates))
    if 8 * np.count_nonzero(heavy) < len(candidates):
        head = np.flatnonzero(heavy)
        candidates, weights = candidates.at(head), weights.take(head)
    return candidates.where(_first(candidates.peak - candidates.logits, weights, p * whole, side="left"))


def min_p(candidates: Candidates, p: float) -> Candidates:
    """`llama_sampler_init_min_p`: the tokens at least `p` times as likely as the likeliest; 0 is off."""
    if p <= 0:
        return candidates
    return candidates.at_least(candidates.peak + np.float32(math.log(p)))


def _first(keys: Logits, weights: Logits, target: float, *, side: Literal["left", "right"]) -> NDArray[np.bool_]:
    """A mask of the smallest `keys` whose weights add up to `target` (`side` right: to more than `target`). On a tie, the first
    ones. No key may be negative."""
    if len(keys) <= _SORTED:
        inside = np.zeros(len(keys), dtype=np.bool_)
        inside[_first_by_sorting(keys, weights, target, side)] = True
        return inside
    bins = _bins(keys)
    sums = np.cumsum(_bin_weights(bins, weights))
    border = min(int(np.searchsorted(sums, target, side=side)), len(sums) - 1)
    inside = bins < border
    edge = np.flatnonzero(bins == border)
    before = sums[border - 1] if border else 0.0
    inside[edge.take(_first_by_sorting(keys.take(edge), weights.take(edge), target - before, side))] = True
    return inside


def _bins(keys: Logits) -> NDArray[np.uint16]:
    """The bin of each key. Larger keys have larger bins; keys far from 0 share the last."""
    span = min(float(keys.max()), _FAR) or 1.0
    scaled = keys * np.float32(_BINS / span)
    bins: NDArray[np.uint16] = np.minimum(scaled, np.float32(_BINS), out=scaled).astype(np.uint16)
    return bins


def _bin_weights(bins: NDArray[np.uint16], weights: Logits) -> NDArray[np.float64]:
    """The total weight of each bin. Works in chunks that fit the CPU cache."""
    sums = np.zeros(_BINS + 1)
    for start in range(0, len(bins), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        sums += np.bincount(bins[chunk], weights[chunk], minlength=_BINS + 1)
    return sums


def _first_by_sorting(keys: Logits, weights: Logits, target: float, side: Literal["left", "right"]) -> Ids:
    order = _ascending(keys)
    count = int(np.cumsum(weights.take(order), dtype=np.float64).searchsorted(target, side=side)) + 1
    return order[:count]


def _ascending(keys: Logits) -> Ids:
    """A stable argsort of non-negative keys, several times faster than numpy's.

    The bits of a non-negative float, read as an integer, have the same order. So this sorts integers with the bits of a key in
    the upper half and its index in the lower half.
    """
    packed = (keys + np.float32(0)).view(np.uint32).astype(np.int64) << 32  # adding 0 turns -0 into 0
    packed |= np.arange(len(keys))
    packed.sort()
    packed &= 0xFFFFFFFF
    return packed
