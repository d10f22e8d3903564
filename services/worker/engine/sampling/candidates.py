"""Candidates: the tokens that can still be drawn. Each stage of the chain narrows them down.

A vocabulary has up to 262,144 tokens, and a step has about a millisecond for all its sequences. So nothing here sorts a whole
vocabulary: the maximum of each block of logits shows which blocks can contain the largest ones.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
Ids = NDArray[np.intp]

_BLOCK = 512


class Candidates:
    """Immutable pairs of token ids and logits, in ascending order of ids. `ids` None: the whole vocabulary.

    llama.cpp orders candidates by probability. Then a draw depends on the order of two nearly equal ones, and so on the last
    digits of a logit, which change with the shape of the batch.
    """

    def __init__(self, logits: Logits, ids: Ids | None = None) -> None:
        self.logits = logits
        self.ids = ids

    def __len__(self) -> int:
        return len(self.logits)

    def id_at(self, index: int) -> int:
        return index if self.ids is None else int(self.ids[index])

    @cached_property
    def peak(self) -> np.float32:
        """The largest logit. NaN if any logit is NaN, minus infinity if nothing can be drawn."""
        return np.float32(self.logits.max(initial=-np.inf))

    def likeliest(self) -> int | None:
        """The id of the largest logit, the smallest id on a tie; None if nothing can be drawn."""
        index = int(np.argmax(self.logits)) if len(self) else 0
        return self.id_at(index) if len(self) and self.logits[index] > -np.inf else None

    def at(self, indices: Ids) -> Candidates:
        """The candidates at `indices`, which must be ascending."""
        return Candidates(self.logits.take(indices), indices if self.ids is None else self.ids.take(indices))

    def where(self, allowed: NDArray[np.bool_]) -> Candidates:
        """The candidates for which the mask `allowed` is true. The others may stay, with a logit of minus infinity."""
        if len(self) <= _BLOCK or 8 * np.count_nonzero(allowed) < len(self):
            return self.at(np.flatnonzero(allowed))
        # Infinity if allowed, minus infinity if not. Faster than selecting by a mask, which branches at each entry.
        ceiling = (allowed.astype(np.float32) - np.float32(0.5)) * np.float32(np.inf)
        return Candidates(np.minimum(self.logits, ceiling, out=ceiling), self.ids)

    def at_temperature(self, temperature: float) -> Candidates:
        return self if temperature == 1.0 else Candidates(self.logits / np.float32(temperature), self.ids)

    def at_least(self, floor: np.float32) -> Candidates:
        return self.where(self.logits >= floor)

    def largest(self, count: int) -> Candidates:
        """The candidates with the `count` largest logits; on a tie for the last place, the smaller ids."""
        if count >= len(self):
            return self
        some = self.at(self._top_candidates(count)) if count * _BLOCK <= len(self) else self
        border = np.partition(some.logits, -count)[-count]
        indices = np.flatnonzero(some.logits >= border)
        surplus = len(indices) - count
        if surplus > 0:
            tied = np.flatnonzero(some.logits.take(indices) == border)
            indices = np.delete(indices, tied[-surplus:])
        return some.at(indices)

    def _top_candidates(self, count: int) -> Ids:
        """Ascending indices of a few candidates that include the `count` largest.

        `floor` is the `count`-th largest block maximum, so at least `count` logits reach it. They are in the blocks whose
        maximum reaches it.
        """
        maxima = np.maximum.reduceat(self.logits, np.arange(0, len(self), _BLOCK))
        floor = np.partition(maxima, -count)[-count]
        whole = len(self) // _BLOCK
        if 8 * count > whole:
            return np.flatnonzero(self.logits >= floor)
        blocks = np.flatnonzero(maxima[:whole] >= floor)
        grid = self.logits[: whole * _BLOCK].reshape(whole, _BLOCK)
        row, column = np.divmod(np.flatnonzero(grid[blocks] >= floor), _BLOCK)
        rest = np.flatnonzero(self.logits[whole * _BLOCK :] >= floor)
        return np.concatenate([blocks[row] * _BLOCK + column, whole * _BLOCK + rest])

    def weights(self, temperature: float = 1.0) -> Logits:
        """Unnormalised probabilities, scaled so that the likeliest has weight 1."""
        weights = self.logits - self.peak
        if temperature != 1.0:
            weights /= temperature
        np.exp(weights, out=weights)
        return weights


def total(weights: Logits) -> float:
    """The sum of the weights: per block in single precision, then over the blocks in double."""
    return float(block_sums(weights).sum(dtype=np.float64))


def block_sums(weights: Logits) -> Logits:
    sums: Logits
    if len(weights) <= _BLOCK:
        sums = weights.sum(keepdims=True)
    else:
        sums = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK))
    return sums


def block_start(number: int) -> int:
    """Index of the first weight of a block of `block_sums`."""
    return number * _BLOCK
