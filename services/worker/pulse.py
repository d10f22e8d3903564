"""The pulse file: the worker touches it after each report that Redis accepted, and the container's health check reads its age.

    python -m services.worker.pulse FILE SECONDS

exits with 0 if the file was touched within the last SECONDS. This module imports no other module of Corral, because it runs
every few seconds next to the model.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path


def age_s(pulse: Path) -> float | None:
    """Seconds since the last touch; None before the first."""
    try:
        return time.time() - pulse.stat().st_mtime
    except FileNotFoundError:
        return None


def main(pulse: str, within_s: str) -> int:
    age = age_s(Path(pulse))
    if age is not None and age <= float(within_s):
        return 0
    print("no report yet" if age is None else f"the last report was {age:.0f} s ago")  # noqa: T201 Docker keeps it
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
