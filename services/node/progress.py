"""The progress of a pull, with the status texts of Ollama's pull. Also ends a pull if the agent stops or the pull is cancelled."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable

from services.protocol.errors import Conflict
from services.protocol.jobs import PULL_CANCELLED, JobProgress

#: Minimum time between two progress lines of a file.
_PROGRESS_INTERVAL_S = 0.1


class Stopping(Exception):
    """The agent is stopping: the job goes back to the queue."""


class Progress:
    """Publishes the progress of one job. Used by one thread at a time."""

    def __init__(
        self,
        job: str,
        publish: Callable[[JobProgress], None],
        *,
        stopping: threading.Event,
        cancelled: threading.Event,
    ) -> None:
        self._job = job
        self._publish = publish
        self._stopping = stopping
        self._cancelled = cancelled
        self._next_line_at = 0.0
        self._status = ""

    def say(self, status: str) -> None:
        """Publishes a step. A step that was just published is not repeated."""
        self.check()
        if status != self._status:
            self._publish(JobProgress(self._job, status))
        self._status = status

    def bar(self, digest: str, *, completed: int, total: int) -> None:
        """Publishes the progress of the file `digest` (`sha256:<hex>`) in bytes, at most once per interval. The last line, with
        `completed` equal to `total`, is never skipped."""
        self.check()
        now = time.monotonic()
        if completed < total and now < self._next_line_at:
            return
        self._next_line_at = now + _PROGRESS_INTERVAL_S
        short = digest.removeprefix("sha256:")[:12]
        self._publish(JobProgress(self._job, f"pulling {short}", digest, total, completed))

    def check(self) -> None:
        """Raises Stopping if the agent is stopping, and Conflict if the pull was cancelled. Long waits call it at least twice a
        second."""
        if self._stopping.is_set():
            raise Stopping
        if self._cancelled.is_set():
            raise Conflict(PULL_CANCELLED)


def bar_digest(source: str) -> str:
    """A stand-in for a file's digest in progress lines, before the real one is known. The same for every attempt."""
    return f"sha256:{hashlib.sha256(source.encode()).hexdigest()}"
