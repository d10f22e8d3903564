"""What each engine setting does in llama.cpp, and the error if llama.cpp does not support it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp import llama_cpp
from numpy.typing import NDArray

from services.protocol.engine import EngineSettings
from services.worker.engine.llama import LlamaRunner
from services.worker.engine.runner import LoadCancelled, ModelUnusable, Span
from tests.ggufs import write_gguf, write_lora

TEXT = "the quick brown fox jumps over"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf")


@contextmanager
def running(path: Path, **settings: Any) -> Iterator[LlamaRunner]:
    runner = LlamaRunner(path, EngineSettings(**{"slots": 2, "context_tokens": 128, "batch_tokens": 64, **settings}))
    try:
        yield runner
    finally:
        runner.close()


def logits(path: Path, **settings: Any) -> NDArray[np.float32]:
    with running(path, **settings) as runner:
        span = Span(0, 0, runner.tokenize(TEXT, special=False), True)
        row: NDArray[np.float32] = runner.decode([span])[0].copy()
        return row


def refusal(path: Path, **settings: Any) -> str:
    with pytest.raises(ModelUnusable) as refused, running(path, **settings):
        pass
    return str(refused.value)


def test_a_quantised_cache_does_not_change_the_answer(smollm2_path: Path) -> None:
    """These weights quantise activations too, so that any difference grows; measured: one or two logits."""
    f16, q8 = logits(smollm2_path), logits(smollm2_path, kv_type_k="q8_0", kv_type_v="q8_0")
    assert 0 < np.abs(q8 - f16).max() < 3
    assert q8.argmax() == f16.argmax()


@pytest.mark.parametrize("kv_type", ["bf16", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"])
def test_llama_cpp_supports_every_kv_type(tmp_path: Path, kv_type: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", width=64)
    exact = logits(path, kv_type_k="f32", kv_type_v="f32")
    assert np.abs(logits(path, kv_type_k=kv_type, kv_type_v=kv_type) - exact).max() > 0


def test_a_kv_type_that_does_not_divide_the_heads_is_refused(tiny: Path) -> None:
    assert "K cache type q8_0 with block size 32 does not divide n_embd_head_k=16" in refusal(tiny, kv_type_k="q8_0")


def test_flash_attention_on_and_off_agree(tiny: Path) -> None:
    on, off = (logits(tiny, flash_attention=choice) for choice in ("on", "off"))
    assert 0 < np.abs(on - off).max() < 0.02


@pytest.mark.parametrize(
    ("settings", "context", "cells"),
    [
        ({}, 128, 256),
        ({"kv_tokens": 1024}, 128, 1024),
        ({"slots": 8, "kv_tokens": 256}, 128, 256),
        ({"kv_tokens": 100}, 100, 256),
        ({"kv_unified": False}, 128, 512),
        ({"kv_unified": False, "kv_tokens": 200}, 100, 512),
        ({"context_tokens": 0}, 512, 1024),
        ({"context_tokens": 4096}, 512, 1024),
        ({"context_tokens": 1000, "rope_freq_scale": 0.5}, 1000, 2048),
    ],
)
def test_the_numbers_of_context_tokens_and_cells(tiny: Path, settings: dict[str, Any], context: int, cells: int) -> None:
    """llama.cpp rounds the number of cells up to a multiple of 256, for each stream."""
    with running(tiny, **settings) as runner:
        assert (runner.context_tokens, runner.num_cells) == (context, cells)


def test_rope_settings_change_the_logits(tiny: Path) -> None:
    plain = logits(tiny)
    assert np.abs(logits(tiny, rope_freq_base=500.0) - plain).max() > 1e-3
    assert np.abs(logits(tiny, rope_freq_scale=0.25) - plain).max() > 1e-3
    assert np.array_equal(logits(tiny, rope_freq_base=10000.0, rope_freq_scale=1.0), plain)


@pytest.mark.parametrize(
    "settings",
    [
        {"mmap": False},
        {"mlock": True},
        {"mmap": False, "mlock": True},
        {"gpu_layers": 0},
        {"gpu_layers": 99, "split_mode": "row", "main_gpu": 0},
        {"tensor_split": (1.0,)},
        {"threads": 1},
    ],
)
def test_how_and_where_a_model_is_loaded_does_not_change_its_logits(tiny: Path, settings: dict[str, Any]) -> None:
    assert np.array_equal(logits(tiny, **settings), logits(tiny))


def test_a_tensor_split_over_too_many_devices_is_refused(tiny: Path) -> None:
    assert "tensor_split has 1000 devices" in refusal(tiny, tensor_split=(1.0,) * 1000)


def test_an_adapter_equals_merged_weights(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(scale=0.3, size=(4, 32)), rng.normal(scale=0.3, size=(32, 4))
    base = write_gguf(tmp_path / "base.gguf")
    merged = write_gguf(tmp_path / "merged.gguf", added={"blk.0.attn_q.weight": 0.5 * (8 / 4) * (b @ a)})
    adapter = str(write_lora(tmp_path / "lora.gguf", "blk.0.attn_q.weight", a, b, alpha=8))
    plain = logits(base)
    adapted = logits(base, lora=((adapter, 0.5),))
    assert np.abs(adapted - plain).max() > 0.05
    assert np.abs(adapted - logits(merged)).max() < 0.02
    assert np.abs(logits(base, lora=((adapter, 0.25), (adapter, 0.25))) - adapted).max() < 0.02
    assert np.abs(logits(base, lora=((adapter, 0.0),)) - plain).max() < 1e-3


def test_invalid_adapters_are_refused(tiny: Path, tmp_path: Path) -> None:
    assert "No such file or directory" in refusal(tiny, lora=((str(tmp_path / "x"), 1.0),))
    assert "expect general.type to be 'adapter', but got:" in refusal(tiny, lora=((str(tiny), 1.0),))


def test_a_refused_adapter_frees_the_context_and_the_model(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp frees the adapters that it loaded with their model."""
    freed: list[str] = []

    def record(name: str) -> None:
        free = getattr(llama_cpp, name)

        def recorded(pointer: object) -> None:
            freed.append(name)
            free(pointer)

        monkeypatch.setattr(llama_cpp, name, recorded)

    for name in ("llama_free", "llama_model_free"):
        record(name)
    adapter = write_lora(tmp_path / "lora.gguf", "blk.0.attn_q.weight", np.ones((4, 32)), np.ones((32, 4)), alpha=8)
    refusal(tiny, lora=((str(adapter), 1.0), (str(tmp_path / "missing"), 1.0)))
    assert freed == ["llama_free", "llama_model_free"]


def test_progress_rises_to_one(smollm2_path: Path) -> None:
    progress: list[float] = []

    def record(part: float) -> bool:
        progress.append(part)
        return True

    LlamaRunner(smollm2_path, EngineSettings(slots=1, context_tokens=64), on_progress=record).close()
    assert progress == sorted(progress)
    assert (progress[0], progress[-1], len(progress) > 10) == (0.0, 1.0, True)


def test_loading_can_be_cancelled(smollm2_path: Path) -> None:
    progress: list[float] = []

    def until_half(part: float) -> bool:
        progress.append(part)
        return part < 0.5

    with pytest.raises(LoadCancelled):
        LlamaRunner(smollm2_path, EngineSettings(slots=1, context_tokens=64), on_progress=until_half)
    assert 0.5 <= progress[-1] < 1


@pytest.mark.parametrize("architecture", [b"lama2", b"gemma"], ids=["unknown", "another's"])
def test_an_error_of_llama_cpp_is_reported(tiny: Path, tmp_path: Path, architecture: bytes) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(tiny.read_bytes().replace(b"llama", architecture, 1))
    assert refusal(path).startswith("llama.cpp cannot load it: ")
