"""API keys: made, listed, revoked. The only writer of their table; of a secret only the hash is kept."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from services.protocol.errors import BadRequest, Conflict, NotFound
from services.protocol.messages import new_id
from services.protocol.routes import KEY_PREFIX, Caller, key_hash
from services.protocol.waiting import Priority
from services.registry.db import transaction_time
from services.registry.models import ApiKey

#: Of the key that the settings name.
ADMIN_NAME = "admin"

#: Of the secret, kept to recognise a key by.
PREFIX_LENGTH = 12


@dataclass(frozen=True)
class KeyTerms:
    """How the requests of a key wait, as in services.protocol.routes.Caller."""

    weight: float = 1.0
    priority: Priority = Priority.INTERACTIVE
    max_waiting: int | None = None


async def create(session: AsyncSession, *, name: str, team: str, admin: bool, terms: KeyTerms) -> tuple[ApiKey, str]:
    """The row and the secret, which is nowhere else. Raises Conflict where an unrevoked key has that name."""
    if not name.strip():
        raise BadRequest("a key needs a name")
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
        raise Conflict(f"a key named '{name}' exists already") from error
    await session.refresh(key)
    return key, secret


async def keep_admin(session: AsyncSession, secret: str) -> None:
    """Makes the key that the settings name, in the place of an earlier one. Once: if it was revoked it stays so."""
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


async def revoke(session: AsyncSession, name: str) -> None:
    """Raises NotFound where no unrevoked key has that name."""
    key = await session.scalar(select(ApiKey).where(ApiKey.name == name, ApiKey.revoked_at.is_(None)).with_for_update())
    if key is None:
        raise NotFound(f"key '{name}' not found")
    key.revoked_at = await transaction_time(session)


async def callers(session: AsyncSession) -> dict[str, Caller]:
    """The unrevoked keys by hash."""
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
