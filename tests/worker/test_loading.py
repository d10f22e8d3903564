"""What a worker says of a model that it cannot load, and while it loads one."""

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
from services.telemetry.telemetry import UNSEEN
from services.weights import gguf
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


def test_a_model_that_loads(tiny: Path) -> None:
    told: list[float] = []

    def note(part: float) -> bool:
        told.append(part)
        return True

    loaded = load(settings(tiny, context_tokens=64), note)
    assert (loaded.mode.context_tokens, told[-1]) == (64, 1.0)
    loaded.mode.close()


@pytest.mark.parametrize("kept", [0.999, 0.5, 0.1, 0.001])
def test_a_file_that_was_cut_short(tiny: Path, tmp_path: Path, kept: float) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny.read_bytes()[: int(tiny.stat().st_size * kept)])
    with pytest.raises(InvalidModelFile, match=r"the file cut\.gguf is "):
        read_model(path)


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    path = tmp_path / "letter.gguf"
    path.write_text("Dear model,")
    with pytest.raises(InvalidModelFile, match=r"the file letter\.gguf is not a GGUF file"):
        read_model(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match="cannot be read: No such file or directory"):
        read_model(tmp_path / "nothing.gguf")
    with pytest.raises(ModelLoadFailed, match="cannot be read: Is a directory"):
        read_model(tmp_path)


def test_an_architecture_that_llama_cpp_does_not_know(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "new.gguf"
    path.write_bytes(tiny.read_bytes().replace(b"llama", b"lama9", 1))
    with pytest.raises(ModelRefused, match="unknown model architecture: 'lama9'"):
        load(settings(path), lambda _: True)


def test_settings_that_llama_cpp_does_not_take(tiny: Path) -> None:
    with pytest.raises(ModelRefused, match="K cache type q8_0 with block size 32 does not divide"):
        load(settings(tiny, kv_type_k="q8_0"), lambda _: True)


def test_more_memory_than_there_is(smollm2_path: Path) -> None:
    model = gguf.read(smollm2_path)
    engine = EngineSettings(slots=256, context_tokens=8192)
    with pytest.raises(InsufficientMemory) as refused:
        require_memory(model, engine, available=4 * GIB)
    assert refused.value.message == (
        "it needs 47.2 GiB, 4.0 GiB are available: 0.1 GiB of weights, 45.0 GiB of KV cache and 2.1 GiB to compute in"
    )
    require_memory(model, engine, available=48 * GIB)
    require_memory(model, EngineSettings(kv_tokens=1024), available=GIB)


def test_a_containers_limit_counts(tmp_path: Path) -> None:
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


def load_for_ever(_: Settings, on_progress: OnProgress) -> Loaded:
    while on_progress(0.25):
        threading.Event().wait(0.01)
    raise LoadCancelled


async def test_progress_is_reported_and_a_drain_ends_the_loading(gateway: ScriptedGateway, redis: Redis) -> None:
    worker = Worker(settings(Path(), report_s=0.05), redis, load_for_ever, metrics=Metrics(slots=1), telemetry=UNSEEN)
    run = asyncio.create_task(worker.run())

    async def quarter() -> bool:
        report = await gateway.worker(WorkerState.LOADING)
        return report.load_progress == 0.25

    await eventually(quarter)
    worker.drain()
    assert await run == 0
    assert await gateway.queue.workers() == []


async def test_a_term_signal_while_it_loads_ends_the_process(
    gateway: ScriptedGateway, start_worker: StartWorker, gemma3_path: Path
) -> None:
    process = await start_worker(runner="llama", model_path=gemma3_path, mmap=False, report_s=0.05)
    await gateway.worker(WorkerState.LOADING)
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 0
    assert await gateway.queue.workers() == []
