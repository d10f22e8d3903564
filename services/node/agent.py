"""Carries out the jobs that the registry sends to this node, and publishes their outcomes.

A job is the Celery task `corral.job` on the queue `node.<name>` and runs in one of the pool's threads. It is acknowledged after
its outcome was published, so a job is delivered again if the agent dies during it. If a job is delivered while it is in work,
the second delivery waits for the outcome; if it is delivered again later, the same outcome is published again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from services.node.metrics import Metrics
from services.node.progress import Progress, Stopping
from services.node.pull import pull
from services.node.runtime import Runtime, StartSpec
from services.node.sources import Sources
from services.node.store import Store
from services.protocol.engine import EngineSettings
from services.protocol.errors import BadRequest, CorralError, ModelRefused, NotFound, Unavailable
from services.protocol.jobs import (
    Delete,
    Job,
    JobEvent,
    JobFailed,
    JobProgress,
    JobSucceeded,
    Pull,
    PulledModel,
    Start,
    Stop,
    job_from_payload,
)
from services.protocol.names import ModelName

#: How many outcomes are kept, for jobs that are delivered again.
_OUTCOMES_KEPT = 1000
_PUBLISH_RETRY_INTERVAL_S = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Work:
    """A job in work."""

    ended: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)


class Agent:
    """Thread-safe.

    - `adapters`: the folder, besides the store, whose files may be LoRA adapters.
    - `publish`: sends an event to the registry; raises Unavailable if it cannot.
    """

    def __init__(
        self,
        node: str,
        *,
        store: Store,
        adapters: Path | None,
        runtime: Runtime,
        publish: Callable[[JobEvent], None],
        sources: Sources,
        metrics: Metrics,
    ) -> None:
        self._node = node
        self._store = store
        self._adapters = adapters
        self._runtime = runtime
        self._publish = publish
        self._sources = sources
        self._metrics = metrics
        self._lock = threading.Lock()
        self._working: dict[str, _Work] = {}
        self._outcomes: OrderedDict[str, JobSucceeded | JobFailed] = OrderedDict()
        self._stopping = threading.Event()

    def jobs(self) -> tuple[str, ...]:
        """The ids of the jobs in work."""
        with self._lock:
            return tuple(self._working)

    def cancel(self, job: str) -> None:
        """Makes a pull fail soon. Other jobs, and those that are not in work, are not affected."""
        with self._lock:
            if work := self._working.get(job):
                work.cancelled.set()

    def stop(self) -> None:
        """From now on jobs raise Stopping instead of having an outcome."""
        self._stopping.set()

    def do(self, payload: dict[str, Any]) -> None:
        """Carries out the job and publishes its outcome. Raises Stopping if the job must be delivered again."""
        if self._stopping.is_set():
            raise Stopping
        try:
            job = job_from_payload(payload)
        except msgspec.ValidationError as error:
            self._refuse(payload, error)
            return
        with self._lock:
            elsewhere = self._working.get(job.job)
            work = elsewhere or _Work()
            self._working[job.job] = work
        if elsewhere:
            elsewhere.ended.wait()
            return
        try:
            self._publish_outcome(self._outcome(job, work))
        finally:
            with self._lock:
                self._working.pop(job.job).ended.set()

    def _outcome(self, job: Job, work: _Work) -> JobSucceeded | JobFailed:
        with self._lock:
            known = self._outcomes.get(job.job)
        outcome = known or self._attempt(job, work)
        with self._lock:
            self._outcomes[job.job] = outcome
            while len(self._outcomes) > _OUTCOMES_KEPT:
                self._outcomes.popitem(last=False)
        return outcome

    def _attempt(self, job: Job, work: _Work) -> JobSucceeded | JobFailed:
        kind = type(job).__name__.lower()
        started_s = time.monotonic()
        try:
            pulled = self._dispatch(job, work)
        except Stopping:
            raise
        except CorralError as error:
            if self._stopping.is_set():  # the stop may be why it failed
                raise Stopping from error
            log.info("job failed: kind=%s job=%s error=%r", kind, job.job, error.message)
            self._count_failure(job)
            return JobFailed(job.job, self._node, error.code, error.message)
        except Exception as error:  # one bad job must not stop the others
            log.exception("job failed with an internal error: kind=%s job=%s", kind, job.job)
            self._count_failure(job)
            return JobFailed(job.job, self._node, CorralError.code, f"the node's agent failed: {type(error).__name__}")
        log.info("job done: kind=%s job=%s", kind, job.job)
        if pulled is not None:
            size = sum(layer.size for layer in (pulled.config, *pulled.layers))
            self._metrics.pulled(seconds=time.monotonic() - started_s, size=size)
        return JobSucceeded(job.job, self._node, pulled)

    def _count_failure(self, job: Job) -> None:
        if isinstance(job, Pull):
            self._metrics.pull_failed()

    def _dispatch(self, job: Job, work: _Work) -> PulledModel | None:
        match job:
            case Pull():
                progress = Progress(job.job, self._publish_progress, stopping=self._stopping, cancelled=work.cancelled)
                return pull(job, self._store, progress, self._sources)
            case Start():
                path = self._store.blob(job.model)
                engine = self._with_files(job.engine)
                self._runtime.start(StartSpec(job.replica, job.version, path, engine, job.memory_bytes))
            case Stop():
                self._runtime.stop(job.replica)
            case Delete():
                self._store.delete(ModelName.parse(job.name))
        return None

    def _with_files(self, engine: EngineSettings) -> EngineSettings:
        """`engine` with the LoRA adapters replaced by their paths."""
        lora = tuple((str(self._adapter(file)), scale) for file, scale in engine.lora)
        return msgspec.structs.replace(engine, lora=lora)

    def _adapter(self, file: str) -> Path:
        """The path of an adapter. Raises ModelRefused if it does not exist or is outside the allowed folders."""
        if file.startswith("sha256:"):
            return self._adapter_blob(file)
        folders = [folder.resolve() for folder in (self._store.root, self._adapters) if folder]
        path = Path(file).resolve()
        if not any(path.is_relative_to(folder) for folder in folders):
            allowed = " and ".join(str(folder) for folder in folders)
            raise ModelRefused(f"the LoRA adapter {file} is outside of the folders that node {self._node} allows: {allowed}")
        if not path.is_file():
            raise ModelRefused(f"the LoRA adapter {file} does not exist on node {self._node}")
        return path

    def _adapter_blob(self, digest: str) -> Path:
        try:
            return self._store.blob(digest)
        except NotFound as error:
            raise ModelRefused(f"the LoRA adapter {digest[:19]} is not in the store of node {self._node}") from error

    def _refuse(self, payload: dict[str, Any], error: msgspec.ValidationError) -> None:
        log.error("job does not decode: error=%r", str(error))
        job = payload.get("job")
        if isinstance(job, str):
            self._publish_outcome(
                JobFailed(job, self._node, BadRequest.code, f"the node's agent cannot decode the job: {error}")
            )

    def _publish_outcome(self, event: JobSucceeded | JobFailed) -> None:
        """Publishes the event; retries until Redis takes it. Raises Stopping if the agent stops first."""
        while True:
            try:
                return self._publish(event)
            except Unavailable as error:
                log.warning("job outcome not published yet: job=%s error=%r", event.job, error.message)
            if self._stopping.wait(_PUBLISH_RETRY_INTERVAL_S):
                raise Stopping

    def _publish_progress(self, event: JobProgress) -> None:
        try:
            self._publish(event)
        except Unavailable as error:
            log.debug("job progress lost: job=%s error=%r", event.job, error.message)
