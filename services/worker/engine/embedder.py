"""Embedder: what the worker asks of a pooled model, which makes one vector, or one score, of each input.

Two implementations: `llama_embedder.LlamaEmbedder`, and `fake_embedder.FakeEmbedder` without weights. `embed` belongs to the
engine thread alone; the vocabulary (`tokenize`, `framing`) only reads and may be used from any thread.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence as TokenIds
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

#: Sequences in one batch at most; llama.cpp has this limit (LLAMA_MAX_SEQ).
MAX_SEQUENCES = 256


class Pooling(enum.StrEnum):
    """How the vectors of an input's tokens become one. RANK: a classifier behind it gives a score instead."""

    MEAN = "mean"
    CLS = "cls"
    LAST = "last"
    RANK = "rank"


@dataclass(frozen=True)
class Framing:
    """The tokens that a model wants around its inputs; None where the vocabulary has no such token. The `add_` flags are the
    GGUF's `tokenizer.ggml.add_*_token`. `rerank_template`: the text of a query and a document, with `{query}` and
    `{document}` in it."""

    bos: int | None
    eos: int | None
    sep: int | None
    add_bos: bool
    add_eos: bool
    add_sep: bool
    rerank_template: str | None = None


class Embedder(Protocol):
    """`context_tokens` bounds one input, `batch_tokens` and `max_sequences` a batch of several; an input longer than
    `batch_tokens` is a batch of its own."""

    pooling: Pooling
    num_vocab: int
    context_tokens: int
    batch_tokens: int
    max_sequences: int
    framing: Framing

    def tokenize(self, text: str, *, framed: bool, special: bool) -> list[int]:
        """Token ids. `framed` adds what the model wants before and behind a text; `special` reads control tokens written in it
        as such."""

    def embed(self, inputs: TokenIds[TokenIds[int]]) -> NDArray[np.float32]:
        """One row for each input, none of them empty: its pooled vector, not normalised, or its scores. Raises EngineDead."""

    def close(self) -> None:
        """Frees the model."""
