"""What is wanted: one deployment for each version, made when requests wait for it or by an admin. The only writer of the table.

Its `overrides` are the settings that an admin gave it, its `settings` what its replicas run with: these over the platform's, as
those are since the registry was started. A replica that runs with others is replaced (reconcile.py).
"""

from __future__ import annotations

import logging
import re
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from services.protocol.engine import EngineSettings, Pooling
from services.protocol.errors import BadRequest, ModelNotFound
from services.registry.models import Deployment, Version
from services.registry.states import Origin

log = logging.getLogger(__name__)

#: Where msgspec says what is wrong, at the end of its message.
_PLACE = re.compile(r"(?P<what>.*) - at `\$\.(?P<field>.*)`", re.DOTALL)


def check_overrides(platform: EngineSettings, overrides: dict[str, Any]) -> None:
    """Raises BadRequest that names the setting."""
    known = EngineSettings.__struct_fields__
    if unknown := sorted(overrides.keys() - set(known)):
        raise BadRequest(f"engine.{unknown[0]} is no engine setting; there are {', '.join(known)}")
    try:
        merged(platform, overrides)
    except msgspec.ValidationError as error:
        found = _PLACE.fullmatch(str(error))
        raise BadRequest(f"engine.{found['field']}: {found['what']}" if found else f"engine: {error}") from error


def merged(platform: EngineSettings, overrides: dict[str, Any]) -> EngineSettings:
    return msgspec.convert({**msgspec.structs.asdict(platform), **overrides}, EngineSettings)


async def want_on_demand(session: AsyncSession, version: str, platform: EngineSettings) -> int | None:
    """At least one replica of the version. None where the version is gone."""
    row = await _locked(session, version)
    if row is None:
        return None
    row.settings = msgspec.to_builtins(merged(platform, row.overrides))
    row.replicas_wanted = max(1, row.replicas_wanted)
    row.reason = ""
    await session.flush()
    return row.id


async def follow_platform(session: AsyncSession, platform: EngineSettings) -> None:
    """The platform may have been started again with other settings: every deployment takes them, under its own."""
    for row in await session.scalars(select(Deployment).with_for_update()):
        try:
            row.settings = msgspec.to_builtins(merged(platform, row.overrides))
        except msgspec.ValidationError as error:
            log.warning("version %s keeps its settings: %s", row.version_digest[:12], error)


async def deploy(
    session: AsyncSession, version: str, *, overrides: dict[str, Any], replicas: int, platform: EngineSettings
) -> Deployment:
    """`replicas` that stay; 0: loaded on demand, with these settings. Raises ModelNotFound where the version is gone."""
    row = await _locked(session, version)
    if row is None:
        raise ModelNotFound(f"version {version[:12]} is gone")
    row.overrides = overrides
    row.settings = msgspec.to_builtins(merged(platform, overrides))
    row.origin = Origin.PINNED if replicas else Origin.ON_DEMAND
    row.replicas_wanted = replicas or min(1, row.replicas_wanted)
    row.reason = ""
    await session.flush()
    return row


async def carry_over(session: AsyncSession, old: str, new: str) -> None:
    """A name moved from one version to another: what an admin set for the old one holds for the new one, unless that has its
    own."""
    before, after = await _locked(session, old), await _locked(session, new)
    if before is None or after is None or not _is_set(before) or _is_set(after):
        return
    after.origin, after.overrides, after.settings = before.origin, before.overrides, before.settings
    if before.origin is Origin.PINNED:
        after.replicas_wanted = before.replicas_wanted


async def unwant(session: AsyncSession, deployment: int, reason: str) -> None:
    row = await session.get(Deployment, deployment, with_for_update=True)
    if row:
        row.replicas_wanted = 0
        row.reason = reason


async def poolings(session: AsyncSession) -> dict[str, Pooling]:
    """By version, where its deployment says something of it."""
    asked = Deployment.settings["pooling"].astext.label("pooling")
    rows = await session.execute(select(Deployment.version_digest, asked).where(asked.is_not(None)))
    return {row.version_digest: row.pooling for row in rows}


def _is_set(row: Deployment) -> bool:
    return bool(row.overrides) or row.origin is Origin.PINNED


async def _locked(session: AsyncSession, version: str) -> Deployment | None:
    """The version's deployment, which may be new. The lock on the version keeps two from being made."""
    if await session.get(Version, version, with_for_update=True) is None:
        return None
    row = await session.scalar(select(Deployment).where(Deployment.version_digest == version).with_for_update())
    if row is None:
        row = Deployment(version_digest=version, origin=Origin.ON_DEMAND, replicas_wanted=0, settings={}, overrides={})
        session.add(row)
        await session.flush()
    return row
