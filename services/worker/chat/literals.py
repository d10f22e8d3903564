"""Makes control tokens in callers' messages plain text: only the template can write control tokens.

The strings of a chat are marked before the template renders them: around each text that looks like a control token, and at the
end of a string that could become one with the text after it. The marks survive the template and show which texts came from a
caller. Ordinary strings get no marks, so their prompts do not change.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any, NamedTuple

from services.worker.chat.rendering import Segment

#: Two symbols of ancient Greek musical notation. They are printable, so Python's `repr` does not escape them.
_OPEN, _CLOSE = MARKS = "\U0001d20a\U0001d20b"
_MARKS = re.compile(f"[{MARKS}]")


class _Span(NamedTuple):
    start: int
    end: int


class ControlTexts:
    """The texts of a vocabulary's control tokens."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = {text for text in texts if text}
        self._lengths = sorted({len(text) for text in self._texts})
        self._partial_texts = {text[:length] for text in self._texts if not text[0].isalnum() for length in range(1, len(text))}
        first = "".join(re.escape(character) for character in sorted({text[0] for text in self._texts}))
        self._first = re.compile(f"[{first}]" if first else r"(?!)")

    def marked(self, value: Any) -> Any:
        """The value with all strings in it marked, keys included."""
        if isinstance(value, str):
            return self._marked_text(value)
        if isinstance(value, dict):
            return {self.marked(key): self.marked(item) for key, item in value.items()}
        return [self.marked(item) for item in value] if isinstance(value, list | tuple) else value

    def segments(self, rendered: str) -> tuple[Segment, ...]:
        """The text without marks, split into segments to tokenize with control tokens and without. Segments meet at a control
        token, so splitting the text does not change its tokens."""
        text, opened, closed = _without_marks(rendered)
        if not opened and not closed:
            return (Segment(text, True),)
        marks = sorted(opened | closed)

        def is_literal(span: _Span) -> bool:
            after_start = bisect_right(marks, span.start)
            is_broken = after_start < len(marks) and marks[after_start] < span.end
            return is_broken or span.start in opened or span.end in closed

        literals: list[_Span] = []
        controls: list[_Span] = []
        for span in self._find(text):
            (literals if is_literal(span) else controls).append(span)
        literal_starts = [span.start for span in literals]
        return tuple(_split(text, literal_starts, _apart(controls, literals)))

    def _marked_text(self, text: str) -> str:
        text = _MARKS.sub("\ufffd", text)
        spans = list(self._find(text))
        marks = [(span.end, _CLOSE) for span in spans] + [(span.start, _OPEN) for span in spans]
        shown = text.rstrip()  # a template may trim it
        if self._may_join(shown):
            marks.append((len(shown), _CLOSE))
        if not marks:
            return text
        pieces, begin = [], 0
        for at, mark in sorted(set(marks), key=lambda each: (each[0], each[1] == _OPEN)):
            pieces += [text[begin:at], mark]
            begin = at
        return "".join([*pieces, text[begin:]])

    def _may_join(self, text: str) -> bool:
        """Whether the text ends with the start of a control token."""
        longest = min(len(text), self._lengths[-1] - 1 if self._lengths else 0)
        return any(text[-length:] in self._partial_texts for length in range(1, longest + 1))

    def _find(self, text: str) -> Iterator[_Span]:
        """Each span that reads as a control token, including overlapping ones."""
        for match in self._first.finditer(text):
            at = match.start()
            for length in self._lengths:
                if at + length <= len(text) and text[at : at + length] in self._texts:
                    yield _Span(at, at + length)


def _without_marks(marked: str) -> tuple[str, set[int], set[int]]:
    """The text without marks, and the positions of the opening and the closing marks in it."""
    pieces: list[str] = []
    places: dict[str, set[int]] = {_OPEN: set(), _CLOSE: set()}
    length = begin = 0
    for mark in _MARKS.finditer(marked):
        pieces.append(marked[begin : mark.start()])
        length += mark.start() - begin
        begin = mark.end()
        places[mark[0]].add(length)
    pieces.append(marked[begin:])
    return "".join(pieces), places[_OPEN], places[_CLOSE]


def _apart(controls: list[_Span], literals: list[_Span]) -> list[_Span]:
    """The control tokens that overlap no literal and no earlier control token. Of two that start together, the longer."""
    starts = [span.start for span in literals]
    furthest_ends = list(accumulate((span.end for span in literals), max))
    apart: list[_Span] = []
    end = 0
    for span in sorted(controls, key=lambda each: (each.start, -each.end)):
        before = bisect_left(starts, span.end)
        overlaps = before > 0 and furthest_ends[before - 1] > span.start
        if span.start >= end and not overlaps:
            apart.append(span)
            end = span.end
    return apart


def _split(text: str, literal_starts: list[int], controls: list[_Span]) -> Iterator[Segment]:
    """If the text between two control tokens holds a literal, all of it is tokenized without control tokens."""
    begin = at = 0
    for span in [*controls, _Span(len(text), len(text))]:
        literal = bisect_left(literal_starts, at)
        if literal < len(literal_starts) and literal_starts[literal] < span.start:
            if at > begin:
                yield Segment(text[begin:at], True)
            yield Segment(text[at : span.start], False)
            begin = span.start
        at = span.end
    if len(text) > begin:
        yield Segment(text[begin:], True)
