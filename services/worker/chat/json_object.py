"""Reads one JSON object from text that is still being generated, and passes on its members as they arrive."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable

_CLOSING = {"{": "}", "[": "]"}
_SPACE = " \t\r\n"


class Progress(enum.Enum):
    OPEN = enum.auto()
    DONE = enum.auto()
    BROKEN = enum.auto()


class ObjectReader:
    """Calls `on_piece(key, text)` with the source text of each value, piece by piece, and `on_end(key)` when a value is
    complete.

    Checks only what it needs to find the end of the object: its own structure, and that the brackets inside its values match.
    """

    def __init__(self, on_piece: Callable[[str, str], None], on_end: Callable[[str], None]) -> None:
        self.progress = Progress.OPEN
        self._on_piece = on_piece
        self._on_end = on_end
        self._expects: Callable[[str], bool] = self._start
        self._key = ""
        self._raw_key = ""
        self._closing: list[str] = []
        self._in_string = False
        self._escaped = False
        self._piece = ""

    def push(self, text: str) -> int:
        """How many characters were read: fewer than all if the object is done or broken."""
        read = 0
        while read < len(text) and self.progress is Progress.OPEN:
            read += self._expects(text[read])
        self._give()
        return read

    def fail(self) -> None:
        self.progress = Progress.BROKEN

    # Each state gets one character and returns whether it consumed it.

    def _start(self, char: str) -> bool:
        return self._go(self._key_or_end) if char == "{" else self._unless_space(char)

    def _key_or_end(self, char: str) -> bool:
        return self._close() if char == "}" else self._key_start(char)

    def _key_start(self, char: str) -> bool:
        if char != '"':
            return self._unless_space(char)
        self._raw_key = char
        return self._go(self._in_key)

    def _in_key(self, char: str) -> bool:
        self._raw_key += char
        if self._ends_string(char):
            try:
                self._key = json.loads(self._raw_key)
            except ValueError:
                return self._break()
            self._go(self._colon)
        return True

    def _colon(self, char: str) -> bool:
        return self._go(self._value_start) if char == ":" else self._unless_space(char)

    def _value_start(self, char: str) -> bool:
        if char in _CLOSING:
            self._go(self._nested)
            return self._nested(char)
        if char == '"':
            self._piece += char
            return self._go(self._string)
        if char == "-" or char.isalnum():
            self._go(self._scalar)
            return self._scalar(char)
        return self._unless_space(char)

    def _nested(self, char: str) -> bool:
        if not self._in_string and char in "}]" and char != self._closing[-1]:
            return self._break()
        self._piece += char
        if self._in_string:
            self._in_string = not self._ends_string(char)
        elif char == '"':
            self._in_string = True
        elif char in _CLOSING:
            self._closing.append(_CLOSING[char])
        elif char == self._closing[-1]:
            self._closing.pop()
            if not self._closing:
                self._end_value()
        return True

    def _string(self, char: str) -> bool:
        self._piece += char
        if self._ends_string(char):
            self._end_value()
        return True

    def _scalar(self, char: str) -> bool:
        if char in _SPACE or char in ",}":
            self._end_value()
            return False
        if char != "." and char not in "+-" and not char.isalnum():
            return self._break()
        self._piece += char
        return True

    def _comma(self, char: str) -> bool:
        if char == ",":
            return self._go(self._key_start)
        return self._close() if char == "}" else self._unless_space(char)

    def _ends_string(self, char: str) -> bool:
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        else:
            return char == '"'
        return False

    def _end_value(self) -> None:
        self._give()
        self._on_end(self._key)
        self._go(self._comma)

    def _give(self) -> None:
        piece, self._piece = self._piece, ""
        if piece:
            self._on_piece(self._key, piece)

    def _go(self, state: Callable[[str], bool]) -> bool:
        self._expects = state
        return True

    def _close(self) -> bool:
        self.progress = Progress.DONE
        return True

    def _unless_space(self, char: str) -> bool:
        return char in _SPACE or self._break()

    def _break(self) -> bool:
        self.fail()
        return False
