"""Puts requests back in the queue when their worker is lost, or when Redis has lost them. The next worker continues the answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from services.gateway.requests.cancellation import Cancellation
from services.gateway.requests.open_requests import OpenRequests
from services.gateway.requests.pending_request import PendingRequest
from services.protocol.errors import CorralError, Unavailable, WorkerLost
from services.protocol.prefixes import prefixes
from services.protocol.queue import Queue
from services.protocol.records import Records

logger = logging.getLogger(__name__)


class Recovery:
    """Writer of `_suspected`: claims, by request and epoch, that had lost their worker when they were last looked at."""

    def __init__(
        self,
        gateway: str,
        queue: Queue,
        records: Records,
        commands: asyncio.Semaphore,
        requests: OpenRequests,
        cancellation: Cancellation,
        *,
        max_queue: int,
        on_failover: Callable[[str], None],
    ) -> None:
        self._gateway = gateway
        self._queue = queue
        self._records = records
        self._commands = commands
        self._requests = requests
        self._cancellation = cancellation
        self._max_queue = max_queue
        self._on_failover = on_failover
        self._suspected: set[tuple[str, int]] = set()

    @property
    def is_waiting(self) -> bool:
        """Claims seem lost; the next look at them decides."""
        return bool(self._suspected)

    def forget_suspicions(self) -> None:
        self._suspected = set()

    async def recover_lost(self) -> None:
        """Recovers claims that had lost their worker at the last look already: by now this gateway has read all that the worker
        wrote. Raises Unavailable."""
        claims = {(claim.request, claim.epoch): claim for claim in await self._queue.lost(self._gateway)}
        lost = set(claims)
        for request, epoch in lost & self._suspected:
            pending = self._requests.get(request)
            if pending is None or not pending.is_awaited:
                await self._queue.settle(request, epoch, cost=pending.spent if pending else 0)
                if pending:
                    self._requests.end(pending)
            elif epoch >= pending.epoch:
                claim = claims[request, epoch]
                pending.losses.count(claim.worker, crashed=claim.crashed)
                if pending.losses.vanished:
                    pending.losses.count_crashed(await self._queue.crashed(pending.losses.vanished))
                self.recover_soon(pending, epoch, "lost")
        self._suspected = lost

    def recover_soon(self, pending: PendingRequest, epoch: int, cause: str) -> None:
        """The claim of `epoch` is lost; none of its later events counts."""
        pending.supersede(epoch + 1)
        self._requests.spawn(self._recover(pending, epoch, cause), pending)

    def replace_soon(self, pending: PendingRequest, epoch: int) -> None:
        """The worker lives, but not all of its events arrived."""
        pending.supersede(epoch + 1)
        self._requests.spawn(self._replace_claim(pending, epoch), pending)

    async def resume_missing(self, requests: list[PendingRequest], *, had_stream: bool) -> None:
        """Sends again what Redis no longer has. Without the reply stream, what workers wrote is gone too, so every claim is
        replaced. Raises Unavailable."""
        epochs = await self._records.epochs([pending.request.id for pending in requests])
        resumed: dict[PendingRequest, Coroutine[Any, Any, None]] = {}
        for pending in requests:
            request = pending.request.id
            if request not in epochs:
                resumed[pending] = self._send_again(pending)
            elif not had_stream and (epoch := epochs[request]) is not None and pending.is_awaited:
                pending.supersede(epoch + 1)
                resumed[pending] = self._replace_claim(pending, epoch)
        results = await asyncio.gather(*resumed.values(), return_exceptions=True)
        for pending, result in zip(resumed, results, strict=True):
            if isinstance(result, Exception) and not isinstance(result, Unavailable):
                self._requests.break_off(pending, result)
        if outage := next((result for result in results if isinstance(result, Unavailable)), None):
            raise outage

    async def _send_again(self, pending: PendingRequest) -> None:
        """Under another id, so that no event of an older claim is taken for one of the new claim."""
        if pending not in self._requests:
            return
        if not pending.is_awaited:
            self._requests.end(pending)
            return
        self._requests.rename(pending)
        request = pending.request
        logger.info("request sent again: request=%s new_id=%s tokens=%d", pending.id, request.id, pending.num_committed)
        async with self._commands:
            await self._queue.enqueue(
                request,
                cost=pending.cost,
                limit=self._max_queue,
                terms=msgspec.structs.replace(pending.terms, timeout_ms=None),
                begins=prefixes(request),
                resumption=pending.resumption,
            )

    async def _replace_claim(self, pending: PendingRequest, epoch: int) -> None:
        if await self._cancellation.cancel_id(pending.request.id):
            await self._recover(pending, epoch, "gap")
        else:
            self._requests.abandon(pending, Unavailable("Redis does not answer"))

    async def _recover(self, pending: PendingRequest, epoch: int, cause: str) -> None:
        request = pending.request.id
        pending.supersede(epoch + 1)
        try:
            if pending.is_awaited and not pending.losses.are_too_many:
                await self._requeue(pending, epoch, cause)
                return
            logger.warning(
                "request given up: request=%s epoch=%d cause=%s lost_workers=%d crashes_in_a_row=%d",
                *(request, epoch, cause, pending.losses.total, pending.losses.crashes),
            )
            await self._queue.settle(request, epoch, cost=pending.spent)
        except CorralError as error:
            self._requests.abandon(pending, error)
            return
        self._requests.end(pending, WorkerLost("too many workers were lost while they computed this request"))

    async def _requeue(self, pending: PendingRequest, epoch: int, cause: str) -> None:
        request = pending.request.id
        if not await self._queue.requeue(request, epoch, pending.resumption):  # it was taken back in between
            await self._queue.cancel(request)
            await self._send_again(pending)
        self._on_failover(cause)
        logger.info("request requeued: request=%s epoch=%d cause=%s tokens=%d", request, epoch, cause, pending.num_committed)
