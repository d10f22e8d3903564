"""The CPU cores that this process may use."""

from __future__ import annotations

import os
from pathlib import Path

from services.process import cgroups


def affinity() -> set[int]:
    """The numbers of the cores on which this process may run."""
    # macOS has no CPU affinity.
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def num_cpus(root: Path = cgroups.ROOT) -> int:
    """How many cores this process may use, by its affinity and the quotas of its cgroups. At least 1."""
    return max(1, min([len(affinity()), *cgroups.cpu_limits(root)]))
