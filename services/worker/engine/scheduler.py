"""The scheduler: which tokens of which sequences go into the next batch. Pure Python: no I/O, no llama.cpp, no clock.

It is the one writer of a Sequence's status, slot and computed tokens, and of the SlotPool. One thread calls it, so it has
no lock. Each turn of the engine is `admit()`, `schedule()`, a decode, `update()`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as TokenIds
from dataclasses import dataclass

from services.protocol.messages import FinishReason
from services.worker.engine.sampling import Sampled
from services.worker.engine.sequence import Sequence, SequenceStatus
from services.worker.engine.slots import CacheOperation, SlotPool

#: How many sequences prefill, how many decode -> prompt tokens in a batch.
PrefillBudget = Callable[[int, int], int]


@dataclass(frozen=True)
class Span:
    """`tokens` of `sequence`, at positions from `start` in slot `slot`; `samples` where the logits of the last are wanted."""

    sequence: Sequence
    slot: int
    start: int
    tokens: TokenIds[int]
    samples: bool


@dataclass(frozen=True)
class ScheduledBatch:
    """`operations` are to be carried out on the cache before the spans are computed. `num_prefill` counts prompt tokens."""

    spans: TokenIds[Span]
    operations: TokenIds[CacheOperation]
    num_prefill: int

    @property
    def num_tokens(self) -> int:
        return sum(len(span.tokens) for span in self.spans)


@dataclass(frozen=True)
class SampledToken:
    """What a step gave a sequence: where `ends_text`, the token ended the model's text and is no part of it. `replayed`: it was
    generated elsewhere before."""

    sequence: Sequence
    sampled: Sampled
    ends_text: bool
    finish_reason: FinishReason | None
    replayed: bool = False


class Scheduler:
    """`batch_tokens` bounds a batch, `max_running` the sequences that have a slot at a time. `end_tokens` end a text."""

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
    def holders(self) -> frozenset[str]:
        """The requests of which the cache holds something."""
        return self._slots.holders

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Ends a sequence that is waiting or running; its slot keeps what has been computed."""
        if sequence.status is SequenceStatus.WAITING:
            self._waiting.remove(sequence)
        elif sequence.status is SequenceStatus.RUNNING:
            self._vacate(sequence)
        else:
            return
        sequence.status = SequenceStatus.FINISHED
        sequence.finish_reason = reason

    def admit(self) -> list[Sequence]:
        """Gives slots to the sequences that have waited longest, as far as slots and cells go.

        One whose prefix a running sequence is computing just now waits for it and lets others pass: a burst with one new prefix
        computes it once. One for which the cells do not suffice lets nobody pass.
        """
        admitted = []
        for sequence in list(self._waiting):
            if not self._slots.has_idle or len(self._running) == self._max_running:
                break
            if self._slots.is_worth_waiting(sequence.tokens):
                continue
            if not self._take_slot(sequence):
                break
            admitted.append(sequence)
        return admitted

    def _take_slot(self, sequence: Sequence) -> bool:
        plan = self._slots.plan(sequence.tokens)
        promised = sum(running.num_uncomputed + 1 for running in self._running)
        if self._running and not self._slots.has_room(plan, promised + len(sequence.tokens) - plan.keep + 1):
            return False
        self._slots.acquire(plan, sequence.tokens, request=sequence.id)
        self._waiting.remove(sequence)
        self._running.append(sequence)
        sequence.status = SequenceStatus.RUNNING
        sequence.slot = plan.target.id
        sequence.num_computed = plan.keep
        if sequence.num_cached is None:
            sequence.num_cached = plan.keep
        return True

    def schedule(self, prefill_budget: PrefillBudget) -> ScheduledBatch:
        """The next batch: one token of each sequence that decodes, then prompts, oldest first, as far as the budget goes.

        While any sequence decodes, `prefill_budget` bounds the prompts' part of the batch, so that a long prompt slows running answers
        by a bounded time per token instead of stopping them. Where the KV cache is short of cells, the youngest sequences go
        back to wait, with their tokens.
        """
        while True:
            spans = self._spans(prefill_budget)
            if self._slots.make_room(sum(len(span.tokens) for span in spans)):
                break
            self._preempt()
        num_prefill = sum(len(span.tokens) for span in spans if not span.sequence.is_decoding)
        return ScheduledBatch(spans, self._slots.take_operations(), num_prefill)

    def _spans(self, prefill_budget: PrefillBudget) -> list[Span]:
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
        """The oldest sequence is never preempted: a context fits the cache, so alone it always has room."""
        assert len(self._running) > 1
        self.num_preempted += 1
        sequence = self._running[-1]
        self._vacate(sequence)
        sequence.status = SequenceStatus.WAITING
        self._waiting.appendleft(sequence)

    def give_way(self) -> bool:
        """llama.cpp had no room where there should have been some: gives up what is idle, or else the youngest sequence's cells.
        False where the only sequence has no room."""
        if not self._slots.forget_idle():
            if len(self._running) == 1:
                return False
            self._preempt()
            self._slots.forget_idle()
        return True

    def update(self, batch: ScheduledBatch, sampled: TokenIds[Sampled]) -> list[SampledToken]:
        """Takes in a computed batch and what was sampled for those of its spans that sample, in their order."""
        drawn = iter(sampled)
        results = []
        for span in batch.spans:
            span.sequence.num_computed += len(span.tokens)
            self._slots.grow(span.slot, len(span.tokens))
            if span.samples:
                results.append(self._append(span.sequence, next(drawn)))
        return results

    def _append(self, sequence: Sequence, sampled: Sampled) -> SampledToken:
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


def _span(sequence: Sequence, length: int) -> Span:
    assert sequence.slot is not None
    start = sequence.num_computed
    end = start + length
    return Span(sequence, sequence.slot, start, sequence.tokens[start:end], samples=end == len(sequence.tokens))
