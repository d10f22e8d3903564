"""The limit on open files and connections of this process."""

from __future__ import annotations

import resource
import sys


def raise_descriptor_limit() -> int:
    """Raises the soft limit to the hard limit and returns it. Shells and service managers usually set a soft limit of 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard
