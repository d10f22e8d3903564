"""The engine loop: the one thread that owns the engine. Commands come in by a queue, events leave by a callback.

Wait for work, take in commands, step, emit: nothing else happens here.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from services.protocol.errors import WorkerLost
from services.protocol.messages import Committed, Event, Failed, Finished, FinishReason, GenerateRequest, HandedOver
from services.worker.engine.engine import Engine, Occupancy
from services.worker.engine.grammar import Grammar
from services.worker.engine.runner import EngineDead, ModelRunner
from services.worker.engine.sampling import Sampler
from services.worker.engine.scheduler import SampledToken, ScheduledBatch
from services.worker.engine.sequence import Sequence
from services.worker.generation import Choice, Generation
from services.worker.metrics import Metrics
from services.worker.prompt import Preparation


@dataclass(frozen=True)
class Addressed:
    """An event and the gateway that waits for it."""

    gateway: str
    event: Event

    @property
    def is_terminal(self) -> bool:
        return isinstance(self.event, Finished | Failed | HandedOver)


@dataclass(frozen=True)
class Begin:
    """`grammar` None: the answer is not constrained. `committed`: what another worker has generated, if one began."""

    request: GenerateRequest
    epoch: int
    committed: tuple[Committed, ...]
    prepared: Preparation
    grammar: Grammar | None


@dataclass(frozen=True)
class Abort:
    request: str


@dataclass(frozen=True)
class Quit:
    """Ends the loop at once; what still runs is left without a terminal event."""


@dataclass(frozen=True)
class HandOver:
    """Gives back everything that runs and whatever still comes, for another worker to go on with."""


Command = Begin | Abort | HandOver | Quit


class EngineLoop:
    """`put` may be called from any thread; `run` is the engine thread. `emit` is called from the engine thread with the
    events of one step. Up to `exact_tokens` of a resumed answer are computed one by one (see Sequence.resume)."""

    def __init__(
        self,
        runner: ModelRunner,
        engine: Engine,
        *,
        exact_tokens: int,
        emit: Callable[[list[Addressed]], None],
        metrics: Metrics,
    ) -> None:
        self._runner = runner
        self._engine = engine
        self._exact_tokens = exact_tokens
        self._emit = emit
        self.holders = frozenset[str]()
        self._metrics = metrics
        self._handing_over = False
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._generations: dict[str, Generation] = {}
        self._sequences: dict[Sequence, tuple[Generation, Choice]] = {}
        self._computing = frozenset[str]()

    def put(self, command: Command) -> None:
        self._commands.put(command)
        if isinstance(command, Quit | HandOver) or (isinstance(command, Abort) and command.request in self._computing):
            self._runner.interrupt()

    def occupancy(self) -> Occupancy:
        return self._engine.occupancy()

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
                case HandOver():
                    self._hand_over()
                case Quit():
                    return False
        return True

    def _begin(self, begin: Begin) -> None:
        request = begin.request
        self._abort(request.id)  # an earlier claim of it that was lost, by a lease that ended while its worker lived
        choices = [self._choice(begin, index) for index in range(request.n)]
        generation = Generation(request, begin.epoch, choices, token_text=self._runner.token_text)
        for choice, committed in zip(choices, begin.committed, strict=False):
            choice.resume(committed, exactly=len(committed.token_ids) <= self._exact_tokens)
        if self._handing_over:
            self._emit_all([(generation, [generation.handed_over()])])
        elif request.stopping.max_tokens == 0 or generation.is_over:
            self._emit_all([(generation, [*generation.started(), generation.finished()])])
        else:
            self._start(generation)

    def _start(self, generation: Generation) -> None:
        self._generations[generation.request.id] = generation
        for choice in generation.choices:
            if choice.reason is None:
                self._sequences[choice.sequence] = generation, choice
                self._engine.add(choice.sequence)

    def _hand_over(self) -> None:
        self._handing_over = True
        for generation in list(self._generations.values()):
            self._end(generation, FinishReason.ABORT)
            self._emit_all([(generation, [generation.handed_over()])])

    def _choice(self, begin: Begin, index: int) -> Choice:
        request, prepared = begin.request, begin.prepared
        matcher = begin.grammar.matcher(prepared.after) if begin.grammar else None
        sampler = Sampler(
            request.sampling,
            request.stopping,
            end_tokens=self._runner.end_tokens,
            vocabulary=self._runner.token_text,
            choice=index,
            top_logprobs=request.top_logprobs,
            grammar=matcher,
        )
        sequence = Sequence(
            request.id,
            prepared.tokens,
            sampler,
            max_tokens=request.stopping.max_tokens,
            context_tokens=self._runner.context_tokens,
            keep_tokens=_keep_tokens(request, len(prepared.tokens)),
        )
        return Choice(sequence, prepared.output(index), matcher)

    def _abort(self, request: str) -> None:
        generation = self._generations.get(request)
        if generation is not None:
            self._end(generation, FinishReason.ABORT)
            self._emit_all([(generation, [generation.aborted()])])

    def _end(self, generation: Generation, reason: FinishReason) -> None:
        for choice in generation.choices:
            if self._sequences.pop(choice.sequence, None):  # not one that was over when the answer was taken over
                self._engine.finish(choice.sequence, reason)
        del self._generations[generation.request.id]

    def _step(self) -> None:
        admitted = [self._sequences[sequence][0] for sequence in self._engine.admit()]
        self._emit_all((generation, generation.started()) for generation in admitted)
        batch = self._engine.schedule()
        self._computing = _dominant(batch)
        begun = time.perf_counter()
        results = self._engine.compute(batch)
        self._computing = frozenset()
        self.holders = self._engine.holders
        self._metrics.stepped(
            seconds=time.perf_counter() - begun,
            prefill=batch.num_prefill,
            decode=batch.num_tokens - batch.num_prefill,
            sequences=len(batch.spans),
        )
        self._emit_all(self._told(result) for result in results if result.sequence in self._sequences)

    def _told(self, result: SampledToken) -> tuple[Generation, list[Event]]:
        """What the step gave one choice. Not asked for choices of a request that another choice has failed in the same step."""
        generation, choice = self._sequences[result.sequence]
        if choice.failure is not None:
            self._end(generation, FinishReason.ERROR)
            return generation, [generation.failed(choice.failure)]
        events = generation.advance(choice, result)
        if choice.reason is not None:
            self._engine.finish(choice.sequence, choice.reason)
        if generation.is_over:
            self._end(generation, FinishReason.STOP)
        return generation, events

    def _emit_all(self, events: Iterable[tuple[Generation, list[Event]]]) -> None:
        addressed = [Addressed(generation.request.gateway, event) for generation, produced in events for event in produced]
        if addressed:
            self._emit(addressed)


def _keep_tokens(request: GenerateRequest, num_prompt_tokens: int) -> int | None:
    if not request.shift:
        return None
    return num_prompt_tokens if request.keep_tokens < 0 else request.keep_tokens


def _dominant(batch: ScheduledBatch) -> frozenset[str]:
    """The request, if there is one, that most of the batch is computed for: not worth finishing once nobody wants it. Short
    batches are over before a cancellation is."""
    total = sum(len(span.tokens) for span in batch.spans)
    return frozenset(span.sequence.id for span in batch.spans if len(span.tokens) > max(16, total // 2))
