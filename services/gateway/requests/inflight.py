"""The requests in flight: admission, the events of workers, recovery, settlement.

Three loops. One reads the gateway's reply stream and hands the events on. One looks for lost claims, for requests to cancel, to
expire and to settle. One renews the gateway's lease. All state is on one event loop, so there is no lock around it.

While Redis does not answer, nothing new is admitted; what is in flight waits for up to `outage_s`, then fails.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable

from services.gateway.requests.cancellation import Cancellation
from services.gateway.requests.delivery import Delivery
from services.gateway.requests.gateway_lease import GatewayLease
from services.gateway.requests.open_requests import OpenRequests
from services.gateway.requests.pending_request import ClientGone, PendingRequest
from services.gateway.requests.recovery import Recovery
from services.gateway.requests.request_state import RequestState
from services.gateway.requests.settlement import Settlement
from services.process.loops import Loops
from services.protocol.errors import DeadlineExceeded, Unavailable
from services.protocol.gateways import LEASE_RENEWAL_INTERVAL_S, Gateways
from services.protocol.messages import Request
from services.protocol.prefixes import prefixes
from services.protocol.queue import Queue
from services.protocol.records import Records
from services.protocol.replies import ReplyReader
from services.protocol.waiting import QueuePosition, Terms

logger = logging.getLogger(__name__)

#: How long one blocking read of the reply stream waits.
READ_TIMEOUT_S = 2.0

#: Between two looks for lost claims, and while claims seem lost.
LOST_CHECK_INTERVAL_S = 0.2
LOST_CONFIRM_INTERVAL_S = 0.05

#: Grace period after a Redis outage, so that workers can renew their leases.
LOST_GRACE_S = 1.0

#: How long requests in flight wait for a Redis that does not answer.
OUTAGE_S = 10.0

#: Events of one answer that may wait for a client that reads too slowly.
MAX_UNREAD = 16_384

#: Commands to Redis at the same time. The driver's pool has 100 connections and refuses the next; a burst of requests waits here instead.
MAX_COMMANDS = 64


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
        max_unread: int = MAX_UNREAD,
        on_failover: Callable[[str], None],
    ) -> None:
        self.gateway = gateway
        self._queue = queue
        self._reader = reader
        self._gateways = gateways
        self._max_queue = max_queue
        self._commands = asyncio.Semaphore(MAX_COMMANDS)
        self._loops = Loops()
        self._requests = requests = OpenRequests()
        self._settlement = Settlement(queue, self._commands, requests)
        self._cancellation = Cancellation(queue, self._commands, requests)
        self._recovery = Recovery(
            *(gateway, queue, records, self._commands, requests, self._cancellation),
            max_queue=max_queue,
            on_failover=on_failover,
        )
        self._delivery = Delivery(requests, self._settlement, self._cancellation, self._recovery, max_unread=max_unread)
        self._lease = GatewayLease(
            *(gateway, gateways, reader, requests, self._recovery, self._cancellation), outage_s=outage_s
        )

    @property
    def fault(self) -> str:
        """Why nothing is admitted, empty while requests are."""
        return self._lease.fault

    @property
    def connected(self) -> bool:
        return not self.fault

    def __len__(self) -> int:
        return len(self._requests)

    async def admit(
        self,
        request: Request,
        *,
        cost: float,
        terms: Terms,
        keep_alive_ms: int | None,
        context_tokens: int = 0,
        name: str = "",
    ) -> PendingRequest:
        """`name` is the model's tag that the request asks for. Raises QueueFull, QueueMemoryFull, CallerLimited, and Unavailable while
        Redis does not answer or cannot write."""
        if self.fault:
            raise Unavailable(self.fault)
        pending = PendingRequest(request, cost=cost, terms=terms)
        lapses = self._lease.lapses
        self._requests.add(pending)
        try:
            async with self._commands:
                position = await self._queue.enqueue(
                    request,
                    cost=cost,
                    limit=self._max_queue,
                    terms=terms,
                    keep_alive_ms=keep_alive_ms,
                    begins=prefixes(request),
                    context_tokens=context_tokens,
                    name=name,
                )
        except BaseException:  # if the queue took it all the same, its events are of an unknown request
            self._requests.end(pending)
            raise
        pending.admitted(position)
        if terms.timeout_ms is not None:
            pending.expires_at = time.monotonic() + terms.timeout_ms / 1000
        if self._lease.lapses != lapses:  # another process may have taken it back between the queue's answer and now
            await self._recovery.resume_missing([pending], had_stream=True)
        return pending

    async def position(self, pending: PendingRequest) -> QueuePosition | None:
        """Its place in the queue now; None if it does not wait. Raises Unavailable."""
        async with self._commands:
            return await self._queue.place(pending.request.id)

    async def touch(self, version: str, *, keep_alive_ms: int) -> None:
        """Counts as a use of the version. Raises Unavailable."""
        async with self._commands:
            await self._queue.touch(version, keep_alive_ms=keep_alive_ms)

    def abandon(self, pending: PendingRequest) -> None:
        """The client has left. Does nothing if the request has ended."""
        if pending in self._requests and pending.is_awaited:
            self._requests.abandon(pending, ClientGone())
            self._requests.spawn(self._cancellation.cancel(pending), pending)

    def start(self) -> None:
        self._loops.start("replies", self._read_replies())
        self._loops.start("lease", self._keep_lease())
        self._loops.start("claims", self._watch_claims())
        self._loops.start("lost gateways", self._gateways.watch())

    async def close(self) -> None:
        """Takes open requests out of the queue, then removes the reply stream. What Redis does not answer to is left behind."""
        await self._loops.stop()
        try:
            await self._requests.join()
            for pending in self._requests:
                if pending.state is not RequestState.CANCELLED:
                    await self._queue.cancel(pending.request.id)
                await self._queue.settle(pending.request.id, pending.epoch, cost=pending.spent)
            await self._reader.close()
            await self._gateways.remove(self.gateway)
        except Unavailable as error:
            logger.warning("requests left in the queue: requests=%d error=%r", len(self._requests), error.message)

    async def _read_replies(self) -> None:
        while True:
            try:
                await self._lease.renew("replies")
                while True:
                    for reply in await self._reader.read(timeout_s=READ_TIMEOUT_S):
                        for event in reply.events:
                            self._delivery.deliver(event, reply.worker)
            except Unavailable as error:
                await self._lease.wait_after("replies", error)

    async def _keep_lease(self) -> None:
        """A Redis that cannot write its file still answers reads, but refuses the renewal."""
        while True:
            await asyncio.sleep(LEASE_RENEWAL_INTERVAL_S)
            try:
                await self._lease.renew("lease")
            except Unavailable as error:
                self._lease.lost_contact("lease", error)  # no longer wait: late renewals cost requests

    async def _watch_claims(self) -> None:
        while True:
            await asyncio.sleep(LOST_CONFIRM_INTERVAL_S if self._recovery.is_waiting else LOST_CHECK_INTERVAL_S)
            try:
                await self._recovery.recover_lost()
                await self._cancellation.cancel_abandoned()
                await self._expire_overdue()
                await self._settlement.settle_rest()
            except Unavailable as error:
                logger.debug("claims not checked: error=%r", error.message)
                self._recovery.forget_suspicions()
                await asyncio.sleep(LOST_GRACE_S)

    async def _expire_overdue(self) -> None:
        """Ends requests that no worker has claimed in time. If a worker claims one now, the queue drops it: `expire` still ends it."""
        now = time.monotonic()
        for pending in self._requests:
            if pending.expires_at > now:
                continue
            unclaimed = pending.epoch == 0 and pending.is_awaited
            if unclaimed and await self._queue.expire(pending.request.id):
                self._requests.end(pending, DeadlineExceeded("the request waited longer than its timeout"))
            pending.expires_at = math.inf
