"""A byte vocabulary with control tokens: a runner without a model."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from services.worker.engine.fake import END, FakeRunner
from services.worker.engine.grammar import Matcher
from services.worker.output import Delta, OutputPipeline


class ControlRunner(FakeRunner):
    """A FakeRunner whose vocabulary also has the `control` texts as control tokens, with ids after the others."""

    def __init__(self, control: Sequence[str] = (), *, context_tokens: int = 8192) -> None:
        super().__init__(context_tokens=context_tokens)
        self._control = {text: END + 1 + index for index, text in enumerate(control)}
        self._written = {token: text.encode() for text, token in self._control.items()}
        self.control_texts = tuple(control)
        self.num_vocab = END + 1 + len(control)

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        if not special or not self._control:
            return list(text.encode())
        pieces = re.split("(" + "|".join(map(re.escape, self._control)) + ")", text)
        return [token for piece in pieces for token in self._tokens(piece)]

    def _tokens(self, piece: str) -> list[int]:
        return [self._control[piece]] if piece in self._control else list(piece.encode())

    def token_bytes(self, token: int) -> bytes:
        return b"" if token in self._written else super().token_bytes(token)

    def token_text(self, token: int) -> bytes:
        return self._written.get(token) or super().token_text(token)


def babble(runner: FakeRunner, matcher: Matcher | None, wishes: Sequence[str], *, seed: int, most: int = 4000) -> list[int]:
    """The output of a random model under a grammar: random tokens, often one of the `wishes`, and the end as soon as it is
    allowed."""
    draw = random.Random(seed)
    tokens: list[int] = []
    wish: list[int] = []
    while len(tokens) < most:
        mask = matcher.mask() if matcher else None
        allowed = range(runner.num_vocab) if mask is None else [token for token in range(runner.num_vocab) if mask[token]]
        if END in allowed and mask is not None:
            return tokens
        if not wish and draw.random() < 0.15:
            wish = runner.tokenize(draw.choice(wishes), special=True)
        token = wish.pop(0) if wish else draw.choice(_likely(allowed))
        if mask is not None and not mask[token]:
            wish, token = [], draw.choice(_likely(allowed))
        tokens.append(token)
        if matcher:
            matcher.accept(token)
    return tokens


def _likely(allowed: Sequence[int]) -> Sequence[int]:
    """Printable ASCII, if any is allowed."""
    return [token for token in allowed if 31 < token < 127] or [token for token in allowed if token != END]


def deltas(pipeline: OutputPipeline, tokens: Sequence[int]) -> list[Delta]:
    return [*(pipeline.push(token) for token in tokens), pipeline.flush()]
