"""The registry's metrics (docs/metrics.md). What is true of the whole cluster is read off what the leader saw at its last turn; a process
that does not lead has nothing to say of it, so that each number has one source."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric

from services.protocol.errors import InsufficientMemory, InvalidModelFile, ModelLoadFailed, ModelRefused, WorkerLost
from services.protocol.waiting import VersionQueue
from services.registry.decisions import CreateReplica, Decision, ExplainReplica, FailReplica
from services.registry.placement import Shortage
from services.registry.states import JobKind, NodeState, ReplicaState
from services.registry.world import ReplicaView, World

_TURN_BOUNDS_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_JOB_BOUNDS_S = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)

#: What replicas mostly fail with.
_FAILURES = tuple(error.code for error in (InsufficientMemory, InvalidModelFile, ModelLoadFailed, ModelRefused, WorkerLost))


@dataclass(frozen=True)
class Sight:
    """One turn. `teams` are those of callers by their ids; a key that was revoked meanwhile has none."""

    world: World
    queues: Sequence[VersionQueue]
    teams: Mapping[str, str]


class Metrics:
    """Of one registry process. Its event loop writes: the control loop, and the reader of job events."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._cluster = _ClusterCollector()
        registry.register(self._cluster)
        self.turns = Histogram(
            "corral_control_turn_seconds",
            "One turn of the control loop: observe, decide, act, publish.",
            buckets=_TURN_BOUNDS_S,
            registry=registry,
        )
        self._decisions = Counter(
            "corral_control_decisions",
            "What the control loop decided, by the decision's name.",
            ["decision"],
            registry=registry,
        )
        self._failures = Counter(
            "corral_replica_failures", "Replicas that failed, by the error's code.", ["model", "code"], registry=registry
        )
        self._restarts = Counter(
            "corral_replica_restarts",
            "Replicas that were made because the one before failed.",
            ["model"],
            registry=registry,
        )
        self._refusals = Counter(
            "corral_placement_refusals",
            "Placements that found no node, by what was short (nodes, file, disk or memory); one that waits counts again when its "
            "reason changes.",
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
            "From the making of a job to its end.",
            ["kind"],
            buckets=_JOB_BOUNDS_S,
            registry=registry,
        )

    def saw(self, sight: Sight) -> None:
        """What may yet be counted of a model is there from its first deployment on: a counter that appears with 1 has not risen, to
        Prometheus."""
        self._cluster.sight = sight
        for deployment in sight.world.deployments:
            model = _shown(sight.world, deployment.version)
            self._restarts.labels(model)
            for code in _FAILURES:
                self._failures.labels(model, code)

    def stands_by(self) -> None:
        """Another process leads, or none."""
        self._cluster.sight = None

    def decided(self, world: World, decision: Decision) -> None:
        self._decisions.labels(type(decision).__name__).inc()
        match decision:
            case FailReplica(replica, code=code):
                version = next(view.version for view in world.replicas if view.id == replica)
                self._failures.labels(_shown(world, version), code).inc()
            case CreateReplica(deployment, attempts) if attempts > 1:
                version = next(view.version for view in world.deployments if view.id == deployment)
                self._restarts.labels(_shown(world, version)).inc()
            case ExplainReplica(short_of=short_of):
                self._refusals.labels(short_of).inc()

    def job_ended(self, kind: JobKind, *, failed: bool, seconds: float) -> None:
        self._jobs.labels(kind, "failed" if failed else "succeeded").inc()
        self._job_seconds.labels(kind).observe(seconds)


class _ClusterCollector:
    def __init__(self) -> None:
        self.sight: Sight | None = None

    def collect(self) -> Iterator[Metric]:
        sight = self.sight
        yield GaugeMetricFamily(
            "corral_registry_leader", "1 in the process that leads, otherwise 0.", value=float(sight is not None)
        )
        yield from _queues(sight)
        yield from _replicas(sight.world if sight else None)
        yield from _memory(sight.world if sight else None)
        yield from _nodes_and_jobs(sight.world if sight else None)


def _queues(sight: Sight | None) -> Iterator[Metric]:
    waiting = GaugeMetricFamily(
        "corral_queue_waiting_requests", "Requests that wait for a worker.", labels=["model", "priority"]
    )
    by_team = GaugeMetricFamily("corral_queue_team_waiting_requests", "The same, by team.", labels=["model", "team"])
    oldest = GaugeMetricFamily(
        "corral_queue_oldest_wait_seconds", "How long the oldest of them has waited; 0: none waits.", labels=["model"]
    )
    for queue in sight.queues if sight else ():
        assert sight is not None
        model = _shown(sight.world, queue.version)
        oldest.add_metric([model], queue.oldest_ms / 1000)
        for priority, count in queue.waiting.items():
            waiting.add_metric([model, priority], count)
        teams: Tally[str] = Tally()
        for caller, count in queue.callers.items():
            teams[sight.teams.get(caller, "unknown")] += count
        for team, count in teams.items():
            by_team.add_metric([model, team], count)
    return iter((waiting, by_team, oldest))


def _replicas(world: World | None) -> Iterator[Metric]:
    replicas = GaugeMetricFamily(
        "corral_replicas", "Live replicas: pending, fetching, starting, ready, draining.", labels=["model", "state"]
    )
    wanted = GaugeMetricFamily("corral_replicas_wanted", "Replicas that the deployment wants.", labels=["model"])
    for deployment in world.deployments if world else ():
        assert world is not None
        model = _shown(world, deployment.version)
        wanted.add_metric([model], deployment.replicas_wanted)
        live = Tally(view.state for view in world.replicas if view.deployment == deployment.id)
        for state in ReplicaState:
            if not state.is_over:
                replicas.add_metric([model, state], live[state])
    return iter((replicas, wanted))


def _memory(world: World | None) -> Iterator[Metric]:
    estimated = GaugeMetricFamily(
        "corral_replica_memory_estimated_bytes",
        "What placement reserved for the ready replicas that have been measured.",
        labels=["model", "node"],
    )
    measured = GaugeMetricFamily(
        "corral_replica_memory_measured_bytes", "What the same replicas take.", labels=["model", "node"]
    )
    reserved: Tally[tuple[str, str]] = Tally()
    taken: Tally[tuple[str, str]] = Tally()
    for replica in world.replicas if world else ():
        assert world is not None
        if _is_measured(replica):
            key = _shown(world, replica.version), replica.node or ""
            reserved[key] += replica.memory_estimated
            taken[key] += replica.memory_measured
    for key in reserved:
        estimated.add_metric(key, reserved[key])
        measured.add_metric(key, taken[key])
    return iter((estimated, measured))


def _is_measured(replica: ReplicaView) -> bool:
    return replica.state is ReplicaState.READY and replica.memory_estimated > 0 and replica.memory_measured > 0


def _nodes_and_jobs(world: World | None) -> Iterator[Metric]:
    nodes = GaugeMetricFamily("corral_nodes", "Nodes that are ready or lost.", labels=["state"])
    copies = GaugeMetricFamily("corral_blob_copies", "Verified copies of blobs.", labels=["node"])
    jobs = GaugeMetricFamily("corral_jobs_open", "Jobs that have not ended: pull, start, stop, delete.", labels=["kind"])
    if world is not None:
        states = Tally(node.state for node in world.nodes.values())
        for state in NodeState:
            nodes.add_metric([state], states[state])
        for node in world.nodes.values():
            copies.add_metric([node.name], len(node.blobs))
        kinds = Tally(job.kind for job in world.jobs if not job.state.is_over)
        for kind in JobKind:
            jobs.add_metric([kind], kinds[kind])
    return iter((nodes, copies, jobs))


def _shown(world: World, version: str) -> str:
    view = world.versions.get(version)
    return view.shown if view else version[:12]
