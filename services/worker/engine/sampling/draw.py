"""The random part: numbers that depend on (seed, position) alone, and what they pick."""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np

from services.worker.engine.sampling.candidates import Logits, block_start, block_sums

Purpose = Literal[b"", b"xtc"]


def keyed_uniform(seed: int, position: int, purpose: Purpose = b"") -> float:
    """A number in [0, 1) with 53 random bits that depends on (seed, position, purpose) alone."""
    key = (seed & (2**64 - 1)).to_bytes(8, "little") + position.to_bytes(8, "little")
    return (int.from_bytes(hashlib.blake2b(key, digest_size=8, person=purpose).digest(), "little") >> 11) / 2**53


def drawn(weights: Logits, uniform: float) -> int:
    """The index at which the running sum of the weights passes `uniform` (in [0, 1)) of the whole: first among blocks, then
    within one, which spares summing up a whole vocabulary. A weight of zero is never drawn; there is one that is not."""
    sums = np.cumsum(block_sums(weights), dtype=np.float64)
    target = uniform * sums[-1]
    block = min(int(sums.searchsorted(target, side="right")), len(sums) - 1)
    start = block_start(block)
    inside = weights[start : block_start(block + 1)]
    before = sums[block - 1] if block else 0.0
    index = int(np.cumsum(inside, dtype=np.float64).searchsorted(target - before, side="right"))
    # Rounding may carry the target past the end of its block.
    return start + min(index, int(np.flatnonzero(inside)[-1]))
