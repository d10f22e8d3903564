"""/models: what is known of a model, and its deletion."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel

from services.protocol.errors import BadRequest
from services.protocol.jobs import Delete
from services.protocol.messages import new_id
from services.protocol.names import ModelName
from services.registry import catalog, deployments, jobs
from services.registry.api.dependencies import PartsDep, rfc3339
from services.registry.details import capabilities, details, model_info

router = APIRouter(prefix="/models")


class DeleteBody(BaseModel):
    """`name` is what old clients of Ollama send for `model`."""

    model: str = ""
    name: str = ""


@router.delete("")
async def delete(body: DeleteBody, parts: PartsDep) -> Response:
    """Removes the tag. A version that no tag names any more is drained by the loop before its files go."""
    if not (text := body.model or body.name):
        raise BadRequest("model is required")
    name = ModelName.parse(text)
    async with parts.database.transaction() as session:
        tag = await catalog.find_tag(session, name)
        version, full = tag.version_digest, catalog.tag_name(tag).full
        for node in await catalog.holders(session, version):
            await jobs.create(session, Delete(new_id(), full), node=node, version=version)
        await catalog.delete_tag(session, tag)
    await parts.publisher.publish()
    await parts.queue.signal()
    return Response()


@router.get("/show")
async def show(name: str, parts: PartsDep) -> dict[str, Any]:
    async with parts.database.transaction() as session:
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
