"""FakeEmbedder: an embedding model without weights.

Its vocabulary is the 256 byte values, a start token and an end token. Its output depends only on the tokens of the input.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence as TokenIds

import numpy as np
from numpy.typing import NDArray

from services.protocol.engine import Pooling
from services.worker.engine.embedder import Framing
from services.worker.engine.fake import CostModel

CLS = 256
SEP = 257
VOCABULARY = 258
DIMENSIONS = 16

_FREE = CostModel()


class FakeEmbedder:
    """Implements Embedder. An input's score is its number of distinct bytes."""

    num_vocab = VOCABULARY
    threads = 1
    control_texts: tuple[str, ...] = ()
    framing = Framing(bos=CLS, eos=None, sep=SEP, add_bos=True, add_eos=False, add_sep=True)

    def __init__(
        self,
        *,
        pooling: Pooling = "mean",
        context_tokens: int = 512,
        batch_tokens: int = 512,
        max_sequences: int = 64,
        cost: CostModel = _FREE,
    ) -> None:
        self.pooling = pooling
        self.context_tokens = context_tokens
        self.batch_tokens = batch_tokens
        self.max_sequences = max_sequences
        self._cost = cost

    def tokenize(self, text: str, *, framed: bool, special: bool) -> list[int]:
        ids = list(text.encode())
        return [CLS, *ids, SEP] if framed else ids

    def embed(self, inputs: TokenIds[TokenIds[int]]) -> NDArray[np.float32]:
        num_tokens = sum(map(len, inputs))
        assert len(inputs) <= self.max_sequences
        assert num_tokens <= self.batch_tokens or len(inputs) == 1, "several inputs that do not fit a batch"
        assert all(0 < len(ids) <= self.context_tokens for ids in inputs)
        self._cost.pay(num_tokens)
        row = self._score if self.pooling == "rank" else self._vector
        return np.array([row(ids) for ids in inputs], dtype=np.float32)

    def _vector(self, ids: TokenIds[int]) -> NDArray[np.float32]:
        seed = zlib.crc32(np.array(ids, dtype="<u4").tobytes())
        return 3 * np.random.default_rng(seed).standard_normal(DIMENSIONS, dtype=np.float32)

    def _score(self, ids: TokenIds[int]) -> NDArray[np.float32]:
        return np.array([len(set(ids) - {CLS, SEP})], dtype=np.float32)

    def close(self) -> None:
        pass
