"""The engine: admit, schedule, decode, update. One thread owns it and everything below it, so nothing here has a lock."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.protocol.messages import FinishReason
from services.worker.engine.pace import Pace
from services.worker.engine.runner import DecodeAborted, EngineDead, ModelRunner, NoRoom
from services.worker.engine.sampling import Sampled
from services.worker.engine.scheduler import SampledToken, ScheduledBatch, Scheduler
from services.worker.engine.sequence import Sequence
from services.worker.engine.slots import Cut, Share, SlotPool


@dataclass(frozen=True)
class Occupancy:
    """At one moment: busy slots; cells in all, those that hold a token, and of these those of sequences that run. `preemptions` counts from
    the beginning."""

    busy_slots: int
    cells: int
    used_cells: int
    running_cells: int
    preemptions: int


class Engine:
    """Raises EngineDead from `step` when the model is lost; every sequence is then lost with it. For `prefill_s` and
    `prefill_tokens` see Pace."""

    def __init__(self, runner: ModelRunner, *, batch_tokens: int, prefill_s: float, prefill_tokens: int = 0) -> None:
        self._runner = runner
        self._pace = Pace(prefill_s=prefill_s, batch_tokens=batch_tokens, fixed=prefill_tokens)
        self._slots = SlotPool(
            runner.num_slots, runner.num_cells, partial_reuse=runner.partial_reuse, shareable=runner.shareable_prefixes
        )
        self._scheduler = Scheduler(
            self._slots,
            batch_tokens=batch_tokens,
            max_running=runner.max_running,
            end_tokens=runner.end_tokens,
        )

        for slot in range(runner.num_slots):  # a runner that another engine has used
            runner.cut(slot, 0)

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    @property
    def holders(self) -> frozenset[str]:
        """The requests of which the cache holds something."""
        return self._scheduler.holders

    def occupancy(self) -> Occupancy:
        """From any thread: it only reads, and while a step runs it may see a part of what that changes."""
        slots = self._slots
        return Occupancy(
            slots.num_busy, self._runner.num_cells, slots.num_used, slots.num_running, self._scheduler.num_preempted
        )

    def add(self, sequence: Sequence) -> None:
        self._scheduler.add(sequence)

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Ends a sequence from outside: its client is gone, or its text holds a stop string. The slot is free at once."""
        self._scheduler.finish(sequence, reason)

    def admit(self) -> list[Sequence]:
        """Gives waiting sequences their slots; `num_cached` of each is known from here on."""
        return self._scheduler.admit()

    def schedule(self) -> ScheduledBatch:
        """The next batch of the admitted sequences."""
        return self._scheduler.schedule(self._pace.prefill_tokens)

    def compute(self, batch: ScheduledBatch) -> list[SampledToken]:
        """Computes the batch; returns the sequences that got a token or their end. None did where the batch was interrupted, or
        had to make room: then it is to be scheduled anew."""
        self._operate(batch)
        begun = time.perf_counter()
        try:
            logits = self._runner.decode(batch.spans)
        except DecodeAborted:
            return []
        except NoRoom as error:
            if not self._scheduler.give_way():
                raise EngineDead("the KV cache has no room for the running sequence") from error
            return []
        self._pace.observe(num_prefill=batch.num_prefill, num_tokens=batch.num_tokens, seconds=time.perf_counter() - begun)
        return self._scheduler.update(batch, _sample(batch, logits))

    def _operate(self, batch: ScheduledBatch) -> None:
        for operation in batch.operations:
            match operation:
                case Cut(slot, keep):
                    self._runner.cut(slot, keep)
                case Share(source, target, length):
                    self._runner.share(source, target, length)


def _sample(batch: ScheduledBatch, logits: NDArray[np.float32]) -> list[Sampled]:
    sampling = [span.sequence for span in batch.spans if span.samples]
    return [
        sequence.sampler.sample(row, sequence.tokens, len(sequence.tokens) - sequence.num_generated)
        for sequence, row in zip(sampling, logits, strict=True)
    ]
