"""Candidates: the tokens that may still be drawn. The stages of the chain make smaller ones of it.

A vocabulary has up to 262,144 entries, and a step has about a millisecond for all of its sequences, so nothing here sorts or
copies a whole vocabulary: the maxima of blocks say where the large logits are.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
Ids = NDArray[np.intp]

_BLOCK = 512


class Candidates:
    """`logits` and the token ids that they belong to; `ids` None: they are the whole vocabulary. Neither is ever changed.

    Always in ascending order of ids. In the order of their probabilities, as llama.cpp keeps them, a draw would depend on
    which of two near-equals comes first, and that hangs on the last digits of a logit, which the shape of a batch changes.
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
        """The largest logit; NaN where there is one, minus infinity where nothing can be drawn."""
        return np.float32(self.logits.max(initial=-np.inf))

    def likeliest(self) -> int | None:
        """The id of the largest logit, the smallest id among equals; None where nothing can be drawn."""
        index = int(np.argmax(self.logits)) if len(self) else 0
        return self.id_at(index) if len(self) and self.logits[index] > -np.inf else None

    def at(self, indices: Ids) -> Candidates:
        """Those at `indices`, which are ascending."""
        return Candidates(self.logits.take(indices), indices if self.ids is None else self.ids.take(indices))

    def where(self, allowed: NDArray[np.bool_]) -> Candidates:
        """Those for which `allowed`, which has an entry for each, is true. The others may stay, with no probability."""
        if len(self) <= _BLOCK or 8 * np.count_nonzero(allowed) < len(self):
            return self.at(np.flatnonzero(allowed))
        # Choosing by a mask branches at each entry; this does not. Infinity where allowed, minus infinity elsewhere:
        ceiling = (allowed.astype(np.float32) - np.float32(0.5)) * np.float32(np.inf)
        return Candidates(np.minimum(self.logits, ceiling, out=ceiling), self.ids)

    def at_temperature(self, temperature: float) -> Candidates:
        return self if temperature == 1.0 else Candidates(self.logits / np.float32(temperature), self.ids)

    def at_least(self, floor: np.float32) -> Candidates:
        return self.where(self.logits >= floor)

    def largest(self, count: int) -> Candidates:
        """The `count` largest; among equals at the border the smaller ids."""
        if count >= len(self):
            return self
        some = self.at(self._near_the_top(count)) if count * _BLOCK <= len(self) else self
        border = np.partition(some.logits, -count)[-count]
        indices = np.flatnonzero(some.logits >= border)
        surplus = len(indices) - count
        if surplus > 0:
            tied = np.flatnonzero(some.logits.take(indices) == border)
            indices = np.delete(indices, tied[-surplus:])
        return some.at(indices)

    def _near_the_top(self, count: int) -> Ids:
        """Where some are, ascending, that include the `count` largest: `count` blocks have a maximum of at least this `floor`, so
        as many logits have, and only in those blocks."""
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
        """Proportional to the probabilities; the likeliest weighs 1."""
        weights = self.logits - self.peak
        if temperature != 1.0:
            weights /= temperature
        np.exp(weights, out=weights)
        return weights


def total(weights: Logits) -> float:
    """The sum, in steps that lose no precision: block by block, then in double."""
    return float(block_sums(weights).sum(dtype=np.float64))


def block_sums(weights: Logits) -> Logits:
    sums: Logits
    if len(weights) <= _BLOCK:
        sums = weights.sum(keepdims=True)
    else:
        sums = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK))
    return sums


def block_start(number: int) -> int:
    """Where the weights of a block of `block_sums` begin."""
    return number * _BLOCK
