"""/nodes, /replicas, /jobs, /status: the state of the cluster."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from importlib.metadata import version as installed_version
from typing import Annotated, Any

from fastapi import APIRouter, Query
from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy.orm import joinedload

from services.protocol.errors import NotFound, Unavailable
from services.registry.api.dependencies import AppState, AppStateDep, rfc3339
from services.registry.database import catalog
from services.registry.database import nodes as registry_nodes
from services.registry.database.tables import BlobCopy, Job, Node, Replica, Tag, VersionBlob
from services.registry.states import CopyState, ReplicaState

router = APIRouter()

#: How long replicas that have ended are listed.
SHOW_ENDED = timedelta(hours=1)

_OVER = (ReplicaState.STOPPED, ReplicaState.FAILED)


@router.get("/nodes")
async def nodes(state: AppStateDep) -> dict[str, Any]:
    async with state.database.snapshot() as session:
        live = select(Replica.node_name, func.count()).where(Replica.state.not_in(_OVER)).group_by(Replica.node_name)
        replicas = {row[0]: row[1] for row in await session.execute(live)}
        held = (
            select(BlobCopy.node_name, func.count(VersionBlob.version_digest.distinct()))
            .join(VersionBlob, VersionBlob.blob_digest == BlobCopy.blob_digest)
            .where(BlobCopy.state == CopyState.VERIFIED, VersionBlob.media_type == catalog.MODEL_MEDIA_TYPE)
            .group_by(BlobCopy.node_name)
        )
        models = {row[0]: row[1] for row in await session.execute(held)}
        rows = await session.scalars(select(Node).order_by(Node.name))
        return {"nodes": [_node(row, replicas.get(row.name, 0), models.get(row.name, 0)) for row in rows]}


@router.delete("/nodes/{node}")
async def remove_node(node: str, state: AppStateDep, force: bool = False) -> dict[str, Any]:
    """Removes a node that is gone for good. A node whose agent still runs returns with its next report."""
    reports = await state.nodes.is_alive(node)
    async with state.database.transaction() as session:
        await registry_nodes.remove(session, node, reports=reports and not force)
    if force:
        await state.nodes.remove(node)
    await state.queue.signal()
    return {"name": node}


def _node(row: Node, replicas: int, models: int) -> dict[str, Any]:
    return {
        "name": row.name,
        "state": row.state.value,
        "last_seen_at": rfc3339(row.last_seen_at),
        "cpus": row.cpus,
        "memory_total": row.memory_total,
        "memory_available": row.memory_available,
        "disk_total": row.disk_total,
        "disk_free": row.disk_free,
        "devices": row.devices,
        "replicas": replicas,
        "models": models,
    }


def _in_sight() -> ColumnElement[bool]:
    return or_(Replica.state.not_in(_OVER), Replica.state_changed_at > func.now() - SHOW_ENDED)


@router.get("/replicas")
async def replicas(state: AppStateDep) -> dict[str, Any]:
    """Live replicas and those that ended within SHOW_ENDED, newest first."""
    async with state.database.snapshot() as session:
        names = await catalog.display_names(session)
        rows = await session.scalars(
            select(Replica).where(_in_sight()).options(joinedload(Replica.deployment)).order_by(Replica.id.desc())
        )
        progress = await _load_progress(state)
        return {"replicas": [_replica(row, names, progress.get(row.id, 0.0)) for row in rows]}


async def _load_progress(state: AppState) -> dict[str, float]:
    """The load progress that workers report, by replica; empty if Redis does not answer."""
    try:
        return {worker.replica: worker.load_progress for worker in await state.queue.workers()}
    except Unavailable:
        return {}


def _replica(row: Replica, names: dict[str, str], load_progress: float) -> dict[str, Any]:
    version = row.deployment.version_digest
    return {
        "id": row.id,
        "model": names.get(version, version[:12]),
        "version": version,
        "node": row.node_name,
        "state": row.state.value,
        "reason": row.reason,
        "attempts": row.attempts,
        "retry_at": rfc3339(row.retry_at),
        "memory_bytes": row.memory_measured or row.memory_estimated,
        "device_memory_bytes": row.device_memory,
        "load_progress": load_progress,
        "slots": row.slots,
        "context_tokens": row.context_tokens,
        "created_at": rfc3339(row.created_at),
        "state_changed_at": rfc3339(row.state_changed_at),
    }


@router.post("/replicas/{replica}/kill")
async def kill(replica: str, state: AppStateDep) -> dict[str, Any]:
    """Makes the replica's worker kill its own process, like a crash. For `corral chaos`."""
    for report in await state.queue.workers():
        if report.replica == replica:
            await state.queue.crash(report.worker)
            return {"worker": report.worker, "node": report.node}
    raise NotFound(f"replica {replica} has no worker")


@router.get("/jobs")
async def jobs(state: AppStateDep, limit: Annotated[int, Query(ge=1, le=1000)] = 50) -> dict[str, Any]:
    """Jobs, newest first."""
    async with state.database.transaction() as session:
        rows = await session.scalars(select(Job).order_by(Job.created_at.desc(), Job.id.desc()).limit(limit))
        return {"jobs": [_job(row) for row in rows]}


def _job(row: Job) -> dict[str, Any]:
    return {
        "id": row.id,
        "kind": row.kind.value,
        "node": row.node_name,
        "state": row.state.value,
        "error": row.error,
        "created_at": rfc3339(row.created_at),
        "finished_at": rfc3339(row.finished_at),
    }


@router.get("/status")
async def status(state: AppStateDep) -> dict[str, Any]:
    """Counts by state, and the reasons of pending replicas."""
    async with state.database.snapshot() as session:
        node_states = Counter(state.value for state in await session.scalars(select(Node.state)))
        rows = (await session.scalars(select(Replica).where(_in_sight()).order_by(Replica.id))).all()
        models = await session.scalar(select(func.count()).select_from(Tag))
        running = await session.scalar(select(func.count()).where(Job.finished_at.is_(None)))
    return {
        "nodes": dict(node_states),
        "replicas": dict(Counter(row.state.value for row in rows)),
        "waiting": [row.reason for row in rows if row.state is ReplicaState.PENDING],
        "models": models,
        "jobs": running,
        "version": installed_version("corral"),
    }
