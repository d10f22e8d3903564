"""Finds any of several words in a growing text, one step per symbol however many words there are (Aho and Corasick, 1975)."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from typing import Generic, TypeVar

Symbol = TypeVar("Symbol", bound=Hashable)

ROOT = 0


class AhoCorasick(Generic[Symbol]):
    """Immutable automaton over the words.

    A state is the longest suffix of the text that is a prefix of some word. `depths[state]` is the length of that suffix;
    `matches[state]` is the length of the longest word that ends at this point, 0 if none does. Takes about 250 bytes per symbol
    of the words.
    """

    def __init__(self, words: Iterable[Sequence[Symbol]]) -> None:
        self.depths = [0]
        self.matches = [0]
        self._edges: dict[tuple[int, Symbol], int] = {}
        self._fallbacks = [ROOT]
        for word in words:
            self._add(word)
        self._link()

    @property
    def has_words(self) -> bool:
        return len(self.depths) > 1

    def step(self, state: int, symbol: Symbol) -> int:
        """Returns the state after the next symbol."""
        edges = self._edges
        while (after := edges.get((state, symbol))) is None:
            if state == ROOT:
                return ROOT
            state = self._fallbacks[state]
        return after

    def _add(self, word: Sequence[Symbol]) -> None:
        state = ROOT
        for depth, symbol in enumerate(word, start=1):
            after = self._edges.get((state, symbol))
            if after is None:
                after = self._edges[state, symbol] = len(self.depths)
                self.depths.append(depth)
                self.matches.append(0)
                self._fallbacks.append(ROOT)
            state = after
        self.matches[state] = len(word)

    def _link(self) -> None:
        """Sets the fallbacks, parents first. A state's fallback is its longest proper suffix that is a prefix of a word."""
        children: dict[int, list[tuple[Symbol, int]]] = {}
        for (state, symbol), after in self._edges.items():
            children.setdefault(state, []).append((symbol, after))
        waiting = deque(after for _, after in children.get(ROOT, ()))
        while waiting:
            state = waiting.popleft()
            for symbol, after in children.get(state, ()):
                fallback = self.step(self._fallbacks[state], symbol)
                self._fallbacks[after] = fallback
                self.matches[after] = self.matches[after] or self.matches[fallback]
                waiting.append(after)
