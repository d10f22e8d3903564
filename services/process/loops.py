"""Background loops that end the process if they raise.

Without one of its loops a process would look healthy and do nothing. Its supervisor (`corral up` or Docker Compose) restarts it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)

#: Exit code of a process that ends because a loop raised (EX_SOFTWARE in sysexits.h).
EXIT_CODE = 70


async def vital(name: str, loop: Coroutine[Any, Any, None]) -> None:
    """Runs the loop. If it raises, the process ends with EXIT_CODE."""
    with _ends_process(name):
        await loop


def vital_thread(name: str, loop: Callable[[], None]) -> None:
    """Like `vital`, for a loop that runs in its own thread."""
    with _ends_process(name):
        loop()


class Loops:
    """A group of vital loops that stop together."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, name: str, loop: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(asyncio.create_task(vital(name, loop), name=name))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks.clear()


@contextmanager
def _ends_process(name: str) -> Iterator[None]:
    try:
        yield
    except Exception:
        log.critical("background loop failed, the process exits: loop=%s", name, exc_info=True)
        logging.shutdown()
        os._exit(EXIT_CODE)  # a clean shutdown might wait for the loop that has ended
