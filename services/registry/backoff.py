"""When a failed replica may have a successor. Pure."""

from __future__ import annotations

from services.protocol.errors import InsufficientMemory, InvalidModelFile, ModelRefused

#: The first retry comes after a second, each further one after twice the time, at most a minute.
FIRST_S = 1.0
LONGEST_S = 60.0

#: A replica that served for so long has proved itself: its failure counts as the first one.
PROVEN_AFTER_S = 60.0

#: Failures that another try of the same cannot cure, or not by itself: memory is freed by somebody.
_PERMANENT = frozenset({InvalidModelFile.code, ModelRefused.code, InsufficientMemory.code})


def is_permanent(code: str) -> bool:
    return code in _PERMANENT


def retry_delay_s(attempts: int, code: str) -> float | None:
    """After `attempts` failures in a row. None: only when somebody asks again."""
    if is_permanent(code):
        return None
    return float(min(LONGEST_S, FIRST_S * 2 ** min(attempts - 1, 16)))


def failures_in_a_row(attempts: int, ready_s: float | None) -> int:
    """`ready_s` is how long the replica served before it failed, None where it never did."""
    return 1 if ready_s is not None and ready_s >= PROVEN_AFTER_S else attempts
