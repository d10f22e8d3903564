"""The requests that this gateway has admitted and not yet settled.

One task reads the gateway's reply stream and hands the events out; nothing else writes a Generation, except a response that
abandons its own. A second task looks every WATCH_S after claims whose worker was lost and requests that nobody waits for.
While Redis does not answer nothing new is admitted, and what is in flight waits for up to `outage_s`: it goes on where Redis comes
back with its data, and fails where it comes back without, or not at all. What was failed is withdrawn when Redis is back.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any

from services.gateway.backoff import Backoff
from services.gateway.generation import WORKER_LOST, ClientGone, Generation, Verdict, is_broken_off
from services.gateway.tasks import end
from services.protocol.errors import DeadlineExceeded, Unavailable, WorkerLost
from services.protocol.gateways import KEEP_S, Gateways
from services.protocol.messages import Event, Failed, Finished, HandedOver, Request, Usage
from services.protocol.prefixes import prefixes
from services.protocol.queue import Queue
from services.protocol.records import Records
from services.protocol.replies import ReplyReader
from services.protocol.waiting import Place, Terms

logger = logging.getLogger(__name__)

#: The reply stream outlives a gateway that crashed by so much, and a Redis that stands still for less.
STREAM_MS = 60_000
#: A read that found nothing is asked again after so long.
READ_S = 2.0
WATCH_S = 0.2
#: What has ended is settled after so long.
SETTLE_S = 0.005
#: A claim that seems lost is looked at again after so long.
CONFIRM_S = 0.05
#: Behind a Redis that did not answer, workers get so long to extend their leases.
RECOVERY_S = 1.0
#: What is in flight waits for so long for a Redis that does not answer.
OUTAGE_S = 10.0
#: A request with which so many workers crashed, one after the other, without its answer getting any further, is answered with an error: it
#: is likely to be the cause. Workers that were killed or cut off say nothing of it; with so many losses of any kind it is given up too.
MAX_CRASHES = 2
MAX_LOSSES = 16
#: The driver's pool holds 100 connections and refuses the next; a burst of requests waits here instead.
MAX_COMMANDS = 64

_Claim = tuple[str, int]


class Inflight:
    def __init__(
        self,
        queue: Queue,
        reader: ReplyReader,
        gateways: Gateways,
        records: Records,
        *,
        gateway: str,
        max_queue: int,
        outage_s: float = OUTAGE_S,
        on_failover: Callable[[str], None],
    ) -> None:
        self.gateway = gateway
        self.connected = False
        self._queue = queue
        self._reader = reader
        self._gateways = gateways
        self._records = records
        self._outage_s = outage_s
        self._on_failover = on_failover
        self._silent_since: float | None = None
        self._max_queue = max_queue
        self._open: dict[str, Generation] = {}
        self._suspected: set[_Claim] = set()
        self._strays: set[str] = set()
        self._ended: list[tuple[str, int, float]] = []
        self._unsettled: dict[_Claim, float] = {}
        self._commands = asyncio.Semaphore(MAX_COMMANDS)
        self._tasks: set[asyncio.Task[object]] = set()
        self._loops: set[asyncio.Task[object]] = set()

    def __len__(self) -> int:
        return len(self._open)

    async def admit(self, request: Request, *, cost: float, terms: Terms, keep_alive_ms: int | None) -> Generation:
        """Raises QueueFull, CallerLimited, and Unavailable while Redis does not answer."""
        if not self.connected:
            raise Unavailable("Redis does not answer")
        generation = Generation(request)
        self._open[request.id] = generation
        try:
            async with self._commands:
                place = await self._queue.enqueue(
                    request,
                    cost=cost,
                    limit=self._max_queue,
                    terms=terms,
                    keep_alive_ms=keep_alive_ms,
                    begins=prefixes(request),
                )
        except BaseException:  # should it have been admitted all the same, its events are strays
            del self._open[request.id]
            raise
        generation.place = place
        if terms.timeout_ms is not None:
            generation.expires_at = time.monotonic() + terms.timeout_ms / 1000
        return generation

    async def place(self, generation: Generation) -> Place | None:
        """Where it stands now; None where it does not wait. Raises Unavailable."""
        async with self._commands:
            return await self._queue.place(generation.request.id)

    async def touch(self, version: str, *, keep_alive_ms: int) -> None:
        """Counts as a use of the version. Raises Unavailable."""
        async with self._commands:
            await self._queue.touch(version, keep_alive_ms=keep_alive_ms)

    def abandon(self, generation: Generation) -> None:
        """Nobody waits for it any more. Does nothing to one that has ended."""
        if generation.request.id in self._open and not generation.abandoned:
            generation.abandoned = True
            generation.fail(ClientGone())
            self._spawn(self._withdraw(generation))

    def start(self) -> None:
        for loop in (self._read_replies(), self._keep_leases(), self._watch(), self._gateways.watch()):
            self._loops.add(self._spawn(loop))

    async def close(self) -> None:
        """Takes back what is still open, then the reply stream. Leaves what Redis does not let it."""
        await end(self._loops)
        try:
            if self._tasks:
                await asyncio.wait(self._tasks)
            for generation in self._open.values():
                if not generation.withdrawn:
                    await self._queue.cancel(generation.request.id)
                await self._queue.settle(generation.request.id, generation.epoch, cost=generation.spent)
            await self._reader.close()
            await self._gateways.withdraw(self.gateway)
        except Unavailable as error:
            logger.warning("%d requests were left in the queue: %s", len(self._open), error.message)

    async def _read_replies(self) -> None:
        backoff = Backoff()
        while True:
            try:
                await self._reconnect()
                backoff.reset()
                while True:
                    for reply in await self._reader.read(timeout_s=READ_S):
                        for event in reply.events:
                            self._deliver(event, reply.worker)
            except Unavailable as error:
                self._disconnected(error)
            await backoff.wait()

    async def _reconnect(self) -> None:
        """What Redis has lost meanwhile will not be answered; of the rest nothing is missing, or it shows as a gap."""
        kept = await self._reader.keep(lease_ms=STREAM_MS)
        await self._gateways.keep(self.gateway)
        if self._silent_since is not None:
            known = await self._records.known(list(self._open)) if kept else set()
            for request, generation in self._open.items():
                if request not in known and not generation.abandoned:
                    self._give_up(generation, Unavailable("Redis has lost the request"))
        self._silent_since = None
        self.connected = True

    async def _keep_leases(self) -> None:
        while True:
            await asyncio.sleep(KEEP_S)
            try:
                await self._gateways.keep(self.gateway)
                if self.connected:  # otherwise the reader is to see whether the stream is still there
                    await self._reader.keep(lease_ms=STREAM_MS)
            except Unavailable as error:
                logger.warning("leases not extended: %s", error.message)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(CONFIRM_S if self._suspected else WATCH_S)
            try:
                await self._recover_lost()
                await self._withdraw_abandoned()
                await self._expire_overdue()
                await self._settle_rest()
            except Unavailable as error:
                logger.warning("claims not checked: %s", error.message)
                self._suspected = set()
                await asyncio.sleep(RECOVERY_S)

    def _deliver(self, event: Event, worker: str) -> None:
        generation = self._open.get(event.request)
        if generation is None:
            self._turn_away(event)
            return
        verdict = generation.accept(event)
        if verdict is Verdict.TAKEN and is_broken_off(event) and not generation.abandoned:
            logger.warning("request %s: worker %s has broken off", event.request, worker)
            generation.lose(crashed=True)
            generation.supersede(event.epoch + 1)
            self._spawn(self._recover(generation, event.epoch, "broken_off"))
        elif isinstance(event, Finished | Failed) and (verdict is Verdict.TAKEN or generation.abandoned):
            del self._open[event.request]
            cost = _cost(event.usage) if isinstance(event, Finished) else generation.spent
            self._settle_soon(event.request, event.epoch, cost)
        elif isinstance(event, HandedOver) and verdict is Verdict.TAKEN:
            generation.supersede(event.epoch + 1)
            self._spawn(self._recover(generation, event.epoch, "handed_over"))
        elif verdict is Verdict.GAP and not generation.abandoned:
            logger.warning("request %s: events of claim %d are missing", event.request, event.epoch)
            generation.supersede(event.epoch + 1)  # now, so that nothing more of this claim is handed on
            self._spawn(self._replace_claim(generation, event.epoch))

    def _turn_away(self, event: Event) -> None:
        """The event is of a request that this gateway no longer has: admitted in doubt, or failed when Redis went."""
        if isinstance(event, Finished | Failed):
            self._strays.discard(event.request)
            self._settle_soon(event.request, event.epoch, _cost(event.usage) if isinstance(event, Finished) else 0)
        elif event.request not in self._strays:
            self._strays.add(event.request)
            self._spawn(self._cancel(event.request))

    def _disconnected(self, error: Unavailable) -> None:
        now = time.monotonic()
        if self._silent_since is None:
            logger.error("%s; %d requests in flight wait for it", error.message, len(self._open))
            self._silent_since = now
        self.connected = False
        self._strays.clear()
        if now - self._silent_since >= self._outage_s:
            for generation in self._open.values():
                if not generation.abandoned:
                    self._give_up(generation, error)

    def _give_up(self, generation: Generation, error: Unavailable) -> None:
        """Redis does not say what became of it. When it answers again, whoever holds the request is told to stop."""
        generation.abandoned, generation.withdrawn = True, False
        generation.fail(Unavailable(error.message))

    async def _recover_lost(self) -> None:
        """Acts on claims that were lost at the last look already: by now the reader has seen all that their worker wrote."""
        crashed = {(claim.request, claim.epoch): claim.crashed for claim in await self._queue.lost(self.gateway)}
        lost = set(crashed)
        for request, epoch in lost & self._suspected:
            generation = self._open.get(request)
            if generation is None or generation.abandoned:
                await self._queue.settle(request, epoch, cost=generation.spent if generation else 0)
                self._open.pop(request, None)
            elif epoch >= generation.epoch:
                generation.lose(crashed=crashed[request, epoch])
                await self._recover(generation, epoch, "lost")
        self._suspected = lost

    async def _recover(self, generation: Generation, epoch: int, cause: str) -> None:
        """The claim of `epoch` is lost, by this `cause`. Another worker goes on behind what the client has."""
        request = generation.request.id
        generation.supersede(epoch + 1)
        try:
            worth_it = not generation.abandoned and not _is_deadly(generation)
            if worth_it and await self._queue.requeue(request, epoch, generation.resumption):
                self._on_failover(cause)
                logger.info(
                    "request %s: claim %d %s; another goes on behind %d tokens", request, epoch, cause, generation.num_committed
                )
                return
            logger.warning(
                "request %s given up: claim %d %s, %d lost in all, %d crashed in a row",
                *(request, epoch, cause, generation.losses, generation.crashes),
            )
            await self._queue.settle(request, epoch, cost=generation.spent)
        except Unavailable as error:
            self._give_up(generation, error)
            return
        self._open.pop(request, None)
        generation.fail(WorkerLost(WORKER_LOST))

    async def _replace_claim(self, generation: Generation, epoch: int) -> None:
        """The worker lives, but not all that it said arrived."""
        if await self._cancel(generation.request.id):
            await self._recover(generation, epoch, "gap")
        else:
            self._give_up(generation, Unavailable("Redis does not answer"))

    async def _withdraw_abandoned(self) -> None:
        for generation in [generation for generation in self._open.values() if generation.abandoned]:
            if not generation.withdrawn:
                await self._withdraw(generation)

    async def _expire_overdue(self) -> None:
        """Those that no worker has begun with in time. No worker is given one either: the queue drops it, and it is found gone here."""
        now = time.monotonic()
        for generation in [generation for generation in self._open.values() if generation.expires_at <= now]:
            overdue = generation.epoch == 0 and not generation.abandoned
            if overdue and await self._queue.expire(generation.request.id):
                self._open.pop(generation.request.id, None)
                generation.fail(DeadlineExceeded("the request could not be started in the time that it was given"))
            generation.expires_at = math.inf

    async def _withdraw(self, generation: Generation) -> None:
        """A waiting request is gone after this; a claimed one ends with the worker's terminal event."""
        outcome = await self._cancel(generation.request.id)
        generation.withdrawn = outcome is not None
        if outcome in ("waiting", "gone"):
            self._open.pop(generation.request.id, None)

    async def _cancel(self, request: str) -> str | None:
        try:
            async with self._commands:
                return await self._queue.cancel(request)
        except Unavailable as error:
            logger.warning("request %s not cancelled: %s", request, error.message)
            return None

    def _settle_soon(self, request: str, epoch: int, cost: float) -> None:
        """With all that end about now, in one write: nobody waits for it, and at 500 requests a second it is a tenth of what they cost."""
        if not self._ended:
            self._spawn(self._settle_ended())
        self._ended.append((request, epoch, cost))

    async def _settle_ended(self) -> None:
        await asyncio.sleep(SETTLE_S)
        ended, self._ended = self._ended, []
        await asyncio.gather(*(self._settle(*one) for one in ended))

    async def _settle(self, request: str, epoch: int, cost: float) -> None:
        try:
            async with self._commands:
                await self._queue.settle(request, epoch, cost=cost)
        except Unavailable as error:
            logger.warning("request %s not settled: %s", request, error.message)
            self._unsettled[request, epoch] = cost

    async def _settle_rest(self) -> None:
        """What could not be settled while Redis did not answer."""
        while self._unsettled:
            (request, epoch), cost = next(iter(self._unsettled.items()))
            await self._queue.settle(request, epoch, cost=cost)
            del self._unsettled[request, epoch]

    def _spawn(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[object]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            logger.error("a task of the gateway broke off", exc_info=task.exception())


def _is_deadly(generation: Generation) -> bool:
    return generation.crashes >= MAX_CRASHES or generation.losses >= MAX_LOSSES


def _cost(usage: Usage) -> int:
    """What a request costs its caller: the tokens that had to be computed."""
    return usage.prompt_tokens - usage.cached_tokens + usage.completion_tokens
