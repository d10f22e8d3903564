"""Reads what agents say of their jobs, turns outcomes into rows, and tells the watchers, once the rows are committed.

Every registry process reads the stream, from its start: outcomes are taken under the job's row lock and a finished job is
passed over, so that a second reader, or reading twice, changes nothing.
"""

from __future__ import annotations

import logging

from sqlalchemy.ext.asyncio import AsyncSession

from services.protocol.errors import CorralError, InvalidModelFile, Unavailable
from services.protocol.jobs import JobEvent, JobEvents, JobFailed, JobProgress, JobSucceeded, Pull, job_from_payload
from services.protocol.names import ModelName
from services.protocol.queue import Queue
from services.registry import catalog, deployments, jobs, models, nodes
from services.registry.db import Database
from services.registry.metrics import Metrics
from services.registry.outage import Outage
from services.registry.publish import Publisher
from services.registry.watchers import Watchers

log = logging.getLogger(__name__)

#: A read that found nothing is asked again after so long.
READ_S = 2.0


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
        """For ever. An event that PostgreSQL could not take is read again."""
        outage = Outage("job events", log)
        while True:
            try:
                for position, event in await self._events.read(self._position, timeout_s=READ_S):
                    await self._take_or_pass_over(event)
                    self._position = position
                outage.over()
            except Unavailable as error:
                await outage.wait(error)

    async def _take_or_pass_over(self, event: JobEvent) -> None:
        try:
            await self._take(event)
        except Unavailable:
            raise
        except Exception:
            # One event that cannot be taken must not keep the registry from the others.
            log.exception("what job %s came to could not be taken, and is passed over", event.job)

    async def _take(self, event: JobEvent) -> None:
        if isinstance(event, JobProgress):
            self._watchers.tell(event)
            return
        changed = await self._settle(event)
        if changed or self._watchers.watches(event.job):
            # Another process may have been first to write the row; the watchers here want to know all the same.
            await self._publisher.publish()
            async with self._database.transaction() as session:
                outcome = await jobs.outcome(session, event.job)
            if outcome:
                self._watchers.tell(outcome)
        if changed:
            await self._queue.signal()

    async def _settle(self, event: JobSucceeded | JobFailed) -> bool:
        """True where this was the job's end. A success that does not hold what it should is a failure."""
        try:
            changed = await self._record(event)
        except Unavailable:
            raise
        except CorralError as error:
            event = JobFailed(event.job, event.node, error.code, error.message)
            changed = await self._record(event)
        except Exception as error:
            # Whoever watches the job must hear of its end.
            log.exception("the success of job %s could not be recorded", event.job)
            message = f"the registry could not record it ({type(error).__name__})"
            event = JobFailed(event.job, event.node, CorralError.code, message)
            changed = await self._record(event)
        if changed and isinstance(event, JobFailed):
            log.warning("job %s on %s failed: %s", event.job, event.node, event.message)
        return changed

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


async def _take_model(session: AsyncSession, row: models.Job, event: JobSucceeded) -> None:
    """A pull that somebody asked for makes the model known; one for a replica must bring what is known already."""
    pull, pulled = job_from_payload(row.payload), event.pulled
    if pulled is None or not isinstance(pull, Pull):
        return
    if row.replica_id is None:
        before = await catalog.tagged_version(session, ModelName.parse(pulled.name))
        version = await catalog.register(session, pulled, source=pull.source)
        if before and before != version:
            await deployments.carry_over(session, before, version)
        await jobs.drop_deletions(session, pulled.name)
    elif catalog.version_digest(pulled) != row.version_digest:
        raise InvalidModelFile(f"{pull.source} holds another version now")
    await nodes.add_copies(session, event.node, {layer.digest for layer in (pulled.config, *pulled.layers)})
