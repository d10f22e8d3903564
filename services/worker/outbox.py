"""Events on their way from the engine thread to the Publisher."""

from __future__ import annotations

import asyncio
from collections import deque

from services.protocol.messages import Frame
from services.worker.command_loop import RoutedEvent


class Outbox:
    """`put` may be called from any thread, the rest from the event loop that made it.

    Frames wait until `interval_s` have passed since events were last taken, so that a fast model wakes the event loop, Redis and
    the gateways once for several steps. The first frame and the end of an answer do not wait.
    """

    def __init__(self, *, interval_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._interval_s = interval_s
        self._events: deque[RoutedEvent] = deque()
        self._due = asyncio.Event()
        self._sent = asyncio.Event()
        self._sending = False
        self._timer_requested = False
        self._taken_s = 0.0

    def put(self, events: list[RoutedEvent]) -> None:
        self._events.extend(events)
        if any(map(_is_urgent, events)):
            self._loop.call_soon_threadsafe(self._due.set)
        elif not self._timer_requested:
            self._timer_requested = True
            self._loop.call_soon_threadsafe(self._set_timer)

    async def take(self) -> list[RoutedEvent]:
        """Waits until some are due, then returns all. The caller calls `done` after sending them."""
        while True:
            await self._due.wait()
            self._due.clear()
            self._timer_requested = False  # before taking: what is put from here on sets a timer of its own
            events = [self._events.popleft() for _ in range(len(self._events))]
            if events:
                self._taken_s = self._loop.time()
                self._sending = True
                return events

    def done(self) -> None:
        self._sending = False
        self._sent.set()

    async def join(self) -> None:
        """Sends all events now; returns when they are sent."""
        self._due.set()
        while self._events or self._sending:
            self._sent.clear()
            await self._sent.wait()

    def _set_timer(self) -> None:
        self._loop.call_at(self._taken_s + self._interval_s, self._due.set)


def _is_urgent(routed: RoutedEvent) -> bool:
    """Everything but the frames after an answer's first one (`Started` has number 0)."""
    return not isinstance(routed.event, Frame) or routed.event.seq <= 1
