"""The newest routes snapshot, and the version that a model name stands for by it.

`RoutesView.follow` replaces the snapshot when the registry publishes another; `refresh` does so ahead of the signal, after a
change that this gateway itself forwarded and before it says that a name is unknown. Inference needs nothing else of the
registry.
"""

from __future__ import annotations

import logging

from services.gateway.backoff import Backoff
from services.gateway.ticket import Target
from services.protocol.errors import CorralError, ModelNotFound, Unavailable
from services.protocol.names import ModelName
from services.protocol.routes import Routes, RoutesSnapshot, TagRoute

logger = logging.getLogger(__name__)

#: Revoked keys must be refused within a second, also where the signal was lost.
POLL_S = 0.8


class RoutesView:
    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._snapshot: RoutesSnapshot | None = None

    @property
    def known(self) -> bool:
        return self._snapshot is not None

    @property
    def current(self) -> RoutesSnapshot:
        """Raises Unavailable before the registry has published for the first time."""
        if self._snapshot is None:
            raise Unavailable("the registry has not published any routes yet")
        return self._snapshot

    async def follow(self) -> None:
        """Until cancelled. While Redis does not answer, the last snapshot holds."""
        backoff = Backoff()
        while True:
            try:
                async for snapshot in self._routes.snapshots(poll_s=POLL_S):
                    self._snapshot = snapshot
                    backoff.reset()
            except CorralError as error:
                logger.warning("routes not read: %s", error.message)
            await backoff.wait()

    async def refresh(self) -> None:
        """Reads the snapshot now; keeps the one it has where Redis does not answer or holds an older one."""
        try:
            snapshot = await self._routes.load()
        except CorralError as error:
            logger.warning("routes not refreshed: %s", error.message)
            return
        if snapshot and (self._snapshot is None or snapshot.revision > self._snapshot.revision):
            self._snapshot = snapshot

    async def resolve(self, asked: str) -> Target:
        """Raises BadRequest where `asked` is no name, ModelNotFound where no tag has it."""
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
