"""Finds DRY's sequence breakers in the text of the tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as TokenIds

from services.worker.engine.aho_corasick import ROOT, AhoCorasick

#: Size of the cache of (state, token) transitions; each takes about 100 bytes.
_MAX_REMEMBERED = 50_000


class Breakers:
    """Searches backwards from the end of the text for the reversed breakers, so a match is the start of a breaker.

    The choices of a request share it; only the engine thread uses it. Unlike this, llama.cpp builds a table over the whole
    vocabulary for each request, and finds a breaker that spans several tokens only in one tokenization.
    """

    def __init__(self, breakers: Iterable[str], vocabulary: Callable[[int], bytes]) -> None:
        self._words = AhoCorasick(breaker.encode()[::-1] for breaker in breakers)
        self._vocabulary = vocabulary
        self._steps: dict[tuple[int, int], tuple[int, int | None]] = {}

    def is_within(self, token: int) -> bool:
        """Whether the token contains a whole breaker."""
        return self._step(ROOT, token)[1] is not None

    def tokens_since(self, recent: TokenIds[int]) -> int:
        """How many tokens follow the breaker with the latest start; all of them if there is none. `recent` is latest first."""
        state = ROOT
        for back, token in enumerate(recent if self._words.has_words else ()):
            state, beyond = self._step(state, token)
            if beyond is not None:
                return self._tokens_after(recent, back, beyond)
        return len(recent)

    def _tokens_after(self, recent: TokenIds[int], back: int, beyond: int) -> int:
        """How many tokens follow the one at `back`, without those that contain the next `beyond` bytes."""
        while beyond > 0:
            back -= 1
            beyond -= len(self._vocabulary(recent[back]))
        return back

    def _step(self, state: int, token: int) -> tuple[int, int | None]:
        """Reads the token backwards. Returns the new state, and how many bytes the farthest breaker that starts in the token
        extends past its end; None if there is no breaker."""
        found = self._steps.get((state, token))
        if found is None:
            if len(self._steps) >= _MAX_REMEMBERED:
                self._steps.clear()
            found = self._steps[state, token] = self._read(state, self._vocabulary(token))
        return found

    def _read(self, state: int, text: bytes) -> tuple[int, int | None]:
        beyond: int | None = None
        for length, byte in enumerate(reversed(text), start=1):
            state = self._words.step(state, byte)
            if match := self._words.matches[state]:
                beyond = max(match - length, beyond or 0)
        return state, beyond
