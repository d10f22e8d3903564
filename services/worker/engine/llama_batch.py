"""LlamaBatch: a `llama_batch` over numpy arrays. Only the engine thread uses it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence as TokenIds

import numpy as np
from llama_cpp import llama_cpp


class LlamaBatch:
    """Owns the arrays that the struct points to. Each token belongs to one llama.cpp sequence."""

    def __init__(self, capacity: int) -> None:
        self._token = np.zeros(capacity, dtype=np.int32)
        self._pos = np.zeros(capacity, dtype=np.int32)
        self._count = np.ones(capacity, dtype=np.int32)
        self._seq = np.zeros(capacity, dtype=np.int32)
        self._output = np.zeros(capacity, dtype=np.int8)
        # llama.cpp takes, for each token, a pointer to its sequence ids.
        self._seq_pointers = self._seq.ctypes.data + np.arange(capacity, dtype=np.uintp) * self._seq.itemsize
        pointer = ctypes.POINTER(ctypes.c_int32)
        self.struct = llama_cpp.llama_batch(
            n_tokens=0,
            token=self._token.ctypes.data_as(pointer),
            embd=None,
            pos=self._pos.ctypes.data_as(pointer),
            n_seq_id=self._count.ctypes.data_as(pointer),
            seq_id=self._seq_pointers.ctypes.data_as(ctypes.POINTER(pointer)),
            logits=self._output.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def clear(self) -> None:
        self.struct.n_tokens = 0

    def add(self, tokens: TokenIds[int], *, sequence: int, start: int, outputs: int) -> None:
        """Adds the tokens at positions from `start`. The last `outputs` of them produce an output row each."""
        begin = self.struct.n_tokens
        end = self.struct.n_tokens = begin + len(tokens)
        self._token[begin:end] = tokens
        self._pos[begin:end] = np.arange(start, start + len(tokens))
        self._seq[begin:end] = sequence
        self._output[begin : end - outputs] = 0
        self._output[end - outputs : end] = 1
