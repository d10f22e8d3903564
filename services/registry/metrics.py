"""The registry's metrics (docs/metrics.md).

Metrics of the whole cluster come from the leader's last turn. Other processes do not export them, so that each number has one
source.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric

from services.protocol.errors import InsufficientMemory, InvalidModelFile, ModelLoadFailed, ModelRefused, WorkerLost
from services.protocol.waiting import VersionQueue
from services.registry.control.cluster_state import ClusterState, ReplicaView
from services.registry.control.decisions import CreateReplica, Decision, ExplainReplica, FailReplica
from services.registry.control.placement import Shortage
from services.registry.states import JobKind, NodeState, ReplicaState

_TURN_BOUNDS_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_JOB_BOUNDS_S = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)

#: The error codes that replicas usually fail with.
_FAILURES = tuple(error.code for error in (InsufficientMemory, InvalidModelFile, ModelLoadFailed, ModelRefused, WorkerLost))


@dataclass(frozen=True)
class MetricsSample:
    """What the leader saw in one turn. `teams`: the team of each caller, or its name if it has none, by id; without revoked
    keys."""

    cluster: ClusterState
    queues: Sequence[VersionQueue]
    teams: Mapping[str, str]


class Metrics:
    """The metrics of one registry process. Written on its event loop, by the control loop and the reader of job events."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._cluster = _ClusterCollector()
        registry.register(self._cluster)
        self.turns = Histogram(
            "corral_control_turn_seconds",
            "Time of one turn of the control loop: observe, decide, act, publish.",
            buckets=_TURN_BOUNDS_S,
            registry=registry,
        )
        self._decisions = Counter(
            "corral_control_decisions",
            "Decisions of the control loop, by name.",
            ["decision"],
            registry=registry,
        )
        self._failures = Counter(
            "corral_replica_failures", "Replicas that failed, by error code.", ["model", "code"], registry=registry
        )
        self._restarts = Counter(
            "corral_replica_restarts",
            "Replicas created because the previous attempt failed.",
            ["model"],
            registry=registry,
        )
        self._refusals = Counter(
            "corral_placement_refusals",
            "Replicas that found no node, by what was missing (nodes, file, disk or memory); a waiting one counts "
            "again when the reason changes.",
            ["reason"],
            registry=registry,
        )
        self._jobs = Counter("corral_jobs", "Jobs that ended: succeeded or failed.", ["kind", "outcome"], registry=registry)
        for reason in get_args(Shortage):
            self._refusals.labels(reason)
        for kind in JobKind:
            for outcome in ("succeeded", "failed"):
                self._jobs.labels(kind, outcome)
        self._job_seconds = Histogram(
            "corral_job_duration_seconds",
            "Time from the creation of a job to its end.",
            ["kind"],
            buckets=_JOB_BOUNDS_S,
            registry=registry,
        )

    def record(self, sample: MetricsSample) -> None:
        """Records a turn of the leader. Creates the counters of each deployed model at 0, because Prometheus sees no increase
        if a counter first appears at 1."""
        self._cluster.sample = sample
        for deployment in sample.cluster.deployments:
            model = _shown(sample.cluster, deployment.version)
            self._restarts.labels(model)
            for code in _FAILURES:
                self._failures.labels(model, code)

    def clear(self) -> None:
        """This process does not lead: stops exporting the cluster's metrics."""
        self._cluster.sample = None

    def decided(self, cluster: ClusterState, decision: Decision) -> None:
        self._decisions.labels(type(decision).__name__).inc()
        match decision:
            case FailReplica(replica, code=code):
                version = next(view.version for view in cluster.replicas if view.id == replica)
                self._failures.labels(_shown(cluster, version), code).inc()
            case CreateReplica(deployment, attempts) if attempts > 1:
                version = next(view.version for view in cluster.deployments if view.id == deployment)
                self._restarts.labels(_shown(cluster, version)).inc()
            case ExplainReplica(short_of=short_of):
                self._refusals.labels(short_of).inc()

    def job_ended(self, kind: JobKind, *, failed: bool, seconds: float) -> None:
        self._jobs.labels(kind, "failed" if failed else "succeeded").inc()
        self._job_seconds.labels(kind).observe(seconds)


class _ClusterCollector:
    def __init__(self) -> None:
        self.sample: MetricsSample | None = None

    def collect(self) -> Iterator[Metric]:
        sample = self.sample
        yield GaugeMetricFamily(
            "corral_registry_leader", "1 in the process that is the leader, otherwise 0.", value=float(sample is not None)
        )
        yield from _queues(sample)
        yield from _replicas(sample.cluster if sample else None)
        yield from _memory(sample.cluster if sample else None)
        yield from _nodes_and_jobs(sample.cluster if sample else None)


def _queues(sample: MetricsSample | None) -> Iterator[Metric]:
    waiting = GaugeMetricFamily("corral_queue_waiting_requests", "Requests waiting for a worker.", labels=["model", "priority"])
    by_team = GaugeMetricFamily(
        "corral_queue_team_waiting_requests", "Requests waiting for a worker, by team.", labels=["model", "team"]
    )
    oldest = GaugeMetricFamily(
        "corral_queue_oldest_wait_seconds",
        "How long the oldest waiting request has waited; 0: none is waiting.",
        labels=["model"],
    )
    for queue in sample.queues if sample else ():
        assert sample is not None
        model = _shown(sample.cluster, queue.version)
        oldest.add_metric([model], queue.oldest_ms / 1000)
        for priority, count in queue.waiting.items():
            waiting.add_metric([model, priority], count)
        teams: Tally[str] = Tally()
        for caller, count in queue.callers.items():
            teams[sample.teams.get(caller, "unknown")] += count
        for team, count in teams.items():
            by_team.add_metric([model, team], count)
    return iter((waiting, by_team, oldest))


def _replicas(cluster: ClusterState | None) -> Iterator[Metric]:
    replicas = GaugeMetricFamily(
        "corral_replicas", "Live replicas: pending, fetching, starting, ready or draining.", labels=["model", "state"]
    )
    wanted = GaugeMetricFamily("corral_replicas_wanted", "Replicas that the deployment wants.", labels=["model"])
    for deployment in cluster.deployments if cluster else ():
        assert cluster is not None
        model = _shown(cluster, deployment.version)
        wanted.add_metric([model], deployment.replicas_wanted)
        live = Tally(view.state for view in cluster.replicas if view.deployment == deployment.id)
        for state in ReplicaState:
            if not state.is_over:
                replicas.add_metric([model, state], live[state])
    return iter((replicas, wanted))


def _memory(cluster: ClusterState | None) -> Iterator[Metric]:
    estimated = GaugeMetricFamily(
        "corral_replica_memory_estimated_bytes",
        "Memory that placement reserved for the ready replicas that have been measured.",
        labels=["model", "node"],
    )
    measured = GaugeMetricFamily(
        "corral_replica_memory_measured_bytes", "Memory that the same replicas use.", labels=["model", "node"]
    )
    reserved: Tally[tuple[str, str]] = Tally()
    taken: Tally[tuple[str, str]] = Tally()
    for replica in cluster.replicas if cluster else ():
        assert cluster is not None
        if _is_measured(replica):
            key = _shown(cluster, replica.version), replica.node or ""
            reserved[key] += replica.memory_estimated
            taken[key] += replica.memory_measured
    for key in reserved:
        estimated.add_metric(key, reserved[key])
        measured.add_metric(key, taken[key])
    return iter((estimated, measured))


def _is_measured(replica: ReplicaView) -> bool:
    return replica.state is ReplicaState.READY and replica.memory_estimated > 0 and replica.memory_measured > 0


def _nodes_and_jobs(cluster: ClusterState | None) -> Iterator[Metric]:
    nodes = GaugeMetricFamily("corral_nodes", "Nodes that are ready or lost.", labels=["state"])
    copies = GaugeMetricFamily("corral_blob_copies", "Verified copies of blobs.", labels=["node"])
    jobs = GaugeMetricFamily("corral_jobs_open", "Jobs that have not ended: pull, start, stop, delete.", labels=["kind"])
    if cluster is not None:
        states = Tally(node.state for node in cluster.nodes.values())
        for state in NodeState:
            nodes.add_metric([state], states[state])
        for node in cluster.nodes.values():
            copies.add_metric([node.name], len(node.blobs))
        kinds = Tally(job.kind for job in cluster.jobs if not job.state.is_over)
        for kind in JobKind:
            jobs.add_metric([kind], kinds[kind])
    return iter((nodes, copies, jobs))


def _shown(cluster: ClusterState, version: str) -> str:
    view = cluster.versions.get(version)
    return view.shown if view else version[:12]
