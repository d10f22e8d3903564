"""Matcher: the position of one answer in its grammar. Only the engine thread uses it."""

from __future__ import annotations

import logging
import time

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from services.protocol.errors import BadRequest, CorralError
from services.worker.engine.grammar.gate import Marker
from services.worker.engine.grammar.vocabulary import TokenTable

log = logging.getLogger(__name__)

#: Bytes of white space allowed between the marker and the answer: models write an empty line after their reasoning.
_GAP_BYTES = 4

#: A batch waits for its masks. If one mask takes longer than this, its answer fails, so that it delays the others only once.
_MAX_MASK_S = 1.0


class Matcher:
    """`mask` and `accept` never raise, because an error in one answer must not affect the others in its batch. If the grammar
    is too complex, or if it forbids an accepted token (when tokens that were committed under another grammar are replayed),
    `failure` is set, the matcher is finished, and the caller must fail the request with it.

    The state depends only on the accepted tokens, so replaying them gives the same state.
    """

    def __init__(self, matcher: LLMatcher, table: TokenTable, marker: Marker | None) -> None:
        self._matcher = matcher
        self._table = table
        self._marker = marker
        self._found = 0
        self._gap = _GAP_BYTES if marker else 0
        self._bits = np.zeros((table.num_vocab + 31) // 32 * 4, dtype=np.uint8)
        self.failure: CorralError | None = None

    @property
    def is_finished(self) -> bool:
        """Whether only an end token can follow."""
        return self.failure is not None or (self._is_active and bool(self._matcher.is_stopped()))

    def mask(self) -> NDArray[np.bool_] | None:
        """The tokens that may come next; None if all may. If the model has an end token, at least one token is allowed. The
        array may be shared, so do not write to it."""
        if not self._is_active:
            assert self._marker is not None
            return self._marker.mask(self._found)
        mask = self._table.only_ends if self.is_finished else self._computed()
        if self._gap and self.failure is None:
            mask = mask.copy()
            mask[[token for token, length in self._table.whitespace.items() if length <= self._gap]] = True
        return mask

    def accept(self, token: int) -> None:
        """Adds a token to the answer. An end token changes nothing."""
        if token in self._table.end_tokens or self.failure is not None:
            return
        if not self._is_active:
            assert self._marker is not None
            self._found = self._marker.advance(self._found, token)
        elif not self._falls_into_gap(token):
            self._consume(token)

    @property
    def _is_active(self) -> bool:
        return self._marker is None or self._found == len(self._marker.marker)

    def _falls_into_gap(self, token: int) -> bool:
        """Whether the token is white space before the answer, which the grammar does not accept as part of it."""
        length = self._table.whitespace.get(token, _GAP_BYTES + 1)
        if length > self._gap or self._matcher.validate_tokens([token]):
            self._gap = 0
            return False
        self._gap -= length
        return True

    def _consume(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            self._fail(f"token {token} does not match the answer's grammar")

    def _computed(self) -> NDArray[np.bool_]:
        started_s = time.monotonic()
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        if self._matcher.is_error():
            self._fail("the grammar allows no token at this point of the answer")
        elif time.monotonic() - started_s > _MAX_MASK_S:
            self._fail_too_complex()
        if self.failure is not None:
            return self._table.only_ends
        return np.unpackbits(self._bits, bitorder="little", count=self._table.num_vocab).view(np.bool_)

    def _fail(self, problem: str) -> None:
        error = str(self._matcher.get_error())
        if exceeds_limits(error):
            self._fail_too_complex()
        else:
            self.failure = CorralError(problem)
            log.error("grammar failed: problem=%r error=%r", problem, error)

    def _fail_too_complex(self) -> None:
        self.failure = BadRequest("the grammar is too complex at this point of the answer")


def exceeds_limits(error: str) -> bool:
    """Whether llguidance reached a limit, rather than found an error in the grammar. Only its message shows that."""
    return any(sign in error for sign in ("limit", "max is", "too complex"))
