"""The gateway's lease in Redis, and whether Redis answers.

The lease tells the other processes that this gateway reads its reply stream. If it ended, because this process stalled or Redis lost
its data, each open request is looked up and what is missing is sent again.
"""

from __future__ import annotations

import asyncio
import logging

from services.gateway.requests.cancellation import Cancellation
from services.gateway.requests.open_requests import OpenRequests
from services.gateway.requests.recovery import Recovery
from services.process.outage import Outage
from services.protocol.errors import Unavailable, from_code
from services.protocol.gateways import Gateways
from services.protocol.replies import ReplyReader

logger = logging.getLogger(__name__)


class GatewayLease:
    """`fault` is why nothing can be admitted, empty while requests can. `lapses` counts how often the lease had ended. After `outage_s`
    without an answer of Redis every open request fails."""

    def __init__(
        self,
        gateway: str,
        gateways: Gateways,
        reader: ReplyReader,
        requests: OpenRequests,
        recovery: Recovery,
        cancellation: Cancellation,
        *,
        outage_s: float,
    ) -> None:
        self.fault = "Redis does not answer"
        self.lapses = 0
        self._gateway = gateway
        self._gateways = gateways
        self._reader = reader
        self._requests = requests
        self._recovery = recovery
        self._cancellation = cancellation
        self._outage_s = outage_s
        self._outage = Outage(logger)
        self._renewing = asyncio.Lock()
        self._to_resume = False

    async def renew(self, loop: str) -> None:
        """Raises Unavailable. After it returns, no other process takes requests of this gateway back."""
        await self._renew()
        self._outage.over(loop)
        self.fault = ""

    async def wait_after(self, loop: str, error: Unavailable) -> None:
        """Redis did not answer this loop; returns when it is time to ask again."""
        self.lost_contact(loop, error)
        await self._outage.wait(loop, error)

    def lost_contact(self, loop: str, error: Unavailable) -> None:
        """Redis did not answer this loop, which asks again at its own interval."""
        self.fault = error.message
        self._cancellation.forget_all_unknown()
        self._outage.begin(loop, error)
        if self._outage.seconds >= self._outage_s:
            for pending in self._requests:
                if pending.is_awaited:
                    self._requests.abandon(pending, from_code(error.code, error.message))

    async def _renew(self) -> None:
        async with self._renewing:
            renewal = await self._gateways.renew(self._gateway)
            if not renewal.had_stream:
                self._reader.restart()
            if renewal.had_lease and renewal.had_stream and not self._to_resume:
                return
            self.lapses += 1
            self._to_resume = True
            admitted = [pending for pending in self._requests if pending.position is not None]
            if admitted:
                logger.warning("lease lost and renewed: gateway=%s requests=%d", self._gateway, len(admitted))
            await self._recovery.resume_missing(admitted, had_stream=renewal.had_stream)
            self._to_resume = False
