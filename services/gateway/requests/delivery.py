"""Hands the events of workers to the requests that they are about."""

from __future__ import annotations

import logging

from services.gateway.requests.cancellation import Cancellation
from services.gateway.requests.open_requests import OpenRequests
from services.gateway.requests.pending_request import PendingRequest, Verdict, is_broken_off
from services.gateway.requests.recovery import Recovery
from services.gateway.requests.settlement import Settlement, computed_tokens
from services.protocol.errors import RequestTimedOut
from services.protocol.messages import Event, Failed, Finished, HandedOver

logger = logging.getLogger(__name__)


class Delivery:
    """`max_unread`: a request whose client has more events than this to read is abandoned."""

    def __init__(
        self, requests: OpenRequests, settlement: Settlement, cancellation: Cancellation, recovery: Recovery, *, max_unread: int
    ) -> None:
        self._requests = requests
        self._settlement = settlement
        self._cancellation = cancellation
        self._recovery = recovery
        self._max_unread = max_unread

    def deliver(self, event: Event, worker: str) -> None:
        """An event that makes no sense fails its own request and no other."""
        pending = self._requests.get(event.request)
        if pending is None:
            self._deliver_unknown(event)
            return
        try:
            self._deliver(pending, event, worker)
        except Exception as error:  # noqa: BLE001 - whatever a worker sent, the other answers go on
            self._requests.break_off(pending, error)

    def _deliver(self, pending: PendingRequest, event: Event, worker: str) -> None:
        verdict = pending.accept(event)
        if pending.num_unread > self._max_unread:
            self._requests.abandon(pending, RequestTimedOut("the client read the answer too slowly"))
            self._requests.spawn(self._cancellation.cancel(pending), pending)
        if not pending.is_awaited:
            if isinstance(event, Finished | Failed):
                self._end(pending, event)
        elif verdict is Verdict.GAP:
            logger.warning("events missing: request=%s epoch=%d", event.request, event.epoch)
            self._recovery.replace_soon(pending, event.epoch)
        elif verdict is Verdict.NEXT:
            self._act_on(pending, event, worker)

    def _act_on(self, pending: PendingRequest, event: Event, worker: str) -> None:
        if is_broken_off(event):
            logger.warning("answer broken off: request=%s worker=%s", event.request, worker)
            pending.losses.count(worker, crashed=True)
            self._recovery.recover_soon(pending, event.epoch, "broken_off")
        elif isinstance(event, HandedOver):
            self._recovery.recover_soon(pending, event.epoch, "handed_over")
        elif isinstance(event, Finished | Failed):
            self._end(pending, event)

    def _end(self, pending: PendingRequest, event: Finished | Failed) -> None:
        self._requests.end(pending)
        cost = computed_tokens(event.usage) if isinstance(event, Finished) else pending.spent
        self._settlement.settle_soon(event.request, event.epoch, cost)

    def _deliver_unknown(self, event: Event) -> None:
        """The request failed here when Redis was silent, or the queue took it without this gateway learning so."""
        if isinstance(event, Finished | Failed):
            self._cancellation.forget_unknown(event.request)
            cost = computed_tokens(event.usage) if isinstance(event, Finished) else 0
            self._settlement.settle_soon(event.request, event.epoch, cost)
        else:
            self._cancellation.cancel_unknown(event.request)
