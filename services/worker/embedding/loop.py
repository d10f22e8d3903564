"""The embedding loop: the one thread that owns an embedder. The same from outside as services.worker.loop.EngineLoop."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from services.protocol.errors import WorkerLost
from services.protocol.messages import EmbedRequest, Event, FinishReason, RerankRequest
from services.worker.embedding.batches import Batches
from services.worker.embedding.embedding import Embedding
from services.worker.engine.embedder import Embedder
from services.worker.engine.runner import EngineDead
from services.worker.loop import Abort, Addressed, HandOver, Quit
from services.worker.metrics import Metrics


@dataclass(frozen=True)
class BeginEmbedding:
    """`inputs` holds the token ids of each input of the request; none of them is empty."""

    request: EmbedRequest | RerankRequest
    epoch: int
    inputs: list[list[int]]


Command = BeginEmbedding | Abort | HandOver | Quit


class EmbeddingLoop:
    """`put` may be called from any thread; `run` is the engine thread. `emit` is called from the engine thread with the
    events of one batch. A cancelled request leaves before the next batch."""

    def __init__(self, embedder: Embedder, *, emit: Callable[[list[Addressed]], None], metrics: Metrics) -> None:
        self._embedder = embedder
        self._emit = emit
        self.holders = frozenset[str]()
        self._metrics = metrics
        self._batches = Batches(batch_tokens=embedder.batch_tokens, max_sequences=embedder.max_sequences)
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._embeddings: dict[str, Embedding] = {}

    def put(self, command: Command) -> None:
        self._commands.put(command)

    def occupancy(self) -> None:
        """Every batch begins with nothing."""

    def run(self) -> None:
        """Returns on Quit. Raises EngineDead after it has told every request so."""
        try:
            while self._take_in():
                if self._batches.has_work:
                    self._step()
        except EngineDead as error:
            lost = WorkerLost(f"an error was encountered while running the model: {error}")
            self._emit_all((embedding, [embedding.failed(lost)]) for embedding in self._embeddings.values())
            raise
        finally:
            self._embedder.close()

    def _take_in(self) -> bool:
        """Carries out the commands that are there; with nothing to do it waits for one. False on Quit."""
        while not self._commands.empty() or not self._batches.has_work:
            match command := self._commands.get():
                case BeginEmbedding():
                    self._begin(command)
                case Abort(request):
                    self._abort(request)
                case HandOver():  # what there is takes no longer than to begin it again elsewhere
                    pass
                case Quit():
                    return False
        return True

    def _begin(self, begin: BeginEmbedding) -> None:
        request = begin.request
        self._abort(request.id)  # an earlier claim of it that was lost, by a lease that ended while its worker lived
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
        begun = time.perf_counter()
        rows = self._embedder.embed([given.ids for given in batch])
        self._metrics.stepped(
            seconds=time.perf_counter() - begun,
            prefill=sum(len(given.ids) for given in batch),
            decode=0,
            sequences=len(batch),
        )
        events = []
        for given, row in zip(batch, rows, strict=True):
            embedding = self._embeddings[given.request]
            events.append((embedding, embedding.computed(given, row)))
            if embedding.is_complete:
                del self._embeddings[given.request]
        self._emit_all(events)

    def _emit_all(self, events: Iterable[tuple[Embedding, list[Event]]]) -> None:
        addressed = [Addressed(embedding.request.gateway, event) for embedding, produced in events for event in produced]
        if addressed:
            self._emit(addressed)
