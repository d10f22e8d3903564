"""First, last and follow sets of the parts of a grammar (Glushkov 1961): of characters within a terminal, and of terminals in
the whole grammar.

Repetitions only count as zero, one or many, so the sets may hold more than the grammar allows, but never less.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Hashable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Generic, TypeVar

from services.worker.engine.gbnf.rules import Chars, Choice, Node, Reference, Repeat, Rules, Sequence, Terminal, callers

Leaf = TypeVar("Leaf", bound=Hashable)

#: The most characters in one terminal, the most pairs of them that may be neighbours, and the most such pairs in all rules
#: together.
_MAX_PLACES = 2_000
_MAX_LINKS = 20_000
_MAX_LINKS_OF_RULES = 300_000


class TooComplex(Exception):
    """The grammar is too large to analyse."""


@dataclass(frozen=True)
class Ends(Generic[Leaf]):
    """The leaves that a part may start and end with, and whether it may be empty."""

    first: frozenset[Leaf] = frozenset()
    last: frozenset[Leaf] = frozenset()
    nullable: bool = True


class _Automaton(ABC, Generic[Leaf]):
    """`follow` maps each leaf to the leaves that may come after it."""

    def __init__(self) -> None:
        self.follow: defaultdict[Leaf, set[Leaf]] = defaultdict(set)
        self.num_links = 0

    @abstractmethod
    def _leaf(self, node: Node) -> Ends[Leaf]: ...

    def _ends(self, node: Node) -> Ends[Leaf]:
        match node:
            case Choice(options):
                return reduce(_either, map(self._ends, options))
            case Sequence(items):
                return reduce(self._then, map(self._ends, items), Ends[Leaf]())
            case Repeat(item, low, high):
                return self._repeat(self._ends(item), low, high)
            case _:
                return self._leaf(node)

    def _then(self, a: Ends[Leaf], b: Ends[Leaf]) -> Ends[Leaf]:
        self._link(a.last, b.first)
        first = a.first | b.first if a.nullable else a.first
        last = a.last | b.last if b.nullable else b.last
        return Ends(first, last, a.nullable and b.nullable)

    def _repeat(self, item: Ends[Leaf], low: int, high: int | None) -> Ends[Leaf]:
        if high == 0:
            return Ends()
        if high is None or high > 1:
            self._link(item.last, item.first)
        return Ends(item.first, item.last, item.nullable or low == 0)

    def _link(self, before: frozenset[Leaf], after: frozenset[Leaf]) -> None:
        self._count_links(len(before) * len(after))
        for leaf in before:
            self.follow[leaf] |= after

    def _count_links(self, count: int) -> None:
        self.num_links += count
        if self.num_links > _MAX_LINKS:
            raise TooComplex


def _either(a: Ends[Leaf], b: Ends[Leaf]) -> Ends[Leaf]:
    return Ends(a.first | b.first, a.last | b.last, a.nullable or b.nullable)


class Places(_Automaton[int]):
    """The sets of a part without recursion. A leaf is the place of a character in the part; `labels` holds the characters."""

    def __init__(self, node: Node, rules: dict[str, Places]) -> None:
        super().__init__()
        self.labels: list[Chars] = []
        self._rules = rules
        self.ends = self._ends(node)

    def _leaf(self, node: Node) -> Ends[int]:
        match node:
            case Chars():
                self._make_room(1)
                self.labels.append(node)
                here = frozenset({len(self.labels) - 1})
                return Ends(here, here, nullable=False)
            case Reference(rule) if rule in self._rules:
                return self._copy(self._rules[rule])
        raise TooComplex

    def _copy(self, other: Places) -> Ends[int]:
        self._make_room(len(other.labels))
        self._count_links(other.num_links)
        base = len(self.labels)

        def moved(places: Iterable[int]) -> frozenset[int]:
            return frozenset(base + place for place in places)

        self.labels += other.labels
        self.follow.update((base + place, set(moved(after))) for place, after in other.follow.items())
        return Ends(moved(other.ends.first), moved(other.ends.last), other.ends.nullable)

    def _make_room(self, count: int) -> None:
        if len(self.labels) + count > _MAX_PLACES:
            raise TooComplex


def of_rules(rules: Rules, order: Iterable[str]) -> dict[str, Places]:
    """The Places of the rules in `order`, without the too complex ones. A rule must come after those that it refers to."""
    found: dict[str, Places] = {}
    num_links = 0
    for name in order:
        with suppress(TooComplex):
            found[name] = Places(rules[name], found)
            num_links += found[name].num_links
        if num_links > _MAX_LINKS_OF_RULES:
            break
    return found


class Order(_Automaton[Terminal]):
    """The sets of the terminals of a whole grammar, regardless of a rule's caller. `nullable` are those that may be empty."""

    def __init__(self, rules: Rules, nullable: set[Terminal]) -> None:
        super().__init__()
        self._nullable = nullable
        self._rules: dict[str, Ends[Terminal]] = {name: Ends(nullable=False) for name in rules}
        calling = callers(rules)
        stale = dict.fromkeys(rules)
        while stale:
            name, _ = stale.popitem()
            ends = self._ends(rules[name])
            if ends != self._rules[name]:
                self._rules[name] = ends
                stale |= dict.fromkeys(calling[name] | {name})

    @property
    def first(self) -> frozenset[Terminal]:
        return self._rules["root"].first

    def _leaf(self, node: Node) -> Ends[Terminal]:
        match node:
            case Terminal():
                here = frozenset({node})
                return Ends(here, here, node in self._nullable)
            case Reference(rule):
                return self._rules[rule]
        raise TypeError(node)


@lru_cache(maxsize=65536)
def overlap(a: Chars, b: Chars) -> bool:
    """Whether the two have a character in common."""
    return any(low <= to and begin <= high for low, high in a.ranges for begin, to in b.ranges)


@lru_cache(maxsize=65536)
def first_bytes(label: Chars) -> int:
    """The first UTF-8 bytes of the characters, as a bit set."""
    bits = 0
    for low, high in label.ranges:
        begin, end = chr(low).encode()[0], chr(high).encode()[0]
        bits |= (1 << end + 1) - (1 << begin)
    return bits
