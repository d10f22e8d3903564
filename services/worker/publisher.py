"""Publishes the engine's events to the gateways that wait for them."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict

from services.process.outage import Outage
from services.protocol.errors import Unavailable
from services.protocol.messages import Event, StepReply
from services.protocol.replies import ReplyWriter
from services.worker.claims import Claims
from services.worker.in_flight import InFlight
from services.worker.outbox import Outbox
from services.worker.request_telemetry import Observer

log = logging.getLogger(__name__)

#: How long the last events may take to reach Redis when the worker ends.
FLUSH_TIMEOUT_S = 5.0


class Publisher:
    def __init__(
        self,
        replies: ReplyWriter,
        outage: Outage,
        in_flight: InFlight,
        outbox: Outbox,
        observer: Observer,
        claims: Claims,
        *,
        worker: str,
    ) -> None:
        self._replies = replies
        self._outage = outage
        self._in_flight = in_flight
        self._outbox = outbox
        self._observer = observer
        self._claims = claims
        self._worker = worker

    async def publish(self) -> None:
        """Until cancelled. One entry per gateway for the engine steps of a frame interval; for more steps if Redis is slower."""
        while True:
            events: defaultdict[str, list[Event]] = defaultdict(list)
            for routed in await self._outbox.take():
                events[routed.gateway].append(routed.event)
                if routed.is_terminal:
                    self._observer.ended(routed.event)
                    self._in_flight.end(routed.event)
                    self._claims.slot_freed()
            working_on = self._in_flight.snapshot()
            gone = await self._send({gateway: StepReply(self._worker, tuple(sent)) for gateway, sent in events.items()})
            for claimed in working_on:  # requests claimed since then belong to a gateway that is back
                if claimed.claim.request.gateway in gone and self._in_flight.holds(claimed):
                    self._claims.cancel(claimed.claim.request.id)
            self._outbox.done()

    async def flush(self) -> None:
        """Returns when Redis has all events, or after FLUSH_TIMEOUT_S."""
        try:
            async with asyncio.timeout(FLUSH_TIMEOUT_S):
                await self._outbox.join()
        except TimeoutError:
            log.warning("last events not published: timeout_s=%g", FLUSH_TIMEOUT_S)

    async def _send(self, replies: dict[str, StepReply]) -> set[str]:
        """Returns the gateways that are gone. Retries until Redis takes the events: an answer must not have a hole."""
        while True:
            try:
                gone = await self._replies.publish(replies)
            except Unavailable as error:
                await self._outage.wait("replies", error)
            else:
                self._outage.over("replies")
                return gone
