"""What this machine has, and how much of it is left. Inside a container the container's limits count."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import psutil

from services.protocol import cgroups
from services.protocol.reports import Device

_NVIDIA_TIMEOUT_S = 3.0
_NVIDIA_QUERY = ["--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]

log = logging.getLogger(__name__)


class Memory(NamedTuple):
    """Bytes."""

    total: int
    available: int


def cpus(root: Path = cgroups.ROOT) -> int:
    """Cores that this process may use: by affinity, and by the cgroups' quotas."""
    # macOS knows no affinity.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *cgroups.cpu_limits(root)]))


def memory(root: Path = cgroups.ROOT) -> Memory:
    """The tightest of the machine's memory and the limits of the cgroups around this process."""
    machine = psutil.virtual_memory()
    total, available = machine.total, machine.available
    for limit, used in cgroups.memory_limits(root):
        total, available = min(total, limit), min(available, max(limit - used, 0))
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
