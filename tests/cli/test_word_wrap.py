from __future__ import annotations

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from services.cli.word_wrap import WordWrap


def shown(pieces: list[str], columns: int) -> list[str]:
    """The lines on a terminal of this width, without empty lines at the end."""
    screen = pyte.Screen(columns, 200)
    screen.set_mode(pyte.modes.LNM)  # a terminal driver turns LF into CR LF
    stream = pyte.Stream(screen)
    wrap = WordWrap(columns)
    for piece in pieces:
        stream.feed(wrap.push(piece))
    return "\n".join(line.rstrip() for line in screen.display).rstrip().split("\n")


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        (["The quick brown fox"], ["The quick", "brown fox"]),
        (["The qu", "ick bro", "wn fox"], ["The quick", "brown fox"]),
        (["one\ntwo three four"], ["one", "two three", "four"]),
        (["123456789 ab"], ["123456789", "ab"]),
        (["a 12345678901234 b"], ["a", "1234567890", "1234 b"]),
        (["日本 日本語の"], ["日本", "日本語の"]),
    ],
)
def test_lines_break_between_words(pieces: list[str], lines: list[str]) -> None:
    assert shown(pieces, 10) == lines


WORDS = st.lists(st.text("abcdefgh", min_size=1, max_size=9), min_size=1, max_size=30)


@given(words=WORDS, cuts=st.integers(1, 7))
def test_no_word_is_split(words: list[str], cuts: int) -> None:
    text = " ".join(words)
    lines = shown([text[at : at + cuts] for at in range(0, len(text), cuts)], 10)
    assert " ".join(lines).split() == words
    assert all(cell_len(line) <= 9 for line in lines)
