"""Processes of a benchmark end with its block."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil

from comparison.processes import child, cpu_seconds, peak_memory_bytes, tree
from tests.conditions import eventually

#: Ignores SIGTERM, and so does its child process.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"])
print("ready", flush=True)
time.sleep(600)
"""


async def test_no_process_outlives_the_block(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with child([sys.executable, "-c", STUBBORN], log=log, grace_s=0.2) as process:
        await eventually(lambda: len(tree(process.pid)) == 2 and "ready" in log.read_text())
        members = tree(process.pid)
    await eventually(lambda: not any(member.is_running() and member.status() != psutil.STATUS_ZOMBIE for member in members))
    assert tree(process.pid) == []


async def test_costs_include_child_processes(tmp_path: Path) -> None:
    with child([sys.executable, "-c", STUBBORN], log=tmp_path / "log", grace_s=0.2) as process:
        await eventually(lambda: len(tree(process.pid)) == 2)
        assert sum(peak_memory_bytes(process.pid).values()) > 2 * 2**20
        assert sum(cpu_seconds(process.pid).values()) > 0
    assert (peak_memory_bytes(process.pid), cpu_seconds(process.pid)) == ({}, {})
