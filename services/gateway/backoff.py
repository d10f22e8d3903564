"""How long to wait before the next try."""

from __future__ import annotations

import asyncio

FIRST_S = 0.05
LIMIT_S = 2.0


class Backoff:
    """Doubles the wait from try to try, up to LIMIT_S; `reset` on success."""

    def __init__(self) -> None:
        self._next_s = FIRST_S

    def reset(self) -> None:
        self._next_s = FIRST_S

    async def wait(self) -> None:
        await asyncio.sleep(self._next_s)
        self._next_s = min(2 * self._next_s, LIMIT_S)
