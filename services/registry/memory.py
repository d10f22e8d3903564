"""How much memory a replica will take, from its model's metadata alone. Pure.

    weights   the tensors' bytes, as stored
    KV cache  layers x heads_kv x (key_length + value_length) x 2 bytes (f16), for each of context x slots cells
    compute   batch x 4 bytes (f32) x (vocabulary + 4 x embedding + 2 x feed-forward): the logits and the widest layer's
              activations, both held for a whole batch while a graph is reserved
    process   what the worker takes before it holds any model

This follows llama.cpp: `llama_kv_cache` allocates one K and one V tensor per layer of n_embd_k_gqa (n_embd_v_gqa) x kv_size
elements, and the worst-case graph is reserved for a full batch in which every token has logits. Layers with a sliding window
are counted with the whole context: workers keep it so that a cached prefix stays usable. Keys of the metadata are GGUF's
(ggml/docs/gguf.md). The estimate errs upwards; what a worker measured corrects it upwards only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.protocol.engine import EngineSettings

#: Python, llama.cpp's libraries and the tokenizer: 90 to 150 MiB were seen.
PROCESS_BYTES = 160 * 1024**2

#: A slot's context where neither the settings nor the model ask for less.
DEFAULT_CONTEXT_TOKENS = 4096

#: Tokenizers of unknown size count as a large one.
UNKNOWN_VOCABULARY = 131_072

_F16_BYTES = 2
_F32_BYTES = 4


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes."""

    weights: int
    kv_cache: int
    compute: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.compute + PROCESS_BYTES


@dataclass(frozen=True)
class _Shape:
    """What of the metadata decides memory. Absent numbers are 0."""

    layers: int
    embedding: int
    feed_forward: int
    vocabulary: int
    kv_elements: int

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> _Shape:
        arch = metadata.get("general.architecture", "")

        def number(key: str, default: int = 0) -> int:
            return _largest(metadata.get(f"{arch}.{key}"), default)

        layers, embedding = number("block_count"), number("embedding_length")
        heads = number("attention.head_count")
        head = embedding // heads if heads else 0
        per_head = number("attention.key_length", head) + number("attention.value_length", head)
        heads_kv = metadata.get(f"{arch}.attention.head_count_kv")
        total_heads_kv = _sum_over_layers(heads_kv, layers, default=heads)
        return cls(layers, embedding, number("feed_forward_length"), _vocabulary(metadata, arch), total_heads_kv * per_head)


def slot_context_tokens(trained: int, engine: EngineSettings) -> int:
    """What one slot holds: as set, otherwise as trained but at most 4,096."""
    return engine.context_tokens or min(trained or DEFAULT_CONTEXT_TOKENS, DEFAULT_CONTEXT_TOKENS)


def trained_context_tokens(metadata: Mapping[str, Any]) -> int:
    return _largest(metadata.get(f"{metadata.get('general.architecture', '')}.context_length"), 0)


def memory_needed(metadata: Mapping[str, Any], *, tensor_bytes: int, engine: EngineSettings) -> MemoryNeed:
    shape = _Shape.of(metadata)
    cells = slot_context_tokens(trained_context_tokens(metadata), engine) * engine.slots
    widest = shape.vocabulary + 4 * shape.embedding + 2 * shape.feed_forward
    return MemoryNeed(
        weights=tensor_bytes,
        kv_cache=shape.kv_elements * _F16_BYTES * cells,
        compute=engine.batch_tokens * _F32_BYTES * widest,
    )


def _largest(value: Any, default: int) -> int:
    """Some numbers of a GGUF may be given per layer."""
    if isinstance(value, list):
        return max((int(entry) for entry in value), default=default)
    return int(value) if isinstance(value, int | float) else default


def _sum_over_layers(value: Any, layers: int, *, default: int) -> int:
    if isinstance(value, list) and len(value) == layers:
        return sum(int(entry) for entry in value)
    return layers * _largest(value, default)


def _vocabulary(metadata: Mapping[str, Any], arch: str) -> int:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and tokens:
        return len(tokens)
    return _largest(metadata.get(f"{arch}.vocab_size"), UNKNOWN_VOCABULARY)
