from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.worker.engine.aho_corasick import ROOT, AhoCorasick

words = st.text("ab", min_size=1, max_size=6)


@given(st.lists(words, max_size=8), st.text("abc", max_size=40))
def test_each_state_gives_the_longest_match_and_the_longest_partial_match(chosen: list[str], text: str) -> None:
    automaton, state = AhoCorasick(chosen), ROOT
    for end in range(1, len(text) + 1):
        state = automaton.step(state, text[end - 1])
        so_far = text[:end]
        assert automaton.matches[state] == max((len(word) for word in chosen if so_far.endswith(word)), default=0)
        beginnings = (word[:length] for word in chosen for length in range(len(word) + 1))
        assert automaton.depths[state] == max((len(part) for part in beginnings if so_far.endswith(part)), default=0)


def test_a_step_takes_constant_time_whatever_the_words() -> None:
    """The steps back are at most as many as the steps forward, so a whole text takes at most two lookups per symbol."""
    automaton = AhoCorasick([*("a" * length + "b" for length in range(1, 200)), "a" * 500])
    state = ROOT
    for symbol in "a" * 10_000:
        state = automaton.step(state, symbol)
    assert automaton.depths[state] == 500
