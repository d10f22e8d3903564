"""What this machine has, and how much of it is left. Inside a container the container's limits count."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import psutil

from services.protocol.reports import Device

_NVIDIA_TIMEOUT_S = 3.0
_NVIDIA_QUERY = ["--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]

log = logging.getLogger(__name__)


class Memory(NamedTuple):
    """Bytes."""

    total: int
    available: int


def cpus(root: Path = Path("/")) -> int:
    """Cores that this process may use: by affinity, and by the cgroup's quota rounded up."""
    cores = len(os.sched_getaffinity(0))
    for group in _cgroups(root):
        quota, _, period = _read(group / "cpu.max").partition(" ")
        if quota.isdecimal() and period.isdecimal():
            cores = min(cores, -(-int(quota) // int(period)))
    return max(cores, 1)


def memory(root: Path = Path("/")) -> Memory:
    """The tightest of the machine's memory and the limits of the cgroups around this process."""
    machine = psutil.virtual_memory()
    total, available = machine.total, machine.available
    for group in _cgroups(root):
        limit = _read(group / "memory.max")
        if limit.isdecimal():
            total = min(total, int(limit))
            available = min(available, max(int(limit) - _used(group), 0))
    return Memory(total, available)


def devices() -> tuple[Device, ...] | None:
    """NVIDIA's accelerators; None where they do not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        answer = subprocess.run(
            [program, *_NVIDIA_QUERY],
            capture_output=True,
            text=True,
            timeout=_NVIDIA_TIMEOUT_S,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("nvidia-smi does not answer: %s", error)
        return None
    return tuple(_device(line) for line in answer.stdout.splitlines() if "," in line)


def _device(line: str) -> Device:
    """Memory comes in MiB; a card that shares the machine's memory says [N/A]."""
    name, _, mebibytes = line.rpartition(",")
    size = mebibytes.strip()
    return Device("cuda", name.strip(), int(size) * 1024**2 if size.isdecimal() else 0)


def _cgroups(root: Path) -> list[Path]:
    """Folders of the (version 2) cgroups that this process is in, the innermost first."""
    top = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        if line.startswith("0::/"):
            inner = top / line.removeprefix("0::/")
            return [group for group in (inner, *inner.parents) if group.is_relative_to(top)]
    return []


def _used(group: Path) -> int:
    """The group's memory without file pages that the kernel drops when asked."""
    statistics = dict(line.split(" ", 1) for line in _read(group / "memory.stat").splitlines() if " " in line)
    return int(_read(group / "memory.current") or 0) - int(statistics.get("inactive_file", 0))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
