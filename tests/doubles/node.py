"""A scripted node agent: it reports, takes jobs from its Celery queue, and acts as its workers."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.protocol.errors import Unavailable
from services.protocol.jobs import (
    Delete,
    Job,
    JobEvents,
    JobFailed,
    JobProgress,
    JobSucceeded,
    Layer,
    Pull,
    PulledModel,
    Start,
    Stop,
    job_from_payload,
    node_queue,
)
from services.protocol.names import ModelName
from services.protocol.queue import Queue
from services.protocol.reports import BlobReport, NodeReport, NodeReports, ProcessReport, WorkerReport, WorkerState

GIB = 1024**3
MODEL = "application/vnd.ollama.image.model"
CONFIG = "application/vnd.docker.container.image.v1+json"

REPORT_INTERVAL_S = 0.04


def sha256(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def pulled_model(name: str, content: str, *, tensor_bytes: int = 1000, template: str = "{{ messages }}") -> PulledModel:
    """A model whose files are derived from `content`; equal content gives the same version."""
    config = Layer(CONFIG, sha256(f"config of {content}"), 100)
    layers = (Layer(MODEL, sha256(content), 5000),)
    manifest = {
        "schemaVersion": 2,
        "config": {"mediaType": config.media_type, "digest": config.digest, "size": config.size},
        "layers": [{"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size} for layer in layers],
    }
    return PulledModel(
        name=name,
        manifest=json.dumps(manifest),
        config=config,
        layers=layers,
        metadata={
            "general.architecture": "llama",
            "general.name": "Tiny",
            "llama.block_count": 1,
            "llama.embedding_length": 8,
            "llama.attention.head_count": 1,
            "llama.context_length": 2048,
            "llama.vocab_size": 16,
        },
        parameter_count=134_515_008,
        quantization="Q4_1",
        tensor_bytes=tensor_bytes,
        template=template,
        system="",
        license="Apache-2.0",
        parameters={"stop": ["<|im_end|>"]},
    )


def _digest(model: PulledModel) -> str:
    return hashlib.sha256(model.manifest.encode()).hexdigest()


@dataclass
class Process:
    pid: int
    start: Start
    exit_code: int | None = None
    last_line: str = ""
    worker: WorkerReport | None = None


@dataclass
class ScriptedNode:
    """`on_start` is ready, loading (forever), exit (code 3), broken (reports an invalid file) or refuse (the job fails)."""

    name: str
    redis: Redis
    memory: int = 8 * GIB
    agent: str = "first"
    on_start: str = "ready"
    takes_jobs: bool = True
    finishes_pulls: bool = True
    tensor_bytes: dict[str, int] = field(default_factory=dict)
    taken: list[Job] = field(default_factory=list)
    processes: dict[str, Process] = field(default_factory=dict)
    blobs: dict[str, int] = field(default_factory=dict)
    names: dict[str, PulledModel] = field(default_factory=dict)
    doing: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._reports = NodeReports(self.redis)
        self._events = JobEvents(self.redis)
        self._queue = Queue(self.redis)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self.publish()
        self.resume()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.vanish()

    def resume(self) -> None:
        self._tasks = [asyncio.create_task(self._report()), asyncio.create_task(self._work())]

    async def vanish(self) -> None:
        """The machine is gone: it sends no reports, runs no workers and takes no jobs."""
        for task in self._tasks:
            task.cancel()
        for ended in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended
        await self._reports.remove(self.name)
        for process in list(self.processes.values()):
            await self.silence(process)

    def start_again(self, agent: str) -> None:
        """The machine is back with its files, and without processes."""
        self.agent = agent
        self.processes.clear()
        self.resume()

    async def publish(self) -> None:
        report = NodeReport(
            node=self.name,
            agent=self.agent,
            cpus=2,
            memory_total=self.memory,
            memory_available=self.memory,
            disk_total=100 * GIB,
            disk_free=50 * GIB,
            devices=(),
            processes=tuple(ProcessReport(r, p.pid, p.exit_code, p.last_line) for r, p in self.processes.items()),
            blobs=tuple(BlobReport(digest, size) for digest, size in self.blobs.items()),
            jobs=tuple(self.doing),
        )
        await self._reports.publish(report, lease_ms=3000)
        for process in list(self.processes.values()):
            if process.worker and process.exit_code is None:
                await self._queue.report(process.worker, lease_ms=3000)

    def worker(self, start: Start, state: WorkerState, **facts: Any) -> WorkerReport:
        return WorkerReport(
            worker=f"w-{start.replica}",
            replica=start.replica,
            version=start.version,
            node=self.name,
            state=state,
            **{"slots": 1, "context_tokens": 16, "memory_bytes": 12345, **facts},
        )

    async def exit(self, replica: str, code: int, last_line: str = "") -> None:
        """The worker process ends, and so does its lease."""
        process = self.processes[replica]
        process.exit_code, process.last_line = code, last_line
        await self.silence(process)
        await self.publish()

    async def silence(self, process: Process) -> None:
        if process.worker:
            await self._queue.leave(process.worker.worker, process.worker.version)
            process.worker = None

    @property
    def running(self) -> list[str]:
        return [replica for replica, process in self.processes.items() if process.exit_code is None]

    def jobs(self, kind: type[Any]) -> list[Any]:
        return [job for job in self.taken if isinstance(job, kind)]

    async def finish_pull(self, pull: Pull) -> None:
        self.doing.discard(pull.job)
        content = pull.source
        model = pulled_model(pull.name, content, tensor_bytes=self.tensor_bytes.get(pull.source, 1000))
        blob = model.layers[0]
        await self._events.publish(JobProgress(pull.job, "pulling manifest"))
        for completed in (0, blob.size):
            status = f"pulling {blob.digest[7:19]}"
            await self._events.publish(JobProgress(pull.job, status, blob.digest, blob.size, completed))
        await self._events.publish(JobProgress(pull.job, "verifying sha256 digest"))
        await self._events.publish(JobProgress(pull.job, "writing manifest"))
        if (before := self.names.get(pull.name)) and before.manifest != model.manifest:
            self.names[ModelName.parse(pull.name).kept(_digest(before)).full] = before
        self.names[pull.name] = model
        self.blobs |= {layer.digest: layer.size for layer in (model.config, *model.layers)}
        await self._events.publish(JobSucceeded(pull.job, self.name, model))

    async def _report(self) -> None:
        while True:
            with suppress(Unavailable, RedisError):  # the next report follows
                await self.publish()
            await asyncio.sleep(REPORT_INTERVAL_S)

    async def _work(self) -> None:
        while True:
            with suppress(Unavailable, RedisError):  # the registry sends the job again
                await self._take_one()

    async def _take_one(self) -> None:
        if not self.takes_jobs:
            await asyncio.sleep(REPORT_INTERVAL_S)
            return
        # The format in which Celery's Redis transport stores a job in the queue's list.
        popped = await cast("Awaitable[Any]", self.redis.brpop([node_queue(self.name)], timeout=REPORT_INTERVAL_S))
        if popped:
            args, _, _ = json.loads(base64.b64decode(json.loads(popped[1])["body"]))
            await self._do(job_from_payload(args[0]))

    async def _do(self, job: Job) -> None:
        self.taken.append(job)
        match job:
            case Pull(source=source) if "missing" in source:
                await self._events.publish(JobFailed(job.job, self.name, "not_found", f"{source}: no such thing"))
            case Pull():
                self.doing.add(job.job)
                if self.finishes_pulls:
                    await self.finish_pull(job)
            case Start():
                await self._start(job)
            case Stop(replica=replica):
                if replica in self.processes and self.processes[replica].exit_code is None:
                    await self.exit(replica, 0)
                await self._events.publish(JobSucceeded(job.job, self.name))
            case Delete(name=name):
                digest = ModelName.parse(name).kept_digest
                model_name = name.rpartition(":")[0]
                for held in list(self.names):
                    of_version = held.rpartition(":")[0] == model_name and _digest(self.names[held]) == digest
                    if held == name or of_version:
                        self._remove(held)
                await self._events.publish(JobSucceeded(job.job, self.name))

    def _remove(self, name: str) -> None:
        gone = self.names.pop(name)
        kept = {layer.digest for model in self.names.values() for layer in (model.config, *model.layers)}
        for layer in (gone.config, *gone.layers):
            if layer.digest not in kept:
                self.blobs.pop(layer.digest, None)

    async def _start(self, job: Start) -> None:
        if self.on_start == "refuse":
            await self._events.publish(JobFailed(job.job, self.name, "model_load_failed", "no memory left"))
            return
        process = self.processes.setdefault(job.replica, Process(pid=1000 + len(self.processes), start=job))
        match self.on_start:
            case "ready":
                process.worker = self.worker(job, WorkerState.READY)
            case "loading":
                process.worker = self.worker(job, WorkerState.LOADING)
            case "broken":
                error = {"error_code": "invalid_model_file", "error": "bad magic"}
                process.worker = self.worker(job, WorkerState.FAILED, **error)
            case "exit":
                process.exit_code, process.last_line = 3, "out of luck"
        await self.publish()
        await self._events.publish(JobSucceeded(job.job, self.name))
