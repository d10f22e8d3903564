"""Tracks which slot holds which cells of the KV cache. Mirrors llama.cpp's own bookkeeping, which its API does not expose.

With one KV buffer for all slots, a cell can belong to several of them: `llama_memory_seq_cp` marks the cells of a prefix for
another sequence and copies nothing. With one stream per slot, nothing is shared.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

CellIds = NDArray[np.int32]


class Cells:
    """`num_cells` cells. A used cell holds one token of one or more of the `num_slots` slots."""

    def __init__(self, num_cells: int, num_slots: int) -> None:
        self._owners = np.zeros(num_cells, dtype=np.int32)
        self._held: list[CellIds] = [np.empty(0, dtype=np.int32) for _ in range(num_slots)]
        self._free: CellIds = np.arange(num_cells, dtype=np.int32)

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return len(self._owners) - len(self._free)

    def grow(self, slot: int, count: int) -> None:
        """Adds `count` cells to the slot. The caller must check `num_free` first."""
        assert count <= self.num_free
        taken, self._free = self._free[:count], self._free[count:]
        self._owners[taken] = 1
        self._held[slot] = np.concatenate([self._held[slot], taken])

    def share(self, source: int, target: int, length: int) -> None:
        """Makes the first `length` cells of `source` also belong to `target`, which must be empty."""
        assert not len(self._held[target])
        self._held[target] = self._held[source][:length]
        self._owners[self._held[target]] += 1

    def cut(self, slot: int, keep: int) -> None:
        self._held[slot], dropped = self._held[slot][:keep], self._held[slot][keep:]
        self._owners[dropped] -= 1
        self._free = np.concatenate([self._free, dropped[self._owners[dropped] == 0]])

    def num_free_beside(self, slots: Iterable[int], *, prefix: tuple[int, int]) -> int:
        """How many cells would be free if only `slots` and the `prefix`, (slot, length), kept theirs."""
        slot, length = prefix
        kept = [self._held[other] for other in slots] + [self._held[slot][:length]]
        return len(self._owners) - len(np.unique(np.concatenate(kept)))
