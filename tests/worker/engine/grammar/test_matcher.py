from __future__ import annotations

import random

import numpy as np
import pytest

from services.protocol.errors import BadRequest, CorralError
from services.protocol.sampling import Constraint, Gbnf, JsonObject, JsonSchema, Lark, Regex
from services.worker.engine.fake import END, FakeRunner
from services.worker.engine.grammar import GrammarCompiler, Matcher
from services.worker.engine.llama import LlamaRunner
from tests.worker.engine.grammar.answers import allowed, draw, follow

YES_NO = Regex("yes|no")
CLOSE = b"</think>"


def texts(matcher: Matcher) -> set[int]:
    return set(np.flatnonzero(allowed(matcher)).tolist())


def test_only_tokens_that_continue_a_match_are_allowed(byte_grammars: GrammarCompiler) -> None:
    matcher = byte_grammars.compile(YES_NO).matcher()
    assert texts(matcher) == set(b"yn")
    follow(matcher, b"n")
    assert texts(matcher) == set(b"o")
    assert not matcher.is_finished


def test_only_the_end_is_allowed_after_a_complete_answer(byte_grammars: GrammarCompiler) -> None:
    matcher = byte_grammars.compile(YES_NO).matcher()
    follow(matcher, b"no")
    assert matcher.is_finished
    assert texts(matcher) == {END}
    matcher.accept(END)
    assert matcher.failure is None
    assert texts(matcher) == {END}


def test_an_answer_that_may_end_or_continue_may_do_both(byte_grammars: GrammarCompiler) -> None:
    matcher = byte_grammars.compile(Regex("[ab]+")).matcher()
    follow(matcher, b"a")
    assert texts(matcher) == {*b"ab", END}
    assert not matcher.is_finished


def test_every_end_token_ends_and_no_control_token_is_text(smollm2: LlamaRunner, smollm2_grammars: GrammarCompiler) -> None:
    matcher = smollm2_grammars.compile(Regex("(?s:.*)")).matcher()
    mask = matcher.mask()
    assert mask is not None
    assert mask.shape == (smollm2.num_vocab,)
    for token in range(smollm2.num_vocab):
        if token in smollm2.end_tokens:
            assert mask[token]
        elif not smollm2.token_bytes(token):
            assert not mask[token], smollm2.token_text(token)
    # All tokens that are text, except those that are not valid UTF-8 alone.
    assert mask.sum() > smollm2.num_vocab - 300


def test_the_name_of_a_control_token_is_spelled_with_other_tokens(
    smollm2: LlamaRunner, smollm2_grammars: GrammarCompiler
) -> None:
    matcher = smollm2_grammars.compile(Regex(r"<\|im_start\|>")).matcher()
    while not matcher.is_finished:
        mask = matcher.mask()
        assert mask is not None
        token = int(np.flatnonzero(mask)[-1])
        assert smollm2.token_bytes(token)
        matcher.accept(token)


def test_any_tokenization_of_a_text_is_allowed(smollm2: LlamaRunner, smollm2_grammars: GrammarCompiler) -> None:
    mask = smollm2_grammars.compile(Regex("the end")).matcher().mask()
    assert mask is not None
    assert {smollm2.token_bytes(int(token)) for token in np.flatnonzero(mask)} == {b"t", b"th", b"the"}


def test_a_forbidden_token_fails_only_its_matcher(byte_grammars: GrammarCompiler) -> None:
    grammar = byte_grammars.compile(YES_NO)
    matcher = grammar.matcher()
    matcher.accept(ord("x"))
    assert type(matcher.failure) is CorralError
    assert matcher.is_finished
    mask = matcher.mask()
    assert mask is not None
    assert np.flatnonzero(mask).tolist() == [END]
    matcher.accept(ord("y"))
    assert texts(grammar.matcher()) == set(b"yn")


def test_a_grammar_that_becomes_too_complex_fails_only_its_answer(
    smollm2: LlamaRunner, smollm2_grammars: GrammarCompiler
) -> None:
    matcher = smollm2_grammars.compile(Gbnf('root ::= "a" y\ny ::= z | "a"\nz ::= ([^b] y)*')).matcher()
    for token in smollm2.tokenize("a" + " c a" * 30, special=False):
        matcher.mask()
        matcher.accept(token)
    assert isinstance(matcher.failure, BadRequest)
    assert "too complex" in matcher.failure.message


def test_replayed_tokens_give_the_same_state(byte_grammars: GrammarCompiler) -> None:
    grammar = byte_grammars.compile(JsonObject())
    answer = draw(grammar, random.Random(7), longest=100_000)
    assert answer is not None
    matcher = grammar.matcher()
    masks = []
    for byte in answer:
        masks.append(allowed(matcher).copy())
        matcher.accept(byte)
    replayed = grammar.matcher()
    for byte, mask in zip(answer, masks, strict=True):
        replayed.accept(byte)  # without computing masks in between, like a resumed request
        del mask
    assert (allowed(replayed) == allowed(matcher)).all()
    half = grammar.matcher()
    for byte in answer[: len(answer) // 2]:
        half.accept(byte)
    assert (allowed(half) == masks[len(answer) // 2]).all()


def test_matchers_of_one_grammar_are_independent(byte_grammars: GrammarCompiler) -> None:
    grammar = byte_grammars.compile(YES_NO)
    one, other = grammar.matcher(), grammar.matcher()
    follow(one, b"ye")
    assert texts(other) == set(b"yn")


class TestAfter:
    def test_everything_is_allowed_before_the_marker(self, byte_grammars: GrammarCompiler) -> None:
        matcher = byte_grammars.compile(YES_NO).matcher(CLOSE)
        for byte in b"Well, <think> maybe </thin":
            assert matcher.mask() is None
            matcher.accept(byte)
        assert not matcher.is_finished
        follow(matcher, b"k>")
        assert texts(matcher) >= set(b"yn")
        assert ord("x") not in texts(matcher)

    @pytest.mark.parametrize("output", [b"</think>", b"<</think>", b"</</think>", b"</think</think>", b"</thin</think>"])
    def test_the_marker_is_found_wherever_it_starts(self, byte_grammars: GrammarCompiler, output: bytes) -> None:
        matcher = byte_grammars.compile(YES_NO).matcher(CLOSE)
        follow(matcher, output)
        assert ord("x") not in texts(matcher)

    def test_an_empty_line_may_follow_the_marker(self, byte_grammars: GrammarCompiler) -> None:
        matcher = byte_grammars.compile(YES_NO).matcher(CLOSE)
        assert follow(matcher, CLOSE + b"\n\nyes") == len(CLOSE) + 5
        assert matcher.is_finished

    def test_endless_whitespace_may_not_follow_the_marker(self, byte_grammars: GrammarCompiler) -> None:
        matcher = byte_grammars.compile(YES_NO).matcher(CLOSE)
        assert follow(matcher, CLOSE + b"\n" * 100) == len(CLOSE) + 4

    def test_whitespace_belongs_to_the_grammar_if_it_accepts_it(self, byte_grammars: GrammarCompiler) -> None:
        matcher = byte_grammars.compile(Regex(" yes")).matcher(CLOSE)
        assert follow(matcher, CLOSE + b" yes") == len(CLOSE) + 4
        assert texts(matcher) == {END}

    def test_a_token_cannot_extend_past_the_marker(self) -> None:
        runner = _Words(["<", "/think>", "/think>\n", "/think>no", "a", "yes", "x"])
        matcher = GrammarCompiler(runner).compile(YES_NO).matcher(CLOSE)
        assert matcher.mask() is None
        matcher.accept(runner.words.index("<"))
        mask = matcher.mask()
        assert mask is not None
        assert [word for word, may in zip(runner.words, mask, strict=True) if not may] == ["/think>no"]
        matcher.accept(runner.words.index("/think>\n"))
        mask = matcher.mask()
        assert mask is not None
        assert [word for word, may in zip(runner.words, mask, strict=True) if may] == ["yes"]

    def test_a_control_token_can_be_the_marker(self, smollm2: LlamaRunner, smollm2_grammars: GrammarCompiler) -> None:
        matcher = smollm2_grammars.compile(YES_NO).matcher(b"<|im_start|>")
        (start,) = smollm2.tokenize("<|im_start|>", special=True)
        matcher.accept(smollm2.tokenize("hello", special=False)[0])
        assert matcher.mask() is None
        matcher.accept(start)
        mask = matcher.mask()
        assert mask is not None
        assert not mask[smollm2.tokenize("hello", special=False)[0]]


class _Words(FakeRunner):
    """A vocabulary of whole words; the last one is the end token."""

    def __init__(self, words: list[str]) -> None:
        super().__init__()
        self.words = [*words, "<end>"]
        self.num_vocab = len(self.words)
        self.end_tokens = frozenset({len(words)})

    def token_bytes(self, token: int) -> bytes:
        return b"" if token in self.end_tokens else self.words[token].encode()

    def token_text(self, token: int) -> bytes:
        return self.words[token].encode()


def test_masks_are_read_only(byte_grammars: GrammarCompiler) -> None:
    """Matchers share masks, so a sampler must not change one."""
    grammar = byte_grammars.compile(JsonSchema({"const": 1}))
    matcher = grammar.matcher()
    follow(matcher, b"1")
    mask = matcher.mask()
    assert mask is not None
    with pytest.raises(ValueError, match="read-only"):
        mask[0] = True


def test_gbnf_json_and_lark_agree(byte_grammars: GrammarCompiler) -> None:
    spellings: list[Constraint] = [
        Gbnf('root ::= "yes" | "no"'),
        Lark('start: "yes" | "no"'),
        JsonSchema({"enum": ["yes", "no"]}),
        YES_NO,
    ]
    first = [texts(byte_grammars.compile(spelling).matcher()) for spelling in spellings]
    assert first == [set(b"yn"), set(b"yn"), set(b'"'), set(b"yn")]
