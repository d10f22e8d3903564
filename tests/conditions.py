"""Waits for a condition instead of sleeping for a guessed time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

T = TypeVar("T")

POLL_S = 0.02

#: No condition takes this long, even on a loaded machine.
HUNG_S = 120.0


@overload
async def eventually(condition: Callable[[], Awaitable[T | None]], *, timeout_s: float = 10, what: str = "") -> T: ...
@overload
async def eventually(condition: Callable[[], T | None], *, timeout_s: float = 10, what: str = "") -> T: ...
async def eventually(condition: Callable[[], T | None | Awaitable[T | None]], *, timeout_s: float = 10, what: str = "") -> T:
    """Returns the condition's first truthy value. Fails after `timeout_s` with the last value or AssertionError."""
    deadline = time.monotonic() + timeout_s
    last: object = None
    while time.monotonic() < deadline:
        try:
            result = condition()
            value = await _in_time(result, what=what or str(condition)) if inspect.isawaitable(result) else result
            if value:
                return value
            last = value
        except AssertionError as error:
            last = error
        await asyncio.sleep(POLL_S)
    raise AssertionError(f"not within {timeout_s} s: {what or condition}; last: {last!r}")


async def _in_time(value: Awaitable[T], *, what: str) -> T:
    try:
        async with asyncio.timeout(HUNG_S) as limit:
            return await value
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise AssertionError(f"the condition hangs: {what}") from error


def eventually_sync(condition: Callable[[], T | None], *, timeout_s: float = 10, what: str = "") -> T:
    """`eventually` for tests without an event loop."""
    deadline = time.monotonic() + timeout_s
    last: object = None
    while time.monotonic() < deadline:
        last = value = condition()
        if value:
            return value
        time.sleep(POLL_S)
    raise AssertionError(f"not within {timeout_s} s: {what or condition}; last: {last!r}")
