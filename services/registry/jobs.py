"""The rows of control jobs, and the only writer of them.

A job is created in the transaction of the change that needs it and sent after that has committed; one that was created but
never sent, or sent and not worked on, is sent by the loop. Its end comes from the stream of job events alone
(job_events.py), also where the registry itself gives the job up.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import delete, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from services.protocol.errors import Conflict
from services.protocol.jobs import Delete, Job, JobFailed, JobSucceeded, Pull, Start, Stop, job_from_payload, job_to_payload
from services.registry import models
from services.registry.db import transaction_time
from services.registry.states import JobKind, JobState


def job_key(job: Job, node: str, replica: str | None) -> str:
    """The work that a job does: of two open jobs with one key the second is the first."""
    match job:
        case Pull(source=source, name=name):
            return f"pull {replica}" if replica else f"pull {source} as {name.lower()}"
        case Start(replica=replica):
            return f"start {replica}"
        case Stop(replica=replica):
            return f"stop {replica} on {node}"
        case Delete(name=name):
            return f"delete {name.lower()} on {node}"


async def create(
    session: AsyncSession, job: Job, *, node: str, replica: str | None = None, version: str | None = None
) -> models.Job:
    """The row of this job, or of the open one that does the same work."""
    payload = job_to_payload(job)
    key = job_key(job, node, replica)
    row = {"id": job.job, "kind": JobKind(payload["type"]), "key": key, "state": JobState.QUEUED, "payload": payload}
    await session.execute(
        insert(models.Job)
        .values(**row, node_name=node, replica_id=replica, version_digest=version)
        .on_conflict_do_nothing(index_elements=["key"], index_where=text("finished_at is null"))
    )
    # The open one may end between the two statements; then a finished job of the same work is as good.
    found = await session.scalar(
        select(models.Job).where(models.Job.key == key).order_by(models.Job.finished_at.desc().nulls_first()).limit(1)
    )
    assert found is not None
    return found


async def payload(session: AsyncSession, job: str) -> tuple[str, Job] | None:
    """The node and the payload of an open job."""
    row = await session.get(models.Job, job)
    return (row.node_name, job_from_payload(row.payload)) if row and not row.state.is_over else None


async def mark_sent(session: AsyncSession, job: str) -> None:
    row = await session.get(models.Job, job, with_for_update=True)
    if row and not row.state.is_over:
        row.sent_at = await transaction_time(session)
        row.state = JobState.SENT
        row.sends += 1


async def finish(session: AsyncSession, job: str, *, error_code: str = "", error: str = "") -> models.Job | None:
    """Ends the job; None where it is unknown or was over. A success that comes late counts after all: it is a fact."""
    row = await session.get(models.Job, job, with_for_update=True)
    if row is None or row.state is JobState.SUCCEEDED or (row.state is JobState.FAILED and error_code):
        return None
    # Asked first: the question flushes the row, which must not say that it is over without saying since when.
    finished_at = await session.scalar(select(func.now()))
    row.state = JobState.FAILED if error_code else JobState.SUCCEEDED
    row.error_code = error_code
    row.error = error or error_code
    row.finished_at = finished_at
    return row


def lasted_s(row: models.Job) -> float:
    """Of one that has ended."""
    assert row.finished_at is not None
    return (row.finished_at - row.created_at).total_seconds()


async def outcome(session: AsyncSession, job: str) -> JobSucceeded | JobFailed | None:
    """How it ended, None while it has not."""
    row = await session.get(models.Job, job)
    if row is None or not row.state.is_over:
        return None
    if row.state is JobState.SUCCEEDED:
        return JobSucceeded(job, row.node_name)
    return JobFailed(job, row.node_name, row.error_code, row.error)


async def drop_deletions(session: AsyncSession, name: str) -> None:
    """The model was pulled again: deletions of that name that no broker has seen are not wanted any more."""
    unsent = (models.Job.state == JobState.QUEUED) & models.Job.key.startswith(f"delete {name.lower()} on ", autoescape=True)
    for job in await session.scalars(select(models.Job.id).where(unsent)):
        await finish(session, job, error_code=Conflict.code, error="the model was pulled again")


async def prune(session: AsyncSession, *, older_than: timedelta) -> None:
    """Drops what ended that long ago."""
    await session.execute(delete(models.Job).where(models.Job.finished_at < func.now() - older_than))
