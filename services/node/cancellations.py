"""Looks once a second whether jobs in work were cancelled."""

from __future__ import annotations

import asyncio
import logging

from services.node.agent import Agent
from services.process.outage import Outage
from services.protocol.errors import Unavailable
from services.protocol.jobs import JobCancellations

INTERVAL_S = 1.0

log = logging.getLogger(__name__)


async def watch_cancellations(agent: Agent, cancellations: JobCancellations) -> None:
    """Runs until it is cancelled itself."""
    outage = Outage(log)
    while True:
        try:
            for job in await cancellations.among(agent.jobs()):
                agent.cancel(job)
        except Unavailable as error:
            outage.begin("cancellations", error)
        else:
            outage.over("cancellations")
        await asyncio.sleep(INTERVAL_S)
