"""Mode: what a worker does with its model. `text_mode.TextMode` and `embedding.mode.EmbeddingMode` implement it."""

from __future__ import annotations

from typing import Any, Protocol

from services.protocol.messages import Claim
from services.worker.command_loop import CommandLoop, Emit
from services.worker.metrics import Metrics


class Mode(Protocol):
    """`context_tokens` is the context of one slot or, for an embedding model, of one input."""

    context_tokens: int

    def loop(self, emit: Emit, metrics: Metrics) -> CommandLoop[Any, Any]:
        """Called once. The loop calls `emit` from the engine thread with the events of each step, and updates `metrics`."""

    def begin(self, claim: Claim) -> object:
        """The command that starts the request. Thread-safe: of the model it only reads the vocabulary. Raises CorralError if
        the model cannot answer the request."""

    def close(self) -> None:
        """Stops what the mode started besides its loop. Called once, after the loop."""
