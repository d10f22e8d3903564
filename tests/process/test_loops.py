"""A background loop that fails ends its process: with a line that names it, a traceback, and an exit code."""

from __future__ import annotations

import subprocess
import sys

import pytest

from services.process.loops import EXIT_CODE

_TASK = """
import asyncio
from services.process.loops import Loops

async def breaks():
    await asyncio.sleep(0)
    raise ValueError("a bug")

async def main():
    loops = Loops()
    loops.start("the broken one", breaks())
    await asyncio.sleep(60)

asyncio.run(main())
"""

_THREAD = """
import threading, time
from services.process.loops import vital_thread

def breaks():
    raise ValueError("a bug")

threading.Thread(target=vital_thread, args=("the broken one", breaks), daemon=True).start()
time.sleep(60)
"""

_ORDERLY = """
import asyncio
from services.process.loops import Loops

async def main():
    loops = Loops()
    loops.start("one", asyncio.sleep(60))
    await asyncio.sleep(0)
    await loops.stop()

asyncio.run(main())
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False)


@pytest.mark.parametrize("program", [_TASK, _THREAD], ids=["task", "thread"])
def test_a_failed_loop_ends_the_process(program: str) -> None:
    done = run(program)
    assert done.returncode == EXIT_CODE
    assert done.stderr.startswith("background loop failed, the process exits: loop=the broken one\n")
    assert done.stderr.rstrip().endswith("ValueError: a bug")


def test_a_stopped_loop_is_not_an_error() -> None:
    done = run(_ORDERLY)
    assert (done.returncode, done.stderr) == (0, "")
