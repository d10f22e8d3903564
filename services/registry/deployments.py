"""What is wanted. The only writer of deployments."""

from __future__ import annotations

import msgspec
from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from services.protocol.engine import EngineSettings
from services.registry.models import Deployment, Version
from services.registry.states import Origin


async def want_on_demand(session: AsyncSession, version: str, engine: EngineSettings) -> int | None:
    """One replica of the version, with the platform's present settings. None where the version is gone."""
    if await session.get(Version, version, with_for_update={"key_share": True}) is None:
        return None
    wish = {"replicas_wanted": 1, "settings": msgspec.to_builtins(engine), "reason": ""}
    statement = (
        insert(Deployment)
        .values(version_digest=version, origin=Origin.ON_DEMAND, **wish)
        .on_conflict_do_update(index_elements=["version_digest"], index_where=text("origin = 'on_demand'"), set_=wish)
        .returning(Deployment.id)
    )
    deployment: int | None = await session.scalar(statement)
    return deployment


async def unwant(session: AsyncSession, deployment: int, reason: str) -> None:
    row = await session.get(Deployment, deployment, with_for_update=True)
    if row:
        row.replicas_wanted = 0
        row.reason = reason


async def engine_settings(session: AsyncSession, deployment: int) -> EngineSettings:
    settings = await session.scalar(select(Deployment.settings).where(Deployment.id == deployment))
    return msgspec.convert(settings, EngineSettings)
