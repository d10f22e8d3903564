"""The history of each tag: the last three versions that it named, kept with their files so that the tag can be moved back. The
only writer of `tag_versions`.

When a version drops out of the history, `drop_files` creates Delete jobs for its files, and the control loop deletes its rows
(catalog.forget).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import exists, func, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from services.protocol.errors import NotFound
from services.protocol.jobs import Delete
from services.protocol.messages import new_id
from services.protocol.names import ModelName
from services.registry.database import jobs
from services.registry.database.tables import BlobCopy, Model, Tag, TagVersion, VersionBlob
from services.registry.states import CopyState

#: How many versions a tag keeps, including the current one.
KEPT_VERSIONS = 3


async def record(session: AsyncSession, model_id: int, tag_key: str, digest: str, named_at: datetime | None = None) -> None:
    """Records that the tag names the version: since now, or since `named_at` unless it is recorded already."""
    row = {"model_id": model_id, "tag_key": tag_key, "version_digest": digest}
    statement = insert(TagVersion).values(**row, named_at=named_at or func.clock_timestamp())
    key = ["model_id", "tag_key", "version_digest"]
    if named_at:
        await session.execute(statement.on_conflict_do_nothing(index_elements=key))
    else:
        await session.execute(statement.on_conflict_do_update(index_elements=key, set_={"named_at": func.clock_timestamp()}))


async def of_tag(session: AsyncSession, tag: Tag) -> Sequence[TagVersion]:
    """The tag's versions, the current one first."""
    mine = (TagVersion.model_id == tag.model_id) & (TagVersion.tag_key == tag.key)
    return (await session.scalars(select(TagVersion).where(mine).order_by(TagVersion.named_at.desc()))).all()


async def kept(session: AsyncSession) -> set[str]:
    """The digests of all versions that a tag keeps."""
    return set(await session.scalars(select(TagVersion.version_digest).distinct()))


async def prune(session: AsyncSession, name: ModelName, tag: Tag) -> None:
    """Drops the versions beyond the last three, and their files."""
    surplus = (await of_tag(session, tag))[KEPT_VERSIONS:]
    for row in surplus:
        await session.delete(row)
    await session.flush()
    await drop_files(session, name, [row.version_digest for row in surplus])


async def drop_files(session: AsyncSession, name: ModelName, digests: Iterable[str]) -> None:
    """Creates Delete jobs for the versions that no tag of the model names or keeps any longer."""
    for digest in digests:
        if await _belongs_to_model(session, name, digest):
            continue
        for node in await holders(session, digest):
            await jobs.create(session, Delete(new_id(), name.kept(digest).full), node=node, version=digest)


async def _belongs_to_model(session: AsyncSession, name: ModelName, digest: str) -> bool:
    model = select(Model.id).where(Model.key == name.key.rpartition(":")[0]).scalar_subquery()
    named = exists().where(Tag.model_id == model, Tag.version_digest == digest)
    keeps = exists().where(TagVersion.model_id == model, TagVersion.version_digest == digest)
    return bool(await session.scalar(select(or_(named, keeps))))


async def holders(session: AsyncSession, version: str) -> Sequence[str]:
    """The nodes that hold a verified copy of any file of the version."""
    copies = select(BlobCopy.node_name).join(VersionBlob, VersionBlob.blob_digest == BlobCopy.blob_digest)
    held = (VersionBlob.version_digest == version) & (BlobCopy.state == CopyState.VERIFIED)
    return (await session.scalars(copies.where(held).distinct().order_by(BlobCopy.node_name))).all()


def chosen(history: Sequence[TagVersion], current: str, prefix: str, name: str) -> str:
    """The digest to move the tag back to: the one that starts with `prefix`, or the previous one if that is empty. Raises
    NotFound if none, or more than one, matches."""
    others = [row.version_digest for row in history if row.version_digest != current]
    prefix = prefix.lower().removeprefix("sha256:")
    found = [digest for digest in others if digest.startswith(prefix)]
    if not others:
        raise NotFound(f"model '{name}' has no earlier version")
    if not found or (prefix and len(found) > 1):
        shown = ", ".join(digest[:12] for digest in others)
        raise NotFound(f"model '{name}' has no earlier version '{prefix[:64]}'; there are {shown}")
    return found[0]
