"""The file that a worker touches while its lease is alive, for a container's health check."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.conditions import eventually
from tests.worker.conftest import StartWorker


def check(pulse: Path, within_s: int = 10) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "services.worker.pulse", str(pulse), str(within_s)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


async def test_a_worker_that_reports_touches_its_pulse(start_worker: StartWorker, tmp_path: Path) -> None:
    pulse = tmp_path / "pulse"
    await start_worker(pulse=pulse, report_s=0.1)
    await eventually(pulse.exists)
    first = pulse.stat().st_mtime_ns
    await eventually(lambda: pulse.stat().st_mtime_ns > first, what="another touch")
    assert check(pulse).returncode == 0


def test_the_check_fails_without_a_recent_pulse(tmp_path: Path) -> None:
    pulse = tmp_path / "pulse"
    done = check(pulse)
    assert (done.returncode, done.stdout) == (1, "no report yet\n")
    pulse.touch()
    assert check(pulse).returncode == 0
    long_ago = time.time() - 60
    os.utime(pulse, (long_ago, long_ago))
    done = check(pulse)
    assert done.returncode == 1
    assert done.stdout.startswith("the last report was 6")


def test_the_check_imports_nothing_else(tmp_path: Path) -> None:
    """It runs every few seconds on the machine that computes."""
    code = "import sys, services.worker.pulse; print([name for name in sys.modules if name.startswith('services')])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "['services', 'services.worker', 'services.worker.pulse']"
