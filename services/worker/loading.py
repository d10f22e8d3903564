"""Loads the model that the settings name.

Two checks run before llama.cpp maps the file. The file must be complete: reading past the end of a truncated file ends the
process with a SIGBUS. And the model must fit into memory: a process that the kernel kills can report no reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from services.process import cgroups
from services.protocol.engine import EngineSettings
from services.protocol.errors import InsufficientMemory, InvalidModelFile, ModelLoadFailed, ModelRefused
from services.weights import gguf
from services.weights.gguf import Gguf
from services.weights.memory import gib, input_context_tokens, memory_needed, slot_context_tokens
from services.weights.pooling import pooling_of
from services.worker.config import Settings
from services.worker.embedding.mode import EmbeddingMode
from services.worker.engine.devices import accelerators
from services.worker.engine.fake import CHAT_TEMPLATE, RECITING_TEMPLATE, CostModel, FakeRunner, babble, recite
from services.worker.engine.fake_embedder import FakeEmbedder
from services.worker.engine.llama import LlamaRunner
from services.worker.engine.llama_embedder import LlamaEmbedder
from services.worker.engine.runner import ModelUnusable, OnProgress
from services.worker.mode import Mode
from services.worker.text_mode import TextMode

_FAKES = {"babble": (babble, CHAT_TEMPLATE), "recite": (recite, RECITING_TEMPLATE)}


@dataclass(frozen=True)
class Loaded:
    """`device_memory_bytes` is how much of the accelerators' memory loading the model took."""

    mode: Mode
    device_memory_bytes: int


def load(settings: Settings, on_progress: OnProgress) -> Loaded:
    """Raises ModelLoadFailed, InvalidModelFile, or LoadCancelled."""
    if settings.runner == "fake":
        return Loaded(_fake_mode(settings), 0)
    free = _device_memory_free(settings.engine)
    model = read_model(settings.model_path)
    require_memory(model, settings.engine, available=available_memory() + free)
    try:
        mode = _mode(settings, model, on_progress)
    except ModelUnusable as error:
        raise ModelRefused(str(error)) from error
    return Loaded(mode, max(0, free - _device_memory_free(settings.engine)))


def read_model(path: Path) -> Gguf:
    """Raises InvalidModelFile if the file is not a complete GGUF, ModelLoadFailed if it cannot be read."""
    try:
        return gguf.read(path)
    except InvalidModelFile as error:
        raise InvalidModelFile(f"the file {path.name} {error.message}") from error
    except OSError as error:
        raise ModelLoadFailed(f"the file {path} cannot be read: {error.strerror}") from error


def require_memory(model: Gguf, engine: EngineSettings, *, available: int) -> None:
    """Raises InsufficientMemory. Counts the model alone, because `available` already excludes the memory of this process."""
    needed = memory_needed(model.shape, tensor_bytes=model.tensor_bytes, engine=engine)
    if needed.model > available:
        parts = f"{gib(needed.weights)} of weights, {gib(needed.kv_cache)} of KV cache and {gib(needed.compute)} to compute in"
        raise InsufficientMemory(f"it needs {gib(needed.model)}, {gib(available)} are available: {parts}")


def available_memory(root: Path = cgroups.ROOT) -> int:
    """Bytes that this process can still allocate, on the machine and within its container."""
    return min([psutil.virtual_memory().available, *(max(limit - used, 0) for limit, used in cgroups.memory_limits(root))])


def _device_memory_free(engine: EngineSettings) -> int:
    return sum(device.memory_free for device in accelerators()) if engine.gpu_layers else 0


def _mode(settings: Settings, model: Gguf, on_progress: OnProgress) -> Mode:
    path, engine = settings.model_path, settings.engine
    pooling = pooling_of(model.shape, engine.pooling)
    if pooling == "none":
        return TextMode(LlamaRunner(path, engine, on_progress=on_progress), settings)
    return EmbeddingMode(LlamaEmbedder(path, engine, pooling=pooling, on_progress=on_progress))


def _fake_mode(settings: Settings) -> Mode:
    engine = settings.engine
    cost = CostModel(step_s=settings.fake_step_s, token_s=settings.fake_token_s)
    if engine.pooling in ("", "none"):
        script, template = _FAKES[settings.fake_script]
        runner = FakeRunner(
            num_slots=engine.sequences,
            max_running=engine.slots,
            context_tokens=slot_context_tokens(0, engine),
            script=script,
            cost=cost,
            chat_template=template,
        )
        return TextMode(runner, settings)
    embedder = FakeEmbedder(
        pooling=engine.pooling,
        context_tokens=input_context_tokens(0, engine),
        batch_tokens=engine.batch_tokens,
        cost=cost,
    )
    return EmbeddingMode(embedder)
