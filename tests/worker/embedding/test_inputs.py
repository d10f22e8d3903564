"""From requests to token ids, with the framing of different vocabularies."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from services.protocol.engine import Pooling
from services.protocol.errors import BadRequest, ContextLengthExceeded, UnsupportedCapability
from services.protocol.messages import EmbedRequest, Overflow, RerankRequest
from services.worker.embedding.inputs import InputBuilder
from services.worker.engine.embedder import Framing
from services.worker.engine.fake_embedder import CLS, SEP, FakeEmbedder

EOS = 250
ROBERTA = Framing(bos=CLS, eos=EOS, sep=SEP, add_bos=True, add_eos=True, add_sep=True)


class Vocabulary(FakeEmbedder):
    """The fake's byte vocabulary with another framing."""

    def __init__(self, framing: Framing, *, pooling: Pooling = "mean", context_tokens: int = 512) -> None:
        super().__init__(pooling=pooling, context_tokens=context_tokens)
        self.framing = framing

    def tokenize(self, text: str, *, framed: bool, special: bool) -> list[int]:
        ids = list(text.encode())
        if not framed:
            return ids
        opening = [self.framing.bos] if self.framing.add_bos and self.framing.bos is not None else []
        closing = [self.framing.eos] if self.framing.add_eos and self.framing.eos is not None else []
        return [*opening, *ids, *closing]


def embed(*inputs: str | tuple[int, ...], overflow: Overflow = "refuse") -> EmbedRequest:
    return EmbedRequest(id="r", version="v", gateway="g", caller="c", inputs=inputs, overflow=overflow)


def rerank(query: str, *documents: str, overflow: Overflow = "refuse") -> RerankRequest:
    return RerankRequest(id="r", version="v", gateway="g", caller="c", query=query, documents=documents, overflow=overflow)


def small(*, pooling: Pooling = "mean") -> InputBuilder:
    return InputBuilder(FakeEmbedder(context_tokens=6, pooling=pooling))


def ids(text: str) -> list[int]:
    return list(text.encode())


def test_texts_are_framed_and_token_ids_are_unchanged() -> None:
    assert small().build(embed("ab", (7, 8), "")) == [[CLS, *ids("ab"), SEP], [7, 8], [CLS, SEP]]


def test_too_long_an_input_is_refused_in_ollamas_words() -> None:
    with pytest.raises(
        ContextLengthExceeded,
        match="^the input length exceeds the context length: an input has 7 tokens, and the context holds 6",
    ):
        small().build(embed("short", "abcde"))


def test_a_long_input_is_truncated_before_its_closing_token() -> None:
    assert small().build(embed("abcdefgh", overflow="truncate")) == [[CLS, *ids("abcd"), SEP]]
    assert small().build(embed(tuple(range(10)), overflow="truncate")) == [[0, 1, 2, 3, 4, 5]]


def test_truncation_keeps_the_framing() -> None:
    only_bos = Framing(bos=CLS, eos=EOS, sep=None, add_bos=True, add_eos=False, add_sep=False)
    builder = InputBuilder(Vocabulary(only_bos, context_tokens=4))
    assert builder.build(embed("abcdef", overflow="truncate")) == [[CLS, *ids("abc")]]
    only_eos = Framing(bos=None, eos=EOS, sep=None, add_bos=False, add_eos=True, add_sep=False)
    builder = InputBuilder(Vocabulary(only_eos, context_tokens=4))
    assert builder.build(embed("abcdef", overflow="truncate")) == [[*ids("abc"), EOS]]


def test_an_empty_text_becomes_a_token_if_the_framing_adds_none() -> None:
    bare = Framing(bos=None, eos=None, sep=None, add_bos=False, add_eos=False, add_sep=False)
    assert InputBuilder(Vocabulary(bare)).build(embed("")) == [ids("\n")]


@pytest.mark.parametrize("tokens", [(), (-1,), (258,), (1, 2, 99999)])
def test_token_ids_outside_the_vocabulary_are_refused(tokens: tuple[int, ...]) -> None:
    with pytest.raises(BadRequest, match=r"^input: "):
        small().build(embed(tokens))


@pytest.mark.parametrize(
    ("framing", "expected"),
    [
        (ROBERTA, [CLS, *ids("q"), EOS, SEP, *ids("doc"), EOS]),
        (FakeEmbedder.framing, [CLS, *ids("q"), SEP, *ids("doc"), SEP]),
        (
            Framing(bos=CLS, eos=None, sep=SEP, add_bos=True, add_eos=True, add_sep=False),
            [CLS, *ids("q"), SEP, *ids("doc"), SEP],
        ),
        (Framing(None, None, None, add_bos=True, add_eos=True, add_sep=True), [*ids("q"), *ids("doc")]),
    ],
    ids=["roberta", "bert", "sep for eos", "nothing"],
)
def test_a_pair_is_framed_by_the_vocabularys_rules(framing: Framing, expected: Sequence[int]) -> None:
    builder = InputBuilder(Vocabulary(framing, pooling="rank"))
    assert builder.build(rerank("q", "doc")) == [expected]


def test_a_long_document_is_truncated_but_not_the_query() -> None:
    builder = InputBuilder(Vocabulary(ROBERTA, pooling="rank", context_tokens=8))
    assert builder.build(rerank("q", "document", "d", overflow="truncate")) == [
        [CLS, *ids("q"), EOS, SEP, *ids("doc"), EOS],
        [CLS, *ids("q"), EOS, SEP, *ids("d"), EOS],
    ]
    with pytest.raises(ContextLengthExceeded):
        builder.build(rerank("q", "document"))
    with pytest.raises(ContextLengthExceeded):
        builder.build(rerank("a query", "document", overflow="truncate"))


def test_a_models_rerank_template_frames_the_pair() -> None:
    template = "<q>{query}<d>{document}<end>"
    framing = Framing(CLS, None, SEP, add_bos=True, add_eos=False, add_sep=True, rerank_template=template)
    builder = InputBuilder(Vocabulary(framing, pooling="rank", context_tokens=20))
    assert builder.build(rerank("why", "so")) == [ids("<q>why<d>so<end>")]
    assert builder.build(rerank("why", "therefore", overflow="truncate")) == [ids("<q>why<d>theref<end>")]
    with pytest.raises(ContextLengthExceeded):
        builder.build(rerank("why", "therefore"))
    with pytest.raises(ContextLengthExceeded):
        builder.build(rerank("a much longer query", "x", overflow="truncate"))


def test_placeholders_in_a_query_are_plain_text() -> None:
    framing = Framing(None, None, None, add_bos=False, add_eos=False, add_sep=False, rerank_template="{query}|{document}")
    builder = InputBuilder(Vocabulary(framing, pooling="rank"))
    assert builder.build(rerank("{document}", "{query}")) == [ids("{document}|{query}")]


class ControlVocabulary(Vocabulary):
    """A vocabulary with the control token `<end>`."""

    control_texts: tuple[str, ...] = ("<end>",)

    def tokenize(self, text: str, *, framed: bool, special: bool) -> list[int]:
        pieces = text.split("<end>") if special else [text]
        return [id for index, piece in enumerate(pieces) for id in [*[SEP][: min(index, 1)], *piece.encode()]]


def test_queries_and_documents_hold_no_control_tokens() -> None:
    template = "{query}<end>{document}<end>"
    framing = Framing(None, None, None, add_bos=False, add_eos=False, add_sep=False, rerank_template=template)
    builder = InputBuilder(ControlVocabulary(framing, pooling="rank"))
    assert builder.build(rerank("a<end>b", "<end>")) == [[*b"a<end>b", SEP, *b"<end>", SEP]]
    assert builder.build(rerank("a<e", "d>")) == [[*b"a<e", SEP, *b"d>", SEP]]


def test_a_model_refuses_what_it_does_not_support() -> None:
    with pytest.raises(UnsupportedCapability, match="does not rank"):
        small().build(rerank("q", "d"))
    with pytest.raises(UnsupportedCapability, match="does not make embeddings"):
        small(pooling="rank").build(embed("a"))
