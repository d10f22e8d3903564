"""Marker: the bytes after which a constraint applies, such as the end of a model's reasoning."""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from services.worker.engine.grammar.vocabulary import WHITESPACE, TokenTable


class Marker:
    """The bytes after which the output is constrained, for one vocabulary. Immutable.

    Text after the marker in the same token would escape the grammar, so a token that completes the marker must end with it;
    white space after it does no harm. A state is the number of leading bytes of the marker that the output ends with (Knuth,
    Morris and Pratt). In the state `len(marker)` the marker was found.
    """

    @classmethod
    @lru_cache(maxsize=8)
    def of(cls, table: TokenTable, marker: bytes) -> Marker:
        """Cached, because building a Marker scans the whole vocabulary. A model has one or two."""
        return cls(table, marker)

    def __init__(self, table: TokenTable, marker: bytes) -> None:
        self._table = table
        self.marker = marker
        self.mask = cache(self._mask)
        self._completing = [token for token, text in enumerate(table.texts) if marker[-1:] in text]

    def advance(self, state: int, token: int) -> int:
        text = self.marker[:state] + self._table.texts[token]
        if self.marker in text:
            return len(self.marker)
        longest = min(len(self.marker) - 1, len(text))
        return next(length for length in range(longest, -1, -1) if text.endswith(self.marker[:length]))

    def _mask(self, state: int) -> NDArray[np.bool_] | None:
        """The tokens that may follow; None if all may."""
        overshooting = [token for token in self._completing if self._overshoots(state, token)]
        if not overshooting:
            return None
        mask = np.ones(self._table.num_vocab, dtype=np.bool_)
        mask[overshooting] = False
        mask.flags.writeable = False
        return mask

    def _overshoots(self, state: int, token: int) -> bool:
        _, found, rest = (self.marker[:state] + self._table.texts[token]).partition(self.marker)
        return bool(found and rest.strip(WHITESPACE))
