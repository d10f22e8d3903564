"""Waiting for something to become true, without sleeping for a guessed time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

T = TypeVar("T")

POLL_S = 0.02


@overload
async def eventually(condition: Callable[[], Awaitable[T | None]], *, timeout_s: float = 10, what: str = "") -> T: ...
@overload
async def eventually(condition: Callable[[], T | None], *, timeout_s: float = 10, what: str = "") -> T: ...
async def eventually(condition: Callable[[], T | None | Awaitable[T | None]], *, timeout_s: float = 10, what: str = "") -> T:
    """The condition's first truthy value. Fails after `timeout_s` with the last value, or the last AssertionError."""
    deadline = time.monotonic() + timeout_s
    last: object = None
    while time.monotonic() < deadline:
        try:
            value = condition()
            if inspect.isawaitable(value):
                value = await value
            if value:
                return value
            last = value
        except AssertionError as error:
            last = error
        await asyncio.sleep(POLL_S)
    raise AssertionError(f"not within {timeout_s} s: {what or condition}; last: {last!r}")


def eventually_sync(condition: Callable[[], T | None], *, timeout_s: float = 10, what: str = "") -> T:
    """`eventually` for tests without a loop."""
    deadline = time.monotonic() + timeout_s
    last: object = None
    while time.monotonic() < deadline:
        last = value = condition()
        if value:
            return value
        time.sleep(POLL_S)
    raise AssertionError(f"not within {timeout_s} s: {what or condition}; last: {last!r}")
