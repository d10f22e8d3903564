"""Writes a GBNF grammar over terminals in llguidance's variant of Lark."""

from __future__ import annotations

from collections.abc import Callable

from services.worker.engine.gbnf.rules import Chars, Choice, Node, Reference, Repeat, Rules, Sequence, Terminal, references


def written(structure: Rules, rules: Rules) -> str:
    """`structure` is the grammar `rules` over terminals. References within terminals lead to `rules`."""
    return _Writer(structure, rules).text()


class _Writer:
    def __init__(self, structure: Rules, rules: Rules) -> None:
        self._structure = structure
        self._rules = rules
        self._numbers = {name: number for number, name in enumerate(rules)}
        self._terminals: dict[Node, str] = {}

    def text(self) -> str:
        lines = [f"{self._rule(name)}: {self._node(node)}" for name, node in self._structure.items()]
        lines += [f"{name}: {self._within_terminal(node)}" for node, name in self._terminals.items()]
        lines += [f"R{self._numbers[name]}: {self._within_terminal(self._rules[name])}" for name in self._called()]
        return "\n".join([*lines, ""])

    def _rule(self, name: str) -> str:
        return "start" if name == "root" else f"r{self._numbers[name]}"

    def _called(self) -> list[str]:
        """The rules that terminals refer to, directly or indirectly."""
        found: dict[str, None] = {}
        open_ = [name for node in self._terminals for name in references(node)]
        while open_:
            name = open_.pop()
            if name not in found:
                found[name] = None
                open_ += references(self._rules[name])
        return list(found)

    def _node(self, node: Node) -> str:
        match node:
            case Terminal(inner):
                return self._terminals.setdefault(inner, f"T{len(self._terminals)}")
            case Reference(name):
                return self._rule(name)
            case _:
                return _combined(node, self._node)

    def _within_terminal(self, node: Node) -> str:
        match node:
            case Chars(ranges):
                return f"/{_class(ranges)}/"
            case Reference(name):
                return f"R{self._numbers[name]}"
            case _:
                return _combined(node, self._within_terminal)


def _combined(node: Node, write: Callable[[Node], str]) -> str:
    match node:
        case Sequence(items):
            return " ".join(map(write, items)) if items else '""'
        case Choice(options):
            return "(" + " | ".join(map(write, options)) + ")"
        case Repeat(item, low, high):
            return f"({write(item)}){_count(low, high)}"
    raise TypeError(node)


def _count(low: int, high: int | None) -> str:
    match low, high:
        case 0, None:
            return "*"
        case 1, None:
            return "+"
        case 0, 1:
            return "?"
    return f"{{{low},{'' if high is None else high}}}"


def _class(ranges: tuple[tuple[int, int], ...]) -> str:
    written = (rf"\x{{{low:X}}}" if low == high else rf"\x{{{low:X}}}-\x{{{high:X}}}" for low, high in ranges)
    return "[" + "".join(written) + "]"
