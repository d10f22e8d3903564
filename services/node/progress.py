"""What a pull tells whoever watches, in the words of Ollama's pull, and where it learns that it has to stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from services.protocol.jobs import JobProgress

#: Seconds between two lines of one bar.
_INTERVAL_S = 0.1


class Stopping(Exception):
    """The agent is going down: the job goes back to the queue."""


class Progress:
    """Used by the one thread that does the job."""

    def __init__(self, job: str, publish: Callable[[JobProgress], None], stopping: threading.Event) -> None:
        self._job = job
        self._publish = publish
        self._stopping = stopping
        self._next_line_at = 0.0

    def say(self, status: str) -> None:
        self.check()
        self._publish(JobProgress(self._job, status))

    def bar(self, digest: str, *, completed: int, total: int) -> None:
        """Bytes of the file `digest` (`sha256:<hex>`). A bar's last line, the full one, is never left out."""
        self.check()
        now = time.monotonic()
        if completed < total and now < self._next_line_at:
            return
        self._next_line_at = now + _INTERVAL_S
        short = digest.removeprefix("sha256:")[:12]
        self._publish(JobProgress(self._job, f"pulling {short}", digest, total, completed))

    def check(self) -> None:
        """Raises Stopping. Long waits call it at least twice a second."""
        if self._stopping.is_set():
            raise Stopping
