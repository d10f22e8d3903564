"""Models, versions, tags and blobs: registers pulled models, and looks up, moves and deletes tags. The only writer of these
tables.

Replicas of a version that no tag names are drained. A version that no tag keeps either (tag_history.py) is garbage: Delete jobs
remove its files from the nodes, and `forget` deletes its rows.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import delete, exists, func, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import joinedload, selectinload

from services.protocol.errors import InvalidModelFile, ModelNotFound
from services.protocol.jobs import Layer, PulledModel
from services.protocol.names import ModelName
from services.registry.database import tag_history
from services.registry.database.tables import Blob, Model, Tag, TagVersion, Version, VersionBlob
from services.weights.shape import ModelShape

MODEL_MEDIA_TYPE = "application/vnd.ollama.image.model"

_BLOB_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class _ManifestLayer(msgspec.Struct, rename={"media_type": "mediaType"}):
    media_type: str
    digest: str
    size: int


class _Manifest(msgspec.Struct):
    config: _ManifestLayer
    layers: list[_ManifestLayer]


def version_digest(pulled: PulledModel) -> str:
    """The sha256 of the manifest. Raises InvalidModelFile if the manifest does not list exactly the pulled files, or no
    model."""
    try:
        manifest = msgspec.json.decode(pulled.manifest.encode(), type=_Manifest)
    except msgspec.MsgspecError as error:
        raise InvalidModelFile(f"the manifest of {pulled.name} does not decode: {error}") from error
    listed = [Layer(layer.media_type, layer.digest, layer.size) for layer in (manifest.config, *manifest.layers)]
    if listed != [pulled.config, *pulled.layers] or not all(_BLOB_DIGEST.fullmatch(layer.digest) for layer in listed):
        raise InvalidModelFile(f"the manifest of {pulled.name} does not list the files that were pulled")
    if not any(layer.media_type == MODEL_MEDIA_TYPE for layer in pulled.layers):
        raise InvalidModelFile(f"{pulled.name} contains no model file")
    return hashlib.sha256(pulled.manifest.encode()).hexdigest()


async def register(session: AsyncSession, pulled: PulledModel, *, source: str) -> str:
    """Adds the pulled version, if it is new, and points its tag at it. Returns the version's digest."""
    digest = version_digest(pulled)
    files = (pulled.config, *pulled.layers)
    await _add_blobs(session, files)
    added = await session.scalar(
        insert(Version).values(**_version_row(digest, pulled, source)).on_conflict_do_nothing().returning(Version.digest)
    )
    if added:
        session.add_all(
            VersionBlob(version_digest=digest, position=position, blob_digest=layer.digest, media_type=layer.media_type)
            for position, layer in enumerate(files)
        )
        await session.flush()
    await move_tag(session, ModelName.parse(pulled.name), digest)
    return digest


async def move_tag(session: AsyncSession, name: ModelName, digest: str) -> None:
    """Points the tag at the version. Creates the model and the tag if they do not exist; existing ones keep their spelling."""
    model_key, _, tag_key = name.key.rpartition(":")
    model = {"key": model_key, "host": name.host, "namespace": name.namespace, "name": name.model}
    upsert = insert(Model).values(**model).on_conflict_do_update(index_elements=["key"], set_={"key": model_key})
    model_id = await session.scalar(upsert.returning(Model.id))
    tag = await session.get(Tag, (model_id, tag_key), with_for_update=True)
    if tag and tag.version_digest != digest:
        # Its current version may be missing from the history: earlier releases kept none.
        await tag_history.record(session, tag.model_id, tag.key, tag.version_digest, tag.modified_at)
    target = {"version_digest": digest, "modified_at": func.now()}
    moved = await session.scalar(
        insert(Tag)
        .values(model_id=model_id, key=tag_key, name=name.tag, **target)
        .on_conflict_do_update(index_elements=["model_id", "key"], set_=target)
        .returning(Tag)
        .execution_options(populate_existing=True)
    )
    assert moved is not None
    await tag_history.record(session, moved.model_id, moved.key, digest)
    await tag_history.prune(session, name, moved)


async def find_tag(session: AsyncSession, name: ModelName) -> Tag:
    """The tag with its model, version and files loaded. Raises ModelNotFound."""
    model_key, _, tag_key = name.key.rpartition(":")
    tag = await session.scalar(
        select(Tag)
        .join(Tag.model)
        .where(Model.key == model_key, Tag.key == tag_key)
        .options(joinedload(Tag.model), joinedload(Tag.version).selectinload(Version.blobs).joinedload(VersionBlob.blob))
    )
    if tag is None:
        raise ModelNotFound(f"model '{name.display}' not found")
    return tag


async def tagged_version(session: AsyncSession, name: ModelName) -> str | None:
    model_key, _, tag_key = name.key.rpartition(":")
    digest: str | None = await session.scalar(
        select(Tag.version_digest).join(Tag.model).where(Model.key == model_key, Tag.key == tag_key)
    )
    return digest


async def delete_tag(session: AsyncSession, tag: Tag) -> None:
    await session.delete(tag)
    await session.flush()
    await session.execute(delete(Model).where(Model.id == tag.model_id, ~exists().where(Tag.model_id == Model.id)))


async def forget(session: AsyncSession, version: str) -> bool:
    """Deletes a version that no tag names or keeps, and the blobs that no other version uses. False if a tag does, or if the
    version is gone."""
    row = await session.get(Version, version, with_for_update=True)
    named = or_(exists().where(Tag.version_digest == version), exists().where(TagVersion.version_digest == version))
    if row is None or await session.scalar(select(named)):
        return False
    await session.execute(delete(Version).where(Version.digest == version))
    await session.execute(delete(Blob).where(~exists().where(VersionBlob.blob_digest == Blob.digest)))
    return True


async def versions(session: AsyncSession) -> Sequence[Version]:
    return (await session.scalars(select(Version).options(selectinload(Version.blobs).joinedload(VersionBlob.blob)))).all()


async def tags(session: AsyncSession) -> Sequence[Tag]:
    """All tags with their models, the most recently modified first."""
    return (await session.scalars(select(Tag).options(joinedload(Tag.model)).order_by(Tag.modified_at.desc(), Tag.key))).all()


async def display_names(session: AsyncSession) -> dict[str, str]:
    """The newest name of each version that has one."""
    names: dict[str, str] = {}
    for tag in await tags(session):
        names.setdefault(tag.version_digest, tag_name(tag).display)
    return names


def tag_name(tag: Tag) -> ModelName:
    return ModelName(tag.model.host, tag.model.namespace, tag.model.name, tag.name)


def model_blob(version: Version) -> Blob | None:
    """The version's GGUF file. `register` rejects versions without one."""
    return next((entry.blob for entry in version.blobs if entry.media_type == MODEL_MEDIA_TYPE), None)


async def _add_blobs(session: AsyncSession, files: Sequence[Layer]) -> None:
    rows = {layer.digest: {"digest": layer.digest, "size": layer.size} for layer in files}
    await session.execute(insert(Blob).values([rows[digest] for digest in sorted(rows)]).on_conflict_do_nothing())


def _version_row(digest: str, pulled: PulledModel, source: str) -> dict[str, Any]:
    shape = ModelShape.of(pulled.metadata)
    return {
        "digest": digest,
        "manifest": pulled.manifest,
        "config": msgspec.to_builtins(pulled.config),
        "metadata_": pulled.metadata,
        "architecture": shape.architecture or "unknown",
        "parameter_count": pulled.parameter_count,
        "quantization": pulled.quantization,
        "context_length": shape.context_tokens,
        "embedding_length": shape.embedding,
        "template": pulled.template,
        "system": pulled.system,
        "license": pulled.license,
        "parameters": pulled.parameters,
        "size": sum(layer.size for layer in (pulled.config, *pulled.layers)),
        "tensor_bytes": pulled.tensor_bytes,
        "source": source,
    }
