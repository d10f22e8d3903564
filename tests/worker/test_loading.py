"""A worker's reports while it loads a model, and if it cannot load one."""

from __future__ import annotations

import asyncio
import signal
import threading
from pathlib import Path

import pytest
from redis.asyncio import Redis

from services.protocol.engine import EngineSettings
from services.protocol.errors import InsufficientMemory, InvalidModelFile, ModelLoadFailed, ModelRefused
from services.protocol.reports import WorkerState
from services.telemetry.telemetry import NO_TELEMETRY
from services.weights import gguf
from services.weights.memory import input_context_tokens, slot_context_tokens
from services.worker.config import Settings
from services.worker.engine.runner import LoadCancelled, OnProgress
from services.worker.loading import Loaded, available_memory, load, read_model, require_memory
from services.worker.metrics import Metrics
from services.worker.worker import Worker
from tests.conditions import eventually
from tests.doubles.gateway import VERSION, ScriptedGateway
from tests.ggufs import write_gguf
from tests.worker.conftest import StartWorker

GIB = 1024**3


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf")


def settings(path: Path, **others: object) -> Settings:
    facts = {"redis_url": "redis://x", "node": "here", "replica": "r1", "version": VERSION, "model_path": path, "slots": 1}
    return Settings.model_validate({**facts, **others})


def test_a_model_is_loaded_with_progress(tiny: Path) -> None:
    progress: list[float] = []

    def record(part: float) -> bool:
        progress.append(part)
        return True

    loaded = load(settings(tiny, context_tokens=64), record)
    assert (loaded.mode.context_tokens, progress[-1]) == (64, 1.0)
    loaded.mode.close()


@pytest.mark.parametrize(
    ("engine", "context"), [({}, 4096), ({"kv_unified": False}, 4096), ({"context_tokens": 64}, 64), ({"kv_tokens": 100}, 100)]
)
def test_the_fake_model_has_the_context_of_any_model_of_unknown_length(engine: dict[str, object], context: int) -> None:
    for pooling, expected in (("", slot_context_tokens), ("mean", input_context_tokens)):
        fake = settings(Path(), runner="fake", pooling=pooling, **engine)
        loaded = load(fake, lambda part: True)
        loaded.mode.close()
        assert loaded.mode.context_tokens == expected(0, fake.engine)
    assert slot_context_tokens(0, fake.engine) == context


@pytest.mark.parametrize("kept", [0.999, 0.5, 0.1, 0.001])
def test_a_truncated_file_is_refused(tiny: Path, tmp_path: Path, kept: float) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny.read_bytes()[: int(tiny.stat().st_size * kept)])
    with pytest.raises(InvalidModelFile, match=r"the file cut\.gguf is "):
        read_model(path)


def test_a_file_that_is_not_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "letter.gguf"
    path.write_text("Dear model,")
    with pytest.raises(InvalidModelFile, match=r"the file letter\.gguf is not a GGUF file"):
        read_model(path)


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match="cannot be read: No such file or directory"):
        read_model(tmp_path / "nothing.gguf")
    with pytest.raises(ModelLoadFailed, match="cannot be read: Is a directory"):
        read_model(tmp_path)


def test_an_unknown_architecture_is_refused(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "new.gguf"
    path.write_bytes(tiny.read_bytes().replace(b"llama", b"lama9", 1))
    with pytest.raises(ModelRefused, match="unknown model architecture: 'lama9'"):
        load(settings(path), lambda _: True)


def test_settings_that_llama_cpp_does_not_support_are_refused(tiny: Path) -> None:
    with pytest.raises(ModelRefused, match="K cache type q8_0 with block size 32 does not divide"):
        load(settings(tiny, kv_type_k="q8_0"), lambda _: True)


def test_a_model_that_needs_too_much_memory_is_refused(smollm2_path: Path) -> None:
    model = gguf.read(smollm2_path)
    engine = EngineSettings(slots=256, context_tokens=8192)
    with pytest.raises(InsufficientMemory) as refused:
        require_memory(model, engine, available=4 * GIB)
    assert refused.value.message == (
        "it needs 47.2 GiB, 4.0 GiB are available: 0.1 GiB of weights, 45.0 GiB of KV cache and 2.1 GiB to compute in"
    )
    require_memory(model, engine, available=48 * GIB)
    require_memory(model, EngineSettings(kv_tokens=1024), available=GIB)


def test_a_containers_memory_limit_counts(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup/worker"
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/worker\n")
    (group / "memory.max").write_text("1000000\n")
    (group / "memory.current").write_text("400000\n")
    (group / "memory.stat").write_text("inactive_file 100000\n")
    assert available_memory(tmp_path) == 700_000
    assert available_memory(tmp_path / "nowhere") > 1_000_000


async def test_too_little_memory_is_reported_and_ends_the_process(
    gateway: ScriptedGateway, start_worker: StartWorker, tiny: Path
) -> None:
    process = await start_worker(runner="llama", model_path=tiny, kv_tokens=2**31 - 1)
    report = await gateway.worker(WorkerState.FAILED)
    assert report.error_code == "insufficient_memory"
    assert report.error.startswith("it needs 2304.")
    assert await process.wait() == 3


def load_forever(_: Settings, on_progress: OnProgress) -> Loaded:
    while on_progress(0.25):
        threading.Event().wait(0.01)
    raise LoadCancelled


async def test_progress_is_reported_and_a_drain_ends_the_loading(gateway: ScriptedGateway, redis: Redis) -> None:
    worker = Worker(settings(Path(), report_s=0.05), redis, load_forever, metrics=Metrics(slots=1), telemetry=NO_TELEMETRY)
    run = asyncio.create_task(worker.run())

    async def quarter() -> bool:
        report = await gateway.worker(WorkerState.LOADING)
        return report.load_progress == 0.25

    await eventually(quarter)
    worker.drain()
    assert await run == 0
    assert await gateway.queue.workers() == []


async def test_a_term_signal_while_loading_ends_the_process(
    gateway: ScriptedGateway, start_worker: StartWorker, gemma3_path: Path
) -> None:
    process = await start_worker(runner="llama", model_path=gemma3_path, mmap=False, report_s=0.05)
    await gateway.worker(WorkerState.LOADING)
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 0
    assert await gateway.queue.workers() == []
