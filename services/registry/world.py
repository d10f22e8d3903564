"""What the registry knows at one moment: rows, and what nodes, workers and the queue report. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from services.protocol.engine import EngineSettings
from services.protocol.queue import Demand
from services.protocol.reports import WorkerReport
from services.registry.states import JobKind, JobState, NodeState, Origin, ReplicaState


@dataclass(frozen=True)
class Policy:
    """The settings that decisions depend on."""

    engine: EngineSettings = EngineSettings()
    keep_alive_s: float = 300.0
    node_lost_after_s: float = 10.0
    start_timeout_s: float = 300.0
    job_resend_after_s: float = 15.0
    memory_reserve_bytes: int = 512 * 1024**2


@dataclass(frozen=True)
class VersionView:
    """`name` is what people call it, empty where no tag is left. `model_blob` is the digest of its GGUF, `source` what it can
    be pulled from anywhere, or empty. `memory_bytes` is the need under the settings that it would be loaded with now."""

    digest: str
    name: str
    pull_name: str
    model_blob: str
    file_bytes: int
    memory_bytes: int
    source: str

    @property
    def wanted(self) -> bool:
        return bool(self.name)

    @property
    def shown(self) -> str:
        return self.name or self.digest[:12]


@dataclass(frozen=True)
class NodeView:
    """`reporting`: its report is there right now. Bytes; `device_memory` is the sum over its accelerators."""

    name: str
    state: NodeState
    reporting: bool
    last_seen_at: datetime
    memory_total: int
    memory_available: int
    device_memory: int
    disk_free: int
    blobs: frozenset[str]
    jobs: frozenset[str] = frozenset()


@dataclass(frozen=True)
class DeploymentView:
    """`reason` says why it is wanted no more, `engine` what its replicas run with."""

    id: int
    version: str
    origin: Origin
    replicas_wanted: int
    memory_bytes: int
    engine: EngineSettings = EngineSettings()
    reason: str = ""


@dataclass(frozen=True)
class ReplicaView:
    """`engine` is what it was started with, None where it was not."""

    id: str
    deployment: int
    version: str
    node: str | None
    state: ReplicaState
    state_changed_at: datetime
    reason: str = ""
    error_code: str = ""
    attempts: int = 1
    retry_at: datetime | None = None
    memory_estimated: int = 0
    memory_measured: int = 0
    engine: EngineSettings | None = None

    @property
    def memory_bytes(self) -> int:
        """What it counts for: the estimate until a worker was seen to take more."""
        return max(self.memory_estimated, self.memory_measured)

    def runs_as(self, deployment: DeploymentView) -> bool:
        """With the deployment's present settings, as far as is known."""
        return self.engine is None or self.engine == deployment.engine


@dataclass(frozen=True)
class JobView:
    id: str
    kind: JobKind
    node: str
    state: JobState
    replica: str | None = None
    version: str | None = None
    sends: int = 0
    sent_at: datetime | None = None
    finished_at: datetime | None = None
    error_code: str = ""
    error: str = ""


@dataclass(frozen=True)
class ProcessView:
    """A replica's process as its node reports it now. `reason` and `error_code` where the node knows why it ended."""

    replica: str
    node: str
    exit_code: int | None
    last_line: str
    reason: str = ""
    error_code: str = ""

    @property
    def runs(self) -> bool:
        return self.exit_code is None


@dataclass(frozen=True)
class World:
    """`replicas` are all live ones and the newest ended one of each deployment; `jobs` all open ones and the ended ones of
    live replicas. `workers` and `processes` go by replica. `watching_since` is when this leader began to see reports without
    a gap; `worker_seen` and `job_seen` are when it last saw a worker's report or a node at work on a job. `now` is
    PostgreSQL's clock, as all times here are."""

    now: datetime
    watching_since: datetime
    policy: Policy = field(default_factory=Policy)
    versions: Mapping[str, VersionView] = field(default_factory=dict)
    nodes: Mapping[str, NodeView] = field(default_factory=dict)
    deployments: tuple[DeploymentView, ...] = ()
    replicas: tuple[ReplicaView, ...] = ()
    jobs: tuple[JobView, ...] = ()
    demand: Mapping[str, Demand] = field(default_factory=dict)
    workers: Mapping[str, WorkerReport] = field(default_factory=dict)
    processes: tuple[ProcessView, ...] = ()
    worker_seen: Mapping[str, datetime] = field(default_factory=dict)
    job_seen: Mapping[str, datetime] = field(default_factory=dict)

    def age_s(self, since: datetime) -> float:
        return (self.now - since).total_seconds()

    def node_is_ready(self, node: str | None) -> bool:
        return node is not None and node in self.nodes and self.nodes[node].state is NodeState.READY

    def waiting(self, version: str) -> int:
        demand = self.demand.get(version)
        return demand.waiting if demand else 0

    def live(self, version: str) -> list[ReplicaView]:
        return [replica for replica in self.replicas if replica.version == version and not replica.state.is_over]

    def deployment(self, replica: ReplicaView) -> DeploymentView:
        return next(deployment for deployment in self.deployments if deployment.id == replica.deployment)

    def process(self, replica: ReplicaView) -> ProcessView | None:
        return next(
            (process for process in self.processes if process.replica == replica.id and process.node == replica.node), None
        )

    def job(self, kind: JobKind, replica: str) -> JobView | None:
        """The newest of that kind for the replica: open, or the last to end."""
        found = [job for job in self.jobs if job.kind is kind and job.replica == replica]
        return max(found, key=lambda job: job.id, default=None)

    def unused_ms(self, replica: ReplicaView) -> int:
        """Since its version was last used. Where Redis lost that record, since this leader can know."""
        if demand := self.demand.get(replica.version):
            return demand.unused_ms
        return int(min(self.age_s(replica.state_changed_at), self.age_s(self.watching_since)) * 1000)

    def is_idle(self, replica: ReplicaView) -> bool:
        worker = self.workers.get(replica.id)
        busy = worker is not None and worker.running > 0
        return replica.state is ReplicaState.READY and not busy and not self.waiting(replica.version)
