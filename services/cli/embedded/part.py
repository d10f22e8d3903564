"""One process of the platform: how it is started, known to be ready, and stopped."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

#: A part that lived so long counts as healthy: the next crash is its first again.
HEALTHY_S = 60.0
FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 30.0


@dataclass(frozen=True)
class Part:
    """`name` is what people read. `environment` is all that the process sees. `ready` is asked again and again with its pid; `stdin` is where secrets go that
    have no place in arguments. `stop_signal` asks it to end in order within `grace_s`,
    `hurry_signal` at once."""

    name: str
    command: tuple[str, ...]
    ready: Callable[[int], Awaitable[bool]]
    environment: Mapping[str, str] = field(repr=False)
    port: int | None = None
    stdin: bytes = field(default=b"", repr=False)
    user: str | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    hurry_signal: signal.Signals = signal.SIGKILL
    grace_s: float = 10.0


class Backoff:
    """How long to wait before a crashed part is started again: 0.5 s, doubling to 30 s."""

    def __init__(self) -> None:
        self._next_s = FIRST_DELAY_S

    def after(self, lived_s: float) -> float:
        if lived_s >= HEALTHY_S:
            self._next_s = FIRST_DELAY_S
        delay_s = self._next_s
        self._next_s = min(2 * delay_s, LONGEST_DELAY_S)
        return delay_s


def describe_exit(code: int) -> str:
    """`ended with exit code 3`, `was ended by SIGKILL`."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
