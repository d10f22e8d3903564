"""The rows of control jobs. The only writer of their table.

A job is created in the transaction of the change that needs it. The control loop sends it after the commit, and again if its
node does not work on it. Jobs end through job events (job_events.py), also when the registry itself gives a job up; only
`drop_deletions` ends jobs directly.
"""

from __future__ import annotations

import hashlib
from datetime import timedelta

from sqlalchemy import delete, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from services.protocol.errors import Conflict
from services.protocol.jobs import Delete, Job, JobFailed, JobSucceeded, Pull, Start, Stop, job_from_payload, job_to_payload
from services.protocol.source_url import shown
from services.registry.database import tables
from services.registry.database.database import transaction_time
from services.registry.database.stored_text import stored_text
from services.registry.states import JobKind, JobState


def job_key(job: Job, node: str, replica: str | None) -> str:
    """Identifies the work that a job does. At most one open job has a given key."""
    match job:
        case Pull(source=source, name=name):
            return f"pull {replica}" if replica else f"pull {_without_secrets(source)} as {name.lower()}"
        case Start(replica=replica):
            return f"start {replica}"
        case Stop(replica=replica):
            return f"stop {replica} on {node}"
        case Delete(name=name):
            return f"delete {name.lower()} on {node}"


def _without_secrets(source: str) -> str:
    """Identifies a source. Its secrets are hashed."""
    public = shown(source)
    return source if public == source else f"{public} ({hashlib.sha256(source.encode()).hexdigest()})"


async def create(
    session: AsyncSession, job: Job, *, node: str, replica: str | None = None, version: str | None = None
) -> tables.Job:
    """Adds the job's row, unless an open job does the same work. Returns the row of the one that does."""
    payload = job_to_payload(job)
    key = job_key(job, node, replica)
    row = {"id": job.job, "kind": JobKind(payload["type"]), "key": key, "state": JobState.QUEUED, "payload": payload}
    await session.execute(
        insert(tables.Job)
        .values(**row, node_name=node, replica_id=replica, version_digest=version)
        .on_conflict_do_nothing(index_elements=["key"], index_where=text("finished_at is null"))
    )
    # The open job may end between the two statements; the finished job with the same key is then returned.
    found = await session.scalar(
        select(tables.Job).where(tables.Job.key == key).order_by(tables.Job.finished_at.desc().nulls_first()).limit(1)
    )
    assert found is not None
    return found


async def payload(session: AsyncSession, job: str) -> tuple[str, Job] | None:
    """The node and the payload of an open job; None if it is unknown or has ended."""
    row = await session.get(tables.Job, job)
    return (row.node_name, job_from_payload(row.payload)) if row and not row.state.is_over else None


async def mark_sent(session: AsyncSession, job: str) -> None:
    row = await session.get(tables.Job, job, with_for_update=True)
    if row and not row.state.is_over:
        row.sent_at = await transaction_time(session)
        row.state = JobState.SENT
        row.sends += 1


async def finish(session: AsyncSession, job: str, *, error_code: str = "", error: str = "") -> tables.Job | None:
    """Ends the job; None if it is unknown or had ended. A success that arrives after a failure replaces it. What may be secret in
    the source of a pull is not kept."""
    row = await session.get(tables.Job, job, with_for_update=True)
    if row is None or row.state is JobState.SUCCEEDED or (row.state is JobState.FAILED and error_code):
        return None
    # Read before the row changes: the query flushes pending changes, and the row may not be over without `finished_at`.
    finished_at = await session.scalar(select(func.now()))
    row.state = JobState.FAILED if error_code else JobState.SUCCEEDED
    row.error_code = error_code
    row.error = stored_text(error or error_code)
    row.finished_at = finished_at
    if row.kind is JobKind.PULL:
        row.payload = {**row.payload, "source": shown(str(row.payload.get("source", "")))}
    return row


def lasted_s(row: tables.Job) -> float:
    """From creation to end, of a job that has ended."""
    assert row.finished_at is not None
    return (row.finished_at - row.created_at).total_seconds()


async def outcome(session: AsyncSession, job: str) -> JobSucceeded | JobFailed | None:
    """The job's outcome; None if it is open or unknown."""
    row = await session.get(tables.Job, job)
    if row is None or not row.state.is_over:
        return None
    if row.state is JobState.SUCCEEDED:
        return JobSucceeded(job, row.node_name)
    return JobFailed(job, row.node_name, row.error_code, row.error)


async def drop_deletions(session: AsyncSession, name: str) -> None:
    """Ends the unsent Delete jobs for a model that was pulled again."""
    unsent = (tables.Job.state == JobState.QUEUED) & tables.Job.key.startswith(f"delete {name.lower()} on ", autoescape=True)
    for job in await session.scalars(select(tables.Job.id).where(unsent)):
        await finish(session, job, error_code=Conflict.code, error="the model was pulled again")


async def prune(session: AsyncSession, *, older_than: timedelta) -> None:
    """Deletes jobs that ended longer ago than that."""
    await session.execute(delete(tables.Job).where(tables.Job.finished_at < func.now() - older_than))
