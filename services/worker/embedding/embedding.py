"""A claimed request for embeddings or scores, until its terminal event. Only the engine thread uses it."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from services.protocol.errors import CorralError
from services.protocol.messages import (
    Embedded,
    EmbedRequest,
    Event,
    Failed,
    Finished,
    FinishReason,
    RerankRequest,
    Started,
    Timings,
    Usage,
)
from services.worker.embedding.batches import Input


class Embedding:
    """Turns the rows that the model computes into numbered events, the last of which is a terminal event."""

    def __init__(self, request: EmbedRequest | RerankRequest, epoch: int, inputs: list[list[int]]) -> None:
        self.request = request
        self._epoch = epoch
        self._prompt_tokens = sum(map(len, inputs))
        self._left = len(inputs)
        self._computed = 0
        self._seq = 0
        self._started_ns = time.monotonic_ns()

    @property
    def is_complete(self) -> bool:
        return self._left == 0

    def started(self) -> Started:
        return Started(self.request.id, self._epoch, self._next_seq(), self._prompt_tokens, cached_tokens=0)

    def computed(self, given: Input, row: NDArray[np.float32]) -> list[Event]:
        """The event with the vector of one input; after the last input, also the terminal event."""
        self._left -= 1
        self._computed += len(given.ids)
        vector = answer_of(self.request, row).astype("<f4").tobytes()
        embedded = Embedded(self.request.id, self._epoch, self._next_seq(), given.index, vector)
        return [embedded, self.finished(FinishReason.STOP)] if self.is_complete else [embedded]

    def finished(self, reason: FinishReason) -> Finished:
        return Finished(
            self.request.id,
            self._epoch,
            self._next_seq(),
            (reason,),
            Usage(self._computed, 0, 0),
            Timings(prefill_ns=time.monotonic_ns() - self._started_ns, decode_ns=0),
        )

    def failed(self, error: CorralError) -> Failed:
        return Failed(self.request.id, self._epoch, self._next_seq(), error.code, error.message, error.field)

    def _next_seq(self) -> int:
        seq, self._seq = self._seq, self._seq + 1
        return seq


def answer_of(request: EmbedRequest | RerankRequest, row: NDArray[np.float32]) -> NDArray[np.float32]:
    """The part of a row that the request asks for. Embeddings: the first `dimensions`, scaled to length 1 if `normalize`.
    Reranking: the first output of the classifier, unchanged."""
    if isinstance(request, RerankRequest):
        return row[:1]
    kept = row[: request.dimensions] if request.dimensions else row
    length = float(np.linalg.norm(kept))
    return kept / length if request.normalize and length > 0 else kept
