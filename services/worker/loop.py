"""The engine loop: the one thread that owns the engine. Commands come in by a queue, events leave by a callback.

Wait for work, take in commands, step, emit: nothing else happens here.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from services.protocol.errors import WorkerLost
from services.protocol.messages import Event, Failed, Finished, FinishReason, GenerateRequest
from services.worker.engine.engine import Engine
from services.worker.engine.runner import EngineDead, ModelRunner
from services.worker.engine.sampling import Sampler
from services.worker.engine.sequence import Sequence
from services.worker.generation import Generation
from services.worker.output import OutputPipeline


@dataclass(frozen=True)
class Addressed:
    """An event and the gateway that waits for it."""

    gateway: str
    event: Event

    @property
    def is_terminal(self) -> bool:
        return isinstance(self.event, Finished | Failed)


@dataclass(frozen=True)
class Begin:
    request: GenerateRequest
    epoch: int
    prompt: list[int]


@dataclass(frozen=True)
class Abort:
    request: str


@dataclass(frozen=True)
class Quit:
    """Ends the loop at once; what still runs is left without a terminal event."""


Command = Begin | Abort | Quit


class EngineLoop:
    """`put` may be called from any thread; `run` is the engine thread. `emit` is called from the engine thread with the
    events of one step."""

    def __init__(
        self, runner: ModelRunner, *, batch_tokens: int, prefill_tokens: int, emit: Callable[[list[Addressed]], None]
    ) -> None:
        self._runner = runner
        self._engine = Engine(runner, batch_tokens=batch_tokens, prefill_tokens=prefill_tokens)
        self._emit = emit
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._generations: dict[str, Generation] = {}

    def put(self, command: Command) -> None:
        self._commands.put(command)

    def run(self) -> None:
        """Returns on Quit. Raises EngineDead after it has told every request so."""
        try:
            while self._take_in():
                if self._engine.has_work:
                    self._step()
        except EngineDead as error:
            lost = WorkerLost(f"an error was encountered while running the model: {error}")
            self._emit_all((generation, [generation.failed(lost)]) for generation in self._generations.values())
            raise
        finally:
            self._runner.close()

    def _take_in(self) -> bool:
        """Carries out the commands that are there; with nothing to do it waits for one. False on Quit."""
        while not self._commands.empty() or not self._engine.has_work:
            match command := self._commands.get():
                case Begin():
                    self._begin(command)
                case Abort(request):
                    self._abort(request)
                case Quit():
                    return False
        return True

    def _begin(self, begin: Begin) -> None:
        request = begin.request
        self._abort(request.id)  # an earlier claim of it that was lost, by a lease that ended while its worker lived
        sequence = Sequence(
            request.id,
            begin.prompt,
            Sampler(
                request.sampling,
                request.stopping,
                end_tokens=self._runner.end_tokens,
                vocabulary=self._runner.token_text,
            ),
            max_tokens=request.stopping.max_tokens,
            context_tokens=self._runner.context_tokens,
        )
        output = OutputPipeline(self._runner.token_bytes, request.stopping.stop)
        generation = Generation(request, begin.epoch, sequence, output)
        if request.stopping.max_tokens == 0:
            self._emit_all([(generation, [generation.started(), generation.finished(FinishReason.LENGTH)])])
            return
        self._generations[request.id] = generation
        self._engine.add(sequence)

    def _abort(self, request: str) -> None:
        generation = self._generations.pop(request, None)
        if generation is not None:
            self._engine.finish(generation.sequence, FinishReason.ABORT)
            self._emit_all([(generation, [generation.finished(FinishReason.ABORT)])])

    def _step(self) -> None:
        admitted = [self._generations[sequence.id] for sequence in self._engine.admit()]
        self._emit_all((generation, [generation.started()]) for generation in admitted)
        events = []
        for sampled in self._engine.step():
            generation = self._generations[sampled.sequence.id]
            produced = generation.advance(sampled)
            if isinstance(produced[-1], Finished):
                self._engine.finish(generation.sequence, produced[-1].reasons[0])
                del self._generations[generation.request.id]
            events.append((generation, produced))
        self._emit_all(events)

    def _emit_all(self, events: Iterable[tuple[Generation, list[Event]]]) -> None:
        addressed = [Addressed(generation.request.gateway, event) for generation, produced in events for event in produced]
        if addressed:
            self._emit(addressed)
