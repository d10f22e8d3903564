"""One process of the platform: how to start it, check that it is ready, and stop it."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

#: A process that ran this long counts as healthy: its next crash counts as the first again.
HEALTHY_S = 60.0
INITIAL_DELAY_S = 0.5
MAX_DELAY_S = 30.0


@dataclass(frozen=True)
class ManagedProcess:
    """How the supervisor runs one process.

    - `name` is shown to the user.
    - `environment` is the complete environment of the process.
    - `ready` is called with the pid until it returns True.
    - `stdin` passes secrets that must not appear in arguments.
    - `stop_signal` asks the process to stop within `grace_s`, `hurry_signal` to stop at once.
    """

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
    """The delay before a crashed process is restarted: 0.5 s, doubling up to 30 s."""

    def __init__(self) -> None:
        self._next_s = INITIAL_DELAY_S

    def after(self, lived_s: float) -> float:
        if lived_s >= HEALTHY_S:
            self._next_s = INITIAL_DELAY_S
        delay_s = self._next_s
        self._next_s = min(2 * delay_s, MAX_DELAY_S)
        return delay_s


def describe_exit(code: int) -> str:
    """Describes an exit code: `ended with exit code 3`, `was ended by SIGKILL`."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
