"""Finds literal strings in text that is still being generated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Split(NamedTuple):
    """`before` is the text before the first tag, `tag` the tag itself, `rest` the text after it. If no tag is found, `rest` is
    the end of the text if it may be the start of a tag."""

    before: str
    tag: str | None
    rest: str


def split(text: str, tags: Sequence[str], *, is_whole: bool = False) -> Split:
    """`is_whole`: the text has ended. No tag may be a prefix of another: the result would depend on how the text is cut."""
    found = [(at, tag) for at, tag in ((text.find(tag), tag) for tag in tags) if at >= 0]
    if found:
        at, tag = min(found)
        return Split(text[:at], tag, text[at + len(tag) :])
    keep = 0 if is_whole else max((overlap(text, tag) for tag in tags), default=0)
    return Split(text[: len(text) - keep], None, text[len(text) - keep :])


def overlap(text: str, tag: str) -> int:
    """The length of the longest proper prefix of `tag` that `text` ends with."""
    longest = min(len(text), len(tag) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(tag[:length])), 0)
