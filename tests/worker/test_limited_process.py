from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from services.protocol.errors import BadRequest, InvalidModelFile
from services.worker.limited_process import Crashed, Killed, LimitedProcessPool, LimitExceeded, Limits, OutOfMemory, TimedOut

MODULE = "tests.worker.limited_child_probe"
MB = 1 << 20
DEADLINE_S = 30.0


@contextlib.contextmanager
def pool_of(size: int = 1, setup: str = "setup", **limits: Any) -> Iterator[LimitedProcessPool]:
    bounds = {"cpu_s": 5.0, "wall_s": 60.0, "memory_bytes": 64 * MB, **limits}
    pool = LimitedProcessPool(MODULE, setup, limits=Limits(**bounds), size=size)
    try:
        yield pool
    finally:
        pool.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def has_ended(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


@pytest.mark.parametrize("value", ["", "x" * (3 * MB), [1, 2.5, None, {"a": b"b"}]])
def test_values_are_passed_both_ways(value: object) -> None:
    with pool_of() as pool:
        assert pool.call(["echo", value], object) == value


def test_one_child_answers_its_setup_and_many_calls() -> None:
    with pool_of() as pool:
        assert pool.start(str) == "SETUP"
        assert len({pool.call(["pid"], int) for _ in range(5)}) == 1


def test_a_refused_setup_is_raised_by_every_call() -> None:
    with pool_of(setup="refuse") as pool:
        for _ in range(2):
            with pytest.raises(InvalidModelFile, match="no such setup"):
                pool.call(["pid"], int)


def test_a_refusal_keeps_the_child() -> None:
    with pool_of() as pool:
        child = pool.call(["pid"], int)
        with pytest.raises(BadRequest, match="not this") as refused:
            pool.call(["refuse"], str)
        assert refused.value.field == "that"
        assert pool.call(["pid"], int) == child


@pytest.mark.parametrize(
    ("request_", "limits", "error"),
    [
        (["burn"], {"cpu_s": 0.2}, TimedOut),
        (["sleep", 600, "/dev/null"], {"wall_s": 2.0}, TimedOut),
        (["allocate", 100 * MB], {}, OutOfMemory),
        (["allocate", 10**15], {}, OutOfMemory),
        (["kill"], {}, Killed),
        (["abort"], {}, Crashed),
        (["exit", 0], {}, Crashed),
        (["bug"], {}, Crashed),
    ],
)
def test_a_child_that_exceeds_a_limit_is_replaced(
    request_: list[Any], limits: dict[str, Any], error: type[LimitExceeded]
) -> None:
    with pool_of(**limits) as pool:
        child = pool.call(["pid"], int)
        with pytest.raises(error):
            pool.call(request_, object)
        assert has_ended(child)
        assert pool.call(["echo", "again"], str) == "again"


def test_a_child_that_died_while_idle_is_replaced() -> None:
    with pool_of() as pool:
        child = pool.call(["pid"], int)
        os.kill(child, signal.SIGKILL)
        until(lambda: has_ended(child))
        assert pool.call(["echo", 1], int) == 1


def test_a_stopped_child_is_replaced() -> None:
    """Even if the child does not read its request."""
    with pool_of(wall_s=2.0) as pool:
        os.kill(pool.call(["pid"], int), signal.SIGSTOP)
        with pytest.raises(TimedOut):
            pool.call(["echo", "x" * (3 * MB)], str)
        assert pool.call(["echo", 1], int) == 1


def test_calls_wait_for_a_child_and_at_most_size_run() -> None:
    async def calls(pool: LimitedProcessPool) -> list[int]:
        return await asyncio.gather(*(pool.call_async(["pid"], int) for _ in range(20)))

    with pool_of(size=2) as pool:
        assert 1 <= len(set(asyncio.run(calls(pool)))) <= 2


async def test_cancelling_a_call_frees_its_child(tmp_path: Path) -> None:
    with pool_of(wall_s=600.0) as pool:
        child = await pool.call_async(["pid"], int)
        running = asyncio.create_task(pool.call_async(["sleep", 600, str(tmp_path / "sleeps")], str))
        waiting = asyncio.create_task(pool.call_async(["sleep", 600, str(tmp_path / "waits")], str))
        await asyncio.to_thread(until, (tmp_path / "sleeps").exists)
        for task in (waiting, running):
            task.cancel()
        assert await pool.call_async(["echo", 1], int) == 1
        assert has_ended(child)
        assert not (tmp_path / "waits").exists()


def test_closing_the_pool_ends_its_processes() -> None:
    with pool_of() as pool:
        child = pool.call(["pid"], int)
    assert has_ended(child)


def test_a_child_ends_with_its_parent() -> None:
    parent = f"""
import os, signal
from services.worker.limited_process import LimitedProcessPool, Limits
pool = LimitedProcessPool({MODULE!r}, "", limits=Limits(cpu_s=1, wall_s=60, memory_bytes={64 * MB}))
print(pool.call(["pid"], int), flush=True)
signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
    until(lambda: has_ended(child))


def test_a_child_inherits_no_credentials_and_no_descriptors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CORRAL_REDIS_URL", "redis://:secret@nowhere")
    with (tmp_path / "open").open("wb") as file, pool_of() as pool:
        os.set_inheritable(file.fileno(), True)
        assert not [name for name in pool.call(["environment"], list[str]) if name.startswith("CORRAL")]
        assert not [path for path in pool.call(["descriptors"], list[str]) if str(tmp_path) in path]
        assert pool.call(["niceness"], int) == min(os.nice(0) + 10, 19)


def test_the_kernel_kills_a_child_first_if_memory_is_short() -> None:
    with pool_of() as pool:
        assert pool.call(["oom score"], int) == 1000


def test_output_of_a_child_is_not_taken_for_a_reply() -> None:
    with pool_of() as pool:
        assert pool.call(["print"], str) == "said"
        assert pool.call(["echo", 1], int) == 1
