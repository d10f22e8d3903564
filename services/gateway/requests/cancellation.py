"""Cancels abandoned requests in the queue, and requests that this gateway no longer has."""

from __future__ import annotations

import asyncio
import logging

from services.gateway.requests.open_requests import OpenRequests
from services.gateway.requests.pending_request import PendingRequest
from services.gateway.requests.request_state import RequestState
from services.protocol.errors import CorralError
from services.protocol.queue import Queue

logger = logging.getLogger(__name__)


class Cancellation:
    def __init__(self, queue: Queue, commands: asyncio.Semaphore, requests: OpenRequests) -> None:
        self._queue = queue
        self._commands = commands
        self._requests = requests
        self._unknown: set[str] = set()

    async def cancel_abandoned(self) -> None:
        for pending in self._requests:
            if pending.state is RequestState.ABANDONED:
                await self.cancel(pending)

    async def cancel(self, pending: PendingRequest) -> None:
        """Ends a waiting request. A claimed one ends with its worker's terminal event."""
        outcome = await self.cancel_id(pending.request.id)
        if outcome in ("waiting", "gone"):
            self._requests.end(pending)
        elif outcome == "claimed" and pending.state is RequestState.ABANDONED:
            pending.enter(RequestState.CANCELLED)

    async def cancel_id(self, request: str) -> str | None:
        """What `Queue.cancel` answers; None if Redis does not."""
        try:
            async with self._commands:
                return await self._queue.cancel(request)
        except CorralError as error:
            logger.warning("request not cancelled: request=%s error=%r", request, error.message)
            return None

    def cancel_unknown(self, request: str) -> None:
        """The gateway has no such request: it failed when Redis was silent, or its admission was never confirmed."""
        if request not in self._unknown:
            self._unknown.add(request)
            self._requests.spawn(self.cancel_id(request))

    def forget_unknown(self, request: str) -> None:
        self._unknown.discard(request)

    def forget_all_unknown(self) -> None:
        """After an outage of Redis they are cancelled again."""
        self._unknown.clear()
