"""Gathers a World: reports and demand from Redis, everything else from rows that are read at one moment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import msgspec
from sqlalchemy import func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import joinedload

from services.protocol.engine import EngineSettings
from services.protocol.memory import memory_needed
from services.protocol.queue import Demand, Queue
from services.protocol.reports import NodeReport, NodeReports, WorkerReport
from services.registry import catalog, models
from services.registry.db import transaction_time
from services.registry.deployments import merged
from services.registry.states import CopyState, JobKind, Origin, ReplicaState
from services.registry.world import DeploymentView, JobView, NodeView, Policy, ProcessView, ReplicaView, VersionView, World

_OVER = (ReplicaState.STOPPED, ReplicaState.FAILED)


@dataclass(frozen=True)
class Reports:
    """What Redis says at one moment."""

    demand: Sequence[Demand]
    workers: Sequence[WorkerReport]
    nodes: Sequence[NodeReport]

    @classmethod
    async def read(cls, queue: Queue, node_reports: NodeReports) -> Reports:
        return cls(await queue.demand(), await queue.workers(), await node_reports.read())


@dataclass
class Sightings:
    """When this leader last saw a worker's report, and a node at work on a job. Starts anew with each leadership."""

    since: datetime | None = None
    workers: dict[str, datetime] = field(default_factory=dict)
    jobs: dict[str, datetime] = field(default_factory=dict)

    def note(self, reports: Reports, now: datetime) -> datetime:
        """Returns since when it has been watching. What is not seen any more is kept no longer than a few minutes."""
        self.since = self.since or now
        self.workers |= {worker.replica: now for worker in reports.workers}
        self.jobs |= {job: now for node in reports.nodes for job in node.jobs}
        for seen in (self.workers, self.jobs):
            for stale in [key for key, at in seen.items() if (now - at).total_seconds() > 600]:
                del seen[stale]
        return self.since


async def load_world(session: AsyncSession, reports: Reports, sightings: Sightings, policy: Policy) -> World:
    now = await transaction_time(session)
    since = sightings.note(reports, now)
    rows = await catalog.versions(session)
    names = await _names(session)
    deployments = {row.version_digest: row for row in await session.scalars(select(models.Deployment))}
    replicas = await _replicas(session)
    live = [replica.id for replica in replicas if not replica.state.is_over]
    return World(
        now=now,
        watching_since=since,
        policy=policy,
        versions={
            row.digest: _version(row, names.get(row.digest, ("", "")), _engine(deployments.get(row.digest), policy))
            for row in rows
        },
        nodes=await _nodes(session, reports.nodes),
        deployments=await _deployments(session, deployments.values(), {row.digest: row for row in rows}),
        replicas=tuple(replicas),
        jobs=await _jobs(session, live),
        demand={demand.version: demand for demand in reports.demand},
        workers={worker.replica: worker for worker in sorted(reports.workers, key=lambda worker: worker.worker)},
        processes=tuple(_processes(reports.nodes)),
        worker_seen=dict(sightings.workers),
        job_seen=dict(sightings.jobs),
    )


async def _names(session: AsyncSession) -> Mapping[str, tuple[str, str]]:
    """Each version's newest name, displayed and in full."""
    names: dict[str, tuple[str, str]] = {}
    for tag in await catalog.tags(session):
        name = catalog.tag_name(tag)
        names.setdefault(tag.version_digest, (name.display, name.full))
    return names


def _engine(deployment: models.Deployment | None, policy: Policy) -> EngineSettings:
    """What the version would be loaded with now."""
    if deployment is None:
        return policy.engine
    if deployment.origin is Origin.PINNED:
        return msgspec.convert(deployment.settings, EngineSettings)
    return merged(policy.engine, deployment.overrides)


def _version(row: models.Version, name: tuple[str, str], engine: EngineSettings) -> VersionView:
    blob = catalog.model_blob(row)
    return VersionView(
        digest=row.digest,
        name=name[0],
        pull_name=name[1],
        model_blob=blob.digest,
        file_bytes=blob.size,
        memory_bytes=_estimate(row, engine),
        # A path means something on the node alone that it was pulled on.
        source=row.source if row.source.startswith("pypi:") else "",
    )


def _estimate(row: models.Version, engine: EngineSettings) -> int:
    return memory_needed(row.metadata_, tensor_bytes=row.tensor_bytes, engine=engine).total


async def _nodes(session: AsyncSession, reports: Iterable[NodeReport]) -> dict[str, NodeView]:
    reporting = {report.node: report for report in reports}
    held: dict[str, set[str]] = {}
    verified = select(models.BlobCopy.node_name, models.BlobCopy.blob_digest).where(models.BlobCopy.state == CopyState.VERIFIED)
    for node, blob in await session.execute(verified):
        held.setdefault(node, set()).add(blob)
    return {
        row.name: NodeView(
            name=row.name,
            state=row.state,
            reporting=row.name in reporting,
            last_seen_at=row.last_seen_at,
            memory_total=row.memory_total,
            memory_available=row.memory_available,
            device_memory=sum(device["memory_bytes"] for device in row.devices),
            disk_free=row.disk_free,
            blobs=frozenset(held.get(row.name, ())),
            jobs=frozenset(reporting[row.name].jobs) if row.name in reporting else frozenset(),
        )
        for row in await session.scalars(select(models.Node).order_by(models.Node.name))
    }


async def _deployments(
    session: AsyncSession, rows: Iterable[models.Deployment], versions: Mapping[str, models.Version]
) -> tuple[DeploymentView, ...]:
    """Memory: the estimate for the deployment's own settings, or what a replica with these was seen to take where that is more."""
    peak = (
        select(models.Replica.deployment_id, func.max(models.Replica.memory_measured))
        .join(models.Replica.deployment)
        .where(models.Replica.settings == models.Deployment.settings)
        .group_by(models.Replica.deployment_id)
    )
    measured = {row[0]: row[1] for row in await session.execute(peak)}
    return tuple(_deployment(row, versions[row.version_digest], measured.get(row.id, 0)) for row in sorted(rows, key=_row_id))


def _row_id(row: models.Deployment) -> int:
    return row.id


def _deployment(row: models.Deployment, version: models.Version, measured: int) -> DeploymentView:
    engine = msgspec.convert(row.settings, EngineSettings)
    return DeploymentView(
        id=row.id,
        version=row.version_digest,
        origin=row.origin,
        replicas_wanted=row.replicas_wanted,
        reason=row.reason,
        memory_bytes=max(_estimate(version, engine), measured),
        engine=engine,
    )


async def _replicas(session: AsyncSession) -> list[ReplicaView]:
    """All live ones, and the newest ended one of each deployment."""
    over = models.Replica.state.in_(_OVER)
    # Ids sort by the time of their making.
    last = select(func.max(models.Replica.id)).where(over).group_by(models.Replica.deployment_id)
    rows = await session.scalars(
        select(models.Replica)
        .where(or_(~over, models.Replica.id.in_(last)))
        .options(joinedload(models.Replica.deployment))
        .order_by(models.Replica.id)
    )
    return [_replica(row) for row in rows]


def _replica(row: models.Replica) -> ReplicaView:
    return ReplicaView(
        id=row.id,
        deployment=row.deployment_id,
        version=row.deployment.version_digest,
        node=row.node_name,
        state=row.state,
        state_changed_at=row.state_changed_at,
        reason=row.reason,
        error_code=row.error_code,
        attempts=row.attempts,
        retry_at=row.retry_at,
        memory_estimated=row.memory_estimated,
        memory_measured=row.memory_measured,
        engine=None if row.settings is None else msgspec.convert(row.settings, EngineSettings),
    )


async def _jobs(session: AsyncSession, live: Sequence[str]) -> tuple[JobView, ...]:
    """The open ones, and those that say how a live replica's start or pull went."""
    relevant = or_(models.Job.finished_at.is_(None), models.Job.replica_id.in_(live))
    rows = await session.scalars(select(models.Job).where(relevant).order_by(models.Job.id))
    return tuple(
        JobView(
            id=row.id,
            kind=JobKind(row.kind),
            node=row.node_name,
            state=row.state,
            replica=row.replica_id,
            version=row.version_digest,
            sends=row.sends,
            sent_at=row.sent_at,
            finished_at=row.finished_at,
            error_code=row.error_code,
            error=row.error,
        )
        for row in rows
    )


def _processes(reports: Iterable[NodeReport]) -> Iterable[ProcessView]:
    for report in reports:
        for process in report.processes:
            yield ProcessView(
                process.replica, report.node, process.exit_code, process.last_line, process.reason, process.error_code
            )
