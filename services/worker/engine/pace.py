"""Pace: how many prompt tokens may join a batch in which others decode.

A running answer waits for the whole batch to get its next token, so the prompt's part is given a time, and what fits it is
learnt from the batches before: the same setting suits a CPU that computes 150 prompt tokens a second and a GPU that computes
thousands. Only the engine thread uses it.
"""

from __future__ import annotations

#: Of the newest batch in the running mean.
_WEIGHT = 0.3

#: llama.cpp's attention works in tiles of so many tokens: a part of one costs what a whole one does.
_TILE = 64

#: Before the first batch has been seen.
_UNKNOWN = 128

#: Smaller parts say little about the time of a prompt token, which a batch has besides a fixed cost.
_TELLING = 16


class Pace:
    """`prefill_s`: seconds by which prompt tokens may lengthen a batch. `fixed` > 0 is the number of tokens instead."""

    def __init__(self, *, prefill_s: float, batch_tokens: int, fixed: int = 0) -> None:
        self._prefill_s = prefill_s
        self._batch_tokens = batch_tokens
        self._fixed = fixed
        self._token_s: float | None = None

    def prefill_tokens(self, num_prefilling: int, num_decoding: int) -> int:
        """At most so many of a batch. Where more sequences wait for their first token than for their next, they get more of it."""
        if self._fixed:
            return min(self._fixed, self._batch_tokens)
        waiting = max(1.0, num_prefilling / num_decoding)
        wanted = _UNKNOWN if self._token_s is None else self._prefill_s / self._token_s
        tiles = max(1 + num_decoding // _TILE, round((waiting * wanted + num_decoding) / _TILE))
        return min(tiles * _TILE - num_decoding, self._batch_tokens)

    def observe(self, *, num_prefill: int, num_tokens: int, seconds: float) -> None:
        """A batch of `num_tokens`, of which `num_prefill` were prompt, took so long."""
        if num_prefill < min(_TELLING, self._batch_tokens) or 2 * num_prefill < num_tokens:
            return
        token_s = seconds / num_tokens
        self._token_s = token_s if self._token_s is None else _WEIGHT * token_s + (1 - _WEIGHT) * self._token_s
