"""Subscriptions to job events, for HTTP clients that watch a job. In memory of this process; on one event loop, so no lock."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from services.protocol.jobs import JobEvent, JobProgress

#: For how many jobs the latest progress is kept, the most recent ones. Far more than the nodes work on at the same time.
MAX_LATEST = 1000


class Watchers:
    def __init__(self) -> None:
        self._queues: dict[str, list[asyncio.Queue[JobEvent]]] = {}
        self._latest: dict[str, JobProgress] = {}

    @contextmanager
    def watch(self, job: str) -> Iterator[asyncio.Queue[JobEvent]]:
        """The latest progress event of the job, if there is one, then all events from now on."""
        queue: asyncio.Queue[JobEvent] = asyncio.Queue()
        if latest := self._latest.get(job):
            queue.put_nowait(latest)
        self._queues.setdefault(job, []).append(queue)
        try:
            yield queue
        finally:
            self._queues[job].remove(queue)
            if not self._queues[job]:
                del self._queues[job]

    def watches(self, job: str) -> bool:
        return job in self._queues

    def publish(self, event: JobEvent) -> None:
        self._latest.pop(event.job, None)
        if isinstance(event, JobProgress):
            self._latest[event.job] = event
            if len(self._latest) > MAX_LATEST:
                del self._latest[next(iter(self._latest))]
        for queue in self._queues.get(event.job, ()):
            queue.put_nowait(event)
