"""Mode: what a worker does with its model. `generating.GeneratingMode` and `embedding.mode.EmbeddingMode` implement it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from services.protocol.messages import Claim
from services.worker.engine.engine import Occupancy
from services.worker.loop import Addressed
from services.worker.metrics import Metrics

Emit = Callable[[list[Addressed]], None]


class Loop(Protocol):
    """Owns the model. `run` is the engine thread, and the one writer of `holders`: the requests of which its cache holds something."""

    holders: frozenset[str]

    def put(self, command: Any) -> None:
        """What the mode's `begin` returned, an Abort, a HandOver or a Quit; from any thread."""

    def run(self) -> None:
        """Returns on Quit. Raises EngineDead after it has told every request so."""

    def occupancy(self) -> Occupancy | None:
        """None where nothing is kept from one batch to the next. From any thread."""


class Mode(Protocol):
    """`context_tokens`: of one slot, or of one input."""

    context_tokens: int

    def loop(self, emit: Emit, metrics: Metrics) -> Loop:
        """Made once. It calls `emit` from the engine thread with the events of one step, and tells `metrics` of each."""

    def begin(self, claim: Claim) -> object:
        """The command that begins the request. Only reads the vocabulary: from any thread. Raises CorralError for what the model
        cannot answer."""
