"""Answers drawn byte by byte, from FakeRunner's vocabulary."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from services.worker.engine.fake import END, VOCABULARY
from services.worker.engine.grammar import Grammar, Matcher

#: Bytes that lead towards an end get a larger weight.
_CLOSING = b'"}])'


def draw(grammar: Grammar, rng: random.Random, *, longest: int = 3000) -> bytes | None:
    """A random answer, or None if it does not end within `longest` bytes."""
    matcher = grammar.matcher()
    weights = np.ones(VOCABULARY)
    weights[list(_CLOSING) + [END]] = 30
    weights[list(b" \n\t")] = 0.3
    weights[128:END] = 0.2
    answer = bytearray()
    for _ in range(longest):
        odds = weights * allowed(matcher)
        token = rng.choices(range(VOCABULARY), odds)[0]
        if token == END:
            return bytes(answer)
        answer.append(token)
        matcher.accept(token)
    return None


def allowed(matcher: Matcher) -> np.ndarray:
    mask = matcher.mask()
    assert matcher.failure is None, matcher.failure
    return np.ones(VOCABULARY, dtype=np.bool_) if mask is None else mask


def accepts(grammar: Grammar, answer: str | bytes) -> bool:
    """True if the whole answer matches and may end there."""
    data = answer.encode() if isinstance(answer, str) else answer
    matcher = grammar.matcher()
    return follow(matcher, data) == len(data) and bool(allowed(matcher)[END])


def follow(matcher: Matcher, tokens: Sequence[int]) -> int:
    """Accepts tokens while they are allowed; returns how many were accepted."""
    for count, token in enumerate(tokens):
        if not allowed(matcher)[token]:
            return count
        matcher.accept(token)
    return len(tokens)
