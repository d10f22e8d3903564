"""Parses keep_alive: seconds, or a Go duration such as `10m` or `1h30m`."""

from __future__ import annotations

import math
import re

from services.gateway.dialects.bodies import check_limit
from services.gateway.dialects.limits import DURATIONS
from services.protocol.errors import BadRequest

FOREVER_MS = -1
#: The longest Go duration: 292 years.
_LIMIT_MS = (2**63 - 1) // 1_000_000

_UNIT_MS = {"ns": 1e-6, "us": 1e-3, "µs": 1e-3, "μs": 1e-3, "ms": 1.0, "s": 1e3, "m": 60e3, "h": 3600e3}
_PART = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?P<unit>[^0-9.]*)")


def keep_alive_ms(value: object) -> int | None:
    """Converts to milliseconds: negative means forever, None means not specified. Raises BadRequest with Go's messages."""
    match value:
        case None:
            return None
        case bool():
            raise BadRequest("keep_alive: expected a number of seconds or a duration, got bool", field="keep_alive")
        case int() | float():
            return _bounded(value * 1000.0 if abs(value) < _LIMIT_MS else math.copysign(math.inf, value))
        case str():
            check_limit(DURATIONS, len(value), field="keep_alive")
            return _bounded(_go_duration_ms(value))
        case _:
            raise BadRequest("keep_alive: expected a number of seconds or a duration", field="keep_alive")


def _bounded(milliseconds: float) -> int:
    """Rounds up, so that a short duration doesn't become 0."""
    if milliseconds < 0:
        return FOREVER_MS
    return math.ceil(min(milliseconds, _LIMIT_MS))


def _go_duration_ms(text: str) -> float:
    unsigned = text[1:] if text[:1] in ("+", "-") else text
    if unsigned == "0":
        return 0.0
    parts = list(_PART.finditer(unsigned))
    if not parts or "".join(part[0] for part in parts) != unsigned:
        raise BadRequest(f'time: invalid duration "{text}"', field="keep_alive")
    total = sum(float(part["number"]) * _unit_ms(part["unit"], text) for part in parts)
    return -total if text.startswith("-") else total


def _unit_ms(unit: str, text: str) -> float:
    if not unit:
        raise BadRequest(f'time: missing unit in duration "{text}"', field="keep_alive")
    if unit not in _UNIT_MS:
        raise BadRequest(f'time: unknown unit "{unit}" in duration "{text}"', field="keep_alive")
    return _UNIT_MS[unit]
