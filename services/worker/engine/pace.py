"""Pace: how many prompt tokens may join a batch in which other sequences decode.

A running answer waits for the whole batch before it gets its next token. So the prompts' share has a time limit, and the
number of tokens that fit is estimated from earlier batches: the same setting suits a CPU that computes 150 prompt tokens per
second and a GPU that computes thousands. Only the engine thread uses it.
"""

from __future__ import annotations

#: Weight of the latest batch in the moving average.
_WEIGHT = 0.3

#: llama.cpp computes attention in tiles of this many tokens, and a partial tile costs as much as a full one.
_TILE = 64

#: Prompt tokens per batch until the first measurement.
_UNKNOWN = 128

#: Batches with fewer prompt tokens are not measured: the fixed cost of a batch would dominate.
_MIN_MEASURED_TOKENS = 16


class Pace:
    """`prefill_s` is how many seconds prompt tokens may add to a batch. `fixed` > 0 sets the number of tokens instead."""

    def __init__(self, *, prefill_s: float, batch_tokens: int, fixed: int = 0) -> None:
        self._prefill_s = prefill_s
        self._batch_tokens = batch_tokens
        self._fixed = fixed
        self._token_s: float | None = None

    def prefill_tokens(self, num_prefilling: int, num_decoding: int) -> int:
        """The most prompt tokens in a batch. Grows when more sequences prefill than decode."""
        if self._fixed:
            return min(self._fixed, self._batch_tokens)
        waiting = max(1.0, num_prefilling / num_decoding)
        affordable = _UNKNOWN if self._token_s is None else self._prefill_s / self._token_s
        tiles = max(1 + num_decoding // _TILE, round((waiting * affordable + num_decoding) / _TILE))
        return min(tiles * _TILE - num_decoding, self._batch_tokens)

    def observe(self, *, num_prefill: int, num_tokens: int, seconds: float) -> None:
        """Records how long a batch of `num_tokens` took, of which `num_prefill` were prompt tokens."""
        if num_prefill < min(_MIN_MEASURED_TOKENS, self._batch_tokens) or 2 * num_prefill < num_tokens:
            return
        token_s = seconds / num_tokens
        self._token_s = token_s if self._token_s is None else _WEIGHT * token_s + (1 - _WEIGHT) * self._token_s
