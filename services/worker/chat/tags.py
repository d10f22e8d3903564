"""Finding literal strings in a text that is still growing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Split(NamedTuple):
    """`before` certainly lies in front of any tag. `tag` is the first one found, `rest` what follows it; without one, `rest` is
    what may become one."""

    before: str
    tag: str | None
    rest: str


def split(text: str, tags: Sequence[str], *, is_whole: bool = False) -> Split:
    """`is_whole`: nothing follows the text. No tag may be the beginning of another one that begins at the same place, or where
    the text is cut would decide between them."""
    found = [(at, tag) for at, tag in ((text.find(tag), tag) for tag in tags) if at >= 0]
    if found:
        at, tag = min(found)
        return Split(text[:at], tag, text[at + len(tag) :])
    keep = 0 if is_whole else max((overlap(text, tag) for tag in tags), default=0)
    return Split(text[: len(text) - keep], None, text[len(text) - keep :])


def overlap(text: str, tag: str) -> int:
    """The length of the longest beginning of `tag`, short of all of it, with which `text` ends."""
    longest = min(len(text), len(tag) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(tag[:length])), 0)
