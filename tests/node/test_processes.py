"""The process runtime, with small scripts as workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from services.node.config import worker_environment
from services.node.processes import ProcessRuntime
from services.node.runtime import StartSpec
from services.protocol.engine import EngineSettings
from services.protocol.errors import BadRequest, ModelLoadFailed, ModelRefused
from services.protocol.reports import UNKNOWN_EXIT, ProcessReport
from tests.conditions import eventually_sync

PATIENT = "import signal; signal.signal(signal.SIGTERM, lambda *_: exit(0)); print('up', flush=True); signal.pause()"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)\nwhile True: signal.pause()"
BROKEN = "print('loading'); print('model is broken\\n'); exit(3)"
FAMILY = "import subprocess; child = subprocess.Popen(['sleep', '60']); print(child.pid, flush=True)\n" + STUBBORN

MakeRuntime = Callable[..., ProcessRuntime]


@pytest.fixture
def make_runtime(tmp_path: Path) -> Iterator[MakeRuntime]:
    made: list[ProcessRuntime] = []

    def make(script: str = PATIENT, *, drain_s: float = 5.0) -> ProcessRuntime:
        command = [sys.executable, "-c", script]
        made.append(ProcessRuntime(tmp_path, environment={"MARK": str(tmp_path)}, drain_s=drain_s, command=command))
        return made[-1]

    yield make
    for runtime in made:
        runtime.hurry()
        runtime.close()


def spec(replica: str = "r1") -> StartSpec:
    return StartSpec(replica, "f" * 64, Path("/models/blob"), EngineSettings(slots=3, context_tokens=100))


def log(folder: Path, replica: str = "r1") -> str:
    path = folder / f"{replica}.log"
    return path.read_text() if path.exists() else ""


def only(runtime: ProcessRuntime) -> ProcessReport:
    (report,) = runtime.reports()
    return report


def up(folder: Path) -> None:
    eventually_sync(lambda: "up" in log(folder), what="the worker")


def test_a_worker_is_started_and_stopped(make_runtime: MakeRuntime, tmp_path: Path) -> None:
    runtime = make_runtime()
    runtime.start(spec())
    up(tmp_path)
    report = only(runtime)
    assert (report.replica, report.exit_code) == ("r1", None)
    assert os.getsid(report.pid) == report.pid != os.getsid(0)
    runtime.stop("r1")
    assert runtime.reports() == ()
    assert not psutil.pid_exists(report.pid)
    assert not list(tmp_path.glob("*.json"))


def test_a_worker_gets_its_settings(make_runtime: MakeRuntime, tmp_path: Path) -> None:
    runtime = make_runtime("import os, json; print(json.dumps(dict(os.environ)), flush=True)")
    runtime.start(spec())
    eventually_sync(lambda: only(runtime).exit_code == 0)
    environment = json.loads(log(tmp_path))
    assert environment["CORRAL_REPLICA"] == "r1"
    assert environment["CORRAL_VERSION"] == "f" * 64
    assert environment["CORRAL_MODEL_PATH"] == "/models/blob"
    assert environment["CORRAL_SLOTS"] == "3"
    assert environment["CORRAL_CONTEXT_TOKENS"] == "100"
    assert environment["CORRAL_BATCH_TOKENS"] == "512"
    assert environment["CORRAL_THREADS"] == "0"
    assert environment["CORRAL_GPU_LAYERS"] == "-1"
    assert environment["CORRAL_DRAIN_S"] == "5.0"
    assert environment["MARK"]


def test_secrets_are_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "CORRAL_DATABASE_URL",
        "CORRAL_REGISTRY_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "PGPASSWORD",
        "PIP_INDEX_URL",
        "HF_TOKEN",
    ):
        monkeypatch.setenv(name, "secret")
    passed_on = {"CUDA_VISIBLE_DEVICES": "1", "CORRAL_EXACT_TOKENS": "8", "CORRAL_FAKE_TOKEN_S": "0.1"}
    for name, value in passed_on.items():
        monkeypatch.setenv(name, value)
    environment = worker_environment()
    assert "secret" not in environment.values()
    assert environment.items() >= passed_on.items()


def test_starting_twice_does_nothing(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    runtime.start(spec())
    first = only(runtime)
    runtime.start(spec())
    assert only(runtime) == first


def test_stopping_an_unknown_worker_does_nothing(make_runtime: MakeRuntime) -> None:
    make_runtime().stop("r1")


def test_an_exit_is_reported_until_the_next_start(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(BROKEN)
    runtime.start(spec())
    eventually_sync(lambda: only(runtime).exit_code is not None)
    first = only(runtime)
    assert (first.exit_code, first.last_line) == (3, "model is broken")
    runtime.start(spec())
    assert only(runtime).pid != first.pid


def test_a_signal_is_a_negative_exit_code(make_runtime: MakeRuntime, tmp_path: Path) -> None:
    runtime = make_runtime()
    runtime.start(spec())
    up(tmp_path)
    os.kill(only(runtime).pid, signal.SIGKILL)
    eventually_sync(lambda: only(runtime).exit_code == -signal.SIGKILL)
    runtime.stop("r1")
    assert runtime.reports() == ()


def test_a_worker_that_does_not_drain_is_killed_with_its_children(
    make_runtime: MakeRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.node.drain.KILL_GRACE_S", 0.5)
    runtime = make_runtime(FAMILY, drain_s=0.1)
    runtime.start(spec())
    up(tmp_path)
    child = psutil.Process(int(log(tmp_path).split()[0]))
    report = only(runtime)
    runtime.stop("r1")
    assert not psutil.pid_exists(report.pid)
    eventually_sync(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_a_hurried_stop_does_not_wait_for_the_drain(make_runtime: MakeRuntime, tmp_path: Path) -> None:
    runtime = make_runtime(STUBBORN, drain_s=60)
    runtime.start(spec())
    up(tmp_path)
    runtime.hurry()
    started = time.monotonic()
    runtime.close()
    assert time.monotonic() - started < 5
    assert runtime.reports() == ()


def test_nothing_starts_after_close(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    runtime.close()
    with pytest.raises(ModelLoadFailed, match="stopping"):
        runtime.start(spec())


def test_a_missing_program_is_an_error(tmp_path: Path) -> None:
    runtime = ProcessRuntime(tmp_path, environment={}, drain_s=1, command=["/nowhere/worker"])
    with pytest.raises(ModelLoadFailed, match="cannot be started"):
        runtime.start(spec())
    assert runtime.reports() == ()
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize("replica", ["", "../r", "a/b", "a\0b", ".hidden", "x" * 200])
def test_replica_ids_with_paths_are_refused(make_runtime: MakeRuntime, replica: str) -> None:
    with pytest.raises(BadRequest):
        make_runtime().start(spec(replica))


def test_an_image_needs_the_container_runtime(make_runtime: MakeRuntime) -> None:
    with pytest.raises(ModelRefused, match="cannot run the image acme/worker:1$"):
        make_runtime().start(StartSpec("r1", "f" * 64, Path("/models/blob"), EngineSettings(image="acme/worker:1")))


def start_from_another_process(folder: Path, *, crash_before_pid: bool = False) -> int:
    """Starts a worker as an agent that then dies. Returns the worker's pid."""
    code = f"""
import os, sys
from pathlib import Path
from services.node.processes import ProcessRuntime
from services.node.runtime import StartSpec
from services.protocol.engine import EngineSettings
folder = Path({str(folder)!r})
runtime = ProcessRuntime(folder, environment={{"MARK": str(folder)}}, drain_s=5, command=[sys.executable, "-c", {PATIENT!r}])
runtime.start(StartSpec("r1", "f" * 64, Path("/models/blob"), EngineSettings()))
print(runtime.reports()[0].pid, flush=True)
os._exit(1)
"""
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).stdout)
    if crash_before_pid:
        (folder / "r1.json").write_text('{"replica":"r1"}')
    return pid


@pytest.mark.parametrize("crash_before_pid", [False, True])
def test_workers_of_an_agent_that_crashed_are_adopted(
    make_runtime: MakeRuntime, tmp_path: Path, crash_before_pid: bool
) -> None:
    pid = start_from_another_process(tmp_path, crash_before_pid=crash_before_pid)
    up(tmp_path)
    runtime = make_runtime()
    assert only(runtime) == ProcessReport("r1", pid, None, "")
    runtime.start(spec())
    assert only(runtime).pid == pid, "never doubled"
    runtime.stop("r1")
    assert runtime.reports() == ()
    eventually_sync(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_a_worker_that_died_with_its_agent_is_reported_as_ended(make_runtime: MakeRuntime, tmp_path: Path) -> None:
    pid = start_from_another_process(tmp_path)
    os.kill(pid, signal.SIGKILL)
    eventually_sync(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    runtime = make_runtime()
    assert only(runtime).exit_code == UNKNOWN_EXIT
    runtime.stop("r1")
    assert runtime.reports() == ()


def test_a_process_with_a_reused_pid_is_not_adopted(make_runtime: MakeRuntime, tmp_path: Path) -> None:
    (tmp_path / "r1.json").write_text(json.dumps({"replica": "r1", "pid": os.getpid(), "created_at": 1.0}))
    runtime = make_runtime()
    assert only(runtime).exit_code == UNKNOWN_EXIT


def test_unreadable_state_files_are_removed(make_runtime: MakeRuntime, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text('{"replica":"b"}')
    assert make_runtime().reports() == ()
    assert not list(tmp_path.glob("*.json"))


def test_a_long_log_is_rotated(make_runtime: MakeRuntime, tmp_path: Path) -> None:
    with (tmp_path / "r1.log").open("wb") as file:
        file.truncate(11 * 1024**2)
    runtime = make_runtime()
    runtime.start(spec())
    up(tmp_path)
    assert (tmp_path / "r1.log.1").stat().st_size == 11 * 1024**2
    assert (tmp_path / "r1.log").stat().st_size < 100
