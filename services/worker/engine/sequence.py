"""Sequence: the tokens of one generation. Only the engine thread touches it."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence as TokenIds

from services.protocol.messages import FinishReason
from services.worker.engine.sampling import Sampler

#: Maximum length of a shifted text, in contexts, as in Ollama. Without a limit it might never end.
_SHIFTED_CONTEXTS = 10


class SequenceStatus(enum.IntEnum):
    """waiting → running → finished; back to waiting if the KV cache runs out. Only the scheduler changes it."""

    WAITING = 0
    RUNNING = 1
    FINISHED = 2


class Sequence:
    """`tokens` holds the prompt, then the generated tokens. The first `num_computed` are in the slot's KV cache.

    There is no prefill phase and no decode phase: each step computes more of `tokens`, and when all are computed, one more is
    sampled. While `replay` has tokens, the next of them is used instead of the sampled one.

    When the context is full, the text ends if `keep_tokens` is None. Otherwise it is shifted: the first `keep_tokens`, at most
    half of all, stay, and the older half of the rest is dropped.

    `domain` is the isolation domain: sequences of other domains never reuse this one's cache.
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
        domain: str = "",
    ) -> None:
        assert 0 < len(prompt) < context_tokens
        self.id = id
        self.domain = domain
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
        """Whether only the last sampled token is left to compute."""
        return self.num_generated > 0 and self.num_uncomputed == 1

    @property
    def is_over(self) -> bool:
        return self.num_generated >= self._max_tokens

    @property
    def fills_context(self) -> bool:
        return len(self.tokens) >= self._context_tokens

    def resume(self, token_ids: TokenIds[int], *, exactly: bool) -> None:
        """Continues after tokens that an earlier run of the request generated.

        `exactly` computes them one by one, as the earlier run did, which gives the same rounding. Otherwise they are computed
        together with the prompt, which is faster.
        """
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
        """Drops the older half of the tokens after the kept ones. Returns the number of kept tokens.

        The tokens after them must be computed again: moving them within the cache would also move them for the other slots that
        share the cells.
        """
        assert self._keep_tokens is not None
        keep = min(self._keep_tokens, len(self.tokens) // 2)
        del self.tokens[keep : keep + (len(self.tokens) - keep) // 2]
        return keep
