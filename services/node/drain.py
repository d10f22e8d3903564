"""Drain: how every runtime ends workers."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Protocol

#: How long a worker may take to exit after its drain deadline, before it is killed; and after that, before it is given up.
KILL_GRACE_S = 5.0

_POLL_INTERVAL_S = 0.05


class Drainable(Protocol):
    """A worker, as a process or a container."""

    @property
    def has_ended(self) -> bool: ...

    def terminate(self) -> None:
        """Asks the worker to finish its requests and exit."""

    def kill(self) -> None: ...


class Drain:
    """Ends workers. `drain_s`: how long they may take to finish their requests. `hurry` ends every wait for that."""

    def __init__(self, drain_s: float) -> None:
        self._drain_s = drain_s
        self._hurried = threading.Event()

    def hurry(self) -> None:
        self._hurried.set()

    def end(self, workers: Sequence[Drainable]) -> None:
        """Asks the workers to exit, waits until they have ended, and kills them if that takes too long."""
        for worker in workers:
            worker.terminate()
        if not _wait(workers, self._drain_s + KILL_GRACE_S, unless=self._hurried):
            for worker in workers:
                worker.kill()
            _wait(workers, KILL_GRACE_S)


def _wait(workers: Sequence[Drainable], timeout_s: float, *, unless: threading.Event | None = None) -> bool:
    """Whether all workers ended before the timeout and before the event `unless`."""
    deadline = time.monotonic() + timeout_s
    while not all(worker.has_ended for worker in workers):
        if time.monotonic() > deadline or (unless and unless.is_set()):
            return False
        time.sleep(_POLL_INTERVAL_S)
    return True
