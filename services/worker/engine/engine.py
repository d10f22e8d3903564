"""The engine: admits sequences and computes them in steps. One thread owns it and the objects it uses, so there are no locks."""

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
    """A snapshot of how full the engine is.

    `cells` counts all KV cells, `used_cells` those that hold a token, `running_cells` those of running sequences.
    `preemptions` counts since the start.
    """

    busy_slots: int
    cells: int
    used_cells: int
    running_cells: int
    preemptions: int


@dataclass(frozen=True)
class Step:
    """A batch and the tokens that it produced: none if it was interrupted, or if the KV cache was full."""

    batch: ScheduledBatch
    sampled: list[SampledToken]


class Engine:
    """Runs sequences on a model in continuous batches. `Pace` explains `prefill_s` and `prefill_tokens`."""

    def __init__(self, runner: ModelRunner, *, batch_tokens: int, prefill_s: float, prefill_tokens: int = 0) -> None:
        self._runner = runner
        self._dominant_request: str | None = None
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

        for slot in range(runner.num_slots):  # the runner may hold tokens from another engine
            runner.cut(slot, 0)

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    @property
    def cached_requests(self) -> frozenset[str]:
        """The ids of the requests that have tokens in the cache, or are running."""
        return self._scheduler.cached_requests

    def occupancy(self) -> Occupancy:
        """Safe from any thread. During a step, the numbers may not all be from the same moment."""
        slots = self._slots
        return Occupancy(
            slots.num_busy, self._runner.num_cells, slots.num_used, slots.num_running, self._scheduler.num_preempted
        )

    def add(self, sequence: Sequence) -> None:
        self._scheduler.add(sequence)

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Ends a sequence early: its client left, or its text contains a stop string. Frees the slot at once."""
        self._scheduler.finish(sequence, reason)

    def admit(self) -> list[Sequence]:
        """Gives slots to waiting sequences and returns them, with `num_cached` set. Not a part of `step`, so that a request can
        be reported as started before its first batch is computed."""
        return self._scheduler.admit()

    def step(self) -> Step:
        """Computes the next batch of the admitted sequences. Raises EngineDead, after which every sequence is lost."""
        batch = self._scheduler.schedule(self._pace.prefill_tokens)
        logits = self._decode(batch)
        sampled = [] if logits is None else self._scheduler.update(batch, _sample(batch, logits))
        return Step(batch, sampled)

    def interrupt(self, request: str | None = None) -> None:
        """Interrupts the step that is being computed, or else the next one. With `request`: only if the current step is
        computed mostly for it. Safe from any thread."""
        if request is None or request == self._dominant_request:
            self._runner.interrupt()

    def _decode(self, batch: ScheduledBatch) -> NDArray[np.float32] | None:
        """None if the batch must be scheduled again: it was interrupted, or the KV cache was full."""
        self._operate(batch)
        self._dominant_request = _dominant_request(batch)
        started_s = time.perf_counter()
        try:
            logits = self._runner.decode(batch.spans)
        except DecodeAborted:
            return None
        except NoRoom as error:
            if not self._scheduler.give_way():
                raise EngineDead("the KV cache has no room for the running sequence") from error
            return None
        finally:
            self._dominant_request = None
        self._pace.observe(num_prefill=batch.num_prefill, num_tokens=batch.num_tokens, seconds=time.perf_counter() - started_s)
        return logits

    def _operate(self, batch: ScheduledBatch) -> None:
        for operation in batch.operations:
            match operation:
                case Cut(slot, keep):
                    self._runner.cut(slot, keep)
                case Share(source, target, length):
                    self._runner.share(source, target, length)


def _dominant_request(batch: ScheduledBatch) -> str | None:
    """The id of the request that most of the batch is computed for, if there is one. A share of 16 tokens or fewer does not
    count, because it is computed sooner than an interrupt would take."""
    least = max(16, batch.num_tokens // 2)
    return next((span.sequence.id for span in batch.spans if len(span.tokens) > least), None)


def _sample(batch: ScheduledBatch, logits: NDArray[np.float32]) -> list[Sampled | Exception]:
    sampling = [span.sequence for span in batch.spans if span.samples]
    return [_drawn(sequence, row) for sequence, row in zip(sampling, logits, strict=True)]


def _drawn(sequence: Sequence, row: NDArray[np.float32]) -> Sampled | Exception:
    try:
        return sequence.sampler.sample(row, sequence.tokens, len(sequence.tokens) - sequence.num_generated)
    except Exception as error:  # noqa: BLE001 - a failing sampler or grammar ends its own sequence only
        return error
