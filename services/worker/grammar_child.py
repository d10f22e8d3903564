"""`python -m services.worker.grammar_child`: a child process that compiles each new constraint, over a vocabulary of bytes.

If a constraint is expensive, only this process pays for it. The worker compiles a constraint for its model only after it
compiled here within the limits.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from services.protocol.errors import BadRequest
from services.protocol.sampling import Constraint, Lark
from services.worker.engine.grammar import GrammarCompiler
from services.worker.limited_child import serve

_END = 256
_CONTROL = 257

#: In a Lark grammar: tokens by their ids in the model's vocabulary.
_TOKEN_ID = re.compile(r"<\[[0-9, -]+\]>")


class Proof(msgspec.Struct, frozen=True):
    constraint: Constraint


class _Bytes:
    """A vocabulary of the 256 bytes, an end token, and one control token in place of all others."""

    num_vocab = _CONTROL + 1
    end_tokens = frozenset({_END})

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < _END else b""

    def token_text(self, token: int) -> bytes:
        return self.token_bytes(token) or b"<control %d>" % token


def _start(_setup: None) -> tuple[None, Callable[[Proof], None]]:
    compiler = GrammarCompiler(_Bytes())

    def prove(proof: Proof) -> None:
        try:
            compiler.compile(_over_bytes(proof.constraint))
        except BadRequest:
            if not isinstance(proof.constraint, Lark):  # a Lark grammar may name tokens of the model's vocabulary
                raise

    return None, prove


def _over_bytes(constraint: Constraint) -> Constraint:
    return Lark(_TOKEN_ID.sub(f"<[{_CONTROL}]>", constraint.grammar)) if isinstance(constraint, Lark) else constraint


if __name__ == "__main__":
    serve(type(None), Proof, _start)
