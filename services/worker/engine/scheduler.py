"""The scheduler: which tokens of which sequences go into the next batch. Pure Python: no I/O, no llama.cpp, no clock.

It is the one writer of a Sequence's status, slot and computed tokens, and of the SlotPool. One thread calls it, so it has
no lock. Each turn of the engine is `admit()`, `schedule()`, a decode, `update()`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as TokenIds
from dataclasses import dataclass

from services.protocol.messages import FinishReason
from services.worker.engine.sequence import Sequence, SequenceStatus
from services.worker.engine.slots import SlotPool


@dataclass(frozen=True)
class Span:
    """`tokens` of `sequence`, at positions from `start` in slot `slot`; `samples` where the logits of the last are wanted."""

    sequence: Sequence
    slot: int
    start: int
    tokens: TokenIds[int]
    samples: bool


@dataclass(frozen=True)
class Admitted:
    """A sequence that got its slot, whose cache is to be cut back to its first `keep` tokens before the next decode."""

    sequence: Sequence
    slot: int
    keep: int


@dataclass(frozen=True)
class ScheduledBatch:
    spans: TokenIds[Span]


@dataclass(frozen=True)
class SampledToken:
    """What a step gave a sequence: `token` is None where the model ended its text."""

    sequence: Sequence
    token: int | None
    finish_reason: FinishReason | None


class Scheduler:
    """`batch_tokens` bounds a batch; `prefill_tokens` bounds its prompt tokens while others decode, so that a long prompt
    slows running answers by a bounded time per token instead of stopping them. `end_tokens` end a text.
    """

    def __init__(
        self, slots: SlotPool, *, batch_tokens: int, prefill_tokens: int, end_tokens: frozenset[int] = frozenset()
    ) -> None:
        assert 0 < prefill_tokens <= batch_tokens
        self._slots = slots
        self._batch_tokens = batch_tokens
        self._prefill_tokens = prefill_tokens
        self._end_tokens = end_tokens
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Ends a sequence that is waiting or running; its slot keeps what has been computed."""
        if sequence.status is SequenceStatus.WAITING:
            self._waiting.remove(sequence)
        elif sequence.status is SequenceStatus.RUNNING:
            assert sequence.slot is not None
            self._running.remove(sequence)
            self._slots.release(sequence.slot, sequence.tokens[: sequence.num_computed])
        else:
            return
        sequence.slot = None
        sequence.status = SequenceStatus.FINISHED
        sequence.finish_reason = reason

    def admit(self) -> list[Admitted]:
        """Gives free slots to the sequences that have waited longest."""
        admitted = []
        while self._waiting and self._slots.num_idle:
            sequence = self._waiting.popleft()
            acquired = self._slots.acquire(sequence.tokens)
            sequence.slot = acquired.slot
            sequence.num_computed = sequence.num_cached = acquired.keep
            sequence.status = SequenceStatus.RUNNING
            self._running.append(sequence)
            admitted.append(Admitted(sequence, acquired.slot, acquired.keep))
        return admitted

    def schedule(self) -> ScheduledBatch:
        """The next batch: one token of each sequence that decodes, then prompts, oldest first, as far as the budget goes."""
        decoding = [sequence for sequence in self._running if sequence.is_decoding]
        prefilling = [sequence for sequence in self._running if not sequence.is_decoding]
        spans = [_span(sequence, 1) for sequence in decoding[: self._batch_tokens]]
        budget = self._batch_tokens - len(spans)
        if decoding:
            budget = min(budget, self._prefill_tokens)
        for sequence in prefilling:
            if budget == 0:
                break
            spans.append(_span(sequence, min(budget, sequence.num_uncomputed)))
            budget -= len(spans[-1].tokens)
        assert bool(spans) == bool(self._running)
        return ScheduledBatch(spans)

    def update(self, batch: ScheduledBatch, tokens: TokenIds[int]) -> list[SampledToken]:
        """Takes in a computed batch and the tokens sampled for those of its spans that sample, in their order."""
        sampled = iter(tokens)
        results = []
        for span in batch.spans:
            span.sequence.num_computed += len(span.tokens)
            if span.samples:
                results.append(self._append(span.sequence, next(sampled)))
        return results

    def _append(self, sequence: Sequence, token: int) -> SampledToken:
        if token in self._end_tokens:
            self.finish(sequence, FinishReason.STOP)
            return SampledToken(sequence, None, FinishReason.STOP)
        sequence.tokens.append(token)
        if sequence.is_full:
            self.finish(sequence, FinishReason.LENGTH)
        return SampledToken(sequence, token, sequence.finish_reason)

    def forget_idle(self) -> list[int]:
        """Gives up the idle slots' cached prefixes; returns the slots whose cache is to be cleared."""
        return self._slots.forget_idle()


def _span(sequence: Sequence, length: int) -> Span:
    assert sequence.slot is not None
    start = sequence.num_computed
    end = start + length
    return Span(sequence, sequence.slot, start, sequence.tokens[start:end], samples=end == len(sequence.tokens))
