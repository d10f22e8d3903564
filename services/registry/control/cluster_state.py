"""ClusterState: everything the decisions are based on, read at one moment. Rows, reports of nodes and workers, queue demand.
Pure."""

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
    """A model version.

    - `name`: its newest tag, as displayed; empty if no tag names it. `pull_name` is the same in full.
    - `model_blob`: the digest of its GGUF file; `file_bytes` is that file's size.
    - `memory_bytes`: the estimated need with the settings that it would be loaded with now.
    - `source`: a source that any node can pull it from; empty if there is none.
    - `fault`: why it cannot be loaded at all (its rows are unusable); empty if it can.
    - `kept`: it is in the history of a tag, so that the tag can be moved back to it.
    """

    digest: str
    name: str
    pull_name: str
    model_blob: str
    file_bytes: int
    memory_bytes: int
    source: str
    fault: str = ""
    kept: bool = False

    @property
    def is_named(self) -> bool:
        return bool(self.name)

    @property
    def shown(self) -> str:
        return self.name or self.digest[:12]


@dataclass(frozen=True)
class NodeView:
    """A node. `reporting`: its report is in Redis now. Sizes in bytes; `device_memory` is the sum over its accelerators.
    `blobs` are the digests that it holds verified, `jobs` the ids of the jobs that it is working on."""

    name: str
    state: NodeState
    reporting: bool
    last_seen_at: datetime
    memory_total: int
    memory_available: int
    device_memory: int
    disk_free: int
    blobs: frozenset[str]
    cpus: int = 1
    jobs: frozenset[str] = frozenset()


@dataclass(frozen=True)
class DeploymentView:
    """The wanted state of one version.

    - `engine`: the settings that its replicas should run with; `memory_bytes` is what one of them needs.
    - `reason`: why it is no longer wanted, or why its previous settings were put back.
    - `fault`: why no replica can be started; empty if one can.
    - `widened`: `engine` with the context that requests ask for, `widened_bytes` the memory that it needs. None if `engine`
      has that context already, or if the context is fixed.
    - `on_trial`: no replica was ready with `engine` yet, and the previous settings are kept to fall back on.
    """

    id: int
    version: str
    origin: Origin
    replicas_wanted: int
    memory_bytes: int
    engine: EngineSettings = EngineSettings()
    reason: str = ""
    fault: str = ""
    widened: EngineSettings | None = None
    widened_bytes: int = 0
    on_trial: bool = False
    deployed_at: datetime | None = None


@dataclass(frozen=True)
class ReplicaView:
    """A replica. `engine` holds the settings that it was started with; None before its start."""

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
        """The memory that placement reserves for it: the estimate, or the measured value if that is higher."""
        return max(self.memory_estimated, self.memory_measured)

    def runs_as(self, deployment: DeploymentView) -> bool:
        """Whether it has the deployment's current settings, or will have them when it starts."""
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
    """A replica's process as its node reports it now. `exit_code` is None while it runs, negative for a signal.
    `reason` and `error_code` are set if the node knows why it ended."""

    replica: str
    node: str
    exit_code: int | None
    reason: str = ""
    error_code: str = ""

    @property
    def runs(self) -> bool:
        return self.exit_code is None


@dataclass(frozen=True)
class ClusterState:
    """The whole cluster at one moment. All times are PostgreSQL's.

    - `watching_since`: since when this leader has read reports without a gap.
    - `replicas`: all live ones, and the newest ended one of each deployment.
    - `jobs`: all open ones, and the ended ones of live replicas.
    - `demand`, `versions`: by version digest. `nodes`: by name.
    - `workers`: the current reports, by replica. `departed`: the last reports of workers that have left, by replica.
    - `worker_seen`: when this leader last saw a worker's report, by replica.
    - `job_seen`: when it last saw a node working on a job, by job.
    - `agent_since`: when it first saw a node's current agent, by node; only agents that started since `watching_since`.
    """

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
    departed: Mapping[str, WorkerReport] = field(default_factory=dict)
    processes: tuple[ProcessView, ...] = ()
    worker_seen: Mapping[str, datetime] = field(default_factory=dict)
    agent_since: Mapping[str, datetime] = field(default_factory=dict)
    job_seen: Mapping[str, datetime] = field(default_factory=dict)

    def age_s(self, since: datetime) -> float:
        return (self.now - since).total_seconds()

    def node_is_ready(self, node: str | None) -> bool:
        return node is not None and node in self.nodes and self.nodes[node].state is NodeState.READY

    def restarted_since(self, node: str | None, moment: datetime) -> bool:
        """Whether a new agent has started on the node since then."""
        return node is not None and node in self.agent_since and self.agent_since[node] > moment

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
        """The replica's newest job of that kind."""
        found = [job for job in self.jobs if job.kind is kind and job.replica == replica]
        return max(found, key=lambda job: job.id, default=None)

    def unused_ms(self, replica: ReplicaView) -> int:
        """Time since its version was last used. Without a record in Redis: since the replica's last state change, or since this
        leader started to watch, whichever is later."""
        if demand := self.demand.get(replica.version):
            return demand.unused_ms
        return int(min(self.age_s(replica.state_changed_at), self.age_s(self.watching_since)) * 1000)

    def is_idle(self, replica: ReplicaView) -> bool:
        worker = self.workers.get(replica.id)
        busy = worker is not None and worker.running > 0
        return replica.state is ReplicaState.READY and not busy and not self.waiting(replica.version)
