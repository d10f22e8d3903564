"""Publishes the routes snapshot: builds it from the rows and writes it to Redis if it differs from the one there."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import joinedload

from services.protocol.engine import EngineSettings, Pooling
from services.protocol.errors import ProtocolMismatch
from services.protocol.routes import Caller, ReplicaRoute, Routes, RoutesSnapshot, TagRoute
from services.registry.database import catalog, deployments, keys
from services.registry.database.database import Database
from services.registry.database.details import version_route
from services.registry.database.tables import Replica, Tag, Version
from services.registry.states import Origin, ReplicaState

log = logging.getLogger(__name__)

#: The states of replicas that are listed in the snapshot: they are on a node.
_PLACED = (ReplicaState.FETCHING, ReplicaState.STARTING, ReplicaState.READY, ReplicaState.DRAINING)


def build_snapshot(
    *,
    keep_alive_s: float,
    versions: Iterable[Version],
    poolings: Mapping[str, Pooling],
    fixed: Mapping[str, EngineSettings],
    tags: Iterable[Tag],
    replicas: Iterable[Replica],
    callers: dict[str, Caller],
) -> RoutesSnapshot:
    """The snapshot with revision 0; the publisher sets the revision."""
    names = [(catalog.tag_name(tag), tag) for tag in tags]
    tag_routes = {name.key: TagRoute(name.display, tag.version_digest, tag.modified_at.timestamp()) for name, tag in names}
    named = {tag.version for tag in tag_routes.values()}
    return RoutesSnapshot(
        revision=0,
        keep_alive_s=keep_alive_s,
        tags=tag_routes,
        versions={
            version.digest: version_route(version, poolings.get(version.digest, ""), fixed.get(version.digest))
            for version in versions
            if version.digest in named
        },
        replicas=tuple(_replica_route(replica) for replica in replicas),
        callers=callers,
    )


def _replica_route(replica: Replica) -> ReplicaRoute:
    return ReplicaRoute(
        id=replica.id,
        version=replica.deployment.version_digest,
        node=replica.node_name or "",
        state=replica.state.value,
        memory_bytes=replica.memory_measured or replica.memory_estimated,
        device_memory_bytes=replica.device_memory,
        context_tokens=replica.context_tokens,
        slots=replica.slots,
        pinned=replica.deployment.origin is Origin.PINNED,
    )


class Publisher:
    """Publishes the routes snapshot. Raises Unavailable if PostgreSQL or Redis does not answer."""

    def __init__(self, database: Database, routes: Routes, *, keep_alive_s: float) -> None:
        self._database = database
        self._routes = routes
        self._keep_alive_s = keep_alive_s
        self._one_at_a_time = asyncio.Lock()

    async def publish(self, *, fault: str | None = None) -> RoutesSnapshot:
        """Writes the current snapshot if it differs from the one in Redis, or if there is none. Returns it, with revision 0.

        `fault`: why the control loop does not work, empty if it does; None keeps the published value. The revision is the
        clock in milliseconds, or the published one plus 1 if that is more, so that it rises across restarts.
        """
        async with self._one_at_a_time:
            rows = await self._from_rows()
            current = await self._current()
            if fault is None:
                fault = current.fault if current else ""
            snapshot = msgspec.structs.replace(rows, fault=fault)
            if current is None or msgspec.structs.replace(current, revision=0) != snapshot:
                await self._write(snapshot, current)
            return snapshot

    async def publish_fault(self, fault: str) -> None:
        """Publishes why the control loop does not work, with the last published snapshot: the rows may be unreadable."""
        async with self._one_at_a_time:
            current = await self._current()
            if current and current.fault != fault:
                await self._write(msgspec.structs.replace(current, fault=fault), current)

    async def _write(self, snapshot: RoutesSnapshot, current: RoutesSnapshot | None) -> None:
        revision = max(time.time_ns() // 1_000_000, current.revision + 1 if current else 0)
        await self._routes.publish(msgspec.structs.replace(snapshot, revision=revision))

    async def _current(self) -> RoutesSnapshot | None:
        """The published snapshot. None if there is none, or if it cannot be read."""
        try:
            return await self._routes.load()
        except ProtocolMismatch as mismatch:
            log.warning("published routes unreadable, writing them again: error=%r", mismatch.message)
            return None

    async def _from_rows(self) -> RoutesSnapshot:
        async with self._database.snapshot() as session:
            replicas = await session.scalars(
                select(Replica).where(Replica.state.in_(_PLACED)).options(joinedload(Replica.deployment)).order_by(Replica.id)
            )
            tags: Sequence[Tag] = await catalog.tags(session)
            return build_snapshot(
                keep_alive_s=self._keep_alive_s,
                versions=await catalog.versions(session),
                poolings=await deployments.poolings(session),
                fixed=await deployments.fixed_settings(session),
                tags=tags,
                replicas=replicas.all(),
                callers=await keys.callers(session),
            )
