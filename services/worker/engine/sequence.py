"""Sequence: the tokens of one generation. Only the engine thread touches it."""

from __future__ import annotations

import enum
from collections.abc import Sequence as TokenIds

from services.protocol.messages import FinishReason
from services.worker.engine.sampling import Sampler


class SequenceStatus(enum.IntEnum):
    """waiting → running → finished. Only the scheduler moves it."""

    WAITING = 0
    RUNNING = 1
    FINISHED = 2


class Sequence:
    """`tokens` are the prompt's and, behind them, the generated ones; the first `num_computed` are in the slot's KV cache.

    There is no prefill phase and no decode phase: in each step the computed tokens catch up with `tokens`, and where they
    reach the end, one more is sampled.
    """

    def __init__(
        self, id: str, prompt: TokenIds[int], sampler: Sampler, *, max_tokens: int | None, context_tokens: int
    ) -> None:
        assert 0 < len(prompt) < context_tokens
        self.id = id
        self.tokens = list(prompt)
        self.sampler = sampler
        self.num_prompt_tokens = len(prompt)
        self.num_computed = 0
        self.num_cached = 0
        self.slot: int | None = None
        self.status = SequenceStatus.WAITING
        self.finish_reason: FinishReason | None = None
        room = context_tokens - len(prompt)
        self._max_tokens = room if max_tokens is None else min(max_tokens, room)

    @property
    def num_completion_tokens(self) -> int:
        return len(self.tokens) - self.num_prompt_tokens

    @property
    def num_uncomputed(self) -> int:
        return len(self.tokens) - self.num_computed

    @property
    def is_decoding(self) -> bool:
        """True where a single token is left to compute: the one that was sampled last."""
        return self.num_completion_tokens > 0 and self.num_uncomputed == 1

    @property
    def is_full(self) -> bool:
        return self.num_completion_tokens >= self._max_tokens
