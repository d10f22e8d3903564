"""Carries out decisions.

A decision that changes rows is one transaction. The job that belongs to it is a row in the same transaction; a later turn sends
it to the broker, so that a crash in between loses nothing.
"""

from __future__ import annotations

import logging
from collections import defaultdict

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from services.protocol.engine import EngineSettings
from services.protocol.errors import BadRequest
from services.protocol.jobs import JobEvents, JobFailed, Pull, Start, Stop
from services.protocol.messages import Event, Failed, StepReply, new_id
from services.protocol.queue import Queue
from services.protocol.replies import ReplyWriter
from services.registry.control.decisions import (
    CreateReplica,
    Decision,
    DeploymentDecision,
    DrainReplica,
    EndProcess,
    ExplainReplica,
    FailJob,
    FailReplica,
    FetchModel,
    ForgetDemand,
    ForgetVersion,
    KeepSettings,
    LoseNode,
    MeasureReplica,
    ProveReplica,
    PutBackSettings,
    ReadyReplica,
    RefuseWaiting,
    ReplicaDecision,
    SendJob,
    StartReplica,
    StopReplica,
    UnwantDeployment,
    WantVersion,
    WidenContext,
)
from services.registry.database import catalog, deployments, jobs, keys, nodes, replicas
from services.registry.database.database import Database
from services.registry.job_sender import JobSender

log = logging.getLogger(__name__)


class Executor:
    """Carries out decisions, one at a time. Raises Unavailable if PostgreSQL, Redis or the broker does not answer."""

    def __init__(
        self,
        *,
        database: Database,
        queue: Queue,
        replies: ReplyWriter,
        events: JobEvents,
        sender: JobSender,
        engine: EngineSettings,
        admin_key: str | None = None,
    ) -> None:
        self._database = database
        self._queue = queue
        self._replies = replies
        self._events = events
        self._sender = sender
        self._engine = engine
        self._admin_key = admin_key

    async def follow_platform(self) -> None:
        """Applies the platform's engine settings to every deployment, and creates the admin key if one is configured. Called
        once, before the first decision."""
        async with self._database.transaction() as session:
            await deployments.follow_platform(session, self._engine)
            if self._admin_key:
                await keys.keep_admin(session, self._admin_key)

    async def act(self, decision: Decision) -> None:
        log.log(
            logging.DEBUG if isinstance(decision, SendJob | MeasureReplica | ForgetDemand) else logging.INFO,
            "decision: %s",
            decision,
        )
        match decision:
            case SendJob(job):
                await self._send(job)
            case FailJob(job, node, code, message):
                await self._events.publish(JobFailed(job, node, code, message))
            case RefuseWaiting():
                await self._refuse(decision)
            case ForgetDemand(version):
                await self._queue.forget(version)
            case UnwantDeployment(version=version, unused=True) if not await self._queue.forget(version):
                log.debug("version kept, a new request waits for it: version=%s", version[:12])
            case _:
                async with self._database.transaction() as session:
                    await self._change(session, decision)

    async def _change(self, session: AsyncSession, decision: Decision) -> None:
        """Carries out a decision that only changes rows."""
        match decision:
            case LoseNode(node):
                await nodes.lose(session, node)
            case WantVersion() | UnwantDeployment() | WidenContext() | KeepSettings() | PutBackSettings():
                await self._change_deployment(session, decision)
            case CreateReplica():
                await replicas.create(session, decision)
            case EndProcess(replica, node):
                await jobs.create(session, Stop(new_id(), replica), node=node, replica=replica)
            case ForgetVersion(version):
                await catalog.forget(session, version)
            case (
                FetchModel()
                | StartReplica()
                | ExplainReplica()
                | ReadyReplica()
                | MeasureReplica()
                | ProveReplica()
                | DrainReplica()
                | StopReplica()
                | FailReplica()
            ):
                if await replicas.apply(session, decision):
                    await self._order(session, decision)

    async def _change_deployment(self, session: AsyncSession, decision: DeploymentDecision) -> None:
        match decision:
            case WantVersion(version):
                await deployments.deploy_on_demand(session, version, self._engine)
            case UnwantDeployment(deployment, reason=reason):
                await deployments.scale_to_zero(session, deployment, reason)
            case WidenContext(deployment, engine):
                await deployments.widen(session, deployment, engine)
            case KeepSettings(deployment, engine):
                await deployments.keep_settings(session, deployment, engine)
            case PutBackSettings(deployment, engine, reason):
                await deployments.put_back(session, deployment, engine, reason)

    async def _order(self, session: AsyncSession, decision: ReplicaDecision) -> None:
        """Creates the job that belongs to the decision, in the same transaction."""
        match decision:
            case FetchModel(replica, version=version, node=node, source=source, name=name):
                await jobs.create(session, Pull(new_id(), source, name), node=node, replica=replica, version=version)
            case StartReplica(replica, version=version, node=node, model_blob=blob, memory_bytes=memory, engine=engine):
                start = Start(new_id(), replica, version, blob, engine, memory)
                await jobs.create(session, start, node=node, replica=replica, version=version)
                await nodes.mark_used(session, node, blob)
            case DrainReplica(replica, node=node, stop=True):
                await jobs.create(session, Stop(new_id(), replica), node=node, replica=replica)

    async def _send(self, job: str) -> None:
        """If the registry dies between the two transactions, the job is sent again; jobs are idempotent."""
        try:
            async with self._database.transaction() as session:
                found = await jobs.payload(session, job)
        except msgspec.ValidationError as error:
            await self._events.publish(JobFailed(job, "", BadRequest.code, f"this release cannot read the job: {error}"))
            return
        if found is None:
            return
        await self._sender.send(*found)
        async with self._database.transaction() as session:
            await jobs.mark_sent(session, job)

    async def _refuse(self, decision: RefuseWaiting) -> None:
        by_gateway: defaultdict[str, list[Event]] = defaultdict(list)
        for refused in await self._queue.refuse(decision.version):
            by_gateway[refused.gateway].append(Failed(refused.request, refused.epoch, 0, decision.code, decision.message))
        if by_gateway:
            replies = {gateway: StepReply(worker="", events=tuple(events)) for gateway, events in by_gateway.items()}
            await self._replies.publish(replies)
