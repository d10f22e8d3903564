"""The scheduler: which tokens of which sequences go into the next batch. Pure Python: no I/O, no llama.cpp, no clock.

It alone writes a Sequence's status, slot and computed tokens, and the SlotPool. Only the engine thread calls it, so it has no
lock. An engine step is `schedule()`, a decode, `update()`; before it, `admit()`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as TokenIds
from dataclasses import dataclass

from services.protocol.messages import FinishReason
from services.worker.engine.runner import Span
from services.worker.engine.sampling import Sampled
from services.worker.engine.sequence import Sequence, SequenceStatus
from services.worker.engine.slots import CacheOperation, SlotPool

#: (sequences that prefill, sequences that decode) -> the most prompt tokens in a batch.
PrefillBudget = Callable[[int, int], int]


@dataclass(frozen=True)
class SequenceSpan(Span):
    """The part of a sequence to compute."""

    sequence: Sequence


@dataclass(frozen=True)
class ScheduledBatch:
    """The spans to compute after `operations` are applied to the cache. `num_prefill` counts prompt tokens."""

    spans: TokenIds[SequenceSpan]
    operations: TokenIds[CacheOperation]
    num_prefill: int

    @property
    def num_tokens(self) -> int:
        return sum(len(span.tokens) for span in self.spans)


@dataclass(frozen=True)
class SampledToken:
    """A sequence's result from one step.

    `ends_text`: the token is an end token and not part of the text. `replayed`: an earlier run of the request generated the
    token. `failure`: the error that prevented sampling; it ended the sequence.
    """

    sequence: Sequence
    sampled: Sampled
    ends_text: bool
    finish_reason: FinishReason | None
    replayed: bool = False
    failure: Exception | None = None


class Scheduler:
    """At most `batch_tokens` per batch, and at most `max_running` sequences with a slot. `end_tokens` end a text."""

    def __init__(
        self, slots: SlotPool, *, batch_tokens: int, max_running: int, end_tokens: frozenset[int] = frozenset()
    ) -> None:
        assert batch_tokens > 0
        assert max_running > 0
        self._slots = slots
        self._batch_tokens = batch_tokens
        self._max_running = max_running
        self._end_tokens = end_tokens
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self.num_preempted = 0

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    @property
    def cached_requests(self) -> frozenset[str]:
        """The ids of the requests that have tokens in the cache, or are running."""
        return self._slots.cached_requests

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Ends a waiting or running sequence. Its slot keeps the computed tokens."""
        if sequence.status is SequenceStatus.WAITING:
            self._waiting.remove(sequence)
        elif sequence.status is SequenceStatus.RUNNING:
            self._vacate(sequence)
        else:
            return
        sequence.status = SequenceStatus.FINISHED
        sequence.finish_reason = reason

    def admit(self) -> list[Sequence]:
        """Gives slots to waiting sequences, oldest first, while there are slots and cells.

        If a running sequence is computing a prefix that a waiting one needs, the waiting one is skipped, so that a burst of
        requests with the same new prefix computes it once. If there are too few cells for a sequence, those after it wait too.
        """
        admitted = []
        for sequence in list(self._waiting):
            if not self._slots.has_idle or len(self._running) == self._max_running:
                break
            if self._slots.is_worth_waiting(sequence.tokens, domain=sequence.domain):
                continue
            if not self._take_slot(sequence):
                break
            admitted.append(sequence)
        return admitted

    def _take_slot(self, sequence: Sequence) -> bool:
        plan = self._slots.plan(sequence.tokens, domain=sequence.domain)
        promised = sum(running.num_uncomputed + 1 for running in self._running)
        if self._running and not self._slots.has_room(plan, promised + len(sequence.tokens) - plan.keep + 1):
            return False
        self._slots.acquire(plan, sequence.tokens, request=sequence.id, domain=sequence.domain)
        self._waiting.remove(sequence)
        self._running.append(sequence)
        sequence.status = SequenceStatus.RUNNING
        sequence.slot = plan.target.id
        sequence.num_computed = plan.keep
        if sequence.num_cached is None:
            sequence.num_cached = plan.keep
        return True

    def schedule(self, prefill_budget: PrefillBudget) -> ScheduledBatch:
        """Returns the next batch: one token for each decoding sequence, then prompt tokens of the others, in the order they
        were admitted.

        While any sequence decodes, `prefill_budget` limits the prompt tokens, so that a long prompt slows running answers
        instead of stopping them. If the KV cache has too few cells, preempts the sequences admitted last: they wait again and
        keep their tokens.
        """
        while True:
            spans = self._spans(prefill_budget)
            if self._slots.make_room(sum(len(span.tokens) for span in spans)):
                break
            self._preempt()
        num_prefill = sum(len(span.tokens) for span in spans if not span.sequence.is_decoding)
        return ScheduledBatch(spans, self._slots.take_operations(), num_prefill)

    def _spans(self, prefill_budget: PrefillBudget) -> list[SequenceSpan]:
        decoding = [sequence for sequence in self._running if sequence.is_decoding]
        prefilling = [sequence for sequence in self._running if not sequence.is_decoding]
        spans = [_span(sequence, 1) for sequence in decoding[: self._batch_tokens]]
        budget = self._batch_tokens - len(spans)
        if decoding:
            budget = min(budget, prefill_budget(len(prefilling), len(decoding)))
        for sequence in prefilling:
            if budget == 0:
                break
            spans.append(_span(sequence, min(budget, sequence.num_uncomputed)))
            budget -= len(spans[-1].tokens)
        assert bool(spans) == bool(self._running)
        return spans

    def _preempt(self) -> None:
        """Moves the sequence admitted last back to waiting. The only one left always has room: the cache fits a context."""
        assert len(self._running) > 1
        self.num_preempted += 1
        sequence = self._running[-1]
        self._vacate(sequence)
        sequence.status = SequenceStatus.WAITING
        self._waiting.appendleft(sequence)

    def give_way(self) -> bool:
        """Frees cells after llama.cpp unexpectedly found no room: those of idle slots, or else of the sequence admitted last.
        Returns False if only one sequence runs and no idle slot holds any."""
        if not self._slots.forget_idle():
            if len(self._running) == 1:
                return False
            self._preempt()
            self._slots.forget_idle()
        return True

    def update(self, batch: ScheduledBatch, sampled: TokenIds[Sampled | Exception]) -> list[SampledToken]:
        """Records a computed batch. `sampled` has one entry for each span that samples, in the same order; an exception means
        that this sequence's sampler failed."""
        drawn = iter(sampled)
        results = []
        for span in batch.spans:
            span.sequence.num_computed += len(span.tokens)
            self._slots.grow(span.slot, len(span.tokens))
            if span.samples:
                results.append(self._append(span.sequence, next(drawn)))
        return results

    def _append(self, sequence: Sequence, sampled: Sampled | Exception) -> SampledToken:
        if isinstance(sampled, Exception):
            self.finish(sequence, FinishReason.ERROR)
            return SampledToken(sequence, Sampled(0), True, FinishReason.ERROR, failure=sampled)
        replayed = bool(sequence.replay)
        if replayed:
            sampled = Sampled(sequence.replay.popleft())
        elif sampled.token in self._end_tokens:
            self.finish(sequence, FinishReason.STOP)
            return SampledToken(sequence, sampled, True, FinishReason.STOP)
        sequence.append(sampled.token)
        if sequence.is_over:
            self.finish(sequence, FinishReason.LENGTH)
        elif sequence.fills_context:
            assert sequence.slot is not None
            sequence.num_computed = sequence.shift()
            self._slots.cut(sequence.slot, sequence.num_computed)
        return SampledToken(sequence, sampled, False, sequence.finish_reason, replayed)

    def _vacate(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        self._running.remove(sequence)
        self._slots.release(sequence.slot)
        sequence.slot = None
        sequence.num_computed = 0


def _span(sequence: Sequence, length: int) -> SequenceSpan:
    assert sequence.slot is not None
    start = sequence.num_computed
    end = start + length
    samples = end == len(sequence.tokens)
    return SequenceSpan(sequence.slot, start, sequence.tokens[start:end], samples, sequence)
