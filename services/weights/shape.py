"""The numbers in a GGUF's metadata that decide how a model is loaded, parsed and checked against limits. Pure.

The metadata is untrusted. Code that needs one of these numbers takes a ModelShape, so that a wrong type, NaN or an absurd count
is refused here, with a message, and never used in a calculation. The limits are 10 to 1,000 times above the largest published
models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.protocol.errors import InvalidModelFile

MAX_LAYERS = 10_000
MAX_WIDTH = 2**24
MAX_HEADS = 65_536
MAX_VOCABULARY = 2**26
MAX_CONTEXT_TOKENS = 2**31 - 1

#: Vocabulary size if the file has none: that of a large tokenizer.
UNKNOWN_VOCABULARY = 131_072

_ARCHITECTURE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class ModelShape:
    """The validated numbers of a model. A number that the file lacks is 0, unless it has a default.

    `key_elements` and `value_elements` are the elements in one KV cell, summed over all layers. `pooling_type` is llama.cpp's
    llama_pooling_type, None if the file has none.
    """

    architecture: str
    layers: int
    context_tokens: int
    embedding: int
    feed_forward: int
    vocabulary: int
    heads: int
    key_elements: int
    value_elements: int
    sliding_window: int
    pooling_type: int | None

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> ModelShape:
        """Raises InvalidModelFile, which names the wrong entry and its limits."""
        table = _Table(metadata)
        layers = table.largest("block_count", 1, MAX_LAYERS)
        embedding = table.largest("embedding_length", 1, MAX_WIDTH)
        heads = table.largest("attention.head_count", 0, MAX_HEADS)
        kv_heads = table.sum_over_layers("attention.head_count_kv", layers, default=heads, most=MAX_HEADS)
        head = embedding // heads if heads else 0
        caches = table.flag("attention.causal", default=True)
        return cls(
            architecture=table.architecture,
            layers=layers,
            context_tokens=table.largest("context_length", 0, MAX_CONTEXT_TOKENS),
            embedding=embedding,
            feed_forward=table.largest("feed_forward_length", 0, MAX_WIDTH),
            vocabulary=table.vocabulary(),
            heads=heads,
            key_elements=kv_heads * table.largest("attention.key_length", 0, MAX_WIDTH, default=head) if caches else 0,
            value_elements=kv_heads * table.largest("attention.value_length", 0, MAX_WIDTH, default=head) if caches else 0,
            sliding_window=table.largest("attention.sliding_window", 0, MAX_CONTEXT_TOKENS),
            pooling_type=table.pooling_type(),
        )


class _Table:
    """The metadata entries of the model's architecture. A number can be a list with one value per layer."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        if not isinstance(metadata, Mapping):
            raise InvalidModelFile("has metadata that is not a table")
        architecture = metadata.get("general.architecture", "")
        if not isinstance(architecture, str) or (architecture and not _ARCHITECTURE.fullmatch(architecture)):
            raise InvalidModelFile(
                "has a general.architecture that is not a name of at most 64 letters, digits, '.', '_' and '-'"
            )
        self.architecture = architecture
        self._metadata = metadata

    def largest(self, name: str, least: int, most: int, *, default: int = 0) -> int:
        numbers = self._numbers(name, least, most)
        return default if numbers is None else max(numbers, default=default)

    def sum_over_layers(self, name: str, layers: int, *, default: int, most: int) -> int:
        numbers = self._numbers(name, 0, most)
        if numbers is not None and len(numbers) == layers:
            return sum(numbers)
        return layers * (default if numbers is None else max(numbers, default=default))

    def flag(self, name: str, *, default: bool) -> bool:
        key = f"{self.architecture}.{name}"
        value = self._metadata.get(key, default)
        if not isinstance(value, bool):
            raise InvalidModelFile(f"has a {key} that is neither true nor false")
        return value

    def vocabulary(self) -> int:
        """The length of the token list, or else the vocab_size entry."""
        tokens = self._metadata.get("tokenizer.ggml.tokens")
        if isinstance(tokens, list) and tokens:
            return len(tokens)
        return self.largest("vocab_size", 0, MAX_VOCABULARY, default=UNKNOWN_VOCABULARY)

    def pooling_type(self) -> int | None:
        numbers = self._numbers("pooling_type", -1, 1000)
        return numbers[0] if numbers else None

    def _numbers(self, name: str, least: int, most: int) -> list[int] | None:
        """The entry as a list, checked against its limits; None if the file does not have it."""
        key = f"{self.architecture}.{name}"
        if key not in self._metadata:
            return None
        value = self._metadata[key]
        numbers = value if isinstance(value, list) else [value]
        if not all(_is_whole(number) and least <= number <= most for number in numbers):
            raise InvalidModelFile(f"has a {key} that is not a whole number between {least:,} and {most:,}")
        return numbers


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
