"""The file whose age says whether a worker's lease is alive: the worker touches it after each report that Redis took, its
container's health check looks at it.

    python -m services.worker.pulse FILE SECONDS

says by its exit code whether the file was touched within so many seconds. It imports nothing of ours: it runs every few seconds
beside the model.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path


def age_s(pulse: Path) -> float | None:
    """None before the first touch."""
    try:
        return time.time() - pulse.stat().st_mtime
    except FileNotFoundError:
        return None


def main(pulse: str, within_s: str) -> int:
    age = age_s(Path(pulse))
    if age is not None and age <= float(within_s):
        return 0
    print("no report yet" if age is None else f"the last report was {age:.0f} s ago")  # noqa: T201 the engine keeps it
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
