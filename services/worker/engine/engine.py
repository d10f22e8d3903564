"""The engine: admit, schedule, decode, update. One thread owns it and everything below it, so nothing here has a lock."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from services.protocol.messages import FinishReason
from services.worker.engine.runner import EngineDead, ModelRunner, NoRoom
from services.worker.engine.scheduler import SampledToken, ScheduledBatch, Scheduler
from services.worker.engine.sequence import Sequence
from services.worker.engine.slots import SlotPool


class Engine:
    """Raises EngineDead from `step` when the model is lost; every sequence is then lost with it."""

    def __init__(self, runner: ModelRunner, *, batch_tokens: int, prefill_tokens: int) -> None:
        self._runner = runner
        self._scheduler = Scheduler(
            SlotPool(runner.num_slots, partial_reuse=runner.partial_reuse),
            batch_tokens=batch_tokens,
            prefill_tokens=prefill_tokens,
            end_tokens=runner.end_tokens,
        )

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    def add(self, sequence: Sequence) -> None:
        self._scheduler.add(sequence)

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Ends a sequence from outside: its client is gone, or its text holds a stop string. The slot is free at once."""
        self._scheduler.finish(sequence, reason)

    def admit(self) -> list[Sequence]:
        """Gives waiting sequences their slots; `num_cached` of each is known from here on."""
        admitted = self._scheduler.admit()
        for one in admitted:
            self._runner.cut(one.slot, one.keep)
        return [one.sequence for one in admitted]

    def step(self) -> list[SampledToken]:
        """Computes one batch of the admitted sequences; returns those that got a token or their end."""
        batch = self._scheduler.schedule()
        assert batch.spans, "nothing was admitted"
        logits = self._decode(batch)
        return self._scheduler.update(batch, _sample(batch, logits))

    def _decode(self, batch: ScheduledBatch) -> NDArray[np.float32]:
        try:
            return self._runner.decode(batch.spans)
        except NoRoom:
            # Prefixes kept for later are worth less than a sequence that runs now.
            for idle in self._scheduler.forget_idle():
                self._runner.cut(idle, 0)
        try:
            return self._runner.decode(batch.spans)
        except NoRoom as error:
            raise EngineDead("the KV cache has no room for the running sequences") from error


def _sample(batch: ScheduledBatch, logits: NDArray[np.float32]) -> list[int]:
    sampling = [span.sequence for span in batch.spans if span.samples]
    return [
        sequence.sampler.sample(row, sequence.tokens, sequence.num_prompt_tokens).token
        for sequence, row in zip(sampling, logits, strict=True)
    ]
