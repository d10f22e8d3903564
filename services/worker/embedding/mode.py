"""The mode of a worker whose model makes embeddings or ranks documents."""

from __future__ import annotations

from services.protocol.errors import UnsupportedCapability
from services.protocol.messages import Claim, GenerateRequest
from services.worker.command_loop import Emit
from services.worker.embedding.engine_thread import BeginEmbedding, EmbeddingLoop
from services.worker.embedding.inputs import InputBuilder
from services.worker.engine.embedder import Embedder
from services.worker.metrics import Metrics


class EmbeddingMode:
    """Implements Mode."""

    def __init__(self, embedder: Embedder) -> None:
        self.context_tokens = embedder.context_tokens
        self._embedder = embedder
        self._inputs = InputBuilder(embedder)

    def loop(self, emit: Emit, metrics: Metrics) -> EmbeddingLoop:
        return EmbeddingLoop(self._embedder, emit=emit, metrics=metrics)

    def begin(self, claim: Claim) -> BeginEmbedding:
        request = claim.request
        if isinstance(request, GenerateRequest):
            raise UnsupportedCapability("the model makes embeddings and does not generate text")
        return BeginEmbedding(request, claim.epoch, self._inputs.build(request))

    def close(self) -> None:
        """Nothing to stop."""
