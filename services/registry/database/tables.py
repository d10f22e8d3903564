"""The tables. The docstring of services.registry lists the one module that writes each. Times are PostgreSQL's."""

from __future__ import annotations

import enum
from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, Enum, ForeignKey, ForeignKeyConstraint, Identity, Index, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship

from services.registry.database.database import Base
from services.registry.states import CopyState, JobKind, JobState, NodeState, Origin, ReplicaState


def _one_of(column: str, kind: type[enum.StrEnum]) -> CheckConstraint:
    values = ", ".join(f"'{member.value}'" for member in kind)
    return CheckConstraint(f"{column} in ({values})", name=column)


def _enum(kind: type[enum.StrEnum]) -> Enum:
    """A text column; a named CHECK of the table (`_one_of`) restricts its values."""
    return Enum(kind, native_enum=False, length=16, values_callable=lambda members: [member.value for member in members])


class Model(Base):
    """A named family of versions. `key` is host/namespace/name in lower case."""

    __tablename__ = "models"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    key: Mapped[str] = mapped_column(unique=True)
    host: Mapped[str]
    namespace: Mapped[str]
    name: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Version(Base):
    """A model version. Immutable. Sizes in bytes.

    - `digest`: the sha256 of the manifest's bytes.
    - `metadata_`: the GGUF's key-value table without long arrays.
    - `context_length`: as trained, 0 if unknown.
    - `parameters`: the model's default options, by Ollama's names.
    - `source`: the source of the pull that registered it.
    """

    __tablename__ = "versions"
    __table_args__ = (
        CheckConstraint("digest ~ '^[0-9a-f]{64}$'", name="digest"),
        CheckConstraint("size >= 0 and tensor_bytes >= 0 and parameter_count >= 0", name="sizes"),
    )

    digest: Mapped[str] = mapped_column(primary_key=True)
    manifest: Mapped[str]
    config: Mapped[dict[str, Any]]
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata")
    architecture: Mapped[str]
    parameter_count: Mapped[int]
    quantization: Mapped[str]
    context_length: Mapped[int]
    embedding_length: Mapped[int]
    template: Mapped[str]
    system: Mapped[str]
    license: Mapped[str]
    parameters: Mapped[dict[str, Any]]
    size: Mapped[int]
    tensor_bytes: Mapped[int]
    source: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    blobs: Mapped[list[VersionBlob]] = relationship(lazy="raise", order_by="VersionBlob.position", viewonly=True)


class Tag(Base):
    """A movable name for a version. `key` is `name` in lower case."""

    __tablename__ = "tags"

    model_id: Mapped[int] = mapped_column(ForeignKey("models.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    version_digest: Mapped[str] = mapped_column(ForeignKey("versions.digest", ondelete="RESTRICT"), index=True)
    modified_at: Mapped[datetime] = mapped_column(server_default=func.now())

    model: Mapped[Model] = relationship(lazy="raise")
    version: Mapped[Version] = relationship(lazy="raise")


class TagVersion(Base):
    """A version that a tag names or named, from the tag's recent history. `named_at` is when the tag was last set to it."""

    __tablename__ = "tag_versions"
    __table_args__ = (ForeignKeyConstraint(["model_id", "tag_key"], ["tags.model_id", "tags.key"], ondelete="CASCADE"),)

    model_id: Mapped[int] = mapped_column(primary_key=True)
    tag_key: Mapped[str] = mapped_column(primary_key=True)
    version_digest: Mapped[str] = mapped_column(ForeignKey("versions.digest", ondelete="CASCADE"), primary_key=True, index=True)
    named_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Blob(Base):
    """One content-addressed file; `digest` as `sha256:<hex>`."""

    __tablename__ = "blobs"
    __table_args__ = (
        CheckConstraint("digest ~ '^sha256:[0-9a-f]{64}$'", name="digest"),
        CheckConstraint("size >= 0", name="size"),
    )

    digest: Mapped[str] = mapped_column(primary_key=True)
    size: Mapped[int]


class VersionBlob(Base):
    """The files of a version in the manifest's order; position 0 is its config."""

    __tablename__ = "version_blobs"
    __table_args__ = (CheckConstraint("position >= 0", name="position"),)

    version_digest: Mapped[str] = mapped_column(ForeignKey("versions.digest", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    blob_digest: Mapped[str] = mapped_column(ForeignKey("blobs.digest", ondelete="RESTRICT"), index=True)
    media_type: Mapped[str]

    blob: Mapped[Blob] = relationship(lazy="raise")


class Node(Base):
    """A machine that runs a node agent, as it last reported itself. Sizes in bytes."""

    __tablename__ = "nodes"
    __table_args__ = (_one_of("state", NodeState),)

    name: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[NodeState] = mapped_column(_enum(NodeState))
    agent: Mapped[str]
    cpus: Mapped[int]
    memory_total: Mapped[int]
    memory_available: Mapped[int]
    disk_total: Mapped[int]
    disk_free: Mapped[int]
    devices: Mapped[list[Any]]
    last_seen_at: Mapped[datetime]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class BlobCopy(Base):
    """A node's copy of a blob. `verified_at` is when the registry recorded it as verified, `last_used_at` when a replica was
    last started from it."""

    __tablename__ = "blob_copies"
    __table_args__ = (_one_of("state", CopyState),)

    blob_digest: Mapped[str] = mapped_column(ForeignKey("blobs.digest", ondelete="CASCADE"), primary_key=True)
    node_name: Mapped[str] = mapped_column(ForeignKey("nodes.name", ondelete="CASCADE"), primary_key=True, index=True)
    state: Mapped[CopyState] = mapped_column(_enum(CopyState))
    verified_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_used_at: Mapped[datetime | None]


class Deployment(Base):
    """The wanted number of replicas of a version, and their settings.

    - `settings`: a services.protocol.engine.EngineSettings. `overrides`: those that an admin chose, at `deployed_at`.
    - `previous`: the services.registry.database.deployments.Previous that is put back if `settings` fail; None once a replica
      was ready with them.
    - `reason`: why it wants no replicas any longer, or why its previous settings were put back.
    """

    __tablename__ = "deployments"
    __table_args__ = (
        _one_of("origin", Origin),
        CheckConstraint("replicas_wanted >= 0", name="replicas_wanted"),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    version_digest: Mapped[str] = mapped_column(ForeignKey("versions.digest", ondelete="CASCADE"), unique=True)
    origin: Mapped[Origin] = mapped_column(_enum(Origin))
    replicas_wanted: Mapped[int]
    settings: Mapped[dict[str, Any]]
    overrides: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    reason: Mapped[str] = mapped_column(server_default="")
    previous: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    deployed_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Replica(Base):
    """One attempt to run a copy of a deployment on one node. Only replicas.py writes `state`.

    - `reason`: why it is in its state. `error_code`: a class of services.protocol.errors if it failed.
    - `memory_estimated`: the bytes that placement reserved. `memory_measured`: the bytes that the worker reported, 0 before; of
      these, `device_memory` was on accelerators when the replica became ready.
    - `settings`: the settings that it was started with, None before.
    """

    __tablename__ = "replicas"
    __table_args__ = (
        _one_of("state", ReplicaState),
        CheckConstraint("state in ('pending', 'stopped', 'failed') or node_name is not null", name="node_unless_pending"),
        CheckConstraint("state <> 'failed' or (reason <> '' and error_code <> '')", name="failed_says_why"),
        CheckConstraint("retry_at is null or state = 'failed'", name="retry_only_failed"),
        CheckConstraint("attempts >= 1", name="attempts"),
        CheckConstraint("memory_estimated >= 0 and memory_measured >= 0", name="memory"),
        Index("ix_replicas_live", "deployment_id", postgresql_where=text("state not in ('stopped', 'failed')")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    deployment_id: Mapped[int] = mapped_column(ForeignKey("deployments.id", ondelete="CASCADE"), index=True)
    node_name: Mapped[str | None] = mapped_column(ForeignKey("nodes.name", ondelete="RESTRICT"), index=True)
    state: Mapped[ReplicaState] = mapped_column(_enum(ReplicaState))
    reason: Mapped[str] = mapped_column(server_default="")
    error_code: Mapped[str] = mapped_column(server_default="")
    attempts: Mapped[int] = mapped_column(server_default="1")
    retry_at: Mapped[datetime | None]
    memory_estimated: Mapped[int] = mapped_column(server_default="0")
    memory_measured: Mapped[int] = mapped_column(server_default="0")
    device_memory: Mapped[int] = mapped_column(server_default="0")
    settings: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    slots: Mapped[int] = mapped_column(server_default="0")
    context_tokens: Mapped[int] = mapped_column(server_default="0")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    state_changed_at: Mapped[datetime] = mapped_column(server_default=func.now())
    ready_at: Mapped[datetime | None]

    deployment: Mapped[Deployment] = relationship(lazy="raise")


class Job(Base):
    """A control job. `payload` is its services.protocol.jobs.Job; at most one open job has a given `key`.

    `replica_id` and `version_digest` are not foreign keys: the job may outlive those rows.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        _one_of("kind", JobKind),
        _one_of("state", JobState),
        CheckConstraint("(state in ('succeeded', 'failed')) = (finished_at is not null)", name="finished_at"),
        CheckConstraint("state <> 'failed' or (error <> '' and error_code <> '')", name="failed_says_why"),
        CheckConstraint("sends >= 0", name="sends"),
        Index("uq_jobs_open", "key", unique=True, postgresql_where=text("finished_at is null")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[JobKind] = mapped_column(_enum(JobKind))
    key: Mapped[str]
    node_name: Mapped[str] = mapped_column(ForeignKey("nodes.name", ondelete="CASCADE"), index=True)
    replica_id: Mapped[str | None] = mapped_column(index=True)
    version_digest: Mapped[str | None]
    state: Mapped[JobState] = mapped_column(_enum(JobState))
    payload: Mapped[dict[str, Any]]
    sends: Mapped[int] = mapped_column(server_default="0")
    error_code: Mapped[str] = mapped_column(server_default="")
    error: Mapped[str] = mapped_column(server_default="")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)
    sent_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class ApiKey(Base):
    """An API key. `hash` is services.protocol.routes.key_hash of the secret, `prefix` its first characters. `weight`,
    `priority` and `max_waiting` are as in services.protocol.routes.Caller."""

    __tablename__ = "api_keys"
    __table_args__ = (
        CheckConstraint("hash ~ '^[0-9a-f]{64}$'", name="hash"),
        CheckConstraint("name <> ''", name="name"),
        CheckConstraint("weight >= 0.01 and weight <= 100", name="weight"),
        CheckConstraint("priority in ('interactive', 'normal', 'batch')", name="priority"),
        CheckConstraint("max_waiting >= 1", name="max_waiting"),
        Index("uq_api_keys_name", "name", unique=True, postgresql_where=text("revoked_at is null")),
        Index("uq_api_keys_lower_name", text("lower(name)"), unique=True, postgresql_where=text("revoked_at is null")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    team: Mapped[str]
    admin: Mapped[bool]
    hash: Mapped[str] = mapped_column(unique=True)
    prefix: Mapped[str]
    weight: Mapped[float] = mapped_column(server_default=text("1"))
    priority: Mapped[str] = mapped_column(server_default=text("'interactive'"))
    max_waiting: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    revoked_at: Mapped[datetime | None]
