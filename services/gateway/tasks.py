"""Ending tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

_AGAIN_S = 0.05


async def end(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancels the tasks and waits for them.

    On Python 3.11 the Redis driver loses a cancellation that comes while it sends (asyncio.wait_for prefers the result of
    what it waited for), so a task is cancelled until it has ended.
    """
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=_AGAIN_S)
