"""Parses GBNF, llama.cpp's notation for grammars.

The language is that of llama.cpp's `llama_grammar_parser` (src/llama-grammar.cpp) and grammars/README.md: a rule matches every
string of characters that it can produce, regardless of tokens. Left recursion, which llama.cpp refuses, is supported. Tokens
(`<[1234]>`, `<think>`) are not.
"""

from __future__ import annotations

import string

from services.protocol.errors import BadRequest
from services.worker.engine.gbnf.rules import (
    LAST_CODE_POINT,
    Chars,
    Choice,
    Node,
    Reference,
    Repeat,
    Rules,
    Sequence,
    chars,
    ending,
    reachable,
)

#: The most repetitions of one item, and the deepest nesting of groups.
MAX_REPEAT = 10_000
MAX_DEPTH = 60

_WORD = frozenset(string.ascii_letters + string.digits + "-_")
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]"}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}


def parse(text: str) -> Rules:
    """Raises BadRequest, which names the line, if the text is not GBNF. If rules share a name, the last one counts, as in
    llama.cpp."""
    return _Parser(text).grammar()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0
        self._called: dict[str, int] = {}
        self._defined: dict[str, int] = {}

    def grammar(self) -> Rules:
        rules: Rules = {}
        self._skip(newlines=True)
        while self._next:
            line = self._line
            name = self._name("a rule's name")
            self._defined[name] = line
            self._skip()
            self._expect("::=")
            self._skip(newlines=True)
            rules[name] = self._choice(nested=False)
            if self._next not in ("", "\r", "\n"):
                raise self._error(f"expected the end of the rule, not '{self._next}'")
            self._skip(newlines=True)
        if "root" not in rules:
            raise self._error("there is no rule 'root'")
        for name, line in self._called.items():
            if name not in rules:
                raise _refusal(line, f"there is no rule '{name}'")
        for name in sorted(reachable(rules) - ending(rules), key=self._defined.__getitem__):
            raise _refusal(self._defined[name], f"the rule '{name}' matches no finite text")
        return rules

    @property
    def _next(self) -> str:
        """The next character; empty at the end."""
        return self._text[self._at : self._at + 1]

    def _take(self) -> str:
        taken = self._next
        if not taken:
            raise self._error("the grammar ends too early")
        self._at += 1
        return taken

    def _expect(self, mark: str) -> None:
        if not self._text.startswith(mark, self._at):
            raise self._error(f"expected '{mark}'")
        self._at += len(mark)

    def _skip(self, *, newlines: bool = False) -> None:
        """Skips blanks and comments. The line break after a comment stays unless `newlines`."""
        while self._next and (self._next in " \t" or (newlines and self._next in "\r\n") or self._next == "#"):
            if self._next == "#":
                while self._next and self._next not in "\r\n":
                    self._at += 1
            else:
                self._at += 1

    def _name(self, what: str) -> str:
        begin = self._at
        while self._next in _WORD:
            self._at += 1
        if begin == self._at:
            raise self._error(f"expected {what}")
        return self._text[begin : self._at]

    def _choice(self, *, nested: bool) -> Node:
        options = [self._sequence(nested=nested)]
        while self._next == "|":
            self._at += 1
            self._skip(newlines=True)
            options.append(self._sequence(nested=nested))
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def _sequence(self, *, nested: bool) -> Node:
        items: list[Node] = []
        while True:
            if self._next and self._next in "*+?{":
                if not items:
                    raise self._error(f"there is nothing before '{self._next}' to repeat")
                items[-1] = self._repeat(items[-1], nested=nested)
            elif (item := self._item(nested=nested)) is not None:
                items.append(item)
            else:
                return items[0] if len(items) == 1 else Sequence(tuple(items))
            self._skip(newlines=nested)

    def _item(self, *, nested: bool) -> Node | None:
        match self._next:
            case '"':
                return self._literal()
            case "[":
                return self._class()
            case "(":
                return self._group()
            case ".":
                self._at += 1
                return chars([], negated=True)
            case "<" | "!":
                raise self._error("tokens are not supported in a grammar")
            case char if char in _WORD and char:
                line = self._line
                name = self._name("a rule's name")
                self._called.setdefault(name, line)
                return Reference(name)
            case _:
                return None

    def _literal(self) -> Node:
        self._take()
        items: list[Node] = []
        while self._next != '"':
            code = self._char()
            items.append(self._chars([(code, code)], negated=False))
        self._take()
        return items[0] if len(items) == 1 else Sequence(tuple(items))

    def _class(self) -> Node:
        self._take()
        negated = self._next == "^"
        self._at += negated
        ranges = []
        while self._next != "]":
            low = high = self._char()
            if self._next == "-" and self._text[self._at + 1 : self._at + 2] != "]":
                self._take()
                high = self._char()
            ranges.append((low, high))
        self._take()
        return self._chars(ranges, negated=negated)

    def _chars(self, ranges: list[tuple[int, int]], *, negated: bool) -> Chars:
        if any(low > high or high > LAST_CODE_POINT for low, high in ranges):
            raise self._error("a range of characters is out of order, or beyond Unicode")
        found = chars(ranges, negated=negated)
        if not found.ranges:
            raise self._error("a class of characters is empty")
        return found

    def _group(self) -> Node:
        self._take()
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"groups are nested deeper than {MAX_DEPTH} levels")
        self._skip(newlines=True)
        inner = self._choice(nested=True)
        self._expect(")")
        self._depth -= 1
        return inner

    def _char(self) -> int:
        char = self._take()
        if char != "\\":
            return ord(char)
        escape = self._take()
        if escape in _ESCAPES:
            return ord(_ESCAPES[escape])
        if escape not in _HEX_DIGITS:
            raise self._error(f"unknown escape '\\{escape}'")
        digits = "".join(self._take() for _ in range(_HEX_DIGITS[escape]))
        if not set(digits) <= set(string.hexdigits):
            raise self._error(f"expected {len(digits)} hexadecimal digits after '\\{escape}', not '{digits}'")
        return int(digits, 16)

    def _repeat(self, item: Node, *, nested: bool) -> Node:
        match self._take():
            case "*":
                return Repeat(item, 0, None)
            case "+":
                return Repeat(item, 1, None)
            case "?":
                return Repeat(item, 0, 1)
        self._skip(newlines=nested)
        low = self._number()
        high: int | None = low
        self._skip(newlines=nested)
        if self._next == ",":
            self._take()
            self._skip(newlines=nested)
            high = self._number() if self._next.isdigit() else None
            self._skip(newlines=nested)
        self._expect("}")
        if high is not None and low > high:
            raise self._error(f"a repetition of at least {low} and at most {high}")
        return Repeat(item, low, high)

    def _number(self) -> int:
        begin = self._at
        while self._next and self._next in string.digits:
            self._at += 1
        digits = self._text[begin : self._at]
        if not digits:
            raise self._error("expected a number of repetitions")
        if len(digits) > 9 or int(digits) > MAX_REPEAT:
            raise self._error(f"more than {MAX_REPEAT} repetitions")
        return int(digits)

    @property
    def _line(self) -> int:
        return self._text.count("\n", 0, self._at) + 1

    def _error(self, reason: str) -> BadRequest:
        return _refusal(self._line, reason)


def _refusal(line: int, reason: str) -> BadRequest:
    return BadRequest(f"the GBNF grammar cannot be compiled at line {line}: {reason}")
