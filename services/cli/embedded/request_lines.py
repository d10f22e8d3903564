"""Shows finished requests while `corral up` runs, from the gateway's log, which has a line for each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

#: What follows the time in a line of the gateway's access log (services.telemetry.logs).
_MARK = " INFO corral.access: "
_TIME = slice(len("2026-11-27 "), len("2026-11-27 18:30:00"))

LOG_POLL_INTERVAL_S = 0.2
#: How many lines to show per poll. A busy gateway writes more than anyone can read.
MAX_LINES = 20


async def follow(log: Path, show: Callable[[str], None]) -> None:
    """Shows new request lines until cancelled. Lines from before the call are skipped."""
    position = _size(log)
    while True:
        await asyncio.sleep(LOG_POLL_INTERVAL_S)
        text, position = read_new(log, position)
        requests = [line for line in text.splitlines() if _MARK in line]
        for line in requests[:MAX_LINES]:
            stamp, _, request = line.partition(_MARK)
            show(f"{stamp[_TIME]}  {request}")
        if len(requests) > MAX_LINES:
            show(f"... and {len(requests) - MAX_LINES} more requests")


def read_new(log: Path, position: int) -> tuple[str, int]:
    """The complete lines after `position`, and the position after them. If the supervisor has truncated the log, starts from
    the beginning."""
    size = _size(log)
    start = position if size >= position else 0
    if size == start:
        return "", start
    with log.open("rb") as file:
        file.seek(start)
        lines, newline, _ = file.read(size - start).rpartition(b"\n")
    return lines.decode(errors="replace"), start + len(lines) + len(newline)


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0
