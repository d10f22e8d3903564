from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.worker.engine.aho_corasick import ROOT, AhoCorasick

words = st.text("ab", min_size=1, max_size=6)


@given(st.lists(words, max_size=8), st.text("abc", max_size=40))
def test_after_each_symbol_it_knows_the_longest_word_that_ends_and_the_longest_that_may_go_on(
    chosen: list[str], text: str
) -> None:
    automaton, state = AhoCorasick(chosen), ROOT
    for end in range(1, len(text) + 1):
        state = automaton.step(state, text[end - 1])
        so_far = text[:end]
        assert automaton.matches[state] == max((len(word) for word in chosen if so_far.endswith(word)), default=0)
        beginnings = (word[:length] for word in chosen for length in range(len(word) + 1))
        assert automaton.depths[state] == max((len(part) for part in beginnings if so_far.endswith(part)), default=0)


def test_a_symbol_costs_the_same_whatever_the_words() -> None:
    """Steps back are paid for by steps forward, so a whole text takes at most two lookups per symbol."""
    automaton = AhoCorasick([*("a" * length + "b" for length in range(1, 200)), "a" * 500])
    state = ROOT
    for symbol in "a" * 10_000:
        state = automaton.step(state, symbol)
    assert automaton.depths[state] == 500
