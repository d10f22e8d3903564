"""The GGUF reader: its results for real files, and that no bytes can harm it."""

from __future__ import annotations

import math
import struct
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter, LlamaFileType
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from services.protocol.errors import InvalidModelFile
from services.weights import gguf
from tests.ggufs import ARCHITECTURE, HEAD, entry, header, tensor, text, write_gguf


def read(tmp_path: Path, data: bytes) -> gguf.Gguf:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    return gguf.read(path)


def refusal(tmp_path: Path, data: bytes) -> str:
    with pytest.raises(InvalidModelFile) as refused:
        read(tmp_path, data)
    return refused.value.message


def test_a_real_model_is_read(smollm2_path: Path) -> None:
    model = gguf.read(smollm2_path)
    assert (model.architecture, model.quantization) == ("llama", "Q4_1")
    assert model.parameter_count == 134_515_008
    assert model.metadata["llama.context_length"] == 8192
    assert model.metadata["general.languages"] == ["en"]
    assert "tokenizer.ggml.tokens" not in model.metadata
    assert model.metadata["llama.vocab_size"] == 49152
    assert "add_generation_prompt" in model.template


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf")


def test_the_result_agrees_with_the_gguf_package(tiny_gguf: Path) -> None:
    theirs, ours = GGUFReader(tiny_gguf), gguf.read(tiny_gguf)
    assert ours.tensor_count == len(theirs.tensors)
    assert ours.parameter_count == sum(int(tensor.n_elements) for tensor in theirs.tensors)
    assert ours.tensor_bytes == sum(int(tensor.n_bytes) for tensor in theirs.tensors)
    assert ours.quantization == "F32"
    counted = ours.metadata.pop("llama.vocab_size")
    assert counted == len(theirs.fields["tokenizer.ggml.tokens"].data)
    for key, value in ours.metadata.items():
        assert theirs.fields[key].contents() == pytest.approx(value)


def test_a_large_vocabulary_is_read_quickly(tmp_path: Path) -> None:
    path = tmp_path / "large.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_token_list([f"token{number}" for number in range(262_144)])
    writer.add_tensor("weight", np.zeros((2, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    started = time.perf_counter()
    assert gguf.read(path).parameter_count == 64
    assert time.perf_counter() - started < 1.0


@pytest.mark.parametrize(("file_type", "name"), [(LlamaFileType.MOSTLY_Q4_K_M, "Q4_K_M"), (LlamaFileType.MOSTLY_F16, "F16")])
def test_the_file_type_names_the_quantization(tmp_path: Path, file_type: LlamaFileType, name: str) -> None:
    data = header(ARCHITECTURE, entry("general.file_type", 4, struct.pack("<I", file_type)))
    assert read(tmp_path, data).quantization == name


def test_without_a_file_type_most_weights_determine_the_quantization(tmp_path: Path) -> None:
    tensors = (tensor("norm", (32,)), tensor("weight", (256, 8), kind=12, offset=128))
    data = header(ARCHITECTURE, tensors=tensors)
    assert read(tmp_path, data + bytes(4096)).quantization == "Q4_K"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a GGUF file"),
        (b"GG", "is not a GGUF file"),
        (b"PK\x03\x04" + bytes(100), "is not a GGUF file"),
        (b"GGUF", "is truncated"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(16), "version 1"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(16), "big-endian"),
        (HEAD + struct.pack("<QQ", 2**63, 1), "claims 9223372036854775808 tensors"),
        (HEAD + struct.pack("<QQ", 0, 2**40), "metadata entries"),
        (HEAD + struct.pack("<QQ", 2**64 - 1, 2**64 - 1), "claims 18446744073709551615 tensors"),
        (header(entry("x", 8, struct.pack("<Q", 2**62))), "is truncated"),
        (HEAD + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 2**62), "claims a name of"),
        (header(entry("", 4, bytes(4))), "claims a name of 0 bytes"),
        (header(entry("x" * 256, 4, bytes(4))), "claims a name of 256 bytes"),
        (header(ARCHITECTURE, tensors=(tensor("", (1,)),)), "claims a name of 0 bytes"),
        (header(*(entry(str(at), 8, text("x" * 250_000)) for at in range(20))), "of metadata besides its vocabulary"),
        (header(*(entry(str(at), 9, struct.pack("<IQ", 0, 1024) + bytes(1024)) for at in range(200))), "of metadata besides"),
        (header(ARCHITECTURE, entry("general.alignment", 8, text("9" * 200_000))), "not a power of two up to 1,048,576"),
        (header(ARCHITECTURE, entry("general.alignment", 10, struct.pack("<Q", 2**63))), "not a power of two"),
        (header(ARCHITECTURE, tensors=(tensor("w", (2**63, 2**63, 2**63, 2**63)),)), "end at byte 2^64 or later"),
        (header(entry("x", 9, struct.pack("<IQ", 8, 2**60))), "is truncated"),
        (header(entry("x", 9, struct.pack("<IQ", 0, 2**64 - 1))), "is truncated"),
        (header(entry("x", 9, struct.pack("<IQ", 9, 1))), "array of the unknown type 9"),
        (header(entry("x", 77, b"")), "unknown type 77"),
        (header(ARCHITECTURE, ARCHITECTURE), "twice"),
        (header(), "has no general.architecture"),
        (header(ARCHITECTURE, entry("general.alignment", 4, struct.pack("<I", 3))), "not a power of two"),
        (header(ARCHITECTURE, tensors=(tensor("w", (1,) * 5),)), "5 dimensions"),
        (header(ARCHITECTURE, tensors=(tensor("w", (32,), kind=4),)), "unknown type 4"),
        (header(ARCHITECTURE, tensors=(tensor("w", (33,), kind=12),)), "not a multiple of 256"),
        (header(ARCHITECTURE, tensors=(tensor("w", (32,), offset=7),)), "which is not aligned to"),
        (header(ARCHITECTURE, tensors=(tensor("w", (2**40, 2**40)),)), "is truncated: its tensors end"),
    ],
)
def test_an_invalid_file_is_refused_with_the_reason(tmp_path: Path, data: bytes, message: str) -> None:
    assert message in refusal(tmp_path, data)


def test_no_refusal_is_longer_than_a_sentence(tmp_path: Path) -> None:
    huge = header(ARCHITECTURE, tensors=(tensor("w", (2**64 - 1,) * 4),))
    assert len(refusal(tmp_path, huge)) < 200


def test_tensors_that_overlap_are_refused(tmp_path: Path) -> None:
    """Each tensor lies within the file, but together they claim more weights than there are bytes."""
    data = header(ARCHITECTURE, tensors=tuple(tensor(f"w{at}", (64,)) for at in range(1000))) + bytes(512)
    assert "overlap" in refusal(tmp_path, data)


def test_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    data = header(ARCHITECTURE, tensors=(tensor("w", (32,)), tensor("w", (32,), offset=128))) + bytes(512)
    assert "has the tensor 'w' twice" in refusal(tmp_path, data)


def test_tensors_with_a_gap_are_refused(tmp_path: Path) -> None:
    data = header(ARCHITECTURE, tensors=(tensor("a", (32,)), tensor("b", (32,), offset=160))) + bytes(512)
    assert "tensor 'b' lies at 160, and the one before it ends at 128" in refusal(tmp_path, data)


def test_values_per_layer_are_kept(tmp_path: Path) -> None:
    heads = struct.pack("<IQ", 4, 80) + struct.pack("<80I", *([1] * 40 + [2] * 40))
    data = header(
        ARCHITECTURE,
        entry("llama.block_count", 4, struct.pack("<I", 80)),
        entry("llama.attention.head_count_kv", 9, heads),
        entry("llama.attention.key_length", 4, struct.pack("<I", 64)),
    )
    assert read(tmp_path, data).shape.key_elements == (40 + 80) * 64


def test_a_file_truncated_anywhere_is_refused(tmp_path: Path, tiny_gguf: Path) -> None:
    whole = tiny_gguf.read_bytes()
    for length in [*range(0, 600, 7), len(whole) // 2, len(whole) - 1]:
        assert "truncated" in refusal(tmp_path, whole[:length]) or length < 4


def test_metadata_can_be_stored_as_json(tmp_path: Path) -> None:
    data = header(
        ARCHITECTURE,
        entry("nan", 6, struct.pack("<f", math.nan)),
        entry("text", 8, struct.pack("<Q", 3) + b"a\0\xff"),
        entry("long", 8, text("x" * 300_000)),
    )
    metadata = read(tmp_path, data).metadata
    assert metadata["nan"] is None
    assert metadata["text"] == "a\ufffd\ufffd"
    assert "long" not in metadata


VALUES = st.one_of(
    st.integers(0, 2**64 - 1).map(lambda value: (10, struct.pack("<Q", value))),
    st.floats(width=32).map(lambda value: (6, struct.pack("<f", value))),
    st.text(max_size=20).map(lambda value: (8, text(value))),
    st.lists(st.text(max_size=4), max_size=40).map(
        lambda values: (9, struct.pack("<IQ", 8, len(values)) + b"".join(text(value) for value in values))
    ),
)
ENTRIES = st.dictionaries(st.text(max_size=20), VALUES, max_size=8).map(
    lambda table: [ARCHITECTURE, *(entry(key, *value) for key, value in table.items() if key != "general.architecture")]
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    entries=ENTRIES, cut=st.integers(0, 400), flips=st.lists(st.tuples(st.integers(0, 5000), st.binary(min_size=1, max_size=8)))
)
@example(entries=[], cut=0, flips=[])
def test_any_bytes_are_a_model_or_refused(
    tmp_path: Path, entries: list[bytes], cut: int, flips: list[tuple[int, bytes]]
) -> None:
    data = bytearray(header(*entries, tensors=(tensor("a", (32, 2)), tensor("b", (256,), kind=12, offset=256))) + bytes(512))
    for at, replacement in flips:
        at %= len(data)
        data[at : at + len(replacement)] = replacement
    tracemalloc.start()
    with suppress(InvalidModelFile):
        assert read(tmp_path, bytes(data[: len(data) - cut])).tensor_bytes <= len(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * 1024**2


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rest=st.binary(max_size=200))
def test_noise_after_the_magic_is_refused_or_read(tmp_path: Path, rest: bytes) -> None:
    with suppress(InvalidModelFile):
        read(tmp_path, HEAD + rest)


def test_a_huge_file_with_false_lengths_is_refused_quickly(tmp_path: Path) -> None:
    """A sparse file: every length in it is within the size of the file."""
    path = tmp_path / "huge.gguf"
    path.write_bytes(HEAD + struct.pack("<QQ", 0, 1) + text("x") + struct.pack("<IIQ", 9, 8, 2**33))
    with path.open("r+b") as file:
        file.truncate(2**40)
    started = time.perf_counter()
    with pytest.raises(InvalidModelFile, match="header of more than"):
        gguf.read(path)
    assert time.perf_counter() - started < 30
