from __future__ import annotations

from typing import Any

import pytest

from services.protocol.engine import EngineSettings
from services.registry.memory import PROCESS_BYTES, memory_needed, slot_context_tokens

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
ONE = EngineSettings(slots=1, context_tokens=1)


@pytest.mark.parametrize(
    ("metadata", "bytes_per_token"),
    [
        (SMOLLM2, 30 * 3 * (64 + 64) * 2),
        (GEMMA3, 18 * 1 * (256 + 256) * 2),
        ({**SMOLLM2, "llama.attention.head_count_kv": [1] * 10 + [2] * 20}, (10 + 40) * 128 * 2),
        ({**SMOLLM2, "llama.attention.head_count_kv": None}, 30 * 9 * 128 * 2),
        ({"general.architecture": "mamba", "mamba.block_count": 24}, 0),
        ({}, 0),
    ],
    ids=[
        "grouped heads",
        "heads of their own size",
        "heads per layer",
        "as many as of queries",
        "no attention",
        "nothing known",
    ],
)
def test_kv_cache(metadata: dict[str, Any], bytes_per_token: int) -> None:
    assert memory_needed(metadata, tensor_bytes=0, engine=ONE).kv_cache == bytes_per_token
    eight = EngineSettings(slots=8, context_tokens=1000)
    assert memory_needed(metadata, tensor_bytes=0, engine=eight).kv_cache == bytes_per_token * 8000


def test_the_whole_of_smollm2() -> None:
    need = memory_needed(SMOLLM2, tensor_bytes=98_000_000, engine=EngineSettings())
    assert need.weights == 98_000_000
    assert need.kv_cache == 23_040 * 4096 * 8
    assert need.compute == 512 * 4 * (49152 + 4 * 576 + 2 * 1536)
    assert need.total == need.weights + need.kv_cache + need.compute + PROCESS_BYTES


def test_a_tokenizer_of_unknown_size_counts_as_a_large_one() -> None:
    known = memory_needed({**GEMMA3, "tokenizer.ggml.tokens": ["a"] * 10}, tensor_bytes=0, engine=ONE)
    assert memory_needed(GEMMA3, tensor_bytes=0, engine=ONE).compute > known.compute


@pytest.mark.parametrize(
    ("trained", "asked", "tokens"),
    [(8192, 0, 4096), (2048, 0, 2048), (0, 0, 4096), (2048, 512, 512), (2048, 100_000, 100_000)],
    ids=["at most 4096", "as trained", "unknown", "smaller", "larger"],
)
def test_a_slots_context(trained: int, asked: int, tokens: int) -> None:
    assert slot_context_tokens(trained, EngineSettings(context_tokens=asked)) == tokens
