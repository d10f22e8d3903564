"""The engine thread of a model that generates text."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from services.protocol.messages import Committed, Event, Failed, FinishReason, GenerateRequest
from services.worker.command_loop import Abort, CommandLoop, Emit, HandOver, Quit, RoutedEvent
from services.worker.engine.engine import Engine, Occupancy
from services.worker.engine.grammar import Grammar
from services.worker.engine.runner import ModelRunner
from services.worker.engine.sampling import Sampler, Stages
from services.worker.engine.scheduler import SampledToken
from services.worker.engine.sequence import Sequence
from services.worker.failures import request_failure
from services.worker.metrics import Metrics
from services.worker.prompt import Preparation
from services.worker.running_request import Choice, RunningRequest


@dataclass(frozen=True)
class Begin:
    """Starts a request. `committed` holds what another worker already generated, if any. All choices share `stages`. `grammar`
    is None if the answer is unconstrained."""

    request: GenerateRequest
    epoch: int
    committed: tuple[Committed, ...]
    prepared: Preparation
    stages: Stages
    grammar: Grammar | None


class EngineLoop(CommandLoop[Begin, RunningRequest]):
    """A resumed answer of at most `exact_tokens` is replayed token by token (see Sequence.resume)."""

    def __init__(
        self,
        runner: ModelRunner,
        engine: Engine,
        *,
        exact_tokens: int,
        emit: Emit,
        metrics: Metrics,
    ) -> None:
        super().__init__(emit)
        self._runner = runner
        self._engine = engine
        self._exact_tokens = exact_tokens
        self._metrics = metrics
        self._handing_over = False
        self._running: dict[str, RunningRequest] = {}
        self._sequences: dict[Sequence, tuple[RunningRequest, Choice]] = {}

    def put(self, command: Begin | Abort | HandOver | Quit) -> None:
        super().put(command)
        match command:
            case Quit() | HandOver():
                self._engine.interrupt()
            case Abort(request):
                self._engine.interrupt(request)

    def occupancy(self) -> Occupancy:
        return self._engine.occupancy()

    def threads(self) -> int:
        return self._runner.threads

    @property
    def _has_work(self) -> bool:
        return self._engine.has_work

    def _all_running(self) -> Iterable[RunningRequest]:
        return self._running.values()

    def _close(self) -> None:
        self._runner.close()

    def _begin(self, begin: Begin) -> None:
        try:
            self._try_to_begin(begin)
        except Exception as reason:  # noqa: BLE001 - a bug in one request must not end the others
            request = begin.request
            if running := self._running.get(request.id):
                self._end(running, FinishReason.ERROR)
            error = request_failure(request.id, reason)
            failed = Failed(request.id, begin.epoch, 0, error.code, error.message, error.field)
            self._emit([RoutedEvent(request.gateway, failed)])

    def _try_to_begin(self, begin: Begin) -> None:
        request = begin.request
        self._abort(request.id)  # an earlier claim of it, lost because this worker's lease ended
        choices = [self._choice(begin, index) for index in range(request.n)]
        running = RunningRequest(request, begin.epoch, choices, token_text=self._runner.token_text)
        for choice, committed in zip(choices, begin.committed, strict=False):
            choice.resume(committed, exactly=len(committed.token_ids) <= self._exact_tokens)
        if self._handing_over:
            self._emit_all([(running, [running.handed_over()])])
        elif request.stopping.max_tokens == 0 or running.is_over:
            self._emit_all([(running, [*running.started(), running.finished()])])
        else:
            self._start(running)

    def _start(self, running: RunningRequest) -> None:
        self._running[running.request.id] = running
        for choice in running.choices:
            if choice.reason is None:
                self._sequences[choice.sequence] = running, choice
                self._engine.add(choice.sequence)

    def _hand_over(self) -> None:
        self._handing_over = True
        for running in list(self._running.values()):
            self._end(running, FinishReason.ABORT)
            self._emit_all([(running, [running.handed_over()])])

    def _choice(self, begin: Begin, index: int) -> Choice:
        request, prepared = begin.request, begin.prepared
        matcher = begin.grammar.matcher(prepared.after) if begin.grammar else None
        sampler = Sampler(
            begin.stages,
            request.stopping,
            end_tokens=self._runner.end_tokens,
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
            domain=request.isolation,
        )
        return Choice(sequence, prepared.output(index), matcher)

    def _abort(self, request: str) -> None:
        running = self._running.get(request)
        if running is not None:
            self._end(running, FinishReason.ABORT)
            self._emit_all([(running, [running.aborted()])])

    def _end(self, running: RunningRequest, reason: FinishReason) -> None:
        for choice in running.choices:
            if self._sequences.pop(choice.sequence, None):  # not if it was over before the resume
                self._engine.finish(choice.sequence, reason)
        del self._running[running.request.id]

    def _step(self) -> None:
        admitted = [self._sequences[sequence][0] for sequence in self._engine.admit()]
        self._emit_all((running, running.started()) for running in admitted)
        started_s = time.perf_counter()
        step = self._engine.step()
        self.cached_requests = self._engine.cached_requests
        self._metrics.stepped(
            seconds=time.perf_counter() - started_s,
            prefill=step.batch.num_prefill,
            decode=step.batch.num_tokens - step.batch.num_prefill,
            sequences=len(step.batch.spans),
        )
        self._emit_all(self._events_for(result) for result in step.sampled if result.sequence in self._sequences)

    def _events_for(self, result: SampledToken) -> tuple[RunningRequest, list[Event]]:
        """The events of one choice. Not called for choices of a request that another choice failed in the same step."""
        running, choice = self._sequences[result.sequence]
        failure = choice.failure or result.failure
        if failure is not None:
            return running, self._failed(running, failure)
        try:
            events = running.advance(choice, result)
        except Exception as reason:  # noqa: BLE001 - a bug in one request must not end the others
            return running, self._failed(running, reason)
        if choice.reason is not None:
            self._engine.finish(choice.sequence, choice.reason)
        if running.is_over:
            self._end(running, FinishReason.STOP)
        return running, events

    def _failed(self, running: RunningRequest, reason: Exception) -> list[Event]:
        self._end(running, FinishReason.ERROR)
        return [running.failed(request_failure(running.request.id, reason))]


def _keep_tokens(request: GenerateRequest, num_prompt_tokens: int) -> int | None:
    if not request.shift:
        return None
    return num_prompt_tokens if request.keep_tokens < 0 else request.keep_tokens
