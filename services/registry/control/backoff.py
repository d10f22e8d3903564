"""When a failed replica is retried. Pure."""

from __future__ import annotations

from services.protocol.errors import InsufficientMemory, InvalidModelFile, ModelRefused

#: Delay before the first retry. It doubles with each failure in a row, up to MAX_DELAY_S.
INITIAL_DELAY_S = 1.0
MAX_DELAY_S = 60.0

#: If a replica served for at least this long before it failed, the failure counts as the first in a row.
PROVEN_AFTER_S = 60.0

#: Failures that are not retried automatically, because the same attempt would fail again until someone changes something.
_PERMANENT = frozenset({InvalidModelFile.code, ModelRefused.code, InsufficientMemory.code})


def is_permanent(code: str) -> bool:
    return code in _PERMANENT


def retry_delay_s(attempts: int, code: str) -> float | None:
    """The delay after `attempts` failures in a row. None: it is not retried automatically."""
    if is_permanent(code):
        return None
    return float(min(MAX_DELAY_S, INITIAL_DELAY_S * 2 ** min(attempts - 1, 16)))


def failures_in_a_row(attempts: int, ready_s: float | None) -> int:
    """`ready_s` is how long the replica served before it failed, None if it was never ready."""
    return 1 if ready_s is not None and ready_s >= PROVEN_AFTER_S else attempts
