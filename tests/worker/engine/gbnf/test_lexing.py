"""Terminals are as large as possible and no larger."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from services.protocol.errors import BadRequest
from services.protocol.sampling import Gbnf, Lark
from services.worker.engine.fake import END
from services.worker.engine.gbnf import lark, lexing, parser
from services.worker.engine.gbnf.left_recursion import without_tail_calls
from services.worker.engine.gbnf.rules import Choice, Node, Rules, Terminal, children
from services.worker.engine.grammar import GrammarCompiler
from tests.worker.engine.gbnf.grammars import JSON
from tests.worker.engine.grammar.answers import accepts, allowed


def terminals(node: Node) -> list[Terminal]:
    return [node] if isinstance(node, Terminal) else [one for child in children(node) for one in terminals(child)]


def test_a_grammar_without_recursion_is_one_terminal() -> None:
    rules = parser.parse('root ::= (word " ")* word\nword ::= [a-z]+ [a-z]')
    structure = lexing.lexed(rules)
    assert list(structure) == ["root"]
    assert isinstance(structure["root"], Terminal)


def test_most_of_the_json_grammar_is_terminals() -> None:
    structure = lexing.lexed(without_tail_calls(parser.parse(JSON)))
    assert isinstance(structure["value"], Choice)
    assert sum(len(terminals(node)) for node in structure.values()) < 20


def test_a_terminal_that_would_match_too_much_is_split(byte_grammars: GrammarCompiler) -> None:
    """As a terminal, `[a-z]+` would also consume the letter that must follow it."""
    text = 'root ::= "(" root ")" | word [a-z] "!" | word "?"\nword ::= [a-z]+'
    naive = 'start: "(" start ")" | WORD /[a-z]/ "!" | WORD "?"\nWORD: /[a-z]+/\n'
    assert not accepts(byte_grammars.compile(Lark(naive)), "(ab!)")
    assert accepts(byte_grammars.compile(Gbnf(text)), "(ab!)")


@pytest.mark.parametrize(
    ("looped", "good", "bad"),
    [
        ('root ::= ([ab] root)?', ["", "abba"], ["c"]),
        ('root ::= "a" root | "b" ("c" root | "d")', ["bd", "abcbd", "aaabcabd"], ["", "a", "bc"]),
        ('root ::= "x" | root "a" | root ("b" | "c" "d")', ["x", "xab", "xcdba"], ["", "xc", "ax"]),
        ('root ::= "a" root "b" | "c"', ["c", "aacbb"], ["acbb", "cb"]),
    ],
)  # fmt: skip
def test_tail_calls_become_loops(byte_grammars: GrammarCompiler, looped: str, good: list[str], bad: list[str]) -> None:
    grammar = byte_grammars.compile(Gbnf(looped))
    assert [answer for answer in good if not accepts(grammar, answer)] == []
    assert [answer for answer in bad if accepts(grammar, answer)] == []


def _rules() -> st.SearchStrategy[str]:
    """Any grammar over a few characters: recursive, ambiguous or empty."""
    atoms = st.sampled_from(['"a"', '"ab"', '"é"', '"è"', '"ba"', "[ab]", "[^a]", "[a-c]", '""', '"("', "x", "y", "root"])

    def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        several = st.lists(inner, min_size=2, max_size=3)
        counted = st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{0,3}"])).map(lambda it: f"({it[0]}){it[1]}")
        return several.map(" ".join) | several.map(lambda them: f"({' | '.join(them)})") | counted

    rule = st.recursive(atoms, larger, max_leaves=6)
    return st.tuples(rule, rule, rule).map(lambda them: "root ::= {}\nx ::= {}\ny ::= {}\n".format(*them))


@settings(max_examples=300)
@given(_rules(), st.randoms(use_true_random=False))
def test_the_language_is_the_same_as_character_by_character(byte_grammars: GrammarCompiler, text: str, rng: Random) -> None:
    try:
        parsed = parser.parse(text)
    except BadRequest:
        assume(False)
    plain = _lark(lexing.by_character(parsed), parsed)
    rules = without_tail_calls(parsed)
    written = _lark(lexing.lexed(rules), rules)
    reference, tested = byte_grammars.compile(plain).matcher(), byte_grammars.compile(written).matcher()
    for _ in range(8):
        expected, found = allowed(reference), allowed(tested)
        assert (expected == found).all()
        choices = [token for token in expected.nonzero()[0].tolist() if token != END]
        if not choices:
            break
        likely = [token for token in choices if chr(token) in "abc("] or choices
        token = rng.choice(likely + choices[:1])
        reference.accept(token)
        tested.accept(token)


def _lark(structure: Rules, rules: Rules) -> Lark:
    return Lark(lark.written(structure, rules))
