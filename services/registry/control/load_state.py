"""Loads a ClusterState: reports and demand from Redis, everything else from rows in one PostgreSQL snapshot."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import msgspec
from sqlalchemy import func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import joinedload

from services.protocol.engine import EngineSettings
from services.protocol.errors import InvalidModelFile
from services.protocol.queue import Demand, Queue
from services.protocol.reports import NodeReport, NodeReports, WorkerReport
from services.protocol.source_url import is_url
from services.registry.control.cluster_state import (
    ClusterState,
    DeploymentView,
    JobView,
    NodeView,
    Policy,
    ProcessView,
    ReplicaView,
    VersionView,
)
from services.registry.control.contexts import is_fixed, widened
from services.registry.database import catalog, tables, tag_history
from services.registry.database.database import transaction_time
from services.registry.database.deployments import merged, stored_settings
from services.registry.states import CopyState, JobKind, Origin, ReplicaState
from services.weights.memory import memory_needed
from services.weights.shape import ModelShape

log = logging.getLogger(__name__)

_OVER = (ReplicaState.STOPPED, ReplicaState.FAILED)


@dataclass(frozen=True)
class Reports:
    """Queue demand, and the reports of nodes and workers, from Redis."""

    demand: Sequence[Demand]
    nodes: Sequence[NodeReport]
    workers: Sequence[WorkerReport]
    departed: Sequence[WorkerReport]

    @classmethod
    async def read(cls, queue: Queue, node_reports: NodeReports) -> Reports:
        # The order matters: a worker whose end a node reports is then among the workers or, if it has left, among the departed.
        return cls(await queue.demand(), await node_reports.read(), await queue.workers(), await queue.departed())


@dataclass
class LastSeen:
    """When this leader last saw each worker's report and each job in work, and when it first saw each node's new agent.
    Empty when a leadership starts."""

    since: datetime | None = None
    workers: dict[str, datetime] = field(default_factory=dict)
    jobs: dict[str, datetime] = field(default_factory=dict)
    agents: dict[str, datetime] = field(default_factory=dict)

    def record(self, reports: Reports, now: datetime) -> datetime:
        """Returns since when this leader has been watching. Forgets workers and jobs that it has not seen for ten minutes."""
        self.since = self.since or now
        self.workers |= {worker.replica: now for worker in reports.workers}
        self.jobs |= {job: now for node in reports.nodes for job in node.jobs}
        for seen in (self.workers, self.jobs):
            for stale in [key for key, at in seen.items() if (now - at).total_seconds() > 600]:
                del seen[stale]
        return self.since

    def record_agents(self, started: Mapping[str, datetime]) -> None:
        self.agents |= started


async def load_cluster_state(session: AsyncSession, reports: Reports, last_seen: LastSeen, policy: Policy) -> ClusterState:
    now = await transaction_time(session)
    since = last_seen.record(reports, now)
    rows = await catalog.versions(session)
    names, kept = await _names(session), await tag_history.kept(session)
    deployments = {row.version_digest: row for row in await session.scalars(select(tables.Deployment))}
    replicas = await _replicas(session)
    live = [replica.id for replica in replicas if not replica.state.is_over]
    return ClusterState(
        now=now,
        watching_since=since,
        policy=policy,
        versions={
            row.digest: _version(
                row, names.get(row.digest, ("", "")), deployments.get(row.digest), policy, is_kept=row.digest in kept
            )
            for row in rows
        },
        nodes=await _nodes(session, reports.nodes),
        deployments=await _deployments(session, deployments.values(), {row.digest: row for row in rows}, reports.demand),
        replicas=tuple(replicas),
        jobs=await _jobs(session, live),
        demand={demand.version: demand for demand in reports.demand},
        workers=_by_replica(reports.workers),
        departed=_by_replica(reports.departed),
        processes=tuple(_processes(reports.nodes)),
        worker_seen=dict(last_seen.workers),
        job_seen=dict(last_seen.jobs),
        agent_since=dict(last_seen.agents),
    )


def _by_replica(reports: Iterable[WorkerReport]) -> dict[str, WorkerReport]:
    return {worker.replica: worker for worker in sorted(reports, key=lambda worker: worker.worker)}


async def _names(session: AsyncSession) -> Mapping[str, tuple[str, str]]:
    """The newest name of each version: as displayed, and in full."""
    names: dict[str, tuple[str, str]] = {}
    for tag in await catalog.tags(session):
        name = catalog.tag_name(tag)
        names.setdefault(tag.version_digest, (name.display, name.full))
    return names


def _engine(deployment: tables.Deployment | None, policy: Policy) -> EngineSettings:
    """The settings that the version would be loaded with now."""
    if deployment is None:
        return policy.engine
    if deployment.origin is Origin.PINNED:
        return msgspec.convert(deployment.settings, EngineSettings)
    return merged(policy.engine, deployment.overrides)


def _version(
    row: tables.Version, name: tuple[str, str], deployment: tables.Deployment | None, policy: Policy, *, is_kept: bool
) -> VersionView:
    blob = catalog.model_blob(row)
    memory_bytes, fault = _estimate_or_fault(row, lambda: _engine(deployment, policy))
    return VersionView(
        digest=row.digest,
        name=name[0],
        pull_name=name[1],
        model_blob=blob.digest if blob else "",
        file_bytes=blob.size if blob else 0,
        memory_bytes=memory_bytes,
        source=_source_for_any_node(row.source, blob.digest if blob else ""),
        fault=fault if blob else "it has no model file",
        kept=is_kept,
    )


def _source_for_any_node(source: str, digest: str) -> str:
    """Empty if there is none: a path is valid only on the node that the model was pulled on, and the query of a URL is not kept.
    A URL gets the checksum of the version's file."""
    if is_url(source) and "?" not in source:
        return f"{source.partition('#')[0]}#{digest.replace(':', '=')}"
    return source if source.startswith("pypi:") else ""


def _estimate_or_fault(row: tables.Version, engine: Callable[[], EngineSettings]) -> tuple[int, str]:
    """The estimate in bytes, or 0 and why there is none. Catches every error, so that one bad version does not stop the
    loop."""
    try:
        need = memory_needed(ModelShape.of(row.metadata_), tensor_bytes=row.tensor_bytes, engine=engine())
    except InvalidModelFile as error:
        return 0, f"its file {error.message}"
    except msgspec.ValidationError as error:
        return 0, f"its settings are not valid: {error}"
    except Exception as error:  # noqa: BLE001 - rows may come from any release and hold anything that was in a file
        log.warning("version has unusable rows: version=%s error=%r", row.digest[:12], error)
        return 0, f"its rows cannot be used ({type(error).__name__})"
    return need.total, ""


async def _nodes(session: AsyncSession, reports: Iterable[NodeReport]) -> dict[str, NodeView]:
    reporting = {report.node: report for report in reports}
    held: dict[str, set[str]] = {}
    verified = select(tables.BlobCopy.node_name, tables.BlobCopy.blob_digest).where(tables.BlobCopy.state == CopyState.VERIFIED)
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
            device_memory=_device_memory(row.devices),
            disk_free=row.disk_free,
            cpus=row.cpus,
            blobs=frozenset(held.get(row.name, ())),
            jobs=frozenset(reporting[row.name].jobs) if row.name in reporting else frozenset(),
        )
        for row in await session.scalars(select(tables.Node).order_by(tables.Node.name))
    }


def _device_memory(devices: object) -> int:
    sizes = (device.get("memory_bytes") for device in devices if isinstance(device, dict)) if isinstance(devices, list) else ()
    return sum(size for size in sizes if isinstance(size, int))


async def _deployments(
    session: AsyncSession,
    rows: Iterable[tables.Deployment],
    versions: Mapping[str, tables.Version],
    demands: Iterable[Demand],
) -> tuple[DeploymentView, ...]:
    """Memory is the estimate for the deployment's settings, or the most that a replica with the same settings used if that is
    more."""
    peak = (
        select(tables.Replica.deployment_id, func.max(tables.Replica.memory_measured))
        .join(tables.Replica.deployment)
        .where(tables.Replica.settings == tables.Deployment.settings)
        .group_by(tables.Replica.deployment_id)
    )
    measured = {row[0]: row[1] for row in await session.execute(peak)}
    asked = {demand.version: demand.context_tokens for demand in demands}
    return tuple(
        _deployment(row, versions[row.version_digest], measured.get(row.id, 0), asked.get(row.version_digest, 0))
        for row in sorted(rows, key=_row_id)
    )


def _row_id(row: tables.Deployment) -> int:
    return row.id


def _deployment(row: tables.Deployment, version: tables.Version, measured: int, asked_context: int) -> DeploymentView:
    engine = stored_settings(row.settings)
    fixed = engine is None or is_fixed(row.origin, row.overrides)
    wider = None if fixed or engine is None else widened(engine, version.context_length, asked_context)
    estimate, fault = _estimate_or_fault(version, lambda: msgspec.convert(row.settings, EngineSettings))
    return DeploymentView(
        id=row.id,
        version=row.version_digest,
        origin=row.origin,
        replicas_wanted=row.replicas_wanted,
        reason=row.reason,
        memory_bytes=max(estimate, measured),
        engine=engine or EngineSettings(),
        fault=fault,
        widened=wider,
        widened_bytes=_estimate_or_fault(version, lambda: wider)[0] if wider else 0,
        on_trial=row.previous is not None,
        deployed_at=row.deployed_at,
    )


async def _replicas(session: AsyncSession) -> list[ReplicaView]:
    """All live replicas, and the newest ended one of each deployment."""
    over = tables.Replica.state.in_(_OVER)
    # Ids sort by creation time.
    last = select(func.max(tables.Replica.id)).where(over).group_by(tables.Replica.deployment_id)
    rows = await session.scalars(
        select(tables.Replica)
        .where(or_(~over, tables.Replica.id.in_(last)))
        .options(joinedload(tables.Replica.deployment))
        .order_by(tables.Replica.id)
    )
    return [_replica(row) for row in rows]


def _replica(row: tables.Replica) -> ReplicaView:
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
        engine=stored_settings(row.settings),
    )


async def _jobs(session: AsyncSession, live: Sequence[str]) -> tuple[JobView, ...]:
    """All open jobs, and the ended jobs of live replicas."""
    relevant = or_(tables.Job.finished_at.is_(None), tables.Job.replica_id.in_(live))
    rows = await session.scalars(select(tables.Job).where(relevant).order_by(tables.Job.id))
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
            yield ProcessView(process.replica, report.node, process.exit_code, process.reason, process.error_code)
