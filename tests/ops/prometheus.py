"""Prometheus and promtool: installed, or from Debian's package, unpacked into the tests' cache."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.conftest import CACHE, cache_lock

RULES = sorted((Path(__file__).parents[2] / "ops" / "prometheus" / "rules").glob("*.yml"))

_UNPACKED = CACHE / "prometheus"


def program(name: str) -> Path | None:
    """`prometheus` or `promtool`; None if neither is installed nor available from Debian."""
    if installed := shutil.which(name):
        return Path(installed)
    unpacked = _UNPACKED / "usr" / "bin" / name
    with cache_lock():
        if not unpacked.exists() and shutil.which("apt-get") and shutil.which("dpkg-deb"):
            _unpack()
    return unpacked if unpacked.exists() else None


def _unpack() -> None:
    with tempfile.TemporaryDirectory() as folder:
        fetched = subprocess.run(
            ["apt-get", "download", "--quiet", "prometheus"], cwd=folder, capture_output=True, timeout=300, check=False
        )
        package = next(Path(folder).glob("prometheus_*.deb"), None)
        if fetched.returncode == 0 and package is not None:
            subprocess.run(["dpkg-deb", "-x", package, _UNPACKED], check=True, timeout=120)


def promtool(*arguments: str | Path) -> None:
    found = program("promtool")
    if found is None:
        pytest.skip("promtool is not installed (Debian's package is called prometheus)")
    done = subprocess.run([found, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
