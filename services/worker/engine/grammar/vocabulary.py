"""A model's vocabulary in the form that llguidance needs. Built once per model, then read-only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
from llguidance import LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

#: llguidance's prefix for tokens that are not text: a byte that is never in UTF-8. A grammar can only use their names or ids.
_CONTROL = b"\xff"

WHITESPACE = b" \t\r\n"


class Vocabulary(Protocol):
    """The part of ModelRunner that describes its tokens."""

    num_vocab: int
    end_tokens: frozenset[int]

    def token_bytes(self, token: int) -> bytes: ...

    def token_text(self, token: int) -> bytes: ...


class TokenTable:
    """`texts` holds the text of each token, control tokens included. Takes seconds for 262,144 tokens
    (benchmarks/grammar.py)."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.num_vocab = vocabulary.num_vocab
        self.end_tokens = vocabulary.end_tokens
        self.texts: list[bytes] = []
        tokens = []
        for token in range(self.num_vocab):
            data = vocabulary.token_bytes(token)
            text = data or vocabulary.token_text(token)
            is_text = data and token not in self.end_tokens
            self.texts.append(text)
            tokens.append(data if is_text else _CONTROL + text)
        ends = sorted(self.end_tokens)
        wrapper = TokenizerWrapper(_Tokens(tokens, ends[0] if ends else None))
        self.tokenizer = LLTokenizer(wrapper, eos_token=ends or None)

    @cached_property
    def only_ends(self) -> NDArray[np.bool_]:
        """The mask once the grammar is complete."""
        mask = np.zeros(self.num_vocab, dtype=np.bool_)
        mask[list(self.end_tokens)] = True
        mask.flags.writeable = False
        return mask

    @cached_property
    def whitespace(self) -> dict[int, int]:
        """The length in bytes of each token that consists of white space only."""
        return {token: len(text) for token, text in enumerate(self.texts) if text and not text.strip(WHITESPACE)}


class _Tokens:
    """The tokenizer that TokenizerWrapper needs. No grammar here forces tokens, so it never tokenizes anything."""

    bos_token_id = None
    special_token_ids: Sequence[int] = ()

    def __init__(self, tokens: list[bytes], end_token: int | None) -> None:
        self.tokens = tokens
        self.eos_token_id = end_token

    def __call__(self, _text: bytes) -> list[int]:
        return []
