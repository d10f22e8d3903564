"""Which inputs make the next batch. Pure: no model, no I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Input:
    """The input `index` of `request`, as token ids."""

    request: str
    index: int
    ids: Sequence[int]


@dataclass
class _Waiting:
    request: str
    inputs: deque[Input] = field(default_factory=deque)


class Batches:
    """The inputs of many requests, taken in turns, so that one with a thousand inputs does not keep a single one waiting.

    A batch holds at most `max_sequences` inputs and `batch_tokens` tokens; an input with more tokens is a batch of its own.
    """

    def __init__(self, *, batch_tokens: int, max_sequences: int) -> None:
        self._batch_tokens = batch_tokens
        self._max_sequences = max_sequences
        self._turns: deque[_Waiting] = deque()

    @property
    def has_work(self) -> bool:
        return bool(self._turns)

    def add(self, request: str, inputs: Sequence[Sequence[int]]) -> None:
        """`inputs` is not empty."""
        self._turns.append(_Waiting(request, deque(Input(request, index, ids) for index, ids in enumerate(inputs))))

    def drop(self, request: str) -> None:
        """Forgets what of the request has not been taken yet."""
        self._turns = deque(waiting for waiting in self._turns if waiting.request != request)

    def next(self) -> list[Input]:
        """Whose input finds no room now has the first turn in the batch that follows."""
        batch: list[Input] = []
        room = self._batch_tokens
        passed: list[_Waiting] = []
        while self._turns and len(batch) < self._max_sequences:
            waiting = self._turns.popleft()
            if batch and len(waiting.inputs[0].ids) > room:
                passed.append(waiting)
                continue
            taken = waiting.inputs.popleft()
            batch.append(taken)
            room -= len(taken.ids)
            if waiting.inputs:
                self._turns.append(waiting)
        self._turns.extendleft(reversed(passed))
        return batch
