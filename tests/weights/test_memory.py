from __future__ import annotations

from typing import Any

import pytest

from services.protocol.engine import EngineSettings
from services.weights.memory import (
    CELLS_STEP,
    PROCESS_BYTES,
    input_context_tokens,
    kv_cells,
    memory_needed,
    slot_context_tokens,
)
from services.weights.shape import ModelShape

SMOLLM2: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 30,
    "llama.embedding_length": 576,
    "llama.feed_forward_length": 1536,
    "llama.attention.head_count": 9,
    "llama.attention.head_count_kv": 3,
    "llama.context_length": 8192,
    "llama.vocab_size": 49152,
}
GEMMA3: dict[str, Any] = {
    "general.architecture": "gemma3",
    "gemma3.block_count": 18,
    "gemma3.embedding_length": 640,
    "gemma3.feed_forward_length": 2048,
    "gemma3.attention.head_count": 4,
    "gemma3.attention.head_count_kv": 1,
    "gemma3.attention.key_length": 256,
    "gemma3.attention.value_length": 256,
    "gemma3.attention.sliding_window": 512,
    "gemma3.context_length": 32768,
}
MINILM: dict[str, Any] = {
    "general.architecture": "bert",
    "bert.block_count": 6,
    "bert.embedding_length": 384,
    "bert.feed_forward_length": 1536,
    "bert.attention.head_count": 12,
    "bert.attention.causal": False,
    "bert.context_length": 512,
    "bert.pooling_type": 1,
    "bert.vocab_size": 30522,
}
ONE = EngineSettings(slots=1, context_tokens=1)
MIB = 1024**2


@pytest.mark.parametrize(
    ("metadata", "bytes_per_token"),
    [
        (SMOLLM2, 30 * 3 * (64 + 64) * 2),
        (GEMMA3, 18 * 1 * (256 + 256) * 2),
        ({**SMOLLM2, "llama.attention.head_count_kv": [1] * 10 + [2] * 20}, (10 + 40) * 128 * 2),
        ({key: value for key, value in SMOLLM2.items() if "head_count_kv" not in key}, 30 * 9 * 128 * 2),
        ({"general.architecture": "mamba", "mamba.block_count": 24}, 0),
        ({**SMOLLM2, "llama.attention.causal": False}, 0),
        ({}, 0),
    ],
    ids=[
        "grouped heads",
        "heads of their own size",
        "heads per layer",
        "as many as of queries",
        "no attention",
        "an encoder",
        "nothing known",
    ],
)
def test_the_kv_cache(metadata: dict[str, Any], bytes_per_token: int) -> None:
    assert memory_needed(ModelShape.of(metadata), tensor_bytes=0, engine=ONE).kv_cache == bytes_per_token * CELLS_STEP
    eight = EngineSettings(slots=8, context_tokens=1024)
    assert memory_needed(ModelShape.of(metadata), tensor_bytes=0, engine=eight).kv_cache == bytes_per_token * 8192


def test_the_total_for_smollm2() -> None:
    need = memory_needed(ModelShape.of(SMOLLM2), tensor_bytes=98_000_000, engine=EngineSettings())
    assert need.weights == 98_000_000
    assert need.kv_cache == 23_040 * 4096 * 8
    assert need.total == need.weights + need.kv_cache + need.compute + PROCESS_BYTES


@pytest.mark.parametrize(
    ("metadata", "engine", "kv_mib", "compute_mib"),
    [
        (SMOLLM2, EngineSettings(), 720, 51.5),
        (SMOLLM2, EngineSettings(flash_attention="off"), 720, 652.4),
        (SMOLLM2, EngineSettings(kv_type_k="q8_0", kv_type_v="q8_0"), 382.5, 50.4),
        (SMOLLM2, EngineSettings(kv_unified=False), 720, 19.0),
        (SMOLLM2, EngineSettings(batch_tokens=2048), 720, 188.1),
        (GEMMA3 | {"gemma3.vocab_size": 262144}, EngineSettings(), 576, 113.8),
        (GEMMA3 | {"gemma3.vocab_size": 262144}, EngineSettings(flash_attention="off"), 576, 425.8),
        (GEMMA3 | {"gemma3.vocab_size": 262144}, EngineSettings(slots=1, context_tokens=4096, batch_tokens=64), 72, 8.2),
    ],
)
def test_estimates_match_llama_cpps_allocations(
    metadata: dict[str, Any], engine: EngineSettings, kv_mib: float, compute_mib: float
) -> None:
    """Buffer sizes that llama.cpp 0.3.36 logged: KV, and compute with output."""
    need = memory_needed(ModelShape.of(metadata), tensor_bytes=0, engine=engine)
    assert need.kv_cache == kv_mib * MIB
    assert 0.9 * compute_mib * MIB <= need.compute <= (1.1 * compute_mib + 1) * MIB


@pytest.mark.parametrize(
    ("engine", "cells"),
    [
        (EngineSettings(slots=4, context_tokens=100), 512),
        (EngineSettings(slots=4, context_tokens=100, kv_unified=False), 1024),
        (EngineSettings(slots=4, kv_tokens=6000), 6144),
        (EngineSettings(slots=4, kv_tokens=6000, kv_unified=False), 6144),
    ],
    ids=["rounded up", "each stream rounded up", "as many as asked for", "in streams"],
)
def test_the_number_of_cells(engine: EngineSettings, cells: int) -> None:
    assert kv_cells(8192, engine) == cells


@pytest.mark.parametrize(
    ("metadata", "engine", "kv_mib", "compute_mib"),
    [
        (MINILM, EngineSettings(), 0, 60.4 + 6.3),
        (MINILM, EngineSettings(flash_attention="off"), 0, 60.4 + 18.0),
        (MINILM, EngineSettings(batch_tokens=2048), 0, 241.4 + 31.0),
        (MINILM, EngineSettings(batch_tokens=2048, flash_attention="off"), 0, 241.4 + 228.0),
        (MINILM, EngineSettings(batch_tokens=64, context_tokens=64), 0, 7.5 + 0.7),
        (SMOLLM2, EngineSettings(context_tokens=512, pooling="last"), 11.25, 97.1 + 99.3),
        (SMOLLM2, EngineSettings(context_tokens=2048, pooling="last"), 45, 388.5 + 401.1),
        (SMOLLM2, EngineSettings(context_tokens=2048, flash_attention="off", pooling="last"), 45, 388.5 + 412.0),
    ],
)
def test_estimates_match_llama_cpps_allocations_for_pooled_models(
    metadata: dict[str, Any], engine: EngineSettings, kv_mib: float, compute_mib: float
) -> None:
    """Buffer sizes that llama.cpp 0.3.36 logged, and its output buffer for a full batch."""
    need = memory_needed(ModelShape.of(metadata), tensor_bytes=0, engine=engine)
    assert need.kv_cache == kv_mib * MIB
    assert compute_mib * MIB <= need.compute <= (1.25 * compute_mib + 1) * MIB


def test_a_vocabulary_of_unknown_size_counts_as_a_large_one() -> None:
    known = memory_needed(ModelShape.of({**GEMMA3, "tokenizer.ggml.tokens": ["a"] * 10}), tensor_bytes=0, engine=ONE)
    assert memory_needed(ModelShape.of(GEMMA3), tensor_bytes=0, engine=ONE).compute > known.compute


@pytest.mark.parametrize(
    ("trained", "asked", "tokens"),
    [
        *((8192, 0, 8192), (2048, 0, 2048), (131_072, 0, 32_768), (0, 0, 4096)),
        *((2048, 512, 512), (131_072, 100_000, 100_000), (2048, 100_000, 2048), (0, 100_000, 100_000)),
    ],
    ids=["as trained", "short", "at most 32,768", "unknown", "smaller", "larger", "more than trained", "larger than unknown"],
)
def test_the_context_of_a_slot(trained: int, asked: int, tokens: int) -> None:
    assert slot_context_tokens(trained, EngineSettings(context_tokens=asked)) == tokens


@pytest.mark.parametrize(
    ("trained", "slots", "context", "cells"),
    [(8192, 8, 8192, 32_768), (131_072, 8, 32_768, 32_768), (131_072, 1, 32_768, 32_768), (131_072, 16, 32_768, 65_536)]
    + [(8192, 1, 8192, 8192), (2048, 8, 2048, 16_384)],
)
def test_by_default_one_slot_may_use_all_cells(trained: int, slots: int, context: int, cells: int) -> None:
    """Eight slots take no more memory with the longest context than with 4,096 tokens each."""
    engine = EngineSettings(slots=slots)
    assert (slot_context_tokens(trained, engine), kv_cells(trained, engine)) == (context, cells)


def test_separate_buffers_and_embeddings_default_to_4096_tokens() -> None:
    engine = EngineSettings(kv_unified=False)
    assert (slot_context_tokens(131_072, engine), kv_cells(131_072, engine)) == (4096, 32_768)
    assert (input_context_tokens(131_072, engine), input_context_tokens(512, engine)) == (4096, 512)
    assert input_context_tokens(131_072, EngineSettings(context_tokens=8192)) == 8192


def test_fewer_cells_than_the_context_limit_it() -> None:
    assert slot_context_tokens(8192, EngineSettings(kv_tokens=1000)) == 1000
    assert slot_context_tokens(8192, EngineSettings(kv_tokens=1000, slots=4, kv_unified=False)) == 250


def test_scaled_positions_allow_a_longer_context() -> None:
    assert slot_context_tokens(2048, EngineSettings(context_tokens=4096, rope_freq_scale=0.5)) == 4096
