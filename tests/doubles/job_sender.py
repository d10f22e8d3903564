"""The registry's side of a node, scripted: sends jobs, and reads events and reports."""

from __future__ import annotations

from celery import Celery
from redis.asyncio import Redis

from services.protocol.engine import EngineSettings
from services.protocol.jobs import (
    JOB_TASK,
    Job,
    JobEvent,
    JobEvents,
    JobFailed,
    JobProgress,
    JobSucceeded,
    Pull,
    PulledModel,
    Start,
    job_to_payload,
    node_queue,
)
from services.protocol.messages import new_id
from services.protocol.queue import Queue
from services.protocol.reports import NodeReport, NodeReports, WorkerReport, WorkerState
from tests.conditions import eventually

NODE = "test-node"
NAME = "registry.ollama.ai/library/tiny:latest"


VERSION = "f" * 64


def start_job(pulled: PulledModel, replica: str = "r1") -> Start:
    return Start(new_id(), replica, VERSION, pulled.layers[0].digest, EngineSettings(slots=2))


class Driver:
    def __init__(self, redis: Redis, redis_url: str) -> None:
        self._events = JobEvents(redis)
        self._reports = NodeReports(redis)
        self._queue = Queue(redis)
        self._celery = Celery(broker=redis_url, set_as_current=False)
        self._last = b"0-0"
        self.seen: list[JobEvent] = []

    def close(self) -> None:
        self._celery.close()

    def send(self, job: Job) -> None:
        self.send_payload(job_to_payload(job))

    def send_payload(self, payload: object) -> None:
        with self._celery.connection_for_write() as connection:
            self._celery.send_task(JOB_TASK, args=(payload,), queue=node_queue(NODE), connection=connection, retry=False)

    async def outcome(self, job: str, *, timeout_s: float = 20) -> JobSucceeded | JobFailed:
        async def reported() -> JobSucceeded | JobFailed | None:
            await self.read()
            outcomes = [event for event in self.seen if event.job == job and not isinstance(event, JobProgress)]
            return outcomes[0] if outcomes else None

        return await eventually(reported, timeout_s=timeout_s, what=f"an outcome of job {job}")

    async def read(self) -> None:
        for entry, event in await self._events.read(self._last, timeout_s=0.01):
            self._last = entry
            self.seen.append(event)

    async def do(self, job: Job) -> JobSucceeded | JobFailed:
        self.send(job)
        return await self.outcome(job.job)

    async def pull(self, source: str, name: str = NAME) -> PulledModel:
        outcome = await self.do(Pull(new_id(), source, name))
        assert isinstance(outcome, JobSucceeded), outcome
        assert outcome.pulled
        return outcome.pulled

    async def refusal(self, job: Job) -> JobFailed:
        outcome = await self.do(job)
        assert isinstance(outcome, JobFailed), outcome
        return outcome

    def lines(self, job: str) -> list[JobProgress]:
        return [event for event in self.seen if isinstance(event, JobProgress) and event.job == job]

    async def report(self) -> NodeReport | None:
        return next(iter(await self._reports.read()), None)

    async def reports(self) -> NodeReport:
        """Waits for a report of the node."""
        return await eventually(self.report, timeout_s=15, what="a report of the node")

    async def worker(self, replica: str, state: WorkerState = WorkerState.READY) -> WorkerReport:
        async def found() -> WorkerReport | None:
            reports = await self._queue.workers()
            return next((report for report in reports if report.replica == replica and report.state == state), None)

        return await eventually(found, timeout_s=20, what=f"a {state} worker of {replica}")

    async def workers(self) -> list[WorkerReport]:
        return await self._queue.workers()
