"""The limits that a container, or a service manager, puts around this process: those of cgroups, version 2 or 1.

Agents and workers both live within them, and not always within the same. Empty on systems without cgroups.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/")

#: Version 1 says "no limit" with the largest number of pages that it can count.
_NO_LIMIT = 1 << 60


class MemoryLimit(NamedTuple):
    """Bytes. `used` leaves out file pages that the kernel drops when asked."""

    limit: int
    used: int


def memory_limits(root: Path = ROOT) -> Iterator[MemoryLimit]:
    """Each applies to what is below it; the innermost comes first."""
    for group in _groups(root):
        limit = _read(group / "memory.max")
        if limit.isdecimal():
            yield MemoryLimit(int(limit), _used(group, "memory.current", "inactive_file"))
    for group in _groups(root, "memory"):
        limit = _read(group / "memory.limit_in_bytes")
        if limit.isdecimal() and int(limit) < _NO_LIMIT:
            yield MemoryLimit(int(limit), _used(group, "memory.usage_in_bytes", "total_inactive_file"))


def cpu_limits(root: Path = ROOT) -> Iterator[int]:
    """Quotas in cores, rounded up."""
    for group in _groups(root):
        quota, _, period = _read(group / "cpu.max").partition(" ")
        yield from _cores(quota, period)
    for group in _groups(root, "cpu"):
        yield from _cores(_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us"))


def _cores(quota: str, period: str) -> Iterator[int]:
    """Nothing for `max` and -1, which are no quota."""
    if quota.isdecimal() and period.isdecimal():
        yield -(-int(quota) // int(period))


def _groups(root: Path, controller: str = "") -> list[Path]:
    """Folders of the cgroups that this process is in, the innermost first. Version 2 has one tree for all and no names of controllers;
    in version 1 each has a tree of its own."""
    top = root / "sys/fs/cgroup" / controller
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            inner = top / path.removeprefix("/")
            return [group for group in (inner, *inner.parents) if group.is_relative_to(top)]
    return []


def _used(group: Path, used: str, droppable: str) -> int:
    statistics = dict(line.split(" ", 1) for line in _read(group / "memory.stat").splitlines() if " " in line)
    return int(_read(group / used) or 0) - int(statistics.get(droppable, 0))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
