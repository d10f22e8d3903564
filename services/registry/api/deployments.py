"""/deployments: with which settings models run, and how many replicas of them stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from services.protocol.engine import EngineSettings
from services.protocol.names import ModelName
from services.registry import catalog, deployments
from services.registry.api.dependencies import PartsDep, rfc3339
from services.registry.models import Deployment, Replica
from services.registry.states import Origin, ReplicaState

router = APIRouter(prefix="/deployments")


class DeploymentBody(BaseModel):
    """`engine`: fields of EngineSettings; those that are left out are as the registry's own settings say."""

    model_config = ConfigDict(extra="forbid")

    engine: dict[str, Any] = {}
    replicas: int = Field(default=1, ge=0, le=1000)


@router.get("")
async def listing(parts: PartsDep) -> dict[str, Any]:
    """Those that an admin made, and those that are wanted now."""
    async with parts.database.snapshot() as session:
        shown = or_(Deployment.origin == Origin.PINNED, Deployment.overrides != {}, Deployment.replicas_wanted > 0)
        rows = (await session.scalars(select(Deployment).where(shown).order_by(Deployment.id))).all()
        return {"deployments": await _described(session, rows)}


@router.put("/{model:path}")
async def put(model: str, body: DeploymentBody, parts: PartsDep) -> dict[str, Any]:
    """Says the whole of it: what an earlier one set and this one does not is as the registry's settings say."""
    platform = parts.settings.engine
    deployments.check_overrides(platform, body.engine)
    async with parts.database.transaction() as session:
        tag = await catalog.find_tag(session, ModelName.parse(model))
        row = await deployments.deploy(
            session, tag.version_digest, overrides=body.engine, replicas=body.replicas, platform=platform
        )
        (described,) = await _described(session, [row])
    await parts.queue.signal()
    return described


@router.delete("/{model:path}")
async def reset(model: str, parts: PartsDep) -> dict[str, Any]:
    """On demand, with the registry's settings, as a model that nobody deployed."""
    return await put(model, DeploymentBody(replicas=0), parts)


async def _described(session: AsyncSession, rows: Sequence[Deployment]) -> list[dict[str, Any]]:
    names = await catalog.display_names(session)
    ready = select(Replica.deployment_id, func.count()).where(Replica.state == ReplicaState.READY)
    serving = {row[0]: row[1] for row in await session.execute(ready.group_by(Replica.deployment_id))}
    return [_deployment(row, names, serving.get(row.id, 0)) for row in rows]


def _deployment(row: Deployment, names: dict[str, str], ready: int) -> dict[str, Any]:
    return {
        "model": names.get(row.version_digest, row.version_digest[:12]),
        "version": row.version_digest,
        "origin": row.origin.value,
        "replicas": row.replicas_wanted,
        "ready": ready,
        "reason": row.reason,
        "overrides": row.overrides,
        "engine": msgspec.structs.asdict(msgspec.convert(row.settings, EngineSettings)),
        "created_at": rfc3339(row.created_at),
    }
