"""Finds the parts of a GBNF grammar that llguidance's lexer can match as a whole without changing the language.

llguidance matches each terminal with an automaton. That is fast: a JSON string is one step of its parser. But its lexer is
greedy: it ends a terminal only if no terminal expected since the same place can continue, looks one byte ahead, and never goes
back. GBNF is not greedy. So a part is a terminal only if greed does no harm: if a terminal may end and another byte may follow,
no terminal expected since the same place can take that byte. Terminals that can are broken up into their characters, which
cannot continue.

The test errs on the safe side: like the FOLLOW sets of LL parsing, it ignores which rule called another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import reduce
from itertools import product
from operator import or_

from services.worker.engine.gbnf.follow_sets import Order, Places, TooComplex, first_bytes, of_rules, overlap
from services.worker.engine.gbnf.rules import (
    Chars,
    Choice,
    Node,
    Reference,
    Repeat,
    Rules,
    Sequence,
    Terminal,
    callers,
    children,
    references,
)

#: The most pairs of places that one test examines (some tenths of a second), and the most rules. Above that, every terminal is
#: a single character.
_MAX_PAIRS = 200_000
_MAX_RULES = 500

#: The most characters in a terminal that is the whole grammar.
_MAX_LENGTH = 40_000


def lexed(rules: Rules) -> Rules:
    """The same grammar with the largest possible terminals."""
    order = _without_recursion(rules)
    plain = frozenset(order)
    if "root" in plain:
        return {"root": Terminal(rules["root"])} if _length(rules, order) <= _MAX_LENGTH else by_character(rules)
    places = of_rules(rules, order)
    whole = {name: _terminals(node, plain) for name, node in rules.items()}
    structure = _reachable(rules, whole)
    try:
        while greedy := _Overlaps(structure, places).too_greedy():
            structure = _reachable(rules, {**whole, **{name: _broken(node, greedy) for name, node in structure.items()}})
    except TooComplex:
        return by_character(rules)
    return structure


def by_character(rules: Rules) -> Rules:
    """The same grammar with each character as a terminal."""
    return _reachable(rules, {"root": _characters(rules["root"])})


def _without_recursion(rules: Rules) -> list[str]:
    """The rules that neither are recursive nor use a recursive rule. Each comes after those that it refers to."""
    calling = callers(rules)
    waiting = {name: len(set(references(node))) for name, node in rules.items()}
    order = [name for name, count in waiting.items() if count == 0]
    for name in order:
        for caller in calling[name]:
            waiting[caller] -= 1
            if waiting[caller] == 0:
                order.append(caller)
    return order


def _length(rules: Rules, order: list[str]) -> int:
    """The number of characters in the root if each call is replaced by the rule that it calls."""

    def length(node: Node) -> int:
        match node:
            case Chars():
                return 1
            case Reference(rule):
                return found[rule]
        return sum(map(length, children(node)))

    found: dict[str, int] = {}
    for name in order:
        found[name] = min(length(rules[name]), _MAX_LENGTH + 1)
    return found["root"]


def _reachable(rules: Rules, structure: Rules) -> Rules:
    """The rules that the root needs. A rule that only broken parts refer to is broken up as well."""
    found: Rules = {}
    open_ = ["root"]
    while open_:
        name = open_.pop()
        if name not in found:
            found[name] = structure[name] if name in structure else _characters(rules[name])
            open_ += references(found[name])
    return found


def _terminals(node: Node, plain: frozenset[str]) -> Node:
    """Turns each largest part without recursion into a terminal."""
    if plain.issuperset(references(node)):
        return Terminal(node)
    match node:
        case Sequence(items):
            return Sequence(tuple(_grouped(items, plain)))
        case Choice(options):
            alike = tuple(option for option in options if plain.issuperset(references(option)))
            others = tuple(_terminals(option, plain) for option in options if not plain.issuperset(references(option)))
            return Choice((Terminal(Choice(alike)), *others)) if alike else Choice(others)
        case Repeat(item, low, high):
            return Repeat(_terminals(item, plain), low, high)
        case _:
            return node


def _grouped(items: tuple[Node, ...], plain: frozenset[str]) -> Iterator[Node]:
    """Joins neighbours without recursion into one terminal."""
    group: list[Node] = []
    for item in items:
        if plain.issuperset(references(item)):
            group.append(item)
            continue
        if group:
            yield Terminal(Sequence(tuple(group)))
        group = []
        yield _terminals(item, plain)
    if group:
        yield Terminal(Sequence(tuple(group)))


def _broken(node: Node, greedy: set[Terminal]) -> Node:
    match node:
        case Terminal(inner):
            return _characters(inner) if node in greedy else node
        case Sequence(items):
            return Sequence(tuple(_broken(item, greedy) for item in items))
        case Choice(options):
            return Choice(tuple(_broken(option, greedy) for option in options))
        case Repeat(item, low, high):
            return Repeat(_broken(item, greedy), low, high)
        case _:
            return node


def _characters(node: Node) -> Node:
    match node:
        case Chars():
            return Terminal(node)
        case Sequence(items):
            return Sequence(tuple(map(_characters, items)))
        case Choice(options):
            return Choice(tuple(map(_characters, options)))
        case Repeat(item, low, high):
            return Repeat(_characters(item), low, high)
        case _:
            return node


class _Overlaps:
    """Finds the terminals that take bytes which belong after another terminal."""

    def __init__(self, structure: Rules, rules: dict[str, Places]) -> None:
        if len(structure) > _MAX_RULES:
            raise TooComplex
        terminals = [terminal for node in structure.values() for terminal in _within(node)]
        self._places = {terminal: Places(terminal.node, rules) for terminal in terminals}
        self._order = Order(structure, {terminal for terminal in terminals if self._places[terminal].ends.nullable})
        self._budget = _MAX_PAIRS

    def too_greedy(self) -> set[Terminal]:
        """Compares all pairs that may be expected at the same place: those at the start, and those that may follow a pair that
        the same text ends."""
        greedy: set[Terminal] = set()
        seen = set(product(self._order.first, repeat=2))
        waiting = list(seen)
        while waiting:
            a, b = waiting.pop()
            together, at_fault = self._compare(a, b)
            greedy |= at_fault
            if together:
                fresh = set(product(self._order.follow[a], self._order.follow[b])) - seen
                seen |= fresh
                waiting += fresh
                self._spend(len(fresh))
        return greedy

    def _compare(self, a: Terminal, b: Terminal) -> tuple[bool, set[Terminal]]:
        """Whether the same text can end both, and which of them can continue when the other must end."""
        places_a, places_b = self._places[a], self._places[b]
        behind_a, behind_b = self._bytes_behind(a), self._bytes_behind(b)
        together, at_fault = False, set()
        for p, q in self._reached(places_a, places_b):
            ends_a, ends_b = p in places_a.ends.last, q in places_b.ends.last
            together |= ends_a and ends_b
            if ends_a and behind_a & _bytes(places_b, places_b.follow[q]):
                at_fault.add(b)
            if ends_b and behind_b & _bytes(places_a, places_a.follow[p]):
                at_fault.add(a)
        return together, at_fault

    def _reached(self, a: Places, b: Places) -> set[tuple[int, int]]:
        """The pairs of places that the two can be at after the same text."""
        reached: set[tuple[int, int]] = set()
        waiting = list(product(a.ends.first, b.ends.first))
        while waiting:
            p, q = waiting.pop()
            self._spend(1)
            if (p, q) not in reached and overlap(a.labels[p], b.labels[q]):
                reached.add((p, q))
                waiting += product(a.follow[p], b.follow[q])
        return reached

    def _bytes_behind(self, terminal: Terminal) -> int:
        following = (self._places[other] for other in self._order.follow[terminal])
        return reduce(or_, (_bytes(places, places.ends.first) for places in following), 0)

    def _spend(self, count: int) -> None:
        self._budget -= count
        if self._budget < 0:
            raise TooComplex


def _bytes(places: Places, among: Iterable[int]) -> int:
    return reduce(or_, (first_bytes(places.labels[place]) for place in among), 0)


def _within(node: Node) -> Iterator[Terminal]:
    if isinstance(node, Terminal):
        yield node
    for child in children(node):
        yield from _within(child)
