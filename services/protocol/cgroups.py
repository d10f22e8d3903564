"""The limits that a container, or a service manager, puts around this process: those of cgroups version 2.

Agents and workers both live within them, and not always within the same. Empty on systems without cgroups.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/")


class MemoryLimit(NamedTuple):
    """Bytes. `used` leaves out file pages that the kernel drops when asked."""

    limit: int
    used: int


def memory_limits(root: Path = ROOT) -> Iterator[MemoryLimit]:
    """Each applies to what is below it; the innermost comes first."""
    for group in _groups(root):
        limit = _read(group / "memory.max")
        if limit.isdecimal():
            yield MemoryLimit(int(limit), _used(group))


def cpu_limits(root: Path = ROOT) -> Iterator[int]:
    """Quotas in cores, rounded up."""
    for group in _groups(root):
        quota, _, period = _read(group / "cpu.max").partition(" ")
        if quota.isdecimal() and period.isdecimal():
            yield -(-int(quota) // int(period))


def _groups(root: Path) -> list[Path]:
    """Folders of the cgroups that this process is in, the innermost first."""
    top = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        if line.startswith("0::/"):
            inner = top / line.removeprefix("0::/")
            return [group for group in (inner, *inner.parents) if group.is_relative_to(top)]
    return []


def _used(group: Path) -> int:
    statistics = dict(line.split(" ", 1) for line in _read(group / "memory.stat").splitlines() if " " in line)
    return int(_read(group / "memory.current") or 0) - int(statistics.get("inactive_file", 0))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
