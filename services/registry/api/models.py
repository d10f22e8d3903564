"""/models: list, show, delete; a tag's versions, and moving it back to an earlier one."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession

from services.protocol.errors import BadRequest, Conflict
from services.protocol.jobs import Delete
from services.protocol.messages import new_id
from services.protocol.names import ModelName
from services.registry.api.dependencies import AppStateDep, rfc3339
from services.registry.database import catalog, deployments, jobs, tag_history
from services.registry.database.details import capabilities, details, model_info
from services.registry.database.tables import TagVersion, Version

router = APIRouter(prefix="/models")


class DeleteBody(BaseModel):
    """Old Ollama clients send `name` instead of `model`."""

    model: str = ""
    name: str = ""


@router.get("")
async def list_models(state: AppStateDep) -> dict[str, Any]:
    """All tags, the most recently modified first."""
    async with state.database.transaction() as session:
        tags = await catalog.tags(session)
    return {
        "models": [
            {"name": catalog.tag_name(tag).display, "digest": tag.version_digest, "modified_at": rfc3339(tag.modified_at)}
            for tag in tags
        ]
    }


@router.delete("")
async def delete(body: DeleteBody, state: AppStateDep) -> Response:
    """Removes the tag. If no other tag names its version, the control loop drains the replicas before the files are deleted."""
    if not (text := body.model or body.name):
        raise BadRequest("model is required")
    name = ModelName.parse(text)
    async with state.database.transaction() as session:
        tag = await catalog.find_tag(session, name)
        version, full = tag.version_digest, catalog.tag_name(tag).full
        history = [row.version_digest for row in await tag_history.of_tag(session, tag)]
        for node in await tag_history.holders(session, version):
            await jobs.create(session, Delete(new_id(), full), node=node, version=version)
        await catalog.delete_tag(session, tag)
        if len(history) > 1:
            await tag_history.drop_files(session, name, history)
    await state.publisher.publish()
    await state.queue.signal()
    return Response()


class RollbackBody(BaseModel):
    """`digest`: the first digits of a kept version's digest; empty for the previous version."""

    model: str
    digest: str = ""


@router.post("/rollback")
async def rollback(body: RollbackBody, state: AppStateDep) -> dict[str, Any]:
    """Moves the tag back to a version that it keeps, with the deployment's settings. The control loop drains the replicas of
    the previous version, unless another tag names it."""
    name = ModelName.parse(body.model)
    async with state.database.transaction() as session:
        tag = await catalog.find_tag(session, name)
        before, shown = tag.version_digest, catalog.tag_name(tag).display
        digest = tag_history.chosen(await tag_history.of_tag(session, tag), before, body.digest, shown)
        if not await tag_history.holders(session, digest):
            raise Conflict(f"no node has version {digest[:12]} of '{shown}': pull it again")
        await catalog.move_tag(session, name, digest)
        await deployments.carry_over(session, before, digest)
    await state.publisher.publish()
    await state.queue.signal()
    return {"model": shown, "digest": digest, "previous": before}


@router.get("/versions")
async def versions(name: str, state: AppStateDep) -> dict[str, Any]:
    """The versions that the tag keeps, the current one first. `size` is the bytes that the files take on each of `nodes`."""
    async with state.database.transaction() as session:
        tag = await catalog.find_tag(session, ModelName.parse(name))
        history = await tag_history.of_tag(session, tag)
        described = [await _version(session, row, current=tag.version_digest) for row in history]
    return {"model": catalog.tag_name(tag).display, "versions": described}


async def _version(session: AsyncSession, row: TagVersion, *, current: str) -> dict[str, Any]:
    version = await session.get_one(Version, row.version_digest)
    return {
        "digest": version.digest,
        "current": version.digest == current,
        "size": version.size,
        "source": version.source,
        "named_at": rfc3339(row.named_at),
        "nodes": list(await tag_history.holders(session, version.digest)),
    }


@router.get("/show")
async def show(name: str, state: AppStateDep) -> dict[str, Any]:
    async with state.database.transaction() as session:
        tag = await catalog.find_tag(session, ModelName.parse(name))
        poolings = await deployments.poolings(session)
    version = tag.version
    return {
        "name": catalog.tag_name(tag).display,
        "modified_at": rfc3339(tag.modified_at),
        "digest": version.digest,
        "size": version.size,
        "details": details(version),
        "model_info": model_info(version),
        "template": version.template,
        "system": version.system,
        "license": version.license,
        "parameters": version.parameters,
        "capabilities": list(capabilities(version, poolings.get(version.digest, ""))),
    }
