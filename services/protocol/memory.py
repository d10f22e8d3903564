"""How much memory a replica will take, from its model's metadata and its settings alone. Pure.

    weights   the tensors' bytes, as stored
    KV cache  layers x heads_kv x key_length elements of kv_type_k and x value_length of kv_type_v, for each cell
    compute   for a batch: the widest layer's activations, and the attention's mask over every cell that a sequence may see;
              without flash attention also its scores, for every head; for every slot a row of logits, twice
    pooled    a batch is at least as long as the context, and the KV cache, of models that have one, as long as the batch.
              llama.cpp keeps a row of logits for each of its tokens, and a decoder computes them
    process   what the worker takes before it holds any model

This follows llama.cpp: `llama_kv_cache` allocates one K and one V tensor per layer of n_embd_k_gqa (n_embd_v_gqa) x kv_size
elements, and `llama_context::sched_reserve` a graph for a full batch. Layers with a sliding window are counted with all cells:
workers keep those so that a cached prefix stays usable. Keys of the metadata are GGUF's (ggml/docs/gguf.md). The estimate errs
upwards; what a worker measured corrects it upwards only. The registry places replicas by it, and a worker looks once more
before it loads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.protocol.engine import EngineSettings, KvType
from services.protocol.pooling import pooling_of

#: Python, llama.cpp's libraries and the tokenizer: 90 to 150 MiB were seen.
PROCESS_BYTES = 160 * 1024**2

#: A slot's context where neither the settings nor the model ask for less.
DEFAULT_CONTEXT_TOKENS = 4096

#: Tokenizers of unknown size count as a large one.
UNKNOWN_VOCABULARY = 131_072

_F32_BYTES = 4

#: llama.cpp rounds the size of a cache up to this many cells.
CELLS_STEP = 256

#: Bytes of an element, with its share of its block's scale.
_TYPE_BYTES: dict[KvType, float] = {
    "f32": 4,
    "f16": 2,
    "bf16": 2,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}


def gib(size: int) -> str:
    return f"{size / 1024**3:.1f} GiB"


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes."""

    weights: int
    kv_cache: int
    compute: int

    @property
    def model(self) -> int:
        return self.weights + self.kv_cache + self.compute

    @property
    def total(self) -> int:
        return self.model + PROCESS_BYTES


@dataclass(frozen=True)
class _Shape:
    """What of the metadata decides memory. Absent numbers are 0. `keys` and `values` are elements in one cell, of all layers;
    `masks` one, or two where some layers have a sliding window."""

    embedding: int
    feed_forward: int
    vocabulary: int
    heads: int
    keys: int
    values: int
    masks: int

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> _Shape:
        arch = metadata.get("general.architecture", "")

        def number(key: str, default: int = 0) -> int:
            return _largest(metadata.get(f"{arch}.{key}"), default)

        layers, embedding = number("block_count"), number("embedding_length")
        heads = number("attention.head_count")
        head = embedding // heads if heads else 0
        caches = metadata.get(f"{arch}.attention.causal", True)
        heads_kv = _sum_over_layers(metadata.get(f"{arch}.attention.head_count_kv"), layers, default=heads) if caches else 0
        return cls(
            embedding=embedding,
            feed_forward=number("feed_forward_length"),
            vocabulary=_vocabulary(metadata, arch),
            heads=heads,
            keys=heads_kv * number("attention.key_length", head),
            values=heads_kv * number("attention.value_length", head),
            masks=2 if number("attention.sliding_window") else 1,
        )


def slot_context_tokens(trained: int, engine: EngineSettings) -> int:
    """What one slot holds: as set, at most 4,096 where nothing is set, and no more than trained."""
    longest = int(trained / engine.rope_freq_scale) if engine.rope_freq_scale else trained
    wanted = engine.context_tokens or DEFAULT_CONTEXT_TOKENS
    return min(wanted, longest) if longest else wanted


def trained_context_tokens(metadata: Mapping[str, Any]) -> int:
    return _largest(metadata.get(f"{metadata.get('general.architecture', '')}.context_length"), 0)


def kv_cells(trained: int, engine: EngineSettings) -> int:
    """For all slots together, as llama.cpp rounds them."""
    cells = engine.kv_tokens or slot_context_tokens(trained, engine) * engine.slots
    streams = 1 if engine.kv_unified else engine.slots
    return streams * -(-cells // (streams * CELLS_STEP)) * CELLS_STEP


def memory_needed(metadata: Mapping[str, Any], *, tensor_bytes: int, engine: EngineSettings) -> MemoryNeed:
    shape, trained = _Shape.of(metadata), trained_context_tokens(metadata)
    if pooling_of(metadata, engine.pooling) == "none":
        cells = kv_cells(trained, engine)
        seen = cells if engine.kv_unified else cells // engine.slots
        compute = _compute_bytes(shape, engine, seen, tokens=engine.batch_tokens, logits=engine.sequences + engine.slots)
    else:
        tokens = max(engine.batch_tokens, slot_context_tokens(trained, engine))
        cells = -(-tokens // CELLS_STEP) * CELLS_STEP
        compute = _compute_bytes(shape, engine, cells, tokens=tokens, logits=(2 if shape.keys else 1) * tokens)
    kv_bytes = shape.keys * _TYPE_BYTES[engine.kv_type_k] + shape.values * _TYPE_BYTES[engine.kv_type_v]
    return MemoryNeed(weights=tensor_bytes, kv_cache=math.ceil(kv_bytes * cells), compute=compute)


def _compute_bytes(shape: _Shape, engine: EngineSettings, cells: int, *, tokens: int, logits: int) -> int:
    """For a batch of `tokens`; `cells` that one sequence may see; rows of `logits`. Masks are half as wide with flash attention."""
    activations = 6 * shape.embedding + 2 * shape.feed_forward
    flash = engine.flash_attention != "off"
    attention = cells * (shape.masks / 2 if flash else shape.masks + shape.heads) if shape.heads else 0
    return math.ceil(_F32_BYTES * (tokens * (activations + attention) + logits * shape.vocabulary))


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
