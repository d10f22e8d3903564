"""/keys: API keys, by name or id. Every change is in the routes snapshot before the response is sent."""

from __future__ import annotations

from typing import Annotated, Any, cast

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel, Field

from services.protocol.waiting import Priority
from services.registry.api.dependencies import AppStateDep, rfc3339
from services.registry.database import keys
from services.registry.database.tables import ApiKey

router = APIRouter(prefix="/keys")


Weight = Annotated[float, Field(ge=0.01, le=100)]
MaxWaiting = Annotated[int, Field(ge=1, le=2**31 - 1)]


class KeyBody(BaseModel):
    name: str
    team: str = ""
    admin: bool = False
    weight: Weight = 1.0
    priority: Priority = Priority.INTERACTIVE
    max_waiting: MaxWaiting | None = None


class ChangeBody(BaseModel, extra="forbid"):
    """Omitted fields stay as they are. `max_waiting` null: the gateway's limit applies."""

    team: str = ""
    admin: bool = False
    weight: Weight = 1.0
    priority: Priority = Priority.INTERACTIVE
    max_waiting: MaxWaiting | None = None


@router.post("", status_code=201)
async def create(body: KeyBody, state: AppStateDep) -> dict[str, Any]:
    async with state.database.transaction() as session:
        terms = keys.KeyTerms(body.weight, body.priority, body.max_waiting)
        key, secret = await keys.create(session, name=body.name, team=body.team, admin=body.admin, terms=terms)
    await state.publisher.publish()
    return {**_described(key), "secret": secret}


@router.get("")
async def listing(state: AppStateDep) -> dict[str, Any]:
    async with state.database.transaction() as session:
        return {"keys": [{**_described(key), "revoked_at": rfc3339(key.revoked_at)} for key in await keys.listing(session)]}


@router.patch("/{name:path}")
async def change(name: str, body: ChangeBody, state: AppStateDep) -> dict[str, Any]:
    async with state.database.transaction() as session:
        changes = cast("keys.KeyChanges", body.model_dump(exclude_unset=True))
        described = _described(await keys.change(session, name, changes))
    await state.publisher.publish()
    return described


@router.delete("/{name:path}")
async def revoke(name: str, state: AppStateDep) -> Response:
    async with state.database.transaction() as session:
        await keys.revoke(session, name)
    await state.publisher.publish()
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
