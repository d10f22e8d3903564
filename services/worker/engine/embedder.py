"""The interface of a pooled model, which turns each input into one vector or one score.

Two implementations: `llama_embedder.LlamaEmbedder`, and `fake_embedder.FakeEmbedder`, which needs no weights. Call `embed` only
from the engine thread. The vocabulary (`tokenize`, `framing`) is read-only and can be used from any thread.
"""

from __future__ import annotations

from collections.abc import Sequence as TokenIds
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from services.protocol.engine import Pooling


@dataclass(frozen=True)
class Framing:
    """The special tokens that a model expects around its inputs; None if the vocabulary has no such token.

    The `add_` flags are the GGUF's `tokenizer.ggml.add_*_token`. `rerank_template` is the text that joins a query and a
    document, with the placeholders `{query}` and `{document}`.
    """

    bos: int | None
    eos: int | None
    sep: int | None
    add_bos: bool
    add_eos: bool
    add_sep: bool
    rerank_template: str | None = None


class Embedder(Protocol):
    """A loaded pooled model.

    `context_tokens` is the longest input; `batch_tokens` and `max_sequences` limit a batch of several inputs. An input longer
    than `batch_tokens` must be alone in its batch. `control_texts` are the texts that `tokenize` reads as control tokens if
    `special` is set.
    """

    pooling: Pooling
    num_vocab: int
    context_tokens: int
    batch_tokens: int
    max_sequences: int
    framing: Framing
    control_texts: tuple[str, ...]

    @property
    def threads(self) -> int:
        """Number of threads that will compute the next batch. Safe from any thread."""

    def tokenize(self, text: str, *, framed: bool, special: bool) -> list[int]:
        """Returns token ids. `framed` adds the tokens that the model expects around a text. `special` reads control tokens
        written in the text as control tokens; otherwise they are plain text."""

    def embed(self, inputs: TokenIds[TokenIds[int]]) -> NDArray[np.float32]:
        """Returns one row per input: its pooled vector, not normalised, or its scores. No input may be empty.

        Raises EngineDead.
        """

    def close(self) -> None:
        """Frees the model."""
