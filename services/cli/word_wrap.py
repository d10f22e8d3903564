"""Wraps streamed text between words at the width of the terminal."""

from __future__ import annotations

from rich.cells import cell_len

_ERASE_TO_END_OF_LINE = "\x1b[K"
_TAB = 8


class WordWrap:
    """Converts pieces of text to terminal output, for a terminal with `columns` columns and the cursor in the first one.

    Each word is written as it arrives. If it turns out not to fit on the line, it is erased and written again on the next line.
    A word that is longer than a line is left to the terminal to wrap, so that a URL can still be copied in one piece.
    """

    def __init__(self, columns: int) -> None:
        self._columns = columns
        # Terminals disagree about the cursor's position after a character in the last column, so that column stays empty.
        self._room = columns - 1
        self._column = 0
        self._word = ""

    def push(self, text: str) -> str:
        return "".join(map(self._push, text))

    def _push(self, character: str) -> str:
        if character == "\n":
            self._column, self._word = 0, ""
            return character
        if character.isspace():
            return self._push_space(character)
        overflows = self._column + cell_len(character) > self._room
        moved = self._move_word() if overflows and not self._is_long else ""
        self._word += character
        self._column += cell_len(character)
        return moved + character

    @property
    def _is_long(self) -> bool:
        return cell_len(self._word) >= self._room

    def _push_space(self, character: str) -> str:
        """Drops a space that doesn't fit, because it would start the next line."""
        self._column %= self._columns
        self._word = ""
        size = _TAB - self._column % _TAB if character == "\t" else cell_len(character)
        if self._column + size > self._room:
            return ""
        self._column += size
        return character

    def _move_word(self) -> str:
        size = cell_len(self._word)
        self._column = size
        erase = f"\x1b[{size}D{_ERASE_TO_END_OF_LINE}" if size else ""
        return f"{erase}\n{self._word}"
