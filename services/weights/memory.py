"""Estimates the memory of a replica from its model's shape and its settings. Pure.

    weights   the bytes of the tensors, as stored
    KV cache  per cell: layers x heads_kv x key_length elements of kv_type_k, and the same with value_length of kv_type_v
    compute   for a full batch: the widest layer's activations and the attention mask over every cell that a sequence can see;
              without flash attention also the attention scores of every head. One row of logits per cached sequence and
              one per slot
    pooled    a batch is at least as long as the context, and the KV cache, if the model has one, as long as the batch.
              llama.cpp keeps a row of logits for each token of the batch, and a decoder computes another
    process   the memory of a worker before it loads a model

This follows llama.cpp: `llama_kv_cache` allocates one K and one V tensor per layer with n_embd_k_gqa (n_embd_v_gqa) x kv_size
elements, and `llama_context::sched_reserve` reserves a graph for a full batch. Layers with a sliding window count with all
cells, because workers keep the full cache so that a cached prefix stays usable. The estimate is meant to be too high rather
than too low. The registry uses it to place replicas, and a worker compares it with the free memory before it loads a model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from services.protocol.engine import EngineSettings, KvType
from services.weights.pooling import pooling_of
from services.weights.shape import ModelShape

#: Python, llama.cpp's libraries and the tokenizer. 90 to 150 MiB were measured.
PROCESS_BYTES = 160 * 1024**2

#: Default number of KV cells per slot, and default length of the longest input of an embedding model.
DEFAULT_SLOT_CELLS = 4096
#: Longest default context of a slot: 32,768. Equals the default cells of eight slots, so that a long context needs no extra
#: memory: one slot may use the cells of all.
DEFAULT_CONTEXT_TOKENS = 8 * DEFAULT_SLOT_CELLS

_F32_BYTES = 4

#: llama.cpp rounds the size of a cache up to this many cells.
CELLS_STEP = 256

#: Bytes per element, including its share of the block's scale.
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


#: No machine has this much memory. A larger size is a mistake, and its exact value does not matter.
_MAX_SHOWN_BYTES = 2**60


def gib(size: int) -> str:
    return f"{size / 1024**3:.1f} GiB" if size < _MAX_SHOWN_BYTES else f"more than {_MAX_SHOWN_BYTES >> 30:,} GiB"


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes by part; see the module's docstring. `total` includes the process."""

    weights: int
    kv_cache: int
    compute: int

    @property
    def model(self) -> int:
        return self.weights + self.kv_cache + self.compute

    @property
    def total(self) -> int:
        return self.model + PROCESS_BYTES


def slot_context_tokens(trained: int, engine: EngineSettings) -> int:
    """Context length of one slot of a model that generates.

    The default is 32,768, or 4,096 if each slot has a separate KV buffer or `trained` is 0 (unknown). Never more than the model
    was trained for, nor than there are cells.
    """
    by_default = DEFAULT_CONTEXT_TOKENS if engine.kv_unified and trained else DEFAULT_SLOT_CELLS
    context = _at_most_trained(engine.context_tokens or by_default, trained, engine)
    if not engine.kv_tokens:
        return context
    return max(1, min(context, engine.kv_tokens if engine.kv_unified else engine.kv_tokens // engine.slots))


def input_context_tokens(trained: int, engine: EngineSettings) -> int:
    """Longest input of an embedding model: 4,096 by default, never more than the model was trained for."""
    return _at_most_trained(engine.context_tokens or DEFAULT_SLOT_CELLS, trained, engine)


def _at_most_trained(tokens: int, trained: int, engine: EngineSettings) -> int:
    """Caps `tokens` at the trained length. A RoPE scale below 1 extends that length."""
    longest = trained / engine.rope_freq_scale if engine.rope_freq_scale else trained
    return int(min(tokens, longest)) if longest else tokens


def kv_cells(trained: int, engine: EngineSettings) -> int:
    """Number of KV cells for all slots together, rounded up as llama.cpp does.

    The default is enough for a full context in every slot. If the context length is also the default and slots share their
    cells, it is at most 4,096 per slot, or 32,768 if that is more.
    """
    cells = engine.kv_tokens or slot_context_tokens(trained, engine) * engine.slots
    if engine.kv_unified and not engine.kv_tokens and not engine.context_tokens:
        cells = min(cells, max(DEFAULT_CONTEXT_TOKENS, DEFAULT_SLOT_CELLS * engine.slots))
    streams = 1 if engine.kv_unified else engine.slots
    return streams * -(-cells // (streams * CELLS_STEP)) * CELLS_STEP


def memory_needed(shape: ModelShape, *, tensor_bytes: int, engine: EngineSettings) -> MemoryNeed:
    trained = shape.context_tokens
    if pooling_of(shape, engine.pooling) == "none":
        cells = kv_cells(trained, engine)
        seen = cells if engine.kv_unified else cells // engine.slots
        compute = _compute_bytes(shape, engine, seen, tokens=engine.batch_tokens, logits=engine.sequences + engine.slots)
    else:
        tokens = max(engine.batch_tokens, input_context_tokens(trained, engine))
        cells = -(-tokens // CELLS_STEP) * CELLS_STEP
        compute = _compute_bytes(shape, engine, cells, tokens=tokens, logits=(2 if shape.key_elements else 1) * tokens)
    kv_bytes = shape.key_elements * _TYPE_BYTES[engine.kv_type_k] + shape.value_elements * _TYPE_BYTES[engine.kv_type_v]
    return MemoryNeed(weights=tensor_bytes, kv_cache=math.ceil(kv_bytes * cells), compute=compute)


def _compute_bytes(shape: ModelShape, engine: EngineSettings, cells: int, *, tokens: int, logits: int) -> int:
    """`tokens` is the size of a batch, `cells` those that a sequence can see, `logits` a number of rows.

    Flash attention halves the masks.
    """
    activations = 6 * shape.embedding + 2 * shape.feed_forward
    flash = engine.flash_attention != "off"
    masks = 2 if shape.sliding_window else 1
    attention = cells * (masks / 2 if flash else masks + shape.heads) if shape.heads else 0
    return math.ceil(_F32_BYTES * (tokens * (activations + attention) + logits * shape.vocabulary))
