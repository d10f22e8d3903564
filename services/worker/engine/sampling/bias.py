"""Logit bias: fixed values that a request adds to the logits of certain tokens."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from services.worker.engine.sampling.candidates import Logits


class LogitBias:
    """`llama_sampler_init_logit_bias`. Ignores ids outside the vocabulary."""

    def __init__(self, biases: Iterable[tuple[int, float]]) -> None:
        valid = [(token, bias) for token, bias in biases if token >= 0]
        self._ids = np.array([token for token, _ in valid], dtype=np.intp)
        self._biases = np.array([bias for _, bias in valid], dtype=np.float32)

    def apply(self, row: Logits) -> None:
        known = self._ids < len(row)
        np.add.at(row, self._ids[known], self._biases[known])
