"""Waits for a condition instead of sleeping for a guessed time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.02


async def eventually(condition: Callable[[], T | Awaitable[T]], *, timeout_s: float = 10, what: str = "") -> T:
    """Returns the condition's first truthy value. Fails after `timeout_s` with the last value or AssertionError."""
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


def eventually_sync(condition: Callable[[], T], *, timeout_s: float = 10, what: str = "") -> T:
    """`eventually` for tests without an event loop."""
    deadline = time.monotonic() + timeout_s
    last: object = None
    while time.monotonic() < deadline:
        last = value = condition()
        if value:
            return value
        time.sleep(POLL_S)
    raise AssertionError(f"not within {timeout_s} s: {what or condition}; last: {last!r}")
