"""This machine's memory and accelerators. Inside a container, the container's limits apply."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import psutil

from services.process import cgroups
from services.protocol.reports import Device

#: A driver that is waking up takes some seconds to answer.
_DEVICES_TIMEOUT_S = 60.0

log = logging.getLogger(__name__)


class Memory(NamedTuple):
    """Memory in bytes."""

    total: int
    available: int


def memory(root: Path = cgroups.ROOT) -> Memory:
    """The machine's memory, or the tightest limit of this process's cgroups if that is less."""
    machine = psutil.virtual_memory()
    total, available = machine.total, machine.available
    for limit, used in cgroups.memory_limits(root):
        total, available = min(total, limit), min(available, max(limit - used, 0))
    return Memory(total, available)


def machine_memory_available() -> int:
    """Free memory of the whole machine in bytes, regardless of this process's limits."""
    return psutil.virtual_memory().available


def devices(command: Sequence[str], environment: Mapping[str, str]) -> tuple[Device, ...] | None:
    """The accelerators that `command` prints as JSON; None if it fails."""
    try:
        answer = subprocess.run(
            command,
            env=dict(environment),
            capture_output=True,
            timeout=_DEVICES_TIMEOUT_S,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        return msgspec.json.decode(answer.stdout, type=tuple[Device, ...])
    except (OSError, subprocess.SubprocessError, msgspec.MsgspecError) as error:
        log.warning("accelerators unknown: error=%r", str(error))
        return None
