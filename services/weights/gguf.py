"""Reads the header of a GGUF: its key-value table and its tensor descriptions. The file is untrusted.

The `gguf` package creates a numpy view of every array element, which takes 9.9 s for Gemma 3's 262,144 tokens; skipping over
them takes 0.07 s. It also trusts the lengths that it reads. This reader checks each length against the size of the file, and
the constants below limit its time and memory. If something is wrong, InvalidModelFile names the problem.
"""

from __future__ import annotations

import math
import os
import struct
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec

from services.protocol.errors import InvalidModelFile
from services.weights.shape import ModelShape

#: Vocabularies make headers long: Gemma's header has 6 MB, one with an embedded tokenizer.json about 40 MB.
HEADER_LIMIT_BYTES = 64 * 1024**2
ENTRY_LIMIT = 4_096
TENSOR_LIMIT = 100_000
#: llama.cpp accepts tensor names of up to 63 bytes; keys are hardly longer.
NAME_LIMIT_BYTES = 255
METADATA_LIMIT_BYTES = 4 * 1024**2
#: Longer arrays (vocabularies, merges) and strings (tokenizer.json) are skipped and left out of the metadata. Arrays of numbers
#: have a higher limit, because they can hold one number per layer.
ARRAY_KEPT_ELEMENTS = 16
ARRAY_KEPT_NUMBERS = 1024
STRING_KEPT_BYTES = 256 * 1024
ALIGNMENT_LIMIT = 2**20

#: How many bytes one element of a kept array counts towards METADATA_LIMIT_BYTES.
_ELEMENT_BYTES = 32

_WINDOW_BYTES = 1024**2
_MAX_DIMENSIONS = 4

_STRING, _ARRAY = 8, 9
_SCALARS = {
    code: struct.Struct(f"<{kind}")
    for code, kind in {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}.items()
}
_U32 = _SCALARS[4]
_U64 = _SCALARS[10]


class _Skipped(NamedTuple):
    """Placeholder for a skipped value: an array of `length` elements, or a string, with length 1."""

    length: int


class TensorType(NamedTuple):
    """How ggml stores a tensor: in blocks of `elements` elements and `size` bytes."""

    name: str
    elements: int
    size: int


_TENSOR_TYPES = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    9: TensorType("Q8_1", 32, 40),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    15: TensorType("Q8_K", 256, 292),
    16: TensorType("IQ2_XXS", 256, 66),
    17: TensorType("IQ2_XS", 256, 74),
    18: TensorType("IQ3_XXS", 256, 98),
    19: TensorType("IQ1_S", 256, 50),
    20: TensorType("IQ4_NL", 32, 18),
    21: TensorType("IQ3_S", 256, 110),
    22: TensorType("IQ2_S", 256, 82),
    23: TensorType("IQ4_XS", 256, 136),
    24: TensorType("I8", 1, 1),
    25: TensorType("I16", 1, 2),
    26: TensorType("I32", 1, 4),
    27: TensorType("I64", 1, 8),
    28: TensorType("F64", 1, 8),
    29: TensorType("IQ1_M", 256, 56),
    30: TensorType("BF16", 1, 2),
    34: TensorType("TQ1_0", 256, 54),
    35: TensorType("TQ2_0", 256, 66),
    39: TensorType("MXFP4", 32, 17),
    40: TensorType("NVFP4", 64, 36),
    41: TensorType("Q1_0", 128, 18),
}

# llama.cpp's llama_ftype.
_FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4_MOE",
    39: "NVFP4",
    40: "Q1_0",
}


class Gguf(msgspec.Struct, frozen=True):
    """The header of a GGUF.

    `metadata` is the key-value table without long arrays and strings. It is safe for JSON: no NUL characters, and None for
    numbers that are not finite. If the file has no `<arch>.vocab_size`, the tokens are counted. `shape` has the values that
    decide how the model is loaded. `tensor_bytes` is the size of the weights.
    """

    architecture: str
    shape: ModelShape
    metadata: dict[str, Any]
    tensor_count: int
    parameter_count: int
    tensor_bytes: int
    quantization: str

    @property
    def template(self) -> str:
        template = self.metadata.get("tokenizer.chat_template")
        return template if isinstance(template, str) else ""


def read(path: Path) -> Gguf:
    """Reads the header of a GGUF. Raises InvalidModelFile if the file is not a complete, valid GGUF of a model."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        return _read(_Header(file, size), size)


def _read(header: _Header, size: int) -> Gguf:
    tensor_count, entry_count = _read_preamble(header)
    metadata = _read_metadata(header, entry_count)
    shape = ModelShape.of(metadata)
    if not shape.architecture:
        raise InvalidModelFile("has no general.architecture")
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= ALIGNMENT_LIMIT or alignment & (alignment - 1):
        raise InvalidModelFile(f"has a general.alignment that is not a power of two up to {ALIGNMENT_LIMIT:,}")
    weights = _Weights(alignment)
    for _ in range(tensor_count):
        weights.add(header)
    weights.check(start=-(-header.position // alignment) * alignment, size=size)
    return Gguf(
        architecture=shape.architecture,
        shape=shape,
        metadata=metadata,
        tensor_count=tensor_count,
        parameter_count=weights.elements,
        tensor_bytes=weights.sizes.total(),
        quantization=_quantization(metadata, weights.sizes),
    )


def _read_preamble(header: _Header) -> tuple[int, int]:
    """Returns the number of tensors and the number of metadata entries that follow."""
    if header.size < 4 or header.take(4) != b"GGUF":
        raise InvalidModelFile("is not a GGUF file")
    version = header.number(_U32)
    if version & 0xFFFF == 0:
        raise InvalidModelFile("is a big-endian GGUF file, which this machine cannot run")
    if version not in (2, 3):
        raise InvalidModelFile(f"is a GGUF file of version {version}; versions 2 and 3 are supported")
    tensor_count, entry_count = header.number(_U64), header.number(_U64)
    if tensor_count > TENSOR_LIMIT or entry_count > ENTRY_LIMIT:
        raise InvalidModelFile(
            f"claims {tensor_count} tensors and {entry_count} metadata entries; "
            f"at most {TENSOR_LIMIT:,} and {ENTRY_LIMIT:,} are read"
        )
    return tensor_count, entry_count


def _read_metadata(header: _Header, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    vocabulary = 0
    seen: set[str] = set()
    for _ in range(count):
        key = header.name()
        header.keep(len(key))
        if key in seen:
            raise InvalidModelFile(f"has the metadata entry {_shown(key)} twice")
        seen.add(key)
        kind = header.number(_U32)
        value = header.array(key) if kind == _ARRAY else header.value(kind, key)
        if not isinstance(value, _Skipped):
            metadata[key] = value
        elif key == "tokenizer.ggml.tokens":
            vocabulary = value.length
    if vocabulary:
        metadata.setdefault(f"{metadata.get('general.architecture')}.vocab_size", vocabulary)
    return metadata


class _Weights:
    """Reads the tensor descriptions and adds up their sizes. Tensors must follow one another, as llama.cpp requires."""

    def __init__(self, alignment: int) -> None:
        self.elements = 0
        #: Bytes by tensor type.
        self.sizes: Counter[str] = Counter()
        self._alignment = alignment
        self._names: set[str] = set()
        self._end = 0

    def add(self, header: _Header) -> None:
        """Reads the description of one tensor."""
        name = header.name()
        if name in self._names:
            raise InvalidModelFile(f"has the tensor {_shown(name)} twice")
        self._names.add(name)
        dimensions = header.number(_U32)
        if dimensions > _MAX_DIMENSIONS:
            raise InvalidModelFile(f"tensor {_shown(name)} has {dimensions} dimensions")
        shape = [header.number(_U64) for _ in range(dimensions)]
        code, offset = header.number(_U32), header.number(_U64)
        kind = _TENSOR_TYPES.get(code)
        if kind is None:
            raise InvalidModelFile(f"tensor {_shown(name)} has the unknown type {code}")
        row = shape[0] if shape else 1
        if row % kind.elements:
            raise InvalidModelFile(
                f"tensor {_shown(name)} has rows of {row} elements, which is not a multiple of {kind.elements}"
            )
        if offset % self._alignment:
            raise InvalidModelFile(f"tensor {_shown(name)} is at offset {offset}, which is not aligned to {self._alignment}")
        expected = -(-self._end // self._alignment) * self._alignment
        if offset < expected:
            raise InvalidModelFile(f"tensor {_shown(name)} lies at {offset} and overlaps the one before it")
        if offset > expected:
            raise InvalidModelFile(f"tensor {_shown(name)} lies at {offset}, and the one before it ends at {_count(self._end)}")
        elements = math.prod(shape)
        size = elements // kind.elements * kind.size
        self.elements += elements
        self.sizes[kind.name] += size
        self._end = offset + size

    def check(self, *, start: int, size: int) -> None:
        if self._end and start + self._end > size:
            raise InvalidModelFile(f"is truncated: its tensors end at byte {_count(start + self._end)} and the file has {size}")


def _quantization(metadata: dict[str, Any], sizes: Counter[str]) -> str:
    """The type named by general.file_type, or else the tensor type with the most bytes."""
    file_type = metadata.get("general.file_type")
    if isinstance(file_type, int) and file_type in _FILE_TYPES:
        return _FILE_TYPES[file_type]
    return sizes.most_common(1)[0][0] if sizes else "unknown"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 64 else text[:61] + "...")


def _count(number: int) -> str:
    """The number as text, cut off at 2^64: products of 64-bit numbers can have a hundred digits."""
    return str(number) if number < 2**64 else "2^64 or later"


def _text(data: bytes) -> str:
    return data.decode(errors="replace").replace("\0", "\ufffd")


class _Header:
    """Reads the file front to back, with a window of it in memory."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.size = size
        self._file = file
        self._limit = min(size, HEADER_LIMIT_BYTES)
        self._window = b""
        self._start = 0
        self._at = 0
        self._kept = 0

    @property
    def position(self) -> int:
        return self._start + self._at

    @property
    def left(self) -> int:
        return self._limit - self.position

    def take(self, count: int) -> bytes:
        self._require(count)
        if self._at + count > len(self._window):
            self._refill(count)
        data = self._window[self._at : self._at + count]
        self._at += count
        return data

    def number(self, kind: struct.Struct) -> Any:
        return kind.unpack(self.take(kind.size))[0]

    def name(self) -> str:
        length = self.number(_U64)
        if not 1 <= length <= NAME_LIMIT_BYTES:
            raise InvalidModelFile(f"claims a name of {length} bytes; names have 1 to {NAME_LIMIT_BYTES}")
        return _text(self.take(length))

    def value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._string()
        if kind not in _SCALARS:
            raise InvalidModelFile(f"metadata entry {_shown(key)} has the unknown type {kind}")
        number = self.number(_SCALARS[kind])
        return number if math.isfinite(number) else None

    def array(self, key: str) -> Any:
        """Returns the elements, or _Skipped for a long array."""
        kind, count = self.number(_U32), self.number(_U64)
        if kind != _STRING and kind not in _SCALARS:
            raise InvalidModelFile(f"metadata entry {_shown(key)} is an array of the unknown type {kind}")
        kept = ARRAY_KEPT_ELEMENTS if kind == _STRING else ARRAY_KEPT_NUMBERS
        if count <= kept and not (count > ARRAY_KEPT_ELEMENTS and key.startswith("tokenizer.")):
            self.keep(count * _ELEMENT_BYTES)
            return [None if isinstance(value := self.value(kind, key), _Skipped) else value for _ in range(count)]
        if kind == _STRING:
            self._skip_strings(count)
        else:
            self._skip(count * _SCALARS[kind].size)
        return _Skipped(count)

    def _string(self) -> Any:
        """Returns the string, or _Skipped for a long one."""
        length = self.number(_U64)
        if length > STRING_KEPT_BYTES:
            self._skip(length)
            return _Skipped(1)
        self.keep(length)
        return _text(self.take(length))

    def keep(self, count: int) -> None:
        """Counts bytes of metadata that stay in memory. Raises InvalidModelFile above METADATA_LIMIT_BYTES."""
        self._kept += count
        if self._kept > METADATA_LIMIT_BYTES:
            raise InvalidModelFile(f"has more than {METADATA_LIMIT_BYTES} bytes of metadata besides its vocabulary")

    def _require(self, count: int) -> None:
        if count > self.left:
            if self._limit < self.size:
                raise InvalidModelFile(f"has a header of more than {HEADER_LIMIT_BYTES} bytes")
            raise InvalidModelFile(f"is truncated: the header continues after the file's {self.size} bytes")

    def _refill(self, count: int) -> None:
        self._start, self._at = self.position, 0
        self._file.seek(self._start)
        self._window = self._file.read(min(max(count, _WINDOW_BYTES), self.left))
        if len(self._window) < count:
            raise InvalidModelFile("was truncated while it was read")

    def _skip(self, count: int) -> None:
        self._require(count)
        self._at += count

    def _skip_strings(self, count: int) -> None:
        """Skips `count` strings. Inlines take() and _skip(), because vocabularies have hundreds of thousands of entries."""
        self._require(count * _U64.size)
        unpack_from = _U64.unpack_from
        for _ in range(count):
            if self._at + 8 > len(self._window):
                self._require(8)
                self._refill(8)
            length: int = unpack_from(self._window, self._at)[0]
            self._at += 8 + length
            if self._at > len(self._window):
                self._require(0)
