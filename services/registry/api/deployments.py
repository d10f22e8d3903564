"""/deployments: the settings of models, and how many replicas are pinned."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Select, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from services.protocol.engine import EngineSettings
from services.protocol.names import ModelName
from services.registry.api.dependencies import AppStateDep, rfc3339
from services.registry.database import catalog, deployments
from services.registry.database.tables import Deployment, Replica
from services.registry.states import Origin, ReplicaState

router = APIRouter(prefix="/deployments")


class DeploymentBody(BaseModel):
    """`engine`: fields of EngineSettings. Anything omitted falls back to the platform's settings."""

    model_config = ConfigDict(extra="forbid")

    engine: dict[str, Any] = {}
    replicas: int = Field(default=1, ge=0, le=1000)


@router.get("")
async def listing(state: AppStateDep) -> dict[str, Any]:
    """Deployments that an admin configured, and those that want replicas now."""
    async with state.database.snapshot() as session:
        shown = or_(Deployment.origin == Origin.PINNED, Deployment.overrides != {}, Deployment.replicas_wanted > 0)
        rows = (await session.scalars(select(Deployment).where(shown).order_by(Deployment.id))).all()
        return {"deployments": await _described(session, rows)}


@router.put("/{model:path}")
async def put(model: str, body: DeploymentBody, state: AppStateDep) -> dict[str, Any]:
    """Replaces the model's deployment: anything that this request omits falls back to the platform's settings."""
    platform = state.settings.engine
    deployments.check_overrides(platform, body.engine)
    async with state.database.transaction() as session:
        tag = await catalog.find_tag(session, ModelName.parse(model))
        row = await deployments.deploy(
            session, tag.version_digest, overrides=body.engine, replicas=body.replicas, platform=platform
        )
        (described,) = await _described(session, [row])
    await state.queue.signal()
    return described


@router.delete("/{model:path}")
async def reset(model: str, state: AppStateDep) -> dict[str, Any]:
    """Resets the model to the default: loaded on demand, with the platform's settings."""
    return await put(model, DeploymentBody(replicas=0), state)


async def _described(session: AsyncSession, rows: Sequence[Deployment]) -> list[dict[str, Any]]:
    names = await catalog.display_names(session)
    ready: defaultdict[int, list[EngineSettings | None]] = defaultdict(list)
    for replica in await session.scalars(select(Replica).where(Replica.state == ReplicaState.READY)):
        ready[replica.deployment_id].append(deployments.stored_settings(replica.settings))
    newest = {replica.deployment_id: replica for replica in await session.scalars(_newest_replicas())}
    return [_deployment(row, names, ready[row.id], newest.get(row.id)) for row in rows]


def _newest_replicas() -> Select[Replica]:
    return select(Replica).where(Replica.id.in_(select(func.max(Replica.id)).group_by(Replica.deployment_id)))


def _reason(row: Deployment, ready: int, newest: Replica | None) -> str:
    """The newest replica's reason if the deployment has fewer ready replicas than it wants and that one is pending or failed;
    otherwise the deployment's own."""
    if newest and ready < row.replicas_wanted and newest.state in (ReplicaState.FAILED, ReplicaState.PENDING):
        return newest.reason
    return row.reason


def _deployment(
    row: Deployment, names: dict[str, str], ready: Sequence[EngineSettings | None], newest: Replica | None
) -> dict[str, Any]:
    engine = deployments.stored_settings(row.settings)
    return {
        "model": names.get(row.version_digest, row.version_digest[:12]),
        "version": row.version_digest,
        "origin": row.origin.value,
        "replicas": row.replicas_wanted,
        "ready": len(ready),
        "updated": sum(settings is None or settings == engine for settings in ready),
        "on_trial": row.previous is not None,
        "reason": _reason(row, len(ready), newest),
        "overrides": row.overrides,
        "engine": msgspec.structs.asdict(engine or EngineSettings()),
        "created_at": rfc3339(row.created_at),
    }
