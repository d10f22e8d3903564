"""Sequence: the tokens of one generation. Only the engine thread touches it."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence as TokenIds

from services.protocol.messages import FinishReason
from services.worker.engine.sampling import Sampler

#: A text that is shifted would never end by itself; Ollama stops it after so many contexts.
_SHIFTED_CONTEXTS = 10


class SequenceStatus(enum.IntEnum):
    """waiting → running → finished, and back from running to waiting where the KV cache runs out. Only the scheduler moves it."""

    WAITING = 0
    RUNNING = 1
    FINISHED = 2


class Sequence:
    """`tokens` are the prompt's and, behind them, the generated ones; the first `num_computed` are in the slot's KV cache.

    There is no prefill phase and no decode phase: in each step the computed tokens catch up with `tokens`, and where they
    reach the end, one more is sampled. `keep_tokens` None: a full context ends the text; a number: it is shifted, which drops
    the older half of what lies behind so many tokens. Tokens in `replay` are taken, in order, instead of what is sampled.
    """

    def __init__(
        self,
        id: str,
        prompt: TokenIds[int],
        sampler: Sampler,
        *,
        max_tokens: int | None,
        context_tokens: int,
        keep_tokens: int | None = None,
    ) -> None:
        assert 0 < len(prompt) < context_tokens
        self.id = id
        self.tokens = list(prompt)
        self.sampler = sampler
        self.num_prompt_tokens = len(prompt)
        self.num_generated = 0
        self.num_computed = 0
        self.num_cached: int | None = None
        self.slot: int | None = None
        self.status = SequenceStatus.WAITING
        self.finish_reason: FinishReason | None = None
        self.replay: deque[int] = deque()
        self._context_tokens = context_tokens
        self._keep_tokens = keep_tokens
        longest = context_tokens - len(prompt) if keep_tokens is None else _SHIFTED_CONTEXTS * context_tokens
        self._max_tokens = longest if max_tokens is None else min(max_tokens, longest)

    @property
    def num_uncomputed(self) -> int:
        return len(self.tokens) - self.num_computed

    @property
    def is_decoding(self) -> bool:
        """True where a single token is left to compute: the one that was sampled last."""
        return self.num_generated > 0 and self.num_uncomputed == 1

    @property
    def is_over(self) -> bool:
        return self.num_generated >= self._max_tokens

    @property
    def fills_context(self) -> bool:
        return len(self.tokens) >= self._context_tokens

    def resume(self, token_ids: TokenIds[int], *, exactly: bool) -> None:
        """Goes on behind tokens that were generated elsewhere. Exactly: they are computed one by one, as they were there, which gives
        the same rounding. Otherwise with the prompt, which is faster."""
        if exactly:
            self.replay.extend(token_ids)
            return
        for token in token_ids:
            self.append(token)
            if self.fills_context and self._keep_tokens is not None:
                self.shift()

    def append(self, token: int) -> None:
        self.tokens.append(token)
        self.num_generated += 1
        self.sampler.accept(token)

    def shift(self) -> int:
        """Drops the older half of the tokens behind those to keep; returns how many are unchanged in front. What follows them has
        to be computed again: moving it within the cache would move it for every other slot that shares the cells."""
        assert self._keep_tokens is not None
        keep = min(self._keep_tokens, len(self.tokens) // 2)
        del self.tokens[keep : keep + (len(self.tokens) - keep) // 2]
        return keep
