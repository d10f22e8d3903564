"""LlamaEmbedder with all-MiniLM-L6-v2, compared with the published weights in numpy, and with tiny generated models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from services.protocol.engine import EngineSettings, Pooling
from services.worker.engine.llama_embedder import LlamaEmbedder
from services.worker.engine.runner import ModelUnusable
from tests.encoders import SPECIAL, Array, Shape, Weights, WordPiece, last_hidden, random_weights, rank_score, unit, write_bert
from tests.ggufs import write_gguf
from tests.minilm import MiniLM

TEXTS = [
    "hello world",
    "The quick brown fox jumps over the lazy dog.",
    "Wie spät ist es? Fünf nach zwölf!",
    "naïve café, Ωmega, 日本語 and a 🌳",
    "unbelievable antidisestablishmentarianism",
    "don't — “quotes” … 3.14 % of $5 ~ `code` ^ + = < > |",
    "привет мир",
    "İstanbul ĞÜŞ ﬁ ﬂ １２３",
    "tab\tand\nnew line\r\n  and \x00 control \x07 characters",
    "x" * 150,
    "",
    " ".join(f"sentence number {number} of a long text." for number in range(60)),
]

VOCABULARY = [*SPECIAL, *"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
TINY = Shape(layers=2, width=32, heads=2, positions=64)


@pytest.fixture(scope="module")
def embedder(minilm_path: Path) -> Iterator[LlamaEmbedder]:
    embedder = LlamaEmbedder(minilm_path, EngineSettings(), pooling="mean")
    yield embedder
    embedder.close()


@pytest.fixture(scope="module")
def tiny_weights() -> Weights:
    return random_weights(len(VOCABULARY), TINY)


def tiny(path: Path, weights: Weights, pooling: Pooling) -> LlamaEmbedder:
    kind = gguf.PoolingType[pooling.upper()]
    write_bert(path / "tiny.gguf", weights, VOCABULARY, TINY, pooling=kind)
    return LlamaEmbedder(path / "tiny.gguf", EngineSettings(batch_tokens=96), pooling=pooling)


def test_texts_become_the_tokens_of_the_reference(embedder: LlamaEmbedder, minilm: MiniLM) -> None:
    for text in TEXTS:
        assert embedder.tokenize(text, framed=True, special=True) == minilm.tokenizer.encode(text), text


def test_control_tokens_are_parsed_only_if_special(embedder: LlamaEmbedder) -> None:
    assert 102 in embedder.tokenize("a [SEP] b", framed=False, special=True)
    assert 102 not in embedder.tokenize("a [SEP] b", framed=False, special=False)


def test_vectors_match_the_reference(embedder: LlamaEmbedder, minilm: MiniLM) -> None:
    for text in TEXTS:
        ids = embedder.tokenize(text, framed=True, special=True)[: embedder.context_tokens]
        (row,) = embedder.embed([ids])
        assert row.shape == (384,)
        assert unit(row) @ minilm.embed_ids(ids) > 0.9999, text


def test_a_vector_does_not_depend_on_the_rest_of_the_batch(embedder: LlamaEmbedder) -> None:
    inputs = [embedder.tokenize(text, framed=True, special=True) for text in TEXTS[:-1]]
    together = embedder.embed(inputs)
    for ids, row in zip(inputs, together, strict=True):
        assert unit(embedder.embed([ids])[0]) @ unit(row) > 0.9999


def test_a_batch_holds_max_sequences_inputs(embedder: LlamaEmbedder) -> None:
    rows = embedder.embed([[101, 102]] * embedder.max_sequences)
    assert rows.shape == (embedder.max_sequences, 384)
    assert np.allclose(rows, rows[0], atol=1e-3)


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ("mean", lambda hidden: hidden.mean(axis=0)),
        ("cls", lambda hidden: hidden[0]),
        ("last", lambda hidden: hidden[-1]),
    ],
)
def test_pooling_matches_the_reference(
    tmp_path: Path, tiny_weights: Weights, pooling: Pooling, expected: Callable[[Array], Array]
) -> None:
    embedder, ids = tiny(tmp_path, tiny_weights, pooling), WordPiece(VOCABULARY).encode("some words here")
    rows = embedder.embed([ids[:4], ids])
    for row, tokens in zip(rows, [ids[:4], ids], strict=True):
        assert unit(row) @ unit(expected(last_hidden(tiny_weights, TINY, tokens))) > 0.999
    embedder.close()


def test_rank_pooling_gives_the_score_of_the_classifier(tmp_path: Path, tiny_weights: Weights) -> None:
    embedder, tokenizer = tiny(tmp_path, tiny_weights, "rank"), WordPiece(VOCABULARY)
    inputs = [tokenizer.encode(text) for text in ("a", "quite another text", "zzz")]
    rows = embedder.embed(inputs)
    assert rows.shape == (3, 1)
    assert rows[:, 0] == pytest.approx(
        [rank_score(tiny_weights, last_hidden(tiny_weights, TINY, ids)) for ids in inputs], abs=0.01
    )
    assert np.ptp(rows) > 0.1
    embedder.close()


def test_a_decoder_keeps_nothing_between_batches(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", context_length=64)
    embedder = LlamaEmbedder(path, EngineSettings(batch_tokens=64), pooling="last")
    ids = embedder.tokenize("abc", framed=True, special=True)
    assert ids[0] == embedder.framing.bos
    first = embedder.embed([ids])
    for _ in range(40):  # more tokens than the cache has cells
        again = embedder.embed([ids[:2], ids, ids[1:]])
    assert unit(again[1]) @ unit(first[0]) > 0.9999
    embedder.close()


def test_the_context_limits_an_input_and_a_batch_holds_at_least_one(minilm_path: Path) -> None:
    embedder = LlamaEmbedder(minilm_path, EngineSettings(context_tokens=4096, batch_tokens=16), pooling="mean")
    assert embedder.context_tokens == 512
    assert embedder.embed([[101, *[2000] * 510, 102]]).shape == (1, 384)
    embedder.close()


def test_an_error_in_loading_gives_the_reason(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"no model")
    with pytest.raises(ModelUnusable, match="magic"):
        LlamaEmbedder(tmp_path / "broken.gguf", EngineSettings(), pooling="mean")
