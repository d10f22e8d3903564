"""Picks the inputs of the next batch. Pure: no model, no I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Input:
    """The token ids of one input of a request."""

    request: str
    index: int
    ids: Sequence[int]


@dataclass
class _Waiting:
    request: str
    inputs: deque[Input] = field(default_factory=deque)


class Batches:
    """Takes the inputs of many requests in turns, so that a single input does not wait for a request with a thousand.

    A batch holds at most `max_sequences` inputs and `batch_tokens` tokens. An input with more tokens is a batch by itself.
    """

    def __init__(self, *, batch_tokens: int, max_sequences: int) -> None:
        self._batch_tokens = batch_tokens
        self._max_sequences = max_sequences
        self._turns: deque[_Waiting] = deque()

    @property
    def has_work(self) -> bool:
        return bool(self._turns)

    def add(self, request: str, inputs: Sequence[Sequence[int]]) -> None:
        """`inputs` must not be empty."""
        self._turns.append(_Waiting(request, deque(Input(request, index, ids) for index, ids in enumerate(inputs))))

    def drop(self, request: str) -> None:
        """Drops those inputs of the request that are still waiting."""
        self._turns = deque(waiting for waiting in self._turns if waiting.request != request)

    def next(self) -> list[Input]:
        """Requests whose next input does not fit come first in the batch after this one."""
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
