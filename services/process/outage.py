"""Waiting for Redis or PostgreSQL while they do not answer."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable

from services.protocol.errors import CorralError

INITIAL_WAIT_S = 0.1
MAX_WAIT_S = 2.0


class Outage:
    """An outage as the loops of one process see it.

    It begins when the first loop gets no answer and ends when every loop that waited has one: one line in the log each. Loops
    wait twice as long from try to try, up to `max_wait_s`, each time between half of that and all of it, so that processes do
    not come back in step.
    """

    def __init__(
        self,
        log: logging.Logger,
        *,
        max_wait_s: float = MAX_WAIT_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._log = log
        self._sleep = sleep
        self._max_wait_s = max_wait_s
        self._since: float | None = None
        self._waits_s: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        """How long it has lasted; 0 if there is none."""
        return 0.0 if self._since is None else time.monotonic() - self._since

    def begin(self, loop: str, error: CorralError) -> None:
        if self._since is None:
            self._since = time.monotonic()
            self._log.error("outage: loop=%s error=%r", loop, error.message)
        self._waits_s.setdefault(loop, INITIAL_WAIT_S)

    async def wait(self, loop: str, error: CorralError) -> None:
        """Until it is time for the loop's next try."""
        self.begin(loop, error)
        wait_s = self._waits_s[loop]
        self._waits_s[loop] = min(self._max_wait_s, wait_s * 2)
        await self._sleep(wait_s * random.uniform(0.5, 1))

    def over(self, loop: str) -> None:
        """The loop has had an answer."""
        if self._waits_s.pop(loop, None) is not None and not self._waits_s:
            self._log.warning("outage over: seconds=%.1f", self.seconds)
            self._since = None
