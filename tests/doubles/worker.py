"""A worker for the gateway's tests: the real queue and the real reply stream, with events from the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis

from services.gateway.tasks import end
from services.protocol.messages import (
    Cancel,
    Claim,
    Event,
    Failed,
    Finished,
    FinishReason,
    Frame,
    GenerateRequest,
    HandedOver,
    Started,
    StepReply,
    Timings,
    Usage,
    new_id,
)
from services.protocol.queue import Queue
from services.protocol.replies import ReplyWriter
from services.protocol.reports import WorkerReport, WorkerState

LEASE_MS = 60_000
PROMPT_IDS = (11, 12, 13)
TIMINGS = Timings(prefill_ns=2_000_000, decode_ns=3_000_000)


class Answer:
    """Sends the events of one claim, in order."""

    def __init__(self, worker: Worker, claim: Claim) -> None:
        self.request = claim.request
        self.epoch = claim.epoch
        self.committed = claim.committed
        self.seq = 0
        self._worker = worker
        self._tokens = 0

    async def started(self, *, cached_tokens: int = 1) -> None:
        wanted = isinstance(self.request, GenerateRequest) and self.request.return_prompt_ids
        prompt_ids = PROMPT_IDS if wanted else ()
        await self._publish(Started(self.request.id, self.epoch, self._next(), len(PROMPT_IDS), cached_tokens, prompt_ids))

    async def frame(self, text: str = "", *token_ids: int, **more: Any) -> None:
        """`more` are further fields of Frame."""
        ids = token_ids or (100 + self._tokens,)
        self._tokens += len(ids)
        await self._publish(Frame(self.request.id, self.epoch, self._next(), ids, text, **more))

    async def finished(self, *reasons: FinishReason, cached_tokens: int = 1) -> None:
        """`reasons` of each choice; by default one choice that stopped."""
        usage = Usage(len(PROMPT_IDS), cached_tokens, self._tokens)
        ended = reasons or (FinishReason.STOP,)
        await self._publish(Finished(self.request.id, self.epoch, self._next(), ended, usage, TIMINGS))

    async def failed(self, code: str, message: str, *, field: str = "") -> None:
        await self._publish(Failed(self.request.id, self.epoch, self._next(), code, message, field))

    async def handed_over(self) -> None:
        await self._publish(HandedOver(self.request.id, self.epoch, self._next()))

    async def whole(self, *texts: str, reason: FinishReason = FinishReason.STOP) -> None:
        await self.started()
        for text in texts:
            await self.frame(text)
        await self.finished(reason)

    def _next(self) -> int:
        self.seq += 1
        return self.seq - 1

    async def _publish(self, event: Event) -> None:
        await self._worker.publish(self.request.gateway, event)


class Worker:
    def __init__(self, redis: Redis, version: str) -> None:
        self.id = f"worker-{new_id()}"
        self.version = version
        self.cancelled: list[str] = []
        self.queue = Queue(redis)
        self._writer = ReplyWriter(redis)
        self._claims: asyncio.Queue[Claim] = asyncio.Queue()

    async def report(self, *, lease_ms: int = LEASE_MS, running: int = 0) -> None:
        report = WorkerReport(self.id, "replica", self.version, "node", WorkerState.READY, slots=8, running=running)
        await self.queue.report(report, lease_ms=lease_ms)

    async def take(self) -> Answer:
        """Waits for the next request and claims it."""
        return Answer(self, await self._claims.get())

    async def publish(self, gateway: str, *events: Event) -> None:
        await self._writer.publish({gateway: StepReply(self.id, events)})

    async def die(self, *, crashed: bool = False) -> None:
        """The lease ends, and the worker's claims are lost."""
        await self.queue.leave(self.id, self.version, crashed=crashed)

    async def run(self) -> None:
        await self.report()
        while True:
            for claim in (await self.queue.claim(self.version, self.id, capacity=8)).claims:
                self._claims.put_nowait(claim)
            control = await self.queue.next_control(self.id, timeout_s=1)
            if isinstance(control, Cancel):
                self.cancelled.append(control.request)


@asynccontextmanager
async def working(redis: Redis, version: str) -> AsyncIterator[Worker]:
    worker = Worker(redis, version)
    task = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        await end([task])


@asynccontextmanager
async def echoing(redis: Redis, version: str) -> AsyncIterator[Worker]:
    """A worker that answers everything with `Hello`, ` wor`, `ld`, and a request for no tokens with none."""
    async with working(redis, version) as worker:

        async def answer() -> None:
            while True:
                taken = await worker.take()
                if isinstance(taken.request, GenerateRequest) and taken.request.stopping.max_tokens == 0:
                    await taken.whole(reason=FinishReason.LENGTH)
                else:
                    await taken.whole("Hello", " wor", "ld")

        task = asyncio.create_task(answer())
        try:
            yield worker
        finally:
            await end([task])
