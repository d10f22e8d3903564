"""Random draws, determined by the seed and the position in the answer."""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np

from services.worker.engine.sampling.candidates import Logits, block_start, block_sums

Purpose = Literal[b"", b"xtc"]


def keyed_uniform(seed: int, position: int, purpose: Purpose = b"") -> float:
    """A uniform number in [0, 1) with 53 random bits, determined by (seed, position, purpose)."""
    key = (seed & (2**64 - 1)).to_bytes(8, "little") + position.to_bytes(8, "little")
    return (int.from_bytes(hashlib.blake2b(key, digest_size=8, person=purpose).digest(), "little") >> 11) / 2**53


def drawn(weights: Logits, uniform: float) -> int:
    """The index at which the cumulative weight passes `uniform`, in [0, 1), times the total.

    Searches the blocks first, then inside one block, which avoids a cumulative sum over the whole vocabulary. Never draws a
    weight of zero; at least one weight must be positive.
    """
    sums = np.cumsum(block_sums(weights), dtype=np.float64)
    target = uniform * sums[-1]
    block = min(int(sums.searchsorted(target, side="right")), len(sums) - 1)
    start = block_start(block)
    inside = weights[start : block_start(block + 1)]
    before = sums[block - 1] if block else 0.0
    index = int(np.cumsum(inside, dtype=np.float64).searchsorted(target - before, side="right"))
    # Rounding can push the target past the end of its block.
    return start + min(index, int(np.flatnonzero(inside)[-1]))
