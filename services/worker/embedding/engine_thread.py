"""The engine thread of a model that makes embeddings or ranks documents."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.protocol.messages import EmbedRequest, Event, FinishReason, RerankRequest
from services.worker.command_loop import CommandLoop, Emit
from services.worker.embedding.batches import Batches, Input
from services.worker.embedding.embedding import Embedding
from services.worker.engine.embedder import Embedder
from services.worker.failures import request_failure
from services.worker.metrics import Metrics


@dataclass(frozen=True)
class BeginEmbedding:
    """Starts a request. `inputs` holds the token ids of each input; none of them is empty."""

    request: EmbedRequest | RerankRequest
    epoch: int
    inputs: list[list[int]]


class EmbeddingLoop(CommandLoop[BeginEmbedding, Embedding]):
    """A cancelled request is dropped before the next batch."""

    def __init__(self, embedder: Embedder, *, emit: Emit, metrics: Metrics) -> None:
        super().__init__(emit)
        self._embedder = embedder
        self._metrics = metrics
        self._batches = Batches(batch_tokens=embedder.batch_tokens, max_sequences=embedder.max_sequences)
        self._embeddings: dict[str, Embedding] = {}

    def occupancy(self) -> None:
        """None: a batch leaves nothing in the cache."""

    def threads(self) -> int:
        return self._embedder.threads

    @property
    def _has_work(self) -> bool:
        return self._batches.has_work

    def _all_running(self) -> Iterable[Embedding]:
        return self._embeddings.values()

    def _close(self) -> None:
        self._embedder.close()

    def _hand_over(self) -> None:
        """Does nothing: to finish here takes no longer than to start again elsewhere."""

    def _begin(self, begin: BeginEmbedding) -> None:
        try:
            self._try_to_begin(begin)
        except Exception as reason:  # noqa: BLE001 - a bug in one request must not end the others
            self._emit_all([self._failed(Embedding(begin.request, begin.epoch, []), reason)])

    def _try_to_begin(self, begin: BeginEmbedding) -> None:
        request = begin.request
        self._abort(request.id)  # an earlier claim of it, lost because this worker's lease ended
        embedding = Embedding(request, begin.epoch, begin.inputs)
        if embedding.is_complete:
            self._emit_all([(embedding, [embedding.started(), embedding.finished(FinishReason.STOP)])])
            return
        self._embeddings[request.id] = embedding
        self._batches.add(request.id, begin.inputs)
        self._emit_all([(embedding, [embedding.started()])])

    def _abort(self, request: str) -> None:
        embedding = self._embeddings.pop(request, None)
        if embedding is not None:
            self._batches.drop(request)
            self._emit_all([(embedding, [embedding.finished(FinishReason.ABORT)])])

    def _step(self) -> None:
        batch = self._batches.next()
        started_s = time.perf_counter()
        rows = self._embedder.embed([given.ids for given in batch])
        self._metrics.stepped(
            seconds=time.perf_counter() - started_s,
            prefill=sum(len(given.ids) for given in batch),
            decode=0,
            sequences=len(batch),
        )
        computed = zip(batch, rows, strict=True)
        self._emit_all([self._computed(given, row) for given, row in computed if given.request in self._embeddings])

    def _computed(self, given: Input, row: NDArray[np.float32]) -> tuple[Embedding, list[Event]]:
        embedding = self._embeddings[given.request]
        try:
            events = embedding.computed(given, row)
        except Exception as reason:  # noqa: BLE001 - a bug in one request must not end the others
            return self._failed(embedding, reason)
        if embedding.is_complete:
            del self._embeddings[given.request]
        return embedding, events

    def _failed(self, embedding: Embedding, reason: Exception) -> tuple[Embedding, list[Event]]:
        request = embedding.request.id
        if self._embeddings.pop(request, None):
            self._batches.drop(request)
        return embedding, [embedding.failed(request_failure(request, reason))]
