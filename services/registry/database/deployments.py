"""Deployments: the wanted replicas of each version, at most one deployment per version. The only writer of the table.

A deployment is created when requests wait for its version, or by an admin. `overrides` are the settings that an admin chose,
`settings` the full settings of its replicas: the platform's with the overrides applied. The control loop replaces replicas that
run with other settings (control/rollout.py).
"""

from __future__ import annotations

import logging
import re
from typing import Any

import msgspec
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from services.protocol.engine import EngineSettings, Pooling
from services.protocol.errors import BadRequest, ModelNotFound
from services.registry.control.contexts import is_fixed
from services.registry.database.database import transaction_time
from services.registry.database.stored_text import stored_text
from services.registry.database.tables import Deployment, Replica, Tag, Version
from services.registry.states import Origin, ReplicaState

log = logging.getLogger(__name__)

#: A message of msgspec: the problem, then the path of the field.
_PLACE = re.compile(r"(?P<what>.*) - at `\$\.(?P<field>.*)`", re.DOTALL)


def check_overrides(platform: EngineSettings, overrides: dict[str, Any]) -> None:
    """Raises BadRequest, which names the setting, if an override is unknown or invalid."""
    known = EngineSettings.__struct_fields__
    if unknown := sorted(overrides.keys() - set(known)):
        raise BadRequest(f"engine.{unknown[0]} is not an engine setting; the settings are {', '.join(known)}")
    try:
        merged(platform, overrides)
    except msgspec.ValidationError as error:
        found = _PLACE.fullmatch(str(error))
        raise BadRequest(f"engine.{found['field']}: {found['what']}" if found else f"engine: {error}") from error


def merged(platform: EngineSettings, overrides: dict[str, Any]) -> EngineSettings:
    return msgspec.convert({**msgspec.structs.asdict(platform), **overrides}, EngineSettings)


def stored_settings(stored: object) -> EngineSettings | None:
    """None if there are none, or if this release cannot read them."""
    try:
        return None if stored is None else msgspec.convert(stored, EngineSettings)
    except msgspec.ValidationError:
        return None


class Previous(msgspec.Struct, frozen=True):
    """The state of a deployment before the settings that are on trial."""

    origin: Origin
    replicas: int
    overrides: dict[str, Any]
    settings: dict[str, Any]


async def deploy_on_demand(session: AsyncSession, version: str, platform: EngineSettings) -> int | None:
    """The version's deployment now wants at least one replica. Returns its id, or None if the version is gone."""
    row = await _locked(session, version)
    if row is None:
        return None
    row.settings = msgspec.to_builtins(merged(platform, row.overrides))
    row.replicas_wanted = max(1, row.replicas_wanted)
    row.reason = ""
    await session.flush()
    return row.id


async def follow_platform(session: AsyncSession, platform: EngineSettings) -> None:
    """Applies the platform's settings, which may have changed since the last start, to every deployment, below its
    overrides."""
    for row in await session.scalars(select(Deployment).with_for_update()):
        try:
            row.settings = msgspec.to_builtins(merged(platform, row.overrides))
        except (msgspec.ValidationError, TypeError) as error:
            log.warning(
                "platform settings not applied to a deployment: version=%s error=%r", row.version_digest[:12], str(error)
            )


async def deploy(
    session: AsyncSession, version: str, *, overrides: dict[str, Any], replicas: int, platform: EngineSettings
) -> Deployment:
    """Pins `replicas` of the version with these settings; 0: it is loaded on demand. Raises ModelNotFound if the version is
    gone, and BadRequest if the context is longer than the model was trained for."""
    row = await _locked(session, version)
    if row is None:
        raise ModelNotFound(f"version {version[:12]} no longer exists")
    _check_context(await session.get_one(Version, version), overrides)
    engine = merged(platform, overrides)
    row.previous = await _to_put_back(session, row, engine) if replicas else None
    row.overrides = overrides
    row.settings = msgspec.to_builtins(engine)
    row.origin = Origin.PINNED if replicas else Origin.ON_DEMAND
    row.replicas_wanted = replicas or min(1, row.replicas_wanted)
    row.reason = ""
    row.deployed_at = await transaction_time(session)
    await session.flush()
    return row


async def _to_put_back(session: AsyncSession, row: Deployment, engine: EngineSettings) -> dict[str, Any] | None:
    """The `Previous` to put back if `engine` fails: the last state with which a replica was ready. None if there is none, or if
    `engine` is the same."""
    present = stored_settings(row.settings)
    if engine == present:
        return row.previous
    if row.previous is not None:
        proven = msgspec.convert(row.previous, Previous)
        return None if stored_settings(proven.settings) == engine else row.previous
    serving = await session.scalars(
        select(Replica.settings).where(Replica.deployment_id == row.id, Replica.state == ReplicaState.READY)
    )
    if present not in [stored_settings(settings) for settings in serving]:
        return None
    before: dict[str, Any] = msgspec.to_builtins(Previous(row.origin, row.replicas_wanted, row.overrides, row.settings))
    return before


async def keep_settings(session: AsyncSession, deployment: int, engine: EngineSettings) -> None:
    row = await session.get(Deployment, deployment, with_for_update=True)
    if row and stored_settings(row.settings) == engine:
        row.previous = None


async def put_back(session: AsyncSession, deployment: int, engine: EngineSettings, reason: str) -> None:
    """Puts the previous settings back after `engine` failed. Does nothing if the settings have changed since."""
    row = await session.get(Deployment, deployment, with_for_update=True)
    if row is None or row.previous is None or stored_settings(row.settings) != engine:
        return
    before = msgspec.convert(row.previous, Previous)
    row.origin, row.replicas_wanted = before.origin, before.replicas
    row.overrides, row.settings = before.overrides, before.settings
    row.previous, row.reason = None, stored_text(f"{reason} (the previous settings were put back)")


def _check_context(version: Version, overrides: dict[str, Any]) -> None:
    """Raises BadRequest if the context is longer than the trained one. `rope_freq_scale` below 1 extends that limit."""
    asked, scale = overrides.get("context_tokens", 0), overrides.get("rope_freq_scale") or 1.0
    longest = int(version.context_length / scale)
    if version.context_length and asked > longest:
        raise BadRequest(f"engine.context_tokens: {asked:,} is more than the {longest:,} tokens that the model was trained for")


async def carry_over(session: AsyncSession, old: str, new: str) -> None:
    """After a tag moved from `old` to `new`: copies the admin's settings to the new version, unless an admin configured that
    one already and other tags name it. The old version loses its settings if no tag names it any longer."""
    before, after = await _locked(session, old), await _locked(session, new)
    if before is None or after is None:
        return
    if not _is_set(after) or await _num_names(session, new) == 1:
        after.origin, after.overrides, after.previous = before.origin, before.overrides, None
        if _is_set(before):
            after.settings = before.settings
        if before.origin is Origin.PINNED:
            after.replicas_wanted = before.replicas_wanted
    if await _num_names(session, old) == 0:
        before.origin, before.overrides, before.previous = Origin.ON_DEMAND, {}, None


async def _num_names(session: AsyncSession, version: str) -> int:
    return await session.scalar(select(func.count()).select_from(Tag).where(Tag.version_digest == version)) or 0


async def scale_to_zero(session: AsyncSession, deployment: int, reason: str) -> None:
    row = await session.get(Deployment, deployment, with_for_update=True)
    if row:
        row.replicas_wanted = 0
        row.reason = reason


async def poolings(session: AsyncSession) -> dict[str, Pooling]:
    """The `pooling` setting of each deployment that has one, by version."""
    asked = Deployment.settings["pooling"].astext.label("pooling")
    rows = await session.execute(select(Deployment.version_digest, asked).where(asked.is_not(None)))
    return {row.version_digest: row.pooling for row in rows}


async def fixed_settings(session: AsyncSession) -> dict[str, EngineSettings]:
    """The settings of deployments whose context requests cannot change, by version."""
    rows = await session.scalars(select(Deployment))
    stored = {row.version_digest: stored_settings(row.settings) for row in rows if is_fixed(row.origin, row.overrides)}
    return {version: settings for version, settings in stored.items() if settings}


async def widen(session: AsyncSession, deployment: int, engine: EngineSettings) -> None:
    """Changes the settings to `engine`, unless the context is fixed. The next load on demand starts without the longer
    context."""
    row = await session.get(Deployment, deployment, with_for_update=True)
    if row and not is_fixed(row.origin, row.overrides):
        row.settings = msgspec.to_builtins(engine)


def _is_set(row: Deployment) -> bool:
    return bool(row.overrides) or row.origin is Origin.PINNED


async def _locked(session: AsyncSession, version: str) -> Deployment | None:
    """The version's deployment, locked; created if there is none. The lock on the version prevents creating two."""
    if await session.get(Version, version, with_for_update=True) is None:
        return None
    row = await session.scalar(select(Deployment).where(Deployment.version_digest == version).with_for_update())
    if row is None:
        row = Deployment(version_digest=version, origin=Origin.ON_DEMAND, replicas_wanted=0, settings={}, overrides={})
        session.add(row)
        await session.flush()
    return row
