"""How many threads llama.cpp computes with, in its settings and beside other work."""

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

from services.process import cgroups
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
    """With two busy loops on each of them."""
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


def test_threads_are_no_more_than_a_container_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert num_threads(0) >= 1
    monkeypatch.setattr(cgroups, "cpu_limits", lambda: iter([3, 5]))
    assert num_threads(64) == 3
    assert num_threads(2) == 2


def test_cores_that_others_use_are_left_to_them(smollm2_path: Path) -> None:
    with running(smollm2_path, threads=0) as runner, busy_cores():
        deadline = time.monotonic() + DEADLINE_S
        while runner.threads > 1 and time.monotonic() < deadline:
            step(runner)
        assert runner.threads == 1
        step(runner)
        assert llama_cpp.llama_n_threads(runner._context) == llama_cpp.llama_n_threads_batch(runner._context) == 1


def test_a_number_that_was_asked_for_is_kept(smollm2_path: Path) -> None:
    with running(smollm2_path, threads=2) as runner, busy_cores():
        until = time.monotonic() + 1
        while time.monotonic() < until:
            step(runner)
        assert runner.threads == num_threads(2)


def test_threads_do_not_change_what_is_computed(smollm2_path: Path) -> None:
    """While fewer than 512 cells are used; beyond that attention is summed in as many parts as there are threads."""
    with running(smollm2_path, threads=0) as runner:
        rows = []
        for threads in (1, 2, 3):
            llama_cpp.llama_set_n_threads(runner._context, threads, threads)
            prompt = runner.decode([Span(0, 0, list(range(100, 300)), True)])[0].copy()
            token = runner.decode([Span(0, 200, [300], True)])[0].copy()
            runner.cut(0, 0)
            rows.append((prompt, token))
        assert all(np.array_equal(one, other) for row in rows[1:] for one, other in zip(rows[0], row, strict=True))


def test_threads_that_wait_sleep_soon() -> None:
    """libgomp reads it from the environment, whoever started this process."""
    code = "import os, services.worker.engine.llama; print(os.environ['GOMP_SPINCOUNT'])"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    for own, shown in (({}, str(SPIN_COUNT)), ({"GOMP_SPINCOUNT": "7"}, "7")):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**environment, **own}
        )
        assert done.stdout.strip() == shown
