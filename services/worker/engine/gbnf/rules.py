"""The syntax tree of a GBNF grammar: a context-free grammar over characters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

LAST_CODE_POINT = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)


@dataclass(frozen=True)
class Chars:
    """One character from a set. `ranges` are inclusive ranges of code points, in ascending order, that do not touch."""

    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Sequence:
    items: tuple[Node, ...]


@dataclass(frozen=True)
class Choice:
    options: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    """`high` is None if the number of repetitions is unlimited."""

    item: Node
    low: int
    high: int | None


@dataclass(frozen=True)
class Reference:
    rule: str


@dataclass(frozen=True, eq=False)
class Terminal:
    """A part without recursion that the lexer matches as a whole. Equal only to itself, not to a copy in another place."""

    node: Node


Node = Chars | Sequence | Choice | Repeat | Reference | Terminal
Rules = dict[str, Node]


def children(node: Node) -> tuple[Node, ...]:
    match node:
        case Sequence(items):
            return items
        case Choice(options):
            return options
        case Repeat(item):
            return (item,)
        case _:
            return ()


def references(node: Node) -> Iterator[str]:
    if isinstance(node, Reference):
        yield node.rule
    for child in children(node):
        yield from references(child)


def callers(rules: Rules) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {name: set() for name in rules}
    for name, node in rules.items():
        for called in references(node):
            found[called].add(name)
    return found


def reachable(rules: Rules) -> set[str]:
    """The names of the rules that the root uses, directly or indirectly."""
    found: set[str] = set()
    waiting = ["root"]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += references(rules[name])
    return found


def ending(rules: Rules) -> set[str]:
    """The names of the rules that can produce a finite string."""
    found: set[str] = set()
    calling = callers(rules)
    waiting = list(rules)
    while waiting:
        name = waiting.pop()
        if name not in found and _ends(rules[name], found):
            found.add(name)
            waiting += calling[name]
    return found


def _ends(node: Node, ending: set[str]) -> bool:
    match node:
        case Choice(options):
            return any(_ends(option, ending) for option in options)
        case Repeat(_, 0):
            return True
        case Reference(rule):
            return rule in ending
        case _:
            return all(_ends(child, ending) for child in children(node))


def chars(ranges: list[tuple[int, int]], *, negated: bool = False) -> Chars:
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return Chars(tuple(_without(merged if not negated else _gaps(merged), _SURROGATES)))


def _gaps(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    edges = [(-1, -1), *ranges, (LAST_CODE_POINT + 1, LAST_CODE_POINT + 1)]
    return [(left[1] + 1, right[0] - 1) for left, right in pairwise(edges) if left[1] + 1 < right[0]]


def _without(ranges: list[tuple[int, int]], hole: tuple[int, int]) -> Iterator[tuple[int, int]]:
    for low, high in ranges:
        if low < hole[0]:
            yield low, min(high, hole[0] - 1)
        if high > hole[1]:
            yield max(low, hole[1] + 1), high
