"""DRY, "don't repeat yourself": penalises tokens that would continue a repetition of earlier text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from collections.abc import Sequence as TokenIds

from services.protocol.sampling import SamplingParams
from services.worker.engine.sampling.breakers import Breakers
from services.worker.engine.sampling.candidates import Logits

_LOG_OF_LARGEST_FLOAT = 88.7228391  # llama.cpp's constant, which limits the exponent
_LARGEST_PENALTY = 1e30


class Dry:
    """`llama_sampler_init_dry`: if the last n tokens also occur earlier, with n at least the allowed length, the token that
    followed them there loses multiplier x base^(n - allowed length). A match does not cross the last sequence breaker.
    """

    def __init__(self, params: SamplingParams, vocabulary: Callable[[int], bytes]) -> None:
        self._multiplier = params.dry_multiplier
        self._base = params.dry_base
        self._allowed_length = params.dry_allowed_length
        self._last_n = params.dry_penalty_last_n
        self.is_on = self._multiplier != 0 and self._base >= 1 and self._last_n != 0
        self._breakers = Breakers(params.dry_sequence_breakers if self.is_on else (), vocabulary)

    def apply(self, row: Logits, tokens: TokenIds[int]) -> None:
        recent = tokens[::-1] if self._last_n < 0 else tokens[: -self._last_n - 1 : -1]
        if len(recent) <= max(self._allowed_length, 0):
            return
        limit = self._breakers.tokens_since(recent)
        if limit < self._allowed_length:
            return
        longest = dict.fromkeys(recent[:-1], 0) if self._allowed_length <= 0 else {}
        for place, length in repeats(recent):
            follower = recent[place - 1]
            longest[follower] = max(longest.get(follower, 0), min(length, limit))
        for token, length in longest.items():
            if length >= self._allowed_length and not self._breakers.is_within(token):
                row[token] -= self._penalty(length)

    def _penalty(self, length: int) -> float:
        exponent = length - self._allowed_length
        if self._base > 1.000001:
            exponent = min(exponent, int(_LOG_OF_LARGEST_FLOAT / math.log(self._base)))
        penalty = self._multiplier * self._base**exponent
        return max(-_LARGEST_PENALTY, min(penalty, _LARGEST_PENALTY))


def repeats(recent: TokenIds[int]) -> Iterator[tuple[int, int]]:
    """The earlier occurrences of the end of the text, as (place, length). `recent` has the latest token first.

    `length` is how many tokens from `place` equal those from 0. Skips place 0 and all places with a different token. This is
    the Z-algorithm, which takes linear time.
    """
    lengths: dict[int, int] = {}
    place = left = right = 0  # recent[left:right] is the same as recent[:right - left]
    for _ in range(recent.count(recent[0]) - 1):
        place = recent.index(recent[0], place + 1)
        length = min(lengths.get(place - left, 0), right - place) if place < right else 0
        if place + length >= right:
            while place + length < len(recent) and recent[place + length] == recent[length]:
                length += 1
            left, right = place, place + length
        lengths[place] = length
        yield place, length
