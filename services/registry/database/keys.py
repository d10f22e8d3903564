"""API keys: create, list, change, revoke. The only writer of their table. Of a secret, only the hash and a prefix are
stored."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from services.protocol.errors import BadRequest, Conflict, NotFound
from services.protocol.messages import new_id
from services.protocol.routes import KEY_PREFIX, Caller, key_hash
from services.protocol.waiting import Priority
from services.registry.database.database import transaction_time
from services.registry.database.tables import ApiKey

#: The name of the key from the settings, which replaces any other key of this name. Only an admin key may have it.
ADMIN_NAME = "admin"

#: Names of keys and teams: safe in a path, a shell and a log line.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
NAME_RULE = "1 to 64 letters, digits and . _ @ + -, starting with a letter or a digit"

#: How many characters of the secret are stored, to recognise a key by.
PREFIX_LENGTH = 12


@dataclass(frozen=True)
class KeyTerms:
    """How a key's requests are queued; see services.protocol.routes.Caller."""

    weight: float = 1.0
    priority: Priority = Priority.INTERACTIVE
    max_waiting: int | None = None


class KeyChanges(TypedDict, total=False):
    """The fields of a key that may change; omitted ones stay."""

    team: str
    admin: bool
    weight: float
    priority: Priority
    max_waiting: int | None


async def create(session: AsyncSession, *, name: str, team: str, admin: bool, terms: KeyTerms) -> tuple[ApiKey, str]:
    """Returns the row and the secret, which is not stored. Raises BadRequest for an invalid name, and Conflict if an unrevoked
    key has the same name in any case."""
    _require_name("name", name)
    _require_team(team)
    if name.lower() == ADMIN_NAME and not admin:
        raise BadRequest(f"name: {name!r} is reserved for an admin key")
    secret = KEY_PREFIX + secrets.token_urlsafe(32)
    key = ApiKey(
        id=new_id(),
        name=name,
        team=team,
        admin=admin,
        hash=key_hash(secret),
        prefix=secret[:PREFIX_LENGTH],
        weight=terms.weight,
        priority=terms.priority.value,
        max_waiting=terms.max_waiting,
    )
    session.add(key)
    try:
        await session.flush()
    except IntegrityError as error:
        raise Conflict(f"a key named '{name}' already exists") from error
    await session.refresh(key)
    return key, secret


def _require_name(field: str, text: str) -> None:
    if not NAME.fullmatch(text):
        raise BadRequest(f"{field}: {text[:80]!r} is not allowed; use {NAME_RULE}")


def _require_team(team: str) -> None:
    if team:
        _require_name("team", team)


async def keep_admin(session: AsyncSession, secret: str) -> None:
    """Creates the admin key from the settings, and revokes the previous key of that name. Does nothing if this key exists, even
    if it was revoked."""
    if await session.scalar(select(ApiKey.id).where(ApiKey.hash == key_hash(secret))):
        return
    await session.execute(
        update(ApiKey).where(ApiKey.name == ADMIN_NAME, ApiKey.revoked_at.is_(None)).values(revoked_at=func.now())
    )
    row = {
        "id": new_id(),
        "name": ADMIN_NAME,
        "team": "",
        "admin": True,
        "hash": key_hash(secret),
        "prefix": secret[:PREFIX_LENGTH],
    }
    await session.execute(insert(ApiKey).values(row))


async def listing(session: AsyncSession) -> Sequence[ApiKey]:
    return (await session.scalars(select(ApiKey).order_by(ApiKey.created_at, ApiKey.id))).all()


async def change(session: AsyncSession, name: str, changes: KeyChanges) -> ApiKey:
    """Changes the key with this name or id; its secret stays. Raises NotFound, and BadRequest for an invalid change."""
    key = await _find(session, name)
    _require_team(changes.get("team", ""))
    if key.name.lower() == ADMIN_NAME and not changes.get("admin", True):
        raise BadRequest(f"admin: the name {key.name!r} is reserved for an admin key")
    for field, value in changes.items():
        setattr(key, field, value)
    await session.flush()
    return key


async def revoke(session: AsyncSession, name: str) -> None:
    """Revokes the key with this name or id. Raises NotFound if there is no unrevoked one."""
    key = await _find(session, name)
    key.revoked_at = await transaction_time(session)


async def _find(session: AsyncSession, name: str) -> ApiKey:
    """The unrevoked key with this name, in any case, or this id. The id helps if an old name, from before NAME, does not fit
    into a path."""
    if "\0" not in name:  # PostgreSQL's text cannot hold it
        named = (func.lower(ApiKey.name) == func.lower(name)) | (ApiKey.id == name)
        key = await session.scalar(select(ApiKey).where(named, ApiKey.revoked_at.is_(None)).with_for_update())
        if key is not None:
            return key
    raise NotFound(f"key {name[:80]!r} not found")


async def callers(session: AsyncSession) -> dict[str, Caller]:
    """The callers of all unrevoked keys, by the key's hash."""
    keys = await session.scalars(select(ApiKey).where(ApiKey.revoked_at.is_(None)))
    return {key.hash: _caller(key) for key in keys}


def _caller(key: ApiKey) -> Caller:
    return Caller(
        id=key.id,
        name=key.name,
        team=key.team,
        admin=key.admin,
        weight=key.weight,
        priority=Priority(key.priority),
        max_waiting=key.max_waiting,
    )
