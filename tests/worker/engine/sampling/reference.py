"""llama.cpp's samplers, as the reference."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence as TokenIds
from typing import Any

import numpy as np
from llama_cpp import llama_cpp
from numpy.typing import NDArray

ENTRY = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class Reference:
    """Owns one `llama_sampler`. `ids` and `logits` are its remaining candidates in its order, and `selected` is the id that it
    drew."""

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self.ids: NDArray[np.int32] = np.empty(0, np.int32)
        self.logits: NDArray[np.float32] = np.empty(0, np.float32)
        self.selected = -1

    def __del__(self) -> None:
        llama_cpp.llama_sampler_free(self._sampler)

    def accept(self, tokens: TokenIds[int]) -> None:
        for token in tokens:
            llama_cpp.llama_sampler_accept(self._sampler, token)

    def apply(self, logits: NDArray[np.float32], ids: NDArray[np.intp] | None = None) -> Reference:
        entries = np.zeros(len(logits), dtype=ENTRY)
        entries["id"] = np.arange(len(logits)) if ids is None else ids
        entries["logit"] = logits
        pointer = entries.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data))
        array = llama_cpp.llama_token_data_array(data=pointer, size=len(logits), selected=-1, sorted=False)
        llama_cpp.llama_sampler_apply(self._sampler, ctypes.byref(array))
        # XTC advances the data pointer.
        start = (ctypes.addressof(array.data[0]) - entries.ctypes.data) // ENTRY.itemsize
        left = entries[start : start + array.size]
        self.ids, self.logits = left["id"].copy(), left["logit"].copy()
        self.selected = int(self.ids[array.selected]) if array.selected >= 0 else -1
        return self

    @property
    def probabilities(self) -> dict[int, float]:
        """Probabilities by id, without those that are zero."""
        weights = np.exp((self.logits - self.logits.max()).astype(np.float64))
        return {int(i): float(w) for i, w in zip(self.ids, weights / weights.sum(), strict=True) if w > 0}


def uniform_of_seed(seed: int) -> float:
    """The first float that a stage draws with this seed: llama.cpp uses std::mt19937, and numpy has the same generator."""
    return float(np.float32(np.random.RandomState(seed)._bit_generator.random_raw()) / np.float32(2**32))
