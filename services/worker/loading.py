"""From settings to a model that can serve, or the reason why it cannot.

The file is looked at before llama.cpp maps it: reading behind the end of a file that was cut short ends the process with a
SIGBUS. So is the memory that it will take: what the kernel kills says nothing. What is refused here is refused every time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from services.protocol import cgroups, gguf
from services.protocol.engine import EngineSettings
from services.protocol.errors import InsufficientMemory, InvalidModelFile, ModelLoadFailed, ModelRefused
from services.protocol.gguf import Gguf
from services.protocol.memory import gib, memory_needed
from services.protocol.pooling import pooling_of
from services.worker.config import Settings
from services.worker.embedding.mode import EmbeddingMode
from services.worker.engine.devices import accelerators
from services.worker.engine.embedder import Pooling
from services.worker.engine.fake import CHAT_TEMPLATE, RECITING_TEMPLATE, CostModel, FakeRunner, babble, recite
from services.worker.engine.fake_embedder import FakeEmbedder
from services.worker.engine.llama import LlamaRunner
from services.worker.engine.llama_embedder import LlamaEmbedder
from services.worker.engine.llama_model import DEFAULT_CONTEXT_TOKENS, threads_used
from services.worker.engine.runner import ModelUnusable, OnProgress
from services.worker.generating import GeneratingMode
from services.worker.mode import Mode

_FAKES = {"babble": (babble, CHAT_TEMPLATE), "recite": (recite, RECITING_TEMPLATE)}


@dataclass(frozen=True)
class Loaded:
    """`device_memory_bytes` is by how much the accelerators' free memory fell meanwhile."""

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
    """Raises InvalidModelFile unless the file is a whole GGUF, ModelLoadFailed where it cannot be read."""
    try:
        return gguf.read(path)
    except InvalidModelFile as error:
        raise InvalidModelFile(f"the file {path.name} {error.message}") from error
    except OSError as error:
        raise ModelLoadFailed(f"the file {path} cannot be read: {error.strerror}") from error


def require_memory(model: Gguf, engine: EngineSettings, *, available: int) -> None:
    """Raises InsufficientMemory. What the process takes besides, it has taken already."""
    needed = memory_needed(model.metadata, tensor_bytes=model.tensor_bytes, engine=engine)
    if needed.model > available:
        parts = f"{gib(needed.weights)} of weights, {gib(needed.kv_cache)} of KV cache and {gib(needed.compute)} to compute in"
        raise InsufficientMemory(f"it needs {gib(needed.model)}, {gib(available)} are available: {parts}")


def available_memory(root: Path = cgroups.ROOT) -> int:
    """Bytes that this process may still take, on the machine and within its container."""
    return min([psutil.virtual_memory().available, *(max(limit - used, 0) for limit, used in cgroups.memory_limits(root))])


def within_quota(engine: EngineSettings) -> EngineSettings:
    """More threads than a container's quota allows would wait for each other."""
    return msgspec.structs.replace(engine, threads=min([threads_used(engine), *cgroups.cpu_limits()]))


def _device_memory_free(engine: EngineSettings) -> int:
    return sum(device.memory_free for device in accelerators()) if engine.gpu_layers else 0


def _mode(settings: Settings, model: Gguf, on_progress: OnProgress) -> Mode:
    path, engine = settings.model_path, within_quota(settings.engine)
    pooling = pooling_of(model.metadata, settings.pooling)
    if pooling == "none":
        return GeneratingMode(LlamaRunner(path, engine, on_progress=on_progress), settings)
    return EmbeddingMode(LlamaEmbedder(path, engine, pooling=Pooling(pooling), on_progress=on_progress))


def _fake_mode(settings: Settings) -> Mode:
    context_tokens = settings.context_tokens or DEFAULT_CONTEXT_TOKENS
    cost = CostModel(step_s=settings.fake_step_s, token_s=settings.fake_token_s)
    if settings.pooling in ("", "none"):
        script, template = _FAKES[settings.fake_script]
        runner = FakeRunner(
            num_slots=settings.engine.sequences,
            max_running=settings.slots,
            context_tokens=context_tokens,
            script=script,
            cost=cost,
            chat_template=template,
        )
        return GeneratingMode(runner, settings)
    embedder = FakeEmbedder(
        pooling=Pooling(settings.pooling), context_tokens=context_tokens, batch_tokens=settings.batch_tokens, cost=cost
    )
    return EmbeddingMode(embedder)
