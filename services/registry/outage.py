"""Waiting while PostgreSQL or Redis does not answer: one line when it begins, one when it is over."""

from __future__ import annotations

import asyncio
import logging
import time

from services.protocol.errors import Unavailable

FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 5.0


class Outage:
    """Of one loop, named `who` in the log."""

    def __init__(self, who: str, log: logging.Logger) -> None:
        self._who = who
        self._log = log
        self._since: float | None = None
        self._wait_s = FIRST_WAIT_S

    async def wait(self, error: Unavailable) -> None:
        if self._since is None:
            self._since = time.monotonic()
            self._log.error("%s: %s; trying again until it does", self._who, error.message)
        await asyncio.sleep(self._wait_s)
        self._wait_s = min(LONGEST_WAIT_S, self._wait_s * 2)

    def over(self) -> None:
        if self._since is not None:
            self._log.warning("%s: goes on after %.1f s", self._who, time.monotonic() - self._since)
        self._since, self._wait_s = None, FIRST_WAIT_S
