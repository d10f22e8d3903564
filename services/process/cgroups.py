"""Memory and CPU limits of the cgroups (version 1 or 2) that this process runs in, as set by a container runtime or service manager.

On systems without cgroups there are none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/")

#: Version 1 reports "no limit" as the largest page count that it can represent.
_NO_LIMIT = 1 << 60


class MemoryLimit(NamedTuple):
    """In bytes. `used` excludes inactive file pages, which the kernel can reclaim."""

    limit: int
    used: int


def memory_limits(root: Path = ROOT) -> Iterator[MemoryLimit]:
    """The limits of this process's cgroup and of its ancestors, innermost first. All of them apply."""
    for group in _groups(root):
        limit = _read(group / "memory.max")
        if limit.isdecimal():
            yield MemoryLimit(int(limit), _used(group, "memory.current", "inactive_file"))
    for group in _groups(root, "memory"):
        limit = _read(group / "memory.limit_in_bytes")
        if limit.isdecimal() and int(limit) < _NO_LIMIT:
            yield MemoryLimit(int(limit), _used(group, "memory.usage_in_bytes", "total_inactive_file"))


def cpu_limits(root: Path = ROOT) -> Iterator[int]:
    """CPU quotas in cores, rounded up, innermost first."""
    for group in _groups(root):
        quota, _, period = _read(group / "cpu.max").partition(" ")
        yield from _cores(quota, period)
    for group in _groups(root, "cpu"):
        yield from _cores(_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us"))


def _cores(quota: str, period: str) -> Iterator[int]:
    """Yields nothing for `max` (version 2) and -1 (version 1), which mean "no quota"."""
    if quota.isdecimal() and period.isdecimal():
        yield -(-int(quota) // int(period))


def _groups(root: Path, controller: str = "") -> list[Path]:
    """The folders of this process's cgroup and its ancestors, innermost first.

    Version 1 has a separate tree for each controller; version 2 has one tree, and no controller name in `/proc/self/cgroup`.
    """
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
