"""GBNF, tested with expected answers and against llama.cpp's grammar sampler."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from llama_cpp import llama_cpp

from services.protocol.errors import BadRequest
from services.protocol.sampling import Gbnf
from services.worker.engine.gbnf import parser
from services.worker.engine.grammar import GrammarCompiler
from services.worker.engine.llama import LlamaRunner
from tests.worker.engine.gbnf.grammars import JSON
from tests.worker.engine.grammar.answers import accepts

SUMS = r"""
# the calls at the end are spelled as recursion
root ::= (sum "=" ws sum "\n")+
sum  ::= product ([-+] ws product)*
product ::= factor ([*/] ws factor)*
factor  ::= name | digits | "(" ws sum ")" ws
name    ::= [a-z] [a-z0-9_]* ws
digits  ::= [0-9]+ ws
ws      ::= ([ \t] ws)?
"""

PROGRAM = r"""
root      ::= (function)*
function  ::= type " " name "(" (type " " name (", " type " " name){0,3})? ") {" (
    "\n\t" statement
)* "\n}\n"
statement ::= type " " name " = " value ";" |
    "return " value ";" |
    "if (" value ") {" statement* "}"
type      ::= "int" | "float" | "char"
name      ::= [a-zA-Z_] [a-zA-Z0-9_]*
value     ::= name | [0-9]+ | name "(" value ")" | value-in-parens
value-in-parens ::= "(" value [-+*] value ")"
"""

CHESS = r"""
root ::= "1. " move " " move "\n" ([1-9] [0-9]? ". " move " " move "\n")+
move ::= (pawn | piece | "O-O" "-O"?) [+#]?
piece ::= [NBKQR] [a-h]? [1-8]? "x"? [a-h] [1-8]
pawn ::= ([a-h] "x")? [a-h] [1-8] ("=" [NBKQR])?
"""

LETTERS = r"""
root ::= (kana | "\u4e00" [一-龯]{0,2} | [^\x00-\x7F] | "\U0001F600") (" " .)?
kana ::= [ぁ-ゟ]+
"""

PAIRS = r"""
root ::= "a" root "b" | middle
middle ::= [ab]? "c" [^c]{2}
"""

#: Cases that a greedy lexer gets wrong: an item ends at a place where another reading would continue it.
GREEDY = r"""
root ::= word "1" | "(" root ")" | word word "2"
word ::= [a-z]+ [a-z]
"""

SAMPLES: dict[str, tuple[str, list[str], list[str]]] = {
    "json": (JSON, ["{}", '{"a": [1, -2.5e+10, "\\u00e9", null],\n  "b":{"c":true}}'], ["[]", '{"a":}', '{"a":01}', "{}x"]),
    "sums": (SUMS, ["x=1\n", "a1 + (b*2) = c / d_e\n1=2\n"], ["x=\n", "1a=1\n", "(x=1\n", "x=1"]),
    "program": (
        PROGRAM,
        ["", "int f(char x) {\n\treturn (x+1);\n}\n", "int ifx() {\n\tif (f(2)) {int a = b;}\n}\n"],
        ["int f()"],
    ),
    "chess": (CHESS, ["1. e4 e5\n2. Nf3 Nc6\n", "1. exd5 O-O-O+\n10. Qa1xb2# a8=Q\n"], ["1. e4 e5\n", "1. e9 e5\n2. a1 a2\n"]),
    "letters": (LETTERS, ["あい", "一", "一二三", "é", "\U0001f600 \n", "ん é"], ["a", "一二三四", "", "あ   "]),
    "pairs": (PAIRS, ["cxy", "acxy", "acxyb", "aaacabbb", "aabcaabb"], ["cxc", "acx", "bbcxy"]),
    "greedy": (GREEDY, ["ab1", "(abc1)", "((abcd2))", "abcdef2"], ["a1", "abc2", "(ab1"]),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_sample_grammars_accept_and_reject_answers(byte_grammars: GrammarCompiler, name: str) -> None:
    grammar, good, bad = SAMPLES[name]
    compiled = byte_grammars.compile(Gbnf(grammar))
    for answer in good:
        assert accepts(compiled, answer), answer
    for answer in bad:
        assert not accepts(compiled, answer), answer


@pytest.mark.parametrize(
    ("grammar", "line", "reason"),
    [
        ('root ::= "a"\nx ::= [a', 2, "ends too early"),
        ('root ::= "a"\n\n# more\nx = "b"', 4, "expected '::='"),
        ('root ::= "a" | thing\n', 1, "no rule 'thing'"),
        ('x ::= "a"\n', 2, "no rule 'root'"),
        ("", 1, "no rule 'root'"),
        (r'root ::= "\q"', 1, r"unknown escape '\q'"),
        (r'root ::= "\x1z"', 1, "hexadecimal"),
        ("root ::= *", 1, "there is nothing before '*' to repeat"),
        ('root ::= "a" | (\n"b"\n', 3, "expected ')'"),
        ('root ::= "a" )', 1, "expected the end of the rule"),
        ('root ::= "a"{3,2}', 1, "at least 3 and at most 2"),
        ('root ::= "a"{99999}', 1, "repetitions"),
        ('root ::= "a"{x}', 1, "number of repetitions"),
        ("root ::= []", 1, "empty"),
        ("root ::= [z-a]", 1, "out of order"),
        ("root ::= <think>", 1, "tokens"),
        ("root ::= " + "(" * 100 + '"a"' + ")" * 100, 1, "nested deeper"),
    ],
)
def test_an_error_names_its_line(byte_grammars: GrammarCompiler, grammar: str, line: int, reason: str) -> None:
    with pytest.raises(BadRequest) as refused:
        byte_grammars.compile(Gbnf(grammar))
    assert refused.value.message.startswith(f"the GBNF grammar cannot be compiled at line {line}: ")
    assert reason in refused.value.message


@given(st.text(alphabet='ab:=|()[]{}"\\*+?.,^-#0129 \nroot', max_size=60))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with suppress(BadRequest):
        assert "root" in parser.parse(text)


@pytest.mark.parametrize("endless", ["root ::= root", 'root ::= "a" root', 'root ::= x | "b"\nx ::= "(" y ")"\ny ::= [0-9] x'])
def test_a_rule_that_never_ends_is_refused(byte_grammars: GrammarCompiler, endless: str) -> None:
    with pytest.raises(BadRequest, match=r"at line [12]: the rule '(root|x)' matches no finite text"):
        byte_grammars.compile(Gbnf(endless))


def test_left_recursion_is_supported(byte_grammars: GrammarCompiler) -> None:
    grammar = byte_grammars.compile(Gbnf('root ::= root "," item | item\nitem ::= [0-9] | "(" root ")"'))
    assert accepts(grammar, "1,(2,3),4")
    assert not accepts(grammar, "1,")


def test_a_long_list_does_not_overflow_the_stack(byte_grammars: GrammarCompiler) -> None:
    grammar = byte_grammars.compile(Gbnf('root ::= item root | item\nitem ::= "a" | "(" root ")" item'))
    assert accepts(grammar, "a" * 5000)


class TestAgainstLlamaCpp:
    """Both allow the same tokens at every step, among the tokens that are text."""

    @pytest.mark.parametrize("name", SAMPLES)
    def test_sample_grammars_accept_and_reject_answers(
        self, smollm2: LlamaRunner, smollm2_grammars: GrammarCompiler, name: str
    ) -> None:
        grammar, good, bad = SAMPLES[name]
        probes = _probes(smollm2, seed=name)
        for answer in (*good, *bad):
            assert _differences(smollm2, smollm2_grammars, grammar, probes, smollm2.tokenize(answer, special=False)) == []

    @settings(max_examples=60)
    @given(st.data())
    def test_generated_grammars_allow_the_same_tokens(
        self, smollm2: LlamaRunner, smollm2_grammars: GrammarCompiler, data: st.DataObject
    ) -> None:
        grammar = data.draw(_grammars())
        try:
            smollm2_grammars.compile(Gbnf(grammar))
        except BadRequest:  # the grammar never ends
            assume(False)
        with _llama_grammar(smollm2, grammar) as theirs:
            assume(theirs)  # llama.cpp accepts the grammar: no repetition of nothing
        tokens = [token for token in _probes(smollm2, seed="", of="abc(é \n") if len(smollm2.token_bytes(token)) <= 3]
        path = data.draw(st.lists(st.sampled_from(tokens), max_size=3))
        assert _differences(smollm2, smollm2_grammars, grammar, tokens, path) == []


def _grammars() -> st.SearchStrategy[str]:
    """Grammars whose rules call later rules anywhere, and any rule after a bracket. llama.cpp does not support left recursion
    and may not terminate if it is hidden; more recursion would make it keep a stack for each of many readings."""
    atoms = st.sampled_from(['"a"', '"ab"', '"aé"', '"bca"', "[ab]", "[^a]", "[é]", '"è"', r'"\n"', "[ \\n]", ".", '""'])

    def expression(later: list[str]) -> st.SearchStrategy[str]:
        called = st.sampled_from([f'"(" {name}' for name in ("root", "x", "y")] + later)

        def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
            several = st.lists(inner, min_size=2, max_size=3)
            counts = st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{2,}"])
            return (
                several.map(" ".join)
                | several.map(lambda them: f"({' | '.join(them)})")
                | st.tuples(atoms, counts).map("".join)
            )

        return st.recursive(atoms | called, larger, max_leaves=5)

    rules = st.tuples(expression(["x", "y"]), expression(["y"]), expression([]))
    return rules.map(lambda them: "root ::= {}\nx ::= {}\ny ::= {}\n".format(*them))


def _probes(runner: LlamaRunner, *, seed: str, of: str = "") -> list[int]:
    """Tokens to compare: some hundred random ones, or all that consist of the characters in `of`. Tokens that begin with NUL
    are left out, because it ends a string in llama.cpp."""
    texts = {token: text for token in range(runner.num_vocab) if (text := runner.token_bytes(token)) and text[0]}
    if of:
        return [token for token, text in texts.items() if set(text.decode(errors="replace")) <= set(of)]
    single = [token for token, text in texts.items() if len(text) == 1]
    return single + random.Random(seed).sample([token for token, text in texts.items() if len(text) > 1], 400)


def _differences(
    runner: LlamaRunner, grammars: GrammarCompiler, grammar: str, probes: list[int], path: list[int]
) -> list[tuple[bytes, str]]:
    """Follows `path` while both allow its tokens and returns the tokens on which they disagree, by the text before them."""
    matcher = grammars.compile(Gbnf(grammar)).matcher()
    probes = [*probes, *path, *runner.end_tokens]
    text = b""
    with _llama_grammar(runner, grammar) as theirs:
        for token in [*path, None]:
            mask = matcher.mask()
            assert mask is not None
            assert matcher.failure is None
            allowed = _allowed(theirs, probes)
            different = [probe for probe in probes if bool(mask[probe]) != (probe in allowed)]
            if different:
                return [(text, repr(runner.token_text(probe))) for probe in different]
            if token not in allowed or token is None:
                break
            llama_cpp.llama_sampler_accept(theirs, token)
            matcher.accept(token)
            text += runner.token_bytes(token)
    return []


@contextmanager
def _llama_grammar(runner: LlamaRunner, grammar: str) -> Iterator[object]:
    sampler = llama_cpp.llama_sampler_init_grammar(runner._vocab, grammar.encode(), b"root")
    yield sampler
    if sampler:
        llama_cpp.llama_sampler_free(sampler)


def _allowed(sampler: object, tokens: list[int]) -> set[int]:
    data = (llama_cpp.llama_token_data * len(tokens))()
    for entry, token in zip(data, tokens, strict=True):
        entry.id = token
    candidates = llama_cpp.llama_token_data_array(data=data, size=len(tokens), selected=-1, sorted=False)
    llama_cpp.llama_sampler_apply(sampler, ctypes.byref(candidates))
    return {entry.id for entry in data if np.isfinite(entry.logit)}  # type: ignore[misc]
