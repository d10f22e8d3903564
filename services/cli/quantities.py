"""Formats sizes, times and durations for people, worded like Ollama's tables."""

from __future__ import annotations

import math
from datetime import UTC, datetime

MINUTE_S = 60
HOUR_S = 3600
DAY_H = 24
YEAR_S = 365 * DAY_H * HOUR_S

#: An endless keep_alive arrives as a date some centuries away.
FOREVER_S = 20 * YEAR_S


def size_text(size: int) -> str:
    """Decimal units: `4.7 GB`, `91 MB`, `512 B`."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if size >= factor:
            value = size / factor
            return f"{int(value)} {unit}" if value >= 10 or value == int(value) else f"{value:.1f} {unit}"
    return f"{size} B"


def binary_size_text(size: int) -> str:
    """Binary units, for memory and disk: `7.6 GiB`."""
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"


def count_text(count: int) -> str:
    """A number of parameters: `134.52M`."""
    for unit, factor in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= factor:
            return f"{count / factor:.2f}{unit}"
    return str(count)


def time_text(moment: datetime, *, now: datetime | None = None) -> str:
    """`3 hours ago`, `4 minutes from now`, `Forever`."""
    ahead_s = (moment - (now or datetime.now(UTC))).total_seconds()
    if ahead_s > FOREVER_S:
        return "Forever"
    return f"{_span_text(ahead_s)} from now" if ahead_s > 0 else f"{_span_text(-ahead_s)} ago"


def _span_text(seconds: float) -> str:
    minutes, hours = int(seconds / MINUTE_S), int(seconds / HOUR_S + 0.5)
    if seconds < 1:
        return "Less than a second"
    if minutes < 1:
        return f"{int(seconds)} second{'s' if int(seconds) > 1 else ''}"
    if minutes < 60:
        return "About a minute" if minutes == 1 else f"{minutes} minutes"
    return "About an hour" if hours == 1 else _long_span_text(hours)


def _long_span_text(hours: int) -> str:
    for limit_days, unit, unit_days in ((2, "hours", 1 / DAY_H), (14, "days", 1), (60, "weeks", 7), (730, "months", 30)):
        if hours < limit_days * DAY_H:
            return f"{int(hours / DAY_H / unit_days + 1e-9)} {unit}"
    return f"{hours // DAY_H // 365} years"


def duration_text(nanoseconds: int) -> str:
    """Go's format for durations, rounded: `1.234567s`, `81.2ms`, `1m2.5s`."""
    seconds = nanoseconds / 1e9
    if seconds >= MINUTE_S:
        minutes, rest = divmod(seconds, MINUTE_S)
        return f"{int(minutes)}m{_trimmed(rest, 3)}s"
    if seconds >= 1:
        return f"{_trimmed(seconds, 6)}s"
    if nanoseconds >= 1_000_000:
        return f"{_trimmed(nanoseconds / 1e6, 3)}ms"
    return f"{_trimmed(nanoseconds / 1e3, 3)}µs"


def _trimmed(value: float, digits: int) -> str:
    return f"{math.floor(value * 10**digits + 0.5) / 10**digits:.{digits}f}".rstrip("0").rstrip(".")
