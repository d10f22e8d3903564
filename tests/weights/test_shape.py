"""The numbers in a GGUF's metadata: invalid ones are refused, and memory can be computed from the others."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from services.protocol.engine import EngineSettings
from services.protocol.errors import InvalidModelFile
from services.weights import gguf
from services.weights.memory import memory_needed
from services.weights.pooling import pooling_of
from services.weights.shape import ModelShape
from tests.ggufs import ARCHITECTURE, entry, header, tensor, text

LLAMA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 30,
    "llama.embedding_length": 576,
    "llama.attention.head_count": 9,
    "llama.attention.head_count_kv": 3,
}


@pytest.mark.parametrize(
    ("key", "value", "limits"),
    [
        ("llama.block_count", ["a", "b"], "between 1 and 10,000"),
        ("llama.block_count", "30", "between 1 and 10,000"),
        ("llama.block_count", 0, "between 1 and 10,000"),
        ("llama.block_count", 30.0, "between 1 and 10,000"),
        ("llama.block_count", True, "between 1 and 10,000"),
        ("llama.block_count", 2**64 - 1, "between 1 and 10,000"),
        ("llama.block_count", [[30]], "between 1 and 10,000"),
        ("llama.embedding_length", -1, "between 1 and 16,777,216"),
        ("llama.attention.head_count", math.nan, "between 0 and 65,536"),
        ("llama.attention.head_count_kv", None, "between 0 and 65,536"),
        ("llama.attention.head_count_kv", [1, None], "between 0 and 65,536"),
        ("llama.attention.key_length", 10**100, "between 0 and 16,777,216"),
        ("llama.context_length", 2**31, "between 0 and 2,147,483,647"),
        ("llama.vocab_size", {"a": 1}, "between 0 and 67,108,864"),
        ("llama.attention.sliding_window", math.inf, "between 0 and 2,147,483,647"),
        ("llama.pooling_type", "mean", "between -1 and 1,000"),
    ],
)
def test_an_invalid_number_is_refused_with_its_limits(key: str, value: object, limits: str) -> None:
    with pytest.raises(InvalidModelFile) as refused:
        ModelShape.of({**LLAMA, key: value})
    assert refused.value.message == f"has a {key} that is not a whole number {limits}"


@pytest.mark.parametrize("architecture", [7, ["llama"], "a b", "x" * 65, "../x"])
def test_an_invalid_architecture_is_refused(architecture: object) -> None:
    with pytest.raises(InvalidModelFile, match="has a general.architecture that is not a name"):
        ModelShape.of({"general.architecture": architecture})


def test_an_invalid_flag_is_refused() -> None:
    with pytest.raises(InvalidModelFile, match=r"has a llama\.attention\.causal that is neither true nor false"):
        ModelShape.of({**LLAMA, "llama.attention.causal": "no"})


KEYS = st.sampled_from(
    [
        "llama.block_count",
        "llama.context_length",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.head_count_kv",
        "llama.attention.key_length",
        "llama.attention.value_length",
        "llama.attention.sliding_window",
        "llama.attention.causal",
        "llama.pooling_type",
        "llama.vocab_size",
        "tokenizer.ggml.tokens",
        "tokenizer.chat_template",
        "general.alignment",
        "general.file_type",
        "general.type",
    ]
)
_FORMATS = {0: "B", 1: "b", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def _scalars(kind: int) -> st.SearchStrategy[bytes]:
    size = struct.calcsize(_FORMATS[kind])
    return st.binary(min_size=size, max_size=size) | st.integers(0, 127).map(lambda n: n.to_bytes(size, "little"))


_ARRAYS = st.sampled_from(sorted(_FORMATS)).flatmap(
    lambda kind: st.lists(_scalars(kind), max_size=40).map(
        lambda values: (9, struct.pack("<IQ", kind, len(values)) + b"".join(values))
    )
)
VALUES = st.one_of(
    st.sampled_from(sorted(_FORMATS)).flatmap(lambda kind: st.tuples(st.just(kind), _scalars(kind))),
    st.text(max_size=30).map(lambda value: (8, text(value))),
    st.lists(st.text(max_size=4), max_size=40).map(lambda s: (9, struct.pack("<IQ", 8, len(s)) + b"".join(map(text, s)))),
    _ARRAYS,
)
#: The header of a real model; tests replace some entries.
REAL = {
    "llama.block_count": (4, struct.pack("<I", 2)),
    "llama.context_length": (4, struct.pack("<I", 2048)),
    "llama.embedding_length": (4, struct.pack("<I", 64)),
    "llama.feed_forward_length": (4, struct.pack("<I", 128)),
    "llama.attention.head_count": (4, struct.pack("<I", 4)),
    "llama.attention.head_count_kv": (4, struct.pack("<I", 2)),
    "llama.vocab_size": (4, struct.pack("<I", 32)),
}
NAN_HEADS = {"llama.attention.head_count_kv": (6, struct.pack("<f", math.nan))}
LAYERS_OF_STRINGS = {"llama.block_count": (9, struct.pack("<IQ", 8, 2) + text("a") + text("b"))}


def read_or_refusal(path: Path) -> gguf.Gguf | str:
    try:
        return gguf.read(path)
    except InvalidModelFile as error:
        return error.message


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changed=st.dictionaries(KEYS, VALUES, min_size=1, max_size=4), slots=st.integers(1, 256))
@example(changed=NAN_HEADS, slots=8)
@example(changed=LAYERS_OF_STRINGS, slots=8)
def test_a_header_is_refused_or_gives_a_finite_memory(
    tmp_path: Path, changed: dict[str, tuple[int, bytes]], slots: int
) -> None:
    entries = [entry(key, *value) for key, value in {**REAL, **changed}.items()]
    path = tmp_path / "model.gguf"
    path.write_bytes(header(ARCHITECTURE, *entries, tensors=(tensor("w", (32, 2)),)) + bytes(4096))
    model = read_or_refusal(path)
    if isinstance(model, str):
        assert 0 < len(model) < 300
        return
    for pooling in ("", "last"):
        need = memory_needed(model.shape, tensor_bytes=model.tensor_bytes, engine=EngineSettings(slots=slots, pooling=pooling))
        assert math.isfinite(need.total)
        assert need.total > 0
    assert pooling_of(model.shape) in ("none", "mean", "cls", "last", "rank")
