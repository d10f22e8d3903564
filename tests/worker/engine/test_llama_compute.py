"""How many threads llama.cpp computes with: its settings, and on a machine with other work."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from llama_cpp import llama_cpp

from services.process import cgroups, cpus
from services.protocol.engine import EngineSettings
from services.worker.engine import SPIN_COUNT
from services.worker.engine.cores import num_threads
from services.worker.engine.llama import LlamaRunner
from services.worker.engine.runner import Span

DEADLINE_S = 60


@contextmanager
def running(path: Path, *, threads: int) -> Iterator[LlamaRunner]:
    runner = LlamaRunner(path, EngineSettings(slots=1, context_tokens=512, threads=threads))
    try:
        yield runner
    finally:
        runner.close()


@contextmanager
def busy_cores() -> Iterator[None]:
    """Runs two busy loops per core."""
    with ExitStack() as stack:
        for _ in range(2 * num_threads(0)):
            stack.callback(_end, subprocess.Popen([sys.executable, "-c", "while True: pass"]))
        yield


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def step(runner: LlamaRunner) -> None:
    runner.decode([Span(0, 0, list(range(100, 164)), True)])
    runner.cut(0, 0)


def test_threads_are_limited_to_the_containers_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert num_threads(0) >= 1
    monkeypatch.setattr(cpus, "affinity", lambda: set(range(8)))
    monkeypatch.setattr(cgroups, "cpu_limits", lambda root: iter([3, 5]))
    assert num_threads(64) == 3
    assert num_threads(2) == 2


def test_threads_are_limited_to_the_cores_in_the_affinity() -> None:
    code = "from services.worker.engine.cores import num_threads; print([num_threads(setting) for setting in (0, 1, 2, 64)])"
    core = min(os.sched_getaffinity(0))
    pinned = subprocess.run(
        [sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{core}}}); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert pinned.stdout.strip() == "[1, 1, 1, 1]"


def test_busy_cores_are_left_to_other_processes(smollm2_path: Path) -> None:
    with running(smollm2_path, threads=0) as runner, busy_cores():
        deadline = time.monotonic() + DEADLINE_S
        while runner.threads > 1 and time.monotonic() < deadline:
            step(runner)
        assert runner.threads == 1
        step(runner)
        assert llama_cpp.llama_n_threads(runner._context) == llama_cpp.llama_n_threads_batch(runner._context) == 1


def test_a_configured_number_of_threads_is_kept(smollm2_path: Path) -> None:
    with running(smollm2_path, threads=2) as runner, busy_cores():
        until = time.monotonic() + 1
        while time.monotonic() < until:
            step(runner)
        assert runner.threads == num_threads(2)


def test_the_number_of_threads_does_not_change_the_results(smollm2_path: Path) -> None:
    """While fewer than 512 cells are used; beyond that, attention is summed in as many parts as there are threads."""
    with running(smollm2_path, threads=0) as runner:
        rows = []
        for threads in (1, 2, 3):
            llama_cpp.llama_set_n_threads(runner._context, threads, threads)
            prompt = runner.decode([Span(0, 0, list(range(100, 300)), True)])[0].copy()
            token = runner.decode([Span(0, 200, [300], True)])[0].copy()
            runner.cut(0, 0)
            rows.append((prompt, token))
        assert all(np.array_equal(one, other) for row in rows[1:] for one, other in zip(rows[0], row, strict=True))


def test_waiting_threads_sleep_soon() -> None:
    """libgomp reads GOMP_SPINCOUNT from the environment."""
    code = "import os, services.worker.engine.llama; print(os.environ['GOMP_SPINCOUNT'])"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    for own, shown in (({}, str(SPIN_COUNT)), ({"GOMP_SPINCOUNT": "7"}, "7")):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**environment, **own}
        )
        assert done.stdout.strip() == shown
