"""Holds the newest routes snapshot, and resolves model names to versions with it.

`RoutesView.follow` loads each snapshot that the registry publishes. `refresh` loads it right away: after a change that this
gateway forwarded, and before a name is reported as unknown. Inference needs nothing else from the registry.
"""

from __future__ import annotations

import logging

from services.gateway.requests.ticket import Target
from services.process.outage import Outage
from services.protocol.errors import ModelNotFound, ProtocolMismatch, Unavailable
from services.protocol.names import ModelName
from services.protocol.routes import Routes, RoutesSnapshot, TagRoute

logger = logging.getLogger(__name__)

#: Revoked keys must be refused within a second, even if the change signal is lost.
ROUTES_POLL_INTERVAL_S = 0.8


class RoutesView:
    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._snapshot: RoutesSnapshot | None = None

    @property
    def known(self) -> bool:
        return self._snapshot is not None

    @property
    def current(self) -> RoutesSnapshot:
        """The latest snapshot. Raises Unavailable if none has been loaded yet."""
        if self._snapshot is None:
            raise Unavailable("the registry has not published any routes yet")
        return self._snapshot

    async def follow(self) -> None:
        """Loads new snapshots until cancelled. While Redis doesn't answer, the last one stays in use."""
        outage = Outage(logger)
        while True:
            try:
                async for snapshot in self._routes.snapshots(poll_s=ROUTES_POLL_INTERVAL_S):
                    self._snapshot = snapshot
                    outage.over("routes")
            except (Unavailable, ProtocolMismatch) as error:
                await outage.wait("routes", error)

    async def refresh(self) -> None:
        """Loads the snapshot now. Keeps the current one if Redis doesn't answer or has none newer."""
        try:
            snapshot = await self._routes.load()
        except (Unavailable, ProtocolMismatch) as error:
            logger.warning("routes not refreshed: error=%r", error.message)
            return
        if snapshot and (self._snapshot is None or snapshot.revision > self._snapshot.revision):
            self._snapshot = snapshot

    async def resolve(self, asked: str) -> Target:
        """The version that `asked` points to. Raises BadRequest if it isn't a valid name, ModelNotFound if there is no such
        tag."""
        name = ModelName.parse(asked)
        tag = self._find(name)
        if tag is None:
            await self.refresh()
            tag = self._find(name)
        if tag is None:
            raise ModelNotFound(f"model '{asked}' not found")
        return Target(asked, ModelName.parse(tag.name), self.current.versions[tag.version])

    def _find(self, name: ModelName) -> TagRoute | None:
        return self.current.tags.get(name.key)
