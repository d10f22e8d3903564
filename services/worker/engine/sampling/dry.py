"""DRY, "don't repeat yourself": against the next token of a passage that the text already holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from collections.abc import Sequence as TokenIds

from services.protocol.sampling import SamplingParams
from services.worker.engine.sampling.candidates import Logits

_LOG_OF_LARGEST_FLOAT = 88.7228391  # llama.cpp's bound of the powers
_LARGEST_PENALTY = 1e30


class Dry:
    """`llama_sampler_init_dry`: where the last n tokens stand in the text before, with n at least the allowed length, the token
    that followed there loses multiplier x base^(n - allowed length). The match ends at the last sequence breaker.

    Breakers are looked for in the text of the tokens, of those that come up. (llama.cpp prepares a table of the whole
    vocabulary for each request, and knows a breaker that spans tokens only by one way to divide it.)
    """

    def __init__(self, params: SamplingParams, vocabulary: Callable[[int], bytes]) -> None:
        self._multiplier = params.dry_multiplier
        self._base = params.dry_base
        self._allowed_length = params.dry_allowed_length
        self._last_n = params.dry_penalty_last_n
        self._breakers = [breaker.encode() for breaker in params.dry_sequence_breakers if breaker]
        self._vocabulary = vocabulary
        self._rests: dict[int, tuple[bytes, ...]] = {}
        self.is_on = self._multiplier != 0 and self._base >= 1 and self._last_n != 0

    def apply(self, row: Logits, tokens: TokenIds[int]) -> None:
        recent = tokens[::-1] if self._last_n < 0 else tokens[: -self._last_n - 1 : -1]
        if len(recent) <= max(self._allowed_length, 0):
            return
        limit = self._tokens_since_breaker(recent)
        if limit < self._allowed_length:
            return
        longest = dict.fromkeys(recent[:-1], 0) if self._allowed_length <= 0 else {}
        for place, length in repeats(recent):
            follower = recent[place - 1]
            longest[follower] = max(longest.get(follower, 0), min(length, limit))
        for token, length in longest.items():
            if length >= self._allowed_length and b"" not in self._rests_of(token):
                row[token] -= self._penalty(length)

    def _penalty(self, length: int) -> float:
        exponent = length - self._allowed_length
        if self._base > 1.000001:
            exponent = min(exponent, int(_LOG_OF_LARGEST_FLOAT / math.log(self._base)))
        penalty = self._multiplier * self._base**exponent
        return max(-_LARGEST_PENALTY, min(penalty, _LARGEST_PENALTY))

    def _tokens_since_breaker(self, recent: TokenIds[int]) -> int:
        for back, token in enumerate(recent if self._breakers else ()):
            if rests := self._rests_of(token):
                spans = [span for rest in rests if (span := self._tokens_of(rest, recent[:back][::-1])) is not None]
                if spans:
                    return back - max(spans)
        return len(recent)

    def _rests_of(self, token: int) -> tuple[bytes, ...]:
        """What remains of the breakers that begin in this token; empty bytes for one that it holds as a whole."""
        rests = self._rests.get(token)
        if rests is None:
            text = self._vocabulary(token)
            rests = self._rests[token] = tuple(rest for breaker in self._breakers for rest in _rests(breaker, text))
        return rests

    def _tokens_of(self, rest: bytes, following: TokenIds[int]) -> int | None:
        """How many of the following tokens it takes to write `rest`; None where they write something else."""
        if not rest:
            return 0
        for count, token in enumerate(following, start=1):
            text = self._vocabulary(token)
            if text.startswith(rest):
                return count
            if not rest.startswith(text):
                return None
            rest = rest[len(text) :]
        return None


def _rests(breaker: bytes, text: bytes) -> Iterator[bytes]:
    if breaker in text:
        yield b""
    else:
        yield from (breaker[cut:] for cut in range(1, len(breaker)) if text.endswith(breaker[:cut]))


def repeats(recent: TokenIds[int]) -> Iterator[tuple[int, int]]:
    """Where `recent` (the latest token first) goes on with what it begins with: (place, length), for each place but 0. The
    Z-algorithm, which looks at each token once, and only at the places that have the first token."""
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
