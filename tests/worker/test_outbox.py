"""When events leave the worker. The interval in these tests is practically infinite, unless a test sets another."""

from __future__ import annotations

import asyncio
import threading

import pytest_asyncio

from services.protocol.messages import Event, Finished, FinishReason, Frame, Started, Timings, Usage
from services.worker.command_loop import RoutedEvent
from services.worker.outbox import Outbox

FOREVER_S = 3600.0
STARTED = Started("r", 1, 0, prompt_tokens=1, cached_tokens=0)
FINISHED = Finished("r", 1, 9, (FinishReason.STOP,), Usage(1, 0, 1), Timings(0, 0))


def frame(seq: int) -> Frame:
    return Frame("r", 1, seq, (7,), "x")


def addressed(*events: Event) -> list[RoutedEvent]:
    return [RoutedEvent("gateway", event) for event in events]


async def taken(outbox: Outbox) -> list[Event]:
    async with asyncio.timeout(60):
        events = [one.event for one in await outbox.take()]
    outbox.done()
    return events


@pytest_asyncio.fixture
async def outbox() -> Outbox:
    """An outbox from which events were just taken."""
    outbox = Outbox(interval_s=FOREVER_S)
    outbox.put(addressed(STARTED))
    assert await taken(outbox) == [STARTED]
    return outbox


async def test_the_first_token_does_not_wait(outbox: Outbox) -> None:
    outbox.put(addressed(frame(1)))
    assert await taken(outbox) == [frame(1)]


async def test_the_end_does_not_wait_and_takes_waiting_frames_along(outbox: Outbox) -> None:
    outbox.put(addressed(frame(2)))
    outbox.put(addressed(frame(3)))
    taking = asyncio.create_task(taken(outbox))
    outbox.put(addressed(FINISHED))
    assert await taking == [frame(2), frame(3), FINISHED]


async def test_nothing_waits_when_the_worker_ends(outbox: Outbox) -> None:
    outbox.put(addressed(frame(2)))
    taking = asyncio.create_task(taken(outbox))
    async with asyncio.timeout(60):
        await outbox.join()
    assert await taking == [frame(2)]


async def test_frames_leave_after_the_interval() -> None:
    outbox = Outbox(interval_s=0.05)
    for seq in range(2, 5):
        outbox.put(addressed(frame(seq)))
        assert await taken(outbox) == [frame(seq)]


async def test_events_from_another_thread_keep_their_order() -> None:
    outbox = Outbox(interval_s=0.0001)
    events: list[Event] = [*map(frame, range(2, 2000)), FINISHED]

    def put() -> None:
        for event in events:
            outbox.put(addressed(event))

    thread = threading.Thread(target=put)
    thread.start()
    received: list[Event] = []
    while FINISHED not in received:
        received += await taken(outbox)
    thread.join()
    assert received == events
