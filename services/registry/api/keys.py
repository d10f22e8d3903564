"""/keys: API keys. What changes here is in the routes snapshot before the answer is sent."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel

from services.registry import keys
from services.registry.api.dependencies import PartsDep, rfc3339
from services.registry.models import ApiKey

router = APIRouter(prefix="/keys")


class KeyBody(BaseModel):
    name: str
    team: str = ""
    admin: bool = False


@router.post("", status_code=201)
async def create(body: KeyBody, parts: PartsDep) -> dict[str, Any]:
    async with parts.database.transaction() as session:
        key, secret = await keys.create(session, name=body.name, team=body.team, admin=body.admin)
    await parts.publisher.publish()
    return {**_described(key), "secret": secret}


@router.get("")
async def listing(parts: PartsDep) -> dict[str, Any]:
    async with parts.database.transaction() as session:
        return {"keys": [{**_described(key), "revoked_at": rfc3339(key.revoked_at)} for key in await keys.listing(session)]}


@router.delete("/{name}")
async def revoke(name: str, parts: PartsDep) -> Response:
    async with parts.database.transaction() as session:
        await keys.revoke(session, name)
    await parts.publisher.publish()
    return Response()


def _described(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "team": key.team,
        "admin": key.admin,
        "prefix": key.prefix,
        "created_at": rfc3339(key.created_at),
    }
