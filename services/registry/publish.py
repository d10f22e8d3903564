"""The routes snapshot: built from rows alone, written to Redis when it differs from what lies there. Its only writer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import joinedload

from services.protocol.engine import Pooling
from services.protocol.routes import Caller, ReplicaRoute, Routes, RoutesSnapshot, TagRoute
from services.registry import catalog, deployments, keys
from services.registry.db import Database
from services.registry.details import version_route
from services.registry.models import Replica, Tag, Version
from services.registry.states import Origin, ReplicaState

#: Replicas that exist on a node.
_PLACED = (ReplicaState.FETCHING, ReplicaState.STARTING, ReplicaState.READY, ReplicaState.DRAINING)


def build_snapshot(
    *,
    keep_alive_s: float,
    versions: Iterable[Version],
    poolings: Mapping[str, Pooling],
    tags: Iterable[Tag],
    replicas: Iterable[Replica],
    callers: dict[str, Caller],
) -> RoutesSnapshot:
    """Revision 0: the publisher counts."""
    names = [(catalog.tag_name(tag), tag) for tag in tags]
    tag_routes = {name.key: TagRoute(name.display, tag.version_digest, tag.modified_at.timestamp()) for name, tag in names}
    named = {tag.version for tag in tag_routes.values()}
    return RoutesSnapshot(
        revision=0,
        keep_alive_s=keep_alive_s,
        tags=tag_routes,
        versions={
            version.digest: version_route(version, poolings.get(version.digest, ""))
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
    """Raises Unavailable when PostgreSQL or Redis does not answer."""

    def __init__(self, database: Database, routes: Routes, *, keep_alive_s: float) -> None:
        self._database = database
        self._routes = routes
        self._keep_alive_s = keep_alive_s
        self._one_at_a_time = asyncio.Lock()

    async def publish(self) -> RoutesSnapshot:
        """What there is now, of revision 0. Also heals what Redis lost. The revision rises across restarts: from what Redis holds, or with the clock."""
        async with self._one_at_a_time:
            wanted = await self._from_rows()
            current = await self._routes.load()
            if current is None or msgspec.structs.replace(current, revision=0) != wanted:
                revision = max(time.time_ns() // 1_000_000, current.revision + 1 if current else 0)
                await self._routes.publish(msgspec.structs.replace(wanted, revision=revision))
            return wanted

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
                tags=tags,
                replicas=replicas.all(),
                callers=await keys.callers(session),
            )
