"""The requests that this gateway has admitted and that have not ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterator
from typing import Any

from services.gateway.requests.pending_request import PendingRequest
from services.gateway.requests.request_state import RequestState
from services.protocol.errors import CorralError

logger = logging.getLogger(__name__)


class OpenRequests:
    """By their ids in the queue, with the background work on them. A request whose background work breaks fails; the others go on."""

    def __init__(self) -> None:
        self._by_id: dict[str, PendingRequest] = {}
        self._tasks: set[asyncio.Task[object]] = set()

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[PendingRequest]:
        """Over a copy, because requests end while one iterates."""
        return iter(list(self._by_id.values()))

    def __contains__(self, pending: PendingRequest) -> bool:
        return self._by_id.get(pending.request.id) is pending

    def get(self, request: str) -> PendingRequest | None:
        return self._by_id.get(request)

    def add(self, pending: PendingRequest) -> None:
        self._by_id[pending.request.id] = pending

    def rename(self, pending: PendingRequest) -> None:
        del self._by_id[pending.request.id]
        pending.rename()
        self._by_id[pending.request.id] = pending

    def end(self, pending: PendingRequest, error: Exception | None = None) -> None:
        """Does nothing if it has ended. `error` is raised to the response."""
        if pending in self:
            del self._by_id[pending.request.id]
            pending.enter(RequestState.ENDED)
        if error is not None:
            pending.fail(error)

    def abandon(self, pending: PendingRequest, error: Exception) -> None:
        """The response gets the error; the request is cancelled in the queue as soon as Redis answers."""
        if pending in self and pending.state is not RequestState.ABANDONED:
            pending.enter(RequestState.ABANDONED)
        pending.fail(error)

    def spawn(self, work: Coroutine[Any, Any, object], pending: PendingRequest | None = None) -> None:
        """Runs `work` in the background; if it raises, `pending` fails."""

        def finish(task: asyncio.Task[object]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()):
                self.break_off(pending, error)

        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(finish)

    def break_off(self, pending: PendingRequest | None, error: BaseException) -> None:
        """An error of ours, or an event that makes no sense: the request that met it fails."""
        logger.error("internal error: request=%s", pending.id if pending else "-", exc_info=error)
        if pending and pending.is_awaited:
            self.abandon(pending, CorralError("internal server error"))

    async def join(self) -> None:
        """Waits for the background work."""
        if self._tasks:
            await asyncio.wait(self._tasks)
