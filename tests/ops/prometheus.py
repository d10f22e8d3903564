"""Prometheus and promtool: installed ones, or Debian's package, unpacked into the tests' cache without installing it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.conftest import CACHE

_UNPACKED = CACHE / "prometheus"


def program(name: str) -> Path | None:
    """`prometheus` or `promtool`; None where there is neither one nor a Debian to get it from."""
    if installed := shutil.which(name):
        return Path(installed)
    unpacked = _UNPACKED / "usr" / "bin" / name
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
