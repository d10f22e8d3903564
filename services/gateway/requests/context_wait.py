"""Requests that ask for a longer context (Ollama's `num_ctx`) than the model's replicas have.

The registry gives an idle model a longer context by replacing its replicas. A request for an idle model waits here until the
old replicas are gone, so that none of them serves it. A request for a busy model is queued at once, and served with the current
context.
"""

from __future__ import annotations

import asyncio
import time

from services.gateway.routes_view import RoutesView
from services.protocol.queue import Queue
from services.protocol.routes import ReplicaRoute

ROUTES_POLL_INTERVAL_S = 0.05
#: The registry decides within a second. If the replicas are all still ready after this time, no machine has enough memory, or
#: the registry isn't running.
DECISION_TIMEOUT_S = 2.0
#: How long to wait for the old replicas. An idle worker exits within a few seconds.
DRAIN_TIMEOUT_S = 20.0
#: After a wait that achieved nothing, how long requests for as much context or more don't wait.
RETRY_AFTER_FAILURE_S = 60.0


class ContextWait:
    def __init__(self, queue: Queue, routes: RoutesView) -> None:
        self._queue = queue
        self._routes = routes
        self._failed_requests: dict[str, tuple[int, float]] = {}

    async def until_replaced(self, version: str, tokens: int) -> None:
        """Waits until no replica of the version has a shorter context, or until waiting is pointless. Raises Unavailable."""
        if not self._shorter(version, tokens) or self._has_failed(version, tokens):
            return
        await self._queue.request_context(version, tokens)
        started = time.monotonic()
        while shorter := self._shorter(version, tokens):
            waited_s = time.monotonic() - started
            if await self._is_busy(version) or waited_s > DRAIN_TIMEOUT_S:
                return
            if waited_s > DECISION_TIMEOUT_S and all(replica.state == "ready" for replica in shorter):
                self._failed_requests[version] = tokens, time.monotonic() + RETRY_AFTER_FAILURE_S
                return
            await asyncio.sleep(ROUTES_POLL_INTERVAL_S)

    def _shorter(self, version: str, tokens: int) -> list[ReplicaRoute]:
        replicas = self._routes.current.replicas
        return [replica for replica in replicas if replica.version == version and 0 < replica.context_tokens < tokens]

    def _has_failed(self, version: str, tokens: int) -> bool:
        least, until = self._failed_requests.get(version, (0, 0.0))
        return tokens >= least and time.monotonic() < until

    async def _is_busy(self, version: str) -> bool:
        return any(worker.version == version and worker.running for worker in await self._queue.workers())
