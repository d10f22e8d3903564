"""/keys: API keys. What changes here is in the routes snapshot before the answer is sent."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel, Field

from services.protocol.waiting import Priority
from services.registry import keys
from services.registry.api.dependencies import PartsDep, rfc3339
from services.registry.models import ApiKey

router = APIRouter(prefix="/keys")


class KeyBody(BaseModel):
    name: str
    team: str = ""
    admin: bool = False
    weight: float = Field(default=1.0, ge=0.01, le=100)
    priority: Priority = Priority.INTERACTIVE
    max_waiting: int | None = Field(default=None, ge=1, le=2**31 - 1)


@router.post("", status_code=201)
async def create(body: KeyBody, parts: PartsDep) -> dict[str, Any]:
    async with parts.database.transaction() as session:
        terms = keys.KeyTerms(body.weight, body.priority, body.max_waiting)
        key, secret = await keys.create(session, name=body.name, team=body.team, admin=body.admin, terms=terms)
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
        "weight": key.weight,
        "priority": key.priority,
        "max_waiting": key.max_waiting,
        "created_at": rfc3339(key.created_at),
    }
