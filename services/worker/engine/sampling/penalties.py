"""Repetition, frequency and presence penalties."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as TokenIds

import numpy as np

from services.protocol.sampling import SamplingParams
from services.worker.engine.sampling.candidates import Logits


class Penalties:
    """`llama_sampler_init_penalties`, over the last `repeat_last_n` tokens. The repetition penalty divides positive logits and
    multiplies negative ones; the frequency penalty is subtracted per occurrence, the presence penalty once."""

    def __init__(self, params: SamplingParams) -> None:
        self._repeat = params.repeat_penalty
        self._frequency = params.frequency_penalty
        self._presence = params.presence_penalty
        self._last_n = params.repeat_last_n
        self.is_on = self._last_n != 0 and (self._repeat, self._frequency, self._presence) != (1.0, 0.0, 0.0)

    def apply(self, row: Logits, tokens: TokenIds[int]) -> None:
        window = tokens if self._last_n < 0 else tokens[-self._last_n :]
        occurrences = Counter(window)
        ids = np.fromiter(occurrences.keys(), dtype=np.intp, count=len(occurrences))
        counts = np.fromiter(occurrences.values(), dtype=np.float32, count=len(occurrences))
        seen = row[ids]
        seen = np.where(seen > 0, seen / self._repeat, seen * self._repeat)
        row[ids] = seen - counts * self._frequency - self._presence
