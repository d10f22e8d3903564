"""Turns rules that call themselves only at their end, or only at their start, into loops.

`ws ::= ([ \\t] ws)?` becomes `[ \\t]*`. A loop can be part of a terminal. A long recursion would be slow, because llguidance's
parser keeps an item for each open call.
"""

from __future__ import annotations

from collections.abc import Iterator

from services.worker.engine.gbnf.rules import Choice, Node, Reference, Repeat, Rules, Sequence, references

Items = tuple[Node, ...]


def without_tail_calls(rules: Rules) -> Rules:
    return {name: _from_the_left(name, _from_the_right(name, node)) for name, node in rules.items()}


def _from_the_right(name: str, node: Node) -> Node:
    """`x ::= a x | b` becomes `a* b`."""
    again, done = _split_recursive(name, list(_alternatives(name, node, -1)), -1)
    return node if again is None else Sequence((Repeat(again, 0, None), done))


def _from_the_left(name: str, node: Node) -> Node:
    """`x ::= x a | b` becomes `b a*`."""
    again, done = _split_recursive(name, list(_alternatives(name, node, 0)), 0)
    return node if again is None else Sequence((done, Repeat(again, 0, None)))


def _split_recursive(name: str, alternatives: list[Items], edge: int) -> tuple[Node | None, Node]:
    """The alternatives that call the rule at their edge, without that call, and the other alternatives. The first is None if
    the rule is not a loop."""
    own = Reference(name)
    again = [_without(items, edge) for items in alternatives if items and items[edge] == own]
    done = [items for items in alternatives if not items or items[edge] != own]
    looping = again and done and all(name not in references(Sequence(items)) for items in (*again, *done))
    return (_choice(again) if looping else None), _choice(done)


def _alternatives(name: str, node: Node, edge: int) -> Iterator[Items]:
    """The alternatives of the node. Groups are expanded only if they call the rule itself."""
    if name not in references(node):
        yield (node,)
        return
    match node:
        case Choice(options):
            for option in options:
                yield from _alternatives(name, option, edge)
        case Repeat(item, 0, 1):
            yield from _alternatives(name, item, edge)
            yield ()
        case Sequence(items) if name in references(items[edge]):
            rest = _without(items, edge)
            for inner in _alternatives(name, items[edge], edge):
                yield (*rest, *inner) if edge else (*inner, *rest)
        case _:
            yield (node,)


def _without(items: Items, edge: int) -> Items:
    return items[:-1] if edge else items[1:]


def _choice(alternatives: list[Items]) -> Node:
    return Choice(tuple(Sequence(items) for items in alternatives))
