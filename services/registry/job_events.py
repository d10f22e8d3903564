"""Reads job events from Redis: records outcomes in the database, then passes them to the watchers.

Every registry process reads the whole stream from its beginning. An outcome is recorded under the lock of the job's row, and
only if the job is still open, so reading it twice changes nothing.
"""

from __future__ import annotations

import hashlib
import logging

from sqlalchemy.ext.asyncio import AsyncSession

from services.process.outage import Outage
from services.protocol.errors import CorralError, InvalidModelFile, Unavailable
from services.protocol.jobs import Delete, JobEvent, JobEvents, JobFailed, JobProgress, JobSucceeded, Pull, job_from_payload
from services.protocol.messages import new_id
from services.protocol.names import ModelName
from services.protocol.queue import Queue
from services.protocol.source_url import shown
from services.registry.database import catalog, deployments, jobs, nodes, tables
from services.registry.database.database import Database
from services.registry.metrics import Metrics
from services.registry.publish import Publisher
from services.registry.watchers import Watchers

log = logging.getLogger(__name__)

#: How long one blocking read waits.
READ_TIMEOUT_S = 2.0


class JobEventReader:
    def __init__(
        self,
        *,
        database: Database,
        events: JobEvents,
        publisher: Publisher,
        queue: Queue,
        watchers: Watchers,
        metrics: Metrics,
    ) -> None:
        self._database = database
        self._events = events
        self._publisher = publisher
        self._queue = queue
        self._watchers = watchers
        self._metrics = metrics
        self._position = b"0-0"

    async def run(self) -> None:
        """Runs until cancelled. An event is read again if PostgreSQL or Redis was unavailable while it was recorded."""
        outage = Outage(log)
        while True:
            try:
                for position, event in await self._events.read(self._position, timeout_s=READ_TIMEOUT_S):
                    await self._take_or_skip(event)
                    self._position = position
                outage.over("job events")
            except Unavailable as error:
                await outage.wait("job events", error)

    async def _take_or_skip(self, event: JobEvent) -> None:
        try:
            await self._take(event)
        except Unavailable:
            raise
        except Exception:
            # One bad event must not block the others.
            log.exception("job event skipped: job=%s", event.job)

    async def _take(self, event: JobEvent) -> None:
        if isinstance(event, JobProgress):
            self._watchers.publish(event)
            return
        changed = await self._settle(event)
        if changed or self._watchers.watches(event.job):
            # Even if another process wrote the row first, the watchers of this one need the outcome.
            await self._publisher.publish()
            async with self._database.transaction() as session:
                outcome = await jobs.outcome(session, event.job)
            if outcome:
                self._watchers.publish(outcome)
        if changed:
            await self._queue.signal()

    async def _settle(self, event: JobSucceeded | JobFailed) -> bool:
        """Records the outcome; true if it ended the job. A success that cannot be recorded is recorded as a failure."""
        try:
            changed = await self._record(event)
        except Unavailable:
            raise
        except Exception as error:  # noqa: BLE001 - logged, and recorded as the job's failure
            # The job must end, or its watchers would wait for ever.
            failure = _failure(event, error)
            changed = await self._record(failure)
            await self._remove_unrecorded(event)
            event = failure
        if changed and isinstance(event, JobFailed):
            log.warning("job failed: job=%s node=%s error=%r", event.job, event.node, event.message)
        return changed

    async def _remove_unrecorded(self, event: JobSucceeded | JobFailed) -> None:
        """Deletes the pulled model from the node if no row refers to its version."""
        if not isinstance(event, JobSucceeded) or event.pulled is None:
            return
        digest = hashlib.sha256(event.pulled.manifest.encode()).hexdigest()
        async with self._database.transaction() as session:
            if await session.get(tables.Version, digest) is None:
                name = ModelName.parse(event.pulled.name).kept(digest).full
                await jobs.create(session, Delete(new_id(), name), node=event.node)

    async def _record(self, event: JobSucceeded | JobFailed) -> bool:
        async with self._database.transaction() as session:
            if isinstance(event, JobFailed):
                row = await jobs.finish(session, event.job, error_code=event.code, error=event.message or event.code)
            else:
                row = await jobs.finish(session, event.job)
            if row is None:
                return False
            if isinstance(event, JobSucceeded) and event.pulled:
                await _take_model(session, row, event)
            kind, seconds = row.kind, jobs.lasted_s(row)
        self._metrics.job_ended(kind, failed=isinstance(event, JobFailed), seconds=seconds)
        return True


def _failure(event: JobSucceeded | JobFailed, error: Exception) -> JobFailed:
    if isinstance(error, CorralError):
        return JobFailed(event.job, event.node, error.code, error.message)
    log.error("job outcome not recorded: job=%s", event.job, exc_info=error)
    return JobFailed(
        event.job, event.node, CorralError.code, f"the registry could not record the job's outcome ({type(error).__name__})"
    )


async def _take_model(session: AsyncSession, row: tables.Job, event: JobSucceeded) -> None:
    """Records the result of a pull. A user's pull registers the model and moves its tag. A replica's pull must yield the
    version that the job names. Raises InvalidModelFile if it does not."""
    pull, pulled = job_from_payload(row.payload), event.pulled
    if pulled is None or not isinstance(pull, Pull):
        return
    if row.replica_id is None:
        before = await catalog.tagged_version(session, ModelName.parse(pulled.name))
        version = await catalog.register(session, pulled, source=shown(pull.source))
        if before and before != version:
            await deployments.carry_over(session, before, version)
        await jobs.drop_deletions(session, pulled.name)
        await jobs.drop_deletions(session, ModelName.parse(pulled.name).kept(version).full)
    elif catalog.version_digest(pulled) != row.version_digest:
        raise InvalidModelFile(f"{shown(pull.source)} now has another version")
    await nodes.add_copies(session, event.node, {layer.digest for layer in (pulled.config, *pulled.layers)})
